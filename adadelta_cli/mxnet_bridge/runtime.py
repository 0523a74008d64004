"""MXNet's library and its asynchronous engine: load it, wait for it, learn its subnormal mode."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import struct
import sys
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adadelta_cli.errors import UnavailableError
from adadelta_cli.system import cuda as gpu
from adadelta_cli.update import Hyperparameters, Parameter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


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
    from numba import types

    from adadelta_cli.kernels.cache import cfunc
    from adadelta_cli.kernels.cpu import read_mxcsr

    def probe(_run_context, mxcsr):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        mxcsr[0] = read_mxcsr()

    signature = types.void(types.voidptr, types.CPointer(types.uint32))
    return cfunc(signature)(probe)


def quiesce() -> bool:
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
    from adadelta_cli.mxnet_bridge import ndarray_table as handles

    base = load().base
    return handles.wait, _address(base._LIB.MXNDArrayWaitAll), base.check_call  # noqa: SLF001


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


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
def _functions() -> np.ndarray:
    """Find the addresses of the C functions that `kernels.handles.inspect` calls."""
    from adadelta_cli.mxnet_bridge.ndarray_table import FUNCTIONS

    library = load().base._LIB  # noqa: SLF001
    return np.array([_address(getattr(library, name)) for name in FUNCTIONS], np.uint64)


def handles_of(tensors: Sequence[Sequence[Any]]) -> np.ndarray:
    """Collect the handles of the arrays of tensors, as `kernels.handles` takes them."""
    rows = [[array.handle.value for array in arrays] for arrays in tensors]
    return np.array([row if len(row) == 5 else [*row, 0] for row in rows], np.uint64)


class Common(NamedTuple):
    """The hyper-parameters of all tensors of a step.

    Attributes:
        hyper: checked.
        doubles: its `doubles`, which are asked for once, not at each step.
    """

    hyper: Hyperparameters
    doubles: tuple[float, ...]


class FusedStep:
    """The step on tensors whose arrays stay the same objects from step to step.

    Dtypes, shapes, devices and addresses are asked of MXNet at each step: an operator may move an
    array to oneDNN's layout, and asking for its address moves it back to the plain one.

    Args:
        tensors: the arrays of each: weight, gradient, acc_grad, acc_delta, and master, if any.
            Their handles are kept, so the arrays have to live as long as this does.

    Attributes:
        possible: there is a kernel for each of them.
    """

    def __init__(self, tensors: Sequence[Sequence[Any]]) -> None:
        from adadelta_cli.kernels import cpu
        from adadelta_cli.mxnet_bridge import ndarray_table as handles

        self._cpu, self._check = cpu, load().base.check_call
        self._table = cpu.empty_table(len(tensors))
        self._asked = _functions(), handles_of(tensors), self._table
        kinds = self._inspect()
        self.possible = bool(kinds.min() >= 0)
        self._step = handles.stepper(max(0, int(kinds[0])))
        self._other = handles.OTHER_KIND
        # The head of the table, and the numbers behind it, in one call: converting sequences to
        # arrays costs ten times as much where the step before emptied the caches.
        pack = struct.Struct(cpu.layout(len(tensors), whole=False)).pack_into
        self._write = functools.partial(pack, self._table.data.cast("B"), 0)

    def __call__(
        self,
        rates: Sequence[float],
        decays: Sequence[float],
        common: Common,
        *,
        flush: bool,
    ) -> None:
        """Take one, when the engine is quiet; one compiled call, for calls are what costs.

        Args:
            rates: of the tensors.
            decays: likewise.
            common: what they have in common.
            flush: compute with subnormals taken as zero.
        """
        with self._cpu.launching:
            self._write(flush, 1, self._cpu.fixed_cuts, *common.doubles, *rates, *decays)
            code = self._step(*self._asked)
            if code == self._other:
                self._step_by_kind()
            elif code:
                self._check(code)

    def _inspect(self) -> np.ndarray:
        """Let the table know sizes and addresses; return the kinds of the tensors."""
        from adadelta_cli.mxnet_bridge import ndarray_table as handles

        functions, array_handles, table = self._asked
        kinds = np.empty(len(array_handles), np.int64)
        self._check(handles.inspect(functions, array_handles, kinds, table))
        return kinds

    def _step_by_kind(self) -> None:
        """Take a step on tensors of several kinds, a launch for each."""
        from adadelta_cli.kernels import cpu
        from adadelta_cli.kernels import layout as operand
        from adadelta_cli.mxnet_bridge import ndarray_table as handles

        kinds = self._inspect()
        if kinds.min() < 0:
            raise TypeError("an array is no longer of the dtype, shape or device that it had")
        for number in dict.fromkeys(kinds.tolist()):
            table = cpu.chosen(self._table, kinds == number)
            cpu.launcher(operand.KINDS[handles.KIND_KEYS[number]])(table)


class GpuStep:
    """As `FusedStep`, on tensors in the memory of a GPU.

    The arrays reach the kernel over DLPack, without a copy, and CuPy launches it. It was not run on
    a GPU: no MXNet that computes on one was there.

    Args:
        tensors: as `FusedStep` takes them, all on one GPU.

    Raises:
        UnavailableError: CuPy cannot use that GPU.
    """

    def __init__(self, tensors: Sequence[Sequence[Any]]) -> None:
        self._tensors = [[array.as_np_ndarray() for array in arrays] for arrays in tensors]
        self._number = tensors[0][0].device.device_id
        self._cupy = gpu.working(self._number)

    def __call__(
        self,
        rates: Sequence[float],
        decays: Sequence[float],
        common: Common,
        *,
        flush: bool,  # noqa: ARG002 - MXNet flushes on a CPU only
    ) -> None:
        """Take one, when the engine is quiet, and wait for it: MXNet's next operator may read.

        Arguments as `FusedStep` takes them.

        Raises:
            TypeError, ValueError: as `kernels.cuda.fused_update`.
        """
        from adadelta_cli.kernels import cuda

        with self._cupy.cuda.Device(self._number):  # others may be the current one meanwhile
            parameters = [Parameter(*map(self._cupy.from_dlpack, each)) for each in self._tensors]
            cuda.fused_update(parameters, common.hyper, rates, decays)
            self._cupy.cuda.get_current_stream().synchronize()
