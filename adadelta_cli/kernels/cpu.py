"""The update in one pass over memory on a CPU, compiled by Numba: the fused step.

All tensors of a call are laid end to end in thought, and that line of elements is cut into equal
parts, so every thread is busy whatever the mix of sizes. An element's result depends on nothing
but that element, so neither the cuts nor the number of threads can change a bit.

Neither `fastmath` nor contraction into fused multiply-adds is allowed: the order of the operations
is that of `update.py`, and so are the bits. `error_model="numpy"` keeps the division free of a test
for zero, without which the loop does not vectorise.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
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
    TensorRef,
    all_arrays,
    group_by_layout,
    tensor_refs,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from adadelta_cli.update import Parameter, Scalars

compiled = cache.njit(cache=True, nogil=True, error_model="numpy")
compiled_parallel = cache.njit(cache=True, nogil=True, error_model="numpy", parallel=True)

# Below this many elements, waking the other threads costs more than they save.
SERIAL_ELEMENTS = 4096
# Memory is asked for 512 elements ahead of its use, in blocks of 64: the processor's own
# prefetching stops at each page. Measured, float32, two threads, 1e7 elements: 4.85 ms without,
# 3.43 ms with; blocks of 128 take 3.48, of 256 3.98; 1024 ahead takes 3.53.
BLOCK_ELEMENTS, AHEAD_ELEMENTS = 64, 512
LINE_ELEMENTS = 16  # of float32 in a cache line; asking twice for a line of float64 is harmless
FLUSH_TO_ZERO, DENORMALS_ARE_ZERO = 0x8000, 0x0040  # MXCSR, Intel SDM vol. 1, 10.2.3
ON_X86 = platform.machine() in {"x86_64", "AMD64"}

binding.initialize_native_asmparser()  # for the two instructions that reach MXCSR

# Where things are in a table; see `tabulate`.
FLUSH, PARTS, CUTS, DOUBLES, HEAD = 0, 1, 2, 3, 8
ADDRESSES, COLUMNS = 5, 8

launching = threading.Lock()  # Numba's workqueue layer aborts the process on concurrent launches


# --- what Numba has no words for -----------------------------------------------------------------


@intrinsic
def _pointer(_context: Any, _address: Any, _offset: Any, like: Any) -> Any:
    """Turn an address into a pointer, `offset` elements of the type of `like` further on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base = builder.inttoptr(args[0], context.get_value_type(signature.return_type))
        return builder.gep(base, [args[1]])

    return types.CPointer(like)(types.uint64, types.int64, like), generate


@intrinsic
def _prefetch(_context: Any, _array: Any, _index: Any) -> Any:
    """Ask for the cache line of an element; one beyond the end is no error, and does nothing."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = make_array(signature.args[0])(context, builder, args[0])
        bytes_, number = ir.PointerType(ir.IntType(8)), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [bytes_, number, number, number])
        prefetch = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        address = builder.bitcast(builder.gep(array.data, [args[1]]), bytes_)
        # To write, into every cache level, data: LLVM language reference, llvm.prefetch.
        builder.call(prefetch, [address, number(1), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(_array, types.int64), generate


@intrinsic
def _half_to_single(_context: Any, _bits: Any) -> Any:
    """Widen a float16, given as its bits: exact."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def _single_to_half(_context: Any, _value: Any) -> Any:
    """Round a float32 to the nearest float16, ties to even, as its bits."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


def _mxcsr_slot(builder: Any) -> tuple[Any, Any]:
    slot = builder.alloca(ir.IntType(32))
    return slot, builder.bitcast(slot, ir.PointerType(ir.IntType(8)))


def _mxcsr_instruction(builder: Any, name: str, slot: Any) -> None:
    signature = ir.FunctionType(ir.VoidType(), [ir.PointerType(ir.IntType(8))])
    # "memory" keeps loads and stores, and with them all arithmetic between, on their side.
    assembly = ir.InlineAsm(signature, f"{name} ($0)", "r,~{memory}", side_effect=True)
    builder.call(assembly, [slot])


@intrinsic
def read_mxcsr(_context: Any) -> Any:
    """Read the control register of the vector unit; 0 where the processor has none."""

    def generate(_context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        if not ON_X86:
            return ir.Constant(ir.IntType(32), 0)
        slot, address = _mxcsr_slot(builder)
        _mxcsr_instruction(builder, "stmxcsr", address)
        return builder.load(slot)

    return types.uint32(), generate


@intrinsic
def write_mxcsr(_context: Any, _value: Any) -> Any:
    """Write the control register of the vector unit; nothing where the processor has none."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        if ON_X86:
            slot, address = _mxcsr_slot(builder)
            builder.store(args[0], slot)
            _mxcsr_instruction(builder, "ldmxcsr", address)
        return context.get_dummy_value()

    return types.void(types.uint32), generate


