"""What MXNet's C interface knows of many arrays, asked in one call from Python.

A step asks for the address, shape, dtype, storage type and device of each array, every time, since
an operator may have moved an array in between. Through ctypes that is 16 us a tensor, more than the
update of most tensors takes; in a compiled loop it is nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from adadelta_cli.kernels.cpu import (
    CUTS,
    PARTS,
    SERIAL_ELEMENTS,
    _pointer,
    columns,
    compiled,
    launcher,
)
from adadelta_cli.kernels.layout import LAYOUTS

# The kinds of tensors, as `inspect` numbers them: keys of `kernels.layout.KINDS`.
KIND_KEYS = (("float32", False), ("float64", False), ("float16", False), ("float16", True))
NO_KIND = -1
OTHER_KIND = 1  # what `step` returns, where MXNet's codes are 0 and -1
# MXNet's numbers: dtypes (3rdparty/mshadow/mshadow/base.h), devices (include/mxnet/base.h: cpu,
# cpu_pinned, cpu_shared), the dense storage type (include/mxnet/ndarray.h).
FLOAT32, FLOAT64, FLOAT16 = 0, 1, 2
CPUS = (1, 3, 5)
DENSE = 0
# The functions it calls, in the order of their addresses (include/mxnet/c_api.h).
FUNCTIONS = (
    "MXNDArrayGetStorageType",
    "MXNDArrayGetDType",
    "MXNDArrayGetContext",
    "MXNDArrayGetShape64",
    "MXNDArrayGetData",
)


def _calling(arguments: int) -> Any:
    """Make an intrinsic that calls a C function of so many word-sized arguments by its address."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.IntType(32), [word] * arguments)
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), list(args[1:]))

    def typed_0(_context: Any, _function: Any) -> Any:
        return types.int32(types.uint64), generate

    def typed_2(_context: Any, _function: Any, _a: Any, _b: Any) -> Any:
        return types.int32(types.uint64, types.uint64, types.uint64), generate

    def typed_3(_context: Any, _function: Any, _a: Any, _b: Any, _c: Any) -> Any:
        return types.int32(types.uint64, types.uint64, types.uint64, types.uint64), generate

    return intrinsic({0: typed_0, 2: typed_2, 3: typed_3}[arguments])


_call_0, _call_2, _call_3 = _calling(0), _calling(2), _calling(3)


@intrinsic
def _threads(_context: Any) -> Any:
    """Ask Numba for its number of threads; its own function for this cannot be cached."""

    def generate(_context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        # As numba.parfors.parfor_lowering does.
        kind = ir.FunctionType(ir.IntType(64), [])
        return builder.call(get_or_insert_function(builder.module, kind, "get_num_threads"), [])

    return types.uint64(), generate


@compiled
def _same(lengths, others):
    """Tell whether two shapes are one."""
    if lengths.size != others.size:
        return False
    for k in range(lengths.size):
        if lengths[k] != others[k]:
            return False
    return True


@compiled
def _kind(dtypes, has_master):
    """Number the kind of a tensor from its arrays' dtypes."""
    weight, grad, acc_grad, acc_delta, master = dtypes
    if weight != grad or acc_grad != acc_delta or (has_master and master != acc_grad):
        return NO_KIND
    if weight == FLOAT16 and acc_grad == FLOAT32:
        return 3 if has_master else 2
    if has_master or weight != acc_grad or weight > FLOAT64:
        return NO_KIND
    return 0 if weight == FLOAT32 else 1


@compiled
def wait_all(function):  # noqa: ANN201 - Numba's
    """Call MXNet's function of no argument, by its address."""
    return _call_0(function)


@compiled
def query(functions, handles, kinds, table):  # noqa: ANN201
    """Ask for everything about every array of every tensor.

    Args:
        functions: uint64, the addresses of `FUNCTIONS`.
        handles: uint64[tensors, 5], the NDArray handles of weight, gradient, acc_grad, acc_delta
            and master; 0 where there is no master.
        kinds: int64[tensors], gets the place in `KIND_KEYS`, or NO_KIND.
        table: as of `kernels.cpu.tabulate`, gets the addresses and sizes.

    Returns:
        0, or MXNet's error code, with the message where MXGetLastError looks.
    """
    word, small = np.zeros(1, np.uint64), np.zeros(2, np.int32)
    to_word, to_small = np.uint64(word.ctypes.data), np.uint64(small.ctypes.data)
    dtypes = np.zeros(5, np.int32)
    _, _, sizes, addresses = columns(table)
    failed = 0
    for t in range(handles.shape[0]):
        has_master = handles[t, 4] != 0
        fits, shape = True, np.zeros(0, np.int64)
        for k in range(5 if has_master else 4):
            handle = handles[t, k]
            failed |= _call_2(functions[0], handle, to_small)
            fits &= small[0] == DENSE
            failed |= _call_2(functions[1], handle, to_small)
            dtypes[k] = small[0]
            failed |= _call_3(functions[2], handle, to_small, to_small + np.uint64(4))
            fits &= small[0] in CPUS
            failed |= _call_3(functions[3], handle, to_small, to_word)
            lengths = carray(_pointer(word[0], 0, np.int64(0)), (small[0],))
            if k == 0:
                sizes[t], shape = lengths.prod(), lengths.copy()
            fits &= _same(lengths, shape)
            if fits:  # a sparse array has no address
                failed |= _call_2(functions[4], handle, to_word)
                addresses[t, k] = word[0]
        if has_master:  # it is what is updated; the float16 weight is written beside it
            addresses[t, 0], addresses[t, 4] = addresses[t, 4], addresses[t, 0]
        else:
            addresses[t, 4] = 0
        kinds[t] = (
            _kind((dtypes[0], dtypes[1], dtypes[2], dtypes[3], dtypes[4]), has_master)
            if fits
            else NO_KIND
        )
    return failed


@cache
def stepper(number: int) -> Any:
    """Compile the step on tensors that are all of one kind, given by its place in `KIND_KEYS`.

    It takes `functions`, `handles` and `table` as `inspect` does. The table's CUTS says into how
    many parts long work is cut; 0: one a thread.
    Where a tensor is of another kind, it does nothing and returns OTHER_KIND; else 0, or MXNet's
    error code.
    """
    launch = launcher(LAYOUTS[KIND_KEYS[number]])

    @compiled
    def step(functions, handles, table):
        kinds = np.empty(handles.shape[0], np.int64)
        failed = query(functions, handles, kinds, table)
        if failed != 0:
            return failed
        for kind in kinds:
            if kind != number:
                return OTHER_KIND
        if columns(table)[2].sum() < SERIAL_ELEMENTS:
            table[PARTS] = 1
        else:
            table[PARTS] = table[CUTS] or _threads()
        launch(table)
        return 0

    return step
