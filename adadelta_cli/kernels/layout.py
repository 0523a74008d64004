"""The tensors of a fused step as its kernels see them, on any device: addresses, sizes, dtypes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Never

import numpy as np

from adadelta_cli.update import checked

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adadelta_cli.update import Parameter

# The attribute that has an array's address, by memory: NumPy's array interface and Numba's CUDA
# array interface, both version 3.
HOST, CUDA = "__array_interface__", "__cuda_array_interface__"


@dataclass(frozen=True, eq=False)  # zeros of all dtypes are equal: compare by identity
class DTypeLayout:
    """The element types of a tensor's arrays, each given by a zero; float16 by its bits."""

    name: str  # the last part of the names of the GPU's kernels
    # Of weight, gradient and states; and of the float16 weight beside a master, else None.
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


class KeepsAddresses:
    """A base for what keeps addresses of arrays: it is not copied and not pickled.

    A copy would write into the original's arrays, or, in another process, anywhere.
    """

    __slots__ = ()

    def __reduce_ex__(self, _protocol: Any) -> Never:
        """Refuse `copy.copy`, `copy.deepcopy` and `pickle`."""
        raise TypeError(
            f"a {type(self).__name__} keeps addresses of arrays, so it cannot be copied or "
            "pickled; copy the arrays and make a new step of them"
        )


class TensorRef(NamedTuple):
    """One tensor as the kernel sees it; rate and decay are times their multipliers, in double.

    `addresses` are those of the updated weight (the master where there is one), the gradient,
    acc_grad, acc_delta, and the float16 weight beside a master, else 0.
    """

    layout: DTypeLayout
    addresses: tuple[int, int, int, int, int]
    size: int  # in elements
    learning_rate: float
    wd: float

    def __reduce_ex__(self, protocol: Any) -> Never:
        """Refuse copies, as `KeepsAddresses` does; a named tuple has no other base."""
        KeepsAddresses.__reduce_ex__(self, protocol)  # type: ignore[arg-type]

    def spans(self) -> list[Span]:
        """List the memory of its arrays; an empty one has none."""
        weight, grad, state, half = self.layout.zeros
        names = NAMES if half is None else MASTER_NAMES
        arrays = zip(names, self.addresses, (weight, grad, state, state, half), strict=False)
        return [
            Span(start, start + self.size * zero.itemsize, name != "gradient", name)
            for name, start, zero in arrays
            if self.size
        ]


class Span(NamedTuple):
    """The memory of an array: addresses from `start` up to `end`, which it excludes."""

    start: int
    end: int
    written: bool
    name: str


# The arrays at `TensorRef.addresses`.
NAMES = ("weight", "gradient", "acc_grad", "acc_delta")
MASTER_NAMES = ("master", *NAMES[1:], "weight")


def group_by_layout(refs: Iterable[TensorRef]) -> dict[DTypeLayout, list[TensorRef]]:
    """Group tensors by their dtype layout."""
    groups: dict[DTypeLayout, list[TensorRef]] = defaultdict(list)
    for ref in refs:
        groups[ref.layout].append(ref)
    return groups


def tensor_refs(
    parameters: Sequence[Parameter],
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    interface: str = HOST,
) -> list[TensorRef]:
    """Make a `TensorRef` of each parameter.

    Raises:
        TypeError: as `tensor_ref`; or an argument is no sequence.
        ValueError: as `tensor_ref`; a rate or a weight decay is no finite number; their numbers
            and that of the parameters differ; or arrays overlap.
    """
    rates = {"learning_rates": learning_rates, "weight_decays": weight_decays}
    for name, given in {"parameters": parameters, **rates}.items():
        if isinstance(given, (str, bytes)) or not hasattr(given, "__len__"):
            raise TypeError(
                f"{name} is a {type(given).__name__}; expected a sequence, one of each for each "
                "tensor"
            )
    counts = len(parameters), len(learning_rates), len(weight_decays)
    if len(set(counts)) > 1:
        raise ValueError(
            f"{counts[0]} parameters, {counts[1]} learning rates, {counts[2]} weight decays; "
            "expected one of each for each tensor"
        )
    for name, numbers in rates.items():
        for k, number in enumerate(numbers):
            checked(f"{name}[{k}]", number, "a finite number")
    refs = [
        tensor_ref(*each, interface)
        for each in zip(parameters, learning_rates, weight_decays, strict=True)
    ]
    check_disjoint(refs)
    return refs


