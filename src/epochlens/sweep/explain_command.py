"""The explain command: its options, and every check that can be made before any work."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from rich.console import Console

from epochlens import config
from epochlens.attribute.methods import all_methods
from epochlens.attribute.quality import value_names
from epochlens.config import Run, Sweep
from epochlens.errors import UsageError, unknown, whole_number
from epochlens.lazy import LazyModule
from epochlens.learn.data import DATASETS, dataset_label, describe, fingerprint
from epochlens.learn.models import check_model, model_code
from epochlens.learn.permission import check_code
from epochlens.record import files, retrieval
from epochlens.sweep import plan

if TYPE_CHECKING:
    from epochlens.sweep import explanation, findings, progress, tabular
else:
    explanation = LazyModule("epochlens.sweep.explanation")
    findings = LazyModule("epochlens.sweep.findings")
    progress = LazyModule("epochlens.sweep.progress")
    tabular = LazyModule("epochlens.sweep.tabular")

DONE, INTERRUPTED = 0, 130
PLAIN_WIDTH = 160
TRAINING = {
    "dataset": ("datasets", "digits", "dataset, spelled as for a sweep"),
    "model": ("models", "small", "model, spelled as for a sweep"),
    "classes": ("classes", "default", "labels to keep, or all, or default (the dataset's)"),
    "lr": ("lrs", 0.01, "learning rate"),
    "epochs": ("epochs", 10, "passes over the training split"),
    "seed": ("seeds", 0, "seed of the training"),
    "batch_size": ("batch_size", 128, "images per training step"),
}
"""option: the sweep's field of it, the default, and what it is; a finished run has them all already"""
TRAINED = {name: name for name in ("classes", "epochs", "batch_size", "optimizer", "precision", "target")}
TRAINED |= {"momentum": "momentum", "weight_decay": "weight_decay", "learning_rate": "lrs", "seed": "seeds"}
"""field of a run: the sweep's field that says which values it may have"""
WITH_TABLES = ("tabular", "index", "target", "output", "json")
DEFAULTS = {
    "target": "label",
    "methods": ["all"],
    "quality": ["deletion", "insertion", "sparseness"],
    "results_dir": "results",
    "output": "plots/explain",
    "device": "auto",
}


def explain_parser() -> argparse.ArgumentParser:
    """Options of the explain command; values stay words here."""
    parser = argparse.ArgumentParser(
        prog="python -m sweeps.explain",
        description="Train a network, or take a finished run's, and explain one test image by every method.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--index", required=True, metavar="I", help="position in the test split, from 0")
    training = parser.add_argument_group("the network, trained here")
    for name, (_, default, text) in TRAINING.items():
        words = "*" if name == "classes" else None
        option = f"--{name.replace('_', '-')}"
        training.add_argument(option, metavar="X", nargs=words, help=f"{text} (default: {default})")
    finished = parser.add_argument_group("or that of a finished run")
    finished.add_argument("--run", metavar="RUN", help="id of a finished run, or its folder")
    finished.add_argument("--results-dir", metavar="DIR", help="folder of results (default: results)")
    allow = "run a model or dataset that is code (module:NAME), as the run's files name it"
    finished.add_argument("--allow-code", action="store_true", help=allow)
    what = parser.add_argument_group("what is explained, and how")
    what.add_argument("--target", metavar="T", help="label, predicted, or a class (default: label)")
    what.add_argument("--methods", nargs="*", metavar="METHOD", help="methods, or all (default: all)")
    shown = " ".join(DEFAULTS["quality"])
    what.add_argument("--quality", nargs="*", metavar="METRIC", help=f"quality metrics (default: {shown})")
    what.add_argument("--data-dir", metavar="DIR", help="folder of datasets that are files (default: data)")
    what.add_argument("--device", metavar="X", help="auto, cpu, cuda or mps (default: auto)")
    what.add_argument("--output", metavar="DIR", help="folder of what is written (default: plots/explain)")
    what.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    table = parser.add_argument_group("or a row of a table, with forests and networks of its own")
    table.add_argument("--tabular", metavar="TABLE", help="iris or breast_cancer")
    return parser


def explain(arguments: Sequence[str]) -> int:
    """Explains one test image, or one row of a table. Raises UsageError for what cannot work."""
    given = vars(explain_parser().parse_args(arguments))
    as_json = given.pop("json", False)
    try:
        if "tabular" in given:
            document = explain_row(given, as_json)
        else:
            question = ask(given)
            with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
                document = explanation.explain(question, tell=lambda text: print(text, file=sys.stderr))
            if not as_json:
                print_explanation(document)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    if as_json:
        print(json.dumps(document, indent=2, default=str))
    return DONE


