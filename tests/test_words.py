"""Sentences hold the numbers of the tables, and say what is not known instead of making it up."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from test_figures import MINE, build_tables, lag_table

from epochlens.show.lags import lags, phrase
from epochlens.show.words import differences, sentences

INF = np.inf


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "6 [4, 9] epochs after accuracy"),
        (
            {"median_low": -6, "median_high": -6, "low": -9, "high": -4},
            "6 [4, 9] epochs before accuracy",
        ),
        (
            {"low": -1},
            "6 [-1, 9] epochs after accuracy, so which comes first is open",
        ),
        (
            {"median_low": -1, "median_high": -1, "low": -3, "high": 2},
            "1 [-2, 3] epoch before accuracy, so which comes first is open",
        ),
        (
            {"median_low": 0, "median_high": 0, "low": -1},
            "together with accuracy, 0 [-1, 9] epochs after it, so which comes first is open",
        ),
        ({"high": INF, "n_censored": 2}, "6 [4, not known] epochs after accuracy (2 of 10 seeds censored)"),
        (
            {"n": 4, "low": -INF, "high": INF},
            "6.5 [5, 8] epochs after accuracy (mean of 4 seeds)",
        ),
        (
            {"n": 1, "low": -INF, "high": INF, "mean_low": np.nan, "mean_high": np.nan},
            "6.5 epochs after accuracy (one seed)",
        ),
        (
            {"median_high": INF, "high": INF, "n_censored": 6},
            "at least 6 epochs after accuracy (6 of 10 seeds censored)",
        ),
        (
            {"median_low": -3, "median_high": INF, "low": -5, "high": INF, "n_censored": 6},
            "at most 3 epochs before accuracy, or after it (6 of 10 seeds censored)",
        ),
        (
            {"median_low": -INF, "median_high": -3, "low": -INF, "n_censored": 6},
            "at least 3 epochs before accuracy (6 of 10 seeds censored)",
        ),
        (
            {
                "median_low": -INF,
                "median_high": INF,
                "low": -INF,
                "high": INF,
                "n_censored": 9,
                "mean": np.nan,
            },
            "whether before or after accuracy is not known (9 of 10 seeds censored)",
        ),
        ({"n": 0, "median_low": np.nan}, "whether before or after accuracy is not known"),
    ],
)
def test_a_lag_in_words(changed, expected):
    (lag,) = lags(lag_table(**changed)).values()
    assert phrase(lag) == expected


@pytest.mark.parametrize("low", [4.0, 0.0, -2.0])
def test_the_overview_counts_only_orders_that_the_interval_settles(low):
    tables = lag_table(low=low)
    both = pd.concat([tables["settling_summary"], tables["settling_summary"].assign(method="gradcam")])
    first = sentences({"settling_summary": both})[0]
    assert ("2 after accuracy" in first) == (low > 0) and ("2 open" in first) == (low <= 0)


def test_a_configuration_in_words():
    about = sentences(lag_table())[0]
    assert about.startswith(
        "digits · deep · lr 0.001, saliency: maps settle at epoch 12 [9, 15] (10 seeds), "
    )
    assert "6 [4, 9] epochs after accuracy; 3 of 160 images had not settled at the end" in about


def test_a_median_that_was_not_reached_is_not_known():
    summary = lag_table()["settling_summary"].assign(median=np.nan, ci_high=INF, n_censored=100)
    about = sentences({"settling_summary": summary})[0]
    assert "the median epoch at which maps settle is not known, not before epoch 9" in about
    assert "100 of 160 images had not settled" in about and "nan" not in about and "inf" not in about
    open_end = sentences({"settling_summary": summary.assign(median=12.0)})[0]
    assert "at epoch 12 [9, not known]" in open_end


def test_final_maps_are_set_against_the_ceiling_and_the_nulls():
    row = {**MINE, "method": "saliency", "metric": "cosine"}
    between = pd.DataFrame(
        [
            {**row, "epoch": 3, "n_seeds": 5, "mean": 0.2, "ci_low": 0.1, "ci_high": 0.3},
            {**row, "epoch": 9, "n_seeds": 5, "mean": 0.62, "ci_low": 0.58, "ci_high": 0.66},
        ]
    )
    null = {"epoch": 9, "n_seeds": 5, "n_undefined": 0, "std": 0.1, "ci_low": 0.0, "ci_high": 1.0}
    means = {"other_image": 0.31, "random": -0.001}
    summary = pd.DataFrame([{**row, **null, "reference": name, "mean": mean} for name, mean in means.items()])
    (about, _) = sentences({"agreement": between, "stability_summary": summary})
    assert "between seeds 0.62 [0.58, 0.66]; between images of a class 0.31, to random maps 0.00." in about
    (alone, _) = sentences({"stability_summary": summary})
    assert "between seeds is not known; between images of a class 0.31" in alone


def test_without_images_settling_is_that_of_the_seeds():
    tables = build_tables(models=("small",), rates=(0.001,), seeds=7, last=4, methods=("saliency",))
    known = {"accuracy_epoch": 5.0, "censored": False, "accuracy_censored": False}
    settled = tables["stabilisation"].assign(epoch=11.0, **known)
    about = sentences({"stabilisation": settled})[0]
    assert "maps settle at epoch 11 (median of 7 seeds), 6 [6, 6] epochs after accuracy" in about


def comparison(method: str, change: float, p: float, outcome: str = "settling epoch") -> dict[str, object]:
    pair = {"factor": "model", "a": "deep", "b": "small", "dataset": "digits", "model": "*"}
    rest = {"learning_rate": "0.001", "method": method, "outcome": outcome, "n": 10}
    return {**pair, **rest, "mean_difference": change, "p_adjusted": p}


def test_a_family_of_differences_is_one_sentence():
    rows = [
        comparison("a", -3, 0.01),
        comparison("b", -5, 0.02),
        comparison("c", -4, 0.03),
        comparison("d", 1, 0.9),
    ]
    told = differences({"comparisons": pd.DataFrame(rows)})
    assert told == [
        "3 of 4 paired comparisons hold after Holm's correction (p < 0.05).",
        "deep minus small: settling epoch is lower in 3 of 4 pairings "
        "(by 3 to 5 on average; n = 10 seeds; adjusted p at most 0.03).",
    ]
    mixed = differences({"comparisons": pd.DataFrame([*rows[:1], comparison("b", 2, 0.04)])})[1]
    assert "higher in 1 (digits · lr 0.001 · b) and lower in 1 (digits · lr 0.001 · a) of 2 pairings" in mixed
    single = differences({"comparisons": pd.DataFrame(rows[:1])})[1]
    assert "lower in 1 of 1 pairing (by 3 on average; n = 10 seeds; adjusted p = 0.01)" in single


def test_families_come_by_their_smallest_p_and_the_rest_is_counted():
    rows = [comparison("a", 1, 0.04 - 0.001 * i, f"outcome {i:02d}") for i in range(20)]
    told = differences({"comparisons": pd.DataFrame(rows)})
    assert told[1].startswith("deep minus small: outcome 19") and len(told) == 18
    assert told[-1].startswith("4 further families")
    none = differences({"comparisons": pd.DataFrame([comparison("a", 1, 0.5)])})
    assert none == ["0 of 1 paired comparisons hold after Holm's correction (p < 0.05)."]


def test_categories_without_rows_are_not_told():
    summary = lag_table()["settling_summary"]
    methods = pd.Categorical(summary["method"], categories=["saliency", "unused"])
    assert sentences({"settling_summary": summary.assign(method=methods)}) == sentences(lag_table())


def test_nothing_to_tell_is_told_without_failing():
    assert sentences({}) == ["No two conditions could be compared with complete pairs of seeds."]
    alone = build_tables(models=("small",), rates=(0.001,), seeds=1, last=3)
    assert not [line for line in sentences(alone) if "nan" in line or " inf" in line]
