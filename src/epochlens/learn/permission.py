"""What may run: a network or dataset that results name as code is the program of whoever made them."""

from __future__ import annotations

from epochlens.errors import UsageError
from epochlens.learn.data import DATASETS
from epochlens.learn.models import MODELS

PLAIN = {"model": (MODELS, ("torchvision",)), "dataset": (DATASETS, ("npz", "folder"))}
"""names, and what stands before a colon, that import no code of a user"""


def check_code(field: str, spec: str, allowed: bool) -> None:
    """Raises UsageError for a "model" or "dataset" that is code, unless that is allowed. Imports nothing."""
    names, kinds = PLAIN[field]
    kind, colon, _ = spec.partition(":")
    if not (allowed or spec in names or (colon and kind in kinds)):
        problem = f"is code of module {kind}, named by these results: to run it, start with --allow-code"
        raise UsageError(field, spec, problem)
