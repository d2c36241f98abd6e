"""What is measured of one run, and of the seeds of one condition: store -> rows and small tables."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from epochlens.measure import (
    blocks,
    conditioned,
    nulls,
    seeds,
    settling,
    similarity,
    spatial,
    stability,
    structure,
)
from epochlens.record import retrieval
from epochlens.record.tables import REDRAW, Maps

CONDITION = ["dataset", "model", "learning_rate"]
RUN = [*CONDITION, "seed"]
CURVE = [*RUN, "run_id", "method", "epoch", "reference", "metric"]
CALIBRATED = ("cosine", "spearman_abs")
EPOCHS_AT_ONCE = 13
SEED_METRICS = ("cosine", "spearman_abs", "topk_jaccard", "sign_agreement")
SETTLING = (("cosine", "final"), ("calibrated_cosine", "final"), ("cosine", "previous"))
"""(metric, reference) whose settling epochs are measured image by image"""
PATIENCE = {"final": 2, "previous": 3}
"""epochs that must agree, the last one included, before a map counts as settled; if none is given"""


class Measured(NamedTuple):
    """What the analysis of one run gives: rows, its only large part, and frames by name of table."""

    rows: pa.Table | None
    frames: dict[str, pd.DataFrame]


class Rule(NamedTuple):
    """When something counts as settled: the similarity it must keep, and for how many epochs."""

    tau: float
    patience: int | None = None

    def patience_on(self, reference: str) -> int:
        """Epochs that must agree on a reference: the number given, else that of PATIENCE."""
        return self.patience or PATIENCE[reference]


def measure_run(run: Mapping[str, Any]) -> Measured:
    """All measurements of one run, method by method."""
    methods = run["methods"]
    there = retrieval.recorded_methods(run["folder"])
    redrawn = [method + REDRAW for method in methods if method + REDRAW in there]
    loaded = retrieval.load(run["folder"], [*methods, *redrawn])
    maps = loaded._replace(attributions=loaded.attributions[:, : len(methods)], methods=np.array(methods))
    redraws = dict(zip(redrawn, loaded.attributions[:, len(methods) :].swapaxes(0, 1), strict=True))
    epochs = retrieval.read_epochs(Path(run["folder"]))
    with np.load(Path(run["folder"]) / "probe.npz", allow_pickle=False) as probe:
        images, labels = probe["images"], probe["labels"]
    keys = {key: run[key] for key in RUN} | {"run_id": run["run_id"]}
    rows, frames = [], []
    for m, method in enumerate(methods):
        about = {**keys, "method": method}
        again = redraws.get(method + REDRAW)
        rule = Rule(run.get("tau", 0.95), run.get("patience"))
        found, made = measure_method(maps, m, images, labels, epochs, again, rule)
        rows.append(similarity_rows(found, maps.samples, about))
        frames.append({name: with_keys(table, about) for name, table in made.items()})
    joined = {name: pd.concat([f[name] for f in frames], ignore_index=True) for name in frames[0]}
    return Measured(pa.concat_tables(rows), joined | quality_frames(Path(run["folder"]), keys))


def quality_frames(folder: Path, about: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """A run's recorded quality as means over images: `quality` and `quality_curves`; empty without any."""
    recorded = retrieval.read_quality(folder)
    if recorded is None:
        return {}
    recorded = recorded.astype({"method": str, "metric": str})
    is_curve = recorded["metric"].str.endswith("_curve")
    by_metric = recorded.loc[~is_curve].groupby(["method", "epoch", "metric"], sort=False)["value"]
    quality = by_metric.agg(value="mean", n="size", defined="count").reset_index()
    quality["n_undefined"] = quality["n"] - quality.pop("defined")
    curves = recorded.loc[is_curve].assign(curve=lambda rows: rows["metric"].str.removesuffix("_curve"))
    by_point = curves.groupby(["method", "epoch", "curve", "fraction"], sort=False)["value"]
    frames = {"quality": quality, "quality_curves": by_point.mean().reset_index()}
    return {name: with_keys(frame, about) for name, frame in frames.items() if len(frame)}


def measure_method(
    maps: Maps,
    m: int,
    images: np.ndarray,
    labels: np.ndarray,
    epochs: pd.DataFrame,
    redraws: np.ndarray | None,
    rule: Rule,
) -> tuple[list[blocks.Block], dict[str, pd.DataFrame]]:
    """Similarities of one method's maps, and its small tables. Maps are prepared once for all of them."""
    of_method = maps.attributions[:, m]
    ready = stability.prepare_all(of_method)
    rng = np.random.default_rng(zlib.crc32(maps.samples.tobytes()))  # the same random maps for every run
    names = [name for name in similarity.METRICS if name not in nulls.DISTANCES]
    own = list(stability.similarity_blocks(of_method, maps.epochs, maps.samples, prepared=ready))
    found = [
        *own,
        *nulls.null_blocks(
            of_method, maps.epochs, maps.samples, images, labels, names, rng, redraws, prepared=ready
        ),
        *spatial.blocks(of_method, maps.epochs),
        *calibrated_blocks(maps, m, labels, ready, own),
    ]
    matrix = stability.epoch_matrix(of_method, "cosine", prepared=ready)
    trained = slice(int(np.searchsorted(maps.epochs, 1)), None)
    units = {"cosine": ready["cosine"][trained]}
    raw, normalised = stability.temporal_variance(of_method[trained], prepared=units)
    return found, {
        "by_seed": blocks.averages(found),
        "variance": pd.DataFrame({"raw": [raw], "normalised": [normalised]}),
        "matrices": matrix_rows(matrix, maps.epochs),
        "settling_images": settling_rows(found, maps.samples, rule),
        "conditioned": conditioned_rows(blocks.find(found, "cosine", "previous"), maps, labels),
        "drift": drift_rows(blocks.find(found, "cosine", "previous"), epochs),
        "properties": property_rows(of_method, maps.epochs),
    }


