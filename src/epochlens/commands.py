"""The command lines. Exit codes: 0 all done, 1 some runs failed, 2 usage, 130 interrupted."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epochlens import config
from epochlens.errors import UsageError, check_folder, one_line, unknown, whole_number
from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    from epochlens.record import export as exporting
    from epochlens.record import objects, remote, tables
    from epochlens.show.explorer import command as explorer
    from epochlens.sweep import analysis, cluster, cost_command, explain_command, grid_run
    from epochlens.sweep.bench import command as bench_command
else:
    exporting = LazyModule("epochlens.record.export")
    objects = LazyModule("epochlens.record.objects")
    remote = LazyModule("epochlens.record.remote")
    tables = LazyModule("epochlens.record.tables")
    explorer = LazyModule("epochlens.show.explorer.command")
    analysis = LazyModule("epochlens.sweep.analysis")
    cluster = LazyModule("epochlens.sweep.cluster")
    bench_command = LazyModule("epochlens.sweep.bench.command")
    cost_command = LazyModule("epochlens.sweep.cost_command")
    explain_command = LazyModule("epochlens.sweep.explain_command")
    grid_run = LazyModule("epochlens.sweep.grid_run")

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
RECORDED = ("sweep.json", "run.json", "*/run.json", "runs/*/run.json")
"""what a folder of recorded runs holds"""


def usage_errors_named(command: Callable[[Sequence[str]], int]) -> Callable[[Sequence[str] | None], int]:
    """The command with a user's mistake told in one line on stderr and exit code 2, never as a traceback."""

    def run(arguments: Sequence[str] | None = None) -> int:
        try:
            return command(sys.argv[1:] if arguments is None else arguments)
        except UsageError as error:
            print(f"error: {error}", file=sys.stderr)
            return USAGE
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:
            sys.stderr.close()
            return DONE
        except (OSError, RuntimeError) as error:
            if not isinstance(error, objects.RemoteError | tables.TableError):
                raise
            print(f"error: {one_line(str(error))}: mend that and run the same command again", file=sys.stderr)
            return FAILED

    run.__doc__ = command.__doc__
    return run


