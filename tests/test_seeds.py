"""Agreement between seeds: every pair by itself, means by hand, coverage of the interval by simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from epochlens.measure.seeds import agreement, bootstrap_pairs, pairwise
from epochlens.measure.similarity import METRICS


def seed_maps(seeds=4, images=3, shape=(2, 5, 6), seed=0):
    """Maps [S, N, ...] of seeds that share a rectified pattern; exact zeros and ties among them."""
    rng = np.random.default_rng(seed)
    maps = np.tanh(rng.normal(size=(images, *shape)) + rng.normal(size=(seeds, images, *shape)))
    return np.where(maps > -0.3, np.round(maps, 1), 0).astype(np.float32)


def pair_matrix(rng, seeds, spread=0.15):
    """Similarities [S, S] of seeds that show a common pattern with differing strength, and some noise."""
    strength = rng.normal(0.7, spread, seeds)
    noise = rng.normal(0, 0.02, (seeds, seeds))
    return np.outer(strength, strength) + (noise + noise.T) / 2


def off_diagonal(pairs):
    return pairs[~np.eye(len(pairs), dtype=bool)]


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.filterwarnings("error")
def test_every_pair_of_seeds_is_compared_image_by_image(name):
    maps = seed_maps()
    maps[2, 1] = 0
    pairs = pairwise(maps, name)
    assert pairs.shape == (4, 4, 3)
    for i, j, n in np.ndindex(4, 4, 3):
        expected = METRICS[name](maps[i, n].ravel(), maps[j, n].ravel())
        np.testing.assert_allclose(pairs[i, j, n], expected, rtol=1e-12, atol=1e-14)
    assert np.isnan(pairs[0, 2, 1]) and not np.isnan(pairs[:, :, [0, 2]]).any()


@pytest.mark.parametrize("name", METRICS)
def test_the_order_of_seeds_does_not_matter(name):
    maps, order = seed_maps(), np.array([2, 0, 3, 1])
    np.testing.assert_allclose(pairwise(maps[order], name), pairwise(maps, name)[order][:, order], rtol=1e-12)
    if name != "relative_l2":
        np.testing.assert_allclose(pairwise(maps, name), pairwise(maps, name).swapaxes(0, 1), rtol=1e-12)


def test_an_unknown_metric_and_flat_maps_are_refused():
    with pytest.raises(ValueError, match="choose from cosine"):
        pairwise(seed_maps(), "cosin")
    with pytest.raises(ValueError, match="maps must be"):
        pairwise(np.ones((3, 4)), "cosine")


@pytest.mark.filterwarnings("error")
def test_a_seeds_agreement_is_its_mean_over_the_others():
    pairs = np.random.default_rng(0).uniform(size=(2, 4, 4, 3))
    pairs[0, 1, 2, 0] = np.nan
    pairs[1, 3, :, 1] = np.nan
    result = agreement(pairs)
    for e, i, n in np.ndindex(2, 4, 3):
        others = np.array([pairs[e, i, j, n] for j in range(4) if j != i])
        others = others[~np.isnan(others)]
        np.testing.assert_allclose(result[e, i, n], others.mean() if len(others) else np.nan)
    assert np.isnan(result[1, 3, 1]) and np.isnan(agreement(np.ones((1, 1, 2)))).all()


def test_equal_seeds_agree_fully_and_the_diagonal_counts_for_nothing():
    maps = np.repeat(seed_maps(seeds=1), 5, axis=0)
    pairs = pairwise(maps, "cosine")
    np.testing.assert_allclose(agreement(pairs), 1, rtol=1e-12)
    moved = pairs.mean(axis=-1) - 7 * np.eye(5)
    np.testing.assert_allclose(bootstrap_pairs(moved, np.random.default_rng(0), 100), 1, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 7), st.integers(0, 2**32 - 1))
def test_the_interval_holds_the_mean_over_pairs_and_shifts_and_scales_with_it(seeds, seed):
    pairs = pair_matrix(np.random.default_rng(seed), seeds)
    mean, low, high = bootstrap_pairs(pairs, np.random.default_rng(1), 200)
    assert mean == pytest.approx(off_diagonal(pairs).mean(), rel=1e-12)
    assert low <= mean <= high
    moved = bootstrap_pairs(3 - 2 * pairs, np.random.default_rng(1), 200)
    np.testing.assert_allclose(moved, [3 - 2 * mean, 3 - 2 * high, 3 - 2 * low], rtol=1e-9)


def test_the_interval_is_the_farther_of_jackknife_and_widened_percentile():
    """Both written out seed by seed: which one is farther depends on the draw, and either happens."""
    farther = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        pairs = pair_matrix(rng, 6, spread=0.15 if seed % 2 else 0.0)
        _, low, high = bootstrap_pairs(pairs, np.random.default_rng(seed), 400)
        without = [off_diagonal(np.delete(np.delete(pairs, i, 0), i, 1)).mean() for i in range(6)]
        error = np.sqrt(5 / 6 * np.square(np.subtract(without, np.mean(without))).sum())
        half = stats.t.ppf(0.975, 5) * error
        means = []
        for times in np.random.default_rng(seed).multinomial(6, np.full(6, 1 / 6), size=400):
            drawn = np.repeat(np.arange(6), times)
            held = [pairs[i, j] for i in drawn for j in drawn if i != j]
            means.append(np.mean(held))
        tail = stats.norm.cdf(-np.sqrt(6 / 5) * stats.t.ppf(0.975, 5))
        percentiles = np.quantile(means, [tail, 1 - tail])
        mean = off_diagonal(pairs).mean()
        assert low == pytest.approx(min(mean - half, percentiles[0]), rel=1e-9)
        assert high == pytest.approx(max(mean + half, percentiles[1]), rel=1e-9)
        farther.add(mean - half < percentiles[0])
    assert farther == {True, False}


@pytest.mark.filterwarnings("error")
def test_missing_pairs_are_left_out_and_too_few_seeds_have_no_interval():
    pairs = pair_matrix(np.random.default_rng(0), 6)
    gone = pairs.copy()
    gone[5, :] = gone[:, 5] = np.nan
    stacked = np.stack([pairs, gone, np.full((6, 6), np.nan)])
    mean, low, high = bootstrap_pairs(stacked, np.random.default_rng(0), 2000)
    left = bootstrap_pairs(pairs[:5, :5], np.random.default_rng(0), 2000)
    assert mean[1] == pytest.approx(left[0], rel=1e-12)
    np.testing.assert_allclose((low[1], high[1]), left[1:], atol=0.05)
    assert np.isnan([mean[2], low[2], high[2]]).all()
    mean, low, high = bootstrap_pairs(pairs[:2, :2], np.random.default_rng(0))
    assert mean == pytest.approx(pairs[0, 1]) and np.isnan([low, high]).all()
    two = gone.copy()
    two[2:] = two[:, 2:] = np.nan
    mean, low, high = bootstrap_pairs(two, np.random.default_rng(0))
    assert mean == pytest.approx(pairs[0, 1]) and np.isnan([low, high]).all()
    with pytest.raises(ValueError, match="square"):
        bootstrap_pairs(pairs[:3], np.random.default_rng(0))


def test_one_direction_of_a_pair_stands_for_both_where_the_other_is_undefined():
    pairs = pair_matrix(np.random.default_rng(0), 5)
    gap = pairs.copy()
    gap[1, 3] = np.nan
    for one, other in zip(
        *(bootstrap_pairs(p, np.random.default_rng(0), 50) for p in (pairs, gap)), strict=True
    ):
        assert one == pytest.approx(other, rel=1e-12)


@pytest.mark.parametrize("seeds", [5, 10])
def test_the_interval_covers_the_mean_over_all_seeds_there_could_be(seeds):
    # Strengths have mean 0.7 and are independent, so two different seeds agree by 0.49 on average.
    rng = np.random.default_rng(seeds)
    pairs = np.stack([pair_matrix(rng, seeds) for _ in range(1500)])
    _, low, high = bootstrap_pairs(pairs, rng, repeats=300)
    covered = ((low <= 0.49) & (high >= 0.49)).mean()
    assert 0.925 <= covered <= 0.975
    # Treating the pairs as so many observations would be far too sure of itself.
    first, second = np.triu_indices(seeds, 1)
    naive: Any = stats.ttest_1samp(pairs[:, first, second], 0.49, axis=1)
    assert (naive.pvalue > 0.05).mean() < 0.85


def test_the_interval_covers_when_seeds_reach_one_of_two_solutions():
    rng = np.random.default_rng(0)
    solution = rng.random((1000, 10)) < 0.3
    pairs = np.where(solution[:, :, None] == solution[:, None], 0.9, 0.3)
    true = 0.9 * (0.3**2 + 0.7**2) + 0.3 * 2 * 0.3 * 0.7
    _, low, high = bootstrap_pairs(pairs, rng, repeats=500)
    assert ((low <= true) & (high >= true)).mean() >= 0.93
