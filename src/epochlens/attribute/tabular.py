"""LIME and SHAP of a classifier of tables: a number per feature, in units of the target's probability.

The packages lime and shap do the work; they come with `pip install 'epochlens[attribution]'`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epochlens.errors import UsageError

Floats = NDArray[np.float64]
PACKAGES = ("lime.lime_tabular", "shap")


def check_packages() -> None:
    """Raises UsageError with the command that installs them unless lime and shap can be imported."""
    for name in PACKAGES:
        _imported(name)


def lime_weights(
    predict: Callable[[Floats], Floats],
    training: Floats,
    row: Floats,
    target: int,
    *,
    samples: int = 1000,
    seed: int,
) -> Floats:
    """LIME's weight of every feature of a row [D] for one class, in the features' order, [D].

    `predict` gives probabilities [N,K] of rows [N,D]; `training` [T,D] says how features are distributed.
    Features are cut at the training quartiles, lime's default. A weight then is how much probability the
    target gains from the feature staying in the row's quarter, so it has SHAP's unit and its sign; without
    the cut it is a slope, which says where the probability rises, not what the row's value did. Samples
    also stay in the range of the training rows. `seed` decides all draws. Raises UsageError without lime.
    Ribeiro et al. 2016.
    """
    explainer = _imported("lime.lime_tabular").LimeTabularExplainer(
        training, discretize_continuous=True, feature_selection="none", random_state=seed
    )
    found = explainer.explain_instance(
        row, predict, labels=(target,), num_features=len(row), num_samples=samples
    )
    weights = np.zeros(len(row))
    for feature, weight in found.local_exp[target]:
        weights[feature] = weight
    return weights


def shap_values(forest: Any, rows: Floats, targets: NDArray[np.integer]) -> tuple[Floats, Floats]:
    """SHAP values of each row [R,D] for its target class [R], and the base value of that class: [R,D], [R].

    Exact for scikit-learn's trees and forests, with absent features averaged along the trees' paths by the
    training rows that took them. A row's values and its base add up to the target's probability. Targets
    are positions in `forest.classes_`. Raises UsageError without shap. Lundberg et al. 2020.
    """
    explainer = _imported("shap").TreeExplainer(forest)
    values = explainer.shap_values(rows)
    if isinstance(values, list):  # a list of classes before shap 0.45
        values = np.stack(values, axis=-1)
    base = np.asarray(explainer.expected_value, np.float64)
    return np.asarray(values, np.float64)[np.arange(len(rows)), :, targets], base[targets]


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        problem = f"does not import ({error}): pip install 'epochlens[attribution]'"
        raise UsageError("tabular", package, problem) from error
