"""QUALITY: how good maps are, judged against the network itself, and labels such as `deletion:steps=10`.

A metric has one value per map, or several (`VALUES`). Whoever has the maps of several methods calls
`assess`, which does once what does not depend on the method.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from epochlens.attribute.isolation import borrowed, differentiable
from epochlens.attribute.methods import attribute, named_generator
from epochlens.attribute.reexplanation import randomisation, relative_input_stability
from epochlens.attribute.removal import (
    Assessment,
    Explain,
    Subject,
    deletion,
    faithfulness_correlation,
    insertion,
)
from epochlens.attribute.sparseness import sparseness
from epochlens.errors import UsageError, unknown
from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

Better = Literal["higher", "lower"] | None


class Quality(NamedTuple):
    """A metric: its function of a Subject and a generator, which values are better, and what it is."""

    function: Callable[..., Assessment]
    better: Better
    description: str


class Value(NamedTuple):
    """One number per map: the metric that gives it, which is better, and when it is NaN."""

    metric: str
    better: Better
    undefined: str


QUALITY = {
    "faithfulness_correlation": Quality(
        faithfulness_correlation,
        "higher",
        "Correlation between what random sets of features have in a map and what the target's logit loses "
        "without them.",
    ),
    "relative_input_stability": Quality(
        relative_input_stability,
        "lower",
        "Largest relative change of a map over the relative change of the image under small noise.",
    ),
    "sparseness": Quality(
        sparseness, "higher", "Gini index of a map's magnitudes: 0 when all are equal, 1 when one has all."
    ),
    "deletion": Quality(
        deletion,
        "lower",
        "Area under the target's probability while pixels turn black, the most important first.",
    ),
    "insertion": Quality(
        insertion,
        "higher",
        "Area under the target's probability while a black image's pixels return, the most important first.",
    ),
    "randomisation": Quality(
        randomisation,
        "lower",
        "Similarity of a map to that of the same network with its last linear layer drawn anew.",
    ),
}

_CURVE = "NaN where all pixels of the map are equal, or the map or an output of the network is not finite."
_STILL = "or the map is not finite."
VALUES = {
    "faithfulness_correlation": Value(
        "faithfulness_correlation",
        "higher",
        "NaN where the map is constant, or removing features never changes the target's logit, or anything "
        "is not finite.",
    ),
    "relative_input_stability": Value(
        "relative_input_stability",
        "lower",
        f"NaN where at least one perturbation changes the predicted class, {_STILL}",
    ),
    "relative_input_stability_kept": Value(
        "relative_input_stability",
        "lower",
        f"NaN where every perturbation changes the predicted class, {_STILL}",
    ),
    "relative_input_stability_valid": Value("relative_input_stability", None, "Never NaN."),
    "sparseness": Value("sparseness", "higher", "NaN where the map is zero everywhere or not finite."),
    "deletion": Value("deletion", "lower", _CURVE),
    "insertion": Value("insertion", "higher", _CURVE),
    "randomisation_cosine": Value(
        "randomisation",
        "lower",
        "NaN where one of the two maps is zero everywhere or not finite, or the network has no linear layer.",
    ),
    "randomisation_spearman_abs": Value(
        "randomisation",
        "lower",
        "NaN where the magnitudes of one of the two maps are all equal or not finite, or the network has no "
        "linear layer.",
    ),
}
LEAST = {"runs": 2, "subset": 1, "samples": 1, "steps": 2}
"""the smallest value of an option; others are any finite number"""


def evaluate(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    maps: Tensor,
    metric: str,
    *,
    method: str = "saliency",
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    """A value of `metric` per map, [N], for images [N,C,H,W] (or [N,...]), targets [N], maps like the images.

    `metric` names a metric, whose first value this is, or a value of `VALUES`; either may carry options
    (`relative_input_stability_kept:samples=20`), which keyword options override. `method` is the label that
    made the maps: some metrics explain again. Draws come from `generator` (a CPU generator; a fresh one that
    depends on the metric alone when None). NaN as `undefined_reason` says. The model is judged in eval mode
    and given back as it was. Raises UsageError for an unknown metric, option or method, and maps of another
    shape than the images.
    """
    head, colon, tail = metric.partition(":")
    name, settings = parse_metric((VALUES[head].metric if head in VALUES else head) + colon + tail)
    settings = check_options(name, settings | options)
    value = head if head in VALUES else value_names([name])[0]
    generator = named_generator(0, f"quality/{name}") if generator is None else generator
    subject = Subject(model, images, targets, {method: maps}, explain_afresh)
    found = _measure(subject, name, settings, generator)
    return found.values[method, value].to(images)


def assess(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    maps: Mapping[str, Tensor],
    metrics: Sequence[str],
    *,
    seed: int,
    explain: Explain | None = None,
) -> Assessment:
    """All values of several metrics for the maps of several methods, by label of the method.

    What does not depend on the method is done once. Draws depend on `seed` and the metric's name alone, so
    methods and epochs are judged by the same. `explain(model, method, images, targets)` gives the maps of
    other images or another network; by default `attribute` with the same fresh generator at every call. It
    is called with as many images as are assessed where a method has draws of its own, so they can be the
    same. Raises as `evaluate` does, and as `value_names`.
    """
    value_names(metrics)
    subject = Subject(model, images, targets, maps, explain or explain_afresh)
    values, curves, fractions = {}, {}, torch.empty(0, dtype=torch.float64)
    for label in metrics:
        name, options = parse_metric(label)
        found = _measure(subject, name, options, named_generator(seed, f"quality/{name}"))
        values |= found.values
        curves |= found.curves
        fractions = found.fractions if found.curves else fractions
    return Assessment(values, curves, fractions)


def _measure(
    subject: Subject, name: str, options: Mapping[str, Any], generator: torch.Generator
) -> Assessment:
    images = subject.images
    for label, found in subject.maps.items():
        if found.shape != images.shape:
            raise UsageError("maps", label, f"are {tuple(found.shape)}, the images {tuple(images.shape)}")
    maps = {label: found.detach().to(images.device) for label, found in subject.maps.items()}
    subject = subject._replace(maps=maps, targets=subject.targets.to(images.device).long())
    with borrowed(subject.model):
        subject = subject._replace(images=differentiable(images))
        return QUALITY[name].function(subject, generator, **options)


def explain_afresh(model: nn.Module, method: str, images: Tensor, targets: Tensor) -> Tensor:
    """Maps by `attribute`, with the same draws at every call."""
    return attribute(model, images, targets, method, generator=torch.Generator().manual_seed(0))


def default_options(name: str) -> dict[str, Any]:
    """The options that a metric takes, with their defaults. Raises UsageError for an unknown metric."""
    if name not in QUALITY:
        raise unknown("quality", name, QUALITY)
    parameters = inspect.signature(QUALITY[name].function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def parse_metric(metric: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and given options of `name`, `name:option=value,option=value` or a table {name, option: value}."""
    if isinstance(metric, Mapping):
        given = dict(metric)
        name = str(given.pop("name", ""))
        return name, check_options(name, given)
    name, _, tail = metric.partition(":")
    parts = [part.partition("=") for part in tail.split(",") if part]
    for option, equals, value in parts:
        if not equals:
            raise UsageError("quality", metric, f"has {option + value!r}, which is not option=value")
    return name, check_options(name, {option: value for option, _, value in parts})


