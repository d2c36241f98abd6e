"""The measurements of many runs as tables, and the tables on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from epochlens.attribute import quality
from epochlens.measure import ranking, settling, statistics, survival
from epochlens.record import files, retrieval, tables
from epochlens.show.frames import CONTROLS
from epochlens.sweep.measurement import CONDITION, RUN, Measured, Rule, with_keys

CSV_TABLES = (
    "runs",
    "epochs",
    "stability_summary",
    "variance",
    "stabilisation",
    "settling_summary",
    "comparisons",
    "agreement",
    "drift",
    "quality",
    "quality_summary",
    "quality_ranks",
    "quality_tests",
)

SETTLED_METRICS = (
    "cosine",
    "spearman",
    "spearman_abs",
    "topk_jaccard",
    "sign_agreement",
    "ssim",
    "calibrated_cosine",
    "calibrated_spearman_abs",
)
EPOCH_COLUMNS = ("epoch", "train_loss", "test_loss", "accuracy", "weight_change", "output_change")
LAGS = tuple(
    f"lag_{name}"
    for name in (
        "n", "n_censored", "median_low", "median_high", "low", "high", "mean", "mean_low", "mean_high",
    )
)  # fmt: skip
FROM_RECORD = ("device", "threads", "host", "torch", "started", "seconds", "error", "log")


def make_tables(
    grid: Sequence[Mapping[str, Any]],
    usable: Sequence[Mapping[str, Any]],
    statuses: Sequence[str],
    measured: Sequence[Measured],
    rule: Rule,
) -> dict[str, pd.DataFrame]:
    """Every table but `stability`, which is streamed, from the runs' records and measurements."""
    frames = {name for m in measured for name in m.frames}
    made = {
        name: pd.concat([m.frames[name] for m in measured if name in m.frames], ignore_index=True)
        for name in sorted(frames)
    }
    by_seed = made.pop("by_seed")
    matrices = made.pop("matrices")
    epochs = pd.concat([epochs_of(run) for run in usable], ignore_index=True)
    settled = settling.stabilisation(by_seed, epochs, rule.tau, SETTLED_METRICS, rule.patience_on("final"))
    variance = made.pop("variance").drop(columns="run_id")
    return {
        "runs": runs_table(grid, statuses),
        "epochs": epochs,
        "stability_by_seed": by_seed,
        "stability_summary": statistics.summarise(by_seed),
        "variance": variance,
        "stabilisation": settled,
        "settling_summary": settling_summary(made["settling_images"], settled, rule),
        "comparisons": statistics.compare(outcomes(by_seed, variance, settled)),
        "epoch_matrix": mean_matrices(matrices),
        **quality_tables(made.get("quality")),
        **made,
    }


def quality_tables(by_seed: pd.DataFrame | None) -> dict[str, pd.DataFrame]:
    """Quality over seeds with ranks, and what each metric's values mean; empty where none was measured."""
    if by_seed is None:
        return {}
    names = list(dict.fromkeys(by_seed["metric"]))
    metrics = pd.DataFrame(
        {
            "metric": names,
            "better": [quality.better(name) or "" for name in names],
            "reason": [quality.undefined_reason(name) for name in names],
        }
    )
    summary = ranking.summarise_quality(by_seed, dict(zip(names, metrics["better"], strict=True)))
    return {
        "quality_metrics": metrics,
        "quality_summary": summary,
        "quality_ranks": ranking.mean_ranks(summary),
        "quality_tests": ranking.method_differences(by_seed.loc[~by_seed["method"].isin(CONTROLS)]),
    }


def settling_summary(images: pd.DataFrame, settled: pd.DataFrame, rule: Rule) -> pd.DataFrame:
    """Kaplan-Meier medians over seeds and images with intervals over seeds, and the lag behind accuracy.

    The lag pairs each run's settling epoch (of the mean over its images, reference final) with the epoch at
    which its accuracy settled, whose own Kaplan-Meier median is accuracy_median (NaN where not reached).
    """
    rows = []
    keys = [*CONDITION, "method", "metric", "reference"]
    for key, group in images.groupby(keys, sort=False):
        same = dict(zip(keys, cast(tuple, key), strict=True))
        times = group.pivot(index="seed", columns="sample", values="epoch").to_numpy(float)
        censored = group.pivot(index="seed", columns="sample", values="censored").to_numpy(float)
        events = censored == 0
        median, low, high = survival.cluster_bootstrap_median(times, events, np.random.default_rng(0))
        runs = matching(settled, {name: same[name] for name in [*CONDITION, "method", "metric"]})
        accuracy, unsettled = runs["accuracy_epoch"].to_numpy(float), runs["accuracy_censored"].to_numpy(bool)
        middle, earliest, latest = survival.median_interval(accuracy, ~unsettled)
        lag = lag_of(runs) if same["reference"] == "final" else {}
        rows.append(
            {
                **same,
                "tau": rule.tau,
                "patience": rule.patience_on(str(same["reference"])),
                "n_seeds": len(times),
                "n_images": int(np.isfinite(times).sum()),
                "n_censored": int((censored == 1).sum()),
                "median": median,
                "ci_low": low,
                "ci_high": high,
                "accuracy_median": middle,
                "accuracy_low": earliest,
                "accuracy_high": latest,
                "accuracy_n_censored": int((unsettled & np.isfinite(accuracy)).sum()),
                **{name: lag.get(name.removeprefix("lag_"), np.nan) for name in LAGS},
            }
        )
    return pd.DataFrame(rows)


