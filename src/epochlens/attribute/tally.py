"""Counting operations and memory while they are done, or on the meta device as if they were.

Counted are the products that dominate a network's time (convolutions, linear layers, matrix products),
forward and backward, one multiply-accumulate as two operations, by the formulas of
`torch.utils.flop_counter`. Its own `FlopCounterMode` hooks every module and then cannot differentiate by an
image, which a `Tally` can.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

TOLD = torch.ops.aten._local_scalar_dense.default
COMPARED = (torch.ops.aten.allclose.default, torch.ops.aten.equal.default)


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
