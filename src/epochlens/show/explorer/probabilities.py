"""Probabilities of the classes beside the maps: of every epoch whose weights were kept, else of the last."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from dash import dcc, html

from epochlens.errors import UsageError
from epochlens.lazy import LazyModule
from epochlens.learn.permission import check_code
from epochlens.show.explorer import data, panels, parts
from epochlens.show.explorer.data import Run, Source

if TYPE_CHECKING:
    from epochlens.show.explorer import model_view
else:
    model_view = LazyModule("epochlens.show.explorer.model_view")

MOST_CLASSES = 10
MOST_BYTES = 2**30
"""of weights that are read for one run: larger ones are shown after the last epoch only"""


def kept_weights(run: Run) -> dict[int, Path]:
    """The weights to show by epoch: each epoch's where kept and not too large, else the last's."""
    saved = data.weights_of(run)
    each = {int(name): path for name, path in saved.items() if name != "last"}
    if each and sum(path.stat().st_size for path in each.values()) <= MOST_BYTES:
        return each
    return {int(run.record.get("epochs") or 0): saved["last"]} if "last" in saved else {}


def all_probabilities(source: Source, run: Run) -> tuple[list[int], np.ndarray]:
    """Epochs [T] and softmax probabilities of all probe images [T,N,K]. Raises as loading a network does."""
    weights, model = kept_weights(run), str(run.record["model"])
    check_code("model", model, source.allow_code)
    classes, images = len(run.record["classes"]), data.probe_of(source, run)["images"]

    def ask() -> np.ndarray:
        found = []
        for path in weights.values():
            changed, shape = data.modified(path), images.shape[1:]
            network = model_view.load_network(model, path, changed, shape, classes)
            found.append(model_view.probabilities(network, images))
        return np.array(found)

    return list(weights), source.cache.get(("probabilities", run.name, run.revision, tuple(weights)), ask)


def show_probabilities(
    source: Source, name: str | None, other: str | None, probe: int | None, epoch: int | None = None
) -> list[Any]:
    """A panel of bars for each shown run, which the slider moves; nothing where no weights were kept."""
    runs, found = data.find_runs(source.folder), []
    for letter, run in (("A", runs.get(name or "")), ("B", runs.get(other or ""))):
        if run is None or not kept_weights(run):
            continue
        try:
            position = panels.place(source, runs[name or ""], run, int(probe or 0))[0]
            epochs, values = all_probabilities(source, run)
            label = int(data.probe_of(source, run)["labels"][position])
            found.append(probability_panel(run, letter, epochs, values[:, position], label, epoch))
        except UsageError as error:
            found += parts.notices([f"{letter}: {error}"])
        except data.UNREADABLE:
            continue
    return found


def probability_panel(
    run: Run, letter: str, epochs: list[int], values: np.ndarray, label: int, epoch: int | None
) -> html.Section:
    """Probabilities [T,K] as bars in the order of the classes, showing the chosen epoch."""
    classes = [str(c) for c in run.record["classes"]]
    shown = chosen_classes(values, label)
    frame = panels.frame_at(np.array(epochs), epochs[-1] if epoch is None else epoch)
    bars = [[round(float(row[k]), 4) for k in shown] for row in values]
    lines = [bar(f"class {classes[k]}", bars[frame][i], k == label) for i, k in enumerate(shown)]
    cut = f" The {len(shown)} most likely of {len(classes)} classes." if len(shown) < len(classes) else ""
    only = (
        "" if len(epochs) > 1 else " Only the last epoch's weights were kept (--keep-weights all keeps each)."
    )
    link = dcc.Link("explain other images with this network", href=f"/model?run={run.name}")
    carried: dict[str, Any] = {"data-epochs": json.dumps(epochs), "data-bars": json.dumps(bars)}
    return html.Section(
        [
            html.H2([html.B(letter, className=f"letter {letter}"), " How sure the network is"]),
            html.P(f"after epoch {epochs[frame]}", className="said probable-at"),
            html.Div(lines, className="bars"),
            html.P(
                [f"Softmax probabilities; the image's own class is orange.{cut}{only} ", link],
                className="caption",
            ),
        ],
        className="panel probable",
        **carried,
    )


def chosen_classes(values: np.ndarray, label: int) -> list[int]:
    """The classes that are ever most likely [T,K], the label among them, in their own order."""
    order = np.argsort(-values.max(0), kind="stable").tolist()
    kept = [label, *(k for k in order if k != label)][:MOST_CLASSES]
    return sorted(kept)


def bar(name: str, value: float, own: bool) -> html.Div:
    """One class with its bar and number."""
    fill = html.Div(className="fill own" if own else "fill", style={"width": f"{100 * value:.1f}%"})
    return html.Div(
        [html.Span(name), html.Div(fill, className="track"), html.Output(f"{value:.2f}")], className="bar"
    )


def bars_of(classes: Sequence[str], values: np.ndarray, marked: int) -> html.Div:
    """The largest probabilities [K] as bars, the most likely first, one class marked."""
    shown = sorted(chosen_classes(values[None], marked), key=lambda k: -values[k])
    return html.Div(
        [bar(f"class {classes[k]}", float(values[k]), k == marked) for k in shown], className="bars"
    )
