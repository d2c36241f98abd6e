"""The summary that the terminal and the report show first: a row per configuration and method."""

from __future__ import annotations

import numpy as np
import pandas as pd

from epochlens.measure.statistics import t_interval
from epochlens.show.frames import KEYS, Tables, groups, numbers


def summarise(tables: Tables) -> pd.DataFrame:
    """Accuracy, mean similarity of consecutive epochs, and settling epochs, as texts with 95 % t intervals.

    Uses runs of `epochs`, `stability_by_seed` and `stabilisation`; intervals are over seeds, settling epochs
    are medians over seeds.
    """
    curves, settled = tables["stability_by_seed"], tables["stabilisation"]
    curves = curves.loc[(curves["metric"] == "cosine") & (curves["reference"] == "previous")]
    similarity = groups(curves, [*KEYS, "method"])
    epochs = groups(tables["epochs"], KEYS)
    rows = []
    for key, group in groups(settled.loc[settled["metric"] == "cosine"], [*KEYS, "method"]).items():
        dataset, model, rate, method = key
        late = int(numbers(group, "censored").sum())
        rows.append(
            {
                "configuration": f"{dataset} {model} lr {rate:g}",
                "method": method,
                "seeds": len(group),
                "final accuracy": interval(final_accuracy(epochs[key[:3]])),
                "cosine to previous": interval(seed_means(similarity.get(key))),
                "maps settle": settled_when(group, late),
                "accuracy settles": f"epoch {group['accuracy_epoch'].median():g}",
            }
        )
    return pd.DataFrame(rows)


def settled_when(group: pd.DataFrame, late: int) -> str:
    """The median settling epoch of the seeds, and how many had not settled; "not yet" if none had."""
    if late == len(group):
        return "not yet"
    return f"epoch {group['epoch'].median():g}" + (f" ({late} did not)" if late else "")


def final_accuracy(epochs: pd.DataFrame) -> np.ndarray:
    """Accuracy of each seed after its last epoch, [seeds]."""
    last = epochs.sort_values("epoch").drop_duplicates("seed", keep="last")
    return numbers(last, "accuracy")


def seed_means(curves: pd.DataFrame | None) -> np.ndarray:
    """Mean over epochs of each seed's values, [seeds]; empty without curves."""
    if curves is None:
        return np.array([])
    return np.array([np.nanmean(numbers(seed, "value")) for _, seed in curves.groupby("seed")])


def interval(values: np.ndarray) -> str:
    """Mean with its 95 % t interval, or the mean alone where there is no interval, or "undefined"."""
    if not len(values):
        return "undefined"
    mean, low, high = (float(x) for x in t_interval(values))
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]" if np.isfinite(low) else f"{mean:.3f}"
