"""DATASETS: name -> splits as arrays in [0,1]. A new dataset is one function and one line.

Arrays are NumPy's, so that one copy a node can be shared by all trials through Ray's object store.
Checks of a sweep ask `describe`, which reads labels and headers only and never imports torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from epochlens.errors import UsageError, unknown
from epochlens.learn.models import import_object

Array = np.ndarray
Loader = Callable[..., "Splits"]
"""(data_dir, download) -> Splits with all classes"""


class Splits(NamedTuple):
    """Images [N,C,H,W] float32 in [0,1] and labels [N] int64 of both splits."""

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array


class Facts(NamedTuple):
    """What a sweep must know of a dataset before it loads it."""

    label: str
    shape: tuple[int, int, int]
    classes: tuple[int, ...]
    n_test: int


def load_digits(data_dir: Path, download: bool = True) -> Splits:
    """scikit-learn's embedded 8x8 digits; every fifth image of each class is a test image."""
    from sklearn.datasets import load_digits as embedded

    bunch: Any = embedded()
    images, labels = np.asarray(bunch.images, np.float32) / 16, np.asarray(bunch.target)
    rank_in_class = np.empty(len(labels), int)
    for label in np.unique(labels):
        members = labels == label
        rank_in_class[members] = np.arange(members.sum())
    test = rank_in_class % 5 == 4
    return as_splits(images[~test], labels[~test], images[test], labels[test])


def load_torchvision(name: str) -> Loader:
    """A loader for torchvision's dataset class `name`, downloaded into the data folder when absent."""

    def load(data_dir: Path, download: bool = True) -> Splits:
        train, test = (_torchvision_split(name, data_dir, train, download) for train in (True, False))
        return as_splits(train.data, train.targets, test.data, test.targets)

    return load


def _torchvision_split(name: str, data_dir: Path, train: bool, download: bool):
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise UsageError("datasets", name, f"needs torchvision, which does not import: {error}") from error
    try:
        return getattr(datasets, name)(str(data_dir), train=train)
    except RuntimeError as error:  # torchvision's word for "not there"
        if not download:
            raise UsageError("data_dir", str(data_dir), f"does not hold {name} yet") from error
    try:
        return getattr(datasets, name)(str(data_dir), train=train, download=True)
    except Exception as error:
        problem = (
            f"is not in {data_dir} and could not be downloaded ({error}). Offline? Put torchvision's files "
            f"for {name} there, or name the folder that holds them with --data-dir"
        )
        raise UsageError("data_dir", str(data_dir), problem) from error


class Dataset(NamedTuple):
    """A built-in dataset: its loader, image shape, test images of each label, and default classes."""

    load: Loader
    shape: tuple[int, int, int]
    test_counts: tuple[int, ...]
    classes: tuple[int, ...] | None = None


