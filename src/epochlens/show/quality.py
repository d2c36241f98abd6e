"""Figures of attribution quality: metrics by method and by epoch, deletion and insertion, trade-offs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from epochlens.measure import ranking
from epochlens.measure.statistics import t_interval
from epochlens.show import cells, curves, effects, frames, nulls, style
from epochlens.show.frames import CONTROLS, KEYS, Tables, groups, keep, numbers
from epochlens.show.style import Look
from epochlens.show.summary import Trade, directions, in_order, label, trade_offs

BY_SEED = [*KEYS, "seed", "method", "epoch", "metric", "value", "n", "n_undefined"]
CURVES = [*KEYS, "seed", "method", "epoch", "curve", "fraction", "value"]
SIDES = {"deletion": "lower is better", "insertion": "higher is better"}
WAYS = {"higher": "right is better", "lower": "left is better"}
LINE, HEAD = 0.15, 1.3
MOST_CONFIGURATIONS, MOST_NAMES = 12, 5
SIZES = (0.2, 0.5, 0.8)


def looks(tables: Tables) -> dict[str, Look]:
    """The methods' looks of all figures, then the controls': dashed, in the colours that nulls have."""
    methods = {name: look for name, look in style.looks(tables).items() if name not in CONTROLS}
    own = zip(CONTROLS, "hd", strict=True)
    return methods | {name: Look(nulls.NULLS[name][1].color, "--", marker) for name, marker in own}


def is_measured(tables: Tables) -> bool:
    """Whether there is any quality to show."""
    return bool(np.isfinite(numbers(frames.rows(tables, "quality", BY_SEED), "value")).any())


def is_followed(tables: Tables) -> bool:
    """Whether quality was measured at two epochs or more."""
    frame = frames.rows(tables, "quality", BY_SEED)
    return len(frames.values(keep(frame, np.isfinite(numbers(frame, "value"))), "epoch")) > 1


def has_curves(tables: Tables) -> bool:
    """Whether there are deletion or insertion curves."""
    return bool(np.isfinite(numbers(frames.rows(tables, "quality_curves", CURVES), "value")).any())


def has_trade_offs(tables: Tables) -> bool:
    """Whether both faithfulness and stability are known of any method."""
    return bool(trade_offs(tables))


def quality_bars(tables: Tables) -> Figure:
    """Every metric at the last epoch, a panel each, a line per configuration and method; needs quality."""
    frame = ranking.at_last_epoch(frames.rows(tables, "quality", BY_SEED), "value")
    if frame.empty:
        return style.blank("no quality of maps was measured in this sweep")
    metrics, method_looks = in_order(frame), looks(tables)
    places, heads = listed(frame, method_looks)
    wide = max(len(method) for _, method in places)
    height = LINE * (len(places) + HEAD * len(heads) + 0.4)
    # Long lists stand side by side once, short ones in rows of up to five panels.
    lines = 1 if height > 8 else -(-len(metrics) // 5)
    columns = -(-len(metrics) // lines)
    size = ({1: 4.3, 2: 3.1, 3: 2.5, 4: 2.0, 5: 1.7}.get(columns, 1.35), height)
    left = max(0.065 * wide, 0.9) + 0.15
    figure, axes = style.panels(len(metrics), columns, size=size, left=left, share_x=False)
    by_metric, ways = groups(frame, ["metric"]), directions(tables)
    for i, (ax, metric) in enumerate(zip(axes, metrics, strict=True)):
        part = by_metric[metric,]
        measured(ax, groups(part, [*KEYS, "method"]), places, method_looks, numbers(part, "value"))
        style.head(ax, label(metric), ", ".join(filter(None, [WAYS.get(ways.get(metric, "")), lost(part)])))
        ax.set_yticks(list(places.values()), [method for _, method in places])
        ax.set_ylim(min(places.values()) - 0.8, -0.4)
        ax.tick_params(axis="y", length=0, labelleft=i % columns == 0)
        ax.tick_params(labelbottom=True)
        ax.grid(False, axis="y")
        for text, y in heads.items():
            if i % columns == 0:
                headline(ax, text, y, left)
    return figure


def listed(frame: pd.DataFrame, method_looks: dict[str, Look]) -> tuple[dict[tuple, float], dict[str, float]]:
    """Height of each configuration's methods in a list, from 0 downwards, and of the headlines above them."""
    places, heads, y = {}, {}, 0.0
    for key, part in groups(frame).items():
        y -= HEAD
        epoch = numbers(part, "epoch").max()
        heads[f"{style.named(key)}, epoch {epoch:g}, {frames.seeds(part, KEYS)}"] = y
        present = frames.values(part, "method")
        for method in [name for name in method_looks if name in present]:
            y -= 1.0
            places[key, method] = y
    return places, heads


