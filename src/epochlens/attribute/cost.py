"""What a method costs on a network: floating-point operations and memory, without computing anything.

Networks and images lie on PyTorch's meta device, where a tensor is a shape without contents; `tally` says
what is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from epochlens.attribute import gradients, perturbation
from epochlens.attribute.methods import METHODS, attribute, default_options, method_label, parse_method
from epochlens.errors import UsageError
from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from epochlens.attribute import tally as tallies
    from epochlens.attribute.tally import Tally

    Count = Callable[[nn.Module, "Shape", str, int], Tally]
    """counts as `step_tally` does; a caller who asks often may remember what it said"""
else:
    torch, nn = LazyModule("torch"), LazyModule("torch.nn")
    tallies = LazyModule("epochlens.attribute.tally")

Options = Mapping[str, Any]
Shape = tuple[int, int, int]
"""(C, H, W) of an image"""
FEW = 2
"""images on which operations are counted: what is done once for a call, is done for up to two of them"""


class Cost(NamedTuple):
    """What explaining images by one method takes."""

    flops: float
    """floating-point operations per image"""
    forwards: float
    """the same in forward passes of one image"""
    peak_bytes: float
    """memory at the worst moment of a call on a CPU, beyond the network and the images themselves"""


def squares(options: Options, shape: Shape) -> int:
    """Positions of occlusion's square. Raises UsageError when it does not fit in the image."""
    if options["patch"] > min(shape[1:]):
        problem = f"must fit in an image of {shape[1]}x{shape[2]} pixels"
        raise UsageError("methods: occlusion:patch", options["patch"], problem)
    return math.prod(
        len(range(0, side - options["patch"] + options["stride"], options["stride"])) for side in shape[1:]
    )


class Composition(NamedTuple):
    """How a method is made of steps that micro-batches go through."""

    step: str
    """another method, or "forward", a pass without gradients"""
    copies: Callable[[Options, Shape], int]
    """of each image that go through the step"""
    arrays: Callable[[Options, int, int], float]
    """of an image's size that a call for n images holds beside a micro-batch of that many copies"""


COMPOSITIONS = {
    "integrated_gradients": Composition(
        "saliency", lambda options, shape: options["steps"], lambda options, n, batch: n + 2 * max(n, batch)
    ),
    "gradient_shap": Composition(
        "saliency",
        lambda options, shape: options["samples"],
        lambda options, n, batch: n + 4 * max(options["samples"], batch),
    ),
    "occlusion": Composition("forward", squares, lambda options, n, batch: n + 2 * batch),
    "superpixel_delta": Composition(
        "forward", lambda options, shape: options["segments"], lambda options, n, batch: n + 2 * batch
    ),
    "lime": Composition(
        "forward", lambda options, shape: options["samples"], lambda options, n, batch: n + 2 * batch
    ),
}
"""what memory is worked out from; for operations see `forward_passes`"""
REPEATED = {"integrated_gradients": "steps", "gradient_shap": "samples"}
"""methods that do the same as often as an option says: each time costs as much as the one before"""
SETS = {
    "ig_steps": {"integrated_gradients": "steps"},
    "samples": {"smoothgrad": "samples", "gradient_shap": "samples", "lime": "samples"},
}
"""number that one sets for all methods: of which methods it is which option"""
WHOLE = ("edge", "random")
"""methods that take all images at once, as those from elsewhere do"""


def forward_passes(model: nn.Module, shape: Shape, name: str, options: Options) -> int | None:
    """Forward passes per image of a method that needs contents, or has too many to go through one by one.

    Superpixels are taken to be as many as asked for. None where the method itself can be counted. So can
    occlusion of an `nn.Sequential`, which it may recompute in part.
    """
    if name == "lime":
        return options["samples"]
    if name == "superpixel_delta":
        return options["segments"] + 1
    if name == "occlusion" and not isinstance(model, nn.Sequential):
        return squares(options, shape) + 1
    return None


def costs(
    model: nn.Module, shape: Shape, methods: Iterable[str], images: int = 32, count: Count | None = None
) -> dict[str, Cost | UsageError]:
    """The cost of each method as `method_cost` has it, or why the network cannot have it."""
    found: dict[str, Cost | UsageError] = {}
    for method in methods:
        try:
            found[method] = method_cost(model, shape, method, images, count)
        except UsageError as error:
            found[method] = error
    return found


def method_cost(
    model: nn.Module, shape: Shape, method: str, images: int = 32, count: Count | None = None
) -> Cost:
    """The cost of a method for a call with that many images of shape (C,H,W), on a model on the meta device.

    `model` is any module in PyTorch's meta device (`with torch.device("meta")`). Memory is that of the CPU's
    micro-batches. Raises UsageError as `attribute` does, and for a method that cannot go without contents.
    """
    count = count or step_tally
    forward, flops = (
        count(model, shape, "forward", 1).flops,
        method_flops(model, shape, method, images, count),
    )
    memory = peak_bytes(model, shape, method, images, count)
    return Cost(flops, flops / forward if forward else math.nan, memory)


