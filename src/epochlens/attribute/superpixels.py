"""Superpixels: an image cut into regions of like colour, and maps read and drawn by region."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from epochlens.errors import UsageError
from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from skimage import segmentation
    from torch import Tensor
else:
    torch, segmentation = LazyModule("torch"), LazyModule("skimage.segmentation")

SLIC_SIDE = 16
"""pixels: a smaller image is cut into a regular grid, for regions of a few pixels have no shape"""
LAB_COMPACTNESS, UNIT_COMPACTNESS = 20.0, 0.2
"""weight of distance against colour, where colours span 0..100 (Lab) and where they span 0..1"""
SMALLEST_REGION = 0.25
"""as a share of the mean area: so natural images are cut into about as many regions as asked for"""


def superpixels(images: Tensor, *, segments: int) -> Tensor:
    """Labels 0..S_i - 1 of about `segments` regions for each image, int64 [N,H,W] on the CPU.

    SLIC (Achanta et al. 2012); a grid where a side is under 16 pixels or SLIC finds a single region.
    The labels follow from the pixels alone and are kept for the next call with the same images. Raises
    UsageError for less than one segment.
    """
    if segments < 1:
        raise UsageError("methods: segments", segments, "must be at least 1")
    pixels = images.detach().cpu().float().movedim(1, -1).contiguous().numpy()
    return torch.from_numpy(_labels(pixels.tobytes(), pixels.shape, segments).copy())


@lru_cache(maxsize=16)
def _labels(content: bytes, shape: tuple[int, ...], segments: int) -> np.ndarray:
    pixels = np.frombuffer(content, np.float32).reshape(shape)
    return np.stack([_segment(image, segments) for image in pixels])


def _segment(image: np.ndarray, segments: int) -> np.ndarray:
    height, width, channels = image.shape
    if min(height, width) < SLIC_SIDE:
        return _grid(height, width, segments)
    in_lab = channels == 3
    found = segmentation.slic(
        image.astype(np.float64),
        segments,
        LAB_COMPACTNESS if in_lab else UNIT_COMPACTNESS,
        convert2lab=in_lab,
        min_size_factor=SMALLEST_REGION,
        start_label=0,
    )
    regions, labels = np.unique(found, return_inverse=True)
    return labels.reshape(height, width) if len(regions) > 1 else _grid(height, width, segments)


def _grid(height: int, width: int, segments: int) -> np.ndarray:
    rows = min(height, max(1, round((segments * height / width) ** 0.5)))
    columns = min(width, max(1, round(segments / rows)))
    return np.arange(height)[:, None] * rows // height * columns + np.arange(width) * columns // width


def random_masks(labels: Tensor, *, samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Random superpixels to keep, each with probability 1/2, bool [N,samples,S] for labels [N,H,W].

    The first mask of an image keeps everything. Images are drawn in turn, each for its own S_i superpixels;
    the columns from S_i on are False. `generator` is on the CPU; a fresh one seeded 0 when None.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    counts = [int(count) + 1 for count in labels.flatten(1).amax(1)]
    masks = torch.zeros(len(labels), samples, max(counts), dtype=torch.bool)
    for mask, count in zip(masks, counts, strict=True):
        mask[:, :count] = torch.randint(0, 2, (samples, count), generator=generator).bool()
        mask[0, :count] = True
    return masks


def paint(weights: Tensor, labels: Tensor, images: Tensor) -> Tensor:
    """Maps like images [N,C,H,W] in which each pixel has its superpixel's weight from [N,S]."""
    painted = weights.to(images).gather(1, labels.to(images.device).flatten(1))
    return painted.view(len(images), 1, *images.shape[2:]).expand_as(images).contiguous()


def superpixel_weights(attribution: Tensor, labels: Tensor) -> Tensor:
    """Mean of a map [C,H,W] over each superpixel of labels [H,W], [S]; the weights of a painted map."""
    values, labels = attribution.mean(0).flatten(), labels.to(attribution.device).flatten()
    return values.new_zeros(int(labels.max()) + 1).index_add_(0, labels, values) / labels.bincount()


def positive_regions(attribution: Tensor, labels: Tensor, top: int = 5) -> Tensor:
    """Pixels of the `top` superpixels with the largest positive weight, bool [H,W]; fewer if few are."""
    weights = superpixel_weights(attribution, labels)
    strongest = weights.argsort(descending=True, stable=True)[:top]
    return torch.isin(labels.to(attribution.device), strongest[weights[strongest] > 0])
