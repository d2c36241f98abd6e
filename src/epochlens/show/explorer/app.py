"""The Dash app: pages, and which control changes what. Every callback is a plain function of a Source."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.exceptions import PreventUpdate

from epochlens.show.explorer import data, figures, model_page, pages, panels, tables_view
from epochlens.show.explorer.data import Cache, Source
from epochlens.show.explorer.view import View

LIVE, QUIET = 2_000, 15_000
"""ms between two looks at the store, while runs are unfinished and afterwards"""


def make_app(folder: Path, data_dir: Path | None = None, cache: Cache | None = None) -> Dash:
    """The app over a folder of recorded runs, which may still be empty. All it serves is local."""
    source = Source(folder, data_dir, cache or Cache())
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
    wire_maps(app, source)
    tables_view.wire_tables(app, source)
    model_page.wire_model(app, source)
    return app


def layout(source: Source) -> html.Div:
    """What all pages share."""
    links = [dcc.Link(name, href=path, className="page-link") for path, name in pages.PAGES.items()]
    return html.Div(
        [
            dcc.Location(id="url", refresh=False),
            dcc.Interval(id="tick", interval=LIVE),
            dcc.Store(id="revision"),
            dcc.Store(id="any-run", data=bool(data.find_runs(source.folder))),
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


def wire(app: Dash, function: Any, source: Source, outputs: Any, inputs: Any, **more: Any) -> None:
    """Makes a function of a source and values a callback of the app."""
    app.callback(outputs, inputs, **more)(update_wrapper(partial(function, source), function))


def wire_client(app: Dash, name: str, outputs: Any, inputs: Any, **more: Any) -> None:
    """A callback that runs in the browser: a function of assets/explorer.js."""
    app.clientside_callback(ClientsideFunction("epochlens", name), outputs, inputs, **more)


def wire_pages(app: Dash, source: Source) -> None:
    """The page of the address, and the look at the store every few seconds."""
    inputs = [Input("url", "pathname"), Input("any-run", "data"), State("url", "search")]
    wire(app, show_page, source, Output("page", "children"), inputs)
    outputs = [
        Output("revision", "data"),
        Output("any-run", "data"),
        Output("progress", "children"),
        Output("tick", "interval"),
    ]
    wire(
        app,
        refresh,
        source,
        outputs,
        [Input("tick", "n_intervals"), State("revision", "data"), State("any-run", "data")],
    )


def show_page(source: Source, path: str | None, any_run: bool, search: str | None) -> list[Any]:
    """The page at a path of the address."""
    runs = data.find_runs(source.folder)
    if not runs:
        return pages.empty_page(source)
    if path == "/stability":
        return pages.stability_page(source)
    if path == "/quality":
        return pages.quality_page(source)
    if path == "/model":
        return model_page.layout(runs, search)
    lost = pages.notices([] if path in ("/", None, "") else [f"There is no page {path}: the maps are shown."])
    return [*lost, *pages.maps_page(source, runs, search)]


def refresh(source: Source, ticks: int | None, known: str | None, any_run: bool) -> tuple[Any, Any, Any, Any]:
    """The store's revision if it has changed, how far the sweep is in words, and when to look again."""
    runs = data.find_runs(source.folder)
    now = data.revision(source.folder, runs)
    if now == known:
        raise PreventUpdate
    statuses = [run.status for run in runs.values()]
    told = [f"{statuses.count(s)} {s}" for s in ("done", "running", "waiting", "failed") if s in statuses]
    live = not runs or any(status in ("running", "waiting") for status in statuses)
    appeared = bool(runs) if bool(runs) != any_run else no_update
    return now, appeared, " · ".join(told) + (" · live" if live and runs else ""), LIVE if live else QUIET


SHOWN = ("run", "other", "probe", "methods", "scale", "change", "reference", "average")
"""controls of the first page whose values make up the view, in order"""


def view_inputs(kind: Any) -> list[Any]:
    """The controls of the view as inputs or states."""
    return [kind(name, "value") for name in SHOWN]


def as_view(values: Sequence[Any]) -> View:
    """The view from the values of its controls."""
    run, other, probe, methods, scale, change, reference, average = values
    return View(run, other, int(probe or 0), None, tuple(methods or ()), scale, change, reference, average)


