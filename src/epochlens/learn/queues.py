"""Where CUDA work is queued, when it is done, and how long it took; on other devices it is done at once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")


@contextlib.contextmanager
def queued_on(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Queues CUDA work on the stream, after what the current one holds; without a stream nothing changes."""
    if stream is None:
        yield
        return
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        yield


def settle(device: str) -> None:
    """Waits for all that is queued on a CUDA device; elsewhere there is nothing to wait for."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def mark(stream: torch.cuda.Stream | None) -> Any:
    """A point in time: that at which the stream gets here, or without one now."""
    if stream is None:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(stream)
    return event


def seconds_between(start: Any, end: Any) -> float:
    """Seconds from one mark to another that have both been reached."""
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1000
