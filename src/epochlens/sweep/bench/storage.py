"""Recording maps: the Parquet store against numpy.savez_compressed and torch.save."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from epochlens.record import tables
from epochlens.sweep.bench.timing import Comparison, copy_bandwidth, largest_difference


def comparisons(quick: bool) -> Iterator[Comparison]:
    """Writing and reading a run's maps, [50 epochs, 32 images, 3, 32, 32] float32."""
    epochs = 10 if quick else 50
    with tempfile.TemporaryDirectory(prefix="epochlens-bench-") as folder:
        yield from compare(example_maps(epochs), Path(folder), f"maps of {epochs} epochs x 32 CIFAR images")


def compare(maps: tables.Maps, folder: Path, task: str) -> Iterator[Comparison]:
    """Files of these maps; the limit is reading and writing their bytes in memory once."""
    floor = 2 * maps.attributions.nbytes / copy_bandwidth()
    ours, theirs = folder / "maps.parquet", folder / "maps.npz"

    def write_parquet() -> np.ndarray:
        ours.write_bytes(tables.maps_bytes(maps))
        return np.array([max(1.0, ours.stat().st_size / max(1, size_of_npz()))])

    def write_npz() -> np.ndarray:
        np.savez_compressed(theirs, attributions=maps.attributions)
        return np.ones(1)

    def size_of_npz() -> int:
        if not theirs.exists():
            write_npz()
        return theirs.stat().st_size

    def write_torch() -> np.ndarray:
        import torch

        torch.save(torch.from_numpy(maps.attributions), folder / "maps.pt")
        return np.ones(1)

    # The result is the size relative to the peer's file, at least 1: a larger file counts as a difference.
    yield Comparison(
        "storage", f"write {task}, no larger", "savez_compressed", write_parquet, write_npz,
        largest_difference, 0.0, 5.0, floor,
    )  # fmt: skip
    yield Comparison(
        "storage", f"read {task}", "npz", lambda: tables.read_maps(ours).attributions,
        lambda: np.load(theirs)["attributions"], largest_difference, 0.0, 1.0, floor,
    )  # fmt: skip
    yield Comparison(
        "storage", f"write {task}", "torch.save (not compressed)", write_parquet, write_torch,
        lambda a, b: 0.0, 0.0, 0.0,
    )  # fmt: skip


def example_maps(epochs: int, n: int = 32, shape: tuple[int, ...] = (3, 32, 32)) -> tables.Maps:
    """Maps that drift from epoch to epoch as recorded ones do: smooth, signed, growing."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    start, end = gaussian_filter(rng.standard_normal((2, n, *shape)), (0, 0, 0, 1, 1))
    part = np.linspace(0, 1, epochs).reshape(-1, 1, 1, 1, 1)
    drifting = (1 - part) * start + part * end + 0.05 * rng.standard_normal((epochs, n, *shape))
    maps = (drifting * (1 + part)).astype(np.float32)[:, None]
    numbers = np.zeros((epochs, n), np.int32)
    return tables.Maps(
        maps,
        np.arange(epochs, dtype=np.int32),
        np.array(["saliency"]),
        np.arange(n, dtype=np.int32),
        numbers,
        numbers,
    )
