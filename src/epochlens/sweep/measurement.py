"""What is measured of one run, and of the seeds of one condition: store -> rows and small tables."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from epochlens.attribute.methods import is_stochastic
from epochlens.lazy import LazyModule
from epochlens.record import store
from epochlens.record.tables import REDRAW, Maps

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from epochlens.measure import (
        conditioned,
        nulls,
        seeds,
        settling,
        similarity,
        spatial,
        stability,
        structure,
    )
else:
    pd, pa = LazyModule("pandas"), LazyModule("pyarrow")
    conditioned, nulls = LazyModule("epochlens.measure.conditioned"), LazyModule("epochlens.measure.nulls")
    seeds, settling = LazyModule("epochlens.measure.seeds"), LazyModule("epochlens.measure.settling")
    similarity, spatial = LazyModule("epochlens.measure.similarity"), LazyModule("epochlens.measure.spatial")
    stability, structure = (
        LazyModule("epochlens.measure.stability"),
        LazyModule("epochlens.measure.structure"),
    )

CONDITION = ["dataset", "model", "learning_rate"]
RUN = [*CONDITION, "seed"]
CURVE = [*RUN, "run_id", "method", "epoch", "reference", "metric"]
ROW = ["epoch", "reference", "metric", "sample", "value"]
CALIBRATED = ("cosine", "spearman_abs")
EPOCHS_AT_ONCE = 8
SEED_METRICS = ("cosine", "spearman_abs", "topk_jaccard", "sign_agreement")
SETTLING = (("cosine", "final"), ("calibrated_cosine", "final"), ("cosine", "previous"))
"""(metric, reference) whose settling epochs are measured image by image"""


class Measured(NamedTuple):
    """What the analysis of one run gives: rows, its only large part, and frames by name of table."""

    rows: pa.Table | None
    frames: dict[str, pd.DataFrame]


def measure_run(run: Mapping[str, Any]) -> Measured:
    """All measurements of one run, method by method."""
    methods = run["methods"]
    redrawn = [method + REDRAW for method in methods if is_stochastic(method)]
    loaded = store.load(run["folder"], [*methods, *redrawn])
    maps = loaded._replace(attributions=loaded.attributions[:, : len(methods)], methods=np.array(methods))
    redraws = dict(zip(redrawn, loaded.attributions[:, len(methods) :].swapaxes(0, 1), strict=True))
    epochs = store.read_epochs(Path(run["folder"]))
    with np.load(Path(run["folder"]) / "probe.npz", allow_pickle=False) as probe:
        images, labels = probe["images"], probe["labels"]
    keys = {key: run[key] for key in RUN} | {"run_id": run["run_id"]}
    rows, frames = [], []
    for m, method in enumerate(methods):
        about = {**keys, "method": method}
        again = redraws.get(method + REDRAW)
        frame, made = measure_method(maps, m, images, labels, epochs, again, run.get("tau", 0.95))
        rows.append(similarity_rows(frame, about))
        frames.append({name: with_keys(table, about) for name, table in made.items()})
    joined = {name: pd.concat([f[name] for f in frames], ignore_index=True) for name in frames[0]}
    return Measured(pa.concat_tables(rows), joined)


def measure_method(
    maps: Maps,
    m: int,
    images: np.ndarray,
    labels: np.ndarray,
    epochs: pd.DataFrame,
    redraws: np.ndarray | None,
    tau: float,
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Similarity rows of one method's maps, and its small tables. Maps are prepared once for all of them."""
    of_method = maps.attributions[:, m]
    ready = stability.prepare_all(of_method)
    rng = np.random.default_rng(zlib.crc32(maps.samples.tobytes()))  # the same random maps for every run
    names = tuple(similarity.METRICS)
    parts = [
        stability.similarities(of_method, maps.epochs, maps.samples, prepared=ready),
        nulls.null_similarities(
            of_method, maps.epochs, maps.samples, images, labels, names, rng, redraws, prepared=ready
        ),
        *spatial.similarities(of_method, maps.epochs, maps.samples),
        *calibrated_rows(maps, m, labels, ready),
    ]
    frame = pd.concat([as_text(part) for part in parts], ignore_index=True)
    matrix = stability.epoch_matrix(of_method, "cosine", prepared=ready)
    trained = slice(int(np.searchsorted(maps.epochs, 1)), None)
    units = {"cosine": ready["cosine"][trained]}
    raw, normalised = stability.temporal_variance(of_method[trained], prepared=units)
    return frame, {
        "by_seed": stability.average_images(frame, ["epoch", "reference", "metric"]),
        "variance": pd.DataFrame({"raw": [raw], "normalised": [normalised]}),
        "matrices": matrix_rows(matrix, maps.epochs),
        "settling_images": settling_rows(frame, tau),
        "conditioned": conditioned_rows(frame, maps, labels),
        "drift": drift_rows(frame, epochs),
        "properties": property_rows(of_method, maps.epochs),
    }


