"""The two roofs of an AdaDelta step on this machine, timed as kernels.

S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for
multicore architectures", CACM 52(4), 2009. The memory roof has AdaDelta's traffic, four arrays
read and three written, with next to no arithmetic. The arithmetic roof has AdaDelta's arithmetic,
on as many elements, in the first-level cache. The slower of the two limits a step. Both are
measured, so a share near 1 has their noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import prange

from adadelta_cli.kernels.cpu import (
    BLOCK_ELEMENTS,
    _load,
    _prefetch_block,
    _slice,
    _store,
    _update_slice,
    chunks_for,
    compiled,
    compiled_parallel,
)

if TYPE_CHECKING:
    from adadelta_cli.update import Hyperparameters, Parameter

# The arithmetic roof's data a thread: it fits the first-level cache and is so long that restarting
# costs next to nothing. Measured, float32, two threads, 1e6 elements: 16 KiB 0.304 ms, 32 KiB
# 0.272 ms, 40 KiB 0.293 ms. Chunks lie a chunk's length apart, else each core's prefetcher takes
# cache lines of the other: 0.317 ms.
CACHED_BYTES = 32 * 1024
MIN_ELEMENTS = 1_000_000  # of a call of the arithmetic roof


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
def _traffic_chunk(weight, grad, acc_grad, acc_delta, half, factor, chunk, chunks):
    """Move one of several chunks, in blocks, with software prefetch, as the step does."""
    total = weight.size
    end = total * (chunk + 1) // chunks
    for low in range(total * chunk // chunks, end, BLOCK_ELEMENTS):
        high = min(low + BLOCK_ELEMENTS, end)
        _prefetch_block(weight, grad, acc_grad, acc_delta, half, low, high)
        _traffic_slice(
            weight[low:high],
            grad[low:high],
            acc_grad[low:high],
            acc_delta[low:high],
            _slice(half, low, high),
            factor,
        )


@compiled_parallel
def _traffic(weight, grad, acc_grad, acc_delta, half, factor, chunks):
    if chunks == 1:  # in this thread, as the step does
        _traffic_chunk(weight, grad, acc_grad, acc_delta, half, factor, 0, 1)
        return
    for chunk in prange(chunks):
        _traffic_chunk(weight, grad, acc_grad, acc_delta, half, factor, chunk, chunks)


@compiled
def _arithmetic_chunk(weight, grad, acc_grad, acc_delta, half, zero, hyper, total, chunk, chunks):
    """Take the step repeatedly on one chunk's data, on its share of `total` elements."""
    size = weight.size // (2 * chunks)
    low = 2 * size * chunk
    elements = total * (chunk + 1) // chunks - total * chunk // chunks
    while elements > 0:
        high = low + min(elements, size)
        _update_slice(
            weight[low:high],
            grad[low:high],
            acc_grad[low:high],
            acc_delta[low:high],
            _slice(half, low, high),
            zero,
            zero,
            hyper,
        )
        elements -= size


@compiled_parallel
def _arithmetic(weight, grad, acc_grad, acc_delta, half, zero, hyper, total, chunks):
    if chunks == 1:
        _arithmetic_chunk(weight, grad, acc_grad, acc_delta, half, zero, hyper, total, 0, 1)
        return
    for chunk in prange(chunks):
        _arithmetic_chunk(
            weight, grad, acc_grad, acc_delta, half, zero, hyper, total, chunk, chunks
        )


def cached_elements(workload: Parameter) -> int:
    """Return the number of elements of a workload's dtypes for the arithmetic roof's arrays."""
    size = sum(array.itemsize for array in workload.arrays)
    return CACHED_BYTES // size * 2 * chunks_for(workload.weight.size)


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
        real = workload.acc_grad.dtype.type
        self.chunks = chunks_for(workload.weight.size)
        self._workload, self._cached = _arrays(workload), _arrays(cached)
        # So small that adding it times the gradient changes no element; the product is normal.
        self._factor = np.sqrt(np.finfo(real).tiny)
        self._zero = real(0)
        self._hyper = tuple(hyper.scalars(real))
        self.steps = -(-MIN_ELEMENTS // workload.weight.size)

    def memory(self) -> None:
        """Move the bytes of one step."""
        _traffic(*self._workload, self._factor, self.chunks)

    def arithmetic(self) -> None:
        """Do the arithmetic of `steps` steps, with rate 0, so that values change little.

        Small workloads take several steps a call, so that the call itself does not count.
        """
        total = self._workload[0].size * self.steps
        _arithmetic(*self._cached, self._zero, self._hyper, total, self.chunks)


def _arrays(p: Parameter) -> tuple[Any, ...]:
    """Order a parameter's arrays as the kernels take them, float16 as its bits."""
    if p.master is None:
        return p.weight, p.grad, p.acc_grad, p.acc_delta, None
    return p.master, p.grad.view(np.uint16), p.acc_grad, p.acc_delta, p.weight.view(np.uint16)
