"""Ray-parallel analysis: every run of a sweep -> tables -> figures -> report. Reads the store only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import epochlens
from epochlens.errors import UsageError
from epochlens.lazy import LazyModule
from epochlens.record import store, tables
from epochlens.sweep import drawing

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray

    from epochlens.measure import settling, stability, statistics
else:
    pd, pa, pq = LazyModule("pandas"), LazyModule("pyarrow"), LazyModule("pyarrow.parquet")
    ray = LazyModule("ray")
    settling = LazyModule("epochlens.measure.settling")
    stability = LazyModule("epochlens.measure.stability")
    statistics = LazyModule("epochlens.measure.statistics")

Progress = Callable[[str, int, int], None]
CONDITION = ["dataset", "model", "learning_rate"]
RUN = [*CONDITION, "seed"]
CURVE = [*RUN, "run_id", "method", "epoch", "reference", "metric"]
TAU = 0.95
CSV_TABLES = ("runs", "epochs", "stability_summary", "variance", "stabilisation", "comparisons")


class Measured(NamedTuple):
    """What the analysis of one run gives; `rows` is the only large part."""

    rows: pa.Table
    by_seed: pd.DataFrame
    variance: pd.DataFrame
    matrices: pd.DataFrame


class Analysis(NamedTuple):
    """Tables by name (all but the large `stability`, which stays on disk), and what is wrong with the grid."""

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


def measure_run(run: Mapping[str, Any]) -> Measured:
    """All measurements of one finished run, method by method."""
    maps = store.load(run["folder"])
    keys = {key: run[key] for key in RUN} | {"run_id": run["run_id"]}
    rows, by_seed, variance, matrices = [], [], [], []
    for m, method in enumerate(maps.methods.tolist()):
        of_method = maps.attributions[:, m]
        frame = stability.similarities(of_method, maps.epochs, maps.samples)
        about = {**keys, "method": method}
        rows.append(stability_rows(frame, about))
        averages = stability.average_images(frame, ["epoch", "reference", "metric"])
        by_seed.append(
            with_keys(averages.astype({"reference": str, "metric": str}), about)[
                [*CURVE, "value", "n_undefined"]
            ]
        )
        raw, normalised = stability.temporal_variance(of_method[maps.epochs >= 1])
        variance.append({**about, "raw": raw, "normalised": normalised})
        matrices.append(with_keys(matrix_rows(of_method, maps.epochs), about))
    return Measured(
        pa.concat_tables(rows),
        pd.concat(by_seed, ignore_index=True),
        pd.DataFrame(variance).drop(columns="run_id"),
        pd.concat(matrices, ignore_index=True),
    )


def with_keys(frame: pd.DataFrame, keys: Mapping[str, Any]) -> pd.DataFrame:
    """The frame with constant columns in front."""
    return pd.concat([pd.DataFrame(keys, index=frame.index), frame], axis=1)


def stability_rows(frame: pd.DataFrame, about: Mapping[str, Any]) -> pa.Table:
    """Similarity rows with the run's columns in front, texts as dictionaries."""
    n = len(frame)
    zeros = pa.array(np.zeros(n, np.int32))
    columns: dict[str, Any] = {}
    for name, value in about.items():
        if isinstance(value, str):
            columns[name] = pa.DictionaryArray.from_arrays(zeros, pa.array([value]))
        else:
            columns[name] = pa.array(np.full(n, value, np.int32 if name == "seed" else np.float64))
    for name in ("epoch", "sample", "value"):
        columns[name] = pa.array(frame[name].to_numpy())
    for name in ("reference", "metric"):
        codes = pa.array(frame[name].cat.codes.to_numpy().astype(np.int32))
        columns[name] = pa.DictionaryArray.from_arrays(codes, pa.array(list(frame[name].cat.categories)))
    return pa.table({name: columns[name] for name in [*CURVE, "sample", "value"]})


def matrix_rows(maps: np.ndarray, epochs: np.ndarray) -> pd.DataFrame:
    """The epoch-by-epoch matrix of mean cosine similarity, a row per pair."""
    matrix = stability.epoch_matrix(maps, "cosine")
    return pd.DataFrame(
        {
            "metric": "cosine",
            "epoch_a": np.repeat(epochs, len(epochs)),
            "epoch_b": np.tile(epochs, len(epochs)),
            "value": matrix.ravel(),
        }
    )


def in_order(
    function: Any, items: Sequence[Any], told: Callable[[int], None] = lambda n: None
) -> Iterator[Any]:
    """Results of a Ray task for each item, in their order, with few more in flight than there are CPUs."""
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
    summary = summarise_conditions(made)
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


def make_tables(
    grid: Sequence[Mapping[str, Any]], statuses: Sequence[str], measured: Sequence[Measured], tau: float
) -> dict[str, pd.DataFrame]:
    """Every table but `stability`, from the runs' records and measurements."""
    done = [run for run, status in zip(grid, statuses, strict=True) if status == "done"]
    by_seed = pd.concat([m.by_seed for m in measured], ignore_index=True)
    epochs = pd.concat([epochs_of(run) for run in done], ignore_index=True)
    variance = pd.concat([m.variance for m in measured], ignore_index=True)
    matrices = pd.concat([m.matrices for m in measured], ignore_index=True)
    pairs = [*CONDITION, "method", "metric", "epoch_a", "epoch_b"]
    matrix = matrices.groupby(pairs, sort=False)["value"].agg(n_seeds="count", value="mean").reset_index()
    settled = settling.stabilisation(by_seed, epochs, tau)
    made = {
        "runs": runs_table(grid, statuses),
        "epochs": epochs,
        "stability_by_seed": by_seed,
        "stability_summary": statistics.summarise(by_seed),
        "variance": variance,
        "stabilisation": settled,
        "epoch_matrix": matrix,
    }
    return {**made, "comparisons": statistics.compare(outcomes(by_seed, variance, settled))}


