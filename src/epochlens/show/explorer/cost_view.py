"""What methods cost on a network, counted once and remembered: asking again with other S and N is quick."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from epochlens.attribute import cost, machine
from epochlens.attribute.methods import all_methods
from epochlens.errors import UsageError
from epochlens.lazy import LazyModule
from epochlens.learn import meta, models

if TYPE_CHECKING:
    from torch import nn

    from epochlens.attribute.tally import Tally
else:
    nn = LazyModule("torch.nn")

SECONDS = 0.3
"""for which the speed of this machine is measured"""


def offered_models(recorded: Sequence[str]) -> list[str]:
    """The networks that can be asked about: those of the sweep, the built-in ones, some of torchvision's."""
    more = [meta.full_name(name) for name in meta.KNOWN] if importlib.util.find_spec("torchvision") else []
    return list(dict.fromkeys([*recorded, *models.MODELS, *more]))


@lru_cache(maxsize=16)
def meta_network(spec: str, shape: cost.Shape, classes: int) -> nn.Module:
    """The network as shapes. Raises UsageError where it does not fit the images."""
    return meta.build_meta(spec, shape, classes)


@lru_cache(maxsize=2048)
def count(network: nn.Module, shape: cost.Shape, step: str, images: int) -> Tally:
    """`cost.step_tally`, remembered; networks of `meta_network` do not change."""
    return cost.step_tally(network, shape, step, images)


@lru_cache(maxsize=1)
def speed() -> float:
    """Operations per second of large matrix products on one thread, measured once."""
    return machine.matmul_peak(SECONDS)


def rows(
    spec: str, shape: cost.Shape, classes: int, images: int, numbers: Mapping[str, int]
) -> list[dict[str, Any]]:
    """A row per method that the network can have: flops, forwards, peak_bytes, seconds. Raises UsageError."""
    network = meta_network(spec, shape, classes)
    labels = [cost.with_numbers(method, numbers) for method in all_methods()]
    found = cost.costs(network, shape, labels, images, count)
    return [
        {"method": method, **one._asdict(), "predicted_seconds": one.flops / speed()}
        for method, one in found.items()
        if not isinstance(one, UsageError)
    ]


def forwards(spec: str, shape: cost.Shape, classes: int, methods: Sequence[str]) -> dict[str, float]:
    """Forward passes that one image takes by each method; those that cannot be counted are left out."""
    try:
        network = meta_network(spec, shape, classes)
    except UsageError:
        return {}
    found = cost.costs(network, shape, methods, 1, count)
    return {method: one.forwards for method, one in found.items() if not isinstance(one, UsageError)}
