"""More ways to compare and describe maps: those that need the image's rows and columns, and single numbers.

ssim, centre_shift and hog take (..., H, W), or (..., C, H, W) with channels=True; kendall, mass, entropy and
gini take (..., D). All broadcast over the leading axes and compute in float64. What is undefined is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from epochlens.measure.similarity import METRICS, Floats

PROPERTIES = ("mass", "entropy", "gini")
REACH = 3.5  # standard deviations at which the Gaussian window ends


def ssim(a: ArrayLike, b: ArrayLike, *, sigma: float = 1.5, channels: bool = False) -> Floats:
    """Structural similarity, (..., H, W) x (..., H, W) -> (...), in [-1, 1]; symmetric, 1 for equal maps.

    Mean over the positions where the whole Gaussian window (11 x 11 for sigma 1.5) fits, K1 = 0.01 and
    K2 = 0.03, population covariances. The data range is the joint one of the pair: its largest minus its
    smallest value, over all channels; with channels=True the result is the mean over channels. NaN where a
    map is smaller than the window, not finite, or both are the same constant. 8 x 8 maps need sigma < 1.
    Raises ValueError when H, W or C differ or sigma is not positive. Wang et al. 2004.
    """
    if sigma <= 0:
        raise ValueError(f"sigma must be positive, not {sigma}")
    a, b = _image_pair(a, b, channels)
    axes = (-3, -2, -1) if channels else (-2, -1)
    low = np.minimum(a.min(axis=axes, keepdims=True), b.min(axis=axes, keepdims=True))
    spread = np.maximum(a.max(axis=axes, keepdims=True), b.max(axis=axes, keepdims=True)) - low
    blur = blurring(a.shape[-2:], sigma)
    if blur is None:
        return np.full(np.broadcast_shapes(a.shape, b.shape)[: -len(axes)], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Scaled to a range of 1, very small and very large maps keep their squares in range.
        first, second = a / spread, b / spread
        means, squares = (blur(first), blur(second)), (blur(first * first), blur(second * second))
        return ssim_score(*means, *squares, blur(first * second), 1.0).mean(axis=axes)


def ssim_score(
    mean_a: Floats,
    mean_b: Floats,
    square_a: Floats,
    square_b: Floats,
    product: Floats,
    spread: Floats | float,
) -> Floats:
    """Structural similarity at each position from blurred maps, their squares and their product."""
    c1, c2 = (0.01 * spread) ** 2, (0.03 * spread) ** 2
    squares, means = mean_a**2 + mean_b**2, mean_a * mean_b
    covariance, variances = product - means, square_a + square_b - squares
    return (2 * means + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))


def centre_shift(a: ArrayLike, b: ArrayLike, *, channels: bool = False) -> Floats:
    """Distance in pixels between the centres of absolute mass, (..., H, W) x (..., H, W) -> (...), >= 0.

    A distance, not a similarity; absolute values are summed over channels. NaN where a map is zero or not
    finite. Raises ValueError when H, W or C differ.
    """
    a, b = _image_pair(a, b, channels)
    return np.linalg.norm(centre(a, channels) - centre(b, channels), axis=-1)


def hog(
    a: ArrayLike, b: ArrayLike, *, cell: int = 4, orientations: int = 9, channels: bool = False
) -> Floats:
    """Cosine of histograms of oriented gradients, (..., H, W) x (..., H, W) -> (...), in [0, 1].

    Central differences, zero at the borders; per cell of cell x cell pixels (incomplete ones are left out) a
    histogram of the direction modulo 180 degrees weighted by magnitude, summed over channels; no block
    normalisation, so only the maps' overall scale is irrelevant. NaN where a map is smaller than a cell,
    constant or not finite. Raises ValueError when H, W or C differ. Dalal and Triggs 2005.
    """
    a, b = _image_pair(a, b, channels)
    if min(a.shape[-2:]) < cell:
        return np.full(np.broadcast_shapes(a.shape, b.shape)[: -2 - channels], np.nan)
    return METRICS["cosine"](*(_gradient_histogram(x, cell, orientations, channels) for x in (a, b)))


def kendall(a: ArrayLike, b: ArrayLike) -> Floats:
    """Kendall's tau-b of signed values, (..., D) x (..., D) -> (...), in [-1, 1]; slow, pair by pair.

    NaN where a map is constant or not finite. Raises ValueError when D differs. Kendall 1938.
    """
    from scipy.stats import kendalltau  # slow to import

    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim == 0 or b.ndim == 0 or a.shape[-1] != b.shape[-1]:
        raise ValueError(f"maps need the same number of features: {a.shape} against {b.shape}")
    a, b = np.broadcast_arrays(a, b)
    taus = np.full(a.shape[:-1], np.nan)
    for index in np.ndindex(taus.shape):
        if np.isfinite(a[index]).all() and np.isfinite(b[index]).all():
            taus[index] = kendalltau(a[index], b[index])[0]
    return taus


def mass(maps: ArrayLike) -> Floats:
    """Sum of absolute values, (..., D) -> (...); 0 for a zero map, NaN where not finite."""
    return _magnitudes(maps).sum(axis=-1)


def entropy(maps: ArrayLike) -> Floats:
    """Entropy of the shares |a| / sum |a| over log D, (..., D) -> (...), in [0, 1]: 0 one pixel, 1 all alike.

    NaN where a map is zero or not finite, or D is 1. Shannon 1948.
    """
    return _entropy(_shares(_magnitudes(maps)))


def gini(maps: ArrayLike) -> Floats:
    """Gini index of absolute values, (..., D) -> (...), in [0, 1 - 1/D]: 0 all alike, 1 - 1/D one pixel.

    NaN where a map is zero or not finite. Hurley and Rickard 2009.
    """
    return _gini(_shares(_magnitudes(maps)))


def properties(maps: ArrayLike) -> dict[str, Floats]:
    """mass, entropy and gini of maps (..., D), whose magnitudes and shares are worked out once for all."""
    sizes = _magnitudes(maps)
    shares = _shares(sizes)
    return {"mass": sizes.sum(axis=-1), "entropy": _entropy(shares), "gini": _gini(shares)}


def _entropy(shares: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.where(shares > 0, np.log(np.where(shares > 0, shares, 1.0)), 0.0)
        return -(shares * logs).sum(axis=-1) / np.log(shares.shape[-1])


def _gini(shares: Floats) -> Floats:
    ordered = np.sort(shares, axis=-1)
    features = ordered.shape[-1]
    return ordered @ (2 * np.arange(1, features + 1) - features - 1) / features


def _image_pair(a: ArrayLike, b: ArrayLike, channels: bool) -> tuple[Floats, Floats]:
    """Both as float64, non-finite maps all NaN; shapes checked."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    ends = -3 if channels else -2
    if min(a.ndim, b.ndim) < -ends or a.shape[ends:] != b.shape[ends:] or 0 in a.shape[ends:]:
        names = "(..., C, H, W)" if channels else "(..., H, W)"
        raise ValueError(f"maps need the same {names}: {a.shape} against {b.shape}")
    axes = tuple(range(ends, 0))
    finite_a, finite_b = (np.isfinite(x).all(axis=axes, keepdims=True) for x in (a, b))
    return np.where(finite_a, a, np.nan), np.where(finite_b, b, np.nan)


