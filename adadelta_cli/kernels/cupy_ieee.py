"""CuPy arrays with exact IEEE 754 operators: `xp` of the unfused step on a GPU.

CuPy compiles its own operators with `-ftz=true` (`_compile_with_cache_cuda` in
cupy/cuda/compiler.py, CuPy 13 and 14; https://github.com/cupy/cupy/issues/8382), so they flush
float32 subnormals to zero, which NumPy does not. The operators here are kernels of `adadelta.cu`,
one operation each. CuPy itself only selects (`where`) and converts between float16 and float32,
which is exact or rounds once, float16's subnormals included.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from adadelta_cli.kernels import cuda


class IeeeArray:
    """A CuPy array, float32 or float64, C-contiguous, with the operators that `update` uses.

    Attributes:
        values: the CuPy array.
    """

    __array_ufunc__ = None  # a NumPy scalar on the left defers to this class's operators

    def __init__(self, values: Any) -> None:
        self.values = values
        self.dtype, self.ndim = values.dtype, values.ndim

    def astype(self, dtype: Any) -> IeeeArray:
        """Copy to another dtype."""
        return IeeeArray(self.values.astype(dtype))

    def __setitem__(self, key: Any, new: IeeeArray) -> None:
        self.values[key] = new.values

    def __add__(self, other: Any) -> IeeeArray:
        return add(self, other)

    def __mul__(self, other: Any) -> IeeeArray:
        return _computed("multiply", self, other)

    def __rmul__(self, other: Any) -> IeeeArray:
        return _computed("multiply", other, self)

    def __truediv__(self, other: Any) -> IeeeArray:
        return _computed("divide", self, other)

    def __lt__(self, other: Any) -> IeeeArray:
        return _computed("less", self, other)

    def __gt__(self, other: Any) -> IeeeArray:
        return _computed("less", other, self)


def sqrt(array: IeeeArray) -> IeeeArray:
    """Take the square root."""
    return _computed("sqrt", array, array)


def where(condition: IeeeArray, chosen: Any, other: IeeeArray) -> IeeeArray:
    """Select `chosen` where the condition holds, else `other`, element by element."""
    import cupy

    return IeeeArray(cupy.where(condition.values, chosen, other.values))


def _computed(operation: str, left: Any, right: Any, out: IeeeArray | None = None) -> IeeeArray:
    """Compute on two arrays of one shape and dtype, or an array and a scalar of its dtype."""
    import cupy

    like = left if isinstance(left, IeeeArray) else right
    if out is None:
        dtype = np.bool_ if operation == "less" else like.dtype
        out = IeeeArray(cupy.empty(like.values.shape, dtype))
    size = like.values.size
    if size:
        (lefts, a), (rights, b) = (_operand(each, like.dtype.type) for each in (left, right))
        blocks = min(-(-size // cuda.THREADS), cuda.MOST_BLOCKS)
        launch = cuda.kernel(f"{operation}_{like.dtype.name}")
        launch((blocks,), (cuda.THREADS,), (out.values, lefts, rights, a, b, np.int64(size)))
    return out


add = partial(_computed, "add")  # `out` may be an operand
subtract = partial(_computed, "subtract")


def _operand(operand: Any, real: Any) -> tuple[np.uint64, Any]:
    """Return an array's address and 0, or 0 and a scalar's value."""
    if isinstance(operand, IeeeArray):
        return np.uint64(operand.values.data.ptr), real(0)
    return np.uint64(0), real(operand)
