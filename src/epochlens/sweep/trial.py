"""The Ray Tune trainable: trains a run, records its maps after every epoch, reports accuracy.

A trial may be several runs of one dataset and model: they take turns, an epoch each, and while the maps of
one are recorded a GPU trains the others. Each run has its own trajectory, random streams, claim, commits and
failure, so its numbers do not depend on which others share its process.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epochlens.config import Run
from epochlens.lazy import LazyModule
from epochlens.learn import models, queues, streams, training
from epochlens.record import files, ledger, remote, retrieval, store
from epochlens.record.tracker import Tracker
from epochlens.sweep import nodes
from epochlens.sweep.plan import run_folder, run_place

if TYPE_CHECKING:
    import ray
    import torch
    from ray import tune
    from torch import nn
else:
    ray, torch, tune = LazyModule("ray"), LazyModule("torch"), LazyModule("ray.tune")


@dataclasses.dataclass(frozen=True)
class Shared:
    """What all trials of a sweep share; datasets are references into Ray's object store."""

    folder: Path
    runs: Mapping[str, Run]
    datasets: Mapping[str, Any]
    device: str
    threads: int
    keep_weights: str
    npz: bool
    session: str = ""
    """names the driver"""
    place: remote.Place | None = None
    """where results lie on object storage; `folder` is their local copy then, on every node"""
    origin: Path = Path()
    """the driver's working folder: relative names of files, as of a user's method, start there"""


def trial(config: Mapping[str, Any], shared: Shared) -> None:
    """Trains the runs named by config["runs"] in turn, each going on from its last committed epoch.

    Only the death of its process makes Tune start it again: what a run raises, `attempt` reports.
    """
    if shared.place is None and shared.session:
        nodes.check_sees(shared.folder, shared.session)
    if shared.origin.is_dir():
        os.chdir(shared.origin)
    runs = [shared.runs[run_id] for run_id in config["runs"]]
    prepare_process(shared.threads)
    gauges = make_gauges()
    load = functools.cache(partial(load_splits, runs[0].dataset, shared))
    under_way = [attempt(run, shared, load) for run in runs]
    try:
        while under_way:
            for reports in tuple(under_way):
                report = next(reports, None)
                if report is None:
                    under_way.remove(reports)
                    continue
                for name, gauge in gauges.items():
                    gauge.set(report[name], tags={"run": report["run"]})
                tune.report(report)
    finally:
        queues.settle(shared.device)


def attempt(run: Run, shared: Shared, load: Callable[[], training.TensorSplits]) -> Iterator[dict[str, Any]]:
    """The reports of a run, the last of them of its failure if it fails.

    An exception of the run's own (a model that raises, a loss that is not finite) would come again: it is
    written to the run's folder, and is not tried again when the process of a run beside it has died.
    """
    folder = run_folder(shared.folder, run.run_id)
    failed = {"run": run.run_id, "status": "failed", "epoch": -1, "accuracy": float("nan"), "unsaid": ""}
    if has_failed(folder, shared.session):
        yield failed
        return
    record = {**run_record(run, shared), "node": ray.get_runtime_context().get_node_id()}
    try:
        yield from mirrored(train_run(run, folder, shared, record, load), shared, run)
    except remote.RemoteError as error:
        yield failed | {"unsaid": f"{error} on {record['host']}. Mend that and run the same command again"}
    except Exception as error:
        if "attempt" in record and not store.is_claimed(folder, record["attempt"]):
            return  # another attempt works on the run, or has finished it: what goes wrong here is no matter
        unsaid = tell_failure(folder, record, error, shared.place)
        queues.settle(shared.device)  # raises if the device is broken: then other runs need another process
        yield failed | {"unsaid": unsaid}


def has_failed(folder: Path, session: str) -> bool:
    """Whether the run has failed of itself since the driver of this session began."""
    record = files.read_json(folder / "run.json") or {}
    return record.get("status") == "failed" and record.get("session") == session


def mirrored(reports: Iterator[dict[str, Any]], shared: Shared, run: Run) -> Iterator[dict[str, Any]]:
    """The reports of a run, each once object storage holds what it tells of, where results lie there.

    Begins with what is there already. Raises RemoteError.
    """
    if shared.place is None:
        yield from reports
        return
    place = run_place(shared.place, run.run_id)
    remote.pull(place)
    for report in reports:
        remote.push(place)
        yield report
    remote.push(place)


def tell_failure(
    folder: Path, record: Mapping[str, Any], error: Exception, place: remote.Place | None = None
) -> str:
    """Says in the run's folder why it failed; returns the reason if that cannot be written either, or ""."""
    reason = f"{type(error).__name__}: {error}"
    try:
        store.fail_run(folder, record, reason, traceback.format_exc())
        if place:
            remote.push(run_place(place, folder.name))
    except OSError:
        return reason
    return ""


def prepare_process(threads: int) -> None:
    """Sets every process-wide knob that changes numbers: trials share worker processes one after another."""
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # it takes time, and nobody reads that memory