def wire_maps(app: Dash, source: Source) -> None:
    """Everything on the first page."""
    pickers = ["dataset", "model", "rate", "run"]
    chosen = [*(Output(p, "options") for p in pickers), *(Output(p, "value") for p in pickers)]
    offered = [
        Output("methods", "options"),
        Output("methods", "value"),
        Output("matrix-method", "options"),
        Output("matrix-method", "value"),
        Output("probe", "max"),
        Output("other", "options"),
    ]
    asked = [*(Input(p, "value") for p in pickers), Input("revision", "data")]
    wire(
        app,
        pick_run,
        source,
        [*chosen, *offered],
        [*asked, State("methods", "value"), State("matrix-method", "value")],
    )
    outputs = [
        Output("panels", "children"),
        Output("curves", "figure"),
        Output("epoch", "min"),
        Output("epoch", "max"),
        Output("epoch", "value"),
        Output("remarks", "children"),
        Output("drawn", "data"),
    ]
    inputs = [*view_inputs(Input), Input("revision", "data")]
    states = [State("epoch", "value"), State("drawn", "data")]
    wire(app, draw, source, outputs, [*inputs, *states])
    views = [*view_inputs(State), State("epoch", "value")]
    wire(
        app,
        draw_matrix,
        source,
        Output("matrix", "figure"),
        [Input("drawn", "data"), Input("matrix-method", "value"), *views],
    )
    paired = [Output("pair", "children"), Output("pair-panel", "hidden")]
    wire(
        app,
        draw_pair,
        source,
        paired,
        [Input("matrix", "clickData"), Input("drawn", "data"), *view_inputs(State)],
    )
    thumbs = [Output("thumbs", "children"), Output("thumbs-of", "data")]
    wire(
        app,
        draw_thumbs,
        source,
        thumbs,
        [Input("drawn", "data"), State("run", "value"), State("thumbs-of", "data")],
    )
    saves = [Input(name, "n_clicks") for name in ("save-png", "save-maps", "save-curves")]
    wire(app, save, source, Output("download", "data"), [*saves, *views], prevent_initial_call=True)
    wire_browser(app)


def wire_browser(app: Dash) -> None:
    """What the browser does alone on the first page."""
    epoch, later = Output("epoch", "value", allow_duplicate=True), {"prevent_initial_call": True}
    wire_client(
        app,
        "move",
        Output("moved", "data"),
        [Input("epoch", "value"), Input("epoch", "max"), Input("drawn", "data")],
    )
    wire_client(
        app, "link", Output("linked", "data"), [*view_inputs(Input), Input("epoch", "value")], **later
    )
    wire_client(app, "jump", epoch, [Input("curves", "clickData")], **later)
    wire_client(app, "play", Output("play", "children"), [Input("play", "n_clicks")], **later)
    for name in pages.GRAPHS:
        wire_client(app, "fit", Output(name, "style"), [Input(name, "figure")])
    probe = Output("probe", "value", allow_duplicate=True)
    wire_client(app, "random", probe, [Input("random", "n_clicks"), State("probe", "max")], **later)
    wire_client(app, "mark", Output("marked", "data"), [Input("thumbs-of", "data"), Input("probe", "value")])
    wire_client(app, "thumb", probe, [Input({"type": "thumb", "index": ALL}, "n_clicks")], **later)


def pick_run(
    source: Source,
    dataset: str | None,
    model: str | None,
    rate: str | None,
    name: str | None,
    revision: str | None,
    methods: Sequence[str] | None,
    matrix_method: str | None,
) -> tuple[Any, ...]:
    """Options and values of the run's pickers and methods, the largest image number, and the other runs."""
    runs = data.find_runs(source.folder)
    picked = panels.choose(runs, dataset, model, rate, name)
    if picked is None:
        raise PreventUpdate
    run = runs[picked.run]
    kept = [m for m in run.methods if m in (methods or ())] or run.methods
    shown = matrix_method if matrix_method in run.methods else next(iter(run.methods), None)
    last: Any = no_update
    with contextlib.suppress(*data.UNREADABLE):
        last = len(data.probe_of(source, run)["labels"]) - 1
    return (*picked, run.methods, kept, run.methods, shown, last, pages.run_options(runs))


