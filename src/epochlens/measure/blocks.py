"""Blocks: similarities of one metric to one reference as an array, and what is made of them.

A run and method give dozens of blocks. They stay arrays until the end, because a table with a row per
image, epoch, reference and metric is slow to build in pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray


class Block(NamedTuple):
    """Similarities of maps [T, N] at epochs [T] to one reference by one metric; NaN where undefined."""

    reference: str
    metric: str
    epochs: NDArray[np.integer]
    values: NDArray[np.float64]


def find(blocks: Iterable[Block], metric: str, reference: str) -> Block:
    """The block of that metric and reference. Raises KeyError when there is none."""
    for block in blocks:
        if (block.metric, block.reference) == (metric, reference):
            return block
    raise KeyError(f"no block of {metric} to {reference}")


def columns(blocks: Sequence[Block], samples: NDArray) -> dict[str, NDArray]:
    """A row per image as arrays: epoch, reference and metric (objects), sample, value, block by block."""
    sizes = [block.values.size for block in blocks]
    return {
        "epoch": np.concatenate([np.repeat(b.epochs, len(samples)) for b in blocks]).astype(np.int32),
        "reference": np.repeat(np.array([b.reference for b in blocks], object), sizes),
        "metric": np.repeat(np.array([b.metric for b in blocks], object), sizes),
        "sample": np.concatenate([np.tile(samples, len(b.epochs)) for b in blocks]).astype(np.int32),
        "value": np.concatenate([b.values.ravel() for b in blocks]),
    }


def as_rows(
    blocks: Sequence[Block], samples: NDArray, references: Sequence[str], metrics: Sequence[str]
) -> pd.DataFrame:
    """A row per image: epoch, reference and metric (categorical, always all choices), sample, value.

    The same categories everywhere let tables of different references, metrics and runs join as they are.
    """
    frame = pd.DataFrame(columns(blocks, samples))
    for name, choices in (("reference", references), ("metric", metrics)):
        frame[name] = pd.Categorical(frame[name], categories=pd.Index(choices))
    return frame


def averages(blocks: Sequence[Block]) -> pd.DataFrame:
    """Mean over images, a row per epoch of each block: epoch, reference, metric, value, n_undefined.

    Undefined values are left out of the mean; value is NaN where none is defined.
    """
    parts = []
    for block in blocks:
        undefined = np.isnan(block.values)
        with np.errstate(invalid="ignore"):
            means = np.where(undefined, 0.0, block.values).sum(axis=1) / (~undefined).sum(axis=1)
        parts.append((block.epochs, means, undefined.sum(axis=1)))
    lengths = [len(block.epochs) for block in blocks]
    epochs, means, missing = (np.concatenate(part) for part in zip(*parts, strict=True))
    return pd.DataFrame(
        {
            "epoch": epochs.astype(np.int32),
            "reference": np.repeat(np.array([b.reference for b in blocks], object), lengths),
            "metric": np.repeat(np.array([b.metric for b in blocks], object), lengths),
            "value": means,
            "n_undefined": missing,
        }
    )
