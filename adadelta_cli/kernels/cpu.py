"""The update in one pass over memory on a CPU, compiled by Numba: the fused step.

Tensors are treated as one concatenated range, split into equal chunks, so every thread is busy
whatever the mix of sizes. An element's result depends on that element only, so neither the chunks
nor the number of threads change a bit.

`fastmath` and contraction into fused multiply-adds are off: the operations have the order of
`update.py`, hence its bits. `error_model="numpy"` omits the test for division by zero, which would
prevent vectorisation.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import platform
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import carray, prange, types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, overload
from numba.np.arrayobj import make_array

from adadelta_cli.kernels import cache
from adadelta_cli.kernels.layout import (
    DTypeLayout,
    KeepsAddresses,
    TensorRef,
    group_by_layout,
    pinned,
    tensor_refs,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from adadelta_cli.update import Parameter, Scalars

compiled = cache.njit(cache=True, nogil=True, error_model="numpy")
compiled_parallel = cache.njit(cache=True, nogil=True, error_model="numpy", parallel=True)

# Below this many elements, waking the other threads costs more than they save.
SERIAL_ELEMENTS = 4096
# Software prefetch, 512 elements ahead, in blocks of 64: hardware prefetching stops at each page.
# Measured, float32, two threads, 1e7 elements: 4.85 ms without, 3.43 ms with it; blocks of 128 take
# 3.48 ms, of 256 3.98 ms; 1024 elements ahead take 3.53 ms.
BLOCK_ELEMENTS, AHEAD_ELEMENTS = 64, 512
LINE_ELEMENTS = 16  # float32 elements a cache line; a line of float64 is prefetched twice
FLUSH_TO_ZERO, DENORMALS_ARE_ZERO = 0x8000, 0x0040  # MXCSR, Intel SDM vol. 1, 10.2.3
ON_X86 = platform.machine() in {"x86_64", "AMD64"}

binding.initialize_native_asmparser()  # for the two instructions that reach MXCSR

# The layout of a table; see `pack_table`.
FLUSH, CHUNKS, FIXED_CHUNKS, DOUBLES, HEAD = 0, 1, 2, 3, 8
ADDRESSES, COLUMNS = 5, 8

launching = threading.Lock()  # Numba's workqueue layer aborts the process on concurrent launches


@intrinsic
def _pointer(_context, _address, _offset, like):
    """Make a pointer from an address and an offset in elements of the type of `like`."""

    def generate(context, builder, signature, args):
        base = builder.inttoptr(args[0], context.get_value_type(signature.return_type))
        return builder.gep(base, [args[1]])

    return types.CPointer(like)(types.uint64, types.int64, like), generate


@intrinsic
def _prefetch(_context, _array, _index):
    """Prefetch the cache line of an element; beyond the end, do nothing."""

    def generate(context, builder, signature, args):
        array = make_array(signature.args[0])(context, builder, args[0])
        bytes_, number = ir.PointerType(ir.IntType(8)), ir.IntType(32)
        function = ir.FunctionType(ir.VoidType(), [bytes_, number, number, number])
        prefetch = get_or_insert_function(builder.module, function, "llvm.prefetch.p0")
        address = builder.bitcast(builder.gep(array.data, [args[1]]), bytes_)
        # For a write, into all cache levels, data cache: LLVM language reference, llvm.prefetch.
        builder.call(prefetch, [address, number(1), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(_array, types.int64), generate


@intrinsic
def _half_to_single(_context, _bits):
    """Widen a float16, given as its bits: exact."""

    def generate(_context, builder, _signature, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def _single_to_half(_context, _value):
    """Round a float32 to the nearest float16, ties to even; return its bits."""

    def generate(_context, builder, _signature, args):
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


def _mxcsr_slot(builder):
    slot = builder.alloca(ir.IntType(32))
    return slot, builder.bitcast(slot, ir.PointerType(ir.IntType(8)))


def _mxcsr_instruction(builder, name, slot):
    signature = ir.FunctionType(ir.VoidType(), [ir.PointerType(ir.IntType(8))])
    # "memory": no load or store, hence no arithmetic between them, moves across this instruction.
    assembly = ir.InlineAsm(signature, f"{name} ($0)", "r,~{memory}", side_effect=True)
    builder.call(assembly, [slot])


@intrinsic
def read_mxcsr(_context):  # noqa: ANN201 - Numba's
    """Read MXCSR, the control register of the vector unit; 0 on processors without it."""

    def generate(_context, builder, _signature, _args):
        if not ON_X86:
            return ir.Constant(ir.IntType(32), 0)
        slot, address = _mxcsr_slot(builder)
        _mxcsr_instruction(builder, "stmxcsr", address)
        return builder.load(slot)

    return types.uint32(), generate


@intrinsic
def write_mxcsr(_context, _value):  # noqa: ANN201
    """Write MXCSR; do nothing on processors without it."""

    def generate(context, builder, _signature, args):
        if ON_X86:
            slot, address = _mxcsr_slot(builder)
            builder.store(args[0], slot)
            _mxcsr_instruction(builder, "ldmxcsr", address)
        return context.get_dummy_value()

    return types.void(types.uint32), generate


def _load(bits): ...
def _store(value, like): ...
def _view(address, offset, size, like): ...
def _slice(array, low, high): ...
def _rounded(value, like): ...


@overload(_load, inline="always")
def _load_overload(bits):
    """Widen a stored element: a float16, given by its bits, to float32."""
    if bits == types.uint16:
        return lambda bits: _half_to_single(bits)
    return lambda bits: bits


@overload(_store, inline="always")
def _store_overload(value, like):
    """Round to the stored type: that of `like`."""
    if like == types.uint16:
        return lambda value, like: _single_to_half(value)
    return lambda value, like: value


@overload(_view, inline="always")
def _view_overload(address, offset, size, like):
    """View `size` elements at an address; None where `like` is None."""
    if isinstance(like, types.NoneType):
        return lambda address, offset, size, like: None
    return lambda address, offset, size, like: carray(_pointer(address, offset, like), (size,))


@overload(_slice, inline="always")
def _slice_overload(array, low, high):
    """Slice an array; None where it is None."""
    if isinstance(array, types.NoneType):
        return lambda array, low, high: None
    return lambda array, low, high: array[low:high]


@overload(_rounded, inline="always")
def _rounded_overload(value, like):
    """Round a float64 to the type of `like`, once."""
    if like == types.float32:
        return lambda value, like: np.float32(value)
    return lambda value, like: value


@compiled
def _update(weight, grad, acc_grad, acc_delta, learning_rate, wd, hyper):
    """Take one step on one element; all scalars have the type of the states."""
    rescale_grad, clip, rho, one_minus_rho, epsilon = hyper
    grad = grad * rescale_grad
    grad = -clip if grad < -clip else grad
    grad = clip if grad > clip else grad
    grad = grad + wd * weight
    acc_grad = acc_grad * rho
    acc_grad = acc_grad + one_minus_rho * (grad * grad)
    delta = np.sqrt(acc_delta + epsilon) / np.sqrt(acc_grad + epsilon) * grad
    acc_delta = acc_delta * rho
    acc_delta = acc_delta + one_minus_rho * (delta * delta)
    return weight - learning_rate * delta, acc_grad, acc_delta


@compiled
def _update_slice(weight, grad, acc_grad, acc_delta, half, learning_rate, wd, hyper):
    """Take the step on slices; `half` is the float16 weight beside a master `weight`, or None."""
    for i in range(weight.size):
        new, acc_grad[i], acc_delta[i] = _update(
            _load(weight[i]), _load(grad[i]), acc_grad[i], acc_delta[i], learning_rate, wd, hyper
        )
        weight[i] = _store(new, weight[i])
        if half is not None:
            half[i] = _store(new, half[i])


@compiled
def _prefetch_block(weight, grad, acc_grad, acc_delta, half, low, high):
    """Prefetch the elements `AHEAD_ELEMENTS` after the block [low, high)."""
    for i in range(low + AHEAD_ELEMENTS, high + AHEAD_ELEMENTS, LINE_ELEMENTS):
        _prefetch(weight, i)
        _prefetch(grad, i)
        _prefetch(acc_grad, i)
        _prefetch(acc_delta, i)
        if half is not None:
            _prefetch(half, i)


@compiled
def _update_stream(weight, grad, acc_grad, acc_delta, half, learning_rate, wd, hyper):
    """Take the step on long slices, in blocks, with software prefetch."""
    for low in range(0, weight.size, BLOCK_ELEMENTS):
        high = min(low + BLOCK_ELEMENTS, weight.size)
        _prefetch_block(weight, grad, acc_grad, acc_delta, half, low, high)
        _update_slice(
            weight[low:high],
            grad[low:high],
            acc_grad[low:high],
            acc_delta[low:high],
            _slice(half, low, high),
            learning_rate,
            wd,
            hyper,
        )


@compiled
def columns(table):  # noqa: ANN201 - Numba's
    """View a table's learning rates, weight decays, sizes and addresses."""
    count = (table.size - HEAD) // COLUMNS
    numbers = table.view(np.float64)[HEAD:]
    sizes = table[HEAD + 2 * count : HEAD + 3 * count].view(np.int64)
    addresses = table[HEAD + 3 * count :].reshape(count, ADDRESSES)
    return numbers[:count], numbers[count : 2 * count], sizes, addresses


