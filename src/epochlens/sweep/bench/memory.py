"""What a trial holds in memory: the peak of a fresh process that trains and explains one run."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Iterator
from pathlib import Path

from epochlens.sweep.bench.timing import Comparison

IMAGES = 12_000


def comparisons(quick: bool) -> Iterator[Comparison | str]:
    """Sentences only: memory has no peer here."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        before, after = pool.apply(peak_of_a_run)
    data = IMAGES * 28 * 28 * 4 / 2**20
    yield (
        f"a trial of `deep` on {IMAGES} MNIST-sized images peaks at {after:.0f} MiB, {before:.0f} MiB of it "
        f"PyTorch itself and {data:.0f} MiB the images"
    )


def peak_of_a_run() -> tuple[float, float]:
    """Peak resident MiB of this process before and after an epoch of `deep` with its maps."""
    import torch

    from epochlens.attribute.methods import attribute
    from epochlens.learn import models, training

    torch.set_num_threads(1)
    before = peak()
    images, labels = torch.rand(IMAGES, 1, 28, 28), torch.arange(IMAGES) % 2
    splits = training.TensorSplits(images, labels, images[:2000], labels[:2000])
    trajectory = training.begin(models.model_factory("deep"), (1, 28, 28), 2, seed=0)
    for _ in training.train(trajectory, splits, 1, 128):
        for method in ("saliency", "integrated_gradients"):
            attribute(trajectory.model, images[:32], labels[:32], method)
    return before, peak()


def peak() -> float:
    """Peak resident memory of this process, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage tells includes the process that started this one
        [line] = [row for row in status.read_text().splitlines() if row.startswith("VmHWM:")]
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
