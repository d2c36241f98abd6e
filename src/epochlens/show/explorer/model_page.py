"""The model page: a run's saved network explains any test image; and the first page's probabilities."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs

import numpy as np
from dash import ALL, Input, Output, State, dcc, html, no_update

from epochlens.errors import UsageError
from epochlens.lazy import LazyModule
from epochlens.show.explorer import data, panels, parts, patience, pictures, probabilities
from epochlens.show.explorer.data import Run, Source
from epochlens.show.explorer.wiring import wire, wire_client

if TYPE_CHECKING:
    from dash import Dash

    from epochlens.show.explorer import model_view
else:
    model_view = LazyModule("epochlens.show.explorer.model_view")

MOST_CHANNELS = 64
CHANNELS = "Each small picture is one channel of a layer's output for this image: red above zero, blue below."
ASKED = ("run", "weights", "image", "target", "methods")


class Loaded(NamedTuple):
    """A run's network and its dataset's test split."""

    network: Any
    images: np.ndarray
    labels: np.ndarray


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
    wire(app, show_explained, source, found, [*inputs, Input("model-allowed", "data")])
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
    index = int(said["image"]) if said.get("image", "").isdecimal() else 0
    if said.get("image", "0") != str(index):
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


def load(source: Source, run: Run, weights: str) -> Loaded:
    """The network with the weights so called, and the test split. Raises UsageError without either."""
    path = data.weights_of(run).get(weights)
    if path is None:
        raise UsageError("weights", weights, f"were not saved for {run.name}")
    settings = data.settings_of(source.folder)
    classes = run.record.get("classes")
    if not isinstance(classes, list):
        raise UsageError(
            "run", run.name, "does not say which classes its network knows: it was recorded elsewhere"
        )
    spec = model_view.find_spec(str(run.record["dataset"]), [str(s) for s in settings.get("datasets") or []])
    folder = source.data_dir or Path(str(settings.get("data_dir") or "data"))
    images, labels = model_view.test_split(spec, tuple(classes), str(folder))
    shape = images.shape[1], images.shape[2], images.shape[3]
    network = model_view.load_network(
        str(run.record["model"]), path, data.modified(path), shape, len(classes)
    )
    return Loaded(network, images, labels)


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
    kept = weights if weights in saved else saved[0]
    return weight_options(run), kept, targets, known, model_view.method_names()


def weight_options(run: Run) -> list[dict[str, str]]:
    """The epochs whose weights were kept, as options of a picker."""
    words = {"last": f"{run.record.get('epochs', '')} (the last)", "0": "0 (untrained)"}
    return [{"value": name, "label": words.get(name, name)} for name in data.weights_of(run)]


def show_explained(
    source: Source,
    name: str | None,
    weights: str,
    index: int | None,
    target: str,
    methods: Sequence[str] | None,
    allowed: Mapping[str, Any] | None = None,
) -> tuple[list[Any], Any]:
    """The image with its probabilities, maps and feature maps, and the last test image's number.

    Slow methods wait until they are allowed. A mistake is told in words.
    """
    run = data.find_runs(source.folder).get(name or "")
    if run is None:
        return parts.notices([f"run {name!r} is not in this sweep"]), no_update
    try:
        found = load(source, run, weights)
        last = len(found.labels) - 1
        if index is None or not 0 <= index <= last:
            return parts.notices([f"Test image {index} is not there: images run from 0 to {last}."]), last
        same = allowed is not None and allowed["of"] == [name, weights, index, target]
        asked = methods or model_view.method_names()
        may = set(allowed["methods"] if allowed is not None and same else [])
        return explained(source, found, run, weights, index, target, asked, may), last
    except (UsageError, *data.UNREADABLE) as error:
        return parts.notices([str(error)]), no_update


def explained(
    source: Source,
    found: Loaded,
    run: Run,
    weights: str,
    index: int,
    target: str,
    methods: Sequence[str],
    allowed: Collection[str] = (),
) -> list[Any]:
    """The three parts of the model page for an image of the test split."""
    image, label = found.images[index], int(found.labels[index])
    values = model_view.probabilities(found.network, image[None])[0]
    classes = [str(c) for c in run.record["classes"]]
    named = {"label": label, "predicted": int(values.argmax())}
    chosen = named[target] if target in named else classes.index(str(target))
    shape, spec = (image.shape[0], image.shape[1], image.shape[2]), str(run.record["model"])
    seconds = model_view.predicted_seconds(found.network, spec, shape, len(classes), methods)
    slow = (
        []
        if patience.ALL_SLOW in allowed
        else [m for m in patience.slow_methods(seconds) if m not in allowed]
    )
    maps = {m: map_of(source, found, run, weights, index, chosen, m) for m in methods if m not in slow}
    right = "✓" if named["predicted"] == label else "✗"
    said = f"label {classes[label]} · predicts {classes[named['predicted']]} {right}"
    said += f" · maps explain class {classes[chosen]}"
    layers = layer_sheets(model_view.feature_maps(found.network, image))
    return [
        html.Div(
            [
                html.Section(
                    [html.H2(f"Test image {index}"), html.P(said), panels.photo_tile(image, "input")],
                    className="panel",
                ),
                html.Section(
                    [
                        html.H2("How sure the network is"),
                        probabilities.bars_of(classes, values, chosen),
                        html.P("Softmax probabilities; the class explained is orange.", className="caption"),
                    ],
                    className="panel",
                ),
            ],
            className="cards",
        ),
        html.Section(
            [
                html.H2("Maps"),
                *patience.waiting_notice({method: seconds[method] for method in slow}),
                html.Div([*map_tiles(maps), *patience.slow_tiles(slow, seconds)], className="tiles"),
                html.P(parts.CAPTION, className="caption"),
            ],
            className="panel",
        ),
        html.Section(
            [html.H2("What each convolution sees"), html.P(CHANNELS, className="caption"), *layers],
            className="panel",
        ),
    ]


def map_of(
    source: Source, found: Loaded, run: Run, weights: str, index: int, target: int, method: str
) -> np.ndarray | str:
    """One method's map [C,H,W], or why there is none; remembered."""
    epoch = int(run.record.get("epochs") or 0) if weights == "last" else int(weights)
    key = (
        "explained",
        run.name,
        data.modified(data.weights_of(run)[weights]),
        weights,
        index,
        target,
        method,
    )
    seed, image = int(run.record.get("seed") or 0), found.images[index]
    return source.cache.get(
        key, lambda: model_view.explain(found.network, image, target, [method], seed, epoch)[method]
    )


