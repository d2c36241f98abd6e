"""One row of a table explained: LIME and SHAP per feature and seed, and how well they agree."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator
from numpy.typing import NDArray

from epochlens.show import style

Floats = NDArray[np.float64]
FEATURES_AT_MOST = 12
COMPARISONS = {
    "shap_between_seeds": "SHAP, two seeds",
    "lime_between_seeds": "LIME, two seeds",
    "lime_between_draws": "LIME, two draws, same forest",
    "lime_against_shap": "LIME and SHAP, same forest",
}
METRIC_NAMES = {
    "cosine": "cosine",
    "spearman_abs": "Spearman of |values|",
    "topk_jaccard": "top 10 % (Jaccard)",
    "sign_agreement": "equal signs",
}
BLUE, ORANGE, GREEN, SKY = style.PALETTE[0], style.PALETTE[1], style.PALETTE[2], style.PALETTE[5]
METHOD_COLORS = (BLUE, ORANGE)
COMPARISON_COLORS = dict(zip(COMPARISONS, (ORANGE, BLUE, SKY, GREEN), strict=True))
LINE, PANEL, HEAD, GAP = 0.23, 2.9, 0.3, 0.75
"""inches: height of a line, width of an upper panel, room for a panel's title, between the two halves"""


def strongest(vectors: Sequence[Floats], at_most: int = FEATURES_AT_MOST) -> list[int]:
    """The features to show, strongest first, for vectors [S,D] of several methods.

    Strength is the mean size over seeds, as a share of the method's largest, averaged over the methods.
    """
    sizes = [np.abs(vector).mean(axis=0) for vector in vectors]
    share = np.mean([size / (size.max() or 1.0) for size in sizes], axis=0)
    return np.argsort(-share, kind="stable")[:at_most].tolist()


def headline(document: Mapping[str, Any]) -> str:
    """Which row is explained, and for which class."""
    chance = np.mean(document["probability"])
    return (
        f"{document['dataset']}, test row {document['index']} (label {document['label_name']}): "
        f"class {document['target_name']}, mean probability {chance:.2f}"
    )


def feature_lines(document: Mapping[str, Any]) -> list[list[str]]:
    """The strongest features in words: name, value, and mean and range over seeds of LIME and SHAP."""
    vectors = [np.array(document[name]) for name in ("lime", "shap")]
    return [
        [document["features"][i], f"{document['values'][i]:.4g}"]
        + [f"{v[:, i].mean():+.3f} ({v[:, i].min():+.3f} to {v[:, i].max():+.3f})" for v in vectors]
        for i in strongest(vectors)
    ]


def agreement_lines(document: Mapping[str, Any], metrics: Sequence[str]) -> list[list[str]]:
    """Agreement in words, a line per scope and comparison, a cell per metric."""
    found = {(r["scope"], r["comparison"], r["metric"]): r for r in document["agreement"]}
    scopes = {"rows": f"{len(document['rows'])} test rows", "row": f"row {document['index']}"}
    return [
        [scope if i == 0 else "", name, *(cell(found[key, comparison, metric]) for metric in metrics)]
        for key, scope in scopes.items()
        for i, (comparison, name) in enumerate(COMPARISONS.items())
    ]


def cell(record: Mapping[str, Any]) -> str:
    """A mean with its interval, where they are defined."""
    mean, low, high = (record[name] for name in ("mean", "ci_low", "ci_high"))
    if np.isnan(mean):
        return "undefined"
    return f"{mean:.3f}" + ("" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]")


def draw(document: Mapping[str, Any]) -> Figure:
    """The figure of a document of `explain --tabular`: what explains the row, how well that agrees."""
    seeds, rows, features = (len(document[name]) for name in ("seeds", "rows", "features"))
    caption = (
        f"{seeds} random forests of {document['trees']} trees that differ in their seed; LIME with "
        f"{document['samples']} samples. Above: a dot per seed, the bar is their mean; both methods are in "
        f"units of probability. Below: similarity of the vectors; bars are means over {rows} test rows, "
        "lines their 95 % intervals over the seeds, diamonds this row alone. The top 10 % are "
        f"{max(1, round(0.1 * features))} of {features} features."
    )
    names = [f"{f} = {v:.4g}" for f, v in zip(document["features"], document["values"], strict=True)]
    vectors = {"LIME weights": np.array(document["lime"]), "SHAP values": np.array(document["shap"])}
    return explanation(vectors, names, document["agreement"], headline(document), caption)


