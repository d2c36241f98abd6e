"""When maps settle, in words: by the raw and the calibrated cosine, and against the previous epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from epochlens.measure import survival
from epochlens.show import frames, lags
from epochlens.show.frames import KEYS, Tables, groups, numbers
from epochlens.show.lags import RAW, Lag
from epochlens.show.prose import span

SUMMARY = [*KEYS, "method", "median", "ci_low", "ci_high", "n_seeds", "n_images", "n_censored"]


class Settled(NamedTuple):
    """When maps settle: a median epoch, NaN where it is not known, in words, and how many had not."""

    median: float
    text: str
    seeds: str
    late: str


def settling(tables: Tables, metric: str = RAW, reference: str = "final") -> dict[tuple, Settled]:
    """When each configuration's maps settle, by method: by image where that is known, else by seed.

    The metric is lags.RAW or lags.CALIBRATED. Settling on the previous epoch is known by image only.
    """
    frame = frames.rows(tables, "settling_summary", SUMMARY, metric=metric, reference=reference)
    parts = groups(frame, [*KEYS, "method"])
    found = {key: median_of_images(part.iloc[0].to_dict()) for key, part in parts.items()}
    return found or (settling_of_seeds(tables, metric) if reference == "final" else {})


def median_of_images(row: dict) -> Settled:
    """A Kaplan-Meier median with its interval, and how many images are censored."""
    median, low, high = (float(row[name]) for name in ("median", "ci_low", "ci_high"))
    total, late = np.nan_to_num([float(row["n_images"]), float(row["n_censored"])])
    late = f"{late:g} of {total:g} images had not settled at the end"
    seeds = "one seed" if row["n_seeds"] == 1 else f"{row['n_seeds']:g} seeds"
    if np.isnan(median):
        start = f"not before epoch {low:.3g} with 95 % confidence" if np.isfinite(low) else ""
        return Settled(median, start, seeds, late)
    ends = f" [{lags.end(low)}, {lags.end(high)}]" if np.isfinite(low) else ""
    return Settled(median, f"epoch {median:.3g}{ends}", seeds, late)


def settling_of_seeds(tables: Tables, metric: str) -> dict[tuple, Settled]:
    """Median settling epoch of the seeds' mean similarity, and how many seeds did not settle."""
    found = {}
    frame = lags.means_of_runs(tables, metric, ["seed", "epoch", "censored"])
    for key, part in groups(frame, [*KEYS, "method"]).items():
        middle, bound = median_epoch(part)
        if np.isnan(middle):
            continue
        late = int(numbers(part, "censored").sum())
        seeds = "one seed" if len(part) == 1 else f"median of {len(part)} seeds"
        rest = f"{late} of {len(part)} seeds had not settled at the end" if late else ""
        found[key] = Settled(middle, f"{'not before ' if bound else ''}epoch {middle:g}", seeds, rest)
    return found


def median_epoch(frame: pd.DataFrame) -> tuple[float, bool]:
    """Kaplan-Meier median settling epoch of some seeds, or its least value and that it is only a bound."""
    return survival.median_or_bound(numbers(frame, "epoch"), numbers(frame, "censored") <= 0)


def timing(when: Settled | None, lag: Lag | None) -> str:
    """When the maps of a method settle, how long after accuracy, and how many had not at the end."""
    behind = lags.phrase(lag) if lag is not None else ""
    if when is None:
        return f"maps settle {behind}" if behind else ""
    if np.isnan(when.median):
        start = f", {when.text}" if when.text else ""
        about = f"the median epoch at which maps settle is not known{start} ({when.seeds})"
        return "; ".join([about, when.late, *([f"maps settle {behind}"] if behind else [])])
    place = when.text if when.text.startswith("not before") else f"at {when.text}"
    middle = f"maps settle {place} ({when.seeds})" + (f", {behind}" if behind else "")
    return f"{middle}; {when.late}" if when.late else middle


def calibrated(when: Settled | None, lag: Lag | None) -> str:
    """The same by the calibrated cosine, in short, to stand after the raw one."""
    if when is None and lag is None:
        return ""
    parts = []
    if when is not None and np.isnan(when.median):
        parts.append("median epoch not known" + (f", {when.text}" if when.text else ""))
    elif when is not None:
        parts.append(when.text)
    if lag is not None:
        parts.append(lags.phrase(lag))
    late = f"; {when.late}" if when is not None and when.late else ""
    return f"calibrated: {', '.join(parts)}{late}"


def previous(when: Settled | None) -> str:
    """From when on a map hardly differs from that of the epoch before."""
    if when is None:
        return ""
    if np.isnan(when.median):
        start = f" ({when.text})" if when.text else ""
        return f"against the previous epoch: median epoch not known{start}"
    return f"against the previous epoch: {when.text}"


def small_steps(found: Sequence[Settled], final: Sequence[Settled]) -> str:
    """From when on maps are close to those of the epoch before, and that this is not settling."""
    known = [one.median for one in found if np.isfinite(one.median)]
    ends = [one.median for one in final if np.isfinite(one.median)]
    if len(known) < 2 or not ends:
        return ""
    return (
        f"Against the previous epoch maps settle at epoch {span(known, '.3g')} (medians), against the final "
        f"map at epoch {span(ends, '.3g')}: one epoch is a small step, no sign that a map is near its end."
    )
