"""Tracker: records the attribution maps of fixed images, epoch by epoch, from any PyTorch training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epochlens.attribute.methods import (
    attribute,
    attribute_all,
    borrowed,
    is_stochastic,
    method_label,
    named_generator,
)
from epochlens.attribute.quality import assess, metric_label
from epochlens.lazy import LazyModule
from epochlens.record import ledger, retrieval, store
from epochlens.record.tables import REDRAW, Maps, quality_frame

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

DRIFT = "cosine_to_previous"


class Tracker:
    """Explains `images` [N,C,H,W] (or [N,...]) with every method at each `record` and commits the maps.

    `targets` [N] are the classes explained (with target="predicted": the network's own choice at that epoch).
    `store` is the run's folder. Epochs of an unfinished run that it already holds are not explained again, so
    a loop that goes on from a checkpoint makes its Tracker after loading it; a finished run, or one of other
    images, methods, target or seed, is kept aside as FOLDER.old-1. `samples` [N] number the images in
    tables. `quality` names metrics of the maps against the network, measured at every `quality_every`th epoch
    and at `epochs`, the last one. The model is left exactly as it was, and no global random stream is
    touched. `about` describes the run in tables: dataset, model, learning_rate, and whatever else run.json
    shall say. As a context manager it finishes the run at the end of a block that did not raise.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        targets: Tensor,
        methods: Sequence[str] = ("saliency", "integrated_gradients"),
        store: str | Path = "results/tracked",
        *,
        samples: Sequence[int] | None = None,
        target: str = "label",
        seed: int = 0,
        quality: Sequence[str] = (),
        quality_every: int = 1,
        epochs: int | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.images, self.labels = model, images, targets
        self.methods = [method_label(method) for method in methods]
        self.samples = np.asarray(range(len(images)) if samples is None else samples, np.int32)
        self.target, self.seed, self.folder = target, seed, Path(store)
        self.quality = [metric_label(metric) for metric in quality]
        self.quality_every, self.last_epoch = quality_every, epochs
        described = {"dataset": "tracked", "model": type(model).__name__, "learning_rate": 0.0, "seed": seed}
        self.about = {"run_id": self.folder.name, **described, "methods": self.methods, **(about or {})}
        self._begin()

    def _begin(self) -> None:
        arrays = self.images.cpu().numpy(), self.labels.cpu().numpy()
        identity = {"methods": self.methods, "target": self.target, "seed": self.seed}
        identity |= {"quality": self.quality, "quality_every": self.quality_every}
        self.about |= identity
        store.keep_other_run(self.folder, identity, *arrays, self.samples)
        self.entries = retrieval.committed(self.folder)
        store.quarantine(self.folder, self.entries)
        store.begin_run(self.folder, self.about, *arrays, self.samples)
        self.take_up()

    def take_up(self) -> None:
        """Goes on from the latest recorded epoch, at which the model must be now, if there is any."""
        self.weights = flat_weights(self.model) if self.entries else None
        self.outputs = self._probabilities() if self.entries else None
        self.maps = retrieval.load(self.folder, epochs=[max(self.entries)]) if self.entries else None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        if kind is None:
            self.finish()

    def record(self, epoch: int, state: bytes | None = None, **metrics: float) -> dict[str, float]:
        """Explains the images now and commits the epoch with its metrics.

        `state` is a checkpoint to go on from, kept until the next one. Returns the metrics with
        weight_change (relative L2), output_change (mean total variation of the probes' probabilities) and,
        for each method, cosine_to_previous/METHOD: the mean over images, NaN at the first record.
        """
        started = time.perf_counter()
        changes = self._changes()
        if epoch in self.entries:
            held = self._held(epoch)
            store.commit_entry(self.folder, self.entries[epoch], state)
            before = max((e for e in self.entries if e < epoch), default=None)
            former = None if before is None else retrieval.load(self.folder, epochs=[before])
            return self.entries[epoch].metrics | drifts(self.methods, former, held)
        maps = self.explain(epoch)
        metrics = {**metrics, **changes, "seconds_attribute": time.perf_counter() - started}
        quality = None
        if self.quality and (epoch % self.quality_every == 0 or epoch == self.last_epoch):
            started = time.perf_counter()
            quality = self.assess(epoch, maps)
            metrics["seconds_quality"] = time.perf_counter() - started
        self.entries[epoch] = store.commit_epoch(self.folder, epoch, maps, metrics, state, quality)
        drift = drifts(self.methods, self.maps, maps)
        self.maps = maps
        return metrics | drift

    def _held(self, epoch: int) -> Maps:
        """The maps of a recorded epoch. Raises StoreError if it was recorded of another network."""
        held = retrieval.load(self.folder, epochs=[epoch])
        if self.outputs is None or not np.array_equal(held.predictions[0], self.outputs.argmax(1).cpu()):
            raise retrieval.StoreError(
                f"{self.folder} holds epoch {epoch} of another training: choose another store, or remove it"
            )
        return held

    def explain(self, epoch: int) -> Maps:
        """The maps of all methods now, as they would be recorded for `epoch`.

        Stochastic methods are drawn twice: the second draw tells how far apart two explanations of the same
        network are.
        """
        predictions = self._probabilities().argmax(1)
        targets = self.labels if self.target == "label" else predictions
        redraws = [method + REDRAW for method in self.methods if is_stochastic(method)]
        maps = self._maps_of(self.methods, targets, epoch) + self._maps_of(redraws, targets, epoch)
        return Maps(
            torch.stack(maps)[None].float().cpu().numpy(),
            np.array([epoch], np.int32),
            np.array([*self.methods, *redraws]),
            self.samples,
            targets.cpu().numpy()[None].astype(np.int32),
            predictions.cpu().numpy()[None].astype(np.int32),
        )

    def finish(self, others: Sequence[str] = (), npz: bool = False, **about: Any) -> None:
        """Gathers the recorded epochs into the finished run's files, and says so in run.json with `about`.

        `others` names further files of the folder that belong to the run. Raises StoreError when an epoch
        is missing.
        """
        accuracy = ledger.metrics_frame(self.entries)["accuracy"].to_numpy(float)
        final = {"final_accuracy": float(accuracy[-1])} if len(accuracy) else {}
        store.finish_run(self.folder, {**self.about, **final, **about}, others, npz)

    def assess(self, epoch: int, maps: Maps) -> pd.DataFrame:
        """The quality of an epoch's maps against the network as it is, as `tables.quality_frame` has it."""
        there = {"device": self.images.device, "dtype": self.images.dtype}
        by_method = {
            method: torch.from_numpy(maps.attributions[0, m]).to(**there)
            for m, method in enumerate(self.methods)
        }
        targets = torch.from_numpy(maps.targets[0]).to(self.labels)

        def explain(model: nn.Module, method: str, images: Tensor, targets: Tensor) -> Tensor:
            draws = named_generator(self.seed, f"attribution/{method}", epoch)  # those of the maps themselves
            return attribute(model, images, targets, method, generator=draws)

        found = assess(
            self.model, self.images, targets, by_method, self.quality, seed=self.seed, explain=explain
        )
        return quality_frame(epoch, self.samples.tolist(), found)

    def _maps_of(self, labels: Sequence[str], targets: Tensor, epoch: int) -> list[Tensor]:
        """Maps of methods, or of the second draws of methods, in their order."""
        draws = {
            label.removesuffix(REDRAW): named_generator(self.seed, f"attribution/{label}", epoch)
            for label in labels
        }
        found = attribute_all(self.model, self.images, targets, list(draws), generators=draws.__getitem__)
        return [found[method] for method in draws]

    def _probabilities(self) -> Tensor:
        with borrowed(self.model), torch.no_grad():
            return self.model(self.images).softmax(1)

    def _changes(self) -> dict[str, float]:
        """How far weights and outputs moved since the last record; NaN at the first."""
        weights, outputs = flat_weights(self.model), self._probabilities()
        moved = output = math.nan
        if self.weights is not None and self.outputs is not None:
            size = self.weights.norm().item()
            moved = (weights - self.weights).norm().item() / size if size else math.nan
            output = (outputs - self.outputs).abs().sum(1).mean().item() / 2
        self.weights, self.outputs = weights, outputs
        return {"weight_change": moved, "output_change": output}


def flat_weights(model: nn.Module) -> Tensor:
    """All parameters of the model in one vector, a copy."""
    return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])


def drifts(methods: Sequence[str], before: Maps | None, now: Maps) -> dict[str, float]:
    """Mean over images of the cosine between two epochs' maps by method; NaN without a defined one."""
    found = {f"{DRIFT}/{method}": math.nan for method in methods}
    if before is None:
        return found
    for m, method in enumerate(methods):
        a, b = (
            part.attributions[0, m].reshape(len(part.samples), -1).astype(float) for part in (before, now)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        defined = cosines[np.isfinite(cosines)]
        found[f"{DRIFT}/{method}"] = float(defined.mean()) if len(defined) else math.nan
    return found
