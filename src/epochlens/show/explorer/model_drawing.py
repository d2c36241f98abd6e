"""What the model page shows of an image: a saved network's probabilities, its maps and its feature maps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from dash import html, no_update

from epochlens.errors import UsageError
from epochlens.lazy import LazyModule
from epochlens.learn.permission import check_code
from epochlens.show.explorer import data, panels, parts, patience, pictures, probabilities
from epochlens.show.explorer.data import Run, Source

if TYPE_CHECKING:
    from epochlens.show.explorer import model_view
else:
    model_view = LazyModule("epochlens.show.explorer.model_view")

MOST_CHANNELS = 64
CHANNELS = "Each small picture is one channel of a layer's output for this image: red above zero, blue below."


class Loaded(NamedTuple):
    """A run's network and its dataset's test split."""

    network: Any
    images: np.ndarray
    labels: np.ndarray


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
    named = settings.get("datasets")
    specs = [spec for spec in named if isinstance(spec, str)] if isinstance(named, list) else []
    spec, model = model_view.find_spec(str(run.record["dataset"]), specs), str(run.record["model"])
    check_code("model", model, source.allow_code)
    check_code("dataset", spec, source.allow_code)
    folder = source.data_dir or Path(str(settings.get("data_dir") or "data"))
    images, labels = model_view.test_split(spec, tuple(classes), str(folder))
    shape = images.shape[1], images.shape[2], images.shape[3]
    network = model_view.load_network(model, path, data.modified(path), shape, len(classes))
    return Loaded(network, images, labels)


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
        known = model_view.method_names()
        asked = [method for method in methods or known if method in known]
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
    cards = [image_card(index, said, image), sure_card(classes, values, chosen)]
    layers = layer_sheets(model_view.feature_maps(found.network, image))
    return [
        html.Div(cards, className="cards"),
        maps_card(maps, {method: seconds[method] for method in slow}),
        html.Section(
            [html.H2("What each convolution sees"), html.P(CHANNELS, className="caption"), *layers],
            className="panel",
        ),
    ]


def image_card(index: int, said: str, image: np.ndarray) -> html.Section:
    """The image [C,H,W] and what is said of it."""
    return html.Section(
        [html.H2(f"Test image {index}"), html.P(said), panels.photo_tile(image, "input")], className="panel"
    )


def sure_card(classes: Sequence[str], values: np.ndarray, chosen: int) -> html.Section:
    """The probabilities [K] of all classes."""
    return html.Section(
        [
            html.H2("How sure the network is"),
            probabilities.bars_of(classes, values, chosen),
            html.P("Softmax probabilities; the class explained is orange.", className="caption"),
        ],
        className="panel",
    )


def maps_card(maps: Mapping[str, Any], slow: Mapping[str, float]) -> html.Section:
    """The maps there are, and places for the slow methods, whose seconds are told."""
    return html.Section(
        [
            html.H2("Maps"),
            *patience.waiting_notice(slow),
            html.Div([*map_tiles(maps), *patience.slow_tiles(list(slow), slow)], className="tiles"),
            html.P(parts.CAPTION, className="caption"),
        ],
        className="panel",
    )


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
