"""The maps themselves: a sheet of them over the epochs, and an animation of one image."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw, ImageFont

from epochlens.record.files import write_whole
from epochlens.show import style

COLOURS = "RdBu_r"
SHEET_CAPTION = (
    "Each block is one image: the input at the left, then its maps, a row per method and a column per "
    "epoch (epoch 0 is the untrained network). Maps are summed over channels; red is positive for the "
    "class and blue negative. Every map has its own scale, from minus to plus the 99.5th percentile of "
    "its absolute values, so strengths can't be compared between cells."
)
TIMELAPSE_CAPTION = (
    "The maps of one image over the epochs of training. Maps are summed over channels; red is positive "
    "for the class and blue negative. Every map has its own scale, from minus to plus the 99.5th "
    "percentile of its absolute values."
)
LARGEST = 1_000_000


def tint(maps: np.ndarray) -> np.ndarray:
    """Maps [..., C, H, W] as RGB [..., H, W, 3], red for positive, each on a scale of its own about zero."""
    flat = np.nan_to_num(np.asarray(maps, dtype=float)).sum(axis=-3)
    size = np.percentile(np.abs(flat), 99.5, axis=(-2, -1), keepdims=True)
    # A map with less than one pixel in 200 set would vanish: fall back to its largest value.
    size = np.where(size > 0, size, np.abs(flat).max(axis=(-2, -1), keepdims=True))
    scaled = flat / np.where(size > 0, size, 1)
    return colormaps[COLOURS](np.clip(scaled, -1, 1) * 0.5 + 0.5)[..., :3]


def photograph(image: np.ndarray) -> np.ndarray:
    """An image [C, H, W] in [0,1] as RGB [H, W, 3]; anything but three channels is averaged to grey."""
    pixels = np.clip(np.nan_to_num(np.asarray(image, dtype=float)), 0, 1)
    if pixels.shape[0] != 3:
        pixels = np.repeat(pixels.mean(axis=0, keepdims=True), 3, axis=0)
    return np.moveaxis(pixels, 0, -1)


def spread(epochs: Sequence[int], most: int = 8) -> list[int]:
    """Positions of up to `most` epochs: the first two, the last, and others closer together early on."""
    last = len(epochs) - 1
    if last < most:
        return list(range(last + 1))
    steps = np.unique(np.geomspace(1, last, most - 1).round().astype(int))
    chosen = {0, *steps.tolist()}
    # Rounding merges early steps; fill up with the lowest that are free.
    free = (i for i in range(last) if i not in chosen)
    while len(chosen) < most:
        chosen.add(next(free))
    return sorted(chosen)


def sheet(
    images: np.ndarray,
    maps: np.ndarray,
    epochs: Sequence[int],
    methods: Sequence[str],
    labels: Sequence[object],
    samples: Sequence[object],
    title: str,
    most: int = 3,
) -> Figure:
    """Up to `most` images with their maps over epochs, all methods; images [N,C,H,W], maps [M,T,N,C,H,W]."""
    images, maps = np.asarray(images), np.asarray(maps)
    # Many methods make tall blocks: fewer images then keep the sheet on a page.
    shown = range(min(most, len(images), max(1, 12 // max(len(methods), 1))))
    at = spread(list(epochs))
    if not shown or not at or not len(methods):
        return style.blank("no maps to show")
    names = ["\n".join(fold(name, 22)) for name in methods]
    cell, gap, top, between, bottom = 0.92, 0.07, 0.5, 0.42, 0.5
    label = (
        max(len(line) for name in names for line in name.split("\n")) * style.INCHES_PER_CHARACTER * 0.85
        + 0.15
    )
    block = len(methods) * (cell + gap) - gap
    width = 0.15 + cell + label + len(at) * (cell + gap) + 0.1
    height = top + len(shown) * (block + between) + bottom
    figure = Figure(figsize=(width, height))
    # One axes in inches for the whole sheet: a hundred axes would take a hundred times as long.
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.axis("off")
    ax.text(0.15, 0.12, title, fontsize=style.TEXT + 2, fontweight="bold", va="top")
    frames: list[Rectangle] = []
    for n in shown:
        y = top + n * (block + between) + between * 0.55
        place(ax, photograph(images[n]), 0.15, y + (block - cell) / 2, cell, frames)
        text = f"test image {samples[n]}\nclass {labels[n]}"
        ax.text(0.15, y + (block + cell) / 2 + 0.04, text, fontsize=style.SMALL - 0.5, va="top")
        tiles = np.stack([tint(method_maps[at, n]) for method_maps in maps])
        grid(
            ax, tiles, (0.15 + cell + label, y, cell, gap), names, [f"epoch {epochs[t]}" for t in at], frames
        )
    ax.add_collection(PatchCollection(frames, facecolor="none", edgecolor="#9a9a9a", linewidth=0.5))
    key(figure, width, height)
    return figure


def grid(
    ax: Axes,
    tiles: np.ndarray,
    box: tuple[float, float, float, float],
    names: Sequence[str],
    heads: Sequence[str],
    frames: list[Rectangle],
) -> None:
    """Tiles [M, T, H, W, 3] in rows and columns with their names; box is left, top, cell and gap."""
    left, top, cell, gap = box
    for m, name in enumerate(names):
        y = top + m * (cell + gap)
        ax.text(left - 0.08, y + cell / 2, name, fontsize=style.SMALL, ha="right", va="center")
        for k, picture in enumerate(tiles[m]):
            place(ax, picture, left + k * (cell + gap), y, cell, frames)
    for k, head in enumerate(heads):
        x = left + k * (cell + gap) + cell / 2
        ax.text(x, top - 0.05, head, fontsize=style.SMALL, ha="center", va="bottom")


def fold(name: str, width: int) -> list[str]:
    """A method's name in lines of about `width` characters, broken after its punctuation."""
    lines = [""]
    for piece in re.findall(r"[^:,=_]*[:,=_]|[^:,=_]+", name):
        if lines[-1] and len(lines[-1]) + len(piece) > width:
            lines.append("")
        lines[-1] += piece
    return lines


