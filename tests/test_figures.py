"""Figures draw what the tables hold, from full sweeps down to empty ones, and files repeat byte for byte."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats
from test_quality_figures import build_quality

from epochlens.measure.survival import cluster_bootstrap_median, paired_lag
from epochlens.show import maps
from epochlens.show.figures import FIGURES, draw, notice, save
from epochlens.show.style import looks, span

KEYS = ["dataset", "model", "learning_rate"]
QUALITY = ("faithfulness_correlation", "relative_input_stability_kept", "relative_input_stability")
# Figures that compare levels or seeds, of which a single run has one.
NEED_SEVERAL = ("dataset_effect", "model_effect", "learning_rate_effect", "agreement")


def summarise(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean and 95 % t interval over seeds, by SciPy's own formulas."""

    def one(part: pd.DataFrame) -> pd.Series:
        values = part["value"].dropna().to_numpy()
        n = len(values)
        mean = values.mean() if n else np.nan
        std = values.std(ddof=1) if n > 1 else np.nan
        half = stats.t.ppf(0.975, n - 1) * std / np.sqrt(n) if n > 1 else np.nan
        undefined = part["n_undefined"].sum()
        return pd.Series(
            {
                "n_seeds": n,
                "n_undefined": undefined,
                "mean": mean,
                "std": std,
                "ci_low": mean - half,
                "ci_high": mean + half,
            }
        )

    return frame.groupby(list(by))[["value", "n_undefined"]].apply(one).reset_index()