def headline(ax: Axes, text: str, y: float, left: float) -> None:
    """A line over a configuration's methods that starts at the figure's left edge, `left` inches away."""
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
    ax.annotate(
        text,
        (0, y),
        (6 - left * 72, 0),
        fontsize=style.SMALL,
        fontweight="bold",
        va="center",
        zorder=5,
        bbox=box,
        **place,
    )


def lost(part: pd.DataFrame) -> str:
    """How many of the values of some rows are undefined, if any are."""
    undefined = numbers(part, "n_undefined").sum()
    return f"{undefined:g} of {numbers(part, 'n').sum():g} undefined" if undefined else ""


def measured(
    ax: Axes,
    by_method: dict[tuple, pd.DataFrame],
    places: dict[tuple, float],
    method_looks: dict[str, Look],
    values: np.ndarray,
) -> None:
    """One metric of every method in its place: seeds, mean and interval, on a log axis without bars."""
    logarithmic = spans_decades(values)
    drawn: dict[float, tuple[np.ndarray, Look]] = {}
    for (key, method), y in places.items():
        part, look = by_method.get((*key, method)), method_looks[method]
        if part is None or not np.isfinite(numbers(part, "value")).any():
            ax.text(0.5, y, "undefined", transform=ax.get_yaxis_transform(), ha="center", va="center")
            ax.texts[-1].set(fontsize=6, color="#777777", fontstyle="italic")
            continue
        ends = effects.bar(ax, numbers(part, "value"), y, look, 0 if logarithmic else 0.66)
        ends[0] = np.fmin(ends[0], np.nanmean(numbers(part, "value")))
        ax.lines[-1].set_gid(f"mean:{method}")
        drawn[y] = (ends, look)
    limits = limits_of(values, [ends for ends, _ in drawn.values()], logarithmic)
    if logarithmic:
        ax.set_xscale("log")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_xlim(*limits)
    for y, (ends, look) in drawn.items():
        for limit, marker, past in zip(limits, "<>", (ends[0] < limits[0], ends[1] > limits[1]), strict=True):
            if past:
                ax.plot(limit, y, marker=marker, markersize=3.5, color=look.color, clip_on=False, gid="past")


def spans_decades(values: np.ndarray) -> bool:
    """Whether no value is negative and those above zero are more than two decades apart."""
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    return positive.size > 0 and finite.min() >= 0 and positive.max() / positive.min() > 100


def limits_of(values: np.ndarray, ends: list[np.ndarray], logarithmic: bool) -> tuple[float, float]:
    """Axis limits that hold all values, and zero where bars start there, and intervals within reason."""
    if not logarithmic:
        low, high = style.span([values, [0.0]], top=None, ends=ends)
        finite = style.finite_of([values, *ends])
        return (0.0 if finite.size and finite.min() >= 0 else low), high
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = style.span([np.log10(values)], top=None, ends=[np.log10(end) for end in ends])
    return 10**low, 10**high


def quality_vs_epoch(tables: Tables) -> Figure:
    """Every metric over epochs, below each other, a panel per configuration; needs quality."""
    frame = frames.rows(tables, "quality", BY_SEED)
    if not is_followed(tables):
        return style.blank("quality of maps was measured at no more than one epoch in this sweep")
    metrics = [name for (name,) in groups(keep(frame, np.isfinite(numbers(frame, "value"))), ["metric"])]
    metrics = [name for name in in_order(frame) if name in metrics]
    by_panel, method_looks = groups(frame), looks(tables)
    columns = curves.per_row(list(by_panel))
    size = ({1: 6.0, 2: 3.6, 3: 2.8}.get(columns, 2.4), 1.05 * len(metrics))
    handles = curves.line_handles(method_looks, frame)
    figure, axes = style.panels(len(by_panel), columns, handles, size=size, left=0.95)
    banded = len(handles) <= style.MOST_BANDS
    for metric, row in zip(metrics, style.stacked(figure, axes, columns, [1.0] * len(metrics)), strict=True):
        rows = keep(frame, frame["metric"] == metric)
        lines = {
            key: cells.over_seeds(part, least=2 if banded else len(part) + 1)
            for key, part in groups(rows, [*KEYS, "method"]).items()
        }
        logarithmic = spans_decades(numbers(rows, "value"))
        (cells.limit_log if logarithmic else cells.limit)(row, lines.values())
        for ax, key in zip(row, by_panel, strict=True):
            for method in [name for name in method_looks if (*key, name) in lines]:
                summary = lines[*key, method]
                # Zero and less have no place on a log axis, whose lower end then stands for them.
                summary[1:3] = np.maximum(summary[1:3], row[0].get_ylim()[0] if logarithmic else -np.inf)
                cells.line(ax, summary, method_looks[method], f"{metric}:{method}")
        style.label_axes(row, columns, "epoch" if metric == metrics[-1] else "", two_lines(label(metric)))
    for ax, (key, part) in zip(axes, by_panel.items(), strict=True):
        curves.title(ax, key, cells.count_of(part))
    style.epoch_axis(axes, numbers(frame, "epoch"))
    return figure


