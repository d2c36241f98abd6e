"""One training trajectory: a generator that yields once per epoch, equal to the plain PyTorch loop.

The plain loop, for a run with seed s: seed everything with s, build the model, then per epoch iterate
`DataLoader(train, batch_size, shuffle=True)` and `DataLoader(test, batch_size)`. Here the splits stay in
memory as tensors and `streams` makes the draws that the two loaders would make.

Faster than that loop are the absence of a loader and memory that is kept between steps, which change no bit,
and the fused operation of the models `small` and `deep` (`ops`), which rounds otherwise.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from epochlens.errors import UsageError, unknown
from epochlens.lazy import LazyModule
from epochlens.learn import streams
from epochlens.learn.data import Splits
from epochlens.learn.models import Factory, build

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch, nn = LazyModule("torch"), LazyModule("torch.nn")

OPTIMIZERS = ("adam", "sgd")
PRECISIONS = ("fp32", "bf16")
EVALUATED_TOGETHER = 128
"""test images a batch: more leave the cache"""


class TrainingError(RuntimeError):
    """Training cannot go on, and would fail the same way again."""


class TensorSplits(NamedTuple):
    """Images [N,C,H,W] float32 and labels [N] int64 of both splits, on the device that trains."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def as_tensors(splits: Splits, device: str = "cpu") -> TensorSplits:
    """The splits as tensors on the device; on the CPU they share the arrays' memory.

    Strides are made canonical: NumPy leaves those of one-element axes arbitrary, and PyTorch would take
    some for another memory format, with other rounding.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # shared arrays are read, never written
        tensors = [torch.from_numpy(array.reshape(-1)).view(array.shape).to(device) for array in splits]
    return TensorSplits(*tensors)


class Epoch(NamedTuple):
    """What one epoch measured. Epoch 0 is the untrained network: its train_loss is NaN."""

    epoch: int
    train_loss: float
    test_loss: float
    accuracy: float
    seconds_train: float
    seconds_eval: float


@dataclass
class Trajectory:
    """A network under training: with the splits, all that its next epoch depends on."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    streams: dict[str, Any]
    precision: str = "fp32"
    """of training and evaluation; weights and optimizer are always float32"""
    epoch: int = -1
    """the last epoch completed; -1 before the untrained network was evaluated"""


def begin(
    factory: Factory,
    shape: tuple[int, int, int],
    num_classes: int,
    seed: int,
    device: str = "cpu",
    precision: str = "fp32",
    **optimizer: Any,
) -> Trajectory:
    """A trajectory before its first epoch: all streams seeded, then the model built, as in a plain script.

    With precision bf16 operands of products are rounded to bfloat16 (autocast). Raises UsageError for unknown
    settings.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    keep_freed_memory()
    with streams.global_streams_kept():
        streams.seed_all(seed)
        model = build(factory, shape, num_classes).to(device)
        state = streams.global_state()
    return Trajectory(model, make_optimizer(model, **optimizer), state, precision)


def make_optimizer(
    model: nn.Module,
    name: str = "adam",
    learning_rate: float = 1e-3,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """The optimizer `name` over all parameters."""
    parameters = list(model.parameters())
    if name == "adam":
        return torch.optim.Adam(parameters, lr=learning_rate, weight_decay=weight_decay)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum, weight_decay=weight_decay)
    raise UsageError("optimizer", name, f"is unknown. Choices: {', '.join(OPTIMIZERS)}")


@functools.cache
def keep_freed_memory() -> None:
    """Has glibc keep what is freed for the next step; elsewhere it does nothing. Holds for the whole process.

    By default the activations of every step go back to the system, which maps and zeroes the same memory for
    the next one: up to half of the time of a small network.
    """
    with contextlib.suppress(OSError, AttributeError):
        configure = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_threshold = -1, -3
        configure(mmap_threshold, 2**25)  # the most that glibc takes
        configure(trim_threshold, 2**30)


def train(trajectory: Trajectory, splits: TensorSplits, epochs: int, batch_size: int) -> Iterator[Epoch]:
    """Yields the untrained network's Epoch 0, then one Epoch after each pass, up to `epochs`.

    Goes on from `trajectory.epoch`. Between yields the trajectory is whole: `to_bytes` may save it, and the
    process's own random streams are untouched. Raises TrainingError when the loss is not finite.
    """
    while trajectory.epoch < epochs:
        started = time.perf_counter()
        with streams.global_streams_kept():
            streams.set_global_state(trajectory.streams)
            train_loss = math.nan
            if trajectory.epoch >= 0:
                train_loss = train_epoch(trajectory, splits.x_train, splits.y_train, batch_size)
                streams.draw_loader_seed()  # the plain loop's test loader takes one too
            trained = time.perf_counter()
            with arithmetic(trajectory):
                test = splits.x_test, splits.y_test
                test_loss, accuracy = evaluate(trajectory.model, *test, EVALUATED_TOGETHER)
            trajectory.streams = streams.global_state()
        trajectory.epoch += 1
        if trajectory.epoch > 0 and not (math.isfinite(train_loss) and math.isfinite(test_loss)):
            raise TrainingError(
                f"the loss is not finite at epoch {trajectory.epoch} (train {train_loss}, test {test_loss}): "
                "try a smaller learning rate"
            )
        evaluated = time.perf_counter()
        yield Epoch(trajectory.epoch, train_loss, test_loss, accuracy, trained - started, evaluated - trained)


def train_epoch(trajectory: Trajectory, images: Tensor, labels: Tensor, batch_size: int) -> float:
    """One pass over the training split in a freshly drawn order; returns the mean loss over its images."""
    model, optimizer = trajectory.model.train(), trajectory.optimizer
    order = streams.draw_permutation(len(images)).to(images.device)
    total = torch.zeros((), device=images.device)
    for batch in order.split(batch_size):
        optimizer.zero_grad()
        x, y = images.index_select(0, batch), labels.index_select(0, batch)
        with arithmetic(trajectory):  # one a step: autocast keeps the weights that it has rounded
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(batch)
    return total.item() / len(images)


def arithmetic(trajectory: Trajectory) -> contextlib.AbstractContextManager[Any]:
    """The context in which the trajectory's network computes in its precision."""
    if trajectory.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(next(trajectory.model.parameters()).device.type, torch.bfloat16)


def evaluate(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (a fraction) of the model in eval mode."""
    model.eval()
    loss = torch.zeros((), device=images.device)
    correct = torch.zeros((), dtype=torch.int64, device=images.device)
    with torch.no_grad():
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            logits = model(x)
            loss += nn.functional.cross_entropy(logits, y, reduction="sum")
            correct += (logits.argmax(1) == y).sum()
    return loss.item() / len(images), correct.item() / len(images)


def to_bytes(trajectory: Trajectory) -> bytes:
    """Everything that the next epoch depends on, except the splits."""
    buffer = io.BytesIO()
    state = {
        "model": trajectory.model.state_dict(),
        "optimizer": trajectory.optimizer.state_dict(),
        "streams": trajectory.streams,
        "epoch": trajectory.epoch,
    }
    torch.save(state, buffer)
    return buffer.getvalue()


def restore(trajectory: Trajectory, saved: bytes) -> None:
    """Puts a fresh trajectory of the same settings where `to_bytes` left one. Loads no pickled code."""
    device = next(trajectory.model.parameters()).device
    state = torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
    trajectory.model.load_state_dict(state["model"])
    trajectory.optimizer.load_state_dict(state["optimizer"])
    trajectory.model.to(device)
    trajectory.streams, trajectory.epoch = state["streams"], state["epoch"]
