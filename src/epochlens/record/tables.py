"""Maps and metrics as Parquet and npz: schemas, writing, reading. Where they lie is not its matter."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from epochlens.attribute.quality import Assessment
else:
    pd, pa, pq = LazyModule("pandas"), LazyModule("pyarrow"), LazyModule("pyarrow.parquet")


REDRAW = "#redraw"
"""ends the label of a stochastic method's second draw at the same epoch, which only measuring asks for"""


class TableError(RuntimeError):
    """A Parquet file holds something else than what is written there."""


class Maps(NamedTuple):
    """Attribution maps of one run: [T, M, N, C, H, W] float32 for T epochs, M methods, N probe images."""

    attributions: np.ndarray
    epochs: np.ndarray
    methods: np.ndarray
    samples: np.ndarray
    """indices of the probe images in the test split, [N] int32"""
    targets: np.ndarray
    """class that each map explains, [T, N] int32"""
    predictions: np.ndarray
    """the network's class, [T, N] int32"""


def maps_schema(shape: Sequence[int]) -> pa.Schema:
    """A row per epoch, method and sample; the map is a fixed-shape tensor [C,H,W]."""
    return pa.schema(
        [
            ("epoch", pa.int32()),
            ("method", pa.dictionary(pa.int32(), pa.string())),
            ("sample", pa.int32()),
            ("target", pa.int32()),
            ("prediction", pa.int32()),
            ("attribution", pa.fixed_shape_tensor(pa.float32(), list(shape))),
        ]
    )


def open_writer(sink, schema: pa.Schema) -> pq.ParquetWriter:
    """A Parquet writer suited to maps: floats split by byte before compression, no dictionary for them."""
    settings: dict[str, Any] = {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": ["method"],
        "use_byte_stream_split": ["attribution.list.element"],
    }
    return pq.ParquetWriter(sink, schema, **settings)


def maps_bytes(maps: Maps) -> bytes:
    """The maps as a Parquet file in memory, one row group per epoch and method."""
    schema = maps_schema(maps.attributions.shape[3:])
    sink = pa.BufferOutputStream()
    with open_writer(sink, schema) as writer:
        for t, epoch in enumerate(maps.epochs):
            for m in range(len(maps.methods)):
                writer.write_table(_row_group(maps, schema, t, int(epoch), m))
    return sink.getvalue().to_pybytes()


