"""The results in sentences, for the report and for the terminal."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from epochlens.measure.ranking import at_last_epoch
from epochlens.measure.statistics import t_interval
from epochlens.show import frames, lags, style
from epochlens.show.compared import differences
from epochlens.show.frames import CONTROLS, KEYS, Tables, groups, keep, numbers
from epochlens.show.lags import Lag, phrase
from epochlens.show.summary import (
    FAITHFULNESS,
    Trade,
    directions,
    in_order,
    label,
    last_quality,
    trade_offs,
)

__all__ = ["differences", "median_epoch", "quality_sentences", "sentences"]

SUMMARY = [*KEYS, "method", "median", "ci_low", "ci_high", "n_seeds", "n_images", "n_censored"]
NULLS = {
    "other_image": "between images of a class",
    "initial": "to the untrained network's",
    "edge": "to the input's edges",
    "random": "to random maps",
    "redraw": "between two draws of the method",
}


class Settled(NamedTuple):
    """When maps settle in words, whether that is known, and how many had not at the end."""

    known: bool
    text: str
    censored: str


def sentences(tables: Tables) -> list[str]:
    """What the sweep found: an overview, each configuration and method, then the differences that hold.

    Uses runs, epochs, settling_summary (or else stabilisation), agreement, stability_summary and comparisons;
    what is missing or empty is left out or said to be so.
    """
    epochs = groups(frames.rows(tables, "epochs", [*KEYS, "seed", "epoch", "accuracy"]))
    settled, behind, close = settling(tables), lags.lags(tables), closeness(tables)
    told = [missing_runs(tables), overview(behind)]
    for key in sorted({*epochs, *(k[:3] for k in (*settled, *behind, *close))}):
        told.append(item(style.named(key), accuracy(epochs.get(key))))
        for method in methods_of(key, settled, behind, close):
            own = (*key, method)
            when = timing(settled.get(own), behind.get(own))
            told.append(item(f"{style.named(key)}, {method}", when, close.get(own, "")))
    return [sentence for sentence in [*told, *differences(tables)] if sentence]


def item(name: str, *parts: str) -> str:
    """Sentences under a name, or nothing without any."""
    said = [f"{part}." for part in parts if part]
    said[1:] = [part[0].upper() + part[1:] for part in said[1:]]
    return f"{name}: {' '.join(said)}" if said else ""


def methods_of(key: tuple, *found: dict) -> list[str]:
    """The methods that some mappings from configuration and method hold for a configuration, sorted."""
    return sorted({k[3] for mapping in found for k in mapping if k[:3] == key})


def missing_runs(tables: Tables) -> str:
    """How many runs are not done, or nothing if all are."""
    runs = frames.rows(tables, "runs", ["status"])
    lacking = keep(runs, runs["status"] != "done")
    if lacking.empty:
        return ""
    counts = ", ".join(f"{len(part)} {status}" for (status,), part in groups(lacking, ["status"]).items())
    return f"{len(lacking)} of {len(runs)} runs are not done ({counts}), so some results rest on fewer seeds."


def overview(behind: dict[tuple, Lag]) -> str:
    """In how many configurations and methods maps settle after accuracy, before it, or it is open."""
    known = [lag for lag in behind.values() if lag.n > 0]
    if len(known) < 2:
        return ""
    orders = [lag.order for lag in known]
    after, before, still = (orders.count(order) for order in ("after", "before", "open"))
    told = [f"{count} {side} accuracy" for count, side in ((after, "after"), (before, "before")) if count]
    told += [f"{still} open"] if still else []
    return (
        f"Maps settle before or after accuracy? Of {len(known)} combinations of configuration and method: "
        f"{', '.join(told)}. Brackets hold 95 % intervals. Such lags follow the mean over a run's images."
    )


def accuracy(epochs: pd.DataFrame | None) -> str:
    """Mean accuracy at the last epoch with its interval."""
    if epochs is None or epochs.empty:
        return ""
    last = numbers(epochs, "epoch").max()
    values = numbers(epochs, "accuracy")[numbers(epochs, "epoch") == last]
    values = values[np.isfinite(values)]
    if not values.size:
        return ""
    mean, low, high = (float(value) for value in t_interval(values))
    seeds = "one seed" if values.size == 1 else f"{values.size} seeds"
    width = f", 95 % interval {low:.3f} to {high:.3f}" if np.isfinite(low) else ""
    return f"accuracy {mean:.3f} after epoch {last:g} ({seeds}{width})"


def timing(when: Settled | None, lag: Lag | None) -> str:
    """When the maps of a method settle, how long after accuracy, and how many had not at the end."""
    behind = phrase(lag) if lag is not None else ""
    if when is None:
        return f"maps settle {behind}" if behind else ""
    if not when.known:
        return f"{when.text}; {when.censored}" + (f"; maps settle {behind}" if behind else "")
    middle = f"maps settle {when.text}" + (f", {behind}" if behind else "")
    return f"{middle}; {when.censored}" if when.censored else middle


def settling(tables: Tables) -> dict[tuple, Settled]:
    """When each configuration's maps settle, by method: by image where that is known, else by seed."""
    chosen = {"metric": "cosine", "reference": "final"}
    frame = frames.rows(tables, "settling_summary", SUMMARY, **chosen)
    parts = groups(frame, [*KEYS, "method"])
    found = {key: median_of_images(part.iloc[0].to_dict()) for key, part in parts.items()}
    return found or settling_of_seeds(tables)


