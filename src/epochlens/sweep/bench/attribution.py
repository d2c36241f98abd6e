"""Attribution maps of 32 images on `deep`: ours against step-by-step loops and captum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from epochlens.attribute.methods import attribute
from epochlens.lazy import LazyModule
from epochlens.learn import models
from epochlens.sweep.bench.timing import Comparison, relative_norm

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

IMAGES, SIDE, STEPS, PATCH = 32, 32, 20, 4


def comparisons(quick: bool) -> Iterator[Comparison]:
    """Integrated gradients, saliency, occlusion and Grad-CAM; captum must be installed."""
    model, images, targets = example("deep")
    plain = plain_layers(model)

    def ours(method: str) -> np.ndarray:
        return attribute(model, images, targets, method).numpy()

    def compare(method: str, peer: str, theirs, target: float, tolerance: float = 1e-3) -> Comparison:
        task = f"{method} of {IMAGES} CIFAR-sized images, `deep`"
        return Comparison(
            "attribution", task, peer, lambda: ours(method), theirs, relative_norm, tolerance, target
        )

    rule = f"integrated_gradients:steps={STEPS},rule=gauss_legendre"
    yield compare("integrated_gradients", "loop over steps", lambda: stepwise(plain, images, targets), 2)
    yield compare(rule, "captum", lambda: captum_maps("IntegratedGradients", plain, images, targets), 3)
    yield compare("saliency", "captum", lambda: captum_maps("Saliency", plain, images, targets), 1)
    occlusion = f"occlusion:patch={PATCH},stride={PATCH}"
    yield compare(occlusion, "captum", lambda: captum_maps("Occlusion", plain, images, targets), 5)
    yield compare("gradcam", "hooks, image by image", lambda: hooked_gradcam(plain, images, targets), 3)
    yield compare("gradcam", "captum", lambda: captum_gradcam(plain, images, targets), 1)


def example(name: str, shape: tuple[int, int, int] = (3, SIDE, SIDE)) -> tuple[nn.Module, Tensor, Tensor]:
    """An untrained model in eval mode, random images and targets."""
    torch.manual_seed(0)
    model = models.build(models.model_factory(name), shape, 2).eval()
    return model, torch.rand(IMAGES, *shape), torch.arange(IMAGES) % 2


def plain_layers(model: nn.Module) -> nn.Module:
    """The same weights in PyTorch's own layers, as peers have them: ours may fuse some into one operation."""
    return torch.nn.Sequential(*model.children()).eval()


def stepwise(model: nn.Module, images: Tensor, targets: Tensor) -> np.ndarray:
    """Integrated gradients as commonly written: all images at one step of the path after another."""
    total = torch.zeros_like(images)
    for step in range(STEPS):
        x = ((step + 0.5) / STEPS * images).requires_grad_()
        score = model(x).gather(1, targets[:, None]).sum()
        total += torch.autograd.grad(score, x)[0]
    return (images * total / STEPS).numpy()


def plain_saliency(model: nn.Module, images: Tensor, targets: Tensor) -> np.ndarray:
    """Saliency as commonly written."""
    x = images.clone().requires_grad_()
    score = model(x).gather(1, targets[:, None]).sum()
    return torch.autograd.grad(score, x)[0].numpy()


def captum_maps(name: str, model: nn.Module, images: Tensor, targets: Tensor) -> np.ndarray:
    """A captum method with its defaults."""
    import captum.attr

    options = {
        "IntegratedGradients": {"n_steps": STEPS},
        "Saliency": {"abs": False},
        "Occlusion": {"sliding_window_shapes": (3, PATCH, PATCH), "strides": (3, PATCH, PATCH)},
    }[name]
    method = getattr(captum.attr, name)(model)
    return method.attribute(images.clone(), target=targets, **options).detach().numpy()


def captum_gradcam(model: nn.Module, images: Tensor, targets: Tensor) -> np.ndarray:
    """captum's Grad-CAM of the last activation, resized to the image."""
    from captum.attr import LayerAttribution, LayerGradCam

    method: Any = LayerGradCam(model, last_activation(model))
    maps = method.attribute(images, target=targets, relu_attributions=True)
    return resized(LayerAttribution.interpolate(maps, images.shape[2:], "bilinear"), images)


def hooked_gradcam(model: nn.Module, images: Tensor, targets: Tensor) -> np.ndarray:
    """Grad-CAM with hooks on the layer, one image at a time, as the usual snippets have it."""
    kept: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        kept["activation"] = output
        output.register_hook(lambda gradient: kept.__setitem__("gradient", gradient))

    handle = last_activation(model).register_forward_hook(keep)
    maps = []
    for image, target in zip(images, targets, strict=True):
        model.zero_grad()
        model(image[None])[0, target].backward()
        weights = kept["gradient"].mean((2, 3), keepdim=True)
        maps.append((weights * kept["activation"]).sum(1, keepdim=True).relu().detach())
    handle.remove()
    model.zero_grad()
    size = images.shape[2:]
    return resized(torch.nn.functional.interpolate(torch.cat(maps), size=size, mode="bilinear"), images)


def last_activation(model: nn.Module) -> nn.Module:
    """The last ReLU of a model."""
    return [module for module in model.modules() if isinstance(module, torch.nn.ReLU)][-1]


def resized(maps: Tensor, images: Tensor) -> np.ndarray:
    """One map per image as many channels as the image has."""
    return maps.detach().expand_as(images).numpy()
