"""The explorer's data, pictures, figures and callbacks as functions: what is shown is what was recorded."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("dash", reason="the explorer needs dash: pip install 'epochlens[explore]'")

from dash.exceptions import PreventUpdate
from plotly.graph_objects import Figure

from epochlens.errors import UsageError
from epochlens.measure.ranking import summarise_quality
from epochlens.record import files, retrieval, store
from epochlens.record.tables import Maps
from epochlens.show.explorer import (
    answer,
    app,
    command,
    cost_page,
    cost_view,
    data,
    exports,
    facets,
    figures,
    maps_drawing,
    model_drawing,
    model_page,
    model_view,
    overviews,
    pages,
    panels,
    patience,
    pictures,
    probabilities,
    tables_view,
    view,
)

METHODS = ["saliency", "integrated_gradients"]
EPOCHS, IMAGES, SHAPE = 5, 4, (2, 6, 7)
GRID = [
    ("digits", model, rate, seed) for model in ("small", "deep") for rate in (0.001, 0.01) for seed in (0, 1)
]


def record_of(dataset: str, model: str, rate: float, seed: int, **more: object) -> dict:
    name = f"{dataset}-{model}-lr{rate:g}-seed{seed}"
    about = {"dataset": dataset, "model": model, "learning_rate": rate, "seed": seed, "methods": METHODS}
    return {"run_id": name, **about, "epochs": EPOCHS - 1, "classes": list(range(10, 20)), **more}


def write_epoch(folder: Path, epoch: int, rng: np.random.Generator) -> None:
    attributions = rng.normal(size=(1, len(METHODS), IMAGES, *SHAPE)).astype(np.float32)
    samples = np.arange(30, 30 + IMAGES, dtype=np.int32)
    targets, predictions = (
        np.array([[0, 1, 2, 3]], np.int32),
        rng.integers(0, 9, (1, IMAGES)).astype(np.int32),
    )
    maps = Maps(attributions, np.array([epoch], np.int32), np.array(METHODS), samples, targets, predictions)
    store.commit_epoch(folder, epoch, maps, {"accuracy": epoch / 10, "test_loss": 1.0}, None)


def write_run(folder: Path, record: dict, epochs: int = EPOCHS, done: bool = True, seed: int = 0) -> None:
    images = np.random.default_rng(7).random((IMAGES, *SHAPE)).astype(np.float32)
    store.begin_run(folder, record, images, np.array([0, 1, 2, 3]), np.arange(30, 30 + IMAGES))
    for epoch in range(epochs):
        write_epoch(folder, epoch, np.random.default_rng([seed, epoch]))
    if done:
        store.finish_run(folder, record)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """A finished sweep of eight runs."""
    folder = tmp_path_factory.mktemp("results") / "mine"
    (folder / "runs").mkdir(parents=True)
    records = [record_of(*condition) for condition in GRID]
    files.write_json(folder / "sweep.json", {"settings": {"datasets": ["digits"]}, "runs": records})
    for i, record in enumerate(records):
        write_run(folder / "runs" / record["run_id"], record, seed=i)
    return folder


def source_of(folder: Path) -> data.Source:
    return data.Source(folder, None, data.Cache())


def shown(run: str, other: str | None = None, probe: int = 1, methods=METHODS, **more: str) -> list:
    """The values of the first page's controls."""
    chosen = {"scale": "own", "change": "none", "reference": "final", "average": "image", **more}
    return [run, other, probe, methods, *chosen.values()]


def first(source: data.Source) -> data.Run:
    return next(iter(data.find_runs(source.folder).values()))


def decoded(uri: str) -> np.ndarray:
    picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    return np.asarray(picture.convert("RGB")).astype(int)


def test_cosines_are_those_of_the_recorded_maps_at_their_epochs(sweep):
    source = source_of(sweep)
    run = first(source)
    found = data.cosines_of(source, run, "saliency")
    maps = (
        retrieval.load(run.folder, ["saliency"]).attributions[:, 0].reshape(EPOCHS, IMAGES, -1).astype(float)
    )
    unit = maps / np.linalg.norm(maps, axis=2, keepdims=True)
    np.testing.assert_allclose(found["final"], (unit * unit[-1]).sum(2), atol=1e-6)
    np.testing.assert_allclose(found["previous"][2:], (unit[2:] * unit[1:-1]).sum(2), atol=1e-6)
    assert np.isnan(found["previous"][:2]).all(), "the untrained network is not a previous epoch"
    epochs, matrix = data.matrix_of(source, run, "saliency", 3)
    np.testing.assert_allclose(matrix, unit[:, 3] @ unit[:, 3].T, atol=1e-6)
    _, mean = data.matrix_of(source, run, "saliency", None)
    np.testing.assert_allclose(mean[-1], found["final"].mean(1), atol=1e-6)
    assert epochs.tolist() == list(range(EPOCHS))


@given(st.integers(0, 2**32 - 1), st.sampled_from(pictures.SCALES), st.integers(1, 11))
@settings(max_examples=25, deadline=None)
def test_sheets_hold_the_sign_and_size_of_every_pixel_of_every_epoch(seed, scale, number):
    rng = np.random.default_rng(seed)
    flat = rng.normal(size=(number, 5, 3)) * rng.lognormal(size=(number, 1, 1), sigma=2)
    found = pictures.sprite(flat, scale)
    sheet, limits = decoded(found.uri), np.array(found.limits)
    if scale == "shared":
        assert (limits == pictures.reaches(flat).max()).all()
    for t, picture in enumerate(flat):
        row, column = divmod(t, found.columns)
        cell = sheet[row * 5 : (row + 1) * 5, column * 3 : (column + 1) * 3]
        redness, strength = cell[..., 0] - cell[..., 2], np.abs(picture) / limits[t]
        clear = strength > 0.05
        assert (np.sign(redness)[clear] == np.sign(picture)[clear]).all()
        assert (cell.min(2)[strength >= 1] < 110).all(), "the deepest colours are dark"


def test_own_scale_ignores_the_size_of_maps_and_a_shared_one_shows_it(sweep):
    flat = np.random.default_rng(0).normal(size=(4, 6, 6))
    larger = flat * np.array([1, 10, 100, 1000])[:, None, None]
    own, shared = pictures.sprite(larger), pictures.sprite(larger, "shared")
    assert own.uri == pictures.sprite(flat).uri
    assert shared.uri != own.uri
    assert own.limits[3] == pytest.approx(1000 * pictures.sprite(flat).limits[3])
    pale = decoded(shared.uri)[:6, :6]
    assert np.abs(pale[..., 0] - pale[..., 2]).max() < 10, "a map a thousand times weaker is almost white"


