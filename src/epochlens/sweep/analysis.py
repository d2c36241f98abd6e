"""Ray-parallel analysis: every run of a sweep -> tables -> figures -> report. Reads the store only."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import epochlens
from epochlens.errors import UsageError
from epochlens.lazy import LazyModule
from epochlens.record import files, remote, retrieval, tables
from epochlens.sweep import drawing
from epochlens.sweep.measurement import CONDITION, Measured, Rule, measure_run, measure_seeds
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
RECORD = "analysis.json"
"""file that says what tables and figures were made of"""


class Analysis(NamedTuple):
    """Tables by name (but the large `stability`, which stays on disk), and what the grid lacks."""

    tables: dict[str, pd.DataFrame]
    notices: list[str]
    summary: pd.DataFrame


def find_grid(folder: Path) -> list[dict[str, Any]]:
    """The runs that belong together, as records with their `folder` and, as `status`, what the store holds.

    Raises UsageError when there are none.
    """
    places = find_places(folder)
    with ThreadPoolExecutor(8) as pool:
        statuses = pool.map(lambda place: retrieval.run_status(place[0])[0], places)
        return [
            {**record, "folder": str(path), "status": status}
            for (path, record), status in zip(places, statuses, strict=True)
        ]


def find_places(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Folder and record of the runs that belong together: those of sweep.json, else every run.json below.

    Raises UsageError when there are none.
    """
    sweep = files.read_json(folder / "sweep.json")
    if sweep and is_grid(sweep.get("runs")):
        places = [(folder / "runs" / Path(str(run["run_id"])).name, run) for run in sweep["runs"]]
    else:
        paths = dict.fromkeys([folder, *sorted((folder / "runs").glob("*")), *sorted(folder.glob("*"))])
        found = [(path, files.read_json(path / "run.json")) for path in paths if path.is_dir()]
        places = named_apart([(path, record) for path, record in found if record and is_run(record)])
    if not places:
        raise UsageError("sweep", str(folder), "holds neither sweep.json nor any run.json")
    return places


def is_grid(runs: Any) -> bool:
    """Whether a sweep.json's runs are what this program writes."""
    return isinstance(runs, list) and all(isinstance(run, dict) and is_run(run) for run in runs)


def is_run(record: Mapping[str, Any]) -> bool:
    """Whether a record names its run, its condition and its methods in the types that this program writes."""
    methods = record.get("methods")
    return (
        all(isinstance(record.get(key), str) for key in ("run_id", "dataset", "model"))
        and all(isinstance(record.get(key), int | float) for key in ("learning_rate", "seed"))
        and isinstance(methods, list)
        and all(isinstance(method, str) for method in methods)
    )


def named_apart(places: Sequence[tuple[Path, dict[str, Any]]]) -> list[tuple[Path, dict[str, Any]]]:
    """Runs recorded outside a sweep, under distinct datasets where they would be the same in tables."""
    keys = [json.dumps([record.get(key) for key in (*CONDITION, "seed")]) for _, record in places]
    return [
        (path, record if keys.count(key) == 1 else {**record, "dataset": path.name})
        for (path, record), key in zip(places, keys, strict=True)
    ]


def is_usable(run: Mapping[str, Any], planned: bool) -> bool:
    """Whether a run can be analysed: finished, or recorded outside a sweep for at least two epochs so far."""
    if planned or run["status"] != "partial":
        return run["status"] == "done"
    return len(retrieval.committed(Path(run["folder"]))) > 1


def in_order(
    function: Callable[..., Measured], items: Sequence[Any], place: remote.Place | None = None
) -> Iterator[Any]:
    """What a function measures of each item, in their order, a few more in flight than there are CPUs.

    Rows and frames travel apart: arrays read from Ray's store keep all of their object in memory, and rows
    are to go as soon as they are written.
    """
    there = (function, place) if place else ()
    task: Any = ray.remote(max_retries=3, num_returns=2)(measure_there if place else function)
    limit = 2 * int(ray.cluster_resources().get("CPU", 1)) + 2
    upcoming = iter(items)
    flying = [task.remote(*there, item) for item in itertools.islice(upcoming, limit)]
    while flying:
        try:
            measured = Measured(*ray.get(flying.pop(0)))
        except remote.RemoteError as error:  # Ray's own says it with the traceback of a worker
            raise remote.RemoteError(error.root, error.reason) from None
        except tables.TableError as error:
            raise tables.TableError(str(getattr(error, "cause", error))) from None
        yield measured
        flying += [task.remote(*there, item) for item in itertools.islice(upcoming, 1)]


def measure_there(function: Callable[..., Measured], place: remote.Place, item: Any) -> Measured:
    """What a function measures of a run, or of several, once this node's local copy has them.

    On the node of the sweep's driver, which holds the copy, it has: there workers may be writing.
    """
    with files.unheld(place.folder) as free:
        for run in [item] if isinstance(item, Mapping) else item:
            if free:
                remote.pull(place.below(f"runs/{run['run_id']}"))
    return function(item)


