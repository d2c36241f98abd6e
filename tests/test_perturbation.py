"""Occlusion, LIME and superpixels against captum, scikit-learn, plain loops and planted answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from photographs import crops
from torch import Tensor, nn

from epochlens.attribute import gradients, locality
from epochlens.attribute.perturbation import lime, lime_maps, lime_surrogate, occlusion, superpixel_delta
from epochlens.attribute.superpixels import (
    paint,
    positive_regions,
    random_masks,
    superpixel_weights,
    superpixels,
)
from epochlens.errors import UsageError

torch.set_num_threads(1)
CLASSES = 4


def batch(
    n: int = 4, channels: int = 2, height: int = 9, width: int = 7, seed: int = 1
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, channels, height, width, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, CLASSES, (n,), generator=generator)


def network(height: int = 9, width: int = 7, channels: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * (height - 2) * (width - 2), CLASSES)
    ).double()


def pooled(*front: nn.Module, features: int) -> nn.Sequential:
    return nn.Sequential(*front, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, CLASSES))


class Wrapped(nn.Module):
    """The same function with a structure that cannot be seen."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Fused(nn.Sequential):
    """The same function, computed in a way of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flip(0)).flip(0)


class Brightened(nn.Sequential):
    """Another function of the same layers."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input + input.mean((1, 2, 3), keepdim=True))


class Clamped(nn.Sequential):
    """Another function outside [0,1] alone."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.clamp(0, 1))


class Centred(nn.ReLU):
    """Not a function of single values, though it is a ReLU."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input - input.mean((2, 3), keepdim=True))


def target_logits(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).gather(1, targets[:, None])[:, 0]


def assert_near(found: Tensor, expected: Tensor, share: float) -> None:
    """Equal up to that share of the largest value: captum rounds its results to float32."""
    expected = expected.to(found)
    assert expected.abs().max() > 0
    assert (found - expected).abs().max() <= share * expected.abs().max()


def captum_occlusion(
    model: nn.Module, images: Tensor, targets: Tensor, patch: int, stride: int, value: float = 0.0
) -> Tensor:
    captum = pytest.importorskip("captum.attr")
    channels = images.shape[1]
    window, strides = (channels, patch, patch), (channels, stride, stride)
    with torch.no_grad():
        return captum.Occlusion(model).attribute(
            images, window, strides=strides, target=targets, baselines=value
        )


@pytest.mark.parametrize(("patch", "stride"), [(1, 1), (2, 2), (3, 2), (4, 3), (4, 4), (5, 1), (7, 5)])
@pytest.mark.parametrize("value", [0.0, -0.7])
def test_occlusion_equals_captum(patch, stride, value):
    model, (random, targets) = network(), batch()
    for images in (random, crops(len(random), random.shape[1], 9)[..., : random.shape[3]]):
        found = occlusion(model, images, targets, patch=patch, stride=stride, value=value)
        assert_near(found, captum_occlusion(model, images, targets, patch, stride, value), 1e-6)


def test_occlusion_pixel_by_pixel_is_the_product_on_a_linear_model():
    images, targets = batch()
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 9 * 7, CLASSES)).double()
    maps = occlusion(model, images, targets, patch=1, stride=1)
    weights = model.get_parameter("1.weight").detach()[targets].view_as(images)
    torch.testing.assert_close(maps, (weights * images).sum(1, keepdim=True).expand_as(images))


