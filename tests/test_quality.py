"""Quality of maps: identities, explicit loops and a second opinion, on random non-linear float64 models."""

from __future__ import annotations

import random
import subprocess
import sys

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from epochlens.attribute import quality, reexplanation, removal
from epochlens.attribute.methods import attribute, named_generator
from epochlens.attribute.quality import QUALITY, VALUES, assess, evaluate
from epochlens.errors import UsageError
from epochlens.measure import similarity

torch.set_num_threads(1)
QUICK = [
    "faithfulness_correlation:runs=12",
    "relative_input_stability:samples=5",
    "sparseness",
    "deletion:steps=7",
    "insertion:steps=7",
    "randomisation",
]


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Conv2d(6, 5, 3), nn.GELU(), nn.Flatten(), nn.Linear(5 * 9, 4)
    ).to(dtype)


def batch(n: int = 5, dtype: torch.dtype = torch.float64, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 2, 7, 7, generator=generator, dtype=torch.float64).to(dtype)
    return images, torch.randint(0, 4, (n,), generator=generator)


def linear(weights: torch.Tensor) -> nn.Sequential:
    """The linear network with these weights, [K, D], on flattened images."""
    head = nn.Linear(weights.shape[1], weights.shape[0]).double()
    head.weight = nn.Parameter(weights)
    return nn.Sequential(nn.Flatten(), head)


