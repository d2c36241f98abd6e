"""What the grid and analyze commands say: the plan, the results, what failed, and the JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from epochlens.config import Run, Sweep
from epochlens.lazy import LazyModule
from epochlens.record import files
from epochlens.sweep import analysis, plan
from epochlens.sweep.plan import Task
from epochlens.sweep.progress import duration, grid_table

summaries = LazyModule("epochlens.show.summary")
words = LazyModule("epochlens.show.words")
PLAIN_WIDTH = 200
NAMED_AT_MOST = 5


def make_console(json: bool) -> Console:
    """Where people read: stdout, or stderr while stdout carries a JSON document."""
    console = Console(stderr=json, soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def tell_plan(console: Console, sweep: Sweep, tasks: Sequence[Task]) -> None:
    """What the grid is and how much of it is there already."""
    sizes = (len(sweep.datasets), "dataset"), (len(sweep.models), "model"), (len(sweep.lrs), "learning rate")
    parts = [f"{n} {word}{'s' if n > 1 else ''}" for n, word in (*sizes, (len(sweep.seeds), "seed"))]
    counts = {
        s: sum(t.status == s for t in tasks) for s in ("done", "partial", "failed", "corrupt", "missing")
    }
    state = ", ".join(f"{n} {s}" for s, n in counts.items() if n)
    methods = " or ".join(map(str, sorted({len(task.run.methods) for task in tasks})))
    quality = f", {len(sweep.quality)} quality metrics" if sweep.quality else ""
    console.print(
        f"[bold]{sweep.name}[/bold]: {len(tasks)} runs ({' x '.join(parts)}) of {sweep.epochs} epochs, "
        f"{methods} methods{quality}: {state}"
    )
    if counts["done"] == len(tasks):
        console.print("nothing to train: every run is done and its files are whole")


def tell_other_runs(console: Console, folder: Path, tasks: Sequence[Task]) -> None:
    """Says which runs of earlier settings lie in the folder and will not be in the tables."""
    grid = {task.run.run_id for task in tasks}
    names = [path.parent.name for path in folder.glob("runs/*/run.json")]
    others = [name for name in names if name not in grid and ".old-" not in name]
    if others:
        place = escape(str(folder / "runs"))
        console.print(f"{len(others)} runs of other settings stay in {place}, outside this grid's tables")


def tell_outcome(
    console: Console,
    folder: Path,
    plots: Path,
    before: Sequence[Task],
    after: Sequence[Task],
    result: analysis.Analysis | None,
    seconds: float,
) -> None:
    """The summary: results, then what failed and where to read why."""
    if result is not None:
        tell_result(console, folder, plots, result)
    elif all(task.status == "done" for task in after) and (plots / "report.html").exists():
        console.print(f"tables, figures and report are current: {escape(str(plots / 'report.html'))}")
    done = sum(task.status == "done" for task in after)
    trained = done - sum(task.status == "done" for task in before)
    console.print(f"{done}/{len(after)} runs done, {trained} of them now, in {duration(seconds)}")
    for task in after:
        if task.status == "failed":
            record = files.read_json(plan.run_folder(folder, task.run.run_id) / "run.json") or {}
            error, log = escape(str(record.get("error"))), escape(str(record.get("log")))
            console.print(f"[red]failed[/red] {task.run.run_id}: {error}\n       log: {log}")
    left = [f"{t.run.run_id} ({t.status})" for t in after if t.status not in ("done", "failed")]
    if left:
        more = f" and {len(left) - NAMED_AT_MOST} more" if len(left) > NAMED_AT_MOST else ""
        console.print(f"[yellow]not done[/yellow]: {', '.join(left[:NAMED_AT_MOST])}{more}")


def tell_result(console: Console, folder: Path, plots: Path, result: analysis.Analysis) -> None:
    """The summary table with its notices, the findings in words, and where everything lies."""
    for notice in result.notices:
        console.print(f"[bold yellow]{escape(notice)}[/bold yellow]")
    table = grid_table(result.summary.to_numpy().tolist(), list(result.summary.columns))
    console.print(table)
    quality = summaries.summarise_quality(result.tables)
    if len(quality):
        console.print(grid_table(quality.to_numpy().tolist(), list(quality.columns)))
    console.print(
        "intervals: 95 % t over seeds; settling epoch: Kaplan-Meier median over seeds, cosine to final >= "
        "tau, raw and calibrated (0: another image of the class)"
    )
    for sentence in [*words.orders(result.tables), *words.differences(result.tables)[:6]]:
        console.print(f"- {escape(sentence)}")
    console.print(f"tables: {escape(str(folder / 'tables'))}")
    console.print(f"report: {escape(str(plots / 'report.html'))}")


def describe(
    sweep: Sweep,
    folder: Path,
    plots: Path,
    before: Sequence[Task],
    after: Sequence[Task],
    result: analysis.Analysis | None,
    seconds: float,
) -> dict[str, Any]:
    """The document that --json prints."""
    rows = [describe_run(folder, task.run, task.status) for task in after]
    return {
        "name": sweep.name,
        "results": str(folder),
        "plots": str(plots),
        "seconds": round(seconds, 3),
        "runs_total": len(after),
        "runs_done": sum(task.status == "done" for task in after),
        "runs_done_before": sum(task.status == "done" for task in before),
        "runs_failed": sum(task.status == "failed" for task in after),
        "runs": rows,
        "notices": result.notices if result else [],
        "summary": result.summary.to_dict("records") if result else [],
    }


def describe_run(folder: Path, run: Run, status: str) -> dict[str, Any]:
    """One run of the document."""
    record = files.read_json(plan.run_folder(folder, run.run_id) / "run.json") or {}
    kept = {key: record.get(key) for key in ("final_accuracy", "seconds", "error", "log")}
    return {"run_id": run.run_id, "status": status, **kept}
