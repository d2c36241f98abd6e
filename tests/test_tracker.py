"""The Tracker in any loop: it leaves the model alone, records exactly, resumes, and its store is analysed."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import epochlens
from epochlens.attribute.methods import attribute, named_generator
from epochlens.learn import data
from epochlens.measure.similarity import cosine
from epochlens.record import retrieval
from epochlens.record.callbacks import StabilityStopper, lightning_callback, trainer_callback
from epochlens.record.tables import REDRAW

torch.set_num_threads(1)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 24), nn.BatchNorm1d(24), nn.Dropout(0.2), nn.Tanh(), nn.Linear(24, 10))


@pytest.fixture(scope="module")
def features() -> tuple[torch.Tensor, torch.Tensor]:
    splits = data.load("digits", range(10), "unused")
    return torch.from_numpy(splits.x_train).flatten(1), torch.from_numpy(splits.y_train)


def train_epoch(model: nn.Module, optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    model.train()
    for batch in torch.randperm(len(x)).split(128):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()


def test_a_tracked_mlp_trains_exactly_as_an_untracked_one(features, tmp_path):
    x, y = features

    def final(track: bool):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        tracker = epochlens.Tracker(model, x[:8], y[:8], ["saliency", "smoothgrad"], tmp_path / "run")
        for epoch in range(3):
            if track:
                tracker.record(epoch)
            train_epoch(model, optimizer, x, y)
        assert all(p.grad is not None for p in model.parameters())
        assert all(module.training for module in model.modules())
        return [value.clone() for value in model.state_dict().values()]

    assert all(torch.equal(a, b) for a, b in zip(final(True), final(False), strict=True))


def test_what_is_recorded_is_what_attribute_gives(features, tmp_path):
    x, y = features
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    methods = ["integrated_gradients", "smoothgrad:samples=3"]
    with epochlens.Tracker(model, x[:6], y[:6], methods, tmp_path / "run", seed=5) as tracker:
        results, weights, maps = [], [], []
        for epoch in range(3):
            results.append(tracker.record(epoch, accuracy=epoch / 10))
            weights.append(torch.cat([p.detach().flatten().clone() for p in model.parameters()]))
            label = methods[1]
            generator = named_generator(5, f"attribution/{label}", epoch)
            maps.append(attribute(model, x[:6], y[:6], label, generator=generator).numpy())
            train_epoch(model, optimizer, x, y)
    recorded = retrieval.load(tmp_path / "run")
    assert recorded.methods.tolist() == methods
    assert recorded.attributions.shape == (3, 2, 6, 64)
    assert np.array_equal(recorded.attributions[:, 1], np.stack(maps))
    redraw = retrieval.load(tmp_path / "run", [methods[1] + REDRAW]).attributions[:, 0]
    assert not np.allclose(redraw, recorded.attributions[:, 1])
    assert np.isnan(results[0]["weight_change"])
    assert np.isnan(results[0][f"cosine_to_previous/{methods[1]}"])
    for t in (1, 2):
        expected = ((weights[t] - weights[t - 1]).norm() / weights[t - 1].norm()).item()
        assert results[t]["weight_change"] == pytest.approx(expected, rel=1e-5)
        drift = cosine(maps[t], maps[t - 1]).mean()
        assert results[t][f"cosine_to_previous/{methods[1]}"] == pytest.approx(drift, abs=1e-6)
        assert 0 < results[t]["output_change"] <= 1
    assert retrieval.read_epochs(tmp_path / "run")["accuracy"].tolist() == [0.0, 0.1, 0.2]


def test_an_exception_in_the_loop_keeps_what_was_recorded_and_a_new_tracker_goes_on(features, tmp_path):
    x, y = features
    model = network()
    with pytest.raises(KeyboardInterrupt), epochlens.Tracker(model, x[:4], y[:4], store=tmp_path) as tracker:
        tracker.record(0)
        train_epoch(model, torch.optim.SGD(model.parameters(), lr=0.1), x, y)
        said = tracker.record(1)
        raise KeyboardInterrupt
    assert retrieval.run_status(tmp_path)[0] == "partial"
    again = epochlens.Tracker(model, x[:4], y[:4], store=tmp_path)
    before = retrieval.committed(tmp_path)
    assert again.record(1) == said  # read, not explained again
    assert retrieval.committed(tmp_path)[1].maps == before[1].maps
    assert again.record(2)["weight_change"] == 0.0
    again.finish()
    assert retrieval.run_status(tmp_path)[0] == "done"
    assert retrieval.load(tmp_path).epochs.tolist() == [0, 1, 2]


def test_an_exception_in_the_model_leaves_it_as_it_was(features, tmp_path):
    x, y = features
    model = network().train()
    tracker = epochlens.Tracker(model, x[:4], y[:4], store=tmp_path)
    tracker.images = x[:4, :3]
    with pytest.raises(RuntimeError):
        tracker.record(0)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert retrieval.committed(tmp_path) == {}


def test_a_finished_store_and_one_of_other_methods_are_kept_aside(features, tmp_path):
    x, y = features
    for method in ("saliency", "saliency", "input_x_gradient"):
        with epochlens.Tracker(network(), x[:4], y[:4], [method], tmp_path / "run") as tracker:
            tracker.record(0)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["run", "run.old-1", "run.old-2"]
    assert all(retrieval.run_status(tmp_path / name)[0] == "done" for name in kept)


def test_epochs_of_another_training_are_not_mixed_in(features, tmp_path):
    x, y = features
    first = epochlens.Tracker(network(0), x[:40], y[:40], ["saliency"], tmp_path)
    first.record(0)
    second = epochlens.Tracker(network(1), x[:40], y[:40], ["saliency"], tmp_path)
    with pytest.raises(retrieval.StoreError, match="another training"):
        second.record(0)


def test_inference_mode_around_it_changes_nothing(features, tmp_path):
    x, y = features
    found = []
    for name, mode in (("plain", torch.inference_mode(False)), ("inference", torch.inference_mode())):
        model = network()
        with mode:
            images = x[:4].clone()
            tracker = epochlens.Tracker(
                model, images, targets=y[:4], store=tmp_path / name, quality=["deletion"]
            )
            tracker.record(0)
        found.append((retrieval.load(tmp_path / name), retrieval.read_quality(tmp_path / name)))
    (plain, judged), (inference, judged_too) = found
    assert np.array_equal(plain.attributions, inference.attributions)
    assert judged is not None and judged.equals(judged_too)


def test_drift_goes_on_after_a_resumption(features, tmp_path):
    x, y = features
    model = network()
    epochlens.Tracker(model, x[:4], y[:4], ["saliency"], tmp_path).record(0)
    again = epochlens.Tracker(model, x[:4], y[:4], ["saliency"], tmp_path)
    assert again.record(1)["cosine_to_previous/saliency"] == pytest.approx(1.0)


def test_predicted_targets_follow_the_network(features, tmp_path):
    x, y = features
    model = network()
    tracker = epochlens.Tracker(model, x[:20], y[:20], ["saliency"], tmp_path, target="predicted")
    maps = tracker.explain(0)
    assert np.array_equal(maps.targets, maps.predictions)
    assert not np.array_equal(maps.targets[0], y[:20].numpy())


def test_the_stopper_waits_for_every_method_and_keeps_trials_apart():
    stopper = StabilityStopper(tau=0.9, patience=2)

    def result(a: float, b: float) -> dict:
        return {"cosine_to_previous/a": a, "cosine_to_previous/b": b, "accuracy": 0.1}

    pairs = [(float("nan"), float("nan")), (0.95, 0.95), (0.95, 0.5), (0.9, 1.0), (0.9, 0.9)]
    said = [stopper(result(*pair)) for pair in pairs]
    assert said == [False, False, False, False, True]
    assert [stopper(name, result(0.99, 0.99)) for name in ("x", "z", "x", "z")] == [False, False, True, True]
    assert not StabilityStopper()({"accuracy": 1.0})
    with pytest.raises(ValueError, match="patience"):
        StabilityStopper(patience=0)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_ray_tune_stops_trials_whose_maps_are_stable(tmp_path):
    from ray import tune

    def trainable(config):
        for epoch in range(40):
            tune.report({"cosine_to_previous/saliency": config["cosine"], "epoch": epoch})

    tuner = tune.Tuner(
        trainable,
        param_space={"cosine": tune.grid_search([0.5, 0.999])},
        run_config=tune.RunConfig(stop=StabilityStopper(patience=4), storage_path=str(tmp_path), verbose=0),
    )
    epochs = {r.config["cosine"]: r.metrics["epoch"] for r in tuner.fit() if r.config and r.metrics}
    assert epochs[0.5] == 39
    assert epochs[0.999] < 39


def test_lightning_callback_records_every_epoch(features, tmp_path, monkeypatch):
    x, y = features
    fake: Any = types.ModuleType("lightning.pytorch")
    fake.Callback = object
    monkeypatch.setitem(sys.modules, "lightning", types.ModuleType("lightning"))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", fake)
    tracker = epochlens.Tracker(network(), x[:4], y[:4], ["saliency"], tmp_path / "run")
    callback = lightning_callback(tracker)
    logged = []
    module = types.SimpleNamespace(log_dict=logged.append)
    trainer = types.SimpleNamespace(current_epoch=0, callback_metrics={"accuracy": torch.tensor(0.25)})
    callback.on_train_start(trainer, module)
    for trainer.current_epoch in range(2):
        callback.on_train_epoch_end(trainer, module)
        trainer.callback_metrics |= logged[-1] if logged else {}  # Lightning tells what was logged before
    callback.on_train_end(trainer, module)
    assert retrieval.load(tmp_path / "run").epochs.tolist() == [0, 1, 2]
    assert retrieval.read_epochs(tmp_path / "run")["accuracy"].tolist()[1:] == [0.25, 0.25]
    assert logged[-1]["cosine_to_previous/saliency"] == pytest.approx(1.0)
    assert not [name for name in retrieval.read_epochs(tmp_path / "run") if name.startswith("cosine")]


def test_trainer_callback_records_every_epoch(features, tmp_path, monkeypatch):
    x, y = features
    fake: Any = types.ModuleType("transformers")
    fake.TrainerCallback = object
    monkeypatch.setitem(sys.modules, "transformers", fake)
    tracker = epochlens.Tracker(network(), x[:4], y[:4], ["saliency"], tmp_path / "run")
    callback = trainer_callback(tracker)
    state = types.SimpleNamespace(epoch=0.0, log_history=[])
    callback.on_train_begin(None, state, None)
    for epoch, loss in ((0.9999, 0.5), (2.0, 0.25)):  # the Trainer logs after it has told of the epoch's end
        callback.on_epoch_begin(None, state, None)
        state.epoch = epoch
        callback.on_epoch_end(None, state, None)
        state.log_history += [{"loss": loss, "epoch": epoch}, {"eval_loss": 2 * loss, "epoch": epoch}]
    state.log_history.append({"train_loss": 9.0, "epoch": 2.0})
    callback.on_train_end(None, state, None)
    assert retrieval.load(tmp_path / "run").epochs.tolist() == [0, 1, 2]
    recorded = retrieval.read_epochs(tmp_path / "run")
    assert recorded["loss"].tolist()[1:] == [0.5, 0.25]
    assert recorded["eval_loss"].tolist()[1:] == [1.0, 0.5]


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_the_readme_s_tracker_example_runs_and_its_store_is_analysed(tmp_path, monkeypatch, capsys):
    from epochlens.commands import analyze

    readme = (Path(__file__).parents[1] / "README.md").read_text()
    [example] = [b for b in re.findall(r"```python\n(.*?)```", readme, re.S) if "Tracker(" in b]
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert analyze(["results/mlp"]) == 0
    said = capsys.readouterr().out
    assert "tracked Sequential" in said
    assert (tmp_path / "plots" / "mlp" / "report.html").exists()
