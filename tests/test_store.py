"""The store: what is committed is read back exactly; what is torn, short or flipped is never believed."""

from __future__ import annotations

import json
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epochlens.errors import UsageError
from epochlens.record import export, files, ledger, retrieval, store, tables

METHODS = ["saliency", "smoothgrad:base=integrated_gradients"]


def make_maps(epoch: int, n: int = 3, shape=(2, 4, 5), seed: int = 0) -> tables.Maps:
    generator = np.random.default_rng([seed, epoch])
    return tables.Maps(
        generator.standard_normal((1, len(METHODS), n, *shape)).astype(np.float32),
        np.array([epoch], np.int32),
        np.array(METHODS),
        np.arange(n, dtype=np.int32) + 7,
        generator.integers(0, 3, (1, n)).astype(np.int32),
        generator.integers(0, 3, (1, n)).astype(np.int32),
    )


def record_run(folder, epochs: int = 4, finish: bool = True, states: bool = True):
    about = {"run_id": folder.name, "dataset": "d", "model": "m", "learning_rate": 0.1, "seed": 0}
    store.begin_run(folder, about, np.zeros((3, 2, 4, 5), np.float32), np.arange(3), np.arange(3) + 7)
    for epoch in range(epochs):
        state = f"state after {epoch}".encode() if states else None
        store.commit_epoch(folder, epoch, make_maps(epoch), {"accuracy": epoch / 10}, state)
    if finish:
        store.finish_run(folder, about)
    return folder


def assert_same(found: tables.Maps, epochs: int) -> None:
    expected = tables.join_epochs([make_maps(e) for e in range(epochs)])
    for name, a, b in zip(tables.Maps._fields, found, expected, strict=True):
        assert np.array_equal(a, b), name


@pytest.mark.parametrize("finish", [True, False])
def test_maps_come_back_exactly(tmp_path, finish):
    folder = record_run(tmp_path / "run", finish=finish)
    assert_same(retrieval.load(folder), 4)
    one = retrieval.load(folder, METHODS[1:])
    assert np.array_equal(one.attributions[:, 0], retrieval.load(folder).attributions[:, 1])
    assert retrieval.read_epochs(folder)["accuracy"].tolist() == [0.0, 0.1, 0.2, 0.3]
    assert retrieval.run_status(folder)[0] == ("done" if finish else "partial")


def test_finished_file_has_the_documented_schema(tmp_path):
    folder = record_run(tmp_path / "run")
    file = pq.ParquetFile(folder / "attributions.parquet")
    names = ["epoch", "method", "sample", "target", "prediction", "attribution"]
    assert file.schema_arrow.names == names
    assert str(file.schema_arrow.field("attribution").type).startswith("extension<arrow.fixed_shape_tensor")
    assert str(file.schema_arrow.field("method").type).startswith("dictionary")
    assert file.num_row_groups == 4 * len(METHODS)
    assert sorted(p.name for p in folder.iterdir()) == [
        "attributions.parquet",
        "epochs.parquet",
        "probe.npz",
        "run.json",
    ]


def test_the_same_epochs_give_the_same_bytes(tmp_path):
    one, two = record_run(tmp_path / "one"), record_run(tmp_path / "two", finish=False)
    store.commit_epoch(two, 2, make_maps(2), {"accuracy": 0.2}, b"state after 2")  # a second attempt
    store.finish_run(two, {"run_id": "two"})
    for name in ("attributions.parquet", "epochs.parquet", "probe.npz"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
@pytest.mark.parametrize("name", ["attributions.parquet", "epochs.parquet", "probe.npz"])
def test_a_damaged_finished_run_is_not_believed(tmp_path, damage, name):
    folder = record_run(tmp_path / "run")
    hurt(folder / name, damage)
    assert retrieval.run_status(folder)[0] == "corrupt"


def hurt(path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"flip": content, "cut": content[:middle], "empty": b""}[damage])


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_epoch_is_not_committed(tmp_path, damage):
    folder = record_run(tmp_path / "run", finish=False)
    hurt(ledger.epoch_file(folder, 2), damage)
    entries = retrieval.committed(folder)
    assert list(entries) == [0, 1, 3]
    assert retrieval.latest_state(folder, entries) is None  # epoch 3's checkpoint would skip epoch 2
    with pytest.raises(retrieval.StoreError):
        store.finish_run(folder, {})
    store.commit_epoch(folder, 2, make_maps(2), {"accuracy": 0.2}, None)
    assert_same(retrieval.load(folder), 4)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    folder = record_run(tmp_path / "run", finish=False)
    assert retrieval.latest_state(folder, retrieval.committed(folder)) == b"state after 3"
    hurt(folder / "state.pt", damage)
    assert retrieval.latest_state(folder, retrieval.committed(folder)) == b"state after 2"
    hurt(folder / "state-previous.pt", damage)
    assert retrieval.latest_state(folder, retrieval.committed(folder)) is None


