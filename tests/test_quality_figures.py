"""Figures, tables and sentences of attribution quality hold the numbers planted in the tables."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import PathCollection, PolyCollection
from scipy import stats
from scipy.integrate import trapezoid

from epochlens.measure import ranking
from epochlens.show import quality, tradeoffs
from epochlens.show.figures import FIGURES, draw, drawable
from epochlens.show.summary import quality_by_configuration, summarise_quality
from epochlens.show.words import quality_sentences

KEYS = ["dataset", "model", "learning_rate"]
DIRECTIONS: dict[str, ranking.Direction | None] = {
    "faithfulness_correlation": "higher",
    "relative_input_stability": "lower",
    "relative_input_stability_kept": "lower",
    "relative_input_stability_valid": None,
    "sparseness": None,
    "deletion": "lower",
    "insertion": "higher",
    "randomisation_cosine": "lower",
    "randomisation_spearman_abs": "lower",
}
REASONS = {
    "faithfulness_correlation": "the map or the model's answer is the same whatever is removed",
    "relative_input_stability": "NaN where a perturbation changes the prediction.",
    "relative_input_stability_kept": "no perturbation kept the prediction",
}
ORDER = [
    "faithfulness_correlation",
    "deletion",
    "insertion",
    "relative_input_stability_kept",
    "relative_input_stability",
    "relative_input_stability_valid",
    "sparseness",
    "randomisation_cosine",
    "randomisation_spearman_abs",
]
FIGURES_OF_QUALITY = ("quality_bars", "quality_vs_epoch", "deletion_insertion", "quality_tradeoffs")
MINE = {"dataset": "digits", "model": "small", "learning_rate": 0.1}
FRACTIONS = np.linspace(0, 1, 11)


def build_quality(
    datasets: Sequence[str] = ("digits",),
    models: Sequence[str] = ("small", "deep"),
    rates: Sequence[float] = (0.001, 0.01),
    seeds: int = 10,
    methods: Sequence[str] = ("saliency", "integrated_gradients"),
    epochs: Sequence[int] = (0, 3, 6),
    controls: Sequence[str] = ("edge", "random"),
    images: int = 32,
    metrics: Sequence[str] = tuple(DIRECTIONS),
) -> dict[str, pd.DataFrame]:
    """Quality of a sweep that never ran: later methods are more faithful and less stable."""
    rng = np.random.default_rng(12)
    rows, curves = [], []
    for d, m, lr, seed in itertools.product(datasets, models, rates, range(seeds)):
        run = {"dataset": d, "model": m, "learning_rate": lr, "seed": seed}
        for (i, method), epoch in itertools.product(enumerate([*methods, *controls]), epochs):
            trained = 0.0 if method in controls else epoch / epochs[-1]
            gain = (0.2 + 0.6 * i / len(methods)) * trained
            flips = int(rng.binomial(images, 0.3))
            values = one_run(gain, rng.normal(0, 0.03, 7), flips / images, method == "edge")
            about = {**run, "run_id": f"{d}-{m}-lr{lr}-seed{seed}", "method": method, "epoch": epoch}
            for metric in metrics:
                lost = flips if metric == "relative_input_stability" else 0
                rows.append(
                    {**about, "metric": metric, "value": values[metric], "n": images, "n_undefined": lost}
                )
            for curve, sign in (("deletion", -1), ("insertion", 1)):
                bow = 0.9 * gain * np.sin(FRACTIONS * np.pi)
                value = np.clip(0.5 + sign * (bow + FRACTIONS - 0.5) / 1.4 + rng.normal(0, 0.01), 0, 1)
                curves.append(
                    pd.DataFrame(
                        {
                            **run,
                            "method": method,
                            "epoch": epoch,
                            "curve": curve,
                            "fraction": FRACTIONS,
                            "value": value,
                        }
                    )
                )
    return with_summary(
        {"quality": pd.DataFrame(rows), "quality_curves": pd.concat(curves, ignore_index=True)}
    )


def one_run(gain: float, noise: np.ndarray, flipped: float, is_edge: bool) -> dict[str, float]:
    """Every metric of maps that know `gain` of their network."""
    return {
        "faithfulness_correlation": gain + noise[0],
        "relative_input_stability": float(np.exp(6 + 8 * gain + 20 * noise[1])),
        "relative_input_stability_kept": float(np.exp(3 + 8 * gain + 10 * noise[1])) / (31 if is_edge else 1),
        "relative_input_stability_valid": 1 - flipped,
        "sparseness": 0.3 + 0.5 * gain + noise[2],
        "deletion": 0.5 - 0.4 * gain + noise[3] / 3,
        "insertion": 0.5 + 0.4 * gain + noise[4] / 3,
        "randomisation_cosine": 1.0 if is_edge else 0.4 - 0.3 * gain + noise[5],
        "randomisation_spearman_abs": 1.0 if is_edge else 0.5 - 0.3 * gain + noise[6],
    }


def with_summary(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The tables of rows with those that the project computes from them."""
    quality = tables["quality"]
    methods = quality.loc[~quality["method"].isin(["edge", "random"])]
    described = [
        {"metric": name, "better": better, "reason": REASONS.get(name, "")}
        for name, better in DIRECTIONS.items()
    ]
    return {
        **tables,
        "quality_metrics": pd.DataFrame(described),
        "quality_summary": ranking.summarise_quality(quality, DIRECTIONS),
        "quality_tests": ranking.method_differences(methods),
    }