def matching(frame: pd.DataFrame, values: Mapping[str, Any]) -> pd.DataFrame:
    """The rows whose columns hold the values."""
    for name, value in values.items():
        frame = frame.loc[frame[name] == value]
    return frame


def lag_of(runs: pd.DataFrame) -> dict[str, float]:
    """By how many epochs maps settle after accuracy, paired by run."""
    columns = ("epoch", "accuracy_epoch", "censored", "accuracy_censored")
    maps, accuracy, maps_censored, accuracy_censored = (runs[name].to_numpy() for name in columns)
    return survival.paired_lag(maps, accuracy, maps_censored, accuracy_censored)


def runs_table(grid: Sequence[Mapping[str, Any]], statuses: Sequence[str]) -> pd.DataFrame:
    """A row per planned run: its configuration, status, final accuracy, seconds, and error if it failed."""
    rows = []
    for planned, status in zip(grid, statuses, strict=True):
        record = files.read_json(Path(planned["folder"]) / "run.json") or {}
        row = {key: value for key, value in planned.items() if key not in ("folder", "files", *FROM_RECORD)}
        row["methods"] = " ".join(planned.get("methods", []))
        row["classes"] = " ".join(map(str, planned.get("classes", [])))
        row |= {"status": status, "final_accuracy": record.get("final_accuracy", np.nan)}
        rows.append(row | {key: record.get(key) for key in FROM_RECORD})
    return pd.DataFrame(rows).astype({"final_accuracy": float, "seconds": float})


def epochs_of(run: Mapping[str, Any]) -> pd.DataFrame:
    """A run's epochs: losses and accuracy, without timings, so that equal runs give equal tables."""
    frame = retrieval.read_epochs(Path(run["folder"])).reindex(columns=list(EPOCH_COLUMNS))
    return with_keys(frame, {key: run[key] for key in RUN})


def mean_matrices(matrices: pd.DataFrame) -> pd.DataFrame:
    """Epoch matrices averaged over seeds."""
    pairs = matrices.groupby([*CONDITION, "method", "metric", "epoch_a", "epoch_b"], sort=False)
    return pairs.agg(n_seeds=("value", "count"), value=("value", "mean")).reset_index()


def outcomes(by_seed: pd.DataFrame, variance: pd.DataFrame, settled: pd.DataFrame) -> pd.DataFrame:
    """Per run and method a value of each quantity that conditions are compared on, censored or not."""
    columns = [*RUN, "method", "outcome", "value", "censored"]
    parts = []
    for metric in ("cosine", "spearman_abs"):
        curves = by_seed.loc[(by_seed["reference"] == "previous") & (by_seed["metric"] == metric)]
        means = curves.groupby([*RUN, "method"])["value"].mean().reset_index()
        parts.append(means.assign(outcome=f"{metric} to previous, mean over epochs"))
    normalised = variance.rename(columns={"normalised": "value"})
    parts.append(normalised.assign(outcome="normalised temporal variance"))
    cosine = settled.loc[settled["metric"] == "cosine"]
    parts.append(cosine.rename(columns={"epoch": "value"}).assign(outcome="settling epoch (cosine)"))
    parts = [part if "censored" in part else part.assign(censored=False) for part in parts]
    return pd.concat([part[columns] for part in parts], ignore_index=True)


def write_tables(target: Path, made: Mapping[str, pd.DataFrame], share: str) -> None:
    """Each table as Parquet, the small ones as CSV too; `grid_runs` says how much of the grid is in them."""
    for name, frame in made.items():
        frame = frame.assign(grid_runs=share)
        files.write_whole(target / f"{name}.parquet", tables.frame_bytes(frame))
        if name in CSV_TABLES:
            files.write_whole(target / f"{name}.csv", frame.to_csv(index=False).encode())
