"""The first page's moving parts: pickers, a panel of maps per run, curves, the pair of epochs, exports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from dash import html

from epochlens.show.explorer import answer, data, figures, pictures
from epochlens.show.explorer.data import Run, Source
from epochlens.show.explorer.view import View

MOST_THUMBNAILS = 256


class Choice(NamedTuple):
    """What the pickers of a run offer, and what is picked."""

    datasets: list[str]
    models: list[str]
    rates: list[str]
    runs: list[dict[str, str]]
    dataset: str
    model: str
    rate: str
    run: str


def fields(run: Run) -> tuple[str, str, str]:
    """Dataset, model and learning rate of a run as the pickers have them."""
    rate = float(run.record.get("learning_rate") or 0)
    return str(run.record.get("dataset")), str(run.record.get("model")), f"{rate:g}"


def choose(
    runs: Mapping[str, Run], dataset: str | None, model: str | None, rate: str | None, name: str | None
) -> Choice | None:
    """The run nearest to what is picked; None when there is no run.

    Each picker keeps its value where there is such a run, else takes the first. The seed stays where it can.
    """
    left = list(runs.values())
    if not left:
        return None
    offered: list[list[str]] = []
    picked: list[str] = []
    for place, wanted in enumerate((dataset, model, rate)):
        there = list(dict.fromkeys(fields(run)[place] for run in left))
        picked.append(wanted if wanted in there else there[0])
        offered.append(there)
        left = [run for run in left if fields(run)[place] == picked[-1]]
    seed = runs[name].record.get("seed") if name is not None and name in runs else None
    same = (
        [run for run in left if run.name == name] or [r for r in left if r.record.get("seed") == seed] or left
    )
    seeds = [run.record.get("seed") for run in left]
    labels = [
        {"value": run.name, "label": seed_label(run, seeds.count(run.record.get("seed")) > 1)} for run in left
    ]
    (datasets, models, rates), (dataset, model, rate) = offered, picked
    return Choice(datasets, models, rates, labels, dataset, model, rate, same[0].name)


def seed_label(run: Run, ambiguous: bool) -> str:
    """A run's seed, with its folder where the seed does not tell it apart, and its status unless done."""
    status = "" if run.status == "done" else f" ({run.status})"
    return f"{run.record.get('seed', 0)}{f' {run.name}' if ambiguous else ''}{status}"


def epochs_of(source: Source, run: Run) -> np.ndarray:
    """The recorded epochs of a run; empty where nothing can be read yet."""
    try:
        return data.metrics_of(source, run)["epoch"].to_numpy(int)
    except data.UNREADABLE:
        return np.empty(0, int)


def frame_at(epochs: np.ndarray, epoch: float) -> int:
    """Position of the last recorded epoch up to the chosen one, at least 0."""
    return max(0, int(np.searchsorted(epochs, epoch, side="right")) - 1)


def class_name(run: Run, number: int) -> str:
    """A class in the dataset's own numbering."""
    classes = run.record.get("classes")
    return str(classes[number]) if isinstance(classes, list) and 0 <= number < len(classes) else str(number)


def sentences(source: Source, run: Run, position: int, method: str) -> list[str]:
    """What is said of the image at each recorded epoch: accuracy, prediction, class explained."""
    maps, metrics = data.maps_of(source, run, method), data.metrics_of(source, run)
    accuracy = metrics.set_index("epoch")["accuracy"].reindex(maps.epochs).to_numpy(float)
    label, said = int(data.probe_of(source, run)["labels"][position]), []
    for t, epoch in enumerate(maps.epochs.tolist()):
        predicted, target = int(maps.predictions[t, position]), int(maps.targets[t, position])
        right = "✓" if predicted == label else "✗"
        known = f" · accuracy {accuracy[t]:.3f}" if np.isfinite(accuracy[t]) else ""
        words = (
            f"predicts {class_name(run, predicted)} {right} · maps explain class {class_name(run, target)}"
        )
        said.append(f"epoch {epoch}{known} · {words}")
    return said


def run_panel(source: Source, run: Run, letter: str, position: int, view: View, epoch: float) -> html.Section:
    """The image and the chosen maps of a run, showing the chosen epoch. Raises what UNREADABLE names."""
    methods = [name for name in run.methods if name in view.methods] or run.methods
    probe = data.probe_of(source, run)
    sprites = {}
    for method in methods:
        flat = pictures.summed(data.maps_of(source, run, method).attributions[:, 0, position])
        sprites[method] = pictures.sprite(pictures.changed(flat, view.change), view.scale)
    epochs = data.maps_of(source, run, methods[0]).epochs
    frame, said = frame_at(epochs, epoch), sentences(source, run, position, methods[0])
    label = class_name(run, int(probe["labels"][position]))
    tiles = [
        photo_tile(
            probe["images"][position], f"input, test image {probe['indices'][position]}, class {label}"
        )
    ]
    for method, sprite in sprites.items():
        tiles.append(sprite_tile(sprite, method, frame, answer.settled_words(source, run, method, position)))
    status = [] if run.status == "done" else [html.Span(f" {run.status}", className="status")]
    carried: dict[str, Any] = {"data-epochs": json.dumps(epochs.tolist()), "data-said": json.dumps(said)}
    return html.Section(
        [
            html.H2([html.B(letter, className=f"letter {letter}"), f" {run.title}", *status]),
            html.P(said[frame], className="said"),
            html.Div(tiles, className="tiles"),
        ],
        className="panel run",
        **carried,
    )