def analyze(
    folder: Path,
    plots: Path,
    tau: float = TAU,
    progress: Progress = lambda *a: None,
    place: remote.Place | None = None,
    patience: int | None = None,
) -> Analysis:
    """Measures every usable run below `folder` in an existing Ray cluster; writes tables, figures, report.

    Settled is what keeps a similarity of `tau` for `patience` epochs (None: those of measurement.PATIENCE).
    `folder` is the local copy of `place` where that is given. Raises UsageError when no run can be analysed.
    """
    grid = find_grid(folder)
    planned = (folder / "sweep.json").exists()
    usable = [{**run, "tau": tau, "patience": patience} for run in grid if is_usable(run, planned)]
    if not usable:
        raise UsageError("sweep", str(folder), f"has no finished run ({len(grid)} planned): train it first")
    notices = incomplete_notices(grid, usable)
    target = folder / "tables"
    with files.only_process(target, lambda who: progress(f"waiting for {who}, which analyses it", 1, 1)):
        begin_writing(target, plots)
        measured = list(write_stability(target / "stability.parquet", usable, progress, place))
        made = make_tables(grid, usable, [run["status"] for run in grid], measured, Rule(tau, patience))
        write_tables(target, made, f"{len(usable)}/{len(grid)}")
        summary = summaries.summarise(made)
        drawing.draw_all(folder.name, plots, made, usable, notices, summary, read_settings(folder), progress)
        end_writing(target, plots, fingerprint(grid, tau, plots, patience))
        if place:
            remote.push(place)
    return Analysis(made, notices, summary)


def begin_writing(target: Path, plots: Path) -> None:
    """Withdraws what says that tables and figures are current, and removes what a crash has left."""
    for path in [target / RECORD, plots / RECORD, *target.glob(".*.tmp")]:
        path.unlink(missing_ok=True)


def end_writing(target: Path, plots: Path, inputs: str) -> None:
    """Says of tables and figures what they were made of, and vouches for the tables and the report."""
    for folder, written in (
        (target, [*target.glob("*.parquet"), *target.glob("*.csv")]),
        (plots, [plots / "report.html"]),
    ):
        sums = {path.name: files.known_checksum(path) for path in sorted(written)}
        files.write_json(folder / RECORD, {"inputs": inputs, "files": sums})


def write_stability(
    path: Path,
    usable: Sequence[Mapping[str, Any]],
    progress: Progress,
    place: remote.Place | None = None,
) -> Iterator[Measured]:
    """Measures runs, then seeds of a condition, in parallel; streams their rows into one Parquet file.

    Yields the small parts.
    """
    steps = {
        "runs measured": (measure_run, usable),
        "conditions compared over seeds": (measure_seeds, comparable_seeds(usable)),
    }
    beside = files.name_beside(path)
    writer = None
    try:
        for step, (function, items) in steps.items():
            for n, result in enumerate(in_order(function, items, place)):
                writer = writer or pq.ParquetWriter(beside, result.rows.schema, compression="zstd")
                writer.write_table(result.rows)
                progress(step, n + 1, len(items))
                result = result._replace(rows=None)
                yield result
        if writer is not None:
            writer.close()
            files.publish(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def comparable_seeds(usable: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Runs that differ in their seed only and explain the same images, two or more, by condition."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in usable:
        if run["status"] == "done":
            probe = (run.get("files") or record_of(run).get("files") or {}).get("probe.npz")
            same = [run[key] for key in CONDITION] + [run.get("methods"), run.get("epochs"), probe]
            groups.setdefault(json.dumps(same), []).append(run)
    return [group for group in groups.values() if len(group) > 1]


def record_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """The run's own run.json."""
    return files.read_json(Path(run["folder"]) / "run.json") or {}


def incomplete_notices(grid: Sequence[Mapping[str, Any]], usable: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know before believing an average: which runs are not in it, or not finished."""
    there = {run["run_id"] for run in usable}
    lacking = [f"{run['run_id']} ({run['status']})" for run in grid if run["run_id"] not in there]
    unfinished = [str(run["run_id"]) for run in usable if run["status"] != "done"]
    notices = []
    if lacking:
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        told = f"{len(usable)} of {len(grid)} runs are done; without {', '.join(lacking[:5])}{more}."
        notices.append(f"INCOMPLETE GRID: {told}")
    if unfinished:
        notices.append(f"NOT FINISHED, analysed as far as recorded: {', '.join(unfinished[:5])}.")
    if len({run["seed"] for run in usable}) > 1 and not comparable_seeds(usable):
        notices.append("No two seeds explain the same images: the agreement between seeds is not known.")
    return notices


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings that sweep.json holds, and what they ran on."""
    sweep = files.read_json(folder / "sweep.json") or {}
    settings = dict(sweep.get("settings") or {})
    return settings | {key: value for key, value in sweep.items() if key not in ("settings", "runs")}


def fingerprint(
    grid: Sequence[Mapping[str, Any]], tau: float, plots: Path, patience: int | None = None
) -> str:
    """A hash of all that the tables and figures depend on."""
    recorded = [[run["status"], record_of(run).get("files")] for run in grid]
    text = json.dumps([epochlens.__version__, tau, patience, str(plots), recorded], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_current(folder: Path, plots: Path, tau: float = TAU) -> bool:
    """Whether tables, figures and report on disk already describe what the store holds."""
    now = fingerprint(find_grid(folder), tau, plots) if (plots / "report.html").exists() else ""
    return all(vouches(place, now) for place in (folder / "tables", plots))


def vouches(folder: Path, inputs: str) -> bool:
    """Whether what lies in the folder was made of these inputs, and is still as it was then."""
    record = files.read_json(folder / RECORD) or {}
    sums = record.get("files")
    whole = isinstance(sums, dict) and all(
        files.known_checksum(folder / Path(name).name) == sum for name, sum in sums.items()
    )
    return whole and record.get("inputs") == inputs
