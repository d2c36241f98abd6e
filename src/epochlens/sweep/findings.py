"""What is asked about one test image and what is found, and the sheets, arrays and numbers that show it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from epochlens.config import Run
from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from epochlens.show import explained
else:
    explained = LazyModule("epochlens.show.explained")

MOST_LAYERS = 8
"""convolutions on one sheet; a deeper network gets several"""
TOP_CLASSES = 5


class Network(NamedTuple):
    """The network that is explained: its settings and, of a finished run, its weights."""

    run: Run
    spec: str
    """the dataset as it is named to a sweep"""
    data_dir: str
    weights: Path | None


@dataclass(frozen=True)
class Question:
    """What is to be explained, all of it checked."""

    network: Network
    index: int
    """position in the test split of the network's classes"""
    target: str | int
    """label, predicted, or a class in the dataset's own numbering"""
    methods: tuple[str, ...]
    quality: tuple[str, ...]
    device: str
    output: Path

    @property
    def name(self) -> str:
        """What the files are called."""
        run = self.network.run
        parts = [run.dataset, run.model, f"lr{run.learning_rate:g}", f"seed{run.seed}", f"epochs{run.epochs}"]
        network = [run.run_id] if self.network.weights else parts
        aim = [] if self.target == "label" else [f"target{self.target}"]
        name = "-".join([*(part[:120] for part in network), f"image{self.index}", *aim])
        return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")


class Explanation(NamedTuple):
    """Everything found out about one image [C,H,W]; classes are in the dataset's own numbering."""

    image: np.ndarray
    classes: tuple[int, ...]
    label: int
    prediction: int
    target: int
    probabilities: np.ndarray
    """of the classes, [K]"""
    maps: dict[str, np.ndarray]
    """method -> [C,H,W], or at the layer's own size"""
    superpixels: dict[str, explained.Superpixels]
    values: dict[tuple[str, str], float]
    """(method, quality value) -> number"""
    curves: dict[tuple[str, str], np.ndarray]
    """(method, deletion or insertion) -> probability of the target [S]"""
    fractions: np.ndarray
    """of the pixels changed, [S]"""
    features: dict[str, np.ndarray]
    """convolution -> its output [C,h,w]"""


def sheets(question: Question, found: Explanation) -> Iterator[tuple[str, Figure]]:
    """The figures with the names of their files."""
    name, run = question.name, question.network.run
    title = f"{run.dataset} · {run.model} · test image {question.index}"
    facts = [f"label: class {found.label}", f"prediction: class {found.prediction}"]
    facts += [
        f"the maps explain class {found.target}:",
        "red speaks for it, blue against it",
        "each map has its own scale",
    ]
    yield f"{name}-maps", explained.maps_sheet(found.image, found.maps, top(found), title, facts)
    aimed = f"{title} · class {found.target}"
    if found.superpixels:
        yield f"{name}-superpixels", explained.superpixel_sheet(found.image, found.superpixels, aimed)
    if found.curves:
        yield f"{name}-curves", explained.curves_sheet(found.fractions, *by_kind(found), aimed)
    layers = list(found.features.items())
    for first in range(0, len(layers), MOST_LAYERS):
        page = f"-{first // MOST_LAYERS + 1}" if len(layers) > MOST_LAYERS else ""
        part = dict(layers[first : first + MOST_LAYERS])
        yield f"{name}-features{page}", explained.features_sheet(part, f"{title} · feature maps")


def top(found: Explanation) -> dict[str, float]:
    """Probabilities of the most likely classes, and of the label and the target, the most likely first."""
    ranked = np.argsort(-found.probabilities, kind="stable").tolist()
    kept = [k for i, k in enumerate(ranked) if i < TOP_CLASSES or is_named(found, found.classes[k])]
    names = {k: f"{found.classes[k]}{' (label)' * (found.classes[k] == found.label)}" for k in kept}
    return {names[k]: float(found.probabilities[k]) for k in kept}


def is_named(found: Explanation, label: int) -> bool:
    """Whether the class is the image's own or the one explained."""
    return label in (found.label, found.target)


def by_kind(found: Explanation) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, dict[str, float]]]:
    """Curves and the areas under them by kind, then method."""
    curves: dict[str, dict[str, np.ndarray]] = {}
    areas: dict[str, dict[str, float]] = {}
    for (label, kind), curve in found.curves.items():
        curves.setdefault(kind, {})[label] = curve
        areas.setdefault(kind, {})[label] = found.values[label, kind]
    return curves, areas


def arrays(found: Explanation) -> dict[str, np.ndarray]:
    """Every array of the explanation under the name that it has in the npz file."""
    plain = ("image", "classes", "label", "prediction", "target", "probabilities", "fractions")
    named = {f"{kind}/{label}": curve for (label, kind), curve in found.curves.items()}
    named |= {f"map/{label}": values for label, values in found.maps.items()}
    named |= {f"superpixels/{label}": part.labels for label, part in found.superpixels.items()}
    named |= {f"positive/{label}": part.positive for label, part in found.superpixels.items()}
    named |= {f"features/{name}": layer for name, layer in found.features.items()}
    return {name: np.asarray(getattr(found, name)) for name in plain} | named


def describe(question: Question, found: Explanation, files: Iterable[str], seconds: float) -> dict[str, Any]:
    """The document of --json: what was explained, numbers of each map, and where everything lies."""
    run = question.network.run
    numbers = {label: map_numbers(values) for label, values in found.maps.items()}
    for (label, name), value in found.values.items():
        numbers[label][name] = finite(value)
    probabilities = dict(zip(map(str, found.classes), map(float, found.probabilities), strict=True))
    return {
        "dataset": run.dataset,
        "model": run.model,
        "run": run.run_id if question.network.weights else None,
        "learning_rate": run.learning_rate,
        "epochs": run.epochs,
        "seed": run.seed,
        "index": question.index,
        "label": found.label,
        "target": found.target,
        "prediction": found.prediction,
        "probabilities": probabilities,
        "methods": numbers,
        "files": list(files),
        "seconds": round(seconds, 3),
    }


def map_numbers(values: np.ndarray) -> dict[str, float | None]:
    """Sum, least and largest value of a map."""
    return {"sum": finite(values.sum(dtype=float)), "min": finite(values.min()), "max": finite(values.max())}


def finite(value: Any) -> float | None:
    """The number, or None where it is undefined: JSON has no NaN."""
    return float(value) if math.isfinite(value) else None
