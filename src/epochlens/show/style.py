"""What the figures share: colours, panels sized in inches, notices and saving."""

from __future__ import annotations

import hashlib
import io
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, MaxNLocator

from epochlens.record.files import slug, write_whole
from epochlens.show.frames import CONTROLS, Tables

Dash = Literal["-", "--", ":", "-."]

# Okabe and Ito's colours, which survive the common colour deficiencies. Their yellow is too pale
# for lines on white and their black is kept for accuracy.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
ACCURACY = "#000000"
GREY = "#8a8a8a"
MOST_BANDS = 6
"""methods in one panel whose bands do not yet hide each other and the lines"""
DASHES: tuple[Dash, ...] = ("-", "--", ":")
MARKERS = "osD^vPX*<>ph"
FIRST = ("saliency", "input_x_gradient", "integrated_gradients", "smoothgrad", "gradcam")

TEXT, SMALL = 8.0, 7.0
# A character of DejaVu Sans is about 0.6 em wide, so labels can be fitted without drawing them first.
INCHES_PER_CHARACTER = 0.6 * TEXT / 72
LONGEST = 150
"""bytes of a file's name without hash and suffix"""
LEFT, RIGHT, TITLE, BETWEEN, AXIS = 0.78, 0.16, 0.44, 0.16, 0.44


class Look(NamedTuple):
    """How a method is drawn in every figure."""

    color: str
    linestyle: Dash
    marker: str


