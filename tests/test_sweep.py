"""Whole sweeps on a real Ray cluster: plan, trials, store, analysis, resume, failures."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics.pairwise import cosine_similarity

from epochlens.attribute.methods import METHODS, attribute
from epochlens.attribute.quality import QUALITY, VALUES
from epochlens.commands import analyze, export, grid
from epochlens.learn import data, models, streams, training
from epochlens.record import files, retrieval

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
SMALL = ["--lrs", "0.01", "--epochs", "3", "--probe-samples", "6"]
SAME_BITS = ("attributions.parquet", "probe.npz", "weights.pt")
COLUMNS = {
    "epochs": "dataset model learning_rate seed epoch train_loss test_loss accuracy",
    "stability": "dataset model learning_rate seed run_id method epoch reference metric sample value",
    "stability_summary": "dataset model learning_rate method epoch reference metric n_seeds n_undefined "
    "mean std ci_low ci_high",
    "variance": "dataset model learning_rate seed method raw normalised",
    "stabilisation": "dataset model learning_rate seed method metric epoch censored accuracy_epoch lag",
}


def sweep(root: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Runs the grid command in this process; returns its exit code and JSON document."""
    import contextlib
    import io

    said = io.StringIO()
    places = ["--results-dir", str(root / "results"), "--plots-dir", str(root / "plots")]
    with contextlib.redirect_stdout(said):
        code = grid([*arguments, *places, "--json"])
    return code, json.loads(said.getvalue())


