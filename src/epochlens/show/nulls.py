"""Figures that tell what a similarity is worth: nulls, the calibrated scale, and agreement between seeds."""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from epochlens.show import cells, curves, frames, style
from epochlens.show.frames import KEYS, Tables, groups, keep, numbers
from epochlens.show.style import Look

AGREEMENT = [*KEYS, "method", "epoch", "metric", "n_seeds", "mean", "ci_low", "ci_high"]
OWN = {"previous": "coloured: to the previous epoch", "final": "coloured: to the final epoch"}
# Other colours than the methods', each with a dash of its own.
NULLS: dict[str, tuple[str, Look]] = {
    "seeds": ("same image, other seeds", Look("#2b2b2b", "-", "D")),
    "redraw": ("same map, drawn again", Look("#b2182b", ":", "P")),
    "other_image": ("another image of the class", Look("#762a83", "-", "X")),
    "initial": ("untrained network", Look("#8c510a", "-.", "p")),
    "edge": ("edges of the input", Look("#7c7c00", "--", "h")),
    "random": ("random map", Look("#8a8a8a", ":", "*")),
}


def nulls(tables: Tables) -> Figure:
    """Cosine to the previous and final epoch over what it would be for unrelated maps, a panel per method.

    Needs stability_summary; the table agreement gives the interval between seeds where there is one.
    """
    means = keep_references(with_agreement(tables), [*OWN, *NULLS])
    found = frames.values(means, "reference")
    if not set(found) & set(NULLS):
        return style.blank("no similarity to any null in this sweep")
    keys, columns, left_out = cells.by_method(tables, means)
    handles = [cells.handle(Look("#555555", dash, "o"), OWN[name]) for name, dash in dashes(found).items()]
    handles += [cells.handle(look, label) for name, (label, look) in NULLS.items() if name in found]
    figure, axes = style.panels(len(keys), columns, handles)
    method_looks, by_panel = style.looks(tables), groups(means, [*KEYS, "method"])
    limits = style.span([means["mean"]], ends=[means["ci_low"]])
    for ax, key in zip(axes, keys, strict=True):
        ax.axhline(1.0, color=style.GREY, linewidth=0.7, linestyle=(0, (1, 2)))
        panel(ax, by_panel[key], method_looks[key[3]])
        cells.titled(ax, key, frames.counted([numbers(by_panel[key], "n_seeds").max()]))
        style.cut(ax, [by_panel[key]["ci_low"]], limits)
    axes[0].set_ylim(*limits)
    style.epoch_axis(axes, numbers(means, "epoch"))
    style.label_axes(axes, columns, "epoch", "cosine similarity")
    cells.say_left_out(figure, left_out)
    return figure


def panel(ax: Axes, frame: pd.DataFrame, look: Look) -> None:
    """One method's curves over its nulls."""
    by_reference = groups(frame, ["reference"])
    for name, (_, null_look) in reversed(NULLS.items()):
        if (name,) in by_reference:
            cells.line(ax, curves.mean_and_ends(by_reference[name,]), null_look, f"null:{name}")
    for name, dash in dashes(OWN).items():
        if (name,) in by_reference:
            own = look._replace(linestyle=dash)
            cells.line(ax, curves.mean_and_ends(by_reference[name,]), own, f"own:{name}")


def dashes(found: Container[str]) -> dict[str, style.Dash]:
    """The dashes of the curves to the previous and the final epoch, where there are such."""
    kinds: dict[str, style.Dash] = {"previous": "--", "final": "-"}
    return {name: dash for name, dash in kinds.items() if name in found}


def with_agreement(tables: Tables) -> pd.DataFrame:
    """Cosines of stability_summary, those between seeds replaced by agreement, whose intervals are right."""
    means = frames.rows(tables, "stability_summary", [*curves.MEANS, "reference"], metric="cosine")
    between = frames.rows(tables, "agreement", AGREEMENT, metric="cosine")
    between = keep(between, np.isfinite(numbers(between, "mean")))
    if len(between):
        means = keep(means, means["reference"].astype(str) != "seeds")
        means = pd.concat(
            [means.astype({"reference": str}), between.assign(reference="seeds", n_undefined=0)]
        )
    return keep(means, np.isfinite(numbers(means, "mean")))


