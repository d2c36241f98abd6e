"""Labels, the registry, methods from elsewhere, and what is left of a model after each of them."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from epochlens.attribute import adapters, methods
from epochlens.attribute.methods import METHODS, attribute, attribute_all, method_code, method_label
from epochlens.errors import UsageError

torch.set_num_threads(1)

MINE = """
import random
import numpy
import torch

def my_method(model, images, targets, *, power=2, centred=False):
    images.requires_grad_()
    score = model(images).gather(1, targets[:, None]).sum()
    maps = torch.autograd.grad(score, images)[0].abs() ** power
    return maps - maps.mean() if centred else maps

def noisy(model, images, targets, scale=1.0, *, generator):
    return scale * torch.randn(images.shape, generator=generator, dtype=images.dtype)

def vandal(model, images, targets):
    model.train()
    model(images)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1).requires_grad_()
        images.zero_()
        targets.zero_()
    for module in model.modules():
        module.register_forward_hook(lambda *_: None)
        module.mark = True
    model[0].weight.data = torch.zeros_like(model[0].weight)
    model(images).sum().backward()
    torch.manual_seed(5), torch.rand(3), random.random(), numpy.random.rand()
    return torch.rand_like(images)

def flat(model, images, targets):
    return images.mean(1)

def counting(model, images, targets):
    return torch.ones_like(images, dtype=torch.int64)

def nothing(model, images, targets):
    return None

def lonely(model):
    return None

def needy(model, images, targets, *, strength):
    return images

