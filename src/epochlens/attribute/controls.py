"""Maps that know nothing of the network: what any attribution method has to differ from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from epochlens.errors import UsageError
from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
else:
    torch, functional = LazyModule("torch"), LazyModule("torch.nn.functional")


def edge(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Sobel gradient magnitude of every channel, borders repeated outward, [N,C,H,W]. Adebayo et al. 2018.

    The control for maps that are edge detectors; the model is not asked. Raises UsageError for other inputs
    than images.
    """
    if images.ndim != 4:
        raise UsageError("methods", "edge", f"needs images [N,C,H,W], not {list(images.shape)}")
    x = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    rows = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
    columns = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]
    down, right = rows[..., 2:, :] - rows[..., :-2, :], columns[..., 2:] - columns[..., :-2]
    return torch.hypot(down, right)


def random(
    model: nn.Module, images: Tensor, targets: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    """Independent standard normal values shaped like the images. Adebayo et al. 2018.

    Draws come from `generator` (a CPU generator; a fresh one seeded 0 when None) image by image.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    shape = images.shape[1:]
    draws = [torch.randn(shape, generator=generator, dtype=torch.float32) for _ in range(len(images))]
    return torch.stack(draws).to(images)
