"""Results below a URI: what is pushed counts whole or not at all, whatever fails, and comes back exactly."""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs
from test_store import assert_same, make_maps, record_run

from epochlens import config
from epochlens.commands import analyze, grid
from epochlens.errors import UsageError
from epochlens.record import files, lease, ledger, objects, remote, retrieval, store
from epochlens.record.objects import Place, RemoteError
from epochlens.sweep import trial

SLEEP = time.sleep
ABOUT = {"run_id": "run", "dataset": "d", "model": "m", "learning_rate": 0.1, "seed": 0}


class Stopped(BaseException):
    """The process ends here."""


class Failing:
    """A local file system of which some calls fail: those for which `fails` returns an error."""

    CALLS = ("open_input_stream", "open_output_stream", "delete_file", "get_file_info", "copy_file")

    def __init__(self, fails: Callable[[str, Any], BaseException | None]) -> None:
        self.system, self.fails = fs.LocalFileSystem(), fails

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.system, name)

        def checked(target: Any, *arguments: Any, **options: Any) -> Any:
            error = self.fails(name, target) if name in self.CALLS else None
            if error is not None:
                raise error
            return call(target, *arguments, **options)

        return checked


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    """No waiting between tries; what one test finds damaged is not another's."""
    monkeypatch.setattr(objects.time, "sleep", lambda seconds: None)
    remote.damaged.clear()


@pytest.fixture
def break_calls(monkeypatch) -> Callable[..., None]:
    """Makes calls fail from now on."""

    def with_failures(root: Path, fails: Callable[[str, Any], BaseException | None]) -> None:
        system = Failing(fails)
        monkeypatch.setattr(objects, "connect", lambda uri: (system, str(root / "bucket")))

    return with_failures


def place(root: Path, copy: str = "copy") -> Place:
    """A run below a URI of a local file system, and one of its local copies."""
    return Place(f"file://{root}/bucket", "s/runs/run", root / copy / "run")


def begin(root: Path, epochs: int, copy: str = "copy") -> Place:
    """An unfinished run in a local copy, claimed by an attempt."""
    at = place(root, copy)
    record_run(at.folder, epochs, finish=False)
    store.claim(at.folder, {"pid": 1})
    return at


def commit(at: Place, epoch: int) -> None:
    """One more epoch, in the local copy."""
    state = f"state after {epoch}".encode()
    store.commit_epoch(at.folder, epoch, make_maps(epoch), {"accuracy": epoch / 10}, state)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by name."""
    return {name: (folder / name).read_bytes() for name in remote.local_files(folder)}


def object_files(root: Path) -> dict[str, bytes]:
    """Every object of the run by its key."""
    base = root / "bucket" / "s" / "runs" / "run"
    return {p.relative_to(base).as_posix(): p.read_bytes() for p in base.rglob("*") if p.is_file()}


def pulled(root: Path, copy: str) -> Place:
    """Another computer's local copy, made current."""
    at = place(root, copy)
    remote.pull(at)
    return at


@pytest.mark.parametrize("finish", [True, False])
def test_a_run_is_read_back_exactly_on_another_computer(tmp_path, finish):
    at = place(tmp_path)
    record_run(at.folder, finish=finish)
    assert remote.push(at)
    there = pulled(tmp_path, "other")
    assert contents(there.folder) == contents(at.folder)
    assert_same(retrieval.load(there.folder), 4)
    assert retrieval.run_status(there.folder) == retrieval.run_status(at.folder)


def test_an_epoch_uploads_what_it_changed_and_nothing_else(tmp_path):
    at = begin(tmp_path, 3)
    remote.push(at)
    before = object_files(tmp_path)
    commit(at, 3)
    remote.push(at)
    after = object_files(tmp_path)
    assert all(after[key] == before[key] for key in {*before} & {*after} - {remote.MARKER})
    new = sorted(key.split("-", 1)[1] for key in {*after} - {*before})
    assert new == [
        "epoch-0003.parquet",
        "ledger.jsonl",
        "state.pt",
    ]  # the old state has only changed its name
    named = {kept.key for kept in remote.Marker(*marker_of(at)).files.values()}
    assert named == {*after} - {remote.MARKER}  # what is not needed any more has gone
    remote.push(at)
    assert object_files(tmp_path) == after


