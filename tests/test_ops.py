"""The fused operation equals the plain layers, whichever gradients are wanted, and gives way when watched."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from epochlens.learn import models, ops


def draw(seed: int, channels: tuple[int, ...], size: tuple[int, int], batch: int) -> list[Tensor]:
    """Images and the weights and biases of a stack of convolutions, float64."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(batch, channels[0], *size, generator=generator, dtype=torch.float64)]
    for into, out in itertools.pairwise(channels):
        tensors.append(torch.randn(out, into, 3, 3, generator=generator, dtype=torch.float64) / 3)
        tensors.append(torch.randn(out, generator=generator, dtype=torch.float64) / 3)
    return tensors


def layers(images: Tensor, *parameters: Tensor) -> Tensor:
    """The plain layers, with PyTorch's own pooling."""
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        images = nn.functional.relu(nn.functional.conv2d(images, weight, bias))
    return nn.functional.adaptive_avg_pool2d(images, 1).flatten(1)


@given(
    seed=st.integers(0, 10**6),
    channels=st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple),
    height=st.integers(7, 10),
    width=st.integers(7, 10),
    batch=st.integers(1, 7),
    cache=st.sampled_from([1, 4000, 2**22]),
    by=st.lists(st.booleans(), min_size=7, max_size=7),
)
@settings(max_examples=60, deadline=None)
def test_values_and_wanted_gradients_equal_the_plain_layers(seed, channels, height, width, batch, cache, by):
    tensors = draw(seed, channels, (height, width), batch)
    for tensor, wanted in zip(tensors, by, strict=False):
        tensor.requires_grad_(wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "CACHE_BYTES", cache)  # one image at a time, some, all
        found = ops.convolve_and_pool(*tensors)
        expected = layers(*tensors)
        torch.testing.assert_close(found, expected)
        asked = [tensor for tensor in tensors if tensor.requires_grad]
        if asked:
            toward = torch.randn(expected.shape, dtype=torch.float64)
            for a, b in zip(
                torch.autograd.grad(found, asked, toward),
                torch.autograd.grad(expected, asked, toward),
                strict=True,
            ):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("channels", [(1, 3), (2, 3), (1, 2, 3)])
@pytest.mark.parametrize("by_image", [False, True])
def test_first_and_second_derivatives_are_those_of_the_values(channels, by_image, monkeypatch):
    monkeypatch.setattr(ops, "CACHE_BYTES", 2000)
    images, *parameters = draw(3, channels, (6, 5), 3)
    images.requires_grad_(by_image)
    inputs = [images, *(parameter.requires_grad_() for parameter in parameters)]
    assert torch.autograd.gradcheck(ops.convolve_and_pool, inputs)
    assert torch.autograd.gradgradcheck(ops.convolve_and_pool, inputs)


@pytest.mark.parametrize("channels", [(1, 16), (3, 16), (1, 32, 64)])
def test_single_precision_gradients_are_as_close_to_double_as_plain_ones(channels):
    exact = [tensor.requires_grad_() for tensor in draw(0, channels, (20, 20), 64)]
    exact[0].requires_grad_(False)
    single = [tensor.detach().float().requires_grad_(tensor.requires_grad) for tensor in exact]
    toward = torch.randn(64, channels[-1], dtype=torch.float64)
    true = torch.autograd.grad(layers(*exact), exact[1:], toward)

    def error(function) -> float:
        found = torch.autograd.grad(function(*single), single[1:], toward.float())
        return max(float((a - b).norm() / b.norm()) for a, b in zip(found, true, strict=True))

    assert error(ops.convolve_and_pool) <= max(2 * error(layers), 1e-5)


def test_the_same_input_gives_the_same_bits():
    images, *parameters = (tensor.float() for tensor in draw(1, (1, 32, 64), (28, 28), 50))
    runs = []
    for _ in range(3):
        wanted = [parameter.clone().requires_grad_() for parameter in parameters]
        pooled = ops.convolve_and_pool(images, *wanted)
        runs.append([pooled, *torch.autograd.grad(pooled.square().sum(), wanted)])
        torch.randn(1234, 77).relu()  # other work moves memory about
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_a_part_of_what_is_not_finite_reaches_the_mean():
    images, weight, bias = draw(2, (1, 3), (6, 6), 4)
    images[1, 0, 3, 3] = torch.nan
    found = ops.convolve_and_pool(images, weight.requires_grad_(), bias.requires_grad_())
    assert found.isnan().any(1).tolist() == [False, True, False, False]


NETWORKS = ["small", "deep"]


