"""Real images for tests: crops of the two photographs that scikit-learn brings along."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_sample_images


def crops(n: int, channels: int, side: int, seed: int = 0) -> torch.Tensor:
    """Crops [n, channels, side, side] float64 in [0, 1], at most 3 channels, of full-size pixels."""
    photographs = [np.asarray(photograph) for photograph in load_sample_images().images]
    rng = np.random.default_rng(seed)
    found = []
    for k in range(n):
        photograph = photographs[k % len(photographs)]
        top, left = (rng.integers(0, size - side) for size in photograph.shape[:2])
        found.append(photograph[top : top + side, left : left + side, :channels])
    return torch.from_numpy(np.stack(found)).double().movedim(3, 1) / 255