@pytest.mark.parametrize("step", ["maps", "ledger", "state"])
def test_a_crash_at_any_step_of_a_commit_loses_that_epoch_at_most(tmp_path, monkeypatch, step):
    folder = record_run(tmp_path / "run", epochs=3, finish=False)
    target = {"maps": "write_whole", "ledger": "append_entry", "state": "write_state"}[step]

    def crash(*arguments):
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(store, target, crash)
        with pytest.raises(SystemExit):
            store.commit_epoch(folder, 3, make_maps(3), {"accuracy": 0.3}, b"state after 3")
    entries = retrieval.committed(folder)
    assert list(entries)[:3] == [0, 1, 2]
    assert retrieval.latest_state(folder, entries) == b"state after 2"
    store.commit_epoch(folder, 3, make_maps(3), {"accuracy": 0.3}, b"state after 3")
    assert_same(retrieval.load(folder), 4)
    assert retrieval.latest_state(folder, retrieval.committed(folder)) == b"state after 3"


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 10_000), junk=st.binary(max_size=40))
def test_a_torn_ledger_never_yields_a_wrong_entry(tmp_path_factory, cut, junk):
    folder = tmp_path_factory.mktemp("ledger")
    entries = [ledger.Entry(e, 3, f"{e:064x}", "", {"accuracy": e / 7}) for e in range(4)]
    for entry in entries:
        ledger.append_entry(folder, entry)
    path = folder / "ledger.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[: cut % (len(content) + 1)] + junk)
    found = ledger.read_ledger(folder)
    assert all(found[e] == entries[e] for e in found)
    again = ledger.Entry(9, 3, "f" * 64, "", {})
    ledger.append_entry(folder, again)
    assert ledger.read_ledger(folder) == {**found, 9: again}


def test_files_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_whole(path, b"old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_failed_runs_keep_their_epochs_and_their_log(tmp_path):
    folder = record_run(tmp_path / "run", finish=False)
    log = store.fail_run(folder, {"run_id": "run"}, "ValueError: planted", "Traceback ...")
    assert log.read_text() == "Traceback ..."
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["error"]) == ("failed", "ValueError: planted")
    assert retrieval.run_status(folder) == ("failed", 4)
    assert list(retrieval.committed(folder)) == [0, 1, 2, 3]


def test_setting_aside_never_overwrites(tmp_path):
    for content in ("one", "two"):
        (tmp_path / "sweep").mkdir()
        (tmp_path / "sweep" / "file").write_text(content)
        files.set_aside(tmp_path / "sweep")
    kept = sorted(p.read_text() for p in tmp_path.glob("*/file"))
    assert kept == ["one", "two"]


def test_load_says_when_there_is_nothing(tmp_path):
    with pytest.raises(retrieval.StoreError, match="no recorded maps"):
        retrieval.load(tmp_path)
    with pytest.raises(KeyError):
        retrieval.load(record_run(tmp_path / "run"), ["lime"])


