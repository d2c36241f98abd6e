"""One test image explained: the network is trained or loaded, every method asked, and sheets are drawn.

Ray is not needed. Explanations are those that a sweep would record of the same network and image: the same
streams feed the stochastic methods.
"""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from epochlens.attribute import methods, quality, superpixels
from epochlens.config import Run
from epochlens.errors import UsageError
from epochlens.lazy import LazyModule
from epochlens.learn import data, training
from epochlens.record import files, tables
from epochlens.sweep import trial

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from epochlens.show import explained, style
else:
    torch, nn = LazyModule("torch"), LazyModule("torch.nn")
    explained, style = LazyModule("epochlens.show.explained"), LazyModule("epochlens.show.style")

Tell = Callable[[str], None]
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
        return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join([*network, f"image{self.index}", *aim])).strip("-.")


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


def explain(question: Question, tell: Tell = lambda text: None) -> dict[str, Any]:
    """Trains or loads the network, explains the image, writes sheets, arrays and numbers; returns these.

    Raises UsageError when the device, the dataset or the run's weights are not there, and when training
    cannot go on.
    """
    started = time.monotonic()
    device = choose_device(question.device)
    run, spec, data_dir, _ = question.network
    splits = training.as_tensors(data.load(spec, run.classes, data_dir), device)
    image, number = splits.x_test[question.index], int(splits.y_test[question.index])
    model = obtain(question, splits, device, tell)
    tell(f"explaining test image {question.index} with {len(question.methods)} methods")
    found = examine(question, model, image, number)
    question.output.mkdir(parents=True, exist_ok=True)
    path = question.output / question.name
    files.write_whole(path.with_name(f"{path.name}.npz"), tables.npz_bytes(**arrays(found)))
    pictures = [style.save(figure, path.parent, name) for name, figure in sheets(question, found)]
    written = [f"{path}.npz", *(str(p.with_suffix(kind)) for p in pictures for kind in (".png", ".pdf"))]
    document = describe(question, found, [*written, f"{path}.json"], time.monotonic() - started)
    files.write_json(path.with_name(f"{path.name}.json"), document)
    return document


def choose_device(name: str) -> str:
    """The device as asked, or with `auto` the accelerator that is there. Raises UsageError when it is not."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, found in there.items() if found)
    if not there[name]:
        found = ", ".join(device for device, is_there in there.items() if is_there)
        raise UsageError("device", name, f"is not there. Choices: auto, {found}")
    return name


def obtain(question: Question, splits: training.TensorSplits, device: str, tell: Tell) -> nn.Module:
    """The network, trained now or with the weights of its finished run.

    Methods are tried before it is trained: whatever does not fit it (a layer that it lacks) is named at once.
    """
    run, weights = question.network.run, question.network.weights
    trajectory = trial.start(run, splits, device)
    if weights is None:
        methods.attribute_all(trajectory.model, splits.x_test[:1], splits.y_test[:1], question.methods)
        train(run, trajectory, splits, tell)
    else:
        load_weights(trajectory.model, weights, run)
    return trajectory.model.eval()


def train(run: Run, trajectory: training.Trajectory, splits: training.TensorSplits, tell: Tell) -> None:
    """Trains to the last epoch, telling of about four of them."""
    last, told = run.epochs, max(1, run.epochs // 4)
    started = time.monotonic()
    try:
        for epoch in training.train(trajectory, splits, last, run.batch_size):
            if epoch.epoch % told == 0 or epoch.epoch == last:
                seconds = time.monotonic() - started
                tell(f"epoch {epoch.epoch}/{last}: test accuracy {epoch.accuracy:.3f} ({seconds:.0f} s)")
    except training.TrainingError as error:
        raise UsageError("lr", run.learning_rate, f"does not train: {error}") from error


def load_weights(model: nn.Module, path: Path, run: Run) -> None:
    """Puts the weights of a finished run into its model. Loads no pickled code."""
    try:
        model.load_state_dict(torch.load(io.BytesIO(path.read_bytes()), "cpu", weights_only=True))
    except RuntimeError as error:
        problem = f"has weights that do not fit model {run.model} as it is now: {error}"
        raise UsageError("run", str(path.parent), problem) from error


def examine(question: Question, model: nn.Module, image: Tensor, number: int) -> Explanation:
    """Everything about the image [C,H,W] whose label has the number `number` in the network's output."""
    run, images = question.network.run, image[None]
    with methods.borrowed(model), torch.no_grad():
        probabilities = model(images).softmax(1)[0].cpu().numpy()
    prediction = int(probabilities.argmax())
    named = {"label": number, "predicted": prediction}
    chosen = named[question.target] if question.target in named else run.classes.index(int(question.target))
    targets = torch.tensor([chosen], device=images.device)
    maps = attribute_once(question, model, images, targets)
    assessed = assess_once(question, model, images, targets, maps)
    return Explanation(
        image=image.cpu().numpy(),
        classes=run.classes,
        label=run.classes[number],
        prediction=run.classes[prediction],
        target=run.classes[chosen],
        probabilities=probabilities,
        maps={label: values[0].cpu().numpy() for label, values in maps.items()},
        superpixels=find_superpixels(images, maps),
        values={key: float(value[0]) for key, value in assessed.values.items()},
        curves={key: np.asarray(curve[0].cpu()) for key, curve in assessed.curves.items()},
        fractions=np.asarray(assessed.fractions),
        features={name: output[0].cpu().numpy() for name, output in feature_maps(model, images).items()},
    )