@compiled
def _update_range(table, starts, hyper, kind, low, high):
    """Take the step on the elements [low, high) of the concatenated tensors."""
    weight0, grad0, state0, half0 = kind
    rates, weight_decays, _, addresses = columns(table)
    t = np.searchsorted(starts, low, side="right") - 1
    while low < high:
        at = low - starts[t]
        size = min(high, starts[t + 1]) - low
        if size > 0:
            _update_stream(
                _view(addresses[t, 0], at, size, weight0),
                _view(addresses[t, 1], at, size, grad0),
                _view(addresses[t, 2], at, size, state0),
                _view(addresses[t, 3], at, size, state0),
                _view(addresses[t, 4], at, size, half0),
                _rounded(rates[t], state0),
                _rounded(weight_decays[t], state0),
                hyper,
            )
        low += size
        t += 1


@compiled
def _update_range_in_mode(table, starts, hyper, kind, low, high):
    """Take the step in the table's subnormal mode; restore the thread's mode."""
    before = read_mxcsr()
    both = np.uint32(FLUSH_TO_ZERO | DENORMALS_ARE_ZERO)
    write_mxcsr((before | both) if table[FLUSH] else (before & ~both))
    _update_range(table, starts, hyper, kind, low, high)
    write_mxcsr(before)


