"""Costs: counts against formulas by hand, against the real calls, against PyTorch's own counter."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.patches import Rectangle
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from epochlens.attribute import cost, machine
from epochlens.attribute.methods import METHODS, attribute, borrowed
from epochlens.attribute.tally import Tally
from epochlens.errors import UsageError
from epochlens.learn import meta, models
from epochlens.show import cost as chart
from epochlens.sweep import cost_command

torch.set_num_threads(1)
SHAPE, IMAGES = (1, 8, 8), 4
PUBLISHED = {
    "resnet18": 1.81,
    "resnet50": 4.09,
    "vgg16": 15.47,
    "mobilenet_v2": 0.30,
    "efficientnet_b0": 0.39,
}
"""10^9 multiply-accumulates of a 224x224 image, as the papers and torchvision's pages have them"""


def on_meta(name: str, shape: tuple[int, int, int] = SHAPE, classes: int = 10) -> nn.Module:
    return meta.build_meta(name, shape, classes)


def real(name: str, shape: tuple[int, int, int] = SHAPE, images: int = IMAGES) -> tuple:
    torch.manual_seed(0)
    model = models.build(models.model_factory(name), shape, 10).eval()
    return model, torch.rand(images, *shape), torch.arange(images)


def tally_of_call(model: nn.Module, images: torch.Tensor, targets: torch.Tensor, method: str) -> Tally:
    with Tally() as tally:
        attribute(model, images, targets, method)
    return tally


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), st.integers(0, 1),
    st.integers(5, 9), st.integers(5, 9), st.integers(1, 2),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_layers_cost_what_their_formulas_say(inward, outward, kernel, stride, padding, height, width, groups):
    inward, outward = inward * groups, outward * groups
    with torch.device("meta"):
        conv = nn.Conv2d(inward, outward, kernel, stride, padding, groups=groups)
        rows, columns = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
        linear = nn.Linear(outward * rows * columns, 7)
        model = nn.Sequential(conv, nn.Tanh(), nn.Flatten(), linear)
    weights_of_an_output = inward // groups * kernel**2
    products = outward * rows * columns * weights_of_an_output + outward * rows * columns * 7
    shape = inward, height, width
    assert cost.step_tally(model, shape, "forward", 3).flops == 3 * 2 * products
    # Backward, each weight of a layer meets the slope of each output that it had a part in, once.
    assert cost.step_tally(model, shape, "saliency", 3).flops == 3 * 2 * 2 * products


def test_gradcam_goes_back_no_further_than_its_layer():
    with torch.device("meta"):
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)
        )
    forward, head, weighing = 2 * (4 * 36 * 9 + 16 * 5), 2 * 16 * 5, 2 * 4 * 36
    # Once for up to two images of a call: the pass that finds the layer.
    expected = forward + head + weighing + 2 * forward / IMAGES
    assert cost.method_flops(model, SHAPE, "gradcam", IMAGES) == expected


@pytest.mark.parametrize("name", ["deep", "lenet"])
def test_repetitions_cost_as_much_as_that_many_gradients(name):
    model = on_meta(name)
    gradient, sums = cost.method_flops(model, SHAPE, "saliency"), math.prod(SHAPE)
    for steps in (1, 2, 9):
        found = cost.method_flops(model, SHAPE, f"integrated_gradients:steps={steps}")
        assert 0 <= found - steps * gradient <= 2 * steps * sums
        assert cost.method_flops(model, SHAPE, f"gradient_shap:samples={steps}") == steps * gradient
        assert cost.method_flops(model, SHAPE, f"smoothgrad:samples={steps}") == steps * gradient


@pytest.mark.parametrize("name", list(models.MODELS))
def test_counts_are_those_of_real_calls(name):
    """The built-in networks run fused operations here, plain layers on the meta device."""
    model, images, targets = real(name)
    for method in [*METHODS, "smoothgrad:base=gradcam,samples=3", "occlusion:patch=2,stride=1"]:
        if method == "cam" and not models.MODELS[name].pooled:
            continue
        found = cost.method_flops(on_meta(name), SHAPE, method, IMAGES) * IMAGES
        if method == "lime":  # its regressions: 200 samples, 16 superpixels, Gram matrix and right side
            found += IMAGES * (2 * 200 * 16 * 16 + 2 * 200 * 16 + 2 * 16 * 16)
        counted = tally_of_call(model, images, targets, method).flops
        assert found == pytest.approx(counted, rel=1e-12), method


