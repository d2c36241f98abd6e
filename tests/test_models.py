"""Built-in models are what the contract says, draw what a plain script draws, and know what they need."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from epochlens.errors import UsageError
from epochlens.learn import models, training

SHAPE = (3, 14, 11)
"""uneven sides, so that exchanging them shows"""


def built(name: str, shape: tuple[int, int, int] = SHAPE, classes: int = 5) -> nn.Module:
    return models.build(models.MODELS[name].factory, shape, classes)


def small(x: Tensor, w: Mapping[str, Tensor]) -> Tensor:
    x = functional.conv2d(x, w["0.weight"], w["0.bias"]).clamp(min=0)
    return x.mean((2, 3)) @ w["4.weight"].T + w["4.bias"]


def deep(x: Tensor, w: Mapping[str, Tensor]) -> Tensor:
    for place in ("0", "2"):
        x = functional.conv2d(x, w[f"{place}.weight"], w[f"{place}.bias"]).clamp(min=0)
    return x.mean((2, 3)) @ w["6.weight"].T + w["6.bias"]


def lenet(x: Tensor, w: Mapping[str, Tensor]) -> Tensor:
    for conv, norm in (("0", "1"), ("4", "5")):
        x = functional.conv2d(x, w[f"{conv}.weight"], w[f"{conv}.bias"], padding=1)
        mean, variance = w[f"{norm}.running_mean"], w[f"{norm}.running_var"]
        x = (x - mean.view(-1, 1, 1)) / (variance.view(-1, 1, 1) + 1e-5).sqrt()
        x = x * w[f"{norm}.weight"].view(-1, 1, 1) + w[f"{norm}.bias"].view(-1, 1, 1)
        height, width = x.shape[2] // 2, x.shape[3] // 2
        x = x[..., : 2 * height, : 2 * width].clamp(min=0).unflatten(3, (width, 2)).unflatten(2, (height, 2))
        x = x.amax((3, 5))
    x = (x.flatten(1) @ w["9.weight"].T + w["9.bias"]).clamp(min=0)
    x = (x @ w["12.weight"].T + w["12.bias"]).clamp(min=0)
    return x @ w["15.weight"].T + w["15.bias"]


def gapnet(x: Tensor, w: Mapping[str, Tensor]) -> Tensor:
    for place in ("0", "2", "4"):
        x = functional.conv2d(x, w[f"{place}.weight"], w[f"{place}.bias"], padding=1)
        x = torch.maximum(x, 0.1 * x)
    return x.mean((2, 3)) @ w["8.weight"].T + w["8.bias"]


def dropnet(x: Tensor, w: Mapping[str, Tensor]) -> Tensor:
    for place in ("0", "2"):
        x = functional.conv2d(x, w[f"{place}.weight"], w[f"{place}.bias"], padding=1).clamp(min=0)
    height, width = x.shape[2] // 2, x.shape[3] // 2
    x = x[..., : 2 * height, : 2 * width].unflatten(3, (width, 2)).unflatten(2, (height, 2)).amax((3, 5))
    x = functional.conv2d(x, w["5.weight"], w["5.bias"], padding=1).clamp(min=0)
    x = (x.flatten(1) @ w["9.weight"].T + w["9.bias"]).clamp(min=0)
    return x @ w["11.weight"].T + w["11.bias"]


RECIPES = {"small": small, "deep": deep, "lenet": lenet, "gapnet": gapnet, "dropnet": dropnet}
WIDTHS = {
    "small": [(16, 3), (5, 16)],
    "deep": [(32, 3), (64, 32), (5, 64)],
    "lenet": [(16, 3), (32, 16), (128, 32 * 3 * 2), (64, 128), (5, 64)],
    "gapnet": [(8, 3), (16, 8), (32, 16), (5, 32)],
    "dropnet": [(16, 3), (32, 16), (64, 32), (128, 64 * 7 * 5), (5, 128)],
}
DROPOUT = {"small": [], "deep": [], "lenet": [0.4, 0.4], "gapnet": [], "dropnet": [0.25]}


@pytest.mark.parametrize("name", models.MODELS)
def test_a_built_in_model_computes_what_it_is_defined_to(name):
    model = built(name).double()
    generator = torch.Generator().manual_seed(1)
    for value in model.state_dict().values():  # batch statistics too: fresh ones would hide them
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator, dtype=value.dtype) - 0.3)
    images = torch.rand(6, *SHAPE, generator=generator, dtype=torch.float64)
    weights = {
        key: value.abs() if "running_var" in key else value for key, value in model.state_dict().items()
    }
    model.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), RECIPES[name](images, weights))
    assert [tuple(p.shape[:2]) for p in model.parameters() if p.ndim > 1] == WIDTHS[name]
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == DROPOUT[name]


@pytest.mark.parametrize("name", models.MODELS)
def test_initial_weights_are_the_draws_of_plain_layers(name):
    torch.manual_seed(11)
    model = built(name)
    after = torch.get_rng_state()
    torch.manual_seed(11)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            fresh = nn.Conv2d(layer.in_channels, layer.out_channels, 3)
        else:
            fresh = nn.Linear(layer.in_features, layer.out_features)
        assert torch.equal(layer.weight, fresh.weight)
        assert layer.bias is not None
        assert fresh.bias is not None
        assert torch.equal(layer.bias, fresh.bias)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("name", models.MODELS)
def test_the_smallest_image_is_taken_and_a_smaller_one_told(name):
    least = models.MODELS[name].smallest
    shape = (1, least, least + 2)
    models.check_model(name, shape, 3)
    model = built(name, shape, 3)
    with torch.no_grad():
        assert model.eval()(torch.rand(2, *shape)).isfinite().all()
    model.train()(torch.rand(2, *shape)).sum().backward()
    if least > 1:
        smaller = (1, least - 1, least + 2)
        with pytest.raises(UsageError, match=f"at least {least}x{least}"):
            models.check_model(name, smaller, 3)
        with pytest.raises((RuntimeError, ValueError)):
            built(name, smaller, 3).eval()(torch.rand(2, *smaller)).sum().item()


@pytest.mark.parametrize("name", models.MODELS)
def test_pooled_says_whether_logits_are_a_weighted_mean_of_activations(name):
    """Where they are, class activation maps exist."""
    layers = list(built(name).eval().children())
    head, images = layers[-1], torch.rand(2, *SHAPE)
    assert isinstance(head, nn.Linear)
    last = max(place for place, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)) + 2
    with torch.no_grad():
        activations = nn.Sequential(*layers[:last])(images)
        logits = nn.Sequential(*layers)(images)
        fits = activations.shape[1] == head.in_features
        weighted = fits and torch.allclose(head(activations.mean((2, 3))), logits, atol=1e-5)
    assert models.MODELS[name].pooled == weighted


def test_only_factories_that_ask_for_it_are_given_the_size():
    given = []

    def factory(*arguments):
        given.append(arguments)
        return nn.Flatten()

    models.build(factory, SHAPE, 5)
    assert given == [(3, 5)]
    trajectory = training.begin(models.model_factory("lenet"), SHAPE, 5, 0)
    assert trajectory.model.eval()(torch.rand(2, *SHAPE)).shape == (2, 5)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_b0"])
@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 32, 32)])
def test_torchvision_classifiers_take_the_images_and_draw_what_torchvision_draws(name, shape):
    torchvision = pytest.importorskip("torchvision")
    models.check_model(f"torchvision:{name}", shape, 4)
    torch.manual_seed(2)
    ours = models.model_factory(f"torchvision:{name}")(3, 4)
    torch.manual_seed(2)
    theirs = torchvision.models.get_model(name, weights=None, num_classes=4)
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_torchvision_that_does_not_import_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UsageError, match="needs torchvision"):
        models.check_model("torchvision:resnet18", (3, 64, 64), 4)


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("syntax", "def f(:", "cannot be imported: SyntaxError"),
        ("names", "f = nothing", "cannot be imported: NameError"),
        ("leaves", "import sys; sys.exit(3)", "cannot be imported: SystemExit"),
        ("raises", "def f(c, k): raise LookupError('lost')", "LookupError: lost"),
        ("gives_none", "def f(c, k): return None", "AttributeError"),
    ],
)
def test_what_a_users_module_raises_is_named(tmp_path, monkeypatch, name, code, told):
    (tmp_path / f"model_that_{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=told):
        models.check_model(f"model_that_{name}:f", SHAPE, 4)


def test_a_factory_without_source_of_its_own_has_its_modules(tmp_path, monkeypatch):
    code = "import functools\ndef g(k, c, n): return None\nf = functools.partial(g, 3)\n"
    (tmp_path / "partial_model.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    assert models.model_code("partial_model:f") == models.model_code("partial_model:g")
    assert models.model_code("partial_model:f") == hashlib.sha256(code.encode()).hexdigest()


def test_images_too_small_for_a_torchvision_classifier_are_told():
    pytest.importorskip("torchvision")
    with pytest.raises(UsageError, match="does not take images"):
        models.check_model("torchvision:alexnet", (3, 8, 8), 4)
