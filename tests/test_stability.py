"""A run's stability: every row recomputed from its definition, matrices from single comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from epochlens.measure.similarity import METRICS
from epochlens.measure.stability import (
    REFERENCES,
    epoch_matrix,
    similarities,
    temporal_variance,
)

SAMPLES = np.array([40, 3, 17])


def trajectory(epochs=6, images=3, seed=0):
    """Maps [T, N, 1, 5, 4] that drift non-linearly from noise to a pattern."""
    rng = np.random.default_rng(seed)
    start, end = rng.normal(size=(2, images, 1, 5, 4))
    steps = np.linspace(0, 1, epochs)[:, None, None, None, None]
    noise = rng.normal(size=(epochs, images, 1, 5, 4))
    return np.tanh(start * (1 - steps) ** 2 + end * steps + 0.2 * noise).astype(np.float32)


def flat(maps):
    return maps.reshape(*maps.shape[:2], -1)


def test_every_row_is_the_metric_of_its_epoch_and_reference():
    maps, epochs = trajectory(), np.array([0, 1, 2, 5, 6, 9])
    table: Any = similarities(maps, epochs, SAMPLES)
    before = {2: 1, 5: 2, 6: 5, 9: 6}
    assert len(table) == len(METRICS) * 3 * (4 + 6 + 5)
    for row in table.itertuples():
        then = {"previous": before.get(row.epoch), "final": 9, "initial": 0}[row.reference]
        now, then = (list(epochs).index(epoch) for epoch in (row.epoch, then))
        image = list(SAMPLES).index(row.sample)
        expected = METRICS[row.metric](flat(maps)[now, image], flat(maps)[then, image])
        np.testing.assert_allclose(row.value, expected, rtol=1e-13, atol=1e-15)


def test_columns_types_and_order_are_fixed():
    table: Any = similarities(trajectory(), np.arange(6), SAMPLES, metrics=("spearman", "cosine"))
    assert table.columns.tolist() == ["epoch", "reference", "metric", "sample", "value"]
    assert [table[name].dtype for name in ("epoch", "sample", "value")] == [np.int32, np.int32, np.float64]
    assert table["reference"].cat.categories.tolist() == list(REFERENCES)
    assert table["metric"].cat.categories.tolist() == list(METRICS)
    keys = [
        (
            ("spearman", "cosine").index(metric),
            REFERENCES.index(reference),
            epoch,
            list(SAMPLES).index(sample),
        )
        for epoch, reference, metric, sample in table.drop(columns="value").itertuples(index=False)
    ]
    assert keys == sorted(keys) and len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        ([0, 1, 2, 3], {"previous": [2, 3], "final": [0, 1, 2, 3], "initial": [1, 2, 3]}),
        ([1, 2, 4], {"previous": [2, 4], "final": [1, 2, 4]}),
        ([0, 1], {"final": [0, 1], "initial": [1]}),
        ([0], {"final": [0]}),
    ],
)
def test_references_have_rows_where_they_make_sense(epochs, expected):
    table: Any = similarities(trajectory(len(epochs)), epochs, SAMPLES, metrics=["cosine"])
    rows = {
        name: list(dict.fromkeys(part["epoch"])) for name, part in table.groupby("reference", observed=True)
    }
    assert rows == expected


def test_the_final_epoch_equals_itself_and_undefined_maps_stay_nan():
    maps = trajectory()
    maps[2, 1] = 0
    table: Any = similarities(maps, np.arange(6), SAMPLES, metrics=["cosine", "relative_l2"])
    final = table[(table["reference"] == "final") & (table["epoch"] == 5)]
    np.testing.assert_allclose(final["value"], [1, 1, 1, 0, 0, 0], atol=1e-12)
    undefined = table[table["value"].isna()]
    assert set(undefined["sample"]) == {SAMPLES[1]}
    cosine = undefined[undefined["metric"] == "cosine"]
    assert sorted(zip(cosine["reference"], cosine["epoch"], strict=True)) == [
        ("final", 2),
        ("initial", 2),
        ("previous", 2),
        ("previous", 3),
    ]
    # A zero map has a distance from a reference, but is none itself.
    distance = undefined[undefined["metric"] == "relative_l2"]
    assert list(zip(distance["reference"], distance["epoch"], strict=True)) == [("previous", 3)]


def test_what_does_not_fit_is_refused():
    maps = trajectory()
    with pytest.raises(ValueError, match=r"'cosin'.*cosine, spearman"):
        similarities(maps, np.arange(6), SAMPLES, metrics=["cosin"])
    with pytest.raises(ValueError, match="choose from"):
        epoch_matrix(maps, "ssim")
    for epochs in ([0, 1, 1, 2, 3, 4], [3, 2, 1, 0, 4, 5], [-1, 0, 1, 2, 3, 4]):
        with pytest.raises(ValueError, match="strictly increasing"):
            similarities(maps, epochs, SAMPLES)
    with pytest.raises(ValueError, match="fit"):
        similarities(maps, np.arange(5), SAMPLES)
    with pytest.raises(ValueError, match="fit"):
        similarities(maps, np.arange(6), SAMPLES[:2])


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.filterwarnings("error")
def test_the_matrix_holds_the_mean_of_single_comparisons(name):
    maps = trajectory()
    maps[2, 1] = 0
    maps[4] = 0
    matrix = epoch_matrix(maps, name)
    for i, now in enumerate(flat(maps)):
        for j, then in enumerate(flat(maps)):
            values = METRICS[name](now, then)
            defined = values[~np.isnan(values)]
            expected = defined.mean() if len(defined) else np.nan
            np.testing.assert_allclose(matrix[i, j], expected, atol=1e-12)
    assert np.isnan(matrix[:, 4]).all()


def test_the_matrix_is_symmetric_with_ones_on_its_diagonal():
    matrix = epoch_matrix(trajectory(), "spearman")
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-14)
    np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-12)


def test_temporal_variance_is_numpys_per_pixel_and_ignores_scale_when_normalised():
    maps = trajectory().astype(np.float64)
    raw, normalised = temporal_variance(maps)
    assert raw == pytest.approx(np.var(maps, axis=0, ddof=1).mean(), rel=1e-12)
    units = flat(maps) / np.linalg.norm(flat(maps), axis=-1, keepdims=True)
    assert normalised == pytest.approx(np.var(units, axis=0, ddof=1).mean(), rel=1e-12)
    growing = maps * np.array([1, 2, 3, 5, 8, 13])[:, None, None, None, None]
    assert temporal_variance(growing)[1] == pytest.approx(normalised, rel=1e-12)
    assert temporal_variance(7 * maps)[0] == pytest.approx(49 * raw, rel=1e-12)


@pytest.mark.filterwarnings("error")
def test_an_image_with_a_zero_map_has_no_normalised_variance():
    maps = trajectory()
    broken = maps.copy()
    broken[3, 1] = 0
    assert temporal_variance(broken)[1] == pytest.approx(temporal_variance(maps[:, [0, 2]])[1], rel=1e-12)
    assert temporal_variance(broken)[0] == pytest.approx(np.var(broken, axis=0, ddof=1).mean(), rel=1e-6)
    broken[0] = 0
    assert np.isnan(temporal_variance(broken)[1])


def test_temporal_variance_needs_two_epochs_and_finite_values():
    maps = trajectory()
    assert np.isnan(temporal_variance(maps[:1])).all()
    assert np.isnan(temporal_variance(maps[:0])).all()
    constant = np.repeat(maps[:1], 4, axis=0)
    np.testing.assert_allclose(temporal_variance(constant), 0, atol=1e-15)
    maps[1, 0, 0, 0, 0] = np.inf
    raw, normalised = temporal_variance(maps)
    assert np.isnan(raw) and normalised == pytest.approx(temporal_variance(maps[:, 1:])[1], rel=1e-12)
