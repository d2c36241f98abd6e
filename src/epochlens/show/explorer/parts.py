"""What pages are made of: pickers, figures to come, tables to come, remarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dash import dcc, html

from epochlens.show.explorer.data import Run
from epochlens.show.explorer.figures import blank

GRAPHS = (
    "curves",
    "matrix",
    "means",
    "accuracies",
    "settling",
    "matrices",
    "quality",
    "quality-curves",
    "cost-operations",
    "cost-memory",
)
"""figures that are filled in later"""
GRAPH: Any = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
    "toImageButtonOptions": {"format": "png", "scale": 2},
}
CAPTION = (
    "Maps are summed over channels; red speaks for the class, blue against it, grey is undefined. "
    "The number below a map is the value of its deepest colour."
)
REFERENCES = {
    "previous": "the epoch before",
    "final": "the last epoch",
    "initial": "the untrained network",
    "seeds": "other seeds",
    "other_image": "other images",
    "edge": "the input's edges",
    "random": "random maps",
    "redraw": "another draw of the method",
}
"""what maps are compared with, in words"""
WORDS = {
    "own": "each map its own",
    "shared": "shared by all epochs",
    "none": "the map",
    "previous": "change since the epoch before",
    "final": "difference to the last epoch",
    "image": "this image",
    "mean": "mean of all images",
}


def choices(values: Sequence[str], words: Mapping[str, str] = WORDS) -> list[dict[str, str]]:
    """Options of a picker with what they are called."""
    return [{"value": value, "label": words.get(value, value)} for value in values]


def run_options(runs: Mapping[str, Run]) -> list[dict[str, str]]:
    """All runs as options of a picker, with their status unless done."""
    status = {name: "" if run.status == "done" else f" ({run.status})" for name, run in runs.items()}
    return [{"value": name, "label": f"{run.title}{status[name]}"} for name, run in runs.items()]


def labelled(text: str, control: Any) -> html.Label:
    """A control below its name."""
    return html.Label([html.Span(text), control], className="field")


def picker(name: str, values: Sequence[Any], value: Any, **more: Any) -> dcc.Dropdown:
    """A drop-down list that always holds a value, unless told otherwise."""
    return dcc.Dropdown(values, value, id=name, **{"clearable": False, "searchable": False, **more})


def switch(name: str, values: Sequence[str], value: str) -> dcc.RadioItems:
    """One of a few values."""
    return dcc.RadioItems(choices(values), value, id=name, className="switch")


def high(figure: Mapping[str, Any]) -> dict[str, str]:
    """The style of a graph as high as its figure: one that follows its width would else collapse."""
    return {"height": f"{figure['layout']['height']}px"}


def drawn(figure: dict[str, Any]) -> dcc.Graph:
    """A figure that is there already."""
    return dcc.Graph(figure=figure, config=GRAPH, style=high(figure))


def graph(name: str, more: Sequence[Any] | None = None) -> html.Div:
    """A figure to come, with a sign while it is computed, and buttons that save it as PNG and CSV.

    `more`: buttons instead of the one for CSV, which writes the points that are drawn.
    """
    config: Any = {**GRAPH, "toImageButtonOptions": {**GRAPH["toImageButtonOptions"], "filename": name}}
    empty = blank("")
    plot = dcc.Graph(id=name, config=config, figure=empty, style=high(empty))
    saves = [save_button(name, "png"), *([save_button(name, "csv")] if more is None else more)]
    return html.Div([waiting(plot), html.Div(saves, className="row saves")])


def save_button(name: str, kind: str) -> html.Button:
    """A button with which the browser saves a figure."""
    carried: dict[str, Any] = {"data-save": kind, "data-graph": name}
    return html.Button(kind.upper(), type="button", title=f"save this figure as {kind.upper()}", **carried)


def waiting(children: Any, text: str = "") -> dcc.Loading:
    """Something that shows a sign or a text while it is computed, but not for a moment's work."""
    said: dict[str, Any] = {"custom_spinner": html.P(text, className="waits")} if text else {}
    return dcc.Loading(
        children, delay_show=400, type="dot", color="#0072B2", overlay_style={"visibility": "visible"}, **said
    )


def notices(texts: Sequence[str], kind: str = "notice") -> list[html.Div]:
    """Remarks above a page, in one box; nothing without any."""
    return [html.Div([html.P(text) for text in texts], className=kind, role="status")] if texts else []


def sheet(name: str, title: str, caption: str) -> html.Section:
    """A table to be filled in, sorted by a click on a column's head."""
    return html.Section(
        [
            html.H2(title),
            html.P(caption, className="caption"),
            html.Div(id=f"table-{name}", className="sheet"),
        ],
        className="panel",
    )


def figure_panel(name: str, title: str, caption: str = "", wide: bool = False) -> html.Section:
    """A figure to be filled in, under its title; a wide one scrolls sideways on a narrow screen."""
    inside = html.Div(graph(name), className="wide-figure" if wide else "")
    return html.Section([html.H2(title), inside, html.P(caption, className="caption")], className="panel")
