"""What a link says: which run, image, epoch and methods are shown, read with care and written back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qs, urlencode

from epochlens.show.explorer.data import Run
from epochlens.show.explorer.pictures import CHANGES, SCALES

REFERENCES = ("previous", "final")
AVERAGES = ("image", "mean")
MOST_DIGITS = 9


class View(NamedTuple):
    """The state of the first page, as its link carries it."""

    run: str | None
    other: str | None
    probe: int
    """position among the run's probe images"""
    epoch: int | None
    """None: the last one recorded"""
    methods: tuple[str, ...]
    """empty: all that were recorded"""
    scale: str
    change: str
    reference: str
    average: str


def default_view(runs: Mapping[str, Run]) -> View:
    """The first run that holds an epoch, its first image at its last epoch."""
    recorded = [run.name for run in runs.values() if run.epochs]
    first = next(iter(recorded or runs), None)
    return View(first, None, 0, None, (), SCALES[0], CHANGES[0], REFERENCES[1], AVERAGES[0])


def parse_view(search: str | None, runs: Mapping[str, Run]) -> tuple[View, list[str]]:
    """The view that a query string asks for, and in words what of it cannot be had."""
    said = {k: v for k, v in parse_qs((search or "").lstrip("?"), keep_blank_values=True).items() if v}
    problems: list[str] = []
    view = default_view(runs)
    for field in ("run", "other"):
        name = said.pop(field, [""])[0]
        if name in runs:
            view = view._replace(**{field: name})
        elif name:
            problems.append(f"the link's {field} {name!r} is not in this sweep")
    for field in ("probe", "epoch"):
        text = said.pop(field, [""])[0]
        if (number := whole_number(text)) is not None:
            view = view._replace(**{field: number})
        elif text:
            problems.append(f"the link's {field} {text!r} is not a whole number")
    choices = {"scale": SCALES, "change": CHANGES, "reference": REFERENCES, "average": AVERAGES}
    for field, allowed in choices.items():
        text = said.pop(field, [""])[0]
        if text in allowed:
            view = view._replace(**{field: text})
        elif text:
            problems.append(f"the link's {field} {text!r} is none of {', '.join(allowed)}")
    methods = said.pop("method", [])
    there = runs[view.run].methods if view.run else []
    lacking = [name for name in methods if name not in there]
    problems += [f"the link's method {name!r} was not recorded in this run" for name in lacking]
    view = view._replace(methods=tuple(name for name in methods if name in there))
    problems += [f"the link's {name!r} means nothing here" for name in said]
    return view, problems


def whole_number(text: str) -> int | None:
    """The whole number from 0 that a link says; None for anything else, or more digits than any needs."""
    return int(text) if text.isdecimal() and len(text) <= MOST_DIGITS else None


def query(view: View) -> str:
    """The query string that shows the view again."""
    pairs = [
        (name, value) for name, value in view._asdict().items() if name != "methods" and value is not None
    ]
    return "?" + urlencode([*pairs, *(("method", name) for name in view.methods)])
