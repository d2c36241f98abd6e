"""One image explained: files hold what direct calls give, pictures hold it too, and mistakes are named."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.image import AxesImage
from skimage.segmentation import find_boundaries
from torch import nn

from epochlens import config
from epochlens.attribute import superpixels
from epochlens.attribute.methods import all_methods, attribute, named_generator
from epochlens.errors import UsageError
from epochlens.learn import data, models, training
from epochlens.record import files, retrieval
from epochlens.show import explained
from epochlens.sweep import explain_command, explanation, findings, plan, trial
from epochlens.sweep.explain_command import explain

torch.set_num_threads(1)
INDEX, EPOCHS, SEED = 7, 2, 4
QUICK = ["saliency", "integrated_gradients:steps=5", "smoothgrad:samples=3", "lime:samples=20", "cam"]


def trained(classes: tuple[int, ...] = tuple(range(10)), model: str = "small") -> tuple[nn.Module, Any]:
    """The network that the options ask for, trained without them, and the splits."""
    splits = training.as_tensors(data.load("digits", classes, "unused"))
    factory = models.model_factory(model)
    trajectory = training.begin(factory, (1, 8, 8), len(classes), SEED, learning_rate=0.01)
    for _ in training.train(trajectory, splits, EPOCHS, 128):
        pass
    return trajectory.model.eval(), splits


def options(folder: Path, *more: str) -> list[str]:
    known = ["--index", str(INDEX), "--epochs", str(EPOCHS), "--seed", str(SEED), "--output", str(folder)]
    return [*known, "--device", "cpu", *more]


class Answer:
    """One explanation by the command: its document, arrays and files, and the network behind it."""

    def __init__(self, folder: Path, out: str) -> None:
        self.document = json.loads(out)
        files = [Path(path) for path in self.document["files"]]
        assert all(path.parent == folder and path.stat().st_size > 0 for path in files)
        self.names = {path.name for path in files}
        with np.load(next(path for path in files if path.suffix == ".npz"), allow_pickle=False) as found:
            self.arrays = dict(found)


@pytest.fixture
def ask(tmp_path, capsys):
    """Asks the command for a JSON document."""

    def call(*arguments: str) -> Answer:
        assert explain([*arguments, "--output", str(tmp_path), "--json"]) == 0
        return Answer(tmp_path, capsys.readouterr().out)

    return call


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, Any]:
    return trained()


def draws(label: str) -> torch.Generator:
    return named_generator(SEED, f"attribution/{label}", EPOCHS)


def test_all_methods_of_a_network_trained_here_equal_direct_calls(ask, network, tmp_path):
    model, splits = network
    answer = ask(*options(tmp_path))
    x, y = splits.x_test[INDEX][None], splits.y_test[INDEX][None]
    assert list(answer.document["methods"]) == list(all_methods())
    assert np.array_equal(answer.arrays["image"], x[0])
    with torch.no_grad():
        np.testing.assert_array_equal(answer.arrays["probabilities"], model(x).softmax(1)[0])
        np.testing.assert_allclose(answer.arrays["features/0"], model.get_submodule("0")(x)[0], rtol=1e-6)
    for label, numbers in answer.document["methods"].items():
        expected = attribute(model, x, y, label, generator=draws(label))[0].numpy()
        found = answer.arrays[f"map/{label}"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
        assert numbers["max"] == found.max()
        assert numbers["min"] == found.min()
        assert numbers["sum"] == pytest.approx(found.sum(), rel=1e-5, abs=1e-5)
    area = np.trapezoid(answer.arrays["deletion/saliency"], answer.arrays["fractions"])
    assert answer.document["methods"]["saliency"]["deletion"] == pytest.approx(area)
    sheets = ["maps", "superpixels", "curves", "features"]
    stem = f"digits-small-lr0.01-seed{SEED}-epochs{EPOCHS}-image{INDEX}"
    pictures = {f"{stem}-{sheet}.{kind}" for sheet in sheets for kind in ("png", "pdf")}
    assert answer.names == pictures | {f"{stem}.npz", f"{stem}.json"}
    assert json.loads((tmp_path / f"{stem}.json").read_text()) == answer.document


def test_superpixels_are_those_of_the_method_and_its_options(ask, network, tmp_path):
    label = "lime:samples=20,segments=9"
    answer = ask(*options(tmp_path, "--methods", label, "saliency", "--quality"))
    labels = superpixels.superpixels(network[1].x_test[INDEX][None], segments=9)[0]
    assert np.array_equal(answer.arrays[f"superpixels/{label}"], labels)
    positive = superpixels.positive_regions(torch.from_numpy(answer.arrays[f"map/{label}"]), labels)
    assert np.array_equal(answer.arrays[f"positive/{label}"], positive)
    assert not any("curves" in name for name in answer.names)
    assert set(answer.document["methods"]["saliency"]) == {"sum", "min", "max"}


def test_classes_and_targets_are_in_the_datasets_own_numbering(ask, tmp_path):
    classes = (8, 3, 5)
    model, splits = trained(classes)
    words = options(tmp_path, "--classes", *map(str, classes), "--methods", "saliency", "--quality")
    x = splits.x_test[INDEX][None]
    prediction = int(model(x).argmax())
    aims = {"label": int(splits.y_test[INDEX]), "predicted": prediction, "3": 1, "5": 2}
    for word, number in aims.items():
        answer = ask(*words, "--target", word)
        assert answer.document["target"] == classes[number]
        assert answer.document["label"] == classes[int(splits.y_test[INDEX])]
        assert answer.document["prediction"] == classes[prediction]
        assert list(answer.document["probabilities"]) == ["8", "3", "5"]
        expected = attribute(model, x, torch.tensor([number]), "saliency")[0]
        np.testing.assert_allclose(answer.arrays["map/saliency"], expected, rtol=1e-5, atol=1e-7)


def test_pictures_hold_what_was_found(network, tmp_path):
    words = vars(explain_command.explain_parser().parse_args(options(tmp_path, "--methods", *QUICK)))
    words.pop("json", None)
    question = explain_command.ask(words)
    model, splits = network
    found = explanation.examine(question, model, splits.x_test[INDEX], int(splits.y_test[INDEX]))
    sheets = dict(findings.sheets(question, found))
    maps = next(figure for name, figure in sheets.items() if name.endswith("maps"))
    titled = {ax.get_title().replace("\n", ""): ax for ax in maps.axes if ax.images}
    for label in QUICK:
        drawn = titled[label].images[0]
        y = splits.y_test[INDEX][None]
        direct = attribute(model, splits.x_test[INDEX][None], y, label, generator=draws(label))[0, 0]
        largest = direct.abs().max().item()
        np.testing.assert_allclose(shown(drawn), direct, rtol=1e-4, atol=1e-5 * largest)
        low, high = drawn.get_clim()
        assert low == -high
        assert high == pytest.approx(np.percentile(direct.abs(), 99.5), rel=1e-3)
    features = next(figure for name, figure in sheets.items() if name.endswith("features"))
    tiles = list(features.axes[0].images)
    assert np.array_equal([shown(tile) for tile in tiles], found.features["0"])


def shown(picture: AxesImage) -> np.ndarray:
    """The values that a picture draws."""
    return np.asarray(picture.get_array())


def random_map(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_maps_of_several_channels_are_summed_unless_all_say_the_same():
    values = random_map(0, 3, 5, 4)
    np.testing.assert_allclose(explained.per_pixel(values), values[0] + values[1] + values[2], rtol=1e-6)
    repeated = np.repeat(values[:1], 3, axis=0)
    assert np.array_equal(explained.per_pixel(repeated), values[0])


def test_empty_maps_say_so():
    maps = {"a": np.zeros((1, 4, 4)), "b": np.full((1, 4, 4), np.nan), "c": random_map(1, 1, 4, 4)}
    figure = explained.maps_sheet(np.zeros((1, 4, 4)), maps, {"0": 0.75, "1": 0.25}, "title", ["a fact"])
    said = {ax.get_title(): [text.get_text() for text in ax.texts] for ax in figure.axes if ax.images}
    assert said["a"] == ["zero everywhere"]
    assert said["b"] == ["undefined"]
    assert said["c"] == []
    bars = next(ax for ax in figure.axes if ax.patches and not ax.images)
    patches: list[Any] = list(bars.patches)
    assert [patch.get_width() for patch in patches] == [0.75, 0.25]


@settings(max_examples=40, deadline=None)
@given(arrays(np.int64, st.tuples(st.integers(2, 7), st.integers(2, 7)), elements=st.integers(0, 2)))
def test_outlines_run_between_the_pixels_that_scikit_image_marks(labels):
    figure = explained.titled(3, 3, "")
    lines = explained.outline(explained.panel(figure, 0, 0, 2, 2), labels, "k")
    marked = np.zeros(labels.shape, bool)
    for (x0, y0), (x1, y1) in np.asarray(lines.get_segments()).reshape(-1, 2, 2):
        y, x = (y0 + y1) / 2, (x0 + x1) / 2
        for dy, dx in ((0, 0.5), (0, -0.5)) if x0 == x1 else ((0.5, 0), (-0.5, 0)):
            marked[int(y + dy), int(x + dx)] = True
    assert np.array_equal(marked, find_boundaries(labels, mode="thick", connectivity=1))


@settings(max_examples=40, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))))
def test_a_value_is_written_inside_its_superpixel(inside):
    if inside.any():
        y, x = explained.deepest(inside)
        assert inside[round(y), round(x)]


def test_each_superpixel_has_its_value_and_the_rest_of_the_regions_fades():
    labels = np.array([[0, 0, 1, 1], [0, 2, 2, 1], [3, 3, 2, 1]])
    worth = np.array([1.234, -0.5, 0.0004, -0.0004])
    positive = labels == 0
    image = np.random.default_rng(3).random((1, 3, 4))
    rows = {"lime": explained.Superpixels(labels, worth[labels], positive)}
    figure = explained.superpixel_sheet(image, rows, "title")
    given, valued, chosen = (ax for ax in figure.axes if ax.images)
    texts = {text.get_text(): text.get_position() for text in valued.texts}
    assert sorted(texts) == ["-0.50", "0.00", "1.23"]
    assert len(valued.texts) == 4
    for text in valued.texts:
        x, y = text.get_position()
        assert round(float(worth[labels[round(y), round(x)]]), 2) == float(text.get_text())
    assert np.array_equal(shown(valued.images[0]), worth[labels])
    photo, faded = (shown(ax.images[0]) for ax in (given, chosen))
    np.testing.assert_allclose(photo[..., 0], image[0])
    assert np.array_equal(faded[positive], photo[positive])
    assert np.ptp(faded[~positive]) < 0.5 * np.ptp(photo[~positive])
    assert chosen.get_title() == "the 1 most positive"


def test_curves_are_drawn_with_their_areas_best_first():
    fractions = np.linspace(0, 1, 6)
    curves = {kind: {name: random_map(i, 6) for i, name in enumerate("abc")} for kind in explained.PIXELS}
    areas = {kind: {"a": 0.5, "b": 0.25, "c": float("nan")} for kind in explained.PIXELS}
    figure = explained.curves_sheet(fractions, curves, areas, "title")
    orders = {
        "deletion": ["0.250  b", "0.500  a", "undefined  c"],
        "insertion": ["0.500  a", "0.250  b", "undefined  c"],
    }
    for ax in figure.axes:
        kind = ax.get_title(loc="left")
        legend = ax.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == orders[kind]
        for line in ax.lines:
            name = str(line.get_label())[-1]
            assert np.array_equal(line.get_ydata(), curves[kind][name])
            assert np.array_equal(line.get_xdata(), fractions)
    styles = {(str(line.get_color()), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(styles) == 3


def test_feature_maps_share_a_scale_per_layer_and_stop_at_64():
    layers = {"first": 3 * random_map(0, 70, 5, 4), "second": random_map(1, 2, 3, 3)}
    figure = explained.features_sheet(layers, "title")
    tiles = figure.axes[0].images
    assert len(tiles) == 64 + 2
    assert np.array_equal([shown(tile) for tile in tiles[:64]], layers["first"][:64])
    assert np.array_equal([shown(tile) for tile in tiles[64:]], layers["second"])
    for part, layer in ((tiles[:64], layers["first"]), (tiles[64:], layers["second"])):
        limit = np.percentile(np.abs(layer), 99.5)
        np.testing.assert_allclose(
            [tile.get_clim() for tile in part], [(-limit, limit)] * len(part), rtol=1e-6
        )
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said == ["layer first  [70, 5, 4], the first 64 shown", "layer second  [2, 3, 3]"]


class Twice(nn.Module):
    """Calls one convolution twice and another once, and may fail."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared, self.last, self.fails = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 3, 1), fails

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fails:
            self.shared(x)
            raise RuntimeError("as asked")
        return self.last(self.shared(self.shared(x).tanh())).mean((2, 3))


