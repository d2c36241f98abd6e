"""The results in sentences, for the report and for the terminal."""

from __future__ import annotations

import numpy as np
import pandas as pd

from epochlens.measure.statistics import t_interval
from epochlens.show import ceiling, frames, lags, scales, settled, style
from epochlens.show.compared import differences
from epochlens.show.flips import flipping
from epochlens.show.frames import KEYS, Tables, groups, keep, numbers
from epochlens.show.prose import item
from epochlens.show.quality_words import quality_sentences
from epochlens.show.settled import median_epoch, settling

__all__ = ["differences", "median_epoch", "quality_sentences", "sentences"]


def sentences(tables: Tables) -> list[str]:
    """What the sweep found: an overview, each configuration and method, then the differences that hold.

    Uses runs, epochs, settling_summary (or else stabilisation), agreement, stability_summary, conditioned and
    comparisons; what is missing or empty is left out or said to be so.
    """
    epochs = groups(frames.rows(tables, "epochs", [*KEYS, "seed", "epoch", "accuracy"]))
    raw, calibrated, steps = (
        settling(tables, *of) for of in ((lags.RAW,), (lags.CALIBRATED,), (lags.RAW, "previous"))
    )
    behind, on_scale = lags.lags(tables), lags.lags(tables, lags.CALIBRATED)
    worth = ceiling.ceilings(tables)
    told = [
        missing_runs(tables),
        *orders(tables),
        settled.small_steps(list(steps.values()), list(raw.values())),
        ceiling.summary(worth.values()),
        flipping(tables),
    ]
    found = (raw, calibrated, steps, behind, on_scale, worth)
    for key in sorted({*epochs, *(k[:3] for mapping in found for k in mapping)}):
        told.append(item(style.named(key), accuracy(epochs.get(key))))
        for method in sorted({k[3] for mapping in found for k in mapping if k[:3] == key}):
            own = (*key, method)
            told.append(
                item(
                    f"{style.named(key)}, {method}",
                    settled.timing(raw.get(own), behind.get(own)),
                    settled.calibrated(calibrated.get(own), on_scale.get(own)),
                    settled.previous(steps.get(own)),
                    ceiling.closeness(worth.get(own)),
                )
            )
    return [sentence for sentence in [*told, *differences(tables)] if sentence]


def orders(tables: Tables) -> list[str]:
    """Whether maps or accuracy settle first, by the raw and the calibrated cosine, and where these differ."""
    raw, calibrated = lags.lags(tables), lags.lags(tables, lags.CALIBRATED)
    told = scales.disagreement(raw, calibrated, ceiling.ceilings(tables))
    return [*scales.overview(raw, calibrated), *([told] if told else [])]


def missing_runs(tables: Tables) -> str:
    """How many runs are not done, or nothing if all are."""
    runs = frames.rows(tables, "runs", ["status"])
    lacking = keep(runs, runs["status"] != "done")
    if lacking.empty:
        return ""
    counts = ", ".join(f"{len(part)} {status}" for (status,), part in groups(lacking, ["status"]).items())
    return f"{len(lacking)} of {len(runs)} runs are not done ({counts}), so some results rest on fewer seeds."


def accuracy(epochs: pd.DataFrame | None) -> str:
    """Mean accuracy at the last epoch with its interval."""
    if epochs is None or epochs.empty:
        return ""
    last = numbers(epochs, "epoch").max()
    values = numbers(epochs, "accuracy")[numbers(epochs, "epoch") == last]
    values = values[np.isfinite(values)]
    if not values.size:
        return ""
    mean, low, high = (float(value) for value in t_interval(values))
    seeds = "one seed" if values.size == 1 else f"{values.size} seeds"
    width = f", 95 % interval {low:.3f} to {high:.3f}" if np.isfinite(low) else ""
    return f"accuracy {mean:.3f} after epoch {last:g} ({seeds}{width})"
