"""The cost command: operations and memory of methods on networks, counted; on request measured beside."""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console

from epochlens import config
from epochlens.attribute import cost as counting
from epochlens.attribute import machine
from epochlens.attribute.methods import all_methods, attribute
from epochlens.errors import UsageError, unknown, whole_number
from epochlens.lazy import LazyModule
from epochlens.learn import meta, models, streams
from epochlens.sweep.bench import timing

if TYPE_CHECKING:
    import torch
    from torch import nn

    from epochlens.show import cost as chart
    from epochlens.show import style
    from epochlens.sweep import progress
else:
    torch = LazyModule("torch")
    chart = LazyModule("epochlens.show.cost")
    style, progress = LazyModule("epochlens.show.style"), LazyModule("epochlens.sweep.progress")

DONE, INTERRUPTED = 0, 130
PLAIN_WIDTH = 160
WIDEST = 10_000
"""pixels of an image's side"""
BOUNDS = {
    "channels": (1, 10_000),
    "classes": (2, 100_000),
    "images": (1, 100_000),
    "ig_steps": (1, 100_000),
    "samples": (1, 100_000),
}
"""the least and the most that a number can be"""
DEFAULTS: dict[str, Any] = {
    "model": ["small", "deep"],
    "size": ["32x32"],
    "channels": 3,
    "classes": 10,
    "images": 32,
    "methods": [config.ALL],
    "output": "plots/cost",
}
ONE_CALL, TOO_LONG = 5.0, 60.0
"""seconds: a longer call is measured on fewer images, and not at all where one image would take too long"""
REPEATS = 3


class Question(NamedTuple):
    """What the options ask for, checked as far as can be without torch."""

    models: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    channels: int
    classes: int
    images: int
    methods: tuple[str, ...]
    all_methods: bool
    measure: bool
    output: Path


class Network(NamedTuple):
    """A model for images of one shape (C,H,W), on the meta device."""

    spec: str
    shape: tuple[int, int, int]
    classes: int
    meta: nn.Module

    @property
    def size(self) -> str:
        """Height and width of its images."""
        return f"{self.shape[1]}x{self.shape[2]}"

    @property
    def name(self) -> str:
        """What rows and bars are called."""
        return f"{self.spec.removeprefix('torchvision:')} {self.size}"


def cost_parser() -> argparse.ArgumentParser:
    """Options of the cost command; values stay words here."""
    parser = argparse.ArgumentParser(
        prog="python -m sweeps.cost",
        description="Count the floating-point operations and the memory of attribution methods on networks.",
        argument_default=argparse.SUPPRESS,
    )
    network = parser.add_argument_group("networks")
    network.add_argument(
        "--model",
        nargs="*",
        metavar="M",
        help=f"models, spelled as for a sweep, or {' '.join(meta.KNOWN)} (small deep)",
    )
    network.add_argument("--size", nargs="*", metavar="HxW", help="images' sizes in pixels (default: 32x32)")
    network.add_argument("--channels", metavar="C", help="channels of an image (default: 3)")
    network.add_argument("--classes", metavar="K", help="outputs of the network (default: 10)")
    method = parser.add_argument_group("methods")
    method.add_argument("--methods", nargs="*", metavar="METHOD", help="methods, or all (default: all)")
    method.add_argument("--ig-steps", metavar="S", help="steps of integrated gradients (default: its own)")
    text = "samples of smoothgrad, gradient_shap and lime (default: their own)"
    method.add_argument("--samples", metavar="N", help=text)
    parser.add_argument("--images", metavar="N", help="images explained in one call (default: 32)")
    text = "also measure time and memory on one thread of this machine's CPU"
    parser.add_argument("--measure", action="store_true", help=text)
    parser.add_argument("--output", metavar="DIR", help="folder of the chart (default: plots/cost)")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    return parser


def cost(arguments: Sequence[str]) -> int:
    """Counts what methods cost. Raises UsageError for what cannot work."""
    given = vars(cost_parser().parse_args(arguments))
    as_json = given.pop("json", False)
    question = ask(given)
    try:
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            document = answer(question)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        print_document(document)
    return DONE


