"""Sentences hold the numbers of the tables, and say what is not known instead of making it up."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_figures import MINE, build_tables, lag_table

from epochlens.show.lags import CALIBRATED, lags, phrase
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
            {"median_low": -INF, "median_high": -3, "low": -INF, "high": -1, "n_censored": 6},
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
        (
            {"median_low": -INF, "median_high": -4, "low": -INF, "high": 2, "n_censored": 5},
            "at least 4 epochs before accuracy (5 of 10 seeds censored), but by its interval which comes "
            "first is open",
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


def both_scales(raw: dict, calibrated: dict, method: str = "saliency") -> pd.DataFrame:
    """A method's settling_summary: a lag by the raw and one by the calibrated cosine."""
    parts = [lag_table(**lag)["settling_summary"] for lag in (raw, calibrated)]
    parts[1] = parts[1].assign(metric=CALIBRATED, median=38.0, ci_low=37.0, ci_high=40.0, n_censored=17)
    return pd.concat(parts, ignore_index=True).assign(method=method)


BEFORE = {"median_low": -7.0, "median_high": -7.0, "low": -13.0, "high": -3.0}
OPEN = {"low": -1.0}


def test_each_scale_is_told_and_where_they_disagree():
    """Planted: method a is reversed, which comes first, b is open by one of the two, c is after by both."""
    pairs = {"a": (BEFORE, {}), "b": ({}, OPEN), "c": ({}, {})}
    summary = pd.concat([both_scales(raw, scaled, method) for method, (raw, scaled) in pairs.items()])
    nulls = ceiling_tables({"a": (0.9, 0.83), "b": (0.9, 0.71), "c": (0.9, 0.2)})
    told = sentences({"settling_summary": summary, **nulls})
    assert "raw cosine to the final map: 2 after accuracy, 1 before accuracy." in told[0]
    assert told[1].startswith("By the calibrated cosine (0: another image of the class, 1: the same map)")
    assert told[1].endswith(": 2 after accuracy, 1 open.")
    place, by = "in digits · deep · lr 0.001", "by the calibrated one"
    assert told[2].startswith(
        "The two cosines order maps and accuracy differently in 2 of 3 combinations: before by the raw and "
        f"after {by} {place} (a); after by the raw and open {by} {place} (b). "
    )
    assert "a class already have a raw cosine of 0.71 to 0.83, so" in told[2], "not c's, where they agree"
    agreeing = sentences({"settling_summary": pd.concat([both_scales({}, {}, m) for m in "ab"])})
    assert not [line for line in agreeing if "differently" in line]


def test_many_disagreements_are_counted_not_named():
    summary = pd.concat([both_scales(BEFORE, {}, method) for method in "abcde"])
    (line,) = [one for one in sentences({"settling_summary": summary}) if "differently" in one]
    assert line.endswith(
        "5 of 5 combinations: before by the raw and after by the calibrated one in 5 of them."
    )


def test_the_calibrated_epoch_and_lag_stand_beside_the_raw_ones():
    about = sentences({"settling_summary": both_scales(BEFORE, {"median_low": 10.0, "median_high": 10.0})})[
        -2
    ]
    assert "maps settle at epoch 12 [9, 15] (10 seeds), 7 [3, 13] epochs before accuracy; 3 of 160" in about
    assert (
        "Calibrated: epoch 38 [37, 40], 10 [4, 9] epochs after accuracy; 17 of 160 images had not settled"
        in about
    )
    unknown = both_scales({}, {}).assign(median=[12.0, np.nan], ci_high=[15.0, INF])
    about = sentences({"settling_summary": unknown})[-2]
    assert "Calibrated: median epoch not known, not before epoch 37 with 95 % confidence, 6 [4, 9]" in about


