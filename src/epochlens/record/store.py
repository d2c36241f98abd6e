"""The store: what a run leaves on disk, committed so that a crash at any point loses at most one epoch.

Commit protocol. Every file appears whole: it is written beside its place, flushed to disk, and renamed.
While a run trains, an epoch is committed in three steps, and only the second makes it count:
 1. `attributions/epoch-0007.parquet`, the maps, and `quality/epoch-0007.parquet` where quality is measured;
 2. a line of `ledger.jsonl` with the epoch's metrics, row count, and the checksums of these files and of the
    checkpoint that follows; the line carries its own checksum, so a torn one is not believed;
 3. `state.pt`, the checkpoint (the one before it stays as `state-previous.pt`).
A finished run is gathered into `attributions.parquet`, `epochs.parquet` and `quality.parquet`, then
`run.json` says "done" with the checksum of each file, and only then the working files go. Readers believe
checksums, never mere files. Two attempts at the same epoch write the same bytes, so it does not matter whose
line comes last.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from epochlens.errors import UsageError
from epochlens.lazy import LazyModule
from epochlens.record import tables

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = LazyModule("pandas")

METRICS = ("train_loss", "test_loss", "accuracy", "seconds_train", "seconds_eval", "seconds_attribute")
WORKING = ("ledger.jsonl", "state.pt", "state-previous.pt")


class Entry(NamedTuple):
    """A committed epoch of an unfinished run."""

    epoch: int
    rows: int
    maps: str
    """SHA-256 of the epoch's Parquet file"""
    state: str
    """SHA-256 of the checkpoint written after it, or "" """
    metrics: dict[str, float]
    quality: str = ""
    """SHA-256 of the epoch's quality file, or "" when quality was not measured"""


def write_whole(path: Path, content: bytes) -> str:
    """Writes the file so that it appears whole or not at all; returns its SHA-256."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)
    return checksum(content)


def publish(finished: Path, path: Path) -> None:
    """Puts a closed file, written beside its place, into its place."""
    with finished.open("rb") as file:
        os.fsync(file.fileno())
    finished.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, document: Any) -> None:
    """Writes the document whole, indented, with its keys in the given order."""
    write_whole(path, (json.dumps(document, indent=2, default=str) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The document, or None when the file is missing or not JSON."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def file_checksum(path: Path) -> str:
    """SHA-256 of the file, or "" when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def keep_other_run(folder: Path, identity: Mapping[str, Any], images, labels, indices) -> None:
    """Sets aside what the folder holds unless it is an unfinished run of the same identity and images."""
    record = read_json(folder / "run.json")
    if record is None:
        return
    probe = checksum(tables.npz_bytes(images=images, labels=labels, indices=indices))
    same = all(record.get(key) == value for key, value in identity.items())
    if record.get("status") == "done" or not same or file_checksum(folder / "probe.npz") != probe:
        set_aside(folder)


def begin_run(folder: Path, record: Mapping[str, Any], images, labels, indices) -> None:
    """Makes the run's folder with its probe images and a run.json that says "running"."""
    (folder / "attributions").mkdir(parents=True, exist_ok=True)
    probe = tables.npz_bytes(images=images, labels=labels, indices=indices)
    write_whole(folder / "probe.npz", probe)
    (folder / "error.log").unlink(missing_ok=True)
    write_json(folder / "run.json", {**record, "status": "running"})


def epoch_file(folder: Path, epoch: int, kind: str = "attributions") -> Path:
    """Where an epoch's `attributions` or `quality` lie while the run is unfinished."""
    return folder / kind / f"epoch-{epoch:04d}.parquet"


def commit_epoch(
    folder: Path,
    epoch: int,
    maps: tables.Maps,
    metrics: Mapping[str, float],
    state: bytes | None,
    quality: pd.DataFrame | None = None,
) -> Entry:
    """Commits one epoch: its maps and quality, its ledger line, and the checkpoint to go on from."""
    maps_checksum = write_whole(epoch_file(folder, epoch), tables.maps_bytes(maps))
    quality_checksum = ""
    if quality is not None:
        (folder / "quality").mkdir(exist_ok=True)
        quality_checksum = write_whole(epoch_file(folder, epoch, "quality"), tables.frame_bytes(quality))
    rows = math.prod(maps.attributions.shape[:3])
    entry = Entry(epoch, rows, maps_checksum, "", dict(metrics), quality_checksum)
    commit_entry(folder, entry, state)
    return entry


