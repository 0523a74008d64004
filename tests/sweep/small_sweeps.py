"""Small sweeps for the tests of this folder, computed in this process."""

from __future__ import annotations

import contextlib
from concurrent.futures import Executor, Future

from adadelta_cli.implementations.array_backends import CPU
from adadelta_cli.sweep import isolation, runner
from adadelta_cli.sweep.engines import Engine
from adadelta_cli.sweep.isolation import Failure, Outcome
from adadelta_cli.sweep.plan import Plan, Request

TEXT = """
problem: {name: rosenbrock}
training: {steps: 6, record_every: 3}
"""
HOW = {"fused": False, "dtype": "float64"}
GRID = ("optimizer.rho=0.9,0.99", "optimizer.epsilon=1e-6,1e-4,1e-2")


class InProcess(Executor):
    """Calls each function at once, in this process, instead of `isolation.call`.

    Args:
        failures: by the seed of a job, the failure that it is made to have.
    """

    def __init__(self, failures=None):
        self.failures = failures or {}
        self.jobs = []

    def submit(self, fn, /, *args, **_kwargs):
        assert fn is isolation.call
        _how, _timeout, function, *arguments = args
        job = arguments[0]
        future = Future()
        if function.__name__ == "train":
            self.jobs.append(job)
            failure = self.failures.get(job.seed)
            if isinstance(failure, BaseException):
                future.set_exception(failure)
                return future
            if failure:
                future.set_result(Outcome(failure=failure, message=f"it {failure.value}"))
                return future
        future.set_result(Outcome(function(*arguments)))
        return future


def engine(executor=None, capacity=2):
    """Make an engine of an executor in this process."""
    return Engine("this process", executor or InProcess(), "token", 1, lambda: capacity)


def plan(folder, grid=GRID, text=TEXT, **request):
    """Plan a sweep of a config in a folder."""
    path = folder / "it.yaml"
    path.write_text(text)
    request.setdefault("how", HOW)
    return Plan.of(str(path), Request(grid=tuple(grid), **request))


def sweep(folder, *args, where=None, **request):
    """Prepare a sweep, with the results in `out`."""
    found = plan(folder, *args, **request)
    return runner.prepare(found, folder / "out", where or engine(), "numpy", CPU)


def executed(folder, *args, failures=None, **request):
    """Prepare and execute a sweep; return it and its executor."""
    executor = InProcess(failures)
    found = sweep(folder, *args, where=engine(executor), **request)
    with contextlib.suppress(KeyboardInterrupt):
        found.execute(engine(executor))
    return found, executor


__all__ = ["Failure"]
