"""Datasets: splits, class filter, layouts of files, and what is said of bad ones."""

from __future__ import annotations

import contextlib
import os
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
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


def npy(shape: object, kind: object = "<f8", body: bytes = b"") -> bytes:
    """An array's file with any header."""
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


def archive(path, **members):
    """An archive of a good dataset with other bytes in place of some members."""
    whole = {key: npy((4, 5, 5), body=bytes(800)) for key in ("x_train", "x_test")}
    whole |= {key: npy((4,), "|u1", b"\0\1\0\1") for key in ("y_train", "y_test")}
    with zipfile.ZipFile(path, "w") as file:
        for key, content in (whole | members).items():
            file.writestr(f"{key}.npy", content)
    return f"npz:{path}"


@pytest.mark.parametrize(
    ("member", "content", "told"),
    [
        ("x_train", npy((20, 10**7, 10**7)), "fewer numbers"),
        ("x_train", npy((4, 5, 5), body=bytes(700)), "fewer numbers"),
        ("y_train", npy((10**13,)), "fewer numbers"),
        ("x_train", npy((4, -5, -5), body=bytes(800)), "cannot be read"),
        ("x_train", npy((4, 5, 5), "|S9", bytes(900)), "not numbers"),
        ("y_train", npy((4,), [("a", "<i8")], bytes(32)), "not numbers"),
        ("y_train", npy((4,), "<f8", np.array([0, 1, 0, np.inf]).tobytes()), "whole numbers"),
        ("y_train", npy("(4,"), "cannot be read"),
        ("y_train", npy("((("), "cannot be read"),
    ],
)
def test_headers_are_not_believed(tmp_path, member, content, told):
    assert data.describe(archive(tmp_path / "good.npz"), None).n_test == 4
    spec = archive(tmp_path / "bad.npz", **{member: content})
    for read in (lambda: data.describe(spec, None), lambda: data.load(spec, (0, 1), "unused")):
        with pytest.raises(UsageError, match=told):
            read()


def test_any_byte_of_an_archive_may_be_another(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (20, 4, 4)).astype(np.uint8)
    labels = np.arange(20) % 2
    np.savez_compressed(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    whole = (tmp_path / "a.npz").read_bytes()
    true = data.load(f"npz:{tmp_path}/a.npz", (0, 1), "unused")
    for place in range(len(whole)):
        for bit in (1, 8, 128):
            changed = bytearray(whole)
            changed[place] ^= bit
            (tmp_path / "b.npz").write_bytes(changed)
            with contextlib.suppress(UsageError):
                data.describe(f"npz:{tmp_path}/b.npz", None)
                found = data.load(f"npz:{tmp_path}/b.npz", (0, 1), "unused")
                assert all(np.array_equal(*pair) for pair in zip(found, true, strict=True))


def test_damaged_pictures_are_told(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(np.zeros((6, 5), np.uint8)).save(tmp_path / split / name / "0.png")
    assert data.describe(f"folder:{tmp_path}", None).n_test == 2
    picture = tmp_path / "train" / "cat" / "0.png"
    whole = picture.read_bytes()
    huge = (10**5).to_bytes(4, "big") * 2 + whole[24:29]
    bomb = whole[:16] + huge + zlib.crc32(b"IHDR" + huge).to_bytes(4, "big") + whole[33:]
    for bad, told in (
        (bomb, "DecompressionBomb"),
        (whole[:36] + b"\5" + whole[37:], "SyntaxError"),
        (b"", ""),
    ):
        picture.write_bytes(bad)
        with pytest.raises(UsageError, match=f"cannot be read: {told}"):
            data.describe(f"folder:{tmp_path}", None)
    picture.unlink()
    os.mkfifo(picture)
    assert data.describe(f"folder:{tmp_path}", (1,)).n_test == 1, "a pipe is no picture, and not waited for"


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("syntax", "def f(:", "SyntaxError"),
        ("names", "f = nothing", "NameError"),
        ("leaves", "import sys; sys.exit(3)", "SystemExit"),
        ("raises", "def f(): raise LookupError('lost')", "LookupError: lost"),
        ("gives_none", "def f(): return None", "does not return x_train"),
        ("gives_three", "def f(): return 1, 2, 3", "does not return x_train"),
        ("gives_text", "def f(): return 'abcd', [0], [0], [0]", "are not"),
    ],
)
def test_what_a_users_module_raises_is_named(tmp_path, monkeypatch, name, code, told):
    (tmp_path / f"data_that_{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=told):
        data.describe(f"data_that_{name}:f", None)


@given(labels=st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=9), min_size=2, max_size=2))
def test_labels_are_counted_as_one_would_by_hand(tmp_path_factory, labels):
    train, test = labels
    path = tmp_path_factory.mktemp("labels") / "x.npz"
    np.savez(
        path,
        x_train=np.zeros((len(train), 2, 2)),
        y_train=train,
        x_test=np.zeros((len(test), 2, 2)),
        y_test=test,
    )
    if set(train) == set(test):
        facts = data.describe(f"npz:{path}", "all")
        assert (facts.classes, facts.n_test) == (tuple(sorted(set(test))), len(test))
    else:
        with pytest.raises(UsageError, match="lack images"):
            data.describe(f"npz:{path}", "all")
    shared = sorted({*train} & {*test})
    assert data.describe(f"npz:{path}", shared).n_test == sum(label in shared for label in test)


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