def _load(bits): ...
def _store(value, like): ...
def _view(address, offset, size, like): ...
def _cut(array, low, high): ...
def _rounded(value, like): ...


@overload(_load, inline="always")
def _load_overload(bits):
    """Widen what is stored, given by its bits where it is a float16."""
    if bits == types.uint16:
        return lambda bits: _half_to_single(bits)
    return lambda bits: bits


@overload(_store, inline="always")
def _store_overload(value, like):
    """Round to what is stored."""
    if like == types.uint16:
        return lambda value, like: _single_to_half(value)
    return lambda value, like: value


@overload(_view, inline="always")
def _view_overload(address, offset, size, like):
    """Slice a tensor that is known by its address; None where there is no such tensor."""
    if isinstance(like, types.NoneType):
        return lambda address, offset, size, like: None
    return lambda address, offset, size, like: carray(_pointer(address, offset, like), (size,))


@overload(_cut, inline="always")
def _cut_overload(array, low, high):
    """Slice an array; None where there is none."""
    if isinstance(array, types.NoneType):
        return lambda array, low, high: None
    return lambda array, low, high: array[low:high]


@overload(_rounded, inline="always")
def _rounded_overload(value, like):
    """Round a float64 to the type of `like`, once."""
    if like == types.float32:
        return lambda value, like: np.float32(value)
    return lambda value, like: value


# --- the update -----------------------------------------------------------------------------------


@compiled
def _update(weight, grad, acc_grad, acc_delta, learning_rate, wd, hyper):
    """Take one step on one element; the scalars have the element's type already."""
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
    """Step over slices; `half` is the float16 weight whose master is `weight`, else None."""
    for i in range(weight.size):
        new, acc_grad[i], acc_delta[i] = _update(
            _load(weight[i]), _load(grad[i]), acc_grad[i], acc_delta[i], learning_rate, wd, hyper
        )
        weight[i] = _store(new, weight[i])
        if half is not None:
            half[i] = _store(new, half[i])


@compiled
def _ask_ahead(weight, grad, acc_grad, acc_delta, half, low, high):
    """Ask for what the block [low, high) will need when it lies `AHEAD_ELEMENTS` further on."""
    for i in range(low + AHEAD_ELEMENTS, high + AHEAD_ELEMENTS, LINE_ELEMENTS):
        _prefetch(weight, i)
        _prefetch(grad, i)
        _prefetch(acc_grad, i)
        _prefetch(acc_delta, i)
        if half is not None:
            _prefetch(half, i)


@compiled
def _update_stream(weight, grad, acc_grad, acc_delta, half, learning_rate, wd, hyper):
    """Step over long slices in blocks, asking for memory ahead of its use."""
    for low in range(0, weight.size, BLOCK_ELEMENTS):
        high = min(low + BLOCK_ELEMENTS, weight.size)
        _ask_ahead(weight, grad, acc_grad, acc_delta, half, low, high)
        _update_slice(
            weight[low:high],
            grad[low:high],
            acc_grad[low:high],
            acc_delta[low:high],
            _cut(half, low, high),
            learning_rate,
            wd,
            hyper,
        )


@compiled
def columns(table):  # noqa: ANN201 - Numba's
    """Cut a table into rates, weight_decays, sizes and addresses."""
    count = (table.size - HEAD) // COLUMNS
    numbers = table.view(np.float64)[HEAD:]
    sizes = table[HEAD + 2 * count : HEAD + 3 * count].view(np.int64)
    addresses = table[HEAD + 3 * count :].reshape(count, ADDRESSES)
    return numbers[:count], numbers[count : 2 * count], sizes, addresses


@compiled
def _update_range(table, starts, hyper, kind, low, high):
    """Step over the elements [low, high) of all tensors laid end to end."""
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
    """Set the thread's subnormal mode, step, and put the mode back."""
    before = read_mxcsr()
    both = np.uint32(FLUSH_TO_ZERO | DENORMALS_ARE_ZERO)
    write_mxcsr((before | both) if table[FLUSH] else (before & ~both))
    _update_range(table, starts, hyper, kind, low, high)
    write_mxcsr(before)


@compiled
def _starts(sizes):
    """Say at which element of the line each tensor begins, and where the line ends."""
    starts = np.zeros(sizes.size + 1, np.int64)
    for t in range(sizes.size):
        starts[t + 1] = starts[t] + sizes[t]
    return starts


@compiled
def _hyper(doubles, like):
    """Round the hyper-parameters to the element type."""
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
    total, parts, hyper = starts[-1], np.int64(table[PARTS]), _hyper(doubles, kind[2])
    if parts == 1:  # in this thread, without waking the others
        _update_range_in_mode(table, starts, hyper, kind, 0, total)
    else:
        for part in prange(parts):
            low, high = total * part // parts, total * (part + 1) // parts
            _update_range_in_mode(table, starts, hyper, kind, low, high)


