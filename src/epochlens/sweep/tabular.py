"""`explain --tabular`: LIME and SHAP of one row of a table, and how much of them is the forest's seed.

forests that differ in their seed alone -> explanations of test rows -> their agreement -> table and figure.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from epochlens import config
from epochlens.attribute import tabular as explainers
from epochlens.errors import UsageError, unknown
from epochlens.lazy import LazyModule
from epochlens.learn.tables import DATASETS, Table, load, train
from epochlens.sweep.progress import grid_table

if TYPE_CHECKING:
    from epochlens.measure import seeds as between
    from epochlens.measure import similarity, stability, statistics
    from epochlens.record import files
    from epochlens.show import style
    from epochlens.show import tabular as drawing
else:
    between = LazyModule("epochlens.measure.seeds")
    similarity = LazyModule("epochlens.measure.similarity")
    stability = LazyModule("epochlens.measure.stability")
    statistics = LazyModule("epochlens.measure.statistics")
    files = LazyModule("epochlens.record.files")
    style = LazyModule("epochlens.show.style")
    drawing = LazyModule("epochlens.show.tabular")

Floats = NDArray[np.float64]
METRICS = {"cosine": -1.0, "spearman_abs": -1.0, "topk_jaccard": 0.0, "sign_agreement": 0.0}
"""metrics of agreement and their least possible value; the largest is 1"""
ROWS = 20
"""test rows over which agreement is averaged, at most"""
PLAIN_WIDTH = 160
SEEDS_END = 2**32
"""scikit-learn takes seeds below this"""


class Explained(NamedTuple):
    """Explanations of R test rows by S forests, each row for one class."""

    rows: NDArray[np.int64]
    """positions in the test split, ascending, [R]"""
    targets: NDArray[np.int64]
    probabilities: Floats
    """of the row's target, [S,R]"""
    lime: Floats
    """two independent draws, [2,S,R,D]"""
    shap: Floats
    base: Floats
    """what SHAP values add to, [S,R]"""


def explain_tabular(
    dataset: str,
    *,
    index: int,
    target: str | int = "label",
    seeds: Sequence[int] = range(5),
    samples: int = 5000,
    trees: int = 100,
    output: Path,
    json: bool,
) -> dict[str, Any]:
    """Explains test row `index` by LIME and SHAP in a random forest per seed, and measures the agreement.

    `target` is `label`, `predicted` (the class of the highest mean probability over the forests) or a class
    number. Writes output/tabular_DATASET_INDEX.png, .pdf and .npz, prints tables unless `json`, and returns
    a document for JSON (NaN as None). Raises UsageError before any training for an unknown dataset, a row or
    class outside it, settings that cannot work, a folder that cannot be written and missing packages.
    """
    seeds = [int(seed) for seed in seeds]
    target = check(dataset, index, target, seeds, samples, trees)
    config.check_writable("output", Path(output))
    explainers.check_packages()
    table = load(dataset)
    forests = [train(table, trees, seed) for seed in seeds]
    rows = spread(len(table.y_test))
    explained = explain(table, forests, np.union1d(rows, [index]), target, seeds=seeds, samples=samples)
    found = agreement(explained, index, rows)
    name = f"tabular_{dataset}_{index}"
    settings = {"dataset": dataset, "index": index, "seeds": seeds, "samples": samples, "trees": trees}
    told = settings | describe(table, forests, explained, index) | {"rows": rows.tolist()}
    document = told | {"agreement": found}
    Path(output).mkdir(parents=True, exist_ok=True)
    files.write_whole(Path(output) / f"{name}.npz", archive(table, explained, seeds))
    style.save(drawing.draw(document), Path(output), name)
    document["files"] = {kind: str(Path(output) / f"{name}.{kind}") for kind in ("png", "pdf", "npz")}
    if not json:
        tell(document)
    return _without_nan(document)


def check(
    dataset: str, index: int, target: str | int, seeds: Sequence[int], samples: int, trees: int
) -> str | int:
    """The target as `label`, `predicted` or a number. Raises UsageError for what cannot be explained."""
    if dataset not in DATASETS:
        raise unknown("tabular", dataset, DATASETS)
    facts = DATASETS[dataset]
    if not 0 <= index < facts.n_test:
        problem = f"is not a row of the test split of {dataset}, whose rows are 0 to {facts.n_test - 1}"
        raise UsageError("index", index, problem)
    if len(set(seeds)) < max(2, len(seeds)):
        raise UsageError("seeds", list(seeds), "must be two or more that differ: agreement is between seeds")
    if any(not 0 <= seed < SEEDS_END for seed in seeds):
        raise UsageError("seeds", list(seeds), f"must be from 0 to {SEEDS_END - 1}")
    for field, value, least in (("samples", samples, 2), ("trees", trees, 1)):
        if value < least:
            raise UsageError(field, value, f"must be at least {least}")
    return _check_target(dataset, target, facts.classes)


def _check_target(dataset: str, target: str | int, classes: int) -> str | int:
    if isinstance(target, str) and not target.lstrip("-").isdecimal():
        if target not in ("label", "predicted"):
            raise unknown("target", target, ["label", "predicted"], ", or the number of a class")
        return target
    if not 0 <= int(target) < classes:
        problem = f"is not a class of {dataset}, whose classes are 0 to {classes - 1}"
        raise UsageError("target", target, problem)
    return int(target)


def spread(n_test: int) -> NDArray[np.int64]:
    """Up to ROWS rows of the test split, evenly spaced: tables are sorted by class, so the first are not."""
    return np.unique(np.linspace(0, n_test - 1, min(ROWS, n_test)).round().astype(np.int64))