def marker_of(at: Place) -> remote.Marker:
    """The marker that is there."""
    found = remote.read_marker(at)
    assert found is not None
    return found


@given(stop=st.integers(0, 40), finish=st.booleans(), orderly=st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_push_that_is_cut_off_anywhere_counts_whole_or_not_at_all(tmp_path_factory, stop, finish, orderly):
    root = tmp_path_factory.mktemp("cut")
    at = begin(root, 2)
    remote.push(at)
    before = contents(at.folder)
    commit(at, 2)
    if finish:
        store.finish_run(at.folder, ABOUT)
    calls = iter(range(1000))

    def fails(name: str, target: Any) -> BaseException | None:
        if next(calls) < stop:
            return None
        return OSError("gone") if orderly else Stopped()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects.time, "sleep", lambda seconds: None)
        patch.setattr(objects, "connect", lambda uri: (Failing(fails), str(root / "bucket")))
        with contextlib.suppress(RemoteError, Stopped):
            remote.push(at)
    found = contents(pulled(root, "other").folder)
    assert found in (before, contents(at.folder))
    assert remote.push(at)  # and the next push mends it
    assert contents(pulled(root, "third").folder) == contents(at.folder)


@pytest.mark.parametrize("times", [1, len(objects.DELAYS)])
def test_errors_that_pass_are_not_noticed(tmp_path, break_calls, times):
    failed: dict[tuple[str, str], int] = {}

    def fails(name: str, target: Any) -> BaseException | None:
        count = failed[name, str(target)] = failed.get((name, str(target)), 0) + 1
        return OSError("AWS Error UNKNOWN (HTTP status 500)") if count <= times else None

    at = begin(tmp_path, 3)
    break_calls(tmp_path, fails)
    remote.push(at)
    failed.clear()
    assert contents(pulled(tmp_path, "other").folder) == contents(at.folder)
    assert failed


def test_errors_that_stay_are_told_in_one_line_and_lose_nothing(tmp_path, break_calls):
    at = begin(tmp_path, 3)
    remote.push(at)
    commit(at, 3)
    before = contents(at.folder)
    break_calls(tmp_path, lambda name, target: OSError("AWS Error NETWORK_CONNECTION\nmore (Request ID: 1)"))
    with pytest.raises(RemoteError) as told:
        remote.push(at)
    assert "NETWORK_CONNECTION. What is finished is safe in " in str(told.value)
    assert "\n" not in str(told.value)
    assert contents(at.folder) == before


@pytest.mark.parametrize("word", ["NO_SUCH_BUCKET", "ACCESS_DENIED"])
def test_errors_that_will_not_pass_are_told_at_once(tmp_path, break_calls, word):
    calls = []

    def fails(name: str, target: Any) -> BaseException:
        calls.append(name)
        return OSError(f"AWS Error {word}")

    break_calls(tmp_path, fails)
    with pytest.raises(UsageError, match="results_dir"):
        remote.check(place(tmp_path))
    assert len(calls) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
@pytest.mark.parametrize("name", ["attributions/epoch-0001.parquet", "ledger.jsonl", "state.pt", "run.json"])
def test_a_damaged_object_counts_as_not_there_and_is_replaced(tmp_path, name, damage):
    at = begin(tmp_path, 4)
    remote.push(at)
    hurt(tmp_path, marker_of(at).files[name].key, damage)
    there = pulled(tmp_path, "other")
    expected = contents(at.folder)
    assert contents(there.folder) == {key: value for key, value in expected.items() if key != name}
    (there.folder / name).write_bytes(expected[name])  # the same bits, computed again
    assert remote.push(there)
    assert contents(pulled(tmp_path, "third").folder) == expected


