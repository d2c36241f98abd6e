"""What is measured of one run: store -> similarity rows, averages over images, variance, epoch matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from epochlens.lazy import LazyModule
from epochlens.record import store

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from epochlens.measure import stability
else:
    pd, pa = LazyModule("pandas"), LazyModule("pyarrow")
    stability = LazyModule("epochlens.measure.stability")

CONDITION = ["dataset", "model", "learning_rate"]
RUN = [*CONDITION, "seed"]
CURVE = [*RUN, "run_id", "method", "epoch", "reference", "metric"]


class Measured(NamedTuple):
    """What the analysis of one run gives; `rows` is the only large part."""

    rows: pa.Table | None
    by_seed: pd.DataFrame
    variance: pd.DataFrame
    matrices: pd.DataFrame


def measure_run(run: Mapping[str, Any]) -> Measured:
    """All measurements of one finished run, method by method."""
    maps = store.load(run["folder"])
    keys = {key: run[key] for key in RUN} | {"run_id": run["run_id"]}
    rows, by_seed, variance, matrices = [], [], [], []
    for m, method in enumerate(maps.methods.tolist()):
        of_method = maps.attributions[:, m]
        about = {**keys, "method": method}
        frame = stability.similarities(of_method, maps.epochs, maps.samples)
        rows.append(similarity_rows(frame, about))
        averages = stability.average_images(frame, ["epoch", "reference", "metric"])
        by_seed.append(with_keys(averages.astype({"reference": str, "metric": str}), about))
        raw, normalised = stability.temporal_variance(of_method[maps.epochs >= 1])
        variance.append({**about, "raw": raw, "normalised": normalised})
        matrices.append(with_keys(matrix_rows(of_method, maps.epochs), about))
    return Measured(
        pa.concat_tables(rows),
        pd.concat(by_seed, ignore_index=True),
        pd.DataFrame(variance).drop(columns="run_id"),
        pd.concat(matrices, ignore_index=True),
    )


def with_keys(frame: pd.DataFrame, keys: Mapping[str, Any]) -> pd.DataFrame:
    """The frame with constant columns in front."""
    return pd.concat([pd.DataFrame(dict(keys), index=frame.index), frame], axis=1)


def similarity_rows(frame: pd.DataFrame, about: Mapping[str, Any]) -> pa.Table:
    """Similarity rows with the run's columns in front, texts as dictionaries."""
    n = len(frame)
    zeros = pa.array(np.zeros(n, np.int32))
    columns: dict[str, Any] = {}
    for name, value in about.items():
        if isinstance(value, str):
            columns[name] = pa.DictionaryArray.from_arrays(zeros, pa.array([value]))
        else:
            columns[name] = pa.array(np.full(n, value, np.int32 if name == "seed" else np.float64))
    for name in ("epoch", "sample", "value"):
        columns[name] = pa.array(frame[name].to_numpy())
    for name in ("reference", "metric"):
        codes = pa.array(frame[name].cat.codes.to_numpy().astype(np.int32))
        columns[name] = pa.DictionaryArray.from_arrays(codes, pa.array(list(frame[name].cat.categories)))
    return pa.table({name: columns[name] for name in [*CURVE, "sample", "value"]})


def matrix_rows(maps: np.ndarray, epochs: np.ndarray) -> pd.DataFrame:
    """The epoch-by-epoch matrix of mean cosine similarity, a row per pair."""
    matrix = stability.epoch_matrix(maps, "cosine")
    return pd.DataFrame(
        {
            "metric": "cosine",
            "epoch_a": np.repeat(epochs, len(epochs)),
            "epoch_b": np.tile(epochs, len(epochs)),
            "value": matrix.ravel(),
        }
    )
