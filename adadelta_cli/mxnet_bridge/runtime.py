"""MXNet's library and its asynchronous engine: load it, wait for it, query its subnormal mode."""

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
    """Return whether MXNet is installed, without importing it."""
    return importlib.util.find_spec("mxnet") is not None


ROLE = "DMLC_ROLE"  # of a process in a distributed training: worker, server or scheduler
ENGINES = ("NaiveEngine", "ThreadedEngine", "ThreadedEnginePerDevice")  # src/engine/engine.cc


def check_environment() -> None:
    """Check that `MXNET_ENGINE_TYPE`, if set, names an engine of MXNet.

    Raises:
        UnavailableError: it names none.
    """
    name = os.environ.get("MXNET_ENGINE_TYPE", ENGINES[0])
    if name not in ENGINES:
        raise UnavailableError(
            f"MXNET_ENGINE_TYPE is {name!r}, which is no engine of MXNet; unset it, or set one of "
            f"{', '.join(ENGINES)}"
        )


@cache
def load_mxnet() -> Any:
    """Import MXNet and return it.

    MXNet's first allocation prints a line about its storage manager: it is made here, with stderr
    closed. In a server or scheduler of a distributed training, MXNet's own import would not return:
    see `server`.

    Raises:
        UnavailableError: MXNet is not installed, or does not load.
    """
    if not is_installed():
        raise UnavailableError(
            "MXNet is not installed (its wheels are for Linux on x86-64 and Python 3.10 to 3.12); "
            "use the numpy backend, or in Python FusedStep on NumPy arrays"
        )
    check_environment()
    imported_before = "mxnet" in sys.modules
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MXNet is no longer maintained
        try:
            with _as_worker():
                import mxnet
        except (ImportError, OSError, AttributeError) as error:
            if sys.flags.optimize > 1:
                raise UnavailableError(
                    "MXNet reads its docstrings, which -OO (PYTHONOPTIMIZE=2) removes; run Python "
                    "without it"
                ) from error
            raise UnavailableError(
                f"MXNet is installed and does not load: {error}. It needs NumPy 1.26.4 (found "
                f"{np.__version__}) and libgomp1; install these, or use the numpy backend"
            ) from error
        with contextlib.nullcontext() if imported_before else stderr_closed():
            mxnet.nd.zeros(1).wait_to_read()
    return mxnet


@contextlib.contextmanager
def _as_worker() -> Iterator[None]:
    """Hide the role of this process from MXNet's import, which serves before AdaDelta exists.

    The servers could not unpickle the optimizer then, and would go on without one.
    """
    role = os.environ.pop(ROLE, None)
    try:
        yield
    finally:
        if role is not None:
            os.environ[ROLE] = role


@contextlib.contextmanager
def stderr_closed() -> Iterator[None]:
    """Discard what C code writes to stderr."""
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
    """Compile a function that MXNet's engine can call and that stores MXCSR at an address."""
    from numba import types

    from adadelta_cli.kernels.cache import cfunc
    from adadelta_cli.kernels.cpu import read_mxcsr

    def probe(_run_context, mxcsr):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        mxcsr[0] = read_mxcsr()

    signature = types.void(types.voidptr, types.CPointer(types.uint32))
    return cfunc(signature)(probe)


def wait_and_get_ftz() -> bool:
    """Wait until MXNet's engine is idle; return whether it flushes subnormals.

    Then the memory of MXNet's arrays can be read and written until the next operation is pushed.
    One wait for all costs less than a wait for each array (0.2 us when nothing is pending). Unlike
    `MXEnginePushSyncND`, it cannot dead-lock when two arrays are views of one. The drawback: it
    also waits for operations of other threads, as long as they keep pushing them.
    """
    wait, function, check = _waiting()
    failed = wait(function)
    if failed:
        check(failed)
    return _flushes_subnormals()


@cache
def _waiting() -> tuple[Any, int, Any]:
    """Return the wait function, its argument, and the check of its result.

    Compiled code calls MXNet in half the time of ctypes.
    """
    from adadelta_cli.mxnet_bridge import ndarray_table

    base = load_mxnet().base
    return ndarray_table.wait_all, address(base._LIB.MXNDArrayWaitAll), base.check_call  # noqa: SLF001


def address(function: Any) -> int:
    """Return the address of a C function."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@cache
def _flushes_subnormals() -> bool:
    """Query the engine's subnormal mode; cached until it is set again.

    MXNet has no getter, and the mode belongs to the computing threads. So the engine runs a
    function that reads the control register there, which takes 80 us.
    """
    from adadelta_cli.kernels.cpu import FLUSH_TO_ZERO

    base = load_mxnet().base
    library, check = base._LIB, base.check_call  # noqa: SLF001
    _clear_mode_when_set(library)
    mxcsr = ctypes.c_uint32(0)
    probe = ctypes.c_void_p(_mode_probe().address)
    arguments = ctypes.byref(mxcsr), None, ctypes.byref(_CPU), *(None, 0) * 3
    check(library.MXEnginePushSyncND(probe, *arguments, b"adadelta_mode"))
    check(library.MXNDArrayWaitAll())
    return bool(mxcsr.value & FLUSH_TO_ZERO)


@cache
def _clear_mode_when_set(library: Any) -> None:
    """Clear the cached mode when the C function behind `mx.util.set_flush_denorms` is called."""
    setter = library.MXSetFlushDenorms

    def set_and_clear(*arguments: Any) -> int:
        try:
            return setter(*arguments)
        finally:
            _flushes_subnormals.cache_clear()

    library.MXSetFlushDenorms = set_and_clear


@contextlib.contextmanager
def flush_subnormals(flush: bool) -> Iterator[None]:
    """Set whether MXNet flushes subnormals; restore its mode at the end."""
    set_mode = load_mxnet().util.set_flush_denorms
    before = set_mode(flush)
    try:
        yield
    finally:
        set_mode(before)