def as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows with reference and metric as plain texts, so that rows of any kind join."""
    return frame.astype({"reference": str, "metric": str}).reindex(columns=ROW)


def calibrated_rows(
    maps: Maps, m: int, labels: np.ndarray, ready: Mapping[str, np.ndarray]
) -> Iterator[pd.DataFrame]:
    """Similarity on the scale from another image of the class (0) to identity (1)."""
    for metric in CALIBRATED:
        for reference in ("previous", "final"):
            epochs, values = nulls.calibrated(
                maps.attributions[:, m], maps.epochs, labels, metric, reference, prepared=ready
            )
            yield spatial.rows(epochs, maps.samples, values, reference, f"calibrated_{metric}")


def settling_rows(frame: pd.DataFrame, tau: float) -> pd.DataFrame:
    """When each image's map settles: metric, sample, epoch, censored, reference."""
    parts = []
    for metric, reference in SETTLING:
        chosen = frame.loc[(frame["metric"] == metric) & (frame["reference"] == reference)]
        found = settling.settling_by_image(chosen, tau, reference=reference)
        parts.append(found.assign(reference=reference))
    return pd.concat(parts, ignore_index=True)


def conditioned_rows(frame: pd.DataFrame, maps: Maps, labels: np.ndarray) -> pd.DataFrame:
    """Cosine to the previous epoch by what the network predicted at the two epochs."""
    chosen = frame.loc[(frame["metric"] == "cosine") & (frame["reference"] == "previous")]
    values = np.full((len(maps.epochs), len(maps.samples)), np.nan)
    at = np.searchsorted(maps.epochs, chosen["epoch"].to_numpy())
    place = {sample: n for n, sample in enumerate(maps.samples.tolist())}
    values[at, [place[sample] for sample in chosen["sample"]]] = chosen["value"].to_numpy()
    found = conditioned.conditioned(values, maps.predictions, labels, maps.epochs)
    return found.astype({"condition": str}).assign(reference="previous", metric="cosine")


def drift_rows(frame: pd.DataFrame, epochs: pd.DataFrame) -> pd.DataFrame:
    """Similarity lost between epochs per unit of change of the weights and of the outputs."""
    chosen = frame.loc[(frame["metric"] == "cosine") & (frame["reference"] == "previous")]
    mean = chosen.groupby("epoch")["value"].mean()
    changes = epochs.set_index("epoch").reindex(columns=["weight_change", "output_change"]).loc[mean.index]
    weight, output = (changes[name].to_numpy(float) for name in changes.columns)
    values = mean.to_numpy(float)
    return pd.DataFrame(
        {
            "epoch": mean.index.to_numpy(np.int32),
            "metric": "cosine",
            "similarity": values,
            "weight_change": weight,
            "output_change": output,
            "per_weight_change": nulls.drift_per_step(values, weight),
            "per_output_change": nulls.drift_per_step(values, output),
        }
    )


def property_rows(maps: np.ndarray, epochs: np.ndarray) -> pd.DataFrame:
    """Mean over images of each map's mass, entropy and Gini index, by epoch."""
    flat = stability.flatten(maps)
    found = {"mass": structure.mass, "entropy": structure.entropy, "gini": structure.gini}
    parts = []
    for name, of in found.items():
        values = np.stack([of(images) for images in flat])
        means = stability.defined_mean(values, axis=1)
        parts.append(pd.DataFrame({"epoch": epochs, "property": name, "value": means}))
    return pd.concat(parts, ignore_index=True)


