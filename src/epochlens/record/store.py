"""The store: what a run leaves on disk, committed so that a crash at any point loses at most one epoch.

Commit protocol. Every file appears whole: it is written beside its place, flushed to disk, and renamed.
While a run trains, an epoch is committed in three steps, and only the second makes it count:
 1. `attributions/epoch-0007.parquet`, the maps, and `quality/epoch-0007.parquet` where quality is measured;
 2. a line of `ledger.jsonl` with the epoch's metrics, row count, and the checksums of these files and of the
    checkpoint that follows; the line carries its own checksum, so a torn one is not believed;
 3. `state.pt`, the checkpoint (the one before it stays as `state-previous.pt`).
A finished run is gathered into `attributions.parquet`, `epochs.parquet` and `quality.parquet`, then
`run.json` says "done" with the checksum of each file, and only then the working files go. Readers believe
checksums and row counts, never mere files.

A worker that its driver has lost may go on writing while another one does the run again. Both write the same
bytes for an epoch, so it does not matter whose line comes last; and the attempt that claimed the run last
(`attempt.json`) is the only one that goes on: the other stops before its next epoch.

Between these steps lie the named points `files.STEPS`, at which tests end the process.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from epochlens.lazy import LazyModule
from epochlens.record import tables
from epochlens.record.files import (
    checksum,
    file_checksum,
    name_beside,
    publish,
    read_json,
    set_aside,
    step,
    sync_folder,
    unchanged_checksum,
    write_json,
    write_whole,
    written_beside,
)
from epochlens.record.files import (
    only_process as only_process,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow.parquet as pq
else:
    pd, pq = LazyModule("pandas"), LazyModule("pyarrow.parquet")

METRICS = ("train_loss", "test_loss", "accuracy", "seconds_train", "seconds_eval", "seconds_attribute")
WORKING = ("ledger.jsonl", "state.pt", "state-previous.pt", "attempt.json")
Found = TypeVar("Found")


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


def keep_other_run(folder: Path, identity: Mapping[str, Any], images, labels, indices) -> None:
    """Sets aside what the folder holds unless it is an unfinished run of the same identity and images."""
    record = read_json(folder / "run.json")
    if record is None:
        return
    probe = checksum(tables.npz_bytes(images=images, labels=labels, indices=indices))
    same = all(record.get(key) == value for key, value in identity.items())
    before = record.get("probe") or file_checksum(folder / "probe.npz")  # the file itself may be damaged
    if record.get("status") == "done" or not same or before != probe:
        set_aside(folder)


def begin_run(folder: Path, record: Mapping[str, Any], images, labels, indices) -> None:
    """Makes the run's folder with its probe images and a run.json that says "running"."""
    (folder / "attributions").mkdir(parents=True, exist_ok=True)
    sync_folder(folder.parent)
    probe = tables.npz_bytes(images=images, labels=labels, indices=indices)
    kept = write_whole(folder / "probe.npz", probe)
    (folder / "error.log").unlink(missing_ok=True)
    write_json(folder / "run.json", {**record, "probe": kept, "status": "running"})


def claim(folder: Path, who: Mapping[str, Any]) -> str:
    """Makes this the attempt that counts at the run; returns its token. `who` tells where its process is."""
    folder.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex
    write_json(folder / "attempt.json", {"token": token, **who})
    return token


def is_claimed(folder: Path, token: str) -> bool:
    """Whether no other attempt has claimed the run since, or finished it."""
    path = folder / "attempt.json"
    attempt = read_json(path)
    return path.exists() if attempt is None else attempt.get("token") == token


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
    step("maps")
    quality_checksum = ""
    if quality is not None:
        (folder / "quality").mkdir(exist_ok=True)
        quality_checksum = write_whole(epoch_file(folder, epoch, "quality"), tables.frame_bytes(quality))
        step("quality")
    rows = math.prod(maps.attributions.shape[:3])
    entry = Entry(epoch, rows, maps_checksum, "", dict(metrics), quality_checksum)
    commit_entry(folder, entry, state)
    return entry


def commit_entry(folder: Path, entry: Entry, state: bytes | None) -> None:
    """Commits an epoch whose maps are in place: its ledger line, then the checkpoint to go on from."""
    append_entry(folder, entry._replace(state=checksum(state) if state is not None else ""))
    step("ledger")
    if state is not None:
        write_state(folder, state)
        step("state")


