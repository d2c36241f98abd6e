"""The study on a GPU: captured and packed training with its maps against a step loop written by hand."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from epochlens.attribute.methods import attribute_all
from epochlens.errors import UsageError
from epochlens.lazy import LazyModule
from epochlens.learn import data, graphs, models, queues, streams, training
from epochlens.sweep import trial
from epochlens.sweep.bench.overhead import naive_maps
from epochlens.sweep.bench.timing import Result, Unavailable
from epochlens.sweep.bench.training import random_splits
from epochlens.sweep.progress import duration

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch, nn = LazyModule("torch"), LazyModule("torch.nn")

BATCH, CHECKED = 128, 2
"""images a step; epochs after which weights are compared"""
METHODS = ("saliency", "integrated_gradients")
LOSSES_APART = 1e-2
"""allowed between our losses and those of the loop by hand, whose Adam rounds otherwise"""
TARGET = 0.0
"""no ratio is promised: none has been measured yet"""
NAN = float("nan")


class Study(NamedTuple):
    """A grid of runs, and how many of them are trained together."""

    datasets: Mapping[str, Callable[[], training.TensorSplits]]
    models: tuple[str, ...] = ("small", "deep")
    rates: tuple[float, ...] = (0.001, 0.01)
    seeds: int = 10
    epochs: int = 50
    probes: int = 32
    packs: tuple[int, ...] = (1, 4, 8)


def real_or_random(spec: str, classes: Sequence[int], name: str) -> training.TensorSplits:
    """The dataset if it lies in ./data, else random images of its size and number."""
    try:
        return training.as_tensors(data.load(spec, classes, "data", download=False))
    except UsageError:
        return random_splits(name)


STUDY = Study(
    {
        "MNIST 3v8": partial(real_or_random, "mnist", (3, 8), "MNIST 3v8"),
        "CIFAR cat/dog": partial(real_or_random, "cifar10", (3, 5), "CIFAR cat/dog"),
    }
)


def comparisons(quick: bool, device: str = "cuda", study: Study = STUDY) -> Iterator[Result | str]:
    """Epochs with their maps, by dataset, model and pack, then the whole grid; wall-clock.

    The grid is extrapolated from these epochs if quick, else trained. Raises Unavailable without a GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise Unavailable("there is no CUDA GPU here: skipped")
    trial.prepare_process(torch.get_num_threads())
    yield f"on {torch.cuda.get_device_name() if device == 'cuda' else device}, maps of {study.probes} images"
    ours = theirs = 0.0
    for (name, load), model in itertools.product(study.datasets.items(), study.models):
        splits = training.TensorSplits(*(tensor.to(device) for tensor in load()))
        found = list(compare(f"`{model}`, {name}", model, splits, study, device, 3 if quick else 9))
        yield from found
        runs = len(study.rates) * study.seeds
        theirs += found[0].theirs * runs * study.epochs
        best = min(zip(found[1:], study.packs, strict=True), key=lambda pair: pair[0].ours)
        if quick:
            ours += best[0].ours * runs * study.epochs
        else:
            ours += train_grid(model, splits, study, device, best[1])
    how = "extrapolated from epochs" if quick else "trained whole"
    count = len(study.datasets) * len(study.models) * len(study.rates) * study.seeds
    task = f"{count} runs of {study.epochs} epochs"
    yield f"{task}, {how}: {duration(ours)}; by hand, extrapolated: {duration(theirs)}"
    ratio = theirs / ours
    yield Result("gpu", f"{task}, {how}", "step loop", ours, theirs, ratio, NAN, NAN, TARGET, NAN, 0.0)


def compare(
    title: str, model: str, splits: training.TensorSplits, study: Study, device: str, epochs: int
) -> Iterator[Result]:
    """One epoch of one run in packs of each size against the loop by hand, if all give the same."""
    expected, loss = by_steps(model, splits, device, study.rates[0])
    epoch = by_hand(model, splits, study)
    apart = abs([epoch() for _ in range(CHECKED)][-1] - loss)
    theirs = seconds_of(epoch, epochs, device)
    for size, captured in [(1, False), *((size, True) for size in study.packs)]:
        pack = [begin(model, splits, device, seed, study.rates[0], captured) for seed in range(size)]
        advance(pack, splits, CHECKED + 1, study.probes)
        same = all(torch.equal(a, b) for a, b in zip(expected, pack[0].model.parameters(), strict=True))
        ours = seconds_of(lambda pack=pack: advance(pack, splits, epochs, study.probes), 1, device)
        ours /= epochs * size
        how = (pack[0].replay.refused if pack[0].replay else "step by step") or "captured"
        task = f"epoch of {title}, {size} together, {how}"
        note = "" if same else "weights differ from those by ordinary steps: no ratio"
        note = note or ("" if apart <= LOSSES_APART else f"loss differs by {apart:.1e} from the loop by hand")
        ratio = NAN if note else theirs / ours
        yield Result("gpu", task, "step loop", ours, theirs, ratio, NAN, NAN, TARGET, NAN, apart, note)