def build_tables(
    datasets: Sequence[str] = ("digits",),
    models: Sequence[str] = ("small", "deep"),
    rates: Sequence[float] = (0.001, 0.01),
    seeds: int = 10,
    methods: Sequence[str] = ("saliency", "integrated_gradients"),
    last: int = 20,
    metrics: Sequence[str] = ("cosine", "spearman_abs"),
) -> dict[str, pd.DataFrame]:
    """Tables of a sweep that never ran: saturating curves with a seed's own offset and noise."""
    rng = np.random.default_rng(7)
    runs, epochs, stability, variance, settle, squares = [], [], [], [], [], []
    for d, m, (r, lr), seed in itertools.product(datasets, models, enumerate(rates), range(seeds)):
        speed = (6.0 if m == models[0] else 3.5) / (1 + 1.2 * r) * (1 + 0.3 * datasets.index(d))
        key = {"dataset": d, "model": m, "learning_rate": lr, "seed": seed}
        run_id = f"{d}-{m}-lr{lr}-seed{seed}"
        t = np.arange(last + 1)
        ceiling = 0.97 - 0.08 * datasets.index(d)
        rise = np.exp(-t / (speed * rng.uniform(0.8, 1.2)))
        accuracy = np.clip(ceiling - (ceiling - 0.12) * rise + rng.normal(0, 0.006, last + 1), 0, 1)
        runs.append(
            {**key, "run_id": run_id, "status": "done", "final_accuracy": accuracy[-1], "seconds": 3.0}
        )
        losses = {"train_loss": np.r_[np.nan, 2.3 * rise[1:]], "test_loss": 2.3 * rise + 0.1}
        epochs.append(pd.DataFrame({**key, "epoch": t, **losses, "accuracy": accuracy}))
        for (i, method), metric in itertools.product(enumerate(methods), metrics):
            scale = speed * (1.4 + 0.35 * i) * rng.uniform(0.8, 1.25)
            start = 0.25 + 0.08 * (i % 5) + rng.normal(0, 0.05)
            for reference, first in (("previous", 2), ("final", 0), ("initial", 1)):
                x = t[first:]
                value = (
                    1 - (1 - start) * np.exp(-x / scale) - np.abs(rng.normal(0, 0.012 * (1 + 2 * r), x.size))
                )
                value = 1.3 - value if reference == "initial" else value
                if reference == "final":
                    value = np.r_[value[:-1] * np.linspace(0.93, 1, x.size - 1), 1.0]
                frame = pd.DataFrame({**key, "run_id": run_id, "method": method, "epoch": x})
                named = frame.assign(reference=reference, metric=metric)
                stability.append(named.assign(value=np.minimum(value, 1), n_undefined=0))
                if reference == "final":
                    below = np.flatnonzero(value < 0.95)
                    when = int(x[below[-1]]) + 1 if below.size else 0
                    settled = {
                        "epoch": float(when),
                        "censored": when >= last,
                        "accuracy_epoch": float(min(round(speed * 2), last)),
                    }
                    lag = when - settled["accuracy_epoch"]
                    settle.append({**key, "method": method, "metric": metric, **settled, "lag": lag})
            if metric == "cosine" and seed == 0:
                a, b = np.meshgrid(t, t, indexing="ij")
                both = np.exp(-np.abs(a - b) / (3 + 2 * np.minimum(a, b)))
                square = {"epoch_a": a.ravel(), "epoch_b": b.ravel(), "n_seeds": seeds, "value": both.ravel()}
                ids = {k: v for k, v in key.items() if k != "seed"}
                squares.append(pd.DataFrame({**ids, "method": method, "metric": metric, **square}))
        for i, method in enumerate(methods):
            raw = 1e-4 * (i + 1) * np.exp(rng.normal(0, 0.3)) * (5 if m == models[0] else 1) * (1 + 8 * r)
            variance.append(
                {**key, "method": method, "raw": raw, "normalised": 2e-3 * rng.uniform(0.8, 1.2) / (1 + i)}
            )
    stability += build_nulls(stability, epochs, methods)
    seedwise = pd.concat(stability, ignore_index=True)
    by = [*KEYS, "method", "epoch", "reference", "metric"]
    summary = summarise(seedwise, by)
    images = build_images(settle, last)
    return {
        "runs": pd.DataFrame(runs),
        "epochs": pd.concat(epochs, ignore_index=True),
        "stability_by_seed": seedwise,
        "stability_summary": summary,
        "variance": pd.DataFrame(variance),
        "stabilisation": pd.DataFrame(settle),
        "comparisons": build_comparisons(datasets, models, rates, methods),
        "epoch_matrix": pd.concat(squares, ignore_index=True),
        "agreement": build_agreement(summary, seeds),
        "settling_images": images,
        "settling_summary": build_settling_summary(images, pd.DataFrame(settle)),
        **build_changes(seedwise),
        **build_quality(datasets, models, rates, seeds, methods, (0, last // 2, last), metrics=QUALITY),
    }


def build_nulls(
    stability: Sequence[pd.DataFrame], epochs: Sequence[pd.DataFrame], methods: Sequence[str]
) -> list[pd.DataFrame]:
    """Similarities of every run to maps that know nothing of it, and calibrated ones."""
    rng = np.random.default_rng(8)
    levels = {"other_image": 0.31, "edge": 0.14, "random": 0.0, "seeds": 0.62, "redraw": 0.93}
    found = []
    for frame in stability:
        if frame["metric"].iloc[0] != "cosine":
            continue
        reference, method = frame["reference"].iloc[0], frame["method"].iloc[0]
        if reference in ("previous", "final"):
            calibrated = (frame["value"] - 0.31) / 0.69
            found.append(frame.assign(metric="calibrated_cosine", value=calibrated))
        if reference != "final":
            continue
        t = frame["epoch"].to_numpy()
        for null, height in levels.items():
            if null == "redraw" and "smoothgrad" not in method:
                continue
            value = height * (1 - 0.6 * np.exp(-t / 3)) + 0.03 * methods.index(method)
            noise = rng.normal(0, 0.03) + rng.normal(0, 0.008, t.size)
            # A single seed has no other to agree with.
            alone = null == "seeds" and len({e["seed"].iloc[0] for e in epochs}) == 1
            found.append(frame.assign(reference=null, value=np.nan if alone else value + noise))
    return found


def build_agreement(summary: Any, seeds: int) -> pd.DataFrame:
    """Agreement between seeds with wider intervals than a t interval gives."""
    between = summary[(summary["reference"] == "seeds") & (summary["metric"] == "cosine")]
    columns = [*KEYS, "method", "epoch", "metric", "n_seeds", "mean", "ci_low", "ci_high"]
    between = between.assign(n_seeds=seeds, ci_low=between["mean"] - 0.04, ci_high=between["mean"] + 0.04)
    return between.loc[:, columns] if seeds > 2 else between.assign(ci_low=np.nan, ci_high=np.nan)[columns]


def build_images(settle: Sequence[dict[str, Any]], last: int, images: int = 16) -> pd.DataFrame:
    """Settling epochs of every image, around those of its run."""
    rng = np.random.default_rng(9)
    found = []
    for row in settle:
        if row["metric"] != "cosine":
            continue
        epoch = np.clip(np.round(row["epoch"] + rng.normal(0, 0.2 * last, images)), 1, last)
        keys = {key: row[key] for key in (*KEYS, "seed", "method", "metric")}
        rows = {"reference": "final", "sample": np.arange(images), "epoch": epoch, "censored": epoch >= last}
        found.append(pd.DataFrame({**keys, **rows}))
    return pd.concat(found, ignore_index=True)


def build_settling_summary(images: Any, settle: Any) -> pd.DataFrame:
    """Medians over seeds and images, and lags behind accuracy, by the project's own statistics."""
    rng = np.random.default_rng(10)
    rows = []
    for key, part in images.groupby([*KEYS, "method"]):
        times = part.pivot(index="seed", columns="sample", values="epoch").to_numpy()
        late = part.pivot(index="seed", columns="sample", values="censored").to_numpy(dtype=bool)
        median, low, high = cluster_bootstrap_median(times, ~late, rng, repeats=50)
        mine = settle[(settle[[*KEYS, "method"]] == list(key)).all(axis=1) & (settle["metric"] == "cosine")]
        maps, accuracy = mine["epoch"].to_numpy(), mine["accuracy_epoch"].to_numpy()
        lag = paired_lag(maps, accuracy, mine["censored"].to_numpy(), np.zeros(len(mine), bool))
        rows.append(
            {
                **dict(zip([*KEYS, "method"], key, strict=True)),
                "metric": "cosine",
                "reference": "final",
                "tau": 0.95,
                "patience": 1,
                "n_seeds": len(times),
                "n_images": late.size,
                "n_censored": int(late.sum()),
                "median": median,
                "ci_low": low,
                "ci_high": high,
                "accuracy_median": np.median(accuracy),
                **{f"lag_{name}": value for name, value in lag.items()},
            }
        )
    return pd.DataFrame(rows)


def build_changes(seedwise: Any) -> dict[str, pd.DataFrame]:
    """What moves maps: predictions, steps and properties, all from cosines to the previous epoch."""
    rng = np.random.default_rng(11)
    previous = seedwise[(seedwise["reference"] == "previous") & (seedwise["metric"] == "cosine")]
    base = previous[[*KEYS, "seed", "method", "epoch"]]
    value, epoch = previous["value"].to_numpy(), previous["epoch"].to_numpy()
    flips = 0.3 * np.exp(-epoch / 4)
    shares = {"all": 1.0, "always_right": 0.6, "ever_right": 0.95, "right_at_both": 0.8, "kept": 1 - flips}
    conditions = []
    for name, share in {**shares, "flipped": flips}.items():
        shift = {"flipped": -0.15, "always_right": 0.02}.get(name, 0.0) * np.ones_like(value)
        shift = np.where((np.asarray(share) < 0.01) & (rng.random(value.size) < 0.5), np.nan, shift)
        rows = base.assign(
            reference="previous", metric="cosine", condition=name, value=np.minimum(value + shift, 1)
        )
        conditions.append(rows.assign(coverage=share, n=np.rint(16 * share * np.ones_like(value))))
    weights = 0.2 * np.exp(-epoch / 8) * np.exp(0.2 * previous["seed"].to_numpy() / 10)
    outputs = 1.5 * weights * np.exp(rng.normal(0, 0.1, value.size))
    steps = base.assign(metric="cosine", similarity=value, weight_change=weights, output_change=outputs)
    steps = steps.assign(per_weight_change=(1 - value) / weights, per_output_change=(1 - value) / outputs)
    noise = rng.normal(0, 0.01, value.size)
    own = {
        "mass": 2.0 * 1.3**epoch,
        "entropy": 0.9 - 0.01 * epoch + noise,
        "gini": 0.4 + 0.01 * epoch + noise,
    }
    held = [base.assign(property=name, value=values) for name, values in own.items()]
    return {
        "conditioned": pd.concat(conditions, ignore_index=True),
        "drift": steps,
        "properties": pd.concat(held, ignore_index=True),
    }


def build_comparisons(
    datasets: Sequence[str], models: Sequence[str], rates: Sequence[float], methods: Sequence[str]
) -> pd.DataFrame:
    """Paired tests with every kind of answer: small p, large p and none at all."""
    rows = []
    conditions = itertools.product(
        datasets, models, methods, ("mean_cosine", "settling_epoch", "final_accuracy")
    )
    for i, (d, m, method, outcome) in enumerate(conditions):
        p = (0.0004, 0.2, np.nan)[i % 3]
        rows.append(
            {
                "factor": "learning_rate",
                "a": f"{rates[0]:g}",
                "b": f"{rates[-1]:g}",
                "dataset": d,
                "model": m,
                "learning_rate": "*",
                "method": method,
                "outcome": outcome,
                "n": 10,
                "n_missing": int(p != p),
                "mean_difference": 0.034 * (-1) ** i,
                "ci_low": 0.01,
                "ci_high": 0.05,
                "statistic": 3.0,
                "p": p,
                "p_adjusted": np.minimum(1.0, p * 12),
                "effect_size": (0.9 if p < 0.1 else 0.1) * (-1) ** i if p == p else np.nan,
                "missing": "b: 3" if p != p else "",
                "effect_low": max((0.9 if p < 0.1 else 0.1) * (-1) ** i - 0.3, -1) if p == p else np.nan,
                "effect_high": (0.9 if p < 0.1 else 0.1) * (-1) ** i + 0.1 if p == p else np.nan,
                "n_censored": 0,
                "n_unknown": 0,
            }
        )
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return build_tables(datasets=("digits", "mnist"), seeds=4, last=6)


def titles(figure: Figure) -> list[str]:
    """First and second title line of every panel, as the reader sees them."""
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def words_of(figure: Figure) -> str:
    return "\n".join([*titles(figure), *(text.get_text() for text in figure.texts)])


def lines_named(figure: Figure, name: str) -> list[np.ndarray]:
    """Data of the lines with that gid, panel by panel: arrays [points, 2]."""
    found = [line.get_xydata() for ax in figure.axes for line in ax.lines if line.get_gid() == name]
    return [np.asarray(data) for data in found]


def only(frame: Any, **equal: object) -> Any:
    for column, value in equal.items():
        frame = frame[frame[column] == value]
    return frame


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_draws_its_data_and_is_rendered(name, tables, tmp_path):
    figure = draw(name, tables)
    assert figure.axes, "a full sweep has something to draw"
    path = save(figure, tmp_path, name)
    pixels = np.asarray(Image.open(path).convert("L"))
    assert pixels.min() < 100 and pixels.shape[0] > 200
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (edge == 255).all(), "something is cut off at the figure's edge"
    assert "interval" in FIGURES[name].caption, (
        "a caption says how its interval is made, or that there is none"
    )


@pytest.mark.parametrize("name", FIGURES)
def test_figures_survive_what_is_missing(name, tables, tmp_path):
    nothing = {key: frame.iloc[:0] for key, frame in tables.items()}
    undefined = {
        key: frame.assign(**{c: np.nan for c in frame.select_dtypes("float") if c != "learning_rate"})
        for key, frame in tables.items()
    }
    for poor in ({}, nothing, undefined):
        figure = draw(name, poor)
        assert not figure.axes and words_of(figure), "an empty figure says why"
    alone = build_tables(models=("small",), rates=(0.001,), seeds=1, last=2)
    figure = draw(name, alone)
    save(figure, tmp_path, name)
    assert bool(figure.axes) != (name in NEED_SEVERAL), words_of(figure)


@pytest.mark.parametrize(
    ("name", "metric", "reference"),
    [
        ("cosine_vs_epoch", "cosine", "previous"),
        ("rank_vs_epoch", "spearman_abs", "previous"),
        ("cosine_to_final", "cosine", "final"),
        ("accuracy_and_convergence", "cosine", "final"),
    ],
)
def test_curves_show_the_summary_and_every_seed(name, metric, reference, tables):
    figure = draw(name, tables)
    kept = {"metric": metric, "reference": reference, "method": "saliency"}
    means = only(tables["stability_summary"], **kept)
    drawn = lines_named(figure, "mean:saliency")
    keys = sorted(set(means[KEYS].itertuples(index=False, name=None)))
    assert len(drawn) == len(keys) == 8
    for ax, data, key in zip(figure.axes, drawn, keys, strict=True):
        expected = only(means, **dict(zip(KEYS, key, strict=True)))
        np.testing.assert_array_equal(data, expected[["epoch", "mean"]].to_numpy())
        faint = [c for c in ax.collections if c.get_gid() == "seeds:saliency"]
        seeds = only(tables["stability_by_seed"], **kept, **dict(zip(KEYS, key, strict=True)))
        assert isinstance(faint[0], LineCollection)
        shown = np.sort(np.concatenate([segment[:, 1] for segment in faint[0].get_segments()]))
        np.testing.assert_array_equal(shown, np.sort(seeds["value"].to_numpy()))
        low, high = ax.get_ylim()
        assert low < seeds["value"].min() and seeds["value"].max() < high and high > 1
    assert any("n = 4 seeds" in title for title in titles(figure))


def test_accuracy_is_the_mean_over_seeds(tables):
    drawn = lines_named(draw("accuracy_and_convergence", tables), "mean:accuracy")
    means = only(tables["epochs"]).groupby([*KEYS, "epoch"])["accuracy"].mean()
    np.testing.assert_allclose(np.concatenate(drawn)[:, 1], means.to_numpy(), rtol=1e-12)


def panels_with(figure: Figure, name: str) -> list[Any]:
    """Axes that hold a line of that gid, in their order."""
    return [ax for ax in figure.axes if any(line.get_gid() == name for line in ax.lines)]


def same(shown: Any, expected: Any) -> None:
    """Points drawn are the points given, undefined ones included."""
    np.testing.assert_allclose(np.asarray(shown, dtype=float), expected.to_numpy(dtype=float), rtol=1e-12)


def test_nulls_show_the_summary_and_the_agreement_between_seeds(tables):
    figure = draw("nulls", tables)
    assert len(figure.axes) == 16 and not lines_named(figure, "null:redraw")
    summary = only(tables["stability_summary"], metric="cosine", method="saliency")
    drawn = {name: lines_named(figure, name) for name in ("own:final", "null:other_image", "null:seeds")}
    # A dataset's panels: the first four are of saliency, configurations in their order.
    key = dict(zip(KEYS, ("digits", "deep", 0.001), strict=True))
    for name, reference in (("own:final", "final"), ("null:other_image", "other_image")):
        same(drawn[name][0], only(summary, reference=reference, **key)[["epoch", "mean"]])
    moved = tables["agreement"].assign(mean=tables["agreement"]["mean"] + 0.1)
    expected = only(moved, method="saliency", **key)[["epoch", "mean"]]
    same(lines_named(draw("nulls", {**tables, "agreement": moved}), "null:seeds")[0], expected)
    assert len(drawn["null:seeds"]) == 16
    stochastic = build_tables(models=("small",), rates=(0.1,), seeds=2, methods=("smoothgrad",), last=4)
    assert len(lines_named(draw("nulls", stochastic), "null:redraw")) == 1


def test_panels_that_have_no_room_are_counted(tables):
    methods = [f"method{i}" for i in range(5)]
    many = [frame.assign(method=m) for m in methods for frame in [tables["stability_summary"]]]
    summary = only(pd.concat(many), metric="cosine").drop_duplicates([*KEYS, "method", "epoch", "reference"])
    figure = draw("nulls", {"stability_summary": summary})
    assert len(figure.axes) == 32 and "8 further panels are left out" in words_of(figure)


def test_calibrated_curves_stand_on_a_marked_scale(tables):
    figure = draw("calibrated", tables)
    drawn = lines_named(figure, "mean:saliency")
    summary = only(tables["stability_summary"], metric="calibrated_cosine", method="saliency")
    first = only(summary, dataset="digits", model="deep", learning_rate=0.001)
    same(drawn[0], only(first, reference="final")[["epoch", "mean"]])
    same(drawn[4], only(first, reference="previous")[["epoch", "mean"]])
    for ax in figure.axes:
        marks = [np.asarray(line.get_ydata())[0] for line in ax.lines if line.get_gid() == "scale"]
        assert marks == [0.0, 1.0] and ax.get_ylim()[0] < 0 and ax.get_ylim()[1] > 1


def test_agreement_shows_both_curves_and_says_without_seeds_that_there_is_none(tables):
    figure = draw("agreement", tables)
    key = {"dataset": "mnist", "model": "small", "learning_rate": 0.01, "method": "integrated_gradients"}
    same(lines_named(figure, "null:seeds")[-1], only(tables["agreement"], **key)[["epoch", "mean"]])
    final = only(tables["stability_summary"], metric="cosine", reference="final", **key)
    same(lines_named(figure, "own:final")[-1], final[["epoch", "mean"]])
    alone = build_tables(models=("small",), rates=(0.001,), seeds=1, last=2)
    assert "takes two seeds" in words_of(draw("agreement", alone)).replace("\n", " ")


def planted_images(epochs: Sequence[float], censored: Sequence[bool]) -> pd.DataFrame:
    """Images of one seed and method that settle at the given epochs."""
    key = {"dataset": "digits", "model": "small", "learning_rate": 0.1, "seed": 0, "method": "saliency"}
    kind = {"metric": "cosine", "reference": "final"}
    rows = {"sample": range(len(epochs)), "epoch": list(epochs), "censored": list(censored)}
    return pd.DataFrame({**key, **kind, **rows})


def test_survival_steps_down_where_images_settle_and_marks_the_censored():
    images = planted_images([2, 4, 4, 6, 8], [False, False, False, True, True])
    figure = draw("survival", {"settling_images": images})
    (steps,) = lines_named(figure, "share:saliency")
    # By hand: 4/5 after epoch 2, times 2/4 after 4; the censored ones lower nothing.
    assert steps.tolist() == [[0, 1], [2, 0.8], [4, 0.4], [6, 0.4], [8, 0.4], [8, 0.4]]
    (ticks,) = lines_named(figure, "censored:share:saliency")
    assert ticks.tolist() == [[6, 0.4], [8, 0.4]]
    assert "2 of 5 censored" in words_of(figure) and "n = 1 seed, 5 images each" in words_of(figure)
    assert not lines_named(figure, "median:saliency") and not lines_named(figure, "accuracy")


def test_survival_marks_the_medians_given_and_when_accuracy_settled(tables):
    figure = draw("survival", tables)
    summary = only(tables["settling_summary"], method="saliency")
    shown = [data[0, 0] for data in lines_named(figure, "median:saliency")]
    assert shown == summary["median"].dropna().tolist() and len(figure.axes) == 8
    (ax,) = draw("survival", {key: only(f, **MINE) for key, f in tables.items() if "model" in f}).axes
    accuracy = np.asarray(next(line for line in ax.lines if line.get_gid() == "accuracy").get_xydata())
    epochs = only(tables["stabilisation"], **MINE).drop_duplicates("seed")["accuracy_epoch"]
    assert set(accuracy[1:-1, 0]) == set(epochs) and accuracy[-1, 1] == 0


MINE = {"dataset": "digits", "model": "deep", "learning_rate": 0.001}


def lag_table(**changed: float) -> dict[str, pd.DataFrame]:
    """A settling_summary of one row: a lag of 6 [4, 9] epochs over 10 seeds, unless changed."""
    lag = {"n": 10, "n_censored": 0, "median_low": 6.0, "median_high": 6.0, "low": 4.0, "high": 9.0}
    lag |= {"mean": 6.5, "mean_low": 5.0, "mean_high": 8.0, **changed}
    row = {**MINE, "method": "saliency", "metric": "cosine", "reference": "final"}
    row |= {
        "n_seeds": lag["n"],
        "n_images": 160,
        "n_censored": 3,
        "median": 12.0,
        "ci_low": 9.0,
        "ci_high": 15.0,
    }
    return {"settling_summary": pd.DataFrame([{**row, **{f"lag_{name}": v for name, v in lag.items()}}])}


def whisker_ends(figure: Figure) -> list[list[float]]:
    """Ends of the horizontal lines that collections draw."""
    found = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    return [segment[:, 0].tolist() for c in found for segment in c.get_segments()]


def test_a_lag_is_drawn_with_its_interval_and_arrows_where_that_has_no_end():
    figure = draw("lag", lag_table())
    assert lines_named(figure, "lag:saliency")[0].tolist() == [[6.0, 0.0]]
    assert whisker_ends(figure) == [[4.0, 9.0]] and "n = 10" in words_of(figure)
    assert not [line for line in figure.axes[0].lines if line.get_marker() in ("<", ">")]
    open_end = draw("lag", lag_table(high=np.inf, n_censored=2))
    assert [line.get_marker() for line in open_end.axes[0].lines].count(">") == 1
    assert "n = 10, 2 censored" in words_of(open_end)
    bar = draw("lag", lag_table(median_high=np.inf, high=np.inf, n_censored=6))
    assert not lines_named(bar, "lag:saliency"), "a median that is not known is no marker"
    few = lag_table(n=4, low=-np.inf, high=np.inf)
    mean = draw("lag", few)
    assert lines_named(mean, "lag:saliency")[0].tolist() == [[6.5, 0.0]] and whisker_ends(mean) == [
        [5.0, 8.0]
    ]


def test_lags_by_the_raw_and_the_calibrated_cosine_stand_side_by_side():
    raw = lag_table()["settling_summary"]
    later = lag_table(median_low=11, median_high=11, low=8, high=np.inf, n_censored=2)["settling_summary"]
    both = pd.concat([raw, later.assign(metric="calibrated_cosine")])
    figure = draw("lag", {"settling_summary": both})
    assert len(figure.axes) == 2
    assert [points.tolist() for points in lines_named(figure, "lag:saliency")] == [[[6, 0]], [[11, 0]]]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    assert "n = 10, 0/2 censored" in words_of(figure) and "calibrated cosine" in words_of(figure)


def test_conditions_and_their_coverage_are_means_over_seeds(tables):
    figure = draw("conditioned", tables)
    for condition in ("flipped", "kept", "always_right", "ever_right"):
        mine = only(tables["conditioned"], condition=condition, method="saliency", **MINE).groupby("epoch")
        for name, column in (("mean", "value"), ("coverage", "coverage")):
            drawn = lines_named(figure, f"{name}:{condition}")[0][:, 1]
            np.testing.assert_allclose(drawn, mine[column].mean(), rtol=1e-12)
    assert len(figure.axes) == 32 and len(panels_with(figure, "coverage:kept")) == 16
    upper, lower = panels_with(figure, "mean:kept")[0], panels_with(figure, "coverage:kept")[0]
    assert lower.get_position().y1 < upper.get_position().y0, "coverage stands below its curves"


def test_drift_and_mass_are_geometric_means_on_log_axes(tables):
    figure = draw("drift", tables)
    frame = only(tables["drift"], method="saliency", **MINE)
    for name, column in (
        ("per_weight_change:saliency", "per_weight_change"),
        ("mean:weight_change", "weight_change"),
    ):
        values = frame.assign(log=np.log(frame[column].where(frame[column] > 0)))
        means = np.exp(values.groupby("epoch")["log"].mean())
        np.testing.assert_allclose(lines_named(figure, name)[0][:, 1], means, rtol=1e-9)
    assert {ax.get_yscale() for ax in figure.axes} == {"log"}
    shown = draw("properties", tables)
    gini = only(tables["properties"], property="gini", method="saliency", **MINE).groupby("epoch")["value"]
    np.testing.assert_allclose(lines_named(shown, "gini:saliency")[0][:, 1], gini.mean(), rtol=1e-12)
    assert [ax.get_yscale() for ax in shown.axes].count("log") == 8


def test_weights_alone_are_drawn_where_outputs_were_not_recorded(tables):
    frame = tables["drift"].assign(output_change=np.nan, per_output_change=np.nan)
    figure = draw("drift", {"drift": frame})
    assert not lines_named(figure, "per_output_change:saliency")
    assert len(lines_named(figure, "per_weight_change:saliency")) == 8


def test_effect_sizes_are_filled_where_they_hold_and_the_rest_is_counted(tables):
    frame = tables["comparisons"]
    tested = frame[frame["p_adjusted"].notna()]
    figure = draw("effect_sizes", tables)
    held = [float(point[0, 0]) for point in lines_named(figure, "holds")]
    assert sorted(held) == sorted(tested.loc[tested["p_adjusted"] < 0.05, "effect_size"])
    assert len(lines_named(figure, "open")) == len(tested) - len(held)
    ends = tested[["effect_low", "effect_high"]].to_numpy().tolist()
    assert sorted(whisker_ends(figure)) == sorted(ends)
    assert f"{len(held)} of {len(tested)} differences hold" in words_of(figure)
    assert f"{len(frame) - len(tested)} more were not tested" in words_of(figure)
    many = pd.concat([tested.assign(outcome=f"outcome {i}") for i in range(4)])
    figure = draw("effect_sizes", {"comparisons": many})
    assert len(lines_named(figure, "open") + lines_named(figure, "holds")) == 40
    assert f"the {len(many) - 40} with the largest p are left out" in words_of(figure)


def test_effect_sizes_name_the_censored_pairs(tables):
    frame = tables["comparisons"]
    touched = frame.assign(n_censored=np.where(frame["outcome"] == "mean_cosine", 3, 0))
    said = words_of(draw("effect_sizes", {"comparisons": touched}))
    rows = touched[touched["p_adjusted"].notna()]
    assert said.count("n = 10, 3 censored, p = ") == (rows["n_censored"] == 3).sum() > 0
    assert said.count("n = 10, p = ") == (rows["n_censored"] == 0).sum()


def test_tables_of_before_intervals_of_effects_still_draw(tables):
    older = tables["comparisons"].drop(columns=["effect_low", "effect_high"])
    figure = draw("effect_sizes", {"comparisons": older})
    assert lines_named(figure, "holds") and not whisker_ends(figure)


@pytest.mark.parametrize("factor", ["dataset", "model", "learning_rate"])
def test_effects_show_means_over_epochs_or_say_there_is_one_level(factor, tables):
    previous = only(tables["stability_by_seed"], metric="cosine", reference="previous", method="saliency")
    others = [key for key in KEYS if key != factor]
    means = previous.groupby([*others, factor, "seed"])["value"].mean().groupby([*others, factor]).mean()
    drawn = np.concatenate(lines_named(draw(f"{factor}_effect", tables), "mean:saliency"))
    np.testing.assert_allclose(drawn[:, 1], means.to_numpy(), rtol=1e-12)
    single = {key: f[f[factor] == f[factor].iloc[0]] for key, f in tables.items() if factor in f and len(f)}
    figure = draw(f"{factor}_effect", single)
    assert f"only one {factor.replace('_', ' ')} in this sweep" in words_of(figure) and not figure.axes


def test_variance_is_logarithmic_only_when_it_spans_decades(tables):
    narrow = tables["variance"]
    widened = narrow.assign(raw=np.where(narrow["model"] == "deep", narrow["raw"] * 1000, narrow["raw"]))
    raw, normalised = draw("variance_bars", {"variance": widened}).axes
    assert (raw.get_xscale(), normalised.get_xscale()) == ("log", "linear")
    assert not raw.patches, "bars on a logarithmic axis would start nowhere"
    close = narrow.assign(raw=1.0 + narrow["raw"])
    raw, _ = draw("variance_bars", {"variance": close}).axes
    assert raw.get_xscale() == "linear" and raw.get_xlim()[0] == 0 and len(raw.patches) == 16
    means = close.groupby([*KEYS, "method"])["raw"].mean()
    bars: list[Any] = list(raw.patches)
    assert {round(bar.get_width(), 9) for bar in bars} == {round(v, 9) for v in means}


def test_settling_draws_a_censored_median_open(tables):
    frame = tables["stabilisation"]
    censored = frame["method"] == "saliency"
    changed = {"stabilisation": frame.assign(censored=censored, epoch=np.where(censored, 6.0, 3.0))}
    figure = draw("settling", changed)
    (ax,) = figure.axes
    fills = {line.get_gid(): line.get_markerfacecolor() for line in ax.lines if line.get_gid()}
    assert fills["median:saliency"] == "white" and fills["median:integrated_gradients"] != "white"
    assert {x for (x, _) in np.concatenate(lines_named(figure, "median:saliency"))} == {6.0}


@pytest.mark.parametrize(("settled", "place", "name"), [(2, 3.0, "median"), (1, 6.0, "bound")])
def test_settling_draws_where_half_of_the_seeds_accuracies_had_settled(tables, settled, place, name):
    # Four seeds, the last epoch 6: with two settled at 2 and 3 the median is 3, with one not before 6.
    seed, late = tables["stabilisation"]["seed"], tables["stabilisation"]["seed"] >= settled
    accuracy = {"accuracy_epoch": np.where(late, 6.0, seed + 2.0), "accuracy_censored": late}
    (ax,) = draw("settling", {"stabilisation": tables["stabilisation"].assign(**accuracy)}).axes
    bars: dict[Any, Any] = {c.get_gid(): c for c in ax.collections if "accuracy:" in str(c.get_gid())}
    assert list(bars) == [f"accuracy:{name}"]
    (bar,) = {float(line[0, 0]) for line in bars[f"accuracy:{name}"].get_segments()}
    assert bar == place
    texts: list[Any] = [text for text in ax.texts if getattr(text, "arrow_patch", None)]
    arrows = [text for text in texts if text.xyann == (place, 0.35)]
    dotted = bars[f"accuracy:{name}"].get_linestyle()[0][1] is not None
    assert dotted == bool(arrows) == (name == "bound")


def test_final_points_are_the_last_epochs_of_all_runs(tables):
    figure = draw("final_accuracy_vs_final_stability", tables)
    shown = np.concatenate([np.asarray(c.get_offsets()) for ax in figure.axes for c in ax.collections])
    last = only(tables["stability_by_seed"], metric="cosine", reference="previous", epoch=6)
    assert len(shown) == len(last)
    np.testing.assert_allclose(np.sort(shown[:, 1]), np.sort(last["value"].to_numpy()))


def test_a_run_without_a_final_similarity_has_no_final_point(tables):
    frame = tables["stability_by_seed"]
    undefined = (frame["epoch"] == 6) & (frame["seed"] == 0) & (frame["method"] == "saliency")
    changed = {**tables, "stability_by_seed": frame.assign(value=frame["value"].mask(undefined))}
    figure = draw("final_accuracy_vs_final_stability", changed)
    shown = np.concatenate([np.asarray(c.get_offsets()) for ax in figure.axes for c in ax.collections])
    assert len(shown) == 8 * (2 * 4 - 1), "an earlier epoch must not stand in for the last"


def test_the_epoch_matrix_mirrors_a_missing_half_and_keeps_undefined_cells(tables):
    frame = tables["epoch_matrix"]
    half = frame[frame["epoch_a"] <= frame["epoch_b"]]
    half = half.assign(value=half["value"].where((half["epoch_a"] != 0) | (half["epoch_b"] != 3)))
    (image,) = draw("epoch_matrix", {"epoch_matrix": half}).axes[0].get_images()
    values = np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), np.nan)
    np.testing.assert_array_equal(values, values.T)
    assert np.isnan(values[0, 3]) and np.isfinite(values).sum() == 47


