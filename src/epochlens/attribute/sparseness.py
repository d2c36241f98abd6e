"""How much of a map lies in few features: a property of the map alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from epochlens.attribute.removal import Assessment, Subject, without_curves
from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

EPSILON = 1e-7
"""added to every magnitude by `sparseness`, as Quantus does"""


def sparseness(subject: Subject, generator: torch.Generator) -> Assessment:
    """Gini index of a map's magnitudes, [N] in [0, 1): 0 when all are equal, 1 - 1/D for a single one.

    Magnitudes are relative to the largest of the batch and raised by 1e-7. NaN where a map is zero or not
    finite. Chalasani et al. 2020.
    """
    values = {}
    for method, maps in subject.maps.items():
        magnitudes = maps.flatten(1).abs().cpu().double().numpy()
        largest = magnitudes.max(1)
        defined = np.isfinite(largest) & (largest > 0)
        found = np.full(len(magnitudes), np.nan)
        found[defined] = gini(magnitudes[defined] / largest[defined].max(initial=0) + EPSILON)
        values[method, "sparseness"] = torch.from_numpy(found)
    return without_curves(values)


def gini(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gini index of rows of positive numbers, [R, D] -> [R]."""
    size = rows.shape[1]
    return np.sort(rows, axis=1) @ np.arange(1.0 - size, size, 2) / (size * rows.sum(1))