def test_every_convolution_is_caught_at_every_call_and_no_hook_stays():
    model, x = Twice().train(), torch.rand(1, 2, 6, 6)
    found = explanation.feature_maps(model, x)
    once = model.shared(x)
    twice = model.shared(once.tanh())
    expected = {"shared": once, "shared call 2": twice, "last": model.last(twice)}
    assert list(found) == list(expected)
    for name, output in expected.items():
        torch.testing.assert_close(found[name], output.detach())
    assert model.training
    failing = Twice(fails=True)
    with pytest.raises(RuntimeError, match="as asked"):
        explanation.feature_maps(failing, x)
    hooks = [m._forward_hooks for net in (model, failing) for m in net.modules()]
    assert not any(hooks)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> tuple[Path, config.Run]:
    """A results folder with one finished run, recorded as a trial does, without Ray."""
    results = tmp_path_factory.mktemp("results")
    settings: dict[str, Any] = {
        "datasets": ("digits",),
        "models": ("small",),
        "lrs": (0.01,),
        "seeds": (SEED,),
    }
    settings |= {"methods": ("saliency", "smoothgrad:samples=3"), "epochs": EPOCHS, "probe_samples": 4}
    sweep = config.Sweep(name="tiny", results_dir=str(results), classes=(3, 8, 5), **settings)
    (run,) = plan.expand(sweep, {"digits": data.describe("digits", sweep.classes)})
    folder = plan.sweep_folder(sweep)
    plan.record_sweep(folder, sweep, [run], {})
    splits = data.load("digits", run.classes, "unused")
    shared = trial.Shared(folder, {run.run_id: run}, {"digits": splits}, "cpu", 1, "last", False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "ray", types.SimpleNamespace(get=lambda reference: reference))
        record = trial.run_record(run, shared)
        list(trial.train_run(run, plan.run_folder(folder, run.run_id), shared, record))
    return results, run