def run_record(run: Run, shared: Shared) -> dict[str, Any]:
    """What run.json says of a run besides its status."""
    return {
        "run_id": run.run_id,
        **dataclasses.asdict(run),
        "device": shared.device,
        "threads": shared.threads,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "session": shared.session,
        "torch": torch.__version__,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def make_gauges() -> dict[str, Any]:
    """Gauges on this node's metrics port, by the name of the reported value."""
    from ray.util.metrics import Gauge

    return {
        "epoch": Gauge("epochlens_epochs_done", "epochs completed by a run", tag_keys=("run",)),
        "accuracy": Gauge("epochlens_accuracy", "test accuracy of a run, a fraction", tag_keys=("run",)),
    }


def load_splits(dataset: str, shared: Shared) -> training.TensorSplits:
    """The dataset's splits on the device that trains."""
    return training.as_tensors(ray.get(shared.datasets[dataset]), shared.device)


def train_run(
    run: Run,
    folder: Path,
    shared: Shared,
    record: dict[str, Any],
    load: Callable[[], training.TensorSplits] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields a report after each committed epoch of the run, and gathers its files after the last.

    Stops without a word once another attempt has claimed the run. Where an epoch before the latest checkpoint
    is damaged, trains up to that epoch again and then takes the checkpoint up. `load` gives the splits, which
    the runs of a trial share. On CUDA the next epoch is under way while the report is out.
    """
    if retrieval.run_status(folder)[0] == "done":
        return  # an attempt before this one finished it, and died before it could say so
    set_foreign_work_aside(folder, record)
    place = {key: record.get(key) for key in ("host", "pid", "node")}
    record["attempt"] = store.claim(folder, {**place, "session": shared.session})
    splits = load() if load else load_splits(run.dataset, shared)
    trajectory = start(run, splits, shared.device)
    held = retrieval.committed(folder)
    saved, ahead = retrieval.latest_state(folder, held), retrieval.newest_state(folder, held)
    if saved is not None:
        training.restore(trajectory, saved)
    record["resumed_from_epoch"] = trajectory.epoch if saved is not None else None
    if not store.is_claimed(folder, record["attempt"]):
        return  # it took a while to come here
    tracker = track(run, folder, trajectory.model, splits, record)
    weights = [] if shared.keep_weights == "none" else ["weights.pt"]
    for epoch in training.train(trajectory, splits, run.epochs, run.batch_size):
        if not store.is_claimed(folder, record["attempt"]):
            return
        if shared.keep_weights == "all":
            files.write_whole(folder / f"weights-{epoch.epoch:04d}.pt", weight_bytes(trajectory.model))
        mending = ahead != saved and epoch.epoch < max(held)  # up to the last damaged epoch before `ahead`
        tracker.record(state=None if mending else training.to_bytes(trajectory), **epoch._asdict())
        if ahead and mending and retrieval.latest_state(folder, tracker.entries) == ahead:
            training.restore(trajectory, ahead)
            tracker.take_up()
            saved = ahead
        if trajectory.stream is not None and epoch.epoch < run.epochs:
            training.launch(trajectory, splits, run.batch_size)
        yield {"run": run.run_id, "status": "running", **epoch._asdict()}
    if not store.is_claimed(folder, record["attempt"]):
        return
    if weights:
        files.write_whole(folder / "weights.pt", weight_bytes(trajectory.model))
    if shared.keep_weights == "all":
        weights += [f"weights-{epoch:04d}.pt" for epoch in range(run.epochs + 1)]
    metrics = ledger.metrics_frame(tracker.entries)
    seconds = float(np.nansum(metrics.filter(like="seconds_").to_numpy()))
    told = {} if trajectory.replay is None else {"steps": trajectory.replay.refused or "captured"}
    tracker.finish(weights, shared.npz, seconds=seconds, **told)


def set_foreign_work_aside(folder: Path, record: Mapping[str, Any]) -> None:
    """Keeps an unfinished run apart that another device or number of threads began: bits would differ."""
    before = files.read_json(folder / "run.json")
    if before and any(before.get(key) != record[key] for key in ("device", "threads")):
        files.set_aside(folder)


def track(
    run: Run, folder: Path, model: nn.Module, splits: training.TensorSplits, record: Mapping[str, Any]
) -> Tracker:
    """The run's tracker over its probe images."""
    probe = streams.probe_indices(len(splits.x_test), run.probe_samples, run.probe_seed)
    there = probe.to(splits.x_test.device)
    images, labels = splits.x_test[there], splits.y_test[there]
    return Tracker(
        model,
        images,
        labels,
        run.methods,
        folder,
        samples=probe.tolist(),
        target=run.target,
        seed=run.seed,
        quality=run.quality,
        quality_every=run.quality_every,
        epochs=run.epochs,
        about=record,
    )


def start(run: Run, splits: training.TensorSplits, device: str) -> training.Trajectory:
    """The run's trajectory before its first epoch."""
    shape = (splits.x_train.shape[1], splits.x_train.shape[2], splits.x_train.shape[3])
    return training.begin(
        models.model_factory(run.model),
        shape,
        len(run.classes),
        run.seed,
        device,
        name=run.optimizer,
        learning_rate=run.learning_rate,
        momentum=run.momentum,
        weight_decay=run.weight_decay,
        precision=run.precision,
    )


def weight_bytes(model: nn.Module) -> bytes:
    """The model's state dict, on the CPU."""
    buffer = io.BytesIO()
    torch.save({name: value.cpu() for name, value in model.state_dict().items()}, buffer)
    return buffer.getvalue()
