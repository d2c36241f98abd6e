"""The explorer on a large sweep: how soon the page follows the slider, and what the server does between."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from epochlens.record import files, store
from epochlens.sweep.bench.storage import example_maps
from epochlens.sweep.bench.timing import Result

LIMIT = 0.2
"""seconds that a redraw may take"""
METHODS = ["saliency", "integrated_gradients"]
SHAPE = (1, 28, 28)
MOVES = """async (epochs) => {
  const shown = (epoch) => document.getElementById("epoch-now").textContent === `epoch ${epoch}`
    && ["curves", "matrix"].every((name) =>
      document.querySelector(`#${name} .js-plotly-plot`).layout.shapes[0].x0 === epoch);
  const taken = [];
  for (const epoch of epochs) {
    const started = performance.now();
    window.dash_clientside.set_props("epoch", { value: epoch });
    while (!shown(epoch)) await new Promise(requestAnimationFrame);
    await new Promise(requestAnimationFrame);  // painted
    taken.push((performance.now() - started) / 1000);
  }
  return taken;
}"""
"""moves the slider in the browser and measures until maps, numbers and both cursors have followed"""


def comparisons(quick: bool) -> Iterator[Result | str]:
    """The time of a move in Chromium against the limit; without a browser what the server does, in words."""
    if importlib.util.find_spec("dash") is None:
        yield "skipped: Dash is not installed (it comes with the extra `explore`)"
        return
    runs, epochs = (6, 10) if quick else (60, 50)
    folder = Path(tempfile.mkdtemp(prefix="epochlens-bench-"))
    try:
        write_sweep(folder, runs, epochs)
        yield from in_words(folder, runs, epochs)
        moves = in_browser(folder, epochs)
        if isinstance(moves, str):
            yield moves
        else:
            yield as_result(f"moving the slider, {runs} runs x {epochs} epochs", moves)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_sweep(folder: Path, runs: int, epochs: int) -> None:
    """A sweep of finished runs that share one run's files."""
    maps, plans = example_maps(epochs + 1, shape=SHAPE), []
    both = np.concatenate([maps.attributions, maps.attributions**2], axis=1)
    maps = maps._replace(attributions=both, methods=np.array(METHODS))
    images = np.random.default_rng(0).random((both.shape[2], *SHAPE)).astype(np.float32)
    for seed in range(runs):
        about = {"dataset": "mnist", "model": "small", "learning_rate": 0.01, "seed": seed}
        record = {"run_id": f"mnist-small-seed{seed}", **about, "methods": METHODS, "epochs": epochs}
        plans.append(record)
        target = folder / "runs" / record["run_id"]
        if seed == 0:
            store.begin_run(target, record, images, maps.targets[0], maps.samples)
            for t in range(epochs + 1):
                one = maps._replace(
                    attributions=maps.attributions[t : t + 1],
                    epochs=maps.epochs[t : t + 1],
                    targets=maps.targets[t : t + 1],
                    predictions=maps.predictions[t : t + 1],
                )
                store.commit_epoch(target, t, one, {"accuracy": t / (epochs + 1)}, None)
            store.finish_run(target, record)
        else:
            shutil.copytree(folder / "runs" / plans[0]["run_id"], target, copy_function=os.link)
            written = files.read_json(target / "run.json") or {}
            (target / "run.json").unlink()
            files.write_json(target / "run.json", {**written, **record})
    files.write_json(folder / "sweep.json", {"settings": {}, "runs": plans})


def in_words(folder: Path, runs: int, epochs: int) -> Iterator[str]:
    """What the server takes to look at the store, and to draw another run and another image."""
    from epochlens.show.explorer import app, data, maps_drawing

    source = data.Source(folder, None, data.Cache())
    names = list(data.find_runs(folder))

    def draw(run: str, image: int) -> Any:
        shown = [run, None, image, METHODS, "own", "none", "final", "image"]
        return maps_drawing.draw(source, *shown, "revision", epochs, None)

    look = seconds(lambda: app.refresh(source, 0, None, True, False, False))
    first, another = seconds(lambda: draw(names[1], 0)), seconds(lambda: draw(names[1], 1))
    yield (
        f"the server looks at {runs} runs in {look * 1000:.0f} ms, draws another run of {epochs} epochs in "
        f"{first * 1000:.0f} ms and another image of it in {another * 1000:.0f} ms"
    )


def in_browser(folder: Path, epochs: int) -> list[float] | str:
    """Seconds of each move of the slider, or why they cannot be measured here."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if importlib.util.find_spec("playwright") is None or chromium is None:
        return "the slider is not measured: it needs Chromium, and Playwright of the extra `browser`"
    from epochlens.show.explorer.command import serve_in_thread

    playwright: Any = importlib.import_module("playwright.sync_api")
    server = serve_in_thread(folder)
    try:
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(f"http://127.0.0.1:{server.port}")
            page.wait_for_selector(".sprite")
            page.wait_for_selector("#curves .scatterlayer .trace")
            page.wait_for_selector("#matrix .heatmaplayer image")
            page.wait_for_timeout(1000)
            taken = page.evaluate(MOVES, list(range(epochs)))
            browser.close()
        return taken
    finally:
        server.shutdown()


def as_result(task: str, taken: list[float]) -> Result:
    """The moves against the limit."""
    median = statistics.median(taken)
    slow, fast = (LIMIT / float(np.quantile(taken, q)) for q in (0.75, 0.25))
    return Result(
        "explorer", task, "the limit", median, LIMIT, LIMIT / median, slow, fast, 1.0, float("nan"), 0.0
    )


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
