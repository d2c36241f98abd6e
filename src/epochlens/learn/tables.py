"""Tables embedded in scikit-learn, split without anyone's random state, and the forests that learn them."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Facts(NamedTuple):
    """What must be known of a table before it is loaded."""

    classes: int
    n_test: int


DATASETS = {"iris": Facts(3, 30), "breast_cancer": Facts(2, 113)}


class Table(NamedTuple):
    """A data set of rows [N,D] float64 and labels [N], split, with the names of features and classes."""

    features: tuple[str, ...]
    classes: tuple[str, ...]
    x_train: NDArray[np.float64]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float64]
    y_test: NDArray[np.int64]


def load(dataset: str) -> Table:
    """scikit-learn's embedded table; every fifth row of each class is a test row, in the table's order."""
    bunch: Any = getattr(importlib.import_module("sklearn.datasets"), f"load_{dataset}")()
    x, y = np.asarray(bunch.data, np.float64), np.asarray(bunch.target, np.int64)
    test = np.zeros(len(y), bool)
    for label in np.unique(y):
        test[np.flatnonzero(y == label)[4::5]] = True
    features, classes = (tuple(map(str, names)) for names in (bunch.feature_names, bunch.target_names))
    return Table(features, classes, x[~test], y[~test], x[test], y[test])


def train(table: Table, trees: int, seed: int) -> Any:
    """A random forest of the training rows that depends on the seed alone."""
    ensemble = importlib.import_module("sklearn.ensemble")
    forest = ensemble.RandomForestClassifier(n_estimators=trees, random_state=seed, n_jobs=1)
    return forest.fit(table.x_train, table.y_train)
