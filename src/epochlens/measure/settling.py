"""When a trajectory has settled: the first epoch from which it stays close to where it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

RUN = ["dataset", "model", "learning_rate", "seed"]
SIMILARITIES = ("cosine", "spearman", "spearman_abs", "topk_jaccard", "sign_agreement")


def settling_epoch(
    values: ArrayLike, epochs: ArrayLike, tau: float = 0.95, patience: int = 1
) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
    """First epoch from which similarity to the final epoch stays at or above tau: (epoch, censored).

    values (..., T) in the order of epochs, epochs (..., T) or (T,) strictly increasing -> two arrays (...).
    The closing streak is the unbroken series of values >= tau that ends at the last epoch; NaN counts as
    below and breaks it. The settling epoch is where the streak begins. The last epoch always agrees with
    itself, so a streak of one says nothing: a series with such a streak, with none, or with one shorter than
    patience is censored, and its epoch is the last. Raises ValueError when shapes do not fit, epochs do not
    increase or patience is below 1.
    """
    values, epochs, streak = _closing_streak(values, epochs, tau, patience)
    return _streak_begins(epochs, streak, censored=streak < max(patience, 2))


def settling_on_previous(
    values: ArrayLike, epochs: ArrayLike, tau: float = 0.95, patience: int = 3
) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
    """First epoch from which similarity to the previous epoch stays at or above tau: (epoch, censored).

    values (..., T) and epochs as in settling_epoch, values[t] comparing epochs[t] with the epoch before it.
    The closing streak is the unbroken series of values >= tau that ends at the last epoch, NaN breaking it;
    it must hold at least patience values, else the series is censored and its epoch is the last. Unlike
    similarity to the final epoch, none of the values is 1 by construction, so with a patience of 1 the last
    alone may settle a series: keep it at 2 or more to demand confirmation. Small steps look like stability
    here; see nulls.drift_per_step. Raises ValueError as settling_epoch does.
    """
    values, epochs, streak = _closing_streak(values, epochs, tau, patience)
    return _streak_begins(epochs, streak, censored=streak < patience)


def _closing_streak(
    values: ArrayLike, epochs: ArrayLike, tau: float, patience: int
) -> tuple[NDArray, NDArray, NDArray[np.integer]]:
    """Checked arrays values and epochs of equal shape (..., T), and the closing streak's length (...)."""
    values, epochs = np.asarray(values), np.asarray(epochs)
    if values.ndim == 0 or values.shape[-1] == 0 or epochs.shape[-1:] != values.shape[-1:]:
        raise ValueError(f"values {values.shape} and epochs {epochs.shape} need the same, positive last axis")
    if (np.diff(epochs, axis=-1) <= 0).any():
        raise ValueError("epochs must be strictly increasing")
    if patience < 1:
        raise ValueError(f"patience must be at least 1, not {patience}")
    epochs = np.broadcast_to(epochs, values.shape)
    backwards = np.logical_and.accumulate(values[..., ::-1] >= tau, axis=-1)
    return values, epochs, backwards.sum(axis=-1)


def _streak_begins(
    epochs: NDArray, streak: NDArray, censored: NDArray
) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
    begin = np.where(censored, epochs.shape[-1] - 1, epochs.shape[-1] - streak)
    return np.take_along_axis(epochs, begin[..., None], axis=-1)[..., 0], censored


def stabilisation(
    by_seed: pd.DataFrame,
    epochs: pd.DataFrame,
    tau: float = 0.95,
    metrics: Sequence[str] = SIMILARITIES,
    patience: int = 2,
) -> pd.DataFrame:
    """When each run's maps settle, and how long after its accuracy.

    by_seed: columns dataset, model, learning_rate, seed, method, epoch, reference, metric, value; used are
    rows with reference `final`, one of metrics and a trained epoch (>= 1). epochs: the same run columns,
    epoch and accuracy. Result: a row per run, method and metric with epoch and censored (see settling_epoch),
    accuracy_epoch, lag = epoch - accuracy_epoch and accuracy_censored. Accuracy settles by the same rule and
    patience on min(a, final) / max(a, final); equal ones agree, 0 too. Where a run has no final accuracy,
    accuracy_epoch and lag are NaN and accuracy_censored is True. Raises ValueError when runs share all of a
    row's keys.
    """
    wanted = (by_seed["reference"] == "final") & by_seed["metric"].isin(metrics) & (by_seed["epoch"] >= 1)
    settled = _settle(by_seed.loc[wanted], [*RUN, "method", "metric"], "value", tau, patience)
    accuracy = _settle(_accuracy_ratio(epochs), RUN, "ratio", tau, patience)
    accuracy = accuracy.rename(columns={"epoch": "accuracy_epoch", "censored": "accuracy_censored"})
    table = settled.merge(accuracy, on=RUN, how="left")
    table["accuracy_epoch"] = table["accuracy_epoch"].astype(np.float64)
    table["lag"] = table["epoch"] - table["accuracy_epoch"]
    last = table.pop("accuracy_censored")
    return table.assign(accuracy_censored=table["accuracy_epoch"].isna() | last.eq(True))


def _accuracy_ratio(epochs: pd.DataFrame) -> pd.DataFrame:
    """Trained epochs with the ratio of accuracy to the run's last; runs without a last are left out."""
    table = epochs.loc[epochs["epoch"] >= 1, [*RUN, "epoch", "accuracy"]].sort_values([*RUN, "epoch"])
    runs = table.groupby(RUN, observed=True, dropna=False)
    last = runs["accuracy"].transform(lambda accuracy: accuracy.iloc[-1])
    larger = np.maximum(table["accuracy"], last)
    ratio = (np.minimum(table["accuracy"], last) / larger).where(larger != 0, 1.0)
    return table.assign(ratio=ratio).loc[last.notna()]


def _settle(
    table: pd.DataFrame,
    keys: list[str],
    column: str,
    tau: float,
    patience: int,
    rule: Callable[..., tuple[NDArray, NDArray]] = settling_epoch,
) -> pd.DataFrame:
    """Apply the rule to each group of rows that share keys: columns keys, epoch, censored."""
    table = table.sort_values([*keys, "epoch"], kind="stable", ignore_index=True)
    if table.duplicated([*keys, "epoch"]).any():
        twice = table.loc[table.duplicated([*keys, "epoch"]), [*keys, "epoch"]].iloc[0]
        raise ValueError(f"more than one run has {', '.join(f'{key} {twice[key]}' for key in twice.index)}")
    groups = table.groupby(keys, observed=True, sort=True, dropna=False).ngroup().to_numpy()
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    lengths = np.diff(starts, append=len(table))
    values, epochs = table[column].to_numpy(np.float64), table["epoch"].to_numpy()
    epoch, censored = np.zeros(len(starts), np.int32), np.zeros(len(starts), bool)
    # Runs of equal length are one array, so the usual sweep needs a single pass.
    for length in np.unique(lengths):
        which = np.flatnonzero(lengths == length)
        rows = starts[which, None] + np.arange(length)
        epoch[which], censored[which] = rule(values[rows], epochs[rows], tau, patience)
    return table.loc[starts, keys].reset_index(drop=True).assign(epoch=epoch, censored=censored)