def keep_references(frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The rows of the named references."""
    return keep(frame, frame["reference"].astype(str).isin(names))


def calibrated(tables: Tables) -> Figure:
    """Cosine on the scale from another image (0) to identity (1), to the final and to the previous epoch.

    Needs stability_summary and, for the faint lines, stability_by_seed.
    """
    metric = {"metric": "calibrated_cosine"}
    means = frames.rows(tables, "stability_summary", [*curves.MEANS, "reference"], **metric)
    means = keep_references(keep(means, np.isfinite(numbers(means, "mean"))), list(OWN))
    if means.empty:
        return style.blank("no calibrated similarity in this sweep")
    seeds = frames.rows(tables, "stability_by_seed", [*curves.SEEDS, "reference"], **metric)
    by_panel, by_seed = groups(means, ["reference", *KEYS]), groups(seeds, ["reference", *KEYS])
    keys = sorted(by_panel, key=lambda key: (key[1], key[0] != "final", *key[2:]))
    columns = curves.per_row([(key[:2], *key[2:]) for key in keys])
    method_looks = style.looks(tables)
    figure, axes = style.panels(len(keys), columns, curves.line_handles(method_looks, means))
    # Ends of a few seeds' intervals and the noise of early epochs must not flatten everything else.
    limits = style.span([means["mean"], [0.0]], ends=[means["ci_low"]])
    for ax, key in zip(axes, keys, strict=True):
        for level in (0.0, 1.0):
            ax.axhline(level, color=style.GREY, linewidth=0.9, linestyle=(0, (1, 2)), gid="scale")
        faint = groups(by_seed[key], ["method"]) if key in by_seed else {}
        for (method,), part in groups(by_panel[key], ["method"]).items():
            summary, of_seeds = curves.mean_and_ends(part), curves.wide(faint.get((method,)))
            curves.curve(ax, summary, of_seeds, method_looks[method], f"mean:{method}")
        count = frames.counted([numbers(by_panel[key], "n_seeds").max()])
        style.head(ax, f"{key[1]} · {key[2]}", f"lr {style.rate(key[3])}, to {key[0]}, {count}")
        style.cut(ax, [by_panel[key]["ci_low"]], limits)
    axes[0].set_ylim(*limits)
    style.epoch_axis(axes, numbers(means, "epoch"))
    style.label_axes(axes, columns, "epoch", "calibrated cosine")
    return figure


def agreement(tables: Tables) -> Figure:
    """Similarity between seeds, the ceiling, next to similarity to the final epoch; a panel per method.

    Needs agreement and, for the second curve, stability_summary.
    """
    between = frames.rows(tables, "agreement", AGREEMENT, metric="cosine")
    between = keep(between, np.isfinite(numbers(between, "mean")))
    if between.empty:
        return style.blank(
            "no agreement between seeds in this sweep: that takes two seeds with the same probe images"
        )
    final = frames.rows(tables, "stability_summary", curves.MEANS, metric="cosine", reference="final")
    by_final, by_panel = groups(final, [*KEYS, "method"]), groups(between, [*KEYS, "method"])
    ceiling, method_looks = NULLS["seeds"][1], style.looks(tables)
    keys, columns, left_out = cells.by_method(tables, between)
    handles = [
        cells.handle(ceiling, "between seeds at the same epoch (the ceiling)"),
        cells.handle(Look("#555555", "-", "o"), "coloured: to the final epoch of the same seed"),
    ]
    figure, axes = style.panels(len(keys), columns, handles)
    shown = [between, *(by_final[key] for key in keys if key in by_final)]
    limits = style.span([part["mean"] for part in shown], ends=[part["ci_low"] for part in shown])
    for ax, key in zip(axes, keys, strict=True):
        ax.axhline(1.0, color=style.GREY, linewidth=0.7, linestyle=(0, (1, 2)))
        if key in by_final:
            own = method_looks[key[3]]._replace(linestyle="-")
            cells.line(ax, curves.mean_and_ends(by_final[key]), own, "own:final")
        cells.line(ax, curves.mean_and_ends(by_panel[key]), ceiling, "null:seeds")
        cells.titled(ax, key, frames.counted([numbers(by_panel[key], "n_seeds").max()]))
        style.cut(ax, [by_panel[key]["ci_low"]], limits)
    axes[0].set_ylim(*limits)
    style.epoch_axis(axes, numbers(between, "epoch"))
    style.label_axes(axes, columns, "epoch", "cosine similarity")
    cells.say_left_out(figure, left_out)
    return figure
