"""Arbitrary bytes and words: a clear error or a correct result; never a traceback, a hang, a stray file."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import socket
import string
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from epochlens import config
from epochlens.commands import analyze, cost, explore, export, grid, grid_parser
from epochlens.errors import UsageError
from epochlens.record import export as exporting
from epochlens.record import ledger, retrieval, store, tables
from epochlens.show.explorer import command as explorer
from epochlens.sweep import analysis, cost_command, estimate, grid_run

pytestmark = pytest.mark.faults
SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
fuzz = settings(max_examples=40, deadline=None, suppress_health_check=SLOW)
EPOCHS = 3
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["run_id", "status", "files", "methods", "seed", "dataset", "model", "learning_rate", "x"]
)


def maps_of(epoch: int) -> tables.Maps:
    """Maps that tell epochs apart."""
    values = np.random.default_rng(epoch).standard_normal((1, 1, 2, 1, 3, 3)).astype(np.float32)
    classes = np.array([[0, 1]], np.int32)
    return tables.Maps(
        values,
        np.array([epoch], np.int32),
        np.array(["saliency"]),
        np.arange(2, dtype=np.int32),
        classes,
        classes,
    )


def record(folder: Path, finish: bool) -> Path:
    """A recorded run."""
    about = {"run_id": folder.name, "dataset": "d", "model": "m", "learning_rate": 0.1, "seed": 0}
    about |= {"methods": ["saliency"]}
    store.begin_run(folder, about, np.zeros((2, 1, 3, 3), np.float32), np.arange(2), np.arange(2))
    for epoch in range(EPOCHS):
        store.commit_epoch(folder, epoch, maps_of(epoch), {"accuracy": epoch / 4}, f"state {epoch}".encode())
    if finish:
        store.finish_run(folder, about)
    return folder


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> dict[bool, Path]:
    """A finished run and an unfinished one, not to be changed."""
    return {finish: record(tmp_path_factory.mktemp("recorded") / "run", finish) for finish in (True, False)}


@contextlib.contextmanager
def spoilt(folder: Path, name: str, content: bytes) -> Iterator[Path]:
    """The run with other bytes in one of its files."""
    before = (folder / name).read_bytes()
    (folder / name).write_bytes(content)
    try:
        yield folder
    finally:
        (folder / name).write_bytes(before)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with some of its bytes replaced, removed, repeated or added."""
    for _ in range(draw(st.integers(1, 3))):
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
        middle = draw(st.binary(max_size=20) | st.just(content[start:end] * 2))
        content = content[:start] + middle + content[end:]
    return content


def is_true(found: tables.Maps) -> bool:
    """Whether every map is the one that was recorded at its epoch."""
    return all(
        np.array_equal(found.attributions[t], maps_of(int(epoch)).attributions[0])
        for t, epoch in enumerate(found.epochs)
    )


def believe_or_refuse(folder: Path, wrong: tuple[type[Exception], ...] = (retrieval.StoreError,)) -> None:
    """Everything that reads a run tells the truth or raises a StoreError."""
    status, count = retrieval.run_status(folder)
    assert status in ("missing", "partial", "failed", "done", "corrupt") and count >= 0
    with contextlib.suppress(*wrong):
        found = retrieval.load(folder)
        assert is_true(found)
        assert len(found.epochs) == EPOCHS or status != "done"
    with contextlib.suppress(*wrong):
        epochs = retrieval.read_epochs(folder)
        assert np.array_equal(epochs["accuracy"], epochs["epoch"] / 4)
    state = retrieval.latest_state(folder, retrieval.committed(folder))
    assert state in (None, *(f"state {epoch}".encode() for epoch in range(EPOCHS)))
    with contextlib.suppress(UsageError):
        runs = analysis.find_grid(folder.parent)
        usable = [run for run in runs if analysis.is_usable(run, planned=False)]
        analysis.incomplete_notices(runs, usable)


@pytest.mark.parametrize("name", ["ledger.jsonl", "run.json", "attributions/epoch-0001.parquet", "state.pt"])
@fuzz
@given(data=st.data())
def test_a_spoilt_file_of_an_unfinished_run(recorded, name, data):
    content = data.draw(damaged((recorded[False] / name).read_bytes()) | st.binary(max_size=200))
    with spoilt(recorded[False], name, content) as folder:
        believe_or_refuse(folder)


@pytest.mark.parametrize("name", ["attributions.parquet", "epochs.parquet", "probe.npz", "run.json"])
@fuzz
@given(data=st.data())
def test_a_spoilt_file_of_a_finished_run(recorded, name, data):
    before = (recorded[True] / name).read_bytes()
    content = data.draw(damaged(before) | st.binary(max_size=200))
    with spoilt(recorded[True], name, content) as folder:
        believe_or_refuse(folder)
        if name != "run.json" and content != before:
            assert retrieval.run_status(folder)[0] == "corrupt"


