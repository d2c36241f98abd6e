"""Sweeps whose results lie in a bucket: an S3 server on loopback, a bad line to it, and empty local copies.

The server is moto's. Where a line is bad, a proxy of this file stands in front of it, which answers some
requests with an error, drops others, and drops the answers of others that the server has carried out.
"""

from __future__ import annotations

import dataclasses
import functools
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disturbance import (
    NAME,
    ONLY_TRAIN,
    PATIENCE,
    Outcome,
    attempts,
    finish,
    folders,
    places,
    run,
    start,
    wait_for,
    without_ray,
)
from test_clusters import blind_node

from epochlens.commands import export
from epochlens.record import files, objects, remote
from epochlens.record.objects import Place
from epochlens.sweep import trial

moto = pytest.importorskip("moto.server", reason="needs moto's S3 server: pip install 'moto[server]'")
pytestmark = [pytest.mark.ray]
faults = pytest.mark.faults
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "any",
    "AWS_SECRET_ACCESS_KEY": "any",
    "AWS_EC2_METADATA_DISABLED": "true",
}
Disturb = Callable[[int], str]
"""what happens to the n-th request: "" (nothing), "error", "drop" (the request) or "deaf" (the answer)"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Host and port of an S3 server with one bucket, called results."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        serving = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        serving.start()
        host, port = serving.get_host_and_port()
        request = urllib.request.Request(f"http://{host}:{port}/results", method="PUT")
        with urllib.request.urlopen(request):
            yield f"{host}:{port}"
        serving.stop()


def uri_at(server: str, path: str) -> str:
    """The URI of a folder in the bucket, by way of this server."""
    return f"s3://results/{path}?endpoint_override={server}&scheme=http&region=us-east-1"


@pytest.fixture
def path() -> str:
    """A folder in the bucket that is this test's own."""
    return uuid.uuid4().hex


def command(root: Path, uri: str, *options: str) -> subprocess.Popen:
    """The grid command with its results in the bucket, and a local copy below the root."""
    environment = {**CREDENTIALS, objects.CACHE: str(root / "copies")}
    return start(root, "--results-dir", uri, *options, **environment)


def ended(root: Path, uri: str, *options: str) -> Outcome:
    """The grid command from start to end."""
    return finish(root, command(root, uri, *options))


def on_disk(root: Path, uri: str) -> Path:
    """A folder that looks like one of a local sweep, downloaded from the bucket."""
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(objects.CACHE, str(root / "copies"))
        (root / "results").symlink_to(remote.pull_sweep(uri, NAME).parent)
    return root


def marked(uri: str) -> int:
    """Committed epochs of the sweep's runs that count in the bucket, finished runs left out."""
    sweep = Place(uri, NAME, Path("nowhere"))
    runs = [sweep.below(f"runs/{name}") for name in objects.subfolders(sweep.below("runs"))]
    found = [marker.progress for at in runs if (marker := remote.read_marker(at))]
    return sum(epochs for epochs in found if epochs < remote.FINISHED)


class Line:
    """A proxy in front of a server, on a port of its own, that harms requests."""

    def __init__(self, server: str, disturb: Disturb) -> None:
        self.disturb, self.count, self.harmed, self.lock = disturb, 0, 0, threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Relay, self, server))
        self.address = f"127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def fate(self) -> str:
        """What happens to the next request."""
        with self.lock:
            self.count += 1
            harm = self.disturb(self.count)
            self.harmed += bool(harm)
        return harm


class Relay(BaseHTTPRequestHandler):
    """Passes requests on."""

    protocol_version = "HTTP/1.1"

    def __init__(self, line: Line, server: str, *arguments: Any) -> None:
        self.line, self.to = line, server
        super().__init__(*arguments)

    def relay(self) -> None:
        body = self.body()
        fate = self.line.fate()
        if fate == "drop":
            self.close_connection = True
            return
        if fate == "error":
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        connection = http.client.HTTPConnection(self.to)
        apart = ("transfer-encoding", "content-length", "expect")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in apart}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if fate == "deaf":
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "server", "date", "transfer-encoding"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = relay

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture
def line(server: str) -> Iterator[Callable[[Disturb], Line]]:
    """Makes bad lines to the server."""
    lines = []

    def make(disturb: Disturb) -> Line:
        lines.append(Line(server, disturb))
        return lines[-1]

    yield make
    for made in lines:
        made.http.shutdown()
        made.http.server_close()


