"""Methods from elsewhere: captum's classes (`captum:NAME`) and users' own functions.

A user's function, `my_file.py:my_method` or `pkg.module:my_method`, is called as
my_method(model, images, targets, **options) and gives maps shaped like the images; with a parameter
`generator` it gets a torch.Generator and counts as stochastic. The model comes in eval mode with its
parameters frozen, gradients are on, and images and targets are copies. Here both kinds become functions like
the built-in ones. Foreign code may change a model and draw from the global streams: both are put back.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from epochlens.attribute.cams import captured, feature_layer, last_output, resize
from epochlens.attribute.isolation import kept, seeded_streams
from epochlens.errors import UsageError, unknown
from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

Explain = Callable[..., "Tensor"]
CAPTUM = "captum:"
STOCHASTIC = (
    "FeaturePermutation",
    "GradientShap",
    "KernelShap",
    "LayerFeaturePermutation",
    "LayerGradientShap",
    "Lime",
    "ShapleyValueSampling",
)
"""captum's classes that draw random numbers"""
CAPTUM_DEFAULTS = {
    "abs": False,
    "baselines": 0.0,
    "feature_mask": 0,
    "layer": "",
    "layer_baselines": 0.0,
    "layer_mask": 0,
    "sliding_window_shapes": 4,
    "strides": 2,
}
"""options whose default is not captum's, or that captum has not; numbers as in `_captum_argument`"""
HIDDEN = (
    "additional_forward_args",
    "attr_dim_summation",
    "custom_attribution_func",
    "device_ids",
    "grad_kwargs",
    "interpretable_model",
    "perm_func",
    "perturb_func",
    "return_convergence_delta",
    "return_input_shape",
    "show_progress",
    "similarity_func",
    "target",
    "verbose",
)
"""parameters of captum's classes that are no options"""
ANSWERED = {"self", "forward_func", "model", "layer", "inputs", "baselines", "sliding_window_shapes"}
"""parameters without a default that are known how to fill"""
MOST_SHAPLEY_FEATURES = 6
"""exact Shapley values run the model for every order of the features: 6! * 6 times"""


def find_method(name: str) -> Explain:
    """The function of `captum:NAME`, `file.py:function` or `module:function`, its options keyword-only.

    Raises UsageError when there is none.
    """
    if name.startswith(CAPTUM):
        return _captum_method(name)
    return _users_method(name, *source(name))


def code_of(name: str) -> str:
    """What changes when the method does: captum's version, or the SHA-256 of a user's source file."""
    if name.startswith(CAPTUM):
        _captum_classes(name)
        return f"captum {importlib.import_module('captum').__version__}"
    return source(name)[1]


def source(name: str) -> tuple[Path, str]:
    """The source file of a user's method and its SHA-256. Raises UsageError when there is none."""
    place, _, function = name.rpartition(":")
    try:
        if place.endswith(".py"):
            path = Path(place).resolve()
            if not path.is_file():
                raise UsageError("methods", name, f"cannot be found: there is no file {path}")
        else:
            module = _imported(name)
            found = getattr(module, function, None)
            made_of = inspect.unwrap(found) if inspect.isfunction(found) else module
            path = Path(inspect.getsourcefile(made_of) or "")
            if not path.is_file():
                raise UsageError("methods", name, "has no source file")
        return path, hashlib.sha256(path.read_bytes()).hexdigest()
    except UsageError:
        raise
    except (OSError, TypeError, ValueError) as error:  # also of a built-in module, and of no name of a file
        raise UsageError("methods", name, f"cannot be read: {error}") from error


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name.rpartition(":")[0])
    except (Exception, SystemExit) as error:
        raise UsageError("methods", name, f"cannot be imported: {type(error).__name__}: {error}") from error


