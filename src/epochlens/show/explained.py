"""One image explained: its maps, its superpixels, deletion and insertion curves, and what convolutions saw.

Every function is pure, from arrays to a Figure; sizes are inches from the upper left corner.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from scipy import ndimage

from epochlens.show import style
from epochlens.show.maps import COLOURS, fold, photograph, place

MARGIN, TOP = 0.3, 0.45
MOST_CHANNELS, CHANNELS_PER_ROW = 64, 16
MARK = "#ffe000"


class Superpixels(NamedTuple):
    """A method that gives each superpixel one value: labels [H,W] int, values [H,W], and the regions [H,W]
    (bool) that speak most for the target."""

    labels: np.ndarray
    values: np.ndarray
    positive: np.ndarray


def maps_sheet(
    image: np.ndarray,
    maps: Mapping[str, np.ndarray],
    probabilities: Mapping[str, float],
    title: str,
    facts: Sequence[str],
) -> Figure:
    """The image [C,H,W] with its most probable classes, and each method's map [C,H,W], a value per pixel."""
    columns = 5
    cell, gap, high, photo = 1.55, 0.22, 2.25, 1.75
    width = 2 * MARGIN + columns * (cell + gap) - gap
    head = TOP + photo + 0.35
    height = head - (-len(maps) // columns) * high + 0.1
    figure = titled(width, height, title)
    picture = panel(figure, MARGIN, TOP + 0.05, photo, photo)
    picture.imshow(photograph(image), interpolation="nearest")
    probability_bars(figure, (MARGIN + photo + 1.0, TOP + 0.25, 2.3, photo - 0.45), probabilities)
    at = (MARGIN + photo + 3.6) / width, 1 - (TOP + 0.25) / height
    figure.text(*at, "\n".join(facts), fontsize=style.TEXT, va="top", linespacing=1.5)
    for i, (label, values) in enumerate(maps.items()):
        x, y = MARGIN + i % columns * (cell + gap), head + i // columns * high
        draw_map(figure, (x, y + 0.32, cell, cell), label, per_pixel(values), image)
    return figure


def probability_bars(
    figure: Figure, box: tuple[float, float, float, float], probabilities: Mapping[str, float]
) -> None:
    """Horizontal bars of the classes' probabilities, the first one at the top."""
    ax = panel(figure, *box, frame=True)
    names, values = list(probabilities), list(probabilities.values())
    ax.barh(range(len(names)), values, color=style.PALETTE[0], height=0.62)
    ax.set(xlim=(0, 1.25), ylim=(max(len(names), 4) - 0.4, -0.6), xticks=[0, 0.5, 1])
    ax.set_yticks(range(len(names)), names, fontsize=style.TEXT)
    for i, value in enumerate(values):
        ax.text(value, i, f" {value:.3f}", va="center", fontsize=style.SMALL)
    ax.set_title("probability of class", fontsize=style.TEXT, loc="left")
    ax.grid(False, axis="y")


def draw_map(
    figure: Figure, box: tuple[float, float, float, float], label: str, values: np.ndarray, image: np.ndarray
) -> AxesImage:
    """One map [H,W] in diverging colours about zero on its own scale, which the bar below it tells.

    The outline of what is bright in an image of one channel lies over it.
    """
    x, y, wide, high = box
    ax = panel(figure, x, y, wide, high)
    drawn = diverging(ax, values)
    if image.shape[0] == 1 and np.ptp(image) > 0:
        outline(ax, image[0] > (image.min() + image.max()) / 2, "#555555", 0.5)
    lines = fold(label, 24)
    ax.set_title("\n".join(lines), fontsize=style.TEXT if len(lines) == 1 else style.SMALL - 0.5, pad=3)
    bar = panel(figure, x, y + high + 0.06, wide, 0.07)
    scale(figure, drawn, bar)
    return drawn


def diverging(ax: Axes, values: np.ndarray) -> AxesImage:
    """Draws [H,W] in red (positive) and blue, from minus to plus the 99.5th percentile of absolute values."""
    limit = reach(values)
    if not limit:
        note = "zero everywhere" if np.isfinite(values).any() else "undefined"
        ax.text(0.5, 0.5, note, transform=ax.transAxes, ha="center", va="center", fontsize=style.SMALL)
    size = limit or 1.0
    return ax.imshow(values, cmap=COLOURS, vmin=-size, vmax=size, interpolation="nearest")


def reach(values: np.ndarray) -> float:
    """The 99.5th percentile of absolute values, the largest where that is 0; 0 for a map of zeros or NaN."""
    sizes = np.abs(values[np.isfinite(values)])
    if not sizes.size:
        return 0.0
    return float(np.percentile(sizes, 99.5)) or float(sizes.max())


def scale(figure: Figure, drawn: AxesImage, bar: Axes) -> None:
    """A thin colour bar that says what its two ends are worth."""
    low, high = drawn.get_clim()
    colours = figure.colorbar(drawn, cax=bar, orientation="horizontal")
    colours.set_ticks([low, 0, high], labels=[f"{low:.3g}", "0", f"{high:.3g}"])
    bar.tick_params(length=0, pad=2, labelsize=style.SMALL - 0.5)
    bar.spines[:].set_linewidth(0.4)
    for side, text in zip(("left", "center", "right"), bar.get_xticklabels(), strict=True):
        text.set_horizontalalignment(side)


def superpixel_sheet(image: np.ndarray, rows: Mapping[str, Superpixels], title: str) -> Figure:
    """A row per method: the image's superpixels, their values, and the regions that speak for the target."""
    side, gap = 2.7, 0.35
    row = side + 0.95
    width = 2 * MARGIN + 3 * side + 2 * gap
    figure = titled(width, TOP + len(rows) * row, title)
    photo = photograph(image)
    for i, (label, found) in enumerate(rows.items()):
        at = [(MARGIN + k * (side + gap), TOP + i * row + 0.3, side, side) for k in range(3)]
        count = len(np.unique(found.labels))
        given, valued, chosen = (panel(figure, *box) for box in at)
        given.imshow(photo, interpolation="nearest")
        outline(given, found.labels, MARK)
        drawn = diverging(valued, found.values)
        outline(valued, found.labels, "#555555", 0.5)
        write_values(valued, found.labels, found.values, side)
        x, y, wide, high = at[1]
        scale(figure, drawn, panel(figure, x, y + high + 0.08, wide, 0.08))
        faded = np.where(found.positive[..., None], photo, 0.75 + 0.15 * photo)
        chosen.imshow(faded, interpolation="nearest")
        outline(chosen, found.positive, "#d55e00", 1.6)
        number = len(np.unique(found.labels[found.positive]))
        most = f"the {number} most positive" if number else "none is positive"
        heads = f"{count} superpixels", label, most
        for ax, text in zip((given, valued, chosen), heads, strict=True):
            ax.set_title("\n".join(fold(text, 48)), fontsize=style.TEXT, pad=4)
    return figure


def outline(ax: Axes, labels: np.ndarray, colour: str, width: float = 0.8) -> LineCollection:
    """Lines between neighbouring pixels of different labels [H,W].

    Lines, and not marked pixels, so that nothing is hidden where superpixels are only a few pixels wide.
    """
    y, x = np.nonzero(labels[:, 1:] != labels[:, :-1])
    beside = np.stack([np.stack([x + 0.5, y - 0.5], 1), np.stack([x + 0.5, y + 0.5], 1)], 1)
    y, x = np.nonzero(labels[1:] != labels[:-1])
    below = np.stack([np.stack([x - 0.5, y + 0.5], 1), np.stack([x + 0.5, y + 0.5], 1)], 1)
    lines = LineCollection([*beside, *below], colors=colour, linewidths=width, capstyle="projecting")
    ax.add_collection(lines, autolim=False)
    return lines


def write_values(ax: Axes, labels: np.ndarray, values: np.ndarray, side: float) -> None:
    """Each superpixel's value, at the pixel of it that is deepest inside, to three digits of the largest."""
    found = np.unique(labels)
    size = float(np.clip(72 * side / np.sqrt(len(found)) / 4.2, 3.0, style.TEXT))
    halo = [patheffects.withStroke(linewidth=1.2, foreground="white")]
    digits = max(0, 2 - math.floor(math.log10(reach(values) or 1.0)))
    for label in found:
        y, x = deepest(labels == label)
        # Adding zero turns -0.0 into 0.0.
        text = f"{round(float(values[labels == label][0]), digits) + 0.0:.{digits}f}"
        ax.text(x, y, text, fontsize=size, ha="center", va="center", path_effects=halo)


def deepest(inside: np.ndarray) -> tuple[float, float]:
    """Row and column deepest inside a region [H,W]; the middle of several, where that is inside too."""
    depth = np.asarray(ndimage.distance_transform_edt(np.pad(inside, 1)))[1:-1, 1:-1]
    rows, columns = np.nonzero(depth == depth.max())
    y, x = float(rows.mean()), float(columns.mean())
    if inside[round(y), round(x)]:
        return y, x
    return float(rows[0]), float(columns[0])


def curves_sheet(
    fractions: np.ndarray,
    curves: Mapping[str, Mapping[str, np.ndarray]],
    areas: Mapping[str, Mapping[str, float]],
    title: str,
) -> Figure:
    """Deletion and insertion: the target's probability [S] over the fraction of pixels [S], per method.

    `curves` and `areas` are by panel, then method; the legend is in the order of the areas, the best first.
    """
    names = list(dict.fromkeys(label for methods in curves.values() for label in methods))
    looks = style.looks({"named": pd.DataFrame({"method": names})})
    wide, high, between = 3.7, 2.6, 0.75
    legend = 0.25 + 0.155 * max(map(len, curves.values()), default=0)
    width = 0.7 + len(curves) * (wide + between) - between + MARGIN
    figure = titled(width, TOP + 0.25 + high + 0.5 + legend, title)
    for i, (kind, methods) in enumerate(curves.items()):
        ax = panel(figure, 0.7 + i * (wide + between), TOP + 0.25, wide, high, frame=True)
        best_first = sorted(methods, key=lambda label: order(areas[kind][label], kind))
        for label in best_first:
            look = looks[label]
            area = areas[kind][label]
            text = f"{'undefined' if math.isnan(area) else f'{area:.3f}'}  {label}"
            ax.plot(fractions, methods[label], color=look.color, linestyle=look.linestyle, lw=1.3, label=text)
        ax.set(xlim=(0, 1), ylim=(-0.03, 1.03))
        ax.set_title(kind, fontsize=style.TEXT + 1, loc="left", fontweight="bold")
        ax.set_xlabel(f"fraction of pixels {PIXELS.get(kind, 'changed')}", fontsize=style.TEXT)
        ax.set_ylabel("probability of the target", fontsize=style.TEXT)
        lower = "lower" if kind == "deletion" else "higher"
        ax.legend(
            title=f"area under the curve ({lower} is better)",
            title_fontsize=style.SMALL,
            fontsize=style.SMALL,
            loc="upper left",
            bbox_to_anchor=(-0.02, -0.16),
            borderaxespad=0,
            frameon=False,
            handlelength=2.6,
            alignment="left",
        )
    return figure


PIXELS = {"deletion": "removed, the most important first", "insertion": "inserted, the most important first"}


def order(area: float, kind: str) -> float:
    """Smaller for the better curve: a low area for deletion, a high one for insertion; NaN last."""
    return np.inf if np.isnan(area) else area if kind == "deletion" else -area


def features_sheet(features: Mapping[str, np.ndarray], title: str) -> Figure:
    """Up to 64 channels of each layer's output [C,h,w], on one scale about zero for all of the layer's."""
    cell, gap, between = 0.56, 0.05, 0.62
    counts = [min(len(layer), MOST_CHANNELS) for layer in features.values()]
    rows = [-(-count // CHANNELS_PER_ROW) for count in counts]
    across = min(CHANNELS_PER_ROW, max(counts, default=1))
    width = max(2 * MARGIN + across * (cell + gap) - gap, 5.5)
    height = TOP + sum(row * (cell + gap) + between for row in rows) + 0.1
    figure = titled(width, height, title)
    # One axes in inches for all pictures: hundreds of axes would take a hundred times as long.
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.axis("off")
    frames: list[Rectangle] = []
    y = TOP
    for (name, layer), row in zip(features.items(), rows, strict=True):
        before = len(ax.images)
        limit = reach(layer) or 1.0
        for k, channel in enumerate(layer[:MOST_CHANNELS]):
            x = MARGIN + k % CHANNELS_PER_ROW * (cell + gap)
            place_values(ax, channel, x, y + 0.3 + k // CHANNELS_PER_ROW * (cell + gap), cell, limit, frames)
        first = f", the first {MOST_CHANNELS} shown" if len(layer) > MOST_CHANNELS else ""
        ax.text(MARGIN, y + 0.22, f"layer {name}  {list(layer.shape)}{first}", fontsize=style.TEXT + 0.5)
        if len(ax.images) > before:
            bar = panel(figure, width - MARGIN - 1.4, y + 0.1, 1.4, 0.07)
            scale(figure, ax.images[before], bar)
        y += row * (cell + gap) + between
    ax.add_collection(PatchCollection(frames, facecolor="none", edgecolor="#9a9a9a", linewidth=0.4))
    return figure


def place_values(
    ax: Axes, channel: np.ndarray, x: float, y: float, size: float, limit: float, frames: list[Rectangle]
) -> None:
    """One channel [h,w] in a square cell of the sheet's axes."""
    place(ax, channel, x, y, size, frames)
    ax.images[-1].set(cmap=COLOURS, clim=(-limit, limit))


def per_pixel(values: np.ndarray) -> np.ndarray:
    """A map [C,H,W] summed over channels, [H,W]; channels that all say the same count once."""
    values = np.asarray(values)
    alike = np.array_equal(values, np.broadcast_to(values[:1], values.shape), equal_nan=True)
    return values[0] if alike else values.sum(axis=0)


def titled(width: float, height: float, title: str) -> Figure:
    """An empty figure with its title at the upper left."""
    figure = Figure(figsize=(width, height))
    size = style.TEXT + 2
    room = (width - 2 * MARGIN) / max(len(title) * style.INCHES_PER_CHARACTER * size / style.TEXT, 1e-9)
    figure.text(
        MARGIN / width,
        1 - 0.14 / height,
        title,
        fontsize=size * float(np.clip(room, 0.6, 1)),
        fontweight="bold",
        va="top",
    )
    return figure


def panel(figure: Figure, x: float, y: float, wide: float, high: float, frame: bool = False) -> Axes:
    """Axes whose upper left corner lies at (x, y) inches; without `frame`, bare ones for a picture."""
    width, height = figure.get_size_inches()
    ax = figure.add_axes((x / width, 1 - (y + high) / height, wide / width, high / height))
    if frame:
        style.dress(ax)
        return ax
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(linewidth=0.5, color="#9a9a9a")
    return ax