def explain_row(given: Mapping[str, Any], as_json: bool) -> dict[str, Any]:
    """Explains a row of a table; options of images are refused."""
    for name, value in given.items():
        if name not in WITH_TABLES:
            raise UsageError(name, value, "is an option of images: leave it out with --tabular")
    index = whole_number("index", given["index"])
    target, output = (given.get(name, DEFAULTS[name]) for name in ("target", "output"))
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        return tabular.explain_tabular(
            given["tabular"], index=index, target=target, output=Path(output), json=as_json
        )


def ask(given: Mapping[str, Any]) -> findings.Question:
    """What the options ask for, with everything checked. Raises UsageError."""
    chosen = {**DEFAULTS, **given}
    methods = config.coerce("methods", chosen["methods"])
    metrics = config.coerce("quality", chosen["quality"])
    value_names(metrics)
    device = config.coerce("device", chosen["device"])
    index = whole_number("index", chosen["index"])
    network = finished_network(chosen) if "run" in given else new_network(given)
    run = network.run
    facts = describe(network.spec, run.classes)
    if index >= facts.n_test:
        problem = f"is not in 0 .. {facts.n_test - 1}: the test split of {network.spec} (classes "
        raise UsageError("index", index, f"{problem}{list(run.classes)}) has {facts.n_test} images")
    fitting = config.methods_for(methods, run.model, facts)
    left_out = [label for label in all_methods() if config.ALL in methods and label not in fitting]
    if left_out:
        print(f"left out, as model {run.model} cannot have it: {', '.join(left_out)}", file=sys.stderr)
    return findings.Question(
        network=network,
        index=index,
        target=choose_target(chosen["target"], run.classes),
        methods=fitting,
        quality=metrics,
        device=device,
        output=choose_output(chosen),
    )


def new_network(given: Mapping[str, Any]) -> findings.Network:
    """The network that is to be trained here. Raises UsageError."""
    for name in ("results_dir", "allow_code"):
        if name in given:
            raise UsageError(name, given[name], "is about finished runs: name one with --run")
    settings: dict[str, Any] = {}
    for name, (field, default, _) in TRAINING.items():
        value = given.get(name, default)
        several = field in config.LISTS and name != "classes"
        settings[field] = config.coerce(field, [value] if several else value)
    if "data_dir" in given:
        settings["data_dir"] = config.coerce("data_dir", given["data_dir"])
    sweep = Sweep(name="explain", **settings)
    (spec,), (model,) = sweep.datasets, sweep.models
    facts = describe(spec, None if sweep.classes == "default" else sweep.classes)
    if len(facts.classes) < 2:
        raise UsageError("classes", list(facts.classes), f"of {spec}: at least two are needed")
    check_model(model, facts.shape, len(facts.classes))
    (run,) = plan.expand(sweep, {spec: facts})
    return findings.Network(run, spec, sweep.data_dir, None)


def finished_network(chosen: Mapping[str, Any]) -> findings.Network:
    """The network of a finished run. Raises UsageError when it, its weights or its data are not there."""
    for name in TRAINING:
        if name in chosen:
            raise UsageError(name, chosen[name], "comes from the run: leave it out with --run")
    name, folder = str(chosen["run"]), find_run(str(chosen["run"]), Path(chosen["results_dir"]))
    record = files.read_json(folder / "run.json") or {}
    run = read_run(name, record)
    if "weights.pt" not in record.get("files", {}):
        raise UsageError("run", name, "kept no weights: run its sweep with --keep-weights last")
    settings = read_settings(folder.parents[1])
    spec = find_spec(name, run, settings["datasets"])
    for field, named in (("model", run.model), ("dataset", spec)):
        check_code(field, named, "allow_code" in chosen)
    data_dir = chosen.get("data_dir", settings["data_dir"])
    describe(spec, run.classes)
    if fingerprint(spec) != run.data:
        raise UsageError("run", name, f"was trained on other contents than {spec} holds now")
    if model_code(run.model) != run.model_code:
        print(f"note: the source of model {run.model} has changed since the run", file=sys.stderr)
    return findings.Network(run, spec, data_dir, folder / "weights.pt")