def median_of_images(row: dict) -> Settled:
    """A Kaplan-Meier median with its interval, and how many images are censored."""
    median, low, high = (float(row[name]) for name in ("median", "ci_low", "ci_high"))
    total, late = np.nan_to_num([float(row["n_images"]), float(row["n_censored"])])
    censored = f"{late:g} of {total:g} images had not settled at the end"
    seeds = "one seed" if row["n_seeds"] == 1 else f"{row['n_seeds']:g} seeds"
    if np.isnan(median):
        start = f", not before epoch {low:.3g} with 95 % confidence" if np.isfinite(low) else ""
        return Settled(
            False, f"the median epoch at which maps settle is not known{start} ({seeds})", censored
        )
    ends = f" [{lags.end(low)}, {lags.end(high)}]" if np.isfinite(low) else ""
    return Settled(True, f"at epoch {median:.3g}{ends} ({seeds})", censored)


def settling_of_seeds(tables: Tables) -> dict[tuple, Settled]:
    """Median settling epoch of the seeds' mean similarity, and how many seeds did not settle."""
    needed = [*KEYS, "seed", "method", "metric", "epoch", "censored"]
    frame, _ = frames.one_metric(frames.rows(tables, "stabilisation", needed))
    found = {}
    for key, part in groups(frame, [*KEYS, "method"]).items():
        middle, bound = median_epoch(part)
        if np.isnan(middle):
            continue
        late = int(numbers(part, "censored").sum())
        when = f"not before epoch {middle:g}" if bound else f"at epoch {middle:g}"
        seeds = "one seed" if len(part) == 1 else f"median of {len(part)} seeds"
        rest = f"{late} of {len(part)} seeds had not settled at the end" if late else ""
        found[key] = Settled(True, f"{when} ({seeds})", rest)
    return found


def median_epoch(frame: pd.DataFrame) -> tuple[float, bool]:
    """Median settling epoch of some seeds, and whether censored seeds make it only a lower bound."""
    epochs, censored = numbers(frame, "epoch"), numbers(frame, "censored") > 0
    known = np.isfinite(epochs)
    if not known.any():
        return float("nan"), False
    # Censored seeds sort last: the median is exact only if it lies among the settled ones.
    bound = np.count_nonzero(known) // 2 >= np.count_nonzero(known & ~censored)
    return float(np.median(epochs[known])), bool(bound)


def closeness(tables: Tables) -> dict[tuple, str]:
    """How similar final maps are between seeds and to unrelated maps, by configuration and method."""
    needed = [*KEYS, "method", "epoch", "mean", "ci_low", "ci_high"]
    between = last_epoch(frames.rows(tables, "agreement", needed, metric="cosine"))
    means = frames.rows(tables, "stability_summary", [*needed, "reference"], metric="cosine")
    null = {name: last_epoch(keep(means, means["reference"].astype(str) == name)) for name in NULLS}
    # Similarity to the untrained network has always been there; alone it does not tell what is unrelated.
    keys = {*between, *(key for name, rows in null.items() if name != "initial" for key in rows)}
    found = {}
    for key in keys:
        texts = [f"{name} {plain(null[ref][key]['mean'])}" for ref, name in NULLS.items() if key in null[ref]]
        seeds = "cosine of the final maps between seeds is not known"
        if key in between:
            row = between[key]
            ends = f" [{plain(row['ci_low'])}, {plain(row['ci_high'])}]" if np.isfinite(row["ci_low"]) else ""
            seeds = f"cosine of the final maps between seeds {plain(row['mean'])}{ends}"
        found[key] = f"{seeds}; {', '.join(texts)}" if texts else seeds
    return found


def plain(value: float) -> str:
    """A similarity in two digits, never -0.00."""
    return f"{round(value, 2) + 0.0:.2f}"


def last_epoch(frame: pd.DataFrame) -> dict[tuple, dict]:
    """The row of the last epoch of each configuration and method, where its mean is defined."""
    known = keep(frame, np.isfinite(numbers(frame, "mean")))
    last = known.sort_values("epoch", kind="stable").drop_duplicates([*KEYS, "method"], keep="last")
    return {key: part.iloc[0].to_dict() for key, part in groups(last, [*KEYS, "method"]).items()}


def quality_sentences(tables: Tables) -> list[str]:
    """How good the maps are: whether methods differ, each configuration, and what is undefined and why.

    Uses quality, quality_summary, quality_tests and quality_metrics; no sentences where none was measured.
    """
    last, ways, fronts = groups(last_quality(tables)), directions(tables), trade_offs(tables)
    needed = [*KEYS, "seed", "method", "epoch", "metric", "value", "n", "n_undefined"]
    rows = frames.rows(tables, "quality", needed)
    by_seed = groups(at_last_epoch(rows, "value"))
    told = [differing(tables)]
    for key, part in last.items():
        name = f"{style.named(key)}, epoch {numbers(part, 'epoch').max():g}"
        best = faithful(by_seed[key]) if key in by_seed else ""
        told.append(item(name, best, beaten(part, ways), in_front(fronts.get(key, []))))
    return [sentence for sentence in [*told, *undefined(tables, rows)] if sentence]


