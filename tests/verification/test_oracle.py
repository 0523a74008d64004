"""The oracle knows the exact result; its bounds hold, and are tight enough to fail."""

from __future__ import annotations

import decimal
import fractions
import math
import re
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
from conftest import GOLDEN, HERE, NUMPY
from hypothesis import given
from hypothesis import strategies as st

from adadelta_cli.update import Hyperparameters
from adadelta_cli.verification import cases, execute, oracle
from adadelta_cli.verification.oracle import Constants, Exact, Sample, State

TENSORS = ("weight", "acc_grad", "acc_delta")


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_it_agrees_with_the_golden_trajectories(case):
    """All 30 digits that the file holds, over ten steps."""
    hyper = Hyperparameters(**case["hyper"])
    constants = Constants.of(hyper, hyper.learning_rate, hyper.wd, "float64")
    each = zip(*(case[name] for name in TENSORS), strict=True)
    states = [State(*map(Decimal, values)) for values in each]
    for grads, wanted in zip(case["grads"], case["steps"], strict=True):
        with decimal.localcontext(oracle.DECIMAL_CONTEXT):
            found = [
                oracle.advance(state, Decimal(grad), constants)
                for state, grad in zip(states, grads, strict=True)
            ]
            states = [element.state for element in found]
            for k, name in enumerate(TENSORS):
                for state, text in zip(states, wanted[name], strict=True):
                    assert abs(state[k] - Decimal(text)) <= Decimal("1e-29") * abs(Decimal(text))


