"""MXNet's library and its asynchronous engine: load it, wait for it, learn its subnormal mode."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import sys
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator


def is_installed() -> bool:
    """Tell whether there is an MXNet to import, without importing it."""
    return importlib.util.find_spec("mxnet") is not None


@cache
def load() -> Any:
    """Import MXNet and return it.

    MXNet 2.0.0b1 asks for `numpy.bool`, at import and later, which NumPy dropped in 1.24. Its first
    allocation prints a line about its storage manager, which is noise: it is made here, unheard.

    Raises:
        UnavailableError: MXNet is not installed, or does not load.
    """
    if not is_installed():
        raise UnavailableError(
            "the mxnet backend needs MXNet, which is not installed here (its wheels are for Linux "
            "on x86-64 and Python 3.10 to 3.12); use --backend numpy"
        )
    heard_before = "mxnet" in sys.modules
    vars(np).setdefault("bool", np.bool_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of a library that is no longer maintained
        try:
            import mxnet
        except (ImportError, OSError, AttributeError) as error:
            raise UnavailableError(
                f"MXNet is installed and does not load: {error}. It needs NumPy 1.26.4 (found "
                f"{np.__version__}) and libgomp1; use --backend numpy, or mend the environment"
            ) from error
        with contextlib.nullcontext() if heard_before else _stderr_closed():
            mxnet.nd.zeros(1).wait_to_read()
    return mxnet


@contextlib.contextmanager
def _stderr_closed() -> Iterator[None]:
    """Send what C code writes to stderr nowhere."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a descriptor is wanted
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class _Context(ctypes.Structure):
    """MXNet's `Context`: kCPU is 1 (include/mxnet/base.h)."""

    _fields_ = (("dev_type", ctypes.c_int), ("dev_id", ctypes.c_int))


_CPU = _Context(1, 0)


@cache
def _mode_probe() -> Any:
    """Compile a function that the engine can call and that stores MXCSR where it is told."""
    from numba import cfunc, types

    from adadelta_cli.kernels.cpu import read_mxcsr

    def probe(_run_context, mxcsr):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        mxcsr[0] = read_mxcsr()

    signature = types.void(types.voidptr, types.CPointer(types.uint32))
    return cfunc(signature, nopython=True, cache=True)(probe)


def quiesce() -> bool:
    """Wait until MXNet's engine has nothing left to do; return whether it flushes subnormals.

    After it, memory of MXNet's arrays can be read and written until the next operation is pushed.
    The mode has no getter, and belongs to the threads that compute: so a function is sent there to
    read the control register. One wait for all costs less than a wait for each array, and cannot
    dead-lock when two arrays are views of one, as `MXEnginePushSyncND` with both named does.
    """
    from adadelta_cli.kernels.cpu import FLUSH_TO_ZERO

    library = load().base._LIB  # noqa: SLF001 - the C interface has no other name
    check = load().base.check_call
    mxcsr = ctypes.c_uint32(0)
    address = ctypes.c_void_p(_mode_probe().address)
    check(
        library.MXEnginePushSyncND(
            address, ctypes.byref(mxcsr), None, ctypes.byref(_CPU),
            None, 0, None, 0, None, 0, b"adadelta_mode",
        )
    )  # fmt: skip
    check(library.MXNDArrayWaitAll())
    return bool(mxcsr.value & FLUSH_TO_ZERO)


@contextlib.contextmanager
def flushing(flush: bool) -> Iterator[None]:
    """Let MXNet flush subnormals, or not, and put its mode back."""
    set_mode = load().util.set_flush_denorms
    before = set_mode(flush)
    try:
        yield
    finally:
        set_mode(before)


def address_of(array: Any) -> int:
    """Return where an MXNet CPU array's elements lie, in the plain layout; 0 if it has none.

    To be asked for at each step: an operator may move an array to oneDNN's layout and back.
    """
    pointer = ctypes.c_void_p()
    base = load().base
    base.check_call(base._LIB.MXNDArrayGetData(array.handle, ctypes.byref(pointer)))  # noqa: SLF001
    return pointer.value or 0
