"""Figures that compare configurations: what dataset, model, learning rate and method change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from epochlens.measure.statistics import t_interval
from epochlens.measure.survival import median_or_bound
from epochlens.show import frames, style
from epochlens.show.frames import KEYS, Tables, groups, keep, numbers
from epochlens.show.style import Look

NOUNS = {"dataset": "dataset", "model": "model", "learning_rate": "learning rate"}


def effect(tables: Tables, factor: str) -> Figure:
    """Mean cosine to the previous epoch of every run, by the levels of one factor, paired by seed.

    Needs stability_by_seed; a panel per combination of the other two factors, a colour per method.
    """
    runs = run_means(tables)
    levels = frames.values(runs, factor)
    noun = NOUNS[factor]
    if len(levels) == 0:
        return style.blank("no defined similarity to the previous epoch in this sweep")
    if len(levels) == 1:
        return style.blank(f"only one {noun} in this sweep: {style.level(factor, levels[0])}")
    method_looks = looks_of(tables, runs)
    others = [column for column in KEYS if column != factor]
    by_panel = groups(runs, others)
    names = [style.level(factor, level) for level in levels]
    columns = style.even(len(by_panel))
    # Wide enough for the names of all levels and the points of all methods; fewer panels in a row then.
    letters, points = max(map(len, names)) * 0.062 + 0.15, 0.13 * len(method_looks)
    room = min(max(len(levels) * max(letters, points), {1: 4.3, 2: 3.1}.get(columns, 2.15)), 8)
    columns = int(np.clip(10.5 // room, 1, columns))
    figure, axes = style.panels(len(by_panel), columns, point_handles(method_looks), size=(room, 2.2))
    slots = slots_of(len(method_looks))
    ends: list[np.ndarray] = []
    for ax, (key, part) in zip(axes, by_panel.items(), strict=True):
        for slot, (method, look) in zip(slots, method_looks.items(), strict=True):
            pairs = frames.pivot(keep(part, part["method"] == method), "seed", factor).reindex(columns=levels)
            ends.append(paired(ax, pairs.to_numpy(dtype=float), slot, look, method))
        head = " · ".join(style.level(*pair) for pair in zip(others, key, strict=True))
        style.head(ax, head, frames.seeds(part, ["method", factor]))
    axes[0].set_xticks(range(len(levels)), names)
    axes[0].set_xlim(-0.5, len(levels) - 0.5)
    for ax in axes:
        ax.grid(False, axis="x")
        ax.tick_params(axis="x", length=0)
    limits = style.span([runs["value"]], top=None, ends=ends)
    axes[0].set_ylim(*limits)
    style.cut(axes[0], ends, limits)
    style.label_axes(axes, columns, noun, "cosine similarity to the\nprevious epoch, mean over epochs")
    return figure


def run_means(tables: Tables) -> pd.DataFrame:
    """Mean over epochs of the cosine to the previous epoch: a row per configuration, seed and method."""
    needed = [*KEYS, "seed", "method", "epoch", "value"]
    frame = frames.rows(tables, "stability_by_seed", needed, metric="cosine", reference="previous")
    frame = keep(frame, np.isfinite(numbers(frame, "value")))
    means: Any = frame.groupby([*KEYS, "seed", "method"])["value"].mean()
    return means.reset_index()


def paired(ax: Axes, pairs: np.ndarray, slot: float, look: Look, method: str) -> np.ndarray:
    """Seeds joined across levels, and the mean of each level with its interval, whose ends are returned.

    `pairs` is [seeds, levels].
    """
    x = np.arange(pairs.shape[1]) + slot
    lines = [np.column_stack([x, row]) for row in pairs]
    ax.add_collection(LineCollection(lines, colors=look.color, linewidths=0.5, alpha=0.3), autolim=False)
    ax.scatter(np.broadcast_to(x, pairs.shape), pairs, s=7, color=look.color, alpha=0.4, linewidths=0)
    mean, low, high = t_interval(pairs)
    whiskers(ax, x, mean, (low, high), look, f"mean:{method}", across=False)
    return np.stack([low, high])


def whiskers(
    ax: Axes,
    x: np.ndarray,
    y: np.ndarray,
    ends: tuple[np.ndarray, np.ndarray],
    look: Look,
    name: str,
    across: bool,
) -> None:
    """Means as outlined markers with a line from the lower to the upper end of their interval."""
    draw = ax.hlines if across else ax.vlines
    draw(y if across else x, ends[0], ends[1], color=look.color, linewidth=1.6, zorder=3)
    ax.plot(
        x,
        y,
        linestyle="",
        marker=look.marker,
        markersize=5,
        color=look.color,
        markeredgecolor="white",
        markeredgewidth=0.6,
        zorder=4,
        gid=name,
    )


def variance_bars(tables: Tables) -> Figure:
    """Temporal variance of the maps per configuration and method, raw and normalised; needs variance."""
    frame = frames.rows(tables, "variance", [*KEYS, "seed", "method", "raw", "normalised"])
    if not np.isfinite(np.r_[numbers(frame, "raw"), numbers(frame, "normalised")]).any():
        return style.blank("no temporal variance in this sweep")
    figure, axes, keys, method_looks = listing(tables, frame, 2)
    by_part = groups(frame, [*KEYS, "method"])
    positive = numbers(frame, "raw")
    positive = positive[positive > 0]
    logarithmic = positive.size > 0 and float(positive.max() / positive.min()) > 100
    for ax, column in zip(axes, ("raw", "normalised"), strict=True):
        bars = not (logarithmic and column == "raw")
        ax.set_xscale("linear" if bars else "log")
        ends: list[np.ndarray] = []
        for key, method, y, look in places(keys, method_looks):
            part = by_part.get((*key, method))
            if part is not None:
                height = 0.66 / len(method_looks) if bars else 0
                ends.append(bar(ax, numbers(part, column), y, look, height))
                ax.lines[-1].set_gid(f"mean:{method}")
        # Bars start at zero; a logarithmic axis has no place for an interval that reaches it.
        low, high = style.span([numbers(frame, column)], top=None, ends=ends)
        low = 0.0 if bars else float(positive.min()) / 1.6
        ax.set_xlim(low, high)
        style.cut(ax, ends, (low, high))
        if bars:
            ax.ticklabel_format(axis="x", style="sci", scilimits=(-2, 4))
            ax.xaxis.get_offset_text().set_fontsize(style.SMALL)
        ax.set_xlabel("temporal variance" + ("" if bars else " (log axis)"), fontsize=style.TEXT)
        head = {"raw": "raw maps", "normalised": "maps scaled to unit norm"}[column]
        style.head(ax, head, frames.seeds(frame, [*KEYS, "method"]))
    return figure


def bar(ax: Axes, values: np.ndarray, y: float, look: Look, height: float) -> np.ndarray:
    """One mean with interval and seeds, and a bar from zero if it has a height; returns its ends."""
    mean, low, high = t_interval(values)
    if height:
        ax.barh(y, mean, height=height, color=look.color, alpha=0.35, linewidth=0)
    around = y + scatter_offsets(len(values)) * 0.5 * (height or 0.3)
    ax.scatter(values, around, s=5, color=look.color, alpha=0.55, linewidths=0)
    ends = (np.atleast_1d(low), np.atleast_1d(high))
    whiskers(ax, np.atleast_1d(mean), np.atleast_1d(y), ends, look, "", across=True)
    return np.stack([low, high])


def settling(tables: Tables) -> Figure:
    """Settling epoch of maps and of accuracy per configuration and method; needs stabilisation."""
    needed = [*KEYS, "seed", "method", "metric", "epoch", "censored", "accuracy_epoch"]
    frame, metric = frames.one_metric(frames.rows(tables, "stabilisation", needed))
    both = np.r_[numbers(frame, "epoch"), numbers(frame, "accuracy_epoch")]
    if not np.isfinite(both).any():
        return style.blank("no settling epochs in this sweep")
    last = float(np.nanmax(both))
    marks: dict[str, Any] = {"linestyle": "", "fillstyle": "none"}
    extra = [
        Line2D([], [], color=style.ACCURACY, marker="|", markersize=9, label="accuracy settled", **marks),
        Line2D([], [], color="#555555", marker=">", label="not before the end", **marks),
    ]
    figure, (ax,), keys, method_looks = listing(tables, frame, 1, extra)
    by_part = groups(frame, [*KEYS, "method"])
    for key, method, y, look in places(keys, method_looks):
        part = by_part.get((*key, method))
        if part is not None:
            settled(ax, part, y, look, last, 0.7 / len(method_looks))
            ax.lines[-1].set_gid(f"median:{method}")
    for i, part in enumerate(groups(frame).values()):
        accuracy_bar(ax, part.drop_duplicates("seed"), -i, last)
    pad = max(0.04 * last, 0.3)
    ax.set_xlim(-pad, last + 2 * pad)
    ticks = MaxNLocator(nbins=8, integer=True).tick_values(0, last)
    ax.set_xticks([tick for tick in ticks if 0 <= tick <= last])
    ax.set_xlabel("epoch", fontsize=style.TEXT)
    counts = frames.seeds(frame, [*KEYS, "method"])
    style.head(ax, f"settling epoch ({metric} to the final maps)", f"median and seeds, {counts}")
    return figure


def accuracy_bar(ax: Axes, part: pd.DataFrame, y: float, last: float) -> None:
    """The median epoch at which accuracy settled; dotted with an arrow where it is only a lower bound."""
    accuracy = numbers(part, "accuracy_epoch")
    censored = numbers(part, "accuracy_censored") > 0 if "accuracy_censored" in part else accuracy < 0
    if not np.isfinite(accuracy).any():
        return
    middle, bound = median_or_bound(accuracy, ~censored)
    dash = (0, (1, 1.5)) if bound else "solid"
    drawn = ax.vlines(middle, y - 0.4, y + 0.4, color=style.ACCURACY, linestyle=dash, linewidth=1.4, zorder=3)
    drawn.set_gid("accuracy:bound" if bound else "accuracy:median")
    if bound:
        arrow_after(ax, middle, y + 0.35, last, style.ACCURACY)


def arrow_after(ax: Axes, x: float, y: float, last: float, color: str) -> None:
    """An arrow that says: not before here."""
    arrow = {"arrowstyle": "->", "color": color, "linewidth": 1.0, "shrinkA": 4, "shrinkB": 0}
    ax.annotate("", (x + 0.05 * last, y), (x, y), arrowprops=arrow, annotation_clip=False)


def settled(ax: Axes, part: pd.DataFrame, y: float, look: Look, last: float, height: float) -> None:
    """One method's seeds and median: filled where it settled, open with an arrow where it did not."""
    censored = numbers(part, "censored") > 0
    epochs = numbers(part, "epoch")
    epochs = np.where(censored & np.isnan(epochs), last, epochs)
    around = y + scatter_offsets(len(part)) * 0.32 * height
    ax.scatter(epochs[~censored], around[~censored], s=7, color=look.color, alpha=0.45, linewidths=0)
    open_marks = {"facecolors": "none", "edgecolors": look.color, "linewidths": 0.6}
    ax.scatter(epochs[censored], around[censored], s=9, marker=">", **open_marks)
    middle, bound = median_or_bound(epochs, ~censored)
    fill = "white" if bound else look.color
    ax.plot(middle, y, marker=look.marker, markersize=6, color=look.color, markerfacecolor=fill, zorder=4)
    if bound:
        arrow_after(ax, middle, y, last, look.color)


