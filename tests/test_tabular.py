"""A row of a table explained: SHAP and LIME against their definitions, and agreement against plain loops."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from scipy import stats
from sklearn.ensemble import RandomForestClassifier

from epochlens.attribute import tabular as explainers
from epochlens.errors import UsageError
from epochlens.learn import tables
from epochlens.show import tabular as drawing
from epochlens.sweep import tabular
from epochlens.sweep.tabular import Explained, explain_tabular

EXTRA = "needs the extra [attribution]"


def planted_rows(features: int = 4, rows: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows and three classes that depend on products of features."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, features))
    score = x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2]) + 0.3 * rng.normal(size=rows)
    return x, np.digitize(score, [-0.5, 0.5])


def fake_lime(predict, training, row, target, *, samples, seed):
    noise = np.random.default_rng(seed).normal(size=len(row))
    return row * (predict(row[None])[0, target] - 0.4) + 0.05 * noise


def fake_shap(forest, rows, targets):
    chance = forest.predict_proba(rows)[np.arange(len(rows)), targets]
    values = (rows - 1.5) * chance[:, None]
    return values, chance - values.sum(axis=1)


@pytest.fixture
def faked(monkeypatch):
    """Stand-ins for both packages, so that everything around them runs without them."""
    monkeypatch.setattr(explainers, "check_packages", lambda: None)
    monkeypatch.setattr(explainers, "lime_weights", fake_lime)
    monkeypatch.setattr(explainers, "shap_values", fake_shap)


def explain(folder: Path, dataset: str = "iris", **settings: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {"index": 12, "trees": 5, "samples": 50, "json": True} | settings
    return explain_tabular(dataset, output=folder, **chosen)


def records(document: dict[str, Any], scope: str) -> list[dict[str, Any]]:
    return [record for record in document["agreement"] if record["scope"] == scope]


# the split


@pytest.mark.parametrize("dataset", tables.DATASETS)
def test_every_fifth_row_of_a_class_is_a_test_row_whatever_the_random_state(dataset):
    np.random.seed(1)
    table = tables.load(dataset)
    assert np.random.random() == np.random.RandomState(1).random_sample()
    facts = tables.DATASETS[dataset]
    assert (len(table.classes), len(table.y_test)) == (facts.classes, facts.n_test)
    from sklearn import datasets

    whole: Any = getattr(datasets, f"load_{dataset}")()
    for label in range(facts.classes):
        members = whole.data[whole.target == label]
        kept = [row for i, row in enumerate(members) if i % 5 != 4]
        held = [row for i, row in enumerate(members) if i % 5 == 4]
        np.testing.assert_array_equal(table.x_train[table.y_train == label], kept)
        np.testing.assert_array_equal(table.x_test[table.y_test == label], held)


def test_the_rows_of_agreement_are_spread_over_the_whole_test_split():
    table = tables.load("iris")
    rows = tabular.spread(len(table.y_test))
    assert len(rows) == tabular.ROWS and rows[0] == 0 and rows[-1] == len(table.y_test) - 1
    assert set(np.diff(rows)) <= {1, 2}
    assert set(table.y_test[rows]) == set(table.y_test)
    np.testing.assert_array_equal(tabular.spread(7), np.arange(7))


# agreement


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    k = max(1, round(0.1 * len(a)))
    first, second = (set(np.argsort(-np.abs(v))[:k]) for v in (a, b))
    return len(first & second) / len(first | second)


PLAIN = {
    "cosine": lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b),
    "spearman_abs": lambda a, b: stats.spearmanr(np.abs(a), np.abs(b))[0],
    "topk_jaccard": jaccard,
    "sign_agreement": lambda a, b: np.mean(np.sign(a) == np.sign(b)),
}


def random_explained(seeds: int = 4, rows: int = 5, features: int = 24) -> Explained:
    rng = np.random.default_rng(3)
    common = rng.normal(size=(rows, features))
    lime, shap = (common + rng.normal(size=(n, seeds, rows, features)) for n in (2, 1))
    nothing = np.zeros((seeds, rows))
    return Explained(np.arange(0, 2 * rows, 2), np.zeros(rows, int), nothing, lime, shap[0], nothing)


def test_agreement_is_the_mean_over_rows_and_pairs_compared_one_by_one():
    explained = random_explained()
    lime, shap = explained.lime, explained.shap
    pairs = list(itertools.combinations(range(4), 2))
    found = tabular.agreement(explained, 6, np.array([0, 2, 4, 8]))
    assert {r["comparison"] for r in found} == set(drawing.COMPARISONS)
    for record in found:
        places = [3] if record["scope"] == "row" else [0, 1, 2, 4]
        compared = {
            "shap_between_seeds": [(shap[i, r], shap[j, r]) for i, j in pairs for r in places],
            "lime_between_seeds": [(lime[0, i, r], lime[0, j, r]) for i, j in pairs for r in places],
            "lime_between_draws": [(lime[0, i, r], lime[1, i, r]) for i in range(4) for r in places],
            "lime_against_shap": [(lime[0, i, r], shap[i, r]) for i in range(4) for r in places],
        }[record["comparison"]]
        plain = [PLAIN[record["metric"]](a, b) for a, b in compared]
        assert record["mean"] == pytest.approx(np.mean(plain), rel=1e-9)
        assert (record["n_rows"], record["n_seeds"]) == (len(places), 4)
        assert (record["n_values"], record["n_undefined"]) == (len(plain), 0)
        assert tabular.METRICS[record["metric"]] <= record["ci_low"] <= record["mean"]
        assert record["mean"] <= record["ci_high"] <= 1


def test_intervals_over_forests_are_students_and_stay_in_the_metrics_range():
    values = np.random.default_rng(0).uniform(0.2, 0.6, size=(6, 9))
    found = tabular.summary(values)
    means = values.mean(axis=1)
    expected = stats.t.interval(0.95, 5, means.mean(), stats.sem(means))
    np.testing.assert_allclose((found["ci_low"], found["ci_high"]), expected, rtol=1e-12)
    wild = tabular.summary(np.array([[1.0], [0.0], [1.0]]), least=0.0)
    assert (wild["ci_low"], wild["ci_high"]) == (0.0, 1.0)


def test_equal_explanations_agree_fully_and_empty_ones_are_counted_not_compared():
    explained = random_explained()
    same = np.broadcast_to(explained.lime[0, 0], explained.shap.shape).copy()
    both = explained._replace(lime=np.stack([same, same]), shap=same)
    for record in tabular.agreement(both, 0, both.rows):
        ends = [record[name] for name in ("mean", "ci_low", "ci_high")]
        np.testing.assert_allclose(ends, 1, rtol=1e-12)
    same[2, 1] = 0
    gap = tabular.agreement(both._replace(shap=same), 2, both.rows)
    for record in gap:
        # Forest 2 is in 3 of the 6 pairs of forests.
        lost = {"shap_between_seeds": 3, "lime_against_shap": 1}.get(record["comparison"], 0)
        assert record["n_undefined"] == lost
        assert record["mean"] == pytest.approx(1)


# the command's driving part


def test_the_document_and_the_archive_hold_what_was_explained(faked, tmp_path):
    document = explain(tmp_path, seeds=[3, 5, 8])
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert all(Path(path).stat().st_size for path in document["files"].values())
    table = tables.load("iris")
    with np.load(document["files"]["npz"]) as archive:
        held: dict[str, Any] = dict(archive)
    place = int(np.flatnonzero(held["rows"] == 12)[0])
    np.testing.assert_array_equal(held["x"], table.x_test[held["rows"]])
    np.testing.assert_array_equal(held["targets"], table.y_test[held["rows"]])
    np.testing.assert_array_equal(held["lime"][0, :, place], document["lime"])
    np.testing.assert_array_equal(held["shap"][:, place], document["shap"])
    total = held["shap"].sum(axis=2) + held["base"]
    np.testing.assert_allclose(total, held["probabilities"], rtol=1e-12)
    for i, seed in enumerate((3, 5, 8)):
        forest = RandomForestClassifier(n_estimators=5, random_state=seed)
        forest.fit(table.x_train, table.y_train)
        assert document["accuracy"][i] == forest.score(table.x_test, table.y_test)
        row = table.x_test[12:13]
        chances = np.asarray(forest.predict_proba(row))
        assert document["probability"][i] == chances[0, table.y_test[12]]
        values, base = fake_shap(forest, row, table.y_test[12:13])
        np.testing.assert_array_equal(document["shap"][i], values[0])
        assert document["shap_base"][i] == base[0]


def test_agreement_over_rows_does_not_depend_on_which_row_is_drawn(faked, tmp_path):
    rows = tabular.spread(30)
    outside = next(i for i in range(30) if i not in rows)
    first, second = (explain(tmp_path, index=index) for index in (int(rows[3]), outside))
    assert records(first, "rows") == records(second, "rows")
    assert records(first, "row") != records(second, "row")


def test_every_lime_run_has_draws_of_its_own_and_the_global_stream_is_untouched(faked, monkeypatch, tmp_path):
    used: list[int] = []

    def recording(*arguments, seed, **options):
        used.append(seed)
        return fake_lime(*arguments, seed=seed, **options)

    monkeypatch.setattr(explainers, "lime_weights", recording)
    np.random.seed(7)
    explain(tmp_path)
    assert np.random.random() == np.random.RandomState(7).random_sample()
    assert len(used) == len(set(used)) >= 2 * 5 * 20
    before = used.copy()
    explain(tmp_path)
    assert used == before * 2


@pytest.mark.parametrize("target", ["label", "predicted", 2, "2"])
def test_the_target_is_the_label_or_the_forests_choice_or_the_class_asked_for(faked, tmp_path, target):
    document = explain(tmp_path, index=25, target=target)
    table = tables.load("iris")
    chances = [
        RandomForestClassifier(n_estimators=5, random_state=seed)
        .fit(table.x_train, table.y_train)
        .predict_proba(table.x_test[25:26])[0]
        for seed in range(5)
    ]
    predicted = int(np.mean(chances, axis=0).argmax())
    expected = {"label": int(table.y_test[25]), "predicted": predicted}.get(str(target), 2)
    assert document["target"] == expected
    np.testing.assert_array_equal(document["probability"], [chance[expected] for chance in chances])


def test_where_forests_differ_the_predicted_class_is_that_of_their_mean_probability(faked, tmp_path):
    table = tables.load("breast_cancer")
    chances = np.stack([tables.train(table, 1, seed).predict_proba(table.x_test) for seed in range(5)])
    choice = chances.mean(axis=0).argmax(axis=1)
    disputed = np.flatnonzero((chances[0].argmax(axis=1) != choice) & (choice != table.y_test))
    assert disputed.size
    index = int(disputed[0])
    document = explain(tmp_path, "breast_cancer", index=index, trees=1, target="predicted")
    assert document["target"] == choice[index] != document["label"]


def test_two_seeds_have_a_similarity_and_no_interval_between_them(faked, tmp_path):
    for record in records(explain(tmp_path, seeds=[0, 1]), "rows"):
        assert record["mean"] is not None
        assert (record["ci_low"] is None) == record["comparison"].endswith("between_seeds")


def test_tables_are_printed_unless_a_document_is_asked_for(faked, tmp_path, capsys):
    explain(tmp_path)
    assert capsys.readouterr().out == ""
    document = explain(tmp_path, json=False)
    told = capsys.readouterr().out
    assert f"accuracy {np.mean(document['accuracy']):.3f} on 30 test rows" in told
    assert all(name in told for name in (*drawing.COMPARISONS.values(), *document["features"]))
    for record in document["agreement"]:
        assert f"{record['mean']:.3f}" in told
    assert str(tmp_path / "tabular_iris_12.png") in told


# errors


@pytest.mark.parametrize(
    ("settings", "field", "says"),
    [
        ({"dataset": "irs"}, "tabular", "did you mean 'iris'"),
        ({"index": 30}, "index", "0 to 29"),
        ({"index": -1}, "index", "0 to 29"),
        ({"dataset": "breast_cancer", "index": 113}, "index", "0 to 112"),
        ({"target": 3}, "target", "0 to 2"),
        ({"target": "-1"}, "target", "0 to 2"),
        ({"target": "lable"}, "target", "did you mean 'label'"),
        ({"dataset": "breast_cancer", "target": "2"}, "target", "0 to 1"),
        ({"seeds": [1]}, "seeds", "two or more"),
        ({"seeds": [1, 2, 1]}, "seeds", "differ"),
        ({"seeds": [1, -2]}, "seeds", "from 0"),
        ({"samples": 1}, "samples", "at least 2"),
        ({"trees": 0}, "trees", "at least 1"),
    ],
)
def test_what_cannot_work_is_named_before_anything_is_loaded(
    faked, monkeypatch, tmp_path, settings, field, says
):
    monkeypatch.setattr(tabular, "load", lambda dataset: pytest.fail("loaded"))
    with pytest.raises(UsageError, match=says) as caught:
        explain(tmp_path, **settings)
    assert caught.value.field == field


def test_a_folder_that_cannot_be_written_is_refused_before_training(faked, monkeypatch, tmp_path):
    monkeypatch.setattr(tabular, "load", lambda dataset: pytest.fail("loaded"))
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UsageError, match="cannot be written"):
        explain(tmp_path / "taken" / "plots")


@pytest.mark.parametrize("missing", explainers.PACKAGES)
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path, missing):
    monkeypatch.setattr(tabular, "load", lambda dataset: pytest.fail("loaded"))
    for name in explainers.PACKAGES:
        monkeypatch.setitem(sys.modules, name, None if name == missing else types.ModuleType(name))
    with pytest.raises(UsageError) as caught:
        explain(tmp_path)
    assert caught.value.value == missing.partition(".")[0]
    assert "pip install 'epochlens[attribution]'" in str(caught.value)


def test_ray_is_never_loaded_and_nothing_heavy_before_it_is_needed():
    code = (
        "import sys\nfrom pathlib import Path\nfrom epochlens.sweep.tabular import explain_tabular\n"
        "try: explain_tabular('iris', index=99, output=Path('.'), json=True)\n"
        "except ValueError: print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "numpy" in loaded
    assert not loaded & {"ray", "torch", "sklearn", "matplotlib", "scipy", "pandas", "lime", "shap"}


# the figure


def test_bars_are_means_dots_are_seeds_and_strong_features_come_first(faked, tmp_path):
    document = explain(tmp_path, "breast_cancer")
    figure = drawing.draw(document)
    lime, shap = np.array(document["lime"]), np.array(document["shap"])
    shares = [np.abs(v).mean(0) / np.abs(v).mean(0).max() for v in (lime, shap)]
    order = sorted(range(30), key=lambda i: -(shares[0][i] + shares[1][i]))[: drawing.FEATURES_AT_MOST]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == [f"{document['features'][i]} = {document['values'][i]:.4g}" for i in order]
    for ax, values in zip(figure.axes[:2], (lime, shap), strict=True):
        bars: Any = ax.patches
        widths = [bar.get_width() for bar in bars]
        np.testing.assert_allclose(widths, values[:, order].mean(axis=0))
        (dots,) = (c for c in ax.collections if isinstance(c, PathCollection))
        places = np.asarray(dots.get_offsets()).reshape(5, -1, 2)
        np.testing.assert_allclose(places[:, :, 0], values[:, order])
        np.testing.assert_array_equal(places[:, :, 1].round(), np.tile(-np.arange(12), (5, 1)))
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()


def test_the_lower_panels_draw_each_metrics_means_intervals_and_the_row(faked, tmp_path):
    document = explain(tmp_path)
    figure = drawing.draw(document)
    assert len(figure.axes) == 2 + len(tabular.METRICS)
    for ax, metric in zip(figure.axes[2:], tabular.METRICS, strict=True):
        own = {(r["scope"], r["comparison"]): r for r in document["agreement"] if r["metric"] == metric}
        rows, row = ([own[scope, name] for name in drawing.COMPARISONS] for scope in ("rows", "row"))
        bars: Any = ax.patches
        widths = [bar.get_width() for bar in bars]
        np.testing.assert_allclose(widths, [r["mean"] for r in rows])
        lines: Any = ax.collections[0]
        ends = [segment[:, 0] for segment in lines.get_segments()]
        np.testing.assert_allclose(ends, [[r["ci_low"], r["ci_high"]] for r in rows])
        np.testing.assert_allclose(np.asarray(ax.lines[0].get_xdata(), float), [r["mean"] for r in row])


@pytest.mark.parametrize(("dataset", "seeds"), [("iris", 2), ("breast_cancer", 4)])
def test_the_caption_counts_and_every_text_lies_inside_the_figure(faked, tmp_path, dataset, seeds):
    figure = drawing.draw(explain(tmp_path, dataset, seeds=range(seeds), samples=321))
    caption = " ".join(figure.texts[1].get_text().split())
    for part in (f"{seeds} random forests of 5 trees", "LIME with 321 samples", "over 20 test rows"):
        assert part in caption
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [*figure.texts, *(label for ax in figure.axes for label in ax.get_yticklabels())]
    width, height = canvas.get_width_height()
    for text in filter(lambda text: text.get_text(), texts):
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text


# SHAP


def test_both_shapes_that_shap_has_returned_are_read_alike(monkeypatch):
    values, base = np.random.default_rng(0).normal(size=(5, 3, 2)), np.array([0.3, 0.7])
    targets = np.array([0, 1, 1, 0, 1])
    for shape in (values, [values[..., 0], values[..., 1]]):
        explainer = types.SimpleNamespace(shap_values=lambda rows, s=shape: s, expected_value=list(base))
        module = types.SimpleNamespace(TreeExplainer=lambda forest, e=explainer: e)
        monkeypatch.setitem(sys.modules, "shap", module)
        found, bases = explainers.shap_values(None, np.zeros((5, 3)), targets)
        np.testing.assert_array_equal(found, [values[i, :, t] for i, t in enumerate(targets)])
        np.testing.assert_array_equal(bases, base[targets])


def conditional(forest: RandomForestClassifier, row: np.ndarray, known: set[int], target: int) -> float:
    """What a forest expects of a row of which only some features are known, by walking its trees."""

    def walk(tree: Any, node: int) -> float:
        left, right = tree.children_left[node], tree.children_right[node]
        if left == -1:
            counts = tree.value[node][0]
            return counts[target] / counts.sum()
        feature = tree.feature[node]
        if feature in known:
            return walk(tree, left if np.float32(row[feature]) <= tree.threshold[node] else right)
        size = tree.weighted_n_node_samples
        return (size[left] * walk(tree, left) + size[right] * walk(tree, right)) / size[node]

    return float(np.mean([walk(estimator.tree_, 0) for estimator in forest.estimators_]))


def shapley(forest: RandomForestClassifier, row: np.ndarray, target: int) -> np.ndarray:
    """Shapley's values from all subsets of features."""
    features = len(row)
    values = np.zeros(features)
    for i in range(features):
        others = [j for j in range(features) if j != i]
        for size in range(features):
            weight = math.factorial(size) * math.factorial(features - size - 1) / math.factorial(features)
            for subset in itertools.combinations(others, size):
                gain = conditional(forest, row, {*subset, i}, target)
                values[i] += weight * (gain - conditional(forest, row, set(subset), target))
    return values