def hurt(root: Path, key: str, damage: str) -> None:
    """Damages an object."""
    path = root / "bucket" / "s" / "runs" / "run" / key
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        half = len(content) // 2
        path.write_bytes(
            content[:half] + (bytes([content[half] ^ 4]) + content[half + 1 :]) * (damage == "flip")
        )


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_without_a_whole_marker_there_is_no_run(tmp_path, damage):
    at = begin(tmp_path, 3)
    remote.push(at)
    hurt(tmp_path, remote.MARKER, damage)
    assert remote.read_marker(at) is None
    assert contents(pulled(tmp_path, "other").folder) == {}
    assert remote.push(at)
    assert contents(pulled(tmp_path, "third").folder) == contents(at.folder)


@given(
    content=st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(
        lambda value: json.dumps(
            {"files": value, "progress": value, "attempts": value, "checksum": value}
        ).encode()
    )
)
@settings(max_examples=100, deadline=None)
def test_any_marker_is_taken_or_left(tmp_path_factory, content):
    root = tmp_path_factory.mktemp("marker")
    at = place(root)
    objects.write(at, remote.MARKER, content)
    assert remote.read_marker(at) is None
    remote.pull(at)


def test_the_copy_that_holds_more_stays(tmp_path):
    at = begin(tmp_path, 4)
    remote.push(at)
    behind = begin(tmp_path, 2, "behind")
    assert remote.pull(behind) is False
    assert contents(behind.folder) == contents(at.folder)
    commit(at, 4)
    before = contents(at.folder)
    assert remote.pull(at) is True
    assert contents(at.folder) == before
    store.finish_run(at.folder, ABOUT)
    remote.push(at)
    remote.pull(behind)
    assert retrieval.run_status(behind.folder)[0] == "done"
    assert not (behind.folder / "ledger.jsonl").exists()


def test_a_lost_attempt_on_another_node_marks_nothing_and_stops(tmp_path):
    lost = begin(tmp_path, 3)
    token = files.read_json(lost.folder / "attempt.json")
    assert token and remote.push(lost)
    later = pulled(tmp_path, "later")
    store.claim(later.folder, {"pid": 2})
    assert remote.push(later)
    commit(lost, 3)
    marker = marker_of(later)
    assert not remote.push(lost)
    assert marker_of(later) == marker
    assert not store.is_claimed(lost.folder, token["token"])
    for epoch in (3, 4):
        commit(later, epoch)
        assert remote.push(later)
    assert contents(pulled(tmp_path, "other").folder) == contents(later.folder)


def test_a_lost_attempt_that_wakes_after_the_run_was_finished_marks_nothing(tmp_path):
    lost = begin(tmp_path, 2)
    remote.push(lost)
    later = pulled(tmp_path, "later")
    store.claim(later.folder, {"pid": 2})
    store.finish_run(later.folder, ABOUT)
    remote.push(later)
    assert not remote.push(lost)
    assert contents(pulled(tmp_path, "other").folder) == contents(later.folder)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=8, deadline=None)
def test_two_attempts_in_any_order_leave_a_whole_run(tmp_path_factory, seed):
    root, draw = tmp_path_factory.mktemp("two"), random.Random(seed)
    both = [begin(root, 0, name) for name in ("one", "two")]
    epochs = [0, 0]
    while min(epochs) < 4:
        n = draw.randrange(2)
        if epochs[n] < 4:
            commit(both[n], epochs[n])
            epochs[n] += 1
        remote.push(both[n])
        found = pulled(root, "reader").folder
        assert list(retrieval.committed(found)) == list(range(len(ledger.read_ledger(found))))
    for at in both:
        store.finish_run(at.folder, ABOUT)
        remote.push(at)
    there = pulled(root, "last").folder
    assert retrieval.run_status(there)[0] == "done"
    assert_same(retrieval.load(there), 4)


def test_an_attempt_of_another_kind_keeps_what_was_there_aside(tmp_path):
    at = begin(tmp_path, 4)
    remote.push(at)
    other = begin(tmp_path, 1, "other")  # it began anew: trial.set_foreign_work_aside
    remote.push(other)
    assert contents(pulled(tmp_path, "third").folder) == contents(other.folder)
    kept = at._replace(path="s/runs/run.old-1", folder=tmp_path / "kept")
    remote.pull(kept)
    assert contents(kept.folder) == contents(at.folder)