def final_points(tables: Tables) -> Figure:
    """Accuracy against cosine of the last two epochs, a point per run; needs epochs and stability_by_seed."""
    points = frames.with_accuracy(tables)
    epochs = frames.rows(tables, "epochs", [*KEYS, "seed", "epoch"])
    last = {key: numbers(part, "epoch").max() for key, part in groups(epochs, [*KEYS, "seed"]).items()}
    runs = points[[*KEYS, "seed"]].itertuples(index=False, name=None)
    points = keep(points, numbers(points, "epoch") == [last[run] for run in runs])
    if points.empty:
        return style.blank("no run with both a final accuracy and a defined final similarity")
    method_looks = looks_of(tables, points)
    kinds = list(groups(points, KEYS[1:]))
    markers = {kind: style.MARKERS[i % len(style.MARKERS)] for i, kind in enumerate(kinds)}
    handles = [dot(look.color, "s", name, fade(look)) for name, look in method_looks.items()]
    handles += [
        dot("#555555", m, f"{model} · {style.level(KEYS[2], lr)}") for (model, lr), m in markers.items()
    ]
    by_panel = groups(points, ["dataset"])
    columns = style.even(len(by_panel))
    figure, axes = style.panels(len(by_panel), columns, handles)
    for ax, ((dataset,), part) in zip(axes, by_panel.items(), strict=True):
        for (method, model, lr), group in groups(part, ["method", *KEYS[1:]]).items():
            look = method_looks[method]
            x, y, mark = numbers(group, "accuracy"), numbers(group, "value"), markers[model, lr]
            drawn = ax.scatter(x, y, s=22, marker=mark, linewidths=0)
            drawn.set(color=look.color, alpha=fade(look) * 0.75, gid=f"runs:{method}")
        style.head(ax, str(dataset), frames.counted([len(groups(part, [*KEYS, "seed"]))], "run"))
    axes[0].set_ylim(*style.span([points["value"]], top=None))
    axes[0].set_xlim(*style.span([points["accuracy"]], top=None))
    style.label_axes(axes, columns, "final accuracy (fraction)", "cosine similarity of the last\ntwo epochs")
    return figure


