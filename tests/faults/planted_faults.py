"""Models that fail slowly or take all memory, importable by workers."""

from __future__ import annotations

import time

import torch
from planted import Raising


class Lingering(Raising):
    """Raises after a few training steps, and takes seconds to be cleaned up."""

    def __del__(self) -> None:
        time.sleep(3)


class Hungry(Raising):
    """After a few training steps takes memory until somebody ends its process."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hoard = []
        while self.steps > 15:
            hoard.append(b"x" * 2**26)
            time.sleep(0.02)
        return super().forward(x)