def test_a_method_keeps_its_look_in_every_figure():
    many = [f"method{i}" for i in range(12)]
    found = looks({"variance": pd.DataFrame({"method": many})})
    assert len({(look.color, look.linestyle) for look in found.values()}) == 12
    assert (
        looks({"epochs": pd.DataFrame({"seed": [1]}), "stabilisation": pd.DataFrame({"method": many})})
        == found
    )


def test_limits_hold_the_values_and_are_not_ruled_by_an_endless_interval():
    low, high = span([[0.4, 0.8, np.nan]], top=None, ends=[[-50.0, 0.9]])
    assert -0.1 < low < 0.0 and 0.9 < high < 1.0
    assert span([[np.nan]]) == (0.0, 1.0)


def test_an_interval_past_the_axis_is_said(tables):
    two = build_tables(models=("small",), rates=(0.001,), seeds=2, last=4)
    summary = two["stability_summary"].assign(ci_low=-40.0)
    assert "reaches past" in words_of(draw("cosine_vs_epoch", {**two, "stability_summary": summary}))
    assert "reaches past" not in words_of(draw("cosine_vs_epoch", tables))


def test_a_notice_adds_room_and_moves_nothing(tables):
    plain, warned = draw("settling", tables), draw("settling", tables)
    notice(warned, "3 of 40 runs are missing")
    assert "3 of 40 runs are missing" in words_of(warned)
    (w, h), (wide, high) = plain.get_size_inches(), warned.get_size_inches()
    assert wide == w and high > h
    for before, after in zip(plain.axes, warned.axes, strict=True):
        np.testing.assert_allclose(
            np.multiply(after.get_position().extents, [w, high, w, high]),
            np.multiply(before.get_position().extents, [w, h, w, h]),
        )