def bits(results: Path) -> dict[str, bytes]:
    """Every file whose bytes must not depend on how a sweep went, by run and name."""
    paths = [path for name in SAME_BITS for path in results.glob(f"runs/*/{name}")]
    found = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}
    tables = results / "tables"
    if tables.exists():
        found |= {p.name: p.read_bytes() for p in tables.glob("*.parquet") if p.stem != "runs"}
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cluster):
    """A finished sweep of 2 models x 2 seeds with its document."""
    root = tmp_path_factory.mktemp("finished")
    code, document = sweep(root, "--seeds", "0", "1", "--name", "s", *SMALL)
    assert code == 0
    return root, document


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished sweep to do things to."""
    root, _ = finished
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_sweep_leaves_store_tables_figures_and_report(finished):
    root, document = finished
    results, plots = root / "results" / "s", root / "plots" / "s"
    assert (document["runs_total"], document["runs_done"], document["runs_done_before"]) == (4, 4, 0)
    assert all(0 < run["final_accuracy"] <= 1 for run in document["runs"])
    for name, columns in COLUMNS.items():
        found = pq.read_schema(results / "tables" / f"{name}.parquet").names
        assert found[: len(columns.split())] == columns.split()
    for name in ("runs", "comparisons", "stability_summary"):
        assert len(pd.read_csv(results / "tables" / f"{name}.csv"))
    report = (plots / "report.html").read_text()
    assert "INCOMPLETE" not in report
    assert len(list(plots.glob("*.png"))) == len(list(plots.glob("*.pdf"))) >= 12
    assert (plots / "timelapse.gif").read_bytes()[:4] == b"GIF8"
    events = list((results / "tune").rglob("events.out.tfevents*"))
    assert {event.parent.name for event in events} == {run["run_id"] for run in document["runs"]}
    settings = json.loads((results / "sweep.json").read_text())
    assert settings["settings"]["epochs"] == 3
    assert settings["versions"]["torch"] == torch.__version__.split("+")[0]
    assert not list(results.rglob("*.tmp"))


@pytest.mark.parametrize("name", ["small", "deep"])
def test_the_store_holds_what_a_loop_without_ray_computes(finished, name):
    root, _ = finished
    [folder] = (root / "results" / "s" / "runs").glob(f"digits-{name}-*seed1*")
    maps, epochs = retrieval.load(folder), retrieval.read_epochs(folder).to_dict("list")
    torch.set_num_threads(1)
    splits = training.as_tensors(data.load("digits", range(10), "unused"))
    probe = streams.probe_indices(len(splits.x_test), 6, 0)
    run = training.begin(models.MODELS[name].factory, (1, 8, 8), 10, 1, learning_rate=0.01)
    for t, epoch in enumerate(training.train(run, splits, 3, 128)):
        assert epochs["accuracy"][t] == epoch.accuracy
        for m, method in enumerate(maps.methods.tolist()):
            here = attribute(run.model, splits.x_test[probe], splits.y_test[probe], method)
            np.testing.assert_allclose(maps.attributions[t, m], here, rtol=1e-4, atol=1e-6)
    assert maps.samples.tolist() == probe.tolist()
    assert maps.epochs.tolist() == [0, 1, 2, 3]


def test_tables_agree_with_scipy_and_scikit_learn(finished):
    root, document = finished
    results = root / "results" / "s"
    rows = pd.read_parquet(results / "tables" / "stability.parquet")
    run_id = document["runs"][0]["run_id"]
    maps = retrieval.load(results / "runs" / run_id)
    flat = maps.attributions.reshape(4, 2, 6, -1).astype(np.float64)
    rows = rows[(rows["run_id"] == run_id) & (rows["method"] == "integrated_gradients")]
    values = rows.set_index(["reference", "metric", "epoch", "sample"])["value"].to_dict()
    at = {"previous": lambda e: e - 1, "final": lambda e: 3, "initial": lambda e: 0}
    for reference, epochs in (("previous", (2, 3)), ("final", (0, 1, 2, 3)), ("initial", (1, 2, 3))):
        for epoch in epochs:
            for n, sample in enumerate(maps.samples):
                a, b = flat[epoch, 1, n], flat[at[reference](epoch), 1, n]
                peers = {
                    "cosine": cosine_similarity([a], [b])[0, 0],
                    "spearman": spearmanr(a, b)[0],
                    "spearman_abs": spearmanr(abs(a), abs(b))[0],
                }
                for metric, peer in peers.items():
                    found = values[reference, metric, epoch, sample]
                    assert found == pytest.approx(peer, abs=1e-6, nan_ok=True)
    assert set(rows["epoch"][rows["reference"] == "previous"]) == {2, 3}


def test_the_same_command_again_trains_nothing_and_says_so(copy, capsys):
    before = bits(copy / "results" / "s")
    code, document = sweep(copy, "--seeds", "0", "1", "--name", "s", *SMALL)
    assert code == 0
    assert document["runs_done_before"] == 4
    assert bits(copy / "results" / "s") == before
    assert "nothing to train" in capsys.readouterr().err


def test_a_wider_grid_adds_only_its_new_runs(copy):
    runs = copy / "results" / "s" / "runs"
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}
    code, document = sweep(copy, "--seeds", "0", "1", "2", "--name", "s", *SMALL)
    assert code == 0
    assert (document["runs_total"], document["runs_done_before"]) == (6, 4)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    summary = pd.read_csv(copy / "results" / "s" / "tables" / "stability_summary.csv")
    assert max(summary["n_seeds"]) == 3


@pytest.mark.parametrize("name", ["attributions.parquet", "weights.pt"])
def test_a_damaged_run_is_kept_aside_and_done_anew_to_the_same_bits(copy, name):
    results = copy / "results" / "s"
    before = bits(results)
    victim = sorted(results.glob(f"runs/*/{name}"))[0]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 4
    victim.write_bytes(content)
    code, document = sweep(copy, "--seeds", "0", "1", "--name", "s", *SMALL)
    assert code == 0
    assert document["runs_done_before"] == 3
    kept = results / "runs" / f"{victim.parent.name}.old-1"
    assert (kept / name).read_bytes() == content
    shutil.rmtree(kept)
    assert bits(results) == before


def test_fresh_moves_earlier_results_aside(copy):
    before = bits(copy / "results" / "s")
    code, document = sweep(copy, "--seeds", "0", "1", "--name", "s", "--fresh", "--no-analysis", *SMALL)
    assert code == 0
    assert document["runs_done_before"] == 0
    assert bits(copy / "results" / "s.old-1") == before
    anew = bits(copy / "results" / "s")
    assert anew == {name: content for name, content in before.items() if name in anew}
    assert len(anew) == 4 * len(SAME_BITS)


def test_results_do_not_depend_on_order_or_on_how_many_run_at_once(finished, tmp_path):
    root, _ = finished
    code, _ = sweep(
        tmp_path, "--seeds", "1", "0", "--models", "deep", "small", "--name", "s", "--cpus-per-trial", "0.5",
        "--no-analysis", *SMALL,
    )  # fmt: skip
    assert code == 0
    expected = bits(root / "results" / "s")
    found = bits(tmp_path / "results" / "s")
    assert len(found) == 4 * len(SAME_BITS)
    assert all(expected[name] == content for name, content in found.items())


def test_a_dry_run_writes_nothing(tmp_path):
    code, document = sweep(tmp_path, "--seeds", "0", "1", *SMALL, "--dry-run")
    assert code == 0
    assert document["runs_total"] == 4
    assert document["seconds"] > 0
    assert document["megabytes"] > 0
    assert list(tmp_path.iterdir()) == []


def test_failing_runs_fail_alone_and_are_named(tmp_path, capsys):
    code, document = sweep(
        tmp_path, "--models", "planted:linear", "planted:Raising", "planted:Diverging", "--seeds", "0", "1",
        "--name", "f", *SMALL,
    )  # fmt: skip
    assert code == 1
    assert (document["runs_done"], document["runs_failed"]) == (2, 4)
    said = capsys.readouterr().err
    failed = [run for run in document["runs"] if run["status"] == "failed"]
    for run in failed:
        assert run["run_id"] in said
        assert Path(run["log"]).read_text().startswith("Traceback")
    assert {run["error"].split(":")[0] for run in failed} == {"RuntimeError", "TrainingError"}
    assert "INCOMPLETE GRID: 2 of 6 runs" in said
    assert "INCOMPLETE GRID: 2 of 6 runs" in (tmp_path / "plots" / "f" / "report.html").read_text()
    for name in ("stability_summary", "variance", "stabilisation", "comparisons", "epochs", "runs"):
        table = pd.read_csv(tmp_path / "results" / "f" / "tables" / f"{name}.csv")
        assert set(table["grid_runs"]) == {"2/6"}
    statuses = pd.read_csv(tmp_path / "results" / "f" / "tables" / "runs.csv")["status"]
    assert statuses.value_counts().to_dict() == {"failed": 4, "done": 2}


def test_a_run_whose_process_dies_is_named_and_the_others_finish(tmp_path, capsys):
    code, document = sweep(
        tmp_path, "--models", "planted:Dying", "planted:linear", "--seeds", "0", "--name", "d",
        "--max-failures", "1", "--no-analysis", *SMALL,
    )  # fmt: skip
    assert code == 1
    statuses = {run["run_id"].split("-lr")[0]: run for run in document["runs"]}
    assert statuses["digits-planted-linear"]["status"] == "done"
    assert statuses["digits-planted-Dying"]["status"] == "failed"
    assert "process died" in statuses["digits-planted-Dying"]["error"]
    assert "process died" in capsys.readouterr().err


def test_a_second_process_on_the_same_sweep_is_refused(copy, capsys):
    with files.only_process(copy / "results" / "s"):
        places = ["--results-dir", str(copy / "results"), "--plots-dir", str(copy / "plots")]
        holder = subprocess.run(
            [sys.executable, "-m", "sweeps.grid", "--seeds", "0", "1", "--name", "s", *SMALL, *places],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    assert holder.returncode == 2
    assert f"is being worked on by process {os.getpid()}" in holder.stderr


def test_another_grid_under_the_same_name_says_what_its_tables_lack(copy, capsys):
    code, document = sweep(copy, "--seeds", "1", "--name", "s", *SMALL)
    assert code == 0
    assert (document["runs_total"], document["runs_done_before"]) == (2, 2)
    assert "2 runs of other settings stay" in capsys.readouterr().err
    assert len(list((copy / "results" / "s" / "runs").iterdir())) == 4


def test_settings_that_the_cluster_cannot_meet_change_nothing(copy, capsys):
    before = (copy / "results" / "s" / "sweep.json").read_bytes()
    places = ["--results-dir", str(copy / "results"), "--plots-dir", str(copy / "plots")]
    for wish in (["--cpus-per-trial", "99"], ["--device", "cuda"], ["--gpus-per-trial", "1"]):
        assert grid(["--seeds", "0", "7", "--name", "s", *SMALL, *places, *wish]) == 2
        assert "but the Ray cluster has" in capsys.readouterr().err
    assert (copy / "results" / "s" / "sweep.json").read_bytes() == before


def test_a_sweep_without_a_finished_run_says_so(tmp_path, capsys):
    code, document = sweep(tmp_path, "--models", "planted:Raising", "--seeds", "0", "--name", "f", *SMALL)
    assert code == 1
    assert document["summary"] == []
    places = ["--results-dir", str(tmp_path / "results"), "--plots-dir", str(tmp_path / "plots")]
    assert analyze(["f", *places]) == 2
    assert "no finished run" in capsys.readouterr().err


def test_weights_of_every_epoch_and_npz_on_request(tmp_path):
    code, document = sweep(
        tmp_path, "--models", "small", "--seeds", "0", "--name", "w", "--keep-weights", "all", "--npz",
        "--no-analysis", *SMALL,
    )  # fmt: skip
    assert code == 0
    folder = tmp_path / "results" / "w" / "runs" / document["runs"][0]["run_id"]
    files = json.loads((folder / "run.json").read_text())["files"]
    assert {"weights.pt", *(f"weights-{e:04d}.pt" for e in range(4)), "attributions.npz"} <= set(files)
    model = models.MODELS["small"].factory(1, 10)
    model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    with np.load(folder / "probe.npz") as probe, np.load(folder / "attributions.npz") as archive:
        images, labels = torch.from_numpy(probe["images"]), torch.from_numpy(probe["labels"])
        last = attribute(model, images, labels, "saliency")
        np.testing.assert_allclose(archive["attributions"][-1, 0], last, rtol=1e-5, atol=1e-7)


def test_analyze_and_export_work_on_a_finished_sweep(copy, capsys):
    before = bits(copy / "results" / "s")
    places = ["--results-dir", str(copy / "results")]
    assert analyze(["s", *places, "--plots-dir", str(copy / "other"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["summary"]) == 4
    assert (copy / "other" / "s" / "report.html").exists()
    assert bits(copy / "results" / "s") == before
    assert export(["s", *places, "--output", str(copy / "pt")]) == 0
    assert len(list((copy / "pt").glob("digits_*_lr0.01_seed?_vanilla.pt"))) == 4


def test_every_method_and_quality_metric_and_the_readme_s_own_method_are_swept(tmp_path, monkeypatch):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    [example] = [b for b in re.findall(r"```python\n(.*?)```", readme, re.S) if "my_file.py" in b]
    (tmp_path / "my_file.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    own = ["my_file.py:my_method", "my_file.py:my_method:power=3"]
    few = ["lime:samples=8,segments=4", "superpixel_delta:segments=4", "smoothgrad:samples=2"]
    others = [m for m in METHODS if m not in ("lime", "superpixel_delta", "smoothgrad")]
    quality = ["relative_input_stability:samples=3", *(m for m in QUALITY if m != "relative_input_stability")]
    arguments = [
        "--models",
        "gapnet",
        "--lrs",
        "0.01",
        "--seeds",
        "0",
        "--epochs",
        "1",
        "--probe-samples",
        "3",
    ]
    arguments += ["--methods", *others, *few, *own, "--quality", *quality, "--name", "every"]
    code, document = sweep(tmp_path, *arguments)
    assert code == 0
    [run] = document["runs"]
    folder = tmp_path / "results" / "every" / "runs" / run["run_id"]
    maps = retrieval.load(folder)
    assert set(maps.methods) == {*others, *few, *own}
    of = {method: maps.attributions[:, m].astype(float) for m, method in enumerate(maps.methods)}
    slope = of["saliency"]
    np.testing.assert_allclose(of[own[0]], np.sign(slope) * slope**2, rtol=1e-4, atol=1e-12)
    np.testing.assert_allclose(of[own[1]], slope**3, rtol=1e-4, atol=1e-12)
    judged = retrieval.read_quality(folder)
    assert judged is not None and set(judged["method"]) == set(maps.methods)
    assert set(judged["metric"]) >= set(VALUES)
    for metric in ("sparseness", "relative_input_stability_valid"):  # of the rest some may be undefined
        assert judged.loc[judged["metric"] == metric, "value"].notna().all()
