"""Quality of maps by explaining again: other images that look the same, or a network that is not the same.

As in `removal`, each metric is a function of a `Subject` with the maps of every method.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

from epochlens.attribute.methods import is_stochastic
from epochlens.attribute.removal import (
    Assessment,
    Subject,
    batch_size,
    forward,
    pearson,
    wide,
    without_curves,
)
from epochlens.errors import UsageError
from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from scipy import stats
    from torch import Tensor, nn
else:
    torch, nn, stats = LazyModule("torch"), LazyModule("torch.nn"), LazyModule("scipy.stats")

SMALL = 1e-6
"""stands for a zero that something is divided by"""


def relative_input_stability(
    subject: Subject,
    generator: torch.Generator,
    *,
    samples: int = 200,
    low: float = 0.02,
    high: float = 0.2,
) -> Assessment:
    """Largest relative change of a map over the relative change of the image that caused it, [N], at least 0.

    Each of `samples` perturbations adds uniform noise from `low` to `high` to every value. The change of x to
    x' is the L2 norm of (x - x') / x, a zero below the line standing for 1e-6. Three values:
    relative_input_stability is NaN as soon as one perturbation changes the predicted class;
    relative_input_stability_kept is the maximum over those that do not, NaN when there is none; both are NaN
    where a map is not finite. relative_input_stability_valid is the share of those that do not, never NaN.
    Agarwal et al. 2022.
    """
    images, count = subject.images, len(subject.images)
    predicted = _predictions(subject, images)
    largest = {method: torch.full((count,), -torch.inf, dtype=torch.float64) for method in subject.maps}
    kept = torch.zeros(count, dtype=torch.float64)
    group = max(1, batch_size(images) // count)
    for first in range(0, samples, group):
        size = min(group, samples - first)
        draws = torch.stack([_uniform(images.shape, generator) for _ in range(size)])
        noisy = images + low + (high - low) * draws.to(images)
        same = (_predictions(subject, noisy.flatten(0, 1)).view(size, count) == predicted) & (predicted >= 0)
        moved = _relative_change(images, noisy)
        moved = moved + (moved == 0) * SMALL
        kept += same.sum(0).cpu()
        for method, maps in subject.maps.items():
            ratio = _relative_change(maps, _explained(subject, method, noisy)) / moved
            ratio = ratio.where(ratio.isfinite(), torch.nan).where(same, -torch.inf).amax(0).cpu()
            largest[method] = torch.maximum(largest[method], ratio.double())
    return _stabilities(largest, kept, samples)


def _stabilities(largest: dict[str, Tensor], kept: Tensor, samples: int) -> Assessment:
    values = {}
    for method, found in largest.items():
        found = found.where(kept > 0, torch.nan)
        values[method, "relative_input_stability"] = found.where(kept == samples, torch.nan)
        values[method, "relative_input_stability_kept"] = found
        values[method, "relative_input_stability_valid"] = kept / samples
    return without_curves(values)


def _predictions(subject: Subject, images: Tensor) -> Tensor:
    """The predicted class of each image, -1 where an output is not finite."""
    outputs = forward(subject.model, images)
    return outputs.argmax(1).where(outputs.isfinite().all(1), -1)


def _relative_change(before: Tensor, after: Tensor) -> Tensor:
    """Norm of (before - after) / before, [N,...] x [S,N,...] -> [S,N]."""
    before, after = wide(before).flatten(1), wide(after).flatten(2)
    return ((before - after) / (before + (before == 0) * SMALL)).norm(dim=2)


def _explained(subject: Subject, method: str, noisy: Tensor) -> Tensor:
    """Maps of images [S,N,...]: in one call, or draw by draw where a method's own draws must be the same."""
    model, targets, explain = subject.model, subject.targets, subject.explain
    if _has_draws(method):
        return torch.stack([explain(model, method, images, targets) for images in noisy])
    maps = explain(model, method, noisy.flatten(0, 1), targets.repeat(len(noisy)))
    return maps.unflatten(0, noisy.shape[:2])


def _has_draws(method: str) -> bool:
    """Whether a method draws, or may do so: nothing is known of a label that `methods` does not know."""
    try:
        return is_stochastic(method)
    except UsageError:
        return True


def randomisation(subject: Subject, generator: torch.Generator) -> Assessment:
    """Similarity of maps to those of the same network with its last linear layer drawn anew, [N].

    A method that explains what was learnt should not be similar. Two values: randomisation_cosine, and
    randomisation_spearman_abs, the rank correlation of absolute values; both in [-1, 1], NaN where a map is
    zero (for the latter: where its absolute values are equal) or not finite, and for a network without a
    linear layer. Adebayo et al. 2018.
    """
    other = randomised(subject.model, generator)
    values = {}
    for method, maps in subject.maps.items():
        a, b = maps, torch.full_like(maps, torch.nan)
        if other is not None:
            b = subject.explain(other, method, subject.images, subject.targets)
        a, b = (x.cpu().double().flatten(1) for x in (a, b))
        values[method, "randomisation_cosine"] = _cosine(a, b)
        values[method, "randomisation_spearman_abs"] = pearson(_ranks(a.abs()), _ranks(b.abs()))
    return without_curves(values)


def randomised(model: nn.Module, generator: torch.Generator) -> nn.Module | None:
    """A copy of the network whose last linear layer has new weights, drawn as PyTorch does; None without one.

    The last layer is the last in the order of registration.
    """
    other = copy.deepcopy(model)
    heads = [module for module in other.modules() if isinstance(module, nn.Linear)]
    if not heads:
        return None
    bound = 1 / math.sqrt(max(1, heads[-1].in_features))
    for name in ("weight", "bias"):
        old = getattr(heads[-1], name)
        if old is not None:
            drawn = (2 * _uniform(old.shape, generator) - 1) * bound
            setattr(heads[-1], name, nn.Parameter(drawn.to(old), requires_grad=False))
    return other


def _uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """From 0 to 1, single precision on the CPU, so the same for every device and type."""
    return torch.rand(shape, generator=generator, dtype=torch.float32)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    a, b = (x / x.abs().amax(1, keepdim=True) for x in (a, b))
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).clamp(-1, 1)


def _ranks(rows: Tensor) -> Tensor:
    """Ranks along the last axis, ties sharing theirs, NaN in rows with any value that is not finite."""
    ranks = torch.from_numpy(stats.rankdata(rows.numpy(), axis=1))
    return ranks.where(rows.isfinite().all(1, keepdim=True), torch.nan)
