"""Export of folders that nobody vouches for: nothing is written outside, nothing of others is replaced."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_store import METHODS, record_run

from epochlens.errors import UsageError
from epochlens.record import export, files


def run_of(folder: Path, **more: Any) -> dict[str, Any]:
    """The run as a sweep.json has it."""
    about = {"run_id": folder.name, "dataset": "d", "model": "m", "learning_rate": 0.1, "seed": 0}
    return {**about, "folder": str(folder), **more}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("form", ["pt", "npz"])
@pytest.mark.parametrize("name", ["../../../outside/x", "/proc/outside", "a\0b", "x" * 300, "..", "$\n"])
def test_no_name_in_a_record_leads_out_of_the_folder(tmp_path, form, name):
    folder, target = record_run(tmp_path / "in" / "sweep" / "runs" / "run"), tmp_path / "in" / "a" / "b" / "c"
    before = everything(tmp_path)
    paths = export.export([run_of(folder, run_id=name, dataset=name, model=name)], target, form)
    assert len(paths) == (len(METHODS) if form == "pt" else 1)
    new = {str(path.relative_to(tmp_path)) for path in paths}
    assert everything(tmp_path).keys() - before.keys() == new
    assert all(path.parent == target and not path.name.startswith(".") for path in paths)
    if form == "npz":
        assert paths == [target / "run.npz"]


def test_runs_and_methods_whose_names_come_out_the_same_keep_a_file_each(tmp_path):
    torch = pytest.importorskip("torch")
    names = ["a/b", "a-b", "a:b"]
    runs = [run_of(record_run(tmp_path / "r" / str(i)), dataset=name) for i, name in enumerate(names)]
    paths = export.export([*runs, runs[0]], tmp_path / "out", "pt")
    assert len(set(paths)) == 4 * len(METHODS)
    told = [torch.load(path, weights_only=True)["dataset"] for path in paths[:: len(METHODS)]]
    assert told == [*names, names[0]]


@pytest.mark.parametrize("form", ["pt", "npz"])
def test_files_of_others_are_kept_and_the_same_export_may_be_repeated(tmp_path, form):
    run = run_of(record_run(tmp_path / "sweep" / "runs" / "run"))
    target = tmp_path / "mine"
    paths = export.export([run], target, form)
    before = everything(target)
    assert export.export([run], target, form) == paths and everything(target) == before
    paths[0].write_bytes(b"a thesis")
    with pytest.raises(UsageError, match="choose another") as caught:
        export.export([run], target, form)
    assert str(paths[0]) in str(caught.value) and paths[0].read_bytes() == b"a thesis"
    own = tmp_path / "sweep" / f"export-{form}"
    [first, *_] = export.export([run], own, form)
    first.write_bytes(b"an earlier export")
    export.export([run], own, form)
    assert first.read_bytes() == before[first.name]


def test_links_are_never_written_through(tmp_path):
    run, thesis = run_of(record_run(tmp_path / "sweep" / "runs" / "run")), tmp_path / "thesis"
    thesis.write_bytes(b"a thesis")
    for name in ("mine", "export-npz"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.npz").symlink_to(thesis)
    with pytest.raises(UsageError, match="choose another"):
        export.export([run], tmp_path / "mine", "npz")
    [path] = export.export([run], tmp_path / "export-npz", "npz")
    assert thesis.read_bytes() == b"a thesis" and not path.is_symlink()
    (tmp_path / "home").mkdir()
    (tmp_path / "sweep" / "export-pt").symlink_to(tmp_path / "home")
    with pytest.raises(UsageError, match="is a link"):
        export.export([run], tmp_path / "sweep" / "export-pt", "pt")
    assert not list((tmp_path / "home").iterdir())


def test_a_run_that_holds_something_else_is_named(tmp_path):
    folder = record_run(tmp_path / "run")
    record = files.read_json(folder / "run.json") or {}
    buffer = io.BytesIO()
    np.savez(buffer, nothing=np.zeros(1))
    record["files"]["attributions.parquet"] = files.write_whole(
        folder / "attributions.parquet", buffer.getvalue()
    )
    files.write_json(folder / "run.json", record)
    with pytest.raises(UsageError, match="is no file of maps") as caught:
        export.export([run_of(folder)], tmp_path / "out", "npz")
    assert str(folder) in str(caught.value)
