"""Statistics over seeds: intervals, summaries, paired tests between conditions, corrections for many tests.

The seed is the unit: values are averaged over images before they come here, because images of one trained
network are not independent repetitions of training it.
"""

from __future__ import annotations

from itertools import combinations
from typing import cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from epochlens.measure.similarity import Floats, ranks

FACTORS = ["dataset", "model", "learning_rate", "method"]
SUMMARY_KEYS = ["dataset", "model", "learning_rate", "method", "epoch", "reference", "metric"]
TEST_COLUMNS = ["mean_difference", "ci_low", "ci_high", "statistic", "p", "effect_size"]
EFFECT_BOUNDS = ["effect_low", "effect_high"]
EXACT_UP_TO = 50
COMPARISON_COLUMNS = ["factor", "a", "b", *FACTORS, "outcome", "n", "n_missing", *TEST_COLUMNS, "missing"]
COMPARISON_COLUMNS += [*EFFECT_BOUNDS, "n_censored", "n_unknown"]
COMPARISON_COLUMNS.insert(COMPARISON_COLUMNS.index("p") + 1, "p_adjusted")


def t_interval(values: ArrayLike, axis: int = 0, level: float = 0.95) -> tuple[Floats, Floats, Floats]:
    """Mean and Student t interval along an axis, leaving NaN out: (mean, low, high), each without that axis.

    The mean is NaN where no value is defined, the bounds where fewer than two are. Student 1908.
    """
    values = np.asarray(values, np.float64)
    defined = ~np.isnan(values)
    n = defined.sum(axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(defined, values, 0.0).sum(axis) / n
        deviations = np.where(defined, values - np.expand_dims(mean, axis), 0.0)
        half = _half_width(np.sqrt((deviations**2).sum(axis) / (n - 1)), n, level)
    return mean, mean - half, mean + half


def summarise(by_seed: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation and 95 % t interval over seeds, by condition, epoch, reference and metric.

    by_seed has a row per seed with columns dataset, model, learning_rate, method, epoch, reference, metric,
    value, n_undefined. Result: those keys, n_seeds (seeds with a defined value), n_undefined (summed over
    seeds), mean, std (ddof 1), ci_low, ci_high, sorted by the keys. mean is NaN where n_seeds is 0; std and
    bounds where it is below 2.
    """
    groups = by_seed.groupby(SUMMARY_KEYS, observed=True, sort=True, dropna=False)
    table = groups.agg(
        n_seeds=("value", "count"),
        n_undefined=("n_undefined", "sum"),
        mean=("value", "mean"),
        std=("value", "std"),
    ).reset_index()
    half = _half_width(table["std"].to_numpy(np.float64), table["n_seeds"].to_numpy(), 0.95)
    return table.assign(ci_low=table["mean"] - half, ci_high=table["mean"] + half)


def holm(p: ArrayLike) -> Floats:
    """Holm's adjusted p values, any shape: rejecting those <= alpha keeps the family-wise error <= alpha.

    NaN stays NaN and does not count as a test. Holm 1979.
    """
    p = np.asarray(p, np.float64)
    adjusted = p.copy().ravel()
    tests = np.flatnonzero(~np.isnan(adjusted))
    tests = tests[np.argsort(adjusted[tests], kind="stable")]
    stepped = adjusted[tests] * np.arange(len(tests), 0, -1)
    adjusted[tests] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted.reshape(p.shape)


def paired_test(
    a: ArrayLike, b: ArrayLike, a_censored: ArrayLike = False, b_censored: ArrayLike = False
) -> dict[str, float]:
    """Wilcoxon signed-rank test of paired values [n], with the mean difference a - b and its 95 % t interval.

    Keys n, n_censored, n_unknown, mean_difference, ci_low, ci_high, statistic, p, effect_size, effect_low,
    effect_high. Pairs whose difference is not finite are left out of n, and the test drops zero differences.
    p is two-sided, exact up to 50 differences with or without ties, the normal approximation beyond.
    effect_size is the matched-pairs rank-biserial correlation in [-1, 1] (1: a larger in every pair that
    differs), with the bounds of effect_interval over the pairs that differ. If none does, p is 1, statistic
    and effect_size are 0 and its bounds NaN. All but the counts are NaN for n < 2. Wilcoxon 1945, Kerby 2014.

    A value flagged as censored, [n] or one flag for all, is that or larger. n_censored counts the pairs with
    one. Where both sides are, or the other one lies at or beyond the censored one, either may be larger: such
    a pair is left out of n and counted in n_unknown. Otherwise the censored side is the larger, by an unknown
    amount: these pairs share the largest rank (worst-rank scores, Lachin 1999), and the mean difference and
    its interval are NaN. If both sides of a pair are followed equally long and do not differ in
    distribution, swapping them changes signs but neither ranks nor which pairs are left out, so p is as exact
    as without censoring; sides followed for different times are not comparable. That pairs censored on both
    sides carry nothing: Woolson and Lachenbruch 1980.
    """
    with np.errstate(invalid="ignore"):
        differences = np.subtract(np.asarray(a, np.float64), np.asarray(b, np.float64))
    flags = (np.broadcast_to(np.asarray(f, bool), differences.shape) for f in (a_censored, b_censored))
    late, early = (flag[np.isfinite(differences)] for flag in flags)
    differences = differences[np.isfinite(differences)]
    known = ~(late | early) | (late & ~early & (differences > 0)) | (early & ~late & (differences < 0))
    counts = {
        "n": int(known.sum()),
        "n_censored": int((late | early).sum()),
        "n_unknown": int((~known).sum()),
    }
    differences, is_bound = differences[known], (late | early)[known]
    if len(differences) < 2:
        return counts | dict.fromkeys([*TEST_COLUMNS, *EFFECT_BOUNDS], np.nan)
    mean, low, high = np.full(3, np.nan) if is_bound.any() else map(float, t_interval(differences))
    largest = 2 * np.abs(differences).max() * np.sign(differences)
    differing, statistic, p, effect = _signed_ranks(np.where(is_bound, largest, differences))
    values = (mean, low, high, statistic, p, effect, *effect_interval(effect, differing))
    return counts | dict(zip([*TEST_COLUMNS, *EFFECT_BOUNDS], map(float, values), strict=True))


def effect_interval(effect: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a rank-biserial correlation of n differing pairs: (low, high) in [-1, 1], NaN for n = 0.

    What is estimated is 2 P(D + D' > 0) - 1 for two independent differences D, D'. A share of n independent
    trials has variance p (1 - p) / n; the share of positive pair sums has 4/3 of that where p = 1/2 and the
    differences are symmetric, so this is the score interval with 3n/4 trials. Unlike the Fisher transform it
    does not collapse at an effect of 1. Simulated coverage of the 95 % interval over normal, Laplace, t(2)
    and shifted exponential differences, n = 5 to 20: 94-100 % for effects up to 0.85, 87-97 % beyond.
    Wilson 1927.
    """
    if n == 0:
        return np.nan, np.nan
    from scipy.special import ndtri  # slow to import

    trials, z = 0.75 * n, float(ndtri((1 + level) / 2))
    half = z * np.sqrt(trials * (1 - effect**2) + z**2)
    low, high = (effect * trials - half) / (trials + z**2), (effect * trials + half) / (trials + z**2)
    return max(-1.0, float(low)), min(1.0, float(high))


def compare(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Paired tests, seed by seed, of conditions that differ in one factor only.

    outcomes: columns dataset, model, learning_rate, method, seed, outcome, value, and censored where values
    may be lower bounds (see paired_test; without the column none is). The result has a row per factor (the
    first four columns), pair a, b of its sorted levels, combination of the other factors and outcome for
    which either side has a value. Columns factor, a, b, dataset, model, learning_rate, method (as strings;
    the factor's own holds "*"), outcome, n (complete pairs less n_unknown), n_missing (seeds with a finite
    value on one side only), the results of paired_test for a - b, p_adjusted (Holm over all tests of one
    outcome) and missing. Incomplete pairs are refused: where n_missing > 0 the test's columns are NaN,
    n_censored and n_unknown 0, and missing tells which side lacks which seeds ("b: 3, 7"; else ""). Up to 50
    pairs that differ, p enumerates all assignments of signs to the ranks that occur, ties included: for few
    seeds it is the permutation test of the signed ranks, not an approximation of it. Raises ValueError when
    a seed has two values for one condition and outcome.
    """
    table = outcomes.loc[np.isfinite(outcomes["value"].to_numpy(np.float64))]
    rows = [row for factor in FACTORS for row in _compare_levels(table, factor)]
    result = pd.DataFrame(rows, columns=pd.Index(COMPARISON_COLUMNS))
    if rows:
        result["p_adjusted"] = result.groupby("outcome")["p"].transform(holm)
    return result


def _compare_levels(table: pd.DataFrame, factor: str) -> list[dict[str, object]]:
    keys = [*(other for other in FACTORS if other != factor), "outcome"]
    plain = pd.DataFrame({name: np.asarray(table[name]) for name in [*FACTORS, "outcome", "seed", "value"]})
    plain["censored"] = np.asarray(table["censored"], np.float64) if "censored" in table else 0.0
    if plain.duplicated([*FACTORS, "outcome", "seed"]).any():
        raise ValueError("a seed has more than one value for the same condition and outcome")
    wide = plain.pivot(index=[*keys, "seed"], columns=factor, values=["value", "censored"])
    rows: list[dict[str, object]] = []
    for a, b in combinations(sorted(plain[factor].unique()), 2):
        sides = wide[[("value", a), ("value", b), ("censored", a), ("censored", b)]].dropna(how="all")
        for group, pairs in sides.groupby(level=keys, sort=True):
            others = {key: str(level) for key, level in zip(keys, cast(tuple, group), strict=True)}
            names = {"factor": factor, "a": str(a), "b": str(b), factor: "*"}
            rows.append(names | others | _test_complete(cast(pd.DataFrame, pairs)))
    return rows


def _test_complete(pairs: pd.DataFrame) -> dict[str, object]:
    """The paired test of two columns of values and two of flags, or NaN and the seeds that a side lacks."""
    seeds, held = pairs.index.get_level_values("seed").to_numpy(), pairs.to_numpy(np.float64)
    values, censored = held[:, :2], held[:, 2:] == 1
    absent = np.isnan(values)
    lacking = [(side, seeds[gone]) for side, gone in zip("ab", absent.T, strict=True) if gone.any()]
    missing = "; ".join(f"{side}: {', '.join(map(str, gone))}" for side, gone in lacking)
    n_missing = int(absent.sum())
    test = paired_test([], []) if n_missing else paired_test(*values.T, *censored.T)
    n = len(seeds) - n_missing - int(test["n_unknown"])
    return {**test, "n": n, "n_missing": n_missing, "missing": missing}


def _signed_ranks(differences: Floats) -> tuple[int, float, float, float]:
    """How many differences are not zero; their Wilcoxon statistic, two-sided p, rank-biserial correlation."""
    # Accuracies come in steps, so differences tie but for the last bits: 12 digits make them equal again.
    differences = np.round(differences / (np.abs(differences).max() or 1.0), 12)
    differences = differences[differences != 0]
    if len(differences) == 0:
        return 0, 0.0, 1.0, 0.0
    weights = ranks(np.abs(differences))
    plus, minus = weights[differences > 0].sum(), weights[differences < 0].sum()
    statistic, effect = float(min(plus, minus)), float((plus - minus) / weights.sum())
    if len(differences) <= EXACT_UP_TO:
        return len(differences), statistic, _exact_p(weights, statistic), effect
    from scipy.stats import wilcoxon  # slow to import, and few have so many seeds

    _, p = cast(tuple[float, float], wilcoxon(differences))
    return len(differences), statistic, float(p), effect


def _exact_p(weights: Floats, statistic: float) -> float:
    """Probability, over all equally likely signs, of a smaller rank sum of at most statistic, ties or not."""
    # Average ranks are whole or half, so doubled they index the distribution of their sum over random signs.
    steps = np.rint(2 * weights).astype(int)
    chance = np.zeros(steps.sum() + 1)
    chance[0] = 1.0
    for step in steps:
        chance[step:] += chance[: len(chance) - step]
        chance /= 2
    return min(1.0, 2 * float(chance[: round(2 * statistic) + 1].sum()))


def _half_width(std: Floats, n: ArrayLike, level: float) -> Floats:
    """Half the width of the t interval of a mean; NaN for n < 2."""
    from scipy.special import stdtrit  # slow to import

    n = np.asarray(n, np.float64)
    enough = n >= 2
    freedom = np.where(enough, n - 1, 1.0)
    return np.where(enough, stdtrit(freedom, (1 + level) / 2) * std / np.sqrt(np.maximum(n, 1)), np.nan)
