"""Data sets of pictures are read strictly: what is damaged, missing or another one is refused."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from adadelta_cli import inputs
from adadelta_cli.errors import UnavailableError, UsageError
from adadelta_cli.run import config
from adadelta_cli.run.problems import images, problem
from adadelta_cli.run.problems.images import IdxFile, IdxSet

TINY = (
    IdxFile("train-images", 3, 40),
    IdxFile("train-labels", 1, 40),
    IdxFile("t10k-images", 3, 10),
    IdxFile("t10k-labels", 1, 10),
)


def idx(file, seed=0):
    """Make the content of an IDX file: random bytes, or labels from 0 to 9."""
    rng = np.random.default_rng([seed, file.rank, file.samples])
    values = rng.integers(0, 256 if file.rank == 3 else 10, size=file.shape, dtype=np.uint8)
    lengths = b"".join(n.to_bytes(4, "big") for n in file.shape)
    return b"\0\0\x08" + bytes([file.rank]) + lengths + values.tobytes()


def md5(content):
    """Return the MD5 of a content."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make small files, with an MD5 of their own, in the place of MNIST."""
    contents = {file.name: idx(file) for file in TINY}
    sets = {
        "mnist": IdxSet("MNIST", "https://home.example/mnist", tuple(map(md5, contents.values()))),
        "fashion_mnist": IdxSet(
            "Fashion-MNIST", "http://home", tuple(md5(idx(f, seed=1)) for f in TINY)
        ),
    }
    monkeypatch.setattr(images, "FILES", TINY)
    monkeypatch.setattr(images, "IDX_SETS", sets)
    monkeypatch.setenv(inputs.DATA_FOLDER, str(tmp_path))
    images._from_idx.cache_clear()
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    yield tmp_path
    images._from_idx.cache_clear()


def mlp(data, *overrides):
    """Build an MLP on a data set."""
    return problem(config.load_config("mlp", [f"problem.data={data}", *overrides]).problem)


def test_idx_files_are_read(folder):
    """Pixels are bytes over 255 in float32, labels one-hot; the test set is held out."""
    built = mlp("mnist")
    (pixels, one_hot), (test_pixels, test_labels) = built.data, built.held_out
    raw = np.frombuffer((folder / "train-images-idx3-ubyte").read_bytes()[16:], np.uint8)
    np.testing.assert_array_equal(pixels, raw.reshape(40, 784).astype(np.float32) / np.float32(255))
    labels = np.frombuffer((folder / "train-labels-idx1-ubyte").read_bytes()[8:], np.uint8)
    np.testing.assert_array_equal(one_hot.argmax(axis=1), labels)
    assert (pixels.dtype, one_hot.sum(), test_pixels.shape) == (np.float32, 40, (10, 784))
    assert test_labels.shape == (10,)


def packed(folder):
    """Compress all files."""
    for path in [*folder.iterdir()]:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


def moved(folder):
    """Put all files into a folder with the name of the set."""
    files = [*folder.iterdir()]
    (folder / "mnist").mkdir()
    for path in files:
        path.rename(folder / "mnist" / path.name)


@pytest.mark.parametrize("changes", [(packed,), (moved,), (packed, moved)])
def test_files_may_be_compressed_or_in_a_folder_of_the_set(folder, changes):
    """The data are the same, and so is what identifies them."""
    before = mlp("mnist")
    images._from_idx.cache_clear()
    for change in changes:
        change(folder)
    after = mlp("mnist")
    np.testing.assert_array_equal(before.data[0], after.data[0])
    assert before.digest == after.digest


def test_two_runs_share_the_arrays(folder):
    """Which are read-only."""
    first, second = mlp("mnist"), mlp("mnist")
    assert np.shares_memory(first.data[0], second.data[0])
    assert not mlp("mnist").data[0].flags.writeable
    assert folder


IMAGES, LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def lengths(content, *values):
    """Change the lengths in a header."""
    return content[:4] + b"".join(n.to_bytes(4, "big") for n in values) + content[16:]


