"""Recorded gradients replay to the same weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import assert_same_bits
from short_runs import make_run, no_pictures, short  # noqa: F401 - a fixture

from adadelta_cli.errors import UsageError
from adadelta_cli.implementations.array_backends import backend as array_library
from adadelta_cli.implementations.base import StepInputs
from adadelta_cli.implementations.registry import builtin, parameter
from adadelta_cli.update import Hyperparameters


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_recorded_gradients_replay_to_the_same_weights(backend, tmp_path, dtype):
    """Weights at the start, gradients of each step and hyper-parameters give the last weights."""
    path = tmp_path / "gradients.npz"
    made = make_run(tmp_path, short("mlp"), backend, dtype=dtype, record_gradients=path)
    made.execute()
    with np.load(path) as file:
        recorded = dict(file)
    assert str(recorded["dtype"]) == dtype
    hyper = Hyperparameters(**json.loads(str(recorded["hyperparameters"])))
    library = array_library("numpy")
    for name in made.trainer.parameters:
        weight, grads = recorded[f"weight/{name}"], recorded[f"grad/{name}"]
        assert grads.shape == (46, *weight.shape)
        assert grads.dtype == weight.dtype == dtype
        replayed = parameter(library, made.trainer.problem.start[name], grads[0], dtype=dtype)
        step = builtin(library, fused=False).bind(StepInputs([replayed], hyper, [1.0], [1.0]))
        for grad in grads:
            replayed.grad[...] = grad
            step()
        assert_same_bits([replayed.weight], [made.trainer.state()[f"weight/{name}"]])


def test_gradients_that_are_not_all_there_or_too_many_are_refused(tmp_path):
    """With --resume the first steps would be missing; a billion steps would not fit."""
    path = tmp_path / "gradients.npz"
    with pytest.raises(UsageError, match=r"--record-gradients .*--resume"):
        make_run(tmp_path, short("rosenbrock"), resume=True, record_gradients=path)
    with pytest.raises(UsageError, match=r"would hold 7\.5 GiB .*allowed are 2 GiB"):
        make_run(tmp_path, short("rosenbrock", "training.steps=1000000000"), record_gradients=path)
