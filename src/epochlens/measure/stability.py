"""How stable one run's maps are over training: similarity rows, epoch-by-epoch matrix, temporal variance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from epochlens.measure.blocks import Block, as_rows
from epochlens.measure.similarity import METRICS, Floats, Metric, dot

REFERENCES = ("previous", "final", "initial")


def prepare_all(maps: ArrayLike, metrics: Sequence[str] = tuple(METRICS)) -> dict[str, Floats]:
    """Maps [T, N, ...] prepared for each metric, to be handed to several measurements of the same maps.

    Raises ValueError for an unknown metric.
    """
    flat = flatten(maps)
    return {name: find_metric(name).prepare(flat) for name in metrics}


def similarities(
    maps: ArrayLike,
    epochs: ArrayLike,
    samples: ArrayLike,
    metrics: Sequence[str] = tuple(METRICS),
    *,
    prepared: Mapping[str, Floats] | None = None,
) -> pd.DataFrame:
    """Compare each recorded epoch of one run and method with its references, one row per image.

    maps [T, N, ...], epochs [T] strictly increasing (0 = untrained), samples [N] -> columns epoch, reference,
    metric, sample, value, ordered by metric and reference as named, then epoch, then image. The references:
    `previous` compares with the preceding recorded epoch, never with the untrained network, so it starts at
    the second trained epoch; `final` compares every epoch, the last itself included, with the last; `initial`
    compares trained epochs with epoch 0, if that was recorded. value is NaN where the metric is undefined.
    `prepared` saves preparing the maps again. Raises ValueError for an unknown metric or shapes that do not
    fit.
    """
    found = list(similarity_blocks(maps, epochs, samples, metrics, prepared=prepared))
    return as_rows(found, np.asarray(samples), REFERENCES, tuple(METRICS))


def similarity_blocks(
    maps: ArrayLike,
    epochs: ArrayLike,
    samples: ArrayLike,
    metrics: Sequence[str] = tuple(METRICS),
    *,
    prepared: Mapping[str, Floats] | None = None,
) -> Iterator[Block]:
    """What `similarities` gives, as arrays: a block per metric and reference. Raises ValueError likewise."""
    chosen = {name: find_metric(name) for name in metrics}
    ready = prepared if prepared is not None else prepare_all(maps, metrics)
    maps, epochs, samples = flatten(maps), np.asarray(epochs), np.asarray(samples)
    if epochs.shape != maps.shape[:1] or samples.shape != maps.shape[1:2]:
        raise ValueError(f"maps {maps.shape} do not fit epochs {epochs.shape} and samples {samples.shape}")
    if len(epochs) == 0 or epochs[0] < 0 or (np.diff(epochs) <= 0).any():
        raise ValueError(f"epochs must be 0 or more and strictly increasing, not {epochs.tolist()}")
    for name, metric in chosen.items():
        for reference, (now, then) in epoch_pairs(epochs).items():
            values = compare_epochs(metric, ready[name][now], ready[name][then])
            yield Block(reference, name, epochs[now], values)


def epoch_matrix(
    maps: ArrayLike, metric: str = "cosine", *, prepared: Mapping[str, Floats] | None = None
) -> Floats:
    """Mean over images of the similarity of every pair of epochs, [T, N, ...] -> [T, T].

    Entry [i, j] compares epoch i with reference j. Images where a pair is undefined are left out of its mean;
    NaN where no image is left. Raises ValueError for an unknown metric.
    """
    prepare, compare = find_metric(metric)
    ready = prepare(flatten(maps)) if prepared is None else prepared[metric]
    if compare is dot:
        by_image = ready.swapaxes(0, 1)
        pairs = np.clip(np.stack([image @ image.T for image in by_image]), -1.0, 1.0)
        return defined_mean(pairs, axis=0)
    return np.stack([defined_mean(compare(one, ready), axis=1) for one in ready])


def temporal_variance(
    maps: ArrayLike, *, prepared: Mapping[str, Floats] | None = None
) -> tuple[float, float]:
    """Variance over epochs, averaged over images and pixels: (raw, normalised) of trained maps [E, N, ...].

    raw is the unbiased variance of the values as they are, so it grows with the maps' scale and is NaN if any
    value is not finite. normalised first scales every map to unit L2 norm. A zero or non-finite map has no
    direction: its image is left out of normalised. Both NaN for fewer than two epochs or no image.
    """
    maps = flatten(maps)
    if len(maps) < 2 or maps.shape[1] == 0:
        return np.nan, np.nan
    units = METRICS["cosine"].prepare(maps) if prepared is None else prepared["cosine"]
    with np.errstate(invalid="ignore"):
        raw, normalised = (_variances(values) for values in (maps, units))
    return float(raw.mean()), float(defined_mean(normalised, axis=0))


def _variances(values: NDArray) -> Floats:
    """Unbiased variance over epochs, mean over pixels, image by image, which stays in the cache."""
    images = values.swapaxes(0, 1)
    return np.array([image.var(axis=0, ddof=1, dtype=np.float64).mean() for image in images])


def find_metric(name: str) -> Metric:
    """The metric of that name. Raises ValueError naming the choices."""
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; choose from {', '.join(METRICS)}")
    return METRICS[name]


def flatten(maps: ArrayLike) -> NDArray:
    """Maps [T, N, ...] as [T, N, D]. Raises ValueError when an axis is missing or empty."""
    maps = np.asarray(maps)
    if maps.ndim < 3 or 0 in maps.shape[2:]:
        raise ValueError(f"maps must be [epochs, images, ...] with at least one pixel, not {maps.shape}")
    return maps.reshape(*maps.shape[:2], int(np.prod(maps.shape[2:])))


def epoch_pairs(epochs: NDArray) -> dict[str, tuple[slice, slice]]:
    """Which positions of increasing epochs are compared with which, by reference: (now, then).

    As slices, which copy nothing; `then` is as long as `now`, or one.
    """
    trained = int(np.searchsorted(epochs, 1))
    pairs = {
        "previous": (slice(trained + 1, None), slice(trained, max(trained, len(epochs) - 1))),
        "final": (slice(0, None), slice(len(epochs) - 1, None)),
    }
    if epochs[0] == 0:
        pairs["initial"] = (slice(trained, None), slice(0, 1))
    return pairs


def reference_pairs(epochs: NDArray, reference: str) -> tuple[slice, slice]:
    """One reference of epoch_pairs. Raises ValueError when epochs do not increase, or lack it."""
    if len(epochs) == 0 or (np.diff(epochs) <= 0).any():
        raise ValueError(f"epochs must be strictly increasing, not {epochs.tolist()}")
    pairs = epoch_pairs(epochs)
    if reference not in pairs:
        raise ValueError(f"no reference {reference!r} among epochs {epochs.tolist()}: {', '.join(pairs)}")
    return pairs[reference]


def compare_epochs(metric: Metric, now: Floats, then: Floats) -> Floats:
    """Prepared maps [T, N, D] against [T, N, D] or [1, N, D], epoch by epoch, which stays in the cache."""
    if len(now) == 0:
        return np.empty(now.shape[:2])
    step = len(then) > 1
    return np.stack([metric.compare(one, then[t * step]) for t, one in enumerate(now)])


def defined_mean(values: Floats, axis: int) -> Floats:
    """Mean of the values that are not NaN; NaN, without a warning, where there are none."""
    undefined = np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(undefined, 0.0, values).sum(axis) / (~undefined).sum(axis)