def test_each_scale_reads_its_own_rows_of_the_seeds_too():
    """Seeds whose raw cosine settles 2 epochs before accuracy, and whose calibrated one 3 after."""
    tables = build_tables(models=("small",), rates=(0.001,), seeds=7, last=4, methods=("saliency",))
    known = {"accuracy_epoch": 5.0, "censored": False, "accuracy_censored": False}
    cosine = tables["stabilisation"].query("metric == 'cosine'").assign(**known)
    calibrated = cosine.assign(metric=CALIBRATED, epoch=8.0)
    seeds = {"stabilisation": pd.concat([cosine.assign(epoch=3.0), calibrated])}
    (raw,), (scaled,) = lags(seeds).values(), lags(seeds, CALIBRATED).values()
    assert (raw.first, raw.order, scaled.first, scaled.order) == (-2, "before", 3, "after")
    assert "Calibrated: epoch 8, 3 [3, 3] epochs after accuracy." in sentences(seeds)[-2]
    assert not lags({"stabilisation": calibrated}), "the calibrated is never told as the raw one"
    assert not lags({"stabilisation": cosine}, CALIBRATED)
    assert "previous epoch" not in " ".join(sentences(seeds)), "seeds' epochs are those against the final map"


def test_settling_on_the_previous_epoch_is_told_and_not_taken_for_settling():
    final = pd.concat([lag_table()["settling_summary"].assign(method=method) for method in "ab"])
    steps = final.assign(reference="previous", median=[2.0, 5.0], ci_low=[2.0, 4.0], ci_high=[3.0, INF])
    steps[[name for name in steps if str(name).startswith("lag_")]] = np.nan
    told = sentences({"settling_summary": pd.concat([final, steps])})
    assert told[1].startswith(
        "Against the previous epoch maps settle at epoch 2 to 5 (medians), against the final map at epoch 12:"
    )
    a, b = told[2:4]
    assert "Against the previous epoch: epoch 2 [2, 3]." in a and "at epoch 12 [9, 15]" in a
    assert "Against the previous epoch: epoch 5 [4, not known]." in b
    never = pd.concat([final, steps.assign(median=np.nan)])
    assert "Against the previous epoch: median epoch not known (not before epoch 2" in " ".join(
        sentences({"settling_summary": never})
    )


def ceiling_tables(
    levels: dict[str, tuple[float, float]], half: tuple[float, float] = (0.04, 0.03)
) -> dict[str, pd.DataFrame]:
    """Cosines of final maps between seeds and to other images of the class by method, with half intervals."""
    between, null = [], []
    for method, means in levels.items():
        for rows, mean, wide in zip((between, null), means, half, strict=True):
            ends = {"ci_low": mean - wide, "ci_high": mean + wide}
            same = {**MINE, "method": method, "metric": "cosine", "n_seeds": 5}
            # An earlier epoch tells the opposite, so that only the last one gives these answers.
            rows.append({**same, "epoch": 3, "mean": 1 - mean, "ci_low": 0.0, "ci_high": 0.01})
            rows.append({**same, "epoch": 9, "mean": mean, **ends})
    other = pd.DataFrame(null).assign(reference="other_image", n_undefined=0, std=0.1)
    return {"agreement": pd.DataFrame(between), "stability_summary": other}


@pytest.mark.parametrize(
    ("seeds", "null", "told"),
    [
        (0.92, 0.79, "s = 0.92 [0.88, 0.96], above other images of the class n = 0.79 [0.76, 0.82]"),
        (0.73, 0.77, "s = 0.73 [0.69, 0.77], not above other images of the class n = 0.77 [0.74, 0.80] ("),
        (0.80, 0.76, "s = 0.80 [0.76, 0.84], not above other images of the class n = 0.76 [0.73, 0.79] ("),
        (0.69, 0.85, "s = 0.69 [0.65, 0.73], below other images of the class n = 0.85 [0.82, 0.88]"),
    ],
)
def test_the_ceiling_has_a_verdict_by_its_interval_and_the_nulls(seeds, null, told):
    about = sentences(ceiling_tables({"saliency": (seeds, null)}))[0]
    assert told in about and ("the intervals overlap" in about) == ("not above" in told)
    calibrated = round(1 - (1 - seeds) / (1 - null), 2)
    assert f"calibrated ceiling (s - n) / (1 - n) = {calibrated:.2f}." in about


