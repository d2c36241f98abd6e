"""Which attribution methods are better: summaries over seeds, ranks, fronts, and whether methods differ.

Which way a metric is better is an argument, since metrics are defined where maps are made. As everywhere the
seed is the unit: values are averaged over images before they come here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from epochlens.measure.similarity import Floats, ranks
from epochlens.measure.statistics import holm, summarise

Direction = Literal["higher", "lower"]

CONDITION = ["dataset", "model", "learning_rate"]
QUALITY_KEYS = [*CONDITION, "method", "epoch", "metric"]
MEANS = ["mean", "std", "ci_low", "ci_high"]
SUMMARY_COLUMNS = [*QUALITY_KEYS, "n_seeds", "n_values", "n_undefined", *MEANS, "rank"]
RANK_COLUMNS = [*CONDITION, "method", "epoch", "mean_rank", "n_metrics"]
TEST_KEYS = [*CONDITION, "epoch", "metric"]
TEST_COLUMNS = [*TEST_KEYS, "n_seeds", "n_methods", "statistic", "p", "p_adjusted", "kendalls_w"]
# A larger value times its sign is a worse one.
SIGNS = {"higher": -1.0, "lower": 1.0}


def summarise_quality(by_seed: pd.DataFrame, directions: Mapping[str, str | None]) -> pd.DataFrame:
    """Mean, standard deviation, 95 % t interval over seeds and rank among methods of every quality metric.

    by_seed has a row per seed with columns dataset, model, learning_rate, method, epoch, metric, value, n,
    n_undefined; directions tells which way each metric is better. Result: those keys, n_seeds (seeds with a
    defined value), n_values and n_undefined (n and n_undefined summed over seeds), mean, std, ci_low, ci_high
    as in statistics.summarise, and rank: 1 for the best mean among the methods of a dataset, model,
    learning_rate, epoch and metric, ties sharing their average rank, NaN where the metric has no direction or
    the mean is NaN.
    """
    summary = summarise(by_seed.assign(reference="")).drop(columns="reference")
    counts = by_seed.groupby(QUALITY_KEYS, observed=True, sort=True, dropna=False)["n"].sum()
    sign = summary["metric"].astype(str).map(lambda name: SIGNS.get(str(directions.get(name)), np.nan))
    badness = summary["mean"] * sign.astype(float)
    peers = [summary[key] for key in TEST_KEYS]
    rank = badness.groupby(peers, observed=True, dropna=False).rank(method="average")
    return summary.assign(n_values=np.asarray(counts), rank=rank).reindex(columns=SUMMARY_COLUMNS)


def at_last_epoch(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows of each dataset, model and learning rate at its last epoch with a finite value in a column."""
    epochs = frame["epoch"].where(np.isfinite(frame[column].to_numpy(np.float64)))
    last = epochs.groupby([frame[key] for key in CONDITION], observed=True, dropna=False).transform("max")
    return frame.loc[np.asarray(frame["epoch"] == last)]


def mean_ranks(summary: pd.DataFrame) -> pd.DataFrame:
    """Mean over metrics of each method's rank at the last epoch, from the table of summarise_quality.

    Columns dataset, model, learning_rate, method, epoch, mean_rank, n_metrics: the metrics in the mean, those
    with a direction and a defined value. mean_rank is NaN where there is none.
    """
    last = at_last_epoch(summary, "mean")
    by_method = last.groupby(RANK_COLUMNS[:5], observed=True, sort=True)
    return by_method.agg(mean_rank=("rank", "mean"), n_metrics=("rank", "count")).reset_index()


def pareto(points: ArrayLike, better: Sequence[Direction]) -> NDArray[np.bool_]:
    """Which points [M, K] no other one dominates, [M]: none is at least as good in all K and better in one.

    Equal points do not dominate each other. A point with a NaN is never on the front and dominates none.
    Raises KeyError for a direction that is neither "higher" nor "lower".
    """
    costs = np.asarray(points, np.float64) * np.array([SIGNS[way] for way in better])
    no_worse = (costs[:, None] <= costs[None]).all(-1)
    dominated = (no_worse & (costs[:, None] < costs[None]).any(-1)).any(0)
    return np.asarray(~dominated & ~np.isnan(costs).any(-1))


def friedman(values: ArrayLike) -> dict[str, float]:
    """Friedman's test of whether methods differ, values [N, K] of N seeds and K methods: do ranks agree?

    Keys n_seeds (seeds without a NaN), n_methods, statistic, p (chi-squared with K - 1 degrees of freedom,
    rough for few seeds) and kendalls_w, the agreement of the seeds on the order in [0, 1]; ties share average
    ranks. The last three are NaN for fewer than 3 seeds or methods, or if all values tie. Friedman 1937,
    Kendall and Babington Smith 1939.
    """
    table = np.asarray(values, np.float64)
    table = table[np.isfinite(table).all(axis=1)]
    n, k = table.shape
    nothing = {"n_seeds": n, "n_methods": k} | dict.fromkeys(["statistic", "p", "kendalls_w"], np.nan)
    if n < 3 or k < 3:
        return nothing
    deviations = ranks(table) - (k + 1) / 2
    total = float((deviations**2).sum())
    if total == 0:
        return nothing
    from scipy.special import chdtrc  # slow to import

    agreement = float((deviations.sum(axis=0) ** 2).sum() / (n * total))
    statistic = n * (k - 1) * agreement
    return nothing | {"statistic": statistic, "p": float(chdtrc(k - 1, statistic)), "kendalls_w": agreement}


def method_differences(by_seed: pd.DataFrame) -> pd.DataFrame:
    """Friedman's test over seeds of whether the methods differ, by condition and metric at the last epoch.

    by_seed as in summarise_quality, with a column seed. Columns dataset, model, learning_rate, epoch, metric,
    the results of friedman and p_adjusted (Holm over the whole table). Methods without any defined value are
    left out, then seeds that lack one. Controls differ from methods by design: leave them out before.
    """
    last = at_last_epoch(by_seed, "value")
    rows = []
    for key, group in last.groupby(TEST_KEYS, observed=True, sort=True):
        wide = group.astype({"method": str}).pivot(index="seed", columns="method", values="value")
        tested = friedman(cast(Floats, wide.dropna(axis=1, how="all").to_numpy(np.float64)))
        rows.append(dict(zip(TEST_KEYS, cast(tuple, key), strict=True)) | tested)
    table = pd.DataFrame(rows, columns=pd.Index(TEST_COLUMNS))
    return table.assign(p_adjusted=holm(table["p"].to_numpy(np.float64)))
