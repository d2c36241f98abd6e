"""Quality of maps of 32 images against Quantus, which is given the same draws."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from epochlens.attribute import removal
from epochlens.attribute.methods import attribute, attribute_all, named_generator
from epochlens.attribute.quality import assess, evaluate
from epochlens.lazy import LazyModule
from epochlens.learn import models
from epochlens.sweep.bench.attribution import plain_layers
from epochlens.sweep.bench.timing import Comparison, largest_difference

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")
quantus: Any = LazyModule("quantus")

IMAGES, SIDE, SAMPLES, RUNS, SUBSET = 32, 28, 20, 100, 224
LOW, HIGH = 0.02, 0.2
TARGETS = {"small": (6.0, 3.0), "deep": (1.8, 1.0)}
"""promised ratios of faithfulness correlation and relative input stability"""


def comparisons(quick: bool) -> Iterator[Comparison | str]:
    """Faithfulness correlation, relative input stability and sparseness of saliency maps."""
    if importlib.util.find_spec("quantus") is None:
        yield "skipped, Quantus is not installed: pip install 'epochlens[bench]'"
        return
    for name, (faithful, stable) in TARGETS.items():
        model, images, targets = example(name)
        maps = attribute(model, images, targets, "saliency")
        subject = (model, images, targets, maps)
        yield compare(name, "faithfulness_correlation", subject, {}, quantus_faithfulness, faithful)
        options = {"samples": SAMPLES, "low": LOW, "high": HIGH}
        yield compare(name, "relative_input_stability", subject, options, quantus_stability, stable)
        yield compare(name, "sparseness", subject, {}, quantus_sparseness, 1.0)
        yield compare_together(name, model, images, targets)


def compare(
    name: str,
    metric: str,
    subject: tuple[nn.Module, Tensor, Tensor, Tensor],
    options: dict[str, Any],
    peer: Any,
    target: float,
) -> Comparison:
    """One metric on one model."""

    def ours() -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        return evaluate(*subject, metric, generator=generator, **options).numpy()

    task = f"{metric} of {IMAGES} MNIST-sized images, `{name}`"
    plain = plain_layers(subject[0])
    return Comparison(
        "quality", task, "Quantus", ours, lambda: peer(plain, *subject[1:]), largest_difference, 1e-3, target
    )


def compare_together(name: str, model: nn.Module, images: Tensor, targets: Tensor) -> Comparison:
    """Faithfulness correlation as a sweep measures it: of every method's maps at once."""
    maps = attribute_all(model, images, targets, ["saliency", "integrated_gradients"])
    metric, plain = "faithfulness_correlation", plain_layers(model)

    def ours() -> list[np.ndarray]:
        found = assess(model, images, targets, maps, [metric], seed=0).values
        return [found[method, metric].numpy() for method in maps]

    def theirs() -> list[np.ndarray]:
        draws = [named_generator(0, f"quality/{metric}") for _ in maps]
        pairs = zip(maps.values(), draws, strict=True)
        return [quantus_faithfulness(plain, images, targets, found, drawn) for found, drawn in pairs]

    task = f"{metric} of {IMAGES} MNIST-sized images, `{name}`, maps of {len(maps)} methods"
    return Comparison("quality", task, "Quantus", ours, theirs, largest_difference, 1e-3, 0.0)


def example(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """An untrained model in eval mode, random images as dark as digits, and targets."""
    torch.manual_seed(0)
    model = models.build(models.model_factory(name), (1, SIDE, SIDE), 10).eval()
    images = torch.rand(IMAGES, 1, SIDE, SIDE)
    return model, torch.where(images > 0.6, images, 0.0), torch.randint(0, 10, (IMAGES,))


def quantus_faithfulness(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    maps: Tensor,
    generator: torch.Generator | None = None,
) -> np.ndarray:
    """Quantus' faithfulness correlation on the subsets that ours draws."""
    generator = generator or torch.Generator().manual_seed(0)
    seed = int(torch.randint(2**62, (1,), generator=generator))
    drawn = removal.random_subsets(seed, IMAGES * RUNS, SIDE * SIDE, SUBSET).numpy()
    subsets = iter(drawn.reshape(IMAGES, RUNS, SUBSET).swapaxes(0, 1).reshape(-1, SUBSET))
    metric = quantus.FaithfulnessCorrelation(return_aggregate=False, disable_warnings=True)
    with mock.patch.object(np.random, "choice", lambda *given, **options: next(subsets)):
        return np.array(metric(model, images.numpy(), targets.numpy(), maps.numpy().copy()))


def quantus_stability(model: nn.Module, images: Tensor, targets: Tensor, maps: Tensor) -> np.ndarray:
    """Quantus' relative input stability under the noise that ours draws."""
    draws = torch.Generator().manual_seed(0)

    def perturb(arr: np.ndarray, indices: Any, **options: Any) -> np.ndarray:
        noise = torch.rand(images.shape, generator=draws, dtype=torch.float32)
        return arr + (LOW + (HIGH - LOW) * noise).flatten(1).numpy()

    def explain(model: nn.Module, inputs: Any, targets: Any, **options: Any) -> np.ndarray:
        x = torch.as_tensor(inputs, dtype=torch.float32).requires_grad_()
        score = model(x).gather(1, torch.as_tensor(targets)[:, None]).sum()
        return torch.autograd.grad(score, x)[0].numpy()

    metric = quantus.RelativeInputStability(nr_samples=SAMPLES, perturb_func=perturb, disable_warnings=True)
    arrays = {"x_batch": images.numpy(), "y_batch": targets.numpy(), "a_batch": maps.numpy().copy()}
    return np.array(metric(model, **arrays, explain_func=explain))


def quantus_sparseness(model: nn.Module, images: Tensor, targets: Tensor, maps: Tensor) -> np.ndarray:
    """Quantus' sparseness."""
    metric = quantus.Sparseness(disable_warnings=True)
    return np.array(metric(model, images.numpy(), targets.numpy(), maps.numpy().copy()))