def test_without_intervals_there_is_no_verdict_and_without_seeds_no_ceiling():
    tables = ceiling_tables({"saliency": (0.9, 0.3)}, half=(np.nan, 0.1))
    about = sentences(tables)[0]
    assert "s = 0.90, other images of the class n = 0.30 [0.20, 0.40], calibrated ceiling" in about
    rows = tables["stability_summary"]
    noise = rows.assign(reference="random", mean=-0.001)
    alone = sentences({"stability_summary": pd.concat([rows, noise])})[0]
    assert "between seeds is not known, other images of the class n = 0.30 [0.20, 0.40]; to random" in alone
    assert alone.endswith("to random maps 0.00.") and "ceiling" not in alone


def test_verdicts_are_counted_over_all_combinations():
    levels = {"a": (0.92, 0.5), "b": (0.9, 0.4), "c": (0.7, 0.7), "d": (0.3, 0.8)}
    told = sentences(ceiling_tables(levels))[0]
    assert "Of 4 combinations: 2 above, 1 not above (intervals overlap), 1 below, where" in told
    assert "combinations" not in sentences(ceiling_tables({"a": (0.9, 0.5)}))[0]


def conditions(changes: list[float], seeds: int = 8) -> pd.DataFrame:
    """Cosines of kept, flipped, ever and always right images: flipped ones differ by a seed's change."""
    levels = {"kept": (0.9, 0.75), "flipped": (0.9, 0.25), "ever_right": (0.8, 0.64)}
    levels |= {"always_right": (0.7, 0.1)}
    rows = []
    for seed, epoch, (name, (level, share)) in itertools.product(range(seeds), (2, 3, 4), levels.items()):
        # Seeds and epochs have levels of their own, which cancel in pairs; where nothing flipped is no pair.
        own = 0.02 * seed - 0.1 * epoch if name in ("kept", "flipped") else 0.0
        change = changes[seed % len(changes)] if name == "flipped" else 0.0
        value = np.nan if name == "flipped" and epoch == 4 and seed % 2 else level + own + change
        keys = {**MINE, "seed": seed, "method": "saliency", "epoch": epoch, "condition": name}
        rows.append({**keys, "value": value, "coverage": share})
    return pd.DataFrame(rows).assign(reference="previous", metric="cosine")


# The last: eight seeds leave it open, their twenty pairs of epochs as if independent would not.
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([-0.021, -0.019], "less alike in 1"),
        ([0.021, 0.019], "more alike in 1"),
        ([-0.1, 0.1], "open in 1"),
        ([-0.03, -0.02, 0.0, 0.01, 0.03, 0.04, 0.04, 0.05], "open in 1"),
    ],
)
def test_flipped_predictions_are_set_against_kept_ones(changes, told):
    (line, _) = sentences({"conditioned": conditions(changes)})
    assert f"flips (25 % of images) against those of images that keep it, of 1 combination: {told} (" in line
    assert "images ever right 0.800 (64 % of images); always right 0.700 (10 % of images)." in line


def test_without_flips_or_seeds_to_pair_nothing_is_said_of_them():
    known = conditions([-0.02])
    never = known.assign(value=known["value"].where(known["condition"] != "flipped"))
    for told in (never, known.query("seed == 0")):
        assert not [line for line in sentences({"conditioned": told}) if "predictions" in line]


def test_without_images_settling_is_that_of_the_seeds():
    tables = build_tables(models=("small",), rates=(0.001,), seeds=7, last=4, methods=("saliency",))
    known = {"accuracy_epoch": 5.0, "censored": False, "accuracy_censored": False}
    settled = tables["stabilisation"].assign(epoch=11.0, **known)
    about = sentences({"stabilisation": settled})[0]
    assert "maps settle at epoch 11 (median of 7 seeds), 6 [6, 6] epochs after accuracy" in about


def comparison(method: str, change: float, p: float, outcome: str = "settling epoch") -> dict[str, Any]:
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
    told = differences({"comparisons": pd.DataFrame([row | {"p_adjusted": 0.5} for row in rows])})
    assert told[0].startswith("0 of 20 ") and len(told) == 18
    assert told[-1].startswith("No difference found in 4 further families (4 pairings, n = 10 pairs; ")


