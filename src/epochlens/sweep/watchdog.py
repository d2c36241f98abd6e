"""Finds trials that have fallen silent and ends their processes, so that Tune starts them again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from epochlens.lazy import LazyModule

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


def end_process(trial: Any) -> bool:
    """Has Ray end the trial's process, wherever it is and whatever it does; False when it has none."""
    actor = trial.temporary_state.ray_actor
    if actor is not None:
        ray.kill(actor)  # a stopped process that does not heed this is killed by its node after 5 s
    return actor is not None


def make_watchdog(
    timeout: float, say: Callable[[str], None], end: Callable[[Any], bool] = end_process
) -> Any:
    """A Tune callback that calls `end` with each trial that is silent for too long, and says so.

    A trial is watched as a whole: one thread trains its runs in turn, so either all of them go on or none.
    """
    from ray.tune import Callback

    class Watchdog(Callback):
        silence: Silence
        end: Callable[[Any], bool]
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
            overdue = self.silence.overdue(time.monotonic())
            for trial in trials:
                if (runs := tuple(trial.config["runs"])) in overdue:
                    then = "was ended, and begins again" if self.end(trial) else "is not known: Ray has it"
                    self.say(f"{', '.join(runs)} reported nothing for long: its process {then}")

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles its callbacks; a terminal does not pickle

    watchdog = Watchdog()
    watchdog.silence, watchdog.end, watchdog.say = Silence(timeout), end, say
    return watchdog
