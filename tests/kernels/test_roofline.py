"""The roofs touch what they say, and change nothing that would spoil a measurement."""

import numpy as np
import pytest

from adadelta_cli.bench.buffers import TensorSet
from adadelta_cli.bench.target import HYPER
from adadelta_cli.kernels import cpu, pool, roofline, variants
from adadelta_cli.kernels.step import FusedStep

ELEMENTS = 10_000


def roofs(dtype, elements=ELEMENTS):
    """Make a workload, its cached sister and their roofs."""
    (tensors,) = TensorSet.allocate([(elements,)], dtype, seed=0)
    (cached,) = TensorSet.allocate([(roofline.cached_elements(tensors.line),)], dtype, seed=0)
    return tensors.line, cached.line, roofline.Roofs(tensors.line, cached.line, HYPER)


def copies(line):
    """Copy all arrays of a line."""
    return [array.copy() for array in line.arrays]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
class TestRoofs:
    """Both roofs in each dtype."""

    def test_memory_roof_changes_no_value(self, dtype):
        """The memory roof writes back what it read, so the steps timed beside it are not hurt."""
        line, _, both = roofs(dtype)
        before = copies(line)
        both.memory()
        assert all(map(np.array_equal, before, line.arrays))

    @pytest.mark.parametrize("elements", [1, 1000, ELEMENTS])  # on one thread, and on several
    def test_memory_roof_reads_and_writes_every_array(self, dtype, elements):
        """With a factor of 1, each element's gradient arrives in weight and states."""
        line, _, both = roofs(dtype, elements)
        weight, grad, acc_grad, acc_delta, *master = copies(line)
        rates, *_ = cpu.columns(both._memory)
        rates[0] = 1.0
        both.memory()
        change = grad.astype(acc_grad.dtype)
        right = (master[0] if master else weight) + change
        assert np.array_equal(line.weight, right.astype(dtype))
        assert np.array_equal(line.acc_grad, acc_grad + change)
        assert np.array_equal(line.acc_delta, acc_delta + change)
        assert line.master is None or np.array_equal(line.master, right)

    def test_arithmetic_roof_is_the_update(self, dtype):
        """Its states become those of the fused step, taken as often as the elements ask for."""
        line, cached, both = roofs(dtype)
        both._arithmetic[cpu.FIXED] = variants.parse("1:0")
        size = cached.weight.size // 2 // pool.threads()
        (expected,) = TensorSet.allocate([(cached.weight.size,)], dtype, seed=0)
        step = FusedStep(expected.parameters, learning_rate=0.0)
        total = line.weight.size
        passes = total // size
        both.steps = 1
        for _ in range(passes):
            step()
        both.arithmetic()
        rest = total - passes * size  # these were stepped over once more
        done = slice(rest, size)
        for mine, right in zip(cached.arrays, expected.line.arrays, strict=True):
            assert np.array_equal(mine[done], right[done])

    def test_arithmetic_roof_leaves_the_workload_alone(self, dtype):
        """It works on memory of its own."""
        line, _, both = roofs(dtype)
        before = copies(line)
        both.arithmetic()
        assert all(map(np.array_equal, before, line.arrays))

    def test_values_stay_normal(self, dtype):
        """After thousands of passes nothing is subnormal or infinite, which would cost time."""
        _, cached, both = roofs(dtype)
        for _ in range(20):
            both.arithmetic()
        states = np.concatenate([cached.acc_grad, cached.acc_delta])
        assert np.isfinite(states).all()
        assert (np.abs(states) >= np.finfo(states.dtype).tiny).all()


def test_threads_that_are_there_have_memory_of_their_own(monkeypatch):
    """Also where fewer are wanted since they were started: else one writes behind the arrays."""
    pool.state()
    monkeypatch.setattr("numba.config.NUMBA_NUM_THREADS", 1)
    line, cached, both = roofs("float16")
    assert cached.weight.size == roofline.cached_elements(line)
    before = cached.grad.copy()
    for _ in range(40):
        both.arithmetic()
    assert np.array_equal(cached.grad, before)
    assert np.isfinite(cached.acc_grad).all()


def test_cached_data_fits_the_first_level_cache():
    """A thread's part holds 32 KiB, whatever the dtype."""
    for dtype in ("float32", "float64", "float16"):
        (tensors,) = TensorSet.allocate([(ELEMENTS,)], dtype, seed=0)
        line = tensors.line
        held = sum(array.itemsize for array in line.arrays) * roofline.cached_elements(line)
        assert held == 2 * 32 * 1024 * pool.threads()
