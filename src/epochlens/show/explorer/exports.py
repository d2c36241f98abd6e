"""What is on display as files: maps as PNG or CSV, curves as CSV."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from epochlens.show.explorer import data, figures, pictures
from epochlens.show.explorer.data import Run, Source
from epochlens.show.explorer.panels import frame_at
from epochlens.show.explorer.view import View

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""signs with which a text begins that spreadsheets take for a formula"""


def shown_maps(
    source: Source, run: Run, position: int, view: View, epoch: float
) -> dict[str, tuple[np.ndarray, float]]:
    """The maps [H,W] on display, as they are coloured, with the value of the deepest colour, by method."""
    found = {}
    for method in [name for name in run.methods if name in view.methods] or run.methods:
        maps = data.maps_of(source, run, method)
        flat = pictures.changed(pictures.summed(maps.attributions[:, 0, position]), view.change)
        reaches, frame = pictures.reaches(flat), frame_at(maps.epochs, epoch)
        limit = reaches.max() if view.scale == "shared" else reaches[frame]
        found[method] = flat[frame], float(limit)
    return found


def export_png(source: Source, run: Run, position: int, view: View, epoch: float) -> bytes:
    """The image and its maps on display as a PNG."""
    shown = shown_maps(source, run, position, view, epoch)
    image = data.probe_of(source, run)["images"][position]
    maps = {method: flat for method, (flat, _) in shown.items()}
    limits = [limit for _, limit in shown.values()]
    return pictures.strip(image, maps, limits, f"{run.title} · image {position} · epoch {epoch:g}")


def export_maps(source: Source, run: Run, position: int, view: View, epoch: float) -> str:
    """The maps on display as CSV: run, image, epoch, method, row, column, value (summed over channels)."""
    sample = int(data.probe_of(source, run)["indices"][position])
    parts = []
    for method, (flat, _) in shown_maps(source, run, position, view, epoch).items():
        row, column = np.indices(flat.shape)
        about = {
            "run": run.name,
            "test_image": sample,
            "epoch": int(epoch),
            "method": method,
            "shown": view.change,
        }
        parts.append(
            pd.DataFrame({**about, "row": row.ravel(), "column": column.ravel(), "value": flat.ravel()})
        )
    return csv(pd.concat(parts, ignore_index=True))


def export_curves(found: Sequence[figures.Curves], view: View) -> str:
    """The curves on display as CSV: run, epoch, accuracy, and a column per method."""
    names = {"A": view.run, "B": view.other}
    parts = [
        pd.DataFrame({"run": names[c.letter], "epoch": c.epochs, "accuracy": c.accuracy, **c.similarity})
        for c in found
    ]
    return csv(pd.concat(parts, ignore_index=True)) if parts else ""


def csv(frame: pd.DataFrame) -> str:
    """The frame as CSV without its index; no text in it is a formula to a spreadsheet."""
    texts = {n: frame[n].map(plain) for n in frame if not pd.api.types.is_numeric_dtype(frame[n])}
    buffer = io.StringIO()
    frame.assign(**texts).rename(columns=plain).to_csv(buffer, index=False)
    return buffer.getvalue()


def plain(cell: Any) -> Any:
    """A cell of a table; a text that a spreadsheet would take for a formula begins with an apostrophe."""
    if not isinstance(cell, str):
        return cell
    text = cell.replace("\r", " ")  # pandas does not quote it, and a row would end there
    return f"'{text}" if cell.startswith(FORMULA) else text