def planted(values: Mapping[str, Mapping[str, Any]], **lost: int) -> dict[str, pd.DataFrame]:
    """Tables of one configuration at epoch 5: values by method and metric, one number or one per seed."""
    rows = [
        {
            **MINE,
            "seed": seed,
            "run_id": f"r{seed}",
            "method": method,
            "epoch": 5,
            "metric": metric,
            "value": value,
        }
        for method, metrics in values.items()
        for metric, of_seeds in metrics.items()
        for seed, value in enumerate(np.atleast_1d(np.asarray(of_seeds, dtype=float)))
    ]
    frame = pd.DataFrame(rows)
    undefined = [lost.get(f"{row['method']}_{row['metric']}", 0) for row in rows]
    return with_summary({"quality": frame.assign(n=20, n_undefined=undefined)})


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return build_quality(seeds=4)


def only(frame: Any, **equal: object) -> Any:
    for column, value in equal.items():
        frame = frame[frame[column] == value]
    return frame


def picture(name: str, tables: dict[str, pd.DataFrame]) -> Any:
    return draw(name, tables)


def drawn(figure: Any, name: str) -> list[Any]:
    """Data of the lines with that gid, panel by panel: arrays [points, 2]."""
    return [
        np.asarray(line.get_xydata()) for ax in figure.axes for line in ax.lines if line.get_gid() == name
    ]


def words_of(figure: Any) -> str:
    return "\n".join(text.get_text() for holder in (*figure.axes, figure) for text in holder.texts)


def configurations(tables: dict[str, pd.DataFrame]) -> list[dict[str, object]]:
    rows: Any = tables["quality"][KEYS].drop_duplicates()
    rows = rows.sort_values(KEYS)
    return [dict(zip(KEYS, row, strict=True)) for row in rows.itertuples(index=False, name=None)]


def test_bars_show_the_mean_and_every_seed_of_the_last_epoch(tables):
    figure = picture("quality_bars", tables)
    assert len(figure.axes) == 9
    last = only(tables["quality"], epoch=6, method="saliency")
    for ax, metric in zip(figure.axes, ORDER, strict=True):
        points = [
            data[0] for line in ax.lines if line.get_gid() == "mean:saliency" for data in [line.get_xydata()]
        ]
        means = only(last, metric=metric).groupby(KEYS)["value"].mean()
        np.testing.assert_allclose([x for x, _ in points], means.to_numpy(), rtol=1e-12)
        assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)
        seeds = np.concatenate(
            [np.asarray(c.get_offsets()) for c in ax.collections if isinstance(c, PathCollection)]
        )
        shown = only(tables["quality"], epoch=6, metric=metric)["value"]
        np.testing.assert_allclose(np.sort(seeds[:, 0]), np.sort(shown.to_numpy()), rtol=1e-12)
        low, high = ax.get_xlim()
        assert low <= shown.min() and shown.max() <= high
        logarithmic = shown.min() > 0 and shown.max() > 100 * shown.min()
        assert (ax.get_xscale() == "log") == logarithmic and bool(ax.patches) != logarithmic
        assert logarithmic or low <= 0, "bars start at zero"
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["saliency", "integrated_gradients", "edge", "random"] * 4
    heads = words_of(figure)
    assert "digits · deep · lr 0.001, epoch 6, n = 4 seeds" in heads


