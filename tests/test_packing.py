"""Runs that share a trial leave what they leave alone, whatever happens to those beside them."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from test_sweep import bits, sweep
from torch import nn

from epochlens import commands, config
from epochlens.errors import UsageError
from epochlens.learn import models
from epochlens.record import files, ledger, retrieval, store
from epochlens.sweep import cluster, driver, plan, trial, watchdog
from epochlens.sweep.progress import Progress

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
GRID = [
    "--probe-samples",
    "4",
    "--no-analysis",
    "--name",
    "p",
    "--lrs",
    "0.01",
    "--seeds",
    "0",
    "1",
    "2",
    "3",
]
MOODY = [*GRID, "--models", "test_packing:Moody", "--epochs", "60"]
DEADLY = [*GRID, "--models", "test_packing:Deadly", "--epochs", "2", "--max-failures", "0"]


class Moody(nn.Module):
    """With seed 1 it raises after a few steps, with seed 2 its loss is not finite."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = models.small(channels, classes)
        self.seed, self.steps = torch.initial_seed(), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        if self.seed == 1 and self.steps > 20:
            raise RuntimeError("planted failure")
        return self.body(x) * (float("nan") if self.seed == 2 and self.steps > 12 else 1.0)


class Deadly(Moody):
    """With seed 1 it takes its whole process with it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        if self.seed == 1 and self.steps > 5:
            os._exit(3)
        return self.body(x)


def statuses(document: dict) -> list[str]:
    return [run["status"] for run in document["runs"]]


def epochs_of(results: Path) -> dict[str, dict[str, list]]:
    """The metrics of each run, its times left out."""
    frames = {path.parent.name: pd.read_parquet(path) for path in results.glob("runs/*/epochs.parquet")}
    return {
        name: {str(column): frame[column].tolist() for column in frame if "seconds" not in str(column)}
        for name, frame in frames.items()
    }


def test_packs_hold_runs_of_one_dataset_and_model():
    def run(name: str, model: str, seed: int) -> Any:
        run = SimpleNamespace(dataset=name, model=model, run_id=f"{name}{model}{seed}")
        return SimpleNamespace(run=run)

    tasks = [run(name, model, seed) for name in "ab" for model in "xy" for seed in range(5)]
    for replicas in (1, 2, 3, 5, 9):
        trials = plan.pack(tasks, replicas)
        assert [run_id for ids in trials for run_id in ids] == [task.run.run_id for task in tasks]
        assert max(map(len, trials)) == min(5, replicas)
        assert all(len({run_id[:2] for run_id in ids}) == 1 for ids in trials)
        assert len(trials) == 4 * -(-5 // replicas)


@pytest.mark.parametrize(
    ("replicas", "missing", "resources", "expected"),
    [
        ("auto", 80, {"cpu": 1}, 1),
        ("auto", 80, {"cpu": 1, "gpu": 0.125}, cluster.REPLICAS),
        ("auto", 16, {"cpu": 1, "gpu": 0.125}, 2),
        ("auto", 3, {"cpu": 1, "gpu": 0.125}, 1),
        ("auto", 16, {"cpu": 4, "gpu": 0.125}, cluster.REPLICAS),
        ("auto", 16, {"cpu": 2, "gpu": 0}, 4),
        (7, 3, {"cpu": 1}, 7),
    ],
)
def test_auto_packs_on_a_gpu_only_and_leaves_no_slot_idle(
    monkeypatch, replicas, missing, resources, expected
):
    resourceful = SimpleNamespace(cluster_resources=lambda: {"CPU": 8, "GPU": 1})
    monkeypatch.setattr(cluster, "ray", resourceful)
    assert cluster.choose_replicas(config.Sweep(replicas=replicas), missing, resources) == expected


@pytest.mark.parametrize(("word", "value"), [("auto", "auto"), ("3", 3), (1, 1), (2.0, 2)])
def test_replicas_are_a_number_or_auto(word, value):
    assert config.coerce("replicas", word) == value


@pytest.mark.parametrize("word", ["0", "-1", "1.5", "many", True, "inf", None])
def test_other_replicas_are_refused(word):
    with pytest.raises(UsageError, match="replicas"):
        config.coerce("replicas", word)


def test_the_watchdog_ends_a_silent_trial_as_a_whole():
    ended, said = [], []
    guard = watchdog.make_watchdog(0.05, said.append, lambda trial: ended.append(trial) or True)
    pack, other = (SimpleNamespace(config={"runs": runs}) for runs in (["a", "b"], ["c"]))
    for one in (pack, other):
        guard.on_trial_start(0, [], one)
    guard.on_trial_result(0, [], pack, {"run": "a"})
    time.sleep(0.1)
    guard.on_trial_complete(0, [], other)
    guard.on_step_end(0, [other, pack])
    assert ended == [pack]
    assert "a, b" in said[0]


def test_a_failure_told_twice_counts_once(capsys):
    progress = Progress(Console(), 0, 2, 4)
    for _ in range(2):
        progress.report({"run": "a", "status": "failed"})
    assert "1 failed" in progress.line()
    assert capsys.readouterr().out.count("failed") == 1


@pytest.fixture(scope="module")
def alone(tmp_path_factory, cluster):
    root = tmp_path_factory.mktemp("alone")
    code, document = sweep(root, *MOODY)
    assert code == 1
    assert statuses(document) == ["done", "failed", "failed", "done"]
    return root / "results" / "p"


def test_packed_runs_are_those_alone_when_some_fail_and_their_process_is_killed(alone, tmp_path, capsys):
    """The two that fail do so before the kill and are not tried again; the others resume."""
    runs = tmp_path / "results" / "p" / "runs"

    def owners() -> dict[str, int]:
        return {f.name: json.loads((f / "attempt.json").read_text())["pid"] for f in runs.iterdir()}

    def kill() -> dict[str, int]:
        deadline = time.monotonic() + 100
        while sum(len(ledger.read_entries(folder)) >= 5 for folder in runs.glob("*")) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        found = owners()
        os.kill(next(iter(found.values())), signal.SIGKILL)
        return found

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        code, document = sweep(tmp_path, *MOODY, "--replicas", "4")
    assert len(killed.result()) == 4
    assert len(set(killed.result().values())) == 1
    assert code == 1
    assert statuses(document) == ["done", "failed", "failed", "done"]
    errors = [str(run["error"]) for run in document["runs"]]
    assert "planted failure" in errors[1]
    assert "not finite" in errors[2]
    for run in document["runs"]:
        record = json.loads((runs / run["run_id"] / "run.json").read_text())
        again = record["pid"] != killed.result()[run["run_id"]]
        assert again == (run["status"] == "done")
        assert not again or record["resumed_from_epoch"] >= 3
    assert bits(tmp_path / "results" / "p") == bits(alone)
    found, expected = epochs_of(tmp_path / "results" / "p"), epochs_of(alone)
    assert found.keys() == expected.keys()
    for name, columns in expected.items():
        for column, values in columns.items():
            assert np.array_equal(found[name][column], values, equal_nan=True)
    assert (
        len(re.findall("^failed .*seed[12]", capsys.readouterr().err, re.MULTILINE)) == 4
    )  # and the summary's


def test_a_run_that_is_done_is_left_alone_in_a_pack(alone):
    given = vars(commands.grid_parser().parse_args(MOODY))
    settings = config.resolve(None, {name: given[name] for name in given if name in config.FIELDS})
    shared = trial.Shared(alone, {}, {}, "cpu", 1, "last", False)
    before = {path: path.stat().st_mtime_ns for path in alone.rglob("*")}
    first, *_, last = plan.expand(settings, config.check(settings))
    for run in (first, last):
        assert retrieval.run_status(plan.run_folder(alone, run.run_id))[0] == "done"
        assert list(trial.attempt(run, shared, lambda: pytest.fail("loads data"))) == []
    assert {path: path.stat().st_mtime_ns for path in alone.rglob("*")} == before


def test_a_run_that_kills_its_process_fails_alone(tmp_path, capsys):
    code, document = sweep(tmp_path, *DEADLY, "--replicas", "4")
    assert code == 1
    assert statuses(document) == ["done", "failed", "done", "done"]
    assert "process died" in document["runs"][1]["error"]
    assert "go on alone" in capsys.readouterr().err


def test_a_failure_of_an_earlier_command_does_not_hide_a_death_of_this_one(tmp_path):
    run = {"run_id": "a", "session": "yesterday"}
    store.fail_run(tmp_path, run, "ValueError: yesterday's", "log")
    assert driver.has_ended(tmp_path, "yesterday")
    driver.tell_death(tmp_path, "yesterday", "log", "told already")
    assert "yesterday's" in (files.read_json(tmp_path / "run.json") or {})["error"]
    assert not driver.has_ended(tmp_path, "today")
    driver.tell_death(tmp_path, "today", "log", "out of memory")
    record = files.read_json(tmp_path / "run.json") or {}
    assert record["error"] == "its process died: out of memory"
    assert driver.has_ended(tmp_path, "today")
