"""Convolutions, ReLU and global mean as one operation: the numbers of the plain layers, less time on a CPU.

The plain layers write every activation of a batch to memory and read it back. Here a batch goes through in
parts whose activations stay in the cache, forward and backward, and a lone convolution of images that need
no gradient is differentiated while it is computed. Parts depend on shapes only, so the same input always
gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

CACHE_BYTES = 2**22
"""activations of the images that go through together"""
PATCH_VALUES = 16
"""patches of fewer values are faster multiplied as matrices than convolved"""

Gradients = tuple[Tensor | None, ...]


def convolve_and_pool(images: Tensor, *parameters: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Mean over positions after convolutions with ReLU, one after another, [N,K], in the images' dtype.

    `images` [N,C,H,W] on the CPU; `parameters` are each convolution's weight and bias (stride 1, no padding).
    Operands of two and more convolutions are rounded to `dtype`; a lone one would only lose time by it.
    """
    lone, few = len(parameters) == 2, parameters[0][0].numel() < PATCH_VALUES
    dtype = images.dtype if dtype is None or lone else dtype
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (images, *parameters))):
        return torch.cat([_run(part, parameters, dtype)[-1] for part in _parts(images, parameters)])
    if lone and few and not images.requires_grad:
        return _LonePooled.apply(images, *parameters)
    if lone and not few and images.requires_grad:
        return plain_convolve_and_pool(images, *parameters)  # nothing to gain
    return _Pooled.apply(images, dtype, *parameters)


def plain_convolve_and_pool(images: Tensor, *parameters: Tensor) -> Tensor:
    """What `convolve_and_pool` computes, layer by layer."""
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        images = nn.functional.conv2d(images, weight, bias).relu()
    return images.mean((2, 3))


class PooledNetwork(nn.Sequential):
    """Convolutions with ReLU, global average pool, flatten and a linear head: an `nn.Sequential` of these.

    On the CPU everything up to the pool runs as one operation, unless somebody looks inside: a hook,
    a tracer, another module in the place of one of these. Under autocast the convolutions run in its dtype.
    """

    splits_batches = True
    """on a CPU it goes through a batch in parts that stay in the cache: give it large ones"""

    def forward(self, input: Tensor) -> Tensor:
        """Logits [N,K] of images [N,C,H,W]."""
        layers = list(self.children())
        if not _can_fuse(layers, input):
            return super().forward(input)
        parameters = [tensor for layer in layers[:-3:2] for tensor in layer.parameters()]
        if not (torch.is_autocast_enabled("cpu") and input.dtype == torch.float32):
            return layers[-1](convolve_and_pool(input, *parameters))
        dtype = torch.get_autocast_dtype("cpu")
        with torch.autocast("cpu", enabled=False):
            return layers[-1](convolve_and_pool(input, *parameters, dtype=dtype))


