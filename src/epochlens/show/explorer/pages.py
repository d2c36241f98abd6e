"""Pages before anything is picked: controls with the link's values, and what is said without runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dash import dcc, html

from epochlens.show.explorer import data, panels
from epochlens.show.explorer.data import Run, Source
from epochlens.show.explorer.figures import blank
from epochlens.show.explorer.pictures import CHANGES, SCALES
from epochlens.show.explorer.view import AVERAGES, REFERENCES, View, parse_view

PAGES = {"/": "Maps", "/model": "Model", "/stability": "Stability", "/quality": "Quality"}
GRAPHS = ("curves", "matrix", "means", "accuracies", "settling", "matrices", "quality", "quality-curves")
"""figures that are filled in later"""
GRAPH: Any = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
    "toImageButtonOptions": {"format": "png", "scale": 2},
}
WORDS = {
    "own": "each map its own",
    "shared": "shared by all epochs",
    "none": "the map",
    "previous": "change since the epoch before",
    "final": "difference to the last epoch",
    "image": "this image",
    "mean": "mean of all images",
}
CAPTION = (
    "Maps are summed over channels; red speaks for the class, blue against it, grey is undefined. "
    "The number below a map is the value of its deepest colour."
)


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


def graph(name: str) -> dcc.Loading:
    """A figure to come, with a button that saves it as PNG, and a sign while it is computed."""
    config: Any = {**GRAPH, "toImageButtonOptions": {**GRAPH["toImageButtonOptions"], "filename": name}}
    empty = blank("")
    return waiting(dcc.Graph(id=name, config=config, figure=empty, style=high(empty)))


def waiting(children: Any) -> dcc.Loading:
    """Something that shows a sign while it is computed, but not for a moment's work."""
    return dcc.Loading(
        children, delay_show=400, type="dot", color="#0072B2", overlay_style={"visibility": "visible"}
    )


def notices(texts: Sequence[str], kind: str = "notice") -> list[html.Div]:
    """Remarks above a page, in one box; nothing without any."""
    return [html.Div([html.P(text) for text in texts], className=kind, role="status")] if texts else []


def empty_page(source: Source) -> list[Any]:
    """What is said while there is no run."""
    command = f"python -m sweeps.grid --name {source.folder.name} --results-dir {source.folder.parent}"
    return [
        html.Section(
            [
                html.H2("No run here yet"),
                html.P(
                    [
                        html.Code(str(source.folder)),
                        " holds neither sweep.json nor any run. This page looks again by itself.",
                    ]
                ),
                html.P(["A sweep that would appear here: ", html.Code(command)]),
            ],
            className="panel",
        )
    ]


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
        html.Div(notices(said), id="problems"),
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
            html.Summary("What is shown"),
            labelled("Dataset", picker("dataset", picked.datasets, dataset)),
            labelled("Model", picker("model", picked.models, model)),
            labelled("Learning rate", picker("rate", picked.rates, rate)),
            labelled("Seed", picker("run", picked.runs, run.name)),
            labelled(
                "Compare with (B)",
                picker("other", run_options(runs), view.other, clearable=True, placeholder="no other run"),
            ),
            labelled("Image", image),
            html.Div(id="thumbs", className="thumbs"),
            labelled("Methods", dcc.Checklist(run.methods, shown, id="methods", className="switch")),
            labelled("Show", switch("change", CHANGES, view.change)),
            labelled("Colour scale", switch("scale", SCALES, view.scale)),
        ],
        open=True,
        id="controls",
        className="panel controls",
    )


