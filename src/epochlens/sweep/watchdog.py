"""Finds trials that have fallen silent and ends their processes, so that Tune starts them again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epochlens.lazy import LazyModule
from epochlens.record import store

if TYPE_CHECKING:
    import ray
else:
    ray = LazyModule("ray")

PATIENCE = 10
"""times the longest epoch seen that a trial may take on top of the timeout"""
ASLEEP = 10.0
"""seconds between two looks from which on it was the watcher that slept"""


class Silence:
    """Which trials have been silent for longer than `timeout` and `PATIENCE` times the longest epoch seen.

    All times are seconds, on a clock that does not go back.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout, self.longest = timeout, 0.0
        self.heard: dict[str, float] = {}
        self.reported: set[str] = set()
        self.looked: float | None = None

    def begin(self, run_id: str, now: float) -> None:
        """The trial has started."""
        self.heard[run_id] = now

    def report(self, run_id: str, now: float) -> None:
        """The trial has reported an epoch."""
        if run_id in self.reported:  # before its first report a trial also loads modules and data
            self.longest = max(self.longest, now - self.heard[run_id])
        self.reported.add(run_id)
        self.heard[run_id] = now

    def end(self, run_id: str) -> None:
        """The trial has ended, or waits to be started again."""
        self.heard.pop(run_id, None)
        self.reported.discard(run_id)

    def overdue(self, now: float) -> list[str]:
        """The trials that are silent for too long; they are given the same time again.

        Time in which nobody looked counts for nobody: a driver that was stopped has reports waiting for it.
        """
        slept = now - self.looked if self.looked is not None else 0.0
        self.looked = now
        if slept > ASLEEP:
            self.heard = {run_id: heard + slept for run_id, heard in self.heard.items()}
        limit = self.timeout + PATIENCE * self.longest
        found = [run_id for run_id, heard in self.heard.items() if now - heard > limit]
        self.heard |= dict.fromkeys(found, now)
        return found


def end_attempt(folder: Path, session: str) -> bool:
    """Kills the process at work on the run in the folder, wherever it is; False when none is known.

    `session` names the driver whose attempts are meant: those before it are not its own to end.
    """
    attempt = store.read_json(folder / "attempt.json") or {}
    pid, node = attempt.get("pid"), attempt.get("node")
    if attempt.get("session") != session or not isinstance(pid, int) or not node:
        return False
    if node == ray.get_runtime_context().get_node_id():
        return kill_worker(pid)
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    kill: Any = ray.remote(num_cpus=0, max_retries=0)(kill_worker)
    kill.options(scheduling_strategy=there).remote(pid)  # a dead node's trials are Tune's to find
    return True


def kill_worker(pid: int) -> bool:
    """Kills the process at once, even a stopped one; False if it is gone, or no Ray worker."""
    try:
        if Path("/proc").is_dir() and b"ray::" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return False
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    return True


def make_watchdog(timeout: float, end: Callable[[str], bool], say: Callable[[str], None]) -> Any:
    """A Tune callback that calls `end` with each run that is silent for too long, and says so if it did."""
    from ray.tune import Callback

    class Watchdog(Callback):
        silence: Silence
        end: Callable[[str], bool]
        say: Callable[[str], None]

        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.silence.begin(trial.config["run"], time.monotonic())

        def on_trial_result(
            self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
        ) -> None:
            self.silence.report(trial.config["run"], time.monotonic())

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.silence.end(trial.config["run"])

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.silence.end(trial.config["run"])

        def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.silence.end(trial.config["run"])

        def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
            for run_id in self.silence.overdue(time.monotonic()):
                if self.end(run_id):
                    self.say(f"{run_id} reported nothing for long: its process was ended, and begins again")

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles its callbacks; a terminal does not pickle

    watchdog = Watchdog()
    watchdog.silence, watchdog.end, watchdog.say = Silence(timeout), end, say
    return watchdog
