"""METHODS: one visible mapping from name to function, and labels such as `smoothgrad:noise=0.2`.

A label is `name`, `captum:NAME`, `file.py:function` or `module:function`, and then perhaps
`:option=value,option=value`. Methods of this package are known without importing torch.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from epochlens.attribute import adapters, cams, controls, gradients, perturbation, smoothing
from epochlens.attribute.isolation import borrowed, differentiable
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
    "gradient_shap": gradients.gradient_shap,
    "smoothgrad": smoothing.smoothgrad,
    "cam": cams.cam,
    "gradcam": cams.gradcam,
    "gradcam_plus_plus": cams.gradcam_plus_plus,
    "occlusion": perturbation.occlusion,
    "superpixel_delta": perturbation.superpixel_delta,
    "lime": perturbation.lime,
    "edge": controls.edge,
    "random": controls.random,
}
FAMILIES = {
    ("saliency", "input_x_gradient"): gradients.gradient_maps,
    ("gradcam", "gradcam_plus_plus"): cams.gradient_cams,
}
"""methods that one computation serves: a function that gives the maps of all of them by name"""
ALSO = ", or captum:NAME, or FILE.py:FUNCTION, or module:function"
CHOICES = {"rule": tuple(gradients.RULES), "base": tuple(smoothing.BASES)}
"""the values that an option of that name may take"""
COUNTS = ("steps", "samples", "patch", "stride", "segments")
"""options of at least one; others are at least zero"""
ABOVE_ZERO = ("width",)
ANY_SIGN = ("value",)


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

    `method` is a label, with options or without (`integrated_gradients:steps=50`, `captum:DeepLift`,
    `my_file.py:my_method`); keyword options override. `generator` feeds stochastic methods. The model is
    explained in eval mode and given back as it was: modes, parameters' gradients and requires_grad. Raises
    UsageError for an unknown method or option, and for a user's method that gives no such maps.
    """
    name, settings = parse_method(method)
    settings = check_options(name, settings | options)
    if name not in METHODS or is_stochastic(name):
        settings["generator"] = generator
    with borrowed(model):
        maps = find_method(name)(model, differentiable(images), targets.to(images.device), **settings)
    return _checked(name, maps, images)


def attribute_all(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    methods: Iterable[str | Mapping[str, Any]],
    *,
    generators: Callable[[str], torch.Generator] | None = None,
) -> dict[str, Tensor]:
    """Canonical label -> maps of several methods, the same numbers as `attribute` gives one by one.

    Methods of one of FAMILIES with the same options are worked out together. `generators` gives the
    generator of a label.
    """
    labels = list(dict.fromkeys(method_label(method) for method in methods))
    found = {}
    for together in _groups(labels):
        if len(together) > 1:
            found |= _attribute_family(model, images, targets, together)
        else:
            draws = None if generators is None else generators(together[0])
            found[together[0]] = attribute(model, images, targets, together[0], generator=draws)
    return {label: found[label] for label in labels}


def _groups(labels: Iterable[str]) -> list[list[str]]:
    """The labels, those together that one computation serves."""
    groups: dict[Any, list[str]] = {}
    for label in labels:
        name, options = parse_method(label)
        family = next((names for names in FAMILIES if name in names), None)
        groups.setdefault((family, *options.items()) if family else label, []).append(label)
    return list(groups.values())


def _attribute_family(
    model: nn.Module, images: Tensor, targets: Tensor, labels: Iterable[str]
) -> dict[str, Tensor]:
    parsed = {label: parse_method(label) for label in labels}
    name, options = next(iter(parsed.values()))
    compute = next(function for names, function in FAMILIES.items() if name in names)
    with borrowed(model):
        maps = compute(model, differentiable(images), targets.to(images.device), **options)
    return {label: _checked(name, maps[name], images) for label, (name, _) in parsed.items()}


def _checked(name: str, maps: Any, images: Tensor) -> Tensor:
    """The maps in the images' type. Raises UsageError unless they are floating-point and of their shape."""
    if not isinstance(maps, torch.Tensor):
        raise UsageError("methods", name, f"gives a {type(maps).__name__}, not a tensor")
    if maps.shape != images.shape or not maps.is_floating_point():
        problem = f"gives maps {list(maps.shape)} of {maps.dtype} for images {list(images.shape)}"
        raise UsageError("methods", name, f"{problem}: floating-point values of the images' shape are needed")
    return maps.detach().to(images)


def all_methods() -> list[str]:
    """The labels that `--methods all` means: every built-in method as it is by default, controls last.

    `cam` is among them, which not every model can have (`cams.supports_cam`).
    """
    return list(METHODS)


