"""Tracker: records the attribution maps of fixed images, epoch by epoch, from any PyTorch training loop."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epochlens.attribute.methods import attribute, borrowed, method_label, named_generator
from epochlens.lazy import LazyModule
from epochlens.record import store
from epochlens.record.tables import Maps

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")


class Tracker:
    """Explains `images` [N,C,H,W] with every method at each `record` and commits the maps to `folder`.

    The model is left exactly as it was, and no global random stream is touched. `labels` [N] are the classes
    explained (with target="predicted": the network's own choice at that epoch). `samples` [N] number the
    images in tables. Epochs that the folder already holds are not explained again.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        methods: Sequence[str] = ("saliency", "integrated_gradients"),
        store: str | Path = "results/tracked/runs/run",
        *,
        samples: Sequence[int] | None = None,
        target: str = "label",
        seed: int = 0,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.images, self.labels = model, images, labels
        self.methods = [method_label(method) for method in methods]
        self.samples = np.asarray(range(len(images)) if samples is None else samples, np.int32)
        self.target, self.seed, self.folder = target, seed, Path(store)
        self.about = {"run_id": self.folder.name, "methods": self.methods, **(record or {})}
        self._begin()

    def _begin(self) -> None:
        arrays = self.images.cpu().numpy(), self.labels.cpu().numpy()
        store.begin_run(self.folder, self.about, *arrays, self.samples)
        self.entries = store.committed(self.folder)

    def record(self, epoch: int, state: bytes | None = None, **metrics: float) -> dict[str, float]:
        """Explains the images now and commits the epoch with its metrics; returns the metrics committed.

        `state` is a checkpoint to go on from, kept until the next one.
        """
        if epoch in self.entries:
            store.commit_entry(self.folder, self.entries[epoch], state)
            return self.entries[epoch].metrics
        started = time.perf_counter()
        maps = self.explain(epoch)
        metrics = {**metrics, "seconds_attribute": time.perf_counter() - started}
        self.entries[epoch] = store.commit_epoch(self.folder, epoch, maps, metrics, state)
        return metrics

    def explain(self, epoch: int) -> Maps:
        """The maps of all methods now, as they would be recorded for `epoch`."""
        with borrowed(self.model), torch.no_grad():
            predictions = self.model(self.images).argmax(1)
        targets = self.labels if self.target == "label" else predictions
        maps = [
            attribute(
                self.model,
                self.images,
                targets,
                method,
                generator=named_generator(self.seed, f"attribution/{method}", epoch),
            )
            for method in self.methods
        ]
        return Maps(
            torch.stack(maps)[None].float().cpu().numpy(),
            np.array([epoch], np.int32),
            np.array(self.methods),
            self.samples,
            targets.cpu().numpy()[None].astype(np.int32),
            predictions.cpu().numpy()[None].astype(np.int32),
        )

    def finish(self, others: Sequence[str] = (), npz: bool = False, **about: Any) -> None:
        """Gathers the recorded epochs into the finished run's files, and says so in run.json with `about`.

        `others` names further files of the folder that belong to the run. Raises StoreError when an epoch
        is missing.
        """
        store.finish_run(self.folder, {**self.about, **about}, others, npz)