def test_shap_values_are_shapleys_over_all_subsets():
    pytest.importorskip("shap", reason=EXTRA)
    x, y = planted_rows()
    forest = RandomForestClassifier(n_estimators=4, max_depth=4, random_state=1).fit(x, y)
    targets = np.array([0, 1, 2, 2, 0])
    values, base = explainers.shap_values(forest, x[:5], targets)
    for row, target, found, start in zip(x[:5], targets, values, base, strict=True):
        np.testing.assert_allclose(found, shapley(forest, row, int(target)), atol=1e-12)
        assert start == pytest.approx(conditional(forest, row, set(), int(target)), abs=1e-12)


@pytest.mark.parametrize("dataset", tables.DATASETS)
def test_shap_values_and_their_base_add_up_to_the_probability(dataset):
    pytest.importorskip("shap", reason=EXTRA)
    table = tables.load(dataset)
    forest = tables.train(table, 30, 2)
    chances = forest.predict_proba(table.x_test)
    total = np.zeros_like(table.x_test)
    for target in range(len(table.classes)):
        targets = np.full(len(table.y_test), target)
        values, base = explainers.shap_values(forest, table.x_test, targets)
        np.testing.assert_allclose(values.sum(axis=1) + base, chances[:, target], atol=1e-12)
        total += values
    np.testing.assert_allclose(total, 0, atol=1e-12)


