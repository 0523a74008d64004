"""The catalogue of cases: names, numbers, and what they are strong in."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from adadelta_cli.errors import UsageError
from adadelta_cli.verification import cases, catalogue, fuzz


def test_names_are_unique():
    """A name means one case."""
    assert len(cases.CASES) == len(cases.DEFAULT) + len(cases.FULL)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numbers_derive_from_name_dtype_and_seed_alone(dtype):
    """The same again; others with another seed or name."""

    def draw(name, seed):
        case = cases.CASES[name]
        case.start.cache_clear()
        case.grads.cache_clear()
        return [*case.start(dtype, seed)[0], *case.grads(dtype, seed, 2)]

    first = draw("odd", 0)
    assert all((a == b).all() for a, b in zip(first, draw("odd", 0), strict=True))
    assert not any((a == b).all() for a, b in zip(first, draw("odd", 1), strict=True) if a.size)
    assert not (first[0] == draw("defaults", 0)[0]).all()


@pytest.mark.parametrize("case", cases.DEFAULT, ids=lambda case: case.name)
def test_cases_are_strong_where_others_are_weak(case):
    """Gradients of both signs, more than one step, and accumulators that matter."""
    start, grads = case.start("float32", 0), case.grads("float32", 0, 1)
    assert case.steps > 1
    assert [value.weight.shape for value in start] == list(case.shapes)
    assert all(grad.dtype == np.float32 for grad in grads)
    if case.elements > 100 and case.fill != "zero":
        flat = np.concatenate([grad.ravel() for grad in grads])
        assert (flat > 0).any() and (flat < 0).any()
    if case.elements > 100 and case.fill != "fresh":
        for part in ("acc_grad", "acc_delta"):
            flat = np.concatenate([getattr(value, part).ravel() for value in start])
            assert (flat > 0).any()


def test_subnormal_cases_reach_the_subnormals():
    """Squares and gradients below the least normal number, and above zero."""
    tiny = np.finfo(np.float32).tiny
    (grad,) = cases.CASES["subnormal"].grads("float32", 0, 1)
    squares = np.square(grad, dtype=np.float64)
    assert ((squares > 0) & (squares < tiny)).sum() > 100
    assert ((np.abs(grad) > 0) & (np.abs(grad) < tiny)).sum() > 10


def test_special_cases_hold_every_special_value():
    """Each special weight meets each special gradient."""
    case = cases.CASES["special"]
    values = {str(value) for value in cases.specials("float32")}
    (start,), (grad,) = case.start("float32", 0), case.grads("float32", 0, 1)
    pairs = set(zip(map(str, start.weight), map(str, grad), strict=True))
    assert len(pairs) == len(values) ** 2


def test_selecting():
    """By name, by size, all, or the default set; steps can be overridden."""
    assert [case.name for case in catalogue.select(("odd", "special"))] == ["odd", "special"]
    assert [case.shapes for case in catalogue.select(sizes=(5, 7))] == [((5,),), ((7,),)]
    assert len(catalogue.select(full=True)) == len(cases.CASES)
    assert {case.steps for case in catalogue.select(steps=2)} == {2}
    with pytest.raises(UsageError, match=r"'oddd'.*did you mean odd.*known are"):
        catalogue.select(("oddd",))
    for name in ("wd", "WD="):
        with pytest.raises(UsageError, match=r"did you mean wd=0.03 or wd=.*adadelta list cases"):
            catalogue.select((name,))


def test_a_length_is_the_name_of_a_case():
    """So what --sizes puts can be repeated by --case, with the same numbers."""
    (sized,), (named,) = catalogue.select(sizes=(12_345,)), catalogue.select(("length-12345",))
    assert named == sized and named.elements == 12_345
    for name in ("length-", "length-1e3", "length--1", "length-01", f"length-{'9' * 400}"):
        with pytest.raises(UsageError, match="there is no case"):
            catalogue.select((name,))


# --- the same bits on every processor -------------------------------------------------------------

CHECKSUMS = {"float16": 59_499_966, "float32": 2_364_092_603, "float64": 2_104_069_467}
NAMES, DRAWN = 613_847_048, 3_602_491_443


def checksum(some, dtype):
    """Sum up the inputs of cases: their starts and first gradients."""
    found = 0
    for case in some:
        starts = [values for tensor in case.start(dtype, 0) for values in tensor]
        grads = [grad for k in range(1, min(case.steps, 3) + 1) for grad in case.grads(dtype, 0, k)]
        for values in starts + grads:
            found = zlib.crc32(np.ascontiguousarray(values).tobytes(), found)
    return found


@pytest.mark.parametrize("dtype", CHECKSUMS)
def test_inputs_are_the_same_bits_on_every_processor(dtype):
    """No vector unit and no C library decides over a last bit."""
    assert checksum(cases.DEFAULT, dtype) == CHECKSUMS[dtype]


def test_the_same_seed_generates_the_same_cases_everywhere():
    """Names hold all settings."""
    some = list(fuzz.fuzzed_cases(0, 300))
    assert zlib.crc32("\n".join(case.name for case in some).encode()) == NAMES
    assert checksum(some[:50], "float32") == DRAWN


def test_powers_of_ten_are_accurate():
    """Within the error of the rounded exponent, also at both ends of the range."""
    exponents = np.linspace(-300, 308, 10_001)
    assert np.allclose(cases.power_of_10(exponents), 10.0**exponents, rtol=1e-12, atol=0)
    assert cases.power_of_10(-323.3) == np.finfo(np.float64).smallest_subnormal
