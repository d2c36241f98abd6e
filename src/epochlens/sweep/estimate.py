"""What a dry run tells: time and disk of a sweep, from a small rehearsal of its runs, made and timed here.

Timed is CPU time, so that other work on the machine does not count; it counts once, as `crowding`, when CPU
time becomes a duration. What only Ray can tell, its start and that of its workers, is taken in proportion to
the time in which a process loads PyTorch and Ray here.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console

from epochlens.attribute.methods import is_stochastic
from epochlens.config import Run, Sweep
from epochlens.errors import UsageError
from epochlens.lazy import LazyModule
from epochlens.learn import data, streams, training
from epochlens.learn.data import Facts
from epochlens.record import store
from epochlens.record.tables import REDRAW, Maps
from epochlens.record.tracker import Tracker
from epochlens.sweep import analysis, trial
from epochlens.sweep.plan import Task, pack
from epochlens.sweep.progress import duration, grid_table

if TYPE_CHECKING:
    import pyarrow.parquet as pq
    import torch

    from epochlens.show import figures, style
    from epochlens.sweep import measurement
else:
    torch, pq = LazyModule("torch"), LazyModule("pyarrow.parquet")
    figures, style = LazyModule("epochlens.show.figures"), LazyModule("epochlens.show.style")
    measurement = LazyModule("epochlens.sweep.measurement")

STEPS = 4
"""training steps that are timed together"""
FEW = 2
"""images that are explained and assessed first, to see how long it takes"""
PATIENCE = 3.0
"""seconds: what takes longer is not timed again, nor on all images"""
LONG_ENOUGH = 0.2
"""seconds over which something short is repeated"""
REHEARSED_BYTES = 2**25
"""maps that are written for the rehearsal of a run's analysis; a longer run's epochs are scaled up"""
CROWDED = 1.2
"""times slower than alone: below that the machine counts as free"""
PANELS, FIGURE_TIMES = 24, 2.0
"""of the figure that is timed, at most; a real one has more in it, and takes about so many times as long"""
RAY_WAITS, RAY_LOADS = 4.0, 1.5
"""the start of the sweep and of Ray: seconds, and times that a process takes to load"""
WORKER_LOADS, ANALYSIS_LOADS = 1.2, 0.8
"""the same of the first trials, and of the first measurements and figures"""
LOADED = "import torch, ray.tune, pandas"


class Cost(NamedTuple):
    """What one run takes."""

    seconds: float
    """CPU time of training and recording; NaN where it could not be measured"""
    analysis: float
    """CPU time of measuring the recorded maps"""
    megabytes: float
    """of its files and its rows in tables"""


class Timing(NamedTuple):
    """CPU seconds of the parts of a run."""

    train: float
    """of an epoch"""
    test: float
    explain: float
    """of the probe images, by all methods, stochastic ones twice"""
    quality: float
    """of one measurement of quality"""


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
    slowness()  # before there is anything of ours beside it
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
    figure, figure_megabytes = figure_cost(min(conditions, PANELS), tasks[0].run)
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
    cores, alone = os.cpu_count() or 1, slowness()
    now = alone + (busy - 1) / cores if alone > CROWDED else busy / cores
    lately = (max(0.0, os.getloadavg()[0] - 1) + busy) / cores
    return math.sqrt(max(1.0, now) * max(1.0, lately))


@functools.cache
def slowness() -> float:
    """Seconds by the clock per CPU second of a process alone here, beside whatever else runs."""
    started, used = time.perf_counter(), time.process_time()
    while time.process_time() < used + 2 * LONG_ENOUGH:
        sum(range(10_000))
    return max(1.0, (time.perf_counter() - started) / (time.process_time() - used))


def cpu_seconds(usage: resource.struct_rusage) -> float:
    """Of the user and of the system together."""
    return usage.ru_utime + usage.ru_stime


def run_costs(tasks: Sequence[Task], sweep: Sweep, facts: Mapping[str, Facts]) -> dict[tuple[str, str], Cost]:
    """The cost of a run of each dataset and model."""
    examples: dict[tuple[str, str], Run] = {}
    for task in tasks:
        examples.setdefault(kind(task), task.run)
    several = len({task.run.seed for task in tasks}) > 1
    return {key: run_cost(run, sweep, facts, several) for key, run in examples.items()}


def run_cost(run: Run, sweep: Sweep, facts: Mapping[str, Facts], several: bool = True) -> Cost:
    """Disk and time of one run, rehearsed on the threads of a trial; nothing is downloaded for it.

    `several` seeds are compared with each other.
    """
    spec, fact = next((spec, fact) for spec, fact in facts.items() if fact.label == run.dataset)
    try:
        splits = training.as_tensors(data.load(spec, fact.classes, sweep.data_dir, download=False))
    except UsageError:
        c, h, w = fact.shape
        floats = (run.epochs + 1) * len(run.methods) * run.probe_samples * c * h * w
        return Cost(math.nan, math.nan, floats * 4 / 1e6)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(sweep.cpus_per_trial)))
    try:
        with tempfile.TemporaryDirectory(prefix="epochlens-") as place:
            return rehearse(run, sweep, splits, Path(place), several)
    finally:
        torch.set_num_threads(threads)


def rehearse(run: Run, sweep: Sweep, splits: training.TensorSplits, place: Path, several: bool) -> Cost:
    """Times the parts of a run, then writes and measures one with made-up maps."""
    trajectory = trial.start(run, splits, "cpu")
    parts = time_parts(run, trajectory, splits, place)
    weights = trial.weight_bytes(trajectory.model)
    folder, epochs, commit = write_run(run, trajectory, splits, place / "written")
    about = {**dataclasses.asdict(run), "run_id": folder.name, "folder": str(folder)}
    taken, measured = timed(lambda: measurement.measure_run(about))
    if several:
        taken += timed(lambda: measurement.measure_seeds([about, {**about, "seed": run.seed + 1}]))[0] / 2
    pq.write_table(measured.rows, place / "rows.parquet", compression="zstd")
    longer = (run.epochs + 1) / epochs
    size = (folder_bytes(folder) + (place / "rows.parquet").stat().st_size) * longer
    size += len(weights) * {"none": 0, "last": 1, "all": run.epochs + 2}[sweep.keep_weights]
    assessed = sum(e % run.quality_every == 0 or e == run.epochs for e in range(run.epochs + 1))
    seconds = (
        run.epochs * parts.train
        + (run.epochs + 1) * (parts.test + parts.explain + commit)
        + (assessed * parts.quality if run.quality else 0.0)
    )
    return Cost(seconds, taken * longer, size * (2 if sweep.npz else 1) / 1e6)


def time_parts(
    run: Run, trajectory: training.Trajectory, splits: training.TensorSplits, place: Path
) -> Timing:
    """CPU seconds of the parts of an epoch, scaled up from a few steps and, where slow, a few images."""
    part = training.TensorSplits(*(tensor[: STEPS * run.batch_size] for tensor in splits))
    test = (
        splits.x_test[: STEPS * training.EVALUATED_TOGETHER],
        splits.y_test[: STEPS * training.EVALUATED_TOGETHER],
    )
    with streams.global_streams_kept():
        train = steady(lambda: training.train_epoch(trajectory, part.x_train, part.y_train, run.batch_size))
        evaluate = steady(lambda: training.evaluate(trajectory.model, *test, training.EVALUATED_TOGETHER))

    def tracker_of(images: int) -> Tracker:
        few = dataclasses.replace(run, probe_samples=images)
        return trial.track(few, place / str(images), trajectory.model, splits, {"run_id": run.run_id})

    def explaining(images: int) -> Callable[[], object]:
        return partial(tracker_of(images).explain, 0)

    def assessing(images: int) -> Callable[[], object]:
        tracker = tracker_of(images)
        return partial(tracker.assess, 0, tracker.explain(0))

    return Timing(
        train * len(splits.x_train) / len(part.x_train),
        evaluate * len(splits.x_test) / len(test[0]),
        of_images(run.probe_samples, explaining),
        of_images(run.probe_samples, assessing) if run.quality else 0.0,
    )


def of_images(images: int, prepare: Callable[[int], Callable[[], object]]) -> float:
    """CPU seconds of what `prepare` makes for that many images, scaled up from FEW where it is slow."""
    few = min(FEW, images)
    seconds = steady(prepare(few)) * images / few
    return seconds if few == images or seconds > PATIENCE else steady(prepare(images))


def steady(call: Callable[[], object]) -> float:
    """CPU seconds of a call once all that it needs is loaded; of the first call if that is slow."""
    first, _ = timed(call)
    if first > PATIENCE:
        return first
    total, calls = 0.0, 0
    while total < LONG_ENOUGH:
        total, calls = total + timed(call)[0], calls + 1
    return total / calls


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds on each of PyTorch's threads, never zero, and what the call gives."""
    started = time.process_time()
    result = call()
    return max((time.process_time() - started) / torch.get_num_threads(), 1e-6), result


