"""One training trajectory: a generator that yields once per epoch, equal to the plain PyTorch loop.

The plain loop, for a run with seed s: seed everything with s, build the model, then per epoch iterate
`DataLoader(train, batch_size, shuffle=True)` and `DataLoader(test, batch_size)`. Here the splits stay in
memory as tensors and `streams` makes the draws that the two loaders would make.

Faster than that loop are the absence of a loader and memory that is kept between steps, which change no bit,
and the fused operation of the models `small` and `deep` (`ops`), which rounds otherwise.

On CUDA nothing waits for the device inside an epoch: `launch` queues it on the trajectory's own stream, its
full batches as replays of a captured step (`graphs`), and `collect` waits and reads what it measured. So the
trajectories of one process compute side by side, each with the numbers that it has alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from epochlens.errors import UsageError, unknown
from epochlens.lazy import LazyModule
from epochlens.learn import graphs, streams
from epochlens.learn.data import Splits
from epochlens.learn.models import Factory, build
from epochlens.learn.queues import mark, queued_on, seconds_between, settle

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


class Launched(NamedTuple):
    """An epoch that is queued: sums that it leaves on the device, and when its parts began and ended."""

    train_loss: Tensor
    test_loss: Tensor
    correct: Tensor
    marks: tuple[Any, Any, Any]
    """before training, between training and evaluation, after evaluation"""


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
    replay: graphs.Replay | None = None
    """how the full batches are trained from buffers that stay in place; None: each from tensors of its own"""
    stream: torch.cuda.Stream | None = None
    """where its work is queued, None off CUDA"""
    launched: Launched | None = None
    """the next epoch, if it is under way"""


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
    cuda = torch.device(device).type == "cuda"
    stream = torch.cuda.Stream(device) if cuda else None
    with streams.global_streams_kept(), queued_on(stream):
        streams.seed_all(seed)
        model = build(factory, shape, num_classes).to(device)
        state = streams.global_state()
        replay = graphs.Replay() if cuda else None
        trajectory = Trajectory(
            model, make_optimizer(model, **optimizer), state, precision, replay=replay, stream=stream
        )
    settle(device)
    return trajectory


def make_optimizer(
    model: nn.Module,
    name: str = "adam",
    learning_rate: float = 1e-3,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """The optimizer `name` over all parameters.

    On CUDA Adam counts its steps on the device: so a step can be captured, and has the same bits if not.
    """
    parameters = list(model.parameters())
    if name == "adam":
        on_cuda = any(parameter.is_cuda for parameter in parameters)
        return torch.optim.Adam(parameters, lr=learning_rate, weight_decay=weight_decay, capturable=on_cuda)
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
        if trajectory.launched is None:
            launch(trajectory, splits, batch_size)
        yield collect(trajectory, splits)


def launch(trajectory: Trajectory, splits: TensorSplits, batch_size: int) -> None:
    """Queues the next epoch without waiting for it; on a CPU it is done on return.

    From here to `collect` the trajectory is not whole, and its network may not be used. The process's own
    random streams are untouched.
    """
    with streams.global_streams_kept(), queued_on(trajectory.stream):
        streams.set_global_state(trajectory.streams)
        started, train_loss = mark(trajectory.stream), torch.full((), math.nan)
        if trajectory.epoch >= 0:
            train_loss = train_epoch(trajectory, splits.x_train, splits.y_train, batch_size)
            streams.draw_loader_seed()  # the plain loop's test loader takes one too
        trained = mark(trajectory.stream)
        with arithmetic(trajectory):
            test_loss, correct = score(trajectory.model, splits.x_test, splits.y_test, EVALUATED_TOGETHER)
        trajectory.streams = streams.global_state()
        marks = started, trained, mark(trajectory.stream)
    trajectory.launched = Launched(train_loss, test_loss, correct, marks)


def collect(trajectory: Trajectory, splits: TensorSplits) -> Epoch:
    """Waits for the launched epoch and reads it. Raises TrainingError when its loss is not finite."""
    launched = trajectory.launched
    if launched is None:
        raise RuntimeError("no epoch was launched")
    with queued_on(trajectory.stream):
        train_loss = launched.train_loss.item() / len(splits.x_train)
        test_loss = launched.test_loss.item() / len(splits.x_test)
        accuracy = launched.correct.item() / len(splits.x_test)
    trajectory.launched = None
    trajectory.epoch += 1
    if trajectory.epoch > 0 and not (math.isfinite(train_loss) and math.isfinite(test_loss)):
        raise TrainingError(
            f"the loss is not finite at epoch {trajectory.epoch} (train {train_loss}, test {test_loss}): "
            "try a smaller learning rate"
        )
    started, trained, ended = launched.marks
    seconds = seconds_between(started, trained), seconds_between(trained, ended)
    return Epoch(trajectory.epoch, train_loss, test_loss, accuracy, *seconds)


def train_epoch(trajectory: Trajectory, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    """One pass over the training split in a freshly drawn order; returns the sum of its images' losses."""
    trajectory.model.train()
    order = streams.draw_permutation(len(images))
    if trajectory.replay is not None:
        step = partial(take_step, trajectory)
        return graphs.train_epoch(
            trajectory.replay, step, trajectory.model, images, labels, order, batch_size
        )
    total = torch.zeros((), device=images.device)
    for batch in order.to(images.device).split(batch_size):
        take_step(trajectory, images, labels, batch, total)
    return total


