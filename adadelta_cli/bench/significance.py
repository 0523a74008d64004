"""Is the new step faster, slower, or the same? A test over processes.

The process is the unit, since processes differ more than the samples of one: what comes in here is
one number for each process, the median of its samples. Times are multiplied by what disturbs them,
so everything is computed on their logarithms, where a ratio is a difference and both directions are
alike. docs/benchmarks.md gives the error rates, and tests/simulate_verdict.py computes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

LEVEL = 0.99  # of an interval; and 1 - LEVEL is the chance of any false alarm in a whole table
LEAST_PROCESSES = 3  # with two, the spread has one degree of freedom, and the interval no use
MOST_PROCESSES = 40  # beyond, more of them is no advice
# No clock knows a median better. It keeps equal numbers, which have no spread, from being divided
# by nothing.
LEAST_SPREAD = 1e-6


class Verdict(Enum):
    """What is said of a row; `Judgement.reason` says why where it is not obvious."""

    FASTER = "FASTER"
    SLOWER = "SLOWER"
    SAME = "SAME"
    UNCLEAR = "UNCLEAR"


@dataclass(frozen=True)
class LogRatio:
    """The new time over the old one, as logarithms; what too few processes leave open is infinite.

    Attributes:
        log_ratio: the estimate.
        log_low: lower end of the two-sided interval of `LEVEL`, for this row by itself.
        log_high: upper end.
        p_value: the chance of a difference as large as this one, either way, where there is none.
        processes: how many there were on the side that has fewer.
    """

    log_ratio: float
    log_low: float
    log_high: float
    p_value: float
    processes: int

    @property
    def ratio(self) -> float:
        """New time over old time: above 1 is slower."""
        return math.exp(self.log_ratio)

    @property
    def low(self) -> float:
        """Lower end of the ratio's interval."""
        return math.exp(self.log_low)

    @property
    def high(self) -> float:
        """Upper end of the ratio's interval."""
        return math.exp(self.log_high)


@dataclass(frozen=True)
class Judgement:
    """A verdict, and where it is UNCLEAR, why and what to do."""

    verdict: Verdict
    reason: str = ""


# --- the tests ------------------------------------------------------------------------------------


def paired(ratios: ArrayLike) -> LogRatio:
    """Compare times taken in the same rounds, by Student's t-test on the logarithms of ratios.

    Args:
        ratios: new time over old time of each pair of processes that took turns, positive. What
            disturbs both of a pair alike is not in them.

    Raises:
        ValueError: there is none, or one is no positive number.

    >>> difference = paired([1.06, 1.07, 1.08])
    >>> f"{difference.ratio:.3f} ({difference.low:.3f}-{difference.high:.3f})"
    '1.070 (1.014-1.129)'
    """
    logs = _logarithms(ratios)
    return _difference(float(logs.mean()), _squared_error(logs), logs.size - 1.0, logs.size)


def unpaired(old: ArrayLike, new: ArrayLike) -> LogRatio:
    """Compare times taken apart, by Welch's t-test on their logarithms.

    Welch's does not take the spreads of both sides for equal, which a busier machine would belie.

    Args:
        old: a time for each process, positive, in any unit.
        new: likewise, in the same unit; their number may differ.

    Raises:
        ValueError: a side is empty, or a time is no positive number.
    """
    sides = _logarithms(old), _logarithms(new)
    errors = [_squared_error(side) for side in sides]
    fewest = min(side.size for side in sides)
    # B. L. Welch, "The generalization of 'Student's' problem", Biometrika 34 (1947).
    shares = zip(errors, sides, strict=True)
    freedom = (
        sum(errors) ** 2 / sum(error**2 / (side.size - 1) for error, side in shares)
        if fewest > 1
        else 0.0
    )
    centre = float(sides[1].mean() - sides[0].mean())
    return _difference(centre, sum(errors), freedom, fewest)


