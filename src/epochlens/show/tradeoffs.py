"""The figure of trade-offs: how faithful, how stable and how sparse the maps of each method are at once."""

from __future__ import annotations

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from epochlens.show import curves, effects, frames, quality, style
from epochlens.show.frames import CONTROLS, Tables
from epochlens.show.style import Look
from epochlens.show.summary import Trade, trade_offs

MOST_NAMES = 5
SIZES = (0.2, 0.5, 0.8)


def has_trade_offs(tables: Tables) -> bool:
    """Whether both faithfulness and stability are known of any method."""
    return bool(trade_offs(tables))


def quality_tradeoffs(tables: Tables) -> Figure:
    """Faithfulness against stability at the last epoch, a panel per configuration; needs quality_summary."""
    found = trade_offs(tables)
    if not found:
        return style.blank("no method of which both faithfulness and stability are known")
    method_looks = quality.looks(tables)
    present = {trade.method for trades in found.values() for trade in trades}
    handles = effects.point_handles({name: look for name, look in method_looks.items() if name in present})
    handles += [sized(value) for value in SIZES]
    handles.append(Line2D([], [], linestyle="", marker="o", color="white", markeredgecolor="black"))
    handles[-1].set_label("ringed: not dominated")
    columns = curves.per_row(list(found))
    size = ({1: 6.0, 2: 3.6, 3: 3.0}.get(columns, 2.6), 3.4 if columns == 1 else 2.6)
    figure, axes = style.panels(len(found), columns, handles, size=size)
    every = [trade for trades in found.values() for trade in trades]
    x = style.span([[t.faithfulness[0] for t in every]], top=None, ends=[t.faithfulness for t in every])
    y = quality.limits_of(
        np.array([t.stability[0] for t in every]), [np.array(t.stability) for t in every], True
    )
    axes[0].set_xlim(*x)
    for ax, (key, trades) in zip(axes, found.items(), strict=True):
        ax.set_yscale("log")
        ax.set_ylim(*y)
        # Perfect stability, 0, has no place on a log axis, whose lower end then stands for it.
        trades = [t._replace(stability=(max(t.stability[0], y[0]), *t.stability[1:])) for t in trades]
        for trade in trades:
            exchanged(ax, trade, method_looks[trade.method])
        name_front(ax, [trade for trade in trades if trade.front])
        methods = [trade for trade in trades if trade.method not in CONTROLS]
        front = sum(trade.front for trade in methods)
        count = frames.counted(trade.n_seeds for trade in methods)
        curves.title(ax, key, f"{count}, {front} of {len(methods)} not dominated")
    stability = "relative input stability\n(log, lower is better)"
    style.label_axes(axes, columns, "faithfulness correlation (higher is better)", stability)
    return figure


def area(sparseness: float) -> float:
    """A marker's area in square points by the sparseness of maps; the smallest where that is undefined."""
    return 12.0 + 110.0 * float(np.nan_to_num(np.clip(sparseness, 0, 1)))


def sized(sparseness: float) -> Line2D:
    """A legend entry for a size."""
    handle = effects.dot("#777777", "o", f"sparseness {sparseness:g}")
    handle.set_markersize(float(np.sqrt(area(sparseness))))
    return handle


def exchanged(ax: Axes, trade: Trade, look: Look) -> None:
    """One method's faithfulness and stability with both intervals, ringed if it is on the front."""
    control = trade.method in CONTROLS
    (x, left, right), (y, low, high) = trade.faithfulness, trade.stability
    ax.hlines(y, left, right, color=look.color, linewidth=0.9, alpha=0.7)
    ax.vlines(x, low, high, color=look.color, linewidth=0.9, alpha=0.7)
    ring = {"edgecolors": "black", "linewidths": 1.3} if trade.front else {"edgecolors": "white"}
    drawn = ax.scatter(x, y, s=area(trade.sparseness), color=look.color, marker=look.marker, zorder=4)
    drawn.set(
        clip_on=False, gid=f"method:{trade.method}", alpha=1.0 if control else effects.fade(look), **ring
    )


def name_front(ax: Axes, front: list[Trade]) -> None:
    """Names beside the markers of the front, moved apart; of a longer front its ends and some between."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    width, height = np.multiply(ax.get_position().size, figure.get_size_inches())
    (left, right), (low, high) = ax.get_xlim(), np.log(ax.get_ylim())
    front = sorted(front, key=lambda trade: -trade.stability[0])
    chosen = np.unique(np.linspace(0, len(front) - 1, min(len(front), MOST_NAMES)).round().astype(int))
    front = [front[i] for i in chosen]
    names = [trade.method.replace(":", ":\n").replace(",", ",\n").split("\n") for trade in front]
    wanted = [float(np.log(trade.stability[0]) - low) / (high - low) for trade in front]
    heights = apart(wanted, [0.115 * len(lines) / height / 2 for lines in names])
    for trade, lines, y in zip(front, names, heights, strict=True):
        # No method is more faithful and more stable, so there is room at the right, up to the axis' end.
        room = width * (right - trade.faithfulness[0]) / (right - left) - 0.15
        side = 1 if max(map(len, lines)) * 0.055 < room else -1
        name = ax.annotate(
            "\n".join(lines),
            (trade.faithfulness[0], y),
            (8 * side, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="left" if side == 1 else "right",
            va="center",
            fontsize=6.5,
            zorder=3,
        )
        name.set_path_effects([patheffects.withStroke(linewidth=2, foreground="white")])


def apart(wanted: list[float], halves: list[float]) -> list[float]:
    """Heights in [0, 1], from the top down and near those wanted, that give texts of half heights room."""
    placed, free = [], 1.0
    for y, half in zip(wanted, halves, strict=True):
        placed.append(min(y, free - half))
        free = placed[-1] - half
    free = 0.0
    for i in reversed(range(len(placed))):
        placed[i] = max(placed[i], free + halves[i])
        free = placed[i] + halves[i]
    return placed