DIGITS_TEST = (35, 36, 35, 36, 36, 36, 36, 35, 34, 36)
MNIST_TEST = (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
DATASETS = {
    "digits": Dataset(load_digits, (1, 8, 8), DIGITS_TEST),
    "mnist": Dataset(load_torchvision("MNIST"), (1, 28, 28), MNIST_TEST, classes=(3, 8)),
    "fashion_mnist": Dataset(load_torchvision("FashionMNIST"), (1, 28, 28), (1000,) * 10),
    "cifar10": Dataset(load_torchvision("CIFAR10"), (3, 32, 32), (1000,) * 10, classes=(3, 5)),
}
ALSO = ", or npz:PATH, or folder:PATH, or pkg.module:function that returns x_train, y_train, x_test, y_test"
NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")


def dataset_label(spec: str) -> str:
    """The short name that a dataset has in tables and run names."""
    if spec in DATASETS:
        return spec
    kind, _, rest = spec.partition(":")
    return Path(rest).stem if kind in ("npz", "folder") else rest


def describe(spec: str, classes: Sequence[int] | str | None) -> Facts:
    """Shape, kept classes (None: the dataset's default, "all": every label) and number of test images.

    Raises UsageError for an unknown dataset, a file that cannot be read and classes that it lacks.
    """
    if spec in DATASETS:
        entry = DATASETS[spec]
        shape, counts = entry.shape, dict(enumerate(entry.test_counts))
        default = entry.classes
    else:
        shape, trained, labels = _peek(spec)
        tested = dict(zip(*(found.tolist() for found in np.unique(labels, return_counts=True)), strict=True))
        counts = {label: tested.get(label, 0) for label in np.union1d(trained, labels).tolist()}
        unseen = np.setxor1d(trained, labels).tolist()
        default = None
        if (unseen and classes in (None, "all")) or (unseen and set(unseen) & set(classes or ())):
            raise UsageError("classes", unseen, f"of {spec} lack images in one of the splits")
    if classes is None:
        classes = default or "all"
    kept = tuple(counts) if isinstance(classes, str) else tuple(classes)
    lacking = [c for c in kept if c not in counts]
    if lacking:
        problem = f"are not all in dataset {spec}, whose labels are {', '.join(map(str, counts))}"
        raise UsageError("classes", list(kept), problem)
    return Facts(dataset_label(spec), shape, kept, sum(counts[c] for c in kept))


def load(spec: str, classes: Sequence[int], data_dir: str | Path, download: bool = True) -> Splits:
    """Both splits of a dataset with only `classes`, renumbered 0..K-1 in the given order.

    Raises UsageError when it cannot be read, or is absent and cannot or (`download`) may not be downloaded.
    """
    splits = DATASETS[spec].load(Path(data_dir), download) if spec in DATASETS else _load_spec(spec)
    x_train, y_train = _select(splits.x_train, splits.y_train, classes)
    x_test, y_test = _select(splits.x_test, splits.y_test, classes)
    return Splits(x_train, y_train, x_test, y_test)


def fingerprint(spec: str) -> str:
    """A hash of what the dataset holds: the name of a built-in one, else the contents, wherever they lie."""
    kind, _, rest = spec.partition(":")
    if spec in DATASETS:
        return spec
    if kind == "npz":
        with Path(rest).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for array in _load_spec(spec):
        digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def as_splits(x_train, y_train, x_test, y_test) -> Splits:
    """Splits from images HW, HWC or CHW, uint8 or float in [0,1], and labels, arrays or tensors."""
    splits = Splits(as_images(x_train), as_labels(y_train), as_images(x_test), as_labels(y_test))
    check_layout(*(array.shape for array in splits))
    return splits


def check_layout(x_train, y_train, x_test, y_test) -> None:
    """Raises ValueError unless images [N,C,H,W] and labels [N] of those shapes fit, and both splits agree."""
    if x_train[1:] != x_test[1:]:
        raise ValueError(f"training images {x_train[1:]} and test images {x_test[1:]} differ in shape")
    for name, images, labels in (("training", x_train, y_train), ("test", x_test, y_test)):
        if labels != images[:1]:
            raise ValueError(f"{images[0]} {name} images need labels [{images[0]}], not {list(labels)}")


def as_labels(labels) -> Array:
    """Labels [N] int64. Raises ValueError when they are not whole numbers."""
    labels = np.asarray(labels)
    if labels.dtype.kind not in "biufO":
        raise ValueError(f"labels of type {labels.dtype} are not whole numbers")
    with np.errstate(invalid="ignore"):
        whole = labels.astype(np.int64)
    if not np.array_equal(whole, labels):
        raise ValueError("labels are not whole numbers of 64 bits")
    return whole


def image_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """[N,C,H,W] of images [N,H,W], [N,H,W,C] or [N,C,H,W]. Raises ValueError for other shapes."""
    if len(shape) == 3:
        shape = (shape[0], 1, *shape[1:])
    elif len(shape) == 4 and shape[3] <= 4 < shape[1]:
        shape = (shape[0], shape[3], *shape[1:3])
    if len(shape) != 4 or shape[1] > 4 or min(shape[1:]) < 1:
        raise ValueError(f"images of shape {tuple(shape)} are not [N,H,W], [N,H,W,C] or [N,C,H,W], C <= 4")
    return tuple(shape)


def as_images(pixels) -> Array:
    """Images [N,C,H,W] float32 in [0,1] from [N,H,W], [N,H,W,C] or [N,C,H,W]. Raises ValueError otherwise."""
    pixels = np.asarray(pixels)
    shape = image_shape(pixels.shape)
    last = pixels.ndim == 4 and shape != pixels.shape
    pixels = pixels.transpose(0, 3, 1, 2) if last else pixels.reshape(shape)
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels, np.float32) / 255
    pixels = np.ascontiguousarray(pixels, np.float32)
    if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(f"pixels lie in [{pixels.min()}, {pixels.max()}]: give uint8, or floats in [0, 1]")
    return pixels