def test_a_finished_run_is_explained_by_its_own_network_and_recorded_maps(ask, recorded, tmp_path):
    results, run = recorded
    folder = results / "tiny" / "runs" / run.run_id
    maps = retrieval.load(folder)
    index = int(maps.samples[2])
    quick = ["--methods", *run.methods, "--quality", "sparseness", "--device", "cpu"]
    where = ["--run", run.run_id, "--results-dir", str(results)]
    answer = ask(*where, "--index", str(index), *quick)
    model = models.small(1, 3)
    model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    images = torch.from_numpy(data.load("digits", run.classes, "unused").x_test)
    with torch.no_grad():
        np.testing.assert_array_equal(
            answer.arrays["probabilities"], model(images[index : index + 1]).softmax(1)[0]
        )
    scale = np.abs(maps.attributions[-1, 0, 2]).max()
    np.testing.assert_allclose(
        answer.arrays["map/saliency"], maps.attributions[-1, 0, 2], rtol=1e-4, atol=1e-5 * scale
    )
    assert answer.document["run"] == run.run_id
    assert answer.document["label"] == run.classes[int(np.load(folder / "probe.npz")["labels"][2])]
    assert all(name.startswith(run.run_id) for name in answer.names)
    again = ask("--run", str(folder), "--index", str(index), *quick)
    assert all(np.array_equal(again.arrays[name], value) for name, value in answer.arrays.items())
    trained_here = ask(
        *("--classes", "3", "8", "5", "--epochs", str(EPOCHS), "--seed", str(SEED)),
        "--index",
        str(index),
        *quick,
    )
    assert all(np.array_equal(trained_here.arrays[name], value) for name, value in answer.arrays.items())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("weights", "kept no weights"),
        ("running", "is not finished (partial)"),
        ("damaged", "is damaged"),
        ("elsewhere", "does not say where"),
        ("outside", "was not recorded by a sweep"),
        ("contents", "other contents"),
    ],
)
def test_runs_that_cannot_be_explained_say_why(recorded, tmp_path, damage, words):
    results, run = recorded
    source, folder = results / "tiny" / "runs" / run.run_id, tmp_path / "r" / "tiny" / "runs" / run.run_id
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    record = files.read_json(folder / "run.json")
    assert record is not None
    if damage == "weights":
        del record["files"]["weights.pt"]
        (folder / "weights.pt").unlink()
    record |= {"status": "running"} if damage == "running" else {}
    record |= {"dataset": "mine"} if damage == "elsewhere" else {}
    record |= {"data": "others"} if damage == "contents" else {}
    if damage == "outside":
        del record["classes"]
    if damage == "damaged":
        (folder / "weights.pt").write_bytes(b"short")
    files.write_json(folder / "run.json", record)
    with pytest.raises(UsageError, match=r"^run: ") as caught:
        explain(["--run", run.run_id, "--results-dir", str(tmp_path / "r"), "--index", "0"])
    assert words in str(caught.value)


