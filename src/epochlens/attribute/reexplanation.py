"""Quality of maps by explaining again: other images that look the same, or a network that is not the same.

As in `removal`, each metric is a function of a `Subject` with the maps of every method.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from epochlens.attribute.gradients import images_per_batch
from epochlens.attribute.methods import is_stochastic
from epochlens.attribute.removal import (
    Assessment,
    Subject,
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
    predicted = _classes(forward(subject.model, images))
    largest = {method: torch.full((count,), -torch.inf, dtype=torch.float64) for method in subject.maps}
    kept = torch.zeros(count, dtype=torch.float64)
    group = max(1, images_per_batch(images) // count)
    for first in range(0, samples, group):
        size = min(group, samples - first)
        draws = torch.stack([_uniform(images.shape, generator) for _ in range(size)])
        noisy = images + low + (high - low) * draws.to(images)
        explained, outputs = _explained(subject, noisy)
        same = (_classes(outputs).view(size, count) == predicted) & (predicted >= 0)
        moved = _relative_change(images, noisy)
        moved = moved + (moved == 0) * SMALL
        kept += same.sum(0).cpu()
        for method, maps in subject.maps.items():
            ratio = _relative_change(maps, explained[method]) / moved
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


def _classes(outputs: Tensor) -> Tensor:
    """The predicted class of each row of outputs, -1 where one is not finite."""
    return outputs.argmax(1).where(outputs.isfinite().all(1), -1)


def _relative_change(before: Tensor, after: Tensor) -> Tensor:
    """Norm of (before - after) / before, [N,...] x [S,N,...] -> [S,N]."""
    before, after = wide(before).flatten(1), wide(after).flatten(2)
    return ((before - after) / (before + (before == 0) * SMALL)).norm(dim=2)


def _explained(subject: Subject, noisy: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Each method's maps of images [S,N,...], and the network's outputs for these [S*N,K]."""
    flat = noisy.flatten(0, 1)
    explained, outputs = {}, None
    for method in subject.maps:
        with _outputs_of(subject.model, flat) as seen:
            explained[method] = _maps_of(subject, method, noisy)
        outputs = seen() if outputs is None else outputs
    return explained, forward(subject.model, flat) if outputs is None else outputs


@contextmanager
def _outputs_of(model: nn.Module, images: Tensor) -> Iterator[Callable[[], Tensor | None]]:
    """Listens to the model: what is yielded tells its outputs if it was called on just these images in turn.

    A gradient of the images takes such a call, which then need not be made again.
    """
    calls: list[tuple[Tensor, Tensor]] = []
    count = 0

    def listen(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal count
        count += len(inputs[0]) if inputs else 0
        if inputs and count <= len(images):  # a method of many calls is not kept in memory
            calls.append((inputs[0].detach(), output.detach()))

    def outputs() -> Tensor | None:
        if count != len(images) or not torch.equal(torch.cat([given for given, _ in calls]), images):
            return None
        return torch.cat([found for _, found in calls])

    handle = model.register_forward_hook(listen)
    try:
        yield outputs
    finally:
        handle.remove()


def _maps_of(subject: Subject, method: str, noisy: Tensor) -> Tensor:
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