def test_saving_twice_gives_the_same_bytes(tables, tmp_path):
    for folder in ("a", "b"):
        save(draw("cosine_vs_epoch", tables), tmp_path / folder, "figure")
    for kind in ("png", "pdf"):
        first, second = ((tmp_path / folder / f"figure.{kind}").read_bytes() for folder in ("a", "b"))
        assert first == second and len(first) > 5000
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["figure.pdf", "figure.png"]


def test_an_unknown_figure_lists_those_there_are(tables):
    with pytest.raises(KeyError, match="cosine_vs_epoch"):
        draw("cosine", tables)


def test_a_map_is_tinted_symmetrically_about_zero():
    rng = np.random.default_rng(0)
    some = rng.normal(size=(2, 3, 8, 8))
    red, blue = maps.tint(some), maps.tint(-some)
    np.testing.assert_allclose(red[..., 0] > red[..., 2], blue[..., 0] < blue[..., 2])
    np.testing.assert_array_equal(maps.tint(some), maps.tint(some * 7.5))
    blank = maps.tint(np.zeros((1, 4, 4)))
    assert (blank == blank[0, 0]).all() and blank.min() > 0.95


def test_epochs_are_spread_from_the_first_to_the_last():
    assert maps.spread(range(5)) == [0, 1, 2, 3, 4]
    for count in (9, 21, 51, 300):
        chosen = maps.spread(range(count))
        assert chosen[:2] == [0, 1] and chosen[-1] == count - 1 and len(chosen) == len(set(chosen)) == 8


