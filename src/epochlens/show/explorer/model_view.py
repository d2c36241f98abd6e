"""Networks with saved weights, asked now about any test image: the one module here that needs torch.

It reads weights and the dataset's test split; it trains nothing and downloads nothing.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epochlens.attribute import gradients
from epochlens.attribute.methods import METHODS, attribute, borrowed, is_stochastic, named_generator
from epochlens.errors import UsageError
from epochlens.lazy import LazyModule
from epochlens.learn import data, models
from epochlens.show.explorer import cost_view

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch, nn = LazyModule("torch"), LazyModule("torch.nn")


def find_spec(dataset: str, specs: Sequence[str]) -> str:
    """The dataset as it was named to the sweep, from its short name. Raises UsageError when it was not."""
    found = [spec for spec in specs if data.dataset_label(spec) == dataset]
    if found:
        return found[0]
    if dataset in data.DATASETS:
        return dataset
    raise UsageError("dataset", dataset, "cannot be loaded here: these runs were recorded elsewhere")


@lru_cache(maxsize=2)
def test_split(spec: str, classes: tuple[int, ...], data_dir: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [N,C,H,W] and class numbers [N] of the test split. Raises UsageError when it is not there."""
    splits = data.load(spec, classes, data_dir, download=False)
    return splits.x_test, splits.y_test


@lru_cache(maxsize=4)
def load_network(
    model: str, weights: Path, changed: int, shape: tuple[int, int, int], classes: int
) -> nn.Module:
    """The model with saved weights, in eval mode; `changed` is the file's version. Raises UsageError."""
    with torch.random.fork_rng(devices=[]):
        factory = models.model_factory(model)
        build = getattr(models, "build", None)
        network = build(factory, shape, classes) if build else factory(shape[0], classes)
    try:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except Exception as error:  # a file that is none of weights can make torch raise nearly anything
        said = textwrap.shorten(str(error), 200, placeholder=" ...")
        problem = f"cannot be loaded into model {model}: {said}"
        raise UsageError("weights", str(weights), problem) from error
    return network.eval()


def probabilities(network: nn.Module, images: np.ndarray) -> np.ndarray:
    """Softmax probabilities [N,K] of images [N,C,H,W]."""
    with borrowed(network), torch.no_grad():
        return network(torch.from_numpy(np.ascontiguousarray(images))).softmax(1).numpy()


def method_names() -> list[str]:
    """The methods that can be asked for."""
    return list(METHODS)


@lru_cache(maxsize=4)
def forward_seconds(network: nn.Module, shape: tuple[int, int, int]) -> float:
    """Measured seconds of a forward pass per image (C,H,W), in a batch as large as methods use them."""
    images = torch.zeros(1, *shape)
    images = images.expand(gradients.images_per_batch(images), *shape).contiguous()
    taken = []
    with borrowed(network), torch.no_grad():
        for _ in range(2):  # the first time is slower
            started = time.perf_counter()
            network(images)
            taken.append(time.perf_counter() - started)
    return min(taken) / len(images)


def predicted_seconds(
    network: nn.Module, spec: str, shape: tuple[int, int, int], classes: int, methods: Sequence[str]
) -> dict[str, float]:
    """What explaining one image by each method will take here; NaN where that cannot be counted."""
    passes = cost_view.forwards(spec, shape, classes, methods)
    return {method: passes.get(method, np.nan) * forward_seconds(network, shape) for method in methods}


def explain(
    network: nn.Module, image: np.ndarray, target: int, methods: Sequence[str], seed: int = 0, epoch: int = 0
) -> dict[str, np.ndarray | str]:
    """Each method's map [C,H,W] of an image [C,H,W] and class, or in words why it has none.

    Stochastic methods draw from the stream that the sweep gave them at that epoch.
    """
    images, targets = torch.from_numpy(np.ascontiguousarray(image[None])), torch.tensor([target])
    found: dict[str, np.ndarray | str] = {}
    for method in methods:
        draws = named_generator(seed, f"attribution/{method}", epoch) if is_stochastic(method) else None
        try:
            maps = attribute(network, images, targets, method, generator=draws)
            found[method] = maps[0].numpy()
        except (RuntimeError, ValueError, IndexError, AttributeError) as error:
            found[method] = f"{type(error).__name__}: {error}"
    return found


def feature_maps(network: nn.Module, image: np.ndarray) -> dict[str, np.ndarray]:
    """The output [C,h,w] of every convolution for an image [C,H,W], by the layer's name."""
    found: dict[str, np.ndarray] = {}
    with watched(network, found), borrowed(network), torch.no_grad():
        network(torch.from_numpy(np.ascontiguousarray(image[None])))
    return found


@contextmanager
def watched(network: nn.Module, found: dict[str, np.ndarray]) -> Iterator[None]:
    """Notes the last output of every convolution through hooks that go again whatever happens."""

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            found[name] = output[0].numpy(force=True).copy()

        return hook

    layers = [(name or "model", m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    handles = [
        module.register_forward_hook(keep(f"{name} {type(module).__name__}")) for name, module in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
