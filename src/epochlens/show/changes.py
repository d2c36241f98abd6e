"""Figures that ask why maps move: predictions that flip, steps of the weights, and properties of the maps."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from epochlens.show import cells, curves, frames, style
from epochlens.show.frames import KEYS, Tables, groups, keep, numbers
from epochlens.show.style import Look

CONDITIONS: dict[str, tuple[str, Look]] = {
    "always_right": ("right at every epoch", Look("#2b2b2b", "--", "D")),
    "ever_right": ("right at some epoch", Look("#1b7837", "-.", "v")),
    "kept": ("same prediction at both epochs", Look("#7c7c00", ":", "h")),
    "flipped": ("prediction flipped in between", Look("#b2182b", "-", "P")),
}
ENOUGH_SEEDS = 4
"""an interval of fewer seeds, as of a condition that few images meet, would only hide the other curves"""
DRIFT = {
    "per_weight_change": "lost per relative\nweight change",
    "per_output_change": "lost per output\nchange",
    "weight_change": "relative weight\nchange",
}
PROPERTIES = {"mass": "mass (log)", "entropy": "entropy", "gini": "Gini index"}


def conditioned(tables: Tables) -> Figure:
    """Cosine to the previous epoch of images by what the network predicts, and the share of such images.

    Needs conditioned; a panel per configuration and method, its lower part the coverage.
    """
    needed = [*KEYS, "seed", "method", "epoch", "condition", "value", "coverage"]
    frame = frames.rows(tables, "conditioned", needed, reference="previous", metric="cosine")
    frame = keep(frame, frame["condition"].astype(str).isin(["all", *CONDITIONS]))
    if not np.isfinite(numbers(frame, "value")).any():
        return style.blank("no similarity by prediction in this sweep")
    keys, columns, left_out = cells.by_method(tables, frame)
    handles = [cells.handle(Look("#555555", "-", "o"), "all images")]
    handles += [cells.handle(look, label) for label, look in CONDITIONS.values()]
    figure, axes = style.panels(len(keys), columns, handles, size=size_of(columns, 2.5))
    upper, lower = style.stacked(figure, axes, columns, (0.7, 0.3))
    method_looks, by_panel = style.looks(tables), groups(frame, [*KEYS, "method"])
    drawn = []
    for ax, small, key in zip(upper, lower, keys, strict=True):
        method = method_looks[key[3]]._replace(linestyle="-")
        parts = groups(by_panel[key].astype({"condition": str}), ["condition"])
        for name, look in {"all": method, **{c: look for c, (_, look) in CONDITIONS.items()}}.items():
            if (name,) in parts:
                drawn.append(cells.over_seeds(parts[name,], least=ENOUGH_SEEDS))
                cells.line(ax, drawn[-1], look, f"mean:{name}")
                if name != "all":
                    cells.line(small, cells.over_seeds(parts[name,], "coverage"), look, f"coverage:{name}")
        cells.titled(ax, key, cells.count_of(by_panel[key]))
    cells.limit(upper, drawn, top=1.0)
    lower[0].set_ylim(-0.04, 1.04)
    lower[0].set_yticks([0, 1])
    style.epoch_axis(axes, numbers(frame, "epoch"))
    style.label_axes(upper, columns, "", "cosine similarity\nto the previous epoch")
    style.label_axes(lower, columns, "epoch", "share of\nimages")
    cells.say_left_out(figure, left_out)
    return figure


def drift(tables: Tables) -> Figure:
    """Similarity lost per step of the weights and of the outputs, and the steps themselves; needs drift."""
    frame = frames.rows(tables, "drift", [*KEYS, "seed", "method", "epoch", *DRIFT], metric="cosine")
    positive = np.stack([numbers(frame, column) for column in DRIFT])
    if not (np.isfinite(positive) & (positive > 0)).any():
        return style.blank("no change of weights or outputs recorded in this sweep")
    by_panel, method_looks = groups(frame), style.looks(tables)
    steps = Look(style.ACCURACY, "-", "o")
    columns = curves.per_row(list(by_panel))
    handles = [*curves.line_handles(method_looks, frame), cells.handle(steps, "weights (no method)")]
    figure, axes = style.panels(len(by_panel), columns, handles, size=size_of(columns, 3.4))
    parts = style.stacked(figure, axes, columns, (1, 1, 1))
    for (column, label), row in zip(DRIFT.items(), parts, strict=True):
        drawn = []
        for ax, part in zip(row, by_panel.values(), strict=True):
            if column == "weight_change":
                # The steps are the network's: the same in the rows of every method.
                drawn.append(cells.over_seeds_log(part.drop_duplicates(["seed", "epoch"]), column))
                cells.line(ax, drawn[-1], steps, f"mean:{column}")
                continue
            for (method,), rows in groups(part, ["method"]).items():
                drawn.append(cells.over_seeds_log(rows, column))
                cells.line(ax, drawn[-1], method_looks[method], f"{column}:{method}")
        cells.limit_log(row, drawn)
        style.label_axes(row, columns, "epoch" if row is parts[-1] else "", label)
    finish(axes, by_panel)
    style.epoch_axis(axes, numbers(frame, "epoch"))
    return figure


def properties(tables: Tables) -> Figure:
    """Mass, entropy and Gini index of the maps over epochs, below each other; needs properties."""
    frame = frames.rows(tables, "properties", [*KEYS, "seed", "method", "epoch", "property", "value"])
    frame = keep(frame, frame["property"].astype(str).isin(list(PROPERTIES)))
    if not np.isfinite(numbers(frame, "value")).any():
        return style.blank("no properties of maps in this sweep")
    by_panel, method_looks = groups(frame), style.looks(tables)
    columns = curves.per_row(list(by_panel))
    handles = curves.line_handles(method_looks, frame)
    figure, axes = style.panels(len(by_panel), columns, handles, size=size_of(columns, 3.4))
    parts = style.stacked(figure, axes, columns, (1, 1, 1))
    for (name, label), row in zip(PROPERTIES.items(), parts, strict=True):
        over, drawn = cells.over_seeds_log if name == "mass" else cells.over_seeds, []
        for ax, part in zip(row, by_panel.values(), strict=True):
            rows = keep(part, part["property"].astype(str) == name)
            for (method,), own in groups(rows, ["method"]).items():
                drawn.append(over(own))
                cells.line(ax, drawn[-1], method_looks[method], f"{name}:{method}")
        (cells.limit_log if name == "mass" else cells.limit)(row, drawn)
        style.label_axes(row, columns, "epoch" if row is parts[-1] else "", label)
    finish(axes, by_panel)
    style.epoch_axis(axes, numbers(frame, "epoch"))
    return figure


def finish(axes: list[Axes], by_panel: dict[tuple, pd.DataFrame]) -> None:
    """Heads of panels that hold all methods of a configuration."""
    for ax, (key, part) in zip(axes, by_panel.items(), strict=True):
        curves.title(ax, key, cells.count_of(part))


def size_of(columns: int, height: float) -> tuple[float, float]:
    """A panel's width as in the other figures and a height for its parts."""
    return {1: 4.3, 2: 3.1, 3: 2.5}.get(columns, 2.15), height
