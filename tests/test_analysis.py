"""What a sweep's analysis says of its maps, against direct computation from the stored maps."""

from __future__ import annotations

import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_sweep import SMALL, sweep

from epochlens.commands import analyze
from epochlens.measure import nulls
from epochlens.measure.similarity import cosine, spearman_abs
from epochlens.record import retrieval, store
from epochlens.record.tables import REDRAW
from epochlens.sweep import analysis

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
SMOOTH = "smoothgrad:samples=3"


@pytest.fixture(scope="module")
def analysed(tmp_path_factory, cluster):
    """Three seeds of one condition, a stochastic method: tables by name, maps by seed, results folder."""
    root = tmp_path_factory.mktemp("analysed")
    seeds = ["--models", "deep", "--seeds", "0", "1", "2", "--methods", "saliency", SMOOTH]
    code, document = sweep(root, *seeds, "--name", "a", *SMALL, "--epochs", "5", "--probe-samples", "12")
    assert code == 0
    results = Path(document["results"])
    tables = {path.stem: pd.read_parquet(path) for path in (results / "tables").glob("*.parquet")}
    maps = {s: retrieval.load(next((results / "runs").glob(f"*seed{s}-*"))) for s in range(3)}
    return tables, maps, results


def values(tables: dict[str, pd.DataFrame], **equal: Any) -> pd.DataFrame:
    """Rows of the stability table that hold the values."""
    frame = tables["stability"]
    for name, value in equal.items():
        frame = frame.loc[frame[name] == value]
    return frame.pivot(index="epoch", columns="sample", values="value")


def flat(maps: store.tables.Maps, m: int = 0) -> np.ndarray:
    return maps.attributions[:, m].reshape(6, 12, -1)


def test_references_cover_what_similarity_means_nothing(analysed):
    tables, _, _ = analysed
    found = tables["stability"].groupby("reference", observed=True)["epoch"].unique()
    covered = {
        "previous": range(2, 6),
        "final": range(6),
        "initial": range(1, 6),
        "edge": range(6),
        "random": range(6),
        "other_image": range(6),
        "redraw": range(6),
        "seeds": range(6),
    }
    expected = {name: list(epochs) for name, epochs in covered.items()}
    assert {name: sorted(epochs) for name, epochs in found.items()} == expected
    redrawn = tables["stability"].loc[tables["stability"]["reference"] == "redraw", "method"]
    assert set(redrawn) == {SMOOTH}


@pytest.mark.parametrize(("name", "metric"), [("cosine", cosine), ("spearman_abs", spearman_abs)])
def test_agreement_between_seeds_is_the_mean_over_the_other_seeds(analysed, name, metric):
    tables, maps, _ = analysed
    for seed in range(3):
        others = [metric(flat(maps[seed]), flat(maps[s])) for s in range(3) if s != seed]
        found = values(tables, reference="seeds", metric=name, method="saliency", seed=seed)
        np.testing.assert_allclose(found[list(maps[seed].samples)], np.mean(others, axis=0), atol=1e-9)
    pairs = [metric(flat(maps[a]), flat(maps[b])).mean(axis=1) for a, b in ((0, 1), (0, 2), (1, 2))]
    agreed = tables["agreement"]
    agreed = agreed.loc[(agreed["metric"] == name) & (agreed["method"] == "saliency")].sort_values("epoch")
    np.testing.assert_allclose(agreed["mean"], np.mean(pairs, axis=0), atol=1e-9)
    assert (agreed["ci_low"] <= agreed["mean"]).all()
    assert (agreed["ci_high"] >= agreed["mean"]).all()


