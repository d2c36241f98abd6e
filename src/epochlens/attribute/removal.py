"""Quality of maps by removal: does a network miss most what a map calls important?

Each metric is a function of a `Subject`, which holds the maps of every method, so that what does not depend
on the method is worked out once. Altered images go through the network in small batches whose activations
stay in the cache of a core; sums and correlations are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from epochlens.attribute.gradients import images_per_batch
from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

Explain = Callable[["nn.Module", str, "Tensor", "Tensor"], "Tensor"]
"""(model, method, images, targets) -> maps"""


class Subject(NamedTuple):
    """What is assessed: a borrowed network, images [N,C,H,W] or [N,...], targets [N], maps of each method."""

    model: nn.Module
    images: Tensor
    targets: Tensor
    maps: Mapping[str, Tensor]
    explain: Explain


class Assessment(NamedTuple):
    """Quality of maps; every tensor is float64 on the CPU."""

    values: dict[tuple[str, str], Tensor]
    """[N] by method and name of the value, NaN where undefined"""
    curves: dict[tuple[str, str], Tensor]
    """probabilities of the targets [N, steps+1] by method and "deletion" or "insertion" """
    fractions: Tensor
    """of pixels removed or inserted at a curve's points, [steps+1]; empty without curves"""


SPLIT_BY_ITSELF = 4
"""times as many images for a network whose `splits_batches` says that it cuts them to fit the cache"""
KEPT_BYTES = 2**26
"""altered images that are kept for the next epoch"""


class Kept(NamedTuple):
    """Images, the subsets of features taken from them, and what is left, in batches."""

    images: Tensor
    chosen: Tensor
    together: int
    batches: list[Tensor]


_kept: list[Kept] = []
"""the last ones, or none"""


def without_curves(values: dict[tuple[str, str], Tensor]) -> Assessment:
    """An assessment of values only."""
    return Assessment(values, {}, torch.empty(0, dtype=torch.float64))


