"""Interactive figures, as the plain mappings that plotly.js takes: pure functions of arrays and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from epochlens.show import style

Figure = dict[str, Any]
CURSOR = "#D55E00"
TAU = 0.95
"""similarity from which on maps count as settled"""
NARROW, ROW, LETTER, KEY = 300, 20, 7, 48
"""pixels: width of a figure on a phone, height of a legend's row, width of a letter and of an entry's line"""
UNDEFINED = "#e9e9e9"
BASE: Figure = {
    "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#222222"},
    "paper_bgcolor": "#ffffff",
    "plot_bgcolor": "#ffffff",
    "hoverlabel": {"namelength": -1},
    "modebar": {"orientation": "v"},
    "uirevision": "keep",
}
LEGEND: Figure = {"orientation": "h", "x": 0, "y": 1.03, "yanchor": "bottom"}
"""above the plot: below it the legend would lie on the axis' title"""
AXIS: Figure = {
    "gridcolor": "#e6e6e6",
    "zeroline": False,
    "linecolor": style.GREY,
    "ticks": "outside",
    "ticklen": 3,
}


class Curves(NamedTuple):
    """What is drawn of one run: accuracy [T] and similarity [T] of each method, at its epochs [T]."""

    letter: str
    epochs: np.ndarray
    accuracy: np.ndarray
    similarity: dict[str, np.ndarray]


def finite(values: Any) -> list[float | None]:
    """Numbers for JSON: None where NaN or infinite, which leaves a gap in a line."""
    return [float(v) if np.isfinite(v) else None for v in np.asarray(values, float).ravel()]


def looks_of(methods: Iterable[str]) -> dict[str, style.Look]:
    """Colour and dash of each method, as in the other figures of the package."""
    return style.looks({"methods": pd.DataFrame({"method": list(methods)})})


def blank(text: str) -> Figure:
    """An empty figure that says why."""
    nothing = {"visible": False, "fixedrange": True}
    note = {"text": text, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5, "showarrow": False}
    return {
        "data": [],
        "layout": {**BASE, "height": 140, "xaxis": nothing, "yaxis": nothing, "annotations": [note]},
    }


def cursor(epoch: float) -> Figure:
    """The line at the chosen epoch, which the browser moves: the first shape of a figure."""
    line = {"color": CURSOR, "width": 2}
    return {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "x0": epoch,
        "x1": epoch,
        "y0": 0,
        "y1": 1,
        "line": line,
    }


def curves_figure(runs: Sequence[Curves], epoch: float, label: str) -> Figure:
    """Accuracy above, similarity below, over epochs, with the cursor; a second run is dashed."""
    looks = looks_of(name for run in runs for name in run.similarity)
    data = []
    for run in runs:
        second = run.letter == "B"
        mark = f" ({run.letter})" if len(runs) > 1 else ""
        epochs = run.epochs.tolist()
        line = {"color": style.ACCURACY, "dash": "dash" if second else "solid", "width": 2}
        data.append(trace(epochs, run.accuracy, f"accuracy{mark}", line, yaxis="y2"))
        for method, values in run.similarity.items():
            look = looks[method]
            line = {"color": look.color, "dash": "dash" if second else "solid", "width": 2}
            shape = {"symbol": "circle-open" if second else "circle", "size": 5, "color": look.color}
            data.append(trace(epochs, values, f"{method}{mark}", line, mode="lines+markers", marker=shape))
    legend = legend_height(data)
    layout = {
        **BASE,
        "height": 400 + legend,
        "margin": {"l": 56, "r": 36, "t": 14 + legend, "b": 40, "autoexpand": False},
        "shapes": [cursor(epoch), threshold()],
        "hovermode": "x",
        "xaxis": {**AXIS, "title": {"text": "epoch"}, "anchor": "y", "tickformat": "d"},
        "yaxis": {**AXIS, "title": {"text": label}, "domain": [0, 0.62]},
        "yaxis2": {**AXIS, "title": {"text": "accuracy"}, "domain": [0.7, 1], "anchor": "x"},
        "legend": {**LEGEND, "y": 1.02},
    }
    return {"data": data, "layout": layout}


def legend_height(data: Sequence[Figure]) -> int:
    """Pixels that a legend takes above a narrow figure: every entry is as wide as the widest.

    Margins are given and not left to plotly, whose own lag behind when a figure finds its width.
    """
    names = {str(trace["name"]) for trace in data if trace.get("showlegend", True) and "name" in trace}
    columns = max(1, NARROW // (KEY + LETTER * max(map(len, names), default=1)))
    return ROW * -(-len(names) // columns)


def threshold() -> Figure:
    """The line above which maps count as settled."""
    ends = {"xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": TAU, "y1": TAU}
    return {
        "type": "line",
        **ends,
        "layer": "below",
        "line": {"color": style.GREY, "width": 1, "dash": "dot"},
    }


def trace(x: Sequence[Any], y: Any, name: str, line: Figure, **more: Any) -> Figure:
    """A line; undefined values leave gaps."""
    hover = "%{y:.3f}"
    return {
        "type": "scatter",
        "mode": "lines",
        "x": list(x),
        "y": finite(y),
        "name": name,
        "line": line,
        "hovertemplate": hover,
        **more,
    }


def matrix_figure(epochs: np.ndarray, matrix: np.ndarray, epoch: float) -> Figure:
    """Similarity of every pair of epochs [T,T]; undefined pairs are grey."""
    rows = [finite(row) for row in matrix]
    numbers = epochs.tolist()
    cells = {
        "type": "heatmap",
        "x": numbers,
        "y": numbers,
        "z": rows,
        "zmax": 1,
        "colorscale": "Cividis",
        "colorbar": {"thickness": 12, "title": {"text": "cosine"}},
        "hovertemplate": "epoch %{x} and epoch %{y}: %{z:.3f}<extra></extra>",
    }
    layout = {
        **BASE,
        "height": 380,
        "margin": {"l": 52, "r": 12, "t": 12, "b": 40},
        "plot_bgcolor": UNDEFINED,
        "shapes": [{**cursor(epoch), "yref": "y", "y0": numbers[0] - 0.5, "y1": numbers[-1] + 0.5}],
        "xaxis": {
            **AXIS,
            "title": {"text": "epoch"},
            "showgrid": False,
            "constrain": "domain",
            "tickformat": "d",
        },
        "yaxis": {
            **AXIS,
            "title": {"text": "epoch"},
            "showgrid": False,
            "scaleanchor": "x",
            "constrain": "domain",
            "tickformat": "d",
        },
    }
    return {"data": [cells], "layout": layout}