def _logarithms(values: ArrayLike) -> np.ndarray:
    found = np.asarray(values, dtype=np.float64)
    if not found.size or not np.all((found > 0) & np.isfinite(found)):
        raise ValueError(f"a positive number for each process is needed, and there is {values!r}")
    return np.log(found)


def _squared_error(logs: np.ndarray) -> float:
    """Return the squared standard error of the mean; one process tells nothing of it."""
    spread = float(logs.std(ddof=1)) if logs.size > 1 else math.inf
    return max(spread, LEAST_SPREAD) ** 2 / logs.size


def _difference(centre: float, squared_error: float, freedom: float, processes: int) -> LogRatio:
    if processes < LEAST_PROCESSES:
        return LogRatio(centre, -math.inf, math.inf, 1.0, processes)
    error = math.sqrt(squared_error)
    half = float(special.stdtrit(freedom, (1 + LEVEL) / 2)) * error
    p_value = 2 * float(special.stdtr(freedom, -abs(centre) / error))
    return LogRatio(centre, centre - half, centre + half, p_value, processes)


# --- the verdict ----------------------------------------------------------------------------------


def judge_all(differences: Sequence[LogRatio], threshold: float) -> list[Judgement]:
    """Judge all rows of a table together.

    SLOWER: the estimate is beyond 1 + threshold, and the difference is significant. FASTER: the
    same the other way round, beyond 1 / (1 + threshold). SAME: the whole interval lies between the
    two. UNCLEAR: neither.

    The more rows, the likelier is one that differs by chance. Holm's method (S. Holm, "A simple
    sequentially rejective multiple test procedure", Scand. J. Statist. 6, 1979) keeps the chance
    of any false alarm in the table below 1 - LEVEL, however the rows depend on each other.

    Args:
        differences: one for each row.
        threshold: the smallest difference that counts, as a share: 0.05.
    """
    adjusted = holm([each.p_value for each in differences])
    margin = math.log1p(threshold)
    return [
        _judgement(each, p_value < 1 - LEVEL, margin, len(differences))
        for each, p_value in zip(differences, adjusted, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number, by Holm's method.

    >>> [round(p, 6) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[k]))
        adjusted[k] = largest
    return adjusted


def _judgement(each: LogRatio, significant: bool, margin: float, rows: int) -> Judgement:
    holds = {
        Verdict.SLOWER: significant and each.log_ratio > margin,
        Verdict.FASTER: significant and each.log_ratio < -margin,
        Verdict.SAME: each.log_low >= -margin and each.log_high <= margin,
        Verdict.UNCLEAR: True,
    }
    verdict = next(verdict for verdict, held in holds.items() if held)
    return Judgement(verdict, _doubt(each, margin, rows) if verdict is Verdict.UNCLEAR else "")


def _doubt(each: LogRatio, margin: float, rows: int) -> str:
    """Say why a row is UNCLEAR, and what to do."""
    if each.processes < LEAST_PROCESSES:
        return (
            f"{each.processes} process{'es' * (each.processes > 1)} on a side cannot tell how "
            f"processes differ; at least {LEAST_PROCESSES} are needed: measure with --processes 6"
        )
    size = abs(each.log_ratio)
    if size <= margin:
        return "the estimate is within the threshold, its interval is not; " + _advice(
            each, margin - size
        )
    if each.log_low <= 0 <= each.log_high:
        return "processes differ so much that this can be chance; " + _advice(each, size)
    return f"of {rows} rows, one can differ as much by chance; " + _advice(each, size)


def _advice(each: LogRatio, room: float) -> str:
    """Say how many processes make half the interval fit into `room`; its width goes as 1/sqrt."""
    half = (each.log_high - each.log_low) / 2
    needed = each.processes * (half / room) ** 2 if room else math.inf
    if needed > MOST_PROCESSES:
        return "measure on a quieter machine, or choose another --threshold"
    return f"measure with --processes {max(math.ceil(needed), each.processes + 2)}"