def test_setting_aside_moves_everything_but_what_is_spared(tmp_path):
    at = begin(tmp_path, 2)
    remote.push(at)
    sweep = Place(at.root, "s", tmp_path / "sweep")
    objects.write(sweep, lease.LOCK, b"mine")
    for number in (1, 2):
        target = objects.set_aside(sweep, spare=lease.LOCK)
        assert target is not None and target.path == f"s.old-{number}"
        kept = target.below("runs/run")._replace(folder=tmp_path / f"kept-{number}")
        remote.pull(kept)
        assert contents(kept.folder) == contents(at.folder)
        assert remote.read_marker(at) is None
        remote.push(at)
    assert objects.read(sweep, lease.LOCK) == b"mine"


def test_a_sweep_is_held_by_one_process(tmp_path, monkeypatch):
    sweep = Place(f"file://{tmp_path}/bucket", "s", tmp_path / "copy")
    with lease.only_process(sweep):
        with (
            pytest.raises(UsageError, match=r"worked on by process \d+ on .* since 20"),
            lease.only_process(sweep),
        ):
            pass
        assert objects.read(sweep, lease.LOCK) is not None
        monkeypatch.setattr(lease, "silence", lambda place: lease.STALE + 1)
        with lease.only_process(sweep):  # no sign of life for long: taken over
            pass
    assert objects.read(sweep, lease.LOCK) is None
    monkeypatch.undo()
    here = {"host": os.uname().nodename, "space": lease.pid_space()}
    gone = {"process": 2**22 + 1, **here, "since": "then"}
    objects.write(sweep, lease.LOCK, json.dumps(gone).encode())
    with lease.only_process(sweep):  # a process of this computer that is no more
        pass
    alive = [{**gone, "host": "elsewhere"}, {**gone, "space": "pid:[1]"}, {**gone, "process": os.getpid()}]
    for holder in alive:
        objects.write(sweep, lease.LOCK, json.dumps(holder).encode())
        with pytest.raises(UsageError, match="since then, alive 0 s ago"), lease.only_process(sweep):
            pass


def test_a_holder_hears_that_another_one_has_taken_over(tmp_path, monkeypatch):
    sweep = Place(f"file://{tmp_path}/bucket", "s", tmp_path / "copy")
    monkeypatch.setattr(lease, "RENEWED", 0.05)
    heard = threading.Event()
    with lease.only_process(sweep, heard.set):
        objects.remove(sweep, [lease.LOCK])  # lost: written anew
        deadline = time.monotonic() + 20
        while objects.read(sweep, lease.LOCK) is None:
            assert time.monotonic() < deadline
        assert not heard.is_set()
        while not heard.wait(0.2):  # a renewal under way may be the later of two writes
            assert time.monotonic() < deadline
            objects.write(sweep, lease.LOCK, b"another one's")
    assert objects.read(sweep, lease.LOCK) == b"another one's"


def test_of_two_that_come_at_once_on_a_slow_line_one_is_refused(tmp_path, monkeypatch):
    sweep = Place(f"file://{tmp_path}/bucket", "s", tmp_path / "copy")
    write = objects.write
    monkeypatch.setattr(time, "sleep", SLEEP)
    monkeypatch.setattr(objects, "write", lambda *a: (SLEEP(0.3), write(*a))[1])

    def hold(after: float) -> bool:
        SLEEP(after)
        try:
            with lease.only_process(sweep):
                SLEEP(2)
        except UsageError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(hold, [0.0, 0.25])) == 1


@pytest.mark.parametrize("name", ["../../outside", "/outside", "a/../../outside", "", "a\0b"])
@pytest.mark.parametrize("of", ["file", "object"])
def test_a_marker_that_leads_outside_is_none(tmp_path, name, of):
    at = begin(tmp_path, 2)
    remote.push(at)
    marker = remote.read_marker(at)
    assert marker is not None
    kept = marker.files["run.json"]
    spoilt = {name: kept} if of == "file" else {"run.json": kept._replace(key=name)}
    remote.write_marker(at, marker._replace(files={**marker.files, **spoilt}))
    assert remote.read_marker(at) is None


