"""Statistics over seeds: intervals and tests against scipy, corrections against their definition."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from epochlens.measure.statistics import compare, effect_interval, holm, paired_test, summarise, t_interval


def scipys_interval(values, level=0.95):
    return stats.t.interval(level, len(values) - 1, np.mean(values), stats.sem(values))


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_the_interval_equals_scipys_along_any_axis(level):
    values = np.exp(np.random.default_rng(0).normal(size=(4, 7, 3)))
    mean, low, high = t_interval(values, axis=1, level=level)
    np.testing.assert_allclose(mean, values.mean(axis=1), rtol=1e-13)
    for index in np.ndindex(4, 3):
        expected = scipys_interval(values[index[0], :, index[1]], level)
        np.testing.assert_allclose((low[index], high[index]), expected, rtol=1e-12)


@pytest.mark.filterwarnings("error")
def test_undefined_values_are_left_out_of_the_interval():
    values = np.random.default_rng(0).normal(size=(6, 4))
    values[1:3, 1] = values[1:, 2] = values[:, 3] = np.nan
    mean, low, high = t_interval(values)
    np.testing.assert_allclose((low[1], high[1]), scipys_interval(values[[0, 3, 4, 5], 1]), rtol=1e-12)
    assert mean[2] == values[0, 2]
    assert np.isnan(mean[3]) and np.isnan([low[2:], high[2:]]).all()
    assert np.isnan(t_interval([])).all()


def test_the_interval_covers_the_mean_as_often_as_it_says():
    samples = np.random.default_rng(0).normal(2, 3, size=(10, 20_000))
    for level in (0.8, 0.95):
        _, low, high = t_interval(samples, level=level)
        covered = ((low <= 2) & (high >= 2)).mean()
        # Four standard errors of a share among 20 000 draws.
        assert covered == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 20_000))


def seeds_table(seeds=range(5), epochs=(1, 2)) -> Any:
    grid = product(
        ["digits"], ["small", "deep"], [0.001, 0.01], ["saliency"], epochs, ["final"], ["cosine"], seeds
    )
    names = ["dataset", "model", "learning_rate", "method", "epoch", "reference", "metric", "seed"]
    table = pd.DataFrame(grid, columns=names)
    rng = np.random.default_rng(0)
    table["value"] = rng.uniform(size=len(table)) ** 2
    table["n_undefined"] = rng.integers(0, 3, len(table))
    small = (table["model"] == "small") & (table["learning_rate"] == 0.01)
    table.loc[small & (table["epoch"] == 1) & (table["seed"] == 2), "value"] = np.nan
    table.loc[small & (table["epoch"] == 2) & (table["seed"] > 0), "value"] = np.nan
    table.loc[(table["model"] == "deep") & (table["epoch"] == 2), "value"] = np.nan
    return table


def test_every_condition_is_summarised_over_its_seeds():
    by_seed = seeds_table()
    table: Any = summarise(by_seed.sample(frac=1, random_state=0))
    keys = ["dataset", "model", "learning_rate", "method", "epoch", "reference", "metric"]
    assert table.columns.tolist() == [*keys, "n_seeds", "n_undefined", "mean", "std", "ci_low", "ci_high"]
    assert len(table) == 8 and table[keys].equals(table[keys].sort_values(keys, ignore_index=True))
    counted = set()
    for _, row in table.iterrows():
        part = by_seed[(by_seed[keys] == row[keys]).all(axis=1)]
        values = part["value"].dropna().to_numpy()
        counted.add(len(values))
        assert (row["n_seeds"], row["n_undefined"]) == (len(values), part["n_undefined"].sum())
        mean = values.mean() if len(values) else np.nan
        std, bounds = np.nan, (np.nan, np.nan)
        if len(values) > 1:
            std, bounds = values.std(ddof=1), scipys_interval(values)
        summary = row[["mean", "std", "ci_low", "ci_high"]].to_numpy(float)
        np.testing.assert_allclose(summary, (mean, std, *bounds), rtol=1e-12)
    assert counted == {0, 1, 4, 5}


def test_categorical_keys_summarise_only_what_occurs():
    by_seed = seeds_table()
    typed = by_seed.astype({"model": pd.CategoricalDtype(["deep", "lenet", "small"]), "metric": "category"})
    pd.testing.assert_frame_equal(summarise(typed).astype({"model": str, "metric": str}), summarise(by_seed))


def holm_by_steps(p):
    """Step down: the smallest p times the number of tests left, never below the step before."""
    adjusted, floor, left = {}, 0.0, len(p)
    for index in sorted(range(len(p)), key=lambda index: p[index]):
        floor = max(floor, min(1.0, left * p[index]))
        adjusted[index] = floor
        left -= 1
    return [adjusted[index] for index in range(len(p))]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=12), st.integers(0, 3))
def test_holm_steps_down_and_skips_what_is_undefined(p, gaps):
    adjusted = holm([*p, *[np.nan] * gaps])
    np.testing.assert_allclose(adjusted[: len(p)], holm_by_steps(p), rtol=1e-14)
    assert np.isnan(adjusted[len(p) :]).all() and len(adjusted) == len(p) + gaps
    assert (adjusted[: len(p)] >= p).all()


def test_holm_by_hand_keeps_shape_and_order():
    # 4 tests: 0.01*4, 0.02*3, 0.03*2 (raised to 0.06 by the step before: equal), 0.5*1.
    np.testing.assert_allclose(holm([[0.03, 0.01], [0.5, 0.02]]), [[0.06, 0.04], [0.5, 0.06]], rtol=1e-14)


@pytest.mark.parametrize("n", [2, 5, 10, 30, 50, 80])
def test_the_paired_test_equals_scipys(n):
    rng = np.random.default_rng(n)
    a = np.exp(rng.normal(size=n))
    b = a**0.9 + 0.2 * rng.normal(size=n)
    peer: Any = stats.wilcoxon(a, b)
    result = paired_test(a, b)
    assert (result["n"], result["statistic"]) == (n, peer.statistic)
    assert result["p"] == pytest.approx(peer.pvalue, rel=1e-10)
    bounds = (result["ci_low"], result["ci_high"])
    np.testing.assert_allclose(bounds, scipys_interval(a - b), rtol=1e-10)
    assert result["mean_difference"] == pytest.approx((a - b).mean(), rel=1e-12)


def test_the_paired_test_is_exact_with_ties_and_zeros():
    rng = np.random.default_rng(0)
    for n in (3, 6, 9, 12):
        differences = rng.integers(-2, 4, size=n).astype(float)
        peer: Any = stats.wilcoxon(differences)
        result = paired_test(differences, np.zeros(n))
        assert result["statistic"] == peer.statistic
        assert result["p"] == pytest.approx(peer.pvalue, rel=1e-12)


def test_differences_equal_but_for_rounding_are_ties():
    steps = np.array([1, 2, 3, 4, -1, 2, 5, 1, 3, -2])
    start = np.array([94, 95, 96, 93, 97, 81, 90, 7, 33, 50])
    exact, rounded = paired_test(start + steps, start), paired_test((start + steps) / 100, start / 100)
    assert len(set(np.abs((start + steps) / 100 - start / 100))) > len(set(np.abs(steps)))
    assert all(rounded[key] == exact[key] for key in ("statistic", "p", "effect_size"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=12))
def test_the_effect_is_the_balance_of_signed_ranks(drawn):
    differences = np.array(drawn, float)
    zeros = np.zeros(len(drawn))
    result, swapped = paired_test(differences, zeros), paired_test(zeros, differences)
    moved = differences[differences != 0]
    weights = stats.rankdata(np.abs(moved))
    expected = (np.sign(moved) @ weights) / weights.sum() if len(moved) else 0
    assert result["effect_size"] == pytest.approx(expected, abs=1e-12)
    assert swapped["effect_size"] == -result["effect_size"]
    assert swapped["p"] == result["p"] and 0 < result["p"] <= 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.floats(-1, 1))
def test_the_bounds_of_an_effect_are_where_the_score_test_turns(n, effect):
    low, high = effect_interval(effect, n)
    assert -1 <= low <= effect + 1e-12 and effect - 1e-12 <= high <= 1
    z, trials = stats.norm.ppf(0.975), 0.75 * n
    for bound in (low, high):
        if abs(bound) < 1 - 1e-6:
            assert abs(effect - bound) == pytest.approx(z * np.sqrt((1 - bound**2) / trials), rel=1e-6)
    np.testing.assert_allclose(effect_interval(-effect, n), (-high, -low), atol=1e-12)
    wider = effect_interval(effect, n, level=0.99)
    assert wider[0] <= low + 1e-12 and high - 1e-12 <= wider[1]


@pytest.mark.parametrize(("n", "shift"), [(5, 0.0), (5, 1.0), (10, 0.4), (10, 1.0)])
def test_the_bounds_of_an_effect_cover_it(n, shift):
    # The sum of two normal differences around shift is positive with probability Phi(sqrt(2) shift).
    true = 2 * stats.norm.cdf(np.sqrt(2) * shift) - 1
    draws = np.random.default_rng(n).normal(shift, 1, (1000, n))
    tests = [paired_test(row, np.zeros(n)) for row in draws]
    assert np.mean([test["effect_low"] <= true <= test["effect_high"] for test in tests]) >= 0.93


def test_zero_differences_tell_nothing_about_the_size_of_an_effect():
    differences = np.array([0.3, 0.5, -0.1, 0.7, 0.2])
    with_zeros = paired_test([*differences, 0, 0], np.zeros(7))
    expected = effect_interval(with_zeros["effect_size"], 5)
    assert (with_zeros["effect_low"], with_zeros["effect_high"]) == expected
    assert np.isnan([paired_test([1, 2], [1, 2])[name] for name in ("effect_low", "effect_high")]).all()


def test_one_sided_pairs_have_full_effect_and_the_smallest_p():
    a = np.random.default_rng(0).uniform(1, 2, 8)
    result = paired_test(a, a - np.arange(1, 9))
    assert (result["effect_size"], result["statistic"]) == (1, 0)
    assert result["p"] == 2 / 2**8


def test_equal_sides_differ_in_nothing_and_one_pair_tells_nothing():
    a = np.random.default_rng(0).normal(size=6)
    same = paired_test(a, a)
    assert (same["p"], same["statistic"], same["effect_size"], same["mean_difference"]) == (1, 0, 0, 0)
    for few in (paired_test(a[:1], a[1:2]), paired_test([], []), paired_test([1, np.nan], [2, 3])):
        assert few.pop("n") < 2 and few.pop("n_censored") == few.pop("n_unknown") == 0
        assert np.isnan(list(few.values())).all()


def test_the_test_rejects_a_true_null_as_often_as_it_may():
    rng = np.random.default_rng(0)
    p = np.array([paired_test(rng.normal(size=10), rng.normal(size=10))["p"] for _ in range(2000)])
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 2000))


def test_censored_pairs_by_hand():
    # Last epoch 50. Seeds: -7 and +3 exact, a later (50 against 40, 50 against 49), b later, both unknown.
    a, a_late = [10, 33, 50, 50, 20, 50], [0, 0, 1, 1, 0, 1]
    b, b_late = [17, 30, 40, 49, 50, 50], [0, 0, 0, 0, 1, 1]
    result = paired_test(a, b, a_late, b_late)
    assert (result["n"], result["n_censored"], result["n_unknown"]) == (5, 4, 1)
    # Ranks of the sizes: 3 first, 7 second, the three censored share the mean of 3, 4 and 5.
    signs, sizes = np.array([-1, 1, 1, 1, -1]), np.array([2, 1, 4, 4, 4])
    assert result["effect_size"] == pytest.approx(signs @ sizes / 15)
    sums = np.array([np.array(flips) @ sizes for flips in product([-1, 1], repeat=5)])
    assert result["p"] == pytest.approx(np.mean(np.abs(sums) >= abs(signs @ sizes)))
    assert result["statistic"] == 2 + 4
    assert np.isnan([result[name] for name in ("mean_difference", "ci_low", "ci_high")]).all()
    swapped = paired_test(b, a, b_late, a_late)
    assert swapped["effect_size"] == -result["effect_size"] and swapped["p"] == result["p"]


def test_a_pair_of_which_either_side_may_be_later_is_left_out_and_no_tie():
    late = paired_test([20] * 5, [20] * 5, [True] * 5, [True] * 5)
    assert (late["n"], late["n_censored"], late["n_unknown"]) == (0, 5, 5)
    assert np.isnan([late[name] for name in ("mean_difference", "p", "effect_size")]).all()
    # Followed to 20 only, a may be before or after what b does at 20 or 30.
    short = paired_test([20, 20, 20], [19, 20, 30], True, False)
    assert (short["n"], short["n_unknown"]) == (1, 2)
    none = paired_test([3, 4, 9], [5, 4, 2], False, [False] * 3)
    assert none == paired_test([3, 4, 9], [5, 4, 2]) and none["n_censored"] == 0


def planted_epochs(rng, n, shift, last):
    """Settling epochs of n seeds under two conditions that share the seed: seen until last, flags, truth."""
    seed = rng.normal(3, 0.4, n)
    a, b = (np.ceil(np.exp(seed + rng.normal(move, 0.5, n))) for move in (shift, 0))
    return (np.minimum(a, last), np.minimum(b, last), a >= last, b >= last), a - b


@pytest.mark.parametrize("last", [1000, 40, 25])
def test_p_keeps_its_level_however_much_is_censored(last):
    rng = np.random.default_rng(last)
    p = np.array([paired_test(*planted_epochs(rng, 12, 0, last)[0])["p"] for _ in range(2000)])
    for level in (0.05, 0.2):
        above = 4 * np.sqrt(level * (1 - level) / 2000)
        assert 0.5 * level < (p <= level).mean() <= level + above
    shifted = [paired_test(*planted_epochs(rng, 12, 0.7, last)[0])["p"] for _ in range(200)]
    assert np.mean(np.array(shifted) <= 0.05) > 0.5


@pytest.mark.parametrize("last", [40, 25])
def test_the_bounds_of_an_effect_cover_that_of_the_epochs_behind_the_censoring(last):
    rng = np.random.default_rng(last)
    truth = planted_epochs(rng, 40_000, 0.4, last)[1]
    sums = truth[:20_000] + truth[20_000:]
    true = np.mean(sums > 0) - np.mean(sums < 0)
    tests = [paired_test(*planted_epochs(rng, 10, 0.4, last)[0]) for _ in range(1000)]
    assert np.mean([test["effect_low"] <= true <= test["effect_high"] for test in tests]) >= 0.93
    assert all(np.isnan(test["ci_low"]) for test in tests if test["n_censored"] > test["n_unknown"])


def test_a_difference_beyond_the_end_of_training_is_not_told_as_a_small_one():
    rng = np.random.default_rng(0)
    b = rng.integers(51, 80, 10)
    a = b - 36
    assert (a < 50).all()
    naive = paired_test(a, np.minimum(b, 50))
    assert naive["ci_low"] > -36, "the planted difference is outside the interval of what was seen"
    result = paired_test(a, np.minimum(b, 50), False, b >= 50)
    assert (result["n"], result["n_censored"], result["effect_size"], result["p"]) == (10, 10, -1, 2 / 2**10)
    assert np.isnan([result[name] for name in ("mean_difference", "ci_low", "ci_high")]).all()


def test_censored_outcomes_are_compared_as_such():
    table = outcomes()
    table["censored"] = (table["outcome"] == "lag") & (table["value"] > 1)
    table.loc[table["censored"], "value"] = 1.0
    result: Any = compare(table.sample(frac=1, random_state=0))
    flags = table.assign(value=table["censored"])
    for _, row in result.iterrows():
        sides = [pick(table, row, side) for side in "ab"]
        expected = paired_test(*sides, *(pick(flags, row, side).astype(bool) for side in "ab"))
        found = {name: row[name] for name in expected}
        np.testing.assert_array_equal(list(found.values()), list(expected.values()))
    by_outcome = result.groupby("outcome")[["n_censored", "n_unknown"]].sum()
    assert (by_outcome.loc["lag"] > 0).all() and (by_outcome.loc["final"] == 0).all()
    plain: Any = compare(table.drop(columns="censored"))
    same = result["outcome"] == "final"
    pd.testing.assert_frame_equal(result[same], plain[same])


def outcomes(seeds=range(8)) -> Any:
    methods = ["saliency", "ig", "cam"]
    grid = product(["digits", "mnist"], ["small"], [0.001, 0.01], methods, seeds, ["lag", "final"])
    names = ["dataset", "model", "learning_rate", "method", "seed", "outcome"]
    table = pd.DataFrame(grid, columns=names)
    table["value"] = np.random.default_rng(0).normal(size=len(table)) + table["learning_rate"] * 100
    return table


def pick(table, row, side):
    """The values by seed of one side of a comparison, looked up from the row's own words."""
    condition = {name: row[name] for name in ("dataset", "model", "learning_rate", "method")}
    condition[row["factor"]] = row[side]
    for name, level in condition.items():
        table = table[table[name].astype(str) == level]
    return table[table["outcome"] == row["outcome"]].set_index("seed")["value"].sort_index()


