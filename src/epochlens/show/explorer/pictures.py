"""Maps as small PNG pictures: a sheet holds all epochs of an image's map, the browser shows one cell."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from epochlens.show.maps import COLOURS, font, photograph

LEVELS = 127
"""colours on either side of zero"""
UNDEFINED = 255
"""place of the grey for NaN in the palette"""
SIDE = 144
"""largest side of a picture on the page, in pixels"""
THINNEST = 12
SCALES = ("own", "shared")
CHANGES = ("none", "previous", "final")


class Sprite(NamedTuple):
    """A PNG sheet of T pictures [H,W], row by row."""

    uri: str
    columns: int
    rows: int
    height: int
    width: int
    limits: list[float]
    """value of the deepest colour in each picture, [T]; 0 where it is zero or undefined everywhere"""


def as_images(values: np.ndarray) -> np.ndarray:
    """Images [T,C,H,W] from those, from planes [T,H,W], or from rows of features [T,D], drawn as one line."""
    missing = 4 - values.ndim
    return values.reshape(len(values), *[1] * missing, *values.shape[1:]) if missing > 0 else values


def summed(maps: np.ndarray) -> np.ndarray:
    """Maps as `as_images` takes them, summed over channels, float64 [T,H,W]."""
    return as_images(np.asarray(maps, dtype=np.float64)).sum(axis=1)


def changed(flat: np.ndarray, reference: str) -> np.ndarray:
    """Maps [T,H,W] minus the map before each (the first is all NaN) or the last one; `none` as they are."""
    if reference == "none":
        return flat
    if reference == "final":
        return flat - flat[-1]
    return np.concatenate([np.full_like(flat[:1], np.nan), np.diff(flat, axis=0)])


def reaches(flat: np.ndarray) -> np.ndarray:
    """99.5th percentile of absolute values of each map [T,H,W], else the largest; 0 without any."""
    sizes = np.abs(np.where(np.isfinite(flat), flat, 0)).reshape(len(flat), -1)
    high = np.percentile(sizes, 99.5, axis=1)
    return np.where(high > 0, high, sizes.max(axis=1))


def sprite(flat: np.ndarray, scale: str = "own") -> Sprite:
    """Maps [T,H,W] as a sheet, red above zero and blue below, grey where undefined.

    Colours reach from minus to plus each map's own `reaches`, or with `shared` the largest one of all epochs.
    """
    limits = reaches(flat)
    if scale == "shared":
        limits = np.full(len(flat), limits.max(initial=0))
    size = np.where(limits > 0, limits, 1)[:, None, None]
    with np.errstate(invalid="ignore"):
        places = np.rint(np.clip(flat / size, -1, 1) * LEVELS + LEVELS)
    codes = np.where(np.isfinite(flat), places, UNDEFINED).astype(np.uint8)
    sheet, columns, rows = tiled(codes)
    return Sprite(as_uri(palette_png(sheet)), columns, rows, flat.shape[1], flat.shape[2], limits.tolist())


def tiled(codes: np.ndarray, columns: int | None = None, gap: int = 0) -> tuple[np.ndarray, int, int]:
    """Pictures [T,H,W] on one sheet, as square as can be, with its columns and rows; empty cells are grey."""
    number, height, width = codes.shape
    columns = columns or int(np.ceil(np.sqrt(number)))
    rows = -(-number // columns)
    cells = np.full((rows * columns, height + gap, width + gap), UNDEFINED, np.uint8)
    cells[:number, :height, :width] = codes
    grid = cells.reshape(rows, columns, height + gap, width + gap).swapaxes(1, 2)
    return grid.reshape(rows * (height + gap), columns * (width + gap)), columns, rows


def palette_png(codes: np.ndarray) -> bytes:
    """Places in the palette [H,W] as a PNG."""
    tones = colormaps[COLOURS](np.linspace(0, 1, 2 * LEVELS + 1))[:, :3] * 255
    image = Image.fromarray(codes)
    image.putpalette(np.vstack([tones, [[190, 190, 190]]]).round().astype(np.uint8).tobytes())
    return png_bytes(image)


def png_bytes(image: Image.Image) -> bytes:
    """The picture as a PNG, compressed for speed."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def as_uri(png: bytes) -> str:
    """A PNG as a data URI, which needs no request of its own."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def photo(image: np.ndarray) -> np.ndarray:
    """An input in [0,1] (an image [C,H,W], a plane or a row of features) as 8-bit RGB [H,W,3]."""
    return (photograph(as_images(np.asarray(image)[None])[0]) * 255).round().astype(np.uint8)


def photo_uri(image: np.ndarray) -> str:
    """An input, as `photo` takes it, as a data URI."""
    return as_uri(png_bytes(Image.fromarray(photo(image))))


def shown_size(height: int, width: int, side: int = SIDE) -> tuple[int, int]:
    """Height and width on the page: a whole multiple of the pixels where that fits, so all look equal."""
    largest = max(height, width)
    factor = side // largest if largest <= side else side / largest
    return max(THINNEST, round(height * factor)), max(THINNEST, round(width * factor))


def montage(channels: np.ndarray, columns: int = 16) -> Sprite:
    """Channels [K,h,w] of a layer side by side with gaps, on one scale about zero."""
    limit = float(reaches(np.asarray(channels, np.float64).reshape(1, -1, channels.shape[-1]))[0])
    scaled = np.clip(channels / (limit or 1.0), -1, 1)
    codes = np.rint(np.nan_to_num(scaled) * LEVELS + LEVELS).astype(np.uint8)
    sheet, columns, rows = tiled(codes, min(columns, len(codes)), gap=1)
    return Sprite(as_uri(palette_png(sheet)), columns, rows, sheet.shape[0], sheet.shape[1], [limit])


def strip(image: np.ndarray, maps: Mapping[str, np.ndarray], scales: Sequence[float], title: str) -> bytes:
    """The input and maps [H,W] side by side under a title, as a PNG to keep."""
    side, gap, top, below = 160, 16, 44, 40
    width = max(gap + (len(maps) + 1) * (side + gap), 480)
    picture = Image.new("RGB", (width, top + side + below), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((gap, 12), title, fill="#111111", font=font(16, bold=True))
    tiles = {"input": photo(image)}
    for (name, flat), limit in zip(maps.items(), scales, strict=True):
        tiles[f"{name}\n±{limit:.3g}"] = coloured(flat, limit)
    for i, (name, tile) in enumerate(tiles.items()):
        x = gap + i * (side + gap)
        height, wide = shown_size(tile.shape[0], tile.shape[1], side)
        pixels = Image.fromarray(tile).resize((wide, height), Image.Resampling.NEAREST)
        picture.paste(pixels, (x + (side - wide) // 2, top + (side - height) // 2))
        draw.multiline_text((x, top + side + 4), name, fill="#333333", font=font(11))
    return png_bytes(picture)


def coloured(flat: np.ndarray, limit: float) -> np.ndarray:
    """A map [H,W] as RGB [H,W,3], red above zero and blue below, grey where undefined."""
    scaled = np.clip(np.nan_to_num(flat / (limit or 1.0)), -1, 1) * 0.5 + 0.5
    rgb = (colormaps[COLOURS](scaled)[..., :3] * 255).round().astype(np.uint8)
    return np.where(np.isfinite(flat)[..., None], rgb, np.uint8(190))
