"""The rehearsal of a run and of a figure: parts are made and timed here, on a few steps and made-up maps.

Timed is CPU time, so that other work on the machine does not count.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from epochlens.attribute.methods import is_stochastic
from epochlens.config import Run, Sweep
from epochlens.errors import UsageError
from epochlens.lazy import LazyModule
from epochlens.learn import data, streams, training
from epochlens.learn.data import Facts
from epochlens.record import store
from epochlens.record.tables import REDRAW, Maps
from epochlens.record.tracker import Tracker
from epochlens.sweep import trial

if TYPE_CHECKING:
    import pyarrow.parquet as pq
    import torch

    from epochlens.show import style
    from epochlens.sweep import measurement
else:
    torch, pq = LazyModule("torch"), LazyModule("pyarrow.parquet")
    style = LazyModule("epochlens.show.style")
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


@functools.cache
def slowness() -> float:
    """Seconds by the clock per CPU second of a process alone here, beside whatever else runs."""
    started, used = time.perf_counter(), time.process_time()
    while time.process_time() < used + 2 * LONG_ENOUGH:
        sum(range(10_000))
    return max(1.0, (time.perf_counter() - started) / (time.process_time() - used))


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
