"""Networks as shapes only: on PyTorch's meta device, where nothing is computed and nothing drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from epochlens.errors import UsageError
from epochlens.lazy import LazyModule
from epochlens.learn import models

if TYPE_CHECKING:
    import torch
    from torch import nn
else:
    torch = LazyModule("torch")


KNOWN = ("resnet18", "resnet50", "vgg16", "mobilenet_v2", "efficientnet_b0")
"""torchvision's networks that may be named without `torchvision:` where only costs are asked"""


def full_name(name: str) -> str:
    """A network's spelling as for a sweep."""
    return f"torchvision:{name}" if name in KNOWN else name


def build_meta(spec: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The model for images (C,H,W), in eval mode, with shapes for weights. Raises UsageError without one."""
    try:
        if spec in models.MODELS:
            models.check_model(spec, shape, classes)
        factory = models.model_factory(spec)
    except ImportError as error:
        raise UsageError("model", spec, f"needs torchvision, which does not import: {error}") from error
    except UsageError as error:
        raise UsageError("model", error.value, error.problem) from error
    try:
        with torch.device("meta"), torch.no_grad():
            model = models.build(factory, shape, classes).to("meta").eval()
            found = tuple(model(torch.empty(2, *shape)).shape)
    except Exception as error:
        raise UsageError("model", spec, f"does not take images of shape {shape}: {error}") from error
    if found != (2, classes):
        raise UsageError("model", spec, f"gives {found} for 2 images, not (2, {classes})")
    return model
