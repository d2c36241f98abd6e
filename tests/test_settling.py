"""Settling epochs: planted in series whose answer is known, and against the definition on random ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epochlens.measure.settling import (
    settling_epoch,
    settling_on_previous,
    stabilisation,
)

EPOCHS = np.array([1, 2, 3, 5, 8, 9])
LOW, HIGH, GAP = 0.5, 0.97, np.nan


def settle_by_definition(values, epochs, tau, patience):
    """The first epoch from which all values are at or above tau, by trying each from the first."""
    for start, epoch in enumerate(epochs):
        rest = [value >= tau for value in values[start:]]
        if all(rest) and len(rest) >= patience and start < len(epochs) - 1:
            return epoch, False
    return epochs[-1], True


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([HIGH] * 6, (1, False)),
        ([LOW, HIGH, HIGH, HIGH, HIGH, 1], (2, False)),
        ([HIGH, HIGH, LOW, HIGH, HIGH, 1], (5, False)),
        ([LOW, LOW, LOW, LOW, 0.95, 1], (8, False)),
        ([LOW, LOW, LOW, LOW, LOW, 1], (9, True)),
        ([HIGH, HIGH, HIGH, HIGH, HIGH, LOW], (9, True)),
        ([HIGH, GAP, HIGH, HIGH, HIGH, 1], (3, False)),
        ([HIGH, HIGH, HIGH, HIGH, GAP, 1], (9, True)),
        ([HIGH, HIGH, HIGH, HIGH, HIGH, GAP], (9, True)),
        ([GAP] * 6, (9, True)),
    ],
)
def test_planted_epochs_are_found(values, expected):
    epoch, censored = settling_epoch(values, EPOCHS)
    assert (epoch, censored) == expected


def test_patience_asks_for_a_longer_streak():
    values = [LOW, LOW, LOW, HIGH, HIGH, 1]
    for patience, expected in ((1, (5, False)), (3, (5, False)), (4, (9, True))):
        assert settling_epoch(values, EPOCHS, patience=patience) == expected


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([LOW, HIGH, GAP]), min_size=24, max_size=24),
    st.integers(1, 7),
    st.floats(0.4, 0.99),
)
def test_any_series_settles_by_the_definition(drawn, patience, tau):
    values = np.reshape(drawn, (2, 2, 6))
    epoch, censored = settling_epoch(values, EPOCHS, tau, patience)
    for index in np.ndindex(2, 2):
        assert (epoch[index], censored[index]) == settle_by_definition(values[index], EPOCHS, tau, patience)


def test_a_stricter_threshold_never_settles_earlier():
    values = np.sort(np.random.default_rng(0).uniform(0.5, 1, (50, 12)), axis=-1)
    taus = np.linspace(0.5, 1, 20)
    settled = np.stack([settling_epoch(values, np.arange(12), tau)[0] for tau in taus])
    assert (np.diff(settled, axis=0) >= 0).all() and (np.diff(settled, axis=0) > 0).any()


def test_one_epoch_alone_is_censored_and_bad_arguments_are_refused():
    assert settling_epoch([1.0], [4]) == (4, True)
    with pytest.raises(ValueError, match="last axis"):
        settling_epoch(np.ones(5), EPOCHS)
    with pytest.raises(ValueError, match="increasing"):
        settling_epoch(np.ones(3), [1, 3, 2])
    with pytest.raises(ValueError, match="patience"):
        settling_epoch(np.ones(6), EPOCHS, patience=0)


@pytest.mark.parametrize(
    ("values", "patience", "expected"),
    [
        ([LOW, LOW, HIGH, HIGH, HIGH, HIGH], 3, (3, False)),
        ([LOW, LOW, LOW, HIGH, HIGH, HIGH], 3, (5, False)),
        ([LOW, LOW, LOW, HIGH, HIGH, HIGH], 4, (9, True)),
        ([HIGH, HIGH, HIGH, HIGH, LOW, HIGH], 2, (9, True)),
        ([HIGH, HIGH, HIGH, HIGH, LOW, HIGH], 1, (9, False)),
        ([HIGH, HIGH, HIGH, HIGH, HIGH, LOW], 1, (9, True)),
        ([HIGH, HIGH, GAP, HIGH, HIGH, 0.95], 3, (5, False)),
        ([HIGH] * 6, 6, (1, False)),
        ([HIGH] * 6, 7, (9, True)),
    ],
)
def test_planted_epochs_are_found_on_the_previous_epoch_with_patience(values, patience, expected):
    assert settling_on_previous(values, EPOCHS, patience=patience) == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([LOW, HIGH, GAP]), min_size=12, max_size=12), st.integers(1, 7))
def test_settling_on_previous_by_its_definition(drawn, patience):
    values = np.reshape(drawn, (2, 6))
    epoch, censored = settling_on_previous(values, EPOCHS, 0.95, patience)
    for row, found, late in zip(values, epoch, censored, strict=True):
        stays = [start for start in range(6) if 6 - start >= patience and (row[start:] >= 0.95).all()]
        assert (found, late) == ((EPOCHS[stays[0]], False) if stays else (9, True))


def tables() -> tuple[Any, Any]:
    """Two runs of different length with planted series: (by_seed, epochs)."""
    runs = {
        # seed: (similarity to final of epochs 0.., accuracy of epochs 0..)
        3: ([0.99, LOW, LOW, HIGH, HIGH, 1], [0.1, 0.5, 0.90, 0.80, 0.91, 0.90]),
        4: ([0.99, HIGH, HIGH, 1], [0.9, 0.97, 0.5, 1.0]),
    }
    similar, accurate = [], []
    for seed, (values, accuracies) in runs.items():
        run = {"dataset": "digits", "model": "small", "learning_rate": 0.01, "seed": seed}
        for epoch, (value, accuracy) in enumerate(zip(values, accuracies, strict=True)):
            accurate.append(run | {"epoch": epoch, "accuracy": accuracy, "train_loss": 1.0, "test_loss": 1.0})
            row = run | {"run_id": f"r{seed}", "method": "saliency", "epoch": epoch, "n_undefined": 0}
            for metric in ("cosine", "spearman"):
                similar.append(row | {"metric": metric, "reference": "final", "value": value})
            similar.append(row | {"metric": "relative_l2", "reference": "final", "value": 1 - value})
            similar.append(row | {"metric": "cosine", "reference": "initial", "value": 1.0})
    return pd.DataFrame(similar), pd.DataFrame(accurate)


def test_runs_settle_after_their_accuracy_or_before_it():
    by_seed, epochs = tables()
    table: Any = stabilisation(by_seed.sample(frac=1, random_state=0), epochs.sample(frac=1, random_state=1))
    keys = ["dataset", "model", "learning_rate", "seed", "method", "metric"]
    assert table.columns.tolist() == [
        *keys,
        *("epoch", "censored", "accuracy_epoch", "lag", "accuracy_censored"),
    ]
    assert sorted(zip(table["seed"], table["metric"], strict=True)) == [
        (seed, metric) for seed in (3, 4) for metric in ("cosine", "spearman")
    ]
    # Seed 3: 0.80 is too far below 0.90, 0.91 and 0.90 are within 5 %. Seed 4: 0.5 is not, only the end is.
    first, second = (table[table["seed"] == seed].iloc[0] for seed in (3, 4))
    assert (first["epoch"], first["censored"], first["accuracy_epoch"], first["lag"]) == (3, False, 4, -1)
    assert (second["epoch"], second["censored"], second["accuracy_epoch"], second["lag"]) == (1, False, 3, -2)
    assert (first["accuracy_censored"], second["accuracy_censored"]) == (False, True)


def test_the_threshold_and_the_metrics_are_the_callers():
    by_seed, epochs = tables()
    table: Any = stabilisation(by_seed, epochs, tau=0.98, metrics=["cosine"])
    assert table["metric"].unique().tolist() == ["cosine"]
    assert table.set_index("seed")[["epoch", "censored"]].T.to_dict("list") == {3: [5, True], 4: [3, True]}


def test_a_run_without_accuracy_has_no_lag():
    by_seed, epochs = tables()
    epochs.loc[epochs["seed"] == 4, "accuracy"] = np.nan
    for known in (epochs, epochs[epochs["seed"] == 3]):
        table: Any = stabilisation(by_seed, known).set_index("seed")
        assert table.loc[4, ["accuracy_epoch", "lag"]].isna().to_numpy().all()
        assert table.loc[4, "accuracy_censored"].all() and not table.loc[3, "accuracy_censored"].any()
        assert (table.loc[3, "lag"] == -1).all()


def test_accuracies_of_zero_agree():
    by_seed, epochs = tables()
    epochs["accuracy"] = 0.0
    table: Any = stabilisation(by_seed, epochs)
    assert (table["accuracy_epoch"] == 1).all() and not table["accuracy_censored"].any()


def test_two_runs_with_the_same_keys_are_refused_and_no_rows_give_no_rows():
    by_seed, epochs = tables()
    with pytest.raises(ValueError, match="more than one run has dataset digits"):
        stabilisation(pd.concat([by_seed, by_seed]), epochs)
    nothing: Any = stabilisation(by_seed, epochs, metrics=["topk_jaccard"])
    assert len(nothing) == 0 and nothing.columns.tolist() == stabilisation(by_seed, epochs).columns.tolist()


def test_categorical_columns_settle_the_same():
    by_seed, epochs = tables()
    typed = by_seed.astype(dict.fromkeys(["dataset", "model", "method", "reference", "metric"], "category"))
    table: Any = stabilisation(typed, epochs)
    plain: Any = stabilisation(by_seed, epochs)
    pd.testing.assert_frame_equal(table, plain, check_dtype=False, check_categorical=False)
