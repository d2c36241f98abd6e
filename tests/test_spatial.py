"""The rows of ssim and centre_shift equal the pairwise functions, whatever is shared between pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from epochlens.measure import blocks, spatial
from epochlens.measure.structure import centre_shift, ssim


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 13), (1, 3, 3)])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e25])
def test_rows_equal_the_functions_pair_by_pair(shape, scale):
    generator = np.random.default_rng(0)
    maps = (generator.standard_normal((4, 5, *shape)) * scale).astype(np.float32)
    maps[2, 1] = 0
    maps[1, 3, 0, 0, 0] = np.nan
    epochs, samples = np.array([0, 1, 2, 5]), np.arange(5) * 3
    found = pd.DataFrame(blocks.columns(list(spatial.blocks(maps, epochs)), samples))
    table: Any = found.set_index(["reference", "metric", "epoch", "sample"])["value"].to_dict()
    sigma = spatial.fitting_sigma(min(shape[1:]))
    pairs = {"previous": [(2, 1), (3, 2)], "final": [(0, 3), (1, 3), (2, 3), (3, 3)]}
    assert len(table) == 2 * 5 * 6
    for reference, positions in pairs.items():
        for t, r in positions:
            for n in range(5):
                key = epochs[t], samples[n]
                a, b = maps[t, n], maps[r, n]
                expected = ssim(a, b, sigma=sigma, channels=True)
                found = table[reference, "ssim", *key]
                np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
                shift = centre_shift(a, b, channels=True)
                np.testing.assert_allclose(table[reference, "centre_shift", *key], shift, rtol=1e-12)


def test_the_window_fits_small_maps_and_is_the_usual_one_otherwise():
    assert spatial.fitting_sigma(28) == 1.5
    assert spatial.fitting_sigma(11) == pytest.approx(10 // 2 / 3.5)
    generator = np.random.default_rng(1)
    maps = generator.standard_normal((3, 2, 1, 8, 8))
    assert all(np.isfinite(block.values).all() for block in spatial.blocks(maps, [0, 1, 2]))


def test_maps_without_rows_and_columns_have_none():
    assert list(spatial.blocks(np.ones((3, 2, 7)), [0, 1, 2])) == []
