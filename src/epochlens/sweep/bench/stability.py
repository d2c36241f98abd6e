"""Measuring how maps move: all pairs of epochs at once against SciPy pair by pair."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from epochlens.measure import stability
from epochlens.sweep.bench.storage import example_maps
from epochlens.sweep.bench.timing import Comparison, largest_difference


def comparisons(quick: bool) -> Iterator[Comparison]:
    """Cosine and Spearman of every pair of epochs of one run, mean over images."""
    epochs = 10 if quick else 50
    for name, shape in (("MNIST", (1, 28, 28)), ("CIFAR", (3, 32, 32))):
        maps = example_maps(epochs, shape=shape).attributions[:, 0]
        yield Comparison(
            "stability",
            f"all {epochs} x {epochs} pairs of epochs, 32 {name} images, cosine and Spearman",
            "scipy pair by pair",
            lambda maps=maps: [
                stability.epoch_matrix(maps, "cosine"),
                stability.epoch_matrix(maps, "spearman"),
            ],
            lambda maps=maps: pair_by_pair(maps),
            largest_difference,
            1e-9,
            200.0,
            repeats=1,
        )


def pair_by_pair(maps: np.ndarray) -> list[np.ndarray]:
    """The same two matrices by scipy.spatial and scipy.stats, one image and pair at a time."""
    from scipy.spatial.distance import cosine
    from scipy.stats import spearmanr

    flat = maps.reshape(*maps.shape[:2], -1).astype(np.float64)
    cosines, ranks = np.ones((2, len(flat), len(flat)))
    for i, j in itertools.combinations(range(len(flat)), 2):
        pairs = list(zip(flat[i], flat[j], strict=True))
        cosines[i, j] = cosines[j, i] = np.mean([1 - cosine(a, b) for a, b in pairs])
        ranks[i, j] = ranks[j, i] = np.mean([np.asarray(spearmanr(a, b))[0] for a, b in pairs])
    return [cosines, ranks]
