"""Workers and nodes that die, freeze, or are lost while they still write."""

from __future__ import annotations

import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import disturbance
import pytest
from disturbance import (
    GRID,
    ONLY_TRAIN,
    attempt_of,
    contents,
    finish,
    processes,
    run,
    run_disturbed,
    start,
    wait_for,
    wait_for_commits,
)

from epochlens.commands import analyze
from epochlens.record.files import CRASH_AT, STEPS

pytestmark = pytest.mark.ray
faults = pytest.mark.faults


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "ledger" else faults) for name in STEPS]
)
def test_a_crash_at_any_step_of_a_commit(tmp_path, address, recovers, name):
    count = {"beside": 20, "quality": 2, "gathered": 1, "metrics": 1, "done": 1}.get(name, 5)
    options = ["--address", address, ONLY_TRAIN, "--max-failures", "1"]
    crashed = finish(tmp_path, start(tmp_path, *options, **{CRASH_AT: f"{name}:{count}"}))
    ended = ("gathered", "metrics", "done")  # steps at which working files are still there
    left = [(folder / "ledger.jsonl").exists() for folder in disturbance.folders(tmp_path)]
    assert left == [True, True] or name not in ended
    assert crashed.code == (0 if name == "done" else 1), crashed.said
    at_most = 4 if name in ("beside", "ledger", "moved") else 0
    recovers(
        tmp_path, "crash in a commit", f"SIGKILL at step {name}, 2 runs x 2 attempts", at_most, ONLY_TRAIN
    )


def test_a_killed_worker(tmp_path, recovered):
    def kill() -> None:
        os.kill(attempt_of(wait_for_commits(tmp_path, 10))["pid"], signal.SIGKILL)

    outcome = run_disturbed(tmp_path, kill, ONLY_TRAIN)
    assert outcome.code == 0, outcome.said
    recovered(tmp_path, "worker killed", "SIGKILL in mid-epoch", 1)


def test_a_frozen_worker_is_found_and_replaced(tmp_path, recovered):
    def freeze() -> None:
        os.kill(attempt_of(wait_for_commits(tmp_path, 10))["pid"], signal.SIGSTOP)

    outcome = run_disturbed(tmp_path, freeze, ONLY_TRAIN, "--stall-timeout", "5")
    assert outcome.code == 0, outcome.said
    assert "stalled" in outcome.said
    recovered(tmp_path, "worker frozen", "SIGSTOP in mid-epoch", 1)


@faults
def test_a_worker_frozen_before_its_first_epoch_is_found_and_replaced(tmp_path, recovered, address):
    process = start(tmp_path, "--address", address, ONLY_TRAIN, "--stall-timeout", "20")
    [raylet] = processes("raylet/raylet", of=os.getpid())
    frozen = wait_for(tmp_path, lambda: processes("ray::ImplicitFunc.train", of=raylet), process)
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    began = bool(disturbance.folders(tmp_path))
    outcome = finish(tmp_path, process)
    assert outcome.code == 0, outcome.said
    assert "stalled" in outcome.said
    told = "SIGSTOP while it loads" if not began else "SIGSTOP at its first epoch"
    recovered(tmp_path, "worker frozen", told, 2)


@faults
def test_a_configuration_that_fails_slowly_leaves_the_others_alone(tmp_path, calm):
    models = ["planted_faults:Lingering", "planted:Diverging", "planted:Dying", "small"]
    options = ["--models", *models, "--no-dashboard", "--max-failures", "1", ONLY_TRAIN]
    outcome = run(tmp_path, settings=[*GRID, *options])
    assert outcome.code == 1
    assert "2/8 runs done" in outcome.said
    for reason in ("planted failure", "not finite", "process died"):
        assert outcome.said.count(reason) >= 2
    for folder in disturbance.folders(tmp_path):
        if "small" not in folder.name:
            shutil.rmtree(folder)
    assert disturbance.differences(contents(tmp_path), calm) == []


@faults
def test_a_configuration_that_takes_all_memory(tmp_path, calm):
    lines = Path("/proc/meminfo").read_text().splitlines()
    total, free = (int(line.split()[1]) for line in lines if line.startswith(("MemTotal", "MemAvailable")))
    enough = (total - free + 3 * 2**20) / total
    if enough > 0.95:
        pytest.skip("needs 3 GB of free memory")
    grid = [*GRID, "--models", "planted_faults:Hungry", "small", "--no-dashboard", "--max-failures", "1"]
    process = start(
        tmp_path, ONLY_TRAIN, settings=grid, RAY_memory_usage_threshold=f"{enough:.3f}", OMP_NUM_THREADS="1"
    )
    outcome = finish(tmp_path, process)
    assert outcome.code == 1, outcome.said
    assert "Traceback" not in outcome.said
    assert "2/4 runs done" in outcome.said
    assert "memory" in outcome.said
    for folder in disturbance.folders(tmp_path):
        if "small" not in folder.name:
            shutil.rmtree(folder)
    assert disturbance.differences(contents(tmp_path), calm) == []


@faults
def test_a_killed_analysis_worker(calm_root, calm, tmp_path):
    shutil.copytree(calm_root / "results", tmp_path / "results")
    shutil.rmtree(tmp_path / "results" / disturbance.NAME / "tables")

    [raylet] = processes("raylet/raylet", of=os.getpid())

    def kill() -> None:
        for pid in wait_for(tmp_path, lambda: processes("ray::measure_run", of=raylet)):
            os.kill(pid, signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        harm = pool.submit(kill)
        assert analyze([disturbance.NAME, *disturbance.places(tmp_path)]) == 0
        harm.result(1)
    assert disturbance.differences(contents(tmp_path), calm) == []


@faults
@pytest.mark.parametrize("lost", ["node", "raylet", "head"])
def test_a_lost_node(tmp_path, recovers, lost):
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        workers = [nodes.add_node(num_cpus=1) for _ in range(2)]
        nodes.wait_for_nodes()
        options = ["--address", nodes.address, ONLY_TRAIN]
        process = start(tmp_path, *options, RAY_gcs_rpc_server_reconnect_timeout_s="5")
        folder = wait_for_commits(tmp_path, 10, process)
        there = next(node for node in workers if node.node_id == attempt_of(folder)["node"])
        if lost == "node":
            nodes.remove_node(there, allow_graceful=False)
        elif lost == "raylet":  # its workers go on writing until they notice
            os.kill(there.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        elif nodes.head_node is not None:
            os.kill(nodes.head_node.all_processes["gcs_server"][0].process.pid, signal.SIGKILL)
        outcome = finish(tmp_path, process)
        assert outcome.code == 0 or lost == "head", outcome.said
    finally:
        nodes.shutdown()
    recovers(tmp_path, f"{lost} lost", "SIGKILL, 3-node cluster", 2, ONLY_TRAIN)
