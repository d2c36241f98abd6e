"""How long after accuracy maps settle: read from the tables, and in words that say what is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from epochlens.measure.survival import paired_lag
from epochlens.show import frames
from epochlens.show.frames import KEYS, Tables, groups, keep, numbers

RAW, CALIBRATED = "cosine", "calibrated_cosine"
"""the scales that settling is told on: cosine as it is, and 0 at another image of the class, 1 at identity"""
FIELDS = ("n", "n_censored", "median_low", "median_high", "low", "high", "mean", "mean_low", "mean_high")


class Lag(NamedTuple):
    """Epochs by which maps settle after accuracy: a median with bounds, or a mean where seeds are few.

    `first` and `last` bound the middle, and are equal unless censored seeds leave it open.
    """

    n: int
    censored: int
    first: float
    last: float
    low: float
    high: float
    is_mean: bool

    @property
    def exact(self) -> bool:
        """Whether the middle is one known number."""
        return bool(np.isfinite(self.first) and self.first == self.last)

    @property
    def order(self) -> str:
        """`after`, `before`, or `open` where the interval holds both or is not known."""
        return "after" if self.low > 0 else "before" if self.high < 0 else "open"


def lags(tables: Tables, metric: str = RAW) -> dict[tuple, Lag]:
    """The lag of each configuration and method (RAW or CALIBRATED, to the final maps), from settling_summary.

    Without such rows it is computed from stabilisation, whose maps settle as the mean over their images.
    """
    needed = [*KEYS, "method", *(f"lag_{field}" for field in FIELDS)]
    frame = frames.rows(tables, "settling_summary", needed, metric=metric, reference="final")
    found = {key: lag(part.iloc[0].to_dict()) for key, part in groups(frame, [*KEYS, "method"]).items()}
    return found or lags_of_means(tables, metric)


def lags_of_means(tables: Tables, metric: str) -> dict[tuple, Lag]:
    """The lags of stabilisation."""
    columns = ["epoch", "accuracy_epoch", "censored", "accuracy_censored"]
    found = {}
    for key, part in groups(means_of_runs(tables, metric, columns), [*KEYS, "method"]).items():
        epoch, accuracy, late, unknown = (numbers(part, column) for column in columns)
        result = paired_lag(epoch, accuracy, late > 0, unknown > 0)
        found[key] = lag({f"lag_{field}": value for field, value in result.items()})
    return found


def means_of_runs(tables: Tables, metric: str, columns: Sequence[str]) -> pd.DataFrame:
    """The rows of stabilisation of a metric; for RAW those of another one if there is no cosine."""
    frame = frames.rows(tables, "stabilisation", [*KEYS, "method", "metric", *columns])
    if metric == RAW:
        # Not a calibrated one in its place: that would be told as the raw one.
        return frames.one_metric(keep(frame, ~frame["metric"].astype(str).str.startswith("calibrated")))[0]
    return keep(frame, frame["metric"].astype(str) == metric)


def lag(row: Mapping[Any, Any]) -> Lag:
    """One row's lag: the median by the sign test, or, where that has no bounds, the mean if it is known."""
    value = {field: float(row[f"lag_{field}"]) for field in FIELDS}
    n, censored = (int(np.nan_to_num(value[field])) for field in ("n", "n_censored"))
    bounded = np.isfinite([value["low"], value["high"]]).any()
    if not bounded and np.isfinite(value["mean"]):
        mean = value["mean"]
        return Lag(n, censored, mean, mean, value["mean_low"], value["mean_high"], True)
    middle = value["median_low"], value["median_high"]
    return Lag(n, censored, *middle, value["low"], value["high"], False)


def phrase(lag: Lag) -> str:
    """The lag in words, to follow `maps settle`: `6 [4, 9] epochs after accuracy`."""
    if lag.n == 0 or np.isnan([lag.first, lag.last]).any():
        return "whether before or after accuracy is not known"
    note = f" ({lag.censored} of {lag.n} seeds censored)" if lag.censored else ""
    note = " (one seed, censored)" if lag.censored == lag.n == 1 else note
    if not lag.exact:
        one_side = lag.first >= 0 or lag.last <= 0
        still = ", but by its interval which comes first is open"
        return bounded(lag) + note + (still if one_side and lag.order == "open" and lag.n > 1 else "")
    few = " (one seed)" if lag.n == 1 else f" (mean of {lag.n} seeds)" if lag.is_mean else ""
    bounds = np.isfinite([lag.low, lag.high]).any()
    still = ", so which comes first is open" if lag.order == "open" and lag.n > 1 else ""
    return exact(lag) + (few or note) + (still if bounds or not still else ", its interval not known" + still)


def exact(lag: Lag) -> str:
    """A known middle with its interval, told forwards: before is not a negative after."""
    sign = -1 if lag.first < 0 else 1
    ends = sorted((sign * lag.low, sign * lag.high))
    interval = f" [{end(ends[0])}, {end(ends[1])}]" if np.isfinite(ends).any() else ""
    if lag.first == 0:
        return f"together with accuracy, 0{interval} epochs after it"
    side = "after" if sign > 0 else "before"
    size = abs(lag.first)
    return f"{size:.3g}{interval} epoch{'' if size == 1 else 's'} {side} accuracy"


def end(value: float) -> str:
    """An interval's end, or that it has none."""
    return f"{value:.3g}" if np.isfinite(value) else "not known"


def bounded(lag: Lag) -> str:
    """A middle of which only bounds are known."""
    first, last = lag.first, lag.last
    if np.isinf(first) and np.isinf(last):
        return "whether before or after accuracy is not known"
    if np.isfinite(first) and np.isfinite(last):
        return f"{first:.3g} to {last:.3g} epochs after accuracy" + (
            ", negative is before" if first < 0 else ""
        )
    if np.isfinite(first):
        return (
            f"at least {first:.3g} epochs after accuracy"
            if first >= 0
            else (f"at most {-first:.3g} epochs before accuracy, or after it")
        )
    return (
        f"at least {-last:.3g} epochs before accuracy"
        if last <= 0
        else (f"at most {last:.3g} epochs after accuracy, or before it")
    )
