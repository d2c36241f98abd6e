"""What the explorer reads: the runs below a folder, their maps and metrics, and the tables, all cached."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from epochlens.lazy import LazyModule
from epochlens.measure import stability
from epochlens.record import files, ledger, retrieval, tables
from epochlens.record.tables import Maps

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = LazyModule("pandas")

LIMIT = 512 * 2**20
"""bytes of maps kept in memory"""
UNREADABLE = (OSError, LookupError, ValueError, retrieval.StoreError, tables.TableError)
"""what reading a run can raise while it is being written, or when its files are damaged"""


KINDS: dict[str, Any] = {
    **dict.fromkeys(("dataset", "model", "started", "status"), str),
    **dict.fromkeys(("learning_rate", "seed", "final_accuracy", "seconds"), int | float),
    "epochs": int,
}
"""what a run's record holds, where it holds it"""
LISTS: dict[str, Any] = {"methods": str, "classes": int | str}
LARGEST = 2**63
MOST_BYTES_OF_NAME = 255


class Run(NamedTuple):
    """A run as the store has it now."""

    name: str
    folder: Path
    record: dict[str, Any]
    status: str
    """waiting (nothing recorded yet), running (or interrupted), failed, or done"""
    epochs: int
    """recorded so far, the untrained network included"""
    revision: str
    """differs whenever something was added"""

    @property
    def title(self) -> str:
        """Dataset, model, learning rate and seed in one line."""
        rate = float(self.record.get("learning_rate") or 0)
        words = [self.record.get("dataset"), self.record.get("model"), f"lr {rate:g}"]
        return " · ".join([*map(str, words), f"seed {self.record.get('seed', 0)}"])

    @property
    def methods(self) -> list[str]:
        """The recorded methods."""
        return [str(method) for method in self.record.get("methods") or []]


class Cache:
    """Results of slow functions, the ones used last, up to a number of bytes; threads may share it."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.held: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self.size = 0
        self.lock = threading.RLock()
        self.making: dict[Hashable, threading.RLock] = {}

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value of the key, made now unless it is held. The newest value is held whatever its size."""
        with self.lock:
            if key in self.held:
                self.held.move_to_end(key)
                return self.held[key][0]
            making = self.making.setdefault(key, threading.RLock())
        with making:  # who asks for something else meanwhile does not wait
            with self.lock:
                if key in self.held:
                    return self.held[key][0]
            try:
                value = make()
            finally:
                with self.lock:
                    self.making.pop(key, None)
            with self.lock:
                self._hold(key, value)
        return value

    def _hold(self, key: Hashable, value: Any) -> None:
        self.size += bytes_of(value) - self.held.pop(key, (None, 0))[1]
        self.held[key] = value, bytes_of(value)
        while len(self.held) > 1 and self.size > self.limit:
            self.size -= self.held.popitem(last=False)[1][1]


def bytes_of(value: Any) -> int:
    """Bytes of arrays and data frames, those in tuples and mappings among them; 0 for anything else."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(bytes_of, value.values()))
    if isinstance(value, tuple | list):
        return sum(map(bytes_of, value))
    return int(value.memory_usage().sum()) if hasattr(value, "memory_usage") else 0


class Source(NamedTuple):
    """A folder of recorded runs and what has been read of it."""

    folder: Path
    data_dir: Path | None
    """where datasets lie; None: where the sweep had them"""
    cache: Cache
    allow_code: bool = False
    """whether models and datasets that are code may run"""


def find_runs(folder: Path) -> dict[str, Run]:
    """The runs of sweep.json, or else every folder with a run.json, by name; empty when there are none.

    Those whose records make no sense are left out.
    """
    return {name: run for name, run in recorded_runs(folder).items() if run is not None}


def recorded_runs(folder: Path) -> dict[str, Run | None]:
    """As `find_runs`, with None for a run whose record makes no sense."""
    planned = (files.read_json(folder / "sweep.json") or {}).get("runs")
    if isinstance(planned, list) and planned:
        named = [run for run in planned if isinstance(run, dict) and is_name(run.get("run_id"))]
        places = [(folder / "runs" / Path(run["run_id"]).name, run) for run in named]
    else:
        below = [folder, *sorted((folder / "runs").glob("*")), *sorted(folder.glob("*"))]
        places = [(path, {}) for path in dict.fromkeys(below) if (path / "run.json").is_file()]
    return {path.name: read_run(path, plan) for path, plan in places}


def is_name(text: Any) -> bool:
    """Whether a folder can have this name."""
    return isinstance(text, str) and text.isprintable() and 0 < len(text.encode()) <= MOST_BYTES_OF_NAME


def is_run(record: Mapping[str, Any]) -> bool:
    """Whether what a record holds of a run has the types that this program writes, and numbers of a size."""

    def fits(value: Any, kind: Any) -> bool:
        return isinstance(value, kind) and not (isinstance(value, int | float) and abs(value) >= LARGEST)

    held = {name: value for name, value in record.items() if value is not None}
    return all(fits(held[name], kind) for name, kind in KINDS.items() if name in held) and all(
        isinstance(held[name], list) and all(fits(item, kind) for item in held[name])
        for name, kind in LISTS.items()
        if name in held
    )


def read_run(folder: Path, planned: Mapping[str, Any] | None = None) -> Run | None:
    """The run in a folder; what is only planned of it stands in for a missing run.json.

    None when its record makes no sense.
    """
    changed = [modified(folder / name) for name in ("run.json", "ledger.jsonl")]
    record = _record(str(folder), changed[0]) if changed[0] else None
    if not is_run({**(planned or {}), **(record or {})}):
        return None
    if record is None:
        return Run(folder.name, folder, dict(planned or {}), "waiting", 0, "")
    done = record.get("status") == "done"
    epochs = int(record.get("epochs") or 0) + 1 if done else _committed(str(folder), changed[1])
    status = record["status"] if record.get("status") in ("done", "failed") else "running"
    return Run(
        folder.name, folder, {**(planned or {}), **record}, status, epochs, f"{changed[0]}-{changed[1]}"
    )


def modified(path: Path) -> int:
    """When the file was written last, in ns; 0 if it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(4096)
