"""When maps settle, in words, for the top of the first page: from the tables, else from one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from dash import html

from epochlens.measure import settling, survival
from epochlens.show import frames, style
from epochlens.show.explorer import data
from epochlens.show.explorer.data import Run, Source
from epochlens.show.explorer.figures import TAU
from epochlens.show.lags import CALIBRATED, RAW

MOST_LINES = 4
"""configurations told on the first page"""
CHOICE = {"metric": RAW, "reference": "final"}


class Settled(NamedTuple):
    """When the maps of a method settle: a median epoch (NaN where it is not known) and a range around it."""

    method: str
    median: float
    low: float
    high: float
    interval: bool
    """whether the range is a 95 % interval, else it holds the middle half of the images"""
    images: float


def answer(source: Source, runs: Mapping[str, Run], run: Run) -> list[Any]:
    """The answer of the sweep, the run's configuration first; of the run alone where there are no tables."""
    found = of_tables(source)
    mine = next((key for key in found if same_configuration(key, run)), None)
    if mine is None:
        return of_run(source, run)
    last, accuracy, on_scale = last_epochs(source), accuracy_settles(source), of_tables(source, CALIBRATED)
    keys = [mine, *(key for key in found if key != mine)]
    found = {key: in_order(told, run.methods) for key, told in found.items()}
    lines = [
        html.Li(
            [
                html.B(style.named(key)),
                ": ",
                sentence(found[key], last.get(key), accuracy.get(key)),
                calibrated(in_order(on_scale.get(key, []), run.methods)),
            ],
            className="mine" if key == mine else "",
        )
        for key in keys[:MOST_LINES]
    ]
    rest = len(keys) - MOST_LINES
    more = [html.Li(f"{rest} more on the page Stability.")] if rest > 0 else []
    waiting = [one for one in runs.values() if one.status != "done"]
    late = f" {len(waiting)} of {len(runs)} runs are not done and not in it." if waiting else ""
    scale = (
        " Calibrated: the same, where 0 is another image of the class and 1 the same map." if on_scale else ""
    )
    return [html.Ul([*lines, *more]), html.P(meaning(found[mine]) + scale + late, className="caption")]


def in_order(settled: list[Settled], methods: Sequence[str]) -> list[Settled]:
    """As the run recorded them, others at the end."""
    return sorted(settled, key=lambda one: (*methods, one.method).index(one.method))


def of_tables(source: Source, metric: str = RAW) -> dict[tuple, list[Settled]]:
    """What settling_summary says of each configuration by a metric; empty without it."""
    choice = {**CHOICE, "metric": metric}
    table, images = data.table_of(source, "settling_summary"), data.table_of(source, "settling_images")
    held = {"summary": table, "images": images}
    tables = {name: frame for name, frame in held.items() if frame is not None}
    rows = frames.rows(tables, "summary", [*frames.KEYS, "method", "median", "ci_low", "ci_high"], **choice)
    single = frames.rows(tables, "images", [*frames.KEYS, "method", "epoch", "censored"], **choice)
    parts = frames.groups(single, [*frames.KEYS, "method"])
    found: dict[tuple, list[Settled]] = {}
    for key, part in frames.groups(rows, [*frames.KEYS, "method"]).items():
        row: Any = part.iloc[0].to_dict()
        low, high, known = float(row["ci_low"]), float(row["ci_high"]), bool(np.isfinite(row["ci_low"]))
        if not known and key in parts:
            low, high = middle_half(
                frames.numbers(parts[key], "epoch"), frames.numbers(parts[key], "censored")
            )
        one = Settled(str(row["method"]), float(row["median"]), low, high, known, len(parts.get(key, ())))
        found.setdefault(key[:3], []).append(one)
    return found


def middle_half(epochs: np.ndarray, censored: np.ndarray) -> tuple[float, float]:
    """Quartiles of settling epochs; inf where too many had not settled, NaN without any."""
    times = np.where(censored > 0, np.inf, epochs)[np.isfinite(epochs)]
    if not len(times):
        return np.nan, np.nan
    return float(np.quantile(times, 0.25, method="lower")), float(np.quantile(times, 0.75, method="higher"))


def sentence(settled: list[Settled], last: float | None, accuracy: float | None) -> str:
    """When each method's maps settle, and the test accuracy."""
    told = [f"{one.method.replace('_', ' ')} maps {when(one)}" for one in settled]
    if accuracy is not None and np.isfinite(accuracy):
        told.append(f"test accuracy at epoch {accuracy:g}")
    epochs = f" (of {last:g} epochs)" if last is not None else ""
    return f"{', '.join(told)}{epochs}."


