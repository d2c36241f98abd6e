"""Similarities that need a map's rows and columns, ssim and centre_shift, over the epochs of a run."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from epochlens.measure.blocks import Block
from epochlens.measure.similarity import Floats
from epochlens.measure.stability import epoch_pairs
from epochlens.measure.structure import REACH, blurring, centre, ssim_score

SIGMA = 1.5
AXES = (-3, -2, -1)


def blocks(maps: ArrayLike, epochs: ArrayLike) -> Iterator[Block]:
    """ssim and centre_shift (pixels) to the previous and the final epoch, as in stability.similarities.

    maps [T, N, C, H, W]; yields nothing for maps without rows and columns. Where maps are smaller than the
    usual 11 x 11 window of ssim, its sigma shrinks until the window fits.
    """
    maps, epochs = np.asarray(maps), np.asarray(epochs)
    if maps.ndim != 5:
        return
    centres = np.stack([centre(one, channels=True) for one in maps])
    positions, pairs = np.arange(len(epochs)), epoch_pairs(epochs)
    for reference in ("previous", "final"):
        now, then = np.broadcast_arrays(*(positions[part] for part in pairs[reference]))
        if len(now):
            shifts = np.linalg.norm(centres[now] - centres[then], axis=-1)
            scores = np.stack([ssim_of_pairs(maps[:, n], now, then) for n in range(maps.shape[1])], axis=1)
            yield Block(reference, "ssim", epochs[now], scores)
            yield Block(reference, "centre_shift", epochs[now], shifts)


def ssim_of_pairs(maps: NDArray, now: NDArray, then: NDArray) -> Floats:
    """structure.ssim of an image's maps at epochs now [P] with those at then [P], [T, C, H, W] -> [P].

    What belongs to one map is blurred once for all its pairs.
    """
    blur = blurring(maps.shape[-2:], fitting_sigma(min(maps.shape[-2:])))
    if blur is None:
        return np.full(len(now), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        maps = maps / np.nanmax(np.abs(maps), initial=0.0).astype(np.float64)  # squares stay in range
        maps[~np.isfinite(maps).all(axis=AXES)] = np.nan
        mean, square = blur(maps), blur(maps * maps)
        low, high = maps.min(axis=AXES), maps.max(axis=AXES)
        spread = (np.maximum(high[now], high[then]) - np.minimum(low[now], low[then]))[:, None, None, None]
        product = blur(maps[now] * maps[then])
        score = ssim_score(mean[now], mean[then], square[now], square[then], product, spread)
    return score.mean(axis=AXES)


def fitting_sigma(side: int) -> float:
    """The standard deviation of ssim's window for maps of that many pixels a side, at most 1.5."""
    return max(0.1, min(SIGMA, ((side - 1) // 2) / REACH))