def test_undefined_pixels_are_grey_and_do_not_touch_the_scale():
    flat = np.random.default_rng(0).normal(size=(1, 4, 4))
    broken = flat.copy()
    broken[0, 1, 2] = np.nan
    found = decoded(pictures.sprite(broken).uri)
    assert found[1, 2].tolist() == [190, 190, 190]
    assert pictures.sprite(np.full((1, 2, 2), np.nan)).limits == [0]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_changes_since_the_epoch_before_add_up_to_the_map(seed):
    flat = np.random.default_rng(seed).normal(size=(6, 3, 3))
    steps = pictures.changed(flat, "previous")
    assert np.isnan(steps[0]).all()
    np.testing.assert_allclose(flat[0] + np.cumsum(steps[1:], axis=0), flat[1:], atol=1e-12)
    np.testing.assert_allclose(pictures.changed(flat, "final") + flat[-1], flat, atol=1e-12)
    assert pictures.changed(flat, "none") is flat


def test_maps_of_any_shape_are_pictures():
    values = np.random.default_rng(0).normal(size=(5, 3, 4, 6))
    np.testing.assert_allclose(pictures.summed(values), values.sum(1))
    np.testing.assert_array_equal(pictures.summed(values[:, 0]), values[:, 0])
    np.testing.assert_array_equal(pictures.summed(values[:, 0, 0]), values[:, :1, 0])
    assert pictures.photo(np.linspace(0, 1, 9)).shape == (1, 9, 3)
    assert pictures.shown_size(8, 8) == (144, 144) and pictures.shown_size(28, 28) == (140, 140)
    assert max(pictures.shown_size(224, 300)) == pictures.SIDE


def test_the_cache_keeps_what_was_used_last_and_stays_below_its_limit():
    made = []

    def make(key):
        made.append(key)
        return np.zeros(100, np.uint8)

    cache = data.Cache(limit=250)
    for key in "aabacab":
        cache.get(key, lambda key=key: make(key))
        assert cache.size <= 250
    assert made == ["a", "b", "c", "b"], "b made room for c, because a had been used later"
    cache.get("huge", lambda: np.zeros(1000))
    assert list(cache.held) == ["huge"], "the newest value stays even where it is too large"


VIEWS = st.builds(
    view.View,
    st.sampled_from(["digits-small-lr0.001-seed0", "digits-deep-lr0.01-seed1"]),
    st.sampled_from([None, "digits-deep-lr0.001-seed0"]),
    st.integers(0, 3),
    st.integers(0, 4),
    st.lists(st.sampled_from(METHODS), unique=True, min_size=1).map(tuple),
    st.sampled_from(pictures.SCALES),
    st.sampled_from(pictures.CHANGES),
    st.sampled_from(view.REFERENCES),
    st.sampled_from(view.AVERAGES),
)


@given(VIEWS)
@settings(max_examples=40, deadline=None)
def test_links_bring_back_the_view(sweep, wanted):
    runs = data.find_runs(sweep)
    assert view.parse_view(view.query(wanted), runs) == (wanted, [])


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=12), max_size=5))
@settings(max_examples=60, deadline=None)
def test_no_link_breaks_the_page_and_what_is_wrong_is_said(sweep, pairs):
    from urllib.parse import urlencode

    runs = data.find_runs(sweep)
    found, problems = view.parse_view("?" + urlencode(pairs), runs)
    assert found.run in runs
    assert len(problems) == len([key for key, text in pairs.items() if not known(key, text)])


def known(key: str, text: str) -> bool:
    fields = [name for name in view.View._fields if name != "methods"]
    return key in fields and (not text or (text.isdecimal() and key in ("probe", "epoch")))


def test_a_bad_link_gives_a_message_and_the_default_view(sweep):
    source = source_of(sweep)
    page = app.show_page(source, "/", True, False, False, "?run=../../etc&probe=900&epoch=77&method=nothing")
    told = text_of(page[0].to_plotly_json())
    for word in ("../../etc", "900", "77", "nothing"):
        assert word in told
    values = component_values(page)
    assert (values["run"], values["probe"], values["epoch"]) == (first(source).name, 0, EPOCHS - 1)
    assert "There is no page /lost" in text_of(app.show_page(source, "/lost", True, False, False, "")[0])


def accepted(figure: dict) -> list[Any]:
    """The traces of a figure; plotly raises where a property is not one of its own."""
    return list(cast(Any, Figure(figure).data))


def text_of(page: object) -> str:
    """Everything on a page as one text."""
    return json.dumps(page, default=lambda part: part.to_plotly_json(), ensure_ascii=False)


def component_values(page: list) -> dict:
    """The value of every control of a page, by its id."""
    found: dict = {}
    for part in walk(page):
        if getattr(part, "id", None) and hasattr(part, "value"):
            found[part.id] = part.value
    return found


def walk(part):
    if isinstance(part, list | tuple):
        for child in part:
            yield from walk(child)
    elif hasattr(part, "_traverse"):
        yield part
        for child in part._traverse():
            if hasattr(child, "_traverse"):
                yield child


def test_every_callback_speaks_of_components_that_a_page_has(sweep):
    source = source_of(sweep)
    made = app.make_app(sweep)
    layouts = [app.layout(source), app.show_page(source, "/", True, False, False, "")]
    layouts += [pages.stability_page(source), pages.quality_page(source)]
    (first(source).folder / "weights.pt").write_bytes(b"")
    layouts.append(app.show_page(source, "/cost", True, False, False, ""))
    layouts.append(app.show_page(source, "/model", True, False, True, ""))
    (first(source).folder / "weights.pt").unlink()
    there = {part.id for part in walk(layouts) if isinstance(getattr(part, "id", None), str)}
    for key, callback in made.callback_map.items():
        asked = {entry["id"] for entry in [*callback["inputs"], *callback["state"]]}
        outputs = {o.split("@")[0].rpartition(".")[0] for o in key.strip(".").split("...")}
        assert {name for name in asked | outputs if not name.startswith("{")} <= there, key
    script = (Path(app.__file__).parent / "assets" / "explorer.js").read_text()
    inside = re.findall(
        r"namespace\W+epochlens\W+function_name\W+(\w+)", json.dumps(made._callback_list, default=str)
    )
    assert inside and all(re.search(rf"^      {name}: function", script, re.M) for name in inside)