def train(root: Path, uri: str, epochs: int | None = None) -> None:
    """Trains the sweep's runs as trials do, here and without Ray, each for so many reports at most."""
    place = Place(uri, NAME, root / "results" / NAME)
    with without_ray():
        for run_of, folder, shared, record in attempts(root):
            there = dataclasses.replace(shared, place=place)
            reports = trial.mirrored(trial.train_run(run_of, folder, there, record), there, run_of)
            for n, _ in enumerate(reports):
                if n + 1 == epochs:
                    break


def test_runs_go_on_from_the_bucket_with_nothing_on_disk(server, path, tmp_path, recovered):
    uri = uri_at(server, path)
    train(tmp_path / "one", uri, 7)
    shutil.rmtree(tmp_path / "one")
    train(tmp_path / "two", uri)
    resumed = [files.read_json(folder / "run.json") or {} for folder in folders(tmp_path / "two")]
    assert [record["resumed_from_epoch"] for record in resumed] == [6, 6]
    remote.pull_runs(Place(uri, NAME, tmp_path / "three" / "results" / NAME))
    recovered(tmp_path / "three", "node lost", "runs in a bucket, local copy gone after 7 epochs", 0)


@faults
def test_runs_on_a_bad_line_end_in_the_same_bits(server, path, line, tmp_path, recovered):
    draw = np.random.default_rng(0)

    def disturb(count: int) -> str:
        return str(draw.choice(["", "error", "drop", "deaf"], p=[0.91, 0.03, 0.03, 0.03]))

    bad = line(disturb)
    train(tmp_path / "one", uri_at(bad.address, path), 5)
    train(tmp_path / "two", uri_at(bad.address, path))
    assert bad.harmed > 50
    remote.pull_runs(Place(uri_at(server, path), NAME, tmp_path / "three" / "results" / NAME))
    told = f"{bad.harmed} of {bad.count} requests failed: 500, dropped, or answer dropped"
    recovered(tmp_path / "three", "bad line to a bucket", told, 0)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://nobody-has-this/x?endpoint_override={}&scheme=http&region=us-east-1", "no such bucket"),
        ("s3://results/x?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1", "reachable"),
    ],
)
def test_buckets_that_cannot_be_used_are_told_before_any_work(server, tmp_path, uri, said):
    outcome = run(tmp_path, "--results-dir", uri.format(server))
    assert outcome.code == 2
    assert outcome.said.startswith("error: results_dir: ") and said in outcome.said
    assert len(outcome.said.splitlines()) == 1
    assert not (tmp_path / "results").exists()


@faults
@pytest.mark.timeout(900)
def test_a_killed_sweep_goes_on_elsewhere_and_is_analysed_from_the_bucket(
    server, path, tmp_path, recovered, monkeypatch
):
    uri = uri_at(server, path)
    process = command(tmp_path / "one", uri)
    wait_for(tmp_path / "one", lambda: marked(uri) >= 10, process)
    second = second_driver(tmp_path / "second", uri, monkeypatch)
    assert second.code == 2
    assert f"is being worked on by process {process.pid} on " in second.said
    process.send_signal(signal.SIGKILL)
    process.wait()
    copies = tmp_path / "one" / "copies"  # workers write there until they notice
    wait_for(tmp_path, lambda: (shutil.rmtree(copies, ignore_errors=True), not copies.exists())[1])
    outcome = ended(tmp_path / "two", uri)
    assert outcome.code == 0, outcome.said
    assert " partial" in outcome.said and "Traceback" not in outcome.said
    found = on_disk(tmp_path / "three", uri)
    recovered(found, "driver killed, its disk lost", "SIGKILL; results in a bucket", 2)
    assert list((found / "results" / NAME / "tables").glob("*.parquet"))
    again = ended(tmp_path / "four", uri)
    assert again.code == 0
    assert "nothing to train" in again.said
    readers(tmp_path / "five", uri, monkeypatch)