def test_a_single_stump_gives_its_one_feature_all_of_the_change():
    pytest.importorskip("shap", reason=EXTRA)
    x, y = planted_rows()
    stump = RandomForestClassifier(n_estimators=1, max_depth=1, bootstrap=False, random_state=0)
    tree = stump.fit(x, y).estimators_[0].tree_
    feature, right = tree.feature[0], x[:, tree.feature[0]] > tree.threshold[0]
    values, base = explainers.shap_values(stump, x, y)
    shares = np.bincount(y) / len(y)
    np.testing.assert_allclose(base, shares[y], atol=1e-12)
    for side in (right, ~right):
        chances = np.bincount(y[side], minlength=3) / side.sum()
        np.testing.assert_allclose(values[side, feature], (chances - shares)[y[side]], atol=1e-12)
    assert not np.delete(values, feature, axis=1).any()


# LIME


def linear_classifier(weights: np.ndarray, seen: list[np.ndarray] | None = None):
    """Probabilities of two classes whose log odds are linear in the row."""

    def predict(rows: np.ndarray) -> np.ndarray:
        if seen is not None:
            seen.append(rows.copy())
        chance = 1 / (1 + np.exp(-rows @ weights))
        return np.stack([1 - chance, chance], axis=1)

    return predict


def test_lime_finds_order_and_signs_of_a_planted_linear_classifier():
    pytest.importorskip("lime", reason=EXTRA)
    weights = np.array([0.0, -1.6, 0.4, 0.8, -0.2])
    training = np.random.default_rng(0).normal(size=(500, 5))
    # In the outer quarters a feature's sign says which way it moved the odds from their middle.
    row = np.array([2.0, 2.0, -2.0, 2.0, -2.0])
    found = explainers.lime_weights(linear_classifier(weights), training, row, 1, samples=20000, seed=0)
    assert list(np.argsort(-np.abs(found))) == [1, 3, 2, 4, 0]
    np.testing.assert_array_equal(np.sign(found)[1:], np.sign(weights * row)[1:])
    assert abs(found[0]) < 0.2 * abs(found[4])


