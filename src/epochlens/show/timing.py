"""Figures of when maps settle: the share not settled yet, and the lag behind accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from epochlens.measure.survival import kaplan_meier
from epochlens.show import cells, curves, effects, frames, style
from epochlens.show.frames import KEYS, Tables, groups, keep, numbers
from epochlens.show.lags import CALIBRATED, RAW, Lag, lags
from epochlens.show.style import Look

IMAGES = [*KEYS, "seed", "method", "sample", "epoch", "censored"]
SUMMARY = [*KEYS, "method", "median", "ci_low", "ci_high"]
CHOICE = {"metric": RAW, "reference": "final"}


def survival(tables: Tables) -> Figure:
    """Share of images whose maps have not settled yet, a panel per configuration, a colour per method.

    Needs settling_images; settling_summary gives the medians and their intervals, stabilisation the epochs at
    which accuracy settled.
    """
    frame = frames.rows(tables, "settling_images", IMAGES, **CHOICE)
    frame = keep(frame, np.isfinite(numbers(frame, "epoch")))
    if frame.empty:
        return style.blank("no settling epochs of images in this sweep")
    medians = groups(frames.rows(tables, "settling_summary", SUMMARY, **CHOICE), [*KEYS, "method"])
    accuracy, by_panel = accuracy_epochs(tables), groups(frame)
    method_looks, last = style.looks(tables), float(numbers(frame, "epoch").max())
    columns = curves.per_row(list(by_panel))
    handles = curves.line_handles(method_looks, frame)
    handles += [
        Line2D([], [], color=style.ACCURACY, linewidth=0.9, label="accuracy (share of seeds)"),
        Line2D([], [], color="#555555", linestyle="", marker="|", markersize=8, label="censored images"),
    ]
    figure, axes = style.panels(len(by_panel), columns, handles)
    most = 1
    for ax, (key, part) in zip(axes, by_panel.items(), strict=True):
        ax.axhline(0.5, color=style.GREY, linewidth=0.7, linestyle=(0, (1, 2)))
        if key in accuracy:
            steps(ax, accuracy[key], Look(style.ACCURACY, "-", "o"), "accuracy", last, 0.9)
        methods = groups(part, ["method"])
        heights = 0.5 + 0.05 * (np.arange(len(methods)) - (len(methods) - 1) / 2)
        for ((method,), rows), height in zip(methods.items(), heights[::-1], strict=True):
            steps(ax, rows, method_looks[method], f"share:{method}", last, 1.4)
            if (*key, method) in medians:
                median(
                    ax, medians[*key, method].iloc[0].to_dict(), height, method_looks[method], last, method
                )
        note_censored(ax, methods, method_looks)
        most = max(most, min(len(methods), 3))
        curves.title(ax, key, f"{cells.count_of(part)}, {images_of(part)}")
    # The notes stand above the curves.
    axes[0].set_ylim(-0.03, 1.06 + 0.075 * most)
    axes[0].set_yticks(np.linspace(0, 1, 6))
    style.epoch_axis(axes, np.array([0.0, last]))
    style.label_axes(axes, columns, "epoch", "share not settled yet")
    return figure


def accuracy_epochs(tables: Tables) -> dict[tuple, pd.DataFrame]:
    """The epoch at which each seed's accuracy settled, and whether it is censored, by configuration."""
    needed = [*KEYS, "seed", "accuracy_epoch"]
    frame = frames.rows(tables, "stabilisation", needed)
    frame = keep(frame, np.isfinite(numbers(frame, "accuracy_epoch"))).drop_duplicates([*KEYS, "seed"])
    late = numbers(frame, "accuracy_censored") > 0 if "accuracy_censored" in frame else False
    return groups(frame.assign(epoch=frame["accuracy_epoch"], censored=late))


def steps(ax: Axes, rows: pd.DataFrame, look: Look, name: str, last: float, width: float) -> None:
    """A Kaplan-Meier curve from 1 at epoch 0 on, with a tick wherever some are censored."""
    epochs, late = numbers(rows, "epoch"), numbers(rows, "censored") > 0
    times, share, _ = kaplan_meier(epochs, ~late)
    x, y = np.r_[0.0, times, last], np.r_[1.0, share, share[-1]]
    style_of: dict[str, Any] = {
        "color": look.color,
        "linestyle": look.linestyle,
        "linewidth": width,
        "gid": name,
    }
    ax.plot(x, y, drawstyle="steps-post", **style_of)
    open_at = np.isin(times, epochs[late])
    marks: dict[str, Any] = {
        "linestyle": "",
        "marker": "|",
        "markersize": 8,
        "color": look.color,
        "clip_on": False,
    }
    ax.plot(times[open_at], share[open_at], gid=f"censored:{name}", **marks)


def median(ax: Axes, row: dict, height: float, look: Look, last: float, method: str) -> None:
    """A median with its interval near one half, an arrow where the interval has no end."""
    middle, low, high = (float(row[column]) for column in ("median", "ci_low", "ci_high"))
    if np.isfinite(low):
        end = min(high, last) if np.isfinite(high) else last
        ax.hlines(height, low, end, color=look.color, linewidth=2.2, alpha=0.55)
        if not np.isfinite(high):
            ax.plot(end, height, marker=">", markersize=5, color=look.color, clip_on=False)
    if np.isfinite(middle):
        mark: dict[str, Any] = {
            "marker": look.marker,
            "markersize": 5.5,
            "color": look.color,
            "markeredgecolor": "white",
        }
        ax.plot(middle, height, gid=f"median:{method}", zorder=4, **mark)


