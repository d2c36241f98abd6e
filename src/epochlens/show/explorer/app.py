"""The Dash app: its pages, and the look at the store every few seconds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dash import Dash, Input, Output, State, dcc, html, no_update
from dash.exceptions import PreventUpdate

from epochlens.show.explorer import (
    cost_page,
    data,
    maps_drawing,
    maps_page,
    model_page,
    pages,
    parts,
    tables_view,
)
from epochlens.show.explorer.data import Cache, Source
from epochlens.show.explorer.wiring import triggered, wire

LIVE, QUIET = 2_000, 15_000
"""ms between two looks at the store, while runs are unfinished and afterwards"""
APPEARING = ("runs", "tables", "weights")
"""what a page may wait for"""
AWAITED = {"/stability": ("runs", "tables"), "/quality": ("runs", "tables"), "/model": ("runs", "weights")}
"""what a page is made of anew for when it is there; any other page for runs only"""


def make_app(
    folder: Path, data_dir: Path | None = None, cache: Cache | None = None, allow_code: bool = False
) -> Dash:
    """The app over a folder of recorded runs, which may still be empty. All it serves is local.

    Models and datasets that are code, as the runs name them, are run only with `allow_code`.
    """
    source = Source(folder, data_dir, cache or Cache(), allow_code)
    app = Dash(
        "epochlens.show.explorer",
        title=f"EpochLens · {folder.name}",
        assets_folder=str(Path(__file__).parent / "assets"),
        serve_locally=True,
        suppress_callback_exceptions=True,
        update_title="",
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
    )
    app.layout = partial(layout, source)
    wire_pages(app, source)
    maps_drawing.wire_maps(app, source)
    tables_view.wire_tables(app, source)
    model_page.wire_model(app, source)
    cost_page.wire_cost(app, source)
    return app


def layout(source: Source) -> html.Div:
    """What all pages share."""
    links = [dcc.Link(name, href=path, className="page-link") for path, name in pages.PAGES.items()]
    there = what_is_there(source)
    return html.Div(
        [
            dcc.Location(id="url", refresh=False),
            dcc.Interval(id="tick", interval=LIVE),
            dcc.Store(id="revision"),
            *(dcc.Store(id=f"any-{name}", data=there[name]) for name in APPEARING),
            html.Header(
                [
                    html.H1(["EpochLens ", html.Small(source.folder.name)]),
                    html.Nav(links),
                    html.P(id="progress"),
                ]
            ),
            html.Main(id="page"),
        ]
    )


def what_is_there(source: Source) -> dict[str, bool]:
    """Whether there are runs, tables of the analysis, and weights."""
    runs = data.find_runs(source.folder)
    tables = data.modified(source.folder / "tables" / "analysis.json") > 0
    return {"runs": bool(runs), "tables": tables, "weights": any(map(data.weights_of, runs.values()))}


def wire_pages(app: Dash, source: Source) -> None:
    """The page of the address, and the look at the store every few seconds."""
    appearing = [f"any-{name}" for name in APPEARING]
    inputs = [Input("url", "pathname"), *(Input(name, "data") for name in appearing), State("url", "search")]
    wire(app, show_page, source, Output("page", "children"), inputs)
    outputs = [
        Output("revision", "data"),
        *(Output(name, "data") for name in appearing),
        Output("progress", "children"),
        Output("tick", "interval"),
    ]
    known = [State("revision", "data"), *(State(name, "data") for name in appearing)]
    wire(app, refresh, source, outputs, [Input("tick", "n_intervals"), *known])


def show_page(source: Source, path: str | None, *there_and_search: Any) -> list[Any]:
    """The page at a path of the address, anew when something it waited for has appeared."""
    *_, search = there_and_search
    by, path = triggered(), path or "/"
    awaited = {f"any-{name}.data" for name in AWAITED.get(path, ("runs",))}
    if by and "url.pathname" not in by and not by & awaited:
        raise PreventUpdate
    recorded = data.recorded_runs(source.folder)
    runs = {name: run for name, run in recorded.items() if run is not None}
    left_out = [name for name, run in recorded.items() if run is None]
    return [*pages.left_out_notice(left_out), *page_at(source, runs, path, search)]


def page_at(source: Source, runs: Mapping[str, data.Run], path: str, search: str | None) -> list[Any]:
    """The page at a path of the address, of these runs."""
    if path == "/cost":
        return cost_page.layout(source, runs, search)
    if not runs:
        return pages.empty_page(source)
    if path == "/stability":
        return pages.stability_page(source)
    if path == "/quality":
        return pages.quality_page(source)
    if path == "/model":
        return model_page.layout(runs, search)
    lost = parts.notices([] if path == "/" else [f"There is no page {path}: the maps are shown."])
    return [*lost, *maps_page.maps_page(source, runs, search)]


def refresh(source: Source, ticks: int | None, known: str | None, *there: bool) -> tuple[Any, ...]:
    """The store's revision if it has changed, what has appeared, progress in words, when to look again."""
    runs = data.find_runs(source.folder)
    now = data.revision(source.folder, runs)
    if now == known:
        raise PreventUpdate
    found = what_is_there(source)
    appeared = [
        found[name] if found[name] != old else no_update for name, old in zip(APPEARING, there, strict=True)
    ]
    statuses = [run.status for run in runs.values()]
    told = [f"{statuses.count(s)} {s}" for s in ("done", "running", "waiting", "failed") if s in statuses]
    words = f"runs: {', '.join(told)}" if told else ""
    live = not runs or any(status in ("running", "waiting") for status in statuses)
    return now, *appeared, words + (" · live" if live and runs else ""), LIVE if live else QUIET