def write_state(folder: Path, state: bytes) -> None:
    """Puts the checkpoint in place; the one before it stays until the next."""
    latest = folder / "state.pt"
    with written_beside(latest, state) as beside:
        with contextlib.suppress(FileNotFoundError):  # there is none yet, or another attempt was here first
            latest.replace(folder / "state-previous.pt")
        step("moved")
        beside.replace(latest)
    sync_folder(folder)


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
    """The ledger's believable entries by epoch, of several lines for an epoch the last."""
    try:
        lines = (folder / "ledger.jsonl").read_bytes().splitlines()
    except OSError:
        return {}
    entries = {entry.epoch: entry for line in lines if (entry := parse_entry(line)) is not None}
    return dict(sorted(entries.items()))


def parse_entry(line: bytes) -> Entry | None:
    """The entry on a line of a ledger, or None when the line is not whole, or not of this program."""
    check, _, text = line.partition(b" ")
    if check != f"{zlib.crc32(text):08x}".encode():
        return None
    try:
        entry = Entry(**json.loads(text))
    except (TypeError, ValueError, RecursionError):
        return None
    texts = entry.maps, entry.state, entry.quality
    known = isinstance(entry.epoch, int) and isinstance(entry.metrics, dict)
    return entry if known and entry.epoch >= 0 and all(isinstance(text, str) for text in texts) else None


def committed(folder: Path) -> dict[int, Entry]:
    """The committed epochs of an unfinished run whose files are whole on disk, by epoch."""

    def is_whole(entry: Entry) -> bool:
        files = {"attributions": entry.maps} | ({"quality": entry.quality} if entry.quality else {})
        return all(
            expected and file_checksum(epoch_file(folder, entry.epoch, kind)) == expected
            for kind, expected in files.items()
        ) and entry.rows == count_rows(epoch_file(folder, entry.epoch))

    return {epoch: entry for epoch, entry in read_ledger(folder).items() if is_whole(entry)}


def count_rows(path: Path) -> int:
    """The number of rows in a Parquet file, from its footer; -1 when it is gone or is none."""
    try:
        return pq.read_metadata(path).num_rows
    except (OSError, ValueError):
        return -1


def latest_state(folder: Path, entries: Mapping[int, Entry]) -> bytes | None:
    """The newest checkpoint that the ledger vouches for and that has every epoch up to it committed."""
    whole = 0
    while whole in entries:
        whole += 1
    vouched = {entry.state for epoch, entry in entries.items() if epoch < whole and entry.state}
    for name in ("state.pt", "state-previous.pt"):
        with contextlib.suppress(OSError):
            content = (folder / name).read_bytes()
            if checksum(content) in vouched:
                return content
    return None


def finish_run(
    folder: Path, record: Mapping[str, Any], others: Sequence[str] = (), npz: bool = False
) -> None:
    """Gathers the epochs into the finished run's files, says "done", and removes the working files.

    `others` names files of the caller's in the folder that belong to the run. run.json counts as
    `epochs_repeated` the commits beyond one an epoch. Raises StoreError when an epoch is missing.
    """
    entries = committed(folder)
    if not entries or list(entries) != list(range(len(entries))):
        raise StoreError(f"{folder}: epochs {sorted(entries)} are not all there: the run is not complete")
    gather_maps(folder, entries)
    step("gathered")
    write_whole(folder / "epochs.parquet", tables.frame_bytes(metrics_frame(entries)))
    step("metrics")
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
    repeated = count_commits(folder) - len(entries)
    about = {**record, "status": "done", "epochs_repeated": repeated, "files": checksums}
    write_json(folder / "run.json", about)
    step("done")
    remove_working_files(folder)


class StoreError(RuntimeError):
    """The files of a run are not what they should be."""


