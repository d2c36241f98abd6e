"""Attribution methods against identities and against captum, on random non-linear float64 models."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from epochlens.attribute import gradients, methods
from epochlens.attribute.methods import METHODS, attribute
from epochlens.errors import UsageError

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


@pytest.mark.parametrize("seed", range(3))
def test_methods_equal_captum(seed):
    captum = pytest.importorskip("captum.attr")
    model, (images, targets) = network(seed).eval(), batch(seed=seed + 10)
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


@pytest.mark.parametrize("base", gradients.BASES)
def test_smoothgrad_without_noise_is_its_base(base):
    model, (images, targets) = network(), batch()
    smooth = attribute(model, images, targets, "smoothgrad", base=base, noise=0.0, samples=3)
    torch.testing.assert_close(smooth, attribute(model, images, targets, base))


@pytest.mark.parametrize("base", gradients.BASES)
def test_smoothgrad_is_the_mean_over_its_own_draws(base):
    model, (images, targets) = network(dtype=torch.float32), batch(dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    draws = [torch.randn(images.shape, generator=generator) for _ in range(4)]
    expected = sum(attribute(model, images + 0.2 * d, targets, base) for d in draws) / 4
    label = f"smoothgrad:base={base},samples=4,noise=0.2"
    found = attribute(model, images, targets, label, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_methods_keep_shape_and_dtype_and_do_not_mix_images(name, dtype):
    model, (images, targets) = network(dtype=dtype), batch(dtype=dtype)
    options: dict[str, Any] = {"noise": 0.0} if name == "smoothgrad" else {}
    maps = attribute(model, images, targets, name, **options)
    assert maps.shape == images.shape
    assert maps.dtype == dtype
    assert not maps.requires_grad
    if dtype == torch.float64:
        alone = torch.cat(
            [attribute(model, images[i : i + 1], targets[i : i + 1], name, **options) for i in range(5)]
        )
        torch.testing.assert_close(maps, alone)


def test_micro_batches_change_nothing(monkeypatch):
    model, (images, targets) = network(), batch(40)
    whole = {name: attribute(model, images, targets, name) for name in METHODS}
    monkeypatch.setattr(gradients, "CPU_PIXELS", 1)  # the floor of 8 images
    for name, maps in whole.items():
        torch.testing.assert_close(attribute(model, images, targets, name), maps)


@pytest.mark.parametrize("name", METHODS)
def test_the_model_is_given_back_as_it_was(name):
    first, norm, last = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(75, 4)
    model = nn.Sequential(first, norm, nn.Dropout(), nn.Flatten(), last)
    norm.eval()
    first.weight.requires_grad_(False)
    last.weight.grad = torch.ones_like(last.weight)
    images, targets = batch(dtype=torch.float32)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    stream = torch.get_rng_state()
    with torch.no_grad():
        attribute(model, images, targets, name)
    assert [m.training for m in model] == [True, False, True, True, True]
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True, True]
    assert torch.equal(last.weight.grad, torch.ones_like(last.weight))
    assert all(p.grad is None for p in model.parameters() if p is not last.weight)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)
    assert not any(m._forward_hooks or m._backward_hooks for m in model)


def test_the_model_is_given_back_after_an_exception():
    model = network(dtype=torch.float32).train()
    with pytest.raises(RuntimeError):
        attribute(model, torch.rand(2, 9, 7, 7), torch.tensor([0, 1]), "saliency")
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_labels_are_canonical():
    label = methods.method_label
    assert label("integrated_gradients:steps=20,rule=midpoint") == "integrated_gradients"
    assert label("integrated_gradients:rule=right,steps=5") == "integrated_gradients:steps=5,rule=right"
    assert label({"name": "smoothgrad", "noise": 0.3}) == "smoothgrad:noise=0.3"
    assert label(label("smoothgrad:noise=.20,base=saliency")) == "smoothgrad:noise=0.2"


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("salience", "did you mean 'saliency'"),
        ("saliency:steps=3", "none"),
        ("integrated_gradients:step=3", "did you mean 'steps'"),
        ("integrated_gradients:steps=0", "at least 1"),
        ("integrated_gradients:steps=2.5", "int"),
        ("integrated_gradients:rule=simpson", "gauss_legendre"),
        ("integrated_gradients:rule=endpoints,steps=1", "at least 2"),
        ("smoothgrad:noise=-1", "at least 0"),
        ("smoothgrad:noise=nan", "at least 0"),
        ("smoothgrad:noise", "option=value"),
    ],
)
def test_bad_methods_are_told(method, told):
    with pytest.raises(UsageError, match=told):
        methods.method_label(method)


def test_named_generators_are_independent_and_repeatable():
    def draw(*name):
        return torch.rand(4, generator=methods.named_generator(*name)).tolist()

    assert draw(0, "a", 1) == draw(0, "a", 1)
    others = [draw(1, "a", 1), draw(0, "b", 1), draw(0, "a", 2)]
    assert all(other != draw(0, "a", 1) for other in others)


def test_every_method_documents_its_source():
    for function in METHODS.values():
        assert any(year in (inspect.getdoc(function) or "") for year in ("2014", "2016", "2017"))