def check_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options in the type of their defaults. Raises UsageError naming the option and what it may be."""
    defaults = default_options(name)
    checked = {}
    for option, value in given.items():
        if option not in defaults:
            raise unknown(f"quality: option of {name}", option, defaults or ["none"])
        kind = type(defaults[option])
        try:
            whole = kind is int and (isinstance(value, bool) or float(value) != int(float(value)))
            checked[option] = kind("" if whole else value)
        except (TypeError, ValueError, OverflowError):
            problem = f"is not of type {kind.__name__}"
            raise UsageError(f"quality: {name}:{option}", value, problem) from None
        if not LEAST.get(option, -math.inf) <= checked[option] or not math.isfinite(checked[option]):
            problem = f"must be at least {LEAST[option]}" if option in LEAST else "must be finite"
            raise UsageError(f"quality: {name}:{option}", value, problem)
    settings = defaults | checked
    if "low" in settings and not settings["low"] < settings["high"]:
        raise UsageError(f"quality: {name}:high", settings["high"], f"must be above low, {settings['low']}")
    return checked


def metric_label(metric: str | Mapping[str, Any]) -> str:
    """The canonical spelling: options that differ from their default, in the function's order."""
    name, given = parse_metric(metric)
    defaults = default_options(name)
    differing = [f"{o}={given[o]}" for o in defaults if o in given and given[o] != defaults[o]]
    return name + (":" + ",".join(differing) if differing else "")


def all_metrics() -> list[str]:
    """The labels of all metrics with their default options."""
    return list(QUALITY)


def value_names(metrics: Sequence[str]) -> list[str]:
    """The names of the values that metrics give, in order.

    Names do not tell options, so it raises UsageError for a metric named twice, and for deletion and
    insertion in different numbers of steps, whose curves share their fractions.
    """
    parsed = [parse_metric(metric) for metric in metrics]
    names = [name for name, _ in parsed]
    twice = [label for label, name in zip(metrics, names, strict=True) if names.count(name) > 1]
    if twice:
        raise UsageError("quality", twice[-1], f"gives the same values as {twice[0]!r}: name one of them")
    steps = {n: (default_options(n) | o)["steps"] for n, o in parsed if "steps" in default_options(n)}
    if len(set(steps.values())) > 1:
        raise UsageError(
            "quality: insertion:steps", steps["insertion"], f"differs from deletion's, {steps['deletion']}"
        )
    return [value for name in names for value, about in VALUES.items() if about.metric == name]


def better(value_name: str) -> Better:
    """Which values are better: "higher", "lower" or None. Raises UsageError for an unknown name."""
    return _value(value_name).better


def undefined_reason(value_name: str) -> str:
    """A sentence that says when a value is NaN. Raises UsageError for an unknown one."""
    return _value(value_name).undefined


def _value(name: str) -> Value:
    if name not in VALUES:
        raise unknown("quality", name, VALUES)
    return VALUES[name]
