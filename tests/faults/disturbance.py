"""Small real sweeps, to be killed, frozen and corrupted, and what they leave."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from epochlens import commands, config
from epochlens.config import Run
from epochlens.learn import data
from epochlens.record import files, ledger, retrieval
from epochlens.sweep import plan, trial

EPOCHS = 40
NAME = "s"
GRID = ["--lrs", "0.01", "--seeds", "0", "1", "--epochs", str(EPOCHS), "--probe-samples", "4"]
GRID += ["--methods", "saliency", "--quality", "sparseness", "--quality-every", "5", "--name", NAME]
SMALL = [*GRID, "--models", "small", "--no-dashboard"]
ONLY_TRAIN = "--no-analysis"
RUN_FILES = ("attributions.parquet", "quality.parquet", "probe.npz", "weights.pt")
STARTED: list[subprocess.Popen] = []
PATIENCE = 250
"""seconds that a sweep may take on a busy machine"""


class Outcome(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    said: str


def places(root: Path) -> list[str]:
    """Options that keep everything below the root."""
    return ["--results-dir", str(root / "results"), "--plots-dir", str(root / "plots")]


def start(
    root: Path, *options: str, prefix: Sequence[str] = (), settings: Sequence[str] = SMALL, **environment: str
) -> subprocess.Popen:
    """The grid command in a process group of its own, as a shell starts it; its output goes to root/said."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "said").open("w") as said:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "sweeps.grid", *settings, *places(root), *options],
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
            start_new_session=True,
        )
    STARTED.append(process)
    return process


def end_all() -> None:
    """Kills what `start` has started and is still there."""
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def finish(root: Path, process: subprocess.Popen, timeout: float = PATIENCE) -> Outcome:
    """Waits for the command's end."""
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"still running after {timeout} s: {(root / 'said').read_text()}") from None
    return Outcome(code, (root / "said").read_text())


def run(root: Path, *options: str, settings: Sequence[str] = SMALL) -> Outcome:
    """The grid command from start to end in this process, on the Ray cluster that it is connected to."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = commands.grid([*settings, *places(root), *options])
    return Outcome(code, said.getvalue())


def run_disturbed(root: Path, disturb: Callable[[], None], *options: str) -> Outcome:
    """As `run`, while `disturb` does its harm in another thread."""
    with ThreadPoolExecutor(1) as pool:
        harm = pool.submit(disturb)
        outcome = run(root, *options)
        harm.result(PATIENCE)
    return outcome


Attempt = tuple[Run, Path, trial.Shared, dict[str, Any]]
"""what `trial.train_run` is given"""


def planned(root: Path, *options: str) -> tuple[config.Sweep, Path, list[Run]]:
    """What the command with these options would do: its sweep, the sweep's folder and runs."""
    given = vars(commands.grid_parser().parse_args([*SMALL, *places(root), *options]))
    sweep = config.resolve(None, {name: given[name] for name in given if name in config.FIELDS})
    return sweep, plan.sweep_folder(sweep), plan.expand(sweep, config.check(sweep))


def attempts(root: Path) -> list[Attempt]:
    """An attempt at each run of the sweep, needing no Ray: to be begun inside `without_ray`."""
    sweep, folder, runs = planned(root)
    splits = data.load("digits", runs[0].classes, "unused")
    shared = trial.Shared(
        folder, {run.run_id: run for run in runs}, {"digits": splits}, "cpu", 1, sweep.keep_weights, sweep.npz
    )
    return [(run, plan.run_folder(folder, run.run_id), shared, trial.run_record(run, shared)) for run in runs]


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """Trials take their data as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "ray", types.SimpleNamespace(get=lambda reference: reference))
        yield


def half_done(root: Path, epochs: int) -> list[Path]:
    """Leaves what a sweep leaves that was killed when each of its runs had committed so many epochs."""
    with without_ray():
        for attempt in attempts(root):
            commits = trial.train_run(*attempt)
            for _ in range(epochs):
                next(commits)
    return folders(root)


def folders(root: Path) -> list[Path]:
    """The folders of the runs that there are so far, those set aside left out."""
    return [path for path in sorted((root / "results" / NAME / "runs").glob("*")) if ".old-" not in path.name]


def wait_for(root: Path, condition: Callable[[], Any], process: subprocess.Popen | None = None) -> Any:
    """Waits until the condition yields something, and returns that."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended early: {(root / 'said').read_text()}")
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)
    return found


def wait_for_commits(root: Path, count: int, process: subprocess.Popen | None = None) -> Path:
    """Waits until some run has so many commits, and returns its folder."""

    def found() -> Path | None:
        return next((folder for folder in folders(root) if len(ledger.read_entries(folder)) >= count), None)

    return wait_for(root, found, process)


def attempt_of(folder: Path) -> dict[str, Any]:
    """Who is at work on the run."""
    return json.loads((folder / "attempt.json").read_text())


def contents(root: Path) -> dict[str, Any]:
    """Everything that must not depend on how a sweep went: files of runs, their metrics, and tables.

    What tells of time, hosts and attempts is left out.
    """
    results = root / "results" / NAME
    found: dict[str, Any] = {}
    for folder in folders(root):
        found |= {f"{folder.name}/{name}": (folder / name).read_bytes() for name in RUN_FILES}
        epochs = pd.read_parquet(folder / "epochs.parquet")
        timeless = epochs[[name for name in epochs if not str(name).startswith("seconds_")]]
        found[f"{folder.name}/epochs"] = timeless.to_csv(index=False, float_format="%.17g")
        assert epochs["epoch"].tolist() == list(range(EPOCHS + 1))
        assert retrieval.run_status(folder)[0] == "done"
        expected = {*RUN_FILES, "epochs.parquet", "run.json", "damaged"}
        left = {path.name for path in folder.iterdir()} - expected
        assert not left, f"left over in {folder}: {left}"
    tables = (results / "tables").glob("*.parquet")
    return found | {path.name: path.read_bytes() for path in tables if path.stem != "runs"}


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Names under which two contents differ; tables count where there are any."""
    analysed = any("/" not in name for name in found)
    wanted = {name for name in {*found, *expected} if "/" in name or analysed}
    return sorted(name for name in wanted if found.get(name) != expected.get(name))


def repeated(root: Path) -> int:
    """Committed epochs that had to be computed again: second commits, and all of runs set aside."""
    runs = root / "results" / NAME / "runs"
    documents = [files.read_json(folder / "run.json") or {} for folder in folders(root)]
    aside = [len(ledger.read_ledger(folder)) or EPOCHS + 1 for folder in runs.glob("*.old-*")]
    return sum(int(document.get("epochs_repeated", 0)) for document in documents) + sum(aside)


def hurt(path: Path, damage: str) -> bytes:
    """Damages a file: one bit flipped in its middle, cut there, emptied, or removed. Returns what is left."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 4
    left = {"flip": bytes(content), "cut": bytes(content[:middle])}.get(damage, b"")
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(left)
    return left


def processes(text: str, of: int | None = None) -> list[int]:
    """Processes with the text in their command line, those that descend from one process if it is given."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if text.encode() in (entry / "cmdline").read_bytes() and (
                of is None or descends(int(entry.name), of)
            ):
                found.append(int(entry.name))
    return found


def descends(pid: int, of: int) -> bool:
    """Whether a process is another's child, or its child's, and so on."""
    while pid > 1 and pid != of:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid == of
