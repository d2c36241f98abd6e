"""Which differences between conditions hold, a sentence per family of comparisons."""

from __future__ import annotations

import numpy as np
import pandas as pd

from epochlens.show import frames, style
from epochlens.show.frames import KEYS, Tables, groups, keep, numbers

FAMILIES_AT_MOST = 16
NEEDED = ["factor", "a", "b", *KEYS, "method", "outcome", "n", "mean_difference", "p_adjusted"]
FAMILY = ["factor", "a", "b", "outcome"]


def differences(tables: Tables) -> list[str]:
    """Which paired differences hold at an adjusted p below 0.05: how many, then a sentence per family.

    A family are the comparisons of the same two levels on the same outcome, in all combinations of the other
    factors; families come in the order of their smallest p.
    """
    frame = frames.rows(tables, "comparisons", NEEDED)
    tested = keep(frame, np.isfinite(numbers(frame, "p_adjusted")))
    if tested.empty:
        return ["No two conditions could be compared with complete pairs of seeds."]
    holding = numbers(tested, "p_adjusted") < 0.05
    without = len(frame) - len(tested)
    rest = f"; {without} more had incomplete or too few pairs and were not tested" if without else ""
    count = f"{int(holding.sum())} of {len(tested)} paired comparisons"
    told = [f"{count} hold after Holm's correction (p < 0.05){rest}."]
    families = groups(tested, FAMILY)
    smallest = {key: float(numbers(part, "p_adjusted").min()) for key, part in families.items()}
    held = sorted((key for key in families if smallest[key] < 0.05), key=lambda key: smallest[key])
    told += [family(key, families[key]) for key in held[:FAMILIES_AT_MOST]]
    if len(held) > FAMILIES_AT_MOST:
        more = len(held) - FAMILIES_AT_MOST
        told.append(f"{more} further families of differences that hold are in the comparisons table.")
    return told


def family(key: tuple, tested: pd.DataFrame) -> str:
    """One family in words: which way it goes, in how many pairings, and by how much."""
    factor, a, b, outcome = key
    held = keep(tested, numbers(tested, "p_adjusted") < 0.05)
    change = numbers(held, "mean_difference")
    lower, higher = int((change < 0).sum()), int((change > 0).sum())
    pairs = f"{style.level(factor, a)} minus {style.level(factor, b)}: {outcome} is "
    worst = f"adjusted p {'=' if len(held) == 1 else 'at most'} {numbers(held, 'p_adjusted').max():.2g}"
    if lower and higher:
        ways = f"higher in {higher} ({combinations(keep(held, change > 0))}) and lower in {lower}"
        ways += f" ({combinations(keep(held, change < 0))})"
    else:
        ways = f"{'lower' if lower else 'higher'} in {len(held)}"
    only = f", {combinations(held)}" if len(held) < min(len(tested), 3) and not (lower and higher) else ""
    pairings = "pairing" if len(tested) == 1 else "pairings"
    by = f"by {span(np.abs(change))} on average"
    seeds = frames.counted(numbers(held, "n"))
    return f"{pairs}{ways} of {len(tested)} {pairings}{only} ({by}; {seeds}; {worst})."


def span(values: np.ndarray) -> str:
    """One value, or the smallest and the largest."""
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    return low if low == high else f"{low} to {high}"


def combinations(held: pd.DataFrame) -> str:
    """The other factors' levels of one or two comparisons, or how many there are."""
    names = [
        " · ".join(style.level(c, row[c]) for c in [*KEYS, "method"] if str(row[c]) != "*")
        for _, row in held.iterrows()
    ]
    return " and ".join(names) if len(names) <= 2 else f"{names[0]} and {len(names) - 1} more"
