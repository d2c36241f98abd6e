"""EpochLens: when during training do a network's explanations settle, and can that be trusted?

The folders are the flow, and nothing imports what stands to its right:

    learn ----\\
    attribute -+-> record --> (measure) --> show
                    sweep drives: plan, Ray Tune trials, Ray-parallel analysis

Public names: attribute, METHODS, evaluate, Tracker, load, similarity, analyze.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["METHODS", "Tracker", "analyze", "attribute", "evaluate", "load", "similarity"]

if TYPE_CHECKING:
    from epochlens.attribute.methods import METHODS, attribute
    from epochlens.attribute.quality import evaluate
    from epochlens.commands import analyze_path as analyze
    from epochlens.measure import similarity
    from epochlens.record.retrieval import load
    from epochlens.record.tracker import Tracker

HOMES = {
    "METHODS": ("epochlens.attribute.methods", "METHODS"),
    "Tracker": ("epochlens.record.tracker", "Tracker"),
    "analyze": ("epochlens.commands", "analyze_path"),
    "attribute": ("epochlens.attribute.methods", "attribute"),
    "evaluate": ("epochlens.attribute.quality", "evaluate"),
    "load": ("epochlens.record.retrieval", "load"),
    "similarity": ("epochlens.measure.similarity", ""),
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `import epochlens` costs nothing."""
    if name not in HOMES:
        raise AttributeError(f"module 'epochlens' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, attribute = HOMES[name]
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found
