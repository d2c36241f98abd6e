"""SmoothGrad over any attribution method that answers to small changes of the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from epochlens.attribute import cams, gradients
from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

BASES = {
    "saliency": gradients.saliency,
    "input_x_gradient": gradients.input_x_gradient,
    "integrated_gradients": gradients.integrated_gradients,
    "gradcam": cams.gradcam,
    "gradcam_plus_plus": cams.gradcam_plus_plus,
}


def smoothgrad(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    base: str = "saliency",
    samples: int = 25,
    noise: float = 0.1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean of a base method over images with Gaussian noise of that standard deviation. Smilkov et al. 2017.

    Noise comes from `generator` (a CPU generator; a fresh one seeded 0 when None), drawn image by image
    for each sample, so it does not depend on the device.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    total = torch.zeros_like(images)
    for _ in range(samples):
        draw = torch.randn(images.shape, generator=generator, dtype=torch.float32).to(images)
        total += BASES[base](model, images + noise * draw, targets)
    return total / samples