WRONG = {  # the file, what becomes of its content, what the message says
    "empty": (IMAGES, lambda _c: b"", r"it begins with nothing; expected 00 00 08 03"),
    "cut in the header": (IMAGES, lambda c: c[:9], r"its header has the lengths .*40 x 28 x 28"),
    "truncated": (IMAGES, lambda c: c[:-1], r"it has 31,375 bytes; expected 31,376"),
    "longer": (IMAGES, lambda c: c + b"x", r"it has more bytes; expected 31,376"),
    "another magic": (IMAGES, lambda c: b"\0\0\x0d" + c[3:], r"begins with 00 00 0d 03; expected"),
    "labels for images": (IMAGES, lambda _c: idx(TINY[1]), r"begins with 00 00 08 01; expected"),
    "text": (LABELS, lambda _c: b"<html>404</html>", r"begins with 3c 68 74 6d; expected"),
    "a length too many": (IMAGES, lambda c: lengths(c, 41, 28, 28), r"lengths 41 x 28 x 28; exp"),
    "huge lengths": (IMAGES, lambda c: lengths(c, 2**32 - 1, 2**31, 9), r"4294967295 x 21474836"),
    "one bit": (IMAGES, lambda c: c[:-1] + bytes([c[-1] ^ 1]), r"MD5 is [0-9a-f]{32}; expected"),
    "a label": (LABELS, lambda c: c[:-1] + b"\xff", r"its MD5 is"),
    "the other set's": (
        LABELS,
        lambda _c: idx(TINY[3], seed=1),
        r"that of Fashion-MNIST; expected",
    ),
    "gzip without .gz": (LABELS, gzip.compress, r"begins with 1f 8b 08 00; expected"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_a_file_that_is_another_is_refused(folder, case):
    """Whatever its name says; the message has what was found, what was expected, and the fix."""
    name, change, message = case
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UsageError, match=message) as caught:
        mlp("mnist")
    assert str(caught.value).startswith(f"{path} is not {name} of MNIST: ")
    assert str(caught.value).endswith("; fetch it again from https://home.example/mnist/")


DAMAGED = {
    "no gzip": lambda content: content,
    "empty": lambda _content: b"",
    "truncated": lambda content: gzip.compress(content)[:100],
    "no end": lambda content: gzip.compress(content)[:-4],
    "a wrong checksum": lambda content: gzip.compress(content)[:-8] + b"\0" * 8,
    "a damaged stream": lambda content: gzip.compress(content)[:15] + b"\xff" * 60,
    "more inside": lambda content: gzip.compress(content + b"x"),
    "less inside": lambda content: gzip.compress(content[:-1]),
    "a bomb": lambda content: gzip.compress(content + b"\0" * 10_000_000),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_gzip_file_is_refused(folder, damage):
    """Without an error of Python's, and without unpacking more than the file should hold."""
    packed(folder)
    path = folder / f"{IMAGES}.gz"
    path.write_bytes(damage(idx(TINY[0])))
    with pytest.raises(UsageError, match=r"ubyte\.gz (cannot be read|is not).*fetch it again"):
        mlp("mnist")


@pytest.mark.parametrize("name", ["bomb", "bomb.gz"])
def test_no_more_is_read_than_a_file_should_hold(tmp_path, name):
    """Whatever it stands for."""
    content = bytes(5_000_000)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert len(images._content(tmp_path / name, 1000, "mnist")) == 1000


@pytest.mark.parametrize("content", [os.urandom(k) for k in (1, 4, 17, 400, 31_376)], ids=len)
def test_noise_is_refused(folder, content):
    """As any file may come."""
    (folder / IMAGES).write_bytes(content)
    with pytest.raises(UsageError, match="expected"):
        mlp("mnist")


def test_a_folder_in_the_place_of_a_file_is_refused(folder):
    """Nothing is opened that is no file."""
    (folder / IMAGES).unlink()
    (folder / IMAGES).mkdir()
    with pytest.raises(UsageError, match="cannot be read: it is a folder"):
        mlp("mnist")


def test_files_that_are_not_here_are_named_with_the_command_that_fetches_them(folder):
    """Nothing is downloaded by itself."""
    for name in (IMAGES, LABELS):
        (folder / name).unlink()
    with pytest.raises(UnavailableError) as caught:
        mlp("mnist")
    assert f"{folder} lacks {IMAGES}, {LABELS}." in str(caught.value)
    for path in [*folder.iterdir()]:
        path.unlink()
    with pytest.raises(UnavailableError) as caught:
        mlp("mnist")
    message = str(caught.value)
    assert f"they are neither in {folder}/mnist nor in {folder}." in message
    assert all(file.name in message for file in TINY)
    assert f"curl -f --create-dirs --output-dir {folder}/mnist -O 'https://home.example" in message
    assert message.endswith(f"--data {folder}, or ADADELTA_DATA in the environment")


def test_without_a_folder_the_message_says_how_to_name_one(monkeypatch):
    """Neither --data nor the variable is given."""
    monkeypatch.delenv(inputs.DATA_FOLDER, raising=False)
    with pytest.raises(UnavailableError, match=r"no folder is named.*\n.*-O 'http://fashion-mnist"):
        mlp("fashion_mnist")


def test_held_out_is_for_data_without_a_test_set(folder):
    """MNIST has one."""
    with pytest.raises(UsageError, match=r"held_out is 0\.3, but mnist has a test set of its own"):
        mlp("mnist", "problem.held_out=0.3")
    assert len(mlp("digits", "problem.held_out=0.3").held_out[0]) == 539
    assert folder


@pytest.mark.parametrize("data", ["mnits", "mnist.npy", "", "[1]", "3"])
def test_another_data_set_is_refused(data):
    """The message lists those that there are."""
    with pytest.raises(
        UsageError, match=r"problem\.data is .*: digits or mnist or fashion_mnist o"
    ):
        mlp(data)


# --- npz files ------------------------------------------------------------------------------------


def arrays(samples=12, features=3, dtype=np.float64):
    """Make samples and labels of three classes."""
    rng = np.random.default_rng(3)
    x = (rng.random((samples, features)) * 200).astype(dtype)
    return x, np.arange(samples) % 3


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("dtype", "wide"),
    [("float64", "float64"), ("float32", "float32"), ("float16", "float32"), ("uint8", "float32")],
)
def test_an_npz_file_is_a_data_set(tmp_path, save, dtype, wide):
    """With x and y, of which a part is held out; bytes are scaled, other numbers are not."""
    x, y = arrays(dtype=dtype)
    save(tmp_path / "my.npz", x=x, y=y)
    built = mlp(tmp_path / "my.npz", "problem.held_out=0.25")
    assert built.data[0].shape == (9, 3)
    assert built.data[0].dtype == wide
    assert built.start["weight3"].shape[1] == 3
    every = np.sort(np.concatenate([built.data[0], built.held_out[0]]).ravel())
    scale = 255 if dtype == "uint8" else 1
    np.testing.assert_allclose(every, np.sort(x.astype(wide).ravel()) / scale, rtol=1e-6)


def test_an_npz_file_may_have_a_test_set(tmp_path):
    """As Keras's files have; samples of any shape become rows."""
    x, y = arrays()
    test = {"x_test": x[:4].reshape(4, 3, 1), "y_test": y[:4] + 1}
    np.savez(tmp_path / "my.npz", x_train=x.reshape(12, 1, 3), y_train=y, **test)
    built = mlp(tmp_path / "my.npz")
    assert built.data[0].shape == (12, 3)
    assert built.data[1].shape == (12, 4)  # a class that only the test set has
    np.testing.assert_array_equal(built.held_out[1], y[:4] + 1)


def test_a_changed_npz_file_is_other_data(tmp_path):
    """Also where only the test set differs."""
    x, y = arrays()
    found = set()
    for change in (0, 1):
        np.savez(tmp_path / "my.npz", x_train=x, y_train=y, x_test=x + change, y_test=y)
        found.add(mlp(tmp_path / "my.npz").digest)
    assert len(found) == 2


X, Y = arrays()
WRONG_NPZ = {
    "other names": ({"a": X, "b": Y}, r"its arrays are a, b; expected an archive"),
    "no labels": ({"x": X}, r"its arrays are x;"),
    "a part": ({"x_train": X, "y_train": Y}, r"its arrays are x_train, y_train"),
    "as many": ({"x": X, "y": Y[:-1]}, r"y has the shape \[11\]; expected \[12\], as x has"),
    "one-hot": ({"x": X, "y": np.eye(12, dtype=int)}, r"y has the shape \[12, 12\]"),
    "no classes": ({"x": X, "y": Y + 0.5}, r"y is not made of classes"),
    "negative": ({"x": X, "y": Y - 1}, r"y is not made of classes"),
    "a billion classes": ({"x": X, "y": Y * 10**9}, r"integers from 0 to 9,999"),
    "NaN": ({"x": X * np.nan, "y": Y}, r"x has a NaN or an infinity"),
    "a vector": ({"x": X[:, 0], "y": Y}, r"x has the shape \[12\]; expected samples"),
    "nothing": ({"x": X[:0], "y": Y[:0]}, r"x has the shape \[0, 3\]"),
    "objects": ({"x": np.array([{}] * 12, object), "y": Y}, r"is no data set: "),
    "texts": ({"x": X.astype(str), "y": Y}, r"holds <U\d+, not floats or integers or unsigned"),
    "other features": (
        {"x_train": X, "y_train": Y, "x_test": X[:, :2], "y_test": Y},
        r"x_test has 2 values, and one of x_train 3; expected as many",
    ),
}


@pytest.mark.parametrize(("content", "message"), WRONG_NPZ.values(), ids=WRONG_NPZ)
def test_an_npz_file_that_is_no_data_set_is_refused(tmp_path, content, message):
    """The message names the file, and what it must hold."""
    np.savez(tmp_path / "my.npz", **content)
    with pytest.raises(UsageError, match=rf"my\.npz.*{message}"):
        mlp(tmp_path / "my.npz")


def test_an_npz_file_that_is_too_large_or_missing_is_refused(tmp_path, monkeypatch):
    """A small compressed file may stand for much."""
    np.savez_compressed(tmp_path / "my.npz", x=np.zeros((1000, 100)), y=np.zeros(1000, int))
    monkeypatch.setattr(images, "LARGEST_NPZ_BYTES", 100_000)
    with pytest.raises(UsageError, match=r"its parts have 808,\d+ bytes; allowed are 100,000"):
        mlp(tmp_path / "my.npz")
    with pytest.raises(UsageError, match=r"gone\.npz cannot be read: No such file"):
        mlp(tmp_path / "gone.npz")


def test_a_relative_npz_file_is_beside_its_config(tmp_path, monkeypatch):
    """As a CSV file is."""
    monkeypatch.chdir("/")
    path = tmp_path / "my.yaml"
    path.write_text("problem: {name: mlp, data: a.npz}\ntraining: {epochs: 1}\n")
    assert config.load_config(str(path)).problem.data == str(tmp_path / "a.npz")
    assert config.load_config(str(path), ["problem.data=b.npz"]).problem.data == "/b.npz"
    assert config.load_config(str(path), ["problem.data=digits"]).problem.data == "digits"


# --- the real files -------------------------------------------------------------------------------


@pytest.mark.slow
def test_mnist_is_read():
    """60,000 and 10,000 digits; the first of the training set is a five."""
    folder = os.environ.get(inputs.DATA_FOLDER)
    if not folder:
        pytest.skip(f"needs the files of MNIST: set {inputs.DATA_FOLDER}")
    built = mlp("mnist")
    assert (built.data[0].shape, built.held_out[0].shape) == ((60_000, 784), (10_000, 784))
    assert built.data[1][0].argmax() == 5
    assert Path(folder).is_dir()