def test_families_without_a_difference_are_a_sentence_each():
    rows = [
        comparison("a", 1, 0.5) | {"effect_size": 0.3},
        comparison("b", -1, 0.2) | {"effect_size": -0.6, "n": 8},
        comparison("a", 1, 0.01, "variance") | {"effect_size": 0.9},
    ]
    told = differences({"comparisons": pd.DataFrame(rows)})
    assert told[1].startswith("deep minus small: variance is higher")
    assert told[2:] == [
        "No difference found in settling epoch between deep and small "
        "(2 pairings, n = 8-10 pairs; smallest adjusted p 0.2, largest effect -0.6)."
    ]
    few = differences({"comparisons": pd.DataFrame([row | {"n": 5, "p_adjusted": 1.0} for row in rows])})
    assert len(few) == 3 and all("n = 5 pairs, too few for p < 0.05; smallest" in line for line in few[1:])


def test_censored_pairs_are_counted_and_sizes_only_told_where_known():
    seen = {"n_censored": 0, "n_unknown": 0, "effect_size": -0.9}
    hidden = {"mean_difference": np.nan, "n_censored": 4, "n_unknown": 1, "n": 9}
    rows = [comparison("a", -3, 0.01) | seen, comparison("b", 0, 0.02) | seen | hidden]
    (_, line) = differences({"comparisons": pd.DataFrame(rows)})
    assert "settling epoch is lower in 2 of 2 pairings (by 3 on average where no pair is censored;" in line
    assert "n = 9-10 seeds, 4 of 20 pairs censored;" in line
    (_, line) = differences({"comparisons": pd.DataFrame(rows[1:])})
    assert "1 of 1 pairing (by how much is not known, as pairs are censored; n = 9 seeds, 4 of 10" in line
    nothing = comparison("c", 0, np.nan) | hidden | {"effect_size": np.nan, "n": 1, "n_unknown": 9}
    told = differences({"comparisons": pd.DataFrame([*rows, nothing])})
    assert told[1] == (
        "Not known, as both sides are censored in too many pairs: settling epoch between deep and small "
        "(digits · lr 0.001 · c; n = 10 pairs)."
    )


def test_refused_comparisons_name_the_seeds_that_each_condition_lacks():
    gone = {"p_adjusted": np.nan, "n_missing": 3, "n": 7}
    rows = [
        comparison("a", 1, 0.01) | {"missing": "", "n_missing": 0},
        comparison("b", 1, 0) | gone | {"missing": "a: 1; b: 3, 7"},
        comparison("b", 1, 0, "variance") | gone | {"missing": "b: 3, 7", "factor": "model"},
    ]
    told = differences({"comparisons": pd.DataFrame(rows)})
    assert told[1] == (
        "2 comparisons are refused for incomplete pairs. Missing: seed 1 of digits · deep · lr 0.001 · b "
        "(settling epoch); seeds 3, 7 of digits · small · lr 0.001 · b."
    )
    other = comparison("c", 1, 0) | gone | {"missing": "b: 3, 7"}
    (_, line) = differences({"comparisons": pd.DataFrame([rows[1] | {"missing": "b: 3, 7"}, other])})
    assert line.endswith("Missing: seeds 3, 7 of digits · small · lr 0.001 · b, c.")
    (first, second) = differences({"comparisons": pd.DataFrame(rows[1:2])})
    assert first.startswith("No two conditions") and "seeds 3, 7 of digits · small" in second


def test_categories_without_rows_are_not_told():
    summary = lag_table()["settling_summary"]
    methods = pd.Categorical(summary["method"], categories=["saliency", "unused"])
    assert sentences({"settling_summary": summary.assign(method=methods)}) == sentences(lag_table())


def test_nothing_to_tell_is_told_without_failing():
    assert sentences({}) == ["No two conditions could be compared with complete pairs of seeds."]
    alone = build_tables(models=("small",), rates=(0.001,), seeds=1, last=3)
    assert not [line for line in sentences(alone) if "nan" in line or " inf" in line]
