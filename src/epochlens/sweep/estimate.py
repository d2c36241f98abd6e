"""What a dry run tells: time and disk of a sweep, from the rehearsal of a run of each dataset and model.

A rehearsal gives CPU time. What else the machine does counts once, as `crowding`, when that becomes a
duration. What only Ray can tell, its start and that of its workers, is taken in proportion to the time in
which a process loads PyTorch and Ray here.
"""

from __future__ import annotations

import heapq
import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from epochlens.config import Run, Sweep
from epochlens.lazy import LazyModule
from epochlens.learn.data import Facts
from epochlens.sweep import analysis, rehearsal
from epochlens.sweep.plan import Task, pack
from epochlens.sweep.progress import duration, grid_table

if TYPE_CHECKING:
    from epochlens.show import figures
else:
    figures = LazyModule("epochlens.show.figures")

CROWDED = 1.2
"""times slower than alone: below that the machine counts as free"""
PANELS, FIGURE_TIMES = 24, 2.0
"""of the figure that is timed, at most; a real one has more in it, and takes about so many times as long"""
RAY_WAITS, RAY_LOADS = 4.0, 1.5
"""the start of the sweep and of Ray: seconds, and times that a process takes to load"""
WORKER_LOADS, ANALYSIS_LOADS = 1.2, 0.8
"""the same of the first trials, and of the first measurements and figures"""
LOADED = "import torch, ray.tune, pandas"


def tell(
    console: Console,
    sweep: Sweep,
    facts: Mapping[str, Facts],
    tasks: Sequence[Task],
    folder: Path,
    plots: Path,
) -> dict[str, Any]:
    """Prints the plan of a dry run and returns it as a document. Leaves nothing behind."""
    console.print("rehearsing a run of each dataset and model ...")
    rehearsal.slowness()  # before there is anything of ours beside it
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    loading = subprocess.Popen([sys.executable, "-c", LOADED], stderr=subprocess.DEVNULL)
    left = [task for task in tasks if task.status != "done"]
    costs = run_costs(tasks, sweep, facts)
    rows = [
        [*key, *counts(tasks, key), f"{cost.seconds:.1f}", f"{cost.megabytes:.1f}"]
        for key, cost in costs.items()
    ]
    console.print(grid_table(rows, ["dataset", "model", "runs", "done", "CPU s per run", "MB per run"]))
    conditions = len({(task.run.dataset, task.run.model, task.run.learning_rate) for task in tasks})
    figure, figure_megabytes = rehearsal.figure_cost(min(conditions, PANELS), tasks[0].run)
    loading.wait()
    load = cpu_seconds(resource.getrusage(resource.RUSAGE_CHILDREN)) - cpu_seconds(spent)
    slots = max(1, int((os.cpu_count() or 1) / sweep.cpus_per_trial))
    lengths = {task.run.run_id: costs[kind(task)].seconds * share_left(task) for task in left}
    trials = pack(left, sweep.replicas if isinstance(sweep.replicas, int) else 1)
    durations = [sum(lengths[run_id] for run_id in trial) for trial in trials]
    crowd = crowding(min(slots, max(1, len(trials))) + 1)  # the driver and Ray are busy too
    pictures = len(figures.FIGURES) + len(costs) + 1
    measured = sum(costs[kind(task)].analysis for task in tasks) + pictures * FIGURE_TIMES * figure
    stages = {
        "start": RAY_WAITS + RAY_LOADS * load * crowd,
        "train": (WORKER_LOADS * load + makespan(durations, slots)) * crowd if left else 0.0,
        "analysis": (ANALYSIS_LOADS * load + measured / slots) * crowd,
    }
    if not left and analysis.is_current(folder, plots):
        stages = dict.fromkeys(stages, 0.0)
    seconds = sum(stages.values())
    megabytes = sum(costs[kind(task)].megabytes for task in left)
    megabytes += 2 * pictures * figure_megabytes if seconds else 0.0  # each is in the report too
    say(console, stages, slots, crowd, megabytes)
    console.print(f"results would be in {folder}, figures in {plots}")
    known = math.isfinite(seconds)
    return {
        "name": sweep.name,
        "results": str(folder),
        "plots": str(plots),
        "runs_total": len(tasks),
        "runs_done": len(tasks) - len(left),
        "seconds": seconds if known else None,
        "stages": stages if known else None,
        "megabytes": megabytes,
        "runs": [{"run_id": t.run.run_id, "status": t.status} for t in tasks],
    }


def say(console: Console, stages: Mapping[str, float], slots: int, crowd: float, megabytes: float) -> None:
    """The sum of the stages and what it is made of."""
    if not math.isfinite(sum(stages.values())):
        console.print(f"time unknown (a dataset is not here yet), {megabytes:.0f} MB")
        return
    start, train, measuring = (duration(stages[name]) for name in ("start", "train", "analysis"))
    console.print(
        f"about {duration(sum(stages.values()))}, {megabytes:.0f} MB: start of Ray {start}, runs {train} "
        f"with {slots} at once on this machine's CPUs, analysis and figures {measuring}"
    )
    if crowd > CROWDED:
        console.print(f"(other work on this machine makes that {crowd:.1f} times as long as it would be)")


def kind(task: Task) -> tuple[str, str]:
    """What runs that cost the same have in common."""
    return task.run.dataset, task.run.model


def counts(tasks: Sequence[Task], key: tuple[str, str]) -> tuple[int, int]:
    """Runs of a kind, and how many of them are done."""
    mine = [task for task in tasks if kind(task) == key]
    return len(mine), sum(task.status == "done" for task in mine)


def share_left(task: Task) -> float:
    """The share of a run's epochs that are not recorded yet."""
    return 1 - task.epochs_done / (task.run.epochs + 1)


def makespan(durations: Iterable[float], slots: int) -> float:
    """Time until the last run ends when each starts on the first slot that is free; NaN with any NaN."""
    free = [0.0] * slots
    for length in durations:
        heapq.heapreplace(free, free[0] + length)
        if math.isnan(length):
            return math.nan
    return max(free)


def crowding(busy: int) -> float:
    """How much longer than its CPU time work takes here with that many processes at it.

    With m cores and fair shares, one process among L others is slowed (L + 1) / m times, `busy` of them
    (L + busy) / m times. L follows from a sample taken now, and from the system's average of the last
    minute; either may be far from what comes, so the geometric mean is taken.
    """
    cores, alone = os.cpu_count() or 1, rehearsal.slowness()
    now = alone + (busy - 1) / cores if alone > CROWDED else busy / cores
    lately = (max(0.0, os.getloadavg()[0] - 1) + busy) / cores
    return math.sqrt(max(1.0, now) * max(1.0, lately))


def cpu_seconds(usage: resource.struct_rusage) -> float:
    """Of the user and of the system together."""
    return usage.ru_utime + usage.ru_stime


def run_costs(
    tasks: Sequence[Task], sweep: Sweep, facts: Mapping[str, Facts]
) -> dict[tuple[str, str], rehearsal.Cost]:
    """The cost of a run of each dataset and model."""
    examples: dict[tuple[str, str], Run] = {}
    for task in tasks:
        examples.setdefault(kind(task), task.run)
    several = len({task.run.seed for task in tasks}) > 1
    return {key: rehearsal.run_cost(run, sweep, facts, several) for key, run in examples.items()}
