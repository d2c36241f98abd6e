"""Slow methods on the model page: which ones wait until they are asked for, and how that is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from dash import ctx, html
from dash.exceptions import PreventUpdate

from epochlens.show.explorer.data import Source

PATIENCE = 3.0
"""seconds of all quick methods together; what takes longer waits until it is asked for"""
ALL_SLOW = "*"


def slow_methods(seconds: Mapping[str, float]) -> list[str]:
    """The methods that do not fit into PATIENCE after all quicker ones, and those that cannot be told."""
    total, slow = 0.0, []
    for method, taken in sorted(seconds.items(), key=lambda item: (np.isnan(item[1]), item[1])):
        total += taken
        if not total <= PATIENCE:
            slow.append(method)
    return [method for method in seconds if method in slow]


def duration(seconds: float) -> str:
    """A time to wait in words."""
    if np.isnan(seconds):
        return "nobody knows how long"
    if seconds < 1:
        return "under a second"
    return f"about {seconds:.0f} s" if seconds < 90 else f"about {seconds / 60:.0f} min"


def waiting_notice(slow: Mapping[str, float]) -> list[Any]:
    """What takes long here, with a button that starts all of it; nothing without any."""
    if not slow:
        return []
    total = duration(sum(slow.values()))
    text = f"{len(slow)} of the methods take long on this network and computer, together {total}. "
    return [html.P([text, slow_button(ALL_SLOW, "explain by all of them")], className="waits")]


def slow_button(method: str, text: str) -> html.Button:
    """A button that lets a slow method run."""
    return html.Button(text, id={"type": "slow", "method": method}, type="button")


def slow_tiles(slow: Sequence[str], seconds: Mapping[str, float]) -> list[html.Figure]:
    """A place per slow method that says how long it takes."""
    tiles = []
    for method in slow:
        inside = [html.P(f"takes {duration(seconds[method])}"), slow_button(method, "explain")]
        tiles.append(html.Figure([html.Div(inside, className="no-map"), html.Figcaption(method)]))
    return tiles


def allow(
    source: Source, clicks: Sequence[int | None], before: Mapping[str, Any] | None, *asked: Any
) -> dict[str, Any]:
    """The slow methods that may run for what is asked now: those clicked so far."""
    by = ctx.triggered_id
    if not any(clicks) or not isinstance(by, Mapping):
        raise PreventUpdate
    of = list(asked[:4])
    kept = before["methods"] if before and before["of"] == of else []
    return {"of": of, "methods": [*kept, by["method"]]}