def _row_group(maps: Maps, schema: pa.Schema, t: int, epoch: int, m: int) -> pa.Table:
    n = len(maps.samples)
    tensor = np.ascontiguousarray(maps.attributions[t, m], dtype=np.float32)
    codes = pa.array(np.full(n, m, np.int32))
    columns = [
        pa.array(np.full(n, epoch, np.int32)),
        pa.DictionaryArray.from_arrays(codes, pa.array([str(name) for name in maps.methods])),
        pa.array(np.asarray(maps.samples, np.int32)),
        pa.array(np.asarray(maps.targets[t], np.int32)),
        pa.array(np.asarray(maps.predictions[t], np.int32)),
        pa.FixedShapeTensorArray.from_numpy_ndarray(tensor),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def gather(target: Path, files: Sequence[Path]) -> None:
    """Joins Parquet files of the same schema into one new file, row group by row group."""
    with pq.ParquetFile(files[0]) as first:
        schema = first.schema_arrow
    with open_writer(target, schema) as writer:
        for file in files:
            with pq.ParquetFile(file) as source:
                for group in range(source.num_row_groups):
                    writer.write_table(source.read_row_group(group, use_threads=False))


def read_maps(
    path: Path, methods: Sequence[str] | None = None, epochs: Collection[int] | None = None
) -> Maps:
    """The maps of a file written by `maps_bytes` or `gather`, of all methods or those named, in that order.

    Second draws of stochastic methods are left out unless named; `epochs` limits the epochs. Raises KeyError
    for a method not there, TableError for a file that holds anything else than maps.
    """
    with opened_maps(path) as file:
        groups = row_groups(file)
        found = sorted({epoch for epoch, _ in groups if epochs is None or epoch in epochs})
        there = list(dict.fromkeys(name for _, name in groups))
        names = [name for name in there if not name.endswith(REDRAW)] if methods is None else list(methods)
        for name in names:
            if name not in there:
                raise KeyError(name)
        wanted = [groups.get((epoch, name)) for epoch in found for name in names]
        table = read_groups(file, wanted)
    tensors = table["attribution"].chunk(0).to_numpy_ndarray()
    size = (len(found), len(names), len(tensors) // len(wanted))
    grid = {name: table[name].to_numpy().reshape(size) for name in ("sample", "target", "prediction")}
    return Maps(
        tensors.reshape(*size, *tensors.shape[1:]),
        np.array(found, np.int32),
        np.array(names),
        grid["sample"][0, 0],
        grid["target"][:, 0],
        grid["prediction"][:, 0],
    )


def read_methods(path: Path) -> list[str]:
    """The labels of the methods in a file of maps, second draws among them. Raises TableError."""
    with opened_maps(path) as file:
        return list(dict.fromkeys(name for _, name in row_groups(file)))


@contextmanager
def opened_maps(path: Path) -> Iterator[pq.ParquetFile]:
    """A file of maps with the columns of `maps_schema`. Raises TableError, also while it is read."""
    try:
        with pq.ParquetFile(path) as file:
            check_columns(file.schema_arrow)
            yield file
    except TableError as error:
        raise TableError(f"{path} is no file of maps: {error}") from None
    except (pa.ArrowException, ValueError, MemoryError) as error:
        raise TableError(f"{path} is no file of maps: {error}") from error
    except OSError as error:
        if error.errno is not None:  # the system's word, not Arrow's for a damaged file
            raise
        raise TableError(f"{path} is no file of maps: {error}") from error


def check_columns(schema: pa.Schema) -> None:
    """Raises TableError unless a schema has the columns of `maps_schema` in their types."""
    expected = maps_schema([1])
    if schema.names != expected.names:
        raise TableError(f"its columns are {', '.join(schema.names)}, not {', '.join(expected.names)}")
    for wanted in expected:
        kind = schema.field(wanted.name).type
        is_tensor = isinstance(kind, pa.FixedShapeTensorType) and kind.value_type == pa.float32()
        if not (is_tensor if wanted.name == "attribution" else kind == wanted.type):
            raise TableError(f"its column {wanted.name} is {kind}")


def row_groups(file: pq.ParquetFile) -> dict[tuple[int, str], int]:
    """Which row group holds the maps of each epoch and method, from the file's statistics alone.

    Raises TableError where they do not say so.
    """
    places = [file.schema_arrow.names.index(name) for name in ("epoch", "method")]
    found: dict[tuple[int, str], int] = {}
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        told = [group.column(place).statistics for place in places]
        if not all(s is not None and s.has_min_max and s.min == s.max for s in told):
            raise TableError(f"its row group {number} does not say which one epoch and method it holds")
        epoch, method = (statistics.min for statistics in told)
        found[epoch, method] = number
    return found


def read_groups(file: pq.ParquetFile, wanted: Sequence[int | None]) -> pa.Table:
    """The rows of some row groups, which must be there, of one length and without gaps, or TableError."""
    numbers = [number for number in wanted if number is not None]
    lengths = {file.metadata.row_group(number).num_rows for number in numbers}
    if len(numbers) < len(wanted) or len(lengths) != 1 or 0 in lengths:
        raise TableError("it does not hold every method at every epoch with the same number of images")
    table = file.read_row_groups(numbers, use_threads=False).combine_chunks()
    tensors = table["attribution"].chunk(0)
    gaps = sum(column.null_count for column in table.columns) + tensors.storage.flatten().null_count
    if gaps or table.num_rows != len(numbers) * max(lengths):
        raise TableError("values are missing in it")
    return table


def read_frame(path: Path, numbers: Collection[str], texts: Collection[str] = ()) -> pd.DataFrame:
    """A Parquet file as a DataFrame. Raises TableError unless it has these columns of numbers and texts."""
    try:
        frame = pd.read_parquet(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # a hostile file can make pandas raise nearly anything
        raise TableError(f"{path} cannot be read: {error}") from error
    for name in (*numbers, *texts):
        if name not in frame or pd.api.types.is_numeric_dtype(frame[name]) == (name in texts):
            kind = "text" if name in texts else "numbers"
            raise TableError(f"{path} has no column {name} of {kind}")
    return frame


def join_epochs(parts: Sequence[Maps]) -> Maps:
    """Maps of consecutive epochs as one."""
    stacked = [np.concatenate([getattr(part, name) for part in parts]) for name in Maps._fields]
    joined = Maps(*stacked)
    return joined._replace(methods=parts[0].methods, samples=parts[0].samples)


def quality_frame(epoch: int, samples: Sequence[int], found: Assessment) -> pd.DataFrame:
    """Quality at an epoch: epoch, method, sample, metric, fraction, value; a row per image and value.

    `fraction` is the part of the pixels removed or inserted at a point of a curve (metric `deletion_curve` or
    `insertion_curve`), and NaN for every other metric.
    """
    parts = [
        pd.DataFrame(
            {"method": method, "sample": samples, "metric": name, "fraction": np.nan, "value": value}
        )
        for (method, name), value in found.values.items()
    ]
    for (method, kind), curve in found.curves.items():
        columns = {"method": method, "sample": np.repeat(samples, len(found.fractions))}
        columns |= {"metric": f"{kind}_curve", "fraction": np.tile(found.fractions, len(samples))}
        parts.append(pd.DataFrame({**columns, "value": np.asarray(curve, np.float64).ravel()}))
    frame = pd.concat(parts, ignore_index=True)
    frame.insert(0, "epoch", epoch)
    kinds = {"epoch": "int32", "sample": "int32", "value": float}
    return frame.astype(kinds | {"method": "category", "metric": "category"})


def frame_bytes(frame: pd.DataFrame) -> bytes:
    """A DataFrame as a Parquet file in memory, without its index."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def npz_bytes(**arrays: Any) -> bytes:
    """Arrays as a compressed npz file in memory; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