def method_flops(
    model: nn.Module, shape: Shape, method: str, images: int = 32, count: Count | None = None
) -> float:
    """Floating-point operations per image of a call with that many images.

    What grows with the images is counted on two and on three of them, so the work of large images stays
    small; what a call does once is shared by all of them. What grows with steps or samples is counted on two
    and three of those alike. SmoothGrad's samples are alike: one is counted.
    """
    count = count or step_tally
    name, given = parse_method(method)
    options = default_options(name) | given
    passes = forward_passes(model, shape, name, options)
    if passes is not None:
        return float(passes * count(model, shape, "forward", 1).flops)
    if name == "smoothgrad":
        return options["samples"] * method_flops(model, shape, options["base"], images, count)
    repeats = options.get(REPEATED.get(name, ""), 0)
    if repeats > FEW + 1:
        few, more = (with_options(name, given | {REPEATED[name]: n}) for n in (FEW, FEW + 1))
        start, next_one = (method_flops(model, shape, label, images, count) for label in (few, more))
        return start + (repeats - FEW) * (next_one - start)
    if images <= FEW:
        return count(model, shape, method, images).flops / images
    two, three = (count(model, shape, method, n).flops for n in (FEW, FEW + 1))
    return three - two + (two - FEW * (three - two)) / images


def with_options(name: str, options: Options) -> str:
    """The label of a method with options."""
    return method_label({"name": name, **options})


def with_numbers(method: str, numbers: Mapping[str, int]) -> str:
    """The method's label with the options that `ig_steps` and `samples` set, unless it says its own."""
    name, given = parse_method(method)
    for option, sets in SETS.items():
        if option in numbers and name in sets:
            given = {sets[name]: numbers[option], **given}
    return with_options(name, given)


def peak_bytes(
    model: nn.Module, shape: Shape, method: str, images: int = 32, count: Count | None = None
) -> float:
    """Bytes that a call with that many images takes at its worst moment on a CPU.

    That is the largest step on one micro-batch, with the activations kept for its backward pass, and arrays
    of the images' size. What PyTorch's kernels take for themselves is not in it.
    """
    count = count or step_tally
    name, given = parse_method(method)
    options = default_options(name) | given
    array = math.prod(shape) * torch.empty(0, dtype=dtype_of(model)).element_size()
    if name == "smoothgrad":
        return peak_bytes(model, shape, options["base"], images, count) + 3 * images * array
    if name not in METHODS or name in WHOLE:
        return count(model, shape, method, images).peak_bytes
    batch = gradients.images_per_batch(torch.empty(1).expand(1, *shape))
    if name not in COMPOSITIONS:
        maps = images * array if images > batch else 0
        return count(model, shape, method, min(batch, images)).peak_bytes + maps
    step, copies, arrays = COMPOSITIONS[name]
    together = min(batch, images * copies(options, shape))
    found = count(model, shape, step, together).peak_bytes + arrays(options, images, together) * array
    return max(found, surrogate_bytes(options, images)) if name == "lime" else found


def surrogate_bytes(options: Options, images: int) -> int:
    """Bytes that LIME's regressions take at their worst moment."""
    shape = images, options["samples"], options["segments"]
    with torch.device("meta"), tallies.Tally() as tally:
        masks = torch.empty(shape, dtype=torch.float64)
        perturbation.lime_surrogate(masks, masks[..., 0], masks[..., 0], options["ridge"])
    return tally.peak_bytes + masks.nbytes


def step_tally(model: nn.Module, shape: Shape, step: str, images: int) -> Tally:
    """What one call of a method, or one "forward" pass without gradients, does to that many images."""
    x = torch.empty(images, *shape, dtype=dtype_of(model), device="meta")
    targets = torch.empty(images, dtype=torch.int64, device="meta")
    with tallies.Tally() as tally:
        if step == "forward":
            with torch.no_grad():
                result = model(x)
        else:
            result = explained(model, x, targets, step)
    del result
    return tally


def explained(model: nn.Module, images: Tensor, targets: Tensor, method: str) -> Tensor:
    """The method's maps. Raises UsageError for what cannot go without contents."""
    try:
        return attribute(model, images, targets, method)
    except UsageError:
        raise
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        # PyTorch's ways to say that the meta device has no values, which some methods and networks look at
        said = (str(error).splitlines() or [type(error).__name__])[0]
        problem = f"cannot be counted without computing it: {said}"
        raise UsageError("methods", method, problem) from error


def dtype_of(model: nn.Module) -> torch.dtype:
    """Of the model's parameters, float32 without any."""
    return next((parameter.dtype for parameter in model.parameters()), torch.float32)