def second_driver(root: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """The command in this process, with a local copy of its own."""
    monkeypatch.setenv(objects.CACHE, str(root))
    return run(root, "--results-dir", uri, ONLY_TRAIN)


def readers(root: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands that read a sweep, each from an empty local copy."""
    there = ["--results-dir", uri]
    monkeypatch.setenv(objects.CACHE, str(root / "analyze"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "sweeps.analyze", NAME, *places(root), *there]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert (said.returncode, said.stderr) == (0, ""), said.stdout + said.stderr
    assert (root / "plots" / NAME / "report.html").exists()
    monkeypatch.setenv(objects.CACHE, str(root / "export"))
    assert export([NAME, *there, "--output", str(root / "pt")]) == 0
    assert len(list((root / "pt").glob("*.pt"))) == 2


@faults
@pytest.mark.timeout(900)
def test_a_bucket_that_goes_away_for_good_is_told_and_loses_nothing(server, path, line, tmp_path, recovered):
    away = threading.Event()
    bad = line(lambda count: "drop" if away.is_set() else "")
    uri = uri_at(bad.address, path)
    process = command(tmp_path, uri, ONLY_TRAIN)
    wait_for(tmp_path, lambda: marked(uri_at(server, path)) >= 10, process)
    away.set()
    outcome = finish(tmp_path, process)
    assert outcome.code == 1
    assert "Traceback" not in outcome.said
    assert "mend that and run the same command again" in outcome.said.lower()
    away.clear()
    outcome = ended(tmp_path, uri, ONLY_TRAIN)
    assert outcome.code == 0, outcome.said
    found = on_disk(tmp_path / "found", uri_at(server, path))
    recovered(found, "bucket gone for a while", "every request dropped in mid-run", 2)


@faults
@pytest.mark.parametrize("damage", ["gone", "flip"])
def test_damaged_objects_of_finished_runs_are_found_and_done_anew(server, path, tmp_path, recovered, damage):
    uri = uri_at(server, path)
    train(tmp_path / "one", uri)
    for folder in folders(tmp_path / "one"):
        at = Place(uri, f"{NAME}/runs/{folder.name}", folder)
        marker = remote.read_marker(at)
        assert marker is not None
        key = marker.files["attributions.parquet"].key
        content = bytearray(objects.read(at, key) or b"")
        objects.remove(at, [key])
        if damage == "flip":
            content[len(content) // 2] ^= 4
            objects.write(at, key, bytes(content))
    outcome = ended(tmp_path / "two", uri, ONLY_TRAIN)
    assert outcome.code == 0, outcome.said
    assert outcome.said.count("kept, the run is done anew") == 2
    found = on_disk(tmp_path / "three", uri)
    recovered(found, "damaged object of a finished run", damage, 82, 82)


@faults
def test_fresh_keeps_what_was_in_the_bucket(server, path, tmp_path, recovered):
    uri = uri_at(server, path)
    train(tmp_path / "one", uri)
    outcome = ended(tmp_path / "two", uri, ONLY_TRAIN, "--fresh")
    assert outcome.code == 0, outcome.said
    assert f"earlier results kept in s3://results/{path}/{NAME}.old-1" in outcome.said
    recovered(on_disk(tmp_path / "three", uri), "--fresh", "a finished sweep in a bucket", 0)
    sweep = Place(uri, f"{NAME}.old-1", tmp_path / "four" / "results" / NAME)
    remote.pull_runs(sweep)
    recovered(tmp_path / "four", "--fresh", "what was set aside in the bucket", 0)


@faults
def test_nodes_that_share_nothing_but_the_bucket(server, path, tmp_path, recovered):
    from ray.cluster_utils import Cluster

    uri = uri_at(server, path)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        with blind_node(str(cluster.address), tmp_path / "copies", 1):  # all work is done there
            outcome = ended(tmp_path, uri, "--address", str(cluster.address))
            assert outcome.code == 0, outcome.said
    finally:
        cluster.shutdown()
    found = on_disk(tmp_path / "found", uri)
    recovered(found, "none", "driver and worker share nothing but a bucket", 0)
    assert len(list((tmp_path / "plots" / NAME).glob("*.pdf"))) >= 12


@faults
def test_what_a_marker_costs_is_small(server, path, tmp_path):
    """Seconds per push of an epoch against a server on this computer; printed, and far below a second."""
    root, uri = tmp_path, uri_at(server, path)
    started = time.perf_counter()
    train(root, uri)
    mirrored = time.perf_counter() - started
    started = time.perf_counter()
    with without_ray():
        for attempt in attempts(tmp_path / "local"):
            list(trial.train_run(*attempt))
    alone = time.perf_counter() - started
    each = (mirrored - alone) / 82
    sys.stdout.write(json.dumps({"seconds per push": each, "local seconds per epoch": alone / 82}) + "\n")
    assert each < 0.5, os.getloadavg()