def _record(folder: str, changed: int) -> dict[str, Any] | None:
    return files.read_json(Path(folder) / "run.json")


@lru_cache(4096)
def _committed(folder: str, changed: int) -> int:
    return len(ledger.read_ledger(Path(folder)))


def revision(folder: Path, runs: Mapping[str, Run]) -> str:
    """Changes whenever a run gains an epoch or ends, a run appears, or the tables are written anew."""
    tables = modified(folder / "tables" / "analysis.json")
    return str(hash((tables, *((run.name, run.status, run.revision) for run in runs.values()))))


def maps_of(source: Source, run: Run, method: str) -> Maps:
    """All recorded maps of one method, attributions [T,1,N,C,H,W]. Raises what UNREADABLE names.

    An unfinished run is read at once for all methods, so that all have the same epochs.
    """
    key = ("maps", run.name, run.revision)
    if run.status == "done":
        return source.cache.get((*key, method), lambda: retrieval.load(run.folder, [method]))
    whole: Maps = source.cache.get(key, lambda: retrieval.load(run.folder))
    m = whole.methods.tolist().index(method)
    return whole._replace(attributions=whole.attributions[:, m : m + 1], methods=whole.methods[m : m + 1])


def metrics_of(source: Source, run: Run) -> pd.DataFrame:
    """The metrics of every recorded epoch."""
    key = ("metrics", run.name, run.revision)
    return source.cache.get(key, lambda: retrieval.read_epochs(run.folder))


def probe_of(source: Source, run: Run) -> dict[str, np.ndarray]:
    """The explained images [N,C,H,W], their labels [N] and their indices [N] in the test split."""

    def read() -> dict[str, np.ndarray]:
        path = run.folder / "probe.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                probe = {name: np.asarray(file[name]) for name in ("images", "labels", "indices")}
        except Exception as error:  # a damaged archive can make numpy and zlib raise nearly anything
            raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
        images, *numbers = probe.values()
        whole = all(n.dtype.kind in "iu" and n.shape == images.shape[:1] for n in numbers)
        if images.ndim < 2 or images.dtype.kind not in "iuf" or not whole:
            raise ValueError(f"{path} holds no images with labels and indices")
        return probe

    return source.cache.get(("probe", run.name, run.record.get("started")), read)


def cosines_of(source: Source, run: Run, method: str) -> dict[str, np.ndarray]:
    """Cosine to the `previous` and the `final` epoch of each image's map, [T,N] each, as in the tables.

    NaN where it is undefined, and at epochs without that reference.
    """

    def measure() -> dict[str, np.ndarray]:
        maps = maps_of(source, run, method)
        found = {}
        for block in stability.similarity_blocks(
            maps.attributions[:, 0], maps.epochs, maps.samples, ["cosine"]
        ):
            found[block.reference] = np.full((len(maps.epochs), len(maps.samples)), np.nan)
            found[block.reference][np.searchsorted(maps.epochs, block.epochs)] = block.values
        return found

    return source.cache.get(("cosines", run.name, run.revision, method), measure)


def matrix_of(source: Source, run: Run, method: str, position: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Epochs [T] and the cosine of every pair of them [T,T], of one probe image or averaged over all."""

    def measure() -> tuple[np.ndarray, np.ndarray]:
        maps = maps_of(source, run, method)
        images = slice(None) if position is None else slice(position, position + 1)
        return maps.epochs, stability.epoch_matrix(maps.attributions[:, 0, images])

    return source.cache.get(("matrix", run.name, run.revision, method, position), measure)


def table_of(source: Source, name: str) -> pd.DataFrame | None:
    """A table of the analysis, or None where it has not been written."""
    path = source.folder / "tables" / f"{name}.parquet"
    changed = modified(path)
    if not changed:
        return None
    return source.cache.get(("table", name, changed), lambda: pd.read_parquet(path))


def position_of(
    probe: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], position: int
) -> int | None:
    """Where another run's probe images hold the image at a position of the first's; None if they do not."""
    found = np.flatnonzero(other["indices"] == probe["indices"][position])
    if not len(found) or other["images"].shape[1:] != probe["images"].shape[1:]:
        return None
    same = np.array_equal(other["images"][found[0]], probe["images"][position])
    return int(found[0]) if same else None


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings in sweep.json; empty for runs recorded outside a sweep."""
    settings = (files.read_json(folder / "sweep.json") or {}).get("settings")
    return settings if isinstance(settings, dict) else {}


def weights_of(run: Run) -> dict[str, Path]:
    """The saved weights of a run by what they are called on the page: `last`, or an epoch's number."""
    last = {"last": run.folder / "weights.pt"} if (run.folder / "weights.pt").is_file() else {}
    kept = sorted(run.folder.glob("weights-[0-9]*.pt"))
    numbers = {path: path.stem.removeprefix("weights-") for path in kept}
    return last | {str(int(n)): path for path, n in numbers.items() if n.isdecimal() and len(n) <= 9}