attribute = 3
"""


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.Tanh(),
        nn.Conv2d(6, 5, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 36, 6),
        nn.Tanh(),
        nn.Linear(6, 4),
    ).to(dtype)


def batch(n: int = 5, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 2, 10, 10, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 4, (n,), generator=generator)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's file in the current directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my_file.py"
    path.write_text(MINE)
    return path


def test_labels_are_canonical():
    assert method_label("integrated_gradients:steps=20,rule=midpoint") == "integrated_gradients"
    assert (
        method_label("integrated_gradients:rule=right,steps=5") == "integrated_gradients:steps=5,rule=right"
    )
    assert method_label({"name": "smoothgrad", "noise": 0.3}) == "smoothgrad:noise=0.3"
    assert method_label({"name": "smoothgrad:samples=3", "noise": 0.3}) == "smoothgrad:samples=3,noise=0.3"
    assert method_label(method_label("smoothgrad:noise=.20,base=saliency")) == "smoothgrad:noise=0.2"
    assert method_label("gradcam:layer=layer3.1") == "gradcam:layer=layer3.1"
    assert method_label("occlusion:value=-0.5") == "occlusion:value=-0.5"


def test_labels_of_captum_s_methods_are_sorted_and_typed():
    pytest.importorskip("captum.attr")
    label = method_label("captum:IntegratedGradients:n_steps=7,internal_batch_size=64,method=riemann_left")
    assert label == "captum:IntegratedGradients:internal_batch_size=64,method=riemann_left,n_steps=7"
    assert method_label(label) == label
    assert method_label("captum:GradientShap:n_samples=5") == "captum:GradientShap"
    assert methods.parse_method("captum:Saliency:abs=TRUE") == ("captum:Saliency", {"abs": True})
    assert method_label({"name": "captum:Occlusion", "strides": 1}) == "captum:Occlusion:strides=1"


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("salience", "did you mean 'saliency'"),
        ("salience:steps=3", "did you mean 'saliency'"),
        ("salience:steps", "cannot be imported"),
        ("", "Choices: saliency"),
        ("saliency:steps=3", "none"),
        ("integrated_gradients:step=3", "did you mean 'steps'"),
        ("integrated_gradients:steps=0", "at least 1"),
        ("integrated_gradients:steps=2.5", "int"),
        ("integrated_gradients:rule=simpson", "gauss_legendre"),
        ("integrated_gradients:rule=endpoints,steps=1", "at least 2"),
        ("smoothgrad:noise=-1", "at least 0"),
        ("smoothgrad:noise=nan", "at least 0"),
        ("smoothgrad:noise", "option=value"),
        ("smoothgrad:base=lime", "gradcam"),
        ("occlusion:patch=3,stride=4", "at most"),
        ("occlusion:value=inf", "finite"),
        ("lime:width=0", "above 0"),
        ("no_file.py:f", "no file"),
        ("json:no_such_function", "no function"),
        ("json:dumps", "not a function of"),
        ("math:sin", "source file"),
    ],
)
def test_bad_methods_are_told(method, told):
    with pytest.raises(UsageError, match=told):
        method_label(method)


def test_all_methods_are_canonical_and_end_with_the_controls():
    names = methods.all_methods()
    assert [method_label(name) for name in names] == names
    assert set(names) == set(METHODS)
    assert names[-2:] == ["edge", "random"]


def test_built_in_methods_are_known_without_torch_and_captum():
    script = (
        "import sys\n"
        "from epochlens.attribute import methods as m\n"
        "for name in m.all_methods():\n"
        "    m.method_label(name), m.is_stochastic(name), m.default_options(name), m.method_code(name)\n"
        "m.method_label('smoothgrad:base=gradcam,noise=0.3')\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "captum", "skimage", "pandas"} & set(done.stdout.split())


def test_methods_that_draw_are_known():
    drawing = {name for name in METHODS if methods.is_stochastic(name)}
    assert drawing == {"gradient_shap", "smoothgrad", "lime", "random"}
    model, (images, targets) = network(), batch()
    for name in set(METHODS) - {"cam"}:
        draws = [
            attribute(model, images, targets, name, generator=torch.Generator().manual_seed(s))
            for s in (1, 2)
        ]
        assert torch.equal(*draws) != (name in drawing)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_methods_together_equal_methods_one_by_one(dtype):
    model = nn.Sequential(
        *network(dtype=dtype)[:4], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4, dtype=dtype)
    )
    images, targets = batch(40)
    labels = [*METHODS, "gradcam:layer=1", "gradcam_plus_plus:layer=1", "smoothgrad:noise=0.2", "random"]

    def generator(label: str) -> torch.Generator:
        return methods.named_generator(3, label)

    found = attribute_all(model, images.to(dtype), targets, labels, generators=generator)
    assert list(found) == labels[:-1]
    for label, maps in found.items():
        alone = attribute(model, images.to(dtype), targets, label, generator=generator(label))
        assert torch.equal(maps, alone), label


def test_methods_that_can_share_their_work_do():
    model, (images, targets) = network(), batch()
    runs: list[int] = []
    model.register_forward_hook(lambda *_: runs.append(1))

    def passes(*labels: str) -> int:
        runs.clear()
        attribute_all(model, images, targets, labels)
        return len(runs)

    assert passes("input_x_gradient", "saliency") == passes("saliency")
    assert passes("gradcam", "saliency", "gradcam_plus_plus") == passes("gradcam") + passes("saliency")
    assert passes("gradcam", "gradcam_plus_plus:layer=1") > passes("gradcam")


CAPTUMS = {
    "captum:Saliency": lambda c, m, x, t: c.Saliency(m).attribute(x, t, abs=False),
    "captum:IntegratedGradients:n_steps=7": lambda c, m, x, t: c.IntegratedGradients(m).attribute(
        x, target=t, n_steps=7
    ),
    "captum:DeepLift:baselines=0.5": lambda c, m, x, t: c.DeepLift(m).attribute(x, 0.5, t),
    "captum:DeepLiftShap": lambda c, m, x, t: c.DeepLiftShap(m).attribute(x, torch.zeros_like(x[:2]), t),
    "captum:Occlusion:sliding_window_shapes=3,strides=1": lambda c, m, x, t: c.Occlusion(m).attribute(
        x, (2, 3, 3), target=t
    ),
    "captum:GuidedGradCam": lambda c, m, x, t: c.GuidedGradCam(m, m[3]).attribute(x, t),
    "captum:GuidedGradCam:layer=1": lambda c, m, x, t: c.GuidedGradCam(m, m[1]).attribute(x, t),
    "captum:FeatureAblation:feature_mask=1": lambda c, m, x, t: c.FeatureAblation(m).attribute(
        x, target=t, feature_mask=torch.arange(100).view(1, 1, 10, 10)
    ),
}


@pytest.mark.parametrize("label", CAPTUMS)
def test_captum_s_classes_are_called_as_by_hand(label):
    captum = pytest.importorskip("captum.attr")
    model, (images, targets) = network(), batch()
    peer = CAPTUMS[label](captum, model, images.clone(), targets)
    torch.testing.assert_close(attribute(model, images, targets, label), peer.detach().to(images))


def test_a_layer_s_attribution_is_summed_and_resized():
    captum = pytest.importorskip("captum.attr")
    model, (images, targets) = network(), batch()
    maps = captum.LayerConductance(model, model[3]).attribute(images, target=targets).sum(1, keepdim=True)
    peer = nn.functional.interpolate(maps.detach(), (10, 10), mode="bilinear").expand_as(images)
    torch.testing.assert_close(attribute(model, images, targets, "captum:LayerConductance"), peer)
    signed = attribute(model, images, targets, "captum:LayerGradCam:relu_attributions=true")
    torch.testing.assert_close(signed, attribute(model, images, targets, "gradcam"))


@pytest.mark.parametrize("label", ["captum:ShapleyValues", "captum:ShapleyValueSampling"])
def test_shapley_values_of_blocks_add_up_to_the_rise_of_the_logit(label):
    pytest.importorskip("captum.attr")
    model, (images, targets) = network(), batch()
    maps = attribute(model, images, targets, label)
    mask = adapters.block_mask(images.shape, 5 if label.endswith("Values") else 0)[0, 0]
    corners = [(mask == block).nonzero()[0].tolist() for block in mask.unique()]
    total = torch.stack([maps[:, 0, i, j] for i, j in corners]).sum(0)
    with torch.no_grad():
        rise = (model(images) - model(torch.zeros_like(images))).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(total, rise)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (8, 8), (28, 28), (32, 20), (64, 64), (224, 200)])
def test_default_blocks_are_square_few_and_at_least_four(height, width):
    mask = adapters.block_mask((1, 3, height, width))
    blocks = mask[0, 0].unique()
    assert torch.equal(blocks, torch.arange(len(blocks)))
    assert 4 <= len(blocks) <= 256
    side = int((mask[0, 0, 0] == 0).sum())
    assert int((mask == 0).sum()) == 3 * side * side
    if 8 <= max(height, width) <= 64:
        assert side == 4


@pytest.mark.parametrize("name", adapters.STOCHASTIC)
def test_captum_s_draws_follow_the_generator(name):
    pytest.importorskip("captum.attr")
    model, (images, targets) = network(), batch()
    with torch.no_grad():
        model.get_parameter("7.weight").mul_(100)  # captum's Lime drops small coefficients
    label = f"captum:{name}"
    assert methods.is_stochastic(label)
    if name == "LayerFeaturePermutation":
        return  # captum 0.9 asks for the target twice and fails
    first, again, other = (
        attribute(model, images, targets, label, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_captum_s_other_classes_do_not_draw():
    classes = adapters._captum_classes("captum:") if pytest.importorskip("captum.attr") else {}
    assert {"LRP", "DeepLift", "LayerGradCam", "ShapleyValues"} <= set(classes)
    assert not {"NoiseTunnel", "LimeBase", "NeuronGradient", "LayerAttribution"} & set(classes)
    model, (images, targets) = network(), batch(3)
    for name in set(classes) - set(adapters.STOCHASTIC) - {"LRP", "LayerLRP"}:
        maps = [
            attribute(model, images, targets, f"captum:{name}", generator=torch.Generator().manual_seed(seed))
            for seed in (1, 2)
        ]
        assert torch.equal(*maps), name
        assert maps[0].any(), name


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ("captum:DeepLif", "did you mean 'captum:DeepLift'"),
        ("captum:Neuron", "Choices: "),
        ("captum", "Choices: "),
        ("captum:NoiseTunnel", "unknown"),
        ("captum:IntegratedGradients:steps=3", "did you mean 'n_steps'"),
        ("captum:IntegratedGradients:n_steps=many", "int"),
        ("captum:Saliency:abs=2", "bool"),
    ],
)
def test_bad_captum_methods_are_told(label, told):
    pytest.importorskip("captum.attr")
    with pytest.raises(UsageError, match=told):
        method_label(label)


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ("captum:LRP", "captum:LRP.*Flatten.*no rule"),
        ("captum:ShapleyValues:feature_mask=2", "ShapleyValueSampling"),
        ("captum:FeaturePermutation", "two at least"),
        ("captum:FeatureAblation:feature_mask=-2", "at least 0"),
        ("captum:Occlusion:strides=0", "at least 1"),
        ("captum:IntegratedGradients:method=simpson", "captum:IntegratedGradients.*Approximation"),
        ("captum:LayerGradCam:layer=nowhere", "Choices: 0"),
        ("captum:LayerGradCam:layer=5", "gives no maps"),
    ],
)
def test_what_captum_cannot_explain_is_told(label, told):
    pytest.importorskip("captum.attr")
    model, (images, targets) = network(), batch(1)
    with pytest.raises(UsageError, match=f"(?s){told}"):
        attribute(model, images, targets, label)


def test_captum_is_asked_for_by_name_when_it_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(UsageError, match=r"pip install 'epochlens\[attribution\]'"):
        method_label("captum:NotAskedForElsewhere")


def test_a_user_s_method_is_named_by_its_file(mine):
    model, (images, targets) = network(), batch()
    gradient = attribute(model, images, targets, "saliency")
    found = attribute(model, images, targets, "my_file.py:my_method")
    torch.testing.assert_close(found, gradient**2)
    cube = attribute(model, images, targets, "my_file.py:my_method:centred=true,power=3")
    torch.testing.assert_close(cube, gradient.abs() ** 3 - (gradient.abs() ** 3).mean())
    both = attribute_all(model, images, targets, ["saliency", f"{mine}:my_method"])
    assert torch.equal(both[f"{mine}:my_method"], found)
    assert method_label("./my_file.py:my_method:power=2,centred=True") == "my_file.py:my_method:centred=True"
    assert not methods.is_stochastic("my_file.py:my_method")


def test_a_user_s_module_is_imported(mine, monkeypatch):
    monkeypatch.syspath_prepend(mine.parent)
    model, (images, targets) = network(), batch()
    label = "my_file:my_method:power=1"
    torch.testing.assert_close(
        attribute(model, images, targets, label), attribute(model, images, targets, "saliency").abs()
    )
    assert method_code(label) == method_code("my_file.py:my_method")
    monkeypatch.delitem(sys.modules, "my_file")


def test_a_user_s_method_that_takes_a_generator_gets_it(mine):
    model, (images, targets) = network(), batch()
    found = attribute(
        model, images, targets, "my_file.py:noisy:scale=2", generator=torch.Generator().manual_seed(4)
    )
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert torch.equal(found, 2 * drawn)
    assert methods.is_stochastic("my_file.py:noisy")
    assert methods.default_options("my_file.py:noisy") == {"scale": 1.0}


def test_code_is_identified(mine):
    before = method_code("my_file.py:my_method:power=3")
    assert [method_code(name) for name in METHODS] == [""] * len(METHODS)
    model, (images, targets) = network(), batch()
    old = attribute(model, images, targets, "my_file.py:my_method")
    mine.write_text(MINE.replace("** power", "** power + 1"))
    assert method_code("my_file.py:my_method") != before
    torch.testing.assert_close(attribute(model, images, targets, "my_file.py:my_method"), old + 1)
    mine.write_text(MINE)
    assert method_code("my_file.py:my_method") == before


def test_captum_s_version_is_its_code():
    captum = pytest.importorskip("captum")
    assert captum.__version__ in method_code("captum:DeepLift:eps=1e-5")


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ("my_file.py:my_metod", "no function 'my_metod'"),
        ("my_file.py:attribute", "no function"),
        ("my_file.py:my_method:strength=3", "Choices: power, centred"),
        ("my_file.py:my_method:power=much", "int"),
        ("my_file.py:lonely", "model, images, targets"),
        ("my_file.py:needy", "'strength' without a default"),
        ("my_file.py:flat", r"\[5, 10, 10\].*\[5, 2, 10, 10\]"),
        ("my_file.py:counting", "int64"),
        ("my_file.py:nothing", "NoneType, not a tensor"),
        ("broken.py:f", "SyntaxError"),
        ("leaving.py:f", "SystemExit"),
        ("broken.py" * 40 + ":f", "too long"),
        ("bro\0ken.py:f", "null byte"),
        ("sys:exit", "built-in module"),
        ("unsigned.py:f", "does not tell its parameters"),
    ],
)
def test_users_mistakes_are_told(mine, label, told):
    (mine.parent / "broken.py").write_text("def f(:\n")
    (mine.parent / "leaving.py").write_text("raise SystemExit(3)\n")
    (mine.parent / "unsigned.py").write_text("f = dict\n")
    model, (images, targets) = network(), batch()
    with pytest.raises(UsageError, match=told):
        attribute(model, images, targets, label)


def everything(model: nn.Module) -> dict[str, Any]:
    """All that a method could leave behind in a model or the global streams."""
    found: dict[str, Any] = {"python": random.getstate(), "numpy": str(np.random.get_state())}
    found["torch"] = torch.get_rng_state().tolist()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found[name] = (tensor.data_ptr(), tensor.tolist(), tensor.requires_grad)
        found[name] += (None if tensor.grad is None else tensor.grad.tolist(),)
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            found[f"{name}.{key}"] = list(value) if isinstance(value, dict) else value
    return found


@pytest.mark.parametrize(
    "label",
    [
        *METHODS,
        "captum:DeepLift",
        "captum:FeaturePermutation",
        "captum:GradientShap",
        "captum:GuidedBackprop",
        "captum:KernelShap",
        "captum:LayerGradCam",
        "captum:LRP",
        "captum:Occlusion",
        "my_file.py:vandal",
    ],
)
def test_everything_is_given_back_as_it_was(label, mine):
    if label.startswith("captum"):
        pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    norm, last = nn.BatchNorm2d(3), nn.Linear(3, 4)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Dropout(), nn.Flatten(), last
    ).double()
    norm.eval()
    last.bias.requires_grad_(False)
    last.weight.grad = torch.ones_like(last.weight)
    calls = []
    handle = norm.register_forward_hook(lambda *_: calls.append(1))
    images, targets = batch()
    before, pixels, classes = everything(model), images.clone(), targets.clone()
    with torch.no_grad():
        if label == "captum:LRP":  # fails half-way, on a layer without a rule
            with pytest.raises(UsageError):
                attribute(model, images, targets, label)
        else:
            attribute(model, images, targets, label)
    assert everything(model) == before
    assert torch.equal(images, pixels)
    assert torch.equal(targets, classes)
    calls.clear()
    handle.remove()
    model(images)
    assert not calls


def test_a_graph_that_waits_for_its_backward_pass_stays_valid(mine):
    model, (images, targets) = network(), batch()
    loss = model(images).square().sum()
    attribute(model, images, targets, "my_file.py:my_method")
    attribute(model, images, targets, "gradcam")
    loss.backward()
    expected = torch.autograd.grad(model(images).square().sum(), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
