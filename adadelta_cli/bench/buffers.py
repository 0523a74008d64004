"""The tensors that a step is timed on, and the memory that they lie in."""

from __future__ import annotations

import contextlib
import math
import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli.update import Parameter, state_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ALIGNMENT_BYTES = 64  # a cache line
PAGE_BYTES = 4096
HUGE_PAGE_BYTES = 2 * 1024**2
# A load whose address differs from a pending store's by whole pages waits for it needlessly ("4K
# aliasing"), so each array begins a fifth of a page after the previous one, modulo pages.
STAGGER_BYTES = PAGE_BYTES // 5 // ALIGNMENT_BYTES * ALIGNMENT_BYTES
DRAWN = 1_000_003  # random values, repeated to fill the tensors
COPIES = 1024  # of tensors that are timed cold, at most
EVICTED_TIMES = 2  # how many last-level caches are overwritten between two steps on the same copy


def traffic_bytes(dtype: str) -> int:
    """Count the bytes that a step must move for each element: reads of four, writes of three.

    A float16 weight adds its own write to the three of the float32 master and states, and is never
    read; its gradient is float16 too.

    >>> [traffic_bytes(dtype) for dtype in ("float32", "float64", "float16")]
    [28, 56, 28]
    """
    stored, state = (np.dtype(kind).itemsize for kind in (dtype, state_dtype(dtype)))
    return 6 * state + (2 if dtype == "float16" else 1) * stored


def held_bytes(dtype: str) -> int:
    """Count the bytes that the arrays of a step hold for each element.

    >>> [held_bytes(dtype) for dtype in ("float32", "float64", "float16")]
    [16, 32, 16]
    """
    return sum(np.dtype(kind).itemsize for kind in _dtypes(dtype))


def cold_copies(size: int, cache_bytes: int) -> tuple[int, int]:
    """Count the copies of tensors that are timed in turn, so that each is out of the caches.

    The other copies evict a copy before its next turn. Where `COPIES` of them are too small for
    that, other memory is overwritten before each sample.

    Args:
        size: bytes of one copy.
        cache_bytes: size of the last-level cache.

    Returns:
        The number of copies; the bytes of other memory, 0 for none.
    """
    far = EVICTED_TIMES * cache_bytes
    copies = -(-far // size) + 1
    return (copies, 0) if copies <= COPIES else (COPIES, far)


def fresh_bytes(size: int) -> tuple[np.ndarray, int]:
    """Allocate memory for NumPy's arrays; return it, and its address.

    Huge pages are requested (madvise(2)). Pages of 4 KiB are placed differently in each process,
    and so are their conflicts in the second-level cache, whose sets follow physical addresses.
    """
    mapped = mmap.mmap(-1, size)
    with contextlib.suppress(AttributeError, OSError):  # a system without them
        mapped.madvise(mmap.MADV_HUGEPAGE)
    taken = np.frombuffer(mapped, dtype=np.uint8)
    return taken, taken.ctypes.data


class Region:
    """Newly allocated memory that is divided into lines of arrays, one behind the other.

    Args:
        size: bytes of all lines together.
        lines: their number.
        fresh: allocates a number of bytes; returns them, and their address.
        held: copies values to the device of the lines.
    """

    def __init__(
        self,
        size: int,
        lines: int,
        fresh: Callable[[int], tuple[Any, int]] = fresh_bytes,
        held: Callable[[np.ndarray], Any] = np.asarray,
    ) -> None:
        self._bytes, address = fresh(size + lines * 2 * PAGE_BYTES + HUGE_PAGE_BYTES)
        self._next = -address % HUGE_PAGE_BYTES
        self._held = held

    def line(self, number: int, values: np.ndarray, total: int, dtype: Any) -> Any:
        """Repeat values over the next `total` elements, of the array of this number."""
        size = total * np.dtype(dtype).itemsize
        start = -(-self._next // PAGE_BYTES) * PAGE_BYTES + number * STAGGER_BYTES
        self._next = start + size
        line = self._bytes[start : start + size].view(dtype)
        values = self._held(values.astype(dtype))
        for at in range(0, total, values.size):
            line[at : at + values.size] = values[: total - at]
        return line


@dataclass(frozen=True)
class TensorSet:
    """The tensors of a workload, and the lines of memory that they are views of.

    Attributes:
        line: all tensors concatenated, each array of one dimension.
        parameters: views of `line`, each beginning at a cache line.
    """

    line: Parameter
    parameters: list[Parameter]

    @classmethod
    def allocate(
        cls,
        shapes: Sequence[Sequence[int]],
        dtype: str,
        seed: int,
        copies: int = 1,
        region: Callable[[int, int], Region] = Region,
    ) -> list[TensorSet]:
        """Make tensors whose values stay normal numbers, for any number of steps.

        The gradients stay as they are, normally distributed with nothing below 1e-3, so that
        acc_grad goes to their square and acc_delta grows slowly, never beyond it.

        Args:
            shapes: of the tensors.
            dtype: float32, float64, or float16 with float32 masters.
            seed: of the values.
            copies: how many sets to make; they share no memory.
            region: allocates the memory, from its size in bytes and the number of lines in it.
        """
        starts = _starts(shapes, np.dtype(dtype).itemsize)
        total = starts.pop()
        values = np.random.default_rng(seed).standard_normal(min(total, DRAWN))
        values += np.copysign(1e-3, values)
        memory = region(copies * total * held_bytes(dtype), copies * len(_dtypes(dtype)))
        lines = [_line(memory, values, total, dtype) for _ in range(copies)]
        cuts = [(at, math.prod(shape), shape) for at, shape in zip(starts, shapes, strict=True)]
        return [cls(line, [_cut(line, *cut) for cut in cuts]) for line in lines]


def _dtypes(dtype: str) -> list[Any]:
    """List the dtypes of the arrays of a parameter."""
    state = np.dtype(state_dtype(dtype))
    return [dtype, dtype, state, state] + [state] * (dtype == "float16")


def _line(region: Region, values: np.ndarray, total: int, dtype: str) -> Parameter:
    signs = np.sign(values)
    filled = (signs, values, values**2, values**2 * 1e-3, signs)
    kinds = enumerate(_dtypes(dtype))
    return Parameter(*(region.line(k, filled[k], total, kind) for k, kind in kinds))


def _cut(line: Parameter, at: int, size: int, shape: Sequence[int]) -> Parameter:
    return Parameter(*(array[at : at + size].reshape(shape) for array in line.arrays))


def _starts(shapes: Sequence[Sequence[int]], itemsize: int) -> list[int]:
    """Return the element at which each tensor begins, and where the last cache line ends."""
    step = ALIGNMENT_BYTES // itemsize
    sizes = [-(-math.prod(shape) // step) * step for shape in shapes]
    return [0, *np.cumsum(sizes).tolist()]
