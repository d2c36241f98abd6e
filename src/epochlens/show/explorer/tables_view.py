"""The pages of tables: what of each table is sent to the browser, which sorts it, and the figures above."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from dash import ClientsideFunction, Input, Output

from epochlens.measure.settling import SIMILARITIES
from epochlens.show import frames
from epochlens.show.explorer import data, facets, overviews, parts
from epochlens.show.explorer.data import Run, Source
from epochlens.show.summary import label

if TYPE_CHECKING:
    from dash import Dash

MOST_ROWS = 2000
HIDDEN = ("grid_runs", "run_id")
"""columns that say nothing on a page of one sweep"""
BOUNDED = (*SIMILARITIES, "calibrated_cosine", "ssim")
"""metrics of at most 1"""
SETTLING = {
    **{name: name for name in ("dataset", "model", "learning_rate", "method", "metric")},
    "reference": "compared with",
    "median": "median epoch",
    "ci_low": "95 % from",
    "ci_high": "95 % to",
    "accuracy_median": "accuracy settles",
    "n_seeds": "seeds",
    "n_censored": "images not settled",
}
"""columns of the table of settling epochs, and what they are called"""


def wire_tables(app: Dash, source: Source) -> None:
    """The stability and the quality page."""

    def stability(metric: str, against: str, method: str, revision: str) -> tuple[Any, ...]:
        return show_stability(source, metric, against, method)

    def quality(metric: str, revision: str) -> tuple[Any, ...]:
        return show_quality(source, metric)

    drawn = [Output(name, "figure") for name in ("means", "accuracies", "settling", "matrices")]
    asked = [Input(name, "value") for name in ("metric", "against", "method")]
    app.callback([*drawn, Output("stability-tables", "data")], [*asked, Input("revision", "data")])(stability)
    drawn = [
        Output("quality", "figure"),
        Output("quality-curves", "figure"),
        Output("quality-tables", "data"),
    ]
    app.callback(drawn, [Input("quality-metric", "value"), Input("revision", "data")])(quality)
    for page in ("stability", "quality"):
        shown = Output(f"{page}-shown", "data"), Input(f"{page}-tables", "data")
        app.clientside_callback(ClientsideFunction("epochlens", "tables"), *shown)


def rows_of(frame: pd.DataFrame | None) -> dict[str, Any]:
    """A table for the browser: its columns, its first rows with None for NaN, and how many rows there are."""
    if frame is None:
        return {"columns": [], "rows": [], "total": 0}
    frame = frame.drop(columns=[name for name in HIDDEN if name in frame])
    columns = []
    for name in frame:
        values = frame[name].iloc[:MOST_ROWS]
        if pd.api.types.is_bool_dtype(values) or not pd.api.types.is_numeric_dtype(values):
            columns.append([None if v is None or v is pd.NA or v != v else str(v) for v in values])
        else:
            numbers = values.to_numpy(float, na_value=np.nan)
            columns.append([float(v) if np.isfinite(v) else None for v in numbers])
    return {
        "columns": [str(name) for name in frame],
        "rows": list(zip(*columns, strict=True)),
        "total": len(frame),
    }


def similarity_words(metric: str | None, against: str | None) -> str:
    """A metric and what maps are compared with, for an axis."""
    return f"{str(metric).replace('_', ' ')} to {parts.REFERENCES.get(str(against), str(against))}"


def named(settling: pd.DataFrame | None) -> pd.DataFrame | None:
    """The columns of settling_summary that answer when maps settle, named so that they can be read."""
    if settling is None:
        return None
    kept = settling[[name for name in SETTLING if name in settling]]
    words = [parts.REFERENCES.get(str(name), str(name)) for name in kept["reference"]]
    renamed: Any = kept.assign(reference=words)
    return renamed.rename(columns=SETTLING)


def runs_frame(runs: Mapping[str, Run]) -> pd.DataFrame:
    """The runs as the store has them now."""
    return pd.DataFrame(
        [
            {
                "run": run.name,
                **{name: run.record.get(name) for name in ("dataset", "model", "learning_rate", "seed")},
                "status": run.status,
                "epochs recorded": run.epochs,
                "final accuracy": run.record.get("final_accuracy"),
                "seconds": run.record.get("seconds"),
                "error": run.record.get("error"),
            }
            for run in runs.values()
        ]
    ).dropna(axis=1, how="all")


def chosen(table: pd.DataFrame | None, **equal: Any) -> pd.DataFrame:
    """The rows with those values, as text compared; empty without a table."""
    if table is None:
        return pd.DataFrame()
    mask = np.ones(len(table), bool)
    for name, value in equal.items():
        mask &= (table[name].astype(str) == str(value)).to_numpy(bool)
    return frames.keep(table, mask)


def show_stability(
    source: Source, metric: str | None, against: str | None, method: str | None
) -> tuple[Any, ...]:
    """Four figures (similarity, accuracy, settling, matrices) and the tables of the stability page."""
    summary = chosen(data.table_of(source, "stability_summary"), metric=metric, reference=against)
    settling = data.table_of(source, "settling_summary")
    epochs = data.table_of(source, "epochs")
    matrices = chosen(data.table_of(source, "epoch_matrix"), method=method)
    held = {
        "runs": runs_frame(data.find_runs(source.folder)),
        "stability_summary": summary,
        "settling_summary": named(settling),
        "comparisons": data.table_of(source, "comparisons"),
    }
    return (
        facets.means_figure(summary, similarity_words(metric, against), bounded=metric in BOUNDED),
        overviews.accuracy_figure(pd.DataFrame() if epochs is None else epochs),
        overviews.settling_figure(chosen(settling, metric=metric, reference=against)),
        facets.matrices_figure(matrices),
        {name: rows_of(table) for name, table in held.items()},
    )


def show_quality(source: Source, metric: str | None) -> tuple[Any, Any, Any]:
    """The metric over epochs, deletion and insertion curves, and the tables of the quality page."""
    summary = chosen(data.table_of(source, "quality_summary"), metric=metric)
    last = frames.keep(summary, summary["epoch"] == summary["epoch"].max()) if len(summary) else summary
    held = {"quality_summary": last, "quality_metrics": data.table_of(source, "quality_metrics")}
    curves = data.table_of(source, "quality_curves")
    return (
        facets.means_figure(summary, label(str(metric))),
        facets.removal_figure(pd.DataFrame() if curves is None else curves),
        {name: rows_of(table) for name, table in held.items()},
    )
