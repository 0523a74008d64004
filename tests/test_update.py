"""The update on arrays, and its hyper-parameters."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import AWKWARD, GOLDEN, KINDS, assert_same_bits, random_arrays

from adadelta_cli.update import Hyperparameters, Parameter, update


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_float64_follows_the_golden_trajectories(case):
    """Ten steps in double stay within 1e-12 of those computed with 60 digits."""
    hyper = Hyperparameters(**case["hyper"])
    arrays = [np.array(case[name], np.float64) for name in ("weight", "acc_grad", "acc_delta")]
    for grad, wanted in zip(case["grads"], case["steps"], strict=True):
        parameter = Parameter(arrays[0], np.array(grad, np.float64), *arrays[1:])
        update(np, parameter, hyper.scalars("float64"), hyper.learning_rate, hyper.wd)
        for array, name in zip(arrays, ("weight", "acc_grad", "acc_delta"), strict=True):
            np.testing.assert_allclose(array, np.array(wanted[name], float), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3)])
def test_the_gradient_is_left_alone_and_the_rest_updated_in_place(kind, shape):
    """A step writes weight, states and master where they lie, and never the gradient."""
    arrays = random_arrays(shape, kind, low=0, high=1)
    before = [array.copy() for array in arrays]
    hyper = Hyperparameters(**AWKWARD)
    update(np, Parameter(*arrays), hyper.scalars(KINDS[kind][1]), 0.7, 0.01)
    assert_same_bits([arrays[1]], [before[1]])
    for k in (0, 2, 3, *([4] if KINDS[kind][2] else [])):
        assert arrays[k].dtype == before[k].dtype
        assert not arrays[k].size or (arrays[k] != before[k]).any()


def test_one_step_by_hand():
    """The formula of the documentation, worked out for one element."""
    weight, grad = np.array([2.0]), np.array([10.0])
    acc_grad, acc_delta = np.array([4.0]), np.array([0.25])
    hyper = Hyperparameters(0.5, 0.5, 0.75, 1.0, 0.5, 3.0)  # clip(10 * 0.5, 3) + 1 * 2 = 5
    update(np, Parameter(weight, grad, acc_grad, acc_delta), hyper.scalars("float64"), 0.5, 1.0)
    assert acc_grad == 0.5 * 4 + 0.5 * 25
    delta = np.sqrt(0.25 + 0.75) / np.sqrt(14.5 + 0.75) * 5
    assert acc_delta == 0.5 * 0.25 + 0.5 * (delta * delta)
    assert weight == 2 - 0.5 * delta


def test_a_nan_gradient_is_not_clipped_away():
    """NaN passes through the clipping into weight and states; infinity is clipped."""
    weight, grad = np.ones(2), np.array([np.nan, np.inf])
    states = np.zeros(2), np.zeros(2)
    hyper = Hyperparameters(clip_gradient=1.0)
    update(np, Parameter(weight, grad, *states), hyper.scalars("float64"), 1.0, 0.0)
    assert np.isnan(weight[0]) and np.isnan(states[0][0]) and np.isnan(states[1][0])
    assert np.isfinite(weight[1]) and states[0][1] == pytest.approx(0.1)


def test_one_minus_rho_is_taken_in_double():
    """1 - rho is rounded after the subtraction: in float32 it would differ in most bits."""
    scalars = Hyperparameters(rho=0.9).scalars("float32")
    assert scalars.one_minus_rho == np.float32(1 - 0.9) != np.float32(1) - np.float32(0.9)


def test_no_clipping_is_an_infinite_clip():
    """So is a clip that float32 cannot hold."""
    assert Hyperparameters().scalars("float32").clip_gradient == np.inf
    assert Hyperparameters(clip_gradient=1e300).scalars("float32").clip_gradient == np.inf


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rho", 1.0),
        ("rho", -0.1),
        ("rho", float("nan")),
        ("rho", None),
        ("epsilon", 0.0),
        ("epsilon", -1e-6),
        ("epsilon", float("inf")),
        ("learning_rate", "fast"),
        ("learning_rate", float("nan")),
        ("learning_rate", True),
        ("clip_gradient", -1.0),
        ("clip_gradient", float("nan")),
        ("wd", None),
        ("rescale_grad", float("inf")),
    ],
)
def test_a_wrong_hyperparameter_is_named_with_what_is_allowed(name, value):
    """The message says which, what was given, and what is allowed."""
    with pytest.raises(ValueError, match=rf"{name} is .*; allowed is") as raised:
        Hyperparameters(**{name: value})
    assert repr(value) in str(raised.value)