def looks(tables: Tables) -> dict[str, Look]:
    """One colour, dash and marker per method of the tables, the same in every figure of a sweep."""
    found: set[str] = set()
    for frame in tables.values():
        if "method" in frame:
            found.update(str(name) for name in frame["method"].dropna().unique())
    found.discard("*")
    others = sorted(found.difference(FIRST), key=lambda name: (name in CONTROLS, name))
    ordered = [name for name in FIRST if name in found] + others
    size = len(PALETTE)
    return {
        name: Look(PALETTE[i % size], DASHES[i // size % len(DASHES)], MARKERS[i % len(MARKERS)])
        for i, name in enumerate(ordered)
    }


def rate(value: object) -> str:
    """A learning rate as people write it."""
    try:
        return f"{float(str(value)):g}"
    except ValueError:
        return str(value)


def level(factor: str, value: object) -> str:
    """A level of a factor as a label."""
    return f"lr {rate(value)}" if factor == "learning_rate" else str(value)


def named(configuration: Sequence[object]) -> str:
    """A configuration in one line: dataset, model and learning rate."""
    dataset, model, learning_rate = configuration
    return f"{dataset} · {model} · lr {rate(learning_rate)}"


def legend_shape(labels: Sequence[str], width: float) -> tuple[int, float]:
    """Columns of a legend that fits `width` inches, and its height in inches."""
    if not labels:
        return 1, 0.0
    entry = max(map(len, labels)) * INCHES_PER_CHARACTER + 0.55
    columns = int(np.clip(width // entry, 1, len(labels)))
    return columns, 0.12 + 0.175 * -(-len(labels) // columns)


def blank(text: str) -> Figure:
    """A small figure that says why there is nothing to draw."""
    figure = Figure(figsize=(4.8, 1.0))
    lines = textwrap.wrap(text, 64)
    figure.text(0.5, 0.5, "\n".join(lines), ha="center", va="center", fontsize=TEXT + 1, color="#444444")
    return figure


def even(count: int) -> int:
    """Up to four panels per row, and full rows where three or four divide the count."""
    if count <= 4:
        return max(count, 1)
    return 3 if count % 3 == 0 and count % 4 else 4


def panels(
    count: int,
    columns: int,
    handles: Sequence[Line2D] = (),
    *,
    size: tuple[float, float] | None = None,
    side: float = 0.0,
    left: float = LEFT,
    share_x: bool = True,
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels that share their axes, and the legend below.

    All margins are inches, so nothing has to be drawn twice to find out what fits. `size` is one panel's
    width and height, `side` keeps room at the right for a colour bar, `left` is room for tick labels.
    """
    columns = max(1, min(columns, count))
    between = BETWEEN if share_x else 2.5 * BETWEEN
    lines = -(-count // columns)
    wide, high = size or ({1: 4.3, 2: 3.1, 3: 2.5}.get(columns, 2.15), 2.7 if columns == 1 else 2.0)
    width = left + columns * wide + (columns - 1) * between + RIGHT + side
    labels = [str(handle.get_label()) for handle in handles]
    per_line, legend = legend_shape(labels, width)
    gap = TITLE + 0.22
    height = TITLE + lines * high + (lines - 1) * gap + AXIS + legend
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(lines, columns, sharex=share_x, sharey=True, squeeze=False)
    figure.subplots_adjust(
        left=left / width,
        right=1 - (RIGHT + side) / width,
        bottom=(AXIS + legend) / height,
        top=1 - TITLE / height,
        wspace=between / wide,
        hspace=gap / high,
    )
    if handles:
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": 0.3}
        figure.legend(handles=list(handles), ncols=per_line, fontsize=TEXT, frameon=False, **place)
    flat = list(axes.flat)
    for spare in flat[count:]:
        spare.remove()
    for i, ax in enumerate(flat[:count]):
        dress(ax)
        # The last panel of a column carries the axis, also where the row below it is not full.
        ax.tick_params(labelbottom=i + columns >= count)
    return figure, flat[:count]


def stacked(figure: Figure, axes: Sequence[Axes], columns: int, shares: Sequence[float]) -> list[list[Axes]]:
    """Split every panel into parts below each other: for each share, from the top, the parts of all panels.

    The parts of one share have their y axis in common, all parts the x axis.
    """
    parts: list[list[Axes]] = [list(axes), *([] for _ in shares[1:])]
    ends = np.cumsum([0.0, *shares]) / sum(shares)
    for i, ax in enumerate(axes):
        box = ax.get_position()
        gap = 0.12 / figure.get_size_inches()[1]
        lowest = i + columns >= len(axes)
        for part, start, end in zip(parts, ends, ends[1:], strict=False):
            place = (box.x0, box.y1 - end * box.height + gap / 2, box.width, (end - start) * box.height - gap)
            if part is parts[0]:
                ax.set_position(place)
                inner = ax
            else:
                inner = figure.add_axes(place, sharex=ax, sharey=part[0] if part else None)
                dress(inner)
                part.append(inner)
            inner.tick_params(labelleft=i % columns == 0, labelbottom=lowest and part is parts[-1])
    return parts


def dress(ax: Axes) -> None:
    """Thin grey spines, light grid and small ticks."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)
    ax.tick_params(labelsize=SMALL, color=GREY, length=2.5)
    ax.grid(True, color="#e6e6e6", linewidth=0.5)
    ax.set_axisbelow(True)


def head(ax: Axes, first: str, second: str = "") -> None:
    """A panel's title in two lines, shrunk where the panel is narrower than the text."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    room = ax.get_position().width * figure.get_size_inches()[0] + BETWEEN
    for text, height, weight in ((first, 13.5, "bold"), (second, 3.5, "normal")):
        size = TEXT if weight == "bold" else SMALL + 0.5
        fits = room / max(len(text) * INCHES_PER_CHARACTER * size / TEXT, 1e-9)
        ax.annotate(
            text,
            (0, 1),
            (0, height),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=size * float(np.clip(fits, 0.6, 1.0)),
            fontweight=weight,
            va="bottom",
        )


def label_axes(axes: Sequence[Axes], columns: int, x: str, y: str) -> None:
    """Axis labels once per row and column of a panel figure."""
    for i, ax in enumerate(axes):
        if i % columns == 0 and y:
            ax.set_ylabel(y, fontsize=TEXT)
        if i + columns >= len(axes):
            ax.set_xlabel(x, fontsize=TEXT)


def epoch_axis(axes: Sequence[Axes], epochs: np.ndarray) -> None:
    """Whole epochs on the shared x axis, from the first to the last of those given."""
    first, last = float(epochs.min()), float(epochs.max())
    pad = max((last - first) * 0.02, 0.1)
    axes[0].set_xlim(first - pad, last + pad)
    axes[0].xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def span(
    values: Iterable[object], top: float | None = 1.0, ends: Iterable[object] = ()
) -> tuple[float, float]:
    """Axis limits that hold every finite value, up to `top` at least, with a little air.

    `ends` of intervals widen the axis too, but by no more than the values' own range on either side:
    with two or three seeds a t interval can be so wide that nothing else could be read.
    """
    finite = finite_of(values)
    if finite.size == 0:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    high = high if top is None else max(high, top)
    reach = high - low
    beyond = np.clip(finite_of(ends), low - reach, high + reach)
    low, high = float(np.min(beyond, initial=low)), float(np.max(beyond, initial=high))
    pad = 0.04 * (high - low) or max(0.02 * abs(high), 0.01)
    return low - pad, high + pad


def finite_of(values: Iterable[object]) -> np.ndarray:
    """All finite numbers of some arrays in one flat array."""
    flat = np.concatenate([np.empty(0), *(np.asarray(value, dtype=float).ravel() for value in values)])
    return flat[np.isfinite(flat)]


def cut(ax: Axes, ends: Iterable[object], limits: tuple[float, float]) -> None:
    """Say so in the panel where an interval reaches past the axis."""
    reached = finite_of(ends)
    if ((reached < limits[0]) | (reached > limits[1])).any():
        ax.text(
            0.98,
            0.02,
            "an interval reaches past the axis",
            transform=ax.transAxes,
            ha="right",
            va="bottom",
            fontsize=6,
            color="#555555",
        )


def notice(figure: Figure, text: str) -> None:
    """Put a warning line above everything else, on a strip added to the figure's top."""
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(text, max(20, int((width - 0.4) / INCHES_PER_CHARACTER)), break_on_hyphens=False)
    strip = 0.18 + 0.16 * len(lines)
    keep = height / (height + strip)
    places = [(ax, ax.get_position(original=True).bounds) for ax in figure.axes]
    figure.set_size_inches(width, height + strip)
    for ax, (x, y, w, h) in places:
        ax.set_position((x, y * keep, w, h * keep))
    for label in figure.texts:
        x, y = label.get_position()
        label.set_position((x, y * keep))
    figure.text(
        0.5,
        1 - strip / 2 / (height + strip),
        "\n".join(lines),
        ha="center",
        va="center",
        fontsize=TEXT,
        color="#7a2e00",
        bbox={"facecolor": "#fff1d6", "edgecolor": "#d55e00", "linewidth": 0.8, "pad": 2.5},
    )


def save(figure: Figure, folder: str | Path, name: str) -> Path:
    """Write name.png (150 dpi) and name.pdf whole and without dates; returns the PNG's path.

    What no file can be called is replaced in the name.
    """
    folder, name = Path(folder), file_stem(name)
    plain_dollars(figure)
    folder.mkdir(parents=True, exist_ok=True)
    nothing: dict[str, dict[str, None]] = {
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        "png": {"Software": None},
    }
    for kind, metadata in nothing.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
        write_whole(folder / f"{name}.{kind}", buffer.getvalue())
    return folder / f"{name}.png"


def file_stem(name: str) -> str:
    """The name as that of a file; where that is another, a hash tells it from others that come out so."""
    plain = slug(name, LONGEST)
    if plain == name:
        return name
    return f"{plain}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def plain_dollars(figure: Figure) -> None:
    """Makes every text of the figure plain, so that a dollar in a name begins no formula.

    The numbers on axes stay as they are: powers of ten are formulas.
    """
    powers: list[Text] = []
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            if isinstance(axis.get_major_formatter(), LogFormatter):
                powers += axis.get_ticklabels(which="both")
    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_parse_math(text in powers)
