"""The summaries that the terminal and the report show: a row per configuration and method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import numpy as np
import pandas as pd

from epochlens.measure import ranking, survival
from epochlens.measure.statistics import t_interval
from epochlens.show import frames
from epochlens.show.frames import CONTROLS, KEYS, Tables, groups, numbers

FAITHFULNESS, STABILITY, SPARSENESS = (
    "faithfulness_correlation",
    "relative_input_stability_kept",
    "sparseness",
)
# Quality metrics in the order in which they are shown: for figures and tables, and in short for the terminal.
LABELS = {
    FAITHFULNESS: ("faithfulness correlation", "faithful"),
    "deletion": ("deletion area", "deletion"),
    "insertion": ("insertion area", "insertion"),
    STABILITY: ("relative input stability, kept", "unstable"),
    "relative_input_stability": ("relative input stability", ""),
    "relative_input_stability_valid": ("share of kept predictions", ""),
    SPARSENESS: ("sparseness (Gini)", "sparse"),
    "randomisation_cosine": ("randomised top, cosine", "randomised"),
    "randomisation_spearman_abs": ("randomised top, rank corr.", ""),
}
ARROWS = {"higher": "\N{UPWARDS ARROW}", "lower": "\N{DOWNWARDS ARROW}"}
ENDS = ["mean", "ci_low", "ci_high"]
QUALITY = [*KEYS, "method", "epoch", "metric", "n_seeds", "n_values", "n_undefined", *ENDS, "rank"]


class Trade(NamedTuple):
    """What a method reaches: faithfulness and stability (means and ends of intervals), and sparseness.

    On the front no other method is at least as faithful and as stable and better in one of the two.
    """

    method: str
    faithfulness: tuple[float, float, float]
    stability: tuple[float, float, float]
    sparseness: float
    n_seeds: int
    front: bool


def summarise(tables: Tables) -> pd.DataFrame:
    """Accuracy, mean similarity of consecutive epochs, and settling epochs, as texts with 95 % t intervals.

    Uses runs of `epochs`, `stability_by_seed` and `stabilisation`; intervals are over seeds, settling epochs
    are Kaplan-Meier medians over seeds, of maps by the raw and by the calibrated cosine to the final map.
    """
    curves, settled = tables["stability_by_seed"], tables["stabilisation"]
    curves = curves.loc[(curves["metric"] == "cosine") & (curves["reference"] == "previous")]
    similarity = groups(curves, [*KEYS, "method"])
    epochs = groups(tables["epochs"], KEYS)
    calibrated = groups(settled.loc[settled["metric"] == "calibrated_cosine"], [*KEYS, "method"])
    rows = []
    for key, group in groups(settled.loc[settled["metric"] == "cosine"], [*KEYS, "method"]).items():
        dataset, model, rate, method = key
        unsettled = group["accuracy_censored"] if "accuracy_censored" in group else np.zeros(len(group))
        on_scale = calibrated.get(key, group.head(0))
        rows.append(
            {
                "configuration": f"{dataset} {model} lr {rate:g}",
                "method": method,
                "seeds": len(group),
                "final accuracy": interval(final_accuracy(epochs[key[:3]])),
                "cosine to previous": interval(seed_means(similarity.get(key))),
                "maps settle": settled_when(numbers(group, "epoch"), numbers(group, "censored")),
                "calibrated": settled_when(numbers(on_scale, "epoch"), numbers(on_scale, "censored")),
                "accuracy settles": settled_when(numbers(group, "accuracy_epoch"), np.asarray(unsettled)),
            }
        )
    return pd.DataFrame(rows)


def settled_when(epochs: np.ndarray, censored: np.ndarray) -> str:
    """The Kaplan-Meier median of the seeds' settling epochs [seeds], and how many seeds had not settled.

    "not before epoch N" where the median is not reached, "not yet" if no seed had settled, "undefined" if
    nothing is known.
    """
    known = np.isfinite(epochs)
    late = np.asarray(censored, bool)[known]
    if not known.any():
        return "undefined"
    if late.all():
        return "not yet"
    middle, bound = survival.median_or_bound(epochs[known], ~late)
    rest = f" ({late.sum()} did not)" if late.any() else ""
    return f"{'not before ' if bound else ''}epoch {middle:g}{rest}"


def final_accuracy(epochs: pd.DataFrame) -> np.ndarray:
    """Accuracy of each seed after its last epoch, [seeds]."""
    last = epochs.sort_values("epoch").drop_duplicates("seed", keep="last")
    return numbers(last, "accuracy")


def seed_means(curves: pd.DataFrame | None) -> np.ndarray:
    """Mean over epochs of each seed's values, [seeds]; empty without curves."""
    if curves is None:
        return np.array([])
    return np.array([np.nanmean(numbers(seed, "value")) for _, seed in curves.groupby("seed")])


def interval(values: np.ndarray) -> str:
    """Mean with its 95 % t interval, or the mean alone where there is no interval, or "undefined"."""
    if not len(values):
        return "undefined"
    mean, low, high = (float(x) for x in t_interval(values))
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]" if np.isfinite(low) else f"{mean:.3f}"


def label(metric: str) -> str:
    """A quality metric in words."""
    return LABELS.get(metric, (metric.replace("_", " "),))[0]


def headed(metric: str, ways: Mapping[str, str], short: bool = False) -> str:
    """A metric's name with an arrow up or down where higher or lower is better."""
    return f"{LABELS[metric][1] if short else label(metric)} {ARROWS.get(ways.get(metric, ''), '')}".strip()


