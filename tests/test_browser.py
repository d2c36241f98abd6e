"""The explorer in a real browser: it moves, plays, picks, compares, links, and asks no other computer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest

from epochlens.record import store
from epochlens.record.tables import Maps

pytestmark = pytest.mark.browser
pytest.importorskip("dash", reason="the explorer needs dash: pip install 'epochlens[explore]'")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install 'epochlens[browser]'"
)

CHROMIUM = Path("/usr/bin/chromium")
if not CHROMIUM.exists():
    pytest.skip("needs Chromium at /usr/bin/chromium", allow_module_level=True)

METHODS = ["saliency", "integrated_gradients"]
EPOCHS, IMAGES = 6, 5
WAIT = 30_000


def write_epoch(folder: Path, epoch: int, seed: int) -> None:
    rng = np.random.default_rng([seed, epoch])
    attributions = rng.normal(size=(1, len(METHODS), IMAGES, 1, 8, 8)).astype(np.float32)
    numbers = np.arange(IMAGES, dtype=np.int32)
    maps = Maps(
        attributions, np.array([epoch], np.int32), np.array(METHODS), numbers, numbers[None], numbers[None]
    )
    store.commit_epoch(folder, epoch, maps, {"accuracy": epoch / 10}, None)


def write_run(folder: Path, model: str, seed: int, epochs: int, done: bool) -> None:
    about = {"dataset": "digits", "model": model, "learning_rate": 0.01, "seed": seed, "methods": METHODS}
    record = {"run_id": folder.name, **about, "epochs": EPOCHS - 1}
    images = np.random.default_rng(0).random((IMAGES, 1, 8, 8)).astype(np.float32)
    store.begin_run(folder, record, images, np.arange(IMAGES), np.arange(IMAGES))
    for epoch in range(epochs):
        write_epoch(folder, epoch, seed)
    if done:
        store.finish_run(folder, record)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """The address of an explorer over two finished runs and one that is running, and their folder."""
    from epochlens.show.explorer import app
    from epochlens.show.explorer.command import serve_in_thread

    folder = tmp_path_factory.mktemp("results") / "seen"
    write_run(folder / "a", "small", 0, EPOCHS, done=True)
    write_run(folder / "b", "deep", 0, EPOCHS, done=True)
    write_run(folder / "c", "deep", 1, 3, done=False)
    before, app.LIVE = app.LIVE, 500
    server = serve_in_thread(folder)
    yield f"http://127.0.0.1:{server.port}", folder
    server.shutdown()
    app.LIVE = before


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, place) -> Iterator[Any]:
    """A page that must not ask anyone else, and must not write an error to its console."""
    page, hosts, errors = browser.new_page(viewport={"width": 1300, "height": 900}), set(), []
    page.set_default_timeout(WAIT)
    page.on("request", lambda request: hosts.add(urlparse(request.url).hostname))
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("response", lambda response: response.status >= 400 and errors.append(response.url))
    yield page
    # Pictures of maps are data in the page itself: such requests have no host.
    assert hosts <= {"127.0.0.1", None}
    assert not errors
    page.close()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of an explorer over a folder."""
    from epochlens.show.explorer.command import serve_in_thread

    server = serve_in_thread(folder)
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()


def opened(page: Any, place: tuple[str, Path], path: str = "/") -> Any:
    page.goto(place[0] + path)
    page.wait_for_selector(".sprite")
    page.wait_for_selector("#curves .scatterlayer .trace")
    page.wait_for_selector("#matrix .heatmaplayer image")
    page.wait_for_selector("#thumbs .thumb[aria-pressed=true]")
    return page


def epoch_of(page: Any) -> int:
    return int(page.inner_text("#epoch-now").split()[1])


def wait_for_epoch(page: Any, epoch: int) -> None:
    page.wait_for_function(f"document.getElementById('epoch-now').textContent === 'epoch {epoch}'")


def cells(page: Any) -> list[str]:
    """Which cell of its sheet each map shows."""
    return page.eval_on_selector_all(".sprite", "all => all.map(one => one.style.backgroundPosition)")


