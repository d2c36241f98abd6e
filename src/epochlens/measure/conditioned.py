"""Stability given the prediction: do maps move because the network changed its mind, or all the same?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from epochlens.measure.stability import reference_pairs

CONDITIONS = ("all", "always_right", "ever_right", "right_at_both", "kept", "flipped")


def masks(
    predictions: ArrayLike, labels: ArrayLike, epochs: ArrayLike, reference: str = "previous"
) -> tuple[NDArray, dict[str, NDArray[np.bool_]]]:
    """Which images meet each condition at each epoch that has the reference: (epochs [T'], name -> [T', N]).

    predictions [T, N] at epochs [T] increasing, labels [N]; reference and its epochs as in
    stability.similarities. `all`; `always_right` and `ever_right` at all or any trained epoch (>= 1), the
    same images in every row; `right_at_both` compared epochs; `kept` and `flipped`: the prediction is the
    same or another at the two compared epochs, right or not. Raises ValueError for an unknown reference or
    shapes that do not fit.
    """
    predictions, labels, epochs = np.asarray(predictions), np.asarray(labels), np.asarray(epochs)
    if predictions.ndim != 2 or predictions.shape != (*epochs.shape, *labels.shape):
        raise ValueError(f"predictions {predictions.shape} are not {epochs.shape} epochs of {labels.shape}")
    pairs = reference_pairs(epochs, reference)
    positions = np.arange(len(epochs))
    now, then = np.broadcast_arrays(*(positions[part] for part in pairs))
    right, trained = predictions == labels, epochs >= 1
    same = predictions[now] == predictions[then]
    met = {
        "all": np.ones_like(same),
        "always_right": np.broadcast_to(right[trained].all(axis=0) & trained.any(), same.shape),
        "ever_right": np.broadcast_to(right[trained].any(axis=0), same.shape),
        "right_at_both": right[now] & right[then],
        "kept": same,
        "flipped": ~same,
    }
    return epochs[now], met


def conditioned(
    values: ArrayLike,
    predictions: ArrayLike,
    labels: ArrayLike,
    epochs: ArrayLike,
    reference: str = "previous",
) -> pd.DataFrame:
    """Mean similarity over the images that meet each condition, with the share of images it speaks for.

    values [T, N] of one reference at all epochs [T] (rows of epochs without that reference are not looked
    at), the rest as in masks. Columns epoch, condition, value (mean over images that meet it, undefined ones
    left out; NaN where none is left), coverage (share of all images that meet it, defined or not), n (images
    in the mean); a row per condition, in the order of CONDITIONS, and epoch. Compare curves with their
    coverage: `always_right` is the same images at every epoch, the others are not. Raises ValueError as
    masks does.
    """
    values = np.asarray(values, np.float64)
    if values.shape != np.shape(predictions):
        raise ValueError(f"values {values.shape} and predictions {np.shape(predictions)} must have one shape")
    at, met = masks(predictions, labels, epochs, reference)
    values = values[np.searchsorted(np.asarray(epochs), at)]
    blocks = []
    for name in CONDITIONS:
        used = met[name] & ~np.isnan(values)
        n = used.sum(axis=1)
        with np.errstate(invalid="ignore"):
            mean = np.where(used, values, 0.0).sum(axis=1) / n
            coverage = met[name].sum(axis=1) / values.shape[1]
        kind = pd.Categorical([name] * len(at), categories=pd.Index(CONDITIONS))
        columns = {"epoch": at.astype(np.int32), "condition": kind, "value": mean}
        blocks.append(pd.DataFrame(columns | {"coverage": coverage, "n": n}))
    return pd.concat(blocks, ignore_index=True)
