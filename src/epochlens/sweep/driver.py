"""Trains what a plan says is missing, as Ray Tune trials. The store is the truth, Tune's state scratch."""

from __future__ import annotations

import dataclasses
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from epochlens.config import Sweep
from epochlens.lazy import LazyModule
from epochlens.learn import data
from epochlens.learn.data import Facts
from epochlens.record import files, remote, store
from epochlens.sweep import nodes, plan
from epochlens.sweep.cluster import choose_device, choose_replicas, trial_resources
from epochlens.sweep.interruption import UNWRITABLE, stop_if_asked
from epochlens.sweep.plan import Task, run_folder, run_place
from epochlens.sweep.progress import Progress
from epochlens.sweep.trial import Shared, has_failed, trial
from epochlens.sweep.watchdog import make_watchdog

if TYPE_CHECKING:
    import ray
    from ray import tune
else:
    ray, tune = LazyModule("ray"), LazyModule("ray.tune")


def train_missing(
    sweep: Sweep,
    folder: Path,
    tasks: Sequence[Task],
    facts: Mapping[str, Facts],
    console: Console,
    record: Callable[[], None],
    place: remote.Place | None = None,
) -> None:
    """Trains every task that is not done, showing progress. Raises Interrupted when asked to stop.

    `record` is called once nothing in the settings can be wrong any more, before the first trial.
    """
    missing = [task for task in tasks if task.status != "done"]
    shared = share(sweep, folder, missing, facts, place)
    epochs_left = sum(task.run.epochs + 1 - task.epochs_done for task in missing)
    resources = trial_resources(sweep, shared.device)
    trials = plan.pack(missing, choose_replicas(sweep, len(missing), resources))
    with Progress(console, len(tasks) - len(missing), len(tasks), epochs_left) as progress:
        record()
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        deaths: Counter[str] = Counter()
        at_once = 0
        while trials:
            tuner = make_tuner(sweep, shared, progress, trials, resources, at_once)
            try:
                left = tell_deaths(shared, trials, tuner.fit())
                why = "whose shared process died go on alone"
            except (tune.TuneError, RuntimeError) as error:
                left, at_once = blame(error, shared, trials, deaths, sweep.max_failures), 1
                for run_id in {*progress.running} - {*left}:
                    progress.report({"run": run_id, "status": "failed"})
                why = f"go on one at a time: {reason_of(error)}"
            stop_if_asked()
            progress.forget(left)
            trials = [(run_id,) for run_id in left]
            if trials:
                console.print(f"[yellow]{len(trials)} runs[/yellow] {escape(why)}")
                shared = begin_session(shared)


def blame(
    error: Exception, shared: Shared, trials: Sequence[Sequence[str]], deaths: Counter[str], most: int
) -> list[str]:
    """The runs that are left when Tune itself has given up; those begun then more than `most` times fail.

    So it does when Ray ends a worker for want of memory. Raises SystemExit when nothing had been begun.
    """
    stop_if_asked()
    if isinstance(error.__cause__, OSError) and error.__cause__.errno in UNWRITABLE:
        raise error.__cause__
    run_ids = [run_id for run_ids in trials for run_id in run_ids]
    if shared.place:
        remote.pull_runs(shared.place, run_ids)
    left = [run_id for run_id in run_ids if not has_ended(run_folder(shared.folder, run_id), shared.session)]
    attempts = {r: files.read_json(run_folder(shared.folder, r) / "attempt.json") or {} for r in left}
    begun = [run_id for run_id in left if attempts[run_id].get("session") == shared.session]
    if left and not begun:
        raise SystemExit(f"error: Ray Tune gave up: {reason_of(error)}: run the same command again")
    deaths.update(begun)
    for run_id in begun:
        if deaths[run_id] > most:
            tell_death(run_folder(shared.folder, run_id), shared.session, str(error), reason_of(error))
            if shared.place:
                remote.push(run_place(shared.place, run_id))
    return [run_id for run_id in left if deaths[run_id] <= most]


