"""What the store holds of a run, finished or not: only what checksums vouch for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from epochlens.lazy import LazyModule
from epochlens.record import tables
from epochlens.record.files import checksum, file_checksum, known_checksum, read_json
from epochlens.record.ledger import STATES, Entry, epoch_file, metrics_frame, read_ledger

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow.parquet as pq
else:
    pd, pq = LazyModule("pandas"), LazyModule("pyarrow.parquet")

QUALITY_NUMBERS, QUALITY_TEXTS = ("epoch", "sample", "fraction", "value"), ("method", "metric")
Found = TypeVar("Found")


class StoreError(tables.TableError):
    """The files of a run are not what they should be."""


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
    whole = files and all(c and known_checksum(folder / Path(name).name) == c for name, c in files.items())
    return ("done" if whole else "corrupt"), 0


def is_done(folder: Path) -> bool:
    """Whether run.json says that the run is finished, so that its gathered files are the ones to read."""
    return (read_json(folder / "run.json") or {}).get("status") == "done"


def finished_files(record: Mapping[str, Any]) -> dict[str, Any]:
    """The files that a run.json names, with their checksums; empty when it names none."""
    files = record.get("files")
    return files if isinstance(files, dict) else {}


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
    return newest_state(folder, {epoch: entry for epoch, entry in entries.items() if epoch < whole})


def newest_state(folder: Path, entries: Mapping[int, Entry]) -> bytes | None:
    """The checkpoint of the latest of these epochs that there is one of."""
    vouched = {entry.state: epoch for epoch, entry in entries.items() if entry.state}
    found: dict[int, bytes] = {}
    for name in STATES:  # after a lost attempt has woken, the later one may be the one called previous
        with contextlib.suppress(OSError):
            content = (folder / name).read_bytes()
            if (epoch := vouched.get(checksum(content))) is not None:
                found[epoch] = content
    return found[max(found)] if found else None


def verified(folder: Path, name: str) -> Path:
    """The path of a finished run's file. Raises StoreError when it is not what run.json says."""
    path = folder / name
    expected = finished_files(read_json(folder / "run.json") or {}).get(name)
    if expected and known_checksum(path) == expected:
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
            return tables.read_frame(verified(folder, "epochs.parquet"), ["epoch", "accuracy"])
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
    frames = [tables.read_frame(file, QUALITY_NUMBERS, QUALITY_TEXTS) for file in files]
    return pd.concat(frames, ignore_index=True)


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