def draw(source: Source, *values: Any) -> tuple[Any, ...]:
    """Panels, curves, the slider's ends and place, remarks, and a mark that tells this drawing from the last.

    `values`: those of SHOWN, the revision, the chosen epoch and the last drawing's mark.
    """
    *shown, _, epoch, before = values
    view, runs = as_view(shown), data.find_runs(source.folder)
    if view.run not in runs:
        raise PreventUpdate
    mark = [[runs[name].name, runs[name].revision] for name in (view.run, view.other) if name in runs]
    if before and before["of"] == mark and triggered() == {"revision.data"}:
        raise PreventUpdate
    run = runs[view.run]
    epochs = panels.epochs_of(source, run)
    first, last = (int(epochs[0]), int(epochs[-1])) if len(epochs) else (0, 0)
    grown = bool(before) and before["of"][0][0] == run.name and epoch == before["last"] < last
    at = last if grown or epoch is None else min(max(epoch, first), last)
    children, remarks = panels.run_panels(source, runs, view, at)
    label = f"cosine to {'last epoch' if view.reference == 'final' else 'epoch before'}"
    found = panels.curves(source, runs, view)
    figure = figures.curves_figure(found, at, label) if found else figures.blank("no epoch recorded yet")
    count = (before or {"count": 0})["count"] + 1
    slider = (first, max(last, first + 1), at if at != epoch else no_update)
    return children, figure, *slider, pages.notices(remarks), {"of": mark, "count": count, "last": last}


def triggered() -> set[str]:
    """The controls that made this callback run; empty when it is called as a function."""
    try:
        return {str(entry["prop_id"]) for entry in ctx.triggered}
    except LookupError:
        return set()
    except Exception as error:  # Dash's own word for "outside a callback"
        if type(error).__name__ == "MissingCallbackContextException":
            return set()
        raise


def draw_matrix(source: Source, drawn: Any, method: str | None, *values: Any) -> dict[str, Any]:
    """Similarity of every pair of epochs for a method of run A, of this image or averaged."""
    *shown, epoch = values
    view, runs = as_view(shown), data.find_runs(source.folder)
    if view.run not in runs or method not in runs[view.run].methods:
        return figures.blank("no epoch recorded yet")
    run = runs[view.run]
    try:
        position = panels.place(source, run, run, view.probe)[0] if view.average == "image" else None
        return figures.matrix_figure(*data.matrix_of(source, run, method, position), epoch or 0)
    except data.UNREADABLE:
        return figures.blank("no epoch recorded yet")


def draw_pair(source: Source, click: Mapping[str, Any] | None, drawn: Any, *shown: Any) -> tuple[Any, bool]:
    """The maps of the two epochs of a clicked cell, and whether to hide them."""
    view, runs = as_view(shown), data.find_runs(source.folder)
    if not click or view.run not in runs:
        return [], True
    run, point = runs[view.run], click["points"][0]
    try:
        position = panels.place(source, run, run, view.probe)[0]
        a, b = sorted((int(point["x"]), int(point["y"])))
        return [
            html.H2(f"Epochs {a} and {b}"),
            *panels.pair(source, run, position, view.methods, a, b),
        ], False
    except data.UNREADABLE:
        return [], True


def draw_thumbs(source: Source, drawn: Any, name: str | None, before: str | None) -> tuple[Any, Any]:
    """A button per probe image, anew only when the run's images are others."""
    run = data.find_runs(source.folder).get(name or "")
    mark = run and f"{data.modified(run.folder / 'probe.npz')} {run.folder}"
    if run is None or mark == before:
        raise PreventUpdate
    try:
        return panels.thumbnails(source, run), mark
    except data.UNREADABLE:
        return [], None


def save(
    source: Source, png: int | None, maps: int | None, curves: int | None, *values: Any
) -> dict[str, Any]:
    """What is on display as a file: maps as PNG or CSV, curves as CSV."""
    *shown, epoch = values
    view, runs, asked = as_view(shown), data.find_runs(source.folder), triggered()
    if view.run not in runs:
        raise PreventUpdate
    run = runs[view.run]
    try:
        if "save-curves.n_clicks" in asked:
            return dcc.send_string(
                panels.export_curves(panels.curves(source, runs, view), view), f"{run.name}-curves.csv"
            )
        position = panels.place(source, run, run, view.probe)[0]
        name = f"{run.name}-image{position}-epoch{epoch or 0}"
        if "save-maps.n_clicks" in asked:
            return dcc.send_string(panels.export_maps(source, run, position, view, epoch or 0), f"{name}.csv")
        return dcc.send_bytes(panels.export_png(source, run, position, view, epoch or 0), f"{name}.png")
    except data.UNREADABLE as error:
        raise PreventUpdate from error
