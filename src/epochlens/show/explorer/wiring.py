"""Making functions callbacks of the app: Python's as functions of a Source, the browser's by their names."""

from __future__ import annotations

from functools import partial, update_wrapper
from typing import Any

from dash import ClientsideFunction, Dash, ctx

from epochlens.show.explorer.data import Source


def wire(app: Dash, function: Any, source: Source, outputs: Any, inputs: Any, **more: Any) -> None:
    """Makes a function of a source and values a callback of the app."""
    app.callback(outputs, inputs, **more)(update_wrapper(partial(function, source), function))


def wire_client(app: Dash, name: str, outputs: Any, inputs: Any, **more: Any) -> None:
    """A callback that runs in the browser: a function of assets/explorer.js."""
    app.clientside_callback(ClientsideFunction("epochlens", name), outputs, inputs, **more)


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
