"""`FusedStep`: no argument is ignored, and what it refuses it names."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import AWKWARD, assert_same_bits, random_arrays

from adadelta_cli import FusedStep, Parameter
from adadelta_cli.update import Hyperparameters, update

SHAPES = ((), (3,), (2, 5))


def tensors():
    """Make a model of a few tensors, the same each time."""
    return [Parameter(*random_arrays(shape, seed=k)) for k, shape in enumerate(SHAPES)]


def unfused(hyper, rates, weight_decays):
    """Take the array update's step on them."""
    parameters = tensors()
    for p, rate, wd in zip(parameters, rates, weight_decays, strict=True):
        update(np, p, hyper.scalars(np.float32), rate, wd)
    return [array for p in parameters for array in p.arrays]


OTHER = AWKWARD | {"epsilon": 0.03}  # far from the default, so that it shows in every element


@pytest.mark.parametrize("name", list(OTHER))
def test_each_hyper_parameter_counts(name):
    """Given alone, each gives the bits of the array update with it, and not those without."""
    plain, hyper = Hyperparameters(), Hyperparameters(**{name: OTHER[name]})
    parameters, ones = tensors(), [1.0] * len(SHAPES)
    FusedStep(parameters, **{name: OTHER[name]})()
    got = [array for p in parameters for array in p.arrays]
    rates, wds = ([value * one for one in ones] for value in (hyper.learning_rate, hyper.wd))
    assert_same_bits(got, unfused(hyper, rates, wds))
    default = unfused(plain, ones, [0.0] * len(SHAPES))
    assert any(a.tobytes() != b.tobytes() for a, b in zip(got, default, strict=True))


@pytest.mark.parametrize("kind", [list, tuple, np.array], ids=["list", "tuple", "array"])
def test_rates_and_decays_of_each_tensor(kind):
    """One for each, in any sequence."""
    rates, wds, parameters = [1.0, 0.5, 0.25], [0.0, 0.1, 0.2], tensors()
    FusedStep(parameters, learning_rate=kind(rates), wd=kind(wds))()
    got = [array for p in parameters for array in p.arrays]
    assert_same_bits(got, unfused(Hyperparameters(), rates, wds))


def test_it_reads_the_gradient_of_the_moment():
    """Prepared once, called again: as two steps of the array update with two gradients."""
    (p,), (wanted,) = [tensors()[1:2] for _ in range(2)]
    step = FusedStep([p])
    for value in (0.5, -2.0):
        p.grad[...] = wanted.grad[...] = value
        step()
        update(np, wanted, Hyperparameters().scalars(np.float32), 1.0, 0.0)
    assert_same_bits(p.arrays, wanted.arrays)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"rho": 1.0}, "rho"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"learning_rate": np.nan}, "learning_rate"),
        ({"learning_rate": [1.0, 2.0]}, "learning_rate has 2 numbers for 3 tensors"),
        ({"wd": [0.0, np.inf, 0.0]}, r"wd\[1\]"),
        ({"wd": "much"}, "wd"),
        ({"clip_gradient": -1.0}, "clip_gradient"),
        ({"rescale_grad": None}, "rescale_grad"),
    ],
)
def test_wrong_values_are_value_errors(wrong, named):
    """And nothing is prepared."""
    with pytest.raises(ValueError, match=named):
        FusedStep(tensors(), **wrong)


def test_an_unknown_argument_is_refused():
    """As any misspelt keyword."""
    with pytest.raises(TypeError, match="lr"):
        FusedStep(tensors(), lr=1.0)


def test_no_tensors_is_no_step():
    """An empty model is updated by doing nothing."""
    FusedStep([])()
