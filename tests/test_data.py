"""Datasets: splits, class filter, layouts of files, and what is said of bad ones."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from epochlens.errors import UsageError
from epochlens.learn import data, training


def write_npz(path, images, labels, **others):
    np.savez(path, **{"x_train": images, "y_train": labels, "x_test": images, "y_test": labels, **others})
    return f"npz:{path}"


def test_digits_are_a_fixed_stratified_split():
    splits = data.load("digits", range(10), "unused")
    facts = data.describe("digits", None)
    total = np.bincount(np.concatenate([splits.y_train, splits.y_test]))
    assert np.array_equal(np.bincount(splits.y_test), total // 5)
    assert tuple(np.bincount(splits.y_test)) == data.DIGITS_TEST
    assert facts.n_test == len(splits.x_test)
    assert splits.x_train.shape[1:] == facts.shape
    assert splits.x_train.min() == 0
    assert splits.x_train.max() == 1
    pool = {image.tobytes() for image in splits.x_train}
    assert not any(image.tobytes() in pool for image in splits.x_test)


def test_classes_are_kept_and_renumbered_in_the_given_order():
    every = data.load("digits", range(10), "unused")
    some = data.load("digits", (8, 3), "unused")
    for number, label in enumerate((8, 3)):
        expected = every.x_train[every.y_train == label]
        assert np.array_equal(some.x_train[some.y_train == number], expected)
    assert set(some.y_test) == {0, 1}


@pytest.mark.parametrize("layout", ["HW", "HWC", "CHW"])
@pytest.mark.parametrize("kind", [np.uint8, np.float64])
def test_npz_layouts_give_the_same_images(tmp_path, layout, kind):
    generator = np.random.default_rng(0)
    channels = 1 if layout == "HW" else 3
    reference = generator.integers(0, 256, (12, channels, 9, 7)).astype(np.uint8)
    images = {"HW": reference[:, 0], "HWC": reference.transpose(0, 2, 3, 1), "CHW": reference}[layout]
    images = images if kind is np.uint8 else images / 255
    labels = np.repeat([5, 3], 6)
    spec = write_npz(tmp_path / "cats.npz", images, labels)
    facts = data.describe(spec, None)
    splits = data.load(spec, facts.classes, "unused")
    assert facts == data.Facts("cats", (channels, 9, 7), (3, 5), 12)
    np.testing.assert_allclose(splits.x_train, reference.astype(np.float32) / 255, rtol=1e-6)
    assert splits.x_train.dtype == np.float32
    assert splits.y_test.tolist() == [1] * 6 + [0] * 6


def test_folder_of_images(tmp_path):
    generator = np.random.default_rng(1)
    pixels = {}
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                array = generator.integers(0, 256, (6, 5, 3)).astype(np.uint8)
                pixels[split, name, i] = array
                Image.fromarray(array).save(tmp_path / split / name / f"{i}.png")
    splits = data.load(f"folder:{tmp_path}", (0, 1), "unused")
    assert splits.y_test.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(
        splits.x_train[4].transpose(1, 2, 0) * 255, pixels["train", "dog", 1], atol=1e-4
    )
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "test" / "dog" / "odd.png")
    with pytest.raises(UsageError, match="resize"):
        data.load(f"folder:{tmp_path}", (0, 1), "unused")


def test_import_string(tmp_path, monkeypatch):
    (tmp_path / "my_data.py").write_text(
        "import numpy as np\n"
        "def two():\n"
        "    x, y = np.zeros((6, 5, 5), np.uint8), np.array([0, 1] * 3)\n"
        "    return x, y, x, y\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    facts = data.describe("my_data:two", None)
    assert (facts.shape, facts.classes, facts.n_test) == ((1, 5, 5), (0, 1), 6)
    with pytest.raises(UsageError, match="cannot be imported"):
        data.describe("my_data:three", None)


def test_fingerprint_follows_contents_not_places(tmp_path):
    images, labels = np.zeros((4, 5, 5), np.uint8), np.array([0, 1, 0, 1])
    one = write_npz(tmp_path / "a.npz", images, labels)
    two = write_npz(tmp_path / "b.npz", images, labels)
    three = write_npz(tmp_path / "c.npz", images + np.uint8(1), labels)
    assert data.fingerprint(one) == data.fingerprint(two) != data.fingerprint(three)


@pytest.mark.parametrize(
    ("spec", "classes", "told"),
    [
        ("minst", None, "did you mean 'mnist'"),
        ("mnist", (3, 11), "labels are 0, 1"),
        ("npz:nowhere.npz", None, "cannot be read"),
        ("folder:nowhere", None, "cannot be read"),
        ("nowhere.module:f", None, "cannot be imported"),
    ],
)
def test_bad_datasets_are_told(spec, classes, told):
    with pytest.raises(UsageError, match=told):
        data.describe(spec, classes)


def test_damaged_npz_is_told(tmp_path):
    images, labels = np.zeros((4, 5, 5), np.uint8), np.array([0, 1, 0, 1])
    spec = write_npz(tmp_path / "a.npz", images, labels)
    (tmp_path / "half.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:300])
    np.savez(tmp_path / "lacking.npz", x_train=images)
    assert data.describe(spec, None).n_test == 4
    for bad, told in (("half", "cannot be read"), ("lacking", "lacks")):
        with pytest.raises(UsageError, match=told):
            data.describe(f"npz:{tmp_path}/{bad}.npz", None)
    beyond = write_npz(tmp_path / "beyond.npz", images + 3.0, labels)
    with pytest.raises(UsageError, match=r"floats in \[0, 1\]"):
        data.load(beyond, (0, 1), "unused")
    pickled = write_npz(tmp_path / "pickled.npz", images, np.array([{}, 1, 2, 3], object))
    with pytest.raises(UsageError, match="cannot be read"):
        data.describe(pickled, None)


def test_absent_dataset_without_network_says_what_to_do(tmp_path, monkeypatch):
    torchvision = pytest.importorskip("torchvision")

    class Offline:
        def __init__(self, root, train, download=False):
            raise OSError("no route to host") if download else RuntimeError("Dataset not found")

    monkeypatch.setattr(torchvision.datasets, "MNIST", Offline)
    with pytest.raises(UsageError, match="--data-dir"):
        data.load("mnist", (3, 8), tmp_path)
    with pytest.raises(UsageError, match="yet"):
        data.load("mnist", (3, 8), tmp_path, download=False)


def test_tensors_share_memory_and_have_canonical_strides():
    splits = data.load("digits", range(10), "unused")
    splits.x_train.setflags(write=False)  # as arrays out of Ray's object store are
    tensors = training.as_tensors(splits)
    assert tensors.x_train.stride() == (64, 64, 8, 1)
    assert tensors.x_train.data_ptr() == splits.x_train.ctypes.data
