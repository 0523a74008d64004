"""The tensors that are timed: their values, their alignment, and the bytes that a step moves."""

import numpy as np
import pytest

from adadelta_cli.bench import buffers, target
from adadelta_cli.bench.buffers import TensorSet
from adadelta_cli.bench.device import CpuDevice
from adadelta_cli.implementations.registry import timeable


@pytest.mark.parametrize(
    ("dtype", "moved", "held"), [("float32", 28, 16), ("float64", 56, 32), ("float16", 28, 16)]
)
def test_bytes_of_an_element(dtype, moved, held):
    """Four reads and three writes; float16 keeps a float32 master, read and written beside it."""
    assert buffers.traffic_bytes(dtype) == moved
    assert buffers.held_bytes(dtype) == held
    (tensors,) = TensorSet.allocate([(100,)], dtype, seed=0)
    line = tensors.line
    assert sum(array.itemsize for array in line.arrays) == held


def test_tensors_keep_normal_values():
    """After thousands of steps nothing is subnormal, infinite or NaN, which would cost time."""
    for dtype in ("float32", "float64", "float16"):
        (tensors,) = TensorSet.allocate([(3000,)], dtype, seed=0)
        bound = target.BenchTarget.to(timeable("numpy-fused"), tensors, CpuDevice())
        for _ in range(5000):
            bound.step()
        for array in tensors.line.arrays:
            assert np.isfinite(array).all()
        for array in (tensors.line.acc_grad, tensors.line.acc_delta):
            assert (array >= np.finfo(array.dtype).tiny).all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_tensors_begin_at_cache_lines(dtype):
    """Each tensor begins at a cache line, and no two arrays at the same place in a page."""
    for tensors in TensorSet.allocate([(10,), (3, 5), (1000,)], dtype, 0, copies=3):
        places = [array.ctypes.data for each in tensors.parameters for array in each.arrays]
        assert all(place % 64 == 0 for place in places)
        lines = tensors.line.arrays
        assert len({array.ctypes.data % 4096 for array in lines}) == len(lines)


def test_copies_of_tensors_share_no_memory():
    """A step on one copy leaves the others as they are."""
    first, second = TensorSet.allocate([(10,), (3, 5)], "float16", 0, copies=2)
    before = [array.copy() for array in second.line.arrays]
    for array in first.line.arrays:
        array[...] = 7
    for array, kept in zip(second.line.arrays, before, strict=True):
        np.testing.assert_array_equal(array, kept)
