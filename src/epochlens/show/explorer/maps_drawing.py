"""What the first page shows of the store, and which control changes what: plain functions of a Source."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from dash import ALL, Dash, Input, Output, State, dcc, html, no_update
from dash.exceptions import PreventUpdate

from epochlens.show.explorer import answer, data, exports, figures, panels, parts, probabilities
from epochlens.show.explorer.data import Source
from epochlens.show.explorer.view import View
from epochlens.show.explorer.wiring import triggered, wire, wire_client


def wire_maps(app: Dash, source: Source) -> None:
    """Everything on the first page."""
    wire_pickers(app, source)
    wire_panels(app, source)
    wire_matrix(app, source)
    wire_words(app, source)
    wire_thumbs(app, source)
    wire_saves(app, source)
    wire_browser(app)


def wire_pickers(app: Dash, source: Source) -> None:
    """What can be chosen, by what is chosen and recorded."""
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


def wire_panels(app: Dash, source: Source) -> None:
    """Maps and curves, anew with every choice and every epoch recorded."""
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


def wire_matrix(app: Dash, source: Source) -> None:
    """Similarity of all pairs of epochs, and the maps of the pair that is clicked."""
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


def wire_words(app: Dash, source: Source) -> None:
    """When maps settle, and how sure the networks are."""
    drawn = Input("drawn", "data")
    wire(app, draw_answer, source, Output("answer", "children"), [drawn, State("run", "value")])
    states = [State(name, "value") for name in ("run", "other", "probe", "epoch")]
    wire(app, draw_probabilities, source, Output("probabilities", "children"), [drawn, *states])


def wire_thumbs(app: Dash, source: Source) -> None:
    """The probe images to choose from."""
    thumbs = [Output("thumbs", "children"), Output("thumbs-of", "data")]
    wire(
        app,
        draw_thumbs,
        source,
        thumbs,
        [Input("drawn", "data"), State("run", "value"), State("thumbs-of", "data")],
    )


def wire_saves(app: Dash, source: Source) -> None:
    """The buttons that save what is shown."""
    saves = [Input(name, "n_clicks") for name in ("save-png", "save-maps", "save-curves")]
    views = [*view_inputs(State), State("epoch", "value")]
    wire(app, save, source, Output("download", "data"), [*saves, *views], prevent_initial_call=True)


def wire_browser(app: Dash) -> None:
    """What the browser does alone on the first page."""
    epoch, later = Output("epoch", "value", allow_duplicate=True), {"prevent_initial_call": True}
    wire_client(
        app,
        "move",
        Output("moved", "data"),
        [
            Input("epoch", "value"),
            Input("epoch", "max"),
            Input("drawn", "data"),
            Input("probabilities", "children"),
        ],
    )
    wire_client(
        app, "link", Output("linked", "data"), [*view_inputs(Input), Input("epoch", "value")], **later
    )
    wire_client(app, "jump", epoch, [Input("curves", "clickData")], **later)
    wire_client(app, "play", Output("play", "children"), [Input("play", "n_clicks")], **later)
    for name in parts.GRAPHS:
        wire_client(app, "fit", Output(name, "style"), [Input(name, "figure")])
    probe = Output("probe", "value", allow_duplicate=True)
    wire_client(app, "random", probe, [Input("random", "n_clicks"), State("probe", "max")], **later)
    wire_client(app, "mark", Output("marked", "data"), [Input("thumbs-of", "data"), Input("probe", "value")])
    wire_client(app, "thumb", probe, [Input({"type": "thumb", "index": ALL}, "n_clicks")], **later)


SHOWN = ("run", "other", "probe", "methods", "scale", "change", "reference", "average")
"""controls of the first page whose values make up the view, in order"""


def view_inputs(kind: Any) -> list[Any]:
    """The controls of the view as inputs or states."""
    return [kind(name, "value") for name in SHOWN]


def as_view(values: Sequence[Any]) -> View:
    """The view from the values of its controls."""
    run, other, probe, methods, scale, change, reference, average = values
    return View(run, other, int(probe or 0), None, tuple(methods or ()), scale, change, reference, average)


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
    return (*picked, run.methods, kept, run.methods, shown, last, parts.run_options(runs))


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
    label = f"similarity to {'last epoch' if view.reference == 'final' else 'epoch before'}"
    found = panels.curves(source, runs, view)
    figure = figures.curves_figure(found, at, label) if found else figures.blank("no epoch recorded yet")
    count = (before or {"count": 0})["count"] + 1
    slider = (first, max(last, first + 1), at if at != epoch else no_update)
    return children, figure, *slider, parts.notices(remarks), {"of": mark, "count": count, "last": last}


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


def draw_answer(source: Source, drawn: Any, name: str | None) -> list[Any]:
    """When maps settle, in words."""
    runs = data.find_runs(source.folder)
    if name not in runs:
        raise PreventUpdate
    try:
        return answer.answer(source, runs, runs[name])
    except data.UNREADABLE as error:
        return [html.P(f"Cannot be told now ({type(error).__name__}).")]


def draw_probabilities(source: Source, drawn: Any, *shown: Any) -> list[Any]:
    """How sure the shown runs' networks are."""
    return probabilities.show_probabilities(source, *shown)


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
                exports.export_curves(panels.curves(source, runs, view), view), f"{run.name}-curves.csv"
            )
        position = panels.place(source, run, run, view.probe)[0]
        name = f"{run.name}-image{position}-epoch{epoch or 0}"
        if "save-maps.n_clicks" in asked:
            return dcc.send_string(
                exports.export_maps(source, run, position, view, epoch or 0), f"{name}.csv"
            )
        return dcc.send_bytes(exports.export_png(source, run, position, view, epoch or 0), f"{name}.png")
    except data.UNREADABLE as error:
        raise PreventUpdate from error