def test_nothing_that_is_served_names_another_host(sweep):
    made = app.make_app(sweep)
    client = made.server.test_client()
    page = client.get("/").get_data(as_text=True)
    sources = re.findall(r"<(?:script|link)[^>]+(?:src|href)=\"([^\"]+)\"", page)
    assert len(sources) > 5 and all(place.startswith("/") and not place.startswith("//") for place in sources)
    for name in ("explorer.js", "explorer.css"):
        asset = (Path(app.__file__).parent / "assets" / name).read_text()
        assert "http" not in asset and "@import" not in asset and "url(" not in asset


@pytest.mark.parametrize("condition", GRID)
def test_the_pickers_of_a_run_pick_that_run(sweep, condition):
    runs = data.find_runs(sweep)
    wanted = record_of(*condition)["run_id"]
    picked = panels.choose(runs, *panels.fields(runs[wanted]), wanted)
    assert picked is not None and picked.run == wanted
    other = panels.choose(runs, picked.dataset, "deep", "0.01", wanted)
    assert other is not None and runs[other.run].record["seed"] == condition[3], "the seed stays"
    lost = panels.choose(runs, "gone", "gone", "gone", "gone")
    assert lost is not None and lost.run == first(source_of(sweep)).name


def test_a_drawing_shows_each_chosen_method_at_the_chosen_epoch(sweep):
    source = source_of(sweep)
    run = first(source)
    children, figure, start, end, at, remarks, _ = maps_drawing.draw(source, *shown(run.name), "r", 3, None)
    maps = [part for part in walk(children) if getattr(part, "className", "") == "sprite"]
    assert len(maps) == len(METHODS) and not remarks
    assert (start, end) == (0, EPOCHS - 1) and at is not None
    columns = int(np.ceil(np.sqrt(EPOCHS)))
    row, column = divmod(3, columns)
    height, width = pictures.shown_size(*SHAPE[1:])
    assert maps[0].style["backgroundPosition"] == f"{-column * width}px {-row * height}px"
    flat = retrieval.load(run.folder, ["saliency"]).attributions[:, 0, 1].sum(1)
    assert maps[0].style["backgroundImage"] == f"url({pictures.sprite(flat).uri})"
    assert figure["layout"]["shapes"][0]["x0"] == 3
    only = maps_drawing.draw(source, *shown(run.name, methods=["integrated_gradients"]), "r", 3, None)[0]
    flat = retrieval.load(run.folder, ["integrated_gradients"]).attributions[:, 0, 1].sum(1)
    limits = [part.children for part in walk(only) if getattr(part, "className", "") == "limit"]
    assert limits == [panels.limit_words(pictures.sprite(flat).limits[3])]


def test_sentences_tell_the_recorded_prediction_in_the_datasets_own_classes(sweep):
    source = source_of(sweep)
    run = first(source)
    maps = retrieval.load(run.folder)
    for t, said in enumerate(panels.sentences(source, run, 2, "saliency")):
        predicted = int(maps.predictions[t, 2])
        assert f"predicts {predicted + 10} {'✓' if predicted == 2 else '✗'}" in said
        assert said.startswith(f"epoch {t} · accuracy {t / 10:.3f}") and said.endswith("class 12")


def test_a_second_run_is_dashed_and_shows_the_same_image(sweep):
    source = source_of(sweep)
    a, b = list(data.find_runs(sweep))[:2]
    children, figure, *_, remarks, _ = maps_drawing.draw(source, *shown(a, b), "r", 2, None)
    assert len([p for p in walk(children) if getattr(p, "className", "") == "panel run"]) == 2
    assert not remarks
    dashes = {trace.name: trace.line.dash for trace in accepted(figure)}
    assert dashes["saliency (A)"] == "solid" and dashes["saliency (B)"] == "dash"


def test_a_run_with_other_images_is_said_to_show_another(tmp_path):
    for name, shift in (("one", 0), ("two", 1)):
        write_run(tmp_path / name, record_of("digits", "small", 0.1, shift))
    with np.load(tmp_path / "two" / "probe.npz") as probe:
        images = {**probe, "indices": probe["indices"][::-1]}
    source, runs = source_of(tmp_path), data.find_runs(tmp_path)
    assert panels.place(source, runs["one"], runs["two"], 1) == (1, "")
    np.savez(tmp_path / "two" / "probe.npz", **{**images, "images": images["images"][::-1]})
    assert panels.place(source_of(tmp_path), runs["one"], runs["two"], 1) == (2, ""), (
        "the same image, elsewhere"
    )
    np.savez(tmp_path / "two" / "probe.npz", **{**images, "images": 1 - images["images"]})
    position, remark = panels.place(source_of(tmp_path), runs["one"], runs["two"], 1)
    assert position == 1 and "did not record" in remark


def test_a_running_sweep_is_followed_as_it_grows(tmp_path):
    source = source_of(tmp_path / "live")
    assert "No run here yet" in text_of(app.show_page(source, "/", False, False, False, ""))
    folder = source.folder / "runs" / "r"
    record = {**record_of("digits", "small", 0.1, 0), "run_id": "r"}
    revision, appeared, *_ = app.refresh(source, 0, None, False, False, False)
    folder.parent.mkdir(parents=True)
    files.write_json(source.folder / "sweep.json", {"runs": [record, {**record, "run_id": "later"}]})
    assert data.find_runs(source.folder)["r"].status == "waiting"
    waiting = maps_drawing.draw(source, *shown("r"), "x", 0, None)
    assert "has no recorded epoch yet" in str(waiting[5])
    write_run(folder, record, epochs=3, done=False)
    now, appeared, *_, told, pause = app.refresh(source, 1, revision, False, False, False)
    assert (appeared, pause) == (True, app.LIVE) and "1 running" in told and "1 waiting" in told
    with pytest.raises(PreventUpdate):
        app.refresh(source, 2, now, True, False, False)
    begun = maps_drawing.draw(source, *shown("r"), now, 0, waiting[6])
    assert begun[3:5] == (2, 2), "a page that waited follows from the first epoch"
    mark = begun[6]
    write_epoch(folder, 3, np.random.default_rng(3))
    assert app.refresh(source, 3, now, True, False, False)[0] != now
    at_end = maps_drawing.draw(source, *shown("r"), "new", 2, mark)
    assert at_end[3:5] == (3, 3), "at the newest epoch the slider follows"
    back = maps_drawing.draw(source, *shown("r"), "new", 1, mark)
    assert back[3] == 3 and back[4] not in (2, 3), "elsewhere it stays"
    write_epoch(folder, 4, np.random.default_rng(4))
    store.finish_run(folder, record)
    assert data.find_runs(source.folder)["r"].status == "done"
    assert maps_drawing.draw(source, *shown("r"), "end", 3, at_end[6])[3] == 4


