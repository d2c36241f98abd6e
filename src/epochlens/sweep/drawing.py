"""Draws a sweep's figures, sheets of maps, time lapse and report, as Ray tasks side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epochlens.lazy import LazyModule
from epochlens.record import retrieval
from epochlens.sweep import nodes

if TYPE_CHECKING:
    import pandas as pd
    import ray

    from epochlens.show import figures, maps, report
else:
    ray = LazyModule("ray")
    figures = LazyModule("epochlens.show.figures")
    maps = LazyModule("epochlens.show.maps")
    report = LazyModule("epochlens.show.report")


def draw_all(
    name: str,
    plots: Path,
    tables: Mapping[str, pd.DataFrame],
    done: Sequence[Mapping[str, Any]],
    notices: Sequence[str],
    summary: pd.DataFrame,
    settings: Mapping[str, Any],
    progress: Callable[[str, int, int], None],
) -> None:
    """Writes every figure as PNG and PDF, the sheets and the time lapse, and report.html into `plots`."""
    plots.mkdir(parents=True, exist_ok=True)
    shared: Any = ray.put(dict(tables))
    here: Any = nodes.on_this_node()
    figure = ray.remote(max_retries=3, **here)(draw_figure)
    sheet = ray.remote(max_retries=3, **here)(draw_sheet)
    lapse = ray.remote(max_retries=3, **here)(draw_timelapse)
    drawn = {key: figure.remote(key, shared, str(plots), list(notices)) for key in figures.drawable(tables)}
    chosen = [run for run in examples(done, tables["runs"]) if has_pictures(run)]
    extras = {f"Maps of {run['dataset']}, {run['model']}": sheet.remote(run, str(plots)) for run in chosen}
    if chosen:
        extras["Time lapse"] = lapse.remote(chosen[-1], str(plots))
    waiting, total = [*drawn.values(), *extras.values()], len(drawn) + len(extras)
    while waiting:
        _, waiting = ray.wait(waiting)
        progress("figures drawn", total - len(waiting), total)
    images = {key: ray.get(reference) for key, reference in drawn.items()}
    pictures = {key: ray.get(reference) for key, reference in extras.items()}
    report.write_report(
        plots / "report.html",
        f"EpochLens: {name}",
        tables,
        images,
        pictures,
        list(notices),
        settings,
        summary,
    )


def draw_figure(key: str, tables: Mapping[str, pd.DataFrame], plots: str, notices: Sequence[str]) -> bytes:
    """Draws and saves one figure; returns its PNG."""
    figure = figures.draw(key, tables)
    for text in notices:
        figures.notice(figure, text)
    return figures.save(figure, plots, key).read_bytes()


def examples(done: Sequence[Mapping[str, Any]], runs: pd.DataFrame) -> list[Mapping[str, Any]]:
    """For each dataset and model the run that the maps are shown of: the most accurate, first in the grid."""
    accuracy = dict(zip(runs["run_id"], runs["final_accuracy"].fillna(-np.inf), strict=True))
    best: dict[tuple[str, str], Mapping[str, Any]] = {}
    for run in done:
        key = (str(run["dataset"]), str(run["model"]))
        if key not in best or accuracy[run["run_id"]] > accuracy[best[key]["run_id"]]:
            best[key] = run
    return list(best.values())


def draw_sheet(run: Mapping[str, Any], plots: str) -> tuple[str, bytes]:
    """A sheet of the run's maps; returns its caption and PNG."""
    loaded, images, labels = load_example(run)
    title = f"{run['dataset']}, {run['model']}, learning rate {run['learning_rate']:g}, seed {run['seed']}"
    figure = maps.sheet(
        images,
        loaded.attributions.swapaxes(0, 1),
        loaded.epochs.tolist(),
        loaded.methods.tolist(),
        labels,
        loaded.samples.tolist(),
        title,
    )
    path = figures.save(figure, plots, f"maps_{run['dataset']}_{run['model']}".replace(":", "-"))
    caption = (
        f"The most accurate run of this dataset and model ({title}). Rows are methods, columns epochs; red "
        "raises the target's logit, blue lowers it. Each map is summed over channels and scaled by its own "
        "99.5th percentile, so shades compare within a map, not between maps."
    )
    return caption, path.read_bytes()


def draw_timelapse(run: Mapping[str, Any], plots: str) -> tuple[str, bytes]:
    """A GIF of one probe image's maps over the epochs; returns its caption and bytes."""
    loaded, images, _ = load_example(run)
    accuracy = retrieval.read_epochs(Path(run["folder"]))["accuracy"].to_numpy()
    path = maps.timelapse(
        Path(plots) / "timelapse.gif",
        images[0],
        loaded.attributions[:, :, 0].swapaxes(0, 1),
        loaded.epochs.tolist(),
        loaded.methods.tolist(),
        accuracy,
    )
    return f"Maps of test image {loaded.samples[0]} over training, run {run['run_id']}.", path.read_bytes()


def has_pictures(run: Mapping[str, Any]) -> bool:
    """Whether the run explains images, [N,C,H,W], and not rows of features."""
    with np.load(Path(run["folder"]) / "probe.npz", allow_pickle=False) as probe:
        return probe["images"].ndim == 4


def load_example(run: Mapping[str, Any]) -> tuple[Any, np.ndarray, list[int]]:
    """Maps, probe images and the labels of the images in the dataset's own numbering."""
    folder = Path(run["folder"])
    with np.load(folder / "probe.npz", allow_pickle=False) as probe:
        images, labels = probe["images"], probe["labels"]
    classes = run.get("classes") or range(int(labels.max()) + 1)
    return retrieval.load(folder), images, [classes[label] for label in labels]