def test_every_comparison_is_the_paired_test_of_its_two_sides():
    table = outcomes()
    result: Any = compare(table.sample(frac=1, random_state=0))
    assert result.columns.tolist() == [
        *("factor", "a", "b", "dataset", "model", "learning_rate", "method", "outcome", "n", "n_missing"),
        *("mean_difference", "ci_low", "ci_high", "statistic", "p", "p_adjusted", "effect_size", "missing"),
        *("effect_low", "effect_high", "n_censored", "n_unknown"),
    ]
    # Two outcomes: 1 pair of datasets x 6, 1 of rates x 6, 3 of methods x 4; the one model has none.
    assert result.groupby("factor").size().to_dict() == {"dataset": 12, "learning_rate": 12, "method": 24}
    for _, row in result.iterrows():
        assert row[row["factor"]] == "*" and row["a"] < row["b"]
        expected = paired_test(pick(table, row, "a"), pick(table, row, "b"))
        assert {name: row[name] for name in expected} == expected
        assert (row["n_missing"], row["missing"]) == (0, "")
    for _, part in result.groupby("outcome"):
        np.testing.assert_array_equal(part["p_adjusted"], holm(part["p"]))


def test_incomplete_pairs_are_refused_by_name():
    table = outcomes()
    here = (table["dataset"] == "mnist") & (table["learning_rate"] == 0.01) & (table["outcome"] == "lag")
    gone = here & (table["method"] == "saliency") & table["seed"].isin([3, 7])
    table.loc[here & (table["method"] == "cam") & (table["seed"] == 1), "value"] = np.nan
    result: Any = compare(table[~gone])
    refused = result[result["n_missing"] > 0]
    tests = ["mean_difference", "ci_low", "ci_high", "statistic", "p", "p_adjusted", "effect_size"]
    tests += ["effect_low", "effect_high"]
    assert refused[tests].isna().to_numpy().all()
    methods = refused[refused["factor"] == "method"].set_index(["a", "b"])
    assert methods["missing"].to_dict() == {
        ("cam", "ig"): "a: 1",
        ("cam", "saliency"): "a: 1; b: 3, 7",
        ("ig", "saliency"): "b: 3, 7",
    }
    assert methods["n"].to_dict() == {("cam", "ig"): 7, ("cam", "saliency"): 5, ("ig", "saliency"): 6}
    complete = result[(result["n_missing"] == 0) & (result["outcome"] == "lag")]
    np.testing.assert_array_equal(complete["p_adjusted"], holm(complete["p"]))
    assert complete["p"].notna().all()


