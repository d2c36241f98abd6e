"""Similarity of maps: identities as properties, live peers for the values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import jaccard_score
from sklearn.metrics.pairwise import cosine_similarity

from epochlens.measure import similarity
from epochlens.measure.similarity import METRICS, ranks, relative_l2, sign_agreement, topk_jaccard

SYMMETRIC = [name for name in METRICS if name != "relative_l2"]
BOUNDS = {
    "cosine": (-1, 1),
    "spearman": (-1, 1),
    "spearman_abs": (-1, 1),
    "topk_jaccard": (0, 1),
    "sign_agreement": (0, 1),
    "relative_l2": (0, np.inf),
}
every_metric = pytest.mark.parametrize("name", METRICS)
both_types = pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-6)])
few = settings(max_examples=40, deadline=None)


WHOLE = st.integers(-3, 3).map(float)  # many ties and zeros
REAL = st.floats(-1e6, 1e6, allow_subnormal=False)
MODERATE = st.floats(1e-3, 1e3) | st.floats(-1e3, -1e-3)


def pairs(*elements):
    """Two maps [3, D], D in 2..12, both of one of the kinds of elements."""

    def of_kind(kind):
        return st.integers(2, 12).flatmap(
            lambda size: st.tuples(*[arrays(np.float64, (3, size), elements=kind)] * 2)
        )

    return st.one_of([of_kind(kind) for kind in elements])


def curved_maps(dtype, shape=(4, 60), seed=0):
    """Maps with structure, ties and exact zeros: rectified, rounded products of waves and noise."""
    rng = np.random.default_rng(seed)
    waves = np.sin(np.linspace(0, 9, shape[-1]) * rng.uniform(0.5, 2, (*shape[:-1], 1)))
    maps = np.tanh(waves * rng.normal(size=shape)) * np.exp(rng.normal(size=shape))
    maps[rng.uniform(size=shape) < 0.2] = 0
    return np.round(maps, 2).astype(dtype)


def strongest(row, fraction=0.1):
    """The top-k mask by its definition, feature by feature."""
    k = max(1, round(fraction * len(row)))
    threshold = sorted(np.abs(row), reverse=True)[k - 1]
    return np.array([abs(value) >= threshold and value != 0 for value in row])


@few
@given(arrays(np.float64, (3, 9), elements=st.integers(-3, 3) | st.floats(-1e300, 1e300)))
def test_ranks_equal_scipys_with_ties(x):
    np.testing.assert_array_equal(ranks(x), rankdata(x, axis=-1))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_ranks_equal_scipys_in_every_precision(dtype: type) -> None:
    rng = np.random.default_rng(5)
    scale = np.array([1e-44, 1e-3, 1.0, 1e4])[:, None]  # the first is subnormal in float32
    with np.errstate(over="ignore"):
        x = (rng.standard_normal((30, 4, 57)).round(1) * scale).astype(dtype)
    x[:, :, :20] *= np.array([0, -1], dtype).repeat(10)  # many ties, -0 among them
    x = np.where(np.isfinite(x), x, 0)
    np.testing.assert_array_equal(ranks(x), rankdata(x, axis=-1))
    x[3, 1, 5], x[4, 2, 6] = np.nan, -np.inf
    assert np.argwhere(np.isnan(ranks(x)).any(-1)).tolist() == [[3, 1], [4, 2]]


def test_ranks_keep_any_shape_and_order():
    x = curved_maps(np.float32, (2, 3, 5, 40))
    np.testing.assert_array_equal(ranks(x), rankdata(x, axis=-1))
    np.testing.assert_array_equal(ranks(x[0, 0, 0]), rankdata(x[0, 0, 0]))
    np.testing.assert_array_equal(ranks(np.moveaxis(x, 0, -1)), rankdata(np.moveaxis(x, 0, -1), axis=-1))
    assert ranks(np.empty((0, 5))).shape == (0, 5)


def test_ranks_of_a_row_with_a_gap_are_nan_and_leave_the_others_alone():
    x = curved_maps(np.float64)
    broken = x.copy()
    broken[1, 7] = np.nan
    broken[2, 0] = np.inf
    assert np.isnan(ranks(broken)[1:3]).all()
    np.testing.assert_array_equal(ranks(broken)[[0, 3]], ranks(x)[[0, 3]])


@both_types
def test_cosine_equals_scikit_learns(dtype, tolerance):
    a, b = curved_maps(dtype), curved_maps(dtype, (7, 60), seed=1)
    ours = similarity.cosine(a[:, None], b)
    np.testing.assert_allclose(ours, cosine_similarity(a, b), atol=tolerance, rtol=0)


@both_types
def test_rank_correlations_equal_scipys(dtype, tolerance):
    a, b = curved_maps(dtype), curved_maps(dtype, seed=1)
    for ours, peer in ((similarity.spearman, lambda x: x), (similarity.spearman_abs, np.abs)):
        expected: Any = [spearmanr(peer(x), peer(y))[0] for x, y in zip(a, b, strict=True)]
        np.testing.assert_allclose(ours(a, b), expected, atol=tolerance, rtol=0)


@both_types
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 1.0])
def test_topk_jaccard_equals_scikit_learns_on_the_defined_masks(dtype, tolerance, fraction):
    a, b = curved_maps(dtype), curved_maps(dtype, seed=1)
    masks = [(strongest(x, fraction), strongest(y, fraction)) for x, y in zip(a, b, strict=True)]
    expected = [jaccard_score(x, y) for x, y in masks]
    np.testing.assert_allclose(topk_jaccard(a, b, fraction=fraction), expected, atol=tolerance, rtol=0)


@few
@given(pairs(WHOLE, REAL))
def test_sign_agreement_counts_equal_signs_where_either_is_non_zero(maps):
    for a, b in zip(*maps, strict=True):
        assume(a.any() and b.any())
        either = (a != 0) | (b != 0)
        assert sign_agreement(a, b) == (np.sign(a) == np.sign(b))[either].mean()


@both_types
def test_relative_l2_is_the_distance_over_the_references_norm(dtype, tolerance):
    a, b = curved_maps(dtype), curved_maps(dtype, seed=1)
    expected = np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(relative_l2(a, b), expected, rtol=tolerance)
    np.testing.assert_allclose(relative_l2(3 * b, b), 2, rtol=tolerance)
    np.testing.assert_array_equal(relative_l2(np.zeros_like(b), b), 1)


@few
@given(pairs(MODERATE), st.sampled_from(list(METRICS)))
def test_a_map_is_identical_to_itself(maps, name):
    a = maps[0] + np.arange(maps[0].shape[-1]) * 1e-6
    assume(np.ptp(np.abs(a), axis=-1).all() and np.ptp(a, axis=-1).all())
    expected = 0 if name == "relative_l2" else 1
    np.testing.assert_allclose(METRICS[name](a, a), expected, atol=1e-12)


@few
@given(pairs(WHOLE, REAL), st.sampled_from(SYMMETRIC))
def test_similarities_are_symmetric(maps, name):
    a, b = maps
    np.testing.assert_array_equal(METRICS[name](a, b), METRICS[name](b, a))


@few
@given(pairs(WHOLE, REAL), st.sampled_from(list(METRICS)))
def test_values_stay_in_bounds_or_are_nan(maps, name):
    low, high = BOUNDS[name]
    values = METRICS[name](*maps)
    assert (np.isnan(values) | ((values >= low) & (values <= high))).all()


@few
@given(pairs(WHOLE, REAL), st.integers(-60, 60), st.integers(-60, 60), st.sampled_from(SYMMETRIC))
def test_similarities_ignore_each_maps_scale(maps, left, right, name):
    # Powers of two scale floats exactly, so ties and thresholds stay what they are.
    a, b = maps
    scaled = METRICS[name](a * 2.0**left, b * 2.0**right)
    np.testing.assert_allclose(scaled, METRICS[name](a, b), rtol=0, atol=1e-12)


@few
@given(pairs(WHOLE, REAL), st.integers(-60, 60))
def test_relative_l2_ignores_the_common_scale(maps, power):
    a, b = maps
    np.testing.assert_allclose(relative_l2(a * 2.0**power, b * 2.0**power), relative_l2(a, b), rtol=1e-12)


@few
@given(pairs(WHOLE, REAL), st.randoms(use_true_random=False), st.sampled_from(list(METRICS)))
def test_the_order_of_features_is_irrelevant(maps, random, name):
    a, b = maps
    order = list(range(a.shape[-1]))
    random.shuffle(order)
    shuffled = METRICS[name](a[:, order], b[:, order])
    np.testing.assert_allclose(shuffled, METRICS[name](a, b), rtol=1e-12, atol=1e-12)


def test_rank_correlation_ignores_any_increasing_change_and_mirrors_a_decreasing_one():
    a, b = curved_maps(np.float64), curved_maps(np.float64, seed=1)
    before = similarity.spearman(a, b)
    np.testing.assert_allclose(similarity.spearman(np.exp(a), b**3), before, atol=1e-12)
    np.testing.assert_allclose(similarity.spearman(-a, b), -before, atol=1e-12)
    np.testing.assert_allclose(similarity.spearman_abs(-a, b), similarity.spearman_abs(a, b), atol=1e-12)


def test_ties_at_the_threshold_are_all_in_and_zeros_never():
    a = np.array([3.0, -2.0, 2.0, 1.0] + [0.0] * 16)
    b = np.array([3.0, 2.0] + [0.0] * 18)
    # k = 2: a keeps 3, -2 and 2; b keeps both. One feature each at k = 1; zeros stay out even at k = 20.
    assert topk_jaccard(a, b) == pytest.approx(2 / 3)
    assert topk_jaccard(a, b, fraction=0.05) == 1
    assert topk_jaccard(a, b, fraction=1.0) == 2 / 4


@every_metric
def test_zero_maps_are_undefined(name):
    a, zero = curved_maps(np.float64)[0], np.zeros(60)
    if name == "relative_l2":
        assert np.isnan(relative_l2(np.stack([a, zero]), zero)).all()
    else:
        assert np.isnan([METRICS[name](a, zero), METRICS[name](zero, a), METRICS[name](zero, zero)]).all()


@every_metric
def test_constant_maps_are_undefined_for_rank_correlations_only(name):
    a, constant = np.abs(curved_maps(np.float64)[0]) + 1, np.full(60, 0.1)
    undefined = name in ("spearman", "spearman_abs")
    assert np.isnan(METRICS[name](a, constant)) == undefined
    assert np.isnan(METRICS[name](constant, a)) == undefined
    signs = np.where(np.arange(60) % 2, 0.1, -0.1)
    assert np.isnan(METRICS[name](a, signs)) == (name == "spearman_abs")


@every_metric
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("error")
def test_non_finite_maps_are_undefined_and_spare_their_neighbours(name, bad):
    a, b = curved_maps(np.float32), curved_maps(np.float32, seed=1)
    broken_a, broken_b = a.copy(), b.copy()
    broken_a[1, 5] = broken_b[2, 8] = bad
    values = METRICS[name](broken_a, broken_b)
    assert np.isnan(values[1:3]).all()
    np.testing.assert_array_equal(values[[0, 3]], METRICS[name](a, b)[[0, 3]])


@every_metric
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_very_small_and_very_large_maps_neither_vanish_nor_overflow(name, scale):
    a, b = curved_maps(np.float64), curved_maps(np.float64, seed=1)
    np.testing.assert_allclose(METRICS[name](a * scale, b * scale), METRICS[name](a, b), rtol=1e-9)


@every_metric
def test_leading_axes_broadcast_and_inputs_are_left_alone(name):
    a, b = curved_maps(np.float32, (5, 1, 30)), curved_maps(np.float32, (3, 30), seed=1)
    before = a.copy(), b.copy()
    values = METRICS[name](a, b)
    assert values.dtype == np.float64
    one_by_one = [[METRICS[name](x[0], y) for y in b] for x in a]
    np.testing.assert_allclose(values, one_by_one, rtol=1e-14)
    np.testing.assert_array_equal(a, before[0])
    np.testing.assert_array_equal(b, before[1])


@every_metric
def test_the_mapping_names_the_functions(name):
    a, b = curved_maps(np.float64), curved_maps(np.float64, seed=1)
    np.testing.assert_array_equal(getattr(similarity, name)(a, b), METRICS[name](a, b))
    metric = METRICS[name]
    np.testing.assert_array_equal(metric.compare(metric.prepare(a), metric.prepare(b)), metric(a, b))


@every_metric
def test_maps_of_different_size_are_refused(name):
    for a, b in ((np.ones(3), np.ones(4)), (np.ones((2, 1)), np.ones((2, 4))), (np.ones(()), np.ones(()))):
        with pytest.raises(ValueError, match="features"):
            METRICS[name](a, b)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, np.nan])
def test_fractions_that_keep_nothing_or_too_much_are_refused(fraction):
    with pytest.raises(ValueError, match="fraction"):
        topk_jaccard(np.ones(4), np.ones(4), fraction=fraction)