def ask(given: Mapping[str, Any]) -> Question:
    """What the options ask for. Raises UsageError."""
    chosen = {**DEFAULTS, **given}
    numbers = {
        name: whole_number(name, chosen[name], *bounds) for name, bounds in BOUNDS.items() if name in chosen
    }
    methods = choose_methods(chosen["methods"], numbers)
    sizes = tuple(parse_size(word) for word in named("size", chosen["size"]))
    specs = named("model", [meta.full_name(word) for word in chosen["model"]])
    for spec in specs:
        if spec not in models.MODELS and ":" not in spec:
            raise unknown("model", spec, [*models.MODELS, *meta.KNOWN], models.ALSO)
    output = Path(chosen["output"])
    config.check_writable("output", output)
    return Question(
        specs,
        sizes,
        numbers["channels"],
        numbers["classes"],
        numbers["images"],
        methods,
        config.ALL in chosen["methods"],
        bool(chosen.get("measure")),
        output,
    )


def named(field: str, words: Sequence[str]) -> tuple[str, ...]:
    """The words of an option that takes several. Raises UsageError for none and for one named twice."""
    if not words:
        raise UsageError(field, list(words), "is empty: name at least one")
    twice = [word for word in words if list(words).count(word) > 1]
    if twice:
        raise UsageError(field, twice[0], "is named twice")
    return tuple(words)


def parse_size(word: str) -> tuple[int, int]:
    """Height and width of `HxW` or of one number, a square's side. Raises UsageError."""
    try:
        sides = [whole_number("size", side, 1, WIDEST) for side in word.lower().split("x", 1)]
    except UsageError:
        problem = f"is neither HxW nor the side of a square, in pixels from 1 to {WIDEST}"
        raise UsageError("size", word, problem) from None
    return sides[0], sides[-1]


def choose_methods(words: Sequence[str], numbers: Mapping[str, int]) -> tuple[str, ...]:
    """Labels of the methods, with the options that --ig-steps and --samples set. Raises UsageError."""
    named = all_methods() if list(words) == [config.ALL] else words
    return config.coerce("methods", [counting.with_numbers(word, numbers) for word in named])


def answer(question: Question) -> dict[str, Any]:
    """Counts, measures if asked, and draws; returns the document."""
    started = time.monotonic()
    shapes = [(question.channels, *size) for size in question.sizes]
    networks = [
        Network(spec, shape, question.classes, meta.build_meta(spec, shape, question.classes))
        for spec in question.models
        for shape in shapes
    ]
    rows = [row for network in networks for row in count(network, question)]
    document: dict[str, Any] = {"images": question.images, "networks": [about(n) for n in networks]}
    if question.measure:
        document["peak_flops"] = measure_all(rows, networks, question.images)
    paths = [
        style.save(chart.costs(page), question.output, f"cost-{n}" if n > 1 else "cost")
        for n, page in enumerate(chart.pages(rows), 1)
    ]
    files = [str(path.with_suffix(kind)) for path in paths for kind in (".png", ".pdf")]
    return {**document, "rows": rows, "files": files, "seconds": round(time.monotonic() - started, 3)}


def about(network: Network) -> dict[str, Any]:
    """What the document says of a network."""
    flops = counting.step_tally(network.meta, network.shape, "forward", 1).flops
    parameters = sum(parameter.numel() for parameter in network.meta.parameters())
    return {
        "network": network.name,
        "model": network.spec,
        "shape": list(network.shape),
        "classes": network.classes,
        "parameters": parameters,
        "forward_flops": flops,
        "forward_macs": flops / 2,
    }


