"""A trainer takes the steps that its settings ask for, and measures them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import assert_same_bits, needs_mxnet
from short_runs import SETTINGS, short

from adadelta_cli.implementations.array_backends import backend as array_library
from adadelta_cli.run.trainer import Batches, Trainer, norm

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


# --- batches --------------------------------------------------------------------------------------

DATA = [np.arange(10.0), np.arange(10.0) * 2]


def batches(size, seed=0):
    """Make batches of DATA on NumPy's arrays."""
    return Batches(DATA, size, array_library("numpy"), seed)


def epoch(made, number):
    """Concatenate the first array of an epoch's batches."""
    steps = range(number * made.per_epoch, (number + 1) * made.per_epoch)
    return np.concatenate([made.at(step)[0] for step in steps])


def test_an_epoch_takes_each_sample_once_in_an_order_of_its_own():
    """The batches are a permutation of the data, another one in the next epoch or with a seed."""
    made = batches(4)
    assert [len(made.at(step)[0]) for step in range(3)] == [4, 4, 2]
    orders = [epoch(made, 0), epoch(made, 1), epoch(batches(4, seed=1), 0)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), DATA[0])
    assert len({tuple(order) for order in orders}) == 3


def test_the_arrays_of_a_batch_belong_together():
    """A sample's label stays with its features."""
    values, doubled = batches(4).at(1)
    np.testing.assert_array_equal(doubled, 2 * values)


def test_a_batch_does_not_depend_on_those_before_it():
    """A resumed run goes on in the middle of an epoch."""
    whole = batches(4)
    walked = [whole.at(step)[0] for step in range(8)]
    np.testing.assert_array_equal(batches(4).at(7)[0], walked[7])


def test_all_samples_are_one_batch_in_their_order():
    """Without a batch size, or with one that is larger than the data."""
    for size in (None, 10, 99):
        made = batches(size)
        assert made.per_epoch == 1
        np.testing.assert_array_equal(made.at(5)[0], DATA[0])


def test_without_data_there_is_one_empty_batch():
    """As for Rosenbrock's function."""
    made = Batches([], None, array_library("numpy"), 0)
    assert (made.per_epoch, made.at(0)) == (1, [])