def test_the_pair_of_a_clicked_cell_is_on_one_scale(sweep):
    source = source_of(sweep)
    run = first(source)
    found, hidden = maps_drawing.draw_pair(source, {"points": [{"x": 4, "y": 1}]}, None, *shown(run.name))
    assert not hidden and found[0].children == "Epochs 1 and 4"
    limits = [part.children for part in walk(found) if getattr(part, "className", "") == "limit"]
    flat = retrieval.load(run.folder, METHODS).attributions[[1, 4], :, 1].sum(2)
    wanted = [panels.limit_words(pictures.reaches(flat[:, m]).max()) for m in range(2)]
    assert limits[:4] == wanted * 2
    assert maps_drawing.draw_pair(source, None, None, *shown(run.name)) == ([], True)


def test_exports_hold_what_is_shown(sweep):
    source = source_of(sweep)
    run, chosen = first(source), maps_drawing.as_view(shown(first(source).name, change="final"))
    table = pd.read_csv(io.StringIO(exports.export_maps(source, run, 1, chosen, 2)))
    maps = retrieval.load(run.folder, ["saliency"]).attributions[:, 0, 1].sum(1, dtype=float)
    values = table[table["method"] == "saliency"].pivot(index="row", columns="column", values="value")
    np.testing.assert_allclose(values.to_numpy(), maps[2] - maps[-1], rtol=1e-6, atol=1e-6)
    assert set(table["epoch"]) == {2} and set(table["test_image"]) == {31}
    runs = data.find_runs(sweep)
    curves = pd.read_csv(io.StringIO(exports.export_curves(panels.curves(source, runs, chosen), chosen)))
    np.testing.assert_allclose(curves["saliency"], data.cosines_of(source, run, "saliency")["final"][:, 1])
    picture = Image.open(io.BytesIO(exports.export_png(source, run, 1, chosen, 2)))
    assert picture.width > 3 * 160 and len(picture.getcolors(2**20) or []) > 20


@pytest.fixture(scope="module")
def tables(sweep) -> dict[str, pd.DataFrame]:
    rng, rows = np.random.default_rng(0), []
    for dataset, model, rate, seed in GRID:
        keys = {"dataset": dataset, "model": model, "learning_rate": rate, "seed": seed}
        keys |= {"metric": "sparseness", "n": 4, "n_undefined": 0}
        for method, epoch in [(method, epoch) for method in METHODS for epoch in range(3)]:
            rows.append({**keys, "method": method, "epoch": epoch, "value": rng.random()})
    by_seed = pd.DataFrame(rows)
    quality = summarise_quality(by_seed, {"sparseness": "higher"})
    one = quality.drop_duplicates(["dataset", "model", "learning_rate", "method"])
    more = {"reference": "final", "median": 2.0, "accuracy_median": 1.0, "n_censored": 0}
    curves = by_seed.rename(columns={"metric": "curve"}).assign(curve="deletion")
    pairs = pd.DataFrame({"epoch_a": [0, 0, 1], "epoch_b": [0, 1, 1], "value": [1, np.nan, 1]})
    curves = pd.concat([curves.assign(fraction=f) for f in (0.0, 0.5, 1.0)])
    return {
        "quality_summary": quality,
        "stability_summary": quality.assign(reference="final"),
        "settling_summary": one.assign(**more),
        "epoch_matrix": one.merge(pairs, "cross"),
        "epochs": by_seed.assign(accuracy=by_seed["value"]).query("method == 'saliency'"),
        "quality_curves": curves,
    }


def test_figures_of_tables_are_ones_that_plotly_accepts_and_hold_the_numbers(tables):
    means = facets.means_figure(tables["quality_summary"], "sparseness")
    lines = [trace for trace in accepted(means) if trace.fill is None]
    assert len(lines) == 4 * len(METHODS)
    wanted = tables["quality_summary"].query(
        "model == 'deep' and learning_rate == 0.001 and method == 'saliency'"
    )
    drawn = next(trace for trace in lines if trace.name == "saliency" and trace.xaxis == "x")
    np.testing.assert_allclose(drawn.y, wanted["mean"])
    assert {trace.line.color for trace in lines if trace.name == "saliency"} == {drawn.line.color}
    made = [
        overviews.accuracy_figure(tables["epochs"]),
        overviews.settling_figure(tables["settling_summary"]),
        facets.matrices_figure(tables["epoch_matrix"].query("method == 'saliency'")),
        facets.removal_figure(tables["quality_curves"]),
        figures.matrix_figure(np.arange(3), np.eye(3) * np.nan, 1),
    ]
    for figure in made:
        assert len(accepted(figure))
        json.dumps(figure, allow_nan=False)
    for empty in (facets.means_figure(pd.DataFrame(), "x"), facets.removal_figure(pd.DataFrame())):
        assert not accepted(empty)


def test_the_table_pages_read_what_the_analysis_wrote(sweep, tables, tmp_path):
    folder = tmp_path / "copy"
    (folder / "tables").mkdir(parents=True)
    for name, table in tables.items():
        table.to_parquet(folder / "tables" / f"{name}.parquet")
    source = source_of(folder)
    *drawn, held = tables_view.show_stability(source, "sparseness", "final", "saliency")
    assert all(accepted(figure) for figure in drawn)
    at = held["stability_summary"]["columns"].index("mean")
    values = [row[at] for row in held["stability_summary"]["rows"]]
    np.testing.assert_allclose(values, tables["stability_summary"]["mean"])
    assert held["comparisons"] == {"columns": [], "rows": [], "total": 0}
    assert accepted(tables_view.show_quality(source, "sparseness")[0])
    assert "sparseness" in component_values(pages.quality_page(source))["quality-metric"]
    assert not any(pages.lacking(source, data.table_of(source, "stability_summary")))
    assert "sweeps.analyze" in pages.lacking(source_of(sweep), None)[0]


