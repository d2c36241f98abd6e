"""The cost page: operations, memory and time of every method on a network, while one slides S and N."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import numpy as np
from dash import Dash, Input, Output, dcc, html

from epochlens.errors import UsageError
from epochlens.lazy import LazyModule
from epochlens.learn.permission import check_code
from epochlens.show import cost as chart
from epochlens.show import style
from epochlens.show.explorer import data, figures, parts
from epochlens.show.explorer.data import Run, Source
from epochlens.show.explorer.view import whole_number
from epochlens.show.explorer.wiring import wire, wire_client

if TYPE_CHECKING:
    from epochlens.show.explorer import cost_view
else:
    cost_view = LazyModule("epochlens.show.explorer.cost_view")

COUNTS = (None, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""places of the sliders; the first leaves every method its own number"""
LARGEST = {"side": 512, "channels": 64, "classes": 10_000, "images": 1024}
DEFAULTS = {"side": 32, "channels": 3, "classes": 10, "images": 32}
LEAST = {"side": 1, "channels": 1, "classes": 2, "images": 1}
LABELS = {
    "side": "Image side, pixels",
    "channels": "Channels",
    "classes": "Classes",
    "images": "Images a call",
}
ASKED = ("model", "side", "channels", "classes", "images", "steps", "samples")
COLUMNS = {
    "method": ("method", ""),
    "operations an image": ("flops", ""),
    "forward passes": ("forwards", None),
    "memory of a call": ("peak_bytes", "B"),
    "time an image, at least": ("predicted_seconds", "s"),
}
"""of the table: column of a row, and its unit; None for a plain number"""


def wire_cost(app: Dash, source: Source) -> None:
    """The cost page."""
    inputs = [Input(f"cost-{name}", "value") for name in ASKED]
    outputs = [
        Output("cost-operations", "figure"),
        Output("cost-memory", "figure"),
        Output("cost-tables", "data"),
        Output("cost-said", "children"),
    ]
    wire(app, show_cost, source, outputs, inputs)
    wire_client(app, "tables", Output("cost-shown", "data"), Input("cost-tables", "data"))
    wire_client(app, "cost_link", Output("cost-linked", "data"), inputs, prevent_initial_call=True)


def layout(source: Source, runs: Mapping[str, Run], search: str | None) -> list[Any]:
    """The page before anything is counted: a network like that of the sweep, or what the link asks for."""
    offered = cost_view.offered_models(recorded_models(runs))
    said, problems = parse(search, offered, defaults_of(source, runs))
    return [
        html.Div(parts.notices(problems)),
        settings(offered, said),
        html.Div(id="cost-said"),
        html.Div(
            [
                parts.figure_panel(
                    "cost-operations",
                    "Operations for one image",
                    "A logarithmic axis: each line is ten times the one before.",
                ),
                parts.figure_panel(
                    "cost-memory", "Memory of one call", "Beyond the network and the images themselves."
                ),
            ],
            className="cards",
        ),
        parts.sheet("cost", "In numbers", EXPLAINED),
        *(dcc.Store(id=f"cost-{name}") for name in ("tables", "shown", "linked")),
    ]


def settings(offered: Sequence[str], said: Mapping[str, Any]) -> html.Section:
    """The controls of what is counted, at the values that are asked for."""
    numbers = [
        parts.labelled(
            text,
            dcc.Input(
                id=f"cost-{name}",
                type="number",
                min=LEAST[name],
                max=LARGEST[name],
                step=1,
                value=said[name],
                debounce=True,
            ),
        )
        for name, text in LABELS.items()
    ]
    pickers = [parts.labelled("Network", parts.picker("cost-model", offered, said["model"])), *numbers]
    sliders = [
        parts.labelled(
            "S: steps of integrated gradients (own: the method's default)",
            count_slider("cost-steps", said["steps"]),
        ),
        parts.labelled(
            "N: samples of SmoothGrad, GradientSHAP and LIME (own: each method's default)",
            count_slider("cost-samples", said["samples"]),
        ),
    ]
    title = html.H2("What does explaining an image cost?")
    return html.Section([title, html.Div(pickers, className="pickers small"), *sliders], className="panel")


EXPLAINED = (
    "Counted are floating-point operations of convolutions, linear layers and matrix products, forward and "
    "backward; a multiply-accumulate is two. Time is what they take on one thread at the speed of large "
    "matrix products, which small networks do not reach. Here networks are shapes and nothing is computed; "
    "python -m sweeps.cost --measure also measures."
)


def recorded_models(runs: Mapping[str, Run]) -> list[str]:
    """The models of the sweep that can be built here."""
    return list(dict.fromkeys(str(run.record["model"]) for run in runs.values() if run.record.get("model")))


def defaults_of(source: Source, runs: Mapping[str, Run]) -> dict[str, int]:
    """Image size and classes of the first run that tells them."""
    for run in runs.values():
        try:
            shape = data.probe_of(source, run)["images"].shape[1:]
        except data.UNREADABLE:
            continue
        classes = run.record.get("classes")
        if len(shape) == 3 and isinstance(classes, list) and max(shape[1:]) <= LARGEST["side"]:
            return {
                **DEFAULTS,
                "side": int(max(shape[1:])),
                "channels": int(shape[0]),
                "classes": len(classes),
            }
    return DEFAULTS


