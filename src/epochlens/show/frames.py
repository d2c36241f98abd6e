"""Reading the tables: rows that may be missing, groups, pivots and counts, with plain arrays as results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd

Tables = Mapping[str, pd.DataFrame]
CONTROLS = ("edge", "random")
"""maps that know nothing of the network: a method should do better than they do"""
KEYS = ["dataset", "model", "learning_rate"]


def rows(tables: Tables, name: str, needed: Iterable[str], **equal: object) -> pd.DataFrame:
    """The table's rows where the given columns hold the given values; empty if the table is missing."""
    columns = {*needed, *equal}
    frame = tables.get(name)
    if frame is None or not columns <= set(frame.columns):
        return pd.DataFrame({column: pd.Series(dtype=float) for column in columns})
    mask = np.ones(len(frame), dtype=bool)
    for column, value in equal.items():
        mask &= np.asarray(frame[column] == value, dtype=bool)
    return keep(frame, mask)


def keep(frame: pd.DataFrame, mask: object) -> pd.DataFrame:
    """The rows that a boolean array marks."""
    return cast(pd.DataFrame, frame.loc[np.asarray(mask, dtype=bool)])


def numbers(frame: pd.DataFrame, column: str) -> np.ndarray:
    """A column as float64."""
    return np.asarray(frame[column], dtype=float)


def values(frame: pd.DataFrame, column: str) -> list[Any]:
    """A column's distinct values, sorted."""
    return sorted(frame[column].dropna().unique())


def groups(frame: pd.DataFrame, columns: Sequence[str] = KEYS) -> dict[tuple, pd.DataFrame]:
    """The frame split by the columns' values, in sorted order."""
    return {cast(tuple, key): part for key, part in frame.groupby(list(columns), sort=True, observed=True)}


def pivot(frame: pd.DataFrame, index: str, columns: str, value: str = "value") -> pd.DataFrame:
    """Means of a value as a table [index, columns]."""
    means: Any = frame.groupby([index, columns], observed=True)[value].mean()
    return means.unstack()


def one_metric(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows of one metric, cosine where there is a choice, and its name."""
    found = values(frame, "metric")
    metric = "cosine" if "cosine" in found or not found else str(found[0])
    return keep(frame, frame["metric"] == metric), metric


def with_accuracy(tables: Tables) -> pd.DataFrame:
    """Cosine to the previous epoch with the run's accuracy at that epoch, where both are defined."""
    on = [*KEYS, "seed", "epoch"]
    needed = [*on, "method", "value"]
    similar: Any = rows(tables, "stability_by_seed", needed, metric="cosine", reference="previous")
    epochs: Any = rows(tables, "epochs", [*on, "accuracy"])
    points = similar[needed].merge(epochs[[*on, "accuracy"]], on=on)
    return points.dropna(subset=["value", "accuracy"])


def seeds(frame: pd.DataFrame, by: Sequence[str]) -> str:
    """How many seeds the groups of a frame have, in words."""
    return counted(len(values(part, "seed")) for part in groups(frame, by).values())


def counted(counts: Iterable[float], noun: str = "seed") -> str:
    """How many there are, as a range where groups differ: `n = 8-10 seeds`."""
    found = sorted({int(count) for count in counts if np.isfinite(count)}) or [0]
    span = f"{found[0]}" if len(found) == 1 else f"{found[0]}-{found[-1]}"
    return f"n = {span} {noun}" + ("" if found == [1] else "s")