def write_run(
    run: Run, trajectory: training.Trajectory, splits: training.TensorSplits, folder: Path
) -> tuple[Path, int, float]:
    """A finished run of made-up maps: its folder, the epochs it has, and the seconds that each took.

    Those are seconds by the clock without the crowding, for part of them is waiting for the disk.
    """
    tracker = trial.track(run, folder, trajectory.model, splits, {"run_id": folder.name})
    drawn = [method + REDRAW for method in run.methods if is_stochastic(method)]
    names, count = np.array([*run.methods, *drawn]), len(tracker.samples)
    shape = (1, len(names), count, *splits.x_test.shape[1:])
    epochs = min(run.epochs + 1, max(4, REHEARSED_BYTES // (4 * math.prod(shape))))
    rng = np.random.default_rng(0)
    start, end = rng.standard_normal((2, *shape), np.float32)
    labels = tracker.labels.numpy().astype(np.int32)[None]
    state = training.to_bytes(trajectory)
    metrics = {"train_loss": 1.0, "test_loss": 1.0, "weight_change": 1.0, "output_change": 1.0}
    started = time.perf_counter()
    for epoch in range(epochs):
        drifting = start + epoch / epochs * end
        maps = Maps(drifting, np.array([epoch], np.int32), names, tracker.samples, labels, labels)
        of_epoch = {**metrics, "accuracy": epoch / epochs}
        tracker.entries[epoch] = store.commit_epoch(tracker.folder, epoch, maps, of_epoch, state)
    tracker.finish()
    return tracker.folder, epochs, (time.perf_counter() - started) / epochs / slowness()


def folder_bytes(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def figure_cost(panels: int, run: Run) -> tuple[float, float]:
    """CPU seconds that a figure of that many panels takes here, and the megabytes of its files."""
    epochs = np.arange(run.epochs + 1)

    def draw() -> int:
        figure, axes = style.panels(panels, style.even(panels))
        for ax in axes:
            for line, method in enumerate(run.methods):
                ax.errorbar(epochs, np.sin(epochs) + line, yerr=0.1, fmt="o-", label=method)
            style.head(ax, "a title", "and a line below it")
        with tempfile.TemporaryDirectory(prefix="epochlens-") as place:
            style.save(figure, place, "figure")
            return folder_bytes(Path(place))

    draw()
    seconds, size = timed(draw)
    return seconds, size / 1e6