def test_bars_count_what_is_undefined_and_say_which_way_is_better(tables):
    figure = picture("quality_bars", tables)
    last = only(tables["quality"], epoch=6, metric="relative_input_stability")
    expected = f"left is better, {last['n_undefined'].sum()} of {last['n'].sum()} undefined"
    text = words_of(figure)
    assert expected in text and text.count("right is better") == 2 and text.count("left is better") == 5
    assert text.count("undefined") == 1


def test_a_method_without_values_is_called_undefined_in_its_place():
    tables = planted({"a": {"sparseness": [0.1, 0.2]}, "b": {"sparseness": [np.nan, np.nan]}})
    figure = picture("quality_bars", tables)
    (ax,) = figure.axes
    (mark,) = [text for text in ax.texts if text.get_text() == "undefined"]
    ticks = dict(zip([label.get_text() for label in ax.get_yticklabels()], ax.get_yticks(), strict=True))
    assert mark.get_position()[1] == ticks["b"] and [d[0, 1] for d in drawn(figure, "mean:a")] == [ticks["a"]]
    assert not drawn(figure, "mean:b")


@pytest.mark.parametrize(
    ("metric", "values", "ends"),
    [("sparseness", [0.1, 0.9], "<>"), ("relative_input_stability_kept", [1.0, 900.0], "<")],
)
def test_an_interval_that_reaches_past_the_axis_ends_in_an_arrow(metric, values, ends):
    figure = picture("quality_bars", planted({"wide": {metric: values}, "narrow": {metric: [0.5, 0.51]}}))
    (ax,) = figure.axes
    past = [line for line in ax.lines if line.get_gid() == "past"]
    assert "".join(line.get_marker() for line in past) == ends
    y = drawn(figure, "mean:wide")[0][0, 1]
    assert [tuple(line.get_xydata()[0]) for line in past] == [(x, y) for x in ax.get_xlim()[: len(ends)]]


def test_quality_over_epochs_is_the_mean_over_seeds_with_its_band(tables):
    figure = picture("quality_vs_epoch", tables)
    assert len(figure.axes) == 9 * 4
    for metric in ORDER:
        lines = drawn(figure, f"{metric}:saliency")
        for data, key in zip(lines, configurations(tables), strict=True):
            expected = only(tables["quality_summary"], metric=metric, method="saliency", **key)
            np.testing.assert_allclose(data, expected[["epoch", "mean"]].to_numpy(float), rtol=1e-12)
    first = only(tables["quality_summary"], metric="faithfulness_correlation", **configurations(tables)[0])
    ends = only(first, method="saliency")[["ci_low", "ci_high"]].to_numpy().ravel().round(9)
    filled: list[Any] = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]
    bands = [set(band.get_paths()[0].vertices[:, 1].round(9)) for band in filled]
    assert len(bands) == 4 and any(set(ends) <= band for band in bands)


def test_bands_are_left_out_where_they_would_hide_each_other():
    methods = [f"method{i}" for i in range(6)]
    for controls, banded in (((), True), (("edge",), False)):
        many = build_quality(models=("small",), rates=(0.1,), seeds=3, methods=methods, controls=controls)
        many["quality"] = only(many["quality"], metric="deletion")
        (ax,) = picture("quality_vs_epoch", many).axes
        assert len(ax.lines) == 6 + len(controls)
        assert any(isinstance(c, PolyCollection) for c in ax.collections) == banded


def test_controls_are_dashed_and_keep_the_colours_of_the_methods_apart(tables):
    found = quality.looks(tables)
    assert list(found) == ["saliency", "integrated_gradients", "edge", "random"]
    assert {found[name].linestyle for name in ("edge", "random")} == {"--"}
    assert len({look.color for look in found.values()}) == 4
    without = {
        name: frame.loc[~frame["method"].isin(["edge", "random"])]
        for name, frame in tables.items()
        if "method" in frame
    }
    assert quality.looks(without)["saliency"] == found["saliency"]


