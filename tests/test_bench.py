"""The benchmark: ratios only for equal results, and every part's peers agree with ours."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import multiprocessing
import threading

import numpy as np
import pytest

from epochlens.commands import bench
from epochlens.sweep.bench import command, sides, training
from epochlens.sweep.bench.timing import Comparison, Result, largest_difference, measure, relative_norm

RESULT = Result("p", "task", "peer", 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, math.nan, 0.0)


def ticking(*seconds: float):
    """A clock that advances by these seconds in turn, one for each piece of work."""
    steps = itertools.chain.from_iterable((second, 0.0) for second in itertools.cycle(seconds))
    return itertools.accumulate(steps, initial=0.0).__next__


def compared(ours: float, theirs: float) -> Comparison:
    return Comparison(
        "p",
        "task",
        "peer",
        lambda: np.array([1.0]),
        lambda: np.array([theirs / ours]),
        largest_difference,
        2.0,
        3.0,
    )


def test_a_ratio_is_that_of_medians_of_work_done_in_turn():
    comparison = compared(1.0, 2.0)._replace(clock=ticking(1.0, 4.0))
    found = measure(comparison, 5)
    assert (found.ours, found.theirs, found.ratio) == (1.0, 4.0, 4.0)
    assert found.ratio_low == found.ratio_high == 4.0
    assert found.note == ""


def test_results_that_differ_have_no_ratio():
    found = measure(compared(1.0, 2.0)._replace(tolerance=0.1), 2)
    assert math.isnan(found.ratio)
    assert "results differ by 5.0e-01" in found.note


def test_differences_see_shapes_and_values_that_are_not_numbers():
    a = np.array([1.0, 2.0, np.nan])
    assert largest_difference(a, a) == 0
    assert largest_difference(a, np.array([1.0, np.nan, 2.0])) == math.inf
    assert largest_difference(a[:2], a) == math.inf
    assert relative_norm(a[:1], a[:2]) == math.inf
    assert relative_norm(3 * a[:2], 2 * a[:2]) == pytest.approx(0.5)


@pytest.mark.parametrize("part", ["attribution", "stability", "storage"])
def test_peers_agree_with_ours(part):
    compared = 0
    for c in importlib.import_module(f"epochlens.sweep.bench.{part}").comparisons(True):
        if isinstance(c, Comparison):
            assert c.difference(c.ours(), c.theirs()) <= c.tolerance, c.task
            compared += 1
    assert compared


def test_an_epoch_s_operations_are_those_of_its_convolutions_and_its_head():
    work = training.Work("deep", "MNIST 3v8", "fp32")
    _, n_train, n_test = training.DATASETS[work.dataset]
    first, second, head = 2 * 26**2 * 9 * 32, 2 * 24**2 * 9 * 32 * 64, 2 * 64 * 2
    forward, backward = first + second + head, first + 2 * second + 2 * head  # images need no gradient
    expected = forward * (n_train + n_test) + backward * n_train
    assert training.operations(work) == pytest.approx(expected)


def test_the_command_writes_its_table_as_json(tmp_path, capsys):
    assert bench(["stability", "--quick", "--json", str(tmp_path / "bench.json")]) in (0, 1)
    document = json.loads((tmp_path / "bench.json").read_text())
    rows = [row for row in document["results"] if row["part"] == "stability"]
    assert rows
    assert all(row["ratio"] > 0 and row["ours"] > 0 for row in rows)
    assert rows[0]["task"] in capsys.readouterr().out


def test_a_part_whose_process_dies_is_told_and_fails(monkeypatch, capsys):
    monkeypatch.setattr(command, "PARTS", ("timing", "stability"))  # a module without comparisons
    assert bench(["timing", "--quick"]) == 1
    assert capsys.readouterr().out.splitlines()[0] == "timing: failed: its process ended with code 1"


def test_the_study_s_grid_counts_two_trainings_of_the_peer_and_maps_of_both():
    epochs = [RESULT._replace(ours=2.0, theirs=4.0), RESULT._replace(ours=6.0, theirs=10.0)]
    maps = [RESULT._replace(ours=1.0, theirs=8.0)]
    found = training.grid("fp32", epochs, maps)
    assert (found.ours, found.theirs, found.ratio) == (9.0, 36.0, 4.0)
    missing = training.grid("fp32", [*epochs, RESULT._replace(ratio=math.nan)], maps)
    assert math.isnan(missing.ratio)


def test_a_side_does_its_own_work_as_often_as_it_is_asked_to(monkeypatch):
    items = ["a sentence", compared(1.0, 2.0), compared(1.0, 5.0)]
    monkeypatch.setattr(sides, "comparisons_of", lambda part, quick: iter(items))
    links = []
    for side in ("ours", "theirs"):
        link, other = multiprocessing.Pipe()
        links.append(link)
        threading.Thread(target=sides.serve, args=(other, "part", True, side), daemon=True).start()
    found = []
    for _ in items[1:]:
        found.append([sides.ask(link)[1].item() for link in links for _ in range(2)])
        for link in links:
            link.send("next")
    assert found == [[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 5.0, 5.0]]


def test_times_come_from_whoever_runs_the_work():
    one = np.array([1.0])
    runs = iter([(9.0, one), (1.0, one), (3.0, one), (2.0, one)])  # the first is to warm up
    found = measure(compared(1.0, 1.0), 3, lambda: next(runs), lambda: (8.0, one))
    assert (found.ours, found.theirs, found.ratio) == (2.0, 8.0, 4.0)