def explanation(
    vectors: Mapping[str, Floats],
    names: Sequence[str],
    agreement: Sequence[Mapping[str, Any]],
    title: str,
    caption: str,
) -> Figure:
    """Above a panel per method with its values [S,D] of the strongest features, below their agreement.

    `vectors` maps two methods' names to their values, `names` [D] label the features; `agreement` holds
    records with comparison, metric, scope (`rows`: bar and interval, `row`: diamond), mean, ci_low, ci_high.
    """
    shown = strongest(list(vectors.values()))
    metrics = list(dict.fromkeys(str(record["metric"]) for record in agreement))
    figure, above, below = layout([names[i] for i in shown], len(metrics), title, caption)
    drawn = {method: values[:, shown] for method, values in vectors.items()}
    limits = style.span([np.zeros(1), *drawn.values()], top=None)
    for ax, (method, values), color in zip(above, drawn.items(), METHOD_COLORS, strict=True):
        contributions(ax, values, color)
        dress(ax, method, "change of the class's probability", limits)
    means = [[record["mean"] for record in agreement], np.zeros(1)]
    ends = [[record["ci_low"], record["ci_high"]] for record in agreement if record["scope"] == "rows"]
    limits = style.span(means, ends=ends)
    for ax, metric in zip(below, metrics, strict=True):
        own = {(r["scope"], r["comparison"]): r for r in agreement if r["metric"] == metric}
        ends = similarities(ax, own)
        dress(ax, METRIC_NAMES[metric], "similarity", limits)
        ax.xaxis.set_major_locator(MultipleLocator(0.5))
        style.cut(ax, ends, limits)
    return figure


def layout(
    features: Sequence[str], metrics: int, title: str, caption: str
) -> tuple[Figure, list[Axes], list[Axes]]:
    """A figure with two panels of features above, one per metric below, its title and its caption."""
    left = max(map(len, [*features, *COMPARISONS.values()])) * style.INCHES_PER_CHARACTER * 0.86 + 0.2
    inner = 2 * PANEL + style.BETWEEN
    width = left + inner + style.RIGHT
    lines = textwrap.wrap(caption, int(1.25 * width / style.INCHES_PER_CHARACTER))
    upper, lower = LINE * len(features) + 0.1, LINE * len(COMPARISONS) + 0.1
    bottom = style.AXIS + 0.16 * len(lines) + 0.08
    above = bottom + lower + GAP
    height = above + upper + HEAD + 0.3
    figure = Figure(figsize=(width, height))

    def row(count: int, base: float, high: float, names: Sequence[str]) -> list[Axes]:
        wide = (inner - (count - 1) * style.BETWEEN) / count
        places = [(left + i * (wide + style.BETWEEN)) / width for i in range(count)]
        axes = [figure.add_axes((x, base / height, wide / width, high / height)) for x in places]
        for i, ax in enumerate(axes):
            ax.set_yticks([-line for line in range(len(names))], names if i == 0 else [""] * len(names))
            ax.set_ylim(0.45 - len(names), 0.55)
        return axes

    edge = 0.1 / width
    figure.text(edge, 1 - 0.1 / height, title, fontsize=style.TEXT + 1, fontweight="bold", va="top")
    note = {"fontsize": style.SMALL, "color": "#444444", "va": "bottom"}
    figure.text(edge, 0.08 / height, "\n".join(lines), **note)
    return figure, row(2, above, upper, features), row(metrics, bottom, lower, list(COMPARISONS.values()))


def contributions(ax: Axes, values: Floats, color: str) -> None:
    """Bars of the mean over seeds of values [S,F], downwards, and a dot per seed."""
    y = -np.arange(values.shape[1])
    ax.barh(y, values.mean(axis=0), height=0.66, color=color, alpha=0.35, linewidth=0)
    around = np.linspace(0.22, -0.22, len(values))
    at = np.broadcast_to(y + around[:, None], values.shape)
    ax.scatter(values, at, s=6, color=color, alpha=0.75, linewidths=0, zorder=3)


def similarities(ax: Axes, records: Mapping[tuple[str, str], Mapping[str, Any]]) -> Floats:
    """One metric: bars of means over rows with intervals, and diamonds of the row; returns the ends [2,4]."""
    y = -np.arange(len(COMPARISONS))
    rows, row = ([records[scope, name] for name in COMPARISONS] for scope in ("rows", "row"))
    low, high = (np.array([r[end] for r in rows]) for end in ("ci_low", "ci_high"))
    colors = list(COMPARISON_COLORS.values())
    ax.barh(y, [r["mean"] for r in rows], height=0.66, color=colors, alpha=0.45, linewidth=0)
    ax.hlines(y + 0.12, low, high, color="#222222", linewidth=1.3, zorder=3)
    mark: dict[str, Any] = {"marker": "D", "markersize": 3.4, "markerfacecolor": "white", "linestyle": ""}
    ax.plot([r["mean"] for r in row], y - 0.16, color="#222222", markeredgewidth=0.8, zorder=4, **mark)
    return np.stack([low, high])


def dress(ax: Axes, title: str, x: str, limits: tuple[float, float]) -> None:
    """A panel's title, zero line, axis and grid."""
    style.dress(ax)
    ax.set_title(title, loc="left", fontsize=style.TEXT, fontweight="bold", pad=4)
    ax.axvline(0, color="#444444", linewidth=0.9)
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    ax.set_xlim(*limits)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6))
    ax.set_xlabel(x, fontsize=style.TEXT)
