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

from epochlens.record import store

pytestmark = pytest.mark.ray
GRID = ["--models", "small", "deep", "--lrs", "0.01", "--seeds", "0", "--probe-samples", "6", "--name", "s"]
EPOCHS = 60


def command(root: Path) -> list[str]:
    places = ["--results-dir", str(root / "results"), "--plots-dir", str(root / "plots")]
    return [sys.executable, "-m", "sweeps.grid", *GRID, "--epochs", str(EPOCHS), *places, "--no-dashboard"]


def start(root: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        command(root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def ledgers(root: Path) -> dict[str, int]:
    """Committed epochs of each unfinished run."""
    runs = (root / "results" / "s" / "runs").glob("*")
    return {run.name: len(store.committed(run)) for run in runs if store.read_ledger(run)}


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

    second = start(root)
    wait_for_epochs(root, second, sum(settled.values()) + 12)
    second.send_signal(signal.SIGINT)
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 130, said
    assert "To go on: python -m sweeps.grid" in said
    for run in (root / "results" / "s" / "runs").glob("*"):
        record = json.loads((run / "run.json").read_text())
        if run.name in settled and record.get("resumed_from_epoch") is not None:
            assert settled[run.name] - 1 - record["resumed_from_epoch"] <= 1

    third = start(root)
    said, _ = third.communicate(timeout=240)
    assert third.returncode == 0, said
    assert bits(root / "results" / "s") == bits(calm / "results" / "s")


def wait_until_still(root: Path) -> dict[str, int]:
    """Committed epochs once the killed sweep's workers have noticed and stopped."""
    before, now = {}, ledgers(root)
    deadline = time.monotonic() + 60
    while before != now and time.monotonic() < deadline:
        time.sleep(2)
        before, now = now, ledgers(root)
    return now
