"""What methods cost on networks: operations, memory and time as bars on logarithmic axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from epochlens.show import style

PREFIXES = {1e15: "P", 1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k", 1.0: "", 1e-3: "m", 1e-6: "µ"}
ROW, GROUP_GAP, WIDTH = 0.115, 0.09, 2.6
"""inches: height of a bar, space between methods, width of a panel"""
NUMBERED_AT_MOST = 80
"""bars of a panel that carry their numbers"""


class Quantity(NamedTuple):
    """A panel: the column it shows, its title and axis, and a column drawn as a mark beside the bar."""

    column: str
    title: str
    axis: str
    unit: str
    expected: str = ""


OPERATIONS = Quantity("flops", "operations", "floating-point operations per image", "")
MEMORY = Quantity("peak_bytes", "memory", "peak memory of a call, bytes", "B")
TIME = Quantity(
    "measured_seconds", "time", "measured CPU time per image, seconds", "s", expected="predicted_seconds"
)
GROWTH = Quantity("measured_bytes", "memory", "measured growth, bytes", "B", expected="expected_bytes")


def pages(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The rows in parts with no more networks than there are colours, each of one size if not all fit."""
    sizes: dict[str, list[str]] = {}
    for row in rows:
        of_size = sizes.setdefault(str(row["size"]), [])
        of_size += [row["network"]] if row["network"] not in of_size else []
    most = len(style.PALETTE)
    groups = list(sizes.values())
    if sum(map(len, groups)) <= most:
        groups = [[name for names in groups for name in names]]
    parts = [names[first : first + most] for names in groups for first in range(0, len(names), most)]
    return [[row for row in rows if row["network"] in names] for names in parts]


def costs(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Bars of each method, a colour per network; where measured, a mark at what was predicted.

    At most six networks (`pages`). A row has `network`, `method`, `flops` per image and `peak_bytes`, and
    where measured `measured_seconds` and `predicted_seconds` per image, `measured_bytes` and
    `expected_bytes`. Numbers that are None or NaN are left out; 0, which a logarithmic axis has no place for,
    is written.
    """
    if not rows:
        return style.blank("no method was counted")
    measured = any(is_number(row.get("measured_seconds")) for row in rows)
    shown = [OPERATIONS, TIME, GROWTH] if measured else [OPERATIONS, MEMORY]
    networks = list(dict.fromkeys(str(row["network"]) for row in rows))
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    height = len(methods) * (len(networks) * ROW + GROUP_GAP)
    left = 0.25 + max(map(len, methods)) * style.INCHES_PER_CHARACTER * style.SMALL / style.TEXT
    handles = [
        Line2D([], [], label=name, color=color, linestyle="", marker="s", markersize=6)
        for name, color in zip(networks, style.PALETTE, strict=False)
    ]
    if measured:
        handles.append(Line2D([], [], color="k", linestyle="", marker="|", markersize=7, label="predicted"))
    size = (WIDTH, max(height, 1.2))
    figure, axes = style.panels(len(shown), len(shown), handles, size=size, left=left, share_x=False)
    for ax, quantity in zip(axes, shown, strict=True):
        draw_bars(ax, rows, quantity, networks, methods)
    return figure


def draw_bars(
    ax: Axes,
    rows: Sequence[Mapping[str, Any]],
    quantity: Quantity,
    networks: Sequence[str],
    methods: Sequence[str],
) -> None:
    """One panel: horizontal bars, methods from the top down, the networks of each side by side."""
    drawn = [row for row in rows if is_number(row.get(quantity.column))]
    marks = [row.get(quantity.expected) for row in rows]
    values = np.array([float(row[quantity.column]) for row in drawn] + [m for m in marks if is_number(m)])
    above = values[values > 0]
    low, high = (above.min(), above.max()) if len(above) else (1.0, 1.0)
    start = 10.0 ** np.floor(np.log10(low) - 0.3)
    ax.set_xscale("log")
    ax.set_xlim(start, high * (high / start) ** 0.28)
    unit = len(networks) + GROUP_GAP / ROW
    for row in drawn:
        n, value = networks.index(str(row["network"])), float(row[quantity.column])
        y = methods.index(str(row["method"])) * unit + n
        ends = [value]
        if value > 0:
            ax.barh(y, value - start, 0.86, start, color=style.PALETTE[n])
        if is_number(row.get(quantity.expected)) and row[quantity.expected] > 0:
            ends.append(float(row[quantity.expected]))
            ax.plot(ends[-1], y, "|", color="k", markersize=5.5, markeredgewidth=1.1)
        if len(drawn) <= NUMBERED_AT_MOST:
            text = si_text(value, quantity.unit)
            place = {"xytext": (3, 0), "textcoords": "offset points", "va": "center_baseline"}
            ax.annotate(text, (max(*ends, start), y), fontsize=5, color="#333333", **place)
    ax.set_ylim(len(methods) * unit - 0.5 - GROUP_GAP / ROW / 2, -0.5 - GROUP_GAP / ROW / 2)
    ax.set_yticks([m * unit + (len(networks) - 1) / 2 for m in range(len(methods))], methods)
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(LogLocator(10, numticks=7))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: si_text(x, "")))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="x", which="minor", length=0)
    ax.set_xlabel(quantity.axis, fontsize=style.TEXT)
    style.head(ax, quantity.title)


def is_number(value: Any) -> bool:
    """Whether there is a finite number."""
    return value is not None and bool(np.isfinite(value))


def si_text(value: float, unit: str) -> str:
    """A number with three digits and the prefix of its size, `60.9 M`."""
    if value == 0:
        return f"0 {unit}".strip()
    size = next((size for size in PREFIXES if abs(value) >= size * 0.9995), min(PREFIXES))
    text = f"{value / size:.3g}"
    return f"{text} {PREFIXES[size]}{unit}".strip()


def text_of(row: Mapping[str, Any], key: str, unit: str) -> str:
    """A number of a row with its unit, a dash where there is none."""
    value = row.get(key)
    return si_text(value, unit) if value is not None and is_number(value) else "-"


def count_text(value: float) -> str:
    """How often something is done, `1,234` or `2.12`."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "method": lambda row: row["method"],
    "operations": lambda row: text_of(row, "flops", ""),
    "forward passes": lambda row: count_text(row["forwards"]),
    "peak memory": lambda row: text_of(row, "peak_bytes", "B"),
}
"""a table's columns: what they show of a row"""
