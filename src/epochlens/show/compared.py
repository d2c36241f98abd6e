"""What the paired comparisons found, in sentences: differences that hold, none found, and not tested."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from epochlens.show import frames, style
from epochlens.show.frames import KEYS, Tables, groups, keep, numbers

FAMILIES_AT_MOST = 16
CONDITION = [*KEYS, "method"]
NEEDED = ["factor", "a", "b", *CONDITION, "outcome", "n", "mean_difference", "p_adjusted"]
FAMILY = ["factor", "a", "b", "outcome"]
LACKING = re.compile(r"([ab]): ([^;]+)")
"""a side and its seeds, as the column `missing` names them"""


def differences(tables: Tables) -> list[str]:
    """What was compared: how many differences hold, what was not tested and why, a sentence per family.

    A family are the comparisons of the same two levels on the same outcome, in all combinations of the other
    factors; those of which a difference holds (adjusted p below 0.05) come first, then those of which none
    does, each in the order of their smallest p.
    """
    frame = frames.rows(tables, "comparisons", NEEDED)
    tested = keep(frame, np.isfinite(numbers(frame, "p_adjusted")))
    if tested.empty:
        return ["No two conditions could be compared with complete pairs of seeds.", *untested(tables)]
    holding = numbers(tested, "p_adjusted") < 0.05
    without = len(frame) - len(tested)
    rest = f"; {without} more had incomplete or too few pairs and were not tested" if without else ""
    count = f"{int(holding.sum())} of {len(tested)} paired comparisons"
    told = [f"{count} hold after Holm's correction (p < 0.05){rest}.", *untested(tables)]
    families = groups(tested, FAMILY)
    smallest = {key: float(numbers(part, "p_adjusted").min()) for key, part in families.items()}
    order = sorted(families, key=lambda key: smallest[key])
    held, open_ones = ([key for key in order if (smallest[key] < 0.05) is side] for side in (True, False))
    told += [family(key, families[key]) for key in held[:FAMILIES_AT_MOST]]
    if len(held) > FAMILIES_AT_MOST:
        more = len(held) - FAMILIES_AT_MOST
        told.append(f"{more} further families of differences that hold are in the comparisons table.")
    told += [no_difference(named(key), families[key]) for key in open_ones[:FAMILIES_AT_MOST]]
    if len(open_ones) > FAMILIES_AT_MOST:
        left = pd.concat([families[key] for key in open_ones[FAMILIES_AT_MOST:]])
        told.append(no_difference(f"{len(open_ones) - FAMILIES_AT_MOST} further families", left))
    return told


def named(key: tuple) -> str:
    """The outcome and the two levels of a family."""
    factor, a, b, outcome = key
    return f"{outcome} between {style.level(factor, a)} and {style.level(factor, b)}"


def family(key: tuple, tested: pd.DataFrame) -> str:
    """One family in words: which way it goes, in how many pairings, and by how much."""
    factor, a, b, outcome = key
    held = keep(tested, numbers(tested, "p_adjusted") < 0.05)
    change = directions(held)
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
    about = f"{sizes(held)}; {frames.counted(numbers(held, 'n'))}{censored(held)}; {worst}"
    return f"{pairs}{ways} of {len(tested)} {pairings}{only} ({about})."


def no_difference(name: str, tested: pd.DataFrame) -> str:
    """Comparisons of which no difference holds: how many, on how many pairs, and how near they come."""
    number = f"{len(tested)} pairing{'s' if len(tested) > 1 else ''}"
    parts = [frames.counted(numbers(tested, "n"), "pair") + censored(tested)]
    # Were all n signs alike, p would still be 2 / 2^n: 0.0625 for five.
    parts[0] += "" if numbers(tested, "n").max() > 5 else ", too few for p < 0.05"
    parts += [f"smallest adjusted p {numbers(tested, 'p_adjusted').min():.2g}"]
    if "effect_size" in tested:
        effects = numbers(tested, "effect_size")
        parts[-1] += f", largest effect {effects[np.abs(effects).argmax()]:.2g}"
    return f"No difference found in {name} ({number}, {'; '.join(parts)})."


def directions(held: pd.DataFrame) -> np.ndarray:
    """Positive where a is larger, negative where b is: the mean difference, or the effect where censored."""
    change = numbers(held, "mean_difference")
    return (
        np.where(np.isnan(change), numbers(held, "effect_size"), change) if "effect_size" in held else change
    )


def sizes(held: pd.DataFrame) -> str:
    """By how much the sides differ on average, as far as censoring leaves that known."""
    change = np.abs(numbers(held, "mean_difference"))
    known = change[np.isfinite(change)]
    if not known.size:
        return "by how much is not known, as pairs are censored"
    return f"by {span(known)} on average" + (" where no pair is censored" if len(known) < len(change) else "")


def censored(tested: pd.DataFrame) -> str:
    """How many pairs of some comparisons are touched by censoring; nothing where none is."""
    if "n_censored" not in tested:
        return ""
    touched = int(np.nansum(numbers(tested, "n_censored")))
    total = int(np.nansum(numbers(tested, "n") + numbers(tested, "n_unknown")))
    return f", {touched} of {total} pairs censored" if touched else ""


def untested(tables: Tables) -> list[str]:
    """The comparisons without a p: which seeds each condition lacks, and which are censored on both sides."""
    frame = frames.rows(tables, "comparisons", NEEDED)
    frame = keep(frame, ~np.isfinite(numbers(frame, "p_adjusted")))
    told = []
    if "missing" in frame and (seeds := lacking(frame.to_dict("records"))):
        refused = sum(bool(LACKING.search(str(names))) for names in frame["missing"])
        said = "1 comparison is" if refused == 1 else f"{refused} comparisons are"
        told.append(f"{said} refused for incomplete pairs. Missing: {'; '.join(seeds)}.")
    if "n_unknown" in frame:
        unknown = keep(frame, numbers(frame, "n_unknown") > 0)
        told += [unordered(key, part) for key, part in groups(unknown, FAMILY).items()]
    return told


def lacking(refused: Iterable[Mapping[Any, Any]]) -> list[str]:
    """The conditions that lack seeds, with those seeds; the outcome too where it is not lacking in all."""
    found: dict[tuple[str, ...], dict[str, None]] = {}
    outcomes: dict[str, None] = {}
    for row in refused:
        sides = LACKING.findall(str(row["missing"]))
        if sides:
            outcomes[str(row["outcome"])] = None
        for side, seeds in sides:
            levels = [str(row[side] if name == row["factor"] else row[name]) for name in CONDITION]
            found.setdefault((seeds, *levels), {})[str(row["outcome"])] = None
    methods: dict[tuple, list[str]] = {}
    for (seeds, *levels, method), of in found.items():
        only = f" ({', '.join(of)})" if len(of) < len(outcomes) else ""
        methods.setdefault((seeds, *levels, only), []).append(method)
    return [
        f"seed{'s' if ',' in seeds else ''} {seeds} of {style.named(levels)} · {', '.join(names)}{only}"
        for (seeds, *levels, only), names in methods.items()
    ]


def unordered(key: tuple, part: pd.DataFrame) -> str:
    """The comparisons of a family that too few pairs are left for, as both sides had not settled."""
    total = frames.counted(numbers(part, "n") + numbers(part, "n_unknown"), "pair")
    where = "; ".join(combination(row) for row in part.to_dict("records"))
    return f"Not known, as both sides are censored in too many pairs: {named(key)} ({where}; {total})."


def span(values: np.ndarray) -> str:
    """One value, or the smallest and the largest."""
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    return low if low == high else f"{low} to {high}"


def combination(row: Mapping[Any, Any]) -> str:
    """The other factors' levels of a comparison."""
    return " · ".join(style.level(name, row[name]) for name in CONDITION if str(row[name]) != "*")


def combinations(held: pd.DataFrame) -> str:
    """The other factors' levels of one or two comparisons, or how many there are."""
    names = [combination(row) for row in held.to_dict("records")]
    return " and ".join(names) if len(names) <= 2 else f"{names[0]} and {len(names) - 1} more"
