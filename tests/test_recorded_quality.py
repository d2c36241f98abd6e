"""Quality measured while a network trains: what is recorded, committed, gathered and averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from epochlens import config
from epochlens.attribute.methods import all_methods, attribute
from epochlens.attribute.quality import assess, evaluate
from epochlens.errors import UsageError
from epochlens.record import ledger, retrieval
from epochlens.record.tracker import Tracker
from epochlens.sweep.measurement import quality_frames

torch.set_num_threads(1)
METHODS = ["saliency", "smoothgrad:samples=2"]
QUALITY = ["sparseness", "relative_input_stability:samples=3", "deletion:steps=4"]


def network() -> nn.Module:
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, 3))


def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(5, 1, 8, 8, generator=generator), torch.tensor([0, 1, 2, 0, 1])


def record(folder: Path, these: range, finish: bool = False, **options: Any) -> nn.Module:
    """A network whose weights are another at every epoch, recorded."""
    model = network()
    tracker = Tracker(model, *images(), METHODS, folder, quality=QUALITY, **options)
    for epoch in these:
        shift(model, epoch)
        tracker.record(epoch)
    if finish:
        tracker.finish()
    return model


def shift(model: nn.Module, epoch: int) -> None:
    generator = torch.Generator().manual_seed(epoch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


def test_recorded_values_are_those_of_evaluate(tmp_path):
    model = record(tmp_path / "run", range(3), finish=True)
    rows: Any = retrieval.read_quality(tmp_path / "run")
    assert rows.columns.tolist() == ["epoch", "method", "sample", "metric", "fraction", "value"]
    assert set(rows["epoch"]) == {0, 1, 2} and set(rows["method"]) == set(METHODS)
    x, y = images()
    maps = torch.tensor(retrieval.load(tmp_path / "run").attributions[2, 0])
    for metric in ("sparseness", "deletion:steps=4"):
        name = metric.partition(":")[0]
        mine = rows[(rows["epoch"] == 2) & (rows["method"] == "saliency") & (rows["metric"] == name)]
        expected = evaluate(model, x, y, maps, metric)
        np.testing.assert_allclose(mine["value"], expected.numpy(), rtol=1e-6)
        assert mine["fraction"].isna().all() and mine["sample"].tolist() == list(range(5))
    curve = rows[(rows["epoch"] == 2) & (rows["method"] == "saliency") & (rows["metric"] == "deletion_curve")]
    found = assess(model, x, y, {"saliency": maps}, ["deletion:steps=4"], seed=0)
    by_image = curve["value"].to_numpy().reshape(5, 5)
    np.testing.assert_allclose(by_image, found.curves["saliency", "deletion"].numpy(), rtol=1e-6)
    np.testing.assert_allclose(
        curve["fraction"].to_numpy().reshape(5, 5), np.tile(np.linspace(0, 1, 5), (5, 1))
    )


def test_the_network_is_assessed_with_the_draws_of_its_own_maps(tmp_path):
    # At a perturbation of nothing, an explanation with the same draws is the same explanation.
    tracker = Tracker(network(), *images(), METHODS, tmp_path, quality=["sparseness"])
    maps = tracker.explain(4)
    calls = []

    def spy(model, x, y, by_method, metrics, *, seed, explain):
        for method, recorded in by_method.items():
            calls.append(torch.equal(explain(model, method, x, y), recorded))
        return assess(model, x, y, by_method, metrics, seed=seed, explain=explain)

    from epochlens.record import tracker as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "assess", spy)
        tracker.assess(4, maps)
    assert calls == [True, True]


@pytest.mark.parametrize(
    ("every", "epochs", "expected"), [(2, None, [0, 2, 4]), (3, 5, [0, 3, 5]), (9, 5, [0, 5])]
)
def test_quality_is_measured_every_kth_epoch_and_at_the_last(tmp_path, every, epochs, expected):
    record(tmp_path / "run", range(6), quality_every=every, epochs=epochs)
    rows: Any = retrieval.read_quality(tmp_path / "run")
    assert sorted(set(rows["epoch"])) == expected


def test_an_epoch_with_damaged_quality_is_done_anew_and_the_rest_kept(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    record(whole, range(4), finish=True)
    record(broken, range(3))
    ledger.epoch_file(broken, 1, "quality").write_bytes(b"")
    assert list(retrieval.committed(broken)) == [0, 2]
    record(broken, range(4), finish=True)
    mended, expected = retrieval.read_quality(broken), retrieval.read_quality(whole)
    assert mended is not None and expected is not None
    pd.testing.assert_frame_equal(mended, expected)
    assert (broken / "quality.parquet").read_bytes() == (whole / "quality.parquet").read_bytes()
    assert retrieval.run_status(broken)[0] == "done" and not (broken / "quality").exists()
    (broken / "quality.parquet").write_bytes(b"")
    assert retrieval.run_status(broken)[0] == "corrupt"


def test_averages_leave_out_what_is_undefined_and_count_it(tmp_path):
    record(tmp_path / "run", range(2), finish=True)
    rows: Any = retrieval.read_quality(tmp_path / "run")
    rows.loc[(rows["metric"] == "sparseness") & (rows["sample"] == 3), "value"] = np.nan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "read_quality", lambda folder: rows)
        frames = quality_frames(tmp_path, {"seed": 7})
    found = frames["quality"].query("metric == 'sparseness' and method == 'saliency' and epoch == 1").iloc[0]
    chosen = rows[(rows["metric"] == "sparseness") & (rows["method"] == "saliency") & (rows["epoch"] == 1)]
    assert (found["n"], found["n_undefined"], found["seed"]) == (5, 1, 7)
    assert found["value"] == pytest.approx(chosen["value"].mean(), rel=1e-12)
    assert set(frames["quality_curves"]["curve"]) == {"deletion"}


def test_nothing_is_recorded_when_no_quality_is_asked_for(tmp_path):
    tracker = Tracker(network(), *images(), ["saliency"], tmp_path / "run")
    tracker.record(0)
    tracker.finish()
    assert retrieval.read_quality(tmp_path / "run") is None
    assert quality_frames(tmp_path / "run", {}) == {}
    assert "seconds_quality" not in retrieval.read_epochs(tmp_path / "run")


def test_all_means_every_method_that_the_model_can_have():
    sweep = config.resolve("digits", {"methods": ["all"], "quality": ["all"], "models": ["gapnet", "lenet"]})
    [facts] = config.check(sweep).values()
    assert config.methods_for(sweep.methods, "gapnet", facts) == tuple(all_methods())
    without = config.methods_for(sweep.methods, "lenet", facts)
    assert set(all_methods()) - set(without) == {"cam"} and len(sweep.quality) >= 6


def test_cam_by_name_is_refused_for_a_model_without_pooling():
    sweep = config.resolve("digits", {"methods": ["cam"], "models": ["small", "lenet"]})
    with pytest.raises(UsageError, match=r"cam.*lenet"):
        config.check(sweep)


@pytest.mark.parametrize("quality", [["nonsense"], ["sparseness", "sparseness"], ["deletion:steps=0"], [3]])
def test_quality_metrics_are_checked_before_any_work(quality):
    with pytest.raises(UsageError, match="quality"):
        config.resolve("digits", {"quality": quality})


def test_a_run_with_other_quality_settings_is_another_run():
    from epochlens.sweep.plan import expand

    ids = set()
    for settings in ({}, {"quality": ["sparseness"]}, {"quality": ["sparseness"], "quality_every": "2"}):
        sweep = config.resolve("digits", {"seeds": ["0"], "models": ["small"], "lrs": ["0.01"], **settings})
        ids |= {run.run_id for run in expand(sweep, config.check(sweep))}
    assert len(ids) == 3


def test_maps_that_were_recorded_are_those_of_attribute(tmp_path):
    model = record(tmp_path / "run", range(2), finish=True)
    x, y = images()
    expected = attribute(model.eval(), x, y, "saliency")
    np.testing.assert_allclose(retrieval.load(tmp_path / "run").attributions[1, 0], expected, rtol=1e-6)