def reason_of(error: BaseException) -> str:
    """What was at the bottom of an error, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [repr(error)]
    return lines[0]


def tell_deaths(shared: Shared, trials: Sequence[tuple[str, ...]], results: Any) -> list[str]:
    """Says of runs that were alone in a dead trial that they died; returns those that were not alone.

    Which of several has taken the others with it nobody knows.
    """
    together = []
    named = {trial_name(run_ids): run_ids for run_ids in trials}
    for result in results:
        if result.error is not None:
            run_ids = named[Path(result.path).name]
            if shared.place:
                remote.pull_runs(shared.place, run_ids)
            places = {run_id: run_folder(shared.folder, run_id) for run_id in run_ids}
            if len(run_ids) == 1:
                tell_death(places[run_ids[0]], shared.session, str(result.error), last_line(result.error))
                if shared.place:
                    remote.push(run_place(shared.place, run_ids[0]))
            else:
                together += [r for r, folder in places.items() if not has_ended(folder, shared.session)]
    return together


def has_ended(folder: Path, session: str) -> bool:
    """Whether the run is finished, or has said in this session why it failed."""
    record = files.read_json(folder / "run.json") or {}
    return record.get("status") == "done" or has_failed(folder, session)


def tell_death(folder: Path, session: str, log: str, reason: str) -> None:
    """Says in the run's folder that its process died, again and again: it left no word itself."""
    if not has_ended(folder, session):
        record = files.read_json(folder / "run.json") or {"run_id": folder.name}
        store.fail_run(folder, {**record, "session": session}, f"its process died: {reason}", log)


def last_line(error: BaseException) -> str:
    """The last line of what an error says."""
    return (str(error).strip().splitlines() or [repr(error)])[-1]


def share(
    sweep: Sweep,
    folder: Path,
    missing: Sequence[Task],
    facts: Mapping[str, Facts],
    place: remote.Place | None = None,
) -> Shared:
    """Reads each dataset that is needed once and puts it into Ray's object store."""
    needed = {task.run.dataset for task in missing}
    datasets = {
        fact.label: ray.put(data.load(spec, fact.classes, sweep.data_dir))
        for spec, fact in facts.items()
        if fact.label in needed
    }
    shared = Shared(
        folder=folder,
        runs={task.run.run_id: task.run for task in missing},
        datasets=datasets,
        device=choose_device(sweep),
        threads=max(1, int(sweep.cpus_per_trial)),
        keep_weights=sweep.keep_weights,
        npz=sweep.npz,
        place=place,
        origin=Path.cwd(),
    )
    return begin_session(shared)


def begin_session(shared: Shared) -> Shared:
    """The same under a new name: what a trial leaves behind tells in which session it was begun."""
    shared = dataclasses.replace(shared, session=uuid.uuid4().hex)
    nodes.leave_sign(shared.folder, shared.session)
    return shared


def make_tuner(
    sweep: Sweep,
    shared: Shared,
    progress: Progress,
    trials: Sequence[tuple[str, ...]],
    resources: dict[str, float],
    at_once: int,
) -> tune.Tuner:
    """A fresh Tuner over these trials, each the ids of its runs; what it writes is for TensorBoard only.

    `at_once` of them run together, as many as there is room for if it is 0.
    """
    from ray.tune.logger import TBXLoggerCallback

    watchdog = make_watchdog(
        sweep.stall_timeout, lambda text: progress.console.print(f"[yellow]stalled[/yellow] {escape(text)}")
    )
    trainable = tune.with_resources(tune.with_parameters(trial, shared=shared), resources)
    return tune.Tuner(
        trainable,
        param_space={"runs": tune.grid_search(list(trials))},
        tune_config=tune.TuneConfig(
            reuse_actors=True,
            max_concurrent_trials=at_once or None,
            trial_name_creator=lambda trial: trial_name(trial.config["runs"]),
            trial_dirname_creator=lambda trial: trial_name(trial.config["runs"]),
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=str(shared.folder / "tune"),
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
            callbacks=[make_callback(progress), watchdog, TBXLoggerCallback()],
            verbose=0,
        ),
    )


def trial_name(run_ids: Sequence[str]) -> str:
    """What a trial of these runs and its folder are called."""
    first, *others = run_ids
    return f"{first}-and-{len(others)}-more" if others else first


def make_callback(progress: Progress) -> Any:
    """A Tune callback that tells `progress` of each epoch's report and each run's end."""
    from ray.tune import Callback

    class Listener(Callback):
        progress: Progress

        def on_trial_result(
            self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
        ) -> None:
            self.progress.report(result)
            if result.get("unsaid"):
                self.progress.console.print(f"       {escape(result['unsaid'])}")

        def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
            stop_if_asked()

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            if len(trial.config["runs"]) == 1:  # others are trained alone before they are given up
                self.progress.report({"run": trial.config["runs"][0], "status": "failed"})

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            for run_id in trial.config["runs"]:
                self.progress.complete(run_id)

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles its callbacks; a terminal does not pickle

    listener = Listener()
    listener.progress = progress
    return listener
