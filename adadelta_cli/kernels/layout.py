"""The tensors of a fused step as its kernels see them, on any device: addresses, sizes, dtypes."""

from __future__ import annotations

import contextlib
import weakref
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from adadelta_cli.update import checked

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

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

    @property
    def held_bytes(self) -> int:
        """The bytes of an element in all five arrays."""
        weight, grad, state, half = self.zeros
        return sum(zero.itemsize for zero in (weight, grad, state, state, half) if zero is not None)


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

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
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

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
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
        tensor_ref(*each, interface, index)
        for index, each in enumerate(zip(parameters, learning_rates, weight_decays, strict=True))
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


def pinned(parameters: Iterable[Parameter]) -> tuple[Any, ...]:
    """Return what keeps the arrays' memory alive and in place, for a step to hold.

    NumPy frees the memory that an address is of in spite of a reference to the array: `resize` with
    `refcheck=False`, and a buffer below that is closed or grows. It refuses the one where there is
    a weak reference, and Python the other where there is a view of the buffer.
    """
    arrays = [array for parameter in parameters for array in parameter.arrays]
    return (*arrays, *(pin for array in arrays for pin in _pins(array)))


def _pins(array: Any) -> Iterator[Any]:
    """Pin a NumPy array, the arrays that it is a view of, and the buffer below."""
    while isinstance(array, np.ndarray):
        yield weakref.ref(array)
        array = array.base
    with contextlib.suppress(TypeError, ValueError, BufferError):  # it is no buffer
        yield memoryview(array)


def tensor_ref(
    parameter: Parameter, learning_rate: float, wd: float, interface: str = HOST, index: int = 0
) -> TensorRef:
    """Make a `TensorRef` of a parameter; `interface`: `HOST` or `CUDA`, where its arrays must be.

    `index` is what a message names the parameter by.

    Raises:
        TypeError: the combination of dtypes is not supported, or an array is in other memory.
        ValueError: an array is not C-contiguous, not aligned, has another shape, or is read-only.
    """
    if not hasattr(parameter, "arrays"):
        raise TypeError(
            f"a tensor is a {type(parameter).__name__}; expected a Parameter(weight, grad, "
            "acc_grad, acc_delta)"
        )
    p = parameter
    names = [f"{name} of parameter {index}" for name in (*NAMES, "master")[: len(p.arrays)]]
    for name, array in zip(names, p.arrays, strict=True):
        _check_array(name, array)
    try:
        layout = layout_of(*(array.dtype for array in p.arrays))
    except TypeError as error:
        raise TypeError(f"parameter {index}: {error}") from None
    addresses = []
    for name, array in zip(names, p.arrays, strict=True):
        _check_elements(name, array, p.weight.shape)
        addresses.append(_address(name, array, interface))
    return TensorRef(layout, kernel_order(addresses), p.weight.size, learning_rate, wd)


def _check_array(name: str, array: Any) -> None:
    """Check for an array of NumPy or CuPy; a NumPy scalar has only a copy's address."""
    if not isinstance(array, np.ndarray):
        library = type(array).__module__.partition(".")[0]
        if library != "cupy" or not hasattr(array, CUDA):
            raise TypeError(f"{name} is a {type(array).__name__}; expected a NumPy or CuPy array")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array, and a step would change what is masked; expected its "
            "plain data (.data)"
        )


def _check_elements(name: str, array: Any, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(
            f"{name} has shape {array.shape}; expected that of its weight, {shape}: reshape it"
        )
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{name} has strides {array.strides} at shape {shape}; expected a C-contiguous array: "
            "copy it (ascontiguousarray), and where it is a view, copy the result back"
        )


def _address(name: str, array: Any, interface: str) -> int:
    try:
        address, read_only = getattr(array, interface)["data"]
    except AttributeError:
        raise TypeError(
            f"{name}, an array of {type(array).__module__}, has no {interface}: it is not in the "
            "memory of this step's device; pass arrays of that device"
        ) from None
    if read_only and not name.startswith("gradient"):
        raise ValueError(f"{name} is read-only; pass a writable array")
    if address % array.itemsize:
        raise ValueError(
            f"{name} is not aligned: its address is no multiple of its {array.itemsize} bytes an "
            "element; pass a copy (.copy())"
        )
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
