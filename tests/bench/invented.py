"""A plan, samples and kernels that several tests of `bench` make up."""

from __future__ import annotations

import numpy as np

from adadelta_cli.bench import workloads
from adadelta_cli.bench.device import ARITHMETIC, MEMORY
from adadelta_cli.bench.plan import BenchPlan
from adadelta_cli.bench.timing_problem import Outcome, TimingProblem
from adadelta_cli.implementations.registry import timeable

PLAN = BenchPlan(tuple(workloads.sizes("1e6")), tuple(map(timeable, ("numpy", "numpy-fused"))))
GROUP = PLAN.groups[0]
ALL_WRONG = TimingProblem(Outcome.WRONG, "3 of 9 values")


def samples(fused=2.0, unfused=20.0, memory=1.9, arithmetic=1.0, rounds=30):
    """Two processes that measured these milliseconds in every round."""
    times = {"numpy": unfused, "numpy-fused": fused, MEMORY: memory, ARITHMETIC: arithmetic}
    return {name: [np.full(rounds, ms * 1e-3)] * 2 for name, ms in times.items()}


KERNELS = """
import fcntl, os, time
from pathlib import Path
import numpy as np
from adadelta_cli.update import Hyperparameters, Parameter, update

HERE = Path(__file__).parent
with (HERE / "imports").open("a") as file:
    file.write("x")
calls = 0

def step(weight, grad, acc_grad, acc_delta, **settings):
    hyper = Hyperparameters(**settings)
    p = Parameter(weight, grad, acc_grad, acc_delta)
    update(np, p, hyper.scalars(weight.dtype), hyper.learning_rate, hyper.wd)

def functional(weight, grad, acc_grad, acc_delta, **settings):
    new = weight.copy(), acc_grad.copy(), acc_delta.copy()
    step(new[0], grad, *new[1:], **settings)
    return new

def widens(weight, grad, acc_grad, acc_delta, **settings):
    new = functional(weight, grad, acc_grad, acc_delta, **settings)
    return [array.astype("float64") for array in new]

def raises(*arrays, **settings):
    raise OSError("not here,\\\\nnor there")

def dies(*arrays, **settings):
    os._exit(7)

def dies_later(*arrays, **settings):
    global calls
    calls += 1
    if calls > 3:
        os._exit(7)
    step(*arrays, **settings)

def compiles(*arrays, **settings):
    global calls
    calls += 1
    time.sleep(1.0 * (calls == 1) + 60.0 * (HERE / "hang").exists())
    step(*arrays, **settings)

def forks(*arrays, **settings):
    global calls
    calls += 1
    if calls == 1 and os.fork() == 0:
        os.setsid()
        with (HERE / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            time.sleep(3)
            (HERE / "survived").touch()
            os._exit(0)
    step(*arrays, **settings)

def multiplies(*arrays, **settings):
    with (HERE / "forked").open("ab") as file:
        file.write(b"x")
        file.flush()
        count = file.tell()
    if count > 1 and not os.fork():  # not while the step is checked, on memory that a fork shares
        time.sleep(60)
        os._exit(0)
    if count > 60:
        time.sleep(60)
    step(*arrays, **settings)

def forks_and_dies(*arrays, **settings):
    forks(*arrays, **settings)
    while not (HERE / "lock").exists():
        time.sleep(0.01)
    os._exit(7)
"""


def write_kernels(folder):
    """Write a file of users' kernels; return its path."""
    path = folder / "kernels.py"
    path.write_text(KERNELS)
    return path
