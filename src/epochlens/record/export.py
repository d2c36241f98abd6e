"""Recorded maps in other formats, for scripts that read torch or NumPy files."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epochlens.lazy import LazyModule
from epochlens.record import files, retrieval, tables

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

SHORT = {"saliency": "vanilla", "integrated_gradients": "integrated"}


def export(grid: Sequence[Mapping[str, Any]], target: Path, form: str) -> list[Path]:
    """Writes a file per finished run and method ("pt") or per run ("npz") into `target`; returns their paths.

    A pt file holds a dict: dataset, model, learning_rate, seed, explain_method, epochs (trained ones), and
    lists over them: accuracy, and explanations of shape [N,C,H,W].
    """
    target.mkdir(parents=True, exist_ok=True)
    done = [run for run in grid if retrieval.run_status(Path(run["folder"]))[0] == "done"]
    write = write_pt if form == "pt" else write_npz
    paths: list[Path] = []
    for run in done:
        paths += write(run, target, paths)
    return paths


def write_npz(run: Mapping[str, Any], target: Path, taken: Collection[Path]) -> list[Path]:
    """All maps of a run in one npz, under the field names of Maps."""
    path = target / f"{run['run_id']}.npz"
    files.write_whole(path, tables.npz_bytes(**retrieval.load(run["folder"])._asdict()))
    return [path]


def write_pt(run: Mapping[str, Any], target: Path, taken: Collection[Path]) -> list[Path]:
    """One torch file per method, named {dataset}_{model}_lr{lr}_seed{seed}_{method}.pt.

    Where that name is `taken`, the run_id is added.
    """
    maps = retrieval.load(run["folder"])
    metrics = retrieval.read_epochs(Path(run["folder"])).to_dict("list")
    accuracy = dict(zip(metrics["epoch"], metrics["accuracy"], strict=True))
    trained = np.flatnonzero(maps.epochs >= 1)
    paths = []
    for m, label in enumerate(maps.methods.tolist()):
        name, _, _ = label.partition(":")
        short = re.sub(r"[:,/\\]+", "-", label.replace(name, SHORT.get(name, name)))
        document = {
            "dataset": run["dataset"],
            "model": run["model"],
            "learning_rate": run["learning_rate"],
            "seed": run["seed"],
            "explain_method": short,
            "epochs": [int(maps.epochs[t]) for t in trained],
            "accuracy": [float(accuracy[maps.epochs[t]]) for t in trained],
            "explanations": [torch.from_numpy(maps.attributions[t, m].copy()) for t in trained],
        }
        buffer = io.BytesIO()
        torch.save(document, buffer)
        model = str(run["model"]).replace(":", "-")
        stem = f"{run['dataset']}_{model}_lr{run['learning_rate']:g}_seed{run['seed']}_{short}"
        path = target / f"{stem}.pt"
        paths.append(target / f"{stem}_{run['run_id']}.pt" if path in taken else path)
        files.write_whole(paths[-1], buffer.getvalue())
    return paths
