"""The first page before anything is drawn: controls with the link's values, and places for the panels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dash import dcc, html

from epochlens.show.explorer import data, panels, parts
from epochlens.show.explorer.data import Run, Source
from epochlens.show.explorer.pictures import CHANGES, SCALES
from epochlens.show.explorer.view import AVERAGES, REFERENCES, View, parse_view


def maps_page(source: Source, runs: Mapping[str, Run], search: str | None) -> list[Any]:
    """The first page as its link wants it."""
    view, problems = parse_view(search, runs)
    view, more = fit_view(source, runs, view)
    said = [f"{problem[0].upper()}{problem[1:]}: the default is shown." for problem in [*problems, *more]]
    run = runs[view.run or ""]
    epochs = panels.epochs_of(source, run)
    last = int(epochs[-1]) if len(epochs) else 0
    epoch = last if view.epoch is None else view.epoch
    return [
        html.Div(parts.notices(said), id="problems"),
        html.Div(
            [controls(runs, run, view), html.Div(content(view), className="content")],
            className="columns",
        ),
        epoch_bar(int(epochs[0]) if len(epochs) else 0, last, epoch),
        dcc.Store(id="drawn"),
        dcc.Store(id="moved"),
        dcc.Store(id="linked"),
        dcc.Store(id="thumbs-of"),
        dcc.Store(id="marked"),
        dcc.Download(id="download"),
    ]


def fit_view(source: Source, runs: Mapping[str, Run], view: View) -> tuple[View, list[str]]:
    """The view with image and epoch that the run has, and in words what it lacks."""
    run, problems = runs[view.run or ""], []
    try:
        images = len(data.probe_of(source, run)["labels"])
    except data.UNREADABLE:
        return view, []
    if view.probe >= images:
        problems.append(f"the link's probe {view.probe} is not among the {images} recorded images")
        view = view._replace(probe=0)
    epochs = panels.epochs_of(source, run)
    if view.epoch is not None and len(epochs) and not epochs[0] <= view.epoch <= epochs[-1]:
        problems.append(f"the link's epoch {view.epoch} is not recorded (epochs {epochs[0]} to {epochs[-1]})")
        view = view._replace(epoch=None)
    return view, problems


def controls(runs: Mapping[str, Run], run: Run, view: View) -> html.Details:
    """All pickers; on a narrow screen they fold away."""
    dataset, model, rate = panels.fields(run)
    picked = panels.choose(runs, dataset, model, rate, run.name)
    assert picked is not None, "there is a run"
    image = html.Div(
        [
            dcc.Input(id="probe", type="number", min=0, step=1, value=view.probe, debounce=True),
            html.Button("random", id="random", type="button"),
        ],
        className="row counted",
    )
    shown = [name for name in run.methods if name in view.methods] or run.methods
    return html.Details(
        [
            html.Summary("Choose run, image and methods"),
            parts.labelled("Dataset", parts.picker("dataset", picked.datasets, dataset)),
            parts.labelled("Model", parts.picker("model", picked.models, model)),
            parts.labelled("Learning rate", parts.picker("rate", picked.rates, rate)),
            parts.labelled("Seed", parts.picker("run", picked.runs, run.name)),
            parts.labelled(
                "Compare with (B)",
                parts.picker(
                    "other", parts.run_options(runs), view.other, clearable=True, placeholder="no other run"
                ),
            ),
            parts.labelled("Image", image),
            html.Div(id="thumbs", className="thumbs"),
            parts.labelled("Methods", dcc.Checklist(run.methods, shown, id="methods", className="switch")),
            parts.labelled("Show", parts.switch("change", CHANGES, view.change)),
            parts.labelled("Colour scale", parts.switch("scale", SCALES, view.scale)),
        ],
        open=True,
        id="controls",
        className="panel controls",
    )


def content(view: View) -> list[Any]:
    """The answer, maps, curves, matrix and probabilities, to be filled in."""
    saves = [
        html.Button("maps as PNG", id="save-png", type="button"),
        html.Button("maps as CSV", id="save-maps", type="button"),
    ]
    settle = [html.H2("When do the explanations settle?"), html.Div(id="answer", className="answer")]
    return [
        html.Section(settle, className="panel"),
        html.Div(id="remarks"),
        parts.waiting(html.Div(id="panels", className="cards")),
        html.P(parts.CAPTION, className="caption"),
        html.Div(saves, className="row"),
        html.Div([curves_panel(view), matrix_panel()], className="cards"),
        html.Section(html.Div(id="pair"), className="panel pairs", id="pair-panel", hidden=True),
        parts.waiting(html.Div(id="probabilities", className="cards")),
    ]


def curves_panel(view: View) -> html.Section:
    """Accuracy and similarity over epochs, with what is compared with what."""
    references = {"previous": "map against the epoch before", "final": "map against the last epoch"}
    kinds = [
        dcc.RadioItems(
            parts.choices(REFERENCES, references), view.reference, id="reference", className="switch"
        ),
        parts.switch("average", AVERAGES, view.average),
    ]
    caption = (
        "Similarity is the cosine of two maps: 1 the same, 0 unrelated. Dotted: the bound for settled, 0.95. "
        "Click a point to go to its epoch."
    )
    return html.Section(
        [
            html.H2("Accuracy, and how similar the maps are"),
            html.Div(kinds, className="row"),
            parts.graph("curves", [html.Button("CSV", id="save-curves", type="button")]),
            html.P(caption, className="caption"),
        ],
        className="panel",
    )


def matrix_panel() -> html.Section:
    """The similarity of every pair of epochs."""
    caption = "How similar the maps of two epochs are. Click a cell to see the maps of both."
    return html.Section(
        [
            html.H2("Every epoch with every other (run A)"),
            parts.picker("matrix-method", [], None),
            parts.graph("matrix"),
            html.P(caption, className="caption"),
        ],
        className="panel",
    )


def epoch_bar(first: int, last: int, epoch: int) -> html.Div:
    """The slider that drives every panel, with play and pause."""
    slider = dcc.Slider(
        first,
        max(last, first + 1),
        1,
        value=epoch,
        id="epoch",
        updatemode="drag",
        marks=None,
        tooltip={"placement": "top", "always_visible": False},
    )
    return html.Div(
        [
            html.Button("▶ play", id="play", type="button", title="space"),
            html.Div(slider, className="slider"),
            html.Output(f"epoch {epoch}", id="epoch-now"),
        ],
        className="epoch-bar",
        title="left and right arrow: one epoch; space: play and pause",
    )
