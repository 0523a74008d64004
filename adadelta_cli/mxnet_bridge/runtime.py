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


ENGINES = ("NaiveEngine", "ThreadedEngine", "ThreadedEnginePerDevice")  # src/engine/engine.cc


def check_environment() -> None:
    """See that the environment names an engine that MXNet has.

    Raises:
        UnavailableError: it names another.
    """
    name = os.environ.get("MXNET_ENGINE_TYPE", ENGINES[0])
    if name not in ENGINES:
        raise UnavailableError(
            f"MXNET_ENGINE_TYPE is {name!r}, and MXNet has no such engine; unset it, or take one "
            f"of {', '.join(ENGINES)}"
        )


@cache
def load_mxnet() -> Any:
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
    check_environment()
    heard_before = "mxnet" in sys.modules
    vars(np).setdefault("bool", np.bool_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of a library that is no longer maintained
        try:
            import mxnet
        except (ImportError, OSError, AttributeError) as error:
            raise UnavailableError(
                f"MXNet is installed and does not load: {error}. It needs NumPy 1.26.4 (found "
                f"{np.__version__}) and libgomp1; use --backend numpy, or fix the environment"
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
    from numba import types

    from adadelta_cli.kernels.cache import cfunc
    from adadelta_cli.kernels.cpu import read_mxcsr

    def probe(_run_context, mxcsr):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        mxcsr[0] = read_mxcsr()

    signature = types.void(types.voidptr, types.CPointer(types.uint32))
    return cfunc(signature)(probe)


def wait_and_get_ftz() -> bool:
    """Wait until MXNet's engine has nothing left to do; return whether it flushes subnormals.

    After it, memory of MXNet's arrays can be read and written until the next operation is pushed.
    One wait for all costs less than a wait for each array (0.2 us when nothing is pending), and
    cannot dead-lock when two arrays are views of one, as `MXEnginePushSyncND` with both named does.
    Its price: a thread that never lets the engine run dry holds up all others here.
    """
    wait, function, check = _waiting()
    failed = wait(function)
    if failed:
        check(failed)
    return _flushes_subnormals()


@cache
def _waiting() -> tuple[Any, int, Any]:
    """Find what waits: called by compiled code, which costs half of a call through ctypes."""
    from adadelta_cli.mxnet_bridge import ndarray_table

    base = load_mxnet().base
    return ndarray_table.wait_all, address(base._LIB.MXNDArrayWaitAll), base.check_call  # noqa: SLF001


def address(function: Any) -> int:
    """Return the address of a C function."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@cache
def _flushes_subnormals() -> bool:
    """Learn the engine's subnormal mode, and forget it when it is set anew.

    The mode has no getter, and belongs to the threads that compute: so a function is sent there to
    read the control register, which takes 80 us. There is one function that sets it; it is wrapped.
    """
    from adadelta_cli.kernels.cpu import FLUSH_TO_ZERO

    base = load_mxnet().base
    library, check = base._LIB, base.check_call  # noqa: SLF001
    _forget_mode_when_set(library)
    mxcsr = ctypes.c_uint32(0)
    address = ctypes.c_void_p(_mode_probe().address)
    check(
        library.MXEnginePushSyncND(
            address,
            ctypes.byref(mxcsr),
            None,
            ctypes.byref(_CPU),
            None,
            0,
            None,
            0,
            None,
            0,
            b"adadelta_mode",
        )
    )
    check(library.MXNDArrayWaitAll())
    return bool(mxcsr.value & FLUSH_TO_ZERO)


@cache
def _forget_mode_when_set(library: Any) -> None:
    """Wrap the C function behind `mx.util.set_flush_denorms`, however that was imported."""
    setter = library.MXSetFlushDenorms

    def set_and_forget(*arguments: Any) -> int:
        try:
            return setter(*arguments)
        finally:
            _flushes_subnormals.cache_clear()

    library.MXSetFlushDenorms = set_and_forget


@contextlib.contextmanager
def flush_subnormals(flush: bool) -> Iterator[None]:
    """Let MXNet flush subnormals, or not, and put its mode back."""
    set_mode = load_mxnet().util.set_flush_denorms
    before = set_mode(flush)
    try:
        yield
    finally:
        set_mode(before)