@pytest.mark.parametrize("method", ["occlusion", "superpixel_delta", "lime"])
def test_compositions_say_how_often_an_image_goes_through_the_network(method):
    model, images, targets = real("lenet")
    outer = Wrapped(model)  # no Sequential: nothing can be recomputed in part
    attribute(outer, images, targets, method)
    options = cost.default_options(method)
    passes = cost.forward_passes(outer, SHAPE, method, options)
    assert passes is not None and outer.seen == passes * IMAGES


class Wrapped(nn.Module):
    """Counts the images that it is asked about."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return self.inner(x)


class Attending(nn.Module):
    """A network with products of other kinds than convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 2, stride=2)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.conv(x).flatten(2).mT
        return self.head(self.layer(tokens).mean(1))


def test_pytorchs_own_counter_agrees():
    """It cannot differentiate by a leaf, so it is given a copy."""
    model = Attending().to("meta").eval().requires_grad_(False)
    images = torch.empty(IMAGES, *SHAPE, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        x = images.clone()
        torch.autograd.grad(model(x)[:, 0].sum(), x)
    tally = cost.step_tally(model, SHAPE, "saliency", IMAGES)
    assert tally.flops == counter.get_total_flops() > 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_totals_of_known_networks(name):
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        pytest.skip(f"torchvision does not import: {error}")
    shape = 3, 224, 224
    model = on_meta(f"torchvision:{name}", shape, 1000)
    found = cost.step_tally(model, shape, "forward", 2).flops / 2
    assert found / 2e9 == pytest.approx(PUBLISHED[name], rel=0.02)


def test_networks_of_torchvision_go_by_their_bare_names(tmp_path):
    asked = cost_command.ask({"model": ["deep", "resnet18"], "output": str(tmp_path / "out")})
    assert asked.models == ("deep", "torchvision:resnet18")
    with pytest.raises(UsageError, match=r"resnet19.*did you mean 'resnet18'"):
        cost_command.ask({"model": ["resnet19"]})


def test_memory_of_a_forward_pass_by_hand():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(5 * 36, 7))
    activations = 3 * 5 * 36 * 4
    tally = cost.step_tally(model, SHAPE, "forward", 3)
    assert tally.peak_bytes == 2 * activations  # input and output of tanh
    assert tally.bytes == 0


def test_tallied_memory_is_that_of_what_is_still_there():
    with Tally() as tally:
        kept = torch.rand(1000)
        view = (kept[10:] + 1)[5:].view(-1)
        assert tally.bytes == kept.nbytes + view.untyped_storage().nbytes()
        before = tally.bytes
        del view
        assert tally.bytes == before - 990 * 4
        kept.add_(1)
        assert tally.bytes == kept.nbytes
    assert tally.peak_bytes >= before


@pytest.mark.parametrize("name", ["deep", "lenet", "gapnet"])
@pytest.mark.parametrize("images", [3, 20])
def test_memory_is_about_what_a_real_call_holds(name, images):
    """Twenty images of 32x32 are two micro-batches. Exact where a call is one step on one micro-batch."""
    shape = 3, 32, 32
    model, x, targets = real(name, shape, images)
    meta = on_meta(name, shape)
    for method in [*METHODS, "smoothgrad:base=gradcam,samples=2", "integrated_gradients:steps=3"]:
        if method == "cam" and not models.MODELS[name].pooled:
            continue
        method = f"{method}:samples=30" if method in ("lime", "gradient_shap") else method
        held = tally_of_call(model, x, targets % 10, method).peak_bytes
        expected = cost.peak_bytes(meta, shape, method, images)
        assert 0.6 < held / expected < 1.7, method
        if name == "lenet" and images == 3 and method in ("saliency", "gradcam", "gradcam_plus_plus", "edge"):
            assert held == pytest.approx(expected, rel=0.02), method


def test_copies_of_few_small_images_are_fewer_than_a_micro_batch():
    """Eight by eight pixels would go through by hundreds."""
    model, x, targets = real("gapnet", SHAPE, 3)
    for method in ("integrated_gradients:steps=4", "lime:samples=9,segments=4", "gradient_shap:samples=5"):
        held = tally_of_call(model, x, targets, method).peak_bytes
        assert 0.5 < held / cost.peak_bytes(on_meta("gapnet"), SHAPE, method, 3) < 1.7, method


def test_growth_of_the_process_is_that_of_a_large_array():
    def call() -> float:
        return float(np.ones(6_000_000).sum())

    np.ones(12_000_000).sum()  # what the process took once before does not count
    grown = machine.memory_growth(call)
    if grown is None:
        pytest.skip("this system does not tell")
    assert 0.95 * 48e6 < grown < 1.3 * 48e6


