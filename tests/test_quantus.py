"""Quality of maps against Quantus, with the same draws, on random non-linear models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

quantus = pytest.importorskip("quantus", reason="quantus is not installed (extra `bench`)")

from epochlens.attribute import removal  # noqa: E402
from epochlens.attribute.methods import attribute  # noqa: E402
from epochlens.attribute.quality import assess, evaluate  # noqa: E402

torch.set_num_threads(1)
SEEDS = range(4)
RELATIVE = 1e-10


@pytest.fixture(autouse=True)
def double_precision():
    """Quantus makes its inputs with torch.Tensor, which is of the default type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def network(seed: int, channels: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(channels, 6, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3), nn.GELU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 4)).eval()


def batch(seed: int, channels: int, side: int, n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, channels, side, side, generator=generator)
    images = torch.where(images > 0.4, images, 0.0)  # as dark as digits are
    return images, torch.randint(0, 4, (n,), generator=generator)


def case(seed: int, method: str = "saliency", channels: int = 2, side: int = 12):
    model, (images, targets) = network(seed, channels), batch(seed, channels, side)
    maps = attribute(model, images, targets, method)
    arrays = {"x_batch": images.numpy(), "y_batch": targets.numpy(), "a_batch": maps.numpy().copy()}
    return model, (images, targets, maps), {**arrays, "channel_first": True}


def explain_with(method: str):
    def explain(model, inputs, targets, **options):
        return attribute(model, torch.as_tensor(inputs), torch.as_tensor(targets), method).numpy()

    return explain


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("channels", "side", "runs", "subset"), [(1, 28, 100, 224), (2, 12, 30, 40)])
def test_faithfulness_correlation(seed, channels, side, runs, subset, monkeypatch):
    model, ours, theirs = case(seed, "integrated_gradients", channels, side)
    drawn = []
    draw = removal.random_subsets
    monkeypatch.setattr(removal, "random_subsets", lambda *a: drawn.append(draw(*a)) or drawn[-1])
    found = evaluate(model, *ours, "faithfulness_correlation", runs=runs, subset=subset)
    subsets = iter(drawn[0].numpy().reshape(6, runs, subset).swapaxes(0, 1).reshape(-1, subset))
    monkeypatch.setattr(np.random, "choice", lambda features, size, replace: next(subsets))
    metric = quantus.FaithfulnessCorrelation(
        nr_runs=runs, subset_size=subset, return_aggregate=False, disable_warnings=True
    )
    np.testing.assert_allclose(found, metric(model, **theirs), rtol=RELATIVE)
    assert next(subsets, None) is None


@pytest.mark.parametrize("high", [0.2, 3.0])
@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "input_x_gradient"])
@pytest.mark.parametrize("seed", SEEDS)
def test_relative_input_stability(seed, method, high):
    model, ours, theirs = case(seed, method)
    draws = torch.Generator().manual_seed(seed)

    def perturb(arr, indices, **options):
        noise = torch.rand(ours[0].shape, generator=draws, dtype=torch.float32).double()
        return arr + (0.02 + (high - 0.02) * noise).flatten(1).numpy()

    options = {"samples": 20, "high": high, "generator": torch.Generator().manual_seed(seed)}
    found = evaluate(model, *ours, "relative_input_stability", method=method, **options)
    metric = quantus.RelativeInputStability(nr_samples=20, perturb_func=perturb, disable_warnings=True)
    peer = metric(model, **theirs, explain_func=explain_with(method))
    np.testing.assert_allclose(found, peer, rtol=RELATIVE, equal_nan=True)


def test_relative_input_stability_was_compared_where_classes_change_and_where_they_do_not():
    undefined = []
    for seed in SEEDS:
        for high in (0.2, 3.0):
            model, ours, _ = case(seed)
            options = {"samples": 20, "high": high, "generator": torch.Generator().manual_seed(seed)}
            undefined.append(evaluate(model, *ours, "relative_input_stability", **options).isnan())
    assert 0 < torch.cat(undefined).double().mean() < 1


@pytest.mark.parametrize("seed", SEEDS)
def test_sparseness(seed):
    model, (images, targets, maps), theirs = case(seed)
    scales = torch.logspace(-4, 2, 6).view(-1, 1, 1, 1)  # both sides normalise by the batch's largest
    theirs["a_batch"] = (maps * scales).numpy().copy()
    found = evaluate(model, images, targets, maps * scales, "sparseness")
    np.testing.assert_allclose(
        found, quantus.Sparseness(disable_warnings=True)(model, **theirs), rtol=RELATIVE
    )


@pytest.mark.parametrize("steps", [16, 36, 144])
@pytest.mark.parametrize("seed", SEEDS)
def test_deletion_is_pixel_flipping_of_one_channel(seed, steps):
    model, (images, targets, maps), theirs = case(seed, "integrated_gradients", channels=1)
    maps = maps + 1e-9 * torch.rand(maps.shape, generator=torch.Generator().manual_seed(seed))  # no ties
    theirs["a_batch"] = maps.numpy().copy()
    metric = quantus.PixelFlipping(features_in_step=144 // steps, disable_warnings=True)
    found = assess(model, images, targets, {"ig": maps}, [f"deletion:steps={steps}"], seed=0)
    np.testing.assert_allclose(found.curves["ig", "deletion"][:, 1:], metric(model, **theirs), rtol=RELATIVE)
