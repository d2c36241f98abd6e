"""Settings: what a user may write, what is made of it, and what is said of mistakes, with exit code 2."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epochlens import config
from epochlens.commands import analyze, export, grid, usage_errors_named
from epochlens.errors import UsageError, unknown, whole_number
from epochlens.sweep import plan


def run_of(**changes) -> config.Run:
    sweep = config.resolve(None, {"seeds": ["0"], "models": ["small"], "lrs": ["0.1"]})
    return dataclasses.replace(plan.expand(sweep, config.check(sweep))[0], **changes)


def test_run_id_names_the_run_and_depends_on_every_field():
    run = run_of()
    assert run.run_id.startswith("digits-small-lr0.1-seed0-")
    different = {
        "dataset": "other",
        "data": "other",
        "classes": (1, 2),
        "model": "deep",
        "model_code": "other",
        "learning_rate": 0.2,
        "seed": 1,
        "epochs": 3,
        "batch_size": 7,
        "optimizer": "sgd",
        "momentum": 0.5,
        "weight_decay": 0.1,
        "precision": "bf16",
        "methods": ("saliency",),
        "method_code": ("other",),
        "quality": ("sparseness",),
        "quality_every": 2,
        "probe_samples": 5,
        "probe_seed": 4,
        "target": "predicted",
    }
    assert set(different) == {field.name for field in dataclasses.fields(run)}
    ids = {dataclasses.replace(run, **{name: value}).run_id for name, value in different.items()}
    assert len(ids | {run.run_id}) == len(different) + 1


def test_settings_that_change_no_number_change_no_run_id():
    plain = config.resolve(None, {})
    other = config.resolve(
        None,
        {
            "name": "x",
            "results_dir": "r",
            "cpus_per_trial": "0.5",
            "max_failures": "0",
            "keep_weights": "none",
        },
    )
    ids = [[r.run_id for r in plan.expand(s, config.check(plain))] for s in (plain, other)]
    assert ids[0] == ids[1]


def test_default_is_the_documented_grid():
    sweep = config.resolve(None, {})
    runs = plan.expand(sweep, config.check(sweep))
    assert len(runs) == 2 * 2 * 10
    assert len({run.run_id for run in runs}) == 40
    assert (sweep.name, sweep.epochs, len(sweep.methods)) == ("digits", 50, 2)


def test_the_study_s_preset():
    sweep = config.resolve("paper", {})
    assert sweep.datasets == ("mnist", "cifar10")
    assert sweep.methods == ("saliency", "integrated_gradients:rule=endpoints")
    runs = plan.expand(sweep, config.check(sweep))
    assert len(runs) * len(sweep.methods) == 160
    assert all(run.probe_seed == run.seed for run in runs)
    assert {run.classes for run in runs} == {(3, 8), (3, 5)}


def test_toml_file_gives_its_name_and_command_line_wins(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'seeds = [4]\nbatch-size = 32\nmethods = [{name = "smoothgrad", samples = 5}, "saliency"]\n'
    )
    sweep = config.resolve(str(path), {"epochs": "3"})
    assert (sweep.name, sweep.seeds, sweep.batch_size, sweep.epochs) == ("mine", (4,), 32, 3)
    assert sweep.methods == ("smoothgrad:samples=5", "saliency")


MISTAKES = [
    (["--seeds", "0", "0"], "seeds: 0 is named twice"),
    (["--seeds", "1.5"], "whole number"),
    (["--seeds", "-1"], "4294967295"),
    (["--seeds"], "empty"),
    (["--models"], "empty"),
    (["--lrs", "0"], "greater than 0"),
    (["--lrs", "nan"], "not finite"),
    (["--lrs", "fast"], "not a number"),
    (["--epochs", "0"], "at least 1"),
    (["--batch-size", "-4"], "at least 1"),
    (["--models", "smal"], "did you mean 'small'"),
    (["--models", "os:nothing"], "cannot be imported"),
    (["--datasets", "digit"], "did you mean 'digits'"),
    (["--datasets", "digits", "digits"], "named twice"),
    (["--methods", "salience"], "did you mean 'saliency'"),
    (["--methods", "saliency", "saliency:"], "named twice"),
    (["--classes", "3", "99"], "labels are 0, 1"),
    (["--classes", "3"], "at least two"),
    (["--classes", "three", "4"], "nor all"),
    (["--probe-samples", "356"], "more than the 355 test images"),
    (["--probe-seed", "walk"], "nor run"),
    (["--cpus-per-trial", "0"], "greater than 0"),
    (["--gpus-per-trial", "-1"], "at least 0"),
    (["--optimizer", "adm"], "did you mean 'adam'"),
    (["--target", "labels"], "did you mean 'label'"),
    (["--name", "../up"], "letters"),
    (["--name", "a" * 65], "64"),
    (["--name", "a\nb"], "letters"),
    (["--results-dir", "/proc/nowhere"], "cannot be written"),
    (["--results-dir", "x" * 300], "results_dir: 'xxx"),
    (["--plots-dir", "x" * 300], "too long"),
    (["--data-dir", "missing/" + "x" * 300], "too long"),
    (["--data-dir", "a/" * 3000], "too long"),
    (["--data-dir", "a\0b"], "cannot be printed"),
    (["--data-dir", "file://["], "is not a URI"),
    (["--results-dir", "http://[x"], "is not a URI"),
    (["--epochs", "9" * 5000], "is not a whole number"),
    (["--epochs", "9" * 10], "must be at most 2147483647"),
    (["--models", ".x:y"], "cannot be imported: TypeError"),
    (["--models", "\x1b[2J:y"], "'\\x1b[2J:y' holds a character that cannot be printed"),
    (["--datasets", "../../x:y"], "cannot be imported: TypeError"),
    (["--datasets", "os:getcwd"], "does not return x_train, y_train, x_test, y_test"),
    (["--methods", "x" * 300 + ".py:f"], "too long"),
    (["--methods", "sys:exit"], "built-in module"),
    (["x" * 10_000 + ".toml"], "…"),
    (["nothing"], "Choices: digits, gallery, paper, quality"),
    (["nothing.toml"], "cannot be read"),
]


@pytest.mark.parametrize(
    ("arguments", "told"), MISTAKES, ids=lambda a: ascii(" ".join(a))[:40] if isinstance(a, list) else ""
)
def test_mistakes_are_told_in_one_line_with_exit_code_2(arguments, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert grid(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert told in said.err
    assert said.err.count("\n") == 1
    assert said.err[:-1].isprintable() and len(said.err) < 1000
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("epoch = 3", "did you mean 'epochs'"),
        ("epochs = three", "not valid TOML"),
        ("epochs = true", "not a whole number"),
        ('epochs = "3x"', "not a whole number"),
        ("seeds = []", "empty"),
        ("dashboard = 1", "neither true nor false"),
        ("name = 3", "not a text"),
        ("methods = [3]", "neither a name nor a table"),
        ('[[methods]]\nname = "saliency"\nsteps = 3', "none"),
        ("datasets = [1]", "not a name"),
        ("learning = 1", "unknown"),
        (f"epochs = {'1' * 5000}", "not valid TOML"),
        (f"epochs = 0x{'f' * 5000}", "a number of thousands of digits is not a whole number"),
        (f"epochs = {'[' * 20_000}", "not valid TOML"),
        ('results_dir = "a\\u0000"', "cannot be printed"),
        ('data_dir = "a\\u0000"', "cannot be printed"),
        ('methods = ["a\\u0000b.py:f"]', "cannot be printed"),
        ('methods = [{name = "a\\u0000b.py:f"}]', "cannot be printed"),
        (f"methods = [{{name = 0x{'f' * 5000}}}]", "no text as its name"),
        (f"methods = [{{name = 'lime', samples = 0x{'f' * 5000}}}]", "is not of type int"),
    ],
)
def test_mistakes_in_toml_are_told(text, told, capsys, tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    assert grid([str(path), "--dry-run"]) == 2
    assert told in capsys.readouterr().err


def test_a_pipe_is_not_waited_for(capsys, tmp_path):
    os.mkfifo(tmp_path / "x.toml")
    os.mkfifo(tmp_path / "x.npz")
    for words in ([str(tmp_path / "x.toml")], ["--datasets", f"npz:{tmp_path}/x.npz"]):
        assert grid([*words, "--dry-run"]) == 2
        assert "file" in capsys.readouterr().err


def test_an_interruption_anywhere_is_told_without_a_traceback(capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    assert usage_errors_named(interrupted)([]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@given(text=st.text(max_size=12), times=st.integers(0, 2000))
def test_errors_are_one_short_line_whatever_they_name(text, times):
    for error in (UsageError(text, text * times, text * times), unknown("x", text * times, ["a", text])):
        said = str(error)
        assert said.isprintable() and len(said) < 5000
        assert repr(error.value)[:20] in said


@given(value=st.integers(0, 10**30) | st.text(max_size=5), zeros=st.integers(0, 5000))
def test_whole_numbers_are_those_that_digits_write(value, zeros):
    text = "0" * zeros + str(value)
    digits = set(text) <= set("0123456789") and bool(text)
    if digits and 3 <= int(str(value) or "0") <= 10**6:
        assert whole_number("x", text, 3, 10**6) == int(str(value))
    else:
        with pytest.raises(UsageError):
            whole_number("x", text, 3, 10**6)


def test_a_model_that_does_not_fit_the_images_is_told(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, labels = np.zeros((40, 4, 4), np.uint8), np.tile([0, 1], 20)
    np.savez("tiny.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert grid(["--datasets", "npz:tiny.npz", "--models", "small", "deep"]) == 2
    assert "models: 'deep' needs images of at least 5x5" in capsys.readouterr().err
    (tmp_path / "nets.py").write_text("from torch import nn\ndef wide(c, k): return nn.Linear(9, k)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert grid(["--models", "nets:wide"]) == 2
    assert "does not take images of shape (1, 8, 8)" in capsys.readouterr().err


def test_same_short_name_of_two_datasets_is_told(capsys, tmp_path):
    images, labels = np.zeros((40, 6, 6), np.uint8), np.tile([0, 1], 20)
    specs = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "x.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
        specs.append(f"npz:{tmp_path}/{folder}/x.npz")
    assert grid(["--datasets", *specs]) == 2
    assert "shares its short name" in capsys.readouterr().err


def test_folders_that_are_files_are_told(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert grid(["--results-dir", str(tmp_path / "file")]) == 2
    assert "results_dir" in capsys.readouterr().err


@pytest.mark.parametrize("command", [analyze, export])
def test_unknown_sweeps_are_told_with_those_there_are(command, capsys, tmp_path):
    (tmp_path / "known").mkdir()
    (tmp_path / "known" / "sweep.json").write_text("{}")
    assert command(["knwn", "--results-dir", str(tmp_path)]) == 2
    assert "did you mean 'known'" in capsys.readouterr().err
    assert command(["known", "--results-dir", str(tmp_path)]) == 2
    assert "holds neither" in capsys.readouterr().err


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(config.FIELDS)),
    value=st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=20),
        st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=9)), max_size=3),
        st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
    ),
)
def test_any_value_is_taken_or_told(name, value):
    try:
        taken = config.coerce(name, value)
    except UsageError as error:
        assert error.field
    else:
        assert config.coerce(name, taken) == taken
