"""The model page: which saved network explains which test image, for which class and by which methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from dash import ALL, Input, Output, State, dcc, html, no_update

from epochlens.lazy import LazyModule
from epochlens.show.explorer import data, model_drawing, parts, patience
from epochlens.show.explorer.data import Run, Source
from epochlens.show.explorer.view import whole_number
from epochlens.show.explorer.wiring import wire, wire_client

if TYPE_CHECKING:
    from dash import Dash

    from epochlens.show.explorer import model_view
else:
    model_view = LazyModule("epochlens.show.explorer.model_view")

ASKED = ("run", "weights", "image", "target", "methods")


def wire_model(app: Dash, source: Source) -> None:
    """The model page."""
    inputs = [Input(f"model-{name}", "value") for name in ASKED]
    states = [State(f"model-{name}", "value") for name in ASKED]
    offered = [
        Output("model-weights", "options"),
        Output("model-weights", "value"),
        Output("model-target", "options"),
        Output("model-target", "value"),
        Output("model-methods", "options"),
    ]
    wire(
        app,
        offer_choices,
        source,
        offered,
        [inputs[0], State("model-weights", "value"), State("model-target", "value")],
    )
    found = [Output("model-found", "children"), Output("model-images", "data")]
    wire(app, model_drawing.show_explained, source, found, [*inputs, Input("model-allowed", "data")])
    clicks = Input({"type": "slow", "method": ALL}, "n_clicks")
    allowed = Output("model-allowed", "data")
    wire(
        app,
        patience.allow,
        source,
        allowed,
        [clicks, State("model-allowed", "data"), *states],
        prevent_initial_call=True,
    )
    later = {"prevent_initial_call": True}
    wire_client(app, "model_link", Output("model-linked", "data"), inputs, **later)
    image = [Input("model-random", "n_clicks"), State("model-images", "data")]
    wire_client(app, "random", Output("model-image", "value"), image, **later)


def layout(runs: Mapping[str, Run], search: str | None) -> list[Any]:
    """Any test image explained by a run's saved weights."""
    said = {name: values[0] for name, values in parse_qs((search or "").lstrip("?")).items()}
    saved = {name: run for name, run in runs.items() if data.weights_of(run)}
    if not saved:
        return parts.notices(
            ["No run here has saved weights (sweeps.grid --keep-weights last or all, once a run is done)."]
        )
    problems = (
        []
        if said.get("run", next(iter(saved))) in saved
        else [
            f"The link's run {said['run']!r} has no saved weights in this sweep: the first that has is shown."
        ]
    )
    run = saved.get(said.get("run", ""), next(iter(saved.values())))
    weights = list(data.weights_of(run))
    asked = whole_number(said.get("image", "0"))
    index = asked or 0
    if asked is None:
        problems.append(f"The link's image {said['image']!r} is not a whole number: image 0 is shown.")
    options = [{"value": name, "label": one.title} for name, one in saved.items()]
    chosen = said.get("weights", weights[0])
    image = html.Div(
        [
            dcc.Input(id="model-image", type="number", min=0, step=1, value=index, debounce=True),
            html.Button("random", id="model-random", type="button"),
        ],
        className="row counted",
    )
    pickers = [
        parts.labelled("Run", parts.picker("model-run", options, run.name)),
        parts.labelled(
            "Weights after epoch",
            parts.picker("model-weights", weight_options(run), chosen if chosen in weights else weights[0]),
        ),
        parts.labelled("Test image", image),
        parts.labelled("Class explained", parts.picker("model-target", [], said.get("target", "label"))),
        parts.labelled(
            "Methods", dcc.Dropdown([], multi=True, id="model-methods", placeholder="all methods")
        ),
    ]
    return [
        html.Div(parts.notices(problems)),
        html.Div(pickers, className="panel pickers"),
        parts.waiting(html.Div(id="model-found"), "The network is loaded and explains the image …"),
        dcc.Store(id="model-linked"),
        dcc.Store(id="model-allowed"),
        dcc.Store(id="model-images", data=0),
    ]


def offer_choices(
    source: Source, name: str | None, weights: str | None, target: str | None
) -> tuple[Any, ...]:
    """Options and values of weights and target class, and the methods there are, for a run."""
    run = data.find_runs(source.folder).get(name or "")
    if run is None:
        return (no_update,) * 5
    saved = list(data.weights_of(run))
    classes = run.record.get("classes") or []
    targets = [
        {"value": "label", "label": "its label"},
        {"value": "predicted", "label": "the predicted class"},
    ]
    targets += [{"value": str(c), "label": f"class {c}"} for c in classes]
    known = target if target in [option["value"] for option in targets] else "label"
    kept = weights if weights in saved else next(iter(saved), None)
    return weight_options(run), kept, targets, known, model_view.method_names()


def weight_options(run: Run) -> list[dict[str, str]]:
    """The epochs whose weights were kept, as options of a picker."""
    words = {"last": f"{run.record.get('epochs', '')} (the last)", "0": "0 (untrained)"}
    return [{"value": name, "label": words.get(name, name)} for name in data.weights_of(run)]