def find_method(name: str) -> Callable[..., Any]:
    """The function of a name, built-in or from elsewhere. Raises UsageError when there is none."""
    if name in METHODS:
        return METHODS[name]
    if ":" in name:
        return adapters.find_method(name)
    raise unknown("methods", name, METHODS, ALSO)


def method_code(method: str | Mapping[str, Any]) -> str:
    """What identifies code from elsewhere: SHA-256 of a user's file, captum's version, "" when built-in.

    Raises UsageError when it is not there.
    """
    name, _ = parse_method(method)
    return "" if name in METHODS else adapters.code_of(name)


def named_generator(seed: int, name: str, epoch: int = 0) -> torch.Generator:
    """A CPU generator that depends on (seed, name, epoch) alone, so it never touches the training stream."""
    digest = hashlib.sha256(f"{seed}/{name}/{epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def is_stochastic(method: str) -> bool:
    """Whether two calls of the method with other draws give other maps."""
    return "generator" in inspect.signature(find_method(parse_method(method)[0])).parameters


def default_options(name: str) -> dict[str, Any]:
    """The options that a method takes, with their defaults. Raises UsageError for an unknown method."""
    parameters = inspect.signature(find_method(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "generator"}


def parse_method(method: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and given options of a label or of a table {name, option: value}. Raises UsageError."""
    table = dict(method) if isinstance(method, Mapping) else {"name": method}
    name, tail = _split_name(str(table.pop("name", "")))
    given: dict[str, Any] = {}
    for part in filter(None, tail.split(",")):
        option, equals, value = part.partition("=")
        if not equals:
            raise UsageError("methods", method, f"has {part!r}, which is not option=value")
        given[option] = value
    return name, check_options(name, given | table)


def _split_name(label: str) -> tuple[str, str]:
    """The name, which may hold a colon itself, and the text of the options."""
    file, is_file, tail = label.partition(".py:")
    head, _, rest = (file, is_file, tail) if is_file else label.partition(":")
    second, _, options = rest.partition(":")
    if is_file:
        return f"{PurePath(file).as_posix()}.py:{second}", options
    if head == "captum" or (head not in METHODS and second and "=" not in second):
        return f"{head}:{second}", options
    return head, rest


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
            default = defaults[option]
            kind = (
                "is neither number nor text"
                if default is None
                else f"is not of type {type(default).__name__}"
            )
            raise UsageError(f"methods: {name}:{option}", value, kind) from None
    if name in METHODS:
        for option, value in checked.items():
            _check_value(name, option, value)
        _check_together(name, defaults | checked)
    return checked


def _check_value(name: str, option: str, value: Any) -> None:
    if option in CHOICES and value not in CHOICES[option]:
        raise unknown(f"methods: {name}:{option}", value, CHOICES[option])
    if isinstance(value, str):
        return
    least = 1 if option in COUNTS else float("-inf") if option in ANY_SIGN else 0
    if not least <= value < float("inf") or value == float("-inf"):
        told = "must be finite" if option in ANY_SIGN else f"must be at least {least}"
        raise UsageError(f"methods: {name}:{option}", value, told)
    if option in ABOVE_ZERO and value == 0:
        raise UsageError(f"methods: {name}:{option}", value, "must be above 0")


def _check_together(name: str, options: Mapping[str, Any]) -> None:
    if options.get("rule") == "endpoints" and options["steps"] < 2:
        raise UsageError(f"methods: {name}:steps", options["steps"], "must be at least 2 for rule endpoints")
    if options.get("stride", 0) > options.get("patch", 0):
        problem = f"must be at most the patch's side, {options['patch']}"
        raise UsageError(f"methods: {name}:stride", options["stride"], problem)


def _as_type_of(default: Any, value: Any) -> Any:
    if default is None:
        return _guessed(value)
    if isinstance(default, bool):
        return ("false", "true").index(str(value).lower()) == 1
    if isinstance(default, int) and (isinstance(value, bool) or float(value) != int(float(value))):
        raise ValueError
    return type(default)(value)


def _guessed(value: Any) -> Any:
    """The value of a text for an option without a type: true, false, a number, or the text."""
    if isinstance(value, int | float):
        return value
    if not isinstance(value, str):
        raise TypeError
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        with suppress(ValueError):
            return kind(value)
    return value


def method_label(method: str | Mapping[str, Any]) -> str:
    """The canonical spelling: options unlike their default, in the function's order (captum's: by name)."""
    name, given = parse_method(method)
    defaults = default_options(name)
    differing = [f"{o}={given[o]}" for o in defaults if o in given and given[o] != defaults[o]]
    return name + (":" + ",".join(differing) if differing else "")
