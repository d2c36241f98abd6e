"""What the likeness of final maps is worth, in words: between seeds, the ceiling, and to unrelated maps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from epochlens.measure.nulls import calibrate
from epochlens.show import frames
from epochlens.show.frames import KEYS, Tables, groups, keep, numbers
from epochlens.show.prose import plain, with_ends

NULLS = {
    "initial": "to the untrained network's",
    "edge": "to the input's edges",
    "random": "to random maps",
    "redraw": "between two draws of the method",
}
NEEDED = [*KEYS, "method", "epoch", "mean", "ci_low", "ci_high"]
NAN = float("nan")


class Ceiling(NamedTuple):
    """Cosines of final maps as (mean, low, high), NaN where not known, and means of other nulls by name."""

    seeds: tuple[float, float, float]
    """the same image in other seeds, s"""
    null: tuple[float, float, float]
    """other images of the class in the same network, n"""
    others: dict[str, float]

    @property
    def verdict(self) -> str:
        """Whether s is `above` or `below` n, `not above` where their intervals overlap, else nothing."""
        (_, low, high), (_, null_low, null_high) = self.seeds, self.null
        if not np.isfinite([low, high, null_low, null_high]).all():
            return ""
        return "above" if low > null_high else "below" if high < null_low else "not above"

    @property
    def calibrated(self) -> float:
        """(s - n) / (1 - n): 0 if seeds agree no more than images of a class do, 1 if they agree fully."""
        return float(calibrate(self.seeds[0], self.null[0]))


def ceilings(tables: Tables) -> dict[tuple, Ceiling]:
    """How alike final maps are between seeds and to unrelated maps, by configuration and method.

    Uses agreement and stability_summary.
    """
    between = last_epoch(frames.rows(tables, "agreement", NEEDED, metric="cosine"))
    means = frames.rows(tables, "stability_summary", [*NEEDED, "reference"], metric="cosine")
    names = means["reference"].astype(str)
    null = {name: last_epoch(keep(means, names == name)) for name in ("other_image", *NULLS)}
    # Likeness to the untrained network has always been there; alone it does not tell what is unrelated.
    keys = {*between, *(key for name, rows in null.items() if name != "initial" for key in rows)}
    return {
        key: Ceiling(
            ends_of(between.get(key)),
            ends_of(null["other_image"].get(key)),
            {name: float(null[name][key]["mean"]) for name in NULLS if key in null[name]},
        )
        for key in sorted(keys)
    }


def last_epoch(frame: pd.DataFrame) -> dict[tuple, dict]:
    """The row of the last epoch of each configuration and method, where its mean is defined."""
    known = keep(frame, np.isfinite(numbers(frame, "mean")))
    last = known.sort_values("epoch", kind="stable").drop_duplicates([*KEYS, "method"], keep="last")
    return {key: part.iloc[0].to_dict() for key, part in groups(last, [*KEYS, "method"]).items()}


def ends_of(row: dict | None) -> tuple[float, float, float]:
    """Mean and interval of a row; NaN without one."""
    return (float(row["mean"]), float(row["ci_low"]), float(row["ci_high"])) if row else (NAN, NAN, NAN)


def closeness(one: Ceiling | None) -> str:
    """One configuration and method in words: the ceiling, whether it is above the null, other nulls."""
    if one is None:
        return ""
    has_seeds, has_null = np.isfinite([one.seeds[0], one.null[0]])
    seeds = "cosine of the final maps between seeds "
    seeds += f"s = {with_ends(*one.seeds)}" if has_seeds else "is not known"
    if has_null:
        verdict = f"{one.verdict} " if one.verdict else ""
        seeds += f", {verdict}other images of the class n = {with_ends(*one.null)}"
        seeds += " (the intervals overlap)" if one.verdict == "not above" else ""
    if np.isfinite(one.calibrated):
        seeds += f", calibrated ceiling (s - n) / (1 - n) = {plain(one.calibrated)}"
    texts = [f"{name} {plain(one.others[ref])}" for ref, name in NULLS.items() if ref in one.others]
    return f"{seeds}; {', '.join(texts)}" if texts else seeds


def summary(found: Iterable[Ceiling]) -> str:
    """In how many combinations an image's maps of two seeds are more alike than maps of two images."""
    verdicts = [one.verdict for one in found if one.verdict]
    if len(verdicts) < 2:
        return ""
    above, below, overlap = (verdicts.count(name) for name in ("above", "below", "not above"))
    parts = [f"{above} above"] + ([f"{overlap} not above (intervals overlap)"] if overlap else [])
    parts += (
        [f"{below} below, where another seed changes a map more than another image does"] if below else []
    )
    return (
        "How close are final maps of one image between seeds (s, the ceiling), against those of other images "
        f"of the class in one network (n)? Of {len(verdicts)} combinations: {', '.join(parts)}."
    )
