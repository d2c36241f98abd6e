"""Figures of attribution quality: metrics by method and by epoch, deletion and insertion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from epochlens.measure import ranking
from epochlens.measure.statistics import t_interval
from epochlens.show import cells, curves, effects, frames, nulls, style
from epochlens.show.frames import CONTROLS, KEYS, Tables, groups, keep, numbers
from epochlens.show.style import Look
from epochlens.show.summary import directions, in_order, label

BY_SEED = [*KEYS, "seed", "method", "epoch", "metric", "value", "n", "n_undefined"]
CURVES = [*KEYS, "seed", "method", "epoch", "curve", "fraction", "value"]
SIDES = {"deletion": "lower is better", "insertion": "higher is better"}
WAYS = {"higher": "right is better", "lower": "left is better"}
LINE, HEAD = 0.15, 1.3
MOST_CONFIGURATIONS = 12


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