def photo_tile(image: np.ndarray, caption: str) -> html.Figure:
    """An input image with its caption."""
    height, width = pictures.shown_size(*pictures.photo(image).shape[:2])
    picture = html.Img(src=pictures.photo_uri(image), style={"width": width, "height": height}, alt=caption)
    return html.Figure([picture, html.Figcaption(caption)])


def sprite_tile(sprite: pictures.Sprite, caption: str, frame: int, more: str = "") -> html.Figure:
    """One cell of a sheet with its caption, the value of its deepest colour, and more to say."""
    height, width = pictures.shown_size(sprite.height, sprite.width)
    row, column = divmod(frame, sprite.columns)
    style = {
        "width": width,
        "height": height,
        "backgroundImage": f"url({sprite.uri})",
        "backgroundSize": f"{sprite.columns * width}px {sprite.rows * height}px",
        "backgroundPosition": f"{-column * width}px {-row * height}px",
    }
    limits = [limit_words(limit) for limit in sprite.limits]
    named: dict[str, Any] = {"aria-label": f"map of {caption}"}
    cell = html.Div(className="sprite", style=style, role="img", **named)
    said = [html.Span(more, className="more")] if more else []
    below = html.Figcaption([caption, html.Span(limits[frame], className="limit"), *said])
    size = {"data-columns": sprite.columns, "data-width": width, "data-height": height}
    carried: dict[str, Any] = {**size, "data-limits": json.dumps(limits)}
    return html.Figure([cell, below], className="map", **carried)


def limit_words(limit: float) -> str:
    """The value of the deepest colour, or that there is nothing to see."""
    return f"±{limit:.3g}" if limit > 0 else "nothing to show"


def run_panels(
    source: Source, runs: Mapping[str, Run], view: View, epoch: float
) -> tuple[list[Any], list[str]]:
    """The panel of the run, and of the one it is compared with, with remarks on what cannot be shown."""
    found, remarks = [], []
    run = runs[view.run or ""]
    for letter, chosen in (("A", run), ("B", runs.get(view.other or ""))):
        if chosen is None:
            continue
        try:
            position, remark = place(source, run, chosen, view.probe)
            found.append(run_panel(source, chosen, letter, position, view, epoch))
            remarks += [remark] if remark else []
        except data.UNREADABLE as error:
            if chosen.epochs:
                remarks.append(f"{chosen.name}: cannot be read now ({type(error).__name__}: {error}).")
            else:
                remarks.append(f"{chosen.title} has no recorded epoch yet ({chosen.status}).")
    return found, remarks


def place(source: Source, first: Run, run: Run, position: int) -> tuple[int, str]:
    """Where a run holds the image at a position of the first run's, and what to know about it."""
    probe = data.probe_of(source, run)
    position = min(position, len(probe["labels"]) - 1)
    if run is first:
        return position, ""
    found = data.position_of(data.probe_of(source, first), probe, position)
    if found is not None:
        return found, ""
    return position, "Run B did not record this image: another one is shown for it."


def curves(source: Source, runs: Mapping[str, Run], view: View) -> list[figures.Curves]:
    """Accuracy and similarity over epochs of the run and the one it is compared with, as far as readable."""
    found = []
    for letter, name in (("A", view.run), ("B", view.other)):
        run = runs.get(name or "")
        if run is None or not run.epochs:
            continue
        try:
            position = place(source, runs[view.run or ""], run, view.probe)[0]
            similar = {}
            for method in [m for m in run.methods if m in view.methods] or run.methods:
                values = data.cosines_of(source, run, method)[view.reference]
                similar[method] = values[:, position] if view.average == "image" else defined_mean(values)
            metrics = data.metrics_of(source, run)
            epochs = data.maps_of(source, run, next(iter(similar))).epochs
            accuracy = metrics.set_index("epoch")["accuracy"].reindex(epochs).to_numpy(float)
            found.append(figures.Curves(letter, epochs, accuracy, similar))
        except data.UNREADABLE:
            continue
    return found


def defined_mean(values: np.ndarray) -> np.ndarray:
    """Mean over images [T,N] -> [T] of what is defined; NaN where nothing is."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(1) / known.sum(1)


def thumbnails(source: Source, run: Run) -> list[html.Button]:
    """A button per probe image."""
    probe = data.probe_of(source, run)
    found = []
    for i, image in enumerate(probe["images"][:MOST_THUMBNAILS]):
        said = f"image {i}, class {class_name(run, int(probe['labels'][i]))}"
        picture = html.Img(src=pictures.photo_uri(image), alt=said)
        found.append(html.Button(picture, id={"type": "thumb", "index": i}, title=said, className="thumb"))
    return found


def pair(source: Source, run: Run, position: int, methods: Sequence[str], a: int, b: int) -> list[Any]:
    """The maps at two epochs on one scale, and their difference, a row each."""
    rows: dict[str, list[Any]] = {f"epoch {a}": [], f"epoch {b}": [], f"epoch {b} minus epoch {a}": []}
    for method in [name for name in run.methods if name in methods] or run.methods:
        maps = data.maps_of(source, run, method)
        places = [frame_at(maps.epochs, epoch) for epoch in (a, b)]
        flat = pictures.summed(maps.attributions[places, 0, position])
        both = pictures.sprite(flat, "shared")
        change = pictures.sprite(flat[1:] - flat[:1])
        tiles = [sprite_tile(both, method, 0), sprite_tile(both, method, 1), sprite_tile(change, method, 0)]
        for row, tile in zip(rows.values(), tiles, strict=True):
            row.append(tile)
    return [
        html.Div([html.H3(title), html.Div(tiles, className="tiles small")], className="pair")
        for title, tiles in rows.items()
    ]