def test_export_to_torch_and_numpy(tmp_path):
    torch = pytest.importorskip("torch")
    folder = record_run(tmp_path / "run")
    run = {
        "run_id": "run",
        "dataset": "d",
        "model": "m",
        "learning_rate": 0.1,
        "seed": 0,
        "folder": str(folder),
    }
    maps = retrieval.load(folder)
    paths = export.export([run], tmp_path / "out", "pt")
    assert [p.name for p in paths] == [
        "d_m_lr0.1_seed0_vanilla.pt",
        "d_m_lr0.1_seed0_smoothgrad-base=integrated_gradients.pt",
    ]
    document = torch.load(paths[0], weights_only=True)
    assert document["epochs"] == [1, 2, 3]
    assert document["accuracy"] == [0.1, 0.2, 0.3]
    assert np.array_equal(np.stack(document["explanations"]), maps.attributions[1:, 0])
    with np.load(export.export([run], tmp_path / "out", "npz")[0]) as archive:
        assert np.array_equal(archive["attributions"], maps.attributions)


@pytest.mark.parametrize("damage", ["flip", "gone"])
def test_a_run_whose_probe_images_have_changed_is_not_finished(tmp_path, damage):
    folder = record_run(tmp_path / "run", finish=False)
    hurt(folder / "probe.npz", damage)
    with pytest.raises(retrieval.StoreError, match=r"probe.npz has changed"):
        store.finish_run(folder, {})
    assert_same(retrieval.load(folder), 4)


def test_the_newest_checkpoint_counts_under_whichever_name(tmp_path):
    folder = record_run(tmp_path / "run", finish=False)
    latest, before = folder / "state.pt", folder / "state-previous.pt"
    contents = latest.read_bytes(), before.read_bytes()
    latest.write_bytes(contents[1])
    before.write_bytes(contents[0])
    assert retrieval.latest_state(folder, retrieval.committed(folder)) == b"state after 3"


def test_a_checkpoint_beyond_a_damaged_epoch_is_known_but_not_to_go_on_from(tmp_path):
    folder = record_run(tmp_path / "run", finish=False)
    hurt(ledger.epoch_file(folder, 1), "flip")
    entries = retrieval.committed(folder)
    assert list(entries) == [0, 2, 3]
    assert retrieval.latest_state(folder, entries) is None
    assert retrieval.newest_state(folder, entries) == b"state after 3"


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 10**30},
        {"epoch": True},
        {"epoch": -1},
        {"rows": 1.5},
        {"metrics": {"accuracy": "x"}},
        {"metrics": [1]},
        {"maps": 3},
        {"file": "../../outside"},
    ],
)
def test_a_line_with_values_of_other_kinds_is_not_believed(tmp_path, change):
    folder = record_run(tmp_path / "run", 2, finish=False)
    line = (folder / "ledger.jsonl").read_bytes().splitlines()[1]
    document = json.loads(line.partition(b" ")[2]) | change
    text = json.dumps(document, sort_keys=True)
    with (folder / "ledger.jsonl").open("ab") as file:
        file.write(f"{zlib.crc32(text.encode()):08x} {text}\n".encode())
    assert len(ledger.read_lines(folder)) == 3
    assert [entry.epoch for entry in ledger.read_entries(folder)] == [0, 1]


@pytest.mark.parametrize("name", [".lock", "ledger.jsonl"])
def test_nothing_is_written_through_a_link(tmp_path, name):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    folder = record_run(tmp_path / "run", 2, finish=False)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    with pytest.raises((UsageError, OSError)):
        if name == ".lock":
            with files.only_process(folder):
                pass
        else:
            store.commit_epoch(folder, 2, make_maps(2), {}, None)
    assert outside.read_text() == "mine"


def test_a_folder_is_held_by_one_process_and_others_wait_or_leave_it(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    waited = []
    with files.unheld(tmp_path / "nowhere") as free:
        assert free and not (tmp_path / "nowhere").exists()
    with ThreadPoolExecutor(1) as pool:
        with files.only_process(tmp_path):
            with pytest.raises(UsageError, match="worked on by process"), files.only_process(tmp_path):
                pass
            with files.unheld(tmp_path) as free:
                assert not free
            waiting = pool.submit(hold, tmp_path, waited.append)
            while not waited:
                assert not waiting.done()
        assert waiting.result(20)
    with files.unheld(tmp_path) as free:
        assert free
        with pytest.raises(UsageError), files.only_process(tmp_path):
            pass


def hold(folder, waiting) -> bool:
    with files.only_process(folder, waiting):
        return True
