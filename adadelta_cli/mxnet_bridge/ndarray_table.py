"""Query dtype, shape, device, storage type and pointer of many NDArrays in one call.

A step queries all arrays each time, since an operator may have moved an array since the last step.
Through ctypes that takes 16 us a tensor, more than the update of most tensors; a compiled loop
makes it negligible.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from adadelta_cli.kernels.cpu import _pointer, columns, compiled, launch
from adadelta_cli.kernels.layout import LAYOUTS

# The dtype layouts, as `query` numbers them.
LAYOUT_OF = tuple(LAYOUTS.values())
UNSUPPORTED = -1
OTHER_LAYOUT = 1  # a return code of the step; MXNet's are 0 and -1
# MXNet's numbers: dtypes (3rdparty/mshadow/mshadow/base.h), devices (include/mxnet/base.h: cpu,
# cpu_pinned, cpu_shared), the dense storage type (include/mxnet/ndarray.h).
FLOAT32, FLOAT64, FLOAT16 = 0, 1, 2
CPUS = (1, 3, 5)
DENSE = 0
# The functions that `query` calls, in the order of their addresses (include/mxnet/c_api.h).
FUNCTIONS = (
    "MXNDArrayGetStorageType",
    "MXNDArrayGetDType",
    "MXNDArrayGetContext",
    "MXNDArrayGetShape64",
    "MXNDArrayGetData",
)


def _caller(arguments):
    """Make an intrinsic that calls a C function of word-sized arguments by its address."""

    def generate(_context, builder, _signature, args):
        word = ir.IntType(64)
        function = ir.FunctionType(ir.IntType(32), [word] * arguments)
        return builder.call(builder.inttoptr(args[0], function.as_pointer()), list(args[1:]))

    def typed_0(_context, _function):
        return types.int32(types.uint64), generate

    def typed_2(_context, _function, _a, _b):
        return types.int32(types.uint64, types.uint64, types.uint64), generate

    def typed_3(_context, _function, _a, _b, _c):
        return types.int32(types.uint64, types.uint64, types.uint64, types.uint64), generate

    return intrinsic({0: typed_0, 2: typed_2, 3: typed_3}[arguments])


_call_0, _call_2, _call_3 = _caller(0), _caller(2), _caller(3)


@compiled
def _same(lengths, others):
    """Return whether two shapes are equal."""
    if lengths.size != others.size:
        return False
    for k in range(lengths.size):
        if lengths[k] != others[k]:
            return False
    return True


@compiled
def _layout(dtypes, has_master):
    """Return the index in `LAYOUT_OF` for the dtypes of a tensor's arrays, or UNSUPPORTED."""
    weight, grad, acc_grad, acc_delta, master = dtypes
    if weight != grad or acc_grad != acc_delta or (has_master and master != acc_grad):
        return UNSUPPORTED
    if weight == FLOAT16 and acc_grad == FLOAT32:
        return 3 if has_master else 2
    if has_master or weight != acc_grad or weight > FLOAT64:
        return UNSUPPORTED
    return 0 if weight == FLOAT32 else 1


@compiled
def _describe(functions, handle, small, to_small, to_word):
    """Query an array; put the number of its lengths into `small`, and their address into the word.

    Returns:
        0 or MXNet's error code of the first call that fails, whether the array is dense and on a
        CPU, and its dtype.
    """
    failed = _call_2(functions[0], handle, to_small)
    if failed:
        return failed, False, small[0]
    plain = small[0] == DENSE
    failed = _call_2(functions[1], handle, to_small)
    if failed:
        return failed, False, small[0]
    dtype = small[0]
    failed = _call_3(functions[2], handle, to_small, to_small + np.uint64(4))
    if failed:
        return failed, False, dtype
    plain &= small[0] in CPUS
    return _call_3(functions[3], handle, to_small, to_word), plain, dtype


@compiled
def wait_all(function):  # noqa: ANN201 - Numba's
    """Call `MXNDArrayWaitAll` by its address."""
    return _call_0(function)


@compiled
def query(functions, handles, layouts, table):  # noqa: ANN201 - Numba's
    """Query every array of every tensor; end at the first call that fails.

    Args:
        functions: uint64, the addresses of `FUNCTIONS`.
        handles: uint64[tensors, 5], the NDArray handles of weight, gradient, acc_grad, acc_delta
            and master; 0 where there is no master.
        layouts: int64[tensors], output: indices in `LAYOUT_OF`, or UNSUPPORTED.
        table: as of `kernels.cpu.pack_table`, output: the addresses and sizes.

    Returns:
        0, or MXNet's error code; MXGetLastError has the message.
    """
    word, small = np.zeros(1, np.uint64), np.zeros(2, np.int32)
    to_word, to_small = np.uint64(word.ctypes.data), np.uint64(small.ctypes.data)
    dtypes = np.zeros(5, np.int32)
    _, _, sizes, addresses = columns(table)
    for t in range(handles.shape[0]):
        has_master = handles[t, 4] != 0
        fits, shape = True, np.zeros(0, np.int64)
        for k in range(5 if has_master else 4):
            handle = handles[t, k]
            failed, plain, dtypes[k] = _describe(functions, handle, small, to_small, to_word)
            if failed:  # there is no shape behind the pointer
                return failed
            fits &= plain
            lengths = carray(_pointer(word[0], 0, np.int64(0)), (small[0],))
            if k == 0:
                sizes[t], shape = lengths.prod(), lengths.copy()
            fits &= _same(lengths, shape)
            if fits:  # sparse arrays have no address
                failed = _call_2(functions[4], handle, to_word)
                if failed:
                    return failed
                addresses[t, k] = word[0]
        if has_master:  # the master is updated, and the float16 weight written beside it
            addresses[t, 0], addresses[t, 4] = addresses[t, 4], addresses[t, 0]
        else:
            addresses[t, 4] = 0
        layouts[t] = UNSUPPORTED
        if fits:
            found = (dtypes[0], dtypes[1], dtypes[2], dtypes[3], dtypes[4])
            layouts[t] = _layout(found, has_master)
    return 0


@compiled
def step(functions, handles, table, number):  # noqa: ANN201 - Numba's
    """Take a step on tensors of one dtype layout, given by its index in `LAYOUT_OF`.

    Args:
        functions: as `query` takes them.
        handles: as `query` takes them.
        table: with the function of that layout (`kernels.cpu.set_function`).
        number: the layout.

    Returns:
        0, or MXNet's error code; or, without taking a step, OTHER_LAYOUT if a tensor has another
        layout.
    """
    layouts = np.empty(handles.shape[0], np.int64)
    failed = query(functions, handles, layouts, table)
    if failed != 0:
        return failed
    for layout in layouts:
        if layout != number:
            return OTHER_LAYOUT
    launch(table)
    return 0