def check_disjoint(refs: Sequence[TensorRef], indices: Sequence[int] = ()) -> None:
    """Check that no array that a step writes shares memory with another one.

    What is written twice in one pass has no defined value. Gradients are only read, so they may
    share memory with each other.

    Args:
        refs: the tensors.
        indices: by which a message names them; by default their positions.

    Raises:
        ValueError: two arrays overlap; it names them.
    """
    found = [
        span._replace(name=f"{span.name} of parameter {index}")
        for index, ref in zip(indices or range(len(refs)), refs, strict=True)
        for span in ref.spans()
    ]
    farthest: dict[bool, Span] = {}  # of those that are written or only read, so far
    for span in sorted(found):
        for written, before in farthest.items():
            if (written or span.written) and span.start < before.end:
                raise ValueError(
                    f"{before.name} and {span.name} share memory, so the result is undefined; "
                    "pass separate arrays, and a shared weight once, with the sum of its gradients"
                )
        if span.written not in farthest or span.end > farthest[span.written].end:
            farthest[span.written] = span


def all_arrays(parameters: Iterable[Parameter]) -> tuple[Any, ...]:
    """List all arrays, for a step to keep alive: the caller may change its own list."""
    return tuple(array for parameter in parameters for array in parameter.arrays)


def tensor_ref(
    parameter: Parameter, learning_rate: float, wd: float, interface: str = HOST
) -> TensorRef:
    """Make a `TensorRef` of a parameter; `interface`: `HOST` or `CUDA`, where its arrays must be.

    Raises:
        TypeError: the combination of dtypes is not supported, or an array is in other memory.
        ValueError: an array is not C-contiguous, has another shape, or is read-only.
    """
    p = parameter
    _check_arrays(p)
    layout = layout_of(*(array.dtype for array in p.arrays))
    for array in p.arrays:
        if array.shape != p.weight.shape or not array.flags.c_contiguous:
            raise ValueError(
                f"the fused step takes C-contiguous arrays of one shape, the weight's "
                f"{p.weight.shape}; got shape {array.shape}, strides {array.strides}"
            )
    addresses = [_address(array, interface, written=array is not p.grad) for array in p.arrays]
    return TensorRef(layout, kernel_order(addresses), p.weight.size, learning_rate, wd)


def _check_arrays(parameter: Parameter) -> None:
    """Check that a parameter's arrays are arrays; a NumPy scalar has only a copy's address."""
    if not hasattr(parameter, "arrays"):
        raise TypeError(
            f"a tensor is a {type(parameter).__name__}; expected a Parameter(weight, grad, "
            "acc_grad, acc_delta)"
        )
    for name, array in zip((*NAMES, "master"), parameter.arrays, strict=False):
        is_array = hasattr(array, HOST) or hasattr(array, CUDA)
        if not is_array or isinstance(array, np.generic):
            raise TypeError(
                f"a parameter's {name} is a {type(array).__name__}; expected a NumPy or CuPy array"
            )


def _address(array: Any, interface: str, *, written: bool) -> int:
    try:
        address, read_only = getattr(array, interface)["data"]
    except AttributeError:
        raise TypeError(
            f"an array of {type(array).__module__} has no {interface}: it is not in the memory of "
            "this step's device; pass arrays of that device"
        ) from None
    if written and read_only:
        raise ValueError("a weight or a state is read-only; pass a writable array")
    return address


def kernel_order(addresses: Sequence[int]) -> tuple[int, int, int, int, int]:
    """Order the addresses of `Parameter.arrays` as `TensorRef.addresses`."""
    weight, grad, acc_grad, acc_delta, *master = addresses
    if master:
        return master[0], grad, acc_grad, acc_delta, weight
    return weight, grad, acc_grad, acc_delta, 0


@cache
def layout_of(*dtypes: Any) -> DTypeLayout:
    """Look up the layout for the dtypes of `Parameter.arrays`.

    Raises:
        TypeError: no kernel supports them.
    """
    given = map(np.dtype, dtypes)
    names = tuple(dtype.name if dtype.isnative else dtype.str for dtype in given)
    if names not in SUPPORTED:
        raise TypeError(
            f"weight, gradient, acc_grad, acc_delta{', master' * (len(names) > 4)} are "
            f"{', '.join(names)}; AdaDelta takes float32 or float64 throughout, or float16 "
            "weights and gradients on float32 states (and master), in the machine's byte order"
        )
    return SUPPORTED[names]
