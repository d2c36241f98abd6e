"""The pages of tables before anything is picked, and what is said without runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dash import dcc, html

from epochlens.show import summary
from epochlens.show.explorer import data, parts
from epochlens.show.explorer.data import Source

PAGES = {"/": "Maps", "/stability": "Stability", "/quality": "Quality", "/model": "Model", "/cost": "Cost"}


def left_out_notice(names: Sequence[str]) -> list[html.Div]:
    """Which runs are not shown, as what is recorded of them makes no sense; nothing without any."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    said = f"Left out, because what is recorded of them makes no sense: {', '.join(names[:5])}{more}."
    return parts.notices([said] if names else [])


def empty_page(source: Source) -> list[Any]:
    """What is said while there is no run."""
    command = f"python -m sweeps.grid --name {source.folder.name} --results-dir {source.folder.parent}"
    return [
        html.Section(
            [
                html.H2("No run here yet"),
                html.P(
                    [
                        html.Code(str(source.folder)),
                        " holds neither sweep.json nor any run. This page looks again by itself.",
                    ]
                ),
                html.P(["A sweep that would appear here: ", html.Code(command)]),
            ],
            className="panel",
        )
    ]


def stability_page(source: Source) -> list[Any]:
    """Tables and figures of the analysis."""
    table = data.table_of(source, "stability_summary")
    pickers: list[Any] = []
    if table is not None:
        methods = sorted(table["method"].astype(str).unique())
        metrics, references = (sorted(table[name].astype(str).unique()) for name in ("metric", "reference"))
        pickers = [
            parts.labelled(
                "Metric", parts.picker("metric", metrics, "cosine" if "cosine" in metrics else metrics[0])
            ),
            parts.labelled(
                "Compared with",
                parts.picker(
                    "against",
                    parts.choices(references, parts.REFERENCES),
                    "final" if "final" in references else references[0],
                ),
            ),
            parts.labelled("Method (matrices)", parts.picker("method", methods, methods[0])),
        ]
    else:
        pickers = [
            html.Div([parts.picker(name, [], None) for name in ("metric", "against", "method")], hidden=True)
        ]
    intervals = "Lines are means over seeds, bands 95 % t intervals (of 2 seeds they say little)."
    return [
        html.Div(parts.notices(lacking(source, table))),
        html.Div(pickers, className="panel pickers"),
        parts.figure_panel("means", "Similarity over epochs", intervals, wide=True),
        html.Div(
            [
                parts.figure_panel("accuracies", "Test accuracy", "A line per seed."),
                parts.figure_panel(
                    "settling",
                    "When maps settle",
                    "Medians over seeds and images; bars are 95 % intervals, from 3 seeds on.",
                ),
            ],
            className="cards",
        ),
        parts.figure_panel(
            "matrices",
            "Every epoch with every other",
            "How similar (cosine) the maps of two epochs are, mean over seeds and images.",
            wide=True,
        ),
        parts.sheet("runs", "Runs", "As the store holds them now."),
        parts.sheet("stability_summary", "Similarity", "For the metric and reference chosen above."),
        parts.sheet(
            "settling_summary",
            "Settling epochs",
            "All metrics. Intervals take 3 seeds; a median that is not known is left out.",
        ),
        parts.sheet("comparisons", "Comparisons", "Paired tests between conditions, p adjusted after Holm."),
        dcc.Store(id="stability-tables"),
        dcc.Store(id="stability-shown"),
    ]


def lacking(source: Source, table: Any) -> list[str]:
    """What to do when the analysis has not been run."""
    if table is not None:
        return []
    return [f"No tables yet: they come when the sweep ends, or with python -m sweeps.analyze {source.folder}"]


def quality_page(source: Source) -> list[Any]:
    """Quality of the maps, where it was measured."""
    table = data.table_of(source, "quality_summary")
    metrics = [] if table is None else sorted(table["metric"].astype(str).unique())
    said = (
        "No quality was measured in this sweep, or it is not analysed yet. "
        "python -m sweeps.grid --quality deletion insertion sparseness measures it while training."
    )
    return [
        html.Div(parts.notices([] if metrics else [said])),
        html.Div(
            [
                html.Div(
                    parts.labelled(
                        "Metric",
                        parts.picker(
                            "quality-metric", metric_options(source, metrics), next(iter(metrics), None)
                        ),
                    ),
                    className="panel pickers",
                ),
                parts.figure_panel(
                    "quality",
                    "Quality over epochs",
                    "Lines are means over seeds, bands 95 % t intervals.",
                    wide=True,
                ),
                parts.figure_panel(
                    "quality-curves",
                    "Deletion and insertion at the last epoch",
                    "Probability of the target against the fraction of pixels changed.",
                    wide=True,
                ),
                parts.sheet("quality_summary", "Quality", "For the metric chosen above, at the last epoch."),
                parts.sheet(
                    "quality_metrics", "Metrics", "Which way is better, and why values can be undefined."
                ),
            ],
            hidden=not metrics,
        ),
        dcc.Store(id="quality-tables"),
        dcc.Store(id="quality-shown"),
    ]


def metric_options(source: Source, metrics: Sequence[str]) -> list[dict[str, str]]:
    """Quality metrics in words, with which way is better."""
    table = data.table_of(source, "quality_metrics")
    ways = summary.directions({} if table is None else {"quality_metrics": table})
    words = {name: f", {way} is better" for name, way in ways.items()}
    return parts.choices(metrics, {name: summary.label(name) + words.get(name, "") for name in metrics})
