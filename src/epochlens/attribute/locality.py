"""Occlusion where only a part of a network can see the square: convolutions, a global average pool, linear.

Only crops around each square run through the convolutions; the rest of the pooled sum is the clean image's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

from epochlens.attribute.gradients import images_per_batch, micro_batches
from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
else:
    torch, nn, functional = LazyModule("torch"), LazyModule("torch.nn"), LazyModule("torch.nn.functional")


def covered(starts: Tensor, length: int, at: Tensor) -> Tensor:
    """Which of the positions at [...,L] lie in the stretch of that length from each of starts [K], [K,L]."""
    return (at >= starts[:, None]) & (at < starts[:, None] + length)


def coverage(images: Tensor, starts: list[Tensor], patch: int) -> list[Tensor]:
    """Which rows each row of squares covers, [I,H], and which columns each column of them, [J,W]."""
    sides = images.shape[2:]
    return [
        covered(s, patch, torch.arange(side, device=s.device)) for s, side in zip(starts, sides, strict=True)
    ]


def squares(images: Tensor, starts: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """For each image and each square in turn: the image's number, the square's row and its column."""
    counts = len(images), *map(len, starts)
    owner, i, j = torch.cartesian_prod(*(torch.arange(n, device=images.device) for n in counts)).unbind(1)
    return owner, i, j


class _Span(NamedTuple):
    """Along one axis, the stretch of a layer's input that each of K squares concerns."""

    at: Tensor
    """positions [K,length], consecutive; some may lie beyond the border"""
    side: int
    """positions that there are"""

    @property
    def inside(self) -> Tensor:
        return (self.at >= 0) & (self.at < self.side)


def local_drops(
    model: nn.Module, images: Tensor, targets: Tensor, starts: list[Tensor], patch: int, value: float
) -> Tensor | None:
    """The drop of the logit for each square, [N,rows,columns], from the outputs that see the square alone.

    None where that is no gain. Ahead of a global average pool and a linear layer, the drop is the sum over
    those outputs of their change times the target's weights, divided by the number of positions.
    """
    network = local_network(model)
    if network is None or not _agrees(model, *network, images[:2], value):
        return None
    layers, head = network
    rows, columns = (_spans(layers, axis, images.shape[2 + axis], starts[axis], patch) for axis in (0, 1))
    crop = images.shape[1], rows[0].at.shape[1], columns[0].at.shape[1]
    if crop[1] * crop[2] >= images[0, 0].numel():
        return None
    weights = head.weight[targets] / (rows[-1].side * columns[-1].side)
    hide = [covered(s, patch, span.at) for s, span in zip(starts, (rows[0], columns[0]), strict=True)]
    size, sums = images_per_batch(images.new_empty(1, *crop)), []
    for owner, i, j in zip(*(part.split(size) for part in squares(images, starts)), strict=True):
        hidden = hide[0][i, :, None] & hide[1][j, None, :]
        crops = torch.where(hidden[:, None], value, _crops(images, owner, rows[0].at[i], columns[0].at[j]))
        outputs = _run_crops(layers, crops, rows, columns, i, j)
        sums.append((outputs.sum((2, 3)) * weights[owner]).sum(1))
    clean = _clean_sums(layers, images, weights, rows[-1], columns[-1])
    return clean - torch.cat(sums).view_as(clean)


def local_network(model: nn.Module) -> tuple[list[nn.Module], nn.Linear] | None:
    """The layers ahead of a global average pool and the linear layer behind it; None for other structures.

    Those layers are convolutions padded with zeros and functions of single values. Of exactly these types and
    with no hooks: a subclass or a hook may do anything.
    """
    layers = _leaves(model) if isinstance(model, nn.Sequential) else []
    if [type(layer) for layer in layers[-3:]] != [nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear]:
        return None
    *front, pool, flatten, head = layers
    whole = pool.output_size in (1, (1, 1)) and (flatten.start_dim, flatten.end_dim) == (1, -1)
    changed = any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())
    local = whole and not changed and all(map(_is_local, front))
    return (front, cast("nn.Linear", head)) if local else None


def _leaves(model: nn.Sequential) -> list[nn.Module]:
    return [leaf for child in model for leaf in (_leaves(child) if type(child) is nn.Sequential else [child])]


