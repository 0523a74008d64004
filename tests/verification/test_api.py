"""`verify` and `assert_correct` raise what Python programmers expect, in their words."""

from __future__ import annotations

from functools import partial

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
        *(("cases", value) for value in ("odd", None, 5, [1], [b"odd"], [["odd"]], b"odd")),
        *(("dtypes", value) for value in (["float16"], [], "float32", None, np.float32, [np.int8])),
        *(("subnormals", value) for value in ("none", None, ["strict"])),
        *(("seed", value) for value in (-1, "1", 1.5, True, None, np.nan, np.timedelta64(1, "s"))),
        *(("steps", value) for value in (0, "3", 1.5, True, np.inf, [1])),
        *(("full", value) for value in ("no", None, 1)),
        *(("ctx", value) for value in (None, 0, "CPU", "gpu:x", b"cpu", ["cpu"])),
    ],
)
def test_a_wrong_argument_is_named_and_no_option_advised(name, value):
    """Options belong to the command line."""
    with pytest.raises(UsageError) as raised:
        adadelta_cli.verify(step, **{name: value})
    assert name.removesuffix("s") in str(raised.value) and "--" not in str(raised.value)


class Broken:
    """What cannot be shown."""

    def __repr__(self):
        raise RuntimeError


@pytest.mark.parametrize("kernel", [None, "kernel.py:step", 5, [], Broken()], ids=type)
def test_what_is_no_function_is_a_usage_error(kernel):
    """Even what cannot be shown."""
    with pytest.raises(UsageError, match=r"expected a function step\(weight, grad, "):
        adadelta_cli.verify(kernel)


@pytest.mark.parametrize("name", ["cases", "dtypes"])
def test_names_may_come_from_any_iterable(name):
    """Each counts once."""
    few = {"cases": ["odd"], "dtypes": ["float32"]}
    wanted = adadelta_cli.verify(correct, **few)
    several = (text for text in few[name] * 2)
    assert len(adadelta_cli.verify(correct, **(few | {name: several}))) == len(wanted) > 5


def correct(weight, grad, acc_grad, acc_delta, **settings):
    """Take a correct step."""
    scalars = Hyperparameters(**settings).scalars(weight.dtype)
    rate, wd = settings["learning_rate"], settings["wd"]
    update(np, Parameter(weight, grad, acc_grad, acc_delta), scalars, rate, wd)


class Kernel:
    """A kernel in all forms of a callable."""

    def __call__(self, *args, **settings):
        """Take a correct step."""
        correct(*args, **settings)

    method = __call__

    @staticmethod
    def static(*args, **settings):
        """Likewise."""
        correct(*args, **settings)


def functional(weight, grad, acc_grad, acc_delta, **settings):
    """Return new arrays."""
    new = weight.copy(), acc_grad.copy(), acc_delta.copy()
    correct(new[0], grad, *new[1:], **settings)
    return new


@pytest.mark.parametrize(
    "kernel",
    [
        lambda *arrays, **settings: functional(*arrays, **settings)[:3],
        *(partial(correct), Kernel(), Kernel().method, Kernel.static, functional),
    ],
    ids=["lambda", "partial", "instance", "method", "static method", "functional"],
)
def test_any_callable_is_a_kernel(kernel):
    """In place or not."""
    adadelta_cli.assert_correct(kernel, cases=["odd"], dtypes=["float32"])


def generator(*args, **settings):
    """Run nothing when called."""
    yield correct(*args, **settings)


async def coroutine(*args, **settings):
    """Likewise."""
    correct(*args, **settings)


def reshaping(weight, grad, acc_grad, acc_delta, **settings):
    """Change the caller's array itself."""
    correct(weight, grad, acc_grad, acc_delta, **settings)
    weight.shape = (-1,)


def retyping(weight, grad, acc_grad, acc_delta, **settings):
    """Likewise."""
    correct(weight, grad, acc_grad, acc_delta, **settings)
    acc_grad.dtype = np.int32


@pytest.mark.filterwarnings("ignore:Setting the (shape|dtype) on:DeprecationWarning")  # NumPy 2.5
@pytest.mark.parametrize(
    ("kernel", "note"),
    [
        *((kernel, "a generator or an async") for kernel in (generator, coroutine)),
        (partial(coroutine), "a generator or an async"),
        (reshaping, "changed dtype or shape of weight to float32[60]"),
        (retyping, "changed dtype or shape of acc_grad to int32[3, 4, 5]"),
        (lambda *_, **__: Broken(), "returned a value of type Broken; allowed"),
        (lambda *_, **__: 5, "returned 5; allowed"),
        *((kernel, "wrong signature") for kernel in (len, Kernel, lambda **_: None)),
        (lambda *_: None, "wrong signature"),
    ],
)
def test_a_wrong_kernel_fails_with_what_is_wrong(kernel, note):
    """A failed row, no exception, and no warning of a coroutine that was never awaited."""
    (row,) = adadelta_cli.verify(kernel, cases=["odd"], dtypes=["float32"])
    assert row.passed is False and note in row.note


def test_a_failure_that_an_argument_allows_names_the_argument():
    """Subnormals that are flushed fail, unless the caller allows them."""
    how = {"cases": ["subnormal"], "dtypes": ["float32"]}
    with pytest.raises(AssertionError) as raised:
        adadelta_cli.assert_correct(step, **how)
    assert "set subnormals to flush" in str(raised.value) and "--" not in str(raised.value)
    adadelta_cli.assert_correct(step, **how, subnormals="flush")