def grid_parser() -> argparse.ArgumentParser:
    """Options of the grid command: one per field of Sweep, and what is asked of this one call."""
    parser = argparse.ArgumentParser(
        prog="python -m sweeps.grid",
        description="Train a grid of runs, record attribution maps after every epoch, analyse and report.",
        epilog="Rerun the same command to go on after an interruption: finished epochs are kept.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("preset", nargs="?", default=None, help="preset (digits, paper, ...) or FILE.toml")
    for field in dataclasses.fields(config.Sweep):
        add_option(parser, field)
    parser.add_argument("--fresh", action="store_true", help="start anew; earlier results are moved aside")
    parser.add_argument("--dry-run", action="store_true", help="show the plan with estimates, do nothing")
    parser.add_argument("--no-analysis", action="store_true", help="train only")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    return parser


def add_option(parser: argparse.ArgumentParser, field: dataclasses.Field[Any]) -> None:
    """The option of one Sweep field; values stay words here and are checked with those of TOML files."""
    option, text = f"--{field.name.replace('_', '-')}", str(field.metadata["help"])
    default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    text = f"{text} (default: {default})".replace("%", "%%")
    if isinstance(field.default, bool):
        parser.add_argument(option, action=argparse.BooleanOptionalAction, help=text)
    elif field.name in config.LISTS:
        parser.add_argument(option, nargs="*", metavar=field.name.upper()[:-1], help=text)
    else:
        parser.add_argument(option, metavar="X", help=text)


@usage_errors_named
def grid(arguments: Sequence[str]) -> int:
    """Trains what is missing of a grid and analyses it."""
    given = vars(grid_parser().parse_args(arguments))
    preset = given.pop("preset")
    flags = {name: given.pop(name, False) for name in ("fresh", "dry_run", "no_analysis", "json")}
    sweep = config.resolve(preset, given)
    facts = config.check(sweep)
    again = shlex.join(["python", "-m", "sweeps.grid", *(a for a in arguments if a != "--fresh")])
    with only_the_document_on_stdout(flags["json"]):
        document, code = grid_run.run(sweep, facts, again=again, **flags)
    if flags["json"]:
        print(json.dumps(document, indent=2, default=str))
    return code


@usage_errors_named
def analyze(arguments: Sequence[str]) -> int:
    """Measures the finished runs of a sweep and draws its figures."""
    parser = argparse.ArgumentParser(
        prog="python -m sweeps.analyze", description="Tables, figures and report of a recorded sweep."
    )
    parser.add_argument("sweep", help="name of a sweep, or a folder of recorded runs")
    parser.add_argument("--results-dir", default="results", help="folder of results (default: results)")
    parser.add_argument("--plots-dir", default="plots", help="folder of figures (default: plots)")
    parser.add_argument("--tau", default="0.95", help="similarity that counts as settled (default: 0.95)")
    parser.add_argument(
        "--patience",
        default=None,
        metavar="N",
        help="epochs that must agree, the last one included, to count as settled "
        "(default: 2 with the final maps, 3 with the previous epoch's)",
    )
    parser.add_argument("--address", default=None, help="address of a Ray cluster")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    given = parser.parse_args(arguments)
    results = config.plain_path("results_dir", given.results_dir)
    folder = find_folder(given.sweep, results)
    plots = Path(config.plain_path("plots_dir", given.plots_dir)).absolute() / folder.name
    config.check_writable("plots_dir", plots)
    config.check_writable("results_dir", folder)
    analysis.find_places(folder)
    sweep = config.Sweep(address=given.address, dashboard=False)
    tau, patience = threshold(given.tau), agreeing_epochs(given.patience)
    place = remote_place(given.sweep, results)
    with only_the_document_on_stdout(given.json):
        document, code = grid_run.analyze_only(folder, plots, sweep, tau, given.json, place, patience)
    if given.json:
        print(json.dumps(document, indent=2, default=str))
    return code


def only_the_document_on_stdout(json: bool) -> contextlib.AbstractContextManager[Any]:
    """Sends to stderr what anyone prints meanwhile (Ray does), if stdout is to carry a JSON document."""
    return contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext()


def threshold(text: str) -> float:
    """A number in (0, 1]. Raises UsageError."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 1:
            return float(text)
    raise UsageError("tau", text, "is not a number above 0 and at most 1")


def agreeing_epochs(text: str | None) -> int | None:
    """A whole number of at least 2, or None where none is asked for. Raises UsageError."""
    if text is None:
        return None
    with contextlib.suppress(UsageError):
        return whole_number("patience", text, least=2)
    raise UsageError(
        "patience", text, "is not a whole number of at least 2: the last epoch agrees with itself"
    )


def find_folder(name: str, results: str) -> Path:
    """The folder of a sweep by its name, or any folder by its path. Raises UsageError, listing sweeps.

    Of results on object storage it is the local copy, made current.
    """
    if "://" in results:
        return remote.pull_sweep(results, name)
    check_folder("results_dir", results)
    named = Path(results) / name
    for folder in (named, Path(name)):
        with contextlib.suppress(OSError, ValueError):  # too long, or no name of a file at all
            if any(next(folder.glob(pattern), None) for pattern in RECORDED):
                return folder.resolve()
    sweeps = sorted(p.parent.name for p in Path(results).glob("*/sweep.json"))
    raise unknown("sweep", name, sweeps or [f"none yet in {results}"], ", or a folder of recorded runs")


def remote_place(name: str, results: str) -> objects.Place | None:
    """Where a sweep lies on object storage; None when its results folder is a plain path."""
    return remote.find_place(results, name) if "://" in results else None


@usage_errors_named
def export(arguments: Sequence[str]) -> int:
    """Writes the maps of finished runs in another format."""
    parser = argparse.ArgumentParser(
        prog="python -m sweeps.export",
        description="Write the maps of a sweep's finished runs to other files.",
    )
    parser.add_argument("sweep", help="name of a sweep, or a folder of recorded runs")
    parser.add_argument("--to", default="pt", choices=["pt", "npz"], help="format (default: pt)")
    parser.add_argument("--output", default=None, help="folder of the files (default: the sweep's export-TO)")
    parser.add_argument("--results-dir", default="results", help="folder of results (default: results)")
    given = parser.parse_args(arguments)
    results = config.plain_path("results_dir", given.results_dir)
    folder = find_folder(given.sweep, results)
    beside = Path(folder.name) if "://" in results else folder  # a local copy is no place to look for files
    target = Path(given.output) if given.output else beside / f"export-{given.to}"
    config.check_writable("output", target)
    started = time.monotonic()
    files = exporting.export(analysis.find_grid(folder), target, given.to)
    print(f"{len(files)} files in {target} ({time.monotonic() - started:.1f} s)")
    return DONE


def analyze_path(
    path: str | Path, plots: str | Path | None = None, tau: float = 0.95, patience: int | None = None
) -> dict[str, Any]:
    """Analyses a folder of recorded runs; returns its tables by name, as DataFrames.

    Figures and report go to `plots`, by default `plots/NAME`. Settled is what keeps a similarity of `tau` for
    `patience` epochs (None: 2 with the final maps, 3 with the previous epoch's). Starts Ray here unless it
    runs already. Raises UsageError when the folder holds no finished run.
    """
    folder = Path(path).absolute()
    target = Path(plots).absolute() if plots else Path("plots").absolute() / folder.name
    with cluster.ray_cluster(config.Sweep(dashboard=False)):
        return analysis.analyze(folder, target, tau, patience=patience).tables


@usage_errors_named
def explain(arguments: Sequence[str]) -> int:
    """Draws one image's explanations by every method."""
    given = vars(explain_command.explain_parser().parse_args(arguments))
    results = config.plain_path("results_dir", given.get("results_dir", ""))
    if "run" in given and "://" in results:
        results = str(remote.pull_run(results, given["run"]))
    return explain_command.explain([*arguments, *(["--results-dir", results] if results else [])])


@usage_errors_named
def bench(arguments: Sequence[str]) -> int:
    """Times EpochLens against its peers."""
    return bench_command.bench(arguments)


@usage_errors_named
def explore(arguments: Sequence[str]) -> int:
    """Serves the explorer of a finished or running sweep."""
    given = explorer.explore_parser().parse_args(arguments)
    results = config.plain_path("results_dir", given.results_dir)
    if "://" in results:
        if given.sweep is None:
            raise unknown("sweep", None, remote.list_sweeps(results) or [f"none yet in {results}"])
        results = str(remote.pull_sweep(results, given.sweep).parent)
    return explorer.explore(arguments, results)


@usage_errors_named
def cost(arguments: Sequence[str]) -> int:
    """Counts what explaining an image costs, method by method."""
    return cost_command.cost(arguments)


COMMANDS = {
    "grid": grid,
    "analyze": analyze,
    "explore": explore,
    "explain": explain,
    "export": export,
    "cost": cost,
    "bench": bench,
}


def main() -> int:
    """The console command `epochlens NAME ...`, which is `python -m sweeps.NAME ...`."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        return COMMANDS[name](sys.argv[2:])
    print("usage: epochlens {" + ",".join(COMMANDS) + "} ...   (each with --help)")
    return DONE if name in ("-h", "--help") else USAGE
