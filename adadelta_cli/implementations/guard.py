"""Arrays between guard zones, which show writes outside of an array."""

from __future__ import annotations

from typing import Any

import numpy as np

GUARD_BYTES = 4096
GUARD = 0x3F  # a normal positive number in any float dtype, so an update changes it


def poison(count: int, nbytes: int, xp: Any = np) -> None:
    """Fill and free memory that `count` new arrays of a size are likely to get.

    An unwritten element of a new array then holds `GUARD`, and not the correct result of an earlier
    call.
    """
    filled = [xp.full(nbytes, GUARD, np.uint8) for _ in range(count)]
    del filled


def library(array: Any) -> Any:
    """Return the module of an array: NumPy or CuPy."""
    if not hasattr(array, "__cuda_array_interface__"):
        return np
    import cupy

    return cupy


def address(array: Any) -> int:
    """Return the address of a NumPy or CuPy array."""
    return array.ctypes.data if library(array) is np else array.data.ptr


class Guarded:
    """A copy of an array between two guard zones.

    Args:
        values: the NumPy or CuPy array to copy.
        shift: the copy's offset from a multiple of 64 bytes, in elements.
    """

    def __init__(self, values: Any, shift: int) -> None:
        room = values.nbytes + 2 * GUARD_BYTES + 64 + shift * values.itemsize
        self._buffer = library(values).full(room, GUARD, np.uint8)
        self._begin = GUARD_BYTES + -address(self._buffer) % 64 + shift * values.itemsize
        self._end = self._begin + values.nbytes
        inner = self._buffer[self._begin : self._end]
        self.array = inner.view(values.dtype).reshape(values.shape)
        self.array[...] = values

    def written_outside(self) -> str:
        """Describe what was written outside; empty if nothing was."""
        zones = {
            "before its start": self._buffer[: self._begin],
            "after its end": self._buffer[self._end :],
        }
        changed = {where: int((zone != GUARD).sum()) for where, zone in zones.items()}
        return ", ".join(f"{count} bytes {where}" for where, count in changed.items() if count)
