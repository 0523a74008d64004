"""A prepared step keeps the arrays alive whose addresses it has."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest
from conftest import random_arrays, simulated_gpu

from adadelta_cli.kernels import cpu, cuda, layout
from adadelta_cli.update import Hyperparameters, Parameter

SHAPES = ((100_003,), (7,))


def prepared_on_simulated_gpu(monkeypatch):
    """Let `cuda.prepared_step` take NumPy arrays."""
    monkeypatch.setattr(layout, "CUDA", layout.HOST)
    monkeypatch.setattr(cuda, "_check_device", lambda _parameters: None)
    monkeypatch.setattr(cuda, "_launch", lambda *_: None)
    return cuda.prepared_step


@pytest.mark.parametrize("where", ["cpu", "cuda"])
@pytest.mark.parametrize("how", ["cleared", "an item replaced"])
def test_the_arrays_live_as_long_as_the_step(monkeypatch, where, how):
    """Whatever the caller does to the list of parameters; and no longer."""
    prepare = cpu.prepared_step if where == "cpu" else prepared_on_simulated_gpu(monkeypatch)
    parameters = [Parameter(*random_arrays(shape)) for shape in SHAPES]
    alive = [weakref.ref(array) for each in parameters for array in each.arrays]
    ones = [1.0] * len(SHAPES)
    with simulated_gpu():
        step = prepare(parameters, Hyperparameters().doubles, ones, ones)
    if how == "cleared":
        parameters.clear()
    else:
        parameters[:] = [Parameter(*random_arrays(shape, seed=1)) for shape in SHAPES]
    gc.collect()
    assert all(each() is not None for each in alive)
    del step
    gc.collect()
    assert all(each() is None for each in alive)


STEP_AFTER_CLEARING = """
import gc
import numpy as np
from adadelta_cli import FusedStep, Parameter

shape = 4_000_000  # so large that its memory goes back to the system at once
make = lambda: Parameter(*(np.full(shape, value, np.float32) for value in (1, 2, 3, 4)))
kept = make()
parameters, other = [make()], [kept]
views = [array[:] for array in parameters[0].arrays] if VIEWS else []
step = FusedStep(parameters)
FusedStep(other)()
parameters.clear()
gc.collect()
over = [np.full(shape, 7, np.float32) for _ in range(8)]
step()
assert all((each == 7).all() for each in over), "the step wrote into another's memory"
for got, wanted in zip(views, kept.arrays):
    assert got.tobytes() == wanted.tobytes()
print("whole")
"""


@pytest.mark.parametrize("views", [True, False])
def test_a_step_after_the_list_was_cleared_is_no_use_after_free(views):
    """In a process of its own, which it may take down."""
    code = STEP_AFTER_CLEARING.replace("VIEWS", str(views))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0 and done.stdout == "whole\n", done.stderr