def network(
    name: str, channels: int = 1, dtype: torch.dtype = torch.float64
) -> tuple[nn.Sequential, nn.Sequential]:
    """A built-in model, and its layers in a plain `nn.Sequential`."""
    torch.manual_seed(7)
    model = models.MODELS[name].factory(channels, 4).to(dtype)
    assert isinstance(model, nn.Sequential)
    return model, nn.Sequential(*copy.deepcopy(model).children())


@pytest.fixture
def fused(monkeypatch) -> list[int]:
    """Grows by one whenever the fused operation runs."""
    calls = []
    function = ops.convolve_and_pool
    monkeypatch.setattr(ops, "convolve_and_pool", lambda *a, **k: calls.append(1) or function(*a, **k))
    return calls


@pytest.mark.parametrize("name", NETWORKS)
def test_training_evaluation_and_attribution_are_fused_and_equal_the_plain_network(name, fused):
    model, plain = network(name, 3)
    images = torch.rand(9, 3, 12, 12, dtype=torch.float64)
    targets = torch.arange(9) % 4
    assert list(model.state_dict()) == list(plain.state_dict())

    def derivatives(net: nn.Module) -> list[Tensor]:
        nn.functional.cross_entropy(net(images), targets).backward()
        by_weight = [p.grad for p in net.parameters() if p.grad is not None]
        net.requires_grad_(False)
        x = images.clone().requires_grad_()
        by_image = torch.autograd.grad(net(x).gather(1, targets[:, None]).sum(), x)
        with torch.no_grad():
            return [net(images), *by_weight, *by_image]

    found, expected = derivatives(model), derivatives(plain)
    assert len(fused) == 3
    assert len(found) == len(expected) > 5
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", NETWORKS)
def test_whoever_looks_inside_sees_the_plain_layers(name, fused):
    model, plain = network(name)
    images = torch.rand(5, 1, 9, 9, dtype=torch.float64)
    expected = plain(images)
    last = len(plain) - 4
    for place in (last, last - 1):
        seen = []
        handle = model[place].register_forward_hook(lambda module, x, output, to=seen: to.append(output))
        logits = model(images)
        slopes = torch.autograd.grad(logits[:, 0].sum(), seen[0])[0]
        handle.remove()
        torch.testing.assert_close(logits, expected)
        inside = plain[: place + 1](images).detach().requires_grad_()
        torch.testing.assert_close(seen[0], inside)
        outside = torch.autograd.grad(plain[place + 1 :](inside)[:, 0].sum(), inside)[0]
        torch.testing.assert_close(slopes, outside)
    seen = []
    handle = model[last].register_full_backward_hook(lambda module, into, out, to=seen: to.append(out[0]))
    model(images).sum().backward()
    handle.remove()
    assert len(seen) == 1
    assert not fused
    model(images)
    assert len(fused) == 1


def test_another_structure_runs_layer_by_layer(fused):
    model, plain = network("small")
    images = torch.rand(5, 1, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(model[:2](images), plain[:2](images))
    for change in (
        lambda net: net.__setitem__(1, nn.LeakyReLU(0.3)),
        lambda net: net.__setitem__(0, nn.Conv2d(1, 16, 3, padding=1, dtype=torch.float64)),
        lambda net: net.__setitem__(0, nn.Conv2d(1, 16, 3, stride=2, dtype=torch.float64)),
        lambda net: net.__setitem__(0, nn.Conv2d(1, 16, 3, bias=False, dtype=torch.float64)),
    ):
        changed = copy.deepcopy(model)
        torch.manual_seed(0)
        change(changed)
        expected = nn.Sequential(*changed.children())(images)
        torch.testing.assert_close(changed(images), expected)
    with pytest.raises(RuntimeError):
        model(torch.rand(5, 2, 9, 9, dtype=torch.float64))  # PyTorch's own word for wrong channels
    assert len(fused) == 1


def test_transforms_of_functions_and_tracers_see_the_plain_layers(fused):
    model, plain = network("deep")
    images = torch.rand(4, 1, 9, 9, dtype=torch.float64)

    def slope(net):
        return torch.func.vmap(torch.func.grad(lambda image: net(image[None])[0, 1]))(images)

    torch.testing.assert_close(slope(model), slope(plain))
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), plain(images))
    assert not fused


@pytest.mark.parametrize("name", NETWORKS)
def test_autocast_rounds_the_convolutions_alone(name, fused):
    model, plain = network(name, 3, torch.float32)
    images = torch.rand(16, 3, 16, 16)
    exact = plain(images)
    with torch.autocast("cpu", torch.bfloat16):
        found, rounded = model(images), plain(images)
    assert found.dtype == torch.float32
    assert len(fused) == 1
    assert (found - exact).abs().max() <= (rounded.float() - exact).abs().max()
    if name == "small":
        assert torch.equal(found, model(images))  # a lone convolution gains nothing and is left alone
    else:
        assert not torch.equal(found, model(images))