def test_keys_move_every_panel_and_the_cursor(page, place):
    opened(page, place)
    assert epoch_of(page) == EPOCHS - 1
    before = cells(page)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    wait_for_epoch(page, EPOCHS - 3)
    page.wait_for_function("document.querySelector('#curves .js-plotly-plot').layout.shapes[0].x0 === 3")
    page.wait_for_function("document.querySelector('#matrix .js-plotly-plot').layout.shapes[0].x0 === 3")
    assert page.inner_text(".said").startswith("epoch 3 · accuracy 0.300")
    assert all(now != then for now, then in zip(cells(page), before, strict=True))
    page.keyboard.press("ArrowRight")
    wait_for_epoch(page, EPOCHS - 2)
    page.evaluate("""() => ["ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowRight"].forEach((key) =>
        document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true })))""")
    wait_for_epoch(page, EPOCHS - 4)
    page.fill("#epoch-now ~ input, .slider input", "1")
    page.keyboard.press("Enter")
    wait_for_epoch(page, 1)
    page.click("#probe")
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(200)
    assert epoch_of(page) == 1, "keys typed into a box do not move the epoch"


def test_play_goes_round_and_space_stops_it(page, place):
    opened(page, place)
    page.click("#play")
    wait_for_epoch(page, 0)
    wait_for_epoch(page, 2)
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Space")
    page.wait_for_function("document.getElementById('play').textContent.includes('play')")
    stopped = epoch_of(page)
    page.wait_for_timeout(900)
    assert epoch_of(page) == stopped


def test_picking_another_model_image_or_scale_redraws(page, place):
    opened(page, place)
    pictures = "all => all.map(one => one.style.backgroundImage)"
    first = page.eval_on_selector_all(".sprite", pictures)
    page.click("#thumbs .thumb >> nth=3")
    page.wait_for_function("document.querySelector('figcaption').textContent.includes('test image 3')")
    third = page.eval_on_selector_all(".sprite", pictures)
    assert third != first
    page.click("text=shared by all epochs")
    page.wait_for_function(
        "before => document.querySelector('.sprite').style.backgroundImage !== before", arg=third[0]
    )
    page.click("#model")
    page.click("[role=option]:has-text('deep'), .dash-options-list-option:has-text('deep')")
    page.wait_for_function("document.querySelector('.run h2').textContent.includes('deep')")
    for said in ("run=b", "probe=3", "scale=shared"):
        page.wait_for_function("said => location.search.includes(said)", arg=said)


def test_two_runs_side_by_side_and_the_pair_of_a_clicked_cell(page, place):
    opened(page, place, "/?run=a&other=b&epoch=2")
    assert page.locator(".run").count() == 2
    assert page.locator("#curves .scatterlayer .trace").count() == 2 * (len(METHODS) + 1)
    page.locator("#matrix").evaluate("plot => plot.scrollIntoView({ block: 'center' })")
    box = page.locator("#matrix .nsewdrag").first.bounding_box()
    page.mouse.click(box["x"] + 1.5 / EPOCHS * box["width"], box["y"] + 0.5 / EPOCHS * box["height"])
    page.wait_for_selector("#pair .sprite")
    assert page.inner_text("#pair h2") == f"Epochs 1 and {EPOCHS - 1}"
    assert epoch_of(page) == 2
    page.locator("#curves").evaluate("plot => plot.scrollIntoView({ block: 'center' })")
    point = page.locator("#curves .points path").nth(4).bounding_box()
    page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    page.wait_for_selector("#curves .hoverlayer .hovertext")
    page.mouse.down()
    page.mouse.up()
    wait_for_epoch(page, 4)


def test_a_link_shows_the_same_again_and_a_bad_one_says_so(page, place):
    link = (
        "/?run=b&probe=2&epoch=3&scale=shared&change=previous&reference=previous&average=mean&method=saliency"
    )
    opened(page, place, link)
    assert epoch_of(page) == 3 and page.locator(".sprite").count() == 1
    assert "test image 2" in page.inner_text("figcaption >> nth=0")
    said, url = page.inner_text(".said"), page.url
    page.goto("about:blank")
    page.goto(url)
    page.wait_for_selector(".sprite")
    page.wait_for_selector("#curves .scatterlayer .trace")
    assert page.inner_text(".said") == said
    opened(page, place, "/?run=nowhere&epoch=99")
    told = page.inner_text(".notice")
    assert "nowhere" in told and "99" in told
    assert epoch_of(page) == EPOCHS - 1


def test_a_running_run_grows_without_reload(page, place):
    opened(page, place, "/?run=c")
    assert epoch_of(page) == 2 and "running" in page.inner_text(".run h2")
    write_epoch(place[1] / "c", 3, seed=1)
    wait_for_epoch(page, 3)
    page.wait_for_function("document.querySelector('.said').textContent.startsWith('epoch 3')")


