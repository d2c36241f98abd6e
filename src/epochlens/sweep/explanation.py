"""One test image explained: the network is trained or loaded, every method asked, and sheets are drawn.

Ray is not needed. Explanations are those that a sweep would record of the same network and image: the same
streams feed the stochastic methods.
"""

from __future__ import annotations

import io
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epochlens.attribute import methods, quality, superpixels
from epochlens.config import Run
from epochlens.errors import UsageError
from epochlens.lazy import LazyModule
from epochlens.learn import data, training
from epochlens.record import files, tables
from epochlens.sweep import findings, trial
from epochlens.sweep.findings import Explanation, Question

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from epochlens.show import explained, style
else:
    torch, nn = LazyModule("torch"), LazyModule("torch.nn")
    explained, style = LazyModule("epochlens.show.explained"), LazyModule("epochlens.show.style")

Tell = Callable[[str], None]


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
    files.write_whole(path.with_name(f"{path.name}.npz"), tables.npz_bytes(**findings.arrays(found)))
    pictures = [style.save(figure, path.parent, name) for name, figure in findings.sheets(question, found)]
    written = [f"{path}.npz", *(str(p.with_suffix(kind)) for p in pictures for kind in (".png", ".pdf"))]
    document = findings.describe(question, found, [*written, f"{path}.json"], time.monotonic() - started)
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
    """Puts the weights of a finished run into its model. Loads no pickled code. Raises UsageError."""
    try:
        model.load_state_dict(torch.load(io.BytesIO(path.read_bytes()), "cpu", weights_only=True))
    except Exception as error:  # a file that is none of weights can make torch raise nearly anything
        said = textwrap.shorten(str(error), 200, placeholder=" ...")
        problem = f"has weights that do not fit model {run.model} as it is now: {said}"
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
