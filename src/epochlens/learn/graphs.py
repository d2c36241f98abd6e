"""Training steps on buffers that stay in place, captured once as a CUDA graph and replayed for full batches.

Launching the kernels of a small network's step takes a CPU longer than computing them takes a GPU; a captured
step is launched as one. It reads on the device which batch is next, so a replay needs nothing from the host.
The last, smaller batch of an epoch is trained by the ordinary step.

Captured is a step whose every replay does what the ordinary step would do: the network has layers of PyTorch,
torchvision and this package only (others may decide in Python), and draws no random numbers (the graphs of a
process would share the place that says where their stream stands). Everything else is trained step by step on
the same buffers, and `Replay.refused` says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from epochlens.lazy import LazyModule
from epochlens.learn import streams

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

Step = Callable[["Tensor", "Tensor", "Tensor", "Tensor"], None]
"""(images, labels, indices of a batch, total) -> None: trains on the batch, adds its loss to the total"""
KNOWN = ("torch", "torchvision", "epochlens")
"""packages whose layers do the same at every step"""


class Buffers(NamedTuple):
    """Where a step finds what it works on."""

    images: Tensor
    labels: Tensor
    order: Tensor
    """the epoch's permutation, [N] int64"""
    places: Tensor
    """which places of it the next step takes, [B] int64"""
    total: Tensor
    """sum of the losses so far"""


@dataclass
class Replay:
    """How a trajectory trains its full batches: its buffers, and the captured step if there can be one."""

    buffers: Buffers | None = None
    graph: torch.cuda.CUDAGraph | None = None
    refused: str = ""
    """why steps are not captured, "" while nothing speaks against it"""

    def forget(self) -> None:
        """Drops what was captured: the tensors behind it are no longer the trajectory's."""
        self.buffers = self.graph = None


def train_epoch(
    replay: Replay,
    step: Step,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    order: Tensor,
    batch_size: int,
) -> Tensor:
    """Trains on the images in the given order, [N] int64; returns the sum of their losses, a buffer."""
    buffers = replay.buffers
    if buffers is None or buffers.images is not images or len(buffers.places) != batch_size:
        replay.graph, replay.buffers = None, make_buffers(images, labels, batch_size)
        buffers = replay.buffers
    begin_epoch(buffers, order)
    full = len(images) // batch_size
    for _ in range(full):
        if replay.graph is not None:
            replay.graph.replay()
        elif replay.refused:
            take_static_step(step, buffers)
        else:
            take_first_step(replay, step, model, buffers)
    if full * batch_size < len(images):
        step(images, labels, buffers.order[full * batch_size :], buffers.total)
    return buffers.total


def make_buffers(images: Tensor, labels: Tensor, batch_size: int) -> Buffers:
    """Buffers for epochs over these images, on their device."""
    order, places = labels.new_empty(len(images)), labels.new_empty(batch_size)
    return Buffers(images, labels, order, places, images.new_zeros(()))


def begin_epoch(buffers: Buffers, order: Tensor) -> None:
    """Puts the buffers before the first batch of an epoch in the given order."""
    buffers.order.copy_(order)
    torch.arange(len(buffers.places), out=buffers.places)
    buffers.total.zero_()


def take_static_step(step: Step, buffers: Buffers) -> None:
    """Trains on the next full batch and moves on; all that it needs to know lies in the buffers."""
    step(buffers.images, buffers.labels, buffers.order.index_select(0, buffers.places), buffers.total)
    buffers.places.add_(len(buffers.places))


def take_first_step(replay: Replay, step: Step, model: nn.Module, buffers: Buffers) -> None:
    """Trains on a batch, which also makes the optimizer's state, then captures the step for later ones."""
    before = streams.global_state()
    take_static_step(step, buffers)
    replay.refused = refusal(model, before)
    if replay.refused:
        return
    try:
        replay.graph = capture(step, buffers)
    except RuntimeError as error:
        replay.refused = f"capturing a step failed: {str(error).splitlines()[0]}"


def refusal(model: nn.Module, before: dict[str, object]) -> str:
    """Why the model's step must not be captured, "" if it may: `before` are the streams before one step."""
    foreign = {
        type(module).__qualname__
        for module in model.modules()
        if type(module).__module__.partition(".")[0] not in KNOWN or "forward" in vars(module)
    }
    if foreign:
        return f"layers that may do something else at every step: {', '.join(sorted(foreign))}"
    return "" if streams.are_at(before) else "the network draws random numbers in training"


def capture(step: Step, buffers: Buffers) -> torch.cuda.CUDAGraph:
    """The static step as a graph on the current stream; capturing it computes nothing."""
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.current_stream(buffers.order.device)
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        take_static_step(step, buffers)
    return graph
