"""A trajectory equals the plain PyTorch loop with real DataLoaders, and survives saving at any epoch."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from epochlens.attribute.methods import attribute
from epochlens.learn import data, models, streams, training

EPOCHS, BATCH = 3, 128


@pytest.fixture(scope="module")
def digits() -> training.TensorSplits:
    torch.set_num_threads(1)
    return training.as_tensors(data.load("digits", range(10), "unused"))


class Numbered(TensorDataset):
    """Also yields each item's index, so that the loader's order can be seen."""

    def __getitem__(self, index):
        return (*super().__getitem__(index), index)


def plain_loop(factory, splits, seed: int, rate: float, probe: torch.Tensor):
    """The loop a researcher writes by hand. Returns per epoch: order, train loss, accuracy, saliency maps."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    model = factory(1, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    train = DataLoader(Numbered(splits.x_train, splits.y_train), BATCH, shuffle=True)
    test = DataLoader(TensorDataset(splits.x_test, splits.y_test), BATCH)
    history = []
    for _ in range(EPOCHS):
        order, total = [], 0.0
        model.train()
        for x, y, index in train:
            order += index.tolist()
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(x)
        model.eval()
        with torch.no_grad():
            hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in test)
        images = splits.x_test[probe].clone().requires_grad_()
        score = model(images).gather(1, splits.y_test[probe][:, None]).sum()
        maps = torch.autograd.grad(score, images)[0]
        history.append((order, total / len(splits.x_train), hits / len(splits.x_test), maps))
    return history


@pytest.mark.parametrize("rate", [1e-3, 1e-2])
@pytest.mark.parametrize("name", ["small", "deep"])
def test_trajectory_equals_the_plain_dataloader_loop(digits, name, rate, monkeypatch):
    orders = []
    draw = streams.draw_permutation
    monkeypatch.setattr(streams, "draw_permutation", lambda n: orders.append(draw(n)) or orders[-1])
    probe = streams.probe_indices(len(digits.x_test), 32, 0)
    factory = models.MODELS[name].factory
    expected = plain_loop(factory, digits, 5, rate, probe)
    trajectory = training.begin(factory, (1, 8, 8), 10, 5, learning_rate=rate)
    found = []
    for epoch in training.train(trajectory, digits, EPOCHS, BATCH):
        maps = attribute(trajectory.model, digits.x_test[probe], digits.y_test[probe], "saliency")
        found.append((epoch, maps))
    assert [epoch.epoch for epoch, _ in found] == [0, 1, 2, 3]
    for order, (epoch, maps), (plain_order, loss, accuracy, plain_maps) in zip(
        orders, found[1:], expected, strict=True
    ):
        assert order.tolist() == plain_order
        assert epoch.accuracy == accuracy
        assert epoch.train_loss == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(maps, plain_maps, rtol=1e-4, atol=1e-6)


class Dropper(nn.Module):
    """A model whose training draws from the global stream, as dropout does."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * 64, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.ReLU()
        )
        self.head = nn.Linear(32, classes)

    def forward(self, x):
        return self.head(self.body(x))


def weights(trajectory: training.Trajectory) -> list[torch.Tensor]:
    return [value.clone() for value in trajectory.model.state_dict().values()]


@pytest.mark.parametrize(
    "optimizer", [{"name": "adam"}, {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4}]
)
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_resumed_trajectory_is_bit_identical(digits, stop, optimizer):
    def fresh():
        return training.begin(Dropper, (1, 8, 8), 10, 3, learning_rate=0.01, **optimizer)

    straight = fresh()
    epochs = [e[:4] for e in training.train(straight, digits, 4, BATCH)]
    first = fresh()
    for _ in zip(range(stop + 1), training.train(first, digits, 4, BATCH), strict=False):
        saved = training.to_bytes(first)
    torch.manual_seed(99)  # another process would be somewhere else in its stream
    second = fresh()
    training.restore(second, saved)
    rest = [e[:4] for e in training.train(second, digits, 4, BATCH)]
    assert rest == epochs[stop + 1 :]
    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(second), strict=True))


def position():
    """Where the process's own random streams are."""
    return repr((random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()))


def test_interleaved_trajectories_do_not_disturb_each_other_or_the_process(digits):
    def losses(*seeds):
        runs = [training.begin(Dropper, (1, 8, 8), 10, s, learning_rate=0.01) for s in seeds]
        steps = zip(*(training.train(run, digits, 2, BATCH) for run in runs), strict=True)
        return [[epoch.train_loss for epoch in epochs] for epochs in steps]

    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    before = position()
    together = losses(1, 2)
    assert position() == before
    alone = list(zip(losses(1), losses(2), strict=True))
    assert np.array_equal(together, np.squeeze(np.array(alone), -1), equal_nan=True)


def test_attribution_between_epochs_changes_nothing(digits):
    def final(explain: bool):
        run = training.begin(Dropper, (1, 8, 8), 10, 0, learning_rate=0.01)
        for _ in training.train(run, digits, 2, BATCH):
            if explain:
                attribute(run.model, digits.x_test[:4], digits.y_test[:4], "smoothgrad:samples=3")
        return weights(run)

    assert all(torch.equal(a, b) for a, b in zip(final(True), final(False), strict=True))


def test_a_loss_that_is_not_finite_ends_training(digits):
    run = training.begin(models.MODELS["small"].factory, (1, 8, 8), 10, 0, name="sgd", learning_rate=1e30)
    with pytest.raises(training.TrainingError, match="epoch 1"):
        list(training.train(run, digits, 3, BATCH))


def test_saved_state_needs_no_pickled_code(digits):
    run = training.begin(models.MODELS["small"].factory, (1, 8, 8), 10, 0)
    next(training.train(run, digits, 1, BATCH))
    saved = training.to_bytes(run)
    restored = training.begin(models.MODELS["small"].factory, (1, 8, 8), 10, 1)
    training.restore(restored, saved)  # torch.load(weights_only=True) inside
    assert training.to_bytes(restored) == saved


def test_probe_images_do_not_depend_on_anything_else():
    torch.manual_seed(0)
    one = streams.probe_indices(355, 32, 4)
    torch.manual_seed(1)
    expected = torch.randperm(355, generator=torch.Generator().manual_seed(4))[:32]
    assert torch.equal(one, expected)
    assert torch.equal(streams.probe_indices(355, 32, 4), expected)


def test_a_torchvision_classifier_takes_any_number_of_channels():
    pytest.importorskip("torchvision")
    factory = models.model_factory("torchvision:squeezenet1_1")
    with torch.no_grad():
        assert factory(1, 5).eval()(torch.zeros(2, 1, 40, 40)).shape == (2, 5)
        assert factory(3, 4).eval()(torch.zeros(2, 3, 40, 40)).shape == (2, 4)