def _agrees(model: nn.Module, layers: list[nn.Module], head: nn.Linear, images: Tensor, value: float) -> bool:
    """Whether the layers one after another give what the model gives, for images clean and all `value`.

    A subclass of Sequential may run its layers in a faster way of its own, or do something else.
    """
    if type(model) is nn.Sequential:
        return True
    images = torch.cat([images, torch.full_like(images[:1], value)])
    plain, own = images, model(images)
    for layer in layers:
        plain = layer(plain)
    plain = head(plain.mean((2, 3)))
    return own.shape == plain.shape and bool(
        (own - plain).abs().max() <= torch.finfo(images.dtype).eps ** 0.5 * plain.abs().max()
    )


def _is_local(layer: nn.Module) -> bool:
    if type(layer) is nn.Conv2d:
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if type(layer) is nn.BatchNorm2d:
        return not layer.training and layer.running_mean is not None
    if type(layer) in (nn.Dropout, nn.Dropout2d):
        return not layer.training
    return type(layer) in (nn.Identity, nn.ReLU, nn.LeakyReLU)


def _spans(layers: list[nn.Module], axis: int, side: int, starts: Tensor, patch: int) -> list[_Span]:
    """What each square concerns: at the input of each convolution in turn and, last, at the output.

    Forwards to the outputs that see the square (output o sees o * stride - padding and `reach` positions
    more), then backwards to all that those outputs need.
    """
    sizes = [_sizes(layer, axis) for layer in layers if isinstance(layer, nn.Conv2d)]
    sides, length = [side], patch
    for reach, stride, padding in sizes:
        starts = -((reach - padding - starts) // stride)
        length = (length - 1 + reach) // stride + 1
        sides.append((sides[-1] + 2 * padding - reach - 1) // stride + 1)
    at = starts[:, None] + torch.arange(length, device=starts.device)
    spans = [_Span(at, sides.pop())]
    for reach, stride, padding in reversed(sizes):
        steps = torch.arange((at.shape[1] - 1) * stride + reach + 1, device=starts.device)
        at = at[:, :1] * stride - padding + steps
        spans.insert(0, _Span(at, sides.pop()))
    return spans


def _sizes(layer: nn.Conv2d, axis: int) -> tuple[int, int, int]:
    reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
    return reach, layer.stride[axis], int(layer.padding[axis])


def _crops(images: Tensor, owner: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The images `owner` at rows [m,h] and columns [m,w], [m,C,h,w]; beyond the border repeats it."""
    rows, columns = rows.clamp(0, images.shape[2] - 1), columns.clamp(0, images.shape[3] - 1)
    return images.movedim(1, 3)[owner[:, None, None], rows[:, :, None], columns[:, None, :]].movedim(3, 1)


def _run_crops(
    layers: list[nn.Module], crops: Tensor, rows: list[_Span], columns: list[_Span], i: Tensor, j: Tensor
) -> Tensor:
    """The outputs that see the squares (i, j), [m,C,h,w], with zeros beyond the border.

    In the whole image a convolution sees zeros beyond the border of its input, so they are set here.
    """
    borders = zip(rows, columns, strict=True)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            x = _zero_beyond(crops, *next(borders), i, j)
            step, spread = layer.stride, layer.dilation
            crops = functional.conv2d(x, layer.weight, layer.bias, step, 0, spread, layer.groups)
        else:
            crops = layer(crops)
    return _zero_beyond(crops, *next(borders), i, j)


def _zero_beyond(x: Tensor, row: _Span, column: _Span, i: Tensor, j: Tensor) -> Tensor:
    if row.inside.all() and column.inside.all():
        return x
    return x * (row.inside[i, :, None] & column.inside[j, None, :])[:, None]


def _clean_sums(
    layers: list[nn.Module], images: Tensor, weights: Tensor, row: _Span, column: _Span
) -> Tensor:
    """Whole images' outputs times weights [N,C], summed where each square is seen, [N,rows,columns]."""
    scores = []
    for x, weight in zip(*micro_batches(images, weights), strict=True):
        for layer in layers:
            x = layer(x)
        scores.append(torch.einsum("nchw,nc->nhw", x, weight))
    rows, columns = (
        covered(s.at[:, 0], s.at.shape[1], torch.arange(s.side, device=images.device)).to(images)
        for s in (row, column)
    )
    return torch.einsum("nhw,ih,jw->nij", torch.cat(scores), rows, columns)