def count(network: Network, question: Question) -> list[dict[str, Any]]:
    """A row per method. Of all methods, those that the network cannot have are left out and told."""
    names = {"network": network.name, "model": network.spec, "size": network.size}
    rows = []
    found = counting.costs(network.meta, network.shape, question.methods, question.images)
    for method, counted in found.items():
        if not isinstance(counted, UsageError):
            rows.append({**names, "method": method, **counted._asdict()})
        elif question.all_methods:
            print(f"left out of {network.name}: {counted}", file=sys.stderr)
        else:
            raise counted
    return rows


def measure_all(rows: Sequence[dict[str, Any]], networks: Sequence[Network], images: int) -> float:
    """Adds what calls take here to the rows; returns the peak of matrix products, operations per second.

    The peak is the best of several moments: a neighbour on the machine can only lower it.
    """
    with machine.one_thread():
        peak = machine.matmul_peak()
        for network in networks:
            model = build_real(network)
            for row in rows:
                if row["network"] == network.name:
                    row |= measure(model, network, row, images, peak)
            peak = max(peak, machine.matmul_peak())
    for row in rows:
        row["predicted_seconds"] = row["flops"] / peak
    return peak


def measure(
    model: nn.Module, network: Network, row: Mapping[str, Any], images: int, peak: float
) -> dict[str, Any]:
    """CPU time per image (median), and growth of memory with what was expected for as many images."""
    seconds = row["flops"] / peak
    if seconds > TOO_LONG:
        return {"measured_images": 0}
    n = max(1, min(images, int(ONE_CALL / max(seconds, 1e-9))))
    draws = torch.Generator().manual_seed(0)
    x, targets = torch.rand(n, *network.shape, generator=draws), torch.arange(n) % network.classes
    stochastic = torch.Generator()

    def call() -> None:
        attribute(model, x, targets, row["method"], generator=stochastic.manual_seed(0))

    call()  # imports and caches
    grown = machine.memory_growth(call)
    taken = statistics.median(timing.timed(call, time.process_time)[0] for _ in range(REPEATS))
    expected = counting.peak_bytes(network.meta, network.shape, row["method"], n)
    return {
        "measured_images": n,
        "measured_seconds": taken / n,
        "measured_bytes": grown,
        "expected_bytes": expected,
    }


def build_real(network: Network) -> nn.Module:
    """The network with weights, drawn apart from the process's random streams."""
    factory = models.model_factory(network.spec)
    with streams.global_streams_kept():
        return models.build(factory, network.shape, network.classes).eval()


def print_document(document: Mapping[str, Any]) -> None:
    """The document for people: a table per network and the files."""
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    for network in document["networks"]:
        rows = [row for row in document["rows"] if row["network"] == network["network"]]
        forward, parameters = (chart.si_text(network[key], "") for key in ("forward_macs", "parameters"))
        title = f"{network['network']}: {parameters} parameters, {forward} multiply-accumulates an image"
        columns = chart.COLUMNS | (MEASURED if "peak_flops" in document else {})
        lines = [[told(row) for told in columns.values()] for row in rows]
        console.print(progress.grid_table(lines, list(columns), title))
    console.print(
        f"operations are of one image (a multiply-accumulate is two), memory of a call for "
        f"{document['images']} images on a CPU"
    )
    if "peak_flops" in document:
        speed = chart.si_text(document["peak_flops"], "FLOP/s")
        console.print(f"predicted at the speed of large matrix products on one thread, {speed}")
    for path in document["files"]:
        console.print(path, markup=False)
    console.print(f"done in {document['seconds']:.1f} s")


def memory_text(row: Mapping[str, Any]) -> str:
    """Measured growth of memory, with the number of images."""
    if row.get("measured_bytes") is None:
        return "-"
    n = row["measured_images"]
    return f"{chart.text_of(row, 'measured_bytes', 'B')} ({n} image{'s' if n > 1 else ''})"


MEASURED: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "predicted an image": lambda row: chart.text_of(row, "predicted_seconds", "s"),
    "measured an image": lambda row: chart.text_of(row, "measured_seconds", "s"),
    "expected memory": lambda row: chart.text_of(row, "expected_bytes", "B"),
    "measured memory": memory_text,
}
