"""The two roofs of an AdaDelta step on this machine, timed as kernels.

S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for
multicore architectures", CACM 52(4), 2009. The memory roof has AdaDelta's traffic, four arrays
read and three written, with next to no arithmetic. The arithmetic roof has AdaDelta's arithmetic,
on as many elements, in the first-level cache. The slower of the two limits a step. Both are
measured, so a share near 1 has their noise.

Each roof is taken in the fastest of several ways: a plain loop or blocks with prefetch, one thread
or several. It learns which by itself (`variants.py`), so that a way that is bad on this processor
slows no roof.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli.kernels import cache, cpu, pool, variants
from adadelta_cli.kernels.cpu import _slice, _update_slice, _view, columns, compiled, view_table
from adadelta_cli.kernels.layout import DTypeLayout, TensorRef, tensor_ref

if TYPE_CHECKING:
    from adadelta_cli.update import Hyperparameters, Parameter

# The arithmetic roof's data a thread: it fits the first-level cache and is so long that restarting
# costs next to nothing. Measured, float32, two threads, 1e6 elements: 16 KiB 0.304 ms, 32 KiB
# 0.272 ms, 40 KiB 0.293 ms. Chunks lie a chunk's length apart, else each core's prefetcher takes
# cache lines of the other: 0.317 ms.
CACHED_BYTES = 32 * 1024
MIN_ELEMENTS = 1_000_000  # of a call of the arithmetic roof


@compiled
def _arithmetic_range(table, zeros, span, low, high):
    """Take the step on `high - low` elements, those of one thread's `span` again and again."""
    weight0, grad0, state0, half0 = zeros
    addresses = columns(table)[3]
    total, parts = columns(table)[2][0], np.int64(table[cpu.PARTS])
    # A part begins at a multiple of ALIGNED, at most so many elements before its share.
    at = 2 * span * (min(low + pool.ALIGNED, total - 1) * parts // total)
    weight, grad = (
        _view(addresses[0, 0], at, span, weight0),
        _view(addresses[0, 1], at, span, grad0),
    )
    acc_grad = _view(addresses[0, 2], at, span, state0)
    acc_delta = _view(addresses[0, 3], at, span, state0)
    half = _view(addresses[0, 4], at, span, half0)
    zero, hyper = state0, cpu.hyper_of(table, state0)
    while low < high:
        end = min(high - low, span)
        _update_slice(
            weight[:end],
            grad[:end],
            acc_grad[:end],
            acc_delta[:end],
            _slice(half, 0, end),
            zero,
            zero,
            hyper,
        )
        low += end


@functools.cache
def _arithmetic_function(layout: DTypeLayout) -> Any:
    zeros, span = layout.zeros, CACHED_BYTES // layout.held_bytes

    @cache.cfunc(pool.RANGE)
    def take(table, words, low, high):
        _arithmetic_range(view_table(table, words), zeros, span, low, high)

    return take


def cached_elements(workload: Parameter) -> int:
    """Return the number of elements of a workload's dtypes for the arithmetic roof's arrays."""
    size = sum(array.itemsize for array in workload.arrays)
    # Of the threads that there are: what `pool.threads` says may have been lowered since.
    return CACHED_BYTES // size * 2 * (int(pool.state()[pool.WORKERS]) + 1)


class Roofs:
    """The two roofs of one workload, on the memory that its steps use.

    Args:
        workload: its tensors concatenated, in one-dimensional NumPy arrays of float32, float64, or
            float16 with a float32 master. Their values do not change.
        cached: arrays of the same dtypes with `cached_elements(workload)` elements; the states
            change.
        hyper: the hyper-parameters of the step.
    """

    def __init__(self, workload: Parameter, cached: Parameter, hyper: Hyperparameters) -> None:
        # So small that adding it times the gradient changes no element; the product is normal.
        factor = float(np.sqrt(np.finfo(workload.acc_grad.dtype).tiny))
        ref = tensor_ref(workload, factor, 0.0)
        self._owners = workload, cached
        self._size = ref.size
        self._memory_function = cpu.range_function(ref.layout, traffic=True)
        self._memory = _table(ref, hyper, self._memory_function)
        small = tensor_ref(cached, 0.0, 0.0)._replace(size=ref.size)
        self._arithmetic_function = _arithmetic_function(ref.layout)
        self._arithmetic = _table(small, hyper, self._arithmetic_function)
        self.steps = -(-MIN_ELEMENTS // ref.size)

    def memory(self) -> None:
        """Move the bytes of one step."""
        with cpu.launching:
            cpu.launch(self._memory)

    def arithmetic(self) -> None:
        """Do the arithmetic of `steps` steps, with rate 0, so that values change little.

        Small workloads take several steps a call, so that the call itself does not count.
        """
        with cpu.launching:
            _repeat(self._arithmetic, self.steps)

    def memory_variant(self) -> str:
        """Return how the memory roof is taken, as `variants.parse` takes it."""
        return variants.best(self._memory_function, self._size)

    def arithmetic_variant(self) -> str:
        """Return how the arithmetic roof is taken."""
        return variants.best(self._arithmetic_function, self._size)


@compiled
def _repeat(table, times):
    for _ in range(times):
        cpu.launch(table)


def _table(ref: TensorRef, hyper: Hyperparameters, function: Any) -> np.ndarray:
    table = cpu.pack_table([ref], hyper.doubles)
    cpu.set_function(table, function)
    return table
