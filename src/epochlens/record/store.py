"""The store: what a run leaves on disk, committed so that a crash at any point loses at most one epoch.

Commit protocol. Every file appears whole: it is written beside its place, flushed to disk, and renamed.
While a run trains, an epoch is committed in three steps, and only the second makes it count:
 1. `attributions/epoch-0007.parquet`, the maps, and `quality/epoch-0007.parquet` where quality is measured;
 2. a line of `ledger.jsonl` with the epoch's metrics, row count, and the checksums of these files and of the
    checkpoint that follows; the line carries its own checksum, so a torn one is not believed;
 3. `state.pt`, the checkpoint (the one before it stays as `state-previous.pt`).
A finished run is gathered into `attributions.parquet`, `epochs.parquet` and `quality.parquet`, then
`run.json` says "done" with the checksum of each file, and only then the working files go. Readers believe
checksums and row counts, never mere files; what an attempt does not believe it keeps apart, in `damaged/`.

A worker that its driver has lost may go on writing while another one does the run again. Both write the same
bytes for an epoch, so it does not matter whose line comes last; and the attempt that claimed the run last
(`attempt.json`) is the only one that goes on: the other stops before its next epoch.

Between these steps lie the named points `files.STEPS`, at which tests end the process. How a file appears
whole is in `files`, the ledger's lines in `ledger`, reading what is committed in `retrieval`.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epochlens.record import tables
from epochlens.record.files import (
    checksum,
    file_checksum,
    make_folder,
    name_beside,
    publish,
    read_json,
    set_aside,
    step,
    sync_folder,
    write_json,
    write_whole,
    written_beside,
)
from epochlens.record.ledger import (
    LEDGER,
    STATES,
    Entry,
    append_entry,
    epoch_file,
    metrics_frame,
    parse_entry,
    read_entries,
    read_lines,
)
from epochlens.record.retrieval import StoreError, committed, count_rows, is_done, join_frames

if TYPE_CHECKING:
    import pandas as pd

WORKING = (LEDGER, *STATES, "attempt.json")


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
    make_folder(folder / "attributions")
    probe = tables.npz_bytes(images=images, labels=labels, indices=indices)
    kept = write_whole(folder / "probe.npz", probe)
    (folder / "error.log").unlink(missing_ok=True)
    write_json(folder / "run.json", {**record, **damage(folder), "probe": kept, "status": "running"})


def claim(folder: Path, who: Mapping[str, Any]) -> str:
    """Makes this the attempt that counts at the run; returns its token. `who` tells where its process is."""
    make_folder(folder)
    token = uuid.uuid4().hex
    write_json(folder / "attempt.json", {"token": token, **who})
    return token


def is_claimed(folder: Path, token: str) -> bool:
    """Whether no other attempt has claimed the run since, or finished it."""
    path = folder / "attempt.json"
    attempt = read_json(path)
    return path.exists() if attempt is None else attempt.get("token") == token


def quarantine(folder: Path, entries: Mapping[int, Entry]) -> None:
    """Keeps in `damaged/` what an unfinished run holds and its ledger does not vouch for, and a torn ledger.

    `entries` are the epochs whose files are whole. Nothing reads what is not vouched for; where it lies it is
    replaced when its epoch is done anew.
    """
    quarantine_lines(folder)
    states = {name: file_checksum(folder / name) for name in STATES}
    lines = read_entries(folder)  # after the checkpoints, so that it vouches for another attempt's latest
    vouched = {line.state for line in lines}
    suspects = [(folder / name, found) for name, found in states.items() if found not in vouched]
    for entry in {line.epoch: line for line in lines}.values():
        for kind, told in (("attributions", entry.maps), ("quality", entry.quality)):
            path = epoch_file(folder, entry.epoch, kind)
            if told and entry.epoch not in entries and (found := file_checksum(path)) != told:
                suspects.append((path, found))
    for path, found in suspects:
        if found:
            keep_apart(folder, path, found)


def quarantine_lines(folder: Path) -> None:
    """Keeps a ledger with lines that cannot be believed in `damaged/`, and goes on with the others."""
    lines = read_lines(folder)
    believed = [line for line in lines if parse_entry(line) is not None]
    if len(believed) < len(lines):
        path = folder / LEDGER
        keep_apart(folder, path, file_checksum(path))
        write_whole(path, b"".join(line + b"\n" for line in believed))


def keep_apart(folder: Path, path: Path, found: str) -> None:
    """Gives a file of the run with this checksum a second name in `damaged/`, which outlives the first."""
    make_folder(folder / "damaged")
    kept = folder / "damaged" / f"{found[:8]}-{'-'.join(path.relative_to(folder).parts)}"
    with contextlib.suppress(FileNotFoundError, FileExistsError):  # another attempt was faster
        try:
            os.link(path, kept)
        except PermissionError:  # a file system without links
            shutil.copyfile(path, kept)
    sync_folder(kept.parent)


def damage(folder: Path) -> dict[str, list[str]]:
    """What run.json says of files that were kept apart, if there are any."""
    names = sorted(path.name for path in folder.glob("damaged/*"))
    return {"damaged": names} if names else {}


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
        make_folder(folder / "quality")
        quality_checksum = write_whole(epoch_file(folder, epoch, "quality"), tables.frame_bytes(quality))
        step("quality")
    rows = math.prod(maps.attributions.shape[:3])
    numbers = {name: float(value) for name, value in metrics.items()}
    entry = Entry(epoch, rows, maps_checksum, "", numbers, quality_checksum)
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


def finish_run(
    folder: Path, record: Mapping[str, Any], others: Sequence[str] = (), npz: bool = False
) -> None:
    """Gathers the epochs into the finished run's files, says "done", and removes the working files.

    `others` names files of the caller's in the folder that belong to the run. run.json counts as
    `epochs_repeated` the commits beyond one an epoch. Raises StoreError when an epoch is missing, or the
    probe images are not those that the run began with.
    """
    if file_checksum(folder / "probe.npz") != (read_json(folder / "run.json") or {}).get("probe"):
        raise StoreError(f"{folder / 'probe.npz'} has changed since the run began: going on writes it anew")
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
    repeated = len(read_entries(folder)) - len(entries)
    about = {"status": "done", "epochs_repeated": repeated, "files": checksums}
    write_json(folder / "run.json", {**record, **damage(folder), **about})
    step("done")
    remove_working_files(folder)


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
    make_folder(folder)
    path = folder / "error.log"
    write_whole(path, log.encode())
    about = {"status": "failed", "error": error, "log": str(path)}
    write_json(folder / "run.json", {**record, **damage(folder), **about})
    return path