def parse(
    search: str | None, offered: Sequence[str], defaults: Mapping[str, int]
) -> tuple[dict[str, Any], list[str]]:
    """What a link asks for, with defaults for the rest, and in words what of it cannot be had."""
    given = {name: values[0] for name, values in parse_qs((search or "").lstrip("?")).items()}
    said: dict[str, Any] = {"model": offered[0], **defaults, "steps": 0, "samples": 0}
    largest = {**LARGEST, "steps": len(COUNTS) - 1, "samples": len(COUNTS) - 1}
    problems = []
    for name, text in given.items():
        if name == "model" and text in offered:
            said[name] = text
        elif name in largest and whole_number(text) in range(LEAST.get(name, 0), largest[name] + 1):
            said[name] = whole_number(text)
        else:
            problems.append(f"The link's {name} {text!r} cannot be had here: the default is shown.")
    return said, problems


def count_slider(name: str, place: int) -> dcc.Slider:
    """A slider over COUNTS."""
    marks: Any = {i: {"label": "own" if n is None else str(n)} for i, n in enumerate(COUNTS)}
    return dcc.Slider(
        0,
        len(COUNTS) - 1,
        1,
        value=place,
        id=name,
        marks=marks,
        updatemode="drag",
        allow_direct_input=False,
    )


def show_cost(source: Source, model: str | None, *values: Any) -> tuple[Any, ...]:
    """Two charts, the table, and remarks; a mistake is told in words, with empty charts."""
    try:
        numbers: dict[str, Any] = dict(zip(ASKED[1:], values, strict=True))
        check_code("model", str(model), source.allow_code)
        rows = counted(str(model), numbers)
    except UsageError as error:
        nothing = figures.blank("nothing to show")
        return (
            nothing,
            nothing,
            {"cost": {"columns": [], "rows": [], "total": 0}},
            parts.notices([str(error)]),
        )
    ends = counted(str(model), {**numbers, "steps": len(COUNTS) - 1, "samples": len(COUNTS) - 1})
    return (
        bars(rows, "flops", "", limits([*rows, *ends], "flops"), "floating-point operations"),
        bars(rows, "peak_bytes", "B", limits([*rows, *ends], "peak_bytes"), "bytes"),
        {"cost": table_of(rows)},
        [],
    )


def counted(model: str, numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per method for what the controls say. Raises UsageError."""
    for name, most in LARGEST.items():
        if not isinstance(numbers[name], int) or not LEAST[name] <= numbers[name] <= most:
            raise UsageError(name, numbers[name], f"must be a whole number from {LEAST[name]} to {most}")
    shape = numbers["channels"], numbers["side"], numbers["side"]
    chosen = {"ig_steps": COUNTS[numbers["steps"] or 0], "samples": COUNTS[numbers["samples"] or 0]}
    given = {name: number for name, number in chosen.items() if number is not None}
    return cost_view.rows(model, shape, numbers["classes"], numbers["images"], given)


def limits(rows: Sequence[Mapping[str, Any]], column: str) -> tuple[float, float]:
    """Powers of ten that hold every value at every place of the sliders, so that bars grow and axes stay."""
    values = [row[column] for row in rows if row[column] > 0] or [1.0]
    return float(np.floor(np.log10(min(values)) - 0.2)), float(np.log10(max(values)) + 0.9)


def bars(
    rows: Sequence[Mapping[str, Any]], column: str, unit: str, ends: tuple[float, float], axis: str
) -> figures.Figure:
    """A bar per method on a logarithmic axis, with its number; 0 has no place there and is only written."""
    names = [row["method"] for row in rows]
    texts = [chart.text_of(row, column, unit) for row in rows]
    start = 10 ** ends[0]
    trace = {
        "type": "bar",
        "orientation": "h",
        "y": names,
        "base": start,
        "x": [max(row[column] - start, 0.0) for row in rows],
        "text": texts,
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": style.PALETTE[0]},
        "customdata": texts,
        "hovertemplate": "%{y}: %{customdata}<extra></extra>",
    }
    layout = {
        **figures.BASE,
        "height": 70 + 27 * len(rows),
        "margin": {"l": 10, "r": 36, "t": 8, "b": 40},
        "xaxis": {
            **figures.AXIS,
            "type": "log",
            "range": list(ends),
            "dtick": 1,
            "exponentformat": "SI",
            "title": {"text": axis},
        },
        "yaxis": {
            **figures.AXIS,
            "range": [len(rows) - 0.5, -0.5],
            "automargin": True,
            "showgrid": False,
            "ticks": "",
        },
    }
    return {"data": [trace], "layout": layout}


def table_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows for the browser, which sorts by the numbers and shows the texts."""
    numbers = [[row[column] for column, _ in COLUMNS.values()] for row in rows]
    texts = [[text_of(row, column, unit) for column, unit in COLUMNS.values()] for row in rows]
    return {"columns": list(COLUMNS), "rows": numbers, "texts": texts, "total": len(rows)}


def text_of(row: Mapping[str, Any], column: str, unit: str | None) -> str:
    """A cell of the table."""
    if column == "method":
        return row["method"]
    return chart.count_text(row[column]) if unit is None else chart.text_of(row, column, unit)