def commit_entry(folder: Path, entry: Entry, state: bytes | None) -> None:
    """Commits an epoch whose maps are in place: its ledger line, then the checkpoint to go on from."""
    append_entry(folder, entry._replace(state=checksum(state) if state is not None else ""))
    if state is not None:
        write_state(folder, state)


def checksum(content: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write_state(folder: Path, state: bytes) -> None:
    """Puts the checkpoint in place; the one before it stays until the next."""
    latest = folder / "state.pt"
    if latest.exists():
        latest.replace(folder / "state-previous.pt")
    write_whole(latest, state)


def append_entry(folder: Path, entry: Entry) -> None:
    """Adds the entry to the ledger as a line that carries its own checksum."""
    text = json.dumps(entry._asdict(), sort_keys=True)
    line = f"{zlib.crc32(text.encode()):08x} {text}\n"
    path = folder / "ledger.jsonl"
    torn = path.exists() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
    with path.open("ab") as file:
        file.write(("\n" if torn else "").encode() + line.encode())
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def read_ledger(folder: Path) -> dict[int, Entry]:
    """The ledger's believable entries by epoch, the last line of an epoch first in rank."""
    try:
        lines = (folder / "ledger.jsonl").read_bytes().splitlines()
    except OSError:
        return {}
    entries = {}
    for line in lines:
        check, _, text = line.partition(b" ")
        if check == f"{zlib.crc32(text):08x}".encode():
            entry = Entry(**json.loads(text))
            entries[entry.epoch] = entry
    return dict(sorted(entries.items()))


def committed(folder: Path) -> dict[int, Entry]:
    """The committed epochs of an unfinished run whose files are whole on disk, by epoch."""

    def is_whole(entry: Entry) -> bool:
        kept = {"attributions": entry.maps, "quality": entry.quality}
        return all(
            file_checksum(epoch_file(folder, entry.epoch, kind)) == expected
            for kind, expected in kept.items()
            if expected
        )

    return {epoch: entry for epoch, entry in read_ledger(folder).items() if is_whole(entry)}


def latest_state(folder: Path, entries: Mapping[int, Entry]) -> bytes | None:
    """The newest checkpoint that the ledger vouches for and that has every epoch up to it committed."""
    whole = 0
    while whole in entries:
        whole += 1
    vouched = {entry.state for epoch, entry in entries.items() if epoch < whole and entry.state}
    for name in ("state.pt", "state-previous.pt"):
        if file_checksum(folder / name) in vouched:
            return (folder / name).read_bytes()
    return None


def finish_run(
    folder: Path, record: Mapping[str, Any], others: Sequence[str] = (), npz: bool = False
) -> None:
    """Gathers the epochs into the finished run's files, says "done", and removes the working files.

    `others` names files of the caller's in the folder that belong to the run. Raises StoreError when an
    epoch is missing.
    """
    entries = committed(folder)
    if not entries or list(entries) != list(range(len(entries))):
        raise StoreError(f"{folder}: epochs {sorted(entries)} are not all there: the run is not complete")
    beside = folder / f".attributions.parquet.{os.getpid()}.tmp"
    tables.gather(beside, [epoch_file(folder, epoch) for epoch in entries])
    publish(beside, folder / "attributions.parquet")
    write_whole(folder / "epochs.parquet", tables.frame_bytes(metrics_frame(entries)))
    names = ["attributions.parquet", "epochs.parquet", "probe.npz", *others]
    measured = [epoch_file(folder, epoch, "quality") for epoch, entry in entries.items() if entry.quality]
    if measured:
        write_whole(folder / "quality.parquet", tables.frame_bytes(join_frames(measured)))
        names.append("quality.parquet")
    if npz:
        loaded = tables.read_maps(folder / "attributions.parquet")
        write_whole(folder / "attributions.npz", tables.npz_bytes(**loaded._asdict()))
        names.append("attributions.npz")
    checksums = {name: file_checksum(folder / name) for name in names if (folder / name).exists()}
    write_json(folder / "run.json", {**record, "status": "done", "files": checksums})
    remove_working_files(folder)


class StoreError(RuntimeError):
    """The files of a run are not what they should be."""


def metrics_frame(entries: Mapping[int, Entry]) -> pd.DataFrame:
    """The epochs' metrics as a DataFrame: epoch, the standard ones (NaN where not recorded), then others."""
    names = [*METRICS, *sorted({name for e in entries.values() for name in e.metrics} - set(METRICS))]
    rows = {name: [e.metrics.get(name, math.nan) for e in entries.values()] for name in names}
    return pd.DataFrame({"epoch": np.array(list(entries), np.int32), **rows})


def remove_working_files(folder: Path) -> None:
    """Removes what only an unfinished run needs."""
    for kind in ("attributions", "quality"):
        shutil.rmtree(folder / kind, ignore_errors=True)
    for name in WORKING:
        (folder / name).unlink(missing_ok=True)


def fail_run(folder: Path, record: Mapping[str, Any], error: str, log: str) -> Path:
    """Says in run.json that the run failed and why; returns the place of the log. Committed epochs stay."""
    if is_done(folder):
        raise StoreError(f"{folder} is finished: another process must have finished it meanwhile")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "error.log"
    write_whole(path, log.encode())
    write_json(folder / "run.json", {**record, "status": "failed", "error": error, "log": str(path)})
    return path


def run_status(folder: Path) -> tuple[str, int]:
    """What the store holds of a run, and the number of epochs in its ledger (0 once gathered).

    "missing" (nothing), "partial" (goes on from the last committed epoch), "failed", "done" (every file is
    as its checksum says), or "corrupt" (says done, and is not).
    """
    record = read_json(folder / "run.json")
    if record is None:
        return ("partial" if read_ledger(folder) else "missing"), len(read_ledger(folder))
    if record.get("status") != "done":
        return ("failed" if record.get("status") == "failed" else "partial"), len(read_ledger(folder))
    files = record.get("files") or {}
    whole = files and all(c and file_checksum(folder / Path(name).name) == c for name, c in files.items())
    return ("done" if whole else "corrupt"), 0


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; the lock goes with it, however it ends.

    Raises UsageError, naming the other process, while another one holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            problem = f"is being worked on by {file.read().strip() or 'another process'}: wait, or stop it"
            raise UsageError("sweep", str(folder), problem) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield


def set_aside(folder: Path) -> Path:
    """Moves a folder out of the way, keeping it, and returns its new place."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    return folder.rename(target)


def read_epochs(folder: Path) -> pd.DataFrame:
    """The epochs' metrics of a run, finished or not, as a DataFrame."""
    if is_done(folder):
        return pd.read_parquet(folder / "epochs.parquet")
    return metrics_frame(committed(folder))


def read_quality(folder: Path) -> pd.DataFrame | None:
    """The quality of a run's maps, finished or not, as `tables.quality_frame` has it; None without any."""
    if is_done(folder):
        files = [path for path in [folder / "quality.parquet"] if path.exists()]
    else:
        entries = committed(folder).values()
        files = [epoch_file(folder, e.epoch, "quality") for e in entries if e.quality]
    return join_frames(files) if files else None


def join_frames(files: Sequence[Path]) -> pd.DataFrame:
    """The rows of Parquet files of the same columns, one file after another."""
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)


