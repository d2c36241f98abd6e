"""Structure of maps: scikit-image and scipy pair by pair, and the identities of each measure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from skimage.feature import hog as skimages_hog
from skimage.metrics import structural_similarity

from epochlens.measure.structure import centre_shift, entropy, gini, hog, kendall, mass, ssim

few = settings(max_examples=40, deadline=None)
rows = arrays(np.float64, (3, 7), elements=st.integers(-3, 3).map(float) | st.floats(-1e6, 1e6))


def image_maps(shape, seed=0):
    """Smooth signed maps with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[-2], : shape[-1]] / 5
    phase = rng.uniform(0, 6, (*shape[:-2], 1, 1))
    return np.tanh(np.sin(y + phase) * np.cos(x - phase) + 0.3 * rng.normal(size=shape))


def skimages_ssim(a, b, sigma=1.5, channel_axis=None):
    return structural_similarity(
        a,
        b,
        data_range=max(a.max(), b.max()) - min(a.min(), b.min()),
        gaussian_weights=True,
        sigma=sigma,
        use_sample_covariance=False,
        channel_axis=channel_axis,
    )


@pytest.mark.parametrize(
    ("size", "sigma"), [((28, 28), 1.5), ((11, 17), 1.5), ((8, 8), 0.9), ((32, 20), 2.2)]
)
def test_ssim_equals_scikit_images_pair_by_pair(size, sigma):
    a, b = image_maps((2, 3, *size)), image_maps((2, 3, *size), seed=1)
    b[0] = a[0] + 0.2 * b[0]
    result = ssim(a, b, sigma=sigma)
    for index in np.ndindex(2, 3):
        assert result[index] == pytest.approx(skimages_ssim(a[index], b[index], sigma), abs=1e-10)
    assert result[0].min() > result[1].max()


def test_ssim_of_channels_shares_one_range_and_averages():
    a, b = image_maps((4, 3, 14, 12)), 3 * image_maps((4, 3, 14, 12), seed=1)
    b[:, 1] *= 5
    result = ssim(a, b, channels=True)
    for one, other, value in zip(a, b, result, strict=True):
        assert value == pytest.approx(skimages_ssim(one, other, channel_axis=0), abs=1e-10)


@pytest.mark.filterwarnings("error")
def test_ssim_is_symmetric_one_at_identity_and_blind_to_a_common_scale():
    a, b = image_maps((5, 16, 16)), image_maps((5, 16, 16), seed=1)
    np.testing.assert_allclose(ssim(a, a), 1, atol=1e-12)
    np.testing.assert_allclose(ssim(a, b), ssim(b, a), atol=1e-14)
    for scale in (1e-200, 1e200):
        np.testing.assert_allclose(ssim(scale * a, scale * b), ssim(a, b), atol=1e-12)
    np.testing.assert_allclose(ssim(a[:, None], b), [[ssim(x, y) for y in b] for x in a], atol=1e-13)


@pytest.mark.filterwarnings("error")
def test_ssim_is_undefined_for_constant_pairs_small_maps_and_gaps():
    a = image_maps((3, 12, 12))
    a[0], gap = 0.5, a.copy()
    gap[1, 3, 3] = np.nan
    gap[2, 0, 0] = np.inf
    assert np.isnan(ssim(a, a)).tolist() == [True, False, False]
    assert np.isnan(ssim(a[[1, 1, 1]], gap)).tolist() == [False, True, True]
    assert np.isnan(ssim(gap, a[[1, 1, 1]])).tolist() == [False, True, True]
    assert ssim(a[0], a[1]) == pytest.approx(skimages_ssim(a[0], a[1]), abs=1e-10)
    assert np.isnan(ssim(a[..., :10], a[..., :10])).all()
    for function in (ssim, centre_shift, hog):
        with pytest.raises(ValueError, match="H, W"):
            function(a, a[..., :11])
        with pytest.raises(ValueError, match="C, H, W"):
            function(a[0], a[0], channels=True)
    with pytest.raises(ValueError, match="sigma"):
        ssim(a, a, sigma=0)


@few
@given(st.integers(-3, 3), st.integers(-4, 4), st.integers(0, 2**32 - 1))
def test_a_moved_map_shifts_its_centre_by_the_way_it_went(down, right, seed):
    maps = np.zeros((2, 20, 20))
    maps[:, 6:14, 6:14] = np.random.default_rng(seed).normal(size=(2, 8, 8))
    moved = -2.5 * np.roll(maps, (down, right), axis=(1, 2))
    np.testing.assert_allclose(centre_shift(maps, moved), np.hypot(down, right), atol=1e-9)


@pytest.mark.filterwarnings("error")
def test_centres_by_hand_sum_over_channels_and_zero_maps_have_none():
    a, b = np.zeros((2, 2, 5, 6))
    a[0, 0, 0], a[1, 4, 0] = 3, -1  # centre of absolute mass at (1, 0)
    b[0, 1, 3] = 2
    assert centre_shift(a, b, channels=True) == pytest.approx(3)
    np.testing.assert_allclose(centre_shift(a, b), [np.hypot(1, 3), np.nan])
    assert np.isnan(centre_shift(np.where(a == 3, np.inf, a), b, channels=True))


