"""The draws that the plain PyTorch training loop makes from its one random stream.

The plain loop seeds Python, NumPy and torch, builds the model, and then iterates a shuffling DataLoader and
a sequential one per epoch. Both iterators draw from torch's global stream: each takes a base seed, and the
shuffling one also takes the seed of its permutation. Making the same draws gives the same batches without
a DataLoader.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")


def seed_all(seed: int) -> None:
    """Seeds Python, NumPy and torch, in the order in which a plain training script does."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def draw_loader_seed() -> int:
    """The base seed that every new DataLoader iterator takes from torch's global stream."""
    return int(torch.empty((), dtype=torch.int64).random_().item())


def draw_permutation(n: int) -> torch.Tensor:
    """The order in which `DataLoader(shuffle=True)` would visit n items, [n] int64, with the same draws."""
    draw_loader_seed()
    generator = torch.Generator().manual_seed(draw_loader_seed())
    return torch.randperm(n, generator=generator)


def probe_indices(n: int, count: int, seed: int) -> torch.Tensor:
    """`count` distinct indices below n, [count] int64, drawn from a stream of their own."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count]


def global_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's global streams, in types that load without pickled code."""
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(keys).copy()), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_global_state(state: dict[str, Any]) -> None:
    """Puts the three global streams where `global_state` found them."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy(), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def are_at(state: dict[str, Any]) -> bool:
    """Whether the global streams stand where `global_state` found them."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, tuple):
            return all(map(same, a, b))
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    return all(same(value, state[name]) for name, value in global_state().items())


@contextmanager
def global_streams_kept() -> Iterator[None]:
    """Leaves the global streams as they were on entry, whatever happens inside."""
    state = global_state()
    try:
        yield
    finally:
        set_global_state(state)
