"""What `Difference` counts, on arrays whose differences are known."""

from __future__ import annotations

import numpy as np
import pytest

from adadelta_cli.verification.ulp import Difference

DTYPES = ("float16", "float32", "float64")


def between(got, wanted, dtype="float32", scale=None):
    """Compare lists."""
    got, wanted = (np.array(each, dtype) for each in (got, wanted))
    scale = np.abs(wanted) if scale is None else np.array(scale, dtype)
    return Difference.between(got, wanted, scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_bits_differ_in_nothing(dtype):
    """Infinities, NaNs of any payload and sign, and zeros of the same sign are equal."""
    values = [0.0, -0.0, 1.5, np.inf, -np.inf, np.nan]
    difference = between(values, [0.0, -0.0, 1.5, np.inf, -np.inf, -np.nan], dtype)
    assert difference == Difference(elements=6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", [1.0, -1.0, 3e-7, 0.0, -2.0])
def test_one_ulp_is_one(dtype, start):
    """A neighbour, across a power of two and next to zero too, is one ULP away."""
    start = np.array([start], dtype)
    for direction in (-np.inf, np.inf):
        beside = np.nextafter(start, np.array(direction, dtype))
        assert Difference.between(beside, start, np.abs(start)).max_ulp == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_of_different_sign_are_a_mismatch_of_no_distance(dtype):
    """Their bits differ, and no float lies between them."""
    difference = between([0.0, 1.0], [-0.0, 1.0], dtype)
    assert (difference.mismatches, difference.max_ulp, difference.max_abs) == (1, 0, 0)
    assert difference.max_rel == 0 and difference.first == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_across_zero_the_zeros_count_once(dtype):
    """From the least negative to the least positive number it is two steps."""
    least = np.finfo(dtype).smallest_subnormal
    assert between([least], [-least], dtype).max_ulp == 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("a", "b"), [(np.nan, 1.0), (1.0, np.nan), (np.inf, 1.0), (np.inf, -np.inf)]
)
def test_nan_or_infinity_against_a_number_is_infinitely_far(dtype, a, b):
    """However many bits it takes."""
    difference = between([1.0, a], [1.0, b], dtype)
    assert difference.mismatches == 1 and difference.max_ulp == np.inf
    assert difference.max_abs == np.inf and difference.first == 1


def test_errors_are_measured_against_the_reference():
    """Absolute, relative and L2 errors of a known pair."""
    difference = between([1.0, 2.5, 8.0], [1.0, 2.0, 4.0], "float64")
    assert (difference.max_abs, difference.max_rel) == (4.0, 1.0)
    assert difference.relative_l2 == pytest.approx(np.sqrt(0.25 + 16) / np.sqrt(21))
    assert (difference.elements, difference.mismatches, difference.first) == (3, 2, 1)


def test_scaled_ulps_are_those_of_the_operand_that_cancelled():
    """An error of one unit of 1.0 in a difference near 1e-7 is one scaled ULP, and many plain."""
    unit = float(np.spacing(np.float32(1)))
    difference = between([2 * unit], [unit], scale=[1.0])
    assert difference.scaled_ulp == 1
    assert difference.max_ulp == 2**23


def test_the_percentile_leaves_out_one_in_a_thousand():
    """One bad element of 2000 shows in the largest, not in the 99.9th percentile."""
    wanted = np.ones(2000, np.float32)
    got = wanted.copy()
    got[7] = 1.001
    difference = Difference.between(got, wanted, wanted)
    assert difference.max_ulp > 1000 and difference.p999_ulp == 0
    got[:5] = 1.001
    assert Difference.between(got, wanted, wanted).p999_ulp > 1000


def test_other_dtypes_or_shapes_cannot_be_compared():
    """They raise, rather than being cast or broadcast."""
    one = np.ones(3, np.float32)
    for other in (one.astype(np.float64), np.ones(1, np.float32), np.ones((3, 1), np.float32)):
        with pytest.raises(ValueError, match="expected"):
            Difference.between(other, one, one)
