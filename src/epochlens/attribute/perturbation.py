"""Attribution by perturbation: how a target's logit answers when parts of the image are hidden.

Pure functions (model, images [N,C,H,W], targets [N]) -> maps like the images, signed: positive where hiding
lowers the pre-softmax logit. The model is expected in the mode in which it is to be explained. Perturbed
copies go through it in small batches whose activations stay in the cache of a core.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from epochlens.attribute.gradients import images_per_batch, micro_batches
from epochlens.attribute.locality import coverage, local_drops, squares
from epochlens.attribute.superpixels import paint, random_masks, superpixels
from epochlens.errors import UsageError
from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")


def occlusion(
    model: nn.Module, images: Tensor, targets: Tensor, *, patch: int = 4, stride: int = 2, value: float = 0.0
) -> Tensor:
    """Drop of the target logit when a square of pixels is hidden, mean over squares on each pixel, [N,C,H,W].

    The square has side `patch`, covers all channels, is filled with `value` and moves by `stride` until the
    image is covered; the last ones may be cut off by the border. The default stride, half the patch, draws
    blocks finer than the patch. Zeiler and Fergus 2014. Convolutions with a global average pool and a linear
    layer are recomputed only where the square can be seen. Raises UsageError for a patch larger than the
    image and a stride larger than the patch.
    """
    _check_images("occlusion", images)
    sides = images.shape[2:]
    if not 1 <= patch <= min(sides):
        problem = f"must fit in an image of {sides[0]}x{sides[1]} pixels"
        raise UsageError("methods: occlusion:patch", patch, problem)
    if not 1 <= stride <= patch:
        raise UsageError("methods: occlusion:stride", stride, f"must be from 1 to the patch's side, {patch}")
    starts = [torch.arange(0, side - patch + stride, stride, device=images.device) for side in sides]
    with torch.no_grad():
        drops = local_drops(model, images, targets, starts, patch, value)
        if drops is None:
            drops = _drops(model, images, targets, starts, patch, value)
    rows, columns = (axis.to(images) for axis in coverage(images, starts, patch))
    total = torch.einsum("nij,ih,jw->nhw", drops.to(images), rows, columns)
    mean = total / (rows.sum(0)[:, None] * columns.sum(0))
    return mean[:, None].expand_as(images).contiguous()


def superpixel_delta(model: nn.Module, images: Tensor, targets: Tensor, *, segments: int = 16) -> Tensor:
    """Drop of the target logit when one superpixel alone is blacked out, on its pixels, [N,C,H,W].

    The superpixels are those of `superpixels`, about `segments` of them.
    """
    _check_images("superpixel_delta", images)
    labels = superpixels(images, segments=segments).to(images.device)
    counts = labels.flatten(1).amax(1) + 1
    owners = torch.arange(len(images), device=images.device).repeat_interleave(counts)
    pieces = torch.cat([torch.arange(int(count), device=images.device) for count in counts])

    def hidden(part: slice) -> Tensor:
        return labels[owners[part]] == pieces[part, None, None]

    with torch.no_grad():
        dark = _hidden_logits(model, images, targets, owners, hidden)
        drops = images.new_zeros(len(images), int(counts.max()))
        drops[owners, pieces] = _logits(model, images, targets)[owners] - dark
    return paint(drops, labels, images)


def lime(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    samples: int = 200,
    segments: int = 16,
    width: float = 0.25,
    ridge: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Coefficients of a linear surrogate of the target logit over superpixels, painted, [N,C,H,W].

    Each image has `samples` copies in which random superpixels are black (`random_masks`). A copy that keeps
    a share q of its superpixels weighs exp(-(1 - sqrt q)^2 / (2 width^2)), where 1 - sqrt q is the cosine
    distance between its mask and all ones. `lime_surrogate` fits the logits. Masks come from `generator`
    (a CPU generator; a fresh one seeded 0 when None). Ribeiro et al. 2016. Raises UsageError for no width.
    """
    _check_images("lime", images)
    if width <= 0:
        raise UsageError("methods: lime:width", width, "must be above 0")
    labels = superpixels(images, segments=segments)
    masks = random_masks(labels, samples=samples, generator=generator)
    return lime_maps(model, images, targets, labels, masks, width=width, ridge=ridge)


