"""Class activation maps against captum, against plain loops, and their layers on known networks."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from photographs import crops
from torch import Tensor, nn

from epochlens.attribute import cams
from epochlens.attribute.methods import attribute
from epochlens.errors import UsageError

torch.set_num_threads(1)


def batch(n: int = 5, channels: int = 2, side: int = 12, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, channels, side, side - 1, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 4, (n,), generator=generator)


def normed(channels: int) -> nn.BatchNorm2d:
    """Batch norm with statistics of its own, so that eval mode is not the identity."""
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for values in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            assert values is not None
            values.copy_(torch.rand(channels) + 0.5)
    return norm


def network(seed: int = 0, inplace: bool = True) -> nn.Sequential:
    """Convolutions with batch norm, activations that work in place, and a non-linear head."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3),
        normed(6),
        nn.ReLU(inplace),
        nn.Conv2d(6, 7, 3, stride=2),
        normed(7),
        nn.ELU(inplace=inplace),
        nn.Conv2d(7, 5, 3, padding=1),
        nn.LeakyReLU(0.1, inplace),
        nn.MaxPool2d(2),
        nn.Hardtanh(-1, 1, inplace),
        nn.Flatten(),
        nn.Linear(20, 6),
        nn.Tanh(),
        nn.Linear(6, 4),
    ).double()


def pooled(*front: nn.Module, features: int) -> nn.Sequential:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 4))
    return nn.Sequential(*front, *head).double()


def convolutional(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return pooled(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), features=5)


def torchvision_models() -> Any:
    try:
        return importlib.import_module("torchvision.models")
    except Exception as error:  # a build for another torch fails with RuntimeError
        pytest.skip(f"torchvision does not import: {error}")


def captum_gradcam(model: nn.Module, layer: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    captum = pytest.importorskip("captum.attr")
    maps = captum.LayerGradCam(model.eval(), layer).attribute(images, targets, relu_attributions=True)
    size = tuple(images.shape[2:])
    return captum.LayerAttribution.interpolate(maps, size, "bilinear").detach().expand_as(images)


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_gradcam_equals_captum(seed, real):
    model, (images, targets) = network(seed), batch(seed=seed)
    images = crops(len(images), 2, 12, seed)[..., :-1] if real else images
    # captum reads the layer that in-place activations behind it write, so it gets a network without them
    plain = network(seed, inplace=False)
    found = attribute(model, images, targets, "gradcam")
    peer = captum_gradcam(plain, plain[7], images, targets)
    assert peer.abs().max() > 0
    torch.testing.assert_close(found, peer, rtol=1e-6, atol=1e-12)


def test_gradcam_equals_captum_on_resnet18():
    models = torchvision_models()
    torch.manual_seed(0)
    model = models.resnet18(num_classes=4).double()
    images, targets = batch(4, channels=3, side=40)[0], torch.arange(4)
    for layer, chosen in (("", model.layer4), ("layer2.0", model.layer2[0])):
        found = attribute(model, images, targets, "gradcam", layer=layer)
        peer = captum_gradcam(model, chosen, images, targets)
        assert peer.abs().max() > 0
        torch.testing.assert_close(found, peer, rtol=1e-6, atol=1e-12)


@given(seed=st.integers(0, 1000), n=st.integers(1, 4), side=st.integers(6, 12))
@settings(max_examples=25, deadline=None)
def test_gradcam_of_a_pooled_network_is_its_cam_divided_by_the_positions(seed, n, side):
    model, (images, targets) = convolutional(seed), batch(n, side=side, seed=seed)
    cam = cams.layer_cam(model, images, targets)
    gradcam = cams.layer_maps(model, images, targets, ["gradcam"])["gradcam"]
    torch.testing.assert_close(gradcam, cam / cam[0].numel())
    found = attribute(model, images, targets, "gradcam") * cam[0].numel()
    torch.testing.assert_close(found, attribute(model, images, targets, "cam"))


def test_cam_is_the_activations_weighted_by_the_head():
    model, (images, targets) = convolutional(3), batch()
    with torch.no_grad():
        features = model[:4](images)
        for n, target in enumerate(targets.tolist()):
            weights = model.get_parameter("6.weight")[target].tolist()
            by_hand = sum(w * a for w, a in zip(weights, features[n], strict=True))
            assert isinstance(by_hand, Tensor)
            found = cams.layer_cam(model, images, targets)[n]
            torch.testing.assert_close(found, by_hand.clamp(min=0))
            resized = nn.functional.interpolate(found[None, None], images.shape[2:], mode="bilinear")
            maps = attribute(model, images, targets, "cam")[n]
            torch.testing.assert_close(maps, resized[0].expand_as(maps))


def loop_gradcam_plus_plus(model: nn.Sequential, end: int, image: Tensor, target: int) -> Tensor:
    """The definition, number by number: [h,w] for one image, A the output of model[:end]."""
    features = model[:end](image[None]).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model[end:](features)[0, target], features)
    a, g = features[0].tolist(), gradient[0].tolist()
    channels, height, width = range(len(a)), range(len(a[0])), range(len(a[0][0]))
    weights = []
    for k in channels:
        total = sum(sum(row) for row in a[k])
        weight = 0.0
        for i, j in itertools.product(height, width):
            alpha = g[k][i][j] ** 2 / (2 * g[k][i][j] ** 2 + total * g[k][i][j] ** 3 + 1e-8)
            weight += alpha * max(g[k][i][j], 0.0)
        weights.append(weight)
    sums = [[sum(weights[k] * a[k][i][j] for k in channels) for j in width] for i in height]
    return torch.tensor(sums, dtype=image.dtype).clamp(min=0)


