"""Similarities that need a map's rows and columns (ssim, centre_shift), against the references of a run."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from epochlens.measure.similarity import Floats
from epochlens.measure.stability import epoch_pairs
from epochlens.measure.structure import REACH, centre_shift, ssim

SIGMA = 1.5


def similarities(maps: ArrayLike, epochs: ArrayLike, samples: ArrayLike) -> Iterator[pd.DataFrame]:
    """Rows of ssim and centre_shift (pixels), with columns and references as in stability.similarities.

    maps [T, N, C, H, W]; yields nothing for maps without rows and columns. Where maps are smaller than the
    usual 11 x 11 window of ssim, its sigma shrinks until the window fits.
    """
    maps, epochs, samples = np.asarray(maps), np.asarray(epochs), np.asarray(samples)
    if maps.ndim != 5:
        return
    sigma = fitting_sigma(min(maps.shape[-2:]))
    for reference, (now, then) in epoch_pairs(epochs).items():
        now, then = np.broadcast_arrays(now, then)
        found: dict[str, list[Floats]] = {"ssim": [], "centre_shift": []}
        for t, r in zip(now, then, strict=True):  # epoch by epoch, which stays in the cache
            found["ssim"].append(ssim(maps[t], maps[r], sigma=sigma, channels=True))
            found["centre_shift"].append(centre_shift(maps[t], maps[r], channels=True))
        for metric, values in found.items():
            if values:
                yield rows(epochs[now], samples, np.stack(values), reference, metric)


def fitting_sigma(side: int) -> float:
    """The standard deviation of ssim's window for maps of that many pixels a side, at most 1.5."""
    return max(0.1, min(SIGMA, ((side - 1) // 2) / REACH))


def rows(epochs: NDArray, samples: NDArray, values: Floats, reference: str, metric: str) -> pd.DataFrame:
    """Values [T, N] as rows: epoch, reference, metric, sample, value."""
    columns = {
        "epoch": np.repeat(epochs, len(samples)).astype(np.int32),
        "reference": reference,
        "metric": metric,
        "sample": np.tile(samples, len(epochs)).astype(np.int32),
        "value": np.asarray(values, np.float64).ravel(),
    }
    return pd.DataFrame(columns)