def two_lines(text: str) -> str:
    """A text broken once, where its longer line is shortest."""
    breaks = [text[:i] + "\n" + text[i + 1 :] for i, letter in enumerate(text) if letter == " "]
    return min(breaks, key=lambda broken: max(map(len, broken.split("\n"))), default=text)


def deletion_insertion(tables: Tables) -> Figure:
    """Both curves of every method at the last epoch, two panels per configuration; needs quality_curves."""
    frame = ranking.at_last_epoch(frames.rows(tables, "quality_curves", CURVES), "value")
    if frame.empty:
        return style.blank("no deletion or insertion curves in this sweep")
    method_looks, by_panel = looks(tables), groups(frame)
    shown = dict(list(by_panel.items())[:MOST_CONFIGURATIONS])
    most = max(len(frames.values(part, "method")) for part in shown.values())
    names = [str(name) for name in frames.values(frame, "method")]
    side = (max(map(len, names)) + 12) * style.INCHES_PER_CHARACTER * 0.9 + 0.5
    size = (2.9, max(2.0, 0.155 * (most + 2)))
    figure, axes = style.panels(2 * len(shown), 2, size=size, side=side)
    drawn = []
    for i, (key, part) in enumerate(shown.items()):
        areas: dict[str, dict[str, float]] = {}
        by_curve = groups(part, ["curve", "method"])
        for ax, (side_name, better) in zip(axes[2 * i : 2 * i + 2], SIDES.items(), strict=True):
            for method, look in method_looks.items():
                if (side_name, method) in by_curve:
                    summary = over_fractions(by_curve[side_name, method])
                    drawn.append(summary)
                    cells.line(ax, summary, look, f"{side_name}:{method}")
                    areas.setdefault(method, {})[side_name] = area_under(summary)
            epoch, count = numbers(part, "epoch").max(), cells.count_of(part)
            style.head(ax, style.named(key), f"{side_name} ({better}), epoch {epoch:g}, {count}")
        named_areas(axes[2 * i + 1], areas, method_looks)
    axes[0].set_xlim(-0.04, 1.04)
    cells.limit(axes, drawn)
    style.label_axes(axes, 2, "fraction of pixels removed or inserted", "softmax probability\nof the target")
    cells.say_left_out(figure, 2 * (len(by_panel) - len(shown)))
    return figure


def over_fractions(frame: pd.DataFrame) -> np.ndarray:
    """Fraction of pixels, mean over seeds and the ends of its t interval, [4, fractions]."""
    table = frames.pivot(frame, "fraction", "seed")
    return np.stack([np.asarray(table.index, dtype=float), *t_interval(table.to_numpy(dtype=float), 1)])


def area_under(summary: np.ndarray) -> float:
    """Area under a mean curve by the trapezoid rule."""
    x, y = summary[:2]
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())


def named_areas(ax: Axes, areas: dict[str, dict[str, float]], method_looks: dict[str, Look]) -> None:
    """The legend at the right of a pair of panels, with the areas under both mean curves."""
    handles = [
        cells.handle(
            method_looks[name],
            "  ".join(f"{found[side]:.3f}" if side in found else "  –  " for side in SIDES) + f"  {name}",
        )
        for name, found in areas.items()
    ]
    title = "area: deletion, insertion"
    legend = ax.legend(handles=handles, title=title, loc="upper left", bbox_to_anchor=(1.02, 1.06))
    legend.set_frame_on(False)
    legend.get_title().set_fontsize(style.SMALL)
    legend.set_alignment("left")
    for text in legend.get_texts():
        text.set_fontsize(style.SMALL)


def quality_tradeoffs(tables: Tables) -> Figure:
    """Faithfulness against stability at the last epoch, a panel per configuration; needs quality_summary."""
    found = trade_offs(tables)
    if not found:
        return style.blank("no method of which both faithfulness and stability are known")
    method_looks = looks(tables)
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
    y = limits_of(np.array([t.stability[0] for t in every]), [np.array(t.stability) for t in every], True)
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