def lime_maps(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    labels: Tensor,
    masks: Tensor,
    *,
    width: float = 0.25,
    ridge: float = 1.0,
) -> Tensor:
    """LIME's maps [N,C,H,W] for given superpixels, labels [N,H,W], and masks [N,samples,S] of those kept."""
    samples = masks.shape[1]
    owners = torch.arange(len(images), device=images.device).repeat_interleave(samples)
    hide, cells = ~masks.flatten(0, 1).to(images.device), labels.to(images.device).flatten(1)

    def hidden(part: slice) -> Tensor:
        return hide[part].gather(1, cells[owners[part]]).unflatten(1, images.shape[2:])

    with torch.no_grad():
        values = _hidden_logits(model, images, targets, owners, hidden).view(-1, samples)
        kept = masks.to(images.device, torch.float64)
        share = kept.sum(2) / (cells.amax(1, keepdim=True) + 1)
        weights = torch.exp(-((1 - share.sqrt()) ** 2) / (2 * width**2))
        coefficients, _ = lime_surrogate(kept, values.double(), weights, ridge)
    return paint(coefficients, labels, images)


def lime_surrogate(masks: Tensor, values: Tensor, weights: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Coefficients [...,S] and intercept [...] of a weighted ridge regression of values [...,M] on [...,M,S].

    Minimises sum weights (values - intercept - masks b)^2 + ridge |b|^2; the intercept is free. Where that
    leaves b open (ridge 0 and masks that do not tell superpixels apart) it is the shortest one.
    """
    shares = (weights / weights.sum(-1, keepdim=True))[..., None]
    mean_mask, mean_value = (shares * masks).sum(-2), (shares[..., 0] * values).sum(-1)
    centred, rest = masks - mean_mask[..., None, :], values - mean_value[..., None]
    weighted = (weights[..., None] * centred).mT
    gram = weighted @ centred + ridge * torch.eye(masks.shape[-1], dtype=masks.dtype, device=masks.device)
    coefficients = (torch.linalg.pinv(gram, hermitian=True) @ (weighted @ rest[..., None]))[..., 0]
    return coefficients, mean_value - (mean_mask * coefficients).sum(-1)


def _check_images(name: str, images: Tensor) -> None:
    if images.ndim != 4:
        raise UsageError("methods", name, f"needs images [N,C,H,W], not {list(images.shape)}")


def _logits(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Each image's target logit, [N]."""
    batches = zip(*micro_batches(images, targets), strict=True)
    return torch.cat([model(x).gather(1, t[:, None])[:, 0] for x, t in batches]).to(images.dtype)


def _hidden_logits(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    owners: Tensor,
    hidden: Callable[[slice], Tensor],
    value: float = 0.0,
) -> Tensor:
    """Target logits [M] of copies of images `owners` [M] with the pixels `hidden` [m,H,W] set to value."""
    size, parts = images_per_batch(images), []
    for first in range(0, len(owners), size):
        part = slice(first, first + size)
        copies = torch.where(hidden(part)[:, None], value, images[owners[part]])
        parts.append(_logits(model, copies, targets[owners[part]]))
    return torch.cat(parts)


def _drops(
    model: nn.Module, images: Tensor, targets: Tensor, starts: list[Tensor], patch: int, value: float
) -> Tensor:
    """Drop of the logit for each square, [N,rows of squares,columns of squares]."""
    owners, i, j = squares(images, starts)
    rows, columns = coverage(images, starts, patch)

    def hidden(part: slice) -> Tensor:
        return rows[i[part], :, None] & columns[j[part], None, :]

    occluded = _hidden_logits(model, images, targets, owners, hidden, value)
    clean = _logits(model, images, targets)
    return clean[:, None, None] - occluded.view(len(images), len(rows), len(columns))