@compiled
def _starts(sizes):
    """Return the first element of each tensor in the concatenated range, and the range's end."""
    starts = np.zeros(sizes.size + 1, np.int64)
    for t in range(sizes.size):
        starts[t + 1] = starts[t] + sizes[t]
    return starts


@compiled
def _hyper(doubles, like):
    """Round the hyper-parameters to the type of the states."""
    return (
        _rounded(doubles[0], like),
        _rounded(doubles[1], like),
        _rounded(doubles[2], like),
        _rounded(doubles[3], like),
        _rounded(doubles[4], like),
    )


@compiled_parallel
def _launch(table, kind):
    starts, doubles = _starts(columns(table)[2]), table.view(np.float64)[DOUBLES:HEAD]
    total, parts, hyper = starts[-1], np.int64(table[CHUNKS]), _hyper(doubles, kind[2])
    if parts == 1:  # in this thread: waking the others takes longer
        _update_range_in_mode(table, starts, hyper, kind, 0, total)
    else:
        for part in prange(parts):
            low, high = total * part // parts, total * (part + 1) // parts
            _update_range_in_mode(table, starts, hyper, kind, low, high)


@functools.cache
def launcher(layout: DTypeLayout) -> Any:
    """Compile the step on a table of tensors of one dtype layout.

    The layout is a constant and not an argument: each argument costs 0.1 us, and 1 us with cold
    caches.
    """
    zeros = layout.zeros

    @compiled
    def launch(table):
        _launch(table, zeros)

    return launch


@dataclass(frozen=True)
class PreparedCpuStep(KeepsAddresses):
    """A step that can be taken any number of times, on tensors at fixed addresses."""

    launches: list[tuple[Any, np.ndarray]]  # compiled function and table, for each layout
    owners: tuple[Any, ...] = ()  # keep the arrays' memory in place

    def __call__(self) -> None:
        """Take the step; thread-safe: calls take turns."""
        with launching:
            for launch, table in self.launches:
                launch(table)


def _call_serially(self: PreparedCpuStep) -> None:
    """Take the step in this thread."""
    with launching:
        for launch, table in self.launches:
            table[CHUNKS] = 1
            launch(table)


def _after_fork() -> None:
    """Make steps safe in a forked process.

    Another thread may have held the lock. And GNU OpenMP, once used, ends a forked process that
    uses it; so there, steps run in the calling thread: slower, with the same result.
    """
    global launching, fixed_chunks  # noqa: PLW0603
    launching = threading.Lock()
    with contextlib.suppress(ValueError):  # no threads were started before
        if numba.threading_layer() == "omp":
            fixed_chunks = 1
            PreparedCpuStep.__call__ = _call_serially  # type: ignore[method-assign]


