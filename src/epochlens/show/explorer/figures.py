"""Interactive figures, as the plain mappings that plotly.js takes: pure functions of arrays and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from epochlens.show import style

Figure = dict[str, Any]
CURSOR = "#D55E00"
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
    layout = {
        **BASE,
        "height": 440,
        "margin": {"l": 52, "r": 36, "t": 12, "b": 40},
        "shapes": [cursor(epoch)],
        "hovermode": "x",
        "xaxis": {**AXIS, "title": {"text": "epoch"}, "anchor": "y", "tickformat": "d"},
        "yaxis": {**AXIS, "title": {"text": label}, "domain": [0, 0.62]},
        "yaxis2": {**AXIS, "title": {"text": "accuracy"}, "domain": [0.7, 1], "anchor": "x"},
        "legend": LEGEND,
    }
    return {"data": data, "layout": layout}


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


def bars_figure(names: Sequence[str], probabilities: Sequence[float], marked: int, most: int = 10) -> Figure:
    """The largest probabilities as bars, the most likely on top, the marked class in another colour."""
    order = np.argsort(-np.asarray(probabilities), kind="stable")[:most][::-1].tolist()
    order = order if marked in order or marked < 0 else [marked, *order]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [float(probabilities[k]) for k in order],
        "y": [f"class {names[k]}" for k in order],
        "marker": {"color": [CURSOR if k == marked else style.PALETTE[0] for k in order]},
        "hovertemplate": "%{y}: %{x:.4f}<extra></extra>",
    }
    layout = {
        **BASE,
        "height": 70 + 22 * len(order),
        "margin": {"l": 70, "r": 36, "t": 8, "b": 36},
        "xaxis": {**AXIS, "range": [0, 1], "title": {"text": "probability"}},
        "yaxis": {**AXIS, "type": "category", "showgrid": False},
    }
    return {"data": [bars], "layout": layout}