def normal(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_faithfulness_of_input_x_gradient_is_one_on_a_linear_network():
    images, targets = batch()
    images[:, 0, 0, 0] = 0  # so that the darkest value is black
    model = linear(normal(4, 98))
    maps = attribute(model, images, targets, "input_x_gradient")
    for subset in (10, 30, 98):  # the last is too large for 98 features: a quarter of them
        found = evaluate(model, images, targets, maps, "faithfulness_correlation", subset=subset)
        torch.testing.assert_close(found, torch.ones_like(found), rtol=1e-9, atol=0)
    opposite = evaluate(model, images, targets, -maps, "faithfulness_correlation")
    torch.testing.assert_close(opposite, -torch.ones_like(opposite), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("subset", "size"), [(11, 11), (48, 48), (49, 24), (224, 24)])
def test_faithfulness_equals_a_loop_over_subsets(subset, size, monkeypatch):
    model, (images, targets), maps = network(), batch(3), normal(3, 2, 7, 7)
    drawn = []
    draw = removal.random_subsets
    monkeypatch.setattr(removal, "random_subsets", lambda *a: drawn.append(draw(*a)) or drawn[-1])
    options = {"runs": 9, "subset": subset, "generator": torch.Generator().manual_seed(8)}
    found = evaluate(model, images, targets, maps, "faithfulness_correlation", **options)
    assert drawn[0].shape == (27, size)
    for n in range(3):
        sums, losses = [], []
        for chosen in drawn[0].view(3, 9, size)[n].tolist():
            assert len(set(chosen)) == size
            dark = images[n].flatten().clone()
            dark[chosen] = images[n].min()
            with torch.no_grad():
                before, after = model(torch.stack([images[n], dark.view(2, 7, 7)]))[:, targets[n]]
            sums.append(maps[n].flatten()[chosen].sum().item())
            losses.append((before - after).item())
        assert found[n].item() == pytest.approx(np.corrcoef(sums, losses)[0, 1], rel=1e-9)


class Writer(torch.nn.Module):
    """Writes to its input where no version counter sees it."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        x.data.mul_(0.5)
        return self.network(torch.relu_(x))


class Splitting(torch.nn.Sequential):
    splits_batches = True


def test_blackened_images_that_are_kept_change_no_number(monkeypatch):
    def judged(model, images):
        generator = torch.Generator().manual_seed(8)
        return evaluate(model, images, targets, maps, "faithfulness_correlation", generator=generator)

    (images, targets), maps = batch(3), normal(3, 2, 7, 7)
    before = images.clone()
    for model in (network(), Writer(network())):
        removal._kept.clear()
        first = judged(model, images.clone())
        again, other = judged(model, images.clone()), judged(model, images + 1)
        with torch.inference_mode():
            assert torch.equal(first, judged(model, images + 0))
        assert torch.equal(first, again)
        monkeypatch.setattr(removal, "KEPT_BYTES", 0)
        removal._kept.clear()
        assert torch.equal(first, judged(model, images))
        assert torch.equal(other, judged(model, images + 1))
        assert not removal._kept
        assert torch.equal(first, judged(Splitting(model), images))  # larger batches
        assert torch.equal(images, before)
        monkeypatch.undo()


def test_random_subsets_are_uniform_and_depend_on_the_seed_alone():
    counts = torch.bincount(removal.random_subsets(3, 4000, 10, 4).flatten(), minlength=10)
    assert (counts - 1600).abs().max() < 5 * (4000 * 0.4 * 0.6) ** 0.5
    first = removal.random_subsets(3, 50, 10, 4).clone()
    removal.random_subsets.cache_clear()
    assert torch.equal(first, removal.random_subsets(3, 50, 10, 4))
    assert torch.equal(first[:20], removal.random_subsets(3, 20, 10, 4))
    assert not torch.equal(first, removal.random_subsets(4, 50, 10, 4))


def looped_stability(model, images, targets, method, samples, seed, low, high):
    """Ratios and whether the class is kept, [samples, N], image by image and norm by norm."""
    generator = torch.Generator().manual_seed(seed)
    ratios, kept = np.empty((samples, len(images))), np.empty((samples, len(images)), bool)
    for s in range(samples):
        uniform = torch.rand(images.shape, generator=generator, dtype=torch.float32).double()
        noise = low + (high - low) * uniform
        for n in range(len(images)):
            pair = torch.stack([images[n], images[n] + noise[n]])
            e, e_moved = attribute(model, pair, targets[n].repeat(2), method).numpy()
            x, x_moved = pair.numpy()
            with torch.no_grad():
                first, second = model(pair).argmax(1)
            top = (e - e_moved) / np.where(e == 0, 1e-6, e)
            bottom = (x - x_moved) / np.where(x == 0, 1e-6, x)
            ratios[s, n] = np.sqrt((top**2).sum()) / np.sqrt((bottom**2).sum())
            kept[s, n] = first == second
    return ratios, kept


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients:steps=4"])
def test_stability_equals_a_loop_with_and_without_changed_classes(method):
    model, (images, targets) = network(3), batch(6)
    images[0, :, 2:5] = 0  # zeros below the line
    maps = attribute(model, images, targets, method)
    options = {"samples": 11, "low": -0.3, "high": 0.6}
    ratios, kept = looped_stability(model, images, targets, method, seed=4, **options)
    assert 0 < kept.all(0).sum() < 6
    assert 0 < kept.mean() < 1
    expected = {
        "relative_input_stability": np.where(kept.all(0), ratios.max(0), np.nan),
        "relative_input_stability_kept": np.where(kept.any(0), np.where(kept, ratios, 0).max(0), np.nan),
        "relative_input_stability_valid": kept.mean(0),
    }
    for value, peer in expected.items():
        generator = torch.Generator().manual_seed(4)
        found = evaluate(model, images, targets, maps, value, method=method, generator=generator, **options)
        np.testing.assert_allclose(found.numpy(), peer, rtol=1e-8, err_msg=value)


def test_stability_is_one_where_maps_change_as_images_and_zero_where_they_do_not():
    weights = normal(3, 98)
    weights[0] = 50  # brighter images never leave class 0
    model, (images, targets) = linear(weights), batch()
    for method, expected in (("input_x_gradient", 1.0), ("saliency", 0.0)):
        maps = attribute(model, images, targets % 3, method)
        for value in ("relative_input_stability", "relative_input_stability_kept"):
            found = evaluate(model, images, targets % 3, maps, f"{value}:samples=7", method=method)
            torch.testing.assert_close(found, torch.full_like(found, expected), rtol=1e-9, atol=1e-9)


def test_stability_is_undefined_where_every_class_changes():
    jump = linear(torch.stack([torch.ones(98), torch.zeros(98)]).double())
    jump[1].bias = nn.Parameter(torch.tensor([-0.01, 0.0]).double())  # black alone is of class 1
    images = torch.zeros(2, 2, 7, 7, dtype=torch.float64)
    targets = torch.zeros(2, dtype=torch.long)
    found = assess(jump, images, targets, {"saliency": normal(2, 2, 7, 7)}, QUICK[1:2], seed=0).values
    assert found["saliency", "relative_input_stability"].isnan().all()
    assert found["saliency", "relative_input_stability_kept"].isnan().all()
    assert (found["saliency", "relative_input_stability_valid"] == 0).all()


def test_noise_lost_in_rounding_moves_nothing():
    model, (images, targets) = network(), batch()
    images = images + 1e20
    maps = attribute(model, images, targets, "saliency")
    found = evaluate(model, images, targets, maps, "relative_input_stability:samples=2")
    assert (found == 0).all()


def test_a_map_of_noisy_images_that_is_not_finite_voids_stability():
    model, (images, targets) = network(), batch()

    def explain(model, method, images, targets):
        maps = images.clone()
        maps[..., 3, 3] = torch.inf
        return maps

    options = ["relative_input_stability:samples=2,high=0.021"]
    found = assess(model, images, targets, {"mine": images}, options, seed=0, explain=explain).values
    assert (found["mine", "relative_input_stability_valid"] > 0).any()
    assert found["mine", "relative_input_stability_kept"].isnan().all()


def test_methods_with_draws_are_explained_draw_by_draw_and_others_as_if_they_were():
    model, (images, targets) = network(), batch(4)
    calls: dict[str, list[int]] = {"saliency": [], "smoothgrad": [], "mine": []}

    def explain(model, method, images, targets):
        calls[method].append(len(images))
        return attribute(model, images, targets, "saliency" if method == "mine" else method)

    maps = {method: explain(model, method, images, targets) for method in calls}
    found = assess(model, images, targets, maps, QUICK[1:2], seed=0, explain=explain).values
    assert calls["mine"] == calls["smoothgrad"] == [4] * 6
    assert len(calls["saliency"]) < 6
    assert sum(calls["saliency"]) == 4 * 6
    assert found["smoothgrad", "relative_input_stability_kept"].isfinite().any()
    torch.testing.assert_close(
        found["mine", "relative_input_stability_kept"],
        found["saliency", "relative_input_stability_kept"],
        rtol=1e-9,
        atol=0,
        equal_nan=True,
    )


def test_sparseness_of_one_value_and_of_equal_values():
    model, (images, targets) = network(), batch(3)
    maps = torch.zeros_like(images)
    maps[0, 1, 3, 3] = -5
    maps[1] = 2
    found = evaluate(model, images, targets, maps, "sparseness")
    assert found[0].item() == pytest.approx(1 - 1 / 98, rel=1e-4)
    assert abs(found[1].item()) < 1e-12
    assert found[2].isnan()


rows = arrays.arrays(
    np.float64,
    st.integers(2, 40),
    elements=st.floats(-1e3, 1e3, allow_subnormal=False).map(lambda v: round(v, 3)),
).filter(lambda row: bool(row.any()))


def sparseness(*maps: np.ndarray) -> np.ndarray:
    stacked = torch.from_numpy(np.stack(maps))
    targets = torch.zeros(len(maps), dtype=torch.long)
    return evaluate(nn.Identity(), torch.zeros_like(stacked), targets, stacked, "sparseness").numpy()


@settings(deadline=None, max_examples=60)
@given(row=rows, scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_sparseness_is_bounded_and_blind_to_scale_sign_and_order(row, scale, seed):
    (found,) = sparseness(row)
    assert -1e-12 <= found <= 1 - 1 / len(row)
    shuffled = np.random.default_rng(seed).permutation(row)
    for other in (row * scale, -row, shuffled):
        assert sparseness(other)[0] == pytest.approx(found, rel=1e-9, abs=1e-12)
    v = np.abs(row) / np.abs(row).max() + 1e-7
    differences = np.abs(v[:, None] - v).mean()  # the Gini index is half the relative mean difference
    assert found == pytest.approx(differences / (2 * v.mean()), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("steps", [2, 7, 10, 49, 80])
@pytest.mark.parametrize("kind", ["deletion", "insertion"])
def test_removal_curves_equal_a_loop_over_pixels(kind, steps):
    model, (images, targets) = network(), batch(4)
    maps = {"fine": normal(4, 2, 7, 7), "tied": normal(4, 2, 7, 7).round()}
    found = assess(model, images, targets, maps, [f"{kind}:steps={steps}"], seed=0)
    for method, own in maps.items():
        for n in range(4):
            importance = own[n].sum(0).flatten().tolist()
            order = sorted(range(49), key=lambda p: -importance[p])
            curve, fractions = [], []
            for step in range(steps + 1):
                first = order[: int(np.floor(step * 49 / steps + 0.5))]
                shown = (torch.zeros_like if kind == "insertion" else torch.clone)(images[n]).flatten(1)
                shown[:, first] = images[n].flatten(1)[:, first] if kind == "insertion" else 0.0
                with torch.no_grad():
                    curve.append(model(shown.view(1, 2, 7, 7)).softmax(1)[0, targets[n]].item())
                fractions.append(len(first) / 49)
            np.testing.assert_allclose(found.curves[method, kind][n], curve, rtol=1e-9)
            np.testing.assert_allclose(found.fractions, fractions, rtol=1e-12)
            assert found.values[method, kind][n].item() == pytest.approx(
                np.trapezoid(curve, fractions), rel=1e-9
            )


def test_inserting_in_one_order_is_deleting_in_the_other():
    model, (images, targets), maps = network(), batch(), normal(5, 2, 7, 7)
    orders = {"down": maps, "up": -maps}
    found = assess(model, images, targets, orders, ["deletion:steps=49", "insertion:steps=49"], seed=0)
    torch.testing.assert_close(found.curves["up", "insertion"], found.curves["down", "deletion"].flip(1))


def test_no_order_of_pixels_beats_their_contributions_on_a_linear_network():
    weights = torch.cat([normal(1, 98), torch.zeros(1, 98, dtype=torch.float64)])
    model, (images, _) = linear(weights), batch()
    targets = torch.zeros(5, dtype=torch.long)
    maps = {"best": images * weights[0].view(2, 7, 7)}
    maps |= {"worst": -maps["best"], "other": normal(5, 2, 7, 7)}
    found = assess(model, images, targets, maps, ["deletion", "insertion"], seed=0)
    for better, worse in (("best", "other"), ("other", "worst")):
        assert (found.curves[better, "insertion"] >= found.curves[worse, "insertion"] - 1e-12).all()
        assert (found.curves[better, "deletion"] <= found.curves[worse, "deletion"] + 1e-12).all()
        assert (found.values[better, "insertion"] > found.values[worse, "insertion"]).all()
        assert (found.values[better, "deletion"] < found.values[worse, "deletion"]).all()


def test_randomisation_compares_with_a_network_whose_head_alone_is_new():
    model, (images, targets) = network(), batch()
    maps = attribute(model, images, targets, "input_x_gradient")
    other = reexplanation.randomised(model, torch.Generator().manual_seed(6))
    assert other is not None
    old, new = model.state_dict(), other.state_dict()
    assert {name for name in old if not torch.equal(old[name], new[name])} == {"5.weight", "5.bias"}
    drawn = new["5.weight"] * 45**0.5  # uniform from -1 to 1
    assert 0.9 < drawn.abs().max() <= 1
    assert drawn.var().item() == pytest.approx(1 / 3, abs=0.1)
    theirs = attribute(other, images, targets, "input_x_gradient")
    for value, peer in (("cosine", similarity.cosine), ("spearman_abs", similarity.spearman_abs)):
        found = evaluate(
            model,
            images,
            targets,
            maps,
            f"randomisation_{value}",
            method="input_x_gradient",
            generator=torch.Generator().manual_seed(6),
        )
        np.testing.assert_allclose(found, peer(maps.flatten(1), theirs.flatten(1)), rtol=1e-9)
        assert found.abs().max() < 1


def test_maps_that_ignore_the_network_fail_randomisation():
    model, (images, targets) = network(), batch()

    def explain(model, method, images, targets):
        return images**2

    maps = {"blind": images**2, "opposite": -(images**2)}
    found = assess(model, images, targets, maps, ["randomisation"], seed=0, explain=explain).values
    for method, cosine in (("blind", 1.0), ("opposite", -1.0)):
        ones = torch.ones(5, dtype=torch.float64)
        torch.testing.assert_close(found[method, "randomisation_cosine"], cosine * ones)
        torch.testing.assert_close(found[method, "randomisation_spearman_abs"], ones)


def test_randomisation_is_undefined_without_a_linear_layer():
    model = nn.Sequential(nn.Conv2d(2, 4, 7), nn.Flatten()).double()
    images, targets = batch()
    found = assess(model, images, targets, {"saliency": images}, ["randomisation"], seed=0).values
    assert all(value.isnan().all() for value in found.values())


@pytest.mark.parametrize("label", QUICK)
def test_a_map_that_says_nothing_is_undefined_and_leaves_its_neighbours_alone(label):
    model, (images, targets) = network(), batch()
    maps = attribute(model, images, targets, "saliency")
    weakest = int(maps.abs().flatten(1).amax(1).argmin())  # so that the batch's largest value stays
    others = [n for n in range(5) if n != weakest]

    def measure(maps):
        return assess(model, images, targets, {"saliency": maps}, [label], seed=0)

    sound = measure(maps)
    for void in (torch.nan, torch.inf, 0.0, 1e-3):
        spoilt = maps.clone()
        spoilt[weakest] = void
        if not np.isfinite(void):  # one value is enough
            spoilt[weakest] = maps[weakest]
            spoilt[weakest, 1, 2, 3] = void
        found = measure(spoilt)
        for (_, value), scores in found.values.items():
            before = sound.values["saliency", value]
            torch.testing.assert_close(scores[others], before[others], equal_nan=True)
            if value.startswith("relative"):
                undefined = before.isnan()[weakest] | (not np.isfinite(void) and not value.endswith("valid"))
            else:
                undefined = void != 1e-3 or value not in ("sparseness", "randomisation_cosine")
            assert bool(scores[weakest].isnan()) == undefined, (value, void)
        for curve in found.curves.values():
            assert curve[weakest].isnan().all()
            assert curve[others].isfinite().all()


def test_an_image_whose_features_are_equal_has_no_faithfulness():
    torch.manual_seed(
        0
    )  # the outputs of this network for one image depend, in the last bit, on its neighbours
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 33), nn.Tanh(), nn.Linear(33, 7)).double()
    images, targets = normal(5, 1, 8, 8).abs(), torch.arange(5)
    images[1], images[3] = 0.3, 0.0
    found = evaluate(model, images, targets, normal(5, 1, 8, 8), "faithfulness_correlation")
    assert found.isnan().tolist() == [False, True, False, True, False]


def test_a_network_that_is_not_finite_voids_what_asks_it():
    model, (images, targets) = network(), batch()
    model[5].bias = nn.Parameter(torch.full((4,), torch.nan).double())
    found = assess(model, images, targets, {"saliency": normal(5, 2, 7, 7)}, QUICK, seed=0).values
    for (_, value), scores in found.items():
        if value == "relative_input_stability_valid":
            assert (scores == 0).all()
        elif VALUES[value].metric not in ("sparseness", "randomisation"):
            assert scores.isnan().all(), value


@pytest.mark.parametrize("label", [label for label in QUICK if "stability" not in label])
def test_positive_scale_changes_nothing(label):
    model, (images, targets) = network(), batch()
    maps = {"saliency": attribute(model, images, targets, "saliency")}
    scaled = {"saliency": maps["saliency"] * 4096.0}
    first, second = (assess(model, images, targets, own, [label], seed=0).values for own in (maps, scaled))
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=1e-9, atol=1e-12)


def test_assess_is_evaluate_for_every_method_and_repeats_itself():
    model, (images, targets) = network(), batch()
    methods = ["saliency", "integrated_gradients:steps=5", "smoothgrad:samples=3"]
    maps = {method: attribute(model, images, targets, method) for method in methods}
    found = assess(model, images, targets, maps, QUICK, seed=7)
    again = assess(model, images, targets, maps, QUICK, seed=7)
    other = assess(model, images, targets, maps, QUICK, seed=8)
    assert list(found.values) == list(again.values)
    assert found.fractions.tolist() == pytest.approx([np.floor(s * 7 + 0.5) / 49 for s in range(8)])
    assert {value for _, value in found.values} == set(quality.value_names(QUICK)) == set(VALUES)
    options = {label.partition(":")[0]: label.partition(":")[2] for label in QUICK}
    for (method, value), scores in found.values.items():
        name = VALUES[value].metric
        generator = named_generator(7, f"quality/{name}")
        label = f"{value}:{options[name]}"
        alone = evaluate(model, images, targets, maps[method], label, method=method, generator=generator)
        assert scores.dtype == torch.float64
        np.testing.assert_array_equal(alone.numpy(), scores.numpy(), err_msg=value)
        np.testing.assert_array_equal(again.values[method, value].numpy(), scores.numpy())
    drawn = "faithfulness_correlation", "relative_input_stability_kept", "randomisation_cosine"
    for value in drawn:
        key = "saliency", value
        assert not torch.equal(found.values[key], other.values[key])


def test_a_metric_s_name_gives_its_first_value_and_options_override():
    model, (images, targets) = network(), batch()
    maps = attribute(model, images, targets, "saliency")
    for name in QUALITY:
        first = quality.value_names([name])[0]
        tail = ":samples=3" if name == "relative_input_stability" else ""
        one, two = (evaluate(model, images, targets, maps, label + tail) for label in (name, first))
        np.testing.assert_array_equal(one.numpy(), two.numpy())
    few = evaluate(model, images, targets, maps, "deletion:steps=30", steps=3)
    assert torch.equal(few, evaluate(model, images, targets, maps, "deletion:steps=3"))
    assert not torch.equal(few, evaluate(model, images, targets, maps, "deletion:steps=30"))


def test_altered_images_are_looked_at_once_for_all_methods():
    model, (images, targets) = network(), batch()
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    totals = []
    for count in (1, 3):
        maps = {f"map {i}": normal(5, 2, 7, 7, seed=i) for i in range(count)}
        seen.clear()
        assess(model, images, targets, maps, ["faithfulness_correlation:runs=20"], seed=0)
        totals.append(sum(seen))
    assert totals == [5 + 5 * 20] * 2


@pytest.mark.parametrize(("method", "calls"), [("saliency", 1), ("integrated_gradients:steps=3", 4)])
def test_stability_asks_the_network_no_more_than_the_method_does(method, calls):
    images, targets = batch(4)
    model, samples = network(), 6
    maps = attribute(model, images, targets, method)
    asked = []
    model.register_forward_hook(lambda module, inputs, output: asked.append(len(inputs[0])))
    evaluate(model, images, targets, maps, "relative_input_stability", method=method, samples=samples)
    assert sum(asked) == len(images) * (1 + samples * calls)


def test_a_model_and_the_global_streams_stay_as_they_were():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(100, 4)
    ).double()
    images, targets = batch()
    model(images).sum().backward()
    model[0].requires_grad_(False)
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    modes = [module.training for module in model.modules()]
    streams = random.getstate(), repr(np.random.get_state()), torch.get_rng_state()
    maps = {m: attribute(model, images, targets, m) for m in ("saliency", "smoothgrad")}
    own = {method: own.clone() for method, own in maps.items()}
    assess(model, images, targets, maps, QUICK, seed=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, grad)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True, True, True]
    assert not any(module._forward_hooks for module in model.modules())
    assert random.getstate() == streams[0]
    assert repr(np.random.get_state()) == streams[1]
    assert torch.equal(torch.get_rng_state(), streams[2])
    assert all(torch.equal(maps[method], own[method]) for method in maps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_are_kept_and_agree_with_double_precision(dtype):
    tolerance = 1e-3 if dtype == torch.float32 else 0.3
    images, targets = batch(dtype=torch.bfloat16)
    model = network(dtype=torch.bfloat16)
    for label in QUICK:
        scores = []
        for kind in (dtype, torch.float64):
            maps = normal(5, 2, 7, 7).to(torch.bfloat16).to(kind)
            found = evaluate(model.to(kind), images.to(kind), targets, maps, label)
            assert found.dtype == kind
            scores.append(found.double())
        torch.testing.assert_close(*scores, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_rows_of_features_are_judged_like_images_of_one_channel():
    torch.manual_seed(0)
    rows = nn.Sequential(nn.Linear(30, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    x, targets = normal(6, 30).abs(), torch.arange(6) % 3
    maps = attribute(rows, x, targets, "saliency")
    flat = assess(rows, x, targets, {"saliency": maps}, QUICK, seed=0)
    image = assess(
        nn.Sequential(nn.Flatten(), *rows),
        x.view(6, 1, 5, 6),
        targets,
        {"saliency": maps.view(6, 1, 5, 6)},
        QUICK,
        seed=0,
    )
    for key, scores in flat.values.items():
        torch.testing.assert_close(scores, image.values[key], equal_nan=True)
        assert scores.isfinite().any()
    assert flat.curves["saliency", "deletion"].shape == (6, 8)


def test_labels_are_canonical_and_mistakes_name_the_choices():
    assert quality.metric_label("deletion:steps=20") == "deletion"
    spelt = quality.metric_label("relative_input_stability:high=0.3,samples=20")
    assert spelt == "relative_input_stability:samples=20,high=0.3"
    assert quality.metric_label({"name": "faithfulness_correlation", "runs": 7.0}).endswith(":runs=7")
    assert quality.parse_metric(spelt)[1] == {"samples": 20, "high": 0.3}
    assert [quality.metric_label(label) for label in quality.all_metrics()] == list(QUALITY)
    for wrong, told in [
        ("delition", "did you mean 'deletion'"),
        ("deletion:step=3", "steps"),
        ("deletion:steps", "not option=value"),
        ("deletion:steps=1", "at least 2"),
        ("deletion:steps=2.5", "not of type int"),
        ("faithfulness_correlation:runs=1", "at least 2"),
        ("relative_input_stability:low=0.5", "above low"),
        ("relative_input_stability:high=nan", "finite"),
        ("relative_input_stability:low=-inf", "finite"),
        ("sparseness:steps=3", "Choices: none"),
    ]:
        with pytest.raises(UsageError, match=told):
            quality.parse_metric(wrong)


def test_every_value_has_a_direction_a_reason_and_a_metric():
    assert [VALUES[v].metric for v in quality.value_names(["deletion", "sparseness"])] == [
        "deletion",
        "sparseness",
    ]
    assert {value.metric for value in VALUES.values()} == set(QUALITY)
    for name in VALUES:
        assert quality.better(name) in ("higher", "lower", None)
        assert quality.undefined_reason(name).endswith(".")
    for metric, about in QUALITY.items():
        assert quality.better(quality.value_names([metric])[0]) == about.better
    for ask in (quality.better, quality.undefined_reason):
        with pytest.raises(UsageError, match="randomisation_cosine"):
            ask("randomisation")


def test_metrics_that_would_write_the_same_values_are_refused():
    with pytest.raises(UsageError, match="the same values"):
        quality.value_names(["deletion", "deletion:steps=10"])
    with pytest.raises(UsageError, match="differs from deletion's, 20"):
        quality.value_names(["deletion", "insertion:steps=10"])
    assert quality.value_names(["deletion:steps=10", "insertion:steps=10"]) == ["deletion", "insertion"]


def test_wrong_shapes_and_names_are_refused():
    model, (images, targets) = network(), batch()
    with pytest.raises(UsageError, match=r"\(5, 1, 7, 7\)"):
        evaluate(model, images, targets, images[:, :1], "sparseness")
    with pytest.raises(UsageError, match="did you mean 'sparseness'"):
        evaluate(model, images, targets, images, "sparsness")
    with pytest.raises(UsageError, match="saliency"):
        evaluate(model, images, targets, images, "randomisation", method="salience")


def test_labels_are_read_without_heavy_modules():
    code = (
        "from epochlens.attribute import quality\n"
        "quality.metric_label('deletion:steps=10'); quality.value_names(quality.all_metrics())\n"
        "import sys; print(sorted({'torch', 'scipy', 'pandas', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
