"""Real processes killed and interrupted: rerunning the same command gives what an undisturbed sweep gives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_sweep import bits

from epochlens.record import ledger, retrieval

pytestmark = pytest.mark.ray
GRID = ["--models", "small", "deep", "--lrs", "0.01", "--seeds", "0", "--probe-samples", "6", "--name", "s"]
EPOCHS = 90


def command(root: Path) -> list[str]:
    places = ["--results-dir", str(root / "results"), "--plots-dir", str(root / "plots")]
    return [sys.executable, "-m", "sweeps.grid", *GRID, "--epochs", str(EPOCHS), *places, "--no-dashboard"]


def start(root: Path) -> subprocess.Popen:
    """The command in a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        command(root),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )


def ledgers(root: Path) -> dict[str, int]:
    """Committed epochs of each unfinished run."""
    runs = (root / "results" / "s" / "runs").glob("*")
    return {run.name: len(retrieval.committed(run)) for run in runs if ledger.read_ledger(run)}


def wait_for_epochs(root: Path, process: subprocess.Popen, count: int) -> None:
    deadline = time.monotonic() + 120
    while sum(ledgers(root).values()) < count:
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_killed_and_interrupted_sweeps_end_in_the_same_bits(tmp_path, cluster):
    from epochlens.commands import grid

    calm = tmp_path / "calm"
    assert grid(command(calm)[3:]) == 0

    root = tmp_path / "disturbed"
    first = start(root)
    wait_for_epochs(root, first, 12)
    first.send_signal(signal.SIGKILL)
    first.wait()
    settled = wait_until_still(root)
    for number in (signal.SIGINT, signal.SIGTERM):
        settled = interrupt(root, settled, number)

    third = start(root)
    said, _ = third.communicate(timeout=240)
    assert third.returncode == 0, said
    assert bits(root / "results" / "s") == bits(calm / "results" / "s")


def interrupt(root: Path, settled: dict[str, int], number: int) -> dict[str, int]:
    """Goes on from the settled epochs, then signals the whole group, as a terminal does."""
    before = {run_id: record_of(root, run_id) for run_id in settled}
    process = start(root)
    wait_for_epochs(root, process, sum(settled.values()) + 12)
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "To go on: python -m sweeps.grid" in said
    begun = [run_id for run_id in settled if record_of(root, run_id)["pid"] != before[run_id]["pid"]]
    assert begun
    for run_id in begun:  # at most the epoch that was being committed is repeated
        resumed = record_of(root, run_id)["resumed_from_epoch"]
        assert settled[run_id] - 2 <= resumed <= settled[run_id] - 1
    return wait_until_still(root)


def record_of(root: Path, run_id: str) -> dict:
    return json.loads((root / "results" / "s" / "runs" / run_id / "run.json").read_text())


def wait_until_still(root: Path) -> dict[str, int]:
    """Committed epochs once the killed sweep's workers have noticed and stopped."""
    before, now = {}, ledgers(root)
    deadline = time.monotonic() + 60
    while before != now and time.monotonic() < deadline:
        time.sleep(2)
        before, now = now, ledgers(root)
    return now