def explain(
    table: Table,
    forests: Sequence[Any],
    rows: NDArray[np.int64],
    target: str | int,
    *,
    seeds: Sequence[int],
    samples: int,
) -> Explained:
    """Both draws of LIME and the SHAP values of the rows [R] in every forest, whose seeds name the draws."""
    x = table.x_test[rows]
    chances = np.stack([forest.predict_proba(x) for forest in forests])
    if target == "label":
        targets = table.y_test[rows]
    elif target == "predicted":
        targets = chances.mean(axis=0).argmax(axis=1)
    else:
        targets = np.full(len(rows), int(target))
    lime = np.empty((2, len(forests), *x.shape))
    for draw, s, r in np.ndindex(*lime.shape[:3]):
        lime[draw, s, r] = explainers.lime_weights(
            forests[s].predict_proba,
            table.x_train,
            x[r],
            int(targets[r]),
            samples=samples,
            seed=draw_seed(seeds[s], int(rows[r]), draw),
        )
    shap, base = zip(*(explainers.shap_values(forest, x, targets) for forest in forests), strict=True)
    probabilities = chances[:, np.arange(len(rows)), targets]
    return Explained(rows, targets, probabilities, lime, np.stack(shap), np.stack(base))


def draw_seed(seed: int, row: int, draw: int) -> int:
    """A seed for LIME that depends on the forest's seed, the row and the draw, and not on which rows else."""
    return int(np.random.SeedSequence([seed, row, draw]).generate_state(1)[0])


def agreement(explained: Explained, index: int, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    """How alike explanations are, over `rows` and for row `index` alone: a record per comparison and metric.

    `shap_between_seeds` and `lime_between_seeds` compare two forests, `lime_between_draws` two runs of LIME
    on one forest, `lime_against_shap` both methods on one forest. Fields: comparison, metric, scope (rows or
    row), mean over rows, the ends ci_low and ci_high of its 95 % interval over seeds (these rows being
    given), n_rows, n_seeds, n_undefined of the n_values compared. Undefined similarities are left out.
    """
    of_rows, of_row = np.isin(explained.rows, rows), explained.rows == index
    first, second = explained.lime
    found = []
    for metric, least in METRICS.items():
        measured = {
            "shap_between_seeds": between.pairwise(explained.shap, metric),
            "lime_between_seeds": between.pairwise(first, metric),
            "lime_between_draws": similarity.METRICS[metric](first, second),
            "lime_against_shap": similarity.METRICS[metric](first, explained.shap),
        }
        for comparison, values in measured.items():
            for scope, chosen in (("rows", of_rows), ("row", of_row)):
                record = {"comparison": comparison, "metric": metric, "scope": scope}
                found.append(record | summary(values[..., chosen], least))
    return found


def summary(values: Floats, least: float = -1.0) -> dict[str, Any]:
    """Mean and interval over seeds of similarities [S,R] of each forest or [S,S,R] of pairs of forests.

    The interval is held in what a similarity can be, from `least` to 1. Its ends are NaN for too few seeds.
    """
    means = stability.defined_mean(values, axis=-1)
    if values.ndim == 3:
        mean, low, high = between.bootstrap_pairs(means, np.random.default_rng(0))
        values = values[np.triu_indices(len(values), 1)]
    else:
        mean, low, high = statistics.t_interval(means)
    low, high = np.clip([low, high], least, 1.0)
    ends = {"mean": float(mean), "ci_low": float(low), "ci_high": float(high)}
    counts = {"n_rows": values.shape[-1], "n_seeds": means.shape[-1]}
    return ends | counts | {"n_values": values.size, "n_undefined": int(np.isnan(values).sum())}


def describe(table: Table, forests: Sequence[Any], explained: Explained, index: int) -> dict[str, Any]:
    """What the document says of the row and the forests."""
    place = int(np.flatnonzero(explained.rows == index)[0])
    target = int(explained.targets[place])
    return {
        "label": int(table.y_test[index]),
        "label_name": table.classes[table.y_test[index]],
        "target": target,
        "target_name": table.classes[target],
        "features": list(table.features),
        "values": table.x_test[index].tolist(),
        "n_test": len(table.y_test),
        "accuracy": [float(forest.score(table.x_test, table.y_test)) for forest in forests],
        "probability": explained.probabilities[:, place].tolist(),
        "lime": explained.lime[0, :, place].tolist(),
        "shap": explained.shap[:, place].tolist(),
        "shap_base": explained.base[:, place].tolist(),
    }


def archive(table: Table, explained: Explained, seeds: Sequence[int]) -> bytes:
    """All explanations as the content of an .npz file."""
    arrays: dict[str, Any] = explained._asdict()
    arrays |= {"x": table.x_test[explained.rows], "y": table.y_test[explained.rows], "seeds": seeds}
    arrays |= {"features": table.features, "classes": table.classes}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def tell(document: Mapping[str, Any]) -> None:
    """Prints accuracy, the strongest features of the row and the agreement."""
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    accuracy = document["accuracy"]
    console.print(drawing.headline(document), markup=False)
    console.print(
        f"{len(accuracy)} random forests of {document['trees']} trees: accuracy {np.mean(accuracy):.3f} on "
        f"{document['n_test']} test rows ({min(accuracy):.3f} to {max(accuracy):.3f}); "
        f"LIME with {document['samples']} samples"
    )
    title = "What the row's features did to the probability: mean over seeds (smallest to largest)"
    console.print(grid_table(drawing.feature_lines(document), ["feature", "value", "LIME", "SHAP"], title))
    title = "Agreement: mean [95 % interval over seeds]"
    lines = drawing.agreement_lines(document, list(METRICS))
    console.print(grid_table(lines, ["over", "compared", *METRICS], title))
    for path in document["files"].values():
        console.print(path, markup=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value
