"""Arrays between guard zones, in which whatever is written outside of them shows."""

from __future__ import annotations

import numpy as np

GUARD_BYTES = 4096
GUARD = 0x3F  # as a float of any size an ordinary positive number, so that an update changes it


def poison(count: int, nbytes: int) -> None:
    """Fill memory that `count` new arrays of a size are likely to get, and free it.

    An element that is left unwritten in a new array then holds `GUARD`, and not by luck the number
    that an earlier array had there.
    """
    filled = [np.full(nbytes, GUARD, np.uint8) for _ in range(count)]
    del filled


class Guarded:
    """A copy of an array between two guard zones.

    Args:
        values: what is copied.
        shift: how many elements the copy lies behind a multiple of 64 bytes.
    """

    def __init__(self, values: np.ndarray, shift: int) -> None:
        room = values.nbytes + 2 * GUARD_BYTES + 64 + shift * values.itemsize
        self._buffer = np.full(room, GUARD, np.uint8)
        self._begin = GUARD_BYTES + -self._buffer.ctypes.data % 64 + shift * values.itemsize
        self._end = self._begin + values.nbytes
        inner = self._buffer[self._begin : self._end]
        self.array = inner.view(values.dtype).reshape(values.shape)
        self.array[...] = values

    def written_outside(self) -> str:
        """Say what was written outside; empty when nothing was."""
        zones = {"before its start": self._buffer[: self._begin],
                 "after its end": self._buffer[self._end :]}  # fmt: skip
        changed = {where: int((zone != GUARD).sum()) for where, zone in zones.items()}
        return ", ".join(f"{count} bytes {where}" for where, count in changed.items() if count)