def looks_of(tables: Tables, frame: pd.DataFrame) -> dict[str, Look]:
    """The looks of the methods that a frame holds."""
    present = frames.values(frame, "method")
    return {name: look for name, look in style.looks(tables).items() if name in present}


def dot(color: str, marker: str, label: str, alpha: float = 1.0) -> Line2D:
    """A legend entry without a line."""
    return Line2D(
        [],
        [],
        color=color,
        marker=marker,
        alpha=alpha,
        label=label,
        linestyle="",
        markeredgewidth=0,
        markersize=5,
    )


def fade(look: Look) -> float:
    """Methods that share a colour differ by dash as lines and by lightness as points."""
    return {"-": 1.0, "--": 0.55}.get(look.linestyle, 0.3)


def slots_of(count: int) -> np.ndarray:
    """Offsets that set `count` methods side by side around a tick."""
    return (np.arange(count) - (count - 1) / 2) * 0.66 / max(count, 1)


def scatter_offsets(count: int) -> np.ndarray:
    """Offsets in [-1, 1] that keep a few points apart, the same every time."""
    return np.linspace(-1, 1, count) if count > 1 else np.zeros(count)


def point_handles(method_looks: dict[str, Look]) -> list[Line2D]:
    """Legend entries for figures that draw methods as points."""
    return [dot(look.color, look.marker, name) for name, look in method_looks.items()]