def test_deletion_and_insertion_curves_stand_side_by_side_with_their_areas(tables):
    figure = picture("deletion_insertion", tables)
    assert len(figure.axes) == 8
    last = only(tables["quality_curves"], epoch=6)
    for side, curve in enumerate(("deletion", "insertion")):
        for data, key, ax in zip(
            drawn(figure, f"{curve}:saliency"), configurations(tables), figure.axes[side::2], strict=True
        ):
            mean = only(last, curve=curve, method="saliency", **key).groupby("fraction")["value"].mean()
            np.testing.assert_allclose(data, np.column_stack([mean.index, mean]), rtol=1e-12)
            assert any(line.get_gid() == f"{curve}:saliency" for line in ax.lines)
            low, high = ax.get_ylim()
            assert low < data[:, 1].min() and data[:, 1].max() < high
            assert ax.get_xlim()[0] < 0 and ax.get_xlim()[1] > 1
    key = configurations(tables)[1]
    areas = [
        trapezoid(only(last, curve=c, method="edge", **key).groupby("fraction")["value"].mean(), FRACTIONS)
        for c in ("deletion", "insertion")
    ]
    legend = figure.axes[3].get_legend()
    assert legend is not None
    entries = [text.get_text() for text in legend.get_texts()]
    assert f"{areas[0]:.3f}  {areas[1]:.3f}  edge" in entries and len(entries) == 4
    assert "deletion (lower is better), epoch 6, n = 4 seeds" in words_of(figure)


def test_one_curve_alone_has_a_legend_with_a_gap(tables):
    alone = only(
        tables["quality_curves"], curve="insertion", method="saliency", seed=0, **configurations(tables)[0]
    )
    figure = picture("deletion_insertion", {"quality_curves": alone})
    legend = figure.axes[1].get_legend()
    assert legend is not None and "–" in legend.get_texts()[0].get_text()
    assert not drawn(figure, "deletion:saliency") and "n = 1 seed" in words_of(figure)


FAITHFUL, STABLE = "faithfulness_correlation", "relative_input_stability_kept"


def test_the_front_is_ringed_and_named_and_the_dominated_method_is_not():
    values = {
        "best": {FAITHFUL: 0.8, STABLE: 200.0, "sparseness": 0.9},
        "steady": {FAITHFUL: 0.3, STABLE: 2.0, "sparseness": 0.1},
        "dominated": {FAITHFUL: 0.2, STABLE: 300.0},
        "lost": {FAITHFUL: np.nan, STABLE: 0.1},
        "edge": {FAITHFUL: 0.9, STABLE: 0.5},
    }
    figure = picture("quality_tradeoffs", planted(values))
    (ax,) = figure.axes
    marks = {c.get_gid(): c for c in ax.collections if str(c.get_gid()).startswith("method:")}
    assert set(marks) == {"method:best", "method:steady", "method:dominated", "method:edge"}
    np.testing.assert_allclose(np.asarray(marks["method:best"].get_offsets()), [[0.8, 200.0]])
    rings = {name: tuple(c.get_edgecolor()[0][:3]) == (0, 0, 0) for name, c in marks.items()}
    assert rings == {
        "method:best": True,
        "method:steady": True,
        "method:dominated": False,
        "method:edge": False,
    }
    sizes = [float(marks[f"method:{name}"].get_sizes()[0]) for name in ("dominated", "steady", "best")]
    assert sizes == sorted(sizes) and len(set(sizes)) == 3, "sparser maps are larger, unknown ones smallest"
    text = words_of(figure).split("\n")
    assert {"best", "steady"} <= set(text) and "dominated" not in text and "edge" not in text
    assert "lr 0.1, n = 1 seed, 2 of 3 not dominated" in text and ax.get_yscale() == "log"


def test_names_of_a_long_front_stay_apart_and_inside():
    values = {f"method:{i}": {FAITHFUL: 0.1 * i, STABLE: 10.0 * 1.01**i} for i in range(9)}
    (ax,) = picture("quality_tradeoffs", planted({**values, "edge": {FAITHFUL: 0.0, STABLE: 1e5}})).axes
    named = [text for text in ax.texts if text.get_text().startswith("method:\n")]
    assert [text.get_text()[-1] for text in named] == ["8", "6", "4", "2", "0"]
    heights = np.array([text.xy[1] for text in named])
    size = ax.get_position().height * ax.figure.get_size_inches()[1]
    assert (-np.diff(heights) * size > 0.22).all() and heights.min() > 0 and heights.max() < 1


