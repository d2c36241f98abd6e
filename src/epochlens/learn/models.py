"""MODELS: name -> factory(in_channels, num_classes). A new model is one function and one line.

Factories whose layers depend on the image also take `size`, its height and width in pixels; `build` gives it.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from epochlens.errors import UsageError, unknown
from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import nn

    from epochlens.learn import ops
else:
    torch, nn = LazyModule("torch"), LazyModule("torch.nn")
    ops = LazyModule("epochlens.learn.ops")

Factory = Callable[..., "nn.Module"]
"""(in_channels, num_classes) -> untrained model; a few built-in ones also take size=(height, width)"""


def small(in_channels: int, num_classes: int) -> nn.Module:
    """One convolution to 16 channels, ReLU, global average pool, linear head."""
    return ops.PooledNetwork(
        nn.Conv2d(in_channels, 16, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, num_classes),
    )


def deep(in_channels: int, num_classes: int) -> nn.Module:
    """Two convolutions to 32 and 64 channels, each with ReLU, global average pool, linear head."""
    return ops.PooledNetwork(
        nn.Conv2d(in_channels, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )


def lenet(in_channels: int, num_classes: int, size: tuple[int, int]) -> nn.Module:
    """Two blocks of convolution, batch norm, ReLU and max pooling, then three linear layers with dropout."""
    height, width = size
    return nn.Sequential(
        *_normed_block(in_channels, 16),
        *_normed_block(16, 32),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 128),
        nn.Dropout(0.4),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.Dropout(0.4),
        nn.ReLU(),
        nn.Linear(64, num_classes),
    )


def _normed_block(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


def gapnet(in_channels: int, num_classes: int) -> nn.Module:
    """Three padded convolutions to 8, 16 and 32 channels with leaky ReLU, global average pool, linear."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )


def dropnet(in_channels: int, num_classes: int, size: tuple[int, int]) -> nn.Module:
    """Three padded convolutions with ReLU, one max pooling and one dropout, then two linear layers."""
    height, width = size
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(64 * (height // 2) * (width // 2), 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )


class Architecture(NamedTuple):
    """A built-in model: what can be known of it without torch."""

    factory: Factory
    smallest: int
    """the smallest image side that it accepts, in pixels"""
    pooled: bool
    """global average pool and one linear head: class activation maps exist"""
    sized: bool = False
    """the factory takes the image's size"""


MODELS = {
    "small": Architecture(small, smallest=3, pooled=True),
    "deep": Architecture(deep, smallest=5, pooled=True),
    "lenet": Architecture(lenet, smallest=4, pooled=False, sized=True),
    "gapnet": Architecture(gapnet, smallest=1, pooled=True),
    "dropnet": Architecture(dropnet, smallest=2, pooled=False, sized=True),
}
ALSO = ", or torchvision:NAME, or pkg.module:factory called as factory(in_channels, num_classes)"


def torchvision_classifier(name: str) -> Factory:
    """A factory for torchvision's classifier, untrained, its first convolution fitted to the channels."""
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        problem = f"needs torchvision, which does not import: {error}"
        raise UsageError("models", f"torchvision:{name}", problem) from error
    if name not in models.list_models(module=models):
        raise unknown("models", f"torchvision:{name}", models.list_models(module=models))

    def factory(in_channels: int, num_classes: int) -> nn.Module:
        model = models.get_model(name, weights=None, num_classes=num_classes)
        if in_channels != 3:
            first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
            first.in_channels = in_channels
            shape = (first.out_channels, in_channels, *first.kernel_size)
            first.weight = nn.Parameter(first.weight.new_empty(shape))
            first.reset_parameters()
        return model

    return factory


def import_object(field: str, spec: str) -> Callable[..., Any]:
    """The callable that `pkg.module:name` names. Raises UsageError when there is none."""
    module_name, _, name = spec.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (Exception, SystemExit) as error:  # a user's module runs when it is imported
        raise UsageError(field, spec, f"cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise UsageError(field, spec, "is not callable")
    return found


def model_factory(spec: str) -> Factory:
    """The factory of a built-in name, `torchvision:NAME` or `pkg.module:factory`."""
    if spec in MODELS:
        return MODELS[spec].factory
    if spec.startswith("torchvision:"):
        return torchvision_classifier(spec.removeprefix("torchvision:"))
    if ":" in spec:
        return import_object("models", spec)
    raise unknown("models", spec, MODELS, ALSO)


def build(factory: Factory, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The factory's model for images of shape (C, H, W), untrained, drawn from torch's global stream."""
    if any(entry.sized and entry.factory is factory for entry in MODELS.values()):
        return factory(shape[0], num_classes, size=shape[1:])
    return factory(shape[0], num_classes)


def check_model(spec: str, shape: tuple[int, int, int], num_classes: int) -> None:
    """Raises UsageError unless the model maps images [N, *shape] to logits [N, num_classes].

    Built-in models are judged by their smallest image side, without importing torch; others run once.
    """
    if spec in MODELS:
        side, least = min(shape[1:]), MODELS[spec].smallest
        if side < least:
            raise UsageError("models", spec, f"needs images of at least {least}x{least} pixels, not {shape}")
        return
    factory = model_factory(spec)
    try:
        model = build(factory, shape, num_classes).eval()
        with torch.no_grad():
            found = tuple(model(torch.zeros(2, *shape)).shape)
    except Exception as error:
        problem = f"does not take images of shape {shape}: {type(error).__name__}: {error}"
        raise UsageError("models", spec, problem) from error
    if found != (2, num_classes):
        raise UsageError("models", spec, f"gives {found} for 2 images, not (2, {num_classes})")


def model_code(spec: str) -> str:
    """A hash of the source file of an imported model, "" for the built-in and torchvision's."""
    if spec in MODELS or spec.startswith("torchvision:"):
        return ""
    factory = inspect.unwrap(import_object("models", spec))
    has_source = inspect.isfunction(factory) or inspect.isclass(factory)  # a partial one has its module's
    source = inspect.getsourcefile(factory if has_source else sys.modules[spec.partition(":")[0]])
    return hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else ""
