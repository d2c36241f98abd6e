"""The results in sentences, for the report and for the terminal."""

from __future__ import annotations

import numpy as np
import pandas as pd

from epochlens.measure.statistics import t_interval
from epochlens.show import frames, style
from epochlens.show.frames import KEYS, Tables, groups, keep, numbers

NAMED_AT_MOST = 12


def sentences(tables: Tables) -> list[str]:
    """What the sweep found, a configuration to a sentence, then which differences hold after correction.

    Uses runs, epochs, stabilisation and comparisons; what is missing or empty is left out or said to be so.
    """
    epochs = groups(frames.rows(tables, "epochs", [*KEYS, "seed", "epoch", "accuracy"]))
    needed = [*KEYS, "seed", "method", "metric", "epoch", "censored"]
    frame, _ = frames.one_metric(frames.rows(tables, "stabilisation", needed))
    settled = groups(frame)
    told = [missing_runs(tables)]
    for key in sorted({*epochs, *settled}):
        parts = [accuracy(epochs.get(key)), settling(settled.get(key))]
        told.append(f"{style.named(key)}: " + "; ".join(part for part in parts if part) + ".")
    return [sentence for sentence in [*told, *differences(tables)] if sentence]


def missing_runs(tables: Tables) -> str:
    """How many runs are not done, or nothing if all are."""
    runs = frames.rows(tables, "runs", ["status"])
    lacking = keep(runs, runs["status"] != "done")
    if lacking.empty:
        return ""
    counts = ", ".join(f"{len(part)} {status}" for (status,), part in groups(lacking, ["status"]).items())
    return f"{len(lacking)} of {len(runs)} runs are not done ({counts}), so some results rest on fewer seeds."


def accuracy(epochs: pd.DataFrame | None) -> str:
    """Mean accuracy at the last epoch with its interval."""
    if epochs is None or epochs.empty:
        return ""
    last = numbers(epochs, "epoch").max()
    values = numbers(epochs, "accuracy")[numbers(epochs, "epoch") == last]
    values = values[np.isfinite(values)]
    if not values.size:
        return ""
    mean, low, high = (float(value) for value in t_interval(values))
    seeds = "one seed" if values.size == 1 else f"{values.size} seeds"
    width = f", 95 % interval {low:.3f} to {high:.3f}" if np.isfinite(low) else ""
    return f"accuracy {mean:.3f} after epoch {last:g} ({seeds}{width})"


def settling(frame: pd.DataFrame | None) -> str:
    """Median settling epoch of each method's maps, and how many seeds did not settle."""
    if frame is None or frame.empty:
        return ""
    parts = []
    for (method,), part in groups(frame, ["method"]).items():
        middle, bound = median_epoch(part)
        censored = int(numbers(part, "censored").sum())
        if np.isnan(middle):
            continue
        when = f"not before epoch {middle:g}" if bound else f"at epoch {middle:g}"
        seeds = "one seed" if len(part) == 1 else f"median of {len(part)} seeds"
        rest = f", {censored} of them unsettled at the end" if censored else ""
        parts.append(f"{method} {when} ({seeds}{rest})")
    return "maps settled: " + ", ".join(parts) if parts else ""


def median_epoch(frame: pd.DataFrame) -> tuple[float, bool]:
    """Median settling epoch of some seeds, and whether censored seeds make it only a lower bound."""
    epochs, censored = numbers(frame, "epoch"), numbers(frame, "censored") > 0
    known = np.isfinite(epochs)
    if not known.any():
        return float("nan"), False
    # Censored seeds sort last: the median is exact only if it lies among the settled ones.
    bound = np.count_nonzero(known) // 2 >= np.count_nonzero(known & ~censored)
    return float(np.median(epochs[known])), bool(bound)


def differences(tables: Tables) -> list[str]:
    """Which paired differences hold at an adjusted p below 0.05, the first few spelled out."""
    needed = ["factor", "a", "b", *KEYS, "method", "outcome", "n", "mean_difference", "p_adjusted"]
    frame = frames.rows(tables, "comparisons", needed)
    tested = keep(frame, np.isfinite(numbers(frame, "p_adjusted")))
    if tested.empty:
        return ["No two conditions could be compared with complete pairs of seeds."]
    hold = keep(tested, numbers(tested, "p_adjusted") < 0.05).sort_values("p_adjusted", kind="stable")
    without = len(frame) - len(tested)
    rest = f"; {without} more had incomplete or too few pairs and were not tested" if without else ""
    told = [f"{len(hold)} of {len(tested)} paired comparisons hold after Holm's correction (p < 0.05){rest}."]
    told += [difference(row) for _, row in hold.head(NAMED_AT_MOST).iterrows()]
    if len(hold) > NAMED_AT_MOST:
        told.append(
            f"{len(hold) - NAMED_AT_MOST} further differences that hold are in the comparisons table."
        )
    return told


def difference(row: pd.Series) -> str:
    """One paired difference in words."""
    factor = str(row["factor"])
    where = [style.level(c, row[c]) for c in [*KEYS, "method"] if c != factor and str(row[c]) != "*"]
    a, b = (style.level(factor, row[side]) for side in "ab")
    return (
        f"{row['outcome']}: {a} minus {b} is {row['mean_difference']:+.3g} on average "
        f"over {row['n']:g} seeds ({', '.join(where)}; adjusted p = {row['p_adjusted']:.2g})."
    )
