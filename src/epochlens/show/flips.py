"""Do maps move because predictions do: in words, over all configurations and methods."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from epochlens.measure.statistics import t_interval
from epochlens.show import frames
from epochlens.show.frames import KEYS, Tables, groups, keep, numbers
from epochlens.show.prose import combinations, span

TOLD = {"ever_right": "ever right", "always_right": "always right"}
"""conditions whose images are the same at every epoch"""


def flipping(tables: Tables) -> str:
    """Whether maps of images whose prediction flips move more than those of images that keep it.

    Uses conditioned: cosine to the previous epoch, paired by seed and epoch, with t intervals over seeds.
    """
    needed = [*KEYS, "seed", "method", "epoch", "condition", "value", "coverage"]
    frame = frames.rows(tables, "conditioned", needed, reference="previous", metric="cosine")
    parts = list(groups(frame.astype({"condition": str}), [*KEYS, "method"]).values())
    sides = [side for side in map(side_of, parts) if side]
    if not sides:
        return ""
    words = {"less": "less alike in", "more": "more alike in", "open": "open in"}
    ways = [f"{told} {sides.count(side)}" for side, told in words.items() if side in sides]
    same = [f"{words} {told}" for name, words in TOLD.items() if (told := told_of(parts, name))]
    return (
        "Do maps move because predictions do? From one epoch to the next, maps of images whose prediction "
        f"flips ({shares(parts, 'flipped')} of images) against those of images that keep it, of "
        f"{combinations(len(sides))}: {', '.join(ways)} (cosine, 95 % intervals over seeds)."
        + (f" Mean cosine of images {'; '.join(same)}." if same else "")
    )


def side_of(part: pd.DataFrame) -> str:
    """Whether flipped images' maps are `less` or `more` alike than kept ones', or `open`; "" if unknown."""
    means: Any = keep(part, part["condition"].isin(["kept", "flipped"]))
    table = means.pivot_table(index=["seed", "epoch"], columns="condition", values="value", observed=True)
    change = table.reindex(columns=["kept", "flipped"]).dropna()
    by_seed = (change["flipped"] - change["kept"]).groupby(level="seed").mean()
    if by_seed.empty:
        return ""
    _, low, high = (float(end) for end in t_interval(by_seed.to_numpy(float)))
    if np.isnan(low):
        return ""
    return "less" if high < 0 else "more" if low > 0 else "open"


def told_of(parts: list[pd.DataFrame], condition: str) -> str:
    """Means over seeds and epochs of one condition, and the share of images that meet it, as ranges."""
    means = [
        float(np.nanmean(values))
        for values in of_condition(parts, condition, "value")
        if np.isfinite(values).any()
    ]
    return f"{span(means, '.3f')} ({shares(parts, condition)} of images)" if means else ""


def shares(parts: list[pd.DataFrame], condition: str) -> str:
    """The mean share of images that meet a condition, as a range over configurations and methods."""
    return f"{span([100 * values.mean() for values in of_condition(parts, condition, 'coverage')], '.0f')} %"


def of_condition(parts: list[pd.DataFrame], condition: str, column: str) -> list[np.ndarray]:
    """A column of each part's rows of one condition, where there are any."""
    found = [numbers(keep(part, part["condition"] == condition), column) for part in parts]
    return [values for values in found if values.size]
