"""Files damaged at rest, disks that are full, folders that may not be written, and two writers at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from disturbance import (
    EPOCHS,
    ONLY_TRAIN,
    Attempt,
    attempts,
    finish,
    folders,
    half_done,
    hurt,
    start,
    wait_for_commits,
    without_ray,
)

from epochlens.learn import training
from epochlens.record import files, retrieval
from epochlens.record.tracker import Tracker
from epochlens.sweep import trial

pytestmark = pytest.mark.ray
faults = pytest.mark.faults
HALF = 20
DAMAGED = {  # what is damaged; of each run, the epochs trained again at most, and those explained again
    "an early epoch's maps": ("attributions/epoch-0004.parquet", 5, 1),
    "the last epoch's maps": (f"attributions/epoch-{HALF - 1:04d}.parquet", 1, 1),
    "an early epoch's quality": ("quality/epoch-0005.parquet", 6, 1),
    "the checkpoint": ("state.pt", 1, 0),
    "the ledger": ("ledger.jsonl", HALF, HALF),
    "the probe images": ("probe.npz", 0, 0),
    "run.json": ("run.json", 0, 0),
    "attempt.json": ("attempt.json", 0, 0),
}


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
@pytest.mark.parametrize("what", DAMAGED)
def test_damage_to_half_a_run_is_found_and_mended(tmp_path, what, damage, recovered, monkeypatch):
    name, trained_again, explained_again = DAMAGED[what]
    explained = []
    explain = Tracker.explain
    runs = half_done(tmp_path, HALF)
    hurt_bytes = [hurt(folder / name, damage) for folder in runs]
    monkeypatch.setattr(
        Tracker, "explain", lambda tracker, epoch: (explained.append(epoch), explain(tracker, epoch))[1]
    )
    with without_ray():
        trained = sum(len(list(trial.train_run(*attempt))) for attempt in attempts(tmp_path))
    again = trained - 2 * (EPOCHS + 1 - HALF)
    assert len(explained) - 2 * (EPOCHS + 1 - HALF) <= 2 * explained_again
    if name.endswith((".pt", ".parquet")) and damage != "gone":
        kept = [[path.read_bytes() for path in folder.glob("damaged/*")] for folder in runs]
        assert kept == [[content] for content in hurt_bytes]
        assert all((files.read_json(folder / "run.json") or {})["damaged"] for folder in runs)
    told = {"flip": "a bit flipped", "cut": "cut in two", "empty": "emptied", "gone": "removed"}[damage]
    recovered(
        tmp_path, f"{what} damaged", f"{told}, in 2 runs of {HALF} committed epochs", 2 * trained_again, again
    )


@faults
@pytest.mark.parametrize(
    ("name", "again"), [("attributions/epoch-0004.parquet", 5), ("state.pt", 1), ("ledger.jsonl", HALF)]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damage_is_mended_by_the_same_command(tmp_path, recovers, name, again, damage):
    for folder in half_done(tmp_path, HALF):
        hurt(folder / name, damage)
    recovers(tmp_path, f"{Path(name).name} damaged", f"{damage}, then the command", 2 * again, ONLY_TRAIN)


def test_a_torn_ledger_is_kept_and_its_other_lines_are_believed(tmp_path, recovered):
    damaged = []
    for folder in half_done(tmp_path, HALF):
        lines = (folder / "ledger.jsonl").read_bytes().splitlines()
        lines[7] = lines[7].replace(b"accuracy", b"accurate")
        damaged.append(b"\n".join(lines) + b"\n")
        (folder / "ledger.jsonl").write_bytes(damaged[-1])
    with without_ray():
        trained = sum(len(list(trial.train_run(*attempt))) for attempt in attempts(tmp_path))
    again = trained - 2 * (EPOCHS + 1 - HALF)
    kept = [
        path.read_bytes() for folder in folders(tmp_path) for path in folder.glob("damaged/*-ledger.jsonl")
    ]
    assert kept == damaged
    recovered(tmp_path, "a line of the ledger damaged", "a word changed, in 2 runs of 20", 2 * 8, again)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB for results."""
    place = tmp_path / "results"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@faults