@cache
def _loaded(path: Path, digest: str) -> ModuleType:
    """The module that a file is; another one when its text has changed."""
    spec = importlib.util.spec_from_file_location(f"epochlens_method_{digest[:16]}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


@cache
def _users_method(name: str, path: Path, digest: str) -> Explain:
    place, _, wanted = name.rpartition(":")
    try:
        module = _loaded(path, digest) if place.endswith(".py") else _imported(name)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError("methods", name, f"cannot be loaded: {type(error).__name__}: {error}") from error
    function: Any = getattr(module, wanted, None)
    if not callable(function):
        raise UsageError("methods", name, f"cannot be found: {place} has no function {wanted!r}")
    defaults = _users_options(name, function)

    def explain(
        model: nn.Module,
        images: Tensor,
        targets: Tensor,
        *,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Tensor:
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        if "generator" in defaults:
            options["generator"] = generator
        with kept(model), seeded_streams(generator, images.device), torch.enable_grad():
            maps: Any = function(model, images.clone(), targets.clone(), **options)
            return maps

    return _with_options(explain, defaults)


def _users_options(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    """The options of a user's function with their defaults. Raises UsageError for an unfit signature."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise UsageError("methods", name, f"does not tell its parameters: {error}") from error
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    first, rest = parameters[:3], parameters[3:]
    if len(first) < 3 or any(p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in first):
        raise UsageError("methods", name, "is not a function of (model, images, targets, ...)")
    for p in rest:
        if p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL):
            raise UsageError("methods", name, f"has the option {p.name!r} that cannot be given by its name")
        if p.default is p.empty and p.name != "generator":
            raise UsageError("methods", name, f"has the option {p.name!r} without a default")
    return {p.name: None if p.default is p.empty else p.default for p in rest}


def _with_options(explain: Explain, options: Mapping[str, Any]) -> Explain:
    """The function with a signature that tells its options, as built-in methods' do."""
    kinds = inspect.Parameter
    first = [kinds(name, kinds.POSITIONAL_OR_KEYWORD) for name in ("model", "images", "targets")]
    rest = [kinds(name, kinds.KEYWORD_ONLY, default=default) for name, default in options.items()]
    vars(explain)["__signature__"] = inspect.Signature([*first, *rest])
    return explain


def _captum_classes(name: str) -> dict[str, Any]:
    """captum's classes that explain a logit by the input or by a layer. Raises UsageError without captum."""
    try:
        module = importlib.import_module("captum.attr")
    except ImportError as error:
        problem = f"needs captum ({error}): pip install 'epochlens[attribution]'"
        raise UsageError("methods", name, problem) from error
    everything = {attribute: getattr(module, attribute) for attribute in sorted(module.__all__)}
    return {attribute: kind for attribute, kind in everything.items() if _is_askable(kind)}


def _is_askable(kind: Any) -> bool:
    """Whether it is a class that can be made from a model, and a layer, and asked about images."""
    if not inspect.isclass(kind) or not callable(getattr(kind, "attribute", None)):
        return False
    needs = {p.name for p in _captum_parameters(kind) if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    return "inputs" in needs and needs <= ANSWERED


def _captum_parameters(kind: Any) -> list[inspect.Parameter]:
    return [p for f in (kind.__init__, kind.attribute) for p in inspect.signature(f).parameters.values()]


def _captum_options(kind: Any) -> dict[str, Any]:
    """The options of a captum class with their defaults, by name."""
    parameters = {p.name: p.default for p in _captum_parameters(kind) if p.kind is not p.VAR_KEYWORD}
    names = [o for o, d in parameters.items() if o in CAPTUM_DEFAULTS or d is not inspect.Parameter.empty]
    return {o: CAPTUM_DEFAULTS.get(o, parameters[o]) for o in sorted(names) if o not in HIDDEN}


@cache
def _captum_method(name: str) -> Explain:
    classes = _captum_classes(name)
    short = name.removeprefix(CAPTUM)
    if short not in classes:
        raise unknown("methods", name, (CAPTUM + other for other in classes))
    kind, defaults = classes[short], _captum_options(classes[short])

    def explain(
        model: nn.Module,
        images: Tensor,
        targets: Tensor,
        *,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Tensor:
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        with kept(model), seeded_streams(generator, images.device), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                return _run_captum(kind, model, images.clone(), targets, defaults | options)
            except (torch.OutOfMemoryError, UsageError):
                raise
            except Exception as error:
                problem = f"cannot explain this model or image: {type(error).__name__}: {error}"
                raise UsageError("methods", name, problem) from error

    return _with_options(explain, defaults | ({"generator": None} if short in STOCHASTIC else {}))


def _run_captum(
    kind: Any, model: nn.Module, images: Tensor, targets: Tensor, options: dict[str, Any]
) -> Tensor:
    """What captum's class gives, as maps like the images: a layer's are summed over channels and resized."""
    if "Permutation" in kind.__name__ and len(images) < 2:
        raise ValueError("it swaps pixels between images, so it needs two at least")
    shape, layers = images.shape, []
    if "layer" in options:
        images.requires_grad_()  # some classes hook the layer's output, which has to belong to a graph
        name, layer = feature_layer(model, images, options.pop("layer"))
        with torch.no_grad(), captured(layer) as outputs:
            model(images)
        shape, layers = last_output(name, outputs).shape, [layer]
    made, asked = (inspect.signature(f).parameters for f in (kind.__init__, kind.attribute))
    arguments = {"target": targets} if "target" in asked else {}
    for option, value in options.items():
        if option in asked:
            arguments[option] = _captum_argument(kind, option, value, images, shape)
    tool = kind(model, *layers, **{option: value for option, value in options.items() if option in made})
    found = tool.attribute(images, **arguments)
    maps: Tensor = found[0] if isinstance(found, tuple | list) else found
    if layers and kind.__name__ != "GuidedGradCam":  # that one is as large as the image already
        maps = resize(maps.detach().sum(1), images)
    return maps


def _captum_argument(kind: Any, option: str, value: Any, images: Tensor, layer: Sequence[int]) -> Any:
    """An option as captum takes it.

    Window and stride: the side of a square over all channels, at most the image's. Mask: the side of
    square blocks hidden together, 0 for that of `block_mask`. Baselines: an image of that grey, twice where
    captum wants several.
    """
    if option in ("sliding_window_shapes", "strides", "feature_mask", "layer_mask"):
        least = 0 if option.endswith("mask") else 1
        if value < least:
            raise UsageError(f"methods: captum:{kind.__name__}:{option}", value, f"must be at least {least}")
    if option in ("sliding_window_shapes", "strides"):
        return tuple(
            min(value, side) if axis or images.ndim == 2 else side
            for axis, side in enumerate(images.shape[1:])
        )
    if option in ("feature_mask", "layer_mask"):
        shape = layer if option == "layer_mask" else images.shape
        exact = kind.__name__ == "ShapleyValues"
        mask = block_mask(shape, value or (math.ceil(max(shape[2:], default=1) / 2) if exact else 0))
        if exact and int(mask.max()) >= MOST_SHAPLEY_FEATURES:
            problem = f"has more than {MOST_SHAPLEY_FEATURES} features, too many to try in every order"
            raise UsageError("methods", "captum:ShapleyValues", f"{problem}; ShapleyValueSampling draws some")
        return mask.to(images.device)
    several = inspect.signature(kind.attribute).parameters[option].default is inspect.Parameter.empty
    return images.new_full((2, *images.shape[1:]), value) if several else value


def block_mask(shape: Sequence[int], side: int = 0) -> Tensor:
    """Numbers of square blocks with that side, shared by channels, int64 [1,C,H,W] for images [N,C,H,W].

    Side 0: 4 pixels, or less for at least four blocks, or more for at most 16 blocks along a side. Other
    inputs [N,...] have a number for every value.
    """
    if len(shape) != 4:
        return torch.arange(math.prod(shape[1:])).view(1, *shape[1:])
    height, width = shape[2:]
    side = side or max(min(4, math.ceil(min(height, width) / 2)), math.ceil(max(height, width) / 16))
    rows, columns = (torch.arange(length) // side for length in (height, width))
    return (rows[:, None] * (int(columns[-1]) + 1) + columns).expand(1, *shape[1:]).contiguous()
