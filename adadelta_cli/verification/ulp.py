"""Compare two arrays of floats: bits, ULPs, absolute and relative errors.

Two numbers agree when all their bits do, so zeros of different sign do not. All NaNs are one
number, since IEEE 754 leaves their sign and payload open. A NaN against a number, or infinity
against a finite number, is a mismatch with an infinite distance in ULPs. Subnormals are compared
like any number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Difference:
    """The differences between computed numbers and a reference."""

    elements: int = 0  # how many were compared
    mismatches: int = 0  # how many differ in a bit
    max_abs: float = 0.0  # largest absolute error
    max_rel: float = 0.0  # largest error relative to the reference's element
    relative_l2: float = 0.0  # 2-norm of the errors over that of the reference
    p999_ulp: float = 0.0  # 99.9th percentile of the distance in units in the last place (ULPs)
    max_ulp: float = 0.0  # largest distance, likewise
    scaled_ulp: float = 0.0  # largest error in ULPs of `scale`, which cancellation does not inflate
    first: int | None = None  # flat index of the first mismatch; None where there is none

    @classmethod
    def between(cls, got: np.ndarray, wanted: np.ndarray, scale: np.ndarray) -> Difference:
        """Compare two arrays.

        Args:
            got: computed numbers, float16, float32 or float64.
            wanted: the reference, same dtype and shape.
            scale: the magnitudes in whose ULPs `scaled_ulp` is, same shape: the largest operand
                of the addition that each number came from.

        Raises:
            ValueError: dtypes or shapes differ.
        """
        if got.dtype != wanted.dtype or got.shape != wanted.shape:
            raise ValueError(
                f"got {got.dtype}{list(got.shape)}, expected {wanted.dtype}{list(wanted.shape)}"
            )
        where = differing(got, wanted)
        if not where.size:
            return cls(elements=got.size)
        return cls._of_mismatches(got, wanted, scale, where)

    @classmethod
    def _of_mismatches(
        cls, got: np.ndarray, wanted: np.ndarray, scale: np.ndarray, where: np.ndarray
    ) -> Difference:
        a, b, s = (each.ravel()[where] for each in (got, wanted, scale))
        with np.errstate(all="ignore"):
            error = np.abs(a.astype(np.float64) - b.astype(np.float64))
            error[np.isnan(error)] = np.inf  # a NaN against a number
            distance = np.where(np.isfinite(error), _distance(a, b), np.inf)
            relative = np.where(b != 0, error / np.abs(b.astype(np.float64)), np.inf)
            relative[error == 0] = 0  # zeros of different sign
            scaled = np.where(error == 0, 0, error / _spacing(s))
            norm = float(np.sqrt(np.nansum(np.square(wanted, dtype=np.float64))))
            l2 = float(np.sqrt(np.square(error).sum())) / norm if norm else np.inf
        every = np.zeros(got.size)
        every[where] = distance
        return cls(
            elements=got.size,
            mismatches=len(where),
            max_abs=float(error.max()),
            max_rel=float(relative.max()),
            relative_l2=l2,
            p999_ulp=float(np.quantile(every, 0.999, method="higher")),
            max_ulp=float(distance.max()),
            scaled_ulp=float(scaled.max()),
            first=int(where[0]),
        )


class BoundVerdict(NamedTuple):
    """The errors of one tensor against a bound, without elements to which theory does not apply."""

    tensor: str
    difference: Difference  # `scaled_ulp` is the largest error, in the unit of the bound
    allowed_ulp: float | None  # None: errors are only reported
    worst: str  # names the element with the largest error
    left_out: int  # elements

    @property
    def passed(self) -> bool | None:
        """Whether every error is within the bound; None where nothing was compared."""
        if not self.difference.elements:
            return None
        return self.allowed_ulp is None or self.difference.scaled_ulp <= self.allowed_ulp


def differing(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the flat indices at which two arrays of one dtype and shape differ in a bit."""
    both_nan = np.isnan(got) & np.isnan(wanted)
    return np.flatnonzero((_bits(got) != _bits(wanted)) & ~both_nan)


def describe_first(
    difference: Difference, got: np.ndarray, wanted: np.ndarray, elements: int
) -> str:
    """Name the first mismatch of several steps of `elements` each; empty where there is none."""
    if difference.first is None:
        return ""
    step, element = divmod(difference.first, elements)
    values = (written(each[difference.first]) for each in (got, wanted))
    return "first at step {}, element {}: got {}, expected {}".format(step + 1, element, *values)


def describe_worst(
    step: int, element: int, got: float, wanted: float, inputs: Mapping[str, float]
) -> str:
    """Name the element with the largest error, counting steps from 1, with the step's inputs."""
    values = ", ".join(f"{name} {written(value)}" for name, value in inputs.items())
    return (
        f"worst at step {step}, element {element}: got {written(got)}, expected "
        f"{written(wanted)}; from {values}"
    )


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.itemsize}").reshape(array.shape)


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Count the floats from one number to another; both zeros are one float."""

    def ordinal(array: np.ndarray) -> np.ndarray:
        """Map floats to unsigned integers in the same order."""
        bits, sign = _bits(array), 1 << (8 * array.itemsize - 1)
        return np.where(bits & bits.dtype.type(sign), ~bits, bits | bits.dtype.type(sign))

    x, y = ordinal(a), ordinal(b)
    distance = (np.maximum(x, y) - np.minimum(x, y)).astype(np.float64)
    return distance - (np.signbit(a) != np.signbit(b))


def _spacing(scale: np.ndarray) -> np.ndarray:
    """Return the unit in the last place of each magnitude, at least the least subnormal."""
    finite = np.where(np.isfinite(scale), scale, np.finfo(scale.dtype).max)
    return np.abs(np.spacing(np.abs(finite).astype(scale.dtype))).astype(np.float64)


def written(value: float) -> str:
    """Write a number for a program, exactly, and for a person: `0x1.0000000000000p-1 (0.5)`."""
    return f"{float(value).hex()} ({float(value):.9g})"