def test_it_loads_no_other_formula():
    """Importing the oracle imports neither the array update nor a kernel."""
    code = (
        "import sys, adadelta_cli.verification.oracle\n"
        "print(*[m for m in sys.modules if 'adadelta' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = {"", ".verification", ".verification.oracle", ".verification.ulp"}
    assert set(done.stdout.split()) == {f"adadelta_cli{each}" for each in modules}


def test_hyperparameters_are_what_the_dtype_makes_of_them():
    """Rounded once; 1 - rho in double before; a clip beyond the largest number is none."""
    k = Constants.of(Hyperparameters(rho=0.9, clip_gradient=1e300), 0.1, 0.2, "float32")
    assert k.rho == Decimal(float(np.float32(0.9)))
    assert k.one_minus_rho == Decimal(float(np.float32(1.0 - 0.9)))
    assert k.one_minus_rho != 1 - k.rho
    assert k.clip_gradient == math.inf and k.learning_rate == Decimal(float(np.float32(0.1)))


@given(
    st.floats(-1e30, 1e30).filter(lambda value: abs(value) > 1e-30 or value == 0), st.floats(-1, 1)
)
def test_rounding_to_single_is_rounding_once(nearest, share):
    """Against exact fractions: no double rounding, ties to even."""
    rest = share * float(np.spacing(np.abs(nearest))) / 2 * 0.999 if nearest else 0.0
    nothing = np.zeros(1)
    exact = Exact(np.array([nearest]), np.array([rest]), nothing, nothing == 0)
    (found,) = exact.rounded(np.dtype("float32"))
    value = fractions.Fraction(nearest) + fractions.Fraction(rest)
    others = [np.nextafter(found, np.float32(end)) for end in (-np.inf, np.inf)]
    errors = [
        (abs(fractions.Fraction(float(other)) - value), other.view(np.uint32) & 1, k)
        for k, other in enumerate([found, *others])
        if np.isfinite(other)
    ]
    assert min(errors, key=lambda error: error[:2])[2] == 0


def test_a_tie_that_is_none_is_not_rounded_to_even():
    """The nearest double of 1 + 2^-24 + 2^-80 is a tie between two singles; the number is not."""
    one = np.ones(1)
    exact = Exact(one + 2.0**-24, one * 2.0**-80, one, one == 1)
    assert exact.rounded(np.dtype("float32")) == 1 + 2.0**-23
    assert replace(exact, rest=-exact.rest).rounded(np.dtype("float32")) == 1


def verdicts_of(tensors, name="odd", dtype="float32", question=oracle.one_step, budget=20_000):
    """Compare a trajectory with the oracle; return the verdicts by tensor."""
    sample = Sample(cases.CASES[name], dtype, 0, budget)
    return {verdict.tensor: verdict for verdict in question(sample, tensors)}


def stepped(name="odd", dtype="float32"):
    """Let the array update take a case's steps."""
    return execute.step_through(NUMPY, cases.CASES[name], dtype, 0).tensors


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize(
    "name", ["odd", "wd=10.0", "fresh", "overflow", "subnormal-odd", "special"]
)
def test_the_array_update_keeps_the_bounds(name, dtype):
    """In every dtype, also where magnitudes go to the ends of its range."""
    tensors = stepped(name, dtype)
    verdicts = verdicts_of(tensors, name, dtype, budget=3000)
    assert set(verdicts) == set(tensors)
    for verdict in verdicts.values():
        assert verdict.passed, verdict
        assert verdict.difference.elements + verdict.left_out >= 3000 // cases.CASES[name].steps


@pytest.mark.parametrize("tensor", TENSORS)
def test_an_error_just_above_the_bound_is_seen(tensor):
    """At one element of the last step, by as many ULPs of the largest operand as are too many."""
    tensors = {name: [state.copy() for state in states] for name, states in stepped().items()}
    sample = Sample(cases.CASES["odd"], "float32", 0, 1000)
    values = tensors[tensor][-1]
    before = tensors[tensor][-2]
    at = sample.indices[np.argmax(np.abs(values[sample.indices]))]
    too_many = oracle.STEP_BOUNDS[tensor] + 5
    values[at] += np.float32(too_many * np.spacing(max(abs(values[at]), abs(before[at]))))
    verdict = verdicts_of(tensors, budget=1000)[tensor]
    assert verdict.passed is False
    assert f"step 10, element {at}:" in verdict.worst
    assert all(
        verdicts_of(tensors, budget=1000)[other].passed for other in TENSORS if other != tensor
    )


def test_the_worst_element_is_named_with_its_inputs():
    """In hexadecimal floats, from which one step repeats it."""
    tensors = {name: [state.copy() for state in states] for name, states in stepped().items()}
    tensors["acc_grad"][3][0] *= 2
    worst = verdicts_of(tensors)["acc_grad"].worst
    assert worst.startswith("worst at step 3, element 0: got ")
    assert "(0.0780456141), expected 0x1.3facc40000000p-5 (0.0390228108); from weight " in worst
    assert f"acc_grad {float(tensors['acc_grad'][2][0]).hex()}" in worst
    assert f"grad {float(cases.CASES['odd'].grads('float32', 0, 3)[0].ravel()[0]).hex()}" in worst


def test_a_nan_where_a_number_belongs_fails():
    """It is an infinite error, and the following steps, which have no verdict, are left out."""
    tensors = {name: [state.copy() for state in states] for name, states in stepped().items()}
    for states in tensors.values():
        for state in states[2:]:
            state[0] = np.nan
    for verdict in verdicts_of(tensors).values():
        assert verdict.difference.scaled_ulp == np.inf and verdict.passed is False
        assert verdict.left_out == 8


def test_a_wrong_formula_breaks_the_bound():
    """1 - rho and rho exchanged in one accumulator."""
    right = cases.CASES["odd"]
    wrong = replace(right, hyper=replace(right.hyper, rho=1 - right.hyper.rho))
    tensors = execute.step_through(NUMPY, wrong, "float32", 0).tensors
    assert not any(verdict.passed for verdict in verdicts_of(tensors).values())


def test_drift_in_double_stays_within_1e_12():
    """Over 100 steps, relative to the largest operand so far; in float32 it is only reported."""
    double = verdicts_of(stepped("long", "float64"), "long", "float64", oracle.drift_verdicts, 2000)
    single = verdicts_of(stepped("long"), "long", "float32", oracle.drift_verdicts, 2000)
    for tensor in TENSORS:
        assert double[tensor].passed and double[tensor].allowed_ulp < 5000
        assert 0 < double[tensor].difference.scaled_ulp < 1000
        assert single[tensor].passed and single[tensor].allowed_ulp is None
        assert single[tensor].difference.max_rel > 1e6 * double[tensor].difference.max_rel


def test_drift_is_of_the_whole_trajectory():
    """An error of the first step is still there at the last; a restarted step forgets it."""
    tensors = {
        name: [s.copy() for s in states] for name, states in stepped("odd", "float64").items()
    }
    for state in tensors["weight"][1:]:
        state[...] *= 1 + 1e-9
    assert verdicts_of(tensors, "odd", "float64", oracle.drift_verdicts)["weight"].passed is False


def test_where_everything_is_left_out_there_is_no_verdict():
    """Gradients all subnormal squares: nothing to say is not passed."""
    case = replace(cases.CASES["zero-gradients"], shapes=((9,),), steps=1)
    nothing = np.full(9, np.inf, np.float32)
    tensors = {name: [nothing, nothing] for name in TENSORS}
    for verdict in oracle.one_step(Sample(case, "float32", 0, 100), tensors):
        assert verdict.passed is None and verdict.left_out == 9


def test_the_page_shows_the_bounds_and_errors_within_them():
    """docs/accuracy.md has the bound of each dtype and tensor, and a smaller worst error."""
    text = (HERE.parent / "docs" / "accuracy.md").read_text()
    lines = re.findall(r"^\| (float\d\d) \| (\w+) \| ([\d.]+) \| ([\d.]+) \| `", text, re.MULTILINE)
    assert len(lines) == 10
    for dtype, tensor, bound, worst in lines:
        half = (dtype, tensor) == ("float16", "weight")
        assert float(bound) == (oracle.HALF_BOUND if half else oracle.STEP_BOUNDS[tensor])
        assert 0 < float(worst) < float(bound)


def test_the_error_is_from_the_exact_result_and_not_from_the_nearest_double():
    """The nearest float64 of a number 0.4 ULP away has that error."""
    one = np.ones(1)
    exact = Exact(one, one * 0.4 * 2.0**-52, one, one == 1)
    assert exact.difference(one).scaled_ulp == pytest.approx(0.4)
    assert exact.difference(one).mismatches == 0


def test_a_gradient_that_cancels_wholly_is_left_out():
    """Of x = p + q = 0 nothing is certain; of p = q = 0 all is."""
    k = Constants.of(Hyperparameters(wd=1.0), 1.0, 1.0, "float32")
    state = State(Decimal(3), Decimal(1), Decimal(1))
    zero = State(Decimal(0), Decimal(1), Decimal(1))
    with decimal.localcontext(oracle.DECIMAL_CONTEXT):
        assert not oracle.advance(state, Decimal(-3), k).ordinary
        assert not oracle.advance(state, Decimal("-2.99999999"), k).ordinary
        assert oracle.advance(state, Decimal(-2), k).ordinary
        assert oracle.advance(zero, Decimal(0), k).ordinary
