"""Steps on buffers that stay in place, replayed or not, are the ordinary steps bit for bit."""

from __future__ import annotations

import io
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from epochlens.learn import data, graphs, models, streams, training

BATCH, EPOCHS = 128, 3
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4}
SETTINGS = [
    ("small", {}),
    ("small", SGD),
    ("deep", {"precision": "bf16"}),
    ("deep", SGD | {"precision": "bf16"}),
    ("lenet", {}),  # batch norm and dropout
]


@pytest.fixture(scope="module")
def digits() -> training.TensorSplits:
    torch.set_num_threads(1)
    return training.as_tensors(data.load("digits", range(10), "unused"))


def begin(model: str, seed: int = 3, device: str = "cpu", static: bool = False, **settings):
    """A trajectory; a static one takes its steps from buffers even on a CPU."""
    factory = models.MODELS[model].factory
    run = training.begin(factory, (1, 8, 8), 10, seed, device, learning_rate=0.01, **settings)
    if static:
        run.replay = graphs.Replay(refused="on a CPU")
    return run


def train(run: training.Trajectory, splits: training.TensorSplits, epochs: int = EPOCHS, batch: int = BATCH):
    """What the epochs after the untrained network's measured, without their times."""
    return [epoch[:4] for epoch in training.train(run, splits, epochs, batch) if epoch.epoch]


def same_bits(a: training.Trajectory, b: training.Trajectory) -> bool:
    pairs = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return all(torch.equal(x.cpu(), y.cpu()) for x, y in pairs)


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
@pytest.mark.parametrize("batch", [BATCH, 206, 5000])  # a ragged last one, none, and nothing but one
def test_static_steps_are_the_ordinary_ones(digits, name, settings, batch):
    assert len(digits.x_train) % BATCH
    assert len(digits.x_train) % 206 == 0
    ordinary, static = begin(name, **settings), begin(name, static=True, **settings)
    assert train(ordinary, digits, 2, batch) == train(static, digits, 2, batch)
    assert same_bits(ordinary, static)
    assert static.replay is not None
    assert static.replay.buffers is not None


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_static_steps_go_on_from_a_checkpoint(digits, name, settings):
    straight = begin(name, **settings)
    expected = train(straight, digits)
    first, second = begin(name, static=True, **settings), begin(name, static=True, **settings)
    train(first, digits, 1)
    train(second, digits, 1)  # buffers and optimizer state of its own, to be left behind
    train(first, digits, 2)
    training.restore(second, training.to_bytes(first))
    assert train(second, digits) == expected[2:]
    assert same_bits(straight, second)


