"""Attribution by gradients: each method is a pure function (model, images, targets) -> maps [N,C,H,W].

Images may have any shape [N, ...], a row of features [N,D] too. Maps are signed and belong to the
pre-softmax logit of each image's target. The functions expect a model in
the mode in which it is to be explained; `attribute` in `methods` sees to that and gives it back untouched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch, nn = LazyModule("torch"), LazyModule("torch.nn")

CPU_PIXELS = 2**15
"""values per micro-batch on the CPU: its activations stay in the cache of a core"""
GPU_PIXELS = 2**24


def saliency(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Gradient of each image's target logit by its own pixels, [N,C,H,W]. Simonyan et al. 2014."""
    parts = []
    for x, t in zip(*micro_batches(images, targets), strict=True):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            score = model(x).gather(1, t[:, None]).sum()
        parts.append(torch.autograd.grad(score, x)[0])
    return torch.cat(parts)


def input_x_gradient(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Each pixel times its gradient, [N,C,H,W]. Shrikumar et al. 2016."""
    return gradient_maps(model, images, targets)["input_x_gradient"]


def gradient_maps(model: nn.Module, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """`saliency` and `input_x_gradient` of one backward pass."""
    gradient = saliency(model, images, targets)
    return {"saliency": gradient, "input_x_gradient": images * gradient}


def midpoint(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Midpoints of `steps` equal parts of [0,1]: exact where the gradient is linear along the path."""
    return (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)


def gauss_legendre(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on [0,1]: exact for gradients of degree 2 * steps - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return (nodes + 1) / 2, weights / 2


def endpoints(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Equally spaced points that include both ends, plain mean: common in hand-written code, biased."""
    return np.linspace(0, 1, steps), np.full(steps, 1 / steps)


def right(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Right ends of `steps` equal parts of [0,1]: the Riemann sum of the original paper."""
    return np.arange(1, steps + 1) / steps, np.full(steps, 1 / steps)


RULES = {
    "midpoint": midpoint,
    "gauss_legendre": gauss_legendre,
    "endpoints": endpoints,
    "right": right,
}


def integrated_gradients(
    model: nn.Module, images: Tensor, targets: Tensor, *, steps: int = 20, rule: str = "midpoint"
) -> Tensor:
    """Pixels times the mean gradient on the straight path from black, [N,C,H,W]. Sundararajan et al. 2017.

    The sum of a map approaches the target logit's rise over the black image's (completeness).
    """
    alphas, weights = RULES[rule](steps)
    total = torch.zeros_like(images)
    group = max(1, images_per_batch(images) // len(images))
    for first in range(0, steps, group):
        alpha = torch.as_tensor(alphas[first : first + group], dtype=images.dtype, device=images.device)
        weight = torch.as_tensor(weights[first : first + group], dtype=images.dtype, device=images.device)
        points = (alpha.view(-1, *[1] * images.ndim) * images).flatten(0, 1)
        gradients = saliency(model, points, targets.repeat(len(alpha))).unflatten(0, (len(alpha), -1))
        total += torch.einsum("s,s...->...", weight, gradients)
    return images * total


def gradient_shap(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    samples: int = 25,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean of pixels times gradients at random points of paths from black, [N,C,H,W]. Erion et al. 2021.

    Expected gradients with a black baseline, as captum's GradientShap: each of an image's `samples` adds
    Gaussian noise of that standard deviation and takes the gradient at a uniform point between black and the
    noisy image. Without noise, captum's default too, the expectation is that of integrated gradients; noise
    would add a second smoothing, which is SmoothGrad's. Draws come from `generator` (a CPU generator; a fresh
    one seeded 0 when None) image by image, so they do not depend on the device or on how images are batched.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    group, parts = max(1, images_per_batch(images) // samples), []
    for x, t in zip(images.split(group), targets.split(group), strict=True):
        alphas, draws = zip(
            *(
                (
                    torch.rand(samples, generator=generator, dtype=torch.float32),
                    torch.randn(samples, *x.shape[1:], generator=generator, dtype=torch.float32),
                )
                for _ in range(len(x))
            ),
            strict=True,
        )
        noisy = (x[:, None] + noise * torch.stack(draws).to(x)).flatten(0, 1)
        points = torch.cat(alphas).to(x).view(-1, *[1] * (x.ndim - 1)) * noisy
        products = noisy * saliency(model, points, t.repeat_interleave(samples))
        parts.append(products.unflatten(0, (-1, samples)).mean(1))
    return torch.cat(parts)


def images_per_batch(images: Tensor) -> int:
    """How many images of that size and on that device go through a network at once."""
    budget = CPU_PIXELS if images.device.type == "cpu" else GPU_PIXELS
    return max(8, budget // max(1, images[0].numel()))


def micro_batches(images: Tensor, targets: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Images and targets in pieces of `images_per_batch`."""
    size = images_per_batch(images)
    return images.split(size), targets.split(size)
