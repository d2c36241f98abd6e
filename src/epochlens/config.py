"""Sweep and Run: what is to be done, from defaults, a TOML file and the command line, checked before work."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from epochlens.attribute.methods import all_methods, method_label, parse_method
from epochlens.attribute.quality import all_metrics, metric_label, value_names
from epochlens.errors import LARGEST, UsageError, check_folder, check_printable, unknown
from epochlens.learn.data import Facts, describe
from epochlens.learn.models import MODELS, check_model, model_factory

NUMERICS = 2
"""raised by hand whenever the code changes the numbers of a run, so that old and new results never mix"""
DEVICES = ("auto", "cpu", "cuda", "mps")
OPTIMIZERS = ("adam", "sgd")
PRECISIONS = ("fp32", "bf16")
TARGETS = ("label", "predicted")
KEEP_WEIGHTS = ("last", "all", "none")
ALL = "all"
"""in place of a list of methods or quality metrics: every one that there is, and that the model can have"""


def _setting(default: Any, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True)
class Sweep:
    """A grid of runs and how to run them. Every field is a command-line option and a key of a TOML file."""

    name: str = _setting("digits", "name of the sweep, and of its folders under results and plots")
    datasets: tuple[str, ...] = _setting(
        ("digits",), "digits mnist fashion_mnist cifar10 npz:PATH folder:PATH module:function"
    )
    models: tuple[str, ...] = _setting(
        ("small", "deep"), "small deep lenet gapnet dropnet torchvision:NAME module:factory"
    )
    lrs: tuple[float, ...] = _setting((0.001, 0.01), "learning rates", above=0)
    seeds: tuple[int, ...] = _setting(tuple(range(10)), "one run per seed")
    methods: tuple[str, ...] = _setting(
        ("saliency", "integrated_gradients"),
        "attribution methods, as name or name:option=value,..., captum:NAME, FILE.py:FUNCTION, or all",
    )
    quality: tuple[str, ...] = _setting(
        (), "quality metrics of the maps, measured in the trial: names, name:option=value,..., or all"
    )
    quality_every: int = _setting(1, "epochs from one measurement of quality to the next", least=1)
    epochs: int = _setting(50, "passes over the training split", least=1)
    batch_size: int = _setting(128, "images per training step", least=1)
    classes: tuple[int, ...] | str = _setting("default", "labels to keep, or all, or default (the dataset's)")
    probe_samples: int = _setting(32, "test images whose maps are recorded after every epoch", least=1)
    probe_seed: int | str = _setting(0, "seed that draws the probe images, or run for each run's own seed")
    target: str = _setting("label", "class that maps explain", choices=TARGETS)
    optimizer: str = _setting("adam", "optimizer", choices=OPTIMIZERS)
    momentum: float = _setting(0.0, "momentum of sgd", least=0)
    weight_decay: float = _setting(0.0, "weight decay", least=0)
    precision: str = _setting("fp32", "precision of training; weights stay fp32", choices=PRECISIONS)
    data_dir: str = _setting("data", "folder of datasets that are files; absent ones are downloaded there")
    results_dir: str = _setting("results", "folder of results, or a URI on object storage: s3://BUCKET/PATH")
    plots_dir: str = _setting("plots", "folder of figures and report")
    device: str = _setting("auto", "where trials train", choices=DEVICES)
    cpus_per_trial: float = _setting(1.0, "CPUs per trial, fractions allowed", above=0)
    gpus_per_trial: float | None = _setting(None, "GPUs per trial, fractions allowed", least=0)
    replicas: int | str = _setting(
        "auto", "runs of a dataset and model that a trial trains together, or auto: 1, a few on CUDA", least=1
    )
    stall_timeout: float = _setting(600.0, "seconds without a report before a trial is restarted", above=0)
    max_failures: int = _setting(3, "times a trial whose worker died is started again", least=0)
    address: str | None = _setting(None, "address of a Ray cluster; without it one is started here")
    dashboard: bool = _setting(True, "serve the Ray dashboard while the sweep runs")
    keep_weights: str = _setting("last", "weights kept of each run", choices=KEEP_WEIGHTS)
    npz: bool = _setting(False, "also write attributions.npz of each run")


@dataclass(frozen=True)
class Run:
    """One training trajectory: everything that changes its numbers, and nothing else."""

    dataset: str
    data: str
    """fingerprint of the dataset's contents"""
    classes: tuple[int, ...]
    model: str
    model_code: str
    """hash of the source file of an imported model"""
    learning_rate: float
    seed: int
    epochs: int
    batch_size: int
    optimizer: str
    momentum: float
    weight_decay: float
    precision: str
    methods: tuple[str, ...]
    method_code: tuple[str, ...]
    """hashes of the source files of users' methods, and versions of libraries' ones"""
    quality: tuple[str, ...]
    quality_every: int
    probe_samples: int
    probe_seed: int
    target: str

    @property
    def run_id(self) -> str:
        """A readable slug and a short hash of all fields."""
        text = json.dumps([NUMERICS, dataclasses.asdict(self)], sort_keys=True)
        slug = f"{self.dataset}-{self.model}-lr{self.learning_rate:g}-seed{self.seed}"
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", slug).strip("-.")[:80]
        return f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