@pytest.mark.parametrize("seeds", [1, 3])
def test_zeros_do_not_undo_a_logarithmic_axis(seeds):
    values = {"a": 1e4, "b": 1.0, "random": 0.0}
    tables = planted({name: {STABLE: [value] * seeds} for name, value in values.items()})
    figure = picture("quality_bars", tables)
    (ax,) = figure.axes
    assert ax.get_xscale() == "log"
    arrows = [tuple(line.get_xydata()[0]) for line in ax.lines if line.get_gid() == "past"]
    assert arrows == [(ax.get_xlim()[0], drawn(figure, "mean:random")[0][0, 1])]


@pytest.mark.filterwarnings("error")
def test_perfect_stability_is_drawn_on_the_lower_edge():
    values = {
        "a": {FAITHFUL: 0.5, STABLE: 9.0},
        "b": {FAITHFUL: 0.3, STABLE: 0.0},
        "random": {FAITHFUL: 0.0, STABLE: 0.0},
    }
    figure = picture("quality_tradeoffs", planted(values))
    (ax,) = figure.axes
    marks = {c.get_gid(): np.asarray(c.get_offsets())[0, 1] for c in ax.collections if c.get_gid()}
    assert marks["method:b"] == marks["method:random"] == ax.get_ylim()[0] > 0
    assert {"a", "b"} <= set(words_of(figure).split("\n")) and marks["method:a"] == 9.0


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 0.1)), min_size=1, max_size=5))
def test_texts_are_moved_apart_no_more_than_needed(texts):
    wanted, halves = map(np.array, zip(*sorted(texts, reverse=True), strict=True))
    placed = np.array(tradeoffs.apart(wanted.tolist(), halves.tolist()))
    room = halves[:-1] + halves[1:]
    assert (-np.diff(placed) >= room - 1e-9).all()
    assert (placed - halves >= -1e-9).all() and (placed + halves <= 1 + 1e-9).all()
    if (-np.diff(wanted) >= room).all() and (wanted >= halves).all() and (wanted + halves <= 1).all():
        np.testing.assert_allclose(placed, wanted)


@pytest.mark.parametrize("name", FIGURES_OF_QUALITY)
def test_figures_of_quality_are_not_drawn_where_there_is_none(name, tables):
    assert name in drawable(tables)
    nothing = {key: frame.iloc[:0] for key, frame in tables.items()}
    assert not set(FIGURES_OF_QUALITY) & {*drawable(nothing), *drawable({})}
    assert set(FIGURES) - set(drawable({})) == set(FIGURES_OF_QUALITY), "others say themselves what they lack"
    without = {
        "quality_vs_epoch": "quality",
        "quality_tradeoffs": "quality_summary",
        "deletion_insertion": "quality_curves",
    }
    gone = without.get(name, "quality")
    assert name not in drawable({key: frame for key, frame in tables.items() if key != gone})


def test_one_epoch_is_no_course():
    tables = build_quality(models=("small",), rates=(0.1,), seeds=2, epochs=(4,))
    assert "quality_vs_epoch" not in drawable(tables) and "quality_bars" in drawable(tables)
    assert not picture("quality_vs_epoch", tables).axes


def test_the_table_of_a_configuration_holds_means_intervals_and_ranks(tables):
    found = quality_by_configuration(tables)
    key = configurations(tables)[2]
    table: Any = found[tuple(key.values())].set_index("method")
    row = only(tables["quality_summary"], metric="insertion", method="saliency", epoch=6, **key).iloc[0]
    text = table.loc["saliency", "insertion area ↑"]
    assert text == f"{row['mean']:.3g} [{row['ci_low']:.3g}, {row['ci_high']:.3g}] #{row['rank']:g}"
    assert "#" not in table.loc["saliency", "sparseness (Gini)"], "no direction, no rank"
    assert table["mean rank"].is_monotonic_increasing and (table["metrics ranked"] == 7).all()
    ranks: Any = ranking.mean_ranks(tables["quality_summary"])
    expected = only(ranks, **key).set_index("method")["mean_rank"]
    np.testing.assert_allclose(table["mean rank"], expected[table.index])
    lost = only(tables["quality"], metric="relative_input_stability", method="random", epoch=6, **key)
    head = "relative input stability ↓"
    assert f"({lost['n_undefined'].sum()} of {lost['n'].sum()} undefined)" in table.loc["random", head]