@pytest.mark.parametrize(("size", "cell"), [((28, 28), 4), ((8, 8), 4), ((13, 18), 5)])
def test_hog_is_the_cosine_of_scikit_images_histograms(size, cell):
    a, b = image_maps((3, *size)), image_maps((3, *size), seed=1)

    def histogram(x):
        cells = tuple(length // cell for length in size)
        options = {"pixels_per_cell": (cell, cell), "cells_per_block": cells, "block_norm": "L2"}
        return skimages_hog(x, orientations=9, **options)

    for one, other, value in zip(a, b, hog(a, b, cell=cell), strict=True):
        x, y = histogram(one), histogram(other)
        # scikit-image adds up its histograms in single precision.
        assert value == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-7)


@pytest.mark.filterwarnings("error")
def test_hog_sees_directions_but_neither_scale_nor_sign():
    a = image_maps((2, 12, 12))
    np.testing.assert_allclose(hog(a, -3 * a), 1, atol=1e-12)
    stripes = np.sin(np.arange(12))[:, None] * np.ones(12)
    assert hog(stripes, stripes.T) < 0.2
    both = np.stack([stripes, stripes.T])
    np.testing.assert_allclose(hog(both, both[::-1], channels=True), 1, atol=1e-12)
    gap = a.copy()
    gap[0, 5, 5] = np.nan
    assert np.isnan(hog(gap, a)).tolist() == [True, False] and np.isnan(hog(a, np.ones((12, 12)))).all()
    assert np.isnan(hog(a[:, :3], a[:, :3])).all() and hog(a[:0], a[:0]).shape == (0,)


@few
@given(rows, rows)
def test_kendall_is_scipys_with_ties_row_by_row(a, b):
    result = kendall(a, b)
    for one, other, value in zip(a, b, result, strict=True):
        peer: Any = stats.kendalltau(one, other)
        expected = peer.statistic if np.ptp(one) and np.ptp(other) else np.nan
        np.testing.assert_allclose(value, expected, atol=1e-12)


@pytest.mark.filterwarnings("error")
def test_kendall_broadcasts_and_gaps_are_undefined():
    a = np.random.default_rng(0).normal(size=(4, 9))
    table: Any = kendall(a[:, None], a)
    np.testing.assert_allclose(np.diag(table), 1)
    np.testing.assert_allclose(table, table.T)
    # Concordant minus discordant pairs of features, counted.
    signs = np.sign(a[:, :, None] - a[:, None])
    np.testing.assert_allclose(table, np.einsum("aij,bij->ab", signs, signs) / (9 * 8), atol=1e-12)
    a[1, 2] = np.inf
    assert np.isnan(kendall(a[1], a)).all() and not np.isnan(kendall(a[0], a)[[0, 2, 3]]).any()
    with pytest.raises(ValueError, match="features"):
        kendall(a, a[:, :8])


@few
@given(arrays(np.float64, (3, 7), elements=st.floats(1e-3, 1e3) | st.floats(-1e3, -1e-3) | st.just(0.0)))
def test_properties_of_a_map_by_their_definitions(maps):
    for row, total, spread, sparse in zip(maps, mass(maps), entropy(maps), gini(maps), strict=True):
        sizes = np.abs(row)
        assert total == pytest.approx(sum(sizes), rel=1e-12)
        if not sizes.any():
            assert np.isnan(spread) and np.isnan(sparse)
            continue
        assert spread == pytest.approx(stats.entropy(sizes) / np.log(7), abs=1e-12)
        # Half the mean absolute difference of all pairs over the mean.
        pairs = np.abs(sizes[:, None] - sizes).mean() / (2 * sizes.mean())
        assert sparse == pytest.approx(pairs, abs=1e-12)


@pytest.mark.filterwarnings("error")
def test_one_pixel_is_as_sparse_as_can_be_and_equal_ones_not_at_all():
    one, alike = np.eye(1, 8, 3)[0] * -4, np.full(8, 0.3)
    assert (gini(one), gini(alike)) == pytest.approx((7 / 8, 0), abs=1e-12)
    assert (entropy(one), entropy(alike)) == pytest.approx((0, 1), abs=1e-12)
    for function in (entropy, gini):
        assert function(1e-300 * alike) == pytest.approx(function(alike), abs=1e-12)
        assert function(1e307 * alike) == pytest.approx(function(alike), abs=1e-12)
        assert np.isnan(function(np.zeros(8)))
    assert mass(np.zeros(8)) == 0 and np.isnan(entropy([3.0]))
    for function in (mass, entropy, gini):
        assert np.isnan(function([[1, np.nan], [np.inf, 0], [1, 2]])).tolist() == [True, True, False]
        assert function(np.ones((2, 0, 4))).shape == (2, 0)
        with pytest.raises(ValueError, match="features"):
            function(np.ones((2, 0)))
