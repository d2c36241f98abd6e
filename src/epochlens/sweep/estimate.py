"""What a dry run tells: disk from array sizes, time from a few training steps made and timed here."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console

from epochlens.attribute.methods import attribute
from epochlens.config import Run, Sweep
from epochlens.errors import UsageError
from epochlens.lazy import LazyModule
from epochlens.learn import data, streams, training
from epochlens.learn.data import Facts
from epochlens.sweep import trial
from epochlens.sweep.plan import Task
from epochlens.sweep.progress import duration, grid_table

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

STEPS = 4
COMPRESSED = 0.87
"""bytes of a map on disk per byte in memory, as measured on MNIST and CIFAR-10"""


class Cost(NamedTuple):
    """What one run takes."""

    seconds: float
    """on one CPU thread; NaN where it could not be measured"""
    megabytes: float


def tell(
    console: Console,
    sweep: Sweep,
    facts: Mapping[str, Facts],
    tasks: Sequence[Task],
    folder: Path,
    plots: Path,
) -> dict[str, Any]:
    """Prints the plan of a dry run and returns it as a document. Trains and writes nothing."""
    console.print("timing a few steps of each dataset and model ...")
    costs: dict[tuple[str, str], Cost] = {}
    for task in tasks:
        key = (task.run.dataset, task.run.model)
        if key not in costs:
            costs[key] = run_cost(task.run, sweep, facts)
    rows, total, megabytes = [], 0.0, 0.0
    for (dataset, model), cost in costs.items():
        mine = [t for t in tasks if (t.run.dataset, t.run.model) == (dataset, model)]
        left = [t for t in mine if t.status != "done"]
        share = sum(1 - t.epochs_done / (t.run.epochs + 1) for t in left)
        total, megabytes = total + cost.seconds * share, megabytes + cost.megabytes * len(left)
        rows.append(
            [dataset, model, len(mine), len(mine) - len(left), f"{cost.seconds:.1f}", f"{cost.megabytes:.1f}"]
        )
    header = ["dataset", "model", "runs", "done", "seconds per run", "MB per run"]
    console.print(grid_table(rows, header))
    slots = max(1, int((os.cpu_count() or 1) / sweep.cpus_per_trial))
    wall = total / slots
    told = "unknown (a dataset is not here yet)" if wall != wall else f"about {duration(wall)}"
    console.print(f"to train: {told} with {slots} trials at once on this machine's CPUs, {megabytes:.0f} MB")
    console.print(f"results would be in {folder}, figures in {plots}")
    return {
        "name": sweep.name,
        "results": str(folder),
        "plots": str(plots),
        "runs_total": len(tasks),
        "runs_done": sum(t.status == "done" for t in tasks),
        "seconds": wall if wall == wall else None,
        "megabytes": megabytes,
        "runs": [{"run_id": t.run.run_id, "status": t.status} for t in tasks],
    }


def run_cost(run: Run, sweep: Sweep, facts: Mapping[str, Facts]) -> Cost:
    """Disk and time of one run, from a few timed steps on one thread; nothing is downloaded for it."""
    spec, fact = next((spec, fact) for spec, fact in facts.items() if fact.label == run.dataset)
    c, h, w = fact.shape
    floats = (run.epochs + 1) * len(run.methods) * run.probe_samples * c * h * w
    megabytes = floats * 4 * COMPRESSED / 1e6
    try:
        splits = training.as_tensors(data.load(spec, fact.classes, sweep.data_dir, download=False))
    except UsageError:
        return Cost(float("nan"), megabytes)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(sweep.cpus_per_trial)))
    try:
        return Cost((run.epochs + 1) * epoch_seconds(run, splits), megabytes)
    finally:
        torch.set_num_threads(threads)


def epoch_seconds(run: Run, splits: training.TensorSplits) -> float:
    """Seconds of one epoch with its attributions, scaled up from STEPS batches."""
    trajectory = trial.start(run, splits, "cpu")
    part = training.TensorSplits(*(tensor[: STEPS * run.batch_size] for tensor in splits))
    with streams.global_streams_kept():
        training.train_epoch(trajectory, part.x_train, part.y_train, run.batch_size)  # warm up
        stamps = [time.perf_counter()]
        training.train_epoch(trajectory, part.x_train, part.y_train, run.batch_size)
        stamps.append(time.perf_counter())
        training.evaluate(trajectory.model, part.x_test, part.y_test, run.batch_size)
        stamps.append(time.perf_counter())
    images, labels = splits.x_test[: run.probe_samples], splits.y_test[: run.probe_samples]
    for method in run.methods:
        attribute(trajectory.model, images, labels, method)
    stamps.append(time.perf_counter())
    train, test, explain = (after - before for before, after in itertools.pairwise(stamps))
    train *= len(splits.x_train) / len(part.x_train)
    test *= len(splits.x_test) / len(part.x_test)
    return train + test + explain
