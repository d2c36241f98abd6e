"""Arbitrary bytes and words: a clear error or a correct result; never a traceback, a hang, a stray file."""

from __future__ import annotations

import contextlib
import io
import json
import string
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from epochlens import config
from epochlens.commands import analyze, export, grid
from epochlens.errors import UsageError
from epochlens.record import ledger, retrieval, store, tables
from epochlens.sweep import analysis, estimate

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
OPTIONS = st.sampled_from([f"--{name.replace('_', '-')}" for name in config.FIELDS if name != "data_dir"])


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


def files_below(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


@fuzz
@given(options=st.lists(st.tuples(OPTIONS, st.lists(WORDS, max_size=3)), max_size=3))
def test_any_words_on_the_command_line(empty, options):
    words = [word for option, values in options for word in (option, *values)]
    code, said = call(grid, ["--dry-run", *words])
    assert code in (0, 2) and said
    assert not files_below(empty)


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
@given(content=st.lists(TOML, max_size=3).map("\n".join).map(str.encode) | st.binary(max_size=100))
def test_any_settings_file(empty, content):
    file = empty / "settings.toml"
    file.write_bytes(content)
    code, said = call(grid, [str(file), "--dry-run"])
    assert code in (0, 2) and said
    assert files_below(empty) == [file]


@fuzz
@given(data=st.data())
def test_any_bytes_as_a_dataset(empty, data):
    generator = np.random.default_rng(0)
    whole = tables.npz_bytes(
        x_train=generator.random((20, 8, 8)),
        y_train=np.arange(20) % 2,
        x_test=generator.random((10, 8, 8)),
        y_test=np.arange(10) % 2,
    )
    content = data.draw(damaged(whole) | st.binary(max_size=100))
    file = empty / "mine.npz"
    file.write_bytes(content)
    code, said = call(
        grid, ["--dry-run", "--datasets", f"npz:{file}", "--probe-samples", "4", "--seeds", "0"]
    )
    assert code in (0, 2) and said
    assert files_below(empty) == [file]