def calibrated(settled: list[Settled]) -> str:
    """When maps settle by the calibrated cosine, in short; nothing where that is not known."""
    told = [f"{one.method.replace('_', ' ')} {when(one).removeprefix('settle at ')}" for one in settled]
    return f" Calibrated: {', '.join(told)}." if told else ""


def when(one: Settled) -> str:
    """`settle at epoch 6 (5 to 8)`."""
    if not np.isfinite(one.median):
        return "do not settle" + (f" before epoch {one.low:g}" if np.isfinite(one.low) else "")
    if np.isnan(one.low):
        return f"settle at epoch {one.median:g}"
    high = f"{one.high:g}" if np.isfinite(one.high) else "after the last"
    return f"settle at epoch {one.median:g} ({one.low:g} to {high})"


def meaning(settled: list[Settled]) -> str:
    """What settled means, and what the numbers in parentheses are."""
    sure = any(one.interval for one in settled)
    inside = (
        "in parentheses the 95 % interval"
        if sure
        else "in parentheses the middle half of the images (it takes 3 seeds for a 95 % interval)"
    )
    return (
        f"Settled: from this epoch on an image's map stays as good as equal to its map after the last epoch "
        f"(cosine similarity at least {TAU:g}). Medians over seeds and images, {inside}."
    )


def same_configuration(key: tuple, run: Run) -> bool:
    """Whether a run has that dataset, model and learning rate."""
    about, rate = run.record, float(run.record.get("learning_rate") or 0)
    return key[:2] == (about.get("dataset"), about.get("model")) and bool(np.isclose(key[2], rate, rtol=1e-9))


def last_epochs(source: Source) -> dict[tuple, float]:
    """The last epoch of each configuration in the tables."""
    table = data.table_of(source, "epochs")
    parts = frames.groups(table) if table is not None else {}
    return {key: float(frames.numbers(part, "epoch").max()) for key, part in parts.items()}


def accuracy_settles(source: Source) -> dict[tuple, float]:
    """The median epoch at which each configuration's accuracy settles."""
    table = data.table_of(source, "settling_summary")
    rows = frames.rows(
        {"t": table} if table is not None else {}, "t", [*frames.KEYS, "accuracy_median"], **CHOICE
    )
    return {key: float(part["accuracy_median"].iloc[0]) for key, part in frames.groups(rows).items()}


def of_run(source: Source, run: Run) -> list[Any]:
    """The answer of one run's own maps; while it lasts its newest epoch stands for the last."""
    told = []
    for method in run.methods:
        try:
            epochs, late = image_epochs(source, run, method)
        except data.UNREADABLE:
            continue
        if not len(epochs):
            continue
        median = survival.cluster_bootstrap_median(epochs[None], ~late[None], np.random.default_rng(0), 1)[0]
        low, high = middle_half(epochs.astype(float), late.astype(float))
        told.append(Settled(method, median, low, high, False, len(epochs)))
    if not told:
        return [html.P("Nothing to tell yet: the first two trained epochs are still to come.")]
    done = run.status == "done"
    newest = float(np.max(frames.numbers(data.metrics_of(source, run), "epoch")))
    ends = (
        None if done else f" So far: epoch {newest:g} of {run.record.get('epochs', '?')}, it may still move."
    )
    only = " This run alone; all seeds together are told once the sweep is analysed." if done else ""
    line = html.Li(
        [html.B(run.title), ": ", sentence(told, newest, None), html.Em(ends or "")], className="mine"
    )
    return [html.Ul([line]), html.P(meaning(told) + only, className="caption")]


def image_epochs(source: Source, run: Run, method: str) -> tuple[np.ndarray, np.ndarray]:
    """The settling epoch of each image's maps [N] and whether it is censored; empty before two epochs."""
    maps = data.maps_of(source, run, method)
    trained = maps.epochs >= 1
    if trained.sum() < 2:
        return np.empty(0, int), np.empty(0, bool)
    values = data.cosines_of(source, run, method)["final"][trained]
    return settling.settling_epoch(values.T, maps.epochs[trained], TAU)


def settled_words(source: Source, run: Run, method: str, position: int) -> str:
    """When one image's maps settle, for below its map; nothing before two epochs or while the run lasts."""
    if run.status != "done":
        return ""
    epochs, late = image_epochs(source, run, method)
    if not len(epochs):
        return ""
    return "not settled at the end" if late[position] else f"settled from epoch {epochs[position]}"