def gather_maps(folder: Path, entries: Mapping[int, Entry]) -> None:
    """Joins the epochs' maps into attributions.parquet. Raises StoreError when rows are lacking."""
    path = folder / "attributions.parquet"
    beside = name_beside(path)
    try:
        tables.gather(beside, [epoch_file(folder, epoch) for epoch in entries])
        rows, expected = count_rows(beside), sum(entry.rows for entry in entries.values())
        if rows != expected:
            raise StoreError(f"{folder}: {rows} rows gathered of {expected} committed")
        publish(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def count_commits(folder: Path) -> int:
    """Commits of epochs to the unfinished run so far, each repetition counted."""
    try:
        lines = (folder / "ledger.jsonl").read_bytes().splitlines()
    except OSError:
        return 0
    return sum(parse_entry(line) is not None for line in lines)


def metrics_frame(entries: Mapping[int, Entry]) -> pd.DataFrame:
    """The epochs' metrics as a DataFrame: epoch, the standard ones (NaN where not recorded), then others."""
    names = [*METRICS, *sorted({name for e in entries.values() for name in e.metrics} - set(METRICS))]
    rows = {name: [e.metrics.get(name, math.nan) for e in entries.values()] for name in names}
    return pd.DataFrame({"epoch": np.array(list(entries), np.int32), **rows})


def remove_working_files(folder: Path) -> None:
    """Removes what only an unfinished run needs."""
    for kind in ("attributions", "quality"):
        shutil.rmtree(folder / kind, ignore_errors=True)
    for path in [*(folder / name for name in WORKING), *folder.glob(".*.tmp")]:
        path.unlink(missing_ok=True)


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
    files = finished_files(record)
    whole = files and all(c and file_checksum(folder / Path(name).name) == c for name, c in files.items())
    return ("done" if whole else "corrupt"), 0


def finished_files(record: Mapping[str, Any]) -> dict[str, Any]:
    """The files that a run.json names, with their checksums; empty when it names none."""
    files = record.get("files")
    return files if isinstance(files, dict) else {}


def verified(folder: Path, name: str) -> Path:
    """The path of a finished run's file. Raises StoreError when it is not what run.json says."""
    path = folder / name
    expected = finished_files(read_json(folder / "run.json") or {}).get(name)
    with contextlib.suppress(OSError):
        stamp = path.stat()
        if expected and unchanged_checksum(path, stamp.st_ino, stamp.st_size, stamp.st_mtime_ns) == expected:
            return path
    raise StoreError(f"{path} is not the file that run.json describes: it is damaged, or missing")


def read_steadily(folder: Path, read: Callable[[bool], Found]) -> Found:
    """What `read` finds of a run, told whether it is finished; again when that changed: files have gone."""
    while True:
        done = is_done(folder)
        try:
            found = read(done)
        except (FileNotFoundError, StoreError):
            if done == is_done(folder):
                raise
            continue
        if done == is_done(folder):
            return found


def read_epochs(folder: Path) -> pd.DataFrame:
    """The epochs' metrics of a run, finished or not, as a DataFrame. Raises StoreError for a damaged file."""

    def read(done: bool) -> pd.DataFrame:
        if done:
            return pd.read_parquet(verified(folder, "epochs.parquet"))
        return metrics_frame(committed(folder))

    return read_steadily(folder, read)


def read_quality(folder: Path) -> pd.DataFrame | None:
    """The quality of a run's maps, finished or not, as `tables.quality_frame` has it; None without any.

    Raises StoreError for a damaged file.
    """

    def read(done: bool) -> pd.DataFrame | None:
        if done:
            named = "quality.parquet" in finished_files(read_json(folder / "run.json") or {})
            files = [verified(folder, "quality.parquet")] if named else []
        else:
            entries = committed(folder).values()
            files = [epoch_file(folder, e.epoch, "quality") for e in entries if e.quality]
        return join_frames(files) if files else None

    return read_steadily(folder, read)


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
        return tables.read_methods(verified(folder, "attributions.parquet"))
    epochs = committed(folder)
    if not epochs:
        raise StoreError(f"{folder} holds no recorded maps")
    return tables.read_methods(epoch_file(folder, next(iter(epochs))))


def load(
    path: str | Path, methods: Sequence[str] | None = None, epochs: Collection[int] | None = None
) -> tables.Maps:
    """The maps of a run, finished or not, from its folder: an array with its methods, epochs and samples.

    All methods and epochs, or those named. Raises StoreError when the folder holds no committed map or a
    damaged file, KeyError for a method not there.
    """
    folder = Path(path)

    def read(done: bool) -> tables.Maps:
        if done:
            return tables.read_maps(verified(folder, "attributions.parquet"), methods, epochs)
        wanted = [epoch for epoch in committed(folder) if epochs is None or epoch in epochs]
        if not wanted:
            raise StoreError(f"{folder} holds no recorded maps")
        parts = [tables.read_maps(epoch_file(folder, epoch), methods, epochs) for epoch in wanted]
        return parts[0] if len(parts) == 1 else tables.join_epochs(parts)

    return read_steadily(folder, read)