def test_a_sheet_holds_every_method_and_image():
    rng = np.random.default_rng(0)
    methods = ["saliency", "smoothgrad:base=integrated_gradients"]
    values = rng.normal(size=(2, 12, 4, 1, 8, 8))
    figure = maps.sheet(
        rng.random((4, 1, 8, 8)), values, range(12), methods, [1, 2, 3, 4], [5, 6, 7, 8], "digits"
    )
    assert len(figure.axes[0].get_images()) == 3 * (1 + 2 * 8)
    text = words_of(figure)
    assert "test image 7" in text and "test image 8" not in text and "epoch 11" in text
    assert not maps.sheet(np.empty((0, 1, 8, 8)), values[:, :, :0], range(12), methods, [], [], "none").axes


@pytest.mark.parametrize("accuracy", [None, np.linspace(0.1, 0.9, 80)])
def test_a_time_lapse_is_a_small_endless_gif(tmp_path, accuracy):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 80, 1, 8, 8))
    path = maps.timelapse(
        tmp_path / "x.gif", rng.random((1, 8, 8)), values, range(80), ["a", "b"], accuracy, frames=9
    )
    with Image.open(path) as opened:
        picture: Any = opened
        assert picture.n_frames == 9 and picture.info["loop"] == 0
    assert path.stat().st_size < maps.LARGEST
    assert [p.name for p in tmp_path.iterdir()] == ["x.gif"]