def faithfulness_correlation(
    subject: Subject, generator: torch.Generator, *, runs: int = 100, subset: int = 224
) -> Assessment:
    """Correlation over random subsets of features between a map's sum there and the logit lost without them.

    Each of `runs` subsets of `subset` values of the image is set to the image's darkest value; Pearson
    correlation, [N] in [-1, 1]. An image of no more than 2 * subset values has subsets of a quarter of them,
    at least one. NaN where sums or logits do not vary, or are not finite. Bhatt, Weller and Moura 2020.
    """
    images, targets = subject.images, subject.targets
    count, features = len(images), images[0].numel()
    size = subset if features > 2 * subset else max(1, features // 4)
    seed = int(torch.randint(2**62, (1,), generator=generator))
    chosen = random_subsets(seed, count * runs, features, size).to(images.device)
    before = forward(subject.model, images).gather(1, targets[:, None])
    after = logits(subject.model, blackened(images, chosen, batch_size(subject.model, images)))
    after = after.gather(1, targets.repeat_interleave(runs)[:, None]).view(count, runs)
    lost = (before - after).cpu().double()
    uniform = is_constant(images.flatten(1)).cpu()
    values = {}
    for method, maps in subject.maps.items():
        sums = wide(maps).flatten(1).gather(1, chosen.view(count, -1)).view(count, runs, size).sum(2)
        found = pearson(sums.cpu().double(), lost)
        values[method, "faithfulness_correlation"] = found.masked_fill(uniform, torch.nan)
    return without_curves(values)


@lru_cache(maxsize=4)
def random_subsets(seed: int, rows: int, features: int, size: int) -> Tensor:
    """`size` different numbers below `features` in each row, [rows, size]; the same seed gives the same.

    Kept for the next call, for a training is assessed with the same subsets at every epoch.
    """
    draws = np.random.default_rng(seed)
    return torch.from_numpy(
        np.stack([draws.choice(features, size, replace=False, shuffle=False) for _ in range(rows)])
    )


def blackened(images: Tensor, chosen: Tensor, together: int) -> Iterator[Tensor]:
    """Batches of every image in turn without each of its subsets [N*R, size]: set to its darkest value.

    The last ones, up to KEPT_BYTES on the CPU, are kept: the next epoch is assessed with them. What is given
    out are copies, for a network may write to its input.
    """
    for kept in _kept:
        same = kept.chosen is chosen and kept.images.dtype == images.dtype and images.device.type == "cpu"
        if same and kept.together == together and torch.equal(kept.images, images):
            return (batch.clone() for batch in kept.batches)
    runs, flat = len(chosen) // len(images), images.flatten(1)
    darkest = flat.amin(1, keepdim=True).expand(-1, chosen.shape[1])

    def draw() -> Iterator[Tensor]:
        for rows in torch.arange(len(chosen), device=images.device).split(together):
            owners = rows // runs
            drawn = flat.index_select(0, owners)  # twice as fast as flat[owners]
            yield drawn.scatter_(1, chosen[rows], darkest[owners]).view(-1, *images.shape[1:])

    if images.device.type != "cpu" or runs * images.nbytes > KEPT_BYTES:
        return draw()
    batches = list(draw())
    _kept[:] = [Kept(images.clone(), chosen, together, batches)]
    return (batch.clone() for batch in batches)


def deletion(subject: Subject, generator: torch.Generator, *, steps: int = 20) -> Assessment:
    """Area under the target's probability while pixels turn black, the map's highest first, [N] in [0, 1].

    A pixel goes with all its channels; its attribution is their signed sum; of equal ones the first goes
    first. `steps` steps of as equal a size as whole pixels allow lead from the image to a black (0) one;
    trapezoidal rule. NaN where all pixels of a map are equal or anything is not finite. Petsiuk, Das and
    Saenko 2018.
    """
    return _removal(subject, "deletion", steps)


def insertion(subject: Subject, generator: torch.Generator, *, steps: int = 20) -> Assessment:
    """Area under the target's probability while a black image's pixels return, the map's highest first.

    All else is as in `deletion`: [N] in [0, 1], NaN, Petsiuk, Das and Saenko 2018.
    """
    return _removal(subject, "insertion", steps)


def _removal(subject: Subject, kind: str, steps: int) -> Assessment:
    """Curves of one kind for all methods; the whole and the black image are looked at once for all."""
    images, count = subject.images, len(subject.images)
    pixels = images.flatten(2) if images.ndim > 2 else images[:, None]
    moved = (2 * torch.arange(steps + 1) * pixels.shape[2] + steps) // (2 * steps)
    fractions = moved.double() / pixels.shape[2]
    whole = _probabilities(subject, forward(subject.model, images))
    black = _probabilities(subject, logits(subject.model, [torch.zeros_like(images[:1])]).expand(count, -1))
    values, curves = {}, {}
    for method, maps in subject.maps.items():
        importance = wide(maps).flatten(2).sum(1) if maps.ndim > 2 else wide(maps)
        together = batch_size(subject.model, images)
        batches = _masked(pixels, importance, moved[1:-1].to(images.device), kind, together)
        outputs = logits(subject.model, (batch.view(-1, *images.shape[1:]) for batch in batches))
        ends = (whole, black) if kind == "deletion" else (black, whole)
        curve = torch.cat([ends[0], _probabilities(subject, outputs), ends[1]], 1)
        undefined = is_constant(importance) | ~importance.isfinite().all(1)
        curves[method, kind] = curve.masked_fill(undefined.cpu()[:, None], torch.nan)
        values[method, kind] = torch.trapezoid(curves[method, kind], fractions)
    return Assessment(values, curves, fractions)


def _masked(pixels: Tensor, importance: Tensor, moved: Tensor, kind: str, together: int) -> Iterator[Tensor]:
    """Batches of images [N,C,P] without, or with only, their first `moved` pixels, image by image."""
    order = importance.sort(dim=1, descending=True, stable=True).indices
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    ranks = torch.empty_like(order).scatter_(1, order, places)
    for rows in torch.arange(len(pixels) * len(moved), device=pixels.device).split(together):
        owners = rows // len(moved)
        among = ranks[owners] < moved[rows % len(moved), None]
        yield pixels[owners] * (among if kind == "insertion" else ~among)[:, None]


def _probabilities(subject: Subject, outputs: Tensor) -> Tensor:
    """Probability of each image's target from outputs [N*S,K], S of every image in turn, [N,S]."""
    shares = wide(outputs).softmax(1).unflatten(0, (len(subject.images), -1))
    return (
        shares.gather(2, subject.targets[:, None, None].expand(-1, shares.shape[1], 1))[..., 0].cpu().double()
    )


def forward(model: nn.Module, images: Tensor) -> Tensor:
    """The network's outputs [N,K] for images [N,...], which it gets copies of."""
    return logits(model, (part.clone() for part in images.split(batch_size(model, images))))


def logits(model: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """The network's outputs for batches of images, together [N,K]."""
    with torch.no_grad():
        return torch.cat([model(batch) for batch in batches])


def batch_size(model: nn.Module, images: Tensor) -> int:
    """How many images of that size and on that device go through this network at once, without gradients."""
    itself = images.device.type == "cpu" and getattr(model, "splits_batches", False)
    return images_per_batch(images) * (SPLIT_BY_ITSELF if itself else 1)


def wide(x: Tensor) -> Tensor:
    """In double precision, where the device has it."""
    return x.float() if x.device.type == "mps" else x.double()


def is_constant(rows: Tensor) -> Tensor:
    """Whether all values of a row are equal, [R, D] -> [R]."""
    return (rows == rows[:, :1]).all(1)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of rows, [R, D] x [R, D] -> [R]; NaN where a row is constant or not finite."""
    undefined = is_constant(a) | is_constant(b)
    a, b = (torch.nn.functional.normalize(x - x.mean(1, keepdim=True), dim=1, eps=0.0) for x in (a, b))
    return (a * b).sum(1).masked_fill(undefined, torch.nan).clamp(-1, 1)
