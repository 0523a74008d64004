"""The fused step on MXNet's arrays."""

from __future__ import annotations

import functools
import struct
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli.mxnet_bridge import probe, runtime
from adadelta_cli.system import gpu
from adadelta_cli.update import Parameter, Scalars

if TYPE_CHECKING:
    from collections.abc import Sequence


@cache
def _functions() -> np.ndarray:
    """Find the addresses of the C functions that `ndarray_table.inspect` calls."""
    from adadelta_cli.mxnet_bridge.ndarray_table import FUNCTIONS

    library = runtime.load_mxnet().base._LIB  # noqa: SLF001
    return np.array([runtime.address(getattr(library, name)) for name in FUNCTIONS], np.uint64)


def handles_of(tensors: Sequence[Sequence[Any]]) -> np.ndarray:
    """Collect the handles of the arrays of tensors, as `ndarray_table` takes them."""
    rows = [[array.handle.value for array in arrays] for arrays in tensors]
    return np.array([row if len(row) == 5 else [*row, 0] for row in rows], np.uint64)


class FusedMxnetStep:
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
        from adadelta_cli.mxnet_bridge import ndarray_table

        self._cpu, self._check = cpu, runtime.load_mxnet().base.check_call
        self._table = cpu.empty_table(len(tensors))
        self._asked = _functions(), handles_of(tensors), self._table
        kinds = self._inspect()
        self.possible = bool(kinds.min() >= 0)
        self._step = ndarray_table.stepper(max(0, int(kinds[0])))
        self._other = ndarray_table.OTHER_KIND
        # The head of the table, and the numbers behind it, in one call: converting sequences to
        # arrays costs ten times as much where the step before emptied the caches.
        pack = struct.Struct(cpu.table_format(len(tensors), whole=False)).pack_into
        self._write = functools.partial(pack, self._table.data.cast("B"), 0)

    def __call__(
        self,
        rates: Sequence[float],
        weight_decays: Sequence[float],
        common: Scalars,
        *,
        flush: bool,
    ) -> None:
        """Take one, when the engine is quiet; one compiled call, for calls are what costs.

        Args:
            rates: of the tensors.
            weight_decays: likewise.
            common: the hyper-parameters of all tensors, in double.
            flush: compute with subnormals taken as zero.
        """
        with self._cpu.launching:
            self._write(flush, 1, self._cpu.fixed_chunks, *common, *rates, *weight_decays)
            code = self._step(*self._asked)
            if code == self._other:
                self._step_by_kind()
            elif code:
                self._check(code)

    def _inspect(self) -> np.ndarray:
        """Let the table know sizes and addresses; return the kinds of the tensors."""
        from adadelta_cli.mxnet_bridge import ndarray_table

        functions, array_handles, table = self._asked
        kinds = np.empty(len(array_handles), np.int64)
        self._check(ndarray_table.query(functions, array_handles, kinds, table))
        return kinds

    def _step_by_kind(self) -> None:
        """Take a step on tensors of several kinds, a launch for each."""
        from adadelta_cli.kernels import cpu, layout
        from adadelta_cli.mxnet_bridge import ndarray_table

        kinds = self._inspect()
        if kinds.min() < 0:
            raise TypeError("an array is no longer of the dtype, shape or device that it had")
        for number in dict.fromkeys(kinds.tolist()):
            table = cpu.select_rows(self._table, kinds == number)
            cpu.launcher(layout.LAYOUTS[ndarray_table.KIND_KEYS[number]])(table)


class FusedMxnetGpuStep:
    """As `FusedMxnetStep`, on tensors in the memory of a GPU.

    The arrays reach the kernel over DLPack, without a copy, and CuPy launches it. It was not run on
    a GPU: no MXNet that computes on one was there.

    Args:
        tensors: as `FusedMxnetStep` takes them, all on one GPU.

    Raises:
        UnavailableError: CuPy cannot use that GPU.
    """

    def __init__(self, tensors: Sequence[Sequence[Any]]) -> None:
        self._tensors = [[array.as_np_ndarray() for array in arrays] for arrays in tensors]
        self._number = tensors[0][0].device.device_id
        self._cupy = gpu.check_device(self._number, probe.build)

    def __call__(
        self,
        rates: Sequence[float],
        weight_decays: Sequence[float],
        common: Scalars,
        *,
        flush: bool,  # noqa: ARG002 - MXNet flushes on a CPU only
    ) -> None:
        """Take one, when the engine is quiet, and wait for it: MXNet's next operator may read.

        Arguments as `FusedMxnetStep` takes them.

        Raises:
            TypeError, ValueError: as `kernels.cuda.prepared_step`.
        """
        from adadelta_cli.kernels import cuda

        with self._cupy.cuda.Device(self._number):  # others may be the current one meanwhile
            parameters = [Parameter(*map(self._cupy.from_dlpack, each)) for each in self._tensors]
            cuda.prepared_step(parameters, common, rates, weight_decays)()
            self._cupy.cuda.get_current_stream().synchronize()
