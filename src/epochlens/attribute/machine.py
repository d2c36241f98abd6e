"""What this machine does: its speed in large matrix products, and how much memory a call takes."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

SIDE = 1024
"""of the matrices whose product is timed"""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread, as a trial has by default."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def matmul_peak(seconds: float = 0.5, dtype: str = "float32") -> float:
    """Measured floating-point operations per second of large matrix products in a dtype on one thread.

    The fastest of as many as fit in that time: a neighbour on the machine can only slow them.
    """
    draws = torch.Generator().manual_seed(0)
    with one_thread():
        a = torch.rand(SIDE, SIDE, generator=draws).to(getattr(torch, dtype))
        best, end = float("inf"), time.perf_counter() + seconds
        while best == float("inf") or time.perf_counter() < end:
            started = time.thread_time()
            torch.mm(a, a)
            best = min(best, max(time.thread_time() - started, 1e-9))
    return 2 * SIDE**3 / best


def memory_growth(call: Callable[[], object]) -> int | None:
    """Bytes by which the call lets this process grow at its worst moment; None where Linux does not tell.

    Memory that was freed before is given back to the system first, for a call that reuses it does not grow.
    """
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the highest value so far
        before = resident("VmRSS")
        call()
        return max(0, resident("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def resident(name: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most so far. Raises OSError."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in /proc/self/status")