def test_a_single_seed_has_no_interval_and_a_single_method_no_rank():
    alone = planted({"a": {"deletion": 0.25, "insertion": np.nan}}, a_insertion=20)
    (table,) = quality_by_configuration(alone).values()
    assert table.to_dict("records") == [
        {"method": "a", "deletion area ↓": "0.25", "insertion area ↑": "20 of 20 undefined"}
    ]
    compact = summarise_quality(alone).to_dict("records")
    assert compact == [
        {
            "configuration": "digits small lr 0.1",
            "method": "a",
            "deletion ↓": "0.25",
            "insertion ↑": "undefined",
        }
    ]


def test_the_terminal_lists_methods_by_their_mean_rank(tables):
    table = summarise_quality(tables)
    assert len(table) == 4 * 4 and "faithful ↑" in table and "sparse" in table
    for _, part in table.groupby("configuration"):
        assert part["mean rank"].astype(float).is_monotonic_increasing
    first = table.iloc[0]
    row = only(
        tables["quality_summary"],
        metric="deletion",
        epoch=6,
        method=first["method"],
        **configurations(tables)[0],
    )
    assert first["deletion ↓"] == f"{row['mean'].item():.3g}"
    assert summarise_quality({}).empty


def test_sentences_name_the_most_faithful_method_and_its_lead():
    values = {
        "a": {FAITHFUL: [0.5, 0.7, 0.6]},
        "b": {FAITHFUL: [0.4, 0.5, 0.45]},
        "c": {FAITHFUL: [0.1, 0.1, 0.1]},
    }
    values["random"] = {FAITHFUL: [0.9, 0.9, 0.9]}
    (tests, about) = quality_sentences(planted(values))
    assert about.startswith(
        "digits · small · lr 0.1, epoch 5: most faithful is a (faithfulness correlation 0.6 ["
    )
    low, high = stats.t.interval(0.95, 2, 0.15, stats.sem([0.1, 0.2, 0.15]))
    assert f"n = 3 seeds), 0.15 [{low:.3g}, {high:.3g}] ahead of b." in about and "open" not in about
    assert "The control random is better than methods on faithfulness correlation (all 3)." in about
    assert tests.startswith("Methods differ in 1 of 1 combinations") and "Kendall's W of 1.00" in tests
    values["b"] = {FAITHFUL: [0.6, 0.6, 0.45]}
    assert "ahead of b, so which of the two leads is open" in quality_sentences(planted(values))[1]


def test_sentences_tell_when_no_control_is_better_and_which_methods_are_on_the_front():
    values = {
        "a": {FAITHFUL: 0.5, STABLE: 9.0},
        "b": {FAITHFUL: 0.3, STABLE: 2.0},
        "c": {FAITHFUL: 0.2, STABLE: 3.0},
        "edge": {FAITHFUL: 0.0, STABLE: 90.0},
    }
    (about,) = quality_sentences(planted(values))
    assert "No control is better than any method on any metric." in about
    assert about.endswith("No method betters a and b in both faithfulness and stability.")
    values["edge"] = {FAITHFUL: 0.25, STABLE: 90.0}
    (about,) = quality_sentences(planted(values))
    assert "The control edge is better than methods on faithfulness correlation (c)." in about


def test_ties_with_a_control_are_not_called_worse():
    (about,) = quality_sentences(
        planted({"a": {"deletion": 0.4}, "b": {"deletion": 0.5}, "edge": {"deletion": 0.5}})
    )
    assert about.endswith("no control is better than any method on any metric.")


def test_undefined_values_are_counted_over_everything_with_their_reason(tables):
    told = quality_sentences(tables)
    rows = only(tables["quality"], metric="relative_input_stability")
    reason = "where a perturbation changes the prediction"
    share = f"{rows['n_undefined'].sum()} of {rows['n'].sum()} values"
    assert told[-1] == f"Undefined: {share} of relative input stability ({reason})."
    silent = {**tables, "quality_metrics": tables["quality_metrics"].drop(columns="reason")}
    assert quality_sentences(silent)[-1] == f"Undefined: {share} of relative input stability."


def test_one_method_and_one_seed_are_told_without_ranks_or_intervals():
    alone = build_quality(models=("small",), rates=(0.1,), seeds=1, methods=("saliency",), controls=())
    (about, _) = quality_sentences(alone)
    value = only(alone["quality"], metric=FAITHFUL, epoch=6)["value"].item()
    expected = f"The faithfulness correlation of saliency, the only method, is {value:.3g}, n = 1 seed."
    assert about == f"digits · small · lr 0.1, epoch 6: {expected[0].lower()}{expected[1:]}"
    assert quality_sentences({}) == []
