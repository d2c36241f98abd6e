"""Ray-parallel analysis: every run of a sweep -> tables -> figures -> report. Reads the store only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import epochlens
from epochlens.errors import UsageError
from epochlens.lazy import LazyModule
from epochlens.record import store
from epochlens.sweep import drawing
from epochlens.sweep.measurement import Measured, measure_run
from epochlens.sweep.tabulation import make_tables, write_tables

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow.parquet as pq
    import ray

    from epochlens.show import summary as summaries
else:
    pq, ray = LazyModule("pyarrow.parquet"), LazyModule("ray")
    summaries = LazyModule("epochlens.show.summary")

Progress = Callable[[str, int, int], None]
TAU = 0.95


class Analysis(NamedTuple):
    """Tables by name (but the large `stability`, which stays on disk), and what the grid lacks."""

    tables: dict[str, pd.DataFrame]
    notices: list[str]
    summary: pd.DataFrame


def find_grid(folder: Path) -> list[dict[str, Any]]:
    """The runs that belong together, as records: those of sweep.json, else every run.json below the folder.

    Raises UsageError when there are none.
    """
    sweep = store.read_json(folder / "sweep.json")
    if sweep and isinstance(sweep.get("runs"), list):
        return [
            {**run, "folder": str(folder / "runs" / Path(str(run["run_id"])).name)} for run in sweep["runs"]
        ]
    paths = [folder, *sorted((folder / "runs").glob("*")), *sorted(folder.glob("*"))]
    records = [(path, store.read_json(path / "run.json")) for path in paths if path.is_dir()]
    runs = [{**record, "folder": str(path)} for path, record in records if record]
    if not runs:
        raise UsageError(
            "sweep", str(folder), "holds neither sweep.json nor any run.json: nothing to analyse"
        )
    return runs


def in_order(
    function: Any, items: Sequence[Any], told: Callable[[int], None] = lambda n: None
) -> Iterator[Any]:
    """Results of a Ray task for each item, in their order, a few more in flight than there are CPUs."""
    limit = 2 * int(ray.cluster_resources().get("CPU", 1)) + 2
    flying: list[Any] = []
    upcoming = iter(items)
    for done in range(len(items)):
        while len(flying) < limit and (item := next(upcoming, None)) is not None:
            flying.append(function.remote(item))
        yield ray.get(flying.pop(0))
        told(done + 1)


def analyze(folder: Path, plots: Path, tau: float = TAU, progress: Progress = lambda *a: None) -> Analysis:
    """Measures every finished run below `folder` in an existing Ray cluster; writes tables, figures, report.

    Raises UsageError when no run is finished.
    """
    grid = find_grid(folder)
    statuses = [store.run_status(Path(run["folder"]))[0] for run in grid]
    done = [run for run, status in zip(grid, statuses, strict=True) if status == "done"]
    if not done:
        raise UsageError("sweep", str(folder), f"has no finished run ({len(grid)} planned): train it first")
    notices = incomplete_notices(grid, statuses)
    target = folder / "tables"
    target.mkdir(parents=True, exist_ok=True)
    measured = list(write_stability(target / "stability.parquet", done, progress))
    made = make_tables(grid, statuses, measured, tau)
    write_tables(target, made, f"{len(done)}/{len(grid)}")
    summary = summaries.summarise(made)
    drawing.draw_all(folder.name, plots, made, done, notices, summary, read_settings(folder), progress)
    store.write_json(target / "analysis.json", {"inputs": fingerprint(grid, statuses, tau, plots)})
    return Analysis(made, notices, summary)


def write_stability(path: Path, done: Sequence[Mapping[str, Any]], progress: Progress) -> Iterator[Measured]:
    """Measures the runs in parallel, streams their rows into one Parquet file, and yields the small parts."""
    task = ray.remote(max_retries=3)(measure_run)
    beside = path.with_name(f".{path.name}.tmp")
    writer = None
    try:
        for result in in_order(task, done, lambda n: progress("runs measured", n, len(done))):
            if writer is None:
                writer = pq.ParquetWriter(beside, result.rows.schema, compression="zstd")
            writer.write_table(result.rows)
            yield result._replace(rows=None)
        if writer is not None:
            writer.close()
            store.publish(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def incomplete_notices(grid: Sequence[Mapping[str, Any]], statuses: Sequence[str]) -> list[str]:
    """What a reader must know before believing an average: which runs of the grid are not in it."""
    lacking = [f"{r['run_id']} ({s})" for r, s in zip(grid, statuses, strict=True) if s != "done"]
    if not lacking:
        return []
    more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
    done = len(grid) - len(lacking)
    return [f"INCOMPLETE GRID: {done} of {len(grid)} runs are done; without {', '.join(lacking[:5])}{more}."]


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings that sweep.json holds, and what they ran on."""
    sweep = store.read_json(folder / "sweep.json") or {}
    settings = dict(sweep.get("settings") or {})
    return settings | {key: value for key, value in sweep.items() if key not in ("settings", "runs")}


def fingerprint(grid: Sequence[Mapping[str, Any]], statuses: Sequence[str], tau: float, plots: Path) -> str:
    """A hash of all that the tables and figures depend on."""
    files = [(store.read_json(Path(run["folder"]) / "run.json") or {}).get("files") for run in grid]
    text = json.dumps([epochlens.__version__, tau, str(plots), list(statuses), files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_current(folder: Path, plots: Path, tau: float = TAU) -> bool:
    """Whether tables, figures and report on disk already describe what the store holds."""
    before = store.read_json(folder / "tables" / "analysis.json")
    if not before or not (plots / "report.html").exists():
        return False
    grid = find_grid(folder)
    statuses = [store.run_status(Path(run["folder"]))[0] for run in grid]
    return before.get("inputs") == fingerprint(grid, statuses, tau, plots)
