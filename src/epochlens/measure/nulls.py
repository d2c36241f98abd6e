"""What a similarity is worth: what it would be for maps that share nothing of the network's explanation.

A cosine of 0.9 between two epochs means little if two different images of a class reach 0.9 as well. The
nulls are: the input's edges, random maps, the map of another image of the same class, a second draw of a
random method, and other seeds (see seeds). Calibrated similarity is 0 at the null of other images and 1 at
identity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from epochlens.measure.blocks import Block, as_rows
from epochlens.measure.similarity import METRICS, Floats, Metric
from epochlens.measure.stability import (
    compare_epochs,
    defined_mean,
    find_metric,
    flatten,
    prepare_all,
    reference_pairs,
)

NULLS = ("edge", "random", "other_image", "redraw", "seeds")
DISTANCES = ("relative_l2",)


def edge_maps(images: ArrayLike) -> Floats:
    """Sobel gradient magnitude of every channel, [N, C, H, W] -> [N, C, H, W], borders repeated outward.

    NaN spreads to its neighbours. Raises ValueError for another number of axes. Sobel and Feldman 1968.
    """
    from scipy.ndimage import correlate1d  # slow to import

    images = np.asarray(images, np.float64)
    if images.ndim != 4:
        raise ValueError(f"images must be [N, C, H, W], not {images.shape}")
    # Not scipy's sobel: that smooths along every other axis, here over images and channels too.
    smooth, slope = [1, 2, 1], [-1, 0, 1]
    down, right = (
        correlate1d(
            correlate1d(images, slope, axis=along, mode="nearest"), smooth, axis=across, mode="nearest"
        )
        for along, across in ((-2, -1), (-1, -2))
    )
    return np.hypot(down, right)


def random_maps(shape: Sequence[int], rng: np.random.Generator) -> Floats:
    """Maps of independent standard normal values."""
    return rng.standard_normal(tuple(shape))


def other_image(labels: ArrayLike) -> NDArray[np.integer]:
    """For each image the next one with the same label, cyclically, labels [N] -> positions [N].

    -1 for an image alone with its label. Within a label it is one cycle, so every image serves exactly once.
    """
    labels = np.asarray(labels)
    others = np.full(len(labels), -1)
    for label in np.unique(labels):
        images = np.flatnonzero(labels == label)
        if len(images) > 1:
            others[images] = np.roll(images, -1)
    return others


def null_similarities(
    maps: ArrayLike,
    epochs: ArrayLike,
    samples: ArrayLike,
    images: ArrayLike | None,
    labels: ArrayLike,
    metrics: Sequence[str],
    rng: np.random.Generator,
    redraws: ArrayLike | None = None,
    *,
    prepared: Mapping[str, Floats] | None = None,
) -> pd.DataFrame:
    """Compare each epoch's maps, untrained or trained, with maps that know nothing of them, a row per image.

    maps [T, N, ...] of one run and method, epochs [T], samples [N], images [N, C, H, W] (None or any other
    number of axes, as of tabular inputs: no edges), labels [N], redraws as maps -> columns epoch, reference,
    metric, sample, value as in stability.similarities, ordered by metric, reference as in NULLS, epoch,
    image. `edge`: the input's edge map, averaged over channels and resampled where maps are smaller.
    `random`: one random map per image, shared by all epochs and metrics. `other_image`: the same epoch's map
    of the next image of the class; NaN where there is none. `redraw`: the same map drawn again, if redraws
    are given. value is NaN where the metric is undefined. `prepared` (stability.prepare_all) saves preparing
    the maps again. Raises ValueError for an unknown metric or shapes that do not fit.
    """
    found = list(null_blocks(maps, epochs, samples, images, labels, metrics, rng, redraws, prepared=prepared))
    return as_rows(found, np.asarray(samples), NULLS, tuple(METRICS))


def null_blocks(
    maps: ArrayLike,
    epochs: ArrayLike,
    samples: ArrayLike,
    images: ArrayLike | None,
    labels: ArrayLike,
    metrics: Sequence[str],
    rng: np.random.Generator,
    redraws: ArrayLike | None = None,
    *,
    prepared: Mapping[str, Floats] | None = None,
) -> Iterator[Block]:
    """What `null_similarities` gives, as arrays: a block per metric and null. Raises ValueError likewise."""
    chosen = {name: find_metric(name) for name in metrics}
    ready = prepared if prepared is not None else prepare_all(maps, metrics)
    shape, maps, epochs, samples = np.shape(maps), flatten(maps), np.asarray(epochs), np.asarray(samples)
    if epochs.shape != shape[:1] or samples.shape != shape[1:2] or np.shape(labels) != samples.shape:
        raise ValueError(
            f"maps {shape} do not fit epochs {epochs.shape}, {samples.shape}, {np.shape(labels)}"
        )
    if redraws is not None and np.shape(redraws) != shape:
        raise ValueError(f"redraws {np.shape(redraws)} must have the shape of maps {shape}")
    others = other_image(labels)
    nulls: dict[str, NDArray] = {"random": random_maps(maps.shape[1:], rng)}
    if images is not None and np.ndim(images) == 4:
        nulls = {"edge": _fitted_edges(np.asarray(images), shape[1:])} | nulls
    if redraws is not None:
        nulls["redraw"] = flatten(redraws)
    for name, metric in chosen.items():
        own = ready[name]
        fixed = {null: metric.prepare(other.reshape(-1, *own.shape[1:])) for null, other in nulls.items()}
        values = {null: compare_epochs(metric, own, other) for null, other in fixed.items()}
        values["other_image"] = compare_others(metric, own, own, others)
        for null in NULLS:
            if null in values:
                yield Block(null, name, epochs, values[null])


def calibrate(value: ArrayLike, null: ArrayLike) -> Floats:
    """(value - null) / (1 - null), broadcast: 0 at the null, 1 at identity, negative below the null.

    NaN where null >= 1 or either is NaN. Divide by means over images, not image by image: a null near 1
    makes single ratios explode. The form of Cohen's kappa (1960).
    """
    value, null = np.asarray(value, np.float64), np.asarray(null, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(null < 1, (value - null) / (1 - null), np.nan)


def calibrated(
    maps: ArrayLike,
    epochs: ArrayLike,
    labels: ArrayLike,
    metric: str = "cosine",
    reference: str = "final",
    *,
    prepared: Mapping[str, Floats] | None = None,
    own: Floats | None = None,
) -> tuple[NDArray, Floats]:
    """Similarity to a reference epoch, 0 for another image's map and 1 at identity: (epochs [T'], [T', N]).

    maps [T, N, ...] of one run and method, epochs [T] increasing, labels [N]; reference and the epochs that
    have it as in stability.similarities. For epoch e and its reference r let s_i be the similarity of image
    i's map at e with its own at r, n_i with that of other_image(i) at r, and n their mean over the images
    where both are defined. The value is (s_i - n) / (1 - n): one null per pair of epochs, so its mean over
    those images is the ratio of means. NaN where s_i or n_i is undefined or n >= 1. Raises ValueError for an
    unknown metric or reference, a distance (relative_l2), or shapes that do not fit. `prepared` and `own`
    (the s_i, [T', N]) save working out what is known already.
    """
    chosen = find_metric(metric)
    if metric in DISTANCES:
        raise ValueError(f"{metric} is a distance: it is not 1 at identity, so it can't be calibrated")
    maps, epochs, others = flatten(maps), np.asarray(epochs), other_image(labels)
    if epochs.shape != maps.shape[:1] or others.shape != maps.shape[1:2]:
        raise ValueError(f"maps {maps.shape} do not fit epochs {epochs.shape} and labels {others.shape}")
    now, then = reference_pairs(epochs, reference)
    ready = chosen.prepare(maps) if prepared is None else prepared[metric]
    own = compare_epochs(chosen, ready[now], ready[then]) if own is None else own
    null = compare_others(chosen, ready[now], ready[then], others)
    defined = ~(np.isnan(own) | np.isnan(null))
    mean = defined_mean(np.where(defined, null, np.nan), axis=1)[:, None]
    return epochs[now], calibrate(np.where(defined, own, np.nan), mean)


def compare_others(metric: Metric, now: Floats, then: Floats, others: NDArray) -> Floats:
    """Prepared maps of each image [T, N, D] against another image's, NaN where it has none: [T, N]."""
    values = np.full(now.shape[:2], np.nan)
    for image, other in enumerate(others):
        if other >= 0:
            values[:, image] = metric.compare(now[:, image], then[:, other])
    return values


def drift_per_step(similarity: ArrayLike, change: ArrayLike) -> Floats:
    """Similarity lost per unit of change, (1 - similarity) / change, broadcast over any shape.

    change is how far the network moved between the same two epochs: relative weight change
    ||w_e - w_r|| / ||w_r||, or the change of its outputs on the probes. Small steps look like stability; a
    curve that is flat here but rising in similarity only took smaller steps. NaN where change is 0 or
    negative or either is NaN.
    """
    similarity, change = np.asarray(similarity, np.float64), np.asarray(change, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(change > 0, (1 - similarity) / change, np.nan)


def _fitted_edges(images: NDArray, shape: tuple[int, ...]) -> Floats:
    """Edge maps as flat as one epoch's maps: channels averaged and pixels resampled where these differ."""
    from scipy.ndimage import zoom  # slow to import

    edges = edge_maps(images)
    if len(shape) != 4 or len(images) != shape[0]:
        raise ValueError(f"images {images.shape} do not fit maps [T, {', '.join(map(str, shape))}]")
    if shape[1] != edges.shape[1]:
        edges = np.repeat(edges.mean(axis=1, keepdims=True), shape[1], axis=1)
    if shape[2:] != edges.shape[2:]:
        factors = (1, 1, shape[2] / edges.shape[2], shape[3] / edges.shape[3])
        edges = np.asarray(zoom(edges, factors, order=1, mode="nearest", grid_mode=True))
    return edges.reshape(len(edges), -1)
