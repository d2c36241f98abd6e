"""Interactive figures of the analysis' tables: a panel per dataset, model and learning rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from epochlens.show import frames, style
from epochlens.show.explorer.figures import (
    AXIS,
    BASE,
    LEGEND,
    Figure,
    blank,
    finite,
    looks_of,
    trace,
)

DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
MOST_PANELS = 24


def two_lines(key: Sequence[object]) -> str:
    """Dataset, model and learning rate on two lines."""
    return f"{key[0]} · {key[1]}<br>lr {style.rate(key[2])}"


def facets(titles: Sequence[str], columns: int, high: int = 210) -> Figure:
    """Layout with a panel per title, axes x, x2, ... and y, y2, ..., filled row by row with equal scales."""
    rows = -(-len(titles) // columns)
    height = rows * (high + 40) + (rows - 1) * 22 + 130
    layout: Figure = {
        **BASE,
        "height": height,
        "margin": {"l": 52, "r": 36, "t": 84, "b": 46},
        "annotations": [],
    }
    gap_x, gap_y = 0.12 / columns, 84 / (height - 130)
    wide = (1 - gap_x * (columns - 1)) / columns
    tall = (1 - gap_y * (rows - 1)) / rows
    for i, title in enumerate(titles):
        row, column = divmod(i, columns)
        left, top = column * (wide + gap_x), 1 - row * (tall + gap_y)
        number = "" if i == 0 else str(i + 1)
        shared = {"matches": "x"} if i else {}
        layout[f"xaxis{number}"] = {**AXIS, **shared, "domain": [left, left + wide], "anchor": f"y{number}"}
        shared = {"matches": "y"} if i else {}
        bottom = max(0.0, top - tall)
        layout[f"yaxis{number}"] = {
            **AXIS,
            **shared,
            "domain": [bottom, min(1.0, top)],
            "anchor": f"x{number}",
            "showticklabels": column == 0,
        }
        layout["annotations"].append(
            {
                "text": f"<b>{title}</b>",
                "x": left,
                "y": top,
                "xref": "paper",
                "yref": "paper",
                "xanchor": "left",
                "yanchor": "bottom",
                "align": "left",
                "showarrow": False,
                "font": {"size": 12},
            }
        )
    layout["legend"] = {**LEGEND, "y": 1 + 60 / (height - 130)}
    return layout


def name_epochs(layout: Figure) -> None:
    """Titles the axes of epochs."""
    for name in [name for name in layout if name.startswith("xaxis")]:
        layout[name]["title"] = {"text": "epoch", "standoff": 4}


def means_figure(table: pd.DataFrame, label: str, columns: int = 2, bounded: bool = False) -> Figure:
    """Means over seeds with their intervals, a panel per dataset, model and learning rate, a line per method.

    The table has the columns of stability_summary or quality_summary, of one metric and reference; values of
    a bounded metric lie from -1 to 1, where the interval of few seeds may not.
    """
    groups = dict(list(frames.groups(table).items())[:MOST_PANELS]) if len(table) else {}
    if not groups:
        return blank("nothing recorded for this choice")
    looks = looks_of(table["method"].astype(str))
    layout = facets(list(map(two_lines, groups)), min(columns, len(groups)))
    data: list[Figure] = []
    for i, part in enumerate(groups.values()):
        axes = {"xaxis": f"x{i + 1 if i else ''}", "yaxis": f"y{i + 1 if i else ''}"}
        for (method,), rows in frames.groups(part, ["method"]).items():
            data += band(rows.sort_values("epoch"), str(method), looks[str(method)], axes, i == 0)
    layout["yaxis"]["title"] = {"text": label}
    name_epochs(layout)
    if bounded:
        lowest = float(np.nanmin(frames.numbers(table, "mean"), initial=0))
        for name in [name for name in layout if name.startswith("yaxis")]:
            layout[name]["range"] = [max(-1.02, lowest - 0.3 * (lowest < 0) - 0.02), 1.02]
    return {"data": data, "layout": layout}


def band(rows: pd.DataFrame, method: str, look: style.Look, axes: Figure, first: bool) -> list[Figure]:
    """A line and, where there is an interval, a pale band around it."""
    epochs = frames.numbers(rows, "epoch").tolist()
    low, high = frames.numbers(rows, "ci_low"), frames.numbers(rows, "ci_high")
    known = np.isfinite(low) & np.isfinite(high)
    line = {"color": look.color, "dash": DASHES[look.linestyle], "width": 2}
    alone = {"mode": "lines+markers", "marker": {"size": 6}} if len(epochs) == 1 else {}
    found = [
        trace(
            epochs,
            frames.numbers(rows, "mean"),
            method,
            line,
            legendgroup=method,
            showlegend=first,
            **axes,
            **alone,
        )
    ]
    if known.any():
        x = np.asarray(epochs)[known].tolist()
        area = {
            "type": "scatter",
            "mode": "lines",
            "line": {"width": 0},
            "fill": "toself",
            "opacity": 0.18,
            "fillcolor": look.color,
            "hoverinfo": "skip",
            "showlegend": False,
            "legendgroup": method,
        }
        there = finite(high[known]) + finite(low[known])[::-1]
        found.insert(0, {**area, "x": x + x[::-1], "y": there, **axes})
    return found


def matrices_figure(table: pd.DataFrame, columns: int = 3) -> Figure:
    """The mean epoch by epoch matrix of one method, a panel per dataset, model and learning rate."""
    groups = dict(list(frames.groups(table).items())[:MOST_PANELS]) if len(table) else {}
    if not groups:
        return blank("no epoch by epoch similarity measured for this choice")
    layout = facets(list(map(two_lines, groups)), min(columns, len(groups)), high=300)
    data = []
    for i, part in enumerate(groups.values()):
        wide = frames.pivot(part, "epoch_a", "epoch_b")
        axes = {"xaxis": f"x{i + 1 if i else ''}", "yaxis": f"y{i + 1 if i else ''}"}
        cells = {
            "type": "heatmap",
            "x": wide.columns.tolist(),
            "y": wide.index.tolist(),
            "coloraxis": "coloraxis",
            "z": [finite(row) for row in wide.to_numpy(float)],
            "hovertemplate": "epoch %{x} and epoch %{y}: %{z:.3f}<extra></extra>",
        }
        data.append({**cells, **axes})
    layout["coloraxis"] = {"colorscale": "Cividis", "cmax": 1, "colorbar": {"thickness": 12}}
    layout["yaxis"]["title"] = {"text": "epoch"}
    name_epochs(layout)
    return {"data": data, "layout": layout}


def removal_figure(curves: pd.DataFrame) -> Figure:
    """Deletion and insertion at the last epoch: mean probability of the target over the pixels changed.

    A panel per kind and configuration, a line per method.
    """
    if not len(curves):
        return blank("no deletion or insertion curves were measured")
    last = frames.keep(curves, curves["epoch"] == curves["epoch"].max())
    groups = dict(list(frames.groups(last, [*frames.KEYS, "curve"]).items())[:MOST_PANELS])
    looks = looks_of(last["method"].astype(str))
    titles = [f"{key[3]}: {two_lines(key)}" for key in groups]
    layout, data = facets(titles, min(2, len(groups))), []
    for i, part in enumerate(groups.values()):
        axes = {"xaxis": f"x{i + 1 if i else ''}", "yaxis": f"y{i + 1 if i else ''}"}
        for (method,), rows in frames.groups(part, ["method"]).items():
            means = frames.pivot(rows.assign(one=0), "fraction", "one")
            look = looks[str(method)]
            line = {"color": look.color, "dash": DASHES[look.linestyle], "width": 2}
            shown = {"legendgroup": str(method), "showlegend": i == 0}
            data.append(
                trace(means.index.tolist(), means.to_numpy(float), str(method), line, **shown, **axes)
            )
    layout["yaxis"]["title"] = {"text": "probability"}
    for name in [name for name in layout if name.startswith("xaxis")]:
        layout[name]["title"] = {"text": "fraction of pixels", "standoff": 4}
    return {"data": data, "layout": layout}