def note_censored(ax: Axes, methods: dict[tuple, pd.DataFrame], method_looks: dict[str, Look]) -> None:
    """How many images had not settled, a coloured line per method or, for many methods, in one."""
    counts = {method: (numbers(rows, "censored") > 0).sum() for (method,), rows in methods.items()}
    total = {method: len(rows) for (method,), rows in methods.items()}
    texts = [(f"{counts[m]} of {total[m]} censored", method_looks[m].color) for m in counts]
    if len(texts) > 3:
        texts = [(f"{sum(counts.values())} of {sum(total.values())} censored", "#555555")]
    for i, (text, color) in enumerate(texts):
        place: dict[str, Any] = {
            "xycoords": "axes fraction",
            "textcoords": "offset points",
            "ha": "right",
            "va": "top",
        }
        ax.annotate(text, (0.99, 0.99), (0, -8 * i), fontsize=6, color=color, **place)


def images_of(frame: pd.DataFrame) -> str:
    """How many images each seed has."""
    counts = {len(frames.values(rows, "sample")) for rows in groups(frame, ["seed", "method"]).values()}
    return f"{frames.counted(counts, 'image').removeprefix('n = ')} each"


def lag(tables: Tables) -> Figure:
    """Epochs by which maps settle after accuracy, per configuration and method; needs settling_summary.

    A panel for the raw cosine and, where it was measured, one for the calibrated.
    """
    scales = {metric: known_lags(tables, metric) for metric in (RAW, CALIBRATED)}
    scales = {metric: found for metric, found in scales.items() if found}
    reached = [x for found in scales.values() for one in found.values() for x in one[2:6] if np.isfinite(x)]
    if not reached:
        return style.blank("no lag between maps and accuracy is known in this sweep")
    every = sorted({key for found in scales.values() for key in found})
    frame = pd.DataFrame([(*key, 0) for key in every], columns=pd.Index([*KEYS, "method", "seed"]))
    mark: dict[str, Any] = {"color": "#555555", "linestyle": ""}
    extra = [
        Line2D([], [], marker=">", markersize=4, label="no bound", **mark),
        Line2D([], [], marker="d", markerfacecolor="white", label="mean, not median", **mark),
    ]
    figure, axes, keys, method_looks = effects.listing(tables, frame, len(scales), extra, side=1.15)
    limits = lag_limits(reached)
    rows = [place for place in effects.places(keys, method_looks) if (*place[0], place[1]) in every]
    for ax, found in zip(axes, scales.values(), strict=True):
        ax.axvline(0, color="#444444", linewidth=0.9)
        for key, method, y, look in rows:
            if (*key, method) in found:
                lag_row(ax, found[*key, method], y, look, limits, method)
        ax.set_xlim(*limits)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        ax.set_xlabel("epochs by which maps settle after accuracy", fontsize=style.TEXT)
    for key, method, y, _ in rows:
        note_seeds(axes[-1], y, [found[*key, method] for found in scales.values() if (*key, method) in found])
    names = {RAW: "raw cosine", CALIBRATED: "calibrated cosine"}
    for ax, metric in zip(axes, scales, strict=True):
        style.head(ax, names[metric], "left of 0: maps first · right: accuracy first")
    return figure


def known_lags(tables: Tables, metric: str) -> dict[tuple, Lag]:
    """The lags of which anything is known."""
    return {key: one for key, one in lags(tables, metric).items() if one.n and not np.isnan(one.first)}


def lag_limits(reached: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis that holds all lags and 0."""
    lowest, highest = min(0.0, *reached), max(0.0, *reached)
    pad = max(0.09 * (highest - lowest), 0.04 * max(1.0, *np.abs(reached)))
    return lowest - pad, highest + pad


def note_seeds(ax: Axes, y: float, found: Sequence[Lag]) -> None:
    """How many seeds a line rests on, and how many of them are censored: on each scale where they differ."""
    seeds, late = (
        list(dict.fromkeys(counts)) for counts in ([f.n for f in found], [f.censored for f in found])
    )
    told = f"n = {'/'.join(map(str, seeds))}"
    told += f", {'/'.join(map(str, late))} censored" if any(late) else ""
    ax.text(1.03, y, told, va="center", fontsize=6.5, color="#444444", transform=ax.get_yaxis_transform())


def lag_row(ax: Axes, one: Lag, y: float, look: Look, limits: tuple[float, float], method: str) -> None:
    """One lag: its interval, arrows where that has no bound, and its middle, a bar where it is not known."""
    low, high = (np.clip(np.nan_to_num(end, nan=one.first), *limits) for end in (one.low, one.high))
    first, last = np.clip([one.first, one.last], *limits)
    dash = (0, (2, 1.2)) if one.is_mean else "solid"
    width = 1.3 if np.isfinite([one.low, one.high]).any() else 0.7
    ax.hlines(
        y, min(low, first), max(high, last), color=look.color, linewidth=width, linestyle=dash, zorder=3
    )
    for end, marker in ((one.low, "<"), (one.high, ">")):
        if np.isinf(end):
            ax.plot(
                np.clip(end, *limits),
                y,
                marker=marker,
                markersize=5,
                color=look.color,
                clip_on=False,
                zorder=4,
            )
    if one.exact:
        face = "white" if one.is_mean else look.color
        mark: dict[str, Any] = {
            "marker": "d" if one.is_mean else look.marker,
            "markerfacecolor": face,
            "color": look.color,
        }
        ax.plot(one.first, y, markersize=6, zorder=5, gid=f"lag:{method}", **mark)
    else:
        ax.hlines(y, first, last, color=look.color, linewidth=4.5, alpha=0.4, zorder=3)
