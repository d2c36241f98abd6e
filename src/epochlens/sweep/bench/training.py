"""Training epochs, with evaluation: ours against the plain PyTorch loop, each in a process of its own.

Memory settings belong to a process, and ours must not reach the peer.
"""

from __future__ import annotations

import math
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from epochlens.attribute.machine import matmul_peak
from epochlens.attribute.methods import attribute_all
from epochlens.lazy import LazyModule
from epochlens.learn import models, training
from epochlens.sweep.bench.attribution import example, plain_layers, plain_saliency, stepwise
from epochlens.sweep.bench.timing import Comparison, Result, measure, relative_norm

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils import data
else:
    torch, nn, data = LazyModule("torch"), LazyModule("torch.nn"), LazyModule("torch.utils.data")

BATCH, RATE = 128, 1e-3
DATASETS = {"MNIST 3v8": ((1, 28, 28), 11982, 1984), "CIFAR cat/dog": ((3, 32, 32), 10000, 2000)}
"""sizes of the study's two datasets: shape, training and test images; the pixels are random"""
LIMITS = {"fp32": (1e-3, 5e-3, 1e-2), "bf16": (3e-2, 5e-2, float("inf"))}
"""how far losses, accuracies and weights (relative) may be apart"""
TARGETS = {
    ("small", "MNIST 3v8", "fp32"): 6.0,
    ("deep", "MNIST 3v8", "fp32"): 1.6,
    ("deep", "MNIST 3v8", "bf16"): 4.0,
    ("gapnet", "MNIST 3v8", "fp32"): 1.0,
}
PROCESSES = {"small": 7}
"""how often both loops begin anew: the peer's time varies threefold with where its memory happens to lie"""
GRID_TARGETS = {"fp32": 4.0, "bf16": 0.0}


class Work(NamedTuple):
    """What is trained."""

    model: str
    dataset: str
    precision: str


STUDIED = [Work(m, d, p) for p in LIMITS for d in DATASETS for m in ("small", "deep")]
USERS = Work("gapnet", "MNIST 3v8", "fp32")
"""a network without operations of our own, as a user's"""


class Epoch(NamedTuple):
    """CPU seconds of one epoch and what it reached."""

    seconds: float
    train_loss: float
    accuracy: float