def calibrated_blocks(
    maps: Maps,
    m: int,
    labels: np.ndarray,
    ready: Mapping[str, np.ndarray],
    own: Sequence[blocks.Block],
) -> Iterator[blocks.Block]:
    """Similarity on the scale from another image of the class (0) to identity (1)."""
    for metric in CALIBRATED:
        for reference in ("previous", "final"):
            known = blocks.find(own, metric, reference).values
            epochs, values = nulls.calibrated(
                maps.attributions[:, m], maps.epochs, labels, metric, reference, prepared=ready, own=known
            )
            yield blocks.Block(reference, f"calibrated_{metric}", epochs, values)


def settling_rows(found: Sequence[blocks.Block], samples: np.ndarray, rule: Rule) -> pd.DataFrame:
    """When each image's map settles: metric, reference, sample, epoch, censored."""
    parts = []
    for metric, reference in SETTLING:
        block = blocks.find(found, metric, reference)
        trained = slice(int(np.searchsorted(block.epochs, 1)), None)
        settle = settling.settling_on_previous if reference == "previous" else settling.settling_epoch
        if len(block.epochs[trained]):
            curves, patience = block.values[trained].T, rule.patience_on(reference)
            epoch, censored = settle(curves, block.epochs[trained], rule.tau, patience)
            columns = {"metric": metric, "reference": reference, "sample": samples}
            parts.append(pd.DataFrame({**columns, "epoch": epoch, "censored": censored}))
    return pd.concat(parts, ignore_index=True)


def conditioned_rows(block: blocks.Block, maps: Maps, labels: np.ndarray) -> pd.DataFrame:
    """Cosine to the previous epoch by what the network predicted at the two epochs."""
    values = np.full((len(maps.epochs), len(maps.samples)), np.nan)
    values[np.searchsorted(maps.epochs, block.epochs)] = block.values
    rows = conditioned.conditioned(values, maps.predictions, labels, maps.epochs)
    return rows.astype({"condition": str}).assign(reference=block.reference, metric=block.metric)


def drift_rows(block: blocks.Block, epochs: pd.DataFrame) -> pd.DataFrame:
    """Similarity lost between epochs per unit of change of the weights and of the outputs."""
    mean = stability.defined_mean(block.values, axis=1)
    changes = epochs.set_index("epoch").reindex(columns=["weight_change", "output_change"])
    weight, output = (changes[name].reindex(block.epochs).to_numpy(float) for name in changes.columns)
    return pd.DataFrame(
        {
            "epoch": block.epochs,
            "metric": block.metric,
            "similarity": mean,
            "weight_change": weight,
            "output_change": output,
            "per_weight_change": nulls.drift_per_step(mean, weight),
            "per_output_change": nulls.drift_per_step(mean, output),
        }
    )


def property_rows(maps: np.ndarray, epochs: np.ndarray) -> pd.DataFrame:
    """Mean over images of each map's mass, entropy and Gini index, by epoch."""
    flat = stability.flatten(maps)
    found = [structure.properties(images) for images in flat]
    parts = []
    for name in structure.PROPERTIES:
        values = np.stack([of_epoch[name] for of_epoch in found])
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


def similarity_rows(found: Sequence[blocks.Block], samples: np.ndarray, about: Mapping[str, Any]) -> pa.Table:
    """A row per image with the run's columns in front, texts as dictionaries."""
    columns: dict[str, Any] = dict(blocks.columns(found, samples))
    n = len(columns["value"])
    for name in ("reference", "metric"):
        columns[name] = pa.array(columns[name]).dictionary_encode()
    zeros = pa.array(np.zeros(n, np.int32))
    for name, value in about.items():
        if isinstance(value, str):
            columns[name] = pa.DictionaryArray.from_arrays(zeros, pa.array([value]))
        else:
            columns[name] = np.full(n, value, np.int32 if name == "seed" else np.float64)
    return pa.table({name: columns[name] for name in [*CURVE, "sample", "value"]})


def measure_seeds(runs: Sequence[Mapping[str, Any]]) -> Measured:
    """How alike the maps of different seeds of one condition are, epoch by epoch, method by method.

    The runs must explain the same images. Gives reference "seeds": each seed's mean similarity to the other
    seeds, and table `agreement`: the mean over pairs of seeds with its interval over seeds.
    """
    rows, by_seed, agreed = [], [], []
    folders = [run["folder"] for run in runs]
    epochs = retrieval.read_epochs(Path(folders[0]))["epoch"].to_numpy()
    with np.load(Path(folders[0]) / "probe.npz", allow_pickle=False) as probe:
        samples = probe["indices"]
    for method in runs[0]["methods"]:
        values, pairs = seed_similarities(folders, method, epochs)
        for s, run in enumerate(runs):
            about = {key: run[key] for key in RUN} | {"run_id": run["run_id"], "method": method}
            found = [blocks.Block("seeds", name, epochs, v[:, s]) for name, v in values.items()]
            rows.append(similarity_rows(found, samples, about))
            by_seed.append(with_keys(blocks.averages(found), about))
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
        loaded = np.stack([retrieval.load(folder, [method], block).attributions[:, 0] for folder in folders])
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