def take_step(trajectory: Trajectory, images: Tensor, labels: Tensor, batch: Tensor, total: Tensor) -> None:
    """One optimizer step on the images of these indices; adds the sum of their losses to `total`."""
    trajectory.optimizer.zero_grad()
    x, y = images.index_select(0, batch), labels.index_select(0, batch)
    with arithmetic(trajectory):  # one a step: autocast keeps the weights that it has rounded
        loss = nn.functional.cross_entropy(trajectory.model(x), y)
    loss.backward()
    trajectory.optimizer.step()
    total += loss.detach() * len(batch)


def arithmetic(trajectory: Trajectory) -> contextlib.AbstractContextManager[Any]:
    """The context in which the trajectory's network computes in its precision."""
    if trajectory.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(next(trajectory.model.parameters()).device.type, torch.bfloat16)


def evaluate(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (a fraction) of the model in eval mode."""
    loss, correct = score(model, images, labels, batch_size)
    return loss.item() / len(images), correct.item() / len(images)


def score(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropy and number of right answers of the model in eval mode, left on the device."""
    model.eval()
    loss = torch.zeros((), device=images.device)
    correct = torch.zeros((), dtype=torch.int64, device=images.device)
    with torch.no_grad():
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            logits = model(x)
            loss += nn.functional.cross_entropy(logits, y, reduction="sum")
            correct += (logits.argmax(1) == y).sum()
    return loss, correct


def to_bytes(trajectory: Trajectory) -> bytes:
    """Everything that the next epoch depends on, except the splits. Not while one is under way."""
    if trajectory.launched is not None:
        raise RuntimeError("an epoch is under way: collect it first")
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
    device = str(next(trajectory.model.parameters()).device)
    state = torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
    for saved_group, group in zip(
        state["optimizer"]["param_groups"], trajectory.optimizer.param_groups, strict=True
    ):
        saved_group |= {"capturable": group["capturable"]} if "capturable" in group else {}
    with queued_on(trajectory.stream):
        trajectory.model.load_state_dict(state["model"])
        trajectory.optimizer.load_state_dict(state["optimizer"])
    settle(device)
    if trajectory.replay is not None:
        trajectory.replay.forget()  # the captured step has the optimizer's former tensors
    trajectory.streams, trajectory.epoch, trajectory.launched = state["streams"], state["epoch"], None
