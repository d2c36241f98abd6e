"""A Tracker inside other people's loops: Lightning, Hugging Face Trainer, and a rule for stopping early.

Lightning and transformers are imported only when their callback is made.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from epochlens.record.tracker import DRIFT, Tracker


def lightning_callback(tracker: Tracker) -> Any:
    """A Lightning callback that records epoch 0 before training and each epoch after its validation.

    Metrics that the module logs are committed with the epoch; the maps' drift is logged as
    `cosine_to_previous/METHOD`, so that Lightning's EarlyStopping can watch it.
    """
    base = base_class("Callback", "lightning.pytorch", "pytorch_lightning")

    class MapsOverEpochs(base):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 0:
                tracker.record(0)

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            result = tracker.record(trainer.current_epoch + 1, None, **numbers(trainer.callback_metrics))
            module.log_dict(drift_of(result))

        def on_train_end(self, trainer: Any, module: Any) -> None:
            tracker.finish()

    return MapsOverEpochs()


def trainer_callback(tracker: Tracker) -> Any:
    """A Hugging Face TrainerCallback that records epoch 0 before training and then each whole epoch.

    The Trainer logs and evaluates after it has told of an epoch's end, so an epoch is recorded when the next
    one begins or training ends, with the numbers that were logged for it. The model must map the tracker's
    inputs to logits [N, K]: wrap one that returns an output object.
    """
    base = base_class("TrainerCallback", "transformers")

    class MapsOverEpochs(base):
        ended: int | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if not state.epoch:
                tracker.record(0)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            self.ended = round(state.epoch)

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if self.ended is not None:
                tracker.record(self.ended, None, **logged_at(state.log_history, self.ended))
                self.ended = None

        def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            self.on_epoch_begin(args, state, control)
            tracker.finish()

    return MapsOverEpochs()


def logged_at(history: Sequence[Mapping[str, Any]], epoch: int) -> dict[str, float]:
    """The numbers of a Trainer's log at an epoch, later entries over earlier ones; totals left out."""
    entries = [entry for entry in history if round(entry.get("epoch", -1)) == epoch]
    joined = {name: value for entry in entries for name, value in entry.items()}
    return numbers({name: value for name, value in joined.items() if not name.startswith("train_")})


def base_class(name: str, *modules: str) -> Any:
    """The class `name` of the first of the modules that imports. Raises ImportError naming them."""
    for module in modules:
        with contextlib.suppress(ImportError):
            return getattr(importlib.import_module(module), name)
    raise ImportError(f"{name} needs one of: {', '.join(modules)}")


def numbers(logged: Mapping[str, Any]) -> dict[str, float]:
    """The logged values that are numbers, under names that `Tracker.record` leaves free."""
    found = {}
    for name, value in logged.items():
        with contextlib.suppress(TypeError, ValueError):
            if name not in ("epoch", "state") and not name.startswith(DRIFT):  # which is of the epoch before
                found[name] = float(value)
    return found


def drift_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The defined drifts in what `Tracker.record` returned, by name."""
    found = {name: float(value) for name, value in result.items() if str(name).startswith(f"{DRIFT}/")}
    return {name: value for name, value in found.items() if math.isfinite(value)}


class StabilityStopper:
    """Says stop once all methods' maps had a cosine >= tau to the previous epoch `patience` times in a row.

    Call it with what `Tracker.record` returned: `stopper(result)`. Ray Tune takes it as it is,
    `tune.RunConfig(stop=StabilityStopper())`, when trials report those results; it keeps trials apart. It
    looks at the past only: maps that pause can move again, so do not measure settling on runs it stopped.
    """

    def __init__(self, tau: float = 0.99, patience: int = 3) -> None:
        if not 0 < tau <= 1 or patience < 1:
            raise ValueError(f"tau must be in (0, 1] and patience at least 1, not {tau} and {patience}")
        self.tau, self.patience = tau, patience
        self.streaks: dict[str, int] = {}

    def __call__(self, *trial_and_result: Any) -> bool:
        *trial, result = trial_and_result
        name = str(trial[0]) if trial else ""
        drift = drift_of(result)
        stable = bool(drift) and min(drift.values()) >= self.tau
        self.streaks[name] = self.streaks.get(name, 0) + 1 if stable else 0
        return self.streaks[name] >= self.patience