def test_nulls_are_the_maps_they_are_named_after(analysed):
    tables, maps, results = analysed
    with np.load(next((results / "runs").glob("*seed1-*")) / "probe.npz") as probe:
        images, labels = probe["images"], probe["labels"]
    own = flat(maps[1])
    samples = list(maps[1].samples)
    chosen = {"metric": "cosine", "method": "saliency", "seed": 1}
    edges = nulls.edge_maps(images).reshape(12, -1)
    np.testing.assert_allclose(
        values(tables, reference="edge", **chosen)[samples], cosine(own, edges), atol=1e-9
    )
    generator = np.random.default_rng(zlib.crc32(maps[1].samples.tobytes()))
    random = generator.standard_normal(own.shape[1:])
    found = values(tables, reference="random", **chosen)[samples]
    np.testing.assert_allclose(found, cosine(own, random), atol=1e-9)
    others = nulls.other_image(labels)
    expected = np.where(others >= 0, cosine(own, own[:, others]), np.nan)
    np.testing.assert_allclose(
        values(tables, reference="other_image", **chosen)[samples], expected, atol=1e-9
    )
    folder = next((results / "runs").glob("*seed1-*"))
    again = retrieval.load(folder, [SMOOTH + REDRAW]).attributions[:, 0].reshape(6, 12, -1)
    found = values(tables, reference="redraw", metric="cosine", method=SMOOTH, seed=1)[samples]
    np.testing.assert_allclose(found, cosine(flat(maps[1], 1), again), atol=1e-9)


def test_calibrated_similarity_is_zero_at_another_image_and_one_at_identity(analysed):
    tables, maps, results = analysed
    with np.load(next((results / "runs").glob("*seed2-*")) / "probe.npz") as probe:
        others = nulls.other_image(probe["labels"])
    own, has = flat(maps[2]), others >= 0
    chosen = {"method": "saliency", "seed": 2, "metric": "calibrated_cosine", "reference": "final"}
    found = values(tables, **chosen)[list(maps[2].samples)].to_numpy()
    value = cosine(own, own[-1:])[:, has]
    null = cosine(own, own[-1:, others])[:, has].mean(axis=1, keepdims=True)
    np.testing.assert_allclose(found[:, has], (value - null) / (1 - null), atol=1e-9)
    assert np.isnan(found[:, ~has]).all()
    np.testing.assert_allclose(found[-1, has], 1, atol=1e-9)


def test_drift_divides_by_the_recorded_changes(analysed):
    tables, maps, results = analysed
    epochs = retrieval.read_epochs(next((results / "runs").glob("*seed0-*"))).set_index("epoch")
    drift = tables["drift"]
    drift = drift.loc[(drift["seed"] == 0) & (drift["method"] == "saliency")].set_index("epoch")
    lost = 1 - cosine(flat(maps[0])[2:], flat(maps[0])[1:-1]).mean(axis=1)
    for change in ("weight_change", "output_change"):
        steps = epochs[change].loc[2:].to_numpy()
        assert (steps > 0).all()
        np.testing.assert_allclose(drift[f"per_{change}"], lost / steps, rtol=1e-9)


def test_settling_is_counted_image_by_image(analysed):
    tables, _, _ = analysed
    images, summary = tables["settling_images"], tables["settling_summary"]
    for row in summary.to_dict("records"):
        same = images
        for key in ("method", "metric", "reference"):
            same = same.loc[same[key] == row[key]]
        assert len(same) == row["n_images"] == 3 * 12
        assert row["n_censored"] == same["censored"].sum()
        assert row["n_seeds"] == 3
    final = values(tables, reference="final", metric="cosine", method="saliency", seed=0)
    chosen = images.loc[
        (images["seed"] == 0) & (images["method"] == "saliency") & (images["metric"] == "cosine")
    ]
    chosen = chosen.loc[chosen["reference"] == "final"].set_index("sample")
    for sample, column in final.loc[1:].items():
        below = np.flatnonzero(column.to_numpy() < 0.95)
        first = int(column.index[below[-1] + 1]) if len(below) else 1
        assert chosen["epoch"][sample] == first
        assert chosen["censored"][sample] == (first == 5)