def map_tiles(maps: Mapping[str, Any]) -> list[html.Figure]:
    """A picture per method, or why there is none."""
    tiles = []
    for method, values in maps.items():
        if isinstance(values, str):
            words = html.Div(values, className="no-map")
            tiles.append(html.Figure([words, html.Figcaption(method)]))
        else:
            tiles.append(panels.sprite_tile(pictures.sprite(pictures.summed(values[None])), method, 0))
    return tiles


def layer_sheets(layers: Mapping[str, np.ndarray]) -> list[Any]:
    """The channels of each layer [C,h,w] as one picture, on a scale that they share."""
    found = []
    for name, channels in layers.items():
        part = channels[:MOST_CHANNELS]
        sheet = pictures.montage(part)
        factor = max(1, 44 // max(part.shape[1:]))
        more = f", the first {MOST_CHANNELS} shown" if len(channels) > MOST_CHANNELS else ""
        size = f"{len(channels)} channels of {part.shape[1]} x {part.shape[2]}{more}, ±{sheet.limits[0]:.3g}"
        picture = html.Img(
            src=sheet.uri,
            alt=f"feature maps of {name}",
            className="layer",
            style={"width": sheet.width * factor},
        )
        title = html.H3([name, html.Small(f" {size}")])
        found.append(html.Div([title, html.Div(picture, className="wide")]))
    return found or [html.P("This network has no convolution.")]