def place(ax: Axes, picture: np.ndarray, x: float, y: float, size: float, frames: list[Rectangle]) -> None:
    """Draw RGB [H, W, 3] in a square cell, keeping its proportions, and remember the cell's frame."""
    h, w = picture.shape[:2]
    wide, high = size * min(1, w / h), size * min(1, h / w)
    x, y = x + (size - wide) / 2, y + (size - high) / 2
    ax.imshow(picture, extent=(x, x + wide, y + high, y), interpolation="nearest", aspect="auto")
    frames.append(Rectangle((x, y), wide, high))
    ax.set_autoscale_on(False)


def key(figure: Figure, width: float, height: float) -> None:
    """A small colour key at the sheet's lower right."""
    bar = figure.add_axes(((width - 2.2) / width, 0.3 / height, 2.0 / width, 0.09 / height))
    figure.colorbar(ScalarMappable(cmap=COLOURS), cax=bar, orientation="horizontal")
    bar.set_xticks([0, 0.5, 1], ["negative", "0", "positive"], fontsize=style.SMALL - 0.5)
    for side, text in zip(("left", "center", "right"), bar.get_xticklabels(), strict=True):
        text.set_horizontalalignment(side)
    bar.tick_params(length=0, pad=2)
    bar.spines[:].set_linewidth(0.4)


def timelapse(
    path: str | Path,
    image: np.ndarray,
    maps: np.ndarray,
    epochs: Sequence[int],
    methods: Sequence[str],
    accuracy: Sequence[float] | np.ndarray | None = None,
    frames: int = 60,
) -> Path:
    """A GIF of one image's maps over the epochs; image [C,H,W], maps [M,T,C,H,W], accuracy [T] or None."""
    maps = np.asarray(maps)
    if not len(epochs):
        raise ValueError("a time lapse needs at least one epoch")
    curve = None if accuracy is None else np.asarray(accuracy, dtype=float)
    photo, content = photograph(image), b""
    # The first size nearly always fits; noisy maps of many methods need smaller tiles and fewer frames.
    for side, most in ((168, frames), (128, frames), (128, 30), (96, 24), (96, 14), (64, 10)):
        at = spread(list(epochs), min(most, frames))
        tiles = np.stack([tint(method_maps[at]) for method_maps in maps], axis=1)
        content = animate(photo, tiles, [epochs[t] for t in at], methods, curve, at, side)
        if len(content) < LARGEST:
            break
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
    return path


def animate(
    photo: np.ndarray,
    tiles: np.ndarray,
    epochs: Sequence[int],
    methods: Sequence[str],
    accuracy: np.ndarray | None,
    at: Sequence[int],
    side: int,
) -> bytes:
    """The frames as GIF bytes; tiles [T, M, H, W, 3] and `at` their positions in the accuracy."""
    colours = palette(photo)
    indexed = [
        frame(photo, tiles[i], f"epoch {epoch}", methods, accuracy, at[i], side).quantize(
            palette=colours, dither=Image.Dither.NONE
        )
        for i, epoch in enumerate(epochs)
    ]
    # The early epochs change most, so they stay longer; the last one rests before it starts again.
    pace = [max(90, 420 - 55 * i) for i in range(len(indexed))]
    pace[-1] = 2500
    buffer = io.BytesIO()
    indexed[0].save(
        buffer, "GIF", save_all=True, append_images=indexed[1:], duration=pace, loop=0, optimize=False
    )
    return buffer.getvalue()