def comparisons(quick: bool) -> Iterator[Result | str]:
    """Epochs of `small`, `deep` and `gapnet`, then the study's grid extrapolated from such epochs."""
    repeats = 3 if quick else 7
    peaks = {precision: peak_of(precision) for precision in LIMITS}
    for precision, peak in peaks.items():
        yield f"{precision} matrix products of one thread reach {peak / 1e9:.0f} GFLOP/s here"
    found = {}
    for work in [*STUDIED, USERS]:
        target = TARGETS.get((work.model, work.dataset, work.precision), 0.0)
        times = repeats if target else max(2, repeats // 2)
        multiplied = "fp32" if work.model == "small" else work.precision  # a lone convolution stays in fp32
        found[work] = compare(work, times, target, peaks[multiplied])
        yield found[work]
    maps = [explanation(work, repeats) for work in STUDIED if work.precision == "fp32"]
    for precision in LIMITS:
        yield grid(precision, [found[work] for work in STUDIED if work.precision == precision], maps)


def peak_of(precision: str) -> float:
    """Measured operations per second of matrix products in a precision."""
    return matmul_peak(dtype={"fp32": "float32", "bf16": "bfloat16"}[precision])


def grid(precision: str, epochs: list[Result], maps: list[Result]) -> Result:
    """The study's grid: one training serves both methods here, where the study trained once per method.

    An epoch of every dataset and model, with its evaluation and the maps of 32 images by both methods. The
    peer computes in fp32, and so do maps.
    """
    both = [*epochs, *maps]
    ours = sum(result.ours for result in both)
    theirs = sum(2 * result.theirs for result in epochs) + sum(result.theirs for result in maps)
    task = f"an epoch of every dataset and model of the study, {precision}, with maps by 2 methods"
    ratio = theirs / ours if all(math.isfinite(result.ratio) for result in both) else math.nan
    return Result(
        "training", task, "one training per method, fp32", ours, theirs, ratio, math.nan, math.nan,
        GRID_TARGETS[precision], math.nan, max(result.difference for result in both),
    )  # fmt: skip


def explanation(work: Work, repeats: int) -> Result:
    """Maps of one epoch by both of the study's methods, against loops as commonly written."""
    model, images, targets = example(work.model, DATASETS[work.dataset][0])
    plain, methods = plain_layers(model), ["saliency", "integrated_gradients"]

    def ours() -> list[np.ndarray]:
        found = attribute_all(model, images, targets, methods)
        return [found[method].numpy() for method in methods]

    def theirs() -> list[np.ndarray]:
        return [plain_saliency(plain, images, targets), stepwise(plain, images, targets)]

    def difference(a: list[np.ndarray], b: list[np.ndarray]) -> float:
        return max(relative_norm(x, y) for x, y in zip(a, b, strict=True))

    task = f"maps of {len(images)} images of {work.dataset}, `{work.model}`"
    return measure(Comparison("training", task, "loops", ours, theirs, difference, 1e-3, 0.0), repeats)


def compare(work: Work, repeats: int, target: float, peak: float) -> Result:
    """Both loops epoch by epoch in turn, in one or several pairs of fresh processes."""
    begun = PROCESSES.get(work.model, 1)
    measured = [take_turns(work, -(-repeats // begun)) for _ in range(begun)]
    gaps = np.max([distances(*one) for one in measured], axis=0)
    limits = LIMITS[work.precision]
    same = all(gap <= limit for gap, limit in zip(gaps, limits, strict=True))
    note = "" if same else f"losses, accuracies, weights differ by {', '.join(f'{gap:.1e}' for gap in gaps)}"
    pairs = [pair for found, _ in measured for pair in found[1:]]
    ours, theirs = ([epoch.seconds for epoch in side] for side in zip(*pairs, strict=True))
    median, peer = statistics.median(ours), statistics.median(theirs)
    low, high = np.quantile([b / a for a, b in zip(ours, theirs, strict=True)], [0.25, 0.75])
    task = f"training epoch and evaluation of `{work.model}`, {work.dataset}, {work.precision}"
    ratio = peer / median if same else float("nan")
    limit = operations(work) / peak / median
    return Result(
        "training", task, "DataLoader loop, fp32", median, peer, ratio, float(low), float(high), target,
        limit, float(gaps[:2].max()), note,
    )  # fmt: skip


def take_turns(work: Work, repeats: int) -> tuple[list[list[Epoch]], list[list[np.ndarray]]]:
    """Pairs of epochs of both loops, the first to warm up, and their weights at the end."""
    context = multiprocessing.get_context("spawn")
    links, workers = [], []
    for side in ("ours", "plain"):
        link, other = context.Pipe()
        links.append(link)
        workers.append(context.Process(target=serve, args=(other, side, work), daemon=True))
        workers[-1].start()
        other.close()
    pairs = [[ask(link, "epoch") for link in links] for _ in range(repeats + 1)]
    weights = [ask(link, "weights") for link in links]
    for worker in workers:
        worker.join()
    return pairs, weights


def distances(pairs: list[list[Epoch]], weights: list[list[np.ndarray]]) -> tuple[float, float, float]:
    """Largest differences of losses, of accuracies, and of weights relative to their norm."""
    losses = max(abs(a.train_loss - b.train_loss) for a, b in pairs)
    accuracies = max(abs(a.accuracy - b.accuracy) for a, b in pairs)
    norm = np.linalg.norm
    apart = max(float(norm(a - b) / norm(b)) for a, b in zip(*weights, strict=True))
    return losses, accuracies, apart


def operations(work: Work) -> float:
    """Floating-point operations of an epoch: forward, and backward to weights and all inputs but images."""
    from torch.utils.flop_counter import FlopCounterMode

    shape, n_train, n_test = DATASETS[work.dataset]
    model, images, _ = example(work.model, shape)
    plain = plain_layers(model)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        plain(images)
    with FlopCounterMode(display=False) as both:
        plain(images).sum().backward()
    return (both.get_total_flops() * n_train + forward.get_total_flops() * n_test) / len(images)


def ask(link: Connection, word: str) -> Any:
    """The worker's answer to a word."""
    link.send(word)
    return link.recv()


def serve(link: Connection, side: str, work: Work) -> None:
    """One loop in this process: an epoch per request, the weights at the end."""
    torch.set_num_threads(1)
    splits = random_splits(work.dataset)
    model, epoch = (our_run if side == "ours" else plain_run)(work, splits)
    while link.recv() == "epoch":
        link.send(epoch())
    link.send([parameter.detach().numpy() for parameter in model.parameters()])


def random_splits(dataset: str) -> training.TensorSplits:
    """Images that two classes can be told apart by, faintly, so that a loss can fall."""
    shape, *sizes = DATASETS[dataset]
    generator = torch.Generator().manual_seed(0)
    parts: list[torch.Tensor] = []
    for n in sizes:
        labels = torch.randint(0, 2, (n,), generator=generator)
        images = torch.rand(n, *shape, generator=generator)
        images[..., : shape[1] // 2, :] *= 1 - 0.2 * labels.view(-1, 1, 1, 1)
        parts += [images, labels]
    return training.TensorSplits(*parts)


def our_run(work: Work, splits: training.TensorSplits) -> tuple[nn.Module, Callable[[], Epoch]]:
    """The model of a trajectory, and a function that runs its next epoch."""
    c, h, w = splits.x_train.shape[1:]
    settings = {"learning_rate": RATE, "precision": work.precision}
    trajectory = training.begin(models.model_factory(work.model), (c, h, w), 2, 0, **settings)
    epochs = training.train(trajectory, splits, 10**6, BATCH)
    next(epochs)  # the untrained network, which the plain loop does not evaluate

    def epoch() -> Epoch:
        started = time.process_time()
        done = next(epochs)
        return Epoch(time.process_time() - started, done.train_loss, done.accuracy)

    return trajectory.model, epoch


def plain_run(work: Work, splits: training.TensorSplits) -> tuple[nn.Module, Callable[[], Epoch]]:
    """The loop that a researcher writes by hand, on PyTorch's own layers, always in fp32."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    c, h, w = splits.x_train.shape[1:]
    model = nn.Sequential(*models.build(models.model_factory(work.model), (c, h, w), 2).children())
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    train = data.DataLoader(data.TensorDataset(splits.x_train, splits.y_train), BATCH, shuffle=True)
    test = data.DataLoader(data.TensorDataset(splits.x_test, splits.y_test), BATCH)

    def epoch() -> Epoch:
        started = time.process_time()
        total, right = 0.0, 0
        model.train()
        for x, y in train:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(x)
        model.eval()
        with torch.no_grad():
            right = sum(int((model(x).argmax(1) == y).sum()) for x, y in test)
        seconds = time.process_time() - started
        return Epoch(seconds, total / len(splits.x_train), right / len(splits.x_test))

    return model, epoch
