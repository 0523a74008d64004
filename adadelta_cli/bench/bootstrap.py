"""Medians of samples from several processes, with intervals that account for the processes.

Processes differ more than the samples of one, because memory is placed anew in each. So processes
are resampled first, then the samples within each: a two-level bootstrap for clustered data (A. C.
Davison and D. V. Hinkley, "Bootstrap Methods and their Application", 1997, 3.8), which
`scipy.stats.bootstrap` lacks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

REPLICATES = 1000
DRAWN = 200  # samples drawn of each process, at most: more change no interval visibly
LEVEL = 95  # percent


class MedianCI(NamedTuple):
    """A median with its 95 % interval."""

    median: float
    low: float
    high: float

    @property
    def precision(self) -> float:
        """Half the interval's width, as a share of the median."""
        return (self.high - self.low) / 2 / self.median


def median_ci(processes: Sequence[np.ndarray]) -> MedianCI:
    """Estimate the median over processes of the median sample in each.

    There is at least one sample; processes without any are ignored.
    """
    random = np.random.default_rng(0)  # the same samples give the same interval
    found = [np.asarray(samples) for samples in processes if len(samples)]
    medians = np.stack([_resampled_medians(samples, len(found), random) for samples in found])
    chosen = random.integers(len(found), size=(len(found), REPLICATES))
    slots = np.arange(len(found))[:, None]
    replicates = np.median(medians[chosen, slots, np.arange(REPLICATES)], axis=0)
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(replicates, [tail, 100 - tail])
    centre = float(np.median([np.median(samples) for samples in found]))
    return MedianCI(centre, min(float(low), centre), max(float(high), centre))


def _resampled_medians(samples: np.ndarray, slots: int, random: np.random.Generator) -> np.ndarray:
    """Return medians of resamples, of shape (slots, REPLICATES)."""
    shape = (slots, REPLICATES, min(len(samples), DRAWN))
    return np.median(samples[random.integers(len(samples), size=shape)], axis=-1)


def ratio(over: Sequence[np.ndarray], under: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Divide samples of the same process and the same round; NaN is a round without a sample."""
    both = zip(over, under, strict=True)
    shares = (top[: len(bottom)] / bottom[: len(top)] for top, bottom in both)
    return [share[np.isfinite(share)] for share in shares]