def test_an_absent_condition_is_named_and_one_absent_on_both_sides_is_not_compared():
    table = outcomes(seeds=range(2))
    no_cam = table[(table["method"] != "cam") | (table["dataset"] != "mnist")]
    result: Any = compare(no_cam)
    cam = result[(result["factor"] == "dataset") & (result["method"] == "cam")]
    assert len(cam) == 4 and (cam["missing"] == "b: 0, 1").all() and (cam["n"] == 0).all()
    assert len(result[(result["factor"] == "learning_rate") & (result["method"] == "cam")]) == 2


def test_levels_sort_as_numbers_and_duplicates_are_refused():
    table = outcomes(seeds=range(3))
    table["learning_rate"] = table["learning_rate"].map({0.001: 2.0, 0.01: 10.0})
    rates: Any = compare(table).query("factor == 'learning_rate'")
    assert set(zip(rates["a"], rates["b"], strict=True)) == {("2.0", "10.0")}
    with pytest.raises(ValueError, match="more than one value"):
        compare(pd.concat([table, table.head(1)]))


def test_a_single_condition_has_nothing_to_compare():
    table = outcomes()
    one = table[(table["dataset"] == "digits") & (table["learning_rate"] == 0.01) & (table["method"] == "ig")]
    for nothing in (one, table.head(0)):
        result: Any = compare(nothing)
        assert len(result) == 0 and result.columns.tolist() == compare(table).columns.tolist()


def test_categorical_outcomes_compare_the_same():
    table = outcomes()
    typed = table.astype(dict.fromkeys(["dataset", "model", "method", "outcome"], "category"))
    pd.testing.assert_frame_equal(compare(typed), compare(table))
