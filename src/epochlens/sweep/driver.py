"""Trains what a plan says is missing, as Ray Tune trials. The store is the truth, Tune's state scratch."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from epochlens.config import Sweep
from epochlens.errors import UsageError
from epochlens.lazy import LazyModule
from epochlens.learn import data
from epochlens.learn.data import Facts
from epochlens.record import store
from epochlens.record.files import CRASH_AT
from epochlens.sweep.plan import Task, run_folder
from epochlens.sweep.progress import Progress
from epochlens.sweep.trial import Shared, trial
from epochlens.sweep.watchdog import end_attempt, make_watchdog

if TYPE_CHECKING:
    import ray
    from ray import tune
else:
    ray, tune = LazyModule("ray"), LazyModule("ray.tune")

TRIALS_PER_GPU = 8
RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_GRAFANA_HOST": "DISABLED",
    "RAY_PROMETHEUS_HOST": "DISABLED",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # a slow clean-up must not make its neighbours fail
    "TUNE_RESULT_BUFFER_LENGTH": "1000",  # a trial never waits for the driver between epochs
    "TUNE_RESULT_BUFFER_MIN_TIME_S": "0.5",
    "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",  # large arrays are reused instead of given back page by page
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
asked: list[int] = []
"""signals that asked this process to stop"""


class Interrupted(BaseException):
    """The user asked the sweep to stop."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Turns the first SIGINT or SIGTERM into Interrupted; a second one ends the process at once.

    Files that cannot be written end the process with a line that says so, and exit code 1.
    """
    asked.clear()

    def stop(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        signal.signal(signal.SIGTERM, lambda *_: os._exit(130))
        raise Interrupted

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
        stop_if_asked()
    except BaseException as error:
        if asked:  # what is raised inside Ray's compiled code comes out as some other error
            raise Interrupted from error
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise SystemExit(f"error: {error}: mend that and run the same command again") from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_if_asked() -> None:
    """Raises Interrupted again if the one that a signal raised was lost on its way."""
    if asked:
        raise Interrupted


@contextmanager
def ray_cluster(sweep: Sweep, num_cpus: int | None = None) -> Iterator[Any]:
    """The cluster this process is in, else the one at the sweep's address, else one started here.

    Yields Ray's context. `num_cpus` overrides the CPUs of a cluster started here.
    """
    threads = str(max(1, int(sweep.cpus_per_trial)))
    environment = {**RAY_SETTINGS, "OMP_NUM_THREADS": threads}
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    here = [str(Path(entry or ".").absolute()) for entry in sys.path if "site-packages" not in str(entry)]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(here))
    if CRASH_AT in os.environ:
        environment[CRASH_AT] = os.environ[CRASH_AT]
    address = sweep.address or os.environ.get("RAY_ADDRESS") or "local"
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    started_here = not ray.is_initialized()
    if started_here:
        context = start_ray(
            address=address,
            num_cpus=num_cpus,
            include_dashboard=sweep.dashboard if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": environment},
        )
    else:
        context = ray.get_runtime_context()
    try:
        yield context
    finally:
        if started_here:
            ray.shutdown()


def start_ray(**settings: Any) -> Any:
    """`ray.init` that leaves this process's signal handlers alone. Raises UsageError for a dead address."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with daemons_apart():
            return ray.init(**settings)
    except (ConnectionError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError("address", settings["address"], f"cannot be reached: {reason}") from error
    except SystemExit as error:  # the signal came while Ray's own handler was in place of ours
        asked.append(signal.SIGTERM)
        raise Interrupted from error
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


@contextmanager
def daemons_apart() -> Iterator[None]:
    """Ray's daemons start in sessions of their own: a signal to this process's group leaves them alone.

    Where the daemons are ended at the same time, Ray ends this process before it can say what is saved.
    They still end with this process, whichever way it does: where the kernel sees to that, on Linux.
    """
    from ray._private import services

    if sys.platform != "linux":
        yield
        return
    popen = services.ConsolePopen
    services.ConsolePopen = partial(popen, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = popen


def train_missing(
    sweep: Sweep,
    folder: Path,
    tasks: Sequence[Task],
    facts: Mapping[str, Facts],
    console: Console,
    record: Callable[[], None],
) -> None:
    """Trains every task that is not done, showing progress. Raises Interrupted when asked to stop.

    `record` is called once nothing in the settings can be wrong any more, before the first trial.
    """
    missing = [task for task in tasks if task.status != "done"]
    shared = share(sweep, folder, missing, facts)
    epochs_left = sum(task.run.epochs + 1 - task.epochs_done for task in missing)
    with Progress(console, len(tasks) - len(missing), len(tasks), epochs_left) as progress:
        tuner = make_tuner(sweep, shared, folder, progress)
        record()
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        results = tuner.fit()
    for result in results:
        if result.error is not None and result.config:
            tell_death(run_folder(folder, result.config["run"]), result.error)


def tell_death(folder: Path, error: Exception) -> None:
    """Says in the run's folder that its process died, again and again: it left no word itself."""
    record = store.read_json(folder / "run.json") or {"run_id": folder.name}
    if record.get("status") not in ("done", "failed"):
        lines = str(error).strip().splitlines() or [repr(error)]
        store.fail_run(folder, record, f"its process died: {lines[-1]}", str(error))


def share(sweep: Sweep, folder: Path, missing: Sequence[Task], facts: Mapping[str, Facts]) -> Shared:
    """Reads each dataset that is needed once and puts it into Ray's object store."""
    needed = {task.run.dataset for task in missing}
    datasets = {
        fact.label: ray.put(data.load(spec, fact.classes, sweep.data_dir))
        for spec, fact in facts.items()
        if fact.label in needed
    }
    return Shared(
        folder=folder,
        runs={task.run.run_id: task.run for task in missing},
        datasets=datasets,
        device=choose_device(sweep),
        threads=max(1, int(sweep.cpus_per_trial)),
        keep_weights=sweep.keep_weights,
        npz=sweep.npz,
        session=uuid.uuid4().hex,
    )


def choose_device(sweep: Sweep) -> str:
    """The device that trials train on: as asked, else CUDA where the cluster has GPUs, else MPS, else CPU."""
    gpus = ray.cluster_resources().get("GPU", 0)
    if sweep.device == "cuda" and not gpus:
        raise UsageError("device", "cuda", "but the Ray cluster has no GPU")
    if sweep.device != "auto":
        return sweep.device
    if sweep.gpus_per_trial and not gpus:
        raise UsageError("gpus_per_trial", sweep.gpus_per_trial, "but the Ray cluster has no GPU")
    if gpus and sweep.gpus_per_trial != 0:
        return "cuda"
    if sys.platform == "darwin":
        import torch

        return "mps" if torch.backends.mps.is_available() else "cpu"
    return "cpu"


def trial_resources(sweep: Sweep, device: str) -> dict[str, float]:
    """CPUs and GPUs of a trial; unless told, GPUs are shared by as many trials as the CPUs can feed."""
    cluster = ray.cluster_resources()
    cpus = sweep.cpus_per_trial
    if cpus > cluster.get("CPU", 0):
        raise UsageError("cpus_per_trial", cpus, f"but the Ray cluster has {cluster.get('CPU', 0):g} CPUs")
    if device != "cuda":
        return {"cpu": cpus}
    gpus = sweep.gpus_per_trial
    if gpus is None:
        slots = int(cluster["CPU"] / cpus / cluster["GPU"])
        gpus = 1 / max(1, min(TRIALS_PER_GPU, slots))
    if gpus > cluster["GPU"]:
        raise UsageError("gpus_per_trial", gpus, f"but the Ray cluster has {cluster['GPU']:g} GPUs")
    return {"cpu": cpus, "gpu": gpus}


def make_tuner(sweep: Sweep, shared: Shared, folder: Path, progress: Progress) -> tune.Tuner:
    """A fresh Tuner over the runs that are missing; what it writes itself is for TensorBoard only."""
    from ray.tune.logger import TBXLoggerCallback

    watchdog = make_watchdog(
        sweep.stall_timeout,
        lambda run_id: end_attempt(run_folder(folder, run_id), shared.session),
        lambda text: progress.console.print(f"[yellow]stalled[/yellow] {text}"),
    )
    trainable = tune.with_resources(
        tune.with_parameters(trial, shared=shared), trial_resources(sweep, shared.device)
    )
    return tune.Tuner(
        trainable,
        param_space={"run": tune.grid_search(list(shared.runs))},
        tune_config=tune.TuneConfig(
            reuse_actors=True,
            trial_name_creator=_run_name,
            trial_dirname_creator=_run_name,
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=str(folder / "tune"),
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
            callbacks=[make_callback(progress), watchdog, TBXLoggerCallback()],
            verbose=0,
        ),
    )


def _run_name(trial: Any) -> str:
    return trial.config["run"]


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
            self.progress.report({"run": trial.config["run"], "status": "failed"})

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.progress.complete(trial.config["run"])

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles its callbacks; a terminal does not pickle

    listener = Listener()
    listener.progress = progress
    return listener
