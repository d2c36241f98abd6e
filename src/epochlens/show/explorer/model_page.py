"""The model page: a run's saved network explains any test image; and the first page's probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs

import numpy as np
from dash import ClientsideFunction, Input, Output, State, dcc, html, no_update

from epochlens.errors import UsageError
from epochlens.lazy import LazyModule
from epochlens.show.explorer import data, figures, pages, panels, pictures
from epochlens.show.explorer.data import Run, Source

if TYPE_CHECKING:
    from dash import Dash

    from epochlens.show.explorer import model_view
else:
    model_view = LazyModule("epochlens.show.explorer.model_view")

MOST_CHANNELS = 64


class Loaded(NamedTuple):
    """A run's network and its dataset's test split."""

    network: Any
    images: np.ndarray
    labels: np.ndarray


def wire_model(app: Dash, source: Source) -> None:
    """The model page, and the probabilities on the first page."""
    inputs = [Input(f"model-{name}", "value") for name in ("run", "weights", "image", "target", "methods")]

    def offer(name: str, weights: str, target: str) -> tuple[Any, ...]:
        return offer_choices(source, name, weights, target)

    def explained(
        name: str, weights: str, image: int | None, target: str, methods: Sequence[str] | None
    ) -> tuple[Any, Any]:
        return show_explained(source, name, weights, image, target, methods)

    def last(drawn: Any, *values: Any) -> list[Any]:
        return show_probabilities(source, *values)

    offered = [
        Output("model-weights", "options"),
        Output("model-weights", "value"),
        Output("model-target", "options"),
        Output("model-target", "value"),
        Output("model-methods", "options"),
    ]
    app.callback(offered, [inputs[0], State("model-weights", "value"), State("model-target", "value")])(offer)
    app.callback([Output("model-found", "children"), Output("model-images", "data")], inputs)(explained)
    states = [State(name, "value") for name in ("run", "other", "probe")]
    app.callback(
        Output("probabilities", "children"), [Input("drawn", "data"), *states], prevent_initial_call=True
    )(last)
    for name, outputs, asked in (
        ("model_link", Output("model-linked", "data"), inputs),
        (
            "random",
            Output("model-image", "value"),
            [Input("model-random", "n_clicks"), State("model-images", "data")],
        ),
    ):
        app.clientside_callback(
            ClientsideFunction("epochlens", name), outputs, asked, prevent_initial_call=True
        )


def layout(runs: Mapping[str, Run], search: str | None) -> list[Any]:
    """Any test image explained by a run's saved weights."""
    said = {name: values[0] for name, values in parse_qs((search or "").lstrip("?")).items()}
    saved = {name: run for name, run in runs.items() if data.weights_of(run)}
    if not saved:
        return pages.notices(
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
        pages.labelled("Run", pages.picker("model-run", options, run.name)),
        pages.labelled(
            "Weights after epoch",
            pages.picker("model-weights", weights, chosen if chosen in weights else weights[0]),
        ),
        pages.labelled("Test image", image),
        pages.labelled("Class explained", pages.picker("model-target", [], said.get("target", "label"))),
        pages.labelled(
            "Methods", dcc.Dropdown([], multi=True, id="model-methods", placeholder="all methods")
        ),
    ]
    return [
        html.Div(pages.notices(problems)),
        html.Div(pickers, className="panel pickers"),
        pages.waiting(html.Div(id="model-found")),
        dcc.Store(id="model-linked"),
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
    return saved, weights if weights in saved else saved[0], targets, known, model_view.method_names()


def show_explained(
    source: Source,
    name: str | None,
    weights: str,
    index: int | None,
    target: str,
    methods: Sequence[str] | None,
) -> tuple[list[Any], Any]:
    """The image with its probabilities, maps and feature maps, and the last test image's number.

    A mistake is told in words in their place.
    """
    run = data.find_runs(source.folder).get(name or "")
    if run is None:
        return pages.notices([f"run {name!r} is not in this sweep"]), no_update
    try:
        found = load(source, run, weights)
        last = len(found.labels) - 1
        if index is None or not 0 <= index <= last:
            return pages.notices([f"Test image {index} is not there: images run from 0 to {last}."]), last
        return explained(found, run, weights, index, target, methods or model_view.method_names()), last
    except (UsageError, *data.UNREADABLE) as error:
        return pages.notices([str(error)]), no_update


def explained(
    found: Loaded, run: Run, weights: str, index: int, target: str, methods: Sequence[str]
) -> list[Any]:
    """The three parts of the model page for an image of the test split."""
    image, label = found.images[index], int(found.labels[index])
    probabilities = model_view.probabilities(found.network, image[None])[0]
    classes = [str(c) for c in run.record["classes"]]
    named = {"label": label, "predicted": int(probabilities.argmax())}
    chosen = named[target] if target in named else classes.index(str(target))
    epoch = int(run.record.get("epochs") or 0) if weights == "last" else int(weights)
    maps = model_view.explain(found.network, image, chosen, methods, int(run.record.get("seed") or 0), epoch)
    predicted = f"predicts {classes[named['predicted']]}"
    said = f"label {classes[label]} · {predicted} · maps explain class {classes[chosen]}"
    bars = pages.drawn(figures.bars_figure(classes, probabilities.tolist(), chosen))
    return [
        html.Div(
            [
                html.Section(
                    [html.H2(f"Test image {index}"), html.P(said), panels.photo_tile(image, "input")],
                    className="panel",
                ),
                html.Section([html.H2("Probabilities"), bars], className="panel"),
            ],
            className="cards",
        ),
        html.Section([html.H2("Maps"), html.Div(map_tiles(maps), className="tiles")], className="panel"),
        html.Section(
            [
                html.H2("Feature maps of each convolution"),
                *layer_sheets(model_view.feature_maps(found.network, image)),
            ],
            className="panel",
        ),
    ]


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
        found.append(html.Div([html.H3([name, html.Small(f" {size}")]), picture]))
    return found or [html.P("This network has no convolution.")]


def show_probabilities(source: Source, name: str | None, other: str | None, probe: int | None) -> list[Any]:
    """Each shown run's last probabilities for the chosen image; nothing where no weights were saved."""
    runs, found = data.find_runs(source.folder), []
    for letter, run in (("A", runs.get(name or "")), ("B", runs.get(other or ""))):
        if run is None or "last" not in data.weights_of(run):
            continue
        try:
            position = panels.place(source, runs[name or ""], run, int(probe or 0))[0]
            images = data.probe_of(source, run)
            image, classes = images["images"][position], run.record["classes"]
            path = data.weights_of(run)["last"]
            network = model_view.load_network(
                str(run.record["model"]), path, data.modified(path), image.shape, len(classes)
            )
            values = model_view.probabilities(network, image[None])[0]
        except (UsageError, *data.UNREADABLE):
            continue
        figure = figures.bars_figure(
            [str(c) for c in classes], values.tolist(), int(images["labels"][position])
        )
        title = html.H2([html.B(letter, className=f"letter {letter}"), " Probabilities after the last epoch"])
        link = dcc.Link("explain other images with this network", href=f"/model?run={run.name}")
        said = html.P(["The image's own class is orange. ", link], className="caption")
        found.append(html.Section([title, pages.drawn(figure), said], className="panel"))
    return found