def differing(tables: Tables) -> str:
    """On how many metrics and configurations Friedman's test finds that methods differ."""
    tests = frames.rows(tables, "quality_tests", [*KEYS, "metric", "p_adjusted", "kendalls_w"])
    tested = keep(tests, np.isfinite(numbers(tests, "p_adjusted")))
    if tested.empty:
        return ""
    hold = int((numbers(tested, "p_adjusted") < 0.05).sum())
    agreement = float(np.median(numbers(tested, "kendalls_w")))
    return (
        f"Methods differ in {hold} of {len(tested)} combinations of configuration and metric (Friedman's "
        "test over seeds without the controls, p < 0.05 after Holm's correction); the seeds agree on the "
        f"order of methods with a median Kendall's W of {agreement:.2f} (1: always the same, 0: none)."
    )


def faithful(by_seed: pd.DataFrame) -> str:
    """The most faithful method, and by how much it leads in pairs of seeds; controls aside."""
    mine = (by_seed["metric"].astype(str) == FAITHFULNESS) & ~by_seed["method"].astype(str).isin(CONTROLS)
    frame = keep(by_seed, mine & np.isfinite(numbers(by_seed, "value")))
    if frame.empty:
        return ""
    table = frames.pivot(frame.astype({"method": str}), "seed", "method")
    order = table.mean().sort_values(ascending=False, kind="stable").index
    lead = table[order[0]].to_numpy(float)
    seeds = frames.counted([np.isfinite(lead).sum()])
    if len(order) == 1:
        return f"the {label(FAITHFULNESS)} of {order[0]}, the only method, is {with_ends(lead)}, {seeds}"
    ahead = lead - table[order[1]].to_numpy(float)
    first = f"most faithful is {order[0]} ({label(FAITHFULNESS)} {with_ends(lead)}, {seeds})"
    open_end = "" if float(t_interval(ahead)[1]) > 0 else ", so which of the two leads is open"
    return f"{first}, {with_ends(ahead)} ahead of {order[1]}{open_end}"


def with_ends(values: np.ndarray) -> str:
    """A mean in three digits with its 95 % t interval, where there is one."""
    mean, low, high = (float(value) for value in t_interval(values))
    return f"{mean:.3g} [{low:.3g}, {high:.3g}]" if np.isfinite(low) else f"{mean:.3g}"


def beaten(part: pd.DataFrame, ways: dict) -> str:
    """On which metrics a control is better than methods, by the means over seeds."""
    ranks = {(row["metric"], row["method"]): float(row["rank"]) for row in part.to_dict("records")}
    metrics = [name for name in in_order(part) if name in ways]
    present = frames.values(part, "method")
    methods = [name for name in present if name not in CONTROLS]
    controls = [name for name in CONTROLS if name in present]
    if not controls or not methods or not metrics:
        return ""
    told = []
    for control in controls:
        better = {
            metric: [m for m in methods if ranks.get((metric, m), 0) > ranks.get((metric, control), np.inf)]
            for metric in metrics
        }
        on = [f"{label(metric)} ({few(names, len(methods))})" for metric, names in better.items() if names]
        if on:
            told.append(f"the control {control} is better than methods on {listed(on)}")
    return "; ".join(told) or "no control is better than any method on any metric"


def in_front(trades: list[Trade]) -> str:
    """The methods that no other one betters in both faithfulness and stability, where there are several."""
    methods = [trade for trade in trades if trade.method not in CONTROLS]
    front = [trade.method for trade in methods if trade.front]
    if len(methods) < 2:
        return ""
    return f"no method betters {listed(front)} in both faithfulness and stability"


def few(names: list[str], total: int) -> str:
    """All, one or two names, or how many of how many."""
    if len(names) == total:
        return f"all {total}" if total > 1 else names[0]
    return listed(names) if len(names) <= 2 else f"{len(names)} of {total}"


def listed(names: list[str]) -> str:
    """Names with commas and an `and`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def undefined(tables: Tables, rows: pd.DataFrame) -> list[str]:
    """How many values of each metric are undefined over all epochs and methods, and the stated reason."""
    metrics = frames.rows(tables, "quality_metrics", ["metric", "reason"])
    reasons = dict(zip(metrics["metric"].astype(str), metrics["reason"].fillna(""), strict=True))
    by_metric, told = groups(rows, ["metric"]), []
    for metric in in_order(rows):
        lost = numbers(by_metric[metric,], "n_undefined").sum()
        if lost:
            reason = str(reasons.get(metric, "")).strip().rstrip(".").removeprefix("NaN ")
            share = f"{lost:g} of {numbers(by_metric[metric,], 'n').sum():g} values"
            told.append(f"Undefined: {share} of {label(metric)}" + (f" ({reason})." if reason else "."))
    return told