@fuzz
@given(changed=st.dictionaries(KEYS, JSON, max_size=3), finished=st.booleans())
@example(changed={"files": [1]}, finished=True)
@example(changed={"files": {"../../x": None}, "status": "done"}, finished=False)
def test_any_json_as_run_json(recorded, changed, finished):
    document = json.loads((recorded[finished] / "run.json").read_text()) | changed
    with spoilt(recorded[finished], "run.json", json.dumps(document).encode()) as folder:
        believe_or_refuse(folder)


@fuzz
@given(document=JSON, nested=st.integers(0, 100_000))
def test_any_json_object_as_a_line_of_the_ledger(recorded, document, nested):
    before = (recorded[False] / "ledger.jsonl").read_bytes()
    for text in (json.dumps(document).encode(), b"[" * nested):
        line = f"{zlib.crc32(text):08x} ".encode() + text + b"\n"
        with spoilt(recorded[False], "ledger.jsonl", before + line) as folder:
            assert len(ledger.read_ledger(folder)) == EPOCHS
            believe_or_refuse(folder)


WORDS = st.text(max_size=30) | st.sampled_from(
    [
        "../x",
        "/x",
        "a/b",
        "..",
        ".",
        "",
        "-",
        "--",
        "nan",
        "inf",
        "-1",
        "1e400",
        "\0",
        "\x1b[2J",
        "x" * 300,
        "٣",
        "run",
    ]
)
OPTIONS = st.sampled_from([f"--{name.replace('_', '-')}" for name in config.FIELDS])
HOSTILE = (
    "",
    "\0",
    "a\0b.py:f",
    "\x1b[2J",
    "\udcff",
    "x" * 300,
    "x" * 10_000,
    "x" * 300 + ".py:f",
    "missing/" + "x" * 300,
    "a/" * 3000,
    "1" * 5000,
    "0" * 5000 + "1",
    "1e400",
    "-1",
    "nan",
    "٣",
    "..",
    ".x:y",
    "../../x:y",
    "sys:exit",
    "os:getcwd",
    "captum:\0",
    "torchvision:\x1b",
    "npz:" + "x" * 300,
    "npz:\0",
    "npz:pipe.toml",
    "folder:" + "x" * 300,
    "folder:\0",
    "file://[",
    "file:///a%00b",
    "http://[x",
    "pipe.toml",
    "syntax_error:f",
    "syntax_error.py:f",
    "name_error:f",
    "of_mine:raises",
    "of_mine:none",
    "of_mine:three",
)
"""words that once ended in a traceback or a hang, and some like them"""
MODULES = {
    "syntax_error": "def f(:",
    "name_error": "f = nothing",
    "of_mine": "def raises(*a): raise LookupError\ndef none(*a): pass\ndef three(*a): return 1, 2, 3",
}