def test_tables_sort_and_pages_change_without_reload(page, place):
    opened(page, place)
    page.click("nav >> text=Stability")
    page.wait_for_selector("#table-runs tbody tr")
    column = "all => all.map(row => row.children[0].textContent)"
    assert page.eval_on_selector_all("#table-runs tbody tr", column) == ["a", "b", "c"]
    page.click("#table-runs th button >> nth=0")
    page.click("#table-runs th button >> nth=0")
    assert page.eval_on_selector_all("#table-runs tbody tr", column) == ["c", "b", "a"]
    page.click("nav >> text=Quality")
    page.wait_for_selector("text=No quality was measured")
    page.go_back()
    page.wait_for_selector("#table-runs")
    page.click("nav >> text=Model")
    page.wait_for_selector("text=No run here has saved weights")


def test_files_are_saved(page, place, tmp_path):
    from PIL import Image

    opened(page, place, "/?run=a&epoch=2")
    with page.expect_download() as found:
        page.click("#save-maps")
    found.value.save_as(tmp_path / "maps.csv")
    assert found.value.suggested_filename == "a-image0-epoch2.csv"
    assert len((tmp_path / "maps.csv").read_text().splitlines()) == 1 + len(METHODS) * 64
    for name in ("curves", "matrix"):
        with page.expect_download() as found:
            page.click(f"[data-save=png][data-graph={name}]")
        found.value.save_as(tmp_path / "figure.png")
        assert len(Image.open(tmp_path / "figure.png").convert("RGB").getcolors(2**20) or []) > 20
    with page.expect_download() as found:
        page.click("[data-save=csv][data-graph=matrix]")
    found.value.save_as(tmp_path / "matrix.csv")
    head, *rows = (tmp_path / "matrix.csv").read_text().splitlines()
    assert head == "series,panel,x,y,value" and len(rows) == EPOCHS**2
    diagonal = [row.split(",") for row in rows]
    assert all(float(row[4]) > 0.999 for row in diagonal if row[2] == row[3])


def test_a_phone_needs_no_sideways_scrolling(browser, place):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.set_default_timeout(WAIT)
    for path in ("/cost", "/stability", "/quality", "/model"):
        page.goto(place[0] + path)
        page.wait_for_selector("#page > *", state="attached")
        if path == "/cost":
            page.wait_for_selector("#cost-memory .bars path")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
    opened_phone = page.goto(place[0])
    assert opened_phone.ok
    page.wait_for_selector("#curves .scatterlayer .trace")
    page.wait_for_function("!document.getElementById('controls').open")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator(".sprite").first.bounding_box()["y"] < 844, "maps come before the folded controls"
    assert re.fullmatch(r"epoch \d+", page.inner_text("#epoch-now"))
    page.close()


def test_graphs_stay_inside_their_panels_after_the_window_changes(page, place):
    opened(page, place)
    asked = {
        name: page.locator(f"#{name} .main-svg").first.bounding_box()["height"]
        for name in ("curves", "matrix")
    }
    assert min(asked.values()) > 300
    for width in (700, 1300):
        page.set_viewport_size({"width": width, "height": 900})
        page.keyboard.press("ArrowLeft")
        page.wait_for_timeout(500)
        for name, height in asked.items():
            panel = page.locator(f"section.panel:has(#{name})").bounding_box()
            plot = page.locator(f"#{name} .main-svg").first.bounding_box()
            assert plot["y"] + plot["height"] <= panel["y"] + panel["height"]
            assert plot["x"] + plot["width"] <= panel["x"] + panel["width"]
            assert plot["width"] > 0.8 * panel["width"]
            assert plot["height"] == height


def test_the_first_page_says_when_maps_settle_before_anything_is_clicked(page, place):
    opened(page, place)
    page.wait_for_selector("#answer .mine")
    told = page.inner_text("#answer")
    assert "digits · small" in told and "saliency maps" in told and "Settled: from this epoch on" in told
    answer, maps = (page.locator(name).first.bounding_box() for name in ("#answer .mine", ".sprite"))
    assert answer["y"] + answer["height"] < maps["y"] < 800


def bar_texts(page: Any) -> list[str]:
    return page.eval_on_selector_all("#cost-operations .bartext", "all => all.map(one => one.textContent)")


