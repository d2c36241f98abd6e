"""MODELS: name -> factory(in_channels, num_classes). A new model is one function and one line."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from epochlens.errors import UsageError, unknown
from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import nn
else:
    torch, nn = LazyModule("torch"), LazyModule("torch.nn")

Factory = Callable[[int, int], "nn.Module"]


def small(in_channels: int, num_classes: int) -> nn.Module:
    """One convolution to 16 channels, ReLU, global average pool, linear head."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, num_classes),
    )


def deep(in_channels: int, num_classes: int) -> nn.Module:
    """Two convolutions to 32 and 64 channels, each with ReLU, global average pool, linear head."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )


class Architecture(NamedTuple):
    """A built-in model: its factory and the smallest image side it accepts, in pixels."""

    factory: Factory
    smallest: int


MODELS = {
    "small": Architecture(small, smallest=3),
    "deep": Architecture(deep, smallest=5),
}
ALSO = ", or torchvision:NAME, or pkg.module:factory called as factory(in_channels, num_classes)"


def torchvision_classifier(name: str) -> Factory:
    """A factory for torchvision's classifier, untrained, its first convolution fitted to the channels."""
    from torchvision import models

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
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(field, spec, f"cannot be imported: {error}") from error
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
        model = factory(shape[0], num_classes).eval()
        with torch.no_grad():
            found = tuple(model(torch.zeros(2, *shape)).shape)
    except Exception as error:
        raise UsageError("models", spec, f"does not take images of shape {shape}: {error}") from error
    if found != (2, num_classes):
        raise UsageError("models", spec, f"gives {found} for 2 images, not (2, {num_classes})")


def model_code(spec: str) -> str:
    """A hash of the source file of an imported model, "" for the built-in and torchvision's."""
    if spec in MODELS or spec.startswith("torchvision:"):
        return ""
    source = inspect.getsourcefile(inspect.unwrap(import_object("models", spec)))
    return hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else ""
