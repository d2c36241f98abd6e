"""What a method costs on a network: floating-point operations and memory, without computing anything.

Networks and images lie on PyTorch's meta device, where a tensor is a shape without contents. Counted are
the products that dominate a network's time (convolutions, linear layers, matrix products), forward and
backward, one multiply-accumulate as two operations, by the formulas of `torch.utils.flop_counter`. Its own
`FlopCounterMode` hooks every module and then cannot differentiate by an image, which a `Tally` can.
"""

from __future__ import annotations

import ctypes
import gc
import math
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from epochlens.attribute import gradients, perturbation
from epochlens.attribute.methods import METHODS, attribute, default_options, parse_method
from epochlens.errors import UsageError

Options = Mapping[str, Any]
Shape = tuple[int, int, int]
"""(C, H, W) of an image"""
FEW = 2
"""images on which operations are counted: what is done once for a call, is done for up to two of them"""
TOLD = torch.ops.aten._local_scalar_dense.default
COMPARED = (torch.ops.aten.allclose.default, torch.ops.aten.equal.default)


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


class Tally(TorchDispatchMode):
    """Counts the operations inside, and the bytes of the tensors that they make, while it is entered.

    On the meta device there is nothing to look at: a comparison is taken to hold, a number to be 1. So
    checks of what a method gives pass, as they do for the networks that they are meant for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.bytes, self.peak_bytes = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation and counts it."""
        kwargs = kwargs or {}
        inputs = tensors_in((args, kwargs))
        if inputs and inputs[0].is_meta and (func is TOLD or func in COMPARED):
            return True if func in COMPARED or inputs[0].dtype == torch.bool else 1
        for tensor in inputs:
            self._hold(tensor, new=False)
        result = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
        arriving = bool(inputs) and not inputs[0].is_meta  # of draws: no copy where images are on the CPU
        for tensor in tensors_in(result):
            self._hold(tensor, new=not (arriving and tensor.is_meta))
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        return result

    def _hold(self, tensor: Tensor, *, new: bool) -> None:
        """Counts the tensor's memory until it goes; views share it, and what came in from outside is free."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if new else 0
        if key not in self._known:
            self._known.add(key)
            self.bytes += size
            weakref.finalize(storage, self._release, key, size).atexit = False

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors among the leaves of nested lists, tuples and dictionaries."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def method_cost(model: nn.Module, shape: Shape, method: str, images: int = 32) -> Cost:
    """The cost of a method for a call with that many images of shape (C,H,W), on a model on the meta device.

    `model` is any module in PyTorch's meta device (`with torch.device("meta")`). Memory is that of the CPU's
    micro-batches. Raises UsageError as `attribute` does, and for a method that cannot go without contents.
    """
    forward = step_tally(model, shape, "forward", 1).flops
    flops = method_flops(model, shape, method, images)
    return Cost(flops, flops / forward if forward else math.nan, peak_bytes(model, shape, method, images))


def method_flops(model: nn.Module, shape: Shape, method: str, images: int = 32) -> float:
    """Floating-point operations per image of a call with that many images.

    What grows with the images is counted on two and on three of them, so the work of large images stays
    small; what a call does once is shared by all of them. SmoothGrad's samples are alike: one is counted.
    """
    name, given = parse_method(method)
    options = default_options(name) | given
    passes = forward_passes(model, shape, name, options)
    if passes is not None:
        return float(passes * step_tally(model, shape, "forward", 1).flops)
    if name == "smoothgrad":
        return options["samples"] * method_flops(model, shape, options["base"], images)
    if images <= FEW:
        return step_tally(model, shape, method, images).flops / images
    two, three = (step_tally(model, shape, method, count).flops for count in (FEW, FEW + 1))
    return three - two + (two - FEW * (three - two)) / images


def peak_bytes(model: nn.Module, shape: Shape, method: str, images: int = 32) -> float:
    """Bytes that a call with that many images takes at its worst moment on a CPU.

    That is the largest step on one micro-batch, with the activations kept for its backward pass, and arrays
    of the images' size. What PyTorch's kernels take for themselves is not in it.
    """
    name, given = parse_method(method)
    options = default_options(name) | given
    array = math.prod(shape) * torch.empty(0, dtype=dtype_of(model)).element_size()
    if name == "smoothgrad":
        return peak_bytes(model, shape, options["base"], images) + 3 * images * array
    if name not in METHODS or name in WHOLE:
        return step_tally(model, shape, method, images).peak_bytes
    batch = gradients.images_per_batch(torch.empty(1).expand(1, *shape))
    if name not in COMPOSITIONS:
        maps = images * array if images > batch else 0
        return step_tally(model, shape, method, min(batch, images)).peak_bytes + maps
    step, copies, arrays = COMPOSITIONS[name]
    together = min(batch, images * copies(options, shape))
    found = step_tally(model, shape, step, together).peak_bytes + arrays(options, images, together) * array
    return max(found, surrogate_bytes(options, images)) if name == "lime" else found


def surrogate_bytes(options: Options, images: int) -> int:
    """Bytes that LIME's regressions take at their worst moment."""
    shape = images, options["samples"], options["segments"]
    with torch.device("meta"), Tally() as tally:
        masks = torch.empty(shape, dtype=torch.float64)
        perturbation.lime_surrogate(masks, masks[..., 0], masks[..., 0], options["ridge"])
    return tally.peak_bytes + masks.nbytes


def step_tally(model: nn.Module, shape: Shape, step: str, images: int) -> Tally:
    """What one call of a method, or one "forward" pass without gradients, does to that many images."""
    x = torch.empty(images, *shape, dtype=dtype_of(model), device="meta")
    targets = torch.empty(images, dtype=torch.int64, device="meta")
    with Tally() as tally:
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
        problem = f"cannot be counted without computing it: {str(error).splitlines()[0]}"
        raise UsageError("methods", method, problem) from error


def dtype_of(model: nn.Module) -> torch.dtype:
    """Of the model's parameters, float32 without any."""
    return next((parameter.dtype for parameter in model.parameters()), torch.float32)


def memory_growth(call: Callable[[], object]) -> int | None:
    """Bytes by which the call lets this process grow at its worst moment; None where Linux does not tell.

    Memory that was freed before is given back to the system first, for a call that reuses it does not grow.
    """
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the highest value so far
        before = resident("VmRSS")
        call()
        return max(0, resident("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def resident(name: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most so far. Raises OSError."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in /proc/self/status")