def test_patience_is_how_many_epochs_must_agree(analysed, tmp_path):
    tables, _, results = analysed
    places = ["--results-dir", str(results.parent), "--plots-dir", str(tmp_path)]
    copy = results.parent / "patient"
    shutil.copytree(results, copy)
    assert analyze(["patient", *places, "--patience", "4"]) == 0
    patient = {path.stem: pd.read_parquet(path) for path in (copy / "tables").glob("*.parquet")}
    assert set(patient["settling_summary"]["patience"]) == {4}
    defaults = tables["settling_summary"].groupby("reference")["patience"].unique()
    assert defaults["final"].tolist() == [2] and defaults["previous"].tolist() == [3]
    keys = ["seed", "method", "metric", "reference", "sample"]
    images = [part["settling_images"].set_index(keys).sort_index() for part in (tables, patient)]
    before: Any
    after: Any
    for reference in ("final", "previous"):
        before, after = (part.xs(reference, level="reference") for part in images)
        # Five trained epochs; a streak of four or more begins at epoch 2 or earlier.
        late = before["censored"] | (before["epoch"] > 2)
        assert (after["censored"] == late).all() and (after["epoch"] == before["epoch"].where(~late, 5)).all()
    before, after = (part["stabilisation"] for part in (tables, patient))
    for name, flag in (("epoch", "censored"), ("accuracy_epoch", "accuracy_censored")):
        late = before[flag] | (before[name] > 2)
        assert (after[flag] == late).all() and (after[name] == before[name].where(~late, 5)).all()
    assert late.any() and not before["censored"].all()
    same = pd.testing.assert_frame_equal
    same(patient["stability_summary"], tables["stability_summary"])
    grid = analysis.find_grid(copy)
    marks = {analysis.fingerprint(grid, 0.95, tmp_path, patience) for patience in (None, 2, 4)}
    assert len(marks) == 3
    assert not analysis.is_current(copy, tmp_path / "patient"), "the grid command would analyse anew"


@pytest.mark.parametrize("name", ["tables/stability.parquet", "tables/settling_summary.csv", "report.html"])
@pytest.mark.parametrize("damage", ["empty", "gone"])
def test_tables_and_report_are_current_only_as_they_were_written(analysed, tmp_path, name, damage):
    folder, plots = tmp_path / "a", tmp_path / "plots"
    shutil.copytree(analysed[2], folder)
    shutil.copytree(analysed[2].parents[1] / "plots" / "a", plots)
    inputs = analysis.fingerprint(analysis.find_grid(folder), analysis.TAU, plots)
    analysis.end_writing(folder / "tables", plots, inputs)
    assert analysis.is_current(folder, plots)
    path = plots / name if name == "report.html" else folder / name
    assert path.exists()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"")
    assert not analysis.is_current(folder, plots)


def test_an_analysis_that_is_broken_off_leaves_nothing_that_counts_as_current(
    analysed, tmp_path, monkeypatch
):
    folder, plots = tmp_path / "a", tmp_path / "plots"
    shutil.copytree(analysed[2], folder)
    analysis.analyze(folder, plots)
    assert analysis.is_current(folder, plots)

    def break_off(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(analysis, "write_tables", break_off)
    with pytest.raises(KeyboardInterrupt):
        analysis.analyze(folder, plots, 0.9)
    assert not analysis.is_current(folder, plots)
    assert not [*(folder / "tables").glob(".*.tmp")]


def test_two_analyses_of_one_sweep_follow_each_other(analysed, tmp_path):
    folder, plots = tmp_path / "a", tmp_path / "plots"
    shutil.copytree(analysed[2], folder)
    told: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        both = [
            pool.submit(analysis.analyze, folder, plots, tau, lambda step, *_: told.append(step))
            for tau in (0.9, 0.8)
        ]
        taus = {float(one.result(200).tables["settling_summary"]["tau"].iloc[0]) for one in both}
    assert taus == {0.9, 0.8}
    assert any(step.startswith("waiting for process") for step in told)
    assert len(pd.read_parquet(folder / "tables" / "stability.parquet")) == len(analysed[0]["stability"])


@pytest.mark.parametrize("bad", ["0", "1", "-3", "2.5", "many", ""])
def test_a_patience_that_is_no_count_is_refused(analysed, tmp_path, capsys, bad):
    results = analysed[2]
    places = ["--results-dir", str(results.parent), "--plots-dir", str(tmp_path)]
    assert analyze([results.name, *places, f"--patience={bad}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: patience") and "at least 2" in error


def test_runs_that_explain_different_images_are_not_compared_over_seeds(tmp_path):
    code, document = sweep(
        tmp_path, "--models", "small", "--seeds", "0", "1", "--probe-seed", "run", "--name", "r", *SMALL
    )
    assert code == 0
    rows = pd.read_parquet(Path(document["results"]) / "tables" / "stability.parquet")
    assert "seeds" not in set(rows["reference"])
    assert len({tuple(sorted(set(part["sample"]))) for _, part in rows.groupby("seed")}) == 2
