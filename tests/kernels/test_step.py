"""`FusedStep`: no argument is ignored, and what it refuses it names."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import pickle
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from conftest import AWKWARD, assert_same_bits, random_arrays

from adadelta_cli import FusedStep, Parameter
from adadelta_cli.kernels import cpu
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


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (5, "parameters is a int"),
        (None, "parameters is a NoneType"),
        (tensors()[1], "parameters is a Parameter"),
        (set(tensors()), "parameters is a set"),
        (dict.fromkeys(tensors()), "parameters is a dict"),
        ([[1.0, 2.0]], r"parameters\[0\] is a list"),
        ([Parameter([1.0], *random_arrays(1)[1:])], "weight of parameter 0 is a list"),
        ([Parameter(*random_arrays(1)[:3], 2.0)], "acc_delta of parameter 0 is a float"),
        ([Parameter(np.float32(1), *random_arrays(())[1:])], "weight of parameter 0 is a float32"),
    ],
)
def test_what_is_no_parameter_is_a_type_error(wrong, named):
    """It names what was given; a NumPy scalar has only the address of a copy."""
    with pytest.raises(TypeError, match=named):
        FusedStep(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        "123",
        bytearray(b"123"),
        {1.0, 2.0, 3.0},
        {0: 1, 1: 2, 2: 3},
        pd.DataFrame(np.ones((3, 3))),
        [[1.0], [1.0, 2.0], []],
        [None] * 3,
        np.ones(3, complex),
        np.ma.masked_array(np.ones(3), [False, True, False]),
        True,
    ],
    ids=lambda wrong: type(wrong).__name__,
)
@pytest.mark.parametrize("name", ["learning_rate", "wd"])
def test_what_is_no_rate_is_a_value_error(name, wrong):
    """Text, tables and unordered containers have no rate for each tensor."""
    with pytest.raises(ValueError, match=f"{name}.* is .*; allowed is a finite number"):
        FusedStep(tensors(), **{name: wrong})


NAMES = ("learning_rate", "wd", "rho", "epsilon", "rescale_grad", "clip_gradient")


@pytest.mark.parametrize("kind", [np.array, np.float16, np.float32, np.longdouble, Fraction])
@pytest.mark.parametrize("name", NAMES)
def test_a_number_of_any_type_counts_by_its_value(name, kind):
    """An array without dimensions, too, as NumPy's reductions give it."""
    got, wanted, value = tensors(), tensors(), float(np.float16(0.3))
    FusedStep(got, **{name: kind(value)})()
    FusedStep(wanted, **{name: value})()
    for a, b in zip(got, wanted, strict=True):
        assert_same_bits(a.arrays, b.arrays)


@pytest.mark.parametrize(
    "wrong",
    [
        *(np.complex64(0.5), np.array(0.5j), np.timedelta64(1, "s"), np.array(True), np.bool_(1)),
        *(np.ma.masked, np.ma.masked_array(0.5, mask=True), pd.NA, Decimal("0.5"), "1", b"1"),
        *(10**400, 10**5000, np.longdouble("1e4000"), np.nan, -np.inf),
    ],
    ids=lambda wrong: type(wrong).__name__,
)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_finite_real_number_is_a_value_error(name, wrong):
    """Nothing is read as a number that is none, and the message is one short line."""
    with pytest.raises(ValueError, match=f"{name} is .*; allowed is") as raised:
        FusedStep(tensors(), **{name: wrong})
    assert len(str(raised.value)) < 300 and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "wrong", [{"epsilon": Fraction(1, 10**400)}, {"rho": 1 - Fraction(1, 10**30)}], ids=str
)
def test_ranges_hold_for_the_double(wrong):
    """An epsilon that is zero in double would divide by zero."""
    with pytest.raises(ValueError, match="allowed is"):
        FusedStep(tensors(), **wrong)


# --- copies ---------------------------------------------------------------------------------------


class Named(FusedStep):
    """A subclass with an attribute."""

    name = "none"


def pickled(step):
    """Copy through bytes."""
    return pickle.loads(pickle.dumps(step))  # noqa: S301 - our own bytes


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
def test_a_copy_has_arrays_of_its_own(copied):
    """The original stays as it was, and the copy's step is the original's."""
    parameters, untouched = tensors(), tensors()
    step = Named(parameters, learning_rate=0.5, wd=[0.1, 0.2, 0.3], rho=0.8)
    step.name = "mine"
    together, again = copied((parameters, step))
    assert again.name == "mine" and type(again) is Named
    again()
    for a, b in zip(parameters, untouched, strict=True):
        assert_same_bits(a.arrays, b.arrays)
    step()
    for a, b in zip(together, parameters, strict=True):
        assert_same_bits(a.arrays, b.arrays)


def test_a_shallow_copy_has_the_same_arrays():
    """As for any object."""
    parameters, wanted = tensors(), tensors()
    copy.copy(FusedStep(parameters))()
    FusedStep(wanted)()
    for a, b in zip(parameters, wanted, strict=True):
        assert_same_bits(a.arrays, b.arrays)


def test_parameters_compare_by_identity():
    """Arrays have no single truth value."""
    parameter = tensors()[1]
    assert parameter in [*tensors(), parameter] and parameter != copy.copy(parameter)
    assert copy.copy(parameter).weight is parameter.weight is not copy.deepcopy(parameter).weight


def step_twice(step, results):
    """Take the step, and that of a new one on other arrays, in a forked process."""
    step()
    other = Parameter(*(np.ones(1_000_000, np.float32) for _ in range(4)))
    FusedStep([other])()
    results.put((step._given[0][0].weight[0], other.weight[0]))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12: there are threads
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_step_works_in_a_forked_process(busy):
    """GNU OpenMP ends a process that uses it on both sides; and another thread has the lock."""
    parameter = Parameter(*(np.ones(1_000_000, np.float32) for _ in range(4)))
    step = FusedStep([parameter])
    step()
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    with cpu.launching if busy else contextlib.nullcontext():
        child = context.Process(target=step_twice, args=(step, results))
        child.start()
    child.join(60)
    if child.exitcode is None:
        child.kill()
        child.join()
    assert child.exitcode == 0
    again, first = results.get()
    assert first == parameter.weight[0]
    step()
    assert again == parameter.weight[0]


def step_in_child(step):
    """Take the step in another process; return its first weight."""
    step()
    return step._given[0][0].weight


def test_a_step_can_go_to_another_process():
    """Where the addresses of this one are someone else's, or nobody's."""
    parameters = [Parameter(*(np.ones(2_000_000, np.float32) for _ in range(4)))]
    step = FusedStep(parameters)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        got = pool.apply(step_in_child, (step,))
    assert (parameters[0].weight == 1).all()
    step()
    assert_same_bits([got], [parameters[0].weight])
