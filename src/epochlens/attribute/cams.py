"""Class activation maps: what a convolutional layer's channels say of the target, as one map per image.

A [N,K,h,w] is the output of the layer that `feature_layer` finds. Maps are made at its size; the methods
(model, images, targets) -> maps [N,C,H,W] resize them bilinearly to the image, the same values in every
channel. They are never negative. The model is expected in the mode in which it is to be explained. Hooks are
there only while the model runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from epochlens.attribute.gradients import micro_batches
from epochlens.attribute.isolation import borrowed
from epochlens.errors import UsageError, unknown
from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
else:
    torch, nn, functional = LazyModule("torch"), LazyModule("torch.nn"), LazyModule("torch.nn.functional")

EPSILON = 1e-8


def cam(model: nn.Module, images: Tensor, targets: Tensor, *, layer: str = "") -> Tensor:
    """Class activation map ReLU(sum_k w_k A_k), w the target's weights in the head. Zhou et al. 2016.

    Raises UsageError unless the model is global average pooling of A and one linear layer from there on.
    """
    return resize(layer_cam(model, images, targets, layer=layer), images)


def gradcam(model: nn.Module, images: Tensor, targets: Tensor, *, layer: str = "") -> Tensor:
    """Grad-CAM ReLU(sum_k a_k A_k), a_k the mean of the logit's gradient by A_k. Selvaraju et al. 2017."""
    return resize(layer_maps(model, images, targets, ("gradcam",), layer=layer)["gradcam"], images)


def gradcam_plus_plus(model: nn.Module, images: Tensor, targets: Tensor, *, layer: str = "") -> Tensor:
    """Grad-CAM++ ReLU(sum_k w_k A_k), weighted sums of positive gradients w_k. Chattopadhay et al. 2018."""
    found = layer_maps(model, images, targets, ("gradcam_plus_plus",), layer=layer)
    return resize(found["gradcam_plus_plus"], images)


def gradient_cams(model: nn.Module, images: Tensor, targets: Tensor, *, layer: str = "") -> dict[str, Tensor]:
    """`gradcam` and `gradcam_plus_plus` of one forward and backward pass."""
    found = layer_maps(model, images, targets, tuple(RULES), layer=layer)
    return {name: resize(maps, images) for name, maps in found.items()}


def weigh_mean_gradients(features: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM's map [N,h,w] from A and the target logit's gradient by it, both [N,K,h,w]."""
    return torch.einsum("nk,nkhw->nhw", gradients.mean((2, 3)), features).relu()


def weigh_positive_gradients(features: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM++'s map [N,h,w] from A and the target logit's gradient by it, both [N,K,h,w].

    alpha = g^2 / (2 g^2 + (sum over A_k) g^3 + 1e-8), w_k = sum of alpha ReLU(g). Worked out in float32 at
    least: in half precision the square of a small gradient is zero.
    """
    a, g = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (features, gradients))
    squares = g * g
    alpha = squares / (2 * squares + a.sum((2, 3), keepdim=True) * squares * g + EPSILON)
    weights = (alpha * g.relu()).sum((2, 3))
    return torch.einsum("nk,nkhw->nhw", weights, a).relu().to(features.dtype)


RULES = {"gradcam": weigh_mean_gradients, "gradcam_plus_plus": weigh_positive_gradients}


def layer_maps(
    model: nn.Module, images: Tensor, targets: Tensor, names: Sequence[str], *, layer: str = ""
) -> dict[str, Tensor]:
    """The maps of the methods of RULES at the layer's size, name -> [N,h,w], all from one backward pass."""
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for features, gradients in activations_and_gradients(model, images, targets, layer):
        for name in names:
            parts[name].append(RULES[name](features, gradients))
    return {name: torch.cat(maps) for name, maps in parts.items()}


def activations_and_gradients(
    model: nn.Module, images: Tensor, targets: Tensor, layer: str = ""
) -> Iterator[tuple[Tensor, Tensor]]:
    """A and the gradient of each image's target logit by it, both [n,K,h,w], micro-batch by micro-batch."""
    name, module = feature_layer(model, images, layer)
    for x, t in zip(*micro_batches(images, targets), strict=True):
        with torch.enable_grad(), captured(module) as outputs:
            score = model(x).gather(1, t[:, None]).sum()
        features = last_output(name, outputs)
        yield features.detach(), torch.autograd.grad(score, features)[0]