def test_costs_follow_the_sliders(page, place):
    page.goto(place[0] + "/cost")
    page.wait_for_selector("#cost-operations .bartext")
    page.wait_for_selector("#table-cost tbody tr")
    rows = "all => Object.fromEntries(all.map(({ children: [a, b] }) => [a.textContent, b.textContent]))"
    before, ends = bar_texts(page), page.eval_on_selector_all("#cost-operations .xtick", "all => all.length")
    slider = page.locator("#cost-steps [role=slider]")
    slider.focus()
    moved = "name => [...document.querySelectorAll('#table-cost td')].some(one => one.textContent === name)"
    for count in (1, 2, 5):
        page.keyboard.press("ArrowRight")
        page.wait_for_function(moved, arg=f"integrated_gradients:steps={count}")
    found = page.eval_on_selector_all("#table-cost tbody tr", rows)
    page.wait_for_function(
        "before => JSON.stringify([...document.querySelectorAll('#cost-operations .bartext')]"
        ".map(one => one.textContent)) !== before",
        arg=json.dumps(before, separators=(",", ":")),
    )
    assert found["integrated_gradients:steps=5"] in bar_texts(page)
    assert page.eval_on_selector_all("#cost-operations .xtick", "all => all.length") == ends, "the axis stays"
    page.click("#table-cost th button >> nth=1")
    numbers = page.eval_on_selector_all(
        "#table-cost tbody tr", "all => all.map(row => row.children[1].textContent)"
    )
    sizes = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}
    values = [float(text.split()[0]) * sizes[[*text.split(), ""][1]] for text in numbers]
    assert values == sorted(values) and values[-1] > 1e5, "sorted by number, not by text"
    page.wait_for_function("location.search.includes('steps=3')")
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_function(moved, arg="integrated_gradients:steps=5")
    page.fill("#cost-side", "1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#cost-said .notice")


def test_a_real_sweep_is_watched_from_nothing_to_its_end(page, place, tmp_path):
    """The page is opened once, before there is anything; what it shows later it found out by itself."""
    results = tmp_path / "results"
    command = "import sys; from epochlens.commands import grid; sys.exit(grid(sys.argv[1:]))"
    options = [
        "--name",
        "live",
        "--datasets",
        "digits",
        "--models",
        "deep",
        "--lrs",
        "0.01",
        "--seeds",
        "0",
        "1",
    ]
    options += ["--epochs", "60", "--probe-samples", "4", "--keep-weights", "all", "--no-dashboard"]
    places = ["--results-dir", str(results), "--plots-dir", str(tmp_path / "plots")]
    with served(results / "live") as address:
        page.goto(address)
        page.wait_for_selector("text=No run here yet")
        page.evaluate("window.notReloaded = true")
        sweep = subprocess.Popen(
            [sys.executable, "-c", command, *options, *places],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            page.wait_for_selector(".run .sprite", timeout=120_000)
            seen = {epoch_of(page)}
            page.wait_for_selector("#progress:has-text('live')")
            for _ in range(3):
                page.wait_for_function(
                    "seen => !seen.includes(+document.getElementById('epoch-now').textContent.slice(6))",
                    arg=sorted(seen),
                    timeout=120_000,
                )
                seen.add(epoch_of(page))
            assert len(seen) == 4 and max(seen) > min(seen), "the newest epoch is followed"
            assert "So far" in page.inner_text("#answer") or max(seen) == 60
            assert sweep.wait(240) == 0
        finally:
            sweep.terminate()
            sweep.wait(60)
        page.wait_for_selector("#progress:has-text('2 done')")
        wait_for_epoch(page, 60)
        page.wait_for_function("document.querySelector('#answer').textContent.includes('middle half')")
        assert page.evaluate("window.notReloaded") is True
        page.wait_for_selector(".probable .bar")
        probable = "all => all.map(one => one.textContent)"
        page.wait_for_function("document.querySelector('.probable-at').textContent === 'after epoch 60'")
        last = page.eval_on_selector_all(".probable output", probable)
        page.evaluate("window.dash_clientside.set_props('epoch', { value: 0 })")
        page.wait_for_function("document.querySelector('.probable-at').textContent === 'after epoch 0'")
        assert page.eval_on_selector_all(".probable output", probable) != last
        page.click("nav >> text=Model")
        page.wait_for_selector("#model-found .sprite", timeout=120_000)
        page.wait_for_selector("#model-found .layer")
        said = page.inner_text("#model-found .panel p")
        page.click("#model-target")
        page.click("[role=option]:has-text('class 3'), .dash-options-list-option:has-text('class 3')")
        page.wait_for_selector("text=maps explain class 3")
        assert page.inner_text("#model-found .panel p") != said
        page.click("nav >> text=Stability")
        page.wait_for_selector("#table-settling_summary tbody tr")
        page.wait_for_selector("#settling .points path")
