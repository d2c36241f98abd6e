"""Censored settling times: Kaplan-Meier against scipy and by hand, intervals by their coverage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from epochlens.measure.survival import (
    cluster_bootstrap_median,
    kaplan_meier,
    median_interval,
    median_or_bound,
    paired_lag,
)

TIMES = [6, 6, 6, 7, 10, 13, 16, 22, 23, 6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
EVENTS = [1] * 9 + [0] * 12  # Freireich et al. 1963, remission in weeks under 6-MP
some_times = st.lists(st.tuples(st.integers(1, 8), st.booleans()), min_size=1, max_size=20)


def scipys(times, events) -> Any:
    times, events = np.asarray(times), np.asarray(events, bool)
    data = stats.CensoredData(uncensored=times[events], right=times[~events])
    return stats.ecdf(data).sf


@settings(max_examples=80, deadline=None)
@given(some_times)
def test_survival_equals_scipys_with_ties_and_censoring(drawn):
    times, events = np.array(drawn).T
    peer = scipys(times, events)
    at, survival, _ = kaplan_meier(times, events)
    np.testing.assert_array_equal(at, peer.quantiles)
    np.testing.assert_allclose(survival, peer.probabilities, atol=1e-12)


def test_variance_is_the_one_behind_scipys_linear_bounds():
    at, survival, variance = kaplan_meier(TIMES, EVENTS)
    low = scipys(TIMES, EVENTS).confidence_interval(0.95, method="linear").low
    z = stats.norm.ppf(0.975)
    np.testing.assert_allclose(survival - z * np.sqrt(variance), low.evaluate(at), atol=1e-10)


def test_a_life_table_by_hand():
    # 5 at risk at 2, one settles: 4/5. Then 1 censored at 3 with an event first: 3/4 of it. Last at 7: none.
    at, survival, variance = kaplan_meier([2, 3, 3, 7, 7], [1, 0, 1, 1, 1])
    np.testing.assert_array_equal(at, [2, 3, 7])
    np.testing.assert_allclose(survival, [4 / 5, 4 / 5 * 3 / 4, 0], atol=1e-15)
    greenwood = [1 / (5 * 4), 1 / (5 * 4) + 1 / (4 * 3)]
    np.testing.assert_allclose(variance[:2], np.square(survival[:2]) * greenwood, rtol=1e-12)
    assert np.isnan(variance[2])


@pytest.mark.filterwarnings("error")
def test_missing_times_are_left_out_and_no_times_give_nothing():
    np.testing.assert_array_equal(kaplan_meier([2, np.nan, 3], [1, 1, 0])[1], kaplan_meier([2, 3], [1, 0])[1])
    assert all(len(part) == 0 for part in kaplan_meier([np.nan], [True]))
    assert np.isnan(median_interval([np.nan, 4, 5], [1, 0, 0])).all()
    with pytest.raises(ValueError, match="one shape"):
        kaplan_meier([1, 2], [1])


def test_the_median_and_its_bounds_are_where_scipys_curves_fall_to_one_half():
    median, low, high = median_interval(TIMES, EVENTS)
    sf = scipys(TIMES, EVENTS)
    bounds = sf.confidence_interval(0.95, method="log-log")

    def first(curve):
        below = [time for time in np.unique(TIMES) if curve.evaluate(time) <= 0.5]
        return below[0] if below else np.inf

    assert (median, low, high) == (first(sf), first(bounds.low), first(bounds.high))
    assert np.isinf(high) and np.isfinite(median)


def test_planted_medians_are_found_and_unreached_ones_are_open():
    times = np.arange(1, 102)
    median, low, high = median_interval(times, np.ones(101))
    assert median == 51 and 38 <= low < 51 < high <= 64
    # A median of settled ones only would say 20; the truth, 30, is past what was seen of 24 of 60.
    late = np.minimum(np.arange(1, 61), 24)
    median, low, high = median_interval(late, late < 24)
    assert np.isnan(median) and 15 < low <= 24 and np.isinf(high)
    # One of fifty settled: all that is known is that the median is past the end.
    median, low, high = median_interval([5] + [50] * 49, [1] + [0] * 49)
    assert np.isnan(median) and (low, high) == (50, np.inf)
    assert median_interval([1, 2], [1, 1])[0] == 1


@settings(max_examples=60, deadline=None)
@given(some_times)
def test_bounds_enclose_the_median_and_widen_with_the_level(drawn):
    times, events = np.array(drawn).T
    median, low, high = median_interval(times, events)
    if not events.any():
        assert np.isnan([median, low, high]).all()
        return
    assert low <= high and (np.isnan(median) or low <= median <= high)
    _, lower, higher = median_interval(times, events, level=0.99)
    assert lower <= low and high <= higher


def test_a_median_is_told_as_a_bound_where_it_is_not_reached():
    # Half of ten settled: the fifth is the median, though it has no upper bound.
    half = [43, 44, 45, 48, 49, 50, 50, 50, 50, 50]
    assert median_or_bound(half, np.arange(10) < 5) == (49, False)
    assert median_interval(half, np.arange(10) < 5)[2] == np.inf
    assert median_or_bound([43, 44, 45, 48, *[50] * 6], np.arange(10) < 4) == (50, True)
    assert median_or_bound([50, 50], [False, False]) == (50, True)
    # Followed for 10, 20 and 30 epochs: the second might have settled next, the median is not before 20.
    assert median_or_bound([30, 10, 20, np.nan], [False] * 4) == (20, True)
    assert median_or_bound([3, 9, 4], [True] * 3) == (4, False)
    nothing, bound = median_or_bound([np.nan], [True])
    assert np.isnan(nothing) and not bound


@settings(max_examples=60, deadline=None)
@given(some_times, st.integers(0, 2**32 - 1))
def test_the_median_is_not_before_its_bound_whenever_the_censored_settle(drawn, seed):
    times, events = np.array(drawn).T
    told, bound = median_or_bound(times, events)
    if bound:
        later = times + np.where(events, 0, np.random.default_rng(seed).integers(0, 9, len(times)))
        assert median_interval(later, np.ones(len(times)))[0] >= told


@pytest.mark.parametrize("n", [10, 30])
def test_the_interval_of_independent_times_covers_their_median(n):
    rng = np.random.default_rng(n)
    times = np.ceil(rng.exponential(20, (1500, n)))
    bounds = [median_interval(np.minimum(t, 30), t < 30)[1:] for t in times]
    true = np.ceil(20 * np.log(2))
    assert np.mean([low <= true <= high for low, high in bounds]) >= 0.94


def seed_times(rng, seeds, images=24, spread=0.3, last=50):
    """Settling epochs [S, N] around a median of e^3, seeds differing as much as images; censored at last."""
    logs = 3 + rng.normal(0, spread, (seeds, 1)) + rng.normal(0, 0.3, (seeds, images))
    times = np.ceil(np.exp(logs))
    return np.minimum(times, last), times < last


@pytest.mark.parametrize(("seeds", "last"), [(5, 50), (10, 50), (10, 24)])
def test_the_interval_over_seeds_covers_where_pooling_images_does_not(seeds, last):
    rng = np.random.default_rng(seeds)
    true, ours, pooled = np.ceil(np.exp(3)), 0, 0
    for _ in range(200):
        times, events = seed_times(rng, seeds, last=last)
        _, low, high = cluster_bootstrap_median(times, events, rng, repeats=300)
        ours += low <= true <= high
        _, low, high = median_interval(times, events)
        pooled += low <= true <= high
    assert ours / 200 >= 0.91 and pooled / 200 < 0.75


def test_the_middle_of_the_cluster_interval_is_the_pooled_median():
    times, events = seed_times(np.random.default_rng(0), 6)
    median, low, high = cluster_bootstrap_median(times, events, np.random.default_rng(0), 200)
    assert median == median_interval(times, events)[0] and low <= median <= high
    again = cluster_bootstrap_median(times, events, np.random.default_rng(0), 200)
    assert again == (median, low, high)


def test_resampling_keeps_to_seeds_and_to_their_images():
    # Each seed's images settle together: every resampled median is one of the seeds' epochs, all are drawn.
    times = np.repeat([[3.0], [8.0], [9.0], [20.0], [30.0]], 7, axis=1)
    median, low, high = cluster_bootstrap_median(times, times > 0, np.random.default_rng(0), 2000)
    assert (median, low, high) == (9, 3, 30)
    same = np.tile(np.arange(1.0, 10), (5, 1))
    _, low, high = cluster_bootstrap_median(same, same > 0, np.random.default_rng(0), 500)
    assert 1 < low < 5 < high < 9


@pytest.mark.filterwarnings("error")
def test_missing_images_and_seeds_are_left_out_of_the_cluster_interval():
    times, events = seed_times(np.random.default_rng(0), 5)
    gap = np.vstack([times, np.full((1, 24), np.nan)])
    result = cluster_bootstrap_median(gap, np.vstack([events, events[:1]]), np.random.default_rng(0), 200)
    assert result == cluster_bootstrap_median(times, events, np.random.default_rng(0), 200)
    times[0, :20] = np.nan
    few = cluster_bootstrap_median(times, events, np.random.default_rng(0), 200)
    assert few[0] == median_interval(times, events)[0] and few[1] <= few[0] <= few[2]
    median, low, high = cluster_bootstrap_median(times[:2], events[:2], np.random.default_rng(0))
    assert np.isfinite(median) and np.isnan([low, high]).all()
    nothing = cluster_bootstrap_median(np.full((4, 3), np.nan), np.ones((4, 3)), np.random.default_rng(0))
    assert np.isnan(nothing).all()


def test_a_median_that_was_not_reached_is_open():
    times = np.full((6, 10), 20.0)
    times[:, :3] = 5
    median, low, high = cluster_bootstrap_median(times, times < 20, np.random.default_rng(0), 200)
    assert np.isnan(median) and low <= 20 and np.isinf(high)


def test_lags_by_hand():
    accuracy = np.array([3, 3, 4, 5, 2, 3, 4, 6, 3])
    lags = np.array([6, 4, 9, 7, 5, 6, 8, -2, 6])
    result = paired_lag(accuracy + lags, accuracy, np.zeros(9), np.zeros(9))
    assert (result["n"], result["n_censored"]) == (9, 0)
    assert result["median_low"] == result["median_high"] == 6
    # 9 pairs: the second smallest and largest leave out 2 * 10 / 2^9 = 3.9 %; the third would 18 %.
    assert (result["low"], result["high"]) == (4, 8)
    interval = stats.t.interval(0.95, 8, lags.mean(), stats.sem(lags))
    assert (result["mean_low"], result["mean_high"]) == pytest.approx(interval)
    assert result["mean"] == pytest.approx(lags.mean())


def test_a_censored_side_leaves_a_bound_only():
    accuracy, lags = np.full(7, 3.0), np.array([1, 2, 3, 4, 5, 6, 7.0])
    none, last, first = np.zeros(7, bool), np.arange(7) == 6, np.arange(7) == 0
    # The latest maps censored: they are later still, the median stays.
    late = paired_lag(accuracy + lags, accuracy, last, none)
    assert (late["median_low"], late["median_high"], late["low"], late["high"]) == (4, 4, 1, np.inf)
    # The earliest maps censored: they may be the latest.
    early = paired_lag(accuracy + lags, accuracy, first, none)
    assert (early["median_low"], early["median_high"]) == (4, 5)
    # An accuracy that settled later than seen makes the lag smaller.
    unknown = paired_lag(accuracy + lags, accuracy, none, last)
    assert (unknown["median_low"], unknown["median_high"], unknown["low"]) == (3, 4, -np.inf)
    both = paired_lag(accuracy + lags, accuracy, last, last)
    assert (both["median_low"], both["median_high"], both["n_censored"]) == (3, 4, 1)
    assert all(np.isnan(each["mean"]) for each in (late, early, unknown, both))
    most = paired_lag(accuracy + lags, accuracy, lags > 2, none)
    assert most["median_high"] == np.inf and most["median_low"] == 4


def test_few_pairs_have_no_bounds_and_missing_ones_are_left_out():
    few = paired_lag([5, 6, 7, 8, 9], [1] * 5, [0] * 5, [0] * 5)
    assert (few["median_low"], few["low"], few["high"]) == (6, -np.inf, np.inf)
    gap = paired_lag([5, 6, 7, 8, 9, np.nan, 4], [1, 1, 1, 1, 1, 1, np.nan], [0] * 7, [1] * 5 + [0, 0])
    assert (gap["n"], gap["n_censored"]) == (5, 5)
    nothing = paired_lag([], [], [], [])
    assert nothing.pop("n") == nothing.pop("n_censored") == 0 and np.isnan(list(nothing.values())).all()
    with pytest.raises(ValueError, match="one length"):
        paired_lag([1, 2], [1, 2], [0], [0, 0])


@pytest.mark.parametrize("n", [6, 10])
def test_the_bounds_of_the_lag_cover_its_median_however_much_is_censored(n):
    rng = np.random.default_rng(n)
    covered = {20: 0, 1000: 0}
    for _ in range(1500):
        accuracy = rng.integers(2, 15, n)
        maps = accuracy + np.ceil(rng.exponential(8, n))
        for last in covered:
            seen = np.minimum(maps, last), np.minimum(accuracy, last), maps >= last, accuracy >= last
            result = paired_lag(*seen)
            covered[last] += result["low"] <= np.ceil(8 * np.log(2)) <= result["high"]
    assert min(covered.values()) / 1500 >= 0.95
