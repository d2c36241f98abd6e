"""Maps and accuracy, which settles first: by the raw and by the calibrated cosine, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from epochlens.show import style
from epochlens.show.ceiling import Ceiling
from epochlens.show.lags import Lag
from epochlens.show.prose import combinations, listed, span

NAMED_AT_MOST = 4
SCALE = "by the calibrated cosine (0: another image of the class, 1: the same map)"


def overview(raw: Mapping[tuple, Lag], calibrated: Mapping[tuple, Lag]) -> list[str]:
    """How often maps settle after accuracy or before it, or it is open: a sentence per scale."""
    told = []
    counted, on_scale = (known(found) for found in (raw, calibrated))
    if len(counted) > 1:
        told.append(
            f"Maps settle before or after accuracy? Of {len(counted)} combinations of configuration and "
            f"method, by the raw cosine to the final map: {orders(counted)}. Brackets hold 95 % intervals. "
            "Such lags follow the mean over a run's images."
        )
    if on_scale:
        told.append(f"{SCALE[0].upper()}{SCALE[1:]}: {orders(on_scale)}.")
    return told


def known(found: Mapping[tuple, Lag]) -> dict[tuple, Lag]:
    """The lags that rest on any seed."""
    return {key: lag for key, lag in found.items() if lag.n > 0}


def orders(found: Mapping[tuple, Lag]) -> str:
    """`1 after accuracy, 6 before accuracy, 1 open`, without those there are none of."""
    told = [lag.order for lag in found.values()]
    counts = {side: told.count(side) for side in ("after", "before", "open") if side in told}
    return ", ".join(
        f"{count} {side}" + ("" if side == "open" else " accuracy") for side, count in counts.items()
    )


def disagreement(
    raw: Mapping[tuple, Lag], calibrated: Mapping[tuple, Lag], ceilings: Mapping[tuple, Ceiling]
) -> str:
    """Where the two scales order maps and accuracy differently, and why; nothing where they nowhere do.

    The ceilings hold the raw cosine of different images of a class.
    """
    both = sorted(known(raw).keys() & known(calibrated).keys())
    pairs: dict[tuple[str, str], list[tuple]] = {}
    for key in both:
        sides = raw[key].order, calibrated[key].order
        if sides[0] != sides[1]:
            pairs.setdefault(sides, []).append(key)
    if not pairs:
        return ""
    # What is reversed comes before what is open on one of the scales.
    sorted_pairs = sorted(pairs.items(), key=lambda pair: ("open" in pair[0], pair[0]))
    told = [f"{a} by the raw and {b} by the calibrated one {places(keys)}" for (a, b), keys in sorted_pairs]
    differing = [key for keys in pairs.values() for key in keys]
    nulls = [ceilings[key].null[0] for key in differing if key in ceilings]
    nulls = [null for null in nulls if np.isfinite(null)]
    why = (
        " There the final maps of different images of a class already have a raw cosine of "
        f"{span(nulls, '.2f')}, so a raw cosine near 1 is reached early and says little of the image."
        if nulls
        else ""
    )
    total = f"{len(differing)} of {combinations(len(both))}"
    return f"The two cosines order maps and accuracy differently in {total}: {'; '.join(told)}.{why}"


def places(keys: list[tuple]) -> str:
    """A few combinations by name, of more how many there are."""
    if len(keys) > NAMED_AT_MOST:
        return f"in {len(keys)} of them"
    by_configuration: dict[tuple, list[str]] = {}
    for key in keys:
        by_configuration.setdefault(key[:3], []).append(str(key[3]))
    names = [f"{style.named(key)} ({listed(methods)})" for key, methods in by_configuration.items()]
    return f"in {listed(names)}"
