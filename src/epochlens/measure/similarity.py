"""Similarity of attribution maps: array functions on (..., D) that broadcast over the leading axes.

Every metric works in two steps. `prepare` turns a map into what the comparison needs (a unit vector,
centred ranks, a mask), once per map; `compare` combines two prepared maps and is cheap. Whoever compares
a map with several references prepares it once: `METRICS[name].prepare` and `.compare` are public for that.

All arithmetic is float64. A similarity that is undefined (a zero or constant map, any non-finite value) is
NaN, never 0: a map that says nothing neither agrees nor disagrees. NaN enters in `prepare` and from there
spreads by arithmetic alone, so no comparison needs a special case.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
TINY, HUGE = 1e-200, 1e200
CACHED = 2**15
"""values prepared at a time, so that the dozen arrays that ranking makes of them stay in the cache"""


class Metric(NamedTuple):
    """A metric as its two steps; calling it runs both: metric(a, b) = compare(prepare(a), prepare(b))."""

    prepare: Callable[[NDArray], Floats]
    compare: Callable[[Floats, Floats], Floats]

    def __call__(self, a: ArrayLike, b: ArrayLike) -> Floats:
        a, b = np.asarray(a), np.asarray(b)
        if a.ndim == 0 or b.ndim == 0 or a.shape[-1] != b.shape[-1] or a.shape[-1] == 0:
            raise ValueError(f"maps need the same, positive number of features: {a.shape} against {b.shape}")
        return self.compare(self.prepare(a), self.prepare(b))


def cosine(a: ArrayLike, b: ArrayLike) -> Floats:
    """Cosine of the angle between maps, (..., D) x (..., D) -> (...), in [-1, 1].

    NaN where a map is zero or not finite. ValueError when D differs.
    """
    return METRICS["cosine"](a, b)


def spearman(a: ArrayLike, b: ArrayLike) -> Floats:
    """Rank correlation of signed values, ties sharing ranks, (..., D) x (..., D) -> (...), in [-1, 1].

    NaN where a map is constant or not finite. ValueError when D differs. Spearman 1904.
    """
    return METRICS["spearman"](a, b)


def spearman_abs(a: ArrayLike, b: ArrayLike) -> Floats:
    """Rank correlation of absolute values, ties sharing ranks, (..., D) x (..., D) -> (...), in [-1, 1].

    NaN where a map's absolute value is constant or not finite. ValueError when D differs.
    Adebayo et al. 2018.
    """
    return METRICS["spearman_abs"](a, b)


def topk_jaccard(a: ArrayLike, b: ArrayLike, *, fraction: float = 0.1) -> Floats:
    """Intersection over union of the strongest features, (..., D) x (..., D) -> (...), in [0, 1].

    A map's strongest features are the non-zero ones with |a| at least its k-th largest |a|, where
    k = max(1, round(fraction * D)). Ties at that threshold are all in, so the features' order is irrelevant.
    NaN where a map is zero or not finite. ValueError when D differs or fraction is outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], not {fraction}")
    strongest = partial(_strongest, fraction=fraction)
    return Metric(partial(_in_blocks, strongest), _jaccard)(a, b)


def sign_agreement(a: ArrayLike, b: ArrayLike) -> Floats:
    """Share of equal signs among features non-zero in either map, (..., D) x (..., D) -> (...), in [0, 1].

    NaN where a map is zero or not finite. ValueError when D differs.
    """
    return METRICS["sign_agreement"](a, b)


def relative_l2(a: ArrayLike, b: ArrayLike) -> Floats:
    """Distance ||a - b|| / ||b|| of a map from its reference b, (..., D) x (..., D) -> (...), in [0, inf).

    A distance, not a similarity: 0 means identical, and swapping the maps changes the value.
    NaN where b is zero or either map is not finite. ValueError when D differs.
    """
    return METRICS["relative_l2"](a, b)


def ranks(x: ArrayLike) -> Floats:
    """Ranks 1..D along the last axis, ties sharing their average rank, (..., D) -> (..., D).

    Rows with any non-finite value are NaN. Equals scipy.stats.rankdata(x, axis=-1) elsewhere.
    """
    x = np.asarray(x)
    return _in_blocks(_rank_rows, x) if x.size else np.empty(x.shape)


