"""`verify` and `assert_correct` raise what Python programmers expect, in their words."""

from __future__ import annotations

import numpy as np
import pytest

import adadelta_cli
from adadelta_cli.errors import UsageError
from adadelta_cli.update import Hyperparameters, Parameter, update


def step(weight, grad, acc_grad, acc_delta, **settings):
    """Take a correct step, and flush subnormals to zero."""
    scalars = Hyperparameters(**settings).scalars(weight.dtype)
    rate, wd = settings["learning_rate"], settings["wd"]
    update(np, Parameter(weight, grad, acc_grad, acc_delta), scalars, rate, wd)
    for array in (weight, acc_grad, acc_delta):
        array[abs(array) < np.finfo(array.dtype).tiny] = 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cases", ["nonesuch"]),
        ("cases", ["drawn:shapes=-3"]),
        ("cases", "odd"),
        ("dtypes", ["float16"]),
        ("dtypes", []),
        ("subnormals", "none"),
        ("seed", -1),
        ("steps", 0),
    ],
)
def test_a_wrong_argument_is_named_and_no_option_advised(name, value):
    """Options belong to the command line."""
    with pytest.raises(UsageError) as raised:
        adadelta_cli.verify(step, **{name: value})
    assert name.removesuffix("s") in str(raised.value) and "--" not in str(raised.value)


def test_a_failure_that_an_argument_allows_names_the_argument():
    """Subnormals that are flushed fail, unless the caller allows them."""
    how = {"cases": ["subnormal"], "dtypes": ["float32"]}
    with pytest.raises(AssertionError) as raised:
        adadelta_cli.assert_correct(step, **how)
    assert "set subnormals to flush" in str(raised.value) and "--" not in str(raised.value)
    adadelta_cli.assert_correct(step, **how, subnormals="flush")
