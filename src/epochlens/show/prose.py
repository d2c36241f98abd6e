"""Small parts of sentences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def item(name: str, *parts: str) -> str:
    """Sentences under a name, or nothing without any."""
    said = [f"{part}." for part in parts if part]
    said[1:] = [capital(part) for part in said[1:]]
    return f"{name}: {' '.join(said)}" if said else ""


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def listed(names: Sequence[str]) -> str:
    """Names with commas and an `and`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def plain(value: float) -> str:
    """A similarity in two digits, never -0.00."""
    return f"{round(value, 2) + 0.0:.2f}"


def with_ends(value: float, low: float, high: float) -> str:
    """A similarity with its interval, where there is one."""
    return plain(value) + (f" [{plain(low)}, {plain(high)}]" if np.isfinite([low, high]).all() else "")


def combinations(count: int) -> str:
    """How many pairs of a configuration and a method."""
    return f"{count} combination{'' if count == 1 else 's'}"


def span(values: Sequence[float] | np.ndarray, form: str) -> str:
    """The smallest and the largest value in a format, or the one they share."""
    low, high = (format(end, form) for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