def test_a_full_disk(tmp_path, small_disk, recovers):
    process = start(tmp_path)
    wait_for_commits(tmp_path, 10, process)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    outcome = finish(tmp_path, process)
    assert outcome.code == 1
    assert "No space left on device" in outcome.said
    assert "Traceback" not in outcome.said
    ballast.unlink()
    recovers(tmp_path, "disk full", "tmpfs filled in mid-run", 2)


@faults
@pytest.mark.parametrize("where", ["run", "sweep"])
def test_permission_denied(tmp_path, recovers, where):
    root_may_not_either = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("needs setpriv to take root's rights away")
    process = start(tmp_path, prefix=root_may_not_either if os.geteuid() == 0 else [])
    wait_for_commits(tmp_path, 10, process)
    sweep = folders(tmp_path)[0].parents[1]
    closed = [sweep, *sweep.glob("tune/**/"), *sweep.glob("tables")] if where == "sweep" else []
    closed += [path for folder in folders(tmp_path) for path in (folder, folder / "attributions")]
    for path in closed:
        path.chmod(0o555)
    outcome = finish(tmp_path, process)
    for path in closed:
        if path.exists():
            path.chmod(0o755)
    assert outcome.code == 1
    assert "Permission denied" in outcome.said
    assert "Traceback" not in outcome.said
    recovers(tmp_path, "permission denied", f"chmod of the {where}'s folders in mid-run", 2)


def test_a_lost_attempt_stops_when_another_one_claims_the_run(tmp_path, recovered):
    with without_ray():
        for lost, later in zip(attempts(tmp_path), attempts(tmp_path), strict=True):
            old = trial.train_run(*lost)
            for _ in range(7):
                next(old)
            new = trial.train_run(*later)
            for _ in range(5):
                next(new)
            assert list(old) == []
            list(new)
            assert later[3]["resumed_from_epoch"] == 6
    recovered(tmp_path, "lost worker goes on", "two attempts in turn", 0)


def test_a_lost_attempt_that_wakes_after_the_run_was_finished_changes_nothing(tmp_path, recovered):
    with without_ray():
        for lost, later in zip(attempts(tmp_path), attempts(tmp_path), strict=True):
            old = trial.train_run(*lost)
            for _ in range(7):
                next(old)
            list(trial.train_run(*later))
            assert list(old) == []
            assert retrieval.run_status(lost[1])[0] == "done"
    recovered(tmp_path, "lost worker goes on", "woken after the run was finished", 0)


def test_an_attempt_that_loads_while_another_one_finishes_leaves_the_finished_run(tmp_path, recovered):
    with without_ray():
        for slow, fast in zip(attempts(tmp_path), attempts(tmp_path), strict=True):
            under_way = trial.train_run(*fast)
            for _ in range(EPOCHS + 1):
                next(under_way)
            assert list(trial.train_run(*slow, load=partial(load_meanwhile, slow, fast, under_way))) == []
            assert retrieval.run_status(slow[1])[0] == "done"
    assert not [*tmp_path.rglob("*.old-*")]
    recovered(tmp_path, "lost worker goes on", "finishes the run while the next one loads its data", 0)


def load_meanwhile(slow: Attempt, fast: Attempt, under_way: Iterator) -> training.TensorSplits:
    """The splits of an attempt, while the other one, already past its last look at the claim, finishes."""
    (_, folder, shared, _), (*_, record) = slow, fast
    record["attempt"] = (files.read_json(folder / "attempt.json") or {})["token"]
    assert list(under_way) == []
    return training.as_tensors(shared.datasets["digits"], "cpu")


@faults
def test_two_attempts_that_both_think_the_run_is_theirs_leave_the_same_bits(tmp_path, recovered):
    code = (
        "import sys, pathlib, disturbance\n"
        "from epochlens.record import store\nfrom epochlens.sweep import trial\n"
        "store.is_claimed = lambda folder, token: True\n"
        "with disturbance.without_ray():\n"
        "    for attempt in disturbance.attempts(pathlib.Path(sys.argv[1])):\n"
        "        list(trial.train_run(*attempt))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    for worker in [subprocess.Popen(command, env=environment) for _ in range(2)]:
        worker.wait()  # one of them may find that the other has finished the run and tidied up
    subprocess.run(command, env=environment, check=True)
    recovered(tmp_path, "lost worker goes on", "two attempts at the same moment", 2 * (EPOCHS + 1))