def call(command, arguments: Sequence[str]) -> tuple[int, str]:
    """The command in this process: its exit code and what it said; argparse's refusals count as such."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = command(list(arguments))
        except SystemExit as stop:
            code = stop.code
    assert isinstance(code, int)
    return code, said.getvalue()


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    """An empty working folder, deep enough that a way out of it would be seen."""
    monkeypatch.setattr(estimate, "tell", lambda *arguments: {})  # it trains to see how long that takes
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    return tmp_path


@pytest.fixture
def hostile(empty, monkeypatch) -> Path:
    """A working folder with a pipe and modules that do not work, where no command does what it is for."""
    os.mkfifo("pipe.toml")
    (empty / "modules").mkdir()
    for name, code in MODULES.items():
        (empty / "modules" / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(empty / "modules")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def begin(*arguments, **options):
        raise KeyboardInterrupt

    for module, name in (
        (grid_run, "analyze_only"),
        (exporting, "export"),
        (cost_command, "count"),
        (explorer, "make_server"),
    ):
        monkeypatch.setattr(module, name, begin)
    monkeypatch.setattr(explorer.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *a, **k: begin(host.encode("idna")))
    return empty


def check_refused_or_begun(command, arguments: Sequence[str], begun: int) -> None:
    """A command is refused in one line that a terminal can show, or all was fine and work would begin."""
    code, said = call(command, arguments)
    assert code in (begun, 2), (arguments, said)
    if code == 2 and "usage: " not in said:  # what argparse refuses, it tells in its own way
        *left_out, line = said.splitlines()
        assert line.startswith("error: ") and line.isprintable() and len(line) < 5000, (arguments, said)
        assert not left_out or command is cost


def files_below(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


@fuzz
@given(options=st.lists(st.tuples(OPTIONS, st.lists(WORDS, max_size=3)), max_size=3))
def test_any_words_on_the_command_line(empty, options):
    words = [word for option, values in options for word in (option, *values)]
    code, said = call(grid, ["--dry-run", *words])
    assert code in (0, 2) and said
    assert not files_below(empty)


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    """The options that take a word."""
    actions = [action for action in parser._actions if action.option_strings and action.nargs != 0]
    return [action.option_strings[-1] for action in actions]


@pytest.mark.parametrize("option", ["", *options_of(grid_parser())])
def test_hostile_words_to_every_option_of_a_sweep(hostile, option):
    before = files_below(hostile)
    for word in HOSTILE:
        arguments = ["--dry-run", f"{option}={word}"] if option else ["--dry-run", "--", word]
        check_refused_or_begun(grid, arguments, begun=0)
    assert files_below(hostile) == before


def test_hostile_words_to_every_other_command(hostile, recorded):
    before = files_below(hostile)
    run = str(recorded[True].parent)
    for word in HOSTILE:
        for option in ("--results-dir", "--plots-dir", "--tau", "--patience"):
            check_refused_or_begun(analyze, [run, f"{option}={word}"], begun=130)
        for option in ("--results-dir", "--output"):
            check_refused_or_begun(export, [run, f"{option}={word}"], begun=130)
        for option in options_of(explorer.explore_parser()):
            check_refused_or_begun(explore, [run, f"{option}={word}"], begun=130)
        for option in options_of(cost_command.cost_parser()):
            check_refused_or_begun(cost, ["--methods=edge", f"{option}={word}"], begun=130)
        for command in (analyze, export, explore):
            check_refused_or_begun(command, ["--", word], begun=130)
            check_refused_or_begun(command, ["nothing", f"--results-dir={word}"], begun=130)
    assert call(explore, [run, f"--data-dir={'x' * 300}"])[0] == 2
    assert call(explore, ["--", run])[0] == 130
    assert files_below(hostile) == before


@fuzz
@given(name=WORDS)
def test_a_name_cannot_lead_out_of_the_results(empty, name):
    code, said = call(grid, ["--dry-run", f"--name={name}"])
    valid = (
        0 < len(name) <= 64
        and name[0].isalnum()
        and set(name) <= {*string.ascii_letters, *string.digits, *"._-"}
    )
    assert code == (0 if valid else 2) and said
    for command in (analyze, export):
        code, said = call(command, [f"--results-dir={empty}", "--", name])
        assert code == 2 and "\x1b" not in said
    assert not files_below(empty)


TOML = st.sampled_from(
    [
        f"{key} = {value}"
        for key in (*config.FIELDS, "x", "a.b")
        for value in ("1", "[]", "'a'", "{}", "true", "[[1]]")
    ]
    + [
        "epochs = 9223372036854775808",
        "lrs = [nan]",
        "seeds = [1.0, 1]",
        "methods = [{name = 'lime', x = 1}]",
    ]
)


@fuzz
@example(content=b"epochs = " + b"1" * 5000)
@example(content=b"epochs = 0x" + b"f" * 5000)
@example(content=b"epochs = " + b"[" * 20_000)
@example(content=b'data_dir = "a\\u0000"')
@example(content=b'results_dir = "a\\u0000"')
@example(content=b'methods = ["a\\u0000b.py:f"]')
@given(content=st.lists(TOML, max_size=3).map("\n".join).map(str.encode) | st.binary(max_size=100))
def test_any_settings_file(empty, content):
    file = empty / "settings.toml"
    file.write_bytes(content)
    code, said = call(grid, [str(file), "--dry-run"])
    assert code in (0, 2) and said
    assert files_below(empty) == [file]


def good_npz() -> bytes:
    """An archive that is a dataset."""
    generator, labels = np.random.default_rng(0), np.arange(20) % 2
    train, test = generator.random((20, 8, 8)), generator.random((10, 8, 8))
    content = io.BytesIO()
    np.savez_compressed(content, x_train=train, y_train=labels, x_test=test, y_test=labels[:10])
    return content.getvalue()


NPZ = good_npz()


def flagged(place: int, value: int) -> bytes:
    """The archive with another byte in the entry of its first member in the list at its end."""
    entry = NPZ.index(b"PK\1\2") + place
    return NPZ[:entry] + bytes([value]) + NPZ[entry + 1 :]


@fuzz
@example(content=flagged(8, 1))  # encrypted
@example(content=flagged(10, 99))  # no method of compression
@example(content=NPZ.replace(b"(20, 8, 8)", b"(20, 8, 8("))
@given(content=damaged(NPZ) | st.binary(max_size=100))
def test_any_bytes_as_a_dataset(empty, content):
    file = empty / "mine.npz"
    file.write_bytes(content)
    code, said = call(
        grid, ["--dry-run", "--datasets", f"npz:{file}", "--probe-samples", "4", "--seeds", "0"]
    )
    assert code in (0, 2) and said
    assert files_below(empty) == [file]


def good_png() -> bytes:
    """A picture."""
    content = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(content, "png")
    return content.getvalue()


PNG = good_png()


@fuzz
@example(content=PNG)
@example(content=PNG[:36] + b"\5" + PNG[37:])  # a SyntaxError of Pillow's
@given(content=damaged(PNG) | st.binary(max_size=100))
def test_any_bytes_as_a_picture(empty, content):
    for split, name in itertools.product(("train", "test"), "ab"):
        (empty / split / name).mkdir(parents=True, exist_ok=True)
        (empty / split / name / "0.png").write_bytes(PNG)
    (empty / "test" / "b" / "0.png").write_bytes(content)
    code, said = call(grid, ["--dry-run", "--datasets", f"folder:{empty}", "--probe-samples=1", "--seeds=0"])
    assert code == (0 if content == PNG else code) and code in (0, 2) and said