def test_nothing_is_changed_and_nothing_drawn():
    model = on_meta("deep")
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    stream, trainable = torch.get_rng_state(), [p.requires_grad for p in model.parameters()]
    for method in METHODS:
        cost.method_cost(model, SHAPE, method, IMAGES)
    on_meta("deep")
    assert torch.equal(stream, torch.get_rng_state())
    assert [p.requires_grad for p in model.parameters()] == trainable
    assert [dict(module._forward_hooks) for module in model.modules()] == hooks
    assert all(parameter.is_meta for parameter in model.parameters())


def test_methods_that_need_contents_are_refused():
    with pytest.raises(UsageError, match="KernelShap"):
        cost.method_flops(on_meta("small"), SHAPE, "captum:KernelShap")


def ask(folder, capsys, *arguments: str) -> dict:
    assert cost_command.cost([*arguments, "--json", "--output", str(folder)]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_counts_every_network_and_method(tmp_path, capsys):
    options = ["--model", "small", "lenet", "--size", "8", "12x9", "--channels", "1", "--classes", "3"]
    document = ask(tmp_path, capsys, *options, "--ig-steps", "4", "--samples", "6", "--images", "5")
    shapes = {tuple(network["shape"]) for network in document["networks"]}
    assert shapes == {(1, 8, 8), (1, 12, 9)}
    found = {(row["model"], row["size"], row["method"]): row["flops"] for row in document["rows"]}
    assert {key for key in found if key[2] == "cam"} == {("small", "8x8", "cam"), ("small", "12x9", "cam")}
    meta = on_meta("lenet", (1, 12, 9), 3)
    for method in ("integrated_gradients:steps=4", "lime:samples=6", "smoothgrad:samples=6", "saliency"):
        assert found["lenet", "12x9", method] == cost.method_flops(meta, (1, 12, 9), method, 5)
    assert all(Path(file).stat().st_size > 0 for file in document["files"])
    assert {file.rpartition(".")[2] for file in document["files"]} == {"png", "pdf"}


def test_what_is_named_wins_over_general_options():
    methods = cost_command.choose_methods(["lime:samples=3", "smoothgrad"], {"samples": 7, "ig_steps": 2})
    assert methods == ("lime:samples=3", "smoothgrad:samples=7")


def test_measured_beside_predicted(tmp_path, capsys):
    options = ["--model", "deep", "--size", "12", "--measure", "--images", "8"]
    document = ask(tmp_path, capsys, *options, "--methods", "saliency", "lime", "edge")
    rows = {row["method"]: row for row in document["rows"]}
    for row in rows.values():
        assert row["predicted_seconds"] == row["flops"] / document["peak_flops"]
        assert row["measured_images"] == 8 and row["expected_bytes"] == row["peak_bytes"]
    # No call is faster than matrix products alone, but for the noise of measuring those.
    assert all(row["measured_seconds"] > 0.5 * row["predicted_seconds"] for row in rows.values())
    times = [rows[name]["measured_seconds"] for name in ("edge", "saliency", "lime")]
    assert all(low < high for low, high in pairwise(times))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--size", "2"],
        ["--size", "8x"],
        ["--size", "0"],
        ["--size", "8", "8"],
        ["--model", "smal"],
        ["--model"],
        ["--classes", "1"],
        ["--images", "x"],
        ["--images", "1" * 5000],
        ["--size", "1" * 5000],
        ["--size", "8x8x8"],
        ["--channels", "9" * 300],
        ["--model", ".x:y"],
        ["--output", "x" * 300],
        ["--samples", "0"],
        ["--methods", "salience"],
        ["--methods", "cam", "--model", "lenet"],
        ["--methods", "occlusion:patch=9", "--size", "8", "--model", "lenet"],
        ["--model", "json:dumps"],
    ],
)
def test_mistakes_are_named_before_anything_is_written(arguments, tmp_path):
    with pytest.raises(UsageError):
        cost_command.cost(["--output", str(tmp_path / "out"), *arguments])
    assert not list(tmp_path.iterdir())


