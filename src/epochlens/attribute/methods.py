"""METHODS: one visible mapping from name to function, and labels such as `smoothgrad:noise=0.2`."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from epochlens.attribute import gradients
from epochlens.errors import UsageError, unknown
from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

METHODS: dict[str, Callable[..., Any]] = {
    "saliency": gradients.saliency,
    "input_x_gradient": gradients.input_x_gradient,
    "integrated_gradients": gradients.integrated_gradients,
    "smoothgrad": gradients.smoothgrad,
}
CHOICES = {"rule": tuple(gradients.RULES), "base": tuple(gradients.BASES)}
"""the values that an option of that name may take"""
POSITIVE = ("steps", "samples")


def attribute(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    method: str,
    *,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    """Maps of `method` for images [N,C,H,W] (or [N,...]) and target classes [N], shaped and typed as they.

    `method` is a name or a label with options (`integrated_gradients:steps=50`); keyword options override.
    `generator` feeds stochastic methods. The model is explained in eval mode and given back as it was:
    modes, parameters' gradients and requires_grad. Raises UsageError for an unknown method or option.
    """
    name, settings = parse_method(method)
    settings |= check_options(name, options)
    function = METHODS[name]
    if is_stochastic(name):
        settings["generator"] = generator
    with borrowed(model):
        return function(model, images.detach(), targets.to(images.device), **settings).detach()


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """The model in eval mode with frozen parameters; afterwards as before, whatever happened."""
    modes = [(module, module.training) for module in model.modules()]
    trainable = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.eval()
        for parameter, _ in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, mode in trainable:
            parameter.requires_grad_(mode)


def named_generator(seed: int, name: str, epoch: int = 0) -> torch.Generator:
    """A CPU generator that depends on (seed, name, epoch) alone, so it never touches the training stream."""
    digest = hashlib.sha256(f"{seed}/{name}/{epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def is_stochastic(method: str) -> bool:
    """Whether two calls of the method with other draws give other maps."""
    return "generator" in inspect.signature(METHODS[parse_method(method)[0]]).parameters


def default_options(name: str) -> dict[str, Any]:
    """The options that a method takes, with their defaults. Raises UsageError for an unknown method."""
    if name not in METHODS:
        raise unknown("methods", name, METHODS)
    parameters = inspect.signature(METHODS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "generator"}


def parse_method(method: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and given options of `name`, `name:option=value,option=value` or a table {name, option: value}."""
    if isinstance(method, Mapping):
        given = dict(method)
        name = str(given.pop("name", ""))
        return name, check_options(name, given)
    name, _, tail = method.partition(":")
    given = {}
    for part in filter(None, tail.split(",")):
        option, equals, value = part.partition("=")
        if not equals:
            raise UsageError("methods", method, f"has {part!r}, which is not option=value")
        given[option] = value
    return name, check_options(name, given)


def check_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options in the type of their defaults. Raises UsageError naming the option and the choices."""
    defaults = default_options(name)
    checked = {}
    for option, value in given.items():
        if option not in defaults:
            raise unknown(f"methods: option of {name}", option, defaults or ["none"])
        try:
            checked[option] = _as_type_of(defaults[option], value)
        except (TypeError, ValueError, OverflowError):
            kind = type(defaults[option]).__name__
            raise UsageError(f"methods: {name}:{option}", value, f"is not of type {kind}") from None
        if option in CHOICES and checked[option] not in CHOICES[option]:
            raise unknown(f"methods: {name}:{option}", value, CHOICES[option])
        least = 1 if option in POSITIVE else 0
        if not isinstance(checked[option], str) and not least <= checked[option] < float("inf"):
            raise UsageError(f"methods: {name}:{option}", value, f"must be at least {least}")
    if checked.get("rule") == "endpoints" and checked.get("steps", defaults["steps"]) < 2:
        raise UsageError(f"methods: {name}:steps", checked["steps"], "must be at least 2 for rule endpoints")
    return checked


def _as_type_of(default: Any, value: Any) -> Any:
    if isinstance(default, int) and (isinstance(value, bool) or float(value) != int(float(value))):
        raise ValueError
    return type(default)(value)


def method_label(method: str | Mapping[str, Any]) -> str:
    """The canonical spelling: options that differ from their default, in the function's order."""
    name, given = parse_method(method)
    defaults = default_options(name)
    differing = [f"{o}={given[o]}" for o in defaults if o in given and given[o] != defaults[o]]
    return name + (":" + ",".join(differing) if differing else "")