def copy_of(recorded: tuple[Path, config.Run], results: Path) -> Path:
    """The finished run and its sweep.json in another results folder; returns the run's folder."""
    source = recorded[0] / "tiny"
    folder = results / "tiny" / "runs" / recorded[1].run_id
    folder.mkdir(parents=True)
    (results / "tiny" / "sweep.json").write_bytes((source / "sweep.json").read_bytes())
    for file in (source / "runs" / recorded[1].run_id).iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def change(path: Path, **more: Any) -> None:
    files.write_json(path, {**(files.read_json(path) or {}), **more})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("classes", "abc"),
        ("classes", [3, 3]),
        ("classes", [[3], 8]),
        ("epochs", "many"),
        ("epochs", 0),
        ("learning_rate", [0.1]),
        ("learning_rate", -1),
        ("seed", [1]),
        ("seed", -1),
        ("methods", 5),
        ("model", 7),
        ("optimizer", "lion"),
    ],
)
def test_a_run_of_other_types_or_values_is_refused_before_any_work(recorded, tmp_path, field, value):
    folder = copy_of(recorded, tmp_path)
    change(folder / "run.json", **{field: value})
    with pytest.raises(UsageError, match=rf"^run: .*{field}"):
        explain(["--run", str(folder), "--index", "0", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("settings", [[1], "x", {"datasets": [5]}, {"datasets": 5}, {"data_dir": 5}])
def test_a_sweep_that_tells_nothing_of_use_is_as_one_that_tells_nothing(recorded, tmp_path, settings):
    folder = copy_of(recorded, tmp_path)
    change(folder.parents[1] / "sweep.json", settings=settings)
    given = vars(explain_command.explain_parser().parse_args(["--run", str(folder), "--index", "0"]))
    network = explain_command.ask(given).network
    assert (network.spec, network.data_dir) == ("digits", "data")


def test_weights_that_are_none_are_told_in_one_line(recorded, tmp_path):
    content = [pickle.dumps(print), pickle.dumps([1, 2]), b"", b"PK\x03\x04 no archive"]
    for i, weights in enumerate(content):
        folder = copy_of(recorded, tmp_path / str(i))
        checksums = (files.read_json(folder / "run.json") or {})["files"]
        checksums["weights.pt"] = files.write_whole(folder / "weights.pt", weights)
        change(folder / "run.json", files=checksums)
        with pytest.raises(UsageError, match="weights that do not fit") as caught:
            explain(["--run", str(folder), "--index", "0", "--output", str(tmp_path / "out")])
        assert len(str(caught.value).splitlines()) == 1


EVIL = "from pathlib import Path\nPath('ran').touch()\n"
EVIL += "from epochlens.learn.models import small\nfrom epochlens.learn.data import load_digits\n"
EVIL += "def digits(): return load_digits(Path('data'))\n"


@pytest.mark.parametrize("what", ["model", "dataset"])
@pytest.mark.parametrize("where", ["evil_{}", "results.tiny.evil_{}"])
def test_code_that_a_run_names_runs_only_when_that_is_allowed(recorded, tmp_path, monkeypatch, what, where):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = copy_of(recorded, tmp_path / "results")
    module = where.format(what)
    source = tmp_path / f"{module.replace('.', '/')}.py"
    source.write_text(EVIL)
    if what == "model":
        code = files.file_checksum(source)
        change(folder / "run.json", model=f"{module}:small", model_code=code)
    else:
        change(folder / "run.json", dataset="digits_")
        change(folder.parents[1] / "sweep.json", settings={"datasets": [f"{module}:digits_"]})
    words = ["--run", str(folder), "--index", "0", "--output", "out", "--methods", "saliency"]
    with pytest.raises(UsageError, match=rf"code of module {module}.*--allow-code"):
        explain(words)
    assert not Path("ran").exists() and module not in sys.modules
    if what == "model":
        assert explain([*words, "--allow-code", "--quality"]) == 0
    else:
        with pytest.raises(UsageError, match="digits_"):  # it is run, and has no such function
            explain([*words, "--allow-code"])
    assert Path("ran").exists()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("results", module)]:
        del sys.modules[name]


def test_several_sweeps_may_hold_a_run_and_one_with_weights_is_taken(recorded, tmp_path):
    results, run = recorded
    source = results / "tiny" / "runs" / run.run_id
    for name in ("a", "b", "c"):
        folder = tmp_path / name / "runs" / run.run_id
        folder.mkdir(parents=True)
        for file in source.iterdir():
            if file.is_file() and (name == "b" or file.name != "weights.pt"):
                (folder / file.name).write_bytes(file.read_bytes())
        record = files.read_json(folder / "run.json")
        assert record is not None
        if name != "b":
            del record["files"]["weights.pt"]
        files.write_json(folder / "run.json", record)
        assert retrieval.run_status(folder)[0] == "done"
    assert explain_command.find_run(run.run_id, tmp_path) == tmp_path / "b" / "runs" / run.run_id


@pytest.mark.parametrize(
    ("words", "field", "said"),
    [
        (["--index", "360"], "index", "0 .. 354"),
        (["--index", "-1"], "index", "whole number"),
        (["--index", "1.5"], "index", "whole number"),
        (["--index", "9" * 5000], "index", "must be at most"),
        (["--index", "0", "--run", "x" * 300, "--results-dir", "nowhere"], "run", "none yet in nowhere"),
        (["--index", "0", "--allow-code"], "allow_code", "--run"),
        (["--index", "0", "--target", "10"], "target", "label, predicted, 0, 1"),
        (["--index", "0", "--classes", "3", "8", "--target", "5"], "target", "label, predicted, 3, 8"),
        (["--index", "70", "--classes", "3", "8"], "index", "0 .. 69"),
        (["--index", "0", "--classes", "3"], "classes", "at least two"),
        (["--index", "0", "--classes", "3", "99"], "classes", "99"),
        (["--index", "0", "--methods", "salience"], "methods", "did you mean 'saliency'?"),
        (["--index", "0", "--methods"], "methods", "name at least one"),
        (["--index", "0", "--methods", "cam", "--model", "lenet"], "methods", "lenet"),
        (["--index", "0", "--quality", "deletio"], "quality", "did you mean 'deletion'?"),
        (["--index", "0", "--quality", "deletion", "deletion:steps=3"], "quality", "deletion"),
        (["--index", "0", "--model", "smal"], "models", "did you mean 'small'?"),
        (["--index", "0", "--dataset", "digit"], "datasets", "did you mean 'digits'?"),
        (["--index", "0", "--dataset", "npz:nowhere.npz"], "datasets", "cannot be read"),
        (["--index", "0", "--lr", "0"], "lrs", "greater than 0"),
        (["--index", "0", "--epochs", "none"], "epochs", "whole number"),
        (["--index", "0", "--batch-size", "0"], "batch_size", "at least 1"),
        (["--index", "0", "--seed", "-2"], "seeds", "4294967295"),
        (["--index", "0", "--device", "gpu"], "device", "auto, cpu"),
        (["--index", "0", "--output", "/proc/nowhere"], "output", "cannot be written"),
        (["--index", "0", "--results-dir", "r"], "results_dir", "--run"),
        (["--index", "0", "--run", "digits-small", "--results-dir", "nowhere"], "run", "none yet in nowhere"),
        (["--index", "0", "--run", "digits-small", "--model", "small"], "model", "comes from the run"),
        (["--index", "0", "--run", "digits-small", "--classes", "3", "8"], "classes", "comes from the run"),
        (["--index", "0", "--tabular", "iris", "--model", "small"], "model", "leave it out with --tabular"),
        (["--index", "0", "--tabular", "iris", "--run", "x"], "run", "leave it out with --tabular"),
        (["--index", "0", "--tabular", "wine"], "tabular", "iris"),
    ],
)
def test_mistakes_are_named_before_any_work(words, field, said, monkeypatch):
    monkeypatch.setattr(explanation, "explain", None)
    with pytest.raises(UsageError) as caught:
        explain(words)
    assert caught.value.field.startswith(field)
    assert said in str(caught.value)


def test_a_layer_that_is_not_there_is_named_before_training(tmp_path, capsys):
    with pytest.raises(UsageError, match="nowhere"):
        explain(options(tmp_path, "--methods", "gradcam:layer=nowhere"))
    assert "epoch" not in capsys.readouterr().err


def test_methods_that_a_model_cannot_have_are_left_out_of_all(capsys):
    given = vars(explain_command.explain_parser().parse_args(["--index", "0", "--model", "lenet"]))
    question = explain_command.ask(given)
    assert set(question.methods) == set(all_methods()) - {"cam"}
    assert "cam" in capsys.readouterr().err
    named = vars(explain_command.explain_parser().parse_args(["--index", "0", "--model", "small"]))
    assert explain_command.ask(named).methods == tuple(all_methods())
    assert capsys.readouterr().err == ""


def test_training_that_diverges_names_the_learning_rate(tmp_path):
    with pytest.raises(UsageError, match=r"^lr: .*not finite"):
        explain(options(tmp_path, "--lr", "1e30", "--methods", "saliency"))


def test_people_read_numbers_and_files(tmp_path, capsys):
    assert explain(options(tmp_path, "--methods", "saliency", "--quality", "sparseness")) == 0
    out, err = capsys.readouterr()
    assert f"epoch {EPOCHS}/{EPOCHS}: test accuracy" in err
    row = next(line.replace("│", " ").split() for line in out.splitlines() if "│ saliency" in line)
    document = json.loads(next(tmp_path.glob("*.json")).read_text())
    numbers = document["methods"]["saliency"]
    assert list(map(float, row[1:])) == pytest.approx(list(numbers.values()), rel=1e-3)
    assert all(path in out for path in document["files"])


def test_an_interruption_ends_with_130(monkeypatch, capsys, tmp_path):
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(explanation, "explain", interrupted)
    assert explain(options(tmp_path, "--json")) == 130
    assert capsys.readouterr().out == ""


def test_a_row_of_a_table_is_handed_over(monkeypatch, capsys, tmp_path):
    asked: dict[str, Any] = {}

    def explain_tabular(dataset: str, **options: Any) -> dict[str, Any]:
        print("a line for people")
        asked.update(options, dataset=dataset)
        return {"found": 1}

    monkeypatch.setattr(explain_command, "tabular", types.SimpleNamespace(explain_tabular=explain_tabular))
    words = ["--tabular", "iris", "--index", "3", "--target", "2", "--output", str(tmp_path), "--json"]
    assert explain(words) == 0
    assert asked == {"dataset": "iris", "index": 3, "target": "2", "output": tmp_path, "json": True}
    assert json.loads(capsys.readouterr().out) == {"found": 1}


def test_help_and_mistakes_answer_before_heavy_modules_load():
    script = (
        "import sys\n"
        "from epochlens.sweep.explain_command import explain\n"
        "mistakes = ['--index', 'x'], ['--index', '360'], ['--index', '0', '--model', 'smal']\n"
        "for words in (['--help'], *mistakes):\n"
        "    try: explain(words)\n"
        "    except (SystemExit, ValueError): pass\n"
        "    else: raise AssertionError(words)\n"
        "print(' '.join(name for name in sys.modules if '.' not in name))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"torch", "ray", "torchvision", "pandas", "matplotlib", "sklearn", "skimage"}
