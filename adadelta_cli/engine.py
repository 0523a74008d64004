"""MXNet's library and its asynchronous engine: load it, wait for it, learn its subnormal mode."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import sys
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adadelta_cli.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adadelta_cli.update import Hyperparameters


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
    One wait for all costs less than a wait for each array (0.2 us when nothing is pending), and
    cannot dead-lock when two arrays are views of one, as `MXEnginePushSyncND` with both named does.
    Its price: a thread that never lets the engine run dry holds up all others here.
    """
    wait, check = _waiting()
    check(wait())
    return _flushes_subnormals()


@cache
def _waiting() -> tuple[Any, Any]:
    base = load().base
    return base._LIB.MXNDArrayWaitAll, base.check_call  # noqa: SLF001 - it has no other name


@cache
def _flushes_subnormals() -> bool:
    """Learn the engine's subnormal mode, and forget it when it is set anew.

    The mode has no getter, and belongs to the threads that compute: so a function is sent there to
    read the control register, which takes 80 us. There is one function that sets it; it is wrapped.
    """
    from adadelta_cli.kernels.cpu import FLUSH_TO_ZERO

    base = load().base
    library, check = base._LIB, base.check_call  # noqa: SLF001
    _forget_mode_when_set(library)
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
def flushing(flush: bool) -> Iterator[None]:
    """Let MXNet flush subnormals, or not, and put its mode back."""
    set_mode = load().util.set_flush_denorms
    before = set_mode(flush)
    try:
        yield
    finally:
        set_mode(before)


@cache
def _inspector() -> np.ndarray:
    """Find the addresses of the C functions that `kernels.handles.inspect` calls."""
    from adadelta_cli.kernels.handles import FUNCTIONS

    library = load().base._LIB  # noqa: SLF001
    addresses = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in FUNCTIONS]
    return np.array(addresses, np.uint64)


class Inspected(NamedTuple):
    """What MXNet says of tensors; see `kernels.handles.inspect`."""

    kinds: np.ndarray
    addresses: np.ndarray
    sizes: np.ndarray


def handles_of(tensors: Sequence[Sequence[Any]]) -> np.ndarray:
    """Collect the handles of the arrays of tensors, as `kernels.handles` takes them."""
    rows = [[array.handle.value for array in arrays] for arrays in tensors]
    return np.array([row if len(row) == 5 else [*row, 0] for row in rows], np.uint64)


def inspect(handles: np.ndarray) -> Inspected:
    """Ask MXNet for dtypes, shapes, devices and addresses of the arrays of tensors.

    To be asked at each step, after `quiesce`: an operator may move an array to oneDNN's layout;
    asking for its address moves it back to the plain one.
    """
    from adadelta_cli.kernels import handles as compiled

    count = len(handles)
    found = Inspected(np.empty(count, int), np.empty((count, 5), np.uint64), np.empty(count, int))
    load().base.check_call(compiled.inspect(_inspector(), handles, *found))
    return found


class FusedStep:
    """The step on tensors whose arrays stay the same objects from step to step.

    Args:
        tensors: the arrays of each: weight, gradient, acc_grad, acc_delta, and master, if any.
            Their handles are kept, so the arrays have to live as long as this does.

    Attributes:
        possible: there is a kernel for each of them.
    """

    def __init__(self, tensors: Sequence[Sequence[Any]]) -> None:
        from adadelta_cli.kernels import cpu, operand
        from adadelta_cli.kernels import handles as compiled

        self._handles = handles_of(tensors)
        kinds = inspect(self._handles).kinds
        self.possible = bool(kinds.min() >= 0)
        number = int(kinds[0])
        self._uniform = self.possible and bool((kinds == number).all())
        zeros = operand.KINDS[compiled.KIND_KEYS[number]].zeros
        self._tail = zeros, number
        self._head = _inspector(), self._handles
        self._step, self._check = compiled.step, load().base.check_call
        self._other, self._launching, self._cuts = compiled.OTHER_KIND, cpu.launching, cpu.cuts

    def __call__(
        self, rates: np.ndarray, decays: np.ndarray, hyper: Hyperparameters, *, flush: bool
    ) -> None:
        """Take one, when the engine is quiet; one compiled call, for calls are what costs.

        Args:
            rates: float64[tensors].
            decays: float64[tensors].
            hyper: their common hyper-parameters.
            flush: compute with subnormals taken as zero.
        """
        code = self._other
        if self._uniform:
            with self._launching:
                code = self._step(
                    *self._head, rates, decays, hyper.doubles, *self._tail, flush, self._cuts()
                )
        if code == self._other:
            self._mixed(rates, decays, hyper, flush=flush)
        elif code:
            self._check(code)

    def _mixed(
        self, rates: np.ndarray, decays: np.ndarray, hyper: Hyperparameters, *, flush: bool
    ) -> None:
        """Take a step on tensors of several kinds, a launch for each."""
        from adadelta_cli.kernels import cpu, handles, operand

        found = inspect(self._handles)
        if found.kinds.min() < 0:
            raise TypeError("an array is no longer of the dtype, shape or device that it had")

        def table(number: int) -> operand.Table:
            chosen = found.kinds == number
            columns = (found.addresses, found.sizes, rates, decays)
            kind = operand.KINDS[handles.KIND_KEYS[number]]
            return operand.Table(kind, *(each[chosen] for each in columns))

        tables = [table(number) for number in dict.fromkeys(found.kinds.tolist())]
        cpu.launch_tables(tables, hyper, flush_subnormals=flush)
