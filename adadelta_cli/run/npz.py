"""Read npz archives of unknown origin: whatever is wrong with one, nothing large is allocated."""

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

npy: Any = np.lib.format  # the parts of it that are called have no types
SUFFIX = ".npy"
KINDS = "fU"  # of NumPy's dtypes: floats and texts are all that this package writes
READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def load_arrays(path: Path, what: str, remedy: str) -> dict[str, np.ndarray]:
    """Read all arrays of an archive that `numpy.savez` wrote, floats and texts.

    Args:
        path: the file.
        what: it should be: `is no checkpoint`, for messages.
        remedy: what to do where it cannot be read, for messages.

    Raises:
        UsageError: it is no file, no such archive, or damaged.
        MemoryError: it is whole, and too large for the memory.
    """
    reason = inputs.unreadable_reason(path)
    if reason:
        raise UsageError(f"{shortened(path)} cannot be read: {reason}; {remedy}")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive, path.stat().st_size)
            return {
                member.filename.removesuffix(SUFFIX): _array(archive, member)
                for member in archive.infolist()
            }
    except MemoryError:
        raise
    except Exception as error:  # NumPy, zipfile and zlib raise many kinds on damaged files
        raise UsageError(f"{shortened(path)} {what}: {in_one_line(error)}; {remedy}") from error


def _check_sizes(archive: zipfile.ZipFile, file_bytes: int) -> None:
    """See that all arrays together take no more memory than the file has bytes.

    Raises:
        ValueError: they do not, or are of another kind than those that `load` reads.
    """
    members = archive.infolist()
    if sum(member.file_size for member in members) > file_bytes:
        raise ValueError("it is compressed, or its parts are larger than the file")
    for member in members:
        with archive.open(member) as stream:
            shape, dtype = _header(stream)
            nbytes = math.prod(shape) * dtype.itemsize
            if dtype.kind not in KINDS or not dtype.itemsize:
                raise ValueError(f"{member.filename} holds {dtype}, and not floats or a text")
            if min(shape, default=0) < 0 or stream.tell() + nbytes != member.file_size:
                raise ValueError(f"{member.filename} has not the size that its header tells")


def _header(stream: Any) -> tuple[tuple[int, ...], np.dtype]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that Python 2 wrote
        try:
            shape, _, dtype = READ_HEADER[npy.read_magic(stream)](stream)
        except MemoryError as error:  # the parser's, of a header that is nested deeply
            raise ValueError("a header cannot be read") from error
    return shape, dtype


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return npy.read_array(stream, allow_pickle=False)
