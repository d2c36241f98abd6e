"""Figures that follow maps over the epochs of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from epochlens.measure.statistics import t_interval
from epochlens.show import frames, style
from epochlens.show.frames import KEYS, Tables, groups, numbers
from epochlens.show.style import Look

SEEDS = [*KEYS, "seed", "method", "epoch", "value"]
MEANS = [*KEYS, "method", "epoch", "n_seeds", "n_undefined", "mean", "ci_low", "ci_high"]
METRIC_LABELS = {
    "cosine": "cosine similarity",
    "spearman_abs": "rank correlation of |values|",
}


def similarity(tables: Tables, metric: str, reference: str) -> Figure:
    """Similarity of a metric to a reference over epochs, a panel per configuration, a colour per method.

    Needs stability_summary (means and intervals) and stability_by_seed (the faint lines).
    """
    means = frames.rows(tables, "stability_summary", MEANS, metric=metric, reference=reference)
    seeds = frames.rows(tables, "stability_by_seed", SEEDS, metric=metric, reference=reference)
    label = METRIC_LABELS.get(metric, metric)
    if not np.isfinite(numbers(means, "mean")).any():
        return style.blank(f"no defined {label} to the {reference} epoch in this sweep")
    method_looks = style.looks(tables)
    by_panel, by_seed = groups(means), groups(seeds)
    columns = per_row(list(by_panel))
    figure, axes = style.panels(len(by_panel), columns, line_handles(method_looks, means))
    # Above 1 there is nothing to see, so only the intervals' lower ends widen the axis.
    ends = [means["ci_low"]] if len(method_looks) <= style.MOST_BANDS else []
    limits = style.span([seeds["value"], means["mean"]], ends=ends)
    for ax, (key, part) in zip(axes, by_panel.items(), strict=True):
        ax.axhline(1.0, color=style.GREY, linewidth=0.7, linestyle=(0, (1, 2)))
        faint = groups(by_seed[key], ["method"]) if key in by_seed else {}
        for (method,), line in groups(part, ["method"]).items():
            summary = mean_and_ends(line, banded=len(method_looks) <= style.MOST_BANDS)
            curve(ax, summary, wide(faint.get((method,))), method_looks[method], f"mean:{method}")
        undefined = int(numbers(part, "n_undefined").sum())
        count = frames.counted(numbers(part, "n_seeds"))
        title(ax, key, f"{count}, {undefined} undefined" if undefined else count)
        style.cut(ax, [part["ci_low"]] if ends else [], limits)
    axes[0].set_ylim(*limits)
    style.epoch_axis(axes, numbers(means, "epoch"))
    style.label_axes(axes, columns, "epoch", f"{label}\nto the {reference} epoch")
    return figure


def accuracy_and_convergence(tables: Tables) -> Figure:
    """Test accuracy and cosine to the final maps on one axis; needs epochs and both stability tables."""
    epochs = frames.rows(tables, "epochs", [*KEYS, "seed", "epoch", "accuracy"])
    means = frames.rows(tables, "stability_summary", MEANS, metric="cosine", reference="final")
    seeds = frames.rows(tables, "stability_by_seed", SEEDS, metric="cosine", reference="final")
    accuracy, by_method, by_seed = groups(epochs), groups(means), groups(seeds)
    keys = sorted({*accuracy, *by_method})
    if not np.isfinite(np.r_[numbers(epochs, "accuracy"), numbers(means, "mean")]).any():
        return style.blank("no accuracy and no maps in this sweep")
    method_looks = style.looks(tables)
    handles = [Line2D([], [], color=style.ACCURACY, linewidth=1.6, label="test accuracy")]
    for handle in line_handles(method_looks, means):
        handle.set_label(f"maps: {handle.get_label()}")
        handles.append(handle)
    columns = per_row(keys)
    figure, axes = style.panels(len(keys), columns, handles)
    ends = [means["ci_low"]] if len(method_looks) <= style.MOST_BANDS else []
    limits = style.span([epochs["accuracy"], seeds["value"], means["mean"], [0.0]], ends=ends)
    for ax, key in zip(axes, keys, strict=True):
        ax.axhline(1.0, color=style.GREY, linewidth=0.7, linestyle=(0, (1, 2)))
        faint = groups(by_seed[key], ["method"]) if key in by_seed else {}
        parts = groups(by_method[key], ["method"]) if key in by_method else {}
        for (method,), line in parts.items():
            summary = mean_and_ends(line, banded=len(method_looks) <= style.MOST_BANDS)
            curve(ax, summary, wide(faint.get((method,))), method_looks[method], f"mean:{method}")
        table = wide(accuracy.get(key), "accuracy")
        means_of = np.stack([np.asarray(table.index, dtype=float), *t_interval(table.to_numpy(), 1)])
        curve(ax, means_of, table, Look(style.ACCURACY, "-", "o"), "mean:accuracy")
        title(ax, key, frames.counted([table.shape[1]]))
        style.cut(ax, [numbers(line, "ci_low") for line in parts.values()] if ends else [], limits)
    axes[0].set_ylim(*limits)
    style.epoch_axis(axes, np.r_[numbers(epochs, "epoch"), numbers(means, "epoch")])
    style.label_axes(axes, columns, "epoch", "accuracy (fraction) and\ncosine similarity to final")
    return figure


def accuracy_against_stability(tables: Tables) -> Figure:
    """Accuracy against cosine to the previous epoch, a point per epoch; needs epochs, stability_by_seed."""
    points = frames.with_accuracy(tables)
    if points.empty:
        return style.blank("no epoch with both an accuracy and a defined similarity in this sweep")
    method_looks = style.looks(tables)
    by_panel = groups(points)
    handles = line_handles(method_looks, points, marker=True)
    columns = per_row(list(by_panel))
    figure, axes = style.panels(len(by_panel), columns, handles, side=0.75)
    # Most happens in the first epochs, so colour follows the logarithm of the epoch.
    epochs = numbers(points, "epoch")
    first, last = max(float(epochs.min()), 1.0), max(float(epochs.max()), 2.0)
    colours = LogNorm(first, last)
    for ax, (key, part) in zip(axes, by_panel.items(), strict=True):
        for (method,), group in groups(part, ["method"]).items():
            trail(ax, group, method_looks[method], colours, f"mean:{method}")
        title(ax, key, frames.seeds(part, KEYS))
    axes[0].set_ylim(*style.span([points["value"]]))
    axes[0].set_xlim(*style.span([points["accuracy"]], top=None))
    style.label_axes(axes, columns, "accuracy (fraction)", "cosine similarity\nto the previous epoch")
    ticks = [t for t in (1, 2, 3, 5, 10, 20, 50, 100, 200, 500) if first <= t <= last]
    colour_bar(figure, axes, ScalarMappable(colours, "cividis"), "epoch", ticks)
    return figure


def trail(ax: Axes, group: pd.DataFrame, look: Look, colours: Normalize, name: str) -> None:
    """A method's way through accuracy and similarity: every seed and epoch faintly, epochs' means joined."""
    x, y, epoch = (numbers(group, column) for column in ("accuracy", "value", "epoch"))
    ax.scatter(x, y, s=5, alpha=0.25, linewidths=0, c=epoch, cmap="cividis", norm=colours, marker=look.marker)
    ticks = np.unique(epoch)
    mean_x, mean_y = (np.array([of[epoch == tick].mean() for tick in ticks]) for of in (x, y))
    ax.plot(mean_x, mean_y, color=look.color, linestyle=look.linestyle, linewidth=0.9)
    ax.scatter(
        mean_x,
        mean_y,
        s=16,
        c=ticks,
        cmap="cividis",
        norm=colours,
        marker=look.marker,
        linewidths=0.5,
        edgecolors=look.color,
        zorder=3,
        gid=name,
    )


def epoch_matrix(tables: Tables, most: int = 32) -> Figure:
    """Cosine between the maps of every two epochs as heat maps; needs the table epoch_matrix."""
    needed = [*KEYS, "method", "metric", "epoch_a", "epoch_b", "n_seeds", "value"]
    frame, metric = frames.one_metric(frames.rows(tables, "epoch_matrix", needed))
    finite = numbers(frame, "value")
    if not np.isfinite(finite).any():
        return style.blank("no epoch matrix in this sweep")
    by_panel = groups(frame, [*KEYS, "method"])
    left_out = len(by_panel) - most
    order = list(style.looks(tables))
    # A method's configurations stand side by side, methods below each other.
    keys = sorted(by_panel, key=lambda key: (key[0], order.index(key[3]), *key[1:3]))[:most]
    columns = 3 if len({key[:3] for key in keys}) == 3 else 4
    figure, axes = style.panels(len(keys), columns, size=(1.9, 1.9), side=0.75)
    colours = Normalize(*np.nanpercentile(finite, [0, 100]))
    for ax, key in zip(axes, keys, strict=True):
        square, epochs = matrix(by_panel[key])
        ax.set_facecolor("#dddddd")
        ax.grid(False)
        ax.imshow(
            square, cmap="viridis", norm=colours, origin="lower", interpolation="nearest", aspect="auto"
        )
        at = np.unique(np.linspace(0, len(epochs) - 1, min(6, len(epochs))).round().astype(int))
        ax.set_xticks(at, [f"{epochs[i]:g}" for i in at])
        ax.set_yticks(at, [f"{epochs[i]:g}" for i in at])
        style.head(ax, style.named(key[:3]), f"{key[3]}, {frames.counted(numbers(by_panel[key], 'n_seeds'))}")
    style.label_axes(axes, min(columns, len(keys)), "epoch", "epoch")
    colour_bar(figure, axes, ScalarMappable(colours, "viridis"), METRIC_LABELS.get(metric, metric))
    if left_out > 0:
        style.notice(figure, f"{left_out} of {len(by_panel)} matrices are left out here; the table has all")
    return figure


def matrix(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """One matrix [epochs, epochs] and its epochs; a half that is not given mirrors the other."""
    square = frames.pivot(frame, "epoch_a", "epoch_b")
    epochs = square.index.union(square.columns)
    cells = square.reindex(index=epochs, columns=epochs).to_numpy(dtype=float)
    return np.where(np.isnan(cells), cells.T, cells), epochs.to_numpy()


def wide(frame: pd.DataFrame | None, column: str = "value") -> pd.DataFrame:
    """One configuration's rows as a table [epochs, runs]."""
    if frame is None or frame.empty:
        return pd.DataFrame()
    return frames.pivot(frame, "epoch", "run_id" if "run_id" in frame else "seed", column)


