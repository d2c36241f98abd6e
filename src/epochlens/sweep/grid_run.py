"""One call of the grid or the analyze command: what it does, in which order, and its exit code."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

import epochlens
from epochlens.config import Run, Sweep
from epochlens.learn.data import Facts
from epochlens.record import files, lease, objects, remote
from epochlens.sweep import analysis, cluster, driver, estimate, interruption, narration, nodes, plan
from epochlens.sweep.plan import Task
from epochlens.sweep.progress import duration

DONE, FAILED, INTERRUPTED = 0, 1, 130


def run(
    sweep: Sweep,
    facts: Mapping[str, Facts],
    *,
    again: str,
    fresh: bool = False,
    dry_run: bool = False,
    no_analysis: bool = False,
    json: bool = False,
) -> tuple[dict[str, Any], int]:
    """Does what is missing of the sweep; returns a document of what came out, and the exit code.

    `again` is the command that goes on after an interruption.
    """
    started = time.monotonic()
    console = narration.make_console(json)
    folder, place = plan.sweep_folder(sweep), remote.find_place(sweep.results_dir, sweep.name)
    plots = (Path(sweep.plots_dir) / sweep.name).absolute()
    runs = plan.expand(sweep, facts)
    if place:
        remote.check(place)
        console.print(f"results: {escape(place.uri)} (local copy: {escape(str(folder))})")
    if dry_run:
        tasks = look_up(folder, runs, place)
        narration.tell_plan(console, sweep, tasks)
        return estimate.tell(console, sweep, facts, tasks, folder, plots), DONE
    tasks, result, interrupted = [], None, False
    try:
        with interruption.stoppable():
            if fresh:
                begin_anew(console, folder, plots, place)
            with only_process(folder, place):
                tasks = plan.look_up(folder, runs, place)
                narration.tell_plan(console, sweep, tasks)
                for kept in plan.set_stale_aside(folder, tasks, place):
                    console.print(f"[yellow]damaged[/yellow] {escape(kept.name)}: kept, the run is done anew")
                result = train_and_analyze(console, sweep, facts, tasks, folder, plots, no_analysis, place)
    except interruption.Interrupted:
        interrupted = True
    after = look_up(folder, runs, None if interrupted else place)  # workers may still be writing there
    tasks = tasks or after  # interrupted before anything was done
    narration.tell_outcome(console, folder, plots, tasks, after, result, time.monotonic() - started)
    document = narration.describe(sweep, folder, plots, tasks, after, result, time.monotonic() - started)
    if interrupted:
        console.print(
            f"[yellow]interrupted[/yellow]: every finished epoch is saved. To go on: {escape(again)}"
        )
        return document, INTERRUPTED
    return document, DONE if all(task.status == "done" for task in after) else FAILED


def look_up(folder: Path, runs: Sequence[Run], place: remote.Place | None) -> list[Task]:
    """What the store holds of the runs; a local copy that another process works on is left as it is."""
    with files.unheld(folder) as free:
        return plan.look_up(folder, runs, place if free else None)


def begin_anew(console: Console, folder: Path, plots: Path, place: remote.Place | None) -> None:
    """Moves earlier results out of the way, here and on object storage."""
    with only_process(folder, place):
        set_aside(console, folder, plots)
        if place and (kept := objects.set_aside(place, spare=lease.LOCK)):
            console.print(f"earlier results kept in {escape(kept.uri)}")


@contextlib.contextmanager
def only_process(folder: Path, place: remote.Place | None) -> Iterator[None]:
    """Holds the sweep for this process, here and on object storage. Raises UsageError while another does."""

    def stop() -> None:
        print("another process has taken the sweep over: this one stops", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGINT)

    with files.only_process(folder), lease.only_process(place, stop) if place else contextlib.nullcontext():
        yield


def train_and_analyze(
    console: Console,
    sweep: Sweep,
    facts: Mapping[str, Facts],
    tasks: Sequence[Task],
    folder: Path,
    plots: Path,
    no_analysis: bool,
    place: remote.Place | None = None,
) -> analysis.Analysis | None:
    """Trains what is missing, then measures and draws unless that is current. Starts Ray only if needed."""
    missing = any(task.status != "done" for task in tasks)

    def record() -> None:
        narration.tell_other_runs(console, folder, tasks)
        plan.record_sweep(folder, sweep, [task.run for task in tasks], about_here())
        if place:
            remote.push(place)

    if place:
        remote.pull(place)
    if not missing:
        record()
        if no_analysis or analysis.is_current(folder, plots):
            return None
    with cluster.ray_cluster(sweep) as context:
        url = getattr(context, "dashboard_url", None)
        if missing and sweep.dashboard and url:
            console.print(f"Ray dashboard: http://{url}")
        if not place:
            nodes.check_folder(folder)
        runs = [task.run for task in tasks]
        if missing:
            driver.train_missing(sweep, folder, tasks, facts, console, record, place)
            plan.upload_rest(runs, place)
        if no_analysis or not any(task.status == "done" for task in plan.look_up(folder, runs, place)):
            return None
        return measure(console, folder, plots, analysis.TAU, place)


def measure(
    console: Console,
    folder: Path,
    plots: Path,
    tau: float,
    place: remote.Place | None = None,
    patience: int | None = None,
) -> analysis.Analysis:
    """Analyses with progress: in place on a terminal, silent elsewhere but for the steps."""
    with console.status("measuring ...") as status:
        told = {"step": ""}

        def progress(step: str, done: int, total: int) -> None:
            status.update(f"{done}/{total} {step}")
            if not console.is_terminal and done == total and told["step"] != step:
                told["step"] = step
                console.print(f"{done}/{total} {step}")

        return analysis.analyze(folder, plots, tau, progress, place, patience)


def analyze_only(
    folder: Path,
    plots: Path,
    sweep: Sweep,
    tau: float,
    json: bool,
    place: remote.Place | None = None,
    patience: int | None = None,
) -> tuple[dict[str, Any], int]:
    """The analyze command: tables, figures and report of what is on disk."""
    started = time.monotonic()
    console = narration.make_console(json)
    try:
        with interruption.stoppable(), cluster.ray_cluster(sweep):
            if not place:
                nodes.check_folder(folder)
            result = measure(console, folder, plots, tau, place, patience)
    except interruption.Interrupted:
        console.print("[yellow]interrupted[/yellow]: run the same command again")
        return {}, INTERRUPTED
    narration.tell_result(console, folder, plots, result)
    console.print(f"done in {duration(time.monotonic() - started)}")
    document = {"results": str(folder), "plots": str(plots), "notices": result.notices}
    return document | {"summary": result.summary.to_dict("records")}, DONE


def set_aside(console: Console, *folders: Path) -> None:
    """Moves earlier results out of the way and says where they are."""
    for folder in folders:
        if folder.exists():
            console.print(
                f"earlier {escape(folder.parent.name)} kept in {escape(str(files.set_aside(folder)))}"
            )


def about_here() -> dict[str, Any]:
    """Versions, host, commit and time, for sweep.json."""
    from importlib.metadata import PackageNotFoundError, version

    def version_of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    packages = ("ray", "torch", "numpy", "scipy", "pandas", "pyarrow", "matplotlib")
    return {
        "epochlens": epochlens.__version__,
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in packages}},
        "git_commit": git_commit(),
        "host": platform.node(),
        "command": sys.argv[1:],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def git_commit() -> str | None:
    """The commit of the checkout that this package runs from, or None when it is installed elsewhere."""
    here = Path(epochlens.__file__).parents[2]
    if not (here / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
