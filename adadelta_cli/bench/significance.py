"""Is the new step faster, slower, or the same? A test over processes.

The process is the unit, since processes differ more than the samples of one: the input is one
number for each process, the median of its samples. Disturbances multiply times, so everything is
computed on logarithms, where a ratio is a difference and both directions are alike.
docs/statistics.md gives the error rates, and tests/simulate_verdict.py computes them.
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
LEAST_PROCESSES = 3  # with two, the spread has one degree of freedom, and the interval is useless
MOST_PROCESSES = 40  # more are not worth their time
# No clock measures a median more precisely. It avoids a division by zero for equal numbers.
LEAST_SPREAD = 1e-6


class Verdict(Enum):
    """The verdict on a row; `Judgement.reason` explains UNCLEAR."""

    FASTER = "FASTER"
    SLOWER = "SLOWER"
    SAME = "SAME"
    UNCLEAR = "UNCLEAR"


@dataclass(frozen=True)
class LogRatio:
    """The new time over the old one, as logarithms; of too few processes, the interval is infinite.

    Attributes:
        log_low, log_high: the two-sided interval of `LEVEL`, for this row by itself.
        p_value: the chance of a difference at least this large, either way, if there is none.
        processes: how many there were, on the side with fewer.
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


def paired(ratios: ArrayLike) -> LogRatio:
    """Compare times taken in the same rounds, by Student's t-test on the logarithms of ratios.

    Args:
        ratios: new time over old time of each pair of processes that took turns, positive. A
            disturbance of both cancels in them.

    Raises:
        ValueError: there is none, or one is no positive number.

    >>> difference = paired([1.06, 1.07, 1.08])
    >>> f"{difference.ratio:.3f} ({difference.low:.3f}-{difference.high:.3f})"
    '1.070 (1.014-1.129)'
    """
    logs = _logarithms(ratios)
    return _t_test(float(logs.mean()), logs)


def unpaired(old: ArrayLike, new: ArrayLike) -> LogRatio:
    """Compare times taken apart, one for each process, by Welch's t-test on their logarithms.

    They are positive, in any unit. Their numbers and their spread may differ between the sides.

    Raises:
        ValueError: a side is empty, or a time is no positive number.
    """
    before, after = _logarithms(old), _logarithms(new)
    return _t_test(float(after.mean() - before.mean()), before, after)


def _logarithms(values: ArrayLike) -> np.ndarray:
    found = np.asarray(values, dtype=np.float64)
    if not found.size or not np.all((found > 0) & np.isfinite(found)):
        raise ValueError(f"expected a positive number for each process, got {values!r}")
    return np.log(found)


def _t_test(centre: float, *sides: np.ndarray) -> LogRatio:
    """Test a mean, or a difference of means; Student's test is Welch's with a single side.

    scipy.stats has both, but returns NaN where a side has no spread, and takes no least spread.
    """
    processes = min(side.size for side in sides)
    if processes < LEAST_PROCESSES:
        return LogRatio(centre, -math.inf, math.inf, 1.0, processes)
    squares = [max(float(side.std(ddof=1)), LEAST_SPREAD) ** 2 / side.size for side in sides]
    # B. L. Welch, "The generalization of 'Student's' problem", Biometrika 34 (1947).
    freedom = sum(squares) ** 2 / sum(
        square**2 / (side.size - 1) for square, side in zip(squares, sides, strict=True)
    )
    error = math.sqrt(sum(squares))
    half = float(special.stdtrit(freedom, (1 + LEVEL) / 2)) * error
    p_value = 2 * float(special.stdtr(freedom, -abs(centre) / error))
    return LogRatio(centre, centre - half, centre + half, p_value, processes)


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
    return Judgement(verdict, _reason(each, margin, rows) if verdict is Verdict.UNCLEAR else "")


def _reason(each: LogRatio, margin: float, rows: int) -> str:
    """Explain why a row is UNCLEAR, and what to do."""
    if each.processes < LEAST_PROCESSES:
        return (
            f"{each.processes} process{'es' * (each.processes > 1)} on a side do not show how "
            f"processes differ; at least {LEAST_PROCESSES} are needed: measure with --processes 6"
        )
    size = abs(each.log_ratio)
    if size <= margin:
        return "the estimate is within the threshold, but its interval is not; " + _advice(
            each, margin - size
        )
    if each.log_low <= 0 <= each.log_high:
        return "processes differ so much that this may be chance; " + _advice(each, size)
    return f"of {rows} rows, one may differ this much by chance; " + _advice(each, size)


def _advice(each: LogRatio, room: float) -> str:
    """Advise how many processes narrow half the interval to `room`; it shrinks as 1/sqrt."""
    half = (each.log_high - each.log_low) / 2
    needed = each.processes * (half / room) ** 2 if room else math.inf
    if needed > MOST_PROCESSES:
        return "measure on a quieter machine, or choose another --threshold"
    return f"measure with --processes {max(math.ceil(needed), each.processes + 2)}"