def content(view: View) -> list[Any]:
    """Maps, curves, matrix and probabilities, to be filled in."""
    saves = [
        html.Button("save maps as PNG", id="save-png", type="button"),
        html.Button("maps as CSV", id="save-maps", type="button"),
        html.Button("curves as CSV", id="save-curves", type="button"),
    ]
    references = {"previous": "to the epoch before", "final": "to the last epoch"}
    kinds = [
        dcc.RadioItems(choices(REFERENCES, references), view.reference, id="reference", className="switch"),
        switch("average", AVERAGES, view.average),
    ]
    return [
        html.Div(id="remarks"),
        waiting(html.Div(id="panels", className="cards")),
        html.P(CAPTION, className="caption"),
        html.Div(saves, className="row"),
        html.Div(
            [
                html.Section(
                    [
                        html.H2("Accuracy and cosine similarity of maps"),
                        html.Div(kinds, className="row"),
                        graph("curves"),
                        html.P("Click a point to go to its epoch.", className="caption"),
                    ],
                    className="panel",
                ),
                html.Section(
                    [
                        html.H2("Every epoch with every other (run A)"),
                        picker("matrix-method", [], None),
                        graph("matrix"),
                        html.P("Click a cell to see the maps of both epochs.", className="caption"),
                    ],
                    className="panel",
                ),
            ],
            className="cards",
        ),
        html.Section(html.Div(id="pair"), className="panel pairs", id="pair-panel", hidden=True),
        waiting(html.Div(id="probabilities", className="cards")),
    ]


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


def stability_page(source: Source) -> list[Any]:
    """Tables and figures of the analysis."""
    table = data.table_of(source, "stability_summary")
    pickers: list[Any] = []
    if table is not None:
        methods = sorted(table["method"].astype(str).unique())
        metrics, references = (sorted(table[name].astype(str).unique()) for name in ("metric", "reference"))
        pickers = [
            labelled("Metric", picker("metric", metrics, "cosine" if "cosine" in metrics else metrics[0])),
            labelled(
                "Compared with",
                picker("against", references, "final" if "final" in references else references[0]),
            ),
            labelled("Method (matrices)", picker("method", methods, methods[0])),
        ]
    else:
        pickers = [
            html.Div([picker(name, [], None) for name in ("metric", "against", "method")], hidden=True)
        ]
    intervals = "Lines are means over seeds, bands 95 % t intervals."
    return [
        html.Div(notices(lacking(source, table))),
        html.Div(pickers, className="panel pickers"),
        figure_panel("means", "Similarity over epochs", intervals, wide=True),
        html.Div(
            [
                figure_panel("accuracies", "Test accuracy", "A line per seed."),
                figure_panel(
                    "settling", "When maps settle", "Medians over seeds and images with 95 % intervals."
                ),
            ],
            className="cards",
        ),
        figure_panel(
            "matrices", "Every epoch with every other", "Cosine, mean over seeds and images.", wide=True
        ),
        sheet("runs", "Runs", "As the store holds them now."),
        sheet("stability_summary", "Similarity", "For the metric and reference chosen above."),
        sheet("settling_summary", "Settling epochs", "All metrics; a median that is not known is left out."),
        sheet("comparisons", "Comparisons", "Paired tests between conditions, p adjusted after Holm."),
        dcc.Store(id="stability-tables"),
        dcc.Store(id="stability-shown"),
    ]


def lacking(source: Source, table: Any) -> list[str]:
    """What to do when the analysis has not been run."""
    if table is not None:
        return []
    return [f"No tables yet: they come when the sweep ends, or with python -m sweeps.analyze {source.folder}"]


def quality_page(source: Source) -> list[Any]:
    """Quality of the maps, where it was measured."""
    table = data.table_of(source, "quality_summary")
    metrics = [] if table is None else sorted(table["metric"].astype(str).unique())
    said = "No quality was measured in this sweep (sweeps.grid --quality ...), or it is not analysed yet."
    return [
        html.Div(notices([] if metrics else [said])),
        html.Div(
            [
                html.Div(
                    labelled("Metric", picker("quality-metric", metrics, next(iter(metrics), None))),
                    className="panel pickers",
                ),
                figure_panel(
                    "quality",
                    "Quality over epochs",
                    "Lines are means over seeds, bands 95 % t intervals.",
                    wide=True,
                ),
                figure_panel(
                    "quality-curves",
                    "Deletion and insertion at the last epoch",
                    "Probability of the target against the fraction of pixels changed.",
                    wide=True,
                ),
                sheet("quality_summary", "Quality", "For the metric chosen above, at the last epoch."),
                sheet("quality_metrics", "Metrics", "Which way is better, and why values can be undefined."),
            ],
            hidden=not metrics,
        ),
        dcc.Store(id="quality-tables"),
        dcc.Store(id="quality-shown"),
    ]
