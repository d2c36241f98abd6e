"""Sweeps on clusters of several nodes: the same bits as on one, and folders that a node does not see.

The nodes are Ray's own, all on this computer. A node that does not see a folder is a real one, too: its
processes live in a mount namespace of their own, in which an empty file system lies over the folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from disturbance import GRID, NAME, ONLY_TRAIN, finish, folders, processes, start, wait_for

from epochlens.commands import grid
from epochlens.record import files

pytestmark = [pytest.mark.ray]
faults = pytest.mark.faults
RAY = f"{sys.executable} -m ray.scripts.scripts"


@pytest.fixture
def nodes() -> Iterator:
    """A cluster of a head without CPUs and two workers with one each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


@faults
def test_three_nodes_leave_the_bits_of_one(nodes, tmp_path, recovered):
    outcome = finish(tmp_path, start(tmp_path, "--address", nodes.address))
    assert outcome.code == 0, outcome.said
    used = {(files.read_json(folder / "run.json") or {})["node"] for folder in folders(tmp_path)}
    assert len(used) == 2
    recovered(tmp_path, "none", "3 nodes instead of 1", 0)
    assert list((tmp_path / "plots" / NAME).glob("*.pdf"))
    left = [path.name for path in (tmp_path / "results" / NAME).glob(".seen-*")]
    assert left == []


@contextlib.contextmanager
def blind_node(address: str, folder: Path, cpus: int) -> Iterator[None]:
    """A worker that joins the cluster and does not see a folder: an empty one lies over it there."""
    folder.mkdir(exist_ok=True)
    join = f"mount -t tmpfs none {folder} && exec {RAY} start --address {address} --num-cpus {cpus} --block"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*command, f"mount -t tmpfs none {folder}"]).returncode:
        pytest.skip("needs the right to mount in a namespace of its own")
    before, said = alive(address), subprocess.DEVNULL
    process = subprocess.Popen([*command, join], stdout=said, stderr=said, start_new_session=True)
    try:
        wait_for(folder, lambda: alive(address) > before)
        yield
    finally:
        for pid in processes("", of=process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


@faults
def test_a_node_that_does_not_see_the_folder_is_named_before_any_work(nodes, tmp_path):
    folder = tmp_path / "unshared"
    with blind_node(nodes.address, folder, 2):
        process = start(tmp_path, "--results-dir", str(folder), "--address", nodes.address, ONLY_TRAIN)
        outcome = finish(tmp_path, process)
    assert outcome.code == 2, outcome.said
    assert "does not work on" in outcome.said and "No such file or directory there" in outcome.said
    assert "s3://BUCKET/PATH" in outcome.said
    assert "Traceback" not in outcome.said
    assert not (folder / NAME / "runs").exists()
    assert not list((folder / NAME).glob(".seen-*"))


def alive(address: str) -> int:
    """The number of living nodes of a cluster."""
    code = (
        f"import ray; ray.init({address!r}, log_to_driver=False)\n"
        "print(sum(node['Alive'] for node in ray.nodes()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else 0


def test_a_client_cannot_drive_a_sweep_and_is_told_what_can(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert grid(["--address", "ray://nowhere:10001"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: address: 'ray://nowhere:10001'") and "ray job submit" in told
    assert not (tmp_path / "results" / "digits" / "runs").exists()


def listening(port: int) -> set[str]:
    """The addresses, as /proc/net has them, on which this computer listens at a port."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                found.add(local.rpartition(":")[0])
    return found


@faults
def test_the_dashboard_is_for_this_computer_and_asks_for_a_token_and_nothing_phones_home(tmp_path):
    process = start(tmp_path, ONLY_TRAIN, settings=[*GRID, "--models", "small", "--dashboard"])
    said = r"Ray dashboard: http://127\.0\.0\.1:(\d+)"
    port = int(wait_for(tmp_path, lambda: re.search(said, (tmp_path / "said").read_text()), process)[1])
    assert listening(port) == {"0100007F"}
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/jobs/", timeout=30)
    assert refused.value.code in (401, 403)
    [raylet] = processes("raylet/raylet", of=process.pid)
    environment = Path(f"/proc/{raylet}/environ").read_bytes().split(b"\0")
    assert b"RAY_USAGE_STATS_ENABLED=0" in environment
