"""The fused step on MXNet's arrays."""

from __future__ import annotations

import functools
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli.kernels.layout import KeepsAddresses, TensorRef
from adadelta_cli.mxnet_bridge import probe, runtime
from adadelta_cli.system import gpu
from adadelta_cli.update import Parameter, Scalars

if TYPE_CHECKING:
    from collections.abc import Sequence


@cache
def _functions() -> np.ndarray:
    """Return the addresses of the C functions that `ndarray_table.query` calls."""
    from adadelta_cli.mxnet_bridge.ndarray_table import FUNCTIONS

    library = runtime.load_mxnet().base._LIB  # noqa: SLF001
    return np.array([runtime.address(getattr(library, name)) for name in FUNCTIONS], np.uint64)


def handles_of(tensors: Sequence[Sequence[Any]]) -> np.ndarray:
    """Collect the handles of the tensors' arrays, as `ndarray_table` takes them."""
    rows = [[array.handle.value for array in arrays] for arrays in tensors]
    return np.array([row if len(row) == 5 else [*row, 0] for row in rows], np.uint64)


class FusedMxnetStep(KeepsAddresses):
    """The step on tensors whose arrays are the same objects in each step.

    Each step queries dtypes, shapes, devices and addresses: an operator may have moved an array to
    oneDNN's layout, and querying its address moves it back to the plain one.

    Args:
        tensors: the arrays of each: weight, gradient, acc_grad, acc_delta, and master, if any.
            Only their handles are kept: the caller must keep the arrays alive.

    Attributes:
        supported: all tensors are on a CPU, and there is a kernel for each.
    """

    def __init__(self, tensors: Sequence[Sequence[Any]]) -> None:
        from adadelta_cli.kernels import cpu, variants
        from adadelta_cli.mxnet_bridge import ndarray_table

        self._cpu, self._fixed = cpu, variants.current
        self._check = runtime.load_mxnet().base.check_call
        self._table = cpu.empty_table(len(tensors))
        self._asked = _functions(), handles_of(tensors), self._table
        layouts = self._inspect()
        self.supported = bool(layouts.min() >= 0)
        self._number = max(0, int(layouts[0]))
        layout = ndarray_table.LAYOUT_OF[self._number]
        cpu.set_function(self._table, cpu.range_function(layout))
        self._step, self._other = ndarray_table.step, ndarray_table.OTHER_LAYOUT
        # Writes the table's head and floats in one call: with cold caches, converting sequences to
        # arrays costs ten times as much.
        pack = cpu.pack_format(len(tensors), whole=False).pack_into
        self._write = functools.partial(pack, self._table.data.cast("B"), 8 * cpu.FLUSH)

    def __call__(
        self,
        rates: Sequence[float],
        weight_decays: Sequence[float],
        common: Scalars,
        *,
        flush: bool,
    ) -> None:
        """Take one step, in one compiled call; MXNet's engine must be idle.

        Args:
            rates: of the tensors.
            weight_decays: likewise.
            common: the hyper-parameters of all tensors, in double.
            flush: treat subnormals as zero.
        """
        with self._cpu.launching:
            self._write(flush, self._fixed(), *common, *rates, *weight_decays)
            code = self._step(*self._asked, self._number)
            if code == self._other:
                self._step_by_layout()
            elif code:
                self._check(code)

    def refs(self) -> list[TensorRef]:
        """Describe the tensors of a step that is `supported`, rates and weight decays apart."""
        from adadelta_cli.mxnet_bridge import ndarray_table

        with self._cpu.launching:  # a step of another thread writes the same table
            layouts = self._inspect()
            _, _, sizes, addresses = self._cpu.columns(self._table)
            rows = zip(layouts.tolist(), addresses.tolist(), sizes.tolist(), strict=True)
        return [
            TensorRef(ndarray_table.LAYOUT_OF[number], tuple(row), size, 0.0, 0.0)
            for number, row, size in rows
        ]

    def _inspect(self) -> np.ndarray:
        """Put sizes and addresses into the table; return the tensors' layouts."""
        from adadelta_cli.mxnet_bridge import ndarray_table

        functions, array_handles, table = self._asked
        layouts = np.empty(len(array_handles), np.int64)
        self._check(ndarray_table.query(functions, array_handles, layouts, table))
        return layouts

    def _step_by_layout(self) -> None:
        """Take a step on tensors of several dtype layouts, a launch for each."""
        from adadelta_cli.mxnet_bridge import ndarray_table

        layouts = self._inspect()
        if layouts.min() < 0:
            raise TypeError("an array has changed its dtype, shape or device since the last step")
        for number in dict.fromkeys(layouts.tolist()):
            table = self._cpu.select_rows(self._table, layouts == number)
            function = self._cpu.range_function(ndarray_table.LAYOUT_OF[number])
            self._cpu.set_function(table, function)
            self._cpu.launch(table)


class FusedMxnetGpuStep(KeepsAddresses):
    """As `FusedMxnetStep`, on tensors in the memory of a GPU.

    CuPy gets the arrays over DLPack, without a copy, and launches the kernel. This was never run on
    a GPU: no MXNet with CUDA was available.

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
        """Take one step and wait for it, before MXNet's next operator reads; else as there.

        Raises:
            TypeError, ValueError: as `kernels.cuda.prepared_step`.
        """
        from adadelta_cli.kernels import cuda

        with self._cupy.cuda.Device(self._number):  # the current one may be another
            parameters = [Parameter(*map(self._cupy.from_dlpack, each)) for each in self._tensors]
            cuda.prepared_step(parameters, common, rates, weight_decays)()
            self._cupy.cuda.get_current_stream().synchronize()