FIELDS = {f.name: f for f in dataclasses.fields(Sweep)}
WORDS = {"probe_seed": "run", "replicas": "auto"}
"""what may stand in place of a whole number"""
LISTS = ("datasets", "models", "lrs", "seeds", "methods", "quality", "classes")


def coerce(name: str, value: Any) -> Any:
    """The value of a Sweep field from a TOML value or command-line words. Raises UsageError."""
    if name not in FIELDS:
        raise unknown("setting", name, FIELDS)
    if name in LISTS:
        return _coerce_list(name, value)
    default, metadata = FIELDS[name].default, FIELDS[name].metadata
    if name == "gpus_per_trial":
        default = 0.0
    if name in WORDS and value == WORDS[name]:
        return value
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise UsageError(name, value, "is neither true nor false")
        return value
    if name not in WORDS and (default is None or isinstance(default, str)):
        if not isinstance(value, str):
            raise UsageError(name, value, "is not a text")
        if value not in metadata.get("choices", (value,)):
            raise unknown(name, value, metadata["choices"])
        return plain_path(name, value) if name.endswith("_dir") else value
    return _number(name, value, int if name in WORDS else type(default))


def _coerce_list(name: str, value: Any) -> Any:
    items = list(value) if isinstance(value, list | tuple) else [value]
    if not items and name != "quality":
        raise UsageError(name, items, "is empty: name at least one")
    if name == "classes" and items in (["all"], ["default"]):
        return items[0]
    if name == "methods":
        converted = items if items == [ALL] else [method_label(_entry(name, item)) for item in items]
    elif name == "quality":
        converted = all_metrics() if items == [ALL] else [metric_label(_entry(name, item)) for item in items]
        value_names(converted)
    elif name in ("seeds", "classes"):
        converted = [_number(name, item, int) for item in items]
    elif name == "lrs":
        converted = [_number(name, item, float) for item in items]
    else:
        converted = [coerce_text(name, item) for item in items]
    twice = [item for item in converted if converted.count(item) > 1]
    if twice:
        raise UsageError(name, twice[0], "is named twice")
    return tuple(converted)


def _entry(name: str, item: Any) -> str | Mapping[str, Any]:
    if not isinstance(item, str | Mapping):
        raise UsageError(name, item, "is neither a name nor a table")
    if isinstance(item, Mapping) and not isinstance(item.get("name"), str):
        raise UsageError(name, item, "has no text as its name")
    for text in [item] if isinstance(item, str) else item.values():
        if isinstance(text, str):
            check_printable(name, text)
    return item


def coerce_text(name: str, item: Any) -> str:
    """The item if it is a non-empty text that can be printed. Raises UsageError."""
    if not isinstance(item, str) or not item:
        raise UsageError(name, item, "is not a name")
    return check_printable(name, item)


def _number(name: str, value: Any, kind: type) -> Any:
    try:
        if isinstance(value, bool):
            raise ValueError
        number = kind(value)
        if kind is int and float(value) != number:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        word = "a whole number" if kind is int else "a number"
        other = "all" if name == "classes" else WORDS.get(name)
        also = f", nor {other}" if other else ""
        raise UsageError(name, value, f"is not {word}{also}") from None
    metadata = FIELDS[name].metadata
    if not math.isfinite(number):
        raise UsageError(name, value, "is not finite")
    if number <= metadata.get("above", -math.inf):
        raise UsageError(name, value, "must be greater than 0")
    if "least" in metadata and number < metadata["least"]:
        raise UsageError(name, value, f"must be at least {metadata['least']}")
    if name in ("seeds", "probe_seed") and not 0 <= number < 2**32:
        raise UsageError(name, value, "must lie in 0 .. 4294967295, the range of NumPy's seeds")
    if kind is int and name not in ("seeds", "probe_seed", "classes") and number > LARGEST:
        raise UsageError(name, value, f"must be at most {LARGEST}")
    return number


def preset_folder() -> Path:
    """Where presets live: the checkout's sweeps folder, or the installed package's copy of it."""
    checkout = Path(__file__).parents[2] / "sweeps"
    return checkout if checkout.is_dir() else Path(__file__).parent / "presets"