@pytest.mark.parametrize("seed", range(3))
def test_gradcam_plus_plus_equals_plain_loops(seed):
    model, plain = network(seed).eval(), network(seed, inplace=False).eval()
    images, targets = batch(3, seed=seed)
    found = cams.layer_maps(model, images, targets, ["gradcam_plus_plus"])["gradcam_plus_plus"]
    for n in range(3):
        expected = loop_gradcam_plus_plus(plain, 8, images[n], int(targets[n]))
        torch.testing.assert_close(found[n], expected, rtol=1e-9, atol=1e-12)
    assert found.abs().max() > 0


def test_gradcam_plus_plus_stands_the_small_gradients_of_half_precision():
    model, (images, targets) = convolutional(0), batch()
    with torch.no_grad():
        model.get_parameter("6.weight").mul_(1e-2)
    exact = cams.layer_maps(model, images, targets, list(cams.RULES))["gradcam_plus_plus"]
    rough = cams.layer_maps(model.half(), images.half(), targets, list(cams.RULES))["gradcam_plus_plus"]
    assert rough.dtype == torch.float16
    assert rough.isfinite().all()
    assert (rough - exact).abs().max() < 0.01 * exact.max() + 1e-7


@pytest.mark.parametrize("name", ["cam", "gradcam", "gradcam_plus_plus"])
def test_a_class_that_every_channel_speaks_against_has_a_map_of_zeros(name):
    model, (images, targets) = convolutional(1), batch()
    with torch.no_grad():
        weight = model.get_parameter("6.weight")
        weight.copy_(-weight.abs())
    assert model[:4](images).sum() > 0
    assert torch.equal(attribute(model, images, targets, name), torch.zeros_like(images))


def test_both_gradient_maps_come_from_one_pass():
    model, (images, targets) = network(), batch(40)
    passes = []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    both = cams.gradient_cams(model.eval(), images, targets)
    shared = len(passes)
    for name, maps in both.items():
        assert torch.equal(maps, attribute(model, images, targets, name))
    handle.remove()
    assert len(passes) == 3 * shared


