"""The Ray Tune trainable: trains one run, records its maps after every epoch, reports accuracy."""

from __future__ import annotations

import dataclasses
import io
import os
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epochlens.config import Run
from epochlens.lazy import LazyModule
from epochlens.learn import models, streams, training
from epochlens.record import store
from epochlens.record.tracker import Tracker
from epochlens.sweep.plan import run_folder

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


def trial(config: Mapping[str, Any], shared: Shared) -> None:
    """Trains the run named by config["run"], going on from its last committed epoch.

    An exception of the run's own (a model that raises, a loss that is not finite) would come again: it is
    written to the run's folder and the trial ends. Only the death of its process makes Tune start it again.
    """
    run = shared.runs[config["run"]]
    folder = run_folder(shared.folder, run.run_id)
    prepare_process(shared.threads)
    record = {**run_record(run, shared), "node": ray.get_runtime_context().get_node_id()}
    gauges = make_gauges()
    try:
        for report in train_run(run, folder, shared, record):
            for name, gauge in gauges.items():
                gauge.set(report[name], tags={"run": run.run_id})
            tune.report(report)
    except Exception as error:
        if "attempt" in record and not store.is_claimed(folder, record["attempt"]):
            return  # another attempt works on the run, or has finished it: what goes wrong here is no matter
        unsaid = tell_failure(folder, record, error)
        failed = {"run": run.run_id, "status": "failed", "epoch": -1, "accuracy": float("nan")}
        tune.report(failed | {"unsaid": unsaid})


def tell_failure(folder: Path, record: Mapping[str, Any], error: Exception) -> str:
    """Says in the run's folder why it failed; returns the reason if that cannot be written either, or ""."""
    reason = f"{type(error).__name__}: {error}"
    try:
        store.fail_run(folder, record, reason, traceback.format_exc())
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


def run_record(run: Run, shared: Shared) -> dict[str, Any]:
    """What run.json says of a run besides its status."""
    return {
        "run_id": run.run_id,
        **dataclasses.asdict(run),
        "device": shared.device,
        "threads": shared.threads,
        "host": socket.gethostname(),
        "pid": os.getpid(),
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


def train_run(run: Run, folder: Path, shared: Shared, record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields a report after each committed epoch of the run, and gathers its files after the last.

    Stops without a word once another attempt has claimed the run.
    """
    if store.run_status(folder)[0] == "done":
        return  # an attempt before this one finished it, and died before it could say so
    set_foreign_work_aside(folder, record)
    place = {key: record.get(key) for key in ("host", "pid", "node")}
    record["attempt"] = store.claim(folder, {**place, "session": shared.session})
    splits = training.as_tensors(ray.get(shared.datasets[run.dataset]), shared.device)
    trajectory = start(run, splits, shared.device)
    saved = store.latest_state(folder, store.committed(folder))
    if saved is not None:
        training.restore(trajectory, saved)
    record["resumed_from_epoch"] = trajectory.epoch if saved is not None else None
    tracker = track(run, folder, trajectory.model, splits, record)
    weights = [] if shared.keep_weights == "none" else ["weights.pt"]
    for epoch in training.train(trajectory, splits, run.epochs, run.batch_size):
        if not store.is_claimed(folder, record["attempt"]):
            return
        if shared.keep_weights == "all":
            store.write_whole(folder / f"weights-{epoch.epoch:04d}.pt", weight_bytes(trajectory.model))
        tracker.record(state=training.to_bytes(trajectory), **epoch._asdict())
        yield {"run": run.run_id, "status": "running", **epoch._asdict()}
    if not store.is_claimed(folder, record["attempt"]):
        return
    if weights:
        store.write_whole(folder / "weights.pt", weight_bytes(trajectory.model))
    if shared.keep_weights == "all":
        weights += [f"weights-{epoch:04d}.pt" for epoch in range(run.epochs + 1)]
    metrics = store.metrics_frame(tracker.entries)
    seconds = float(np.nansum(metrics.filter(like="seconds_").to_numpy()))
    tracker.finish(weights, shared.npz, seconds=seconds)


def set_foreign_work_aside(folder: Path, record: Mapping[str, Any]) -> None:
    """Keeps an unfinished run apart that another device or number of threads began: bits would differ."""
    before = store.read_json(folder / "run.json")
    if before and any(before.get(key) != record[key] for key in ("device", "threads")):
        store.set_aside(folder)


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