def test_readers_leave_a_copy_alone_that_a_process_works_on(tmp_path, monkeypatch):
    at = begin(tmp_path, 3, "results/s/runs")
    sweep = Place(at.root, "s", at.folder.parents[1])
    (sweep.folder / "sweep.json").write_text("{}")
    remote.push(sweep)
    remote.push(at)
    monkeypatch.setattr(objects, "local_copy", lambda root: sweep.folder.parent)
    beginning = ledger.epoch_file(at.folder, 3)
    beginning.write_bytes(b"the epoch that a worker commits now")
    with files.only_process(sweep.folder):
        assert remote.pull_sweep(at.root, "s") == sweep.folder
        assert beginning.exists()
    remote.pull_sweep(at.root, "s")
    assert not beginning.exists()


def test_a_marker_written_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    at = begin(tmp_path, 2)
    remote.push(at)
    later = pulled(tmp_path, "later")
    store.claim(later.folder, {})
    (at.folder / "note").write_text("more")
    keep, raced = remote.keep, []

    def keep_slowly(place, name, known):
        if not raced:
            raced.append(name)
            remote.push(later)
        return keep(place, name, known)

    monkeypatch.setattr(remote, "keep", keep_slowly)
    assert not remote.push(at)
    marker, attempt = remote.read_marker(at), files.read_json(later.folder / "attempt.json")
    assert marker is not None and attempt is not None
    assert marker.attempts[-1] == attempt["token"]
    assert "note" not in marker.files


def test_a_trial_whose_results_cannot_be_uploaded_says_so_and_keeps_them(tmp_path, break_calls):
    at = place(tmp_path)
    shared = trial.Shared(
        tmp_path / "copy", {}, {}, "cpu", 1, "last", False, place=Place(at.root, "s", tmp_path)
    )
    run: Any = types.SimpleNamespace(run_id="run")

    def reports() -> Iterator[dict[str, Any]]:
        record_run(tmp_path / "runs" / "run", 1, finish=False)
        yield {"epoch": 0}

    break_calls(tmp_path, lambda name, target: OSError("down") if name == "open_output_stream" else None)
    with pytest.raises(RemoteError, match="down"):
        list(trial.mirrored(reports(), shared, run))
    assert list(retrieval.committed(tmp_path / "runs" / "run")) == [0]


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("foo://bucket/path", "Unrecognized filesystem type"),
        ("s3://", "names no bucket"),
        ("s3://key:secret@bucket/path", "credentials"),
        ("s3://bucket/path?secret_key=hush", "credentials"),
        ("s3://no bucket", "cannot be used"),
        ("file://elsewhere/path", "file:///PATH"),
    ],
)
@pytest.mark.parametrize(
    "command", [lambda uri: grid(["--results-dir", uri]), lambda uri: analyze(["s", "--results-dir", uri])]
)
def test_bad_uris_are_told_before_any_work(uri, said, command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert command(uri) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: results_dir: ") and said in told and "hush" not in told
    assert len(told.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_uri_is_a_plain_path(tmp_path):
    assert config.coerce("results_dir", f"file://{tmp_path}/a%20b") == f"{tmp_path}/a b"
    assert config.coerce("results_dir", "results") == "results"


def test_local_copies_of_different_places_are_different_folders(monkeypatch, tmp_path):
    monkeypatch.setenv(objects.CACHE, str(tmp_path))
    uris = [
        "s3://a/b",
        "s3://a-b",
        "gs://a/b",
        "s3://a/b?endpoint_override=x",
        "s3://a/b?endpoint_override=y",
    ]
    copies = {objects.local_copy(uri) for uri in uris}
    assert len(copies) == len(uris)
    assert all(copy.parent == tmp_path for copy in copies)
