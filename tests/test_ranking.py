"""Summaries, ranks, fronts and Friedman's test: against scipy, pandas and their definitions."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from epochlens.measure.ranking import (
    Direction,
    at_last_epoch,
    friedman,
    mean_ranks,
    method_differences,
    pareto,
    summarise_quality,
)
from epochlens.measure.statistics import holm

METHODS = ["a", "b", "c", "d"]
DIRECTIONS: dict[str, Direction | None] = {"up": "higher", "down": "lower", "plain": None}
KEYS = ["dataset", "model", "learning_rate", "method", "epoch", "metric"]


def quality(seeds: int = 5) -> Any:
    """Random quality of four methods in two conditions, at two epochs."""
    grid = product(["digits"], ["small", "deep"], [0.1], METHODS, [0, 4], DIRECTIONS, range(seeds))
    frame = pd.DataFrame(grid, columns=[*KEYS, "seed"])
    rng = np.random.default_rng(0)
    n_undefined = rng.integers(0, 4, len(frame))
    return frame.assign(value=rng.normal(size=len(frame)), n=10 + frame["seed"], n_undefined=n_undefined)


def only(frame: Any, **equal: object) -> Any:
    for column, value in equal.items():
        frame = frame[frame[column] == value]
    return frame


def test_a_summary_is_scipys_interval_over_seeds_and_sums_of_counts():
    frame = quality()
    summary: Any = summarise_quality(frame, DIRECTIONS)
    assert len(summary) == len(frame) / 5 and (summary["n_seeds"] == 5).all()
    assert (summary["n_values"] == sum(range(10, 15))).all()
    for row in summary.sample(8, random_state=1).to_dict("records"):
        part = only(frame, **{key: row[key] for key in KEYS})
        low, high = stats.t.interval(0.95, 4, part["value"].mean(), stats.sem(part["value"]))
        np.testing.assert_allclose([row["ci_low"], row["ci_high"]], [low, high], rtol=1e-10)
        assert row["n_undefined"] == part["n_undefined"].sum()


def test_the_best_mean_has_rank_one_whichever_way_is_better():
    summary: Any = summarise_quality(quality(), DIRECTIONS)
    for metric, sign in (("up", -1), ("down", 1)):
        for key, part in only(summary, metric=metric).groupby(["model", "epoch"]):
            assert part["rank"].tolist() == stats.rankdata(sign * part["mean"]).tolist(), key
    assert only(summary, metric="plain")["rank"].isna().all(), "no direction, no rank"
    unknown: Any = summarise_quality(quality(), {})
    assert unknown["rank"].isna().all() and unknown["mean"].notna().all()


def test_ties_share_a_rank_and_undefined_means_have_none():
    frame = quality(seeds=1)
    values = {"a": 2.0, "b": 1.0, "c": 2.0, "d": np.nan}
    summary: Any = summarise_quality(frame.assign(value=frame["method"].map(values)), DIRECTIONS)
    rank = only(summary, metric="up", model="small", epoch=4).set_index("method")["rank"]
    assert rank[["a", "b", "c"]].tolist() == [1.5, 3.0, 1.5] and np.isnan(rank["d"])
    lost = only(summary, method="d")
    assert (lost["n_seeds"] == 0).all() and lost["mean"].isna().all() and summary["ci_low"].isna().all()


def test_methods_are_ranked_within_their_condition():
    frame = quality()
    moved = frame.assign(value=frame["value"] + 100 * (frame["model"] == "small"))
    before, after = (summarise_quality(table, DIRECTIONS)["rank"] for table in (frame, moved))
    np.testing.assert_array_equal(before, after)


def test_mean_ranks_are_those_of_the_last_epoch_with_a_value():
    summary: Any = summarise_quality(quality(), DIRECTIONS)
    table: Any = mean_ranks(summary)
    assert (table["n_metrics"] == 2).all() and (table["epoch"] == 4).all() and len(table) == 8
    by_hand = only(summary, epoch=4).groupby(["dataset", "model", "learning_rate", "method"])["rank"].mean()
    np.testing.assert_array_equal(table["mean_rank"], by_hand)
    # All ranks of a condition's methods are handed out, so they average to the middle one.
    np.testing.assert_allclose(table.groupby("model")["mean_rank"].mean().to_numpy(), 2.5)
    gone = summary.assign(mean=summary["mean"].mask((summary["model"] == "deep") & (summary["epoch"] == 4)))
    earlier = mean_ranks(gone)
    assert (only(earlier, model="deep")["epoch"] == 0).all()
    assert (only(earlier, model="small")["epoch"] == 4).all()


def test_the_last_epoch_is_each_conditions_own():
    frame = quality()
    longer = pd.concat([frame, only(frame, model="deep", epoch=4).assign(epoch=9, value=np.nan)])
    longer = pd.concat([longer, only(frame, model="deep", epoch=4).assign(epoch=7)], ignore_index=True)
    last: Any = at_last_epoch(longer, "value")
    assert last.groupby("model")["epoch"].unique().to_dict() == {"deep": [7], "small": [4]}
    undefined = (longer["epoch"] == 7) & (longer["method"] == "a")
    kept = at_last_epoch(longer.assign(value=longer["value"].mask(undefined)), "value")
    assert len(kept) == len(last), "undefined rows of that epoch stay, to be counted"


def test_a_dominated_method_is_not_on_the_front_and_ties_and_nan_are_handled():
    points = [[0.9, 5.0], [0.5, 1.0], [0.4, 2.0], [0.5, 1.0], [np.nan, 0.1], [0.9, 4.0]]
    assert pareto(points, ["higher", "lower"]).tolist() == [False, True, False, True, False, True]
    assert pareto(points, ["lower", "lower"]).tolist() == [False, True, True, True, False, False]
    assert pareto([[3.0, -7.0]], ["higher", "higher"]).tolist() == [True], "one method has no rival"
    wrong: Any = ["higher", "sideways"]
    with pytest.raises(KeyError, match="sideways"):
        pareto(points, wrong)


POINTS = st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, 2.0, np.nan])] * 3), min_size=1, max_size=8)


@settings(deadline=None, max_examples=200)
@given(POINTS, st.tuples(*[st.sampled_from(["higher", "lower"])] * 3))
def test_the_front_is_what_its_definition_says(points, better):
    def beats(p, q):
        better_or_equal = [
            x >= y if way == "higher" else x <= y for x, y, way in zip(p, q, better, strict=True)
        ]
        return all(better_or_equal) and p != q

    expected = [not np.isnan(q).any() and not any(beats(p, q) for p in points) for q in points]
    assert pareto(points, better).tolist() == expected


@settings(deadline=None, max_examples=100)
@given(st.integers(3, 9), st.integers(3, 7), st.integers(1, 6), st.integers(0, 10**6))
def test_friedman_is_scipys_with_and_without_ties(n, k, levels, seed):
    values = np.random.default_rng(seed).integers(0, levels + 2, size=(n, k)) / 7
    found = friedman(values)
    if (values == values[:, :1]).all():
        assert np.isnan(found["p"])
        return
    expected: Any = stats.friedmanchisquare(*values.T)
    np.testing.assert_allclose([found["statistic"], found["p"]], expected, rtol=1e-9, atol=1e-12)
    assert -1e-12 <= found["kendalls_w"] <= 1 + 1e-12


def test_kendalls_w_is_the_mean_rank_correlation_of_seeds_rescaled():
    values = np.random.default_rng(3).normal(size=(6, 5)) + np.arange(5) / 2
    found: Any = stats.spearmanr(values, axis=1)
    between = found.statistic[np.triu_indices(6, 1)]
    # Kendall and Babington Smith: mean Spearman correlation of all pairs = (n W - 1) / (n - 1).
    np.testing.assert_allclose((6 * friedman(values)["kendalls_w"] - 1) / 5, between.mean(), rtol=1e-12)
    same = np.tile([3.0, 1.0, 2.0], (4, 1))
    assert friedman(same)["kendalls_w"] == pytest.approx(1)


@pytest.mark.filterwarnings("error")
def test_too_little_data_is_no_test():
    rng = np.random.default_rng(0)
    for shape in ((2, 4), (5, 2), (0, 3)):
        found = friedman(rng.normal(size=shape))
        assert np.isnan([found["p"], found["statistic"], found["kendalls_w"]]).all()
        assert (found["n_seeds"], found["n_methods"]) == shape
    values = rng.normal(size=(6, 4))
    lacking = np.vstack([values, [[1.0, np.nan, 2.0, 3.0]]])
    assert friedman(lacking) == friedman(values)


def test_differences_leave_out_methods_without_a_value_and_correct_for_many_tests():
    frame = quality(seeds=6)
    frame["value"] += frame["method"].map({"a": 0, "b": 9, "c": 18, "d": 27}) * (frame["metric"] == "up")
    gone = (frame["method"] == "d") & (frame["metric"] == "up")
    frame["value"] = frame["value"].mask(gone)
    frame.loc[(frame["method"] == "a") & (frame["metric"] == "up") & (frame["seed"] == 2), "value"] = np.nan
    table: Any = method_differences(frame)
    assert len(table) == 6 and (table["epoch"] == 4).all()
    up = only(table, metric="up", model="small").iloc[0]
    assert (up["n_methods"], up["n_seeds"]) == (3, 5) and up["kendalls_w"] == pytest.approx(1)
    wide = only(frame, metric="down", model="deep", epoch=4).pivot(
        index="seed", columns="method", values="value"
    )
    expected: Any = stats.friedmanchisquare(*wide.to_numpy().T)
    assert only(table, metric="down", model="deep")["p"].item() == pytest.approx(expected.pvalue)
    np.testing.assert_array_equal(table["p_adjusted"], holm(table["p"].to_numpy()))


def test_nothing_measured_gives_empty_tables():
    none = quality().iloc[:0]
    summary: Any = summarise_quality(none, DIRECTIONS)
    full = summarise_quality(quality(), DIRECTIONS)
    assert summary.empty and list(summary) == list(full)
    for made, of in (
        (mean_ranks(summary), mean_ranks(full)),
        (method_differences(none), method_differences(quality())),
    ):
        assert made.empty and list(made) == list(of)
