"""Finds trials that have fallen silent and ends their processes, so that Tune starts them again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epochlens.lazy import LazyModule
from epochlens.record import files

if TYPE_CHECKING:
    import ray
else:
    ray = LazyModule("ray")

Trial = tuple[str, ...]
"""the ids of its runs"""
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
        self.heard: dict[Trial, float] = {}
        self.reported: set[Trial] = set()
        self.looked: float | None = None

    def begin(self, trial: Trial, now: float) -> None:
        """The trial has started."""
        self.heard[trial] = now

    def report(self, trial: Trial, now: float) -> None:
        """The trial has reported an epoch."""
        if trial in self.reported:  # before its first report a trial also loads modules and data
            self.longest = max(self.longest, now - self.heard[trial])
        self.reported.add(trial)
        self.heard[trial] = now

    def end(self, trial: Trial) -> None:
        """The trial has ended, or waits to be started again."""
        self.heard.pop(trial, None)
        self.reported.discard(trial)

    def overdue(self, now: float) -> list[Trial]:
        """The trials that are silent for too long; they are given the same time again.

        Time in which nobody looked counts for nobody: a driver that was stopped has reports waiting for it.
        """
        slept = now - self.looked if self.looked is not None else 0.0
        self.looked = now
        if slept > ASLEEP:
            self.heard = {trial: heard + slept for trial, heard in self.heard.items()}
        limit = self.timeout + PATIENCE * self.longest
        found = [trial for trial, heard in self.heard.items() if now - heard > limit]
        self.heard |= dict.fromkeys(found, now)
        return found


def end_attempt(folder: Path, session: str) -> bool:
    """Kills the process at work on the run in the folder, wherever it is; False when none is known.

    `session` names the driver whose attempts are meant: those before it are not its own to end.
    """
    attempt = files.read_json(folder / "attempt.json") or {}
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


def make_watchdog(timeout: float, end: Callable[[Sequence[str]], bool], say: Callable[[str], None]) -> Any:
    """A Tune callback that calls `end` with the runs of each trial that is silent for too long, and says so.

    A trial is watched as a whole: one thread trains its runs in turn, so either all of them go on or none.
    """
    from ray.tune import Callback

    class Watchdog(Callback):
        silence: Silence
        end: Callable[[Sequence[str]], bool]
        say: Callable[[str], None]

        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.silence.begin(tuple(trial.config["runs"]), time.monotonic())

        def on_trial_result(
            self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
        ) -> None:
            self.silence.report(tuple(trial.config["runs"]), time.monotonic())

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.silence.end(tuple(trial.config["runs"]))

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.silence.end(tuple(trial.config["runs"]))

        def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.silence.end(tuple(trial.config["runs"]))

        def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
            for runs in self.silence.overdue(time.monotonic()):
                if self.end(runs):
                    names = ", ".join(runs)
                    self.say(f"{names} reported nothing for long: its process was ended, and begins again")

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles its callbacks; a terminal does not pickle

    watchdog = Watchdog()
    watchdog.silence, watchdog.end, watchdog.say = Silence(timeout), end, say
    return watchdog