def mean_and_ends(frame: pd.DataFrame, banded: bool = True) -> np.ndarray:
    """Epoch, mean and the interval's two ends (NaN unless banded), [4, epochs], in the order of epochs."""
    order = np.argsort(numbers(frame, "epoch"), kind="stable")
    found = [numbers(frame, column)[order] for column in ("epoch", "mean", "ci_low", "ci_high")]
    return np.stack(found if banded else [*found[:2], *np.full((2, len(frame)), np.nan)])


def curve(ax: Axes, summary: np.ndarray, seeds: pd.DataFrame, look: Look, name: str) -> None:
    """Every seed faintly, the interval as a band and the mean on top; summary is [4, epochs]."""
    if not seeds.empty:
        x = np.asarray(seeds.index, dtype=float)
        lines = [np.column_stack([x, y]) for y in seeds.to_numpy(dtype=float).T]
        faint = LineCollection(lines, colors=look.color, linewidths=0.5, alpha=0.28)
        faint.set_gid(name.replace("mean:", "seeds:"))
        ax.add_collection(faint, autolim=False)
    x, mean, low, high = summary
    if np.isfinite(low).any():
        ax.fill_between(x, low, high, color=look.color, alpha=0.2, linewidth=0)
    # A line through one or two points is easily overlooked.
    marker = look.marker if np.isfinite(mean).sum() <= 2 else None
    ax.plot(x, mean, color=look.color, linestyle=look.linestyle, linewidth=1.4, gid=name, marker=marker)