sizes = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def local_networks(draw: st.DrawFn) -> nn.Sequential:
    """Convolutions of any shape with functions of single values between them, in float64."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    layers: list[nn.Module] = []
    channels = 2
    for _ in range(draw(st.integers(0, 3))):
        outputs = draw(st.sampled_from([2, 4]))
        layers.append(
            nn.Conv2d(
                channels,
                outputs,
                draw(sizes),
                stride=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
                padding=(draw(st.integers(0, 2)), draw(st.integers(0, 2))),
                dilation=draw(st.integers(1, 2)),
                groups=draw(st.sampled_from([1, 2])),
                bias=draw(st.booleans()),
            )
        )
        norm = nn.BatchNorm2d(outputs)
        norm.running_mean, norm.running_var = torch.randn(outputs), torch.rand(outputs) + 0.5
        choices = [nn.ReLU(), nn.LeakyReLU(0.1), norm, nn.Dropout(0.5), nn.Identity()]
        layers += draw(st.lists(st.sampled_from(choices), max_size=2))
        layers = [nn.Sequential(*layers)] if draw(st.booleans()) else layers
        channels = outputs
    return pooled(*layers, nn.LeakyReLU(0.3), features=channels).double().eval()


def fits(model: nn.Sequential, images: Tensor) -> bool:
    try:
        model(images)
    except RuntimeError:  # a kernel larger than what it is given
        return False
    return True


@settings(max_examples=150, deadline=None)
@given(local_networks(), st.integers(13, 18), st.integers(13, 18), st.integers(1, 5), st.data())
def test_recomputing_what_the_patch_reaches_equals_recomputing_all(model, height, width, patch, data):
    stride, value = data.draw(st.integers(1, patch)), data.draw(st.sampled_from([0.0, 0.6]))
    images, targets = batch(2, 2, height, width)
    assume(fits(model, images))
    options = {"patch": patch, "stride": stride, "value": value}
    whole = occlusion(Wrapped(model), images, targets, **options)
    assert locality.local_network(Wrapped(model)) is None
    torch.testing.assert_close(occlusion(model, images, targets, **options), whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 0), (3, 1, 1), (4, 2, 1), (2, 3, 0)])
def test_only_crops_run_through_a_local_network(kernel, stride, padding, monkeypatch):
    model = pooled(nn.Conv2d(2, 5, kernel, stride, padding), nn.ReLU(), features=5).double().eval()
    images, targets = batch(3, 2, 17, 15)
    seen = []
    convolve = locality.functional.conv2d
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda x, *a: seen.append(x.shape) or convolve(x, *a))
    maps = occlusion(model, images, targets, patch=3, stride=2, value=0.3)
    pixels = sum(shape[0] * shape[2] * shape[3] for shape in seen)
    windows = 8 * 7
    assert pixels <= 3 * (17 * 15 + windows * (3 + 2 * kernel + stride) ** 2)
    assert pixels < 3 * windows * 17 * 15 / 2
    assert_near(maps, captum_occlusion(model, images, targets, 3, 2, 0.3), 1e-6)


@pytest.mark.parametrize(
    "front",
    [
        (nn.Conv2d(2, 5, 3, padding=1, padding_mode="circular"), nn.ReLU()),
        (nn.Conv2d(2, 5, 4, padding="same"), nn.ReLU()),
        (nn.Conv2d(2, 5, 3), Centred()),
        (nn.Conv2d(2, 5, 3), nn.MaxPool2d(2)),
        (nn.Conv2d(2, 5, 3), nn.GroupNorm(1, 5)),
    ],
    ids=lambda front: type(front[1]).__name__,
)
def test_other_structures_are_recomputed_whole(front):
    model = pooled(*front, features=5).double().eval()
    images, targets = batch(1, 2, 12, 13)
    found = occlusion(model, images, targets, patch=3, stride=3)
    assert_near(found, captum_occlusion(model, images, targets, 3, 3), 1e-6)


@pytest.mark.parametrize("kind", [Fused, Brightened, Clamped])
def test_a_sequence_with_a_forward_of_its_own_is_local_only_where_its_layers_say_the_same(kind):
    model = kind(*pooled(nn.Conv2d(2, 5, 3), nn.ReLU(), features=5).double().eval())
    images, targets = batch(3, 2, 12, 13)
    found = occlusion(model, images, targets, value=-0.5)
    assert_near(found, captum_occlusion(model, images, targets, 4, 2, -0.5), 1e-6)
    starts = [torch.arange(0, 9), torch.arange(0, 10)]
    with torch.no_grad():
        drops = locality.local_drops(model, images, targets, starts, 4, -0.5)
    assert (drops is not None) == (kind is Fused)


def test_hooks_see_whole_images_and_what_they_change_counts():
    model = pooled(nn.Conv2d(2, 5, 3), nn.ReLU(), features=5).double().eval()
    images, targets = batch(2, 2, 12, 13)
    plain = occlusion(model, images, targets)
    model[0].register_forward_hook(lambda module, inputs, output: output - output.mean((2, 3), keepdim=True))
    found = occlusion(model, images, targets)
    assert_near(found, captum_occlusion(model, images, targets, 4, 2), 1e-6)
    assert not torch.allclose(found, plain)


def test_a_layer_whose_forward_was_replaced_is_not_taken_for_local(monkeypatch):
    model = pooled(nn.Conv2d(2, 5, 3), nn.ReLU(), features=5)
    assert locality.local_network(model) is not None
    monkeypatch.setattr(model[1], "forward", torch.tanh)
    assert locality.local_network(model) is None


def test_layers_that_look_at_the_batch_or_at_chance_are_not_taken_for_local():
    for layer in (nn.BatchNorm2d(5), nn.Dropout(0.5), nn.Dropout2d(0.5)):
        model = pooled(nn.Conv2d(2, 5, 3), layer, features=5)
        assert locality.local_network(model.train()) is None
        assert locality.local_network(model.eval()) is not None
    norm = nn.BatchNorm2d(5, track_running_stats=False)
    assert locality.local_network(pooled(nn.Conv2d(2, 5, 3), norm, features=5).eval()) is None


@pytest.mark.parametrize("options", [{"patch": 8}, {"patch": 0}, {"patch": 2, "stride": 3}, {"stride": 0}])
def test_squares_that_cannot_cover_the_image_are_refused(options):
    model, (images, targets) = network(), batch()
    with pytest.raises(UsageError, match=f"occlusion:{list(options)[-1]}"):
        occlusion(model, images, targets, **options)


@pytest.mark.parametrize("method", [occlusion, lime, superpixel_delta])
def test_rows_of_features_are_refused(method):
    with pytest.raises(UsageError, match=f"{method.__name__}.*N,C,H,W"):
        method(nn.Linear(3, CLASSES), torch.rand(2, 3), torch.tensor([0, 1]))


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("side", [8, 15, 16, 33])
def test_superpixels_are_numbered_without_gaps_and_connected(channels, side):
    from scipy import ndimage

    for segments in (2, 9, 25):
        for labels in superpixels(crops(3, channels, side), segments=segments):
            found = labels.unique()
            assert torch.equal(found, torch.arange(len(found)))
            assert segments / 2 <= len(found) <= 2 * segments
            room = np.empty((side, side), np.int32)
            pieces = [ndimage.label((labels == k).numpy(), output=room) for k in found]
            assert pieces == [1] * len(found)


@pytest.mark.parametrize("channels", [1, 3])
def test_superpixels_keep_to_the_edges_of_an_image(channels):
    image = torch.full((1, channels, 32, 32), 0.2)
    image[..., 13:] = 0.7
    labels = superpixels(image, segments=16)[0]
    assert not set(labels[:, :13].unique().tolist()) & set(labels[:, 13:].unique().tolist())


@pytest.mark.parametrize(("side", "regions"), [(12, 5), (24, 1)])
def test_a_small_image_and_one_that_slic_leaves_whole_get_a_grid_of_equal_cells(side, regions, monkeypatch):
    slic = np.arange(side * side).reshape(side, side) % regions
    monkeypatch.setattr("skimage.segmentation.slic", lambda *given, **options: slic)
    labels = superpixels(torch.rand(1, 3, side, side), segments=9)[0]
    blocks = torch.arange(9).view(3, 3).repeat_interleave(side // 3, 0).repeat_interleave(side // 3, 1)
    assert torch.equal(labels, blocks)


def test_gaps_in_slic_s_numbers_are_closed(monkeypatch):
    found = np.array([2, 5, 9]).repeat(8)[:, None].repeat(24, axis=1)
    monkeypatch.setattr("skimage.segmentation.slic", lambda *given, **options: found)
    labels = superpixels(torch.rand(1, 3, 24, 24), segments=9)[0]
    assert torch.equal(labels, torch.arange(3).repeat_interleave(8)[:, None].expand(24, 24))


def test_the_grid_of_an_oblong_image_has_about_square_cells_of_about_equal_size():
    labels = superpixels(torch.rand(1, 1, 10, 31), segments=12)[0]
    cells = [(labels == k).nonzero() for k in labels.unique()]
    heights, widths = ({len(cell[:, axis].unique()) for cell in cells} for axis in (0, 1))
    assert (heights, widths, len(cells)) == ({5}, {5, 6}, 12)


def test_less_than_one_superpixel_is_refused():
    with pytest.raises(UsageError, match="segments"):
        superpixels(crops(1, 3, 24), segments=0)


def test_superpixels_depend_on_their_own_image_alone():
    images, order = crops(4, 3, 24), torch.tensor([2, 0, 3, 1])
    labels = superpixels(images, segments=12)
    assert torch.equal(superpixels(images[order], segments=12), labels[order])
    kept = labels.clone()
    labels.zero_()
    assert torch.equal(superpixels(images, segments=12), kept)
    assert not torch.equal(superpixels(images, segments=25), kept)


def surrogate_problem(seed: int, samples: int = 60, features: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, 2, (samples, features), generator=generator).double()
    values = (masks @ torch.randn(features, generator=generator).double()).tanh() + 3
    return masks, values, torch.rand(samples, generator=generator).double()


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 1.0, 50.0])
def test_surrogate_equals_scikit_learn_for_each_problem_of_a_batch(ridge):
    from sklearn.linear_model import Ridge

    problems = [surrogate_problem(seed) for seed in range(3)]
    masks, values, weights = (torch.stack(part) for part in zip(*problems, strict=True))
    found, intercepts = lime_surrogate(masks, values, weights, ridge)
    for i in range(3):
        peer = Ridge(alpha=ridge).fit(masks[i].numpy(), values[i].numpy(), sample_weight=weights[i].numpy())
        torch.testing.assert_close(found[i], torch.as_tensor(peer.coef_), rtol=1e-6, atol=1e-12)
        assert intercepts[i].item() == pytest.approx(peer.intercept_, rel=1e-6)


def test_surrogate_without_penalty_shares_an_effect_between_superpixels_hidden_together():
    masks, _, weights = surrogate_problem(0)
    masks[:, 1] = masks[:, 0]
    found, intercept = lime_surrogate(masks, 4 * masks[:, 0] - masks[:, 2] + 0.5, weights, 0.0)
    expected = torch.tensor([2, 2, -1, 0, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert intercept.item() == pytest.approx(0.5)


@pytest.mark.parametrize("width", [0.1, 0.25, 2.0])
def test_lime_recovers_a_model_that_is_linear_in_the_superpixels(width):
    images, (_, targets) = crops(3, 3, 24), batch(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), CLASSES)).double()
    maps = lime(model, images, targets, samples=300, segments=9, width=width, ridge=1e-9)
    products = (model.get_parameter("1.weight").detach()[targets].view_as(images) * images).sum(1)
    for own, labels, product in zip(maps, superpixels(images, segments=9), products, strict=True):
        for k in labels.unique():
            planted = product[labels == k].sum()
            torch.testing.assert_close(
                own[:, labels == k], planted.expand(3, int((labels == k).sum())), rtol=1e-6, atol=1e-6
            )


def test_lime_equals_captum_for_the_same_masks_and_kernel():
    captum = pytest.importorskip("captum.attr")
    from captum._utils.models.linear_model import SkLearnRidge

    images, (_, targets), width, ridge = crops(3, 3, 24), batch(3), 0.3, 0.8
    model = network(24, 24, 3)
    labels = superpixels(images, segments=9)
    masks = random_masks(labels, samples=80)
    found = lime_maps(model, images, targets, labels, masks, width=width, ridge=ridge)

    def kernel(original: Tensor, perturbed: Tensor, kept: Tensor, **others: object) -> float:
        cosine = torch.cosine_similarity(kept.double(), torch.ones_like(kept).double()).item()
        return math.exp(-((1 - cosine) ** 2) / (2 * width**2))

    for i in range(len(images)):
        count = int(labels[i].max()) + 1

        def given_masks(original: Tensor, i: int = i, count: int = count, **others: object):
            yield from masks[i, :, None, :count].float()

        peer = captum.Lime(model, SkLearnRidge(alpha=ridge), kernel, given_masks)
        expected = peer.attribute(
            images[i : i + 1], target=int(targets[i]), feature_mask=labels[i][None, None], n_samples=80
        )
        assert_near(found[i], expected[0], 1e-6)


def test_random_masks_are_fair_coins_for_each_image_s_own_superpixels():
    labels = torch.stack([torch.arange(16).view(4, 4) // 4, torch.arange(16).view(4, 4)])
    masks = random_masks(labels, samples=4000, generator=torch.Generator().manual_seed(3))
    for mask, count in zip(masks, (4, 16), strict=True):
        assert mask[0, :count].all()
        assert not mask[:, count:].any()
        shares = mask[1:, :count].double().mean(0)
        together = mask[1:, :count].double().T.cov()
        assert (shares - 0.5).abs().max() < 5 * 0.5 / 4000**0.5
        assert (together - 0.25 * torch.eye(count)).abs().max() < 5 * 0.25 / 4000**0.5


def test_lime_is_a_function_of_its_generator_and_leaves_the_global_stream_alone():
    images, (_, targets), model = crops(3, 3, 24), batch(3), network(24, 24, 3)
    before = torch.get_rng_state()
    seeded = [
        lime(model, images, targets, samples=30, generator=torch.Generator().manual_seed(s))
        for s in (0, 0, 1)
    ]
    assert torch.equal(seeded[0], seeded[1])
    assert torch.equal(seeded[0], lime(model, images, targets, samples=30))
    assert not torch.equal(seeded[0], seeded[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_lime_of_an_image_does_not_depend_on_its_companions():
    images, (_, targets), model = crops(3, 3, 24), batch(3), network(24, 24, 3)
    labels = superpixels(images, segments=9)
    labels[1] = superpixels(images, segments=25)[1]
    counts = labels.flatten(1).amax(1) + 1
    assert len(counts.unique()) > 1
    masks, order = random_masks(labels, samples=50), torch.tensor([2, 0, 1])
    maps = lime_maps(model, images, targets, labels, masks)
    permuted = lime_maps(model, images[order], targets[order], labels[order], masks[order])
    torch.testing.assert_close(permuted, maps[order], rtol=1e-10, atol=1e-12)
    for i in range(3):
        own = slice(i, i + 1)
        alone = lime_maps(model, images[own], targets[own], labels[own], masks[own, :, : int(counts[i])])
        torch.testing.assert_close(alone, maps[own], rtol=1e-10, atol=1e-12)


def test_lime_without_a_width_is_refused():
    with pytest.raises(UsageError, match="lime:width"):
        lime(network(24, 24, 3), crops(3, 3, 24), torch.tensor([0, 1, 2]), width=0.0)


def test_superpixel_delta_equals_a_plain_loop_and_captum():
    captum = pytest.importorskip("captum.attr")
    images, (_, targets), model = crops(3, 3, 24), batch(3), network(24, 24, 3)
    images[1] = 0.4
    labels = superpixels(images, segments=9)
    found = superpixel_delta(model, images, targets, segments=9)
    expected = torch.zeros_like(images)
    for i in range(3):
        own, target = images[i : i + 1], targets[i : i + 1]
        for k in labels[i].unique():
            dark = target_logits(model, torch.where(labels[i] == k, 0.0, own), target)
            expected[i, :, labels[i] == k] = target_logits(model, own, target) - dark
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        peer = captum.FeatureAblation(model).attribute(images, target=targets, feature_mask=labels[:, None])
    assert_near(found, peer, 1e-6)


@pytest.mark.parametrize("method", [occlusion, lime, superpixel_delta])
@pytest.mark.parametrize("local", [False, True])
def test_batches_change_nothing_and_the_model_is_left_alone(method, local, monkeypatch):
    images, (_, targets) = crops(3, 3, 24), batch(3)
    model = pooled(nn.Conv2d(3, 6, 3), nn.ReLU(), features=6).double() if local else network(24, 24, 3)
    maps = method(model, images, targets)
    assert (maps.shape, maps.dtype, maps.requires_grad) == (images.shape, images.dtype, False)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    monkeypatch.setattr(gradients, "CPU_PIXELS", 1)
    torch.testing.assert_close(method(model, images, targets), maps, rtol=1e-9, atol=1e-12)
    single = method(model.float(), images.float(), targets)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), maps, rtol=1e-3, atol=1e-4 * maps.abs().max().item())


def test_weights_of_a_painted_map_are_those_painted():
    images = crops(3, 3, 24)
    labels = superpixels(images, segments=9)
    weights = torch.randn(3, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for painted, own, weight in zip(paint(weights, labels, images), labels, weights, strict=True):
        found = superpixel_weights(painted, own)
        torch.testing.assert_close(found, weight[: len(found)])


@pytest.mark.parametrize("top", [1, 3, 99])
def test_positive_regions_are_the_superpixels_of_largest_positive_mean(top):
    labels = superpixels(crops(1, 3, 24), segments=16)[0]
    attribution = torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(2))
    means = {int(k): attribution[:, labels == k].mean().item() for k in labels.unique()}
    positive = sorted((k for k in means if means[k] > 0), key=lambda k: -means[k])
    chosen = set(positive[:top])
    expected = torch.tensor([[int(k) in chosen for k in row] for row in labels])
    assert torch.equal(positive_regions(attribution, labels, top), expected)
    assert 0 < len(positive) < len(means)
