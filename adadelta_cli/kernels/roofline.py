"""The two roofs that no AdaDelta step on this machine can pierce, timed as kernels.

S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for
multicore architectures", CACM 52(4), 2009. The memory roof moves AdaDelta's own traffic, four
arrays read and three written, with next to no arithmetic. The arithmetic roof does AdaDelta's own
arithmetic, as many elements of it, on data that never leaves the first-level cache. A step cannot
be faster than the slower of the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from numba import prange

from adadelta_cli.kernels.cpu import (
    KINDS,
    _load,
    _store,
    _update_slice,
    compiled,
    compiled_parallel,
    parts_for,
)

if TYPE_CHECKING:
    from adadelta_cli.update import Hyperparameters, Parameter

# The arrays that the arithmetic roof works on: they have to fit the first-level cache, and be long
# enough that starting on them again costs nothing. Measured, a nanosecond an element on one
# thread: 8 KiB 0.36, 16 KiB 0.32, 32 KiB 0.30; the update itself takes 0.30.
CACHED_BYTES = 32 * 1024


@compiled
def _traffic_slice(weight, grad, acc_grad, acc_delta, half, factor):
    for i in range(weight.size):
        change = factor * _load(grad[i])
        new = weight[i] + change
        weight[i] = new
        acc_grad[i] = acc_grad[i] + change
        acc_delta[i] = acc_delta[i] + change
        if half is not None:
            half[i] = _store(new, half[i])


@compiled_parallel
def _traffic(weight, grad, acc_grad, acc_delta, half, factor, parts):
    total = weight.size
    for part in prange(parts):
        low, high = total * part // parts, total * (part + 1) // parts
        _traffic_slice(
            weight[low:high],
            grad[low:high],
            acc_grad[low:high],
            acc_delta[low:high],
            half[low:high] if half is not None else None,
            factor,
        )


@compiled
def _arithmetic_part(weight, grad, acc_grad, acc_delta, half, zero, hyper, elements):
    while elements > 0:
        size = min(elements, weight.size)
        _update_slice(
            weight[:size],
            grad[:size],
            acc_grad[:size],
            acc_delta[:size],
            half[:size] if half is not None else None,
            zero,
            zero,
            hyper,
        )
        elements -= size


@compiled_parallel
def _arithmetic(weight, grad, acc_grad, acc_delta, half, zero, hyper, total, parts):
    for part in prange(parts):
        _arithmetic_part(
            weight[part],
            grad[part],
            acc_grad[part],
            acc_delta[part],
            half[part] if half is not None else None,
            zero,
            hyper,
            total * (part + 1) // parts - total * part // parts,
        )


class Roofs:
    """The two roofs of one workload, on the memory that its steps use.

    Args:
        line: all tensors of the workload laid end to end in NumPy arrays of one dimension,
            float32, float64, or float16 with a float32 master. Their values do not change.
        hyper: the hyper-parameters of the step.
    """

    def __init__(self, line: Parameter, hyper: Hyperparameters) -> None:
        kind = KINDS[str(line.weight.dtype), line.master is not None]
        real = kind.state.dtype.type
        has_half = kind.half is not None
        self.parts = parts_for(line.weight.size)
        self._line = (
            line.master if has_half else line.weight,
            line.grad.view(kind.grad.dtype),
            line.acc_grad,
            line.acc_delta,
            line.weight.view(np.uint16) if has_half else None,
        )
        # Added, times the gradient: so little that no element changes, and never a subnormal.
        self._factor = np.sqrt(np.finfo(real).tiny)
        self._zero = real(0)
        self._hyper = tuple(hyper.scalars(real))
        arrays = [array for array in self._line if array is not None]
        size = CACHED_BYTES // sum(array.itemsize for array in arrays)
        self._cached = [_rows(array, self.parts, size) for array in self._line]

    def memory(self) -> None:
        """Move the bytes of one step."""
        _traffic(*self._line, self._factor, self.parts)

    def arithmetic(self) -> None:
        """Do the arithmetic of one step, at a learning rate of 0, so that it can go on for ever."""
        total = self._line[0].size
        _arithmetic(*self._cached, self._zero, self._hyper, total, self.parts)


def _rows(line: Any, parts: int, size: int) -> Any:
    """Repeat the start of a line in a small aligned array, a row for each part."""
    if line is None:
        return None
    room = np.empty(parts * size * line.itemsize + 64, dtype=np.uint8)
    start = -room.ctypes.data % 64
    rows = room[start : start + parts * size * line.itemsize].view(line.dtype).reshape(parts, size)
    rows[...] = np.resize(line[:size], size)
    return rows


def threading_layer() -> str:
    """Name the library that runs Numba's threads, known once something ran in parallel."""
    return numba.threading_layer()
