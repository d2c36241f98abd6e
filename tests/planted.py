"""Models that misbehave on purpose, importable by workers."""

from __future__ import annotations

import os

import torch
from torch import nn


def linear(channels: int, classes: int) -> nn.Module:
    """A model that works."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, classes))


class Raising(nn.Module):
    """Raises after a few training steps."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels * 64, classes)
        self.steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        if self.steps > 20:
            raise RuntimeError("planted failure")
        return self.linear(x.flatten(1))


class Dying(Raising):
    """Takes its whole process with it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.steps > 15:
            os._exit(3)
        return super().forward(x)


class Diverging(nn.Module):
    """Its loss is not finite from the second epoch on."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels * 64, classes)
        self.steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        return self.linear(x.flatten(1)) * (float("nan") if self.steps > 12 else 1.0)