def runs_table(grid: Sequence[Mapping[str, Any]], statuses: Sequence[str]) -> pd.DataFrame:
    """A row per planned run: its configuration, status, final accuracy, seconds, and error if it failed."""
    rows = []
    for planned, status in zip(grid, statuses, strict=True):
        record = store.read_json(Path(planned["folder"]) / "run.json") or {}
        row = {key: value for key, value in planned.items() if key not in ("folder", "files")}
        row["methods"] = " ".join(planned.get("methods", []))
        row["classes"] = " ".join(map(str, planned.get("classes", [])))
        row |= {"status": status, "final_accuracy": record.get("final_accuracy", np.nan)}
        row |= {key: record.get(key) for key in ("device", "threads", "host", "torch", "started")}
        row |= {
            "seconds": record.get("seconds", np.nan),
            "error": record.get("error"),
            "log": record.get("log"),
        }
        rows.append(row)
    return pd.DataFrame(rows).astype({"final_accuracy": float, "seconds": float})


def epochs_of(run: Mapping[str, Any]) -> pd.DataFrame:
    """A run's epochs: losses and accuracy, without timings, so that equal runs give equal tables."""
    frame = store.read_epochs(Path(run["folder"]))[["epoch", "train_loss", "test_loss", "accuracy"]]
    return with_keys(frame, {key: run[key] for key in RUN})


def outcomes(by_seed: pd.DataFrame, variance: pd.DataFrame, settled: pd.DataFrame) -> pd.DataFrame:
    """One value per run and method of each quantity that conditions are compared on."""
    columns = [*RUN, "method", "outcome", "value"]
    curves = by_seed[by_seed["reference"] == "previous"]
    parts = []
    for metric in ("cosine", "spearman_abs"):
        mean = curves[curves["metric"] == metric].groupby([*RUN, "method"])["value"].mean().reset_index()
        parts.append(mean.assign(outcome=f"{metric} to previous, mean over epochs"))
    parts.append(
        variance.rename(columns={"normalised": "value"}).assign(outcome="normalised temporal variance")
    )
    cosine = settled[settled["metric"] == "cosine"]
    parts.append(cosine.rename(columns={"epoch": "value"}).assign(outcome="settling epoch (cosine)"))
    return pd.concat([part[columns] for part in parts], ignore_index=True)


def summarise_conditions(made: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per configuration and method: what the terminal and the report show first."""
    last = made["epochs"].sort_values("epoch").groupby(RUN)["accuracy"].last().reset_index()
    rows = []
    settled = made["stabilisation"][made["stabilisation"]["metric"] == "cosine"]
    curves = made["stability_by_seed"]
    curves = curves[(curves["metric"] == "cosine") & (curves["reference"] == "previous")]
    for key, group in settled.groupby([*CONDITION, "method"], sort=False):
        same = dict(zip([*CONDITION, "method"], key, strict=True))
        accuracy = last[_match(last, same, CONDITION)]["accuracy"]
        mine = curves[_match(curves, same, [*CONDITION, "method"])].groupby("seed")["value"].mean()
        late = int(group["censored"].sum())
        rows.append(
            {
                "configuration": f"{same['dataset']} {same['model']} lr {same['learning_rate']:g}",
                "method": same["method"],
                "seeds": len(group),
                "final accuracy": _interval(accuracy),
                "cosine to previous": _interval(mine),
                "maps settle": f"epoch {group['epoch'].median():g}" + (f" ({late} did not)" if late else ""),
                "accuracy settles": f"epoch {group['accuracy_epoch'].median():g}",
            }
        )
    return pd.DataFrame(rows)


def _match(frame: pd.DataFrame, values: Mapping[str, Any], keys: Sequence[str]) -> pd.Series:
    return np.logical_and.reduce([frame[key] == values[key] for key in keys])


def _interval(values: pd.Series) -> str:
    mean, low, high = (float(x) for x in statistics.t_interval(values.to_numpy(float)))
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]" if np.isfinite(low) else f"{mean:.3f}"


def incomplete_notices(grid: Sequence[Mapping[str, Any]], statuses: Sequence[str]) -> list[str]:
    """What a reader must know before believing an average: which runs of the grid are not in it."""
    lacking = [f"{r['run_id']} ({s})" for r, s in zip(grid, statuses, strict=True) if s != "done"]
    if not lacking:
        return []
    more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
    done = len(grid) - len(lacking)
    return [f"INCOMPLETE GRID: {done} of {len(grid)} runs are done; without {', '.join(lacking[:5])}{more}."]


def write_tables(target: Path, made: Mapping[str, pd.DataFrame], share: str) -> None:
    """Each table as Parquet, the small ones as CSV too; `grid_runs` says how much of the grid is in them."""
    for name, frame in made.items():
        frame = frame.assign(grid_runs=share)
        store.write_whole(target / f"{name}.parquet", tables.frame_bytes(frame))
        if name in CSV_TABLES:
            store.write_whole(target / f"{name}.csv", frame.to_csv(index=False).encode())


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