def read_settings(preset: str | None) -> dict[str, Any]:
    """Fields set by a preset or a TOML file, whose own name is the sweep's unless the file says one."""
    presets = {path.stem: path for path in sorted(preset_folder().glob("*.toml"))}
    preset = check_printable("preset", preset or "digits")
    path = presets.get(preset) or Path(preset)
    if preset not in presets and path.suffix != ".toml":
        raise unknown("preset", preset, presets, ", or a file that ends in .toml")
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)  # opening a pipe would wait for what never comes
        table = tomllib.loads(path.read_text(encoding="utf-8")) if is_file else {}
    except OSError as error:
        raise UsageError("preset", preset, f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also of numbers and nesting that Python cannot take
        raise UsageError("preset", preset, f"is not valid TOML: {error}") from None
    if not is_file:
        raise UsageError("preset", preset, "is not a file that can be read: name a TOML file")
    settings = {key.replace("-", "_"): value for key, value in table.items()}
    return {"name": path.stem} | {key: coerce(key, value) for key, value in settings.items()}


def resolve(preset: str | None, overrides: Mapping[str, Any]) -> Sweep:
    """The sweep of a preset or TOML file with the command line's words over it. Raises UsageError."""
    settings = read_settings(preset)
    settings |= {key: coerce(key, value) for key, value in overrides.items()}
    return Sweep(**settings)


def check(sweep: Sweep) -> dict[str, Facts]:
    """Raises UsageError for whatever would fail later; returns what is known of each dataset, by its spec."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", sweep.name):
        problem = "must be 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit"
        raise UsageError("name", sweep.name, problem)
    classes = None if sweep.classes == "default" else sweep.classes
    facts = {spec: describe(spec, classes) for spec in sweep.datasets}
    labels = [fact.label for fact in facts.values()]
    for spec, fact in facts.items():
        if labels.count(fact.label) > 1:
            raise UsageError(
                "datasets", spec, f"shares its short name {fact.label!r} with another: rename one"
            )
        if len(fact.classes) < 2:
            raise UsageError("classes", list(fact.classes), f"of {spec}: at least two are needed")
        if sweep.probe_samples > fact.n_test:
            problem = f"is more than the {fact.n_test} test images of {spec} (classes {list(fact.classes)})"
            raise UsageError("probe_samples", sweep.probe_samples, problem)
        for model in sweep.models:
            check_model(model, fact.shape, len(fact.classes))
            methods_for(sweep.methods, model, fact)
    if sweep.optimizer == "adam" and sweep.momentum:
        raise UsageError("momentum", sweep.momentum, "is of sgd; adam has none: add --optimizer sgd")
    if "://" in sweep.plots_dir:
        raise UsageError("plots_dir", sweep.plots_dir, "must be a folder of this computer: figures stay here")
    check_folder("data_dir", sweep.data_dir)
    for name in ("results_dir", "plots_dir"):
        if "://" not in getattr(sweep, name):
            check_writable(name, Path(getattr(sweep, name)) / sweep.name)
    return facts


def plain_path(name: str, text: str) -> str:
    """The path that a file:// URI names; any other text as it is.

    Raises UsageError for another host's, and for what is no URI though it looks like one.
    """
    if "://" not in text:
        return text
    from urllib.parse import unquote, urlsplit

    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise UsageError(name, text, f"is not a URI: {error}") from None
    if not text.startswith("file://"):
        return text
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise UsageError(name, text, "is not file:///PATH")
    return unquote(parts.path)


def methods_for(methods: Sequence[str], model: str, facts: Facts) -> tuple[str, ...]:
    """The methods that are recorded of a model: as named, or for `all` every one that it can have.

    Class activation maps (cam) need global average pooling and one linear layer. Raises UsageError when cam
    is named for a model without them.
    """
    wanted = tuple(all_methods()) if ALL in methods else tuple(methods)
    names = [parse_method(method)[0] for method in wanted]
    if "cam" not in names or is_pooled(model, facts):
        return wanted
    if ALL not in methods:
        problem = f"needs global average pooling and one linear layer, which model {model} has not"
        raise UsageError("methods", "cam", problem)
    return tuple(method for method, name in zip(wanted, names, strict=True) if name != "cam")


def is_pooled(model: str, facts: Facts) -> bool:
    """Whether the model ends in global average pooling and one linear layer; imported ones are run to see."""
    if model in MODELS:
        return MODELS[model].pooled
    from epochlens.attribute.cams import supports_cam

    return supports_cam(model_factory(model)(facts.shape[0], len(facts.classes)).eval(), facts.shape)


def check_writable(name: str, folder: Path) -> None:
    """Raises UsageError unless a file can be made in the folder, or in the nearest one above that exists."""
    import tempfile

    existing = check_folder(name, folder)
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UsageError(name, str(folder), f"cannot be written: {existing}: {error.strerror}") from None
