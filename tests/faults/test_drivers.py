"""The sweep's own process killed and interrupted, two of them at once, and the state that Ray Tune keeps."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from disturbance import (
    NAME,
    ONLY_TRAIN,
    finish,
    folders,
    half_done,
    planned,
    processes,
    run,
    run_disturbed,
    start,
    wait_for,
    wait_for_commits,
)

from epochlens.errors import UsageError
from epochlens.record import files, ledger
from epochlens.sweep import plan

pytestmark = pytest.mark.ray
faults = pytest.mark.faults


def total_commits(root: Path) -> int:
    """Commits so far of all runs, finished ones left out."""
    return sum(len(ledger.read_entries(folder)) for folder in folders(root))


def wait_for_growth(root: Path, process: subprocess.Popen, commits: int) -> None:
    """Waits until there are so many commits more, or the process has ended."""
    goal = total_commits(root) + commits
    wait_for(root, lambda: process.poll() is not None or total_commits(root) >= goal)


@faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [20])
def test_a_driver_killed_at_random_times(tmp_path, recovers, kills):
    random, alive = np.random.default_rng(kills), 0
    for kill in range(kills):
        process = start(tmp_path)
        if kill % 2:
            wait_for_growth(tmp_path, process, int(random.integers(1, 8)))
            time.sleep(random.uniform(0, 0.05))
        else:  # also before there is anything to see
            time.sleep(random.uniform(0, 12))
        alive += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert alive >= 10  # the others came when the sweep was complete
    recovers(tmp_path, "driver killed", f"SIGKILL at {alive} random times", kills)


@faults
def test_a_driver_killed_while_it_analyses(tmp_path, recovers):
    process = start(tmp_path)
    wait_for(tmp_path, (tmp_path / "results" / NAME / "tables").exists, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    recovers(tmp_path, "driver killed", "SIGKILL during the analysis", 0)


@faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["int", "term"])
@pytest.mark.parametrize("whole_group", [True, False], ids=["group", "driver"])
def test_an_interrupted_driver_ends_in_time_and_says_how_to_go_on(tmp_path, recovers, number, whole_group):
    process = start(tmp_path)
    wait_for_commits(tmp_path, 10, process)
    asked = time.monotonic()
    (os.killpg if whole_group else os.kill)(process.pid, number)
    outcome = finish(tmp_path, process)
    took = time.monotonic() - asked
    assert outcome.code == 130, outcome.said
    assert "every finished epoch is saved. To go on: python -m sweeps.grid" in outcome.said
    assert "Traceback" not in outcome.said
    assert took < 10
    told = f"{signal.Signals(number).name} to the {'group' if whole_group else 'driver'}, {took:.1f} s to end"
    recovers(tmp_path, "driver interrupted", told, 2)


@faults
def test_a_second_interrupt_ends_the_driver_at_once(tmp_path, recovers):
    process = start(tmp_path)
    wait_for_commits(tmp_path, 10, process)
    os.killpg(process.pid, signal.SIGINT)
    asked = time.monotonic()
    while process.poll() is None and time.monotonic() < asked + 2:  # two that come at once are one
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
    assert finish(tmp_path, process, 1).code == 130
    recovers(tmp_path, "driver interrupted", "SIGINT twice", 2)


@faults
@pytest.mark.parametrize("seconds", [1.0, 3.0, 6.0])
def test_an_interrupt_while_ray_starts_is_not_lost(tmp_path, recovers, seconds):
    process = start(tmp_path)
    wait_for(tmp_path, (tmp_path / "results" / NAME / ".lock").exists, process)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGTERM)
    outcome = finish(tmp_path, process)
    assert outcome.code == 130, outcome.said
    recovers(tmp_path, "driver interrupted", f"SIGTERM {seconds:g} s after the start", 2, ONLY_TRAIN)


@faults
def test_two_drivers_on_one_sweep(tmp_path, recovered):
    process = start(tmp_path, ONLY_TRAIN)
    wait_for(tmp_path, (tmp_path / "results" / NAME / ".lock").exists, process)
    second = run(tmp_path, ONLY_TRAIN)
    assert second.code == 2
    assert f"is being worked on by process {process.pid} on " in second.said
    assert finish(tmp_path, process).code == 0
    recovered(tmp_path, "two drivers", "second one started meanwhile", 0)


def test_the_lock_of_a_dead_driver_is_taken_over(tmp_path):
    code = (
        "import sys, time, pathlib\nfrom epochlens.record import files\n"
        "with files.only_process(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match=f"process {holder.pid} on"), files.only_process(tmp_path):
            pass
        holder.kill()
    with files.only_process(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on")


@faults
def test_a_dead_head_of_the_cluster(tmp_path, recovers):
    process = start(tmp_path, RAY_gcs_rpc_server_reconnect_timeout_s="5")
    wait_for_commits(tmp_path, 10, process)
    [head] = processes("gcs_server", of=process.pid)
    os.kill(head, signal.SIGKILL)
    assert finish(tmp_path, process).code != 0
    recovers(tmp_path, "head lost", "SIGKILL of the local cluster's gcs_server", 2, ONLY_TRAIN)


@faults
@pytest.mark.parametrize("damage", ["truncated", "deleted"])
@pytest.mark.parametrize("when", ["between", "meanwhile"])
def test_state_of_tune_damaged(tmp_path, recovers, recovered, damage, when):
    scratch = tmp_path / "results" / NAME / "tune"

    def spoil() -> None:
        if damage == "deleted":
            shutil.rmtree(scratch, ignore_errors=True)
        for path in [path for path in scratch.rglob("*") if path.is_file()]:
            path.write_bytes(b"")

    def spoil_meanwhile() -> None:
        wait_for_commits(tmp_path, 10)
        spoil()

    told = "Tune's state", f"{damage} {when}"
    if when == "meanwhile":
        outcome = run_disturbed(tmp_path, spoil_meanwhile, ONLY_TRAIN)
        assert "Traceback" not in outcome.said
    else:
        process = start(tmp_path, ONLY_TRAIN)
        wait_for_commits(tmp_path, 10, process)
        process.kill()
        process.wait()
        spoil()
    recovers(tmp_path, *told, 2, ONLY_TRAIN)


def test_what_changes_numbers_is_another_run_and_what_does_not_is_the_same(calm_root, monkeypatch):
    from epochlens import config

    def statuses(*options: str) -> list[str]:
        _, folder, runs = planned(calm_root, *options)
        return [task.status for task in plan.look_up(folder, runs)]

    same = [["--keep-weights", "none"], ["--plots-dir", "elsewhere"], ["--cpus-per-trial", "0.5"]]
    same += [["--max-failures", "0"], ["--npz"], ["--dashboard"], ["--cpus-per-trial", "1"]]
    for options in same:
        assert statuses(*options) == ["done", "done"], options
    others = [["--epochs", "41"], ["--batch-size", "64"], ["--optimizer", "sgd"], ["--target", "predicted"]]
    others += [["--probe-samples", "5"], ["--quality-every", "4"], ["--methods", "saliency", "gradcam"]]
    for options in others:
        assert statuses(*options) == ["missing", "missing"], options
    monkeypatch.setattr(config, "NUMERICS", config.NUMERICS + 1)
    assert statuses() == ["missing", "missing"]


@faults
def test_options_that_change_no_number_touch_no_finished_run(calm_root, calm, tmp_path, recovered):
    shutil.copytree(calm_root / "results", tmp_path / "results")
    runs = tmp_path / "results" / NAME / "runs"
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    outcome = run(
        tmp_path, "--keep-weights", "all", "--plots-dir", str(tmp_path / "other"), "--npz", ONLY_TRAIN
    )
    assert outcome.code == 0, outcome.said
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before
    recovered(tmp_path, "other options", "--keep-weights, --plots-dir, --npz on a finished sweep", 0)


@faults
def test_options_that_change_no_number_go_on_with_half_a_run(tmp_path, recovers):
    half_done(tmp_path, 20)
    recovers(
        tmp_path, "other options", "--max-failures on half a sweep", 0, ONLY_TRAIN, "--max-failures", "9"
    )
