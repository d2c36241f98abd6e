"""Parquet files that hold something else than maps: always told as such, whatever is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import METHODS, make_maps

from epochlens.record import tables

SCHEMA = tables.maps_schema([2, 4, 5])


def written(path: Path, *parts: tables.Maps) -> Path:
    path.write_bytes(tables.maps_bytes(tables.join_epochs(parts)))
    return path


def rewritten(path: Path, change: Callable[[pa.Table], Any], **options: Any) -> None:
    """The file again with a change to each of its row groups."""
    with pq.ParquetFile(path) as file:
        groups = [change(file.read_row_group(g)) for g in range(file.num_row_groups)]
    with pq.ParquetWriter(path, groups[0].schema, **options) as writer:
        for group in groups:
            writer.write_table(group)


def as_type(name: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        place = table.schema.names.index(name)
        return table.set_column(place, name, pa.array(table[name].to_pylist()).cast(kind))

    return change


def with_gap(table: pa.Table) -> pa.Table:
    place = table.schema.names.index("target")
    return table.set_column(place, "target", pa.array([None, *table["target"].to_pylist()[1:]], pa.int32()))


def flat(table: pa.Table) -> pa.Table:
    return table.set_column(5, "attribution", pa.array([[0.0]] * len(table)))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "another column": lambda p: rewritten(p, lambda t: t.rename_columns([*t.schema.names[:-1], "maps"])),
    "one column less": lambda p: rewritten(p, lambda t: t.drop_columns(["target"])),
    "no column at all": lambda p: pq.write_table(pa.table({}), p),
    "epochs as text": lambda p: rewritten(p, as_type("epoch", pa.string())),
    "samples as fractions": lambda p: rewritten(p, as_type("sample", pa.float64())),
    "methods as numbers": lambda p: rewritten(p, lambda t: t.set_column(1, "method", t["epoch"])),
    "maps of no shape": lambda p: rewritten(p, flat),
    "no rows": lambda p: pq.write_table(SCHEMA.empty_table(), p),
    "no row groups": lambda p: tables.open_writer(p, SCHEMA).close(),
    "no statistics": lambda p: rewritten(p, lambda t: t, write_statistics=False),
    "all in one row group": lambda p: pq.write_table(pq.read_table(p), p),
    "a missing target": lambda p: rewritten(p, with_gap),
    "a number": lambda p: p.write_bytes(b"5"),
    "nothing": lambda p: p.write_bytes(b""),
    "half of it": lambda p: p.write_bytes(p.read_bytes()[:-40]),
    "pages of noise": lambda p: p.write_bytes(b"PAR1" + b"\xff" * 2000 + p.read_bytes()[2004:]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_anything_else_than_maps_is_one_error_that_names_the_file(tmp_path, damage):
    path = written(tmp_path / "maps.parquet", make_maps(0, n=40), make_maps(1, n=40))
    assert tables.read_maps(path).epochs.tolist() == [0, 1]
    DAMAGE[damage](path)
    with pytest.raises(tables.TableError) as caught:
        tables.read_maps(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("other", [{"n": 2}, {"shape": (2, 4, 5)}])
def test_a_method_that_is_not_there_at_every_epoch_is_damage_and_one_never_there_a_key(tmp_path, other):
    parts = [make_maps(0), make_maps(1, **other)]
    if "n" not in other:
        keep = parts[1]
        parts[1] = keep._replace(attributions=keep.attributions[:, :1], methods=keep.methods[:1])
    files = [written(tmp_path / f"{i}.parquet", part) for i, part in enumerate(parts)]
    tables.gather(tmp_path / "all.parquet", files)
    with pytest.raises(tables.TableError, match="every epoch"):
        tables.read_maps(tmp_path / "all.parquet")
    assert tables.read_maps(tmp_path / "all.parquet", epochs=[0]).methods.tolist() == METHODS
    with pytest.raises(KeyError, match="lime"):
        tables.read_maps(tmp_path / "all.parquet", ["lime"])
    with pytest.raises(tables.TableError):
        tables.read_maps(tmp_path / "all.parquet", epochs=[9])


@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=9))
@settings(max_examples=120, deadline=None)
def test_flipped_bytes_give_maps_or_that_error(tmp_path_factory, at, junk):
    path = tmp_path_factory.mktemp("flip") / "maps.parquet"
    content = tables.maps_bytes(make_maps(0))
    # Not in the footer: there a wrong length of a statistic makes pyarrow abort the whole process.
    at %= len(content) - int.from_bytes(content[-8:-4], "little") - 8 - len(junk)
    path.write_bytes(content[:at] + junk + content[at + len(junk) :])
    for read in (tables.read_maps, tables.read_methods):
        try:
            read(path)
        except tables.TableError as error:
            assert str(path) in str(error)


def test_a_missing_file_stays_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        tables.read_maps(tmp_path / "gone.parquet")
    with pytest.raises(FileNotFoundError):
        tables.read_frame(tmp_path / "gone.parquet", ["epoch"])


def test_frames_hold_the_columns_that_are_asked_for(tmp_path):
    path = tmp_path / "epochs.parquet"
    frame = pd.DataFrame({"epoch": np.arange(3, dtype=np.int32), "accuracy": [0.1, 0.2, np.nan], "by": "x"})
    path.write_bytes(tables.frame_bytes(frame))
    pd.testing.assert_frame_equal(tables.read_frame(path, ["epoch", "accuracy"], ["by"]), frame)
    for numbers, texts, said in (
        (["loss"], [], "column loss of numbers"),
        (["by"], [], "column by of numbers"),
        (["epoch"], ["accuracy"], "column accuracy of text"),
    ):
        with pytest.raises(tables.TableError, match=said):
            tables.read_frame(path, numbers, texts)
    path.write_bytes(b"PAR1")
    with pytest.raises(tables.TableError, match="cannot be read"):
        tables.read_frame(path, ["epoch"])