def layer_cam(model: nn.Module, images: Tensor, targets: Tensor, *, layer: str = "") -> Tensor:
    """The map of `cam` at the layer's size, [N,h,w]. Raises UsageError as `cam`."""
    name, module = feature_layer(model, images, layer)
    heads = [call.module for call in _calls(model, images) if isinstance(call.module, nn.Linear)]
    parts = []
    with torch.no_grad():
        for x, t in zip(*micro_batches(images, targets), strict=True):
            with captured(module) as outputs:
                logits = model(x)
            features = last_output(name, outputs)
            if not heads or not _is_pooled_head(heads[-1], features, logits):
                problem = (
                    f"needs a model that ends in global average pooling of {name!r} and one linear layer"
                )
                raise UsageError("methods", "cam", f"{problem}; use gradcam, which needs neither")
            parts.append(torch.einsum("nk,nkhw->nhw", heads[-1].weight[t], features).relu())
    return torch.cat(parts)


def _is_pooled_head(head: nn.Linear, features: Tensor, logits: Tensor) -> bool:
    if head.in_features != features.shape[1] or head.out_features != logits.shape[1]:
        return False
    tolerance = torch.finfo(logits.dtype).eps ** 0.5
    return torch.allclose(
        head(features.mean((2, 3))), logits, tolerance, tolerance * float(logits.abs().max())
    )


def supports_cam(model: nn.Module, image_shape: Sequence[int]) -> bool:
    """Whether `cam` can explain the model, tried on two random images of shape (C, H, W)."""
    weight = next(model.parameters(), torch.zeros(()))
    images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0)).to(weight)
    try:
        with borrowed(model):
            layer_cam(model, images, torch.zeros(2, dtype=torch.int64, device=weight.device))
    except UsageError:
        return False
    return True


def resize(maps: Tensor, images: Tensor) -> Tensor:
    """Maps [N,h,w] at the size of images [N,C,H,W], in every channel. Raises UsageError for other inputs."""
    if images.ndim != 4:
        raise UsageError(
            "methods", "class activation maps", f"need images [N,C,H,W], not {list(images.shape)}"
        )
    size = images.shape[2:]
    resized = functional.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)
    return resized.expand_as(images).contiguous()


class Call(NamedTuple):
    """One run of a module while the model runs."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    """of its output; () when that is no tensor"""


def feature_layer(model: nn.Module, images: Tensor, layer: str = "") -> tuple[str, nn.Module]:
    """The name and module whose output is A: `layer`, a dotted name, or else the end of the convolutions.

    That is the last module to finish whose output has the height and width of the last nn.Conv2d executed:
    activations, normalisations and residual sums behind the convolution belong to A, a pooling does not.
    Raises UsageError that lists the choices when there is no such module or no convolution.
    """
    if layer and layer in (named := dict(model.named_modules())):
        return layer, named[layer]
    calls = [call for call in _calls(model, images) if call.name]
    choices = list(dict.fromkeys(call.name for call in calls if len(call.shape) == 4))
    if layer:
        raise unknown("methods: layer", layer, choices or ["none"])
    ends = [i for i, call in enumerate(calls) if isinstance(call.module, nn.Conv2d)]
    if not ends:
        told = (
            f"name one of its layers with layer=NAME: {', '.join(choices)}" if choices else "it has no maps"
        )
        raise UsageError("methods", "class activation maps", f"need a model with nn.Conv2d; {told}")
    size = calls[ends[-1]].shape[2:]
    fitting = [c for c in calls[ends[-1] :] if len(c.shape) == 4 and c.shape[2:] == size]
    return fitting[-1].name, fitting[-1].module


def _calls(model: nn.Module, images: Tensor) -> list[Call]:
    """All runs of modules on the first two images, in the order in which they finish."""
    calls: list[Call] = []

    def noting(name: str) -> Callable[[nn.Module, object, object], None]:
        def note(module: nn.Module, inputs: object, output: object) -> None:
            calls.append(Call(name, module, tuple(output.shape) if isinstance(output, torch.Tensor) else ()))

        return note

    handles = [module.register_forward_hook(noting(name)) for name, module in model.named_modules()]
    try:
        with borrowed(model), torch.no_grad():
            model(images[:2])
    finally:
        for handle in handles:
            handle.remove()
    return calls


@contextmanager
def captured(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the module's outputs [N,K,h,w], each cut from what it was made of and a leaf for what follows.

    What follows gets a copy, so that it may change it in place.
    """
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: object) -> Tensor | None:
        if not isinstance(output, torch.Tensor) or output.ndim != 4:
            return None
        outputs.append(output.detach().requires_grad_())
        return outputs[-1].clone()

    handle = module.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()


def last_output(name: str, outputs: Sequence[Tensor]) -> Tensor:
    """The last output of a module that serves several times. Raises UsageError when there is none."""
    if not outputs:
        raise UsageError("methods: layer", name, "gives no maps [N,K,h,w] when the model runs")
    return outputs[-1]