@pytest.mark.parametrize("target", [0, 1])
def test_lime_weights_are_a_weighted_ridge_on_the_rows_it_asked_about(target):
    pytest.importorskip("lime", reason=EXTRA)
    rng = np.random.default_rng(target)
    training = rng.gamma(2.0, size=(200, 6))
    row = training[11]
    seen: list[np.ndarray] = []
    predict = linear_classifier(rng.normal(size=6), seen)
    found = explainers.lime_weights(predict, training, row, target, samples=300, seed=4)
    (asked,) = seen
    quartiles = np.percentile(training, [25, 50, 75], axis=0)
    quarter = (asked[:, None] > quartiles).sum(axis=1)
    same = (quarter == quarter[0]).astype(float)
    np.testing.assert_array_equal(asked[0], row)
    nearness = np.sqrt(np.exp(-((same - 1) ** 2).sum(axis=1) / (0.75**2 * 6)))
    chances = predict(asked)[:, target]
    centre = np.average(same, axis=0, weights=nearness)
    z = same - centre
    gram = (z * nearness[:, None]).T @ z + np.eye(6)
    moved = chances - np.average(chances, weights=nearness)
    expected = np.linalg.solve(gram, (z * nearness[:, None]).T @ moved)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)


def test_lime_weights_of_two_classes_cancel_and_depend_on_the_seed_alone():
    pytest.importorskip("lime", reason=EXTRA)
    x, y = planted_rows()
    forest = RandomForestClassifier(n_estimators=10, random_state=0).fit(x, y > 0)
    np.random.seed(3)
    one, other = (
        explainers.lime_weights(forest.predict_proba, x, x[5], target, samples=200, seed=1)
        for target in (0, 1)
    )
    assert np.random.random() == np.random.RandomState(3).random_sample()
    np.testing.assert_allclose(one, -other, rtol=1e-9, atol=1e-12)
    again = explainers.lime_weights(forest.predict_proba, x, x[5], 1, samples=200, seed=1)
    np.testing.assert_array_equal(other, again)
    redrawn = explainers.lime_weights(forest.predict_proba, x, x[5], 1, samples=200, seed=2)
    assert not np.isclose(other, redrawn).any()


def test_with_both_packages_seeds_agree_more_than_chance_and_shap_adds_up(monkeypatch, tmp_path):
    for package in ("lime", "shap"):
        pytest.importorskip(package, reason=EXTRA)
    monkeypatch.setattr(tabular, "ROWS", 5)
    document = explain(tmp_path, seeds=range(3), trees=20, samples=300)
    total = np.sum(document["shap"], axis=1) + document["shap_base"]
    np.testing.assert_allclose(total, document["probability"], atol=1e-12)
    cosines = {r["comparison"]: r["mean"] for r in records(document, "rows") if r["metric"] == "cosine"}
    assert min(cosines.values()) > 0.5
    assert cosines["shap_between_seeds"] == max(cosines.values())
    assert explain(tmp_path, seeds=range(3), trees=20, samples=300) == document