class Recorder:
    """Stands for CUDA where there is none: its graph takes the captured step again."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def capture(self, step: graphs.Step, buffers: graphs.Buffers) -> SimpleNamespace:
        self.captured += 1
        return SimpleNamespace(replay=partial(self.replay, step, buffers))

    def replay(self, step: graphs.Step, buffers: graphs.Buffers) -> None:
        self.replayed += 1
        graphs.take_static_step(step, buffers)


def test_the_first_full_batch_is_trained_and_all_later_ones_replayed(digits, monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(graphs, "capture", recorder.capture)
    ordinary, replaying = begin("small"), begin("small")
    replaying.replay = graphs.Replay()
    assert train(ordinary, digits) == train(replaying, digits)
    assert same_bits(ordinary, replaying)
    full = len(digits.x_train) // BATCH
    assert (recorder.captured, recorder.replayed) == (1, EPOCHS * full - 1)
    training.restore(replaying, training.to_bytes(replaying))
    train(replaying, digits, EPOCHS + 1)
    assert (recorder.captured, recorder.replayed) == (2, (EPOCHS + 1) * full - 2)


def test_a_step_that_cannot_be_captured_is_trained_and_the_reason_kept(digits, monkeypatch):
    def capture(step, buffers):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(graphs, "capture", capture)
    ordinary, replaying = begin("small"), begin("small")
    replaying.replay = graphs.Replay()
    assert train(ordinary, digits) == train(replaying, digits)
    assert same_bits(ordinary, replaying)
    assert replaying.replay.refused == "capturing a step failed: operation not permitted"


class Counting(nn.Linear):
    """A layer that may do something else at every step."""


@pytest.mark.parametrize(
    ("name", "reason"),
    [("small", ""), ("deep", ""), ("gapnet", ""), ("lenet", "random"), ("dropnet", "random")],
)
def test_networks_that_draw_are_not_captured(digits, monkeypatch, name, reason):
    monkeypatch.setattr(graphs, "capture", Recorder().capture)
    run = begin(name)
    run.replay = graphs.Replay()
    train(run, digits, 1)
    assert reason in run.replay.refused
    assert (run.replay.graph is None) == bool(reason)


def test_layers_of_others_are_not_captured():
    plain, foreign, changed = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(Counting(2, 2)), nn.Linear(2, 2)
    state = streams.global_state()
    assert graphs.refusal(plain, state) == ""
    assert "Counting" in graphs.refusal(foreign, state)
    changed.forward = lambda input: input
    assert "Linear" in graphs.refusal(changed, state)


@pytest.mark.parametrize("draw", ["random.random()", "np.random.rand()", "torch.rand(1)"])
def test_every_global_stream_is_watched(draw):
    import random

    import numpy as np

    with streams.global_streams_kept():
        before = streams.global_state()
        assert streams.are_at(before)
        eval(draw, {"random": random, "np": np, "torch": torch})
        assert not streams.are_at(before)
        streams.set_global_state(before)
        assert streams.are_at(before)


def test_a_checkpoint_of_a_capturable_optimizer_goes_on_where_it_cannot_be(digits):
    straight, first, second = begin("small"), begin("small"), begin("small")
    expected = train(straight, digits)
    train(first, digits, 1)
    state = torch.load(io.BytesIO(training.to_bytes(first)), weights_only=True)
    state["optimizer"]["param_groups"][0]["capturable"] = True  # as CUDA leaves it
    buffer = io.BytesIO()
    torch.save(state, buffer)
    training.restore(second, buffer.getvalue())
    assert second.optimizer.param_groups[0]["capturable"] is False
    assert train(second, digits) == expected[1:]
    assert same_bits(straight, second)


@pytest.mark.parametrize("static", [False, True])
def test_epochs_launched_together_are_those_of_trajectories_alone(digits, static):
    def run(seed: int) -> training.Trajectory:
        return begin("lenet", seed, static=static)

    alone = [run(seed) for seed in (1, 2, 3)]
    expected = [train(one, digits) for one in alone]
    together, found = [run(seed) for seed in (1, 2, 3)], [[], [], []]
    for _ in range(EPOCHS + 1):
        for one in together:
            training.launch(one, digits, BATCH)
        for one, epochs in zip(together, found, strict=True):
            epochs.append(training.collect(one, digits)[:4])
    assert [epochs[1:] for epochs in found] == expected
    assert all(map(same_bits, alone, together))


def test_an_epoch_that_was_not_launched_cannot_be_collected(digits):
    run = begin("small")
    with pytest.raises(RuntimeError, match="no epoch was launched"):
        training.collect(run, digits)
    training.launch(run, digits, BATCH)
    with pytest.raises(RuntimeError, match="under way"):
        training.to_bytes(run)


@pytest.fixture(scope="module")
def on_cuda(digits) -> training.TensorSplits:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = False
    return training.TensorSplits(*(tensor.cuda() for tensor in digits))


@cuda
@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_captured_steps_are_the_ordinary_ones_on_cuda(on_cuda, name, settings):
    captured, eager = begin(name, device="cuda", **settings), begin(name, device="cuda", **settings)
    eager.replay = None
    assert train(captured, on_cuda) == train(eager, on_cuda)
    assert same_bits(captured, eager)
    assert captured.replay is not None
    assert (captured.replay.graph is None) == (name == "lenet")


@cuda
@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_a_resumed_trajectory_is_bit_identical_on_cuda(on_cuda, name, settings):
    straight, first = begin(name, device="cuda", **settings), begin(name, device="cuda", **settings)
    expected = train(straight, on_cuda)
    train(first, on_cuda, 1)
    second = begin(name, device="cuda", **settings)
    train(second, on_cuda, 2)
    training.restore(second, training.to_bytes(first))
    assert train(second, on_cuda) == expected[1:]
    assert same_bits(straight, second)


@cuda
def test_trajectories_side_by_side_are_those_alone_on_cuda(on_cuda):
    alone = [begin("deep", seed, "cuda") for seed in range(4)]
    expected = [train(one, on_cuda) for one in alone]
    together, found = [begin("deep", seed, "cuda") for seed in range(4)], [[], [], [], []]
    for _ in range(EPOCHS + 1):
        for one in together:
            training.launch(one, on_cuda, BATCH)
        for one, epochs in zip(together, found, strict=True):
            epochs.append(training.collect(one, on_cuda)[:4])
    assert [epochs[1:] for epochs in found] == expected
    assert all(map(same_bits, alone, together))