os.register_at_fork(after_in_child=_after_fork)


def prepared(
    refs: Iterable[TensorRef],
    common: Scalars,
    *,
    flush_subnormals: bool = False,
    chunks: int | None = None,
    owners: Iterable[Parameter] = (),
) -> PreparedCpuStep:
    """Prepare a step on all tensors, in place, in one pass over memory.

    The caller must pass valid addresses.

    Args:
        refs: the tensors; those of one dtype layout share a launch.
        common: the hyper-parameters of all tensors, in double.
        flush_subnormals: treat subnormal operands and results as zero, as MXNet does by default;
            else strict IEEE 754, whatever the mode of the calling thread.
        chunks: how many chunks the work is split into; by default one a thread. The result does
            not depend on it.
        owners: the parameters that own the addresses; the step keeps their arrays alive.
    """
    launches = []
    for layout, group in group_by_layout(refs).items():
        table = pack_table(group, common)
        table[FLUSH] = flush_subnormals
        table[CHUNKS] = chunks or chunks_for(sum(ref.size for ref in group))
        launches.append((launcher(layout), table))
    return PreparedCpuStep(launches, pinned(owners))


def pack_table(refs: Sequence[TensorRef], common: Scalars) -> np.ndarray:
    """Pack tensors of one dtype layout and their hyper-parameters into the kernel's table.

    Returns:
        uint64[8 + 8 * tensors]. The head: FLUSH (treat subnormals as zero), CHUNKS (how many; 1
        here), FIXED_CHUNKS (0 here; used by `mxnet_bridge.ndarray_table`), and from DOUBLES on the
        bits of `Hyperparameters.doubles`. Then the columns, see `columns`: the bits of all learning
        rates and of all weight decays, the sizes, the addresses.
    """
    _, addresses, sizes, rates, weight_decays = zip(*refs, strict=True)
    values = (*common, *rates, *weight_decays, *sizes, *itertools.chain.from_iterable(addresses))
    packed = bytearray(struct.pack(table_format(len(sizes)), False, 1, 0, *values))
    return np.frombuffer(packed, np.uint64)


def table_format(tensors: int, *, whole: bool = True) -> str:
    """Return the `struct` format of a table, or of its head and the floats only."""
    numbers = f"=3Q5d{2 * tensors}d"
    return numbers + f"{tensors}q{ADDRESSES * tensors}Q" * whole


def empty_table(tensors: int) -> np.ndarray:
    """Return a table of zeros."""
    return np.zeros(HEAD + COLUMNS * tensors, np.uint64)


def select_rows(table: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Copy some of a table's tensors to a table of their own; `which` is bool[tensors]."""
    selected = empty_table(int(which.sum()))
    selected[:HEAD] = table[:HEAD]
    for to, column in zip(columns(selected), columns(table), strict=True):
        to[:] = column[which]
    selected[CHUNKS] = chunks_for(int(columns(selected)[2].sum()))
    return selected


def chunks_for(elements: int) -> int:
    """Return the number of chunks for a step on so many elements."""
    return 1 if elements < SERIAL_ELEMENTS else n_chunks()


fixed_chunks = 0  # set by `override_chunks`, else 0


def n_chunks() -> int:
    """Return the number of chunks for long work: one a thread, unless overridden."""
    return fixed_chunks or numba.get_num_threads()


@contextlib.contextmanager
def override_chunks(chunks: int) -> Iterator[None]:
    """Split long work into so many chunks, whatever the number of threads; same results."""
    global fixed_chunks  # noqa: PLW0603 - global as numba.set_num_threads is
    before, fixed_chunks = fixed_chunks, chunks
    try:
        yield
    finally:
        fixed_chunks = before


def prepared_step(
    parameters: Sequence[Parameter],
    common: Scalars,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
) -> PreparedCpuStep:
    """Prepare the fused step on NumPy arrays; see `kernels.step.FusedStep`.

    Args:
        parameters: any number of tensors of any shapes, the dtypes of `layout.SUPPORTED` mixed.
        common: the hyper-parameters of all tensors, in double.
        learning_rates: one for each tensor: rate times multiplier, in double.
        weight_decays: one for each tensor: weight decay times multiplier, in double.

    Raises:
        TypeError, ValueError: as `layout.tensor_refs`.
    """
    refs = tensor_refs(parameters, learning_rates, weight_decays)
    return prepared(refs, common, owners=parameters)
