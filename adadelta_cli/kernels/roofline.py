"""The two roofs of an AdaDelta step on this machine, timed as kernels.

S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for
multicore architectures", CACM 52(4), 2009. The memory roof moves AdaDelta's own traffic, four
arrays read and three written, with almost no arithmetic. The arithmetic roof does AdaDelta's own
arithmetic for as many elements, on data in the first-level cache. The slower of the two limits a
step. Both limits are measured with kernels, so a share of 1 includes their noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from numba import prange

from adadelta_cli.kernels.cpu import (
    BLOCK_ELEMENTS,
    _ask_ahead,
    _cut,
    _load,
    _store,
    _update_slice,
    chunks_for,
    compiled,
    compiled_parallel,
)

if TYPE_CHECKING:
    from adadelta_cli.update import Hyperparameters, Parameter

# Data of the arithmetic roof in each thread: it must fit the first-level cache, and be long enough
# that the overhead of each pass is negligible. Measured, float32, two threads, 1e6 elements: 16 KiB
# 0.304 ms, 32 KiB 0.272 ms, 40 KiB 0.293 ms. A gap of the same length separates the threads' parts;
# without it, each core prefetches the other's lines: 0.317 ms.
CACHED_BYTES = 32 * 1024
LEAST_ELEMENTS = 1_000_000  # that a call of the arithmetic roof updates


@compiled
def _traffic_slice(weight, grad, acc_grad, acc_delta, half, factor):
    for i in range(weight.size):
        change = factor * _load(grad[i])
        new = weight[i] + change
        weight[i] = new
        acc_grad[i] = acc_grad[i] + change
        acc_delta[i] = acc_delta[i] + change
        if half is not None:
            half[i] = _store(new, half[i])


@compiled
def _traffic_stream(weight, grad, acc_grad, acc_delta, half, factor):
    """Move long slices in blocks, prefetching ahead, as the step does."""
    for low in range(0, weight.size, BLOCK_ELEMENTS):
        high = min(low + BLOCK_ELEMENTS, weight.size)
        _ask_ahead(weight, grad, acc_grad, acc_delta, half, low, high)
        _traffic_slice(
            weight[low:high],
            grad[low:high],
            acc_grad[low:high],
            acc_delta[low:high],
            _cut(half, low, high),
            factor,
        )


@compiled_parallel
def _traffic(weight, grad, acc_grad, acc_delta, half, factor, parts):
    total = weight.size
    if parts == 1:  # in this thread only, as the step does
        _traffic_stream(weight, grad, acc_grad, acc_delta, half, factor)
        return
    for part in prange(parts):
        low, high = total * part // parts, total * (part + 1) // parts
        _traffic_stream(
            weight[low:high],
            grad[low:high],
            acc_grad[low:high],
            acc_delta[low:high],
            _cut(half, low, high),
            factor,
        )


@compiled
def _arithmetic_part(weight, grad, acc_grad, acc_delta, half, zero, hyper, elements):
    while elements > 0:
        size = min(elements, weight.size)
        _update_slice(
            weight[:size],
            grad[:size],
            acc_grad[:size],
            acc_delta[:size],
            _cut(half, 0, size),
            zero,
            zero,
            hyper,
        )
        elements -= size


@compiled_parallel
def _arithmetic(weight, grad, acc_grad, acc_delta, half, zero, hyper, total, parts):
    size = weight.size // (2 * parts)
    if parts == 1:
        _arithmetic_part(
            weight[:size],
            grad[:size],
            acc_grad[:size],
            acc_delta[:size],
            _cut(half, 0, size),
            zero,
            hyper,
            total,
        )
        return
    for part in prange(parts):
        low, high = 2 * size * part, 2 * size * part + size
        _arithmetic_part(
            weight[low:high],
            grad[low:high],
            acc_grad[low:high],
            acc_delta[low:high],
            _cut(half, low, high),
            zero,
            hyper,
            total * (part + 1) // parts - total * part // parts,
        )


def cached_elements(line: Parameter) -> int:
    """Return how many elements fit the first-level caches, given the arrays of a workload."""
    size = sum(array.itemsize for array in line.arrays)
    return CACHED_BYTES // size * 2 * chunks_for(line.weight.size)


class Roofs:
    """The two roofs of one workload, on the memory that its steps use.

    Args:
        line: all tensors of the workload concatenated, in NumPy arrays of one dimension,
            float32, float64, or float16 with a float32 master. Their values do not change.
        cached: likewise, with `cached_elements(line)` elements; their states change.
        hyper: the hyper-parameters of the step.
    """

    def __init__(self, line: Parameter, cached: Parameter, hyper: Hyperparameters) -> None:
        real = line.acc_grad.dtype.type
        self.parts = chunks_for(line.weight.size)
        self._line, self._cached = _arrays(line), _arrays(cached)
        # Times the gradient, it is too small to change any element, and never subnormal.
        self._factor = np.sqrt(np.finfo(real).tiny)
        self._zero = real(0)
        self._hyper = tuple(hyper.scalars(real))
        self.steps = -(-LEAST_ELEMENTS // line.weight.size)

    def memory(self) -> None:
        """Move the bytes of one step."""
        _traffic(*self._line, self._factor, self.parts)

    def arithmetic(self) -> None:
        """Do the arithmetic of `steps` steps, at a learning rate of 0, so that weights stay.

        For small workloads these are several steps, so that the overhead of the call is negligible.
        """
        total = self._line[0].size * self.steps
        _arithmetic(*self._cached, self._zero, self._hyper, total, self.parts)


def _arrays(line: Parameter) -> tuple[Any, ...]:
    """Arrange a parameter as the kernels take it, float16 arrays by their bits."""
    if line.master is None:
        return line.weight, line.grad, line.acc_grad, line.acc_delta, None
    weight, grad = line.weight.view(np.uint16), line.grad.view(np.uint16)
    return line.master, grad, line.acc_grad, line.acc_delta, weight


def threading_layer() -> str:
    """Name the library that runs Numba's threads; it is known after a parallel call."""
    return numba.threading_layer()