def find_run(name: str, results: Path) -> Path:
    """The folder of a finished run by its id, in any sweep, or by its path. Raises UsageError."""
    found = [folder for folder in [Path(name), *(s / name for s in results.glob("*/runs"))] if is_run(folder)]
    if not found:
        there = sorted({path.parent.name for path in results.glob("*/runs/*/run.json")})
        near = difflib.get_close_matches(name, there, n=8, cutoff=0)
        raise unknown("run", name, near or [f"none yet in {results}"], ", or the path of a run's folder")
    states = {folder.absolute(): retrieval.run_status(folder)[0] for folder in found}
    done = [folder for folder, state in states.items() if state == "done"]
    if not done:
        problem = "is damaged: its files are not what its run.json says"
        if "corrupt" not in states.values():
            problem = f"is not finished ({', '.join(states.values())})"
        raise UsageError("run", name, f"{problem}. Run its sweep again first")
    return next((folder for folder in done if (folder / "weights.pt").exists()), done[0])


def is_run(folder: Path) -> bool:
    """Whether a run is recorded in the folder."""
    with contextlib.suppress(OSError):  # a name too long for a file
        return (folder / "run.json").is_file()
    return False


def read_run(name: str, record: Mapping[str, Any]) -> Run:
    """The settings of a recorded run. Raises UsageError for one not recorded by a sweep, or not sensible."""
    # Settings of the recording may be missing from older records: they do not change the network.
    recording = {"method_code": (), "quality": (), "quality_every": 1}
    known: dict[str, Any] = {**recording, **record}
    lacking = [f.name for f in dataclasses.fields(Run) if known.get(f.name) is None]
    if lacking:
        problem = f"was not recorded by a sweep: its run.json lacks {', '.join(lacking)}"
        raise UsageError("run", name, problem)
    values = [(f.name, known[f.name]) for f in dataclasses.fields(Run)]
    kinds = get_type_hints(Run)
    for field, value in values:
        try:
            fits = is_of(kinds[field], value)
            if fits and field in TRAINED:
                config.coerce(TRAINED[field], value)
        except UsageError:
            fits = False
        if not fits:
            raise UsageError("run", name, f"has a run.json whose {field} cannot be {str(value)[:60]!r}")
    fields: dict[str, Any] = {field: tuple(v) if isinstance(v, list) else v for field, v in values}
    return Run(**fields)


def is_of(kind: Any, value: Any) -> bool:
    """Whether a value read from JSON is of the type that a field declares."""
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(is_of(get_args(kind)[0], item) for item in value)
    return isinstance(value, int | float if kind is float else kind)


def read_settings(sweep: Path) -> dict[str, Any]:
    """The `datasets` and the `data_dir` of a sweep's folder, as far as its sweep.json tells them."""
    settings = (files.read_json(sweep / "sweep.json") or {}).get("settings")
    known = settings if isinstance(settings, dict) else {}
    listed, data_dir = known.get("datasets"), known.get("data_dir")
    datasets = [spec for spec in listed if isinstance(spec, str)] if isinstance(listed, list) else []
    return {"datasets": datasets, "data_dir": data_dir if isinstance(data_dir, str) else Sweep.data_dir}


def find_spec(name: str, run: Run, named: Sequence[str]) -> str:
    """How the run's dataset is spelled, of those that its sweep names. Raises UsageError."""
    specs = [spec for spec in named if dataset_label(spec) == run.dataset]
    if not specs and run.dataset not in DATASETS:
        problem = f"is of dataset {run.dataset}, and the sweep.json of its sweep does not say where that lies"
        raise UsageError("run", name, problem)
    return specs[0] if specs else run.dataset


def choose_target(word: str, classes: Sequence[int]) -> str | int:
    """label, predicted, or one of the classes. Raises UsageError."""
    by_word = {**{name: name for name in config.TARGETS}, **{str(label): label for label in classes}}
    if word not in by_word:
        raise unknown("target", word, by_word)
    return by_word[word]


def choose_output(given: Mapping[str, Any]) -> Path:
    """The folder of what is written. Raises UsageError when it cannot be written."""
    output = Path(given["output"])
    config.check_writable("output", output)
    return output


def print_explanation(document: Mapping[str, Any]) -> None:
    """The document for people: the prediction, a line per method, and the files."""
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    probability = document["probabilities"][str(document["prediction"])]
    console.print(
        f"test image {document['index']} of {document['dataset']}: label {document['label']}, "
        f"prediction {document['prediction']} ({probability:.3f}); maps explain class {document['target']}",
        markup=False,
    )
    rows = document["methods"]
    names = list(dict.fromkeys(name for numbers in rows.values() for name in numbers))
    lines = [[label, *(rounded(numbers.get(name)) for name in names)] for label, numbers in rows.items()]
    console.print(progress.grid_table(lines, ["method", *names]))
    for path in document["files"]:
        console.print(path, markup=False)
    console.print(f"done in {document['seconds']:.1f} s")


def rounded(value: float | None) -> float:
    """The number to four digits, NaN where it is undefined."""
    return math.nan if value is None else float(f"{value:.4g}")
