"""Interactive figures of the analysis' tables with every dataset, model and learning rate in one panel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from epochlens.show import frames, style
from epochlens.show.explorer.facets import DASHES, two_lines
from epochlens.show.explorer.figures import (
    AXIS,
    BASE,
    LEGEND,
    Figure,
    blank,
    finite,
    legend_height,
    looks_of,
    trace,
)


def accuracy_figure(epochs: pd.DataFrame) -> Figure:
    """Accuracy of every seed over the epochs, a colour per dataset, model and learning rate."""
    if not len(epochs):
        return blank("no accuracy recorded")
    data = []
    for i, (key, part) in enumerate(frames.groups(epochs).items()):
        dash = list(DASHES.values())[i // len(style.PALETTE) % len(DASHES)]
        line = {"color": style.PALETTE[i % len(style.PALETTE)], "width": 1.5, "dash": dash}
        for n, ((seed,), rows) in enumerate(frames.groups(part, ["seed"]).items()):
            rows = rows.sort_values("epoch")
            more = {"legendgroup": str(i), "showlegend": n == 0, "opacity": 0.7}
            found = trace(
                frames.numbers(rows, "epoch").tolist(),
                frames.numbers(rows, "accuracy"),
                style.named(key),
                line,
                **more,
            )
            data.append({**found, "hovertemplate": f"seed {seed}, epoch %{{x}}: %{{y:.3f}}"})
    layout = {
        **BASE,
        "height": 320 + legend_height(data),
        "margin": {"l": 56, "r": 36, "t": 14 + legend_height(data), "b": 40, "autoexpand": False},
        "xaxis": {**AXIS, "title": {"text": "epoch"}},
        "yaxis": {**AXIS, "title": {"text": "test accuracy"}},
        "legend": LEGEND,
    }
    return {"data": data, "layout": layout}


def settling_figure(summary: pd.DataFrame) -> Figure:
    """Median settling epochs with intervals by method, a line per configuration; accuracy's as a black bar.

    An interval without an upper end runs to the last epoch seen; an interval or a median that is not known
    is not drawn.
    """
    groups = frames.groups(summary) if len(summary) else {}
    if not groups:
        return blank("no settling epochs measured for this choice")
    names = [style.named(key) for key in groups]
    methods = frames.values(summary, "method")
    looks, data = looks_of(map(str, methods)), []
    last = float(np.nanmax(frames.numbers(summary, "median"), initial=1.0))
    for m, method in enumerate(methods):
        rows = frames.keep(summary, summary["method"] == method)
        lift = 0.5 * ((m + 0.5) / len(methods) - 0.5)
        places = [
            names.index(style.named(key)) + lift for key in zip(*(rows[k] for k in frames.KEYS), strict=True)
        ]
        data.append(medians(rows, places, str(method), looks[str(method)].color, last))
    data.append(accuracy_bars([part.iloc[0] for part in groups.values()]))
    layout = {
        **BASE,
        "height": 80 + 56 * len(names) + legend_height(data),
        "margin": {"l": 130, "r": 36, "t": 14 + legend_height(data), "b": 40, "autoexpand": False},
        "xaxis": {**AXIS, "title": {"text": "epoch at which maps settle"}, "rangemode": "tozero"},
        "yaxis": {
            **AXIS,
            "tickvals": list(range(len(names))),
            "ticktext": list(map(two_lines, groups)),
            "range": [len(names) - 0.5, -0.5],
        },
        "legend": LEGEND,
    }
    return {"data": data, "layout": layout}


def medians(rows: pd.DataFrame, places: list[float], method: str, color: str, last: float) -> Figure:
    """A method's median settling epochs at their heights, with intervals; `last` is the latest of all."""
    median = frames.numbers(rows, "median")
    low, high = frames.numbers(rows, "ci_low"), frames.numbers(rows, "ci_high")
    known, end = np.isfinite(low), np.nanmax(np.concatenate([low, high]), initial=last)
    above = np.where(known, np.where(np.isfinite(high), high, end) - median, 0)
    return {
        "type": "scatter",
        "mode": "markers",
        "x": finite(median),
        "y": places,
        "name": method,
        "marker": {"color": color, "size": 9},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": finite(np.nan_to_num(above)),
            "arrayminus": finite(np.nan_to_num(np.where(known, median - low, 0))),
            "color": color,
        },
        "hovertemplate": "%{x:.3g}",
    }


def accuracy_bars(rows: Sequence[pd.Series]) -> Figure:
    """The median epoch at which accuracy settles, from a row of each configuration."""
    bar = {"symbol": "line-ns-open", "size": 22, "color": style.ACCURACY, "line": {"width": 3}}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "accuracy settles",
        "marker": bar,
        "x": finite([row["accuracy_median"] for row in rows]),
        "y": list(range(len(rows))),
        "hovertemplate": "%{x:.3g}",
    }