def _in_blocks(function: Callable[[NDArray], NDArray], x: NDArray) -> NDArray:
    """Apply a function of rows [R, D] -> [R, D] to (..., D), a block of rows at a time.

    The temporary arrays of a block stay in a core's cache, which is worth more than fewer, larger calls.
    """
    rows = x.reshape(-1, x.shape[-1])
    step = max(1, CACHED // x.shape[-1])
    first = function(rows[:step])
    result = np.empty(rows.shape, first.dtype)
    result[:step] = first
    for begin in range(step, len(rows), step):
        result[begin : begin + step] = function(rows[begin : begin + step])
    return result.reshape(x.shape)


def _rank_rows(x: NDArray) -> Floats:
    """Ranks of rows [R, D]."""
    features = x.shape[1]
    positions, ordered = _sort_float32(x) if x.dtype == np.float32 and x.size < 2**31 else _sort(x)
    begins = np.ones(ordered.shape, bool)
    np.not_equal(ordered[:, 1:], ordered[:, :-1], out=begins[:, 1:])
    if begins.all():  # no ties
        averages = np.broadcast_to(np.arange(1.0, features + 1), x.shape)
    else:
        # All rows as one long sorted sequence, in which each row begins a new group of ties.
        starts = np.flatnonzero(begins)
        sizes = np.diff(starts, append=ordered.size)
        averages = np.repeat(starts % features + (sizes + 1) / 2, sizes).reshape(x.shape)
    result = np.empty(x.size)
    result[positions] = averages
    result = result.reshape(x.shape)
    result[~np.isfinite(x).all(axis=-1)] = np.nan
    return result


def _sort(x: NDArray) -> tuple[NDArray, NDArray]:
    """Where, in the flat array, the sorted values of rows [R, D] stand, and these values."""
    order = np.argsort(x, axis=-1)
    return order + x.shape[1] * np.arange(len(x))[:, None], np.take_along_axis(x, order, axis=-1)


def _sort_float32(x: NDArray) -> tuple[NDArray, NDArray]:
    """The same for float32, the values as integers of equal order: twice as fast as argsort.

    Value and position share one 64-bit integer, the value in the upper half, so that sorting these integers
    moves both at once. Floats order like integers of the same bits, negative ones backwards.
    """
    bits = (x + np.float32(0)).view(np.int32)  # + 0 makes -0 a 0, which it equals
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)
    keys = bits.astype(np.int64) << 32
    keys |= np.arange(x.size).reshape(x.shape)
    keys.sort(axis=-1)
    return keys & 0xFFFFFFFF, keys >> 32


def dot(a: Floats, b: Floats) -> Floats:
    """Inner product of unit vectors along the last axis, held in [-1, 1] against rounding; NaN stays NaN."""
    return np.clip(_inner(a, b), -1.0, 1.0)


def _inner(a: Floats, b: Floats) -> Floats:
    return np.matmul(a[..., None, :], b[..., :, None])[..., 0, 0]  # twice as fast as einsum


def _unit(x: NDArray) -> Floats:
    """Scale maps to unit length; zero and non-finite maps become all NaN."""
    x = np.asarray(x, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Dividing by the largest value first keeps the squares of very large and very small maps in range.
        x = x / np.abs(x).max(axis=-1, keepdims=True)
        x /= np.sqrt(_inner(x, x))[..., None]
    return x


def _unit_ranks(x: NDArray) -> Floats:
    centred = _rank_rows(x)
    centred -= (x.shape[-1] + 1) / 2
    return _unit(centred)


def _unit_ranks_abs(x: NDArray) -> Floats:
    return _unit_ranks(np.abs(x))


def _strongest(x: NDArray, fraction: float = 0.1) -> NDArray:
    """Mask (1.0 or 0.0) of a map's strongest features; zero and non-finite maps become all NaN."""
    size = np.abs(x)
    features = x.shape[-1]
    place = features - max(1, round(fraction * features))
    threshold = np.partition(size, place, axis=-1)[..., place, None]
    mask = ((size >= threshold) & (size > 0)).astype(np.float32)  # counts of these are exact
    return _undefine_zero(mask, x)


def _signs(x: NDArray) -> NDArray:
    with np.errstate(invalid="ignore"):
        return _undefine_zero(np.sign(x).astype(np.float32), x)


def _undefine_zero(prepared: NDArray, x: NDArray) -> NDArray:
    prepared[~(np.isfinite(x).all(axis=-1) & x.any(axis=-1))] = np.nan
    return prepared


def _finite(x: NDArray) -> Floats:
    x = np.asarray(x, np.float64)
    finite = np.isfinite(x).all(axis=-1, keepdims=True)
    return x if finite.all() else np.where(finite, x, np.nan)


def _jaccard(a: Floats, b: Floats) -> Floats:
    both = _count(a, b)
    return both / (_total(a) + _total(b) - both)


def _agreement(a: Floats, b: Floats) -> Floats:
    # With signs -1, 0, 1 the products count: a.b = equal - opposite and |a|.|b| = equal + opposite.
    size_a, size_b = np.abs(a), np.abs(b)
    both = _count(size_a, size_b)
    equal = (_count(a, b) + both) / 2
    return equal / (_total(size_a) + _total(size_b) - both)


def _count(a: NDArray, b: NDArray) -> Floats:
    return np.asarray(_inner(a, b), np.float64)


def _total(a: NDArray) -> Floats:
    return a.sum(axis=-1, dtype=np.float64)


def _relative_distance(a: Floats, b: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore", over="ignore", under="ignore"):
        difference = a - b
        apart, size = _inner(difference, difference), _inner(b, b)
        in_range = (size > TINY) & (apart < HUGE)
        if in_range.all():
            return np.sqrt(apart / size)
        # Squares left the range of floats, or b is zero or undefined: there once more on b's own scale.
        scale = np.abs(b).max(axis=-1, keepdims=True)
        difference, reference = difference / scale, b / scale
        scaled = np.sqrt(_inner(difference, difference)) / np.sqrt(_inner(reference, reference))
        return np.where(in_range, np.sqrt(apart / size), scaled)


METRICS: dict[str, Metric] = {
    "cosine": Metric(partial(_in_blocks, _unit), dot),
    "spearman": Metric(partial(_in_blocks, _unit_ranks), dot),
    "spearman_abs": Metric(partial(_in_blocks, _unit_ranks_abs), dot),
    "topk_jaccard": Metric(partial(_in_blocks, _strongest), _jaccard),
    "sign_agreement": Metric(partial(_in_blocks, _signs), _agreement),
    "relative_l2": Metric(partial(_in_blocks, _finite), _relative_distance),
}
