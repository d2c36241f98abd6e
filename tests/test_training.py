"""A trajectory equals the plain PyTorch loop with real DataLoaders, and survives saving at any epoch."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from epochlens.attribute.methods import attribute
from epochlens.errors import UsageError
from epochlens.learn import data, models, ops, streams, training

EPOCHS, BATCH = 3, 128


@pytest.fixture(scope="module")
def digits() -> training.TensorSplits:
    torch.set_num_threads(1)
    return training.as_tensors(data.load("digits", range(10), "unused"))


class Numbered(TensorDataset):
    """Also yields each item's index, so that the loader's order can be seen."""

    def __getitem__(self, index):
        return (*super().__getitem__(index), index)


def as_written_by_hand(model: nn.Module) -> nn.Module:
    """The same weights in PyTorch's own layers."""
    return nn.Sequential(*model.children())


def plain_loop(factory, splits, seed: int, rate: float, probe: torch.Tensor):
    """The loop a researcher writes by hand. Returns per epoch: order, train loss, accuracy, maps, weights."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    model = as_written_by_hand(models.build(factory, (1, 8, 8), 10))
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
        values = [value.clone() for value in model.state_dict().values()]
        history.append((order, total / len(splits.x_train), hits / len(splits.x_test), maps, values))
    return history


@pytest.mark.parametrize("rate", [1e-3, 1e-2])
@pytest.mark.parametrize("name", models.MODELS)
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
        found.append((epoch, maps, weights(trajectory)))
    assert [epoch.epoch for epoch, *_ in found] == [0, 1, 2, 3]
    rounded = isinstance(trajectory.model, ops.PooledNetwork)
    rtol, atol = (1e-4, 1e-6) if rounded else (0, 0)
    for order, (epoch, maps, values), (plain_order, loss, accuracy, plain_maps, plain_values) in zip(
        orders, found[1:], expected, strict=True
    ):
        assert order.tolist() == plain_order
        assert epoch.accuracy == accuracy
        assert epoch.train_loss == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(maps, plain_maps, rtol=rtol, atol=atol)
        torch.testing.assert_close(values, plain_values, rtol=rtol, atol=atol)


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


FACTORIES = {"dropper": Dropper} | {name: entry.factory for name, entry in models.MODELS.items()}
SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4}
SETTINGS = [("dropper", {"name": "adam"}), ("dropper", SGD), ("deep", {"precision": "bf16"})]
SETTINGS += [(name, {}) for name in models.MODELS]


def weights(trajectory: training.Trajectory) -> list[torch.Tensor]:
    return [value.clone() for value in trajectory.model.state_dict().values()]


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_resumed_trajectory_is_bit_identical(digits, stop, name, settings):
    def fresh():
        return training.begin(FACTORIES[name], (1, 8, 8), 10, 3, learning_rate=0.01, **settings)

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


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_a_resumed_torchvision_classifier_is_bit_identical(name):
    """Batch statistics, dropout and stochastic depth: the first live in the model, the others draw."""
    pytest.importorskip("torchvision")
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(24, 1, 32, 32, generator=generator), torch.arange(24) % 3
    splits = training.TensorSplits(images[:16], labels[:16], images[16:], labels[16:])

    def fresh():
        factory = models.model_factory(f"torchvision:{name}")
        return training.begin(factory, (1, 32, 32), 3, 4, learning_rate=1e-3)

    straight = fresh()
    epochs = [e[:4] for e in training.train(straight, splits, 2, 8)]
    first = fresh()
    for _ in zip(range(2), training.train(first, splits, 2, 8), strict=False):
        saved = training.to_bytes(first)
    second = fresh()
    training.restore(second, saved)
    assert [e[:4] for e in training.train(second, splits, 2, 8)] == epochs[2:]
    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(second), strict=True))


@pytest.mark.parametrize("name", ["deep", "lenet"])
def test_bfloat16_follows_float32_and_keeps_its_weights_in_it(digits, name):
    def run(precision):
        factory = models.MODELS[name].factory
        trajectory = training.begin(factory, (1, 8, 8), 10, 2, learning_rate=1e-3, precision=precision)
        return list(training.train(trajectory, digits, 2, BATCH)), trajectory

    (exact, reference), (rounded, trajectory) = run("fp32"), run("bf16")
    state = [*weights(trajectory), *trajectory.optimizer.state_dict()["state"][0].values()]
    assert all(value.dtype == torch.float32 for value in state if value.is_floating_point())
    for a, b in zip(exact, rounded, strict=True):
        assert b.test_loss == pytest.approx(a.test_loss, rel=0.05)
        assert b.test_loss != a.test_loss  # the evaluation is rounded, too
    moved = torch.cat([w.flatten() for w in weights(reference)])
    apart = torch.cat([w.flatten() for w in weights(trajectory)]) - moved
    assert 0 < apart.norm() < 0.1 * moved.norm()


def test_an_unknown_precision_is_told():
    with pytest.raises(UsageError, match="precision: 'fp64'"):
        training.begin(Dropper, (1, 8, 8), 10, 0, precision="fp64")


def test_evaluation_does_not_depend_on_its_batches(digits):
    model = training.begin(Dropper, (1, 8, 8), 10, 0).model
    images, labels = digits.x_test, digits.y_test
    whole = training.evaluate(model, images, labels, len(images))
    for size in (1, 7, 128):
        loss, accuracy = training.evaluate(model, images, labels, size)
        assert accuracy == whole[1]
        assert loss == pytest.approx(whole[0], rel=1e-5)


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
