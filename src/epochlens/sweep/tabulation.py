"""The measurements of many runs as tables, and the tables on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epochlens.lazy import LazyModule
from epochlens.record import store, tables
from epochlens.sweep.measurement import CONDITION, RUN, Measured, with_keys

if TYPE_CHECKING:
    import pandas as pd

    from epochlens.measure import settling, statistics
else:
    pd = LazyModule("pandas")
    settling = LazyModule("epochlens.measure.settling")
    statistics = LazyModule("epochlens.measure.statistics")

CSV_TABLES = ("runs", "epochs", "stability_summary", "variance", "stabilisation", "comparisons")
FROM_RECORD = ("device", "threads", "host", "torch", "started", "seconds", "error", "log")


def make_tables(
    grid: Sequence[Mapping[str, Any]], statuses: Sequence[str], measured: Sequence[Measured], tau: float
) -> dict[str, pd.DataFrame]:
    """Every table but `stability`, which is streamed, from the runs' records and measurements."""
    done = [run for run, status in zip(grid, statuses, strict=True) if status == "done"]
    by_seed = pd.concat([m.by_seed for m in measured], ignore_index=True)
    epochs = pd.concat([epochs_of(run) for run in done], ignore_index=True)
    variance = pd.concat([m.variance for m in measured], ignore_index=True)
    settled = settling.stabilisation(by_seed, epochs, tau)
    return {
        "runs": runs_table(grid, statuses),
        "epochs": epochs,
        "stability_by_seed": by_seed,
        "stability_summary": statistics.summarise(by_seed),
        "variance": variance,
        "stabilisation": settled,
        "comparisons": statistics.compare(outcomes(by_seed, variance, settled)),
        "epoch_matrix": mean_matrices(pd.concat([m.matrices for m in measured], ignore_index=True)),
    }


def runs_table(grid: Sequence[Mapping[str, Any]], statuses: Sequence[str]) -> pd.DataFrame:
    """A row per planned run: its configuration, status, final accuracy, seconds, and error if it failed."""
    rows = []
    for planned, status in zip(grid, statuses, strict=True):
        record = store.read_json(Path(planned["folder"]) / "run.json") or {}
        row = {key: value for key, value in planned.items() if key not in ("folder", "files", *FROM_RECORD)}
        row["methods"] = " ".join(planned.get("methods", []))
        row["classes"] = " ".join(map(str, planned.get("classes", [])))
        row |= {"status": status, "final_accuracy": record.get("final_accuracy", np.nan)}
        rows.append(row | {key: record.get(key) for key in FROM_RECORD})
    return pd.DataFrame(rows).astype({"final_accuracy": float, "seconds": float})


def epochs_of(run: Mapping[str, Any]) -> pd.DataFrame:
    """A run's epochs: losses and accuracy, without timings, so that equal runs give equal tables."""
    frame = store.read_epochs(Path(run["folder"]))[["epoch", "train_loss", "test_loss", "accuracy"]]
    return with_keys(frame, {key: run[key] for key in RUN})


def mean_matrices(matrices: pd.DataFrame) -> pd.DataFrame:
    """Epoch matrices averaged over seeds."""
    pairs = matrices.groupby([*CONDITION, "method", "metric", "epoch_a", "epoch_b"], sort=False)
    return pairs.agg(n_seeds=("value", "count"), value=("value", "mean")).reset_index()


def outcomes(by_seed: pd.DataFrame, variance: pd.DataFrame, settled: pd.DataFrame) -> pd.DataFrame:
    """One value per run and method of each quantity that conditions are compared on."""
    columns = [*RUN, "method", "outcome", "value"]
    parts = []
    for metric in ("cosine", "spearman_abs"):
        curves = by_seed.loc[(by_seed["reference"] == "previous") & (by_seed["metric"] == metric)]
        means = curves.groupby([*RUN, "method"])["value"].mean().reset_index()
        parts.append(means.assign(outcome=f"{metric} to previous, mean over epochs"))
    normalised = variance.rename(columns={"normalised": "value"})
    parts.append(normalised.assign(outcome="normalised temporal variance"))
    cosine = settled.loc[settled["metric"] == "cosine"]
    parts.append(cosine.rename(columns={"epoch": "value"}).assign(outcome="settling epoch (cosine)"))
    return pd.concat([part[columns] for part in parts], ignore_index=True)


def write_tables(target: Path, made: Mapping[str, pd.DataFrame], share: str) -> None:
    """Each table as Parquet, the small ones as CSV too; `grid_runs` says how much of the grid is in them."""
    for name, frame in made.items():
        frame = frame.assign(grid_runs=share)
        store.write_whole(target / f"{name}.parquet", tables.frame_bytes(frame))
        if name in CSV_TABLES:
            store.write_whole(target / f"{name}.csv", frame.to_csv(index=False).encode())