def in_order(frame: pd.DataFrame) -> list[str]:
    """The quality metrics of a table, in the order in which they are shown."""
    found = set(map(str, frames.values(frame, "metric")))
    return [name for name in LABELS if name in found] + sorted(found.difference(LABELS))


def directions(tables: Tables) -> dict[str, ranking.Direction]:
    """Which way each quality metric is better, where it has a way; from quality_metrics."""
    frame = frames.rows(tables, "quality_metrics", ["metric", "better"])
    named = zip(frame["metric"].astype(str), frame["better"], strict=True)
    return {name: cast(ranking.Direction, way) for name, way in named if way in ARROWS}


def last_quality(tables: Tables) -> pd.DataFrame:
    """The rows of quality_summary at each configuration's last epoch with a defined value."""
    return ranking.at_last_epoch(frames.rows(tables, "quality_summary", QUALITY), "mean")


def quality_by_configuration(tables: Tables) -> dict[tuple, pd.DataFrame]:
    """For each configuration a row per method, the best mean rank first: every metric as text, and the rank.

    A text is the mean with its interval, `#` and the rank among methods, and how many values are undefined.
    """
    ways, mean_ranks = directions(tables), ranked(tables)
    found = {}
    for key, part in groups(last_quality(tables)).items():
        rows = []
        for (method,), own in groups(part, ["method"]).items():
            rank, count = mean_ranks.get((*key, method), (np.nan, 0))
            texts = {row["metric"]: quality_text(row, count > 0) for row in own.to_dict("records")}
            named = {headed(name, ways): texts.get(name, "") for name in in_order(part)}
            ranks = {"mean rank": rank, "metrics ranked": count} if count else {}
            rows.append({"method": method, **ranks, **named})
        rows.sort(key=lambda row: row.get("mean rank", np.inf))
        found[key] = pd.DataFrame(rows)
    return found


def ranked(tables: Tables) -> dict[tuple, tuple[float, int]]:
    """Mean rank and number of metrics in it, by configuration and method; not of a method that is alone."""
    table = ranking.mean_ranks(frames.rows(tables, "quality_summary", QUALITY))
    several = {key for key, part in groups(table).items() if len(part) > 1}
    rows = table.itertuples(index=False, name=None)
    return {row[:4]: (row[5], row[6]) for row in rows if row[6] and row[:3] in several}


def quality_text(row: dict, has_peers: bool) -> str:
    """One metric of one method: mean, interval, rank, and how many values are undefined."""
    lost = f"{row['n_undefined']:g} of {row['n_values']:g} undefined" if row["n_undefined"] else ""
    if not np.isfinite(row["mean"]):
        return lost or "undefined"
    ends = f" [{row['ci_low']:.3g}, {row['ci_high']:.3g}]" if np.isfinite(row["ci_low"]) else ""
    rank = f" #{row['rank']:g}" if has_peers and np.isfinite(row["rank"]) else ""
    return f"{row['mean']:.3g}{ends}{rank}" + (f" ({lost})" if lost else "")


def summarise_quality(tables: Tables) -> pd.DataFrame:
    """Means of the main quality metrics at the last epoch as texts, a row per configuration and method.

    Uses quality_summary and quality_metrics; empty where no quality was measured.
    """
    last, ways, mean_ranks = last_quality(tables), directions(tables), ranked(tables)
    metrics = [name for name in in_order(last) if LABELS.get(name, ("", ""))[1]]
    rows = []
    for key, part in groups(last, [*KEYS, "method"]).items():
        dataset, model, rate, method = key
        means = dict(zip(part["metric"].astype(str), numbers(part, "mean"), strict=True))
        row: dict[str, str] = {"configuration": f"{dataset} {model} lr {rate:g}", "method": method}
        for name in metrics:
            row[headed(name, ways, short=True)] = (
                f"{means[name]:.3g}" if np.isfinite(means.get(name, np.nan)) else "undefined"
            )
        if key in mean_ranks:
            row["mean rank"] = f"{mean_ranks[key][0]:.2g}"
        rows.append((key[:3], mean_ranks.get(key, (np.inf, 0))[0], row))
    rows.sort(key=lambda ranked_row: ranked_row[:2])
    return pd.DataFrame([row for *_, row in rows]).fillna("")


def trade_offs(tables: Tables) -> dict[tuple, list[Trade]]:
    """The methods of each configuration whose faithfulness and stability are defined, at the last epoch.

    Controls are not on the front and keep no method off it. Uses quality_summary.
    """
    found = {}
    for key, part in groups(last_quality(tables)).items():
        at = {(row["method"], row["metric"]): row for row in part.to_dict("records")}
        reached = []
        for method in frames.values(part, "method"):
            x, y = (ends_of(at.get((method, name))) for name in (FAITHFULNESS, STABILITY))
            size = ends_of(at.get((method, SPARSENESS)))[0]
            if np.isfinite([x[0], y[0]]).all():
                seeds = int(at[method, FAITHFULNESS]["n_seeds"])
                reached.append(Trade(str(method), x, y, size, seeds, False))
        points = [[t.faithfulness[0], t.stability[0]] for t in reached if t.method not in CONTROLS]
        if points:
            best = iter(ranking.pareto(points, ["higher", "lower"]))
            found[key] = [t if t.method in CONTROLS else t._replace(front=bool(next(best))) for t in reached]
    return found


def ends_of(row: dict | None) -> tuple[float, float, float]:
    """A mean and the ends of its interval; all NaN without a row."""
    return (row["mean"], row["ci_low"], row["ci_high"]) if row else (np.nan, np.nan, np.nan)