def attribute_once(
    question: Question, model: nn.Module, images: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """The map of every method, with the draws that a sweep would give it after the last epoch."""
    return methods.attribute_all(
        model, images, targets, question.methods, generators=lambda label: draws(question.network.run, label)
    )


def draws(run: Run, label: str) -> torch.Generator:
    """The stream that feeds a method after the run's last epoch, here as in the sweep."""
    return methods.named_generator(run.seed, f"attribution/{label}", run.epochs)


def assess_once(
    question: Question, model: nn.Module, images: Tensor, targets: Tensor, maps: Mapping[str, Tensor]
) -> quality.Assessment:
    """The quality of the maps against the network."""

    def again(model: nn.Module, method: str, images: Tensor, targets: Tensor) -> Tensor:
        generator = draws(question.network.run, method)
        return methods.attribute(model, images, targets, method, generator=generator)

    seed = question.network.run.seed
    return quality.assess(model, images, targets, maps, question.quality, seed=seed, explain=again)


def find_superpixels(images: Tensor, maps: Mapping[str, Tensor]) -> dict[str, explained.Superpixels]:
    """The superpixels of every method that works by them, with their values and positive regions."""
    found = {}
    for label, values in maps.items():
        name, given = methods.parse_method(label)
        options = methods.default_options(name) | given
        if "segments" not in options:
            continue
        labels = superpixels.superpixels(images, segments=options["segments"])[0]
        positive = superpixels.positive_regions(values[0].cpu(), labels)
        by_pixel = explained.per_pixel(values[0].cpu().numpy())
        found[label] = explained.Superpixels(labels.numpy(), by_pixel, positive.numpy())
    return found


def feature_maps(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The output [N,C,h,w] of every convolution, by its name; a layer's further calls are numbered."""
    found: dict[str, Tensor] = {}
    with watched(model, found), methods.borrowed(model), torch.no_grad():
        model(images)
    return found


@contextmanager
def watched(model: nn.Module, found: dict[str, Tensor]) -> Iterator[None]:
    """Notes what every convolution gives, through hooks that go again whatever happens."""

    def keep(name: str) -> Callable[[Any, Any, Tensor], None]:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            calls = sum(key.split(" call ")[0] == name for key in found)
            found[f"{name} call {calls + 1}" if calls else name] = output.detach().clone()

        return hook

    layers = {name or type(m).__name__: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    handles = [module.register_forward_hook(keep(name)) for name, module in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