@pytest.mark.parametrize("key", ["cosine_vs_epoch", "settling", "accuracy_vs_epoch", "effect_sizes"])
def test_names_with_dollars_are_drawn_as_they_are(key, tables, tmp_path):
    key = key if key in FIGURES else next(iter(FIGURES))
    name = r"$\frac{$"
    figure = draw(key, {k: frame.replace({"digits": name, "saliency": name}) for k, frame in tables.items()})
    assert save(figure, tmp_path, key).is_file()


@pytest.mark.parametrize("name", [r"$\frac{$", "price_$a_$b", "a$$b", "x" * 300, "a/b", "../../up", "a\0b"])
def test_any_name_can_be_that_of_a_figure(name, tmp_path):
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().set_title(name.replace("\0", ""))
    path = save(figure, tmp_path / "in", f"maps_{name}_small")
    assert path.is_file() and path.with_suffix(".pdf").is_file()
    assert {p.parent for p in tmp_path.rglob("*.p*")} == {tmp_path / "in"}


def test_names_that_come_out_the_same_keep_a_file_each(tmp_path):
    figure = Figure(figsize=(1, 1))
    paths = [save(figure, tmp_path, name) for name in ("a/b", "a-b", "a:b", "x" * 300, "x" * 301)]
    assert len(set(paths)) == 5 and paths[1].stem == "a-b"


def test_a_dollar_is_a_dollar_and_powers_of_ten_stay_powers(tmp_path):
    def pixels(plain: bool, path: Path) -> np.ndarray:
        figure = Figure(figsize=(3, 2))
        ax = figure.add_subplot()
        ax.set_yscale("log")
        ax.set_ylim(1, 1e6)
        given: dict[str, Any] = {"parse_math": False} if plain else {}
        ax.set_title("a$b$", **given)
        ax.set_xticks([0, 1], ["$a$", "b"], **given)
        if plain:  # matplotlib's own way, text by text
            figure.savefig(path, dpi=150, metadata={"Software": None})
        else:
            save(figure, path.parent, path.stem)
        return np.asarray(Image.open(path))

    assert np.array_equal(pixels(False, tmp_path / "ours.png"), pixels(True, tmp_path / "peer.png"))
