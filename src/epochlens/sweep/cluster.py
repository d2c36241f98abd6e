"""The Ray cluster that a command works on, and what of it a trial gets."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epochlens.config import Sweep
from epochlens.errors import UsageError
from epochlens.lazy import LazyModule
from epochlens.record.files import CRASH_AT
from epochlens.sweep.interruption import Interrupted, asked

if TYPE_CHECKING:
    import ray
else:
    ray = LazyModule("ray")

TRIALS_PER_GPU = 8
REPLICAS = 4
"""runs that a trial on a GPU trains together unless told; reasoned, not measured: processes that share a GPU
take turns on it while the streams of one process overlap, a small network's kernels leave room for a few
others, and with 8 trials a GPU the graphs and activations of 32 runs of the study's larger network, about
0.2 GB each, still fit in 16 GB"""
RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_GRAFANA_HOST": "DISABLED",
    "RAY_PROMETHEUS_HOST": "DISABLED",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # the first of several tasks' errors is told, in our words
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
    if address.startswith("ray://"):
        instead = "ray job submit --address http://HEAD:8265 -- python -m sweeps.grid ... (without --address)"
        raise UsageError("address", address, f"is for Ray's client, which cannot drive a sweep: {instead}")
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


def choose_replicas(sweep: Sweep, missing: int, resources: Mapping[str, float]) -> int:
    """How many runs a trial trains: as asked, else one on a CPU and at most REPLICAS on a GPU.

    No more than leave every slot of the cluster something to do.
    """
    if isinstance(sweep.replicas, int):
        return sweep.replicas
    if "gpu" not in resources:
        return 1
    cluster = ray.cluster_resources()
    gpus = cluster["GPU"] / resources["gpu"] if resources["gpu"] else cluster["CPU"]
    slots = max(1, int(min(gpus, cluster["CPU"] / resources["cpu"])))
    return max(1, min(REPLICAS, missing // slots))
