"""Recorded maps in other formats, for scripts that read torch or NumPy files."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epochlens.errors import UsageError
from epochlens.lazy import LazyModule
from epochlens.record import files, retrieval, tables

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

SHORT = {"saliency": "vanilla", "integrated_gradients": "integrated"}
LONGEST = 180
"""bytes of a file's name before its suffix; file systems take 255, and a name beside it is longer"""


def export(grid: Sequence[Mapping[str, Any]], target: Path, form: str) -> list[Path]:
    """Writes a file per finished run and method ("pt") or per run ("npz") into `target`; returns their paths.

    A pt file holds a dict: dataset, model, learning_rate, seed, explain_method, epochs (trained ones), and
    lists over them: accuracy, and explanations of shape [N,C,H,W]. Files of earlier exports are replaced in a
    folder that is called `export-FORM`, in any other one they must be the same. Raises UsageError when they
    are not, and for a run that holds anything else than maps.
    """
    own = target.name == f"export-{form}"
    if own and target.is_symlink():
        raise UsageError("output", str(target), "is a link: name a folder with --output")
    target.mkdir(parents=True, exist_ok=True)
    done = [run for run in grid if retrieval.run_status(Path(run["folder"]))[0] == "done"]
    contents = run_archive if form == "npz" else method_documents
    paths: list[Path] = []
    for run in done:
        try:
            for stem, content in contents(run):
                name = unused(stem, Path(run["folder"]).name, [path.stem for path in paths])
                paths.append(target / f"{name}.{form}")
                place(paths[-1], content, own)
        except (retrieval.StoreError, tables.TableError) as error:
            raise UsageError("sweep", run["folder"], f"cannot be exported: {error}") from error
    return paths


def place(path: Path, content: bytes, own: bool) -> None:
    """Writes the file, never through a link. Raises UsageError for another one there that is not `own`."""
    if not own and (path.exists() or path.is_symlink()):
        if path.is_file() and not path.is_symlink() and files.file_checksum(path) == files.checksum(content):
            return
        raise UsageError("output", str(path), "is there already and is another: choose another --output")
    files.write_whole(path, content)


def unused(stem: str, run: str, taken: Collection[str]) -> str:
    """A name for a file that none has yet: its stem, else with the run's name, else numbered too."""
    stem = file_stem(stem)
    names = [stem, file_stem(f"{stem[: LONGEST // 2]}_{run}")]
    numbered = (f"{names[-1]}-{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain(names, numbered) if name not in taken)


def file_stem(text: str) -> str:
    """The text as the name of a file: one that stays in its folder, is not hidden and not too long."""
    return files.slug(text, LONGEST).strip("-.") or "run"


def run_archive(run: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """All maps of a run as one npz, under the field names of Maps, called as its folder."""
    yield Path(run["folder"]).name, tables.npz_bytes(**retrieval.load(run["folder"])._asdict())


def method_documents(run: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """One torch file per method, called {dataset}_{model}_lr{lr}_seed{seed}_{method}."""
    maps = retrieval.load(run["folder"])
    accuracy = accuracies(Path(run["folder"]))
    trained = np.flatnonzero(maps.epochs >= 1)
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
            "accuracy": [accuracy.get(int(maps.epochs[t]), math.nan) for t in trained],
            "explanations": [torch.from_numpy(maps.attributions[t, m].copy()) for t in trained],
        }
        buffer = io.BytesIO()
        torch.save(document, buffer)
        stem = f"{run['dataset']}_{run['model']}_lr{run['learning_rate']:g}_seed{run['seed']}_{short}"
        yield stem, buffer.getvalue()


def accuracies(folder: Path) -> dict[int, float]:
    """The test accuracy of a run by epoch. Raises TableError where its metrics hold none."""
    metrics = retrieval.read_epochs(folder)
    try:
        return dict(zip(metrics["epoch"].astype(int), metrics["accuracy"].astype(float), strict=True))
    except (KeyError, TypeError, ValueError) as error:
        problem = f"{folder} has metrics without an accuracy of every epoch: {error}"
        raise tables.TableError(problem) from error
