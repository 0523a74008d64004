"""Labelled pictures: scikit-learn's digits, MNIST, Fashion-MNIST, or arrays of the user's own.

Nothing is downloaded: MNIST and Fashion-MNIST are read from their four IDX files, which the user
fetches. The format: http://yann.lecun.com/exdb/mnist/.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adadelta_cli import inputs
from adadelta_cli.errors import UnavailableError, UsageError, in_one_line, shortened
from adadelta_cli.run import npz

if TYPE_CHECKING:
    from collections.abc import Mapping

BRIGHTEST_DIGIT = 16.0  # scikit-learn's pixels are integers from 0 to 16
BRIGHTEST_BYTE = 255.0
LARGEST_NPZ_BYTES = 4 << 30


class Images(NamedTuple):
    """A data set; its arrays are read-only.

    Attributes:
        pixels: float32 or float64 (n, pixels), mostly from 0 to 1.
        labels: the class of each, integers from 0 on, (n,).
        test_pixels, test_labels: those to test with; None if the set has no such part.
        digest: identifies the content.
    """

    pixels: np.ndarray
    labels: np.ndarray
    test_pixels: np.ndarray | None
    test_labels: np.ndarray | None
    digest: str


def load(data: str) -> Images:
    """Load a data set by its name in a config, or from an npz file.

    Raises:
        UnavailableError: the files of MNIST or Fashion-MNIST are not here.
        UsageError: a file is damaged, or another one than its name says.
    """
    if data == "digits":
        return _digits()
    if data in IDX_SETS:
        return _from_idx(data, os.environ.get(inputs.DATA_FOLDER, ""))
    return _from_npz(Path(data))


def _frozen(images: Images) -> Images:
    for each in images:
        if isinstance(each, np.ndarray):
            each.flags.writeable = False
    return images


def digest_of(arrays: tuple[np.ndarray | None, ...]) -> str:
    """Return the SHA-256 of the content of some arrays."""
    digest = hashlib.sha256()
    for each in arrays:
        if each is not None:
            digest.update(np.ascontiguousarray(each).data)
    return digest.hexdigest()


def _digits() -> Images:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    arrays = (pixels / BRIGHTEST_DIGIT, labels, None, None)
    return Images(*arrays, digest_of(arrays))


# --- MNIST and Fashion-MNIST ----------------------------------------------------------------------


class IdxFile(NamedTuple):
    """One of the files of a data set: the start of its name, its kind and its length."""

    stem: str
    rank: int  # 3: pictures; 1: labels
    samples: int

    @property
    def name(self) -> str:
        """The file's name, unpacked."""
        return f"{self.stem}-idx{self.rank}-ubyte"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return (self.samples, 28, 28) if self.rank == 3 else (self.samples,)


FILES = (
    IdxFile("train-images", 3, 60_000),
    IdxFile("train-labels", 1, 60_000),
    IdxFile("t10k-images", 3, 10_000),
    IdxFile("t10k-labels", 1, 10_000),
)


class IdxSet(NamedTuple):
    """Where a data set comes from, and the MD5 of each of its files, unpacked, in their order."""

    title: str
    home: str
    md5: tuple[str, str, str, str]