class Branches(nn.Module):
    """One activation module for the whole network, a residual sum outside of any, a dead convolution."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.act = nn.ReLU(inplace)
        self.first, self.second = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
        self.unused = nn.Conv2d(6, 6, 3)
        self.head, self.out = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        x = self.act(self.second(x) + x)
        return self.out(self.act(self.head(x.mean((2, 3)))))


def test_a_module_that_serves_several_times_is_taken_at_its_last_map():
    model, (images, targets) = Branches(inplace=True).double(), batch()
    assert cams.feature_layer(model, images)[0] == "act"
    with torch.no_grad():
        before = torch.relu(model.first(images))
        features = torch.relu(model.second(before) + before)
    features.requires_grad_()
    logits = model.out(torch.relu(model.head(features.mean((2, 3)))))
    (gradient,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), features)
    expected = (gradient.mean((2, 3), keepdim=True) * features).sum(1).relu()
    found = cams.layer_maps(model, images, targets, ["gradcam"])["gradcam"]
    torch.testing.assert_close(found, expected.detach())


def test_the_layer_is_the_end_of_the_last_convolution_s_block():
    images, _ = batch(1)
    model = network()
    name, module = cams.feature_layer(model, images)
    assert name == "7"
    assert module is model[7]
    assert cams.feature_layer(convolutional(0), images)[0] == "3"
    dropped = pooled(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 3, 1), features=3)
    assert cams.feature_layer(dropped, images)[0] == "3"


@pytest.mark.parametrize(
    ("name", "layer", "last"),
    [
        ("resnet18", "layer4", "layer4"),
        ("resnet50", "layer4", "layer4"),
        ("vgg16", "features.29", "features.29"),
        ("mobilenet_v2", "features", "features.18"),
        ("efficientnet_b0", "features", "features.8"),
    ],
)
def test_the_layer_of_known_networks(name, layer, last):
    models = torchvision_models()
    with torch.device("meta"):  # shapes without numbers: fast
        model, images = models.get_model(name, weights=None), torch.rand(1, 3, 64, 64)
    assert cams.feature_layer(model, images)[0] == layer
    outputs = []
    for module in (model.get_submodule(layer), model.get_submodule(last)):
        module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model.eval()(images)
    assert outputs[0] is outputs[1]


@pytest.mark.parametrize("layer", [0, 2, 3, 6])
def test_a_named_layer_is_taken_whatever_works_in_place_behind_it(layer):
    model, (images, targets) = network(), batch()
    plain = network(inplace=False)
    found = attribute(model, images, targets, f"gradcam:layer={layer}")
    peer = captum_gradcam(plain, plain[layer], images, targets)
    torch.testing.assert_close(found, peer, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "label", "told"),
    [
        (network(), "gradcam:layer=99", "Choices: 0, 1, 2"),
        (network(), "gradcam_plus_plus:layer=13", "gives no maps"),
        (nn.Sequential(nn.Flatten(), nn.Linear(264, 4)).double(), "gradcam", "nn.Conv2d"),
        (nn.Sequential(nn.MaxPool2d(3), nn.Flatten(), nn.Linear(24, 4)).double(), "gradcam", "layer=NAME: 0"),
        (network(), "cam", "global average pooling"),
        (pooled(nn.Conv2d(2, 5, 3), nn.ReLU(), features=5).append(nn.Softmax(1)), "cam", "one linear layer"),
    ],
)
def test_models_without_such_maps_are_told(model, label, told):
    images, targets = batch()
    with pytest.raises(UsageError, match=told):
        attribute(model, images, targets, label)


def test_rows_of_features_have_no_such_maps():
    model = nn.Sequential(nn.Unflatten(1, (1, 6, 6)), nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(48, 4))
    with pytest.raises(UsageError, match="images"):
        attribute(model, torch.rand(2, 36), torch.tensor([0, 1]), "gradcam")


class Pooling(nn.Module):
    """A convolution and a head on its mean, its maximum, or its mean with a function behind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.drop = kind, nn.Conv2d(3, 5, 3), nn.Dropout()
        self.hidden, self.head = nn.Linear(5, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.kind == "max":
            return self.head(x.amax((2, 3)))
        if self.kind == "function":
            return self.head(x.relu().mean((2, 3)))
        x = self.drop(x.mean((2, 3)))
        return self.head(self.hidden(x)) if self.kind == "two" else self.head(x)


@pytest.mark.parametrize(
    ("kind", "expected"), [("mean", True), ("max", False), ("function", False), ("two", False)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_cam_is_offered_exactly_where_it_is_defined(kind, expected, dtype):
    torch.manual_seed(0)
    model = Pooling(kind).to(dtype)
    stream = torch.get_rng_state()
    assert cams.supports_cam(model, (3, 9, 9)) is expected
    assert model.training
    assert torch.equal(torch.get_rng_state(), stream)
    images, targets = batch(channels=3, side=9)
    if expected:
        assert attribute(model, images.to(dtype), targets, "cam").max() > 0
    else:
        with pytest.raises(UsageError):
            attribute(model, images.to(dtype), targets, "cam")


def test_nothing_below_the_layer_is_differentiated():
    model, (images, targets) = network(), batch()
    seen = []
    model[3].register_full_backward_hook(lambda *_: seen.append("below"))
    model[9].register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    model[3].register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    images.requires_grad_()
    attribute(model, images, targets, "gradcam")
    assert seen == [False, False, False, True]  # finding the layer, then explaining


def test_hooks_are_gone_even_after_an_exception():
    class Refusing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                raise RuntimeError("no gradients here")
            return x

    model = network().append(Refusing())
    images, targets = batch()
    with pytest.raises(RuntimeError, match="no gradients"):
        attribute(model, images, targets, "gradcam")
    assert not any(module._forward_hooks for module in model.modules())
    assert model.training