def listing(
    tables: Tables, frame: pd.DataFrame, columns: int, extra: Sequence[Line2D] = (), side: float = 0.0
) -> tuple[Figure, list[Axes], list[tuple], dict[str, Look]]:
    """Panels whose y axis lists the configurations, with room for every method in each line."""
    method_looks = looks_of(tables, frame)
    keys = list(groups(frame))
    names = [f"{key[0]} · {key[1]}\nlr {style.rate(key[2])}" for key in keys]
    widest = max(len(line) for name in names for line in name.split("\n"))
    height = len(keys) * max(0.4, 0.14 + 0.13 * len(method_looks))
    figure, axes = style.panels(
        columns,
        columns,
        [*point_handles(method_looks), *extra],
        size=(5.2 if columns == 1 else 2.9, max(height, 0.8)),
        left=widest * style.INCHES_PER_CHARACTER * 0.9 + 0.2,
        side=side,
        share_x=False,
    )
    axes[0].set_yticks([-i for i in range(len(keys))], names)
    axes[0].set_ylim(-len(keys) + 0.5, 0.5)
    for ax in axes:
        ax.grid(False, axis="y")
        ax.tick_params(axis="y", length=0)
        for i in range(1, len(keys)):
            ax.axhline(0.5 - i, color="#e0e0e0", linewidth=0.5)
    return figure, axes, keys, method_looks


def places(keys: Sequence[tuple], method_looks: dict[str, Look]) -> list[tuple[tuple, str, float, Look]]:
    """Configuration, method, y position and look of every line of a listing, from top to bottom."""
    slots = slots_of(len(method_looks))
    return [
        (key, method, -i - slot, look)
        for i, key in enumerate(keys)
        for slot, (method, look) in zip(slots, method_looks.items(), strict=True)
    ]
