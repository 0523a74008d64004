"""The update in one pass over memory on a CPU, compiled by Numba: the fused step.

Tensors are treated as one concatenated range, of which threads take pieces (`pool.py`), so every
thread is busy whatever the mix of sizes. An element's result depends on that element only, so
neither the pieces, nor blocks, nor the number of threads change a bit (`variants.py`).

`fastmath` and contraction into fused multiply-adds are off: the operations have the order of
`update.py`, hence its bits. `error_model="numpy"` omits the test for division by zero, which would
prevent vectorisation.
"""

from __future__ import annotations

import functools
import itertools
import os
import platform
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import binding, ir
from numba import carray, types
from numba.core.cgutils import get_or_insert_function
from numba.core.registry import cpu_target
from numba.extending import intrinsic, overload
from numba.np.arrayobj import make_array

from adadelta_cli.kernels import cache, pool, variants
from adadelta_cli.kernels.layout import (
    DTypeLayout,
    KeepsAddresses,
    TensorRef,
    group_by_layout,
    layout_of,
    pinned,
    tensor_refs,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adadelta_cli.update import Parameter, Scalars

compiled = cache.njit(cache=True, nogil=True, error_model="numpy")

# Below this many elements, neither other threads nor blocks pay.
SERIAL_ELEMENTS = 4096
# In blocks, the elements that follow by so many are prefetched: hardware prefetching stops at each
# page, which costs Intel's processors a third of their speed on data in memory. Elsewhere it pays
# little or costs time; whether it is taken, `variants.py` learns.
AHEAD_ELEMENTS = 512
LINE_ELEMENTS = 16  # float32 elements a cache line; a line of float64 is prefetched twice
# MXCSR, Intel SDM vol. 1, 10.2.3; its default: round to nearest, no exception interrupts. So the
# bits depend neither on the calling thread's mode nor on that of the pool's threads.
FLUSH_TO_ZERO, DENORMALS_ARE_ZERO, NEAREST = 0x8000, 0x0040, 0x1F80
ON_X86 = platform.machine() in {"x86_64", "AMD64"}

binding.initialize_native_asmparser()  # for the two instructions that reach MXCSR

# The layout of a table; see `pack_table`.
LEARNED, STATE, FUNCTION, BLOCK, PARTS, FLUSH, FIXED, DOUBLES, HEAD = 0, 1, 2, 3, 4, 5, 6, 7, 12
ADDRESSES, COLUMNS = 5, 8


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


@intrinsic
def _bits_of(_context, _value):
    """Return the bits of a float32."""

    def generate(_context, builder, _signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@intrinsic
def _from_bits(_context, _bits):
    """Return the float32 of these bits."""

    def generate(_context, builder, _signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), generate


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
def write_mxcsr(_context, _value):  # noqa: ANN201 - Numba's
    """Write MXCSR; do nothing on processors without it."""

    def generate(context, builder, _signature, args):
        if ON_X86:
            slot, address = _mxcsr_slot(builder)
            builder.store(args[0], slot)
            _mxcsr_instruction(builder, "ldmxcsr", address)
        return context.get_dummy_value()

    return types.void(types.uint32), generate


# x86-64 before 2012, and LLVM's baseline, cannot convert float16; LLVM would call functions that no
# library here has. Numba compiles for the processor, or what NUMBA_CPU_FEATURES says.
CONVERTS_HALF = not ON_X86 or "+f16c" in cpu_target.target_context.codegen().magic_tuple()[2]


@compiled
def widened(half):  # noqa: ANN201 - Numba's
    """Widen a float16, given by its bits, as `_half_to_single`; whatever the subnormal mode is."""
    rest = np.uint32(half) & np.uint32(0x7FFF)
    if rest < np.uint32(0x0400):  # zero and subnormals, in units of 2^-24
        found = _bits_of(np.float32(rest) * np.float32(2.0**-24))
    elif rest < np.uint32(0x7C00):
        found = (rest << np.uint32(13)) + np.uint32(112 << 23)
    else:
        quiet = np.uint32(0x400000) if rest > np.uint32(0x7C00) else np.uint32(0)
        found = np.uint32(0x7F800000) | (rest << np.uint32(13)) | quiet
    return _from_bits(np.uint32(found | ((np.uint32(half) & np.uint32(0x8000)) << np.uint32(16))))


@compiled
def narrowed(value):  # noqa: ANN201 - Numba's
    """Round a float32 to float16, ties to even, as `_single_to_half`; return its bits."""
    bits = _bits_of(value)
    rest = bits & np.uint32(0x7FFFFFFF)
    if rest > np.uint32(0x7F800000):
        found = np.uint32(0x7E00) | ((rest >> np.uint32(13)) & np.uint32(0x03FF))
    elif rest >= np.uint32(0x477FF000):  # 65520, from which on the nearest is infinity
        found = np.uint32(0x7C00)
    elif rest >= np.uint32(0x38800000):  # 2^-14, the least normal
        even = (rest >> np.uint32(13)) & np.uint32(1)
        found = (rest - np.uint32(112 << 23) + np.uint32(0x0FFF) + even) >> np.uint32(13)
    else:  # the last place of a number from 1/2 on is a subnormal's
        half = np.float32(0.5)
        found = _bits_of(_from_bits(np.uint32(rest)) + half) - _bits_of(half)
    return np.uint16(found | ((bits >> np.uint32(16)) & np.uint32(0x8000)))


def _load(bits): ...
def _store(value, like): ...
def _view(address, offset, size, like): ...
def _slice(array, low, high): ...
def _rounded(value, like): ...


@overload(_load, inline="always")
def _load_overload(bits):
    """Widen a stored element: a float16, given by its bits, to float32."""
    if bits == types.uint16:
        return (lambda bits: _half_to_single(bits)) if CONVERTS_HALF else lambda bits: widened(bits)
    return lambda bits: bits


@overload(_store, inline="always")
def _store_overload(value, like):
    """Round to the stored type: that of `like`."""
    if like == types.uint16 and not CONVERTS_HALF:
        return lambda value, like: narrowed(value)
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
    """Round a float64 to the type of `like`, once; None where `like` is None."""
    if isinstance(like, types.NoneType):
        return lambda value, like: None
    if like == types.float32:
        return lambda value, like: np.float32(value)
    return lambda value, like: value


@compiled
def _update(weight, grad, acc_grad, acc_delta, learning_rate, wd, hyper):
    """Take one step on one element; all scalars have the type of the states; `wd` may be None."""
    rescale_grad, clip, rho, one_minus_rho, epsilon = hyper
    grad = grad * rescale_grad
    grad = -clip if grad < -clip else grad
    grad = clip if grad > clip else grad
    if wd is not None:  # no decay at all: 0 * weight would be NaN for an infinite weight
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
def _traffic_slice(weight, grad, acc_grad, acc_delta, half, factor):
    """Move the bytes of a step, with next to no arithmetic: the memory roof of `roofline.py`."""
    for k in range(weight.size):
        change = factor * _load(grad[k])
        new = _load(weight[k]) + change
        weight[k] = _store(new, weight[k])
        acc_grad[k] = acc_grad[k] + change
        acc_delta[k] = acc_delta[k] + change
        if half is not None:
            half[k] = _store(new, half[k])


@compiled
def _update_blocks(
    weight, grad, acc_grad, acc_delta, half, learning_rate, wd, hyper, block, traffic
):
    """Take the step on slices: at once, or, if `block` is not 0, in blocks with prefetch.

    `traffic` is None, or else only the bytes are moved.
    """
    length = block if block > 0 else weight.size
    for low in range(0, weight.size, length):
        high = min(low + length, weight.size)
        if block > 0:
            _prefetch_block(weight, grad, acc_grad, acc_delta, half, low, high)
        arrays = (
            weight[low:high],
            grad[low:high],
            acc_grad[low:high],
            acc_delta[low:high],
            _slice(half, low, high),
        )
        if traffic is None:
            _update_slice(*arrays, learning_rate, wd, hyper)
        else:
            _traffic_slice(*arrays, learning_rate)


@compiled
def columns(table):  # noqa: ANN201 - Numba's
    """View a table's learning rates, weight decays, sizes and addresses."""
    count = (table.size - HEAD) // COLUMNS
    numbers = table.view(np.float64)[HEAD:]
    sizes = table[HEAD + 2 * count : HEAD + 3 * count].view(np.int64)
    addresses = table[HEAD + 3 * count :].reshape(count, ADDRESSES)
    return numbers[:count], numbers[count : 2 * count], sizes, addresses


@compiled
def hyper_of(table, like):  # noqa: ANN201 - Numba's
    """Round a table's hyper-parameters to the type of the states."""
    doubles = table.view(np.float64)[DOUBLES:HEAD]
    return (
        _rounded(doubles[0], like),
        _rounded(doubles[1], like),
        _rounded(doubles[2], like),
        _rounded(doubles[3], like),
        _rounded(doubles[4], like),
    )


@compiled
def _update_range(table, zeros, traffic, low, high):
    """Take the step on the elements [low, high) of the concatenated tensors."""
    weight0, grad0, state0, half0, decay0 = zeros
    rates, weight_decays, sizes, addresses = columns(table)
    hyper, block = hyper_of(table, state0), np.int64(table[BLOCK])
    start = np.int64(0)  # of the tensor
    for t in range(sizes.size):
        at = max(low - start, 0)
        size = min(high - start, sizes[t]) - at
        if size > 0:
            _update_blocks(
                _view(addresses[t, 0], at, size, weight0),
                _view(addresses[t, 1], at, size, grad0),
                _view(addresses[t, 2], at, size, state0),
                _view(addresses[t, 3], at, size, state0),
                _view(addresses[t, 4], at, size, half0),
                _rounded(rates[t], state0),
                _rounded(weight_decays[t], decay0),
                hyper,
                block,
                traffic,
            )
        start += sizes[t]
        if start >= high:
            break


@compiled
def _update_range_in_mode(table, zeros, traffic, low, high):
    """Take the step in the table's subnormal mode; restore the thread's mode."""
    before = read_mxcsr()
    both = np.uint32(FLUSH_TO_ZERO | DENORMALS_ARE_ZERO)
    write_mxcsr(np.uint32(NEAREST | both) if table[FLUSH] else np.uint32(NEAREST))
    _update_range(table, zeros, traffic, low, high)
    write_mxcsr(before)


@compiled
def view_table(address, words):  # noqa: ANN201 - Numba's
    """View a table by its address."""
    return carray(_pointer(np.uint64(address), 0, np.uint64(0)), (words,))


@functools.cache
def range_function(layout: DTypeLayout, traffic: bool | None = None, *, decays: bool = True) -> Any:
    """Compile the step on a range of a table of tensors of one dtype layout (`pool.RANGE`).

    Args:
        layout: of the tensors.
        traffic: None for the step, True for its traffic alone: the rates are the factor.
        decays: whether the weight decay is added, a decay of 0 included: PyTorch omits that.
    """
    zeros = (*layout.zeros, layout.zeros[2] if decays else None)

    @cache.cfunc(pool.RANGE)
    def take(table, words, low, high):
        _update_range_in_mode(view_table(table, words), zeros, traffic, low, high)

    return take


@compiled
def launch(table):  # noqa: ANN201 - Numba's
    """Take a step on all elements of a table."""
    total = np.int64(0)
    for size in columns(table)[2]:
        total += size
    address, words = np.int64(table.ctypes.data), np.int64(table.size)
    function, fixed = np.int64(table[FUNCTION]), np.int64(table[FIXED])
    if total < SERIAL_ELEMENTS and fixed == 0:
        table[BLOCK], table[PARTS] = 0, 1
        pool.call_range(function, address, words, 0, total)
        return
    state = carray(_pointer(table[STATE], 0, np.int64(0)), (pool.STATE_WORDS,))
    threads = state[pool.WORKERS] + 1
    row = variants.size_class(total) * variants.WORDS
    learned = carray(_pointer(table[LEARNED], row, np.int64(0)), (variants.WORDS,))
    way, begin = np.int64(0), np.int64(0)
    if fixed != 0:
        parts, block = variants.unpacked(fixed)
    else:
        way, begin = variants.choose(learned, threads), variants.now(learned)
        parts, block = variants.meaning(way, threads)
    table[BLOCK], table[PARTS] = block, parts
    if parts == 1:
        pool.call_range(function, address, words, 0, total)
    else:
        pool.run(state, function, address, words, total, parts)
    if fixed == 0:
        variants.learn(learned, way, variants.now(learned) - begin, total, threads)


launching = threading.Lock()  # a pool has one job at a time


def _new_lock() -> None:
    """Free the lock in a forked child: the thread that held it is not there."""
    global launching  # noqa: PLW0603 - steps look it up at each call
    launching = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


@dataclass(frozen=True)
class PreparedCpuStep(KeepsAddresses):
    """A step that can be taken any number of times, on tensors at fixed addresses."""

    tables: list[np.ndarray]  # one for each layout
    owners: tuple[Any, ...] = ()  # keep the arrays' memory in place

    def __call__(self) -> None:
        """Take the step; thread-safe: calls take turns."""
        with launching:
            for table in self.tables:
                launch(table)

    @property
    def variants(self) -> list[str]:
        """How the steps of each table are taken at present, as `variants.parse` takes it."""
        return list(map(taken, self.tables))


def prepared(
    refs: Iterable[TensorRef],
    common: Scalars,
    *,
    flush_subnormals: bool = False,
    fixed: str | None = None,
    owners: Iterable[Parameter] = (),
) -> PreparedCpuStep:
    """Prepare a step on all tensors, in place, in one pass over memory.

    The caller must pass valid addresses.

    Args:
        refs: the tensors; those of one dtype layout share a launch.
        common: the hyper-parameters of all tensors, in double.
        flush_subnormals: treat subnormal operands and results as zero, as MXNet does by default;
            else strict IEEE 754, whatever the mode of the calling thread.
        fixed: the variant, as `variants.parse` takes it; by default as `variants.current`. The
            result does not depend on it.
        owners: the parameters that own the addresses; the step keeps their arrays alive.
    """
    tables = []
    for layout, group in group_by_layout(refs).items():
        table = pack_table(group, common)
        table[FLUSH] = flush_subnormals
        table[FIXED] = variants.current() if fixed is None else variants.parse(fixed)
        set_function(table, range_function(layout))
        tables.append(table)
    return PreparedCpuStep(tables, pinned(owners))


def taken(table: np.ndarray) -> str:
    """Return how the last step of a table was taken, as `variants.parse` takes it."""
    return f"{table[PARTS]}:{table[BLOCK]}"


def best_variant(parameter: Parameter, *, decays: bool = True) -> str:
    """Return how a step on a parameter is taken at present, as `variants.parse` takes it.

    Args:
        parameter: the tensors.
        decays: as for `range_function`.
    """
    layout = layout_of(*(array.dtype for array in parameter.arrays))
    return variants.best(range_function(layout, decays=decays), parameter.weight.size)


def set_function(table: np.ndarray, function: Any) -> None:
    """Put a function, what is learned of it, and this process's threads into a table."""
    table[FUNCTION], table[LEARNED] = function.address, variants.learned_of(function).ctypes.data
    table[STATE] = pool.state().ctypes.data


def pack_table(refs: Sequence[TensorRef], common: Scalars) -> np.ndarray:
    """Pack tensors of one dtype layout and their hyper-parameters into the kernel's table.

    Returns:
        uint64[HEAD + COLUMNS * tensors]. The head: LEARNED (an address: what `variants.py` learns);
        STATE (of the pool) and FUNCTION, addresses too (see `set_function`); BLOCK and PARTS of the
        last step; FLUSH (treat subnormals as zero); FIXED (the variant, 0 to learn it); from
        DOUBLES on the bits of `Hyperparameters.doubles`. Then the columns, see `columns`: the bits
        of all learning rates and of all weight decays, the sizes, the addresses.
    """
    _, addresses, sizes, rates, weight_decays = zip(*refs, strict=True)
    values = (*common, *rates, *weight_decays, *sizes, *itertools.chain.from_iterable(addresses))
    table = empty_table(len(sizes))
    pack_format(len(sizes)).pack_into(table.data.cast("B"), 8 * FLUSH, False, 0, *values)
    return table


def pack_format(tensors: int, *, whole: bool = True) -> struct.Struct:
    """Return the format of a table from FLUSH on, or of its head and the floats only."""
    numbers = f"=2Q5d{2 * tensors}d"
    return struct.Struct(numbers + f"{tensors}q{ADDRESSES * tensors}Q" * whole)


def empty_table(tensors: int) -> np.ndarray:
    """Return a table of zeros."""
    return np.zeros(HEAD + COLUMNS * tensors, np.uint64)


def select_rows(table: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Copy some of a table's tensors to a table of their own; `which` is bool[tensors]."""
    selected = empty_table(int(which.sum()))
    selected[:HEAD] = table[:HEAD]
    for to, column in zip(columns(selected), columns(table), strict=True):
        to[:] = column[which]
    return selected


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