def is_done(folder: Path) -> bool:
    """Whether run.json says that the run is finished, so that its gathered files are the ones to read."""
    return (read_json(folder / "run.json") or {}).get("status") == "done"


def recorded_methods(path: str | Path) -> list[str]:
    """The labels of what a run's maps hold, second draws among them. Raises StoreError when it holds none."""
    folder = Path(path)
    if is_done(folder):
        return tables.read_methods(folder / "attributions.parquet")
    epochs = committed(folder)
    if not epochs:
        raise StoreError(f"{folder} holds no recorded maps")
    return tables.read_methods(epoch_file(folder, next(iter(epochs))))


def load(
    path: str | Path, methods: Sequence[str] | None = None, epochs: Collection[int] | None = None
) -> tables.Maps:
    """The maps of a run, finished or not, from its folder: an array with its methods, epochs and samples.

    All methods and epochs, or those named. Raises StoreError when the folder holds no committed map, KeyError
    for a method not there.
    """
    folder = Path(path)
    finished = folder / "attributions.parquet"
    done = is_done(folder)
    wanted = [e for e in committed(folder) if epochs is None or e in epochs] if not done else []
    files = [finished] if done else [epoch_file(folder, e) for e in wanted]
    if not files:
        raise StoreError(f"{folder} holds no recorded maps")
    parts = [tables.read_maps(file, methods, epochs) for file in files]
    return parts[0] if len(parts) == 1 else tables.join_epochs(parts)