def palette(photo: np.ndarray) -> Image.Image:
    """One palette for all frames, so that nothing flickers: the maps' colours, greys and the photograph's."""
    tones = colormaps[COLOURS](np.linspace(0, 1, 81))[:, :3] * 255
    greys = np.repeat(np.linspace(0, 255, 40)[:, None], 3, axis=1)
    fixed = np.vstack([tones, greys, [[213, 94, 0]]])
    free = 256 - len(fixed)
    reduced = Image.fromarray((photo * 255).round().astype(np.uint8)).quantize(
        free, method=Image.Quantize.MEDIANCUT
    )
    own = np.reshape(reduced.getpalette() or [], (-1, 3))[:free]
    image = Image.new("P", (1, 1))
    image.putpalette(np.vstack([fixed, own]).round().astype(np.uint8).tobytes())
    return image


def frame(
    photo: np.ndarray,
    tiles: np.ndarray,
    title: str,
    methods: Sequence[str],
    accuracy: np.ndarray | None,
    now: int,
    side: int,
) -> Image.Image:
    """One frame: title, the input, a tile per method in rows of up to five, and accuracy so far."""
    names = ["input", *methods]
    per_row = min(5, len(names))
    lines = -(-len(names) // per_row)
    margin, gap, head, caption = 18, 14, 50, 38
    chart = 92 if accuracy is not None else 0
    width = max(2 * margin + per_row * side + (per_row - 1) * gap, 360)
    picture = Image.new("RGB", (width, head + lines * (side + caption) + chart + 8), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((margin, 14), title, fill="#111111", font=font(22, bold=True))
    if accuracy is not None and np.isfinite(accuracy[now]):
        text = f"test accuracy {accuracy[now]:.3f}"
        draw.text((width - margin, 18), text, fill="#111111", font=font(17), anchor="ra")
    for i, (name, tile) in enumerate(zip(names, [photo, *tiles], strict=True)):
        x, y = margin + i % per_row * (side + gap), head + i // per_row * (side + caption)
        high, wide = (round(side * n / max(tile.shape[:2])) for n in tile.shape[:2])
        pixels = Image.fromarray((tile * 255).round().astype(np.uint8))
        box = (x + (side - wide) // 2, y + (side - high) // 2)
        picture.paste(pixels.resize((wide, high), Image.Resampling.NEAREST), box)
        draw.rectangle((box[0] - 1, box[1] - 1, box[0] + wide, box[1] + high), outline="#9a9a9a")
        caption_tile(draw, name, x, y + side + 4, side)
    if accuracy is not None:
        growing(
            picture,
            accuracy,
            now,
            (margin, head + lines * (side + caption), width - margin, picture.height - 10),
        )
    return picture


def caption_tile(draw: ImageDraw.ImageDraw, name: str, x: int, y: int, side: int) -> None:
    """A tile's name below it, in two lines where it is long."""
    small = font(13 if side > 100 else 10)
    lines = fold(name, max(8, int(side / draw.textlength("n", font=small))))
    lines = [lines[0], "".join(lines[1:])]
    for i, line in enumerate(lines):
        while draw.textlength(line, font=small) > side + 8 and len(line) > 4:
            line = line[:-2] + "…"
        draw.text((x + side / 2, y + 15 * i), line, fill="#333333", font=small, anchor="ma")


def growing(picture: Image.Image, accuracy: np.ndarray, now: int, box: tuple[int, int, int, int]) -> None:
    """Accuracy up to `now` as a line over all epochs, on an axis from 0 to 1."""
    left, top, right, bottom = box
    scale = 3
    # Drawn three times as large and reduced: PIL's lines have no smooth edges of their own.
    canvas = Image.new("RGB", ((right - left) * scale, (bottom - top) * scale), "white")
    draw = ImageDraw.Draw(canvas)
    x0, x1, y0, y1 = 34 * scale, canvas.width - 8 * scale, 8 * scale, canvas.height - 18 * scale
    for level in (0.0, 0.5, 1.0):
        y = y1 + (y0 - y1) * level
        draw.line((x0, y, x1, y), fill="#dddddd", width=scale)
        draw.text((x0 - 6 * scale, y), f"{level:g}", fill="#666666", font=font(11 * scale), anchor="rm")
    last = max(len(accuracy) - 1, 1)
    points = [
        (x0 + (x1 - x0) * i / last, y1 + (y0 - y1) * float(np.clip(a, 0, 1)))
        for i, a in enumerate(accuracy[: now + 1])
        if np.isfinite(a)
    ]
    if len(points) > 1:
        draw.line(points, fill="#111111", width=2 * scale, joint="curve")
    if points:
        x, y = points[-1]
        draw.ellipse((x - 4 * scale, y - 4 * scale, x + 4 * scale, y + 4 * scale), fill="#D55E00")
    label = "accuracy over training"
    draw.text(((x0 + x1) / 2, y1 + 3 * scale), label, fill="#666666", font=font(11 * scale), anchor="ma")
    picture.paste(canvas.resize((right - left, bottom - top), Image.Resampling.LANCZOS), (left, top))


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The typeface that matplotlib brings along, so that no system font is needed."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
