"""Small multiples: a panel per configuration and method, means over seeds as lines, and log axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from epochlens.measure.statistics import t_interval
from epochlens.show import curves, frames, style
from epochlens.show.frames import KEYS, Tables, groups, numbers
from epochlens.show.style import Look

MOST = 32
NO_SEEDS = pd.DataFrame()


def by_method(tables: Tables, frame: pd.DataFrame, most: int = MOST) -> tuple[list[tuple], int, int]:
    """Keys of the panels (configuration and method) in order, panels per row, and how many are left out.

    A method's configurations stand side by side, methods below each other.
    """
    order = list(style.looks(tables))
    found = sorted(groups(frame, [*KEYS, "method"]), key=lambda key: (key[0], order.index(key[3]), *key[1:3]))
    rows = {(key[0], key[3]) for key in found}
    widest = max(sum((key[0], key[3]) == row for key in found) for row in rows) if rows else 1
    return found[:most], style.even(widest if widest > 1 else len(found)), max(len(found) - most, 0)


def titled(ax: Axes, key: tuple, rest: str) -> None:
    """A panel's head: the configuration, then the method and what the panel rests on."""
    style.head(ax, style.named(key[:3]), f"{key[3]}, {rest}" if rest else str(key[3]))


def say_left_out(figure: Figure, left_out: int) -> None:
    """Say above the panels how many of them there is no room for."""
    if left_out:
        style.notice(figure, f"{left_out} further panels are left out here; the tables have all")


def over_seeds(frame: pd.DataFrame | None, column: str = "value", least: int = 2) -> np.ndarray:
    """Epoch, mean over seeds and the ends of its t interval, [4, epochs]; no ends for fewer than `least`."""
    table = curves.wide(frame, column)
    if table.empty:
        return np.empty((4, 0))
    values = table.to_numpy(dtype=float)
    mean, low, high = t_interval(values, 1)
    enough = np.isfinite(values).sum(axis=1) >= least
    ends = (np.where(enough, end, np.nan) for end in (low, high))
    return np.stack([np.asarray(table.index, dtype=float), mean, *ends])


def over_seeds_log(frame: pd.DataFrame | None, column: str = "value") -> np.ndarray:
    """As over_seeds, of geometric means: the interval is that of the logarithms; 0 and less are left out."""
    if frame is None:
        return np.empty((4, 0))
    values = numbers(frame, column)
    logs = np.log(np.where(values > 0, values, np.nan))
    summary = over_seeds(frame.assign(**{column: logs}), column)
    return np.concatenate([summary[:1], np.exp(summary[1:])])


def line(ax: Axes, summary: np.ndarray, look: Look, name: str) -> None:
    """A mean with its band, without seeds."""
    if np.isfinite(summary[1]).any():
        curves.curve(ax, summary, NO_SEEDS, look, name)


def handle(look: Look, label: str) -> Line2D:
    """A legend entry for a line."""
    return Line2D([], [], color=look.color, linestyle=look.linestyle, linewidth=1.6, label=label)


def limit(axes: Sequence[Axes], summaries: Iterable[np.ndarray], top: float | None = None) -> None:
    """Set the y axis that some panels share so that it holds their means, and intervals within reason."""
    found = list(summaries)
    limits = style.span([s[1] for s in found], top=top, ends=[s[2:] for s in found])
    axes[0].set_ylim(*limits)


def limit_log(axes: Sequence[Axes], summaries: Iterable[np.ndarray]) -> None:
    """The same on a logarithmic axis."""
    found = list(summaries)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = [np.log10(s[1:]) for s in found]
    low, high = style.span([s[0] for s in logs], top=None, ends=[s[1:] for s in logs])
    for ax in axes:
        ax.set_yscale("log")
        if high - low < 1.5:
            # Powers of ten would be too few ticks.
            ax.yaxis.set_major_locator(MaxNLocator(3))
            ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylim(10**low, 10**high)


def count_of(frame: pd.DataFrame) -> str:
    """How many seeds a panel has."""
    return frames.counted([len(frames.values(frame, "seed"))])
