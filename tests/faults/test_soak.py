"""A sweep of very many tiny trials: what its processes hold must not grow without bound.

The number of trials is EPOCHLENS_SOAK's, 2,000 unless set.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import disturbance
import pytest

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(1800)]
TRIALS = int(os.environ.get("EPOCHLENS_SOAK", "2000"))
WARM = 0.25
"""share of the trials after which every process has started"""


class Held(NamedTuple):
    """What a sweep's processes hold at a moment; memory and disk in MB."""

    trials: int
    driver: float
    daemons: float
    """resident memory of Ray's head and raylet, their shared memory left out"""
    store: float
    """shared memory that the raylet has touched: the object store"""
    files: int
    """open files of the driver"""
    session: float
    """Ray's own folder: logs and sockets"""


def memory(pid: int, *kinds: str) -> float:
    """Resident memory of a process by kind (RssAnon, RssFile, RssShmem), MB; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.split(":")[0] in kinds) / 1024


def size(folder: Path) -> float:
    """What the files in a folder take, MB."""
    found = 0
    for path in folder.rglob("*"):
        try:
            found += path.lstat().st_blocks * 512
        except OSError:
            continue  # gone meanwhile
    return found / 2**20


def look(root: Path, pid: int, scratch: Path) -> Held:
    raylets = disturbance.processes("raylet/raylet", of=pid)
    daemons = [*raylets, *disturbance.processes("gcs_server", of=pid)]
    done = sum('"done"' in path.read_text() for path in (root / "results").glob("*/runs/*/run.json"))
    return Held(
        done,
        memory(pid, "RssAnon"),
        sum(memory(daemon, "RssAnon") for daemon in daemons),
        sum(memory(raylet, "RssShmem") for raylet in raylets),
        len(list(Path(f"/proc/{pid}/fd").glob("*"))),
        size(scratch),
    )


@pytest.fixture
def scratch():
    """A folder for Ray with a short path: sockets' names are limited."""
    with tempfile.TemporaryDirectory(prefix="soak") as place:
        yield Path(place)


def test_many_trials_hold_no_more_than_few(tmp_path, scratch):
    command = [sys.executable, "-m", "sweeps.grid", "--models", "small", "--lrs", "0.01", "--epochs", "1"]
    command += ["--seeds", *map(str, range(TRIALS)), "--methods", "saliency", "--probe-samples", "2"]
    command += ["--name", "soak", "--no-dashboard", "--no-analysis", *disturbance.places(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_TMPDIR": str(scratch)}
    seen = []
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment)
    while process.poll() is None:
        seen.append(look(tmp_path, process.pid, scratch))
        time.sleep(2)
    assert process.returncode == 0, (tmp_path / "said").read_text()[-3000:]
    whole = [
        held for held in seen if held.driver and held.daemons
    ]  # neither before Ray's start nor after its end
    print("\n" + "\n".join(map(str, [*whole[:: max(1, len(whole) // 12)], whole[-1]])))
    warm = next(held for held in whole if held.trials >= WARM * TRIALS)
    last = max(whole, key=lambda held: held.trials)
    grown = last.trials - warm.trials
    assert last.driver - warm.driver < 20 + 0.1 * grown  # Tune keeps each trial's last result
    assert last.daemons - warm.daemons < 20 + 0.05 * grown
    assert last.store < warm.store + 20
    assert last.files < warm.files + 20
    assert last.session - warm.session < 20 + 0.02 * grown
