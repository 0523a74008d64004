"""Each implementation is compared with the array update before it is timed."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import needs_mxnet
from invented import write_kernels

from adadelta_cli.bench import target, worker
from adadelta_cli.bench.buffers import TensorSet
from adadelta_cli.bench.device import ARITHMETIC, MEMORY, CpuDevice
from adadelta_cli.bench.timing_problem import Outcome, TimingProblem
from adadelta_cli.implementations.registry import TIMEABLE, Implementation, ToleranceULP, timeable


class TestCheckCorrect:
    """One step is compared with the array update."""

    def tensors(self):
        """Make two tensors, one of them compared in samples."""
        return TensorSet.allocate([(70_001,), (3, 5)], "float32", seed=0)[0]

    def check(self, name):
        """Check an implementation as the task that takes the samples does."""
        return target.check_correct(
            timeable(name), target.BenchTarget.to(timeable(name), self.tensors(), CpuDevice())
        )

    def check_step(self, step, tensors, chosen=None):
        """Check any function as an implementation's step."""
        bound = target.BenchTarget(step, tensors.parameters, tensors, CpuDevice())
        return target.check_correct(chosen or timeable("numpy"), bound)

    @pytest.mark.parametrize("name", ["numpy", "numpy-fused"])
    def test_built_in_ones_have_no_problem(self, name):
        """The array update and the one-pass kernel agree in every bit."""
        assert self.check(name) is None

    @needs_mxnet
    @pytest.mark.parametrize("name", ["mxnet", "mxnet-fused", "mxnet-stock"])
    def test_those_on_mxnet_have_no_problem(self, name):
        """They work on the same memory, as MXNet's arrays."""
        assert self.check(name) is None

    @pytest.mark.parametrize("function", ["step", "functional"])
    def test_a_correct_user_kernel_has_no_problem(self, function, tmp_path):
        """One that updates in place, and one that returns the new arrays."""
        assert self.check(f"{write_kernels(tmp_path)}:{function}") is None

    @pytest.mark.parametrize("array", ["weight", "acc_grad", "acc_delta", "grad"])
    @pytest.mark.parametrize("ulps", [0, 300])
    def test_an_error_is_found(self, array, ulps):
        """One array off by a bit; with a tolerance, one array beyond it."""
        tensors, chosen = self.tensors(), timeable("numpy")
        right = target.BenchTarget.to(timeable("numpy-fused"), tensors, CpuDevice())
        if ulps:
            chosen = replace(chosen, tolerance=ToleranceULP(99, 99, 99))

        def step():
            right.step()
            for parameter in tensors.parameters:
                values = getattr(parameter, array)
                values += np.spacing(np.abs(values)) * max(1, ulps)

        assert self.check_step(step, tensors, chosen).outcome is Outcome.WRONG

    def test_a_difference_within_the_tolerance_is_correct(self):
        """Off by a bit, and allowed two."""
        tensors = self.tensors()
        chosen = replace(timeable("numpy"), tolerance=ToleranceULP(2, 2, 2))
        right = target.BenchTarget.to(timeable("numpy-fused"), tensors, CpuDevice())

        def step():
            right.step()
            for parameter in tensors.parameters:
                parameter.acc_delta[...] += np.spacing(parameter.acc_delta)

        assert self.check_step(step, tensors, chosen) is None

    def test_doing_nothing_is_wrong(self):
        """A step that does not step is found."""
        assert self.check_step(lambda: None, self.tensors()).outcome is Outcome.WRONG

    def test_an_exception_is_a_failure(self):
        """The reason has its type and message."""

        def step():
            raise TypeError("float64 is beyond me")

        assert self.check_step(step, self.tensors()) == TimingProblem(
            Outcome.FAILED, "raised TypeError: float64 is beyond me"
        )

    @pytest.mark.parametrize("function", ["widens", "raises"])
    def test_the_reason_is_one_line(self, function, tmp_path):
        """Another dtype, or an exception of several lines."""
        problem = self.check(f"{write_kernels(tmp_path)}:{function}")
        wanted = {"widens": (Outcome.WRONG, "dtype"), "raises": (Outcome.FAILED, "raised OSError")}
        outcome, part = wanted[function]
        assert problem.outcome is outcome and part in problem.reason
        assert "\n" not in problem.reason

    def test_a_wrong_one_is_not_timed(self, monkeypatch):
        """The task that takes the samples leaves a wrong implementation out."""
        lazy = Implementation("lazy", "numpy", True, lambda *_: lambda: None, "numpy")
        monkeypatch.setitem(TIMEABLE, "lazy", lazy)
        order = {"shapes": [[5000]], "dtype": "float32", "seed": 0, "cold": False, "roofs": True}
        ready = worker.TimingTask(order | {"implementations": ["lazy", "numpy"]}).ready()
        assert ready["faults"]["lazy"].startswith("wrong: ")
        assert ready["entries"] == ["numpy", MEMORY, ARITHMETIC]
