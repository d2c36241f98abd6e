"""The forest plot of all paired comparisons: effect sizes with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from epochlens.show import frames, style
from epochlens.show.frames import KEYS, Tables, groups, keep, numbers
from epochlens.show.style import Look

ROWS_AT_MOST = 40
NEEDED = ["factor", "a", "b", *KEYS, "method", "outcome", "n", "p_adjusted", "effect_size"]
ORDER = ("dataset", "model", "learning_rate", "method")
LINE = 0.165
PLAIN, FILL = Look("#333333", "-", "o"), Look("#8a8a8a", "-", "h")


def effect_sizes(tables: Tables) -> Figure:
    """Rank-biserial correlations of the paired comparisons with intervals, by factor and outcome.

    Needs comparisons; at most ROWS_AT_MOST rows, those with the smallest adjusted p.
    """
    frame = frames.rows(tables, "comparisons", NEEDED).reset_index(drop=True)
    tested = keep(frame, np.isfinite(numbers(frame, "effect_size") * numbers(frame, "p_adjusted")))
    if tested.empty:
        return style.blank("no tested comparison in this sweep")
    shown = tested.sort_values("p_adjusted", kind="stable").head(ROWS_AT_MOST).sort_index()
    families = ordered(shown)
    names = {row: where(part.loc[row]) for part in families.values() for row in part.index}
    heads = {key: family_head(key) for key in families}
    method_looks = style.looks(tables)
    left = max(*(0.055 * len(name) for name in names.values()), 0.9) + 0.2
    side = 1.7 if any(censored_pairs(row) for row in shown.to_dict("records")) else 1.05
    height = LINE * (len(names) + 1.25 * len(heads)) + 0.1
    figure, (ax,) = style.panels(1, 1, legend(tested, method_looks), size=(4.6, height), side=side, left=left)
    y, ticks = 0.0, {}
    for key, part in families.items():
        y -= 1.25
        # A head is as wide as the whole figure: it starts at the left edge, over the rows' names.
        ax.annotate(
            heads[key],
            (0, y),
            (6 - left * 72, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=style.SMALL,
            fontweight="bold",
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
        )
        for row in part.index:
            y -= 1.0
            ticks[y] = names[row]
            look = method_looks.get(str(part.loc[row, "method"]), PLAIN)
            effect_row(ax, part.loc[row].to_dict(), y, look)
    dress(ax, ticks, y)
    hold = int((numbers(tested, "p_adjusted") < 0.05).sum())
    untested, rest = len(frame) - len(tested), len(tested) - len(shown)
    parts = [f"the {rest} with the largest p are left out here"] if rest else []
    parts += [f"{untested} more were not tested (incomplete, censored or too few pairs)"] if untested else []
    style.head(ax, f"{hold} of {len(tested)} differences hold after correction", "; ".join(parts))
    return figure


def dress(ax: Axes, ticks: dict[float, str], lowest: float) -> None:
    """Row names, the zero line and the whole range of a correlation."""
    ax.axvline(0, color="#444444", linewidth=0.9)
    ax.set_yticks(list(ticks), list(ticks.values()))
    ax.set_ylim(lowest - 0.8, -0.3)
    ax.set_xlim(-1.06, 1.06)
    ax.set_xticks([-1, -0.5, 0, 0.5, 1])
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    ax.set_xlabel("rank-biserial correlation of a minus b", fontsize=style.TEXT)


def effect_row(ax: Axes, row: dict, y: float, look: Look) -> None:
    """One comparison: filled where it holds after correction, with n, censored pairs and p at the right."""
    effect, low, high = (
        float(row.get(name, np.nan)) for name in ("effect_size", "effect_low", "effect_high")
    )
    holds = float(row["p_adjusted"]) < 0.05
    if np.isfinite(low):
        ax.hlines(y, low, high, color=look.color, linewidth=1.2, zorder=3)
    mark: dict[str, Any] = {
        "marker": look.marker,
        "color": look.color,
        "markerfacecolor": look.color if holds else "white",
    }
    ax.plot(effect, y, markersize=4.8, zorder=4, gid="holds" if holds else "open", **mark)
    place: dict[str, Any] = {
        "va": "center",
        "fontsize": 6.5,
        "color": "#444444",
        "transform": ax.get_yaxis_transform(),
    }
    touched = censored_pairs(row)
    note = f", {touched} censored" if touched else ""
    ax.text(1.02, y, f"n = {row['n']:.0f}{note}, p = {row['p_adjusted']:.2g}", **place)


def censored_pairs(row: Mapping[Any, Any]) -> int:
    """How many pairs of a comparison have a censored side."""
    return int(np.nan_to_num(float(row.get("n_censored", 0))))


def ordered(frame: pd.DataFrame) -> dict[tuple, pd.DataFrame]:
    """Rows by factor, pair of levels and outcome, the factors in the order of a configuration."""
    found = groups(frame, ["factor", "a", "b", "outcome"])
    return {
        key: found[key]
        for key in sorted(found, key=lambda key: (ORDER.index(key[0]) if key[0] in ORDER else 9, key))
    }


def family_head(key: tuple) -> str:
    """What a family of comparisons compares, and on what."""
    factor, a, b, outcome = key
    return f"{style.level(factor, a)} minus {style.level(factor, b)}: {outcome}"


def where(row: pd.Series) -> str:
    """The other factors' levels of a comparison."""
    return " · ".join(style.level(c, row[c]) for c in [*KEYS, "method"] if str(row[c]) != "*")


def legend(frame: pd.DataFrame, method_looks: dict[str, Look]) -> list[Line2D]:
    """The methods in use, and what filled and open markers say."""
    present = {str(method) for method in frames.values(frame, "method")}
    dots = [(look, name, look.color) for name, look in method_looks.items() if name in present]
    if "*" in present:
        dots.append((PLAIN, "between methods", PLAIN.color))
    dots += [(FILL, "filled: adjusted p < 0.05", FILL.color), (FILL, "open: not below 0.05", "white")]
    return [
        Line2D([], [], linestyle="", marker=look.marker, color=look.color, markerfacecolor=face, label=label)
        for look, label, face in dots
    ]
