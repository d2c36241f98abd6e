"""How good the maps are, in sentences for the report."""

from __future__ import annotations

import numpy as np
import pandas as pd

from epochlens.measure.ranking import at_last_epoch
from epochlens.measure.statistics import t_interval
from epochlens.show import frames, style
from epochlens.show.frames import CONTROLS, KEYS, Tables, groups, keep, numbers
from epochlens.show.prose import item, listed
from epochlens.show.summary import (
    FAITHFULNESS,
    Trade,
    directions,
    in_order,
    label,
    last_quality,
    trade_offs,
)


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