def line_handles(method_looks: dict[str, Look], used: pd.DataFrame, marker: bool = False) -> list[Line2D]:
    """Legend entries of the methods in use."""
    present = frames.values(used, "method")
    return [
        Line2D(
            [],
            [],
            color=look.color,
            linestyle=look.linestyle,
            linewidth=1.6,
            marker=look.marker if marker else None,
            markersize=4,
            label=method,
        )
        for method, look in method_looks.items()
        if method in present
    ]


def per_row(keys: Sequence[tuple]) -> int:
    """Panels per row, so that each dataset fills whole rows where it can."""
    most = max((sum(key[0] == dataset for key in keys) for dataset in {key[0] for key in keys}), default=1)
    return style.even(most)


def title(ax: Axes, key: tuple, rest: str) -> None:
    """A panel's head: dataset and model, then the learning rate and what the panel rests on."""
    style.head(ax, f"{key[0]} · {key[1]}", f"lr {style.rate(key[2])}, {rest}")


def colour_bar(
    figure: Figure, axes: Sequence[Axes], scale: ScalarMappable, label: str, ticks: Sequence[float] = ()
) -> None:
    """A slim colour bar in the room kept at the right, as high as the first row of panels."""
    width = figure.get_size_inches()[0]
    first = axes[0].get_position()
    bar = figure.add_axes((1 - 0.75 / width, first.y0, 0.11 / width, first.height))
    figure.colorbar(scale, cax=bar)
    if ticks:
        bar.yaxis.set_major_locator(FixedLocator(list(ticks)))
        bar.yaxis.set_minor_locator(NullLocator())
        bar.yaxis.set_major_formatter(ScalarFormatter())
    bar.tick_params(labelsize=style.SMALL, length=2)
    bar.set_ylabel(label, fontsize=style.TEXT)
    bar.spines[:].set_linewidth(0.4)
