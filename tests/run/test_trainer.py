"""A trainer takes the steps that its settings ask for, and measures them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import assert_same_bits, needs_mxnet
from short_runs import SETTINGS, short

from adadelta_cli.implementations.array_backends import backend as array_library
from adadelta_cli.run.trainer import Trainer, norm

DTYPES = ["float32", "float64", "float16"]


def train(name, library, **how):
    """Take all steps of a short training, and measure the last."""
    made = Trainer(short(name), library, **how)
    while made.step < made.total - 1:
        made.advance()
    return made, made.advance_and_measure()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SETTINGS)
def test_fused_and_unfused_give_the_same_bits(backend, name, dtype):
    """Loss, norms, metrics, weights and states are the same."""
    (fused, row), (unfused, other) = (
        train(name, backend, dtype=dtype, fused=way) for way in (True, False)
    )
    assert row == other
    assert_same_bits(fused.state().values(), unfused.state().values())


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_dtype_is_what_it_says(backend, dtype):
    """float16 has float16 weights with float32 masters and states; the others are pure."""
    state = train("mlp", backend, dtype=dtype)[0].state()
    states = "float32" if dtype == "float16" else dtype
    for key, values in state.items():
        assert values.dtype == (dtype if key.startswith("weight/") else states)
    assert any(key.startswith("master/") for key in state) == (dtype == "float16")


def test_a_row_has_the_step_before_it_and_the_point_after():
    """Row 0 is the start; row 1 has the gradient there, the way gone, and the loss at its end."""
    made = Trainer(short("rosenbrock"), array_library("numpy"), dtype="float64")
    zero, one = made.measure(), made.advance_and_measure()
    assert (zero.step, zero.grad_norm, zero.update_norm) == (0, None, None)
    assert zero.loss == pytest.approx(24.2)
    assert one.grad_norm == pytest.approx(math.hypot(215.6, 88))
    (x,) = made.weights()
    assert one.update_norm == pytest.approx(np.linalg.norm(x - [-1.2, 1]))
    assert one.loss == pytest.approx(100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)


@needs_mxnet
def test_the_libraries_train_alike():
    """In double, MXNet's autograd and NumPy's formulas lead to the same loss in 30 steps."""
    ours, theirs = (
        train("logistic_regression", array_library(name), dtype="float64")[1]
        for name in ("numpy", "mxnet")
    )
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-10)


def test_a_norm_is_right_at_any_magnitude():
    """Squares that over- or underflow do not spoil it; NaN and infinity stay visible."""
    assert norm([np.array([3e200]), np.array([4e200])]) == pytest.approx(5e200)
    assert norm([np.array([3e-200, 4e-200])]) == pytest.approx(5e-200)
    assert norm([np.zeros(3), np.zeros(0)]) == 0
    assert norm([np.array([1.0, np.inf])]) == math.inf
    assert math.isnan(norm([np.array([1.0]), np.array([np.nan])]))
