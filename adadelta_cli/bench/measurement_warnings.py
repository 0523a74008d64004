"""Why the numbers of a benchmark should not be trusted, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from adadelta_cli.bench.device import ARITHMETIC
from adadelta_cli.system import machine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Samples = dict[str, list[np.ndarray]]
"""By implementation or roof, the seconds of a step: an array for each process, a number for each
round; NaN is a round without a sample."""

FEW_SAMPLES = 10
DISAGREE = 0.10
CORES_SHARED = 0.10
FREQUENCY_CHANGED = 0.05
SLOW_FIRST = 0.05


class Cause(Enum):
    """What disturbed a measurement: what was seen; why it matters and what to do.

    Where shares of the ceiling hold, some causes have one more thing to do.
    """

    TOO_MANY_THREADS = (
        "more threads than cores",
        "they wait for each other, which no ceiling accounts for; ask for fewer --threads",
    )
    SHARED_CORES = (
        "in-cache arithmetic took longer in a quarter of its samples than in the best",
        "so other work shares the cores: end it, or measure again later",
    )
    FREQUENCY = (
        "even the best time of in-cache arithmetic differs between processes",
        "fix the cores' frequency (adadelta doctor)",
        "or look at the shares of the ceiling only",
    )
    SLOW_START = (
        "the first samples were slower in every process",
        "so warm-up was too short: give it a longer --max-time",
    )
    DISAGREEMENT = (
        "processes disagree",
        "memory or load differed: ask for more --processes",
        "or look at the shares of the ceiling",
    )

    def __init__(self, observed: str, advice: str, about_shares: str = "") -> None:
        self.observed, self.advice, self.about_shares = observed, advice, about_shares


@dataclass(frozen=True)
class MeasurementWarning:
    """A cause, where it was seen, and how large it was there.

    Attributes:
        shares_hold: each timed step there has a share of the ceiling that means something.
    """

    cause: Cause
    place: str
    measured: str
    shares_hold: bool = True


def format_warnings(warnings: Sequence[MeasurementWarning]) -> list[str]:
    """Write warnings as sentences, one for all places of the same cause."""
    causes: dict[Cause, list[MeasurementWarning]] = {}
    for each in warnings:
        causes.setdefault(each.cause, []).append(each)
    return [_sentence(cause, found) for cause, found in causes.items()]


def _sentence(cause: Cause, found: Sequence[MeasurementWarning]) -> str:
    places = ", ".join(f"{each.measured} at {each.place}" for each in found)
    shares_hold = all(each.shares_hold for each in found)
    advice = [cause.advice, *[cause.about_shares] * (shares_hold and bool(cause.about_shares))]
    return f"{cause.observed}: {places}; {', '.join(advice)}"


def find_warnings(
    place: str, threads: int, samples: Samples, *, shares_hold: bool
) -> list[MeasurementWarning]:
    """Look for all causes in the samples of a group, `place`, that used this many CPU threads."""
    known = {name: measured(each) for name, each in samples.items()}
    found = {
        Cause.SLOW_START: _worst_above(SLOW_FIRST, _slow_starts(known)),
        Cause.DISAGREEMENT: _worst_above(DISAGREE, {n: spread(e) for n, e in known.items() if e}),
    }
    if ARITHMETIC in known:  # it needs nothing but its cores, so it should not vary
        cores, best = machine.available_cores(), [np.min(each) for each in known[ARITHMETIC]]
        slower = [np.percentile(each, 75) / np.min(each) for each in known[ARITHMETIC]]
        found = {
            Cause.TOO_MANY_THREADS: f"{threads} on {cores}" if threads > cores else "",
            Cause.SHARED_CORES: _above(CORES_SHARED, np.median(slower) - 1),
            Cause.FREQUENCY: _above(FREQUENCY_CHANGED, max(best) / min(best) - 1),
            **found,
        }
    return [
        MeasurementWarning(cause, place, size, shares_hold) for cause, size in found.items() if size
    ]


def measured(processes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Leave out rounds without a sample, and processes without any."""
    known = [each[~np.isnan(each)] for each in processes]
    return [each for each in known if len(each)]


def medians(processes: Sequence[np.ndarray]) -> list[float]:
    """Return the median of each process that has samples."""
    return [float(np.median(each)) for each in processes if len(each)]


def spread(processes: Sequence[np.ndarray]) -> float:
    """Return by which share the largest median of a process exceeds the smallest."""
    return max(medians(processes)) / min(medians(processes)) - 1


def _slow_starts(known: Mapping[str, list[np.ndarray]]) -> dict[str, float]:
    """Return by how much the first tenth of samples is slower than the rest, in each process."""
    slow = {}
    for name, processes in known.items():
        long = [each for each in processes if len(each) >= 2 * FEW_SAMPLES]
        tenths = [np.split(each, [len(each) // 10]) for each in long]
        ratios = [float(np.median(first) / np.median(rest)) - 1 for first, rest in tenths]
        slow[name] = min(ratios, default=0.0)
    return slow


def _above(limit: float, share: float) -> str:
    return f"{share:.0%}" if share > limit else ""


def _worst_above(limit: float, found: Mapping[str, float]) -> str:
    """Name the largest of those above a limit, and count the others."""
    above = {name: share for name, share in found.items() if share > limit}
    if not above:
        return ""
    worst = max(above, key=above.__getitem__)
    others = f" and {len(above) - 1} more" if len(above) > 1 else ""
    return f"{above[worst]:.0%} ({worst}{others})"