def matrix_rows(matrix: np.ndarray, epochs: np.ndarray) -> pd.DataFrame:
    """The epoch-by-epoch matrix of mean cosine similarity, a row per pair."""
    return pd.DataFrame(
        {
            "metric": "cosine",
            "epoch_a": np.repeat(epochs, len(epochs)),
            "epoch_b": np.tile(epochs, len(epochs)),
            "value": matrix.ravel(),
        }
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
    for name, kind in (("epoch", np.int32), ("sample", np.int32), ("value", np.float64)):
        columns[name] = pa.array(frame[name].to_numpy(kind))
    for name in ("reference", "metric"):
        columns[name] = pa.array(frame[name].astype(str)).dictionary_encode()
    return pa.table({name: columns[name] for name in [*CURVE, "sample", "value"]})


def measure_seeds(runs: Sequence[Mapping[str, Any]]) -> Measured:
    """How alike the maps of different seeds of one condition are, epoch by epoch, method by method.

    The runs must explain the same images. Gives reference "seeds": each seed's mean similarity to the other
    seeds, and table `agreement`: the mean over pairs of seeds with its interval over seeds.
    """
    rows, by_seed, agreed = [], [], []
    folders = [run["folder"] for run in runs]
    epochs = store.read_epochs(Path(folders[0]))["epoch"].to_numpy()
    with np.load(Path(folders[0]) / "probe.npz", allow_pickle=False) as probe:
        samples = probe["indices"]
    for method in runs[0]["methods"]:
        values, pairs = seed_similarities(folders, method, epochs)
        for s, run in enumerate(runs):
            about = {key: run[key] for key in RUN} | {"run_id": run["run_id"], "method": method}
            parts = [spatial.rows(epochs, samples, v[:, s], "seeds", name) for name, v in values.items()]
            frame = pd.concat(parts, ignore_index=True)
            rows.append(similarity_rows(frame, about))
            averages = stability.average_images(frame, ["epoch", "reference", "metric"])
            by_seed.append(with_keys(averages, about))
        condition = {key: runs[0][key] for key in CONDITION} | {"method": method}
        agreed.append(with_keys(agreement_rows(pairs, epochs, len(runs)), condition))
    frames = {
        "by_seed": pd.concat(by_seed, ignore_index=True),
        "agreement": pd.concat(agreed, ignore_index=True),
    }
    return Measured(pa.concat_tables(rows), frames)


def seed_similarities(
    folders: Sequence[str], method: str, epochs: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """By metric: each seed's agreement with the others [T, S, N], and mean over images of pairs [T, S, S].

    Reads a few epochs of all seeds at a time, so that memory does not grow with the epochs.
    """
    values: dict[str, list[np.ndarray]] = {name: [] for name in SEED_METRICS}
    pairs: dict[str, list[np.ndarray]] = {name: [] for name in SEED_METRICS}
    for first in range(0, len(epochs), EPOCHS_AT_ONCE):
        block = epochs[first : first + EPOCHS_AT_ONCE].tolist()
        loaded = np.stack([store.load(folder, [method], block).attributions[:, 0] for folder in folders])
        for name in SEED_METRICS:
            for stacked in loaded.swapaxes(0, 1):
                between = seeds.pairwise(stacked, name)
                values[name].append(seeds.agreement(between))
                pairs[name].append(stability.defined_mean(between, axis=-1))
    return {n: np.stack(v) for n, v in values.items()}, {n: np.stack(p) for n, p in pairs.items()}


def agreement_rows(pairs: Mapping[str, np.ndarray], epochs: np.ndarray, n_seeds: int) -> pd.DataFrame:
    """Mean over pairs of seeds with its interval over seeds, by epoch and metric."""
    parts = []
    for name, between in pairs.items():
        mean, low, high = seeds.bootstrap_pairs(between, np.random.default_rng(0))
        columns = {"epoch": epochs, "metric": name, "n_seeds": n_seeds, "mean": mean}
        parts.append(pd.DataFrame(columns | {"ci_low": low, "ci_high": high}))
    return pd.concat(parts, ignore_index=True)