@functools.cache
def launcher(kind: DTypeLayout) -> Any:
    """Compile what steps over a table of tensors of a kind.

    The kind is no argument: to a compiled function, each costs 0.1 us, and 1 us where the step
    before has pushed Python's objects out of the caches.
    """
    zeros = kind.zeros

    @compiled
    def launch(table):
        _launch(table, zeros)

    return launch


# --- what Python calls ----------------------------------------------------------------------------


@dataclass(frozen=True)
class PreparedCpuStep:
    """A step on tensors that stay where they are, to be taken any number of times.

    Attributes:
        launches: a compiled launch and its table, for each kind of tensor.
        owners: the arrays, which have to live as long as their addresses are used.
    """

    launches: list[tuple[Any, np.ndarray]]
    owners: tuple[Any, ...] = ()

    def __call__(self) -> None:
        """Take the step; safe from several threads: calls take turns."""
        with launching:
            for launch, table in self.launches:
                launch(table)


def prepared(
    tensors: Iterable[TensorRef],
    common: Scalars,
    *,
    flush_subnormals: bool = False,
    parts: int | None = None,
    owners: Iterable[Parameter] = (),
) -> PreparedCpuStep:
    """Prepare a step on all tensors, in place, in one pass over memory.

    The caller must pass valid addresses.

    Args:
        tensors: those of one dtype layout share a launch.
        common: the hyper-parameters of all tensors, in double.
        flush_subnormals: compute as MXNet does by default, subnormal operands and results taken
            as zero; else strict IEEE 754, whatever mode the calling thread is in.
        parts: into how many chunks the work is split; by default one for each thread. The result
            does not depend on it.
        owners: the parameters that own the addresses; the step keeps their arrays.
    """
    launches = []
    for kind, group in group_by_layout(tensors).items():
        table = pack_table(group, common)
        table[FLUSH] = flush_subnormals
        table[PARTS] = parts or chunks_for(sum(operand.size for operand in group))
        launches.append((launcher(kind), table))
    return PreparedCpuStep(launches, all_arrays(owners))


def pack_table(operands: Sequence[TensorRef], common: Scalars) -> np.ndarray:
    """Arrange tensors of one kind and their hyper-parameters as the table that the kernel takes.

    Returns:
        uint64[8 + 8 * tensors]. The head: FLUSH (compute with subnormals taken as zero), PARTS
        (into how many parts the work is cut; 1 here), CUTS (which
        `mxnet_bridge.ndarray_table` has a use for), and from DOUBLES on the bits of
        `Hyperparameters.doubles`. Then what `columns` returns: the bits of all learning rates and
        of all weight_decays, the sizes, and the tensors' addresses.
    """
    _, addresses, sizes, rates, weight_decays = zip(*operands, strict=True)
    values = (*common, *rates, *weight_decays, *sizes, *itertools.chain.from_iterable(addresses))
    packed = bytearray(struct.pack(table_format(len(sizes)), False, 1, 0, *values))
    return np.frombuffer(packed, np.uint64)


def table_format(tensors: int, *, whole: bool = True) -> str:
    """Give the format (Python's `struct`) of a table, or of its head and the numbers only."""
    numbers = f"=3Q5d{2 * tensors}d"
    return numbers + f"{tensors}q{ADDRESSES * tensors}Q" * whole


def empty_table(tensors: int) -> np.ndarray:
    """Make a table of zeros for so many tensors."""
    return np.zeros(HEAD + COLUMNS * tensors, np.uint64)


def select_rows(table: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Make the table of some of a table's tensors: `which` is bool[tensors]."""
    few = empty_table(int(which.sum()))
    few[:HEAD] = table[:HEAD]
    for column, wanted in zip(columns(few), columns(table), strict=True):
        column[:] = wanted[which]
    few[PARTS] = chunks_for(int(columns(few)[2].sum()))
    return few


def chunks_for(elements: int) -> int:
    """Choose into how many parts a step over so many elements is cut."""
    return 1 if elements < SERIAL_ELEMENTS else n_chunks()


fixed_chunks = 0  # what `cutting` says, else 0


def n_chunks() -> int:
    """Say into how many parts long work is cut: one a thread, or as `cutting` says."""
    return fixed_chunks or numba.get_num_threads()


@contextlib.contextmanager
def override_chunks(parts: int) -> Iterator[None]:
    """Cut long work into so many parts, whatever the number of threads; no result depends on it."""
    global fixed_chunks  # noqa: PLW0603 - as numba.set_num_threads, which it stands beside
    before, fixed_chunks = fixed_chunks, parts
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
        TypeError, ValueError: as `layout.tensor_ref`.
    """
    refs = tensor_refs(parameters, learning_rates, weight_decays)
    return prepared(refs, common, owners=parameters)
