"""Read untrusted npz archives without allocating more than their size."""

from __future__ import annotations

import math
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli import inputs
from adadelta_cli.errors import UsageError, in_one_line, shortened

if TYPE_CHECKING:
    from pathlib import Path

npy: Any = np.lib.format  # untyped
KINDS = "fU"  # of dtypes: this package writes floats and texts only
KIND_NAMES = {"f": "floats", "i": "integers", "u": "unsigned integers", "U": "a text"}
READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def load_arrays(
    path: Path, what: str, remedy: str, *, kinds: str = KINDS, most_bytes: int = 0
) -> dict[str, np.ndarray]:
    """Read all arrays of an archive from `numpy.savez`.

    Args:
        path: the file.
        what: the problem with any other file, for messages: `is not a checkpoint`.
        remedy: how to fix that, for messages.
        kinds: NumPy's codes of the allowed kinds of dtypes; by default floats and texts.
        most_bytes: allow a compressed archive, whose arrays have at most this many bytes.

    Raises:
        UsageError: it is not such a file, or damaged.
        MemoryError: it is valid, but too large for the memory.
    """
    reason = inputs.unreadable_reason(path)
    if reason:
        raise UsageError(f"{shortened(path)} cannot be read: {reason}; {remedy}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers from Python 2
            _check_sizes(path, kinds, most_bytes)
            with np.load(path) as file:
                return dict(file)
    except MemoryError:
        raise
    except Exception as error:  # NumPy, zipfile and zlib raise many types on damaged files
        raise UsageError(f"{shortened(path)} {what}: {in_one_line(error)}; {remedy}") from error


def _check_sizes(path: Path, kinds: str, most_bytes: int) -> None:
    """Check that the arrays take no more memory than the file has bytes, or than is allowed.

    Raises:
        ValueError: they take more, are of other kinds, or one name stands for two.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        nbytes = sum(member.file_size for member in members)
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not most_bytes and (not stored or nbytes > path.stat().st_size):
            raise ValueError("it is compressed, or its parts are larger than the file")
        if most_bytes and nbytes > most_bytes:
            raise ValueError(f"its parts have {nbytes:,} bytes; allowed are {most_bytes:,}")
        names = [member.filename.removesuffix(".npy") for member in members]
        if len(names) != len({*names}):
            raise ValueError("it holds two parts of one name")
        for member in members:
            with archive.open(member) as stream:
                shape, dtype = _header(stream)
                nbytes = math.prod(shape) * dtype.itemsize
                if dtype.kind not in kinds or not dtype.itemsize:
                    allowed = " or ".join(KIND_NAMES[kind] for kind in kinds)
                    raise ValueError(f"{member.filename} holds {dtype}, not {allowed}")
                if min(shape, default=0) < 0 or stream.tell() + nbytes != member.file_size:
                    raise ValueError(f"{member.filename} does not have the size in its header")


def _header(stream: Any) -> tuple[tuple[int, ...], np.dtype]:
    try:
        shape, _, dtype = READ_HEADER[npy.read_magic(stream)](stream)
    except MemoryError as error:  # of the parser, for deep nesting
        raise ValueError("a header cannot be read") from error
    return shape, dtype