def blurring(shape: Sequence[int], sigma: float) -> Callable[[Floats], Floats] | None:
    """A function that applies the Gaussian window to (..., H, W) where it fits whole; None if nowhere."""
    rows, columns = (gaussian_bands(size, sigma) for size in shape)
    if not (len(rows) and len(columns)):
        return None

    def blur(x: Floats) -> Floats:
        along = x.reshape(-1, x.shape[-1]) @ columns.T  # one large product is faster than many small ones
        return rows @ along.reshape(*x.shape[:-1], -1)

    return blur


def gaussian_bands(size: int, sigma: float) -> Floats:
    """Matrix [size - 2 r, size] that applies the Gaussian window where it fits whole; no rows if nowhere."""
    radius = int(REACH * sigma + 0.5)
    window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    bands = np.zeros((max(0, size - 2 * radius), size))
    for place, band in enumerate(bands):
        band[place : place + len(window)] = window / window.sum()
    return bands


def centre(maps: ArrayLike, channels: bool) -> Floats:
    """Row and column of the centre of absolute mass, (..., H, W) -> (..., 2); NaN for a zero map."""
    maps = np.asarray(maps)
    height, width = maps.shape[-2:]
    shares = _shares(_magnitudes(maps.reshape(*maps.shape[: -2 - channels], -1)))
    shares = shares.reshape(*shares.shape[:-1], -1, height, width).sum(axis=-3)
    return np.stack(
        [shares.sum(axis=-1) @ np.arange(height), shares.sum(axis=-2) @ np.arange(width)], axis=-1
    )


def _gradient_histogram(maps: Floats, cell: int, orientations: int, channels: bool) -> Floats:
    """Histograms of all cells of a map as one row, (..., H, W) -> (..., cells * orientations)."""
    height, width = (size // cell for size in maps.shape[-2:])
    gradient = np.zeros((2, *maps.shape))
    gradient[0, ..., 1:-1, :] = maps[..., 2:, :] - maps[..., :-2, :]
    gradient[1, ..., :, 1:-1] = maps[..., :, 2:] - maps[..., :, :-2]
    gradient = gradient[..., : height * cell, : width * cell]
    undefined = np.isnan(maps).any(axis=(-2, -1), keepdims=True)
    down, right = np.where(undefined, 0.0, gradient)
    angles = np.rad2deg(np.arctan2(down, right)) % 180
    bins = np.minimum((angles * orientations / 180).astype(np.int64), orientations - 1)
    rows, columns = np.arange(height * cell) // cell, np.arange(width * cell) // cell
    leading = maps.shape[: -2 - channels]
    count, cells = int(np.prod(leading)), height * width
    places = (rows[:, None] * width + columns) * orientations + bins
    places = places.reshape(count, int(np.prod(places.shape[len(leading) :])))
    places += np.arange(count)[:, None] * cells * orientations
    weights = np.where(undefined, np.nan, np.hypot(down, right)).ravel()
    filled = np.bincount(places.ravel(), weights=weights, minlength=count * cells * orientations)
    return filled.astype(np.float64, copy=False).reshape(*leading, cells * orientations)


def _magnitudes(maps: ArrayLike) -> Floats:
    """Absolute values, (..., D) -> (..., D); non-finite maps all NaN."""
    maps = np.abs(np.asarray(maps, np.float64))
    if maps.ndim == 0 or maps.shape[-1] == 0:
        raise ValueError(f"maps need a positive number of features, not {maps.shape}")
    return np.where(np.isfinite(maps).all(axis=-1, keepdims=True), maps, np.nan)


def _shares(sizes: Floats) -> Floats:
    """Magnitudes over their sum, (..., D) -> (..., D); NaN for zero and non-finite maps."""
    with np.errstate(invalid="ignore", divide="ignore"):
        # Dividing by the largest value first keeps the sum of very large and very small maps in range.
        sizes = sizes / sizes.max(axis=-1, keepdims=True)
        return sizes / sizes.sum(axis=-1, keepdims=True)