def test_tables_keep_order_and_leave_out_what_is_undefined():
    frame = pd.DataFrame({"a": [2.5, np.nan, np.inf], "b": ["x", None, "y"], "grid_runs": [1, 1, 1]})
    found = tables_view.rows_of(frame)
    assert found["columns"] == ["a", "b"]
    assert found["rows"] == [(2.5, "x"), (None, None), (None, "y")]
    long = tables_view.rows_of(pd.DataFrame({"n": range(tables_view.MOST_ROWS + 5)}))
    assert (len(long["rows"]), long["total"]) == (tables_view.MOST_ROWS, tables_view.MOST_ROWS + 5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a real network on the embedded digits, with its weights saved."""
    import torch
    from torch import nn

    folder = tmp_path_factory.mktemp("trained")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
        )
    record = record_of("digits", "small", 0.1, 0, classes=list(range(10)))
    write_run(folder / "run", record)
    torch.save(network.state_dict(), folder / "run" / "weights.pt")
    return folder, network


def test_a_saved_network_explains_as_it_would_in_memory(trained):
    import torch

    from epochlens.attribute.methods import attribute

    folder, network = trained
    source, run = source_of(folder), data.find_runs(folder)["run"]
    found = model_drawing.load(source, run, "last")
    image, label = found.images[5], int(found.labels[5])
    before = torch.random.get_rng_state()
    maps = model_view.explain(found.network, image, label, METHODS)
    layers = model_view.feature_maps(found.network, image)
    assert torch.equal(before, torch.random.get_rng_state())
    for method in METHODS:
        wanted = attribute(network, torch.from_numpy(image[None]), torch.tensor([label]), method)[0]
        np.testing.assert_allclose(np.asarray(maps[method]), wanted.numpy(), rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        output = network[0](torch.from_numpy(image[None]))[0].numpy()
    np.testing.assert_allclose(layers["0 Conv2d"], output, rtol=1e-5, atol=1e-6)
    assert not found.network[0]._forward_hooks
    logits = network(torch.from_numpy(image[None])).detach()
    wanted = torch.softmax(logits, 1)[0].numpy()
    np.testing.assert_allclose(model_view.probabilities(found.network, image[None])[0], wanted, rtol=1e-5)


def test_the_model_page_tells_mistakes_in_words(trained, sweep):
    folder, _ = trained
    source = source_of(folder)
    children, last = model_drawing.show_explained(source, "run", "last", 5, "3", METHODS)
    assert "maps explain class 3" in text_of(children)
    assert last == len(model_drawing.load(source, data.find_runs(folder)["run"], "last").labels) - 1
    told = str(model_drawing.show_explained(source, "run", "last", 10**6, "label", METHODS)[0])
    assert "is not there" in told
    assert "were not saved" in str(model_drawing.show_explained(source, "run", "77", 0, "label", METHODS)[0])
    assert "not in this sweep" in str(
        model_drawing.show_explained(source, "gone", "last", 0, "label", METHODS)[0]
    )
    assert "saved weights" in str(model_page.layout(data.find_runs(sweep), ""))
    (folder / "run" / "weights-0002.pt").write_bytes(b"not a network")
    assert list(data.weights_of(data.find_runs(folder)["run"])) == ["last", "2"]
    assert model_drawing.show_explained(source, "run", "2", 0, "label", METHODS)[0][0].className == "notice"


def test_sweeps_are_found_by_name_by_path_or_as_the_latest(sweep, tmp_path):
    assert command.find_sweep("mine", sweep.parent) == sweep
    assert command.find_sweep(str(sweep), tmp_path) == sweep
    assert command.find_sweep(None, sweep.parent) == sweep
    assert command.find_sweep("soon", tmp_path) == tmp_path / "soon", "a sweep that has not begun"
    with pytest.raises(UsageError, match="did you mean 'mine'"):
        command.find_sweep("mime", sweep.parent)


def test_mistakes_on_the_command_line_are_usage_errors(sweep, monkeypatch):
    results = ["--results-dir", str(sweep.parent)]
    for port in ("-1", "70000", "eight", "1" * 5000, "٣"):
        with pytest.raises(UsageError, match="0 to 65535"):
            command.explore(["mine", f"--port={port}", *results])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for host in ("a" * 100, "a\0b"):
            with pytest.raises(UsageError, match="cannot be listened at"):
                command.check_free(host, 0)
        with pytest.raises(UsageError, match="too long"):
            command.explore(["x" * 300, *results])
        with pytest.raises(UsageError, match="another --port"):
            command.explore(["mine", "--port", str(taken.getsockname()[1]), *results])
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=re.escape("pip install 'epochlens[explore]'")):
        command.explore(["mine", *results])


def test_help_and_usage_errors_answer_before_dash_loads():
    code = (
        "from epochlens.show.explorer.command import explore\n"
        "try: explore(['--port', 'x'])\n"
        "except ValueError as error: print(error)\n"
        "import sys\n"
        "print(sorted({'dash', 'plotly', 'torch', 'ray', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def settled_images(rng: np.random.Generator, seeds: int = 2, images: int = 9) -> pd.DataFrame:
    """Settling epochs of images, a row each, some censored."""
    keys = {"dataset": "digits", "learning_rate": 0.01, "metric": "cosine", "reference": "final"}
    rows = []
    for model, method, seed in [(m, k, s) for m in ("small", "deep") for k in METHODS for s in range(seeds)]:
        epochs, late = rng.integers(1, 30, images), rng.random(images) < 0.2
        same = {**keys, "model": model, "method": method, "seed": seed}
        rows += [
            {**same, "sample": i, "epoch": e, "censored": c}
            for i, (e, c) in enumerate(zip(epochs, late, strict=True))
        ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("known", [True, False])
def test_the_first_page_answers_in_words_what_the_tables_hold(tmp_path, known):
    folder = tmp_path / "told"
    write_run(folder / "runs" / "a", {**record_of("digits", "deep", 0.01, 0), "run_id": "a"})
    images = settled_images(np.random.default_rng(0))
    one = images.drop_duplicates(["model", "method"]).drop(columns=["seed", "sample", "epoch", "censored"])
    ends = (3.0, 7.0) if known else (np.nan, np.nan)
    medians = np.array([5.0, 6.0, 8.0, np.nan])
    summary = one.assign(median=medians, ci_low=ends[0], ci_high=ends[1], accuracy_median=4.5)
    scaled = summary.assign(metric="calibrated_cosine", median=medians + 20, ci_low=21.0, ci_high=29.0)
    summary = pd.concat([summary, scaled])
    (folder / "tables").mkdir()
    summary.to_parquet(folder / "tables" / "settling_summary.parquet")
    images.to_parquet(folder / "tables" / "settling_images.parquet")
    runs = data.find_runs(folder)
    told = json.loads(text_of(answer.answer(source_of(folder), runs, runs["a"])))
    mine, other = told[0]["props"]["children"]
    assert mine["props"]["className"] == "mine" and "deep" in text_of(mine) and "small" in text_of(other)
    own = images.query("model == 'deep' and method == 'saliency'")
    times = np.sort(np.where(own["censored"], np.inf, own["epoch"]))
    low, high = (3, 7) if known else (times[4], times[13])
    high_text = f"{high:g}" if np.isfinite(high) else "after the last"
    assert f"saliency maps settle at epoch 8 ({low:g} to {high_text})" in text_of(mine)
    assert "integrated gradients maps do not settle" in text_of(mine)
    assert "test accuracy at epoch 4.5" in text_of(mine)
    calibrated = (
        "Calibrated: saliency epoch 28 (21 to 29), integrated gradients do not settle before epoch 21."
    )
    assert calibrated in text_of(mine) and "0 is another image of the class" in text_of(told[1])
    assert ("95 % interval." if known else "middle half") in text_of(told[1])


def test_without_tables_the_answer_is_the_runs_own_and_says_so(tmp_path):
    folder, rng = tmp_path / "alone", np.random.default_rng(0)
    record = {**record_of("digits", "small", 0.1, 0), "run_id": "r", "methods": ["saliency"], "epochs": 12}
    start, end = rng.normal(size=(2, IMAGES, *SHAPE))
    images, numbers = np.random.default_rng(7).random((IMAGES, *SHAPE)), np.zeros((1, IMAGES), np.int32)
    store.begin_run(folder / "r", record, images.astype(np.float32), numbers[0], np.arange(IMAGES))
    jumps = np.array([2, 5, 5, 9])  # image i turns from one map into another at epoch jumps[i]
    for epoch in range(13):
        now = np.where((epoch >= jumps)[:, None, None, None], end, start)[None, None].astype(np.float32)
        samples = np.arange(IMAGES, dtype=np.int32)
        maps = Maps(now, np.array([epoch], np.int32), np.array(["saliency"]), samples, numbers, numbers)
        store.commit_epoch(folder / "r", epoch, maps, {"accuracy": 0.5}, None)
    source = source_of(folder)
    run = data.find_runs(folder)["r"]
    told = text_of(answer.answer(source, {"r": run}, run))
    assert "saliency maps settle at epoch 5 (" in told and "So far: epoch 12 of 12" in told
    store.finish_run(folder / "r", record)
    run = data.find_runs(folder)["r"]
    assert "So far" not in text_of(answer.answer(source, {"r": run}, run))
    words = [answer.settled_words(source, run, "saliency", i) for i in range(IMAGES)]
    assert words == [f"settled from epoch {jump}" for jump in jumps]


def test_probabilities_are_the_networks_own_at_each_epoch_kept(trained, tmp_path):
    import shutil

    import torch

    folder = tmp_path / "kept"
    shutil.copytree(trained[0], folder)
    source, network = source_of(folder), trained[1]
    record = {**(files.read_json(folder / "run" / "run.json") or {})}
    images = np.random.default_rng(5).random((IMAGES, 1, 8, 8)).astype(np.float32)
    shutil.rmtree(folder / "run")
    write_run(folder / "run", {**record_of("digits", "small", 0.1, 0, classes=list(range(10)))})
    probe = dict(np.load(folder / "run" / "probe.npz"))
    np.savez(folder / "run" / "probe.npz", **{**probe, "images": images})
    assert record and probabilities.show_probabilities(source, "run", None, 0) == []
    torch.save(network.state_dict(), folder / "run" / "weights.pt")
    only = probabilities.show_probabilities(source, "run", None, 2, 0)
    assert "after epoch 4" in text_of(only) and "--keep-weights all" in text_of(only)
    expected = []
    for epoch in range(3):
        state = {name: values * (epoch + 1) for name, values in network.state_dict().items()}
        torch.save(state, folder / "run" / f"weights-{epoch:04d}.pt")
        network_then = model_view.load_network(
            "small", folder / "run" / f"weights-{epoch:04d}.pt", 0, (1, 8, 8), 10
        )
        with torch.no_grad():
            expected.append(network_then(torch.from_numpy(images)).softmax(1).numpy())
    [panel] = probabilities.show_probabilities(source, "run", None, 2, 1)
    carried = panel.to_plotly_json()["props"]
    assert json.loads(carried["data-epochs"]) == [0, 1, 2] and "after epoch 1" in text_of(panel)
    np.testing.assert_allclose(json.loads(carried["data-bars"]), np.array(expected)[:, 2], atol=6e-5)


def cost_numbers(**more: int | None) -> list:
    """Values of the cost page's controls after the network."""
    return list(
        {"side": 9, "channels": 2, "classes": 4, "images": 5, "steps": 0, "samples": 0, **more}.values()
    )


@given(st.sampled_from(["small", "deep", "lenet"]), st.integers(0, 10), st.integers(0, 10))
@settings(max_examples=12, deadline=None)
def test_the_cost_page_tells_what_the_command_counts(sweep, name, steps, samples):
    from epochlens.attribute import cost
    from epochlens.learn import meta

    operations, memory, tables, said = cost_page.show_cost(
        source_of(sweep), name, *cost_numbers(steps=steps, samples=samples)
    )
    assert not said
    chosen = {"ig_steps": cost_page.COUNTS[steps], "samples": cost_page.COUNTS[samples]}
    chosen = {option: number for option, number in chosen.items() if number is not None}
    network, table = meta.build_meta(name, (2, 9, 9), 4), tables["cost"]
    drawn = {}
    for figure in (operations, memory):
        [trace] = accepted(figure)
        assert figure["layout"]["xaxis"]["type"] == "log"
        ends = [10**end for end in figure["layout"]["xaxis"]["range"]]
        lengths = zip(trace.y, trace.x, strict=True)
        for method, length in lengths:
            assert length == 0 or ends[0] < trace.base + length < ends[1], "the axis holds every bar"
            drawn.setdefault(method, []).append(trace.base + length if length else 0.0)
    for method, *numbers in table["rows"]:
        counted = cost.method_cost(network, (2, 9, 9), method, 5)
        assert numbers[:3] == list(counted)
        assert drawn[method] == pytest.approx([counted.flops, counted.peak_bytes])
        assert method == cost.with_numbers(method.partition(":")[0], chosen)
    assert len(table["texts"]) == len(table["rows"]) == 12 + (name != "lenet")
    time_over_flops = {row[4] / row[1] for row in table["rows"] if row[1]}
    assert max(time_over_flops) == pytest.approx(min(time_over_flops)), "one speed for all"


def test_sliding_counts_nothing_anew(sweep):
    source = source_of(sweep)
    cost_page.show_cost(source, "deep", *cost_numbers(steps=8, samples=9))
    before = cost_view.count.cache_info().misses
    for place in (6, 7, 9, 10):
        cost_page.show_cost(source, "deep", *cost_numbers(steps=place, samples=place))
    assert cost_view.count.cache_info().misses == before


def test_the_cost_page_tells_mistakes_in_words_and_opens_nothing_a_link_names(sweep):
    source, runs = source_of(sweep), data.find_runs(sweep)
    for wrong in ({"side": 2}, {"side": None}, {"classes": 1}, {"images": 10**6}):
        figure, _, tables, said = cost_page.show_cost(source, "deep", *cost_numbers(**wrong))
        assert not accepted(figure) and not tables["cost"]["rows"] and "notice" in text_of(said)
    page = cost_page.layout(source, runs, "?model=os:getcwd&side=12&steps=99&wrong=1")
    told, values = text_of(page[0].to_plotly_json()), component_values(page)
    assert all(word in told for word in ("os:getcwd", "99", "wrong"))
    assert (values["cost-model"], values["cost-side"], values["cost-steps"]) == ("small", 12, 0)
    assert values["cost-channels"] == SHAPE[0] and values["cost-classes"] == 10
    empty = app.show_page(source_of(sweep / "nothing"), "/cost", False, False, False, "")
    assert component_values(empty)["cost-side"] == cost_page.DEFAULTS["side"]


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.one_of(st.floats(0, 5), st.just(np.nan)), min_size=1))
def test_only_what_fits_into_patience_runs_unasked(seconds):
    slow = patience.slow_methods(seconds)
    quick = [taken for method, taken in seconds.items() if method not in slow]
    assert sum(quick) <= patience.PATIENCE + 1e-9
    late = [seconds[method] for method in slow]
    assert all(np.isnan(taken) or taken >= max(quick, default=0) for taken in late)
    known = [taken for taken in late if taken == taken]
    assert not known or sum(quick) + min(known) > patience.PATIENCE - 1e-9, "none waits needlessly"


