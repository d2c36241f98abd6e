"""Contexts in which a model may be used, or foreign code run, and after which all is as before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np

from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """The model in eval mode with frozen parameters; afterwards as before, whatever happened.

    Gradients can be taken inside, also where the caller is in inference mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    trainable = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.eval()
        for parameter, _ in trainable:
            parameter.requires_grad_(False)
        with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, mode in trainable:
            parameter.requires_grad_(mode)


def differentiable(images: Tensor) -> Tensor:
    """The images as gradients can be taken of them, inside `borrowed`: copied if inference mode made them."""
    return images.detach().clone() if images.is_inference() else images.detach()


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """The model afterwards as before: its modules' attributes and hooks, its tensors' values and gradients.

    Dictionaries are restored in place, for handles of hooks hold on to them; `.data` is written so that a
    graph waiting for its backward pass stays valid.
    """
    attributes = [(m, dict(vars(m))) for m in model.modules()]
    contents = [(d, dict(d)) for _, own in attributes for d in own.values() if isinstance(d, dict)]
    tensors = [(t, t.data, t.data.clone()) for t in (*model.parameters(), *model.buffers())]
    parameters = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    for parameter, _, _ in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for module, own in attributes:
            vars(module).clear()
            vars(module).update(own)
        for holder, content in contents:
            holder.clear()
            holder.update(content)
        for tensor, data, values in tensors:
            if tensor.data_ptr() != data.data_ptr():
                tensor.data = data
            if not torch.equal(data, values):
                data.copy_(values)
        for parameter, gradient, trainable in parameters:
            parameter.grad, parameter.requires_grad = gradient, trainable


@contextmanager
def seeded_streams(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Python's, NumPy's and torch's streams seeded from a copy of `generator`; afterwards as before."""
    seed = int(torch.randint(2**32, (), generator=generator.clone_state()).item())
    states = random.getstate(), np.random.get_state()
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach for every GPU
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
