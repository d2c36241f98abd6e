"""Prediction-conditioned curves: every condition from its words, image by image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epochlens.measure.conditioned import CONDITIONS, conditioned, masks

EPOCHS = np.array([0, 1, 2, 5])
LABELS = np.array([1, 1, 0, 0])
# By image: always right once trained; right, then wrong, then right; never and stubborn; never, changing.
PREDICTIONS = np.array([[0, 1, 1, 2], [1, 1, 1, 3], [1, 0, 1, 2], [1, 1, 1, 3]])
VALUES = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8], [0.9, 0.1, 0.2, 0.3], [0.6, 0.4, np.nan, 0.8]])


def meets(condition, image, now, then, predictions=PREDICTIONS, labels=LABELS, epochs=EPOCHS):
    """Whether an image meets a condition between two positions, in the words of the contract."""
    right = [prediction == labels[image] for prediction in predictions[:, image]]
    trained = [hit for hit, epoch in zip(right, epochs, strict=True) if epoch >= 1]
    return {
        "all": True,
        "always_right": all(trained) and len(trained) > 0,
        "ever_right": any(trained),
        "right_at_both": right[now] and right[then],
        "kept": predictions[now, image] == predictions[then, image],
        "flipped": predictions[now, image] != predictions[then, image],
    }[condition]


def test_planted_images_meet_what_they_were_planted_for():
    at, met = masks(PREDICTIONS, LABELS, EPOCHS, "previous")
    assert at.tolist() == [2, 5]
    assert met["always_right"].tolist() == [[True, False, False, False]] * 2
    assert met["ever_right"].tolist() == [[True, True, False, False]] * 2
    assert met["right_at_both"].tolist() == [[True, False, False, False]] * 2
    assert met["flipped"].tolist() == [[False, True, False, True]] * 2
    at, met = masks(PREDICTIONS, LABELS, EPOCHS, "final")
    assert at.tolist() == [0, 1, 2, 5]
    assert met["flipped"].tolist() == [
        [True, False, False, True],
        [False] * 4,
        [False, True, False, True],
        [False] * 4,
    ]
    assert met["right_at_both"][:, 1].tolist() == [True, True, False, True]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 2), min_size=16, max_size=16), st.sampled_from(["previous", "final", "initial"])
)
def test_any_predictions_are_sorted_by_the_words(drawn, reference):
    predictions = np.reshape(drawn, (4, 4))
    at, met = masks(predictions, LABELS, EPOCHS, reference)
    assert tuple(met) == CONDITIONS
    for row, epoch in enumerate(at):
        now = list(EPOCHS).index(epoch)
        then = {"previous": now - 1, "final": 3, "initial": 0}[reference]
        for name, image in ((name, image) for name in CONDITIONS for image in range(4)):
            assert met[name][row, image] == meets(name, image, now, then, predictions)
    assert (met["kept"] ^ met["flipped"]).all()
    assert (met["always_right"] <= met["ever_right"]).all() and (met["right_at_both"] <= met["kept"]).all()


@pytest.mark.parametrize("reference", ["previous", "final", "initial"])
@pytest.mark.filterwarnings("error")
def test_curves_are_means_over_the_images_that_meet_the_condition(reference):
    table: Any = conditioned(VALUES, PREDICTIONS, LABELS, EPOCHS, reference)
    assert table.columns.tolist() == ["epoch", "condition", "value", "coverage", "n"]
    at = {"previous": [2, 5], "final": [0, 1, 2, 5], "initial": [1, 2, 5]}[reference]
    assert table["epoch"].tolist() == at * len(CONDITIONS)
    assert table["condition"].tolist() == [name for name in CONDITIONS for _ in at]
    for row in table.itertuples():
        now = list(EPOCHS).index(row.epoch)
        then = {"previous": now - 1, "final": 3, "initial": 0}[reference]
        images = [image for image in range(4) if meets(row.condition, image, now, then)]
        defined = [VALUES[now, image] for image in images if np.isfinite(VALUES[now, image])]
        assert (row.coverage, row.n) == (len(images) / 4, len(defined))
        np.testing.assert_allclose(row.value, np.mean(defined) if defined else np.nan, rtol=1e-12)


def test_an_undefined_value_lowers_n_but_not_coverage():
    table: Any = conditioned(VALUES, PREDICTIONS, LABELS, EPOCHS).set_index(["condition", "epoch"])
    assert table.loc[("kept", 5), ["coverage", "n"]].tolist() == [0.5, 1]
    assert table.loc[("kept", 5), "value"] == VALUES[3, 0]


def test_untrained_predictions_make_nobody_wrong():
    never = PREDICTIONS.copy()
    never[0] = 9
    for name in ("always_right", "ever_right"):
        was, now = (masks(p, LABELS, EPOCHS, "final")[1][name] for p in (PREDICTIONS, never))
        np.testing.assert_array_equal(was, now)
    _, met = masks(PREDICTIONS[:1], LABELS, EPOCHS[:1], "final")
    assert not met["always_right"].any() and not met["ever_right"].any()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="epochs of"):
        masks(PREDICTIONS[:3], LABELS, EPOCHS)
    with pytest.raises(ValueError, match="no reference 'seeds'"):
        masks(PREDICTIONS, LABELS, EPOCHS, "seeds")
    with pytest.raises(ValueError, match="increasing"):
        masks(PREDICTIONS, LABELS, EPOCHS[::-1])
    with pytest.raises(ValueError, match="one shape"):
        conditioned(VALUES[1:], PREDICTIONS, LABELS, EPOCHS)