def test_slow_methods_wait_until_they_are_asked_for(trained, monkeypatch):
    folder, _ = trained
    source = source_of(folder)
    taken = {"saliency": 0.1, "lime": 400.0, "occlusion": 5.0}
    monkeypatch.setattr(model_view, "predicted_seconds", lambda *_: taken)
    asked = ("run", "last", 5, "label", list(taken))

    def tiles(allowed):
        found = walk(model_drawing.show_explained(source, *asked, allowed)[0])
        return [
            part.to_plotly_json()["props"]["aria-label"]
            for part in found
            if getattr(part, "className", "") == "sprite"
        ]

    told = text_of(model_drawing.show_explained(source, *asked)[0])
    assert "about 7 min" in told and "about 5 s" in told
    assert tiles(None) == ["map of saliency"]
    of = list(asked[:4])
    assert tiles({"of": of, "methods": ["occlusion"]}) == ["map of saliency", "map of occlusion"]
    assert len(tiles({"of": of, "methods": [patience.ALL_SLOW]})) == 3
    assert tiles({"of": ["run", "last", 6, "label"], "methods": ["*"]}) == ["map of saliency"], (
        "another image"
    )


def test_predictions_of_time_follow_the_count_of_passes(trained):
    _, network = trained
    seconds = model_view.predicted_seconds(network, "small", (1, 8, 8), 10, ["saliency", "lime", "nothing"])
    passes = cost_view.forwards("small", (1, 8, 8), 10, ["saliency", "lime"])
    assert seconds["lime"] / seconds["saliency"] == pytest.approx(passes["lime"] / passes["saliency"])
    assert np.isnan(seconds["nothing"]) and seconds["saliency"] > 0
    assert all(
        np.isnan(taken)
        for taken in model_view.predicted_seconds(network, "os:getcwd", (1, 8, 8), 10, METHODS).values()
    )


