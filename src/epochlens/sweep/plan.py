"""The grid of a sweep as runs, and what the store says is still missing."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from epochlens.attribute.methods import method_code
from epochlens.config import Run, Sweep, methods_for
from epochlens.learn.data import Facts, fingerprint
from epochlens.learn.models import model_code
from epochlens.record import files, objects, remote, retrieval, store


class Task(NamedTuple):
    """A run of the grid with what the store holds of it."""

    run: Run
    status: str
    """missing, partial, failed, corrupt or done"""
    epochs_done: int
    """epochs in the ledger of an unfinished run, epoch 0 counted"""


def expand(sweep: Sweep, facts: Mapping[str, Facts]) -> list[Run]:
    """The runs of the grid, dataset by dataset, then model, learning rate and seed in the order given."""
    data = {spec: fingerprint(spec) for spec in sweep.datasets}
    code = {model: model_code(model) for model in sweep.models}
    methods = {
        (spec, model): methods_for(sweep.methods, model, facts[spec])
        for spec, model in itertools.product(sweep.datasets, sweep.models)
    }
    return [
        Run(
            dataset=facts[spec].label,
            data=data[spec],
            classes=facts[spec].classes,
            model=model,
            model_code=code[model],
            learning_rate=rate,
            seed=seed,
            epochs=sweep.epochs,
            batch_size=sweep.batch_size,
            optimizer=sweep.optimizer,
            momentum=sweep.momentum,
            weight_decay=sweep.weight_decay,
            precision=sweep.precision,
            methods=methods[spec, model],
            method_code=tuple(method_code(method) for method in methods[spec, model]),
            quality=sweep.quality,
            quality_every=sweep.quality_every if sweep.quality else 1,
            probe_samples=sweep.probe_samples,
            probe_seed=seed if sweep.probe_seed == "run" else int(sweep.probe_seed),
            target=sweep.target,
        )
        for spec, model, rate, seed in itertools.product(sweep.datasets, sweep.models, sweep.lrs, sweep.seeds)
    ]


def sweep_folder(sweep: Sweep) -> Path:
    """results/NAME, absolute: workers run elsewhere. Of results on object storage, their local copy."""
    uri = objects.is_uri(sweep.results_dir)
    results = objects.local_copy(sweep.results_dir) if uri else Path(sweep.results_dir)
    return (results / sweep.name).absolute()


def run_folder(folder: Path, run_id: str) -> Path:
    """Where a run of the sweep in `folder` lives."""
    return folder / "runs" / run_id


def run_place(place: remote.Place, run_id: str) -> remote.Place:
    """Where a run of the sweep lives on object storage."""
    return place.below(f"runs/{run_id}")


def look_up(folder: Path, runs: Sequence[Run], place: remote.Place | None = None) -> list[Task]:
    """Each run with its state in the store; finished runs are verified by checksum.

    From object storage comes what the local copy lacks.
    """
    if place:
        remote.pull_runs(place, [run.run_id for run in runs])
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda run: retrieval.run_status(run_folder(folder, run.run_id)), runs)
    return [Task(run, *status) for run, status in zip(runs, found, strict=True)]


def pack(tasks: Sequence[Task], replicas: int) -> list[tuple[str, ...]]:
    """The trials of these tasks: run ids, at most `replicas` of them and all of one dataset and model."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for task in tasks:
        kinds.setdefault((task.run.dataset, task.run.model), []).append(task.run.run_id)
    return [
        tuple(ids[start : start + replicas])
        for ids in kinds.values()
        for start in range(0, len(ids), replicas)
    ]


def upload_rest(runs: Sequence[Run], place: remote.Place | None) -> None:
    """Uploads what an earlier attempt at these runs committed in the local copy only."""
    if place:
        for ahead in remote.pull_runs(place, [run.run_id for run in runs]):
            remote.push(ahead)


def record_sweep(folder: Path, sweep: Sweep, runs: Sequence[Run], about: Mapping[str, object]) -> None:
    """Writes sweep.json: the resolved settings, the grid's runs, and what they ran on."""
    folder.mkdir(parents=True, exist_ok=True)
    grid = [{"run_id": run.run_id, **dataclasses.asdict(run)} for run in runs]
    files.write_json(folder / "sweep.json", {"settings": dataclasses.asdict(sweep), **about, "runs": grid})


def set_stale_aside(folder: Path, tasks: Sequence[Task], place: remote.Place | None = None) -> list[Path]:
    """Moves corrupt runs out of the way, so that they are done anew; returns where they are kept.

    What a crash left in finished runs goes, too. What could not be uploaded before goes to object storage.
    """
    for task in tasks:
        if task.status == "done":
            store.remove_working_files(run_folder(folder, task.run.run_id))
    corrupt = [task.run.run_id for task in tasks if task.status == "corrupt"]
    if place:
        for run_id in corrupt:
            objects.set_aside(run_place(place, run_id))
        upload_rest([task.run for task in tasks if task.status != "corrupt"], place)
    return [files.set_aside(run_folder(folder, run_id)) for run_id in corrupt]
