"""Null similarities: edges by hand, every row from its definition, calibration by its fixed points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epochlens.measure.nulls import (
    NULLS,
    calibrate,
    calibrated,
    drift_per_step,
    edge_maps,
    null_similarities,
    other_image,
    random_maps,
)
from epochlens.measure.similarity import METRICS
from epochlens.measure.stability import similarities

LABELS = np.array([1, 0, 1, 2, 0, 1])
SAMPLES = np.array([40, 3, 17, 8, 9, 11])
EPOCHS = np.array([0, 1, 2, 5])
METRIC_NAMES = ("cosine", "spearman_abs", "topk_jaccard")


def trajectory(channels=2, seed=0):
    """Maps [4, 6, C, 5, 4] whose images of one class share a pattern that grows over epochs."""
    rng = np.random.default_rng(seed)
    pattern = rng.normal(size=(3, channels, 5, 4))[LABELS]
    own = rng.normal(size=(6, channels, 5, 4))
    noise = rng.normal(size=(4, 6, channels, 5, 4))
    growing = np.array([0.0, 0.5, 1.0, 1.5])[:, None, None, None, None]
    return np.tanh(growing * (pattern + own) + 0.5 * noise)


def nulls(maps, images: Any = None, **options) -> Any:
    images = np.random.default_rng(1).uniform(size=maps.shape[1:]) if images is None else images
    rng = np.random.default_rng(2)
    return null_similarities(maps, EPOCHS, SAMPLES, images, LABELS, METRIC_NAMES, rng, **options)


def flat(maps):
    return maps.reshape(*maps.shape[:2], -1)


def test_edges_are_sobels_by_hand_and_vanish_on_a_plane_image():
    images = np.round(np.random.default_rng(0).uniform(size=(2, 3, 5, 6)), 2)
    edges = edge_maps(images)
    smooth, slope = np.array([1, 2, 1]), np.array([-1, 0, 1])
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    for n, c, y, x in np.ndindex(images.shape):
        window = padded[n, c, y : y + 3, x : x + 3]
        down, right = slope @ window @ smooth, smooth @ window @ slope
        assert edges[n, c, y, x] == pytest.approx(np.sqrt(down**2 + right**2), abs=1e-12)
    assert not edge_maps(np.full((1, 1, 4, 4), 0.3)).any()
    with pytest.raises(ValueError, match="N, C, H, W"):
        edge_maps(np.ones((3, 4)))


def test_random_maps_are_their_streams_and_resemble_nothing():
    maps = random_maps((50, 400), np.random.default_rng(0))
    np.testing.assert_array_equal(maps, random_maps((50, 400), np.random.default_rng(0)))
    similar = METRICS["cosine"](maps[:-1], maps[1:])
    assert abs(similar.mean()) < 4 / np.sqrt(49 * 400) and similar.std() == pytest.approx(1 / 20, rel=0.4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2, 7]), max_size=15))
def test_another_image_has_the_same_label_and_serves_once(drawn):
    labels = np.array(drawn, int)
    others = other_image(labels)
    alone = np.array([drawn.count(label) == 1 for label in drawn], bool)
    np.testing.assert_array_equal(others < 0, alone)
    paired = np.flatnonzero(others >= 0)
    assert sorted(others[paired]) == paired.tolist() and (others[paired] != paired).all()
    np.testing.assert_array_equal(labels[others[paired]], labels[paired])
    for image in paired.tolist():  # the next of its label, or the first when it is the last
        same = [i for i, label in enumerate(drawn) if label == drawn[image]]
        assert others[image] == same[(same.index(image) + 1) % len(same)]


@pytest.mark.filterwarnings("error")
def test_every_row_compares_a_map_with_what_its_reference_names():
    maps = trajectory()
    images = np.random.default_rng(1).uniform(size=maps.shape[1:])
    redraws = maps + 0.1 * np.random.default_rng(3).normal(size=maps.shape)
    table = nulls(maps, images, redraws=redraws)
    random = random_maps((6, 40), np.random.default_rng(2))
    other = {"edge": edge_maps(images).reshape(6, -1), "random": random}
    next_of_class = {0: 2, 1: 4, 2: 5, 4: 1, 5: 0}
    assert len(table) == len(METRIC_NAMES) * 4 * 4 * 6
    for row in table.itertuples():
        t, image = list(EPOCHS).index(row.epoch), list(SAMPLES).index(row.sample)
        if row.reference == "other_image":
            null = flat(maps)[t, next_of_class[image]] if image != 3 else np.full(40, np.nan)
        elif row.reference == "redraw":
            null = flat(redraws)[t, image]
        else:
            null = other[row.reference][image]
        expected = METRICS[row.metric](flat(maps)[t, image], null)
        np.testing.assert_allclose(row.value, expected, rtol=1e-12, atol=1e-14)
    assert table["value"].isna().sum() == len(METRIC_NAMES) * 4


def test_rows_fit_below_those_of_stability():
    maps = trajectory()
    table, rows = nulls(maps), similarities(maps, EPOCHS, SAMPLES, METRIC_NAMES)
    assert table.columns.tolist() == rows.columns.tolist()
    assert [table[name].dtype for name in ("epoch", "sample", "value")] == [np.int32, np.int32, np.float64]
    assert table["reference"].cat.categories.tolist() == list(NULLS)
    assert table["metric"].dtype == rows["metric"].dtype
    keys = [
        (METRIC_NAMES.index(metric), NULLS.index(reference), epoch, list(SAMPLES).index(sample))
        for epoch, reference, metric, sample in table.drop(columns="value").itertuples(index=False)
    ]
    assert keys == sorted(keys) and len(set(keys)) == len(keys)
    assert set(table["reference"]) == {"edge", "random", "other_image"}


def test_edges_fit_maps_of_one_channel_and_coarser_maps_and_tabular_inputs_have_none():
    images = np.random.default_rng(1).uniform(size=(6, 3, 10, 8))
    coarse = trajectory(channels=1)
    table = nulls(coarse, images)
    edges = edge_maps(images).mean(axis=1)
    halved = edges.reshape(6, 5, 2, 4, 2).mean(axis=(2, 4)).reshape(6, -1)
    edge = table[(table["reference"] == "edge") & (table["metric"] == "cosine") & (table["epoch"] == 5)]
    np.testing.assert_allclose(edge["value"], METRICS["cosine"](flat(coarse)[3], halved), rtol=1e-9)
    for none in (np.ones((6, 20)), np.array(None)):
        assert set(nulls(coarse, none)["reference"]) == {"random", "other_image"}
    pd.testing.assert_frame_equal(
        null_similarities(coarse, EPOCHS, SAMPLES, None, LABELS, METRIC_NAMES, np.random.default_rng(2)),
        table[table["reference"] != "edge"].reset_index(drop=True),
    )


def test_what_does_not_fit_is_refused():
    maps = trajectory()
    with pytest.raises(ValueError, match="redraws"):
        nulls(maps, redraws=maps[:, :2])
    with pytest.raises(ValueError, match="do not fit"):
        nulls(maps[:3], np.ones((6, 2, 5, 4)))
    with pytest.raises(ValueError, match="images"):
        nulls(maps, np.ones((5, 2, 5, 4)))
    with pytest.raises(ValueError, match="distance"):
        calibrated(maps, EPOCHS, LABELS, "relative_l2")
    with pytest.raises(ValueError, match="no reference 'initial'"):
        calibrated(maps[1:], EPOCHS[1:], LABELS, reference="initial")
    with pytest.raises(ValueError, match="choose from"):
        calibrated(maps, EPOCHS, LABELS, "ssim")
    with pytest.raises(ValueError, match="fit"):
        calibrated(maps, EPOCHS, LABELS[:3])
    with pytest.raises(ValueError, match="increasing"):
        calibrated(maps, EPOCHS[::-1], LABELS)


@settings(max_examples=60, deadline=None)
@given(st.floats(-1, 1), st.floats(-1, 0.99))
def test_calibration_is_linear_between_null_and_identity(value, null):
    assert calibrate(null, null) == 0 and calibrate(1, null) == pytest.approx(1)
    assert calibrate((value + null) / 2, null) == pytest.approx(calibrate(value, null) / 2, abs=1e-9)


@pytest.mark.filterwarnings("error")
def test_calibration_is_undefined_where_the_null_is_identity():
    assert np.isnan(calibrate([0.5, 1.0, np.nan, 0.5], [1.0, 1.0, 0.2, np.nan])).all()


@pytest.mark.parametrize("metric", METRIC_NAMES)
@pytest.mark.parametrize("reference", ["previous", "final", "initial"])
@pytest.mark.filterwarnings("error")
def test_calibrated_similarity_is_the_ratio_of_means_over_images_of_the_same_two_epochs(metric, reference):
    maps = trajectory()
    maps[2, 4] = 0
    at, values = calibrated(maps, EPOCHS, LABELS, metric, reference)
    then_of = {"previous": {2: 1, 5: 2}, "final": dict.fromkeys([0, 1, 2, 5], 5)}
    then_of["initial"] = dict.fromkeys([1, 2, 5], 0)
    assert at.tolist() == list(then_of[reference])
    next_of_class = {0: 2, 1: 4, 2: 5, 4: 1, 5: 0}
    for epoch, row in zip(at, values, strict=True):
        now, then = (list(EPOCHS).index(e) for e in (epoch, then_of[reference][int(epoch)]))
        own = {i: METRICS[metric](flat(maps)[now, i], flat(maps)[then, i]) for i in next_of_class}
        null = {i: METRICS[metric](flat(maps)[now, i], flat(maps)[then, j]) for i, j in next_of_class.items()}
        used = [i for i in next_of_class if np.isfinite(own[i]) and np.isfinite(null[i])]
        n = np.mean([null[i] for i in used])
        np.testing.assert_array_equal(np.isfinite(row), np.isin(np.arange(6), used))
        for i in used:
            assert row[i] == pytest.approx((own[i] - n) / (1 - n), rel=1e-10, abs=1e-12)
        assert row[used].mean() == pytest.approx((np.mean([own[i] for i in used]) - n) / (1 - n), rel=1e-10)


def test_calibration_removes_what_images_of_a_class_share():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    shared = 3 * rng.normal(size=(2, 60))[labels]
    start, end = rng.normal(size=(2, 200, 60))
    unrelated = np.stack([shared + start, shared + end])
    raw = METRICS["cosine"](*unrelated).mean()
    _, values = calibrated(unrelated, [1, 2], labels, "cosine", "previous")
    assert raw > 0.8 and abs(np.nanmean(values)) < 0.05
    _, values = calibrated(unrelated, [1, 2], labels, "cosine", "final")
    np.testing.assert_allclose(values[1], 1, rtol=1e-9)


@pytest.mark.filterwarnings("error")
def test_drift_per_step_is_the_same_for_a_path_taken_in_smaller_steps():
    angles = np.linspace(0, 0.02, 3)
    loss = [drift_per_step(1 - step, step) for step in angles[1:]]
    np.testing.assert_allclose(loss, 1, rtol=1e-9)
    result = drift_per_step([0.9, 0.9, np.nan, 1.0, 0.5], [0.2, 0.0, 0.1, 0.3, np.nan])
    np.testing.assert_allclose(result, [0.5, np.nan, np.nan, 0.0, np.nan], rtol=1e-12)