IDX_SETS: Mapping[str, IdxSet] = {
    "mnist": IdxSet(
        "MNIST",
        "https://ossci-datasets.s3.amazonaws.com/mnist",  # the mirror that torchvision uses
        (
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
    ),
    "fashion_mnist": IdxSet(
        "Fashion-MNIST",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        (
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
    ),
}


@lru_cache(maxsize=1)  # several runs in one process share the arrays
def _from_idx(name: str, folder: str) -> Images:
    paths = _find(name, folder)
    found = [
        _read_idx(path, file, name, md5)
        for path, file, md5 in zip(paths, FILES, IDX_SETS[name].md5, strict=True)
    ]
    arrays = [
        _scaled(array) if file.rank == 3 else array.astype(np.int64)
        for array, file in zip(found, FILES, strict=True)
    ]
    digest = hashlib.sha256(" ".join(IDX_SETS[name].md5).encode()).hexdigest()
    pixels, labels, test_pixels, test_labels = arrays
    return _frozen(Images(pixels, labels, test_pixels, test_labels, digest))


def _scaled(pictures: np.ndarray) -> np.ndarray:
    """Return pictures of bytes as float32 rows from 0 to 1."""
    rows = pictures.reshape(len(pictures), -1).astype(np.float32)
    rows /= np.float32(BRIGHTEST_BYTE)
    return rows


def _find(name: str, folder: str) -> list[Path]:
    """Return the paths of the four files: unpacked or not, in the folder or in one of the set.

    Raises:
        UnavailableError: one is missing.
    """
    places = [Path(folder) / name, Path(folder)] if folder else []
    for place in places:
        paths = [_packed_or_not(place / file.name) for file in FILES]
        found = [path for path in paths if path is not None]
        if len(found) == len(FILES):
            return found
        if found:
            missing = ", ".join(f.name for f, p in zip(FILES, paths, strict=True) if p is None)
            raise UnavailableError(*_how_to_get(name, folder, f"{place} lacks {missing}"))
    lack = f"they are neither in {places[0]} nor in {places[1]}" if places else "no folder is named"
    raise UnavailableError(*_how_to_get(name, folder, lack))


def _packed_or_not(path: Path) -> Path | None:
    packed = path.with_name(f"{path.name}.gz")
    return next((each for each in (path, packed) if each.exists()), None)


def _how_to_get(name: str, folder: str, lack: str) -> list[str]:
    """Say which files are needed, where they go, and the command that fetches them."""
    title, home, _ = IDX_SETS[name]
    place = Path(folder or "data") / name
    names = ",".join(f"{file.stem}-idx{file.rank}" for file in FILES)
    files = ", ".join(file.name for file in FILES)
    first = f"problem.data is {name}, and its files are not here: {lack}. {title} is {files}"
    return [
        f"{first}, each as it is or with .gz. Fetch them with",
        f"  curl -f --create-dirs --output-dir {place} -O '{home}/{{{names}}}-ubyte.gz'",
        f"and name the folder: --data {place.parent}, or {inputs.DATA_FOLDER} in the environment",
    ]


def _read_idx(path: Path, file: IdxFile, name: str, md5: str) -> np.ndarray:
    """Read one file, uint8 of its shape.

    Raises:
        UsageError: it cannot be read, or is not the file of that data set.
    """
    header = b"\0\0\x08" + bytes([file.rank])
    header += b"".join(length.to_bytes(4, "big") for length in file.shape)
    size = len(header) + math.prod(file.shape)
    content = _content(path, size + 1, name)
    damage = _damage(content, header, size)
    if not damage and hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        got = hashlib.md5(content, usedforsecurity=False).hexdigest()
        owner = [title for title, _, sums in IDX_SETS.values() if got in sums]
        damage = f"its MD5 is {got}, that of {owner[0]}" if owner else f"its MD5 is {got}"
        damage += f"; expected {md5}"
    if damage:
        raise UsageError(
            f"{shortened(path)} is not {_expected(file, name)}: {damage}; {_again(name)}"
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(file.shape)


def _expected(file: IdxFile, name: str) -> str:
    return f"{file.name} of {IDX_SETS[name].title}"


def _again(name: str) -> str:
    return f"fetch it again from {IDX_SETS[name].home}/"


def _content(path: Path, most: int, name: str) -> bytes:
    """Read at most `most` bytes, unpacked: a few bytes of gzip can stand for gigabytes."""
    reason = inputs.unreadable_reason(path)
    if not reason:
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
                return stream.read(most)
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or in_one_line(error)
    raise UsageError(f"{shortened(path)} cannot be read: {reason}; {_again(name)}")


def _damage(content: bytes, header: bytes, size: int) -> str:
    """Say what is wrong with the header or the length; empty if nothing is."""
    magic, got = content[:4], content[: len(header)]
    if magic != header[:4]:
        return f"it begins with {magic.hex(' ') or 'nothing'}; expected {header[:4].hex(' ')}"
    if got != header:
        shapes = (_lengths(each) for each in (got, header))
        return "its header has the lengths {}; expected {}".format(*shapes)
    if len(content) != size:
        what = "more" if len(content) > size else f"{len(content):,}"
        return f"it has {what} bytes; expected {size:,}"
    return ""


def _lengths(header: bytes) -> str:
    parts = (header[k : k + 4] for k in range(4, len(header), 4))
    return " x ".join(f"{int.from_bytes(part, 'big')}" for part in parts) or "none"


# --- arrays of the user's own ---------------------------------------------------------------------

LAYOUTS = (("x_train", "y_train", "x_test", "y_test"), ("x", "y"))
EXPECTED = (
    "expected an archive of numpy.savez with the arrays x_train, y_train, x_test and y_test, or x "
    "and y: samples along the first axis of x, and their classes, integers from 0 on, in y"
)


def _from_npz(path: Path) -> Images:
    what = "is no data set"
    arrays = npz.load_arrays(path, what, EXPECTED, kinds="fiu", most_bytes=LARGEST_NPZ_BYTES)
    layout = next((names for names in LAYOUTS if arrays.keys() >= {*names}), None)
    if layout is None:
        names = shortened(", ".join(arrays) or "none")
        raise UsageError(f"{shortened(path)} {what}: its arrays are {names}; {EXPECTED}")
    pairs = [
        _pair(path, names, arrays[names[0]], arrays[names[1]])
        for names in (layout[k : k + 2] for k in range(0, len(layout), 2))
    ]
    features = [each.shape[1] for each, _ in pairs]
    if features[0] != features[-1]:
        raise UsageError(
            f"{shortened(path)}: a sample of x_test has {features[1]:,} values, and one of x_train "
            f"{features[0]:,}; expected as many"
        )
    pixels, labels = pairs[0]
    test_pixels, test_labels = pairs[1] if len(pairs) > 1 else (None, None)
    content = (pixels, labels, test_pixels, test_labels)
    return _frozen(Images(*content, digest_of(content)))


MOST_CLASSES = 10_000


def _pair(
    path: Path, names: tuple[str, ...], samples: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Check samples and their labels; return the samples as rows, bytes scaled to 0 to 1."""
    x, y = names
    reason = ""
    if samples.ndim < 2 or not samples.size:
        reason = f"{x} has the shape {list(samples.shape)}; expected samples along the first axis"
    elif labels.shape != (len(samples),):
        reason = f"{y} has the shape {list(labels.shape)}; expected [{len(samples)}], as {x} has"
    elif labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= MOST_CLASSES:
        reason = f"{y} is not made of classes, integers from 0 to {MOST_CLASSES - 1:,}"
    elif not np.isfinite(samples).all():
        reason = f"{x} has a NaN or an infinity; expected finite numbers"
    if reason:
        raise UsageError(f"{shortened(path)}: {reason}")
    if samples.dtype == np.uint8:
        return _scaled(samples), labels.astype(np.int64)
    wide = np.float64 if samples.dtype == np.float64 else np.float32
    return samples.reshape(len(samples), -1).astype(wide), labels.astype(np.int64)