def by_steps(
    model: str, splits: training.TensorSplits, device: str, rate: float
) -> tuple[list[Tensor], float]:
    """Weights and loss of the run with seed 0, its steps launched one by one."""
    run = begin(model, splits, device, 0, rate, captured=False)
    *_, last = training.train(run, splits, CHECKED, BATCH)
    return [parameter.detach().clone() for parameter in run.model.parameters()], last.train_loss


def begin(
    model: str, splits: training.TensorSplits, device: str, seed: int, rate: float, captured: bool = True
) -> training.Trajectory:
    """A run of the study; where there is no CUDA, its steps work on buffers in place all the same."""
    factory, classes = models.model_factory(model), classes_of(splits)
    run = training.begin(factory, shape_of(splits), classes, seed, device, learning_rate=rate)
    if not captured:
        run.replay = None
    elif run.replay is None:
        run.replay = graphs.Replay(refused="on buffers in place")
    return run


def advance(
    pack: Sequence[training.Trajectory], splits: training.TensorSplits, epochs: int, probes: int
) -> None:
    """So many epochs of each run in turn, with their maps, as a trial does it."""
    for run in pack:
        training.launch(run, splits, BATCH)
    for left in range(epochs - 1, -1, -1):
        for run in pack:
            training.collect(run, splits)
            maps = attribute_all(run.model, splits.x_test[:probes], splits.y_test[:probes], METHODS)
            [found.cpu() for found in maps.values()]
            if left:
                training.launch(run, splits, BATCH)


def train_grid(model: str, splits: training.TensorSplits, study: Study, device: str, size: int) -> float:
    """Seconds of all runs of a dataset and model in packs of that size."""
    runs = list(itertools.product(study.rates, range(study.seeds)))
    started = time.perf_counter()
    for chunk in (runs[n : n + size] for n in range(0, len(runs), size)):
        pack = [begin(model, splits, device, seed, rate) for rate, seed in chunk]
        advance(pack, splits, study.epochs + 1, study.probes)
    queues.settle(device)
    return time.perf_counter() - started


def seconds_of(call: Callable[[], object], times: int, device: str) -> float:
    """Seconds by the clock of one of so many calls."""
    queues.settle(device)
    started = time.perf_counter()
    for _ in range(times):
        call()
    queues.settle(device)
    return (time.perf_counter() - started) / times


def by_hand(model: str, splits: training.TensorSplits, study: Study) -> Callable[[], float]:
    """The loop of a tutorial, its images on the device: one step at a time, maps one method at a time.

    Each call is an epoch with evaluation and maps, and returns the mean training loss.
    """
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    x_train, y_train, x_test, y_test = splits
    layers = models.build(models.model_factory(model), shape_of(splits), classes_of(splits)).children()
    network = nn.Sequential(*layers).to(x_train.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=study.rates[0])

    def epoch() -> float:
        order, total = streams.draw_permutation(len(x_train)), 0.0
        network.train()
        for batch in order.to(x_train.device).split(BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(x_train[batch]), y_train[batch])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        streams.draw_loader_seed()
        network.eval()
        with torch.no_grad():
            for x, y in zip(x_test.split(BATCH), y_test.split(BATCH), strict=True):
                (network(x).argmax(1) == y).sum().item()
        maps = naive_maps(network, x_test[: study.probes], y_test[: study.probes])
        [found.cpu() for found in maps]
        return total / len(x_train)

    return epoch


def shape_of(splits: training.TensorSplits) -> tuple[int, int, int]:
    """(C, H, W) of the images."""
    c, h, w = splits.x_train.shape[1:]
    return c, h, w


def classes_of(splits: training.TensorSplits) -> int:
    """The number of classes."""
    return int(splits.y_train.max()) + 1