def test_who_asks_for_something_else_does_not_wait_and_nothing_is_made_twice():
    import threading

    cache, begun, go, made = data.Cache(), threading.Event(), threading.Event(), []

    def slow() -> int:
        made.append(1)
        begun.set()
        assert go.wait(10)
        return 7

    threads = [threading.Thread(target=lambda: cache.get("slow", slow)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    assert cache.get("other", lambda: 3) == 3
    go.set()
    for thread in threads:
        thread.join(10)
    assert made == [1] and cache.get("slow", slow) == 7


LONG = "9" * 5000
EVIL = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
EVIL += "from epochlens.learn.models import small\nfrom epochlens.learn.data import load_digits\n"
EVIL += "def digits(): return load_digits(Path('data'))\n"


def hostile(folder: Path, trained: tuple, **record: object) -> data.Source:
    """A copy of the run with a network, beside an unhurt one, with another record."""
    import shutil

    shutil.copytree(trained[0] / "run", folder / "run")
    write_run(folder / "good", record_of("digits", "small", 0.1, 1))
    known = files.read_json(folder / "run" / "run.json") or {}
    files.write_json(folder / "run" / "run.json", {**known, **record})
    return source_of(folder)


def ask_everything(source: data.Source) -> str:
    """Every page and callback that may build the run's network or read its data, as text."""
    pages_of = [app.show_page(source, path, True, True, True, "?run=run") for path in pages.PAGES]
    runs = data.find_runs(source.folder)
    models = cost_page.recorded_models(runs)
    found = [cost_page.show_cost(source, model, *cost_numbers())[-1] for model in models]
    found.append(model_drawing.show_explained(source, "run", "last", 0, "label", METHODS)[0])
    found.append(probabilities.show_probabilities(source, "run", None, 0, 0))
    found.append(maps_drawing.draw(source, *shown("run"), "x", None, None)[5] if "run" in runs else [])
    return str([*pages_of, *found])


@pytest.mark.parametrize("what", ["model", "dataset"])
@pytest.mark.parametrize("module", ["evil_page_{}", "shared_{}.evil"])
def test_code_that_a_run_names_runs_only_when_that_is_allowed(trained, tmp_path, monkeypatch, what, module):
    monkeypatch.syspath_prepend(str(tmp_path))
    module = module.format(what)
    path = tmp_path / f"{module.replace('.', '/')}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(EVIL)
    named = {"model": f"{module}:small"} if what == "model" else {"dataset": "digits_of"}
    source = hostile(tmp_path / "r", trained, **named)
    if what == "dataset":
        settings = {"datasets": [f"{module}:digits_of"]}
        files.write_json(source.folder / "sweep.json", {"settings": settings})
    told = ask_everything(source)
    assert "--allow-code" in told and module in told
    assert not path.with_name("ran").exists() and module not in sys.modules
    told = ask_everything(source._replace(allow_code=True))
    assert "--allow-code" not in told and path.with_name("ran").exists()
    assert app.make_app(source.folder, allow_code=True)


def test_methods_that_the_page_does_not_offer_are_not_asked(trained, tmp_path):
    method = tmp_path / "mine.py"
    method.write_text(EVIL)
    asked = [f"{method}:small", "saliency"]
    children, _ = model_drawing.show_explained(source_of(trained[0]), "run", "last", 0, "label", asked)
    assert "map of saliency" in str(children) and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "record",
    [
        {"epochs": "many"},
        {"epochs": 10**400},
        {"learning_rate": "x"},
        {"learning_rate": 10**400},
        {"methods": 5},
        {"methods": [["saliency"]]},
        {"seed": [1]},
        {"started": [1]},
        {"classes": "abc"},
        {"dataset": {}},
    ],
)
def test_a_run_that_makes_no_sense_is_left_out_and_named(trained, tmp_path, record):
    source = hostile(tmp_path, trained, **record)
    assert list(data.find_runs(tmp_path)) == ["good"]
    told = ask_everything(source)
    assert "Left out" in told and ": run." in told
    assert app.refresh(source, 1, None, False, False, False)[4] == "runs: 1 done"


def test_plans_and_settings_that_make_no_sense_do_not_hide_the_rest(trained, tmp_path):
    shutil_source = hostile(tmp_path / "runs", trained)
    record = files.read_json(tmp_path / "runs" / "good" / "run.json") or {}
    names: list[Any] = ["a\0b", "x" * 300, "\ud800", 5, None, ["x"]]
    bad = [{"run_id": name} for name in names]
    planned = [*bad, "x", {"run_id": "soon", "seed": [1]}, {**record, "run_id": "good"}]
    for settings_now in ([1], "x", {"datasets": 5}, {"datasets": [5]}, {"data_dir": 5}):
        files.write_json(tmp_path / "sweep.json", {"settings": settings_now, "runs": planned})
        assert list(data.find_runs(tmp_path)) == ["good"]
        assert "soon" in ask_everything(source_of(tmp_path))
        files.write_json(tmp_path / "runs" / "sweep.json", {"settings": settings_now})
        assert "map of saliency" in ask_everything(shutil_source)


@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "array", "shapes", "pickle"])
def test_a_damaged_probe_is_told_and_nothing_else_is_lost(trained, tmp_path, damage):
    source = hostile(tmp_path, trained)
    path = tmp_path / "run" / "probe.npz"
    content = path.read_bytes()
    if damage == "flipped":
        path.write_bytes(content[:60] + b"\xff" * 40 + content[100:])
    elif damage in ("short", "empty"):
        path.write_bytes(content[: len(content) // 2 if damage == "short" else 0])
    elif damage == "array":
        np.save(path.with_suffix(".npy"), np.zeros(3))
        path.with_suffix(".npy").rename(path)
    else:
        labels: Any = np.zeros((2, 2)) if damage == "shapes" else np.array([{}, {}], object)
        np.savez(path, images=np.zeros((2, 1, 3, 3)), labels=labels, indices=np.arange(2))
    with pytest.raises(ValueError, match=r"probe\.npz"):
        data.probe_of(source, data.find_runs(tmp_path)["run"])
    assert "cannot be read now" in ask_everything(source)
    assert "map of saliency" in str(maps_drawing.draw(source, *shown("good"), "x", None, None)[0])


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04", b"\x80\x04]\x94(K\x01K\x02e."])
def test_weights_that_are_none_are_told_in_one_line(trained, tmp_path, content):
    source = hostile(tmp_path, trained)
    (tmp_path / "run" / "weights.pt").write_bytes(content)
    (tmp_path / "run" / "weights-1x.pt").write_bytes(content)
    told = model_drawing.show_explained(source, "run", "last", 0, "label", METHODS)[0]
    assert "cannot be loaded into model small" in text_of(told)
    assert set(data.weights_of(data.find_runs(tmp_path)["run"])) <= {"last", "2"}


def test_numbers_of_any_length_in_a_link_are_told(sweep):
    source, runs = source_of(sweep), data.find_runs(sweep)
    for name in ("probe", "epoch"):
        found, problems = view.parse_view(f"?{name}={LONG}", runs)
        assert found == view.default_view(runs) and name in problems[0]
    page = cost_page.layout(source, runs, f"?side={LONG}&steps={LONG}")
    assert component_values(page)["cost-side"] == max(SHAPE[1:]) and LONG in str(page[0])


def test_the_model_pages_link_takes_numbers_of_any_length(trained):
    page = model_page.layout(data.find_runs(trained[0]), f"?image={LONG}")
    assert component_values(page)["model-image"] == 0 and "not a whole number" in str(page)


FORMULAS = ["=1+1", "+1", "-1", "@x", "\tx", "\rx"]


def test_texts_that_are_formulas_to_a_spreadsheet_are_not_in_csv():
    frame = pd.DataFrame({"=name": [*FORMULAS, "plain", None], "n": [-1.5, 2, 0, 1, 1, 1, 1, np.nan]})
    back = pd.read_csv(io.StringIO(exports.csv(frame)), keep_default_na=False, dtype=str)
    assert back.columns.tolist() == ["'=name", "n"]
    told = [f"'{text}".replace("\r", " ") for text in FORMULAS]
    assert back["'=name"].tolist() == [*told, "plain", ""]
    assert back["n"].tolist()[0] == "-1.5"


def test_the_browser_quotes_formulas_too_and_leaves_numbers():
    import shutil

    if shutil.which("node") is None:
        pytest.skip("needs node")
    script = (Path(app.__file__).parent / "assets" / "explorer.js").read_text()
    start = script.index("function quoted(")
    function = script[start : script.index("\n  }\n", start) + 4]
    cells = [*FORMULAS, -1.5, 3, None, "a,b", 'say "x"']
    code = f"{function}\nconsole.log(JSON.stringify({json.dumps(cells)}.map(quoted)))"
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    wanted = ["'=1+1", "'+1", "'-1", "'@x", "'\tx", '"\'\rx"', "-1.5", "3", "", '"a,b"', '"say ""x"""']
    assert json.loads(done.stdout) == wanted