def _can_fuse(layers: Sequence[nn.Module], images: Tensor) -> bool:
    """Whether the result is the plain layers', and nobody would miss what lies between them."""
    kinds = [type(layer) for layer in layers]
    pairs = (len(layers) - 3) // 2
    if pairs < 1 or kinds != [nn.Conv2d, nn.ReLU] * pairs + [nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear]:
        return False
    return bool(
        type(images) is Tensor
        and images.device.type == "cpu"
        and images.ndim == 4
        and len(images) > 0
        and images.dtype in (torch.float32, torch.float64)
        and layers[-3].output_size in (1, (1, 1))
        and layers[-2].start_dim == 1
        and all(_is_plain(layer, images.dtype) for layer in layers if isinstance(layer, nn.Conv2d))
        and not any(_is_watched(layer) for layer in layers[:-1])
        and not nn_module._has_any_global_hook()
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def _is_plain(conv: nn.Conv2d, dtype: torch.dtype) -> bool:
    return (
        (conv.stride, conv.padding, conv.dilation, conv.groups) == ((1, 1), (0, 0), (1, 1), 1)
        and conv.bias is not None
        and conv.weight.dtype == dtype
    )


def _is_watched(layer: nn.Module) -> bool:
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(hooks) or "forward" in vars(layer)


def _parts(images: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The batch in parts of one size whose activations fill the cache at most."""
    height, width = images.shape[2:]
    values = 0
    for weight in parameters[::2]:
        height, width = height - weight.shape[2] + 1, width - weight.shape[3] + 1
        values += len(weight) * height * width
    together = max(1, CACHE_BYTES // max(1, values * images.element_size()))
    parts = -(-len(images) // together)
    return images.split(-(-len(images) // parts))


def _lay_out(tensor: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """In the dtype, and for a stack of convolutions in channels-last order, which is faster there."""
    tensor = tensor.to(dtype)
    if count == 1:
        return tensor
    _, channels, height, width = tensor.shape
    strides = (channels * height * width, 1, width * channels, channels)  # PyTorch leaves one channel's open
    return tensor.contiguous(memory_format=torch.channels_last).as_strided(tensor.shape, strides)


def _run(part: Tensor, parameters: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Input of each convolution, the last activations, and their mean."""
    count = len(parameters) // 2
    states = [_lay_out(part, count, dtype)]
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        weight, bias = _lay_out(weight, count, dtype), bias.to(dtype)
        states.append(nn.functional.conv2d(states[-1], weight, bias).relu_())
    return [*states, states[-1].mean((2, 3), dtype=part.dtype)]


class _Pooled(torch.autograd.Function):
    """Keeps the activations of each part, and goes back through the parts from the last, still cached one."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, dtype: torch.dtype, *parameters: Tensor) -> Tensor:
        runs = [_run(part, parameters, dtype) for part in _parts(images, parameters)]
        ctx.dtype, ctx.count = dtype, 1 + len(parameters)
        ctx.save_for_backward(images, *parameters, *(state for run in runs for state in run[:-1]))
        return torch.cat([run[-1] for run in runs])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        inputs, states = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        if torch.is_grad_enabled():
            first, *rest = _plain_gradients(inputs, gradients[0])
            return first, None, *rest
        by_image, _, *by_parameter = ctx.needs_input_grad
        images, *parameters = inputs
        weights = [_lay_out(weight, len(parameters) // 2, ctx.dtype) for weight in parameters[::2]]
        sums = [torch.zeros_like(p) if by else None for p, by in zip(parameters, by_parameter, strict=True)]
        result = torch.empty_like(images, memory_format=torch.contiguous_format) if by_image else None
        slopes = (gradients[0] / states[-1][0, 0].numel())[:, :, None, None].to(ctx.dtype)
        end = len(images)
        for last in range(len(states), 0, -len(weights) - 1):
            part = states[last - len(weights) - 1 : last]
            rows = slice(end - len(part[0]), end)
            slope = _run_back(part, weights, slopes[rows].expand(part[-1].shape), sums, by_image)
            if result is not None:
                result[rows] = slope
            end = rows.start
        return result, None, *sums


def _run_back(
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    slope: Tensor,
    sums: Sequence[Tensor | None],
    by_image: bool,
) -> Tensor:
    """Adds one part's gradients by weights and biases to `sums`; returns that by its images, if wanted."""
    as_matrix = weights[0][0].numel() < PATCH_VALUES
    for layer in reversed(range(len(weights))):
        slope = torch.ops.aten.threshold_backward(slope, states[layer + 1], 0)
        by_weight, by_bias = sums[2 * layer : 2 * layer + 2]
        wanted = [layer > 0 or (by_image and not as_matrix), by_weight is not None, False]
        if by_bias is not None:
            by_bias += slope.sum((0, 2, 3), dtype=by_bias.dtype)
        if any(wanted):
            below, found, _ = torch.ops.aten.convolution_backward(
                slope, states[layer], weights[layer], None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, wanted
            )
            slope = below if wanted[0] else slope
            if by_weight is not None:
                by_weight += found
    if by_image and as_matrix:
        columns = weights[0].flatten(1).T @ slope.flatten(2)
        slope = nn.functional.fold(columns, states[0].shape[2:], weights[0].shape[2:])
    return slope


class _LonePooled(torch.autograd.Function):
    """One convolution of images that need no gradient: two matrix products an image, none on the way back.

    With an image's patches p [J,P], whose last row of ones carries the bias, and the mask m = [p' w > 0], the
    sums s = p m / P [J,K] give the mean, sum_j s w, and are its gradient by w [J,K]; they do not vary with w
    while no sign changes, so that what is returned can be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        matrix = torch.cat([weight.flatten(1).T, bias[None]])
        windows = images.unfold(2, weight.shape[2], 1).unfold(3, weight.shape[3], 1).permute(0, 1, 4, 5, 2, 3)
        size = len(_parts(images, (weight, bias))[0])
        patches = images.new_empty(size, len(matrix), windows[0, 0, 0, 0].numel())
        patches[:, -1] = 1
        masks = images.new_empty(size, patches.shape[2], len(bias))
        sums = images.new_empty(len(images), *matrix.shape)
        for window, out in zip(windows.split(size), sums.split(size), strict=True):
            p, m = patches[: len(window)], masks[: len(window)]
            p[:, :-1].view(window.shape).copy_(window)
            torch.bmm(p.transpose(1, 2), matrix.expand(len(window), -1, -1), out=m)
            torch.bmm(p, m.gt_(0), out=out)
        sums /= patches.shape[2]
        ctx.save_for_backward(sums)
        ctx.shape = weight.shape
        return (sums * matrix).sum(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        matrix = (ctx.saved_tensors[0] * gradients[0][:, None]).sum(0)
        return None, matrix[:-1].T.reshape(ctx.shape), matrix[-1]


def _plain_gradients(inputs: Sequence[Tensor], gradient: Tensor) -> list[Tensor | None]:
    """Gradients that can themselves be differentiated, from the plain layers."""
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    found = torch.autograd.grad(plain_convolve_and_pool(*inputs), wanted, gradient, create_graph=True)
    left = iter(found)
    return [next(left) if tensor.requires_grad else None for tensor in inputs]
