"""The GPU benchmark's own checks, tried on a CPU with a tiny grid."""

from __future__ import annotations

import json

import pytest
import torch

from epochlens.commands import bench
from epochlens.learn import graphs, training
from epochlens.sweep.bench import command, gpu
from epochlens.sweep.bench.timing import Result

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")


def tiny() -> training.TensorSplits:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(330, 1, 8, 8, generator=generator), torch.arange(330) % 3
    return training.TensorSplits(images[:300], labels[:300], images[300:], labels[300:])


STUDY = gpu.Study(
    {"tiny": tiny}, ("small", "lenet"), (0.001, 0.01), seeds=2, epochs=2, probes=4, packs=(1, 3)
)


@pytest.mark.parametrize("quick", [True, False])
def test_all_ways_give_the_same_and_are_timed(quick):
    torch.set_num_threads(1)
    found = list(gpu.comparisons(quick, "cpu", STUDY))
    results = [item for item in found if isinstance(item, Result)]
    *epochs, grid = results
    assert [result.note for result in results] == [""] * 7
    assert all(result.ratio == pytest.approx(result.theirs / result.ours) for result in results)
    assert all(result.ratio > 0 for result in results)
    ways = ["1 together, step by step", "1 together, on buffers in place", "3 together, on buffers in place"]
    assert [r.task for r in epochs] == [f"epoch of `{m}`, tiny, {way}" for m in STUDY.models for way in ways]
    assert "8 runs of 2 epochs" in grid.task
    by_hand = [epochs[n].theirs * 4 * 2 for n in (0, 3)]
    assert grid.theirs == pytest.approx(sum(by_hand))
    if quick:
        best = [min(r.ours for r in epochs[n : n + 3][1:]) for n in (0, 3)]
        assert grid.ours == pytest.approx(sum(best) * 4 * 2)


def test_a_step_that_computes_something_else_is_no_ratio(monkeypatch):
    take = graphs.take_static_step

    def twice(step: graphs.Step, buffers: graphs.Buffers) -> None:
        take(step, buffers)
        buffers.places.sub_(len(buffers.places))
        take(step, buffers)

    monkeypatch.setattr(graphs, "take_static_step", twice)
    found = gpu.comparisons(True, "cpu", STUDY._replace(models=("small",)))
    plain, *others, _ = [item for item in found if isinstance(item, Result)]
    assert plain.note == ""
    assert all("weights differ" in other.note and other.ratio != other.ratio for other in others)


@no_gpu
def test_without_a_gpu_the_part_fails_alone_and_is_left_out_of_all(monkeypatch, tmp_path, capsys):
    assert bench(["gpu", "--json", str(tmp_path / "alone.json")]) == 1
    assert capsys.readouterr().out.splitlines()[0] == "gpu: there is no CUDA GPU here: skipped"
    monkeypatch.setattr(command, "PARTS", ("gpu",))
    assert bench(["--json", str(tmp_path / "all.json")]) == 0
    for name in ("alone", "all"):
        notes = json.loads((tmp_path / f"{name}.json").read_text())["notes"]
        assert notes == ["gpu: there is no CUDA GPU here: skipped"]
