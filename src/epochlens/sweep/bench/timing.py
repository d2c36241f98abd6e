"""Timing two ways of doing the same work in turn, and what the machine could do at best."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

Clock = Callable[[], float]
Timed = Callable[[], tuple[float, Any]]
"""does a piece of work; the seconds it took, and its result"""


class Unavailable(RuntimeError):
    """This machine lacks what a part needs."""


class Comparison(NamedTuple):
    """One piece of work done by us and by a peer."""

    part: str
    task: str
    peer: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    difference: Callable[[Any, Any], float]
    """how far the two results are apart"""
    tolerance: float
    target: float
    """the ratio that is promised"""
    floor: float = float("nan")
    """seconds that the machine needs for it at best, where that can be computed"""
    clock: Clock = time.process_time
    repeats: int | None = None


class Result(NamedTuple):
    """What a comparison measured: medians in seconds, and the ratio with its spread over repeats."""

    part: str
    task: str
    peer: str
    ours: float
    theirs: float
    ratio: float
    """median time of the peer over median time of ours; NaN when the results differ"""
    ratio_low: float
    ratio_high: float
    target: float
    limit: float
    """fraction of the machine's limit that we reach, NaN where it cannot be computed"""
    difference: float
    note: str = ""


def measure(
    comparison: Comparison, repeats: int, run_ours: Timed | None = None, run_theirs: Timed | None = None
) -> Result:
    """Runs both once to warm up and to compare their results, then in turn, and takes medians.

    The spread is that of the ratios of neighbouring repeats (their quartiles). Both run in this process
    unless told how to run them.
    """
    c = comparison
    run_ours = run_ours or partial(timed, c.ours, c.clock)
    run_theirs = run_theirs or partial(timed, c.theirs, c.clock)
    difference = c.difference(run_ours()[1], run_theirs()[1]) if c.repeats != 1 else float("nan")
    ours, theirs, results = [], [], None
    for _ in range(c.repeats or repeats):
        seconds, mine = run_ours()
        ours.append(seconds)
        seconds, other = run_theirs()
        theirs.append(seconds)
        results = mine, other
    if c.repeats == 1 and results is not None:  # too long to run once more for comparing only
        difference = c.difference(*results)
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    low, high = np.quantile(ratios, [0.25, 0.75])
    median, peer = statistics.median(ours), statistics.median(theirs)
    same = difference <= c.tolerance
    note = "" if same else f"results differ by {difference:.1e} (allowed {c.tolerance:.0e}): no ratio"
    ratio, low, high = (peer / median, low, high) if same else (float("nan"),) * 3
    return Result(
        c.part, c.task, c.peer, median, peer, ratio, float(low), float(high), c.target,
        c.floor / median, difference, note,
    )  # fmt: skip


def one_thread() -> None:
    """One thread for everyone, as a trial has."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of processes started from here
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)  # of NumPy's libraries, which are loaded already


def timed(function: Callable[[], Any], clock: Clock) -> tuple[float, Any]:
    """Seconds by the clock that one call takes, and its result."""
    started = clock()
    result = function()
    return max(clock() - started, 1e-9), result


def largest_difference(a: Any, b: Any) -> float:
    """Largest absolute difference over the largest value of b, of arrays or sequences of arrays."""
    if isinstance(a, Sequence):
        return max(largest_difference(x, y) for x, y in zip(a, b, strict=True))
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or (np.isfinite(a) != np.isfinite(b)).any():
        return float("inf")
    both = np.isfinite(a)
    scale = np.abs(b[both]).max(initial=0) or 1.0
    return float(np.abs(a[both] - b[both]).max(initial=0) / scale)


def relative_norm(a: Any, b: Any) -> float:
    """Norm of a - b over the norm of b.

    For gradients in float32: a unit that is zero to rounding may be on in one and off in the other, which
    shows in a few values and not in their norm.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b)) if a.shape == b.shape else float("inf")


def copy_bandwidth(seconds: float = 0.5) -> float:
    """Measured bytes per second of copying an array too large for the caches (read and write counted)."""
    source = np.ones(2**25, np.float32)
    target = source.copy()  # its pages are there, so that copying is all that is timed
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        best = min(best, timed(lambda: np.copyto(target, source), time.process_time)[0])
    return 2 * source.nbytes / best
