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
from epochlens.record import store


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
    """results/NAME, absolute: workers run elsewhere."""
    return (Path(sweep.results_dir) / sweep.name).absolute()


def run_folder(folder: Path, run_id: str) -> Path:
    """Where a run of the sweep in `folder` lives."""
    return folder / "runs" / run_id


def look_up(folder: Path, runs: Sequence[Run]) -> list[Task]:
    """Each run with its state in the store; finished runs are verified by checksum."""
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda run: store.run_status(run_folder(folder, run.run_id)), runs)
    return [Task(run, *status) for run, status in zip(runs, found, strict=True)]


def record_sweep(folder: Path, sweep: Sweep, runs: Sequence[Run], about: Mapping[str, object]) -> None:
    """Writes sweep.json: the resolved settings, the grid's runs, and what they ran on."""
    folder.mkdir(parents=True, exist_ok=True)
    grid = [{"run_id": run.run_id, **dataclasses.asdict(run)} for run in runs]
    store.write_json(folder / "sweep.json", {"settings": dataclasses.asdict(sweep), **about, "runs": grid})


def set_stale_aside(folder: Path, tasks: Sequence[Task]) -> list[Path]:
    """Moves corrupt runs out of the way, so that they are done anew; returns where they are kept.

    What a crash left in finished runs goes, too.
    """
    for task in tasks:
        if task.status == "done":
            store.remove_working_files(run_folder(folder, task.run.run_id))
    corrupt = [task.run.run_id for task in tasks if task.status == "corrupt"]
    return [store.set_aside(run_folder(folder, run_id)) for run_id in corrupt]
