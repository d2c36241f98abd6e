"""Attribution methods against identities and against captum, on random non-linear float64 models."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import pytest
import torch
from photographs import crops
from torch import nn

from epochlens.attribute import gradients, methods, smoothing
from epochlens.attribute.methods import METHODS, attribute
from epochlens.measure.nulls import edge_maps

torch.set_num_threads(1)


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Conv2d(6, 5, 3), nn.GELU(), nn.Flatten(), nn.Linear(5 * 9, 4)
    ).to(dtype)


def batch(n: int = 5, dtype: torch.dtype = torch.float64, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 2, 7, 7, generator=generator, dtype=torch.float64).to(dtype)
    return images, torch.randint(0, 4, (n,), generator=generator)


def pooled_network(dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network that every method can explain, class activation maps too."""
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.Tanh(),
        nn.Conv2d(6, 5, 3),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    ).to(dtype)


class Quadratic(nn.Module):
    """logits[k] = x' A_k x + b_k' x: the gradient is linear in x, so the midpoint rule is exact."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.a = nn.Parameter(torch.randn(4, 98, 98, generator=generator, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(4, 98, generator=generator, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        return torch.einsum("ni,kij,nj->nk", x, self.a, x) + x @ self.b.T


def test_saliency_equals_finite_differences():
    model, (images, targets) = network(), batch(2)
    maps = attribute(model, images, targets, "saliency")
    step = 1e-6
    for index in ((0, 0, 0, 0), (1, 1, 3, 4), (0, 1, 6, 6)):
        shifted = images.clone()
        shifted[index] += step
        with torch.no_grad():
            n, t = index[0], targets[index[0]]
            slope = (model(shifted)[n, t] - model(images)[n, t]) / step
        assert maps[index].item() == pytest.approx(slope.item(), rel=1e-4)


def test_input_x_gradient_is_the_product():
    model, (images, targets) = network(), batch()
    product = images * attribute(model, images, targets, "saliency")
    torch.testing.assert_close(attribute(model, images, targets, "input_x_gradient"), product)


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_methods_equal_captum(seed, real):
    captum = pytest.importorskip("captum.attr")
    model, (images, targets) = network(seed).eval(), batch(seed=seed + 10)
    images = crops(len(images), 2, 7, seed) if real else images
    peers = {
        "saliency": captum.Saliency(model).attribute(images, targets, abs=False),
        "input_x_gradient": captum.InputXGradient(model).attribute(images, targets),
    }
    names = {"gauss_legendre": "gausslegendre", "right": "riemann_right", "midpoint": "riemann_middle"}
    for ours, theirs in names.items():
        label = f"integrated_gradients:rule={ours},steps=17"
        integral = captum.IntegratedGradients(model)
        peers[label] = integral.attribute(images, target=targets, n_steps=17, method=theirs)
    for label, peer in peers.items():
        torch.testing.assert_close(
            attribute(model, images, targets, label), peer.detach(), rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize(("rule", "steps"), [("midpoint", 1), ("midpoint", 20), ("gauss_legendre", 3)])
def test_integrated_gradients_are_exact_and_complete_on_a_quadratic(rule, steps):
    model, (images, targets) = Quadratic(), batch()
    maps = attribute(model, images, targets, "integrated_gradients", rule=rule, steps=steps)
    x, a, b = images.flatten(1), model.a.detach()[targets], model.b.detach()[targets]
    exact = x * (0.5 * torch.einsum("nij,nj->ni", a + a.transpose(1, 2), x) + b)
    torch.testing.assert_close(maps.flatten(1), exact, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        rise = (model(images) - model(torch.zeros_like(images))).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(maps.sum((1, 2, 3)), rise, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("rule", "bound"), [("midpoint", 1e-4), ("gauss_legendre", 1e-10), ("right", 0.05)])
def test_completeness_holds_to_the_rule_s_order_on_a_nonlinear_model(rule, bound):
    model, (images, targets) = network(), batch()
    maps = attribute(model, images, targets, "integrated_gradients", rule=rule, steps=40)
    with torch.no_grad():
        rise = (model(images) - model(torch.zeros_like(images))).gather(1, targets[:, None])[:, 0]
    assert (maps.sum((1, 2, 3)) - rise).abs().max() < bound


def test_endpoints_rule_is_the_plain_mean_over_both_ends():
    model, (images, targets) = network(), batch()
    steps = 20
    total = sum(attribute(model, images * (k / (steps - 1)), targets, "saliency") for k in range(steps))
    maps = attribute(model, images, targets, "integrated_gradients:rule=endpoints")
    torch.testing.assert_close(maps, images * total / steps)


@pytest.mark.parametrize("rule", gradients.RULES)
def test_quadrature_weights_sum_to_one_inside_the_path(rule):
    for steps in (2, 5, 20):
        alphas, weights = gradients.RULES[rule](steps)
        assert len(alphas) == steps
        assert weights.sum() == pytest.approx(1)
        assert alphas.min() >= 0
        assert alphas.max() <= 1


@pytest.mark.parametrize("base", smoothing.BASES)
def test_smoothgrad_without_noise_is_its_base(base):
    model, (images, targets) = network(), batch()
    smooth = attribute(model, images, targets, "smoothgrad", base=base, noise=0.0, samples=3)
    torch.testing.assert_close(smooth, attribute(model, images, targets, base))


@pytest.mark.parametrize("base", smoothing.BASES)
def test_smoothgrad_is_the_mean_over_its_own_draws(base):
    model, (images, targets) = network(dtype=torch.float32), batch(dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    draws = [torch.randn(images.shape, generator=generator) for _ in range(4)]
    expected = sum(attribute(model, images + 0.2 * d, targets, base) for d in draws) / 4
    label = f"smoothgrad:base={base},samples=4,noise=0.2"
    found = attribute(model, images, targets, label, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize(("seed", "noise"), [(0, 0.0), (1, 0.3), (2, 0.1)])
def test_gradient_shap_equals_captum_with_the_same_draws(seed, noise, real, monkeypatch):
    captum = pytest.importorskip("captum.attr")
    model, (images, targets) = network(seed).eval(), batch(seed=seed)
    images = crops(len(images), 2, 7, seed) if real else images
    generator, alphas, noises = torch.Generator().manual_seed(seed), [], []
    for _ in images:
        alphas.append(torch.rand(6, generator=generator))
        noises.append(torch.randn(6, *images.shape[1:], generator=generator))
    # captum repeats each image for its samples, so its draws are in our order
    monkeypatch.setattr(torch, "normal", lambda mean, std: mean + std * torch.cat(noises).double())
    monkeypatch.setattr(np.random, "uniform", lambda low, high, n: torch.cat(alphas).double().numpy())
    black = torch.zeros_like(images[:1])
    peer = captum.GradientShap(model).attribute(images, black, n_samples=6, stdevs=noise, target=targets)
    label = f"gradient_shap:samples=6,noise={noise}"
    found = attribute(model, images, targets, label, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(found, peer.detach(), rtol=1e-6, atol=1e-9)


def test_gradient_shap_of_a_linear_model_is_weight_times_pixel():
    model, (images, targets) = nn.Sequential(nn.Flatten(), nn.Linear(98, 4)).double(), batch()
    exact = images * model.get_parameter("1.weight").detach()[targets].view_as(images)
    torch.testing.assert_close(attribute(model, images, targets, "gradient_shap"), exact)


def test_gradient_shap_approaches_integrated_gradients():
    model, (images, targets) = network(), batch()
    exact = attribute(model, images, targets, "integrated_gradients:rule=gauss_legendre,steps=40")

    def error(samples: int) -> float:
        found = attribute(model, images, targets, "gradient_shap", samples=samples)
        return float((found - exact).norm() / exact.norm())

    assert error(2500) < 0.02
    assert error(2500) < error(5) / 4


def test_edge_control_equals_the_null_of_the_analysis():
    _, (images, targets) = network(), batch()
    found = attribute(nn.Identity(), images, targets, "edge")
    np.testing.assert_allclose(found.numpy(), edge_maps(images.numpy()), rtol=1e-12, atol=1e-12)
    assert not attribute(nn.Identity(), torch.ones_like(images), targets, "edge").any()


def test_random_control_is_standard_normal_and_follows_its_generator():
    images = torch.zeros(3, 2, 100, 100)
    maps = attribute(nn.Identity(), images, torch.zeros(3), "random")
    assert abs(float(maps.mean())) < 0.02
    assert abs(float(maps.std()) - 1) < 0.02
    again = attribute(
        nn.Identity(), images, torch.zeros(3), "random", generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(maps, again)
    other = attribute(
        nn.Identity(), images, torch.zeros(3), "random", generator=torch.Generator().manual_seed(1)
    )
    assert float((maps * other).mean().abs()) < 0.02


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_methods_keep_shape_and_dtype_and_do_not_mix_images(name, dtype):
    model, (images, targets) = pooled_network(dtype), batch(dtype=dtype)
    options: dict[str, Any] = {"noise": 0.0} if name == "smoothgrad" else {}
    maps = attribute(model, images, targets, name, **options)
    assert maps.shape == images.shape
    assert maps.dtype == dtype
    assert not maps.requires_grad
    if dtype == torch.float64:
        first = attribute(model, images[:2], targets[:2], name, **options)
        torch.testing.assert_close(maps[:2], first)
        if name == "smoothgrad" or not methods.is_stochastic(name):
            last = attribute(model, images[4:], targets[4:], name, **options)
            torch.testing.assert_close(maps[4:], last)


def test_micro_batches_change_nothing(monkeypatch):
    model, (images, targets) = pooled_network(), batch(40)
    whole = {name: attribute(model, images, targets, name) for name in METHODS}
    monkeypatch.setattr(gradients, "CPU_PIXELS", 1)  # the floor of 8 images
    for name, maps in whole.items():
        torch.testing.assert_close(attribute(model, images, targets, name), maps)


def test_the_model_is_given_back_after_an_exception():
    model = network(dtype=torch.float32).train()
    with pytest.raises(RuntimeError):
        attribute(model, torch.rand(2, 9, 7, 7), torch.tensor([0, 1]), "saliency")
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_named_generators_are_independent_and_repeatable():
    def draw(*name):
        return torch.rand(4, generator=methods.named_generator(*name)).tolist()

    assert draw(0, "a", 1) == draw(0, "a", 1)
    others = [draw(1, "a", 1), draw(0, "b", 1), draw(0, "a", 2)]
    assert all(other != draw(0, "a", 1) for other in others)


def test_every_method_documents_its_source():
    for name in set(METHODS) - {"superpixel_delta"}:  # a definition of our own
        assert re.search(r"[A-Z]\w+( et al\.)? \d{4}\.", inspect.getdoc(METHODS[name]) or ""), name
