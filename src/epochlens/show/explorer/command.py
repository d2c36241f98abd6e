"""The command `explore`: reads the command line, finds the sweep, serves the page until interrupted."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epochlens.errors import UsageError, check_folder, unknown, whole_number
from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    from epochlens.show.explorer import app
else:
    app = LazyModule("epochlens.show.explorer.app")

RECORDED = ("sweep.json", "run.json", "*/run.json", "runs/*/run.json")
"""what a folder of recorded runs holds"""


def explore_parser() -> argparse.ArgumentParser:
    """Options of the explore command."""
    parser = argparse.ArgumentParser(
        prog="python -m sweeps.explore",
        description="Look at a finished or running sweep in the browser. Reads only.",
    )
    parser.add_argument(
        "sweep", nargs="?", default=None, help="name of a sweep, or a folder of runs (default: the latest)"
    )
    parser.add_argument(
        "--port", default="8050", help="port of the page, 0 for any that is free (default: 8050)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this computer only)"
    )
    parser.add_argument("--results-dir", default="results", help="folder of results (default: results)")
    parser.add_argument(
        "--data-dir", default=None, help="folder of datasets (default: the one the sweep used)"
    )
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="run models and datasets that are code, as the runs name them",
    )
    return parser


def explore(arguments: Sequence[str], results: str | None = None) -> int:
    """Serves the explorer until interrupted; `results` is what stands for the option's folder, if given.

    Raises UsageError for what cannot be explored or listened at.
    """
    given = explore_parser().parse_args(arguments)
    results = str(given.results_dir) if results is None else results
    port = check_port(given.port)
    check_folder("results_dir", results)
    check_folder("data_dir", given.data_dir or "")
    folder = find_sweep(given.sweep, Path(results))
    if importlib.util.find_spec("dash") is None:
        raise UsageError("explore", "dash", "is not installed: pip install 'epochlens[explore]'")
    check_free(given.host, port)
    data_dir = Path(given.data_dir) if given.data_dir else None
    server = make_server(folder, given.host, port, data_dir, given.allow_code)
    print(f"exploring {folder}\nhttp://{given.host}:{server.port}   (Ctrl+C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    return 0


def make_server(
    folder: Path, host: str, port: int, data_dir: Path | None = None, allow_code: bool = False
) -> Any:
    """A server of the app over the folder, bound but not serving yet; its `port` is the one it got."""
    import logging

    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    page = app.make_app(folder, data_dir, allow_code=allow_code)
    threading.Thread(target=importlib.import_module, args=("torch",), daemon=True).start()  # takes seconds
    return make_server(host, port, page.server, threaded=True)


def serve_in_thread(folder: Path, data_dir: Path | None = None) -> Any:
    """A server at a free port of this computer that serves from a thread; `shutdown()` ends it."""
    server = make_server(folder, "127.0.0.1", 0, data_dir)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def find_sweep(name: str | None, results: Path) -> Path:
    """The folder of a sweep by name, any folder of runs by path, or the latest sweep.

    While there is no sweep at all it is the folder where one will be. Raises UsageError, listing the sweeps.
    """
    sweeps = sorted(results.glob("*/sweep.json"), key=lambda path: path.stat().st_mtime)
    if name is None:
        return (sweeps[-1].parent if sweeps else results / "digits").resolve()
    check_folder("sweep", name)
    for folder in (results / name, Path(name)):
        if any(next(folder.glob(pattern), None) for pattern in RECORDED):
            return folder.resolve()
    if (results / name).is_dir() or not sweeps:
        return (results / name).resolve()
    raise unknown(
        "sweep", name, sorted(path.parent.name for path in sweeps), ", or a folder of recorded runs"
    )


def check_port(text: str) -> int:
    """A port number. Raises UsageError."""
    with contextlib.suppress(UsageError):
        return whole_number("port", text, most=2**16 - 1)
    raise UsageError("port", text, "is not a whole number from 0 to 65535")


def check_free(host: str, port: int) -> None:
    """Raises UsageError unless a server can listen there."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, ValueError) as error:  # ValueError: no name of a computer at all
        reason = error.strerror if isinstance(error, OSError) else error
        problem = f"cannot be listened at ({reason}): choose another --port or --host"
        raise UsageError("port", f"{host}:{port}", problem) from None