def _select(images: Array, labels: Array, classes: Sequence[int]) -> tuple[Array, Array]:
    numbers = np.full(len(labels), -1, np.int64)
    for number, label in enumerate(classes):
        numbers[labels == label] = number
    kept = numbers >= 0
    return np.ascontiguousarray(images[kept]), numbers[kept]


@contextlib.contextmanager
def _readable(spec: str) -> Iterator[None]:
    """Names the dataset in whatever the readers of its files, or its own code, raise."""
    try:
        yield
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise UsageError("datasets", spec, f"cannot be read: {kind}{error}") from error


def _load_spec(spec: str) -> Splits:
    kind, _, rest = spec.partition(":")
    with _readable(spec):
        if kind == "npz":
            _npz_shapes(rest)
            with np.load(rest, allow_pickle=False) as file:
                return as_splits(*(file[key] for key in NPZ_KEYS))
        if kind == "folder":
            classes = sorted(p.name for p in (Path(rest) / "train").iterdir() if p.is_dir())
            train, test = (_folder_split(Path(rest) / split, classes) for split in ("train", "test"))
            return as_splits(*train, *test)
        made: Any = import_object("datasets", spec)()
        if not isinstance(made, tuple | list) or len(made) != len(NPZ_KEYS):
            raise ValueError(f"its function does not return {', '.join(NPZ_KEYS)}")
        return as_splits(*made)


def _peek(spec: str) -> tuple[tuple[int, int, int], Array, Array]:
    """Image shape, training labels and test labels, from an archive's headers where that is enough."""
    kind, colon, rest = spec.partition(":")
    if not colon:
        raise unknown("datasets", spec, DATASETS, ALSO)
    if kind != "npz":
        splits = _load_spec(spec)
        return splits.x_test.shape[1:], splits.y_train, splits.y_test
    with _readable(spec):
        shapes = _npz_shapes(rest)
        trained, tested = (image_shape(shapes[key]) for key in ("x_train", "x_test"))
        with np.load(rest, allow_pickle=False) as file:
            train, test = as_labels(file["y_train"]), as_labels(file["y_test"])
        check_layout(trained, train.shape, tested, test.shape)
    _, channels, height, width = tested
    return (channels, height, width), train, test


def _npz_shapes(path: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the archive's arrays from their headers. Raises ValueError for more than the file holds."""
    if not Path(path).is_file():
        raise ValueError("there is no such file")
    shapes = {}
    with zipfile.ZipFile(path) as archive:
        missing = {f"{key}.npy" for key in NPZ_KEYS} - set(archive.namelist())
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        for key in NPZ_KEYS:
            with archive.open(f"{key}.npy") as file:
                shapes[key], dtype = _npy_header(file)
            if dtype.kind not in "biuf":
                raise ValueError(f"{key} holds {dtype}, not numbers")
            if math.prod(shapes[key]) * dtype.itemsize > archive.getinfo(f"{key}.npy").file_size:
                raise ValueError(f"{key} has fewer numbers than its shape {shapes[key]} tells")
    return shapes


def _npy_header(file) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _folder_split(folder: Path, classes: Sequence[str]) -> tuple[Array, Array]:
    """Images and labels of folder/CLASS/*.png|jpg; labels number the classes in the order given."""
    from PIL import Image

    files = [
        (f, number)
        for number, name in enumerate(classes)
        for f in sorted((folder / name).iterdir())
        if f.suffix.lower() in (".png", ".jpg", ".jpeg") and f.is_file()
    ]
    if not files:
        raise ValueError(f"{folder} holds no CLASS/*.png or *.jpg")
    images = []
    for file, _ in files:
        with Image.open(file) as image:
            images.append(np.asarray(image if image.mode == "L" else image.convert("RGB")))
        if images[-1].shape != images[0].shape:
            raise ValueError(
                f"{file} is {images[-1].shape}, others are {images[0].shape}: resize to one size"
            )
    return np.stack(images), np.array([number for _, number in files])
