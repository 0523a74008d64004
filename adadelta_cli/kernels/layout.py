"""The tensors of a fused step as its kernels see them, on any device: addresses, sizes, kinds."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adadelta_cli.update import Parameter

# The attribute by which an array in this memory gives its address: NumPy's array interface, and
# Numba's CUDA array interface, both version 3.
HOST, CUDA = "__array_interface__", "__cuda_array_interface__"


@dataclass(frozen=True, eq=False)  # zeros of all types are equal: a kind is only itself
class DTypeLayout:
    """The element types of a tensor's arrays, each given by a zero; float16 by its bits.

    Attributes:
        name: what the kernels of this kind are called by.
        zeros: of weight, gradient and states; and of the float16 weight beside a master, else None.
    """

    name: str
    zeros: tuple[Any, Any, Any, Any]


_single, _double, _half = np.float32(0), np.float64(0), np.uint16(0)
# By the dtype of the weight and whether there is a float32 master.
LAYOUTS = {
    ("float32", False): DTypeLayout("float32", (_single, _single, _single, None)),
    ("float64", False): DTypeLayout("float64", (_double, _double, _double, None)),
    ("float16", False): DTypeLayout("float16", (_half, _half, _single, None)),
    ("float16", True): DTypeLayout("float16_master", (_single, _half, _single, _half)),
}
# By the dtypes of `Parameter.arrays`.
SUPPORTED = {
    ("float32",) * 4: LAYOUTS["float32", False],
    ("float64",) * 4: LAYOUTS["float64", False],
    ("float16",) * 2 + ("float32",) * 2: LAYOUTS["float16", False],
    ("float16",) * 2 + ("float32",) * 3: LAYOUTS["float16", True],
}


class TensorRef(NamedTuple):
    """One tensor as the kernel sees it: five addresses, a size, and its own rate and decay.

    `addresses` are of the weight that is updated (the master where there is one), the gradient,
    acc_grad, acc_delta, and the float16 weight of a master, else 0.
    """

    kind: DTypeLayout
    addresses: tuple[int, int, int, int, int]
    size: int
    learning_rate: float
    wd: float


def group_by_layout(operands: Iterable[TensorRef]) -> dict[DTypeLayout, list[TensorRef]]:
    """Sort tensors by their kind."""
    by_kind: dict[DTypeLayout, list[TensorRef]] = defaultdict(list)
    for operand in operands:
        by_kind[operand.kind].append(operand)
    return by_kind


def tensor_refs(
    parameters: Sequence[Parameter],
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    interface: str = HOST,
) -> list[TensorRef]:
    """Describe parameters, each as `operand` does.

    Raises:
        TypeError: as `operand`.
        ValueError: as `operand`; or there are not as many of each.
    """
    counts = len(parameters), len(learning_rates), len(weight_decays)
    if len(set(counts)) > 1:
        raise ValueError(
            f"{counts[0]} parameters, {counts[1]} learning rates, {counts[2]} weight decays; "
            "expected as many of each: one for each tensor"
        )
    return [
        tensor_ref(*each, interface)
        for each in zip(parameters, learning_rates, weight_decays, strict=True)
    ]


def all_arrays(parameters: Iterable[Parameter]) -> tuple[Any, ...]:
    """List all arrays: what has to live as long as their addresses are used.

    The caller's own list is no substitute: the caller may clear it, or replace an item.
    """
    return tuple(array for parameter in parameters for array in parameter.arrays)


def tensor_ref(
    parameter: Parameter, learning_rate: float, wd: float, interface: str = HOST
) -> TensorRef:
    """Describe a parameter that is held in arrays.

    Args:
        parameter: the arrays, all of one library.
        learning_rate: rate times multiplier, in double.
        wd: weight decay times multiplier, in double.
        interface: `HOST` or `CUDA`, for the memory that the arrays must lie in.

    Raises:
        TypeError: the dtypes do not go together, or an array lies in other memory.
        ValueError: an array is not C-contiguous, has another shape, may not be written, or stands
            twice.
    """
    p = parameter
    kind = layout_of(*(array.dtype for array in p.arrays))
    for array in p.arrays:
        if array.shape != p.weight.shape or not array.flags.c_contiguous:
            raise ValueError(
                f"the fused step takes C-contiguous arrays of one shape, the weight's "
                f"{p.weight.shape}; got shape {array.shape}, strides {array.strides}"
            )
    addresses = [_address(array, interface, written=array is not p.grad) for array in p.arrays]
    if p.weight.size and len(set(addresses)) < len(addresses):
        raise ValueError("two of weight, gradient and states are one array; each has its own")
    return TensorRef(kind, kernel_order(addresses), p.weight.size, learning_rate, wd)


def _address(array: Any, interface: str, *, written: bool) -> int:
    try:
        address, read_only = getattr(array, interface)["data"]
    except AttributeError:
        raise TypeError(
            f"an array of {type(array).__module__} has no {interface}, so it does not lie in the "
            "memory that this step works on; give the step arrays of its own device"
        ) from None
    if written and read_only:
        raise ValueError("a weight or a state may not be written (its memory is read-only)")
    return address


def kernel_order(addresses: Sequence[int]) -> tuple[int, int, int, int, int]:
    """Order the addresses of `Parameter.arrays` as the kernel's table has them."""
    weight, grad, acc_grad, acc_delta, *master = addresses
    if master:
        return master[0], grad, acc_grad, acc_delta, weight
    return weight, grad, acc_grad, acc_delta, 0


@cache
def layout_of(*dtypes: Any) -> DTypeLayout:
    """Look up the kernel for the dtypes of `Parameter.arrays`.

    Raises:
        TypeError: there is none.
    """
    found = [np.dtype(dtype) for dtype in dtypes]
    names = tuple(dtype.name if dtype.isnative else dtype.str for dtype in found)
    if names not in SUPPORTED:
        raise TypeError(
            f"weight, gradient, acc_grad, acc_delta{', master' * (len(names) > 4)} are "
            f"{', '.join(names)}; the fused step takes float32 or float64 throughout, or float16 "
            "weights and gradients on float32 states (and master), in the machine's byte order"
        )
    return SUPPORTED[names]