def test_the_largest_numbers_are_counted(tmp_path, capsys):
    numbers = ["--images=100000", "--channels=10000", "--size=10000", "--ig-steps=100000"]
    wanted = ["--model=small", "--methods=integrated_gradients", "--json", f"--output={tmp_path}"]
    assert cost_command.cost([*numbers, *wanted]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["flops"] > 2**64


def test_mistakes_are_found_without_torch():
    code = (
        "import sys\nfrom epochlens.errors import UsageError\nfrom epochlens.sweep.cost_command import cost\n"
        "try: cost(['--size', '8x'])\nexcept UsageError: pass\nelse: raise SystemExit(1)\n"
        "assert not {'torch', 'matplotlib', 'pandas', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def rows_of(networks: list[tuple[str, str]]) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {
            "network": f"{model} {size}",
            "size": size,
            "method": method,
            "flops": value,
            "peak_bytes": 2 * value,
        }
        for model, size in networks
        for method, value in zip(["saliency", "edge"], [10 ** rng.uniform(5, 9), 0.0], strict=True)
    ]


def test_bars_end_at_the_values_and_zero_is_written():
    rows = rows_of([("small", "8x8"), ("deep", "8x8")])
    axes = chart.costs(rows).axes
    for ax, column in zip(axes, ("flops", "peak_bytes"), strict=True):
        ends = sorted(bar.get_bbox().x1 for bar in ax.patches if isinstance(bar, Rectangle))
        assert ends == pytest.approx(sorted(row[column] for row in rows if row[column] > 0))
        texts = [text.get_text() for text in ax.texts]
        assert sum(text.split()[0] == "0" for text in texts if text) == 2
        assert ax.get_xscale() == "log"


def test_more_networks_than_colours_are_drawn_size_by_size():
    sizes = ["8x8", "9x9"]
    networks = [(f"m{n}", size) for n in range(8) for size in sizes]
    parts = chart.pages(rows_of(networks))
    assert all(len({row["network"] for row in part}) <= 6 for part in parts)
    assert all(len({row["size"] for row in part}) == 1 for part in parts)
    assert sorted(row["network"] for part in parts for row in part) == sorted(
        row["network"] for row in rows_of(networks)
    )
    few = rows_of(networks[:4])
    assert chart.pages(few) == [few]


@given(st.floats(1e-5, 1e17))
def test_numbers_with_prefixes_are_the_numbers(value):
    text, _, prefix = chart.si_text(value, "").partition(" ")
    size = next(size for size, name in chart.PREFIXES.items() if name == prefix)
    assert float(text) * size == pytest.approx(value, rel=0.0051)
    assert 0.99 <= float(text) < 1000.5 or value >= 999e15


def test_borrowed_models_are_counted_in_eval_mode():
    """Dropout and batch norm of a network under training do not change what is counted."""
    model = on_meta("lenet")
    evaluated = cost.method_flops(model, SHAPE, "saliency")
    assert cost.method_flops(model.train(), SHAPE, "saliency") == evaluated
    assert model.training
    with borrowed(model):
        assert cost.method_flops(model, SHAPE, "saliency") == evaluated


@given(st.sampled_from(["deep", "lenet"]), st.integers(1, 40), st.integers(1, 4))
@settings(max_examples=12, deadline=None)
def test_steps_and_samples_are_counted_as_if_each_were_done(name, number, images):
    """Only two and three of them are; a remembered count gives the same."""
    model = on_meta(name)
    for method, option in cost.REPEATED.items():
        label = cost.with_options(method, {option: number})
        done = cost.step_tally(model, SHAPE, label, images).flops / images
        assert cost.method_flops(model, SHAPE, label, images) == pytest.approx(done, rel=1e-12)
        asked = []

        def count(*what: Any, asked: list = asked) -> Tally:
            asked.append(what[2:])
            return cost.step_tally(*what)

        assert cost.method_cost(model, SHAPE, label, images, count) == cost.method_cost(
            model, SHAPE, label, images
        )
        assert all(f"={number}" not in step for step, _ in asked) or number <= 3


def test_all_methods_at_once_say_why_a_network_cannot_have_one():
    found = cost.costs(on_meta("lenet"), SHAPE, ["saliency", "cam"], 3)
    assert found["saliency"] == cost.method_cost(on_meta("lenet"), SHAPE, "saliency", 3)
    assert isinstance(found["cam"], UsageError) and "gradcam" in str(found["cam"])


def test_measuring_the_machine_leaves_threads_and_random_stream_alone():
    stream, threads = torch.get_rng_state(), torch.get_num_threads()
    assert 1e8 < machine.matmul_peak(0.05) < 1e14
    assert torch.equal(stream, torch.get_rng_state()) and torch.get_num_threads() == threads
    with pytest.raises(KeyError), machine.one_thread():
        raise KeyError
    assert torch.get_num_threads() == threads
