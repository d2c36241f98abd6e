"""The ledger of an unfinished run: a line per committed epoch, which vouches for that epoch's files."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from epochlens.lazy import LazyModule
from epochlens.record.files import sync_folder

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = LazyModule("pandas")

STATES = ("state.pt", "state-previous.pt")
"""the checkpoints, the latest first"""
LEDGER = "ledger.jsonl"
METRICS = ("train_loss", "test_loss", "accuracy", "seconds_train", "seconds_eval", "seconds_attribute")


MOST = 2**31 - 1
"""epochs and rows that an entry may tell of: what their column in a table holds"""


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


def epoch_file(folder: Path, epoch: int, kind: str = "attributions") -> Path:
    """Where an epoch's `attributions` or `quality` lie while the run is unfinished."""
    return folder / kind / f"epoch-{epoch:04d}.parquet"


def append_entry(folder: Path, entry: Entry) -> None:
    """Adds the entry to the ledger as a line that carries its own checksum."""
    text = json.dumps(entry._asdict(), sort_keys=True)
    line = f"{zlib.crc32(text.encode()):08x} {text}\n"
    path = folder / LEDGER
    torn = path.exists() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with os.fdopen(descriptor, "ab") as file:
        file.write(("\n" if torn else "").encode() + line.encode())
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def read_ledger(folder: Path) -> dict[int, Entry]:
    """The ledger's believable entries by epoch, of several lines for an epoch the last."""
    entries = {entry.epoch: entry for entry in read_entries(folder)}
    return dict(sorted(entries.items()))


def read_entries(folder: Path) -> list[Entry]:
    """The entry of every believable line, in order; none when there is no ledger."""
    return [entry for line in read_lines(folder) if (entry := parse_entry(line)) is not None]


def read_lines(folder: Path) -> list[bytes]:
    """The ledger's lines, believable or not, in order; none when there is no ledger."""
    try:
        return [line for line in (folder / LEDGER).read_bytes().splitlines() if line]
    except (OSError, ValueError):  # ValueError: no name of a file at all
        return []


def parse_entry(line: bytes) -> Entry | None:
    """The entry on a line of a ledger, or None when the line is not whole, or not of this program."""
    check, _, text = line.partition(b" ")
    if check != f"{zlib.crc32(text):08x}".encode():
        return None
    try:
        entry = Entry(**json.loads(text))
    except (TypeError, ValueError, RecursionError):
        return None
    return entry if is_entry(entry) else None


def is_entry(entry: Entry) -> bool:
    """Whether an entry's values are of the types that this program writes."""
    texts, numbers = (entry.maps, entry.state, entry.quality), (entry.epoch, entry.rows)
    return (
        all(isinstance(text, str) for text in texts)
        and all(type(number) is int and 0 <= number <= MOST for number in numbers)
        and isinstance(entry.metrics, dict)
        and all(isinstance(value, int | float) for value in entry.metrics.values())
    )


def metrics_frame(entries: Mapping[int, Entry]) -> pd.DataFrame:
    """The epochs' metrics as a DataFrame: epoch, the standard ones (NaN where not recorded), then others."""
    names = [*METRICS, *sorted({name for e in entries.values() for name in e.metrics} - set(METRICS))]
    rows = {name: [e.metrics.get(name, math.nan) for e in entries.values()] for name in names}
    return pd.DataFrame({"epoch": np.array(list(entries), np.int32), **rows})
