"""The rows of sweep.csv and summary.csv."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from adadelta_cli.run.config import Expect
from adadelta_cli.run.result import Expectation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adadelta_cli.sweep.plan import Plan

LEVEL = 0.95  # of an interval, where there are enough seeds for it


class Status(Enum):
    """How a run ended."""

    FINISHED = "finished"
    DIVERGED = "diverged"  # stopped at a loss that is not finite
    FAILED = "failed"  # it raised
    CRASHED = "crashed"  # its process ended
    TIMEOUT = "timeout"  # it took longer than --timeout

    @property
    def verb(self) -> str:
        """What a run did, in a sentence."""
        return "took too long" if self is Status.TIMEOUT else self.value


RESULTS = {Status.FINISHED, Status.DIVERGED}


@dataclass(frozen=True)
class SweepRow:
    """A run.

    Attributes:
        setting: its index in the plan.
        values: of the keys that vary.
        seed: of the run.
        status: how it ended.
        steps: taken; None without a result.
        metrics: at the end; empty without a result.
        run: the name of its folder in `runs`.
        message: why there is no result.
        seconds: wall time of its steps; None without a result.
    """

    setting: int
    values: dict[str, Any]
    seed: int
    status: Status
    steps: int | None
    metrics: dict[str, float]
    run: str
    message: str
    seconds: float | None

    def cells(self, metrics: Sequence[str]) -> dict[str, Any]:
        """Return the row of sweep.csv, with these metrics."""
        return {
            **self.values,
            "seed": self.seed,
            "status": self.status.value,
            "steps": self.steps,
            **{name: self.metrics.get(name) for name in metrics},
            "run": self.run,
            "message": self.message,
            "seconds": self.seconds,
        }


class Spread(NamedTuple):
    """A median over seeds with its interval.

    `low` and `high` are the innermost pair of order statistics that covers the median of the
    distribution with a probability of LEVEL; the least and the largest value where no pair does.
    """

    median: float
    low: float
    high: float

    def overlaps(self, other: Spread) -> bool:
        """Tell whether the intervals have a value in common."""
        return max(self.low, other.low) <= min(self.high, other.high)


@dataclass(frozen=True)
class SettingRow:
    """A setting: the runs of all seeds together.

    Attributes:
        setting: its index in the plan.
        values: of the keys that vary.
        runs: rows of sweep.csv.
        counts: the number of runs by status.
        coverage: probability that an interval covers the median; None without a result.
        spreads: by metric.
        checks: of the medians; one for each expectation of the config.
    """

    setting: int
    values: dict[str, Any]
    runs: int
    counts: dict[Status, int]
    coverage: float | None
    spreads: dict[str, Spread]
    checks: tuple[Expectation, ...]

    @property
    def results(self) -> int:
        """The number of runs that have a result; the spreads are over these."""
        return sum(self.counts.get(status, 0) for status in RESULTS)

    @property
    def passed(self) -> bool | None:
        """Whether all expectations were met; None if there are none."""
        return all(each.passed for each in self.checks) if self.checks else None

    @property
    def diverges(self) -> bool:
        """Whether at least half of the runs with a result diverged.

        The other metrics of a run that diverged may be finite, such as the accuracy of a network
        whose weights are NaN.
        """
        return _diverge(self.counts)

    def cells(self, metrics: Sequence[str]) -> dict[str, Any]:
        """Return the row of summary.csv, with these metrics."""
        row: dict[str, Any] = {**self.values, "runs": self.runs}
        row |= {status.value: self.counts.get(status, 0) for status in Status}
        for name in metrics:
            spread = self.spreads.get(name, (None, None, None))
            row |= dict(zip((f"{name}_median", f"{name}_low", f"{name}_high"), spread, strict=True))
        return row | {"coverage": self.coverage, "passed": self.passed}


def higher_is_better(metric: str, expect: Expect) -> bool:
    """Return whether a metric is one of those that configs, or this one, expect at least."""
    return f"min_{metric}" in {*Expect.model_fields, *(expect.model_extra or ())}


def spread(values: Sequence[float]) -> Spread:
    """Return the median of at least one number, none of them NaN, with its interval."""
    ordered = sorted(values)
    cut = _cut(len(ordered))
    return Spread(statistics.median(ordered), ordered[cut], ordered[-1 - cut])


def _cut(number: int) -> int:
    """Return how many values the interval leaves out at each end."""
    cut = 0
    while coverage(number, cut + 1) >= LEVEL:
        cut += 1
    return cut


def coverage(number: int, cut: int | None = None) -> float:
    """Return the probability that the interval covers the median: a binomial one.

    W. J. Conover, "Practical Nonparametric Statistics", 3rd edition (1999), 3.2.
    """
    cut = _cut(number) if cut is None else cut
    if 2 * cut >= number:
        return 0.0
    return 1 - 2 * sum(math.comb(number, k) for k in range(cut + 1)) / 2**number


def setting_rows(plan: Plan, rows: Sequence[SweepRow]) -> list[SettingRow]:
    """Summarise the rows of each setting that has any, in the order of the plan."""
    groups: dict[int, list[SweepRow]] = {}
    for row in rows:
        groups.setdefault(row.setting, []).append(row)
    return [_setting_row(plan, groups[number]) for number in sorted(groups)]


def _setting_row(plan: Plan, rows: Sequence[SweepRow]) -> SettingRow:
    counts = {status: sum(row.status is status for row in rows) for status in Status}
    found = [row for row in rows if row.status in RESULTS]
    names = dict.fromkeys(name for row in found for name in row.metrics)
    spreads = {
        name: spread([_ordered(row, name, higher_is_better(name, plan.expect)) for row in found])
        for name in names
    }
    medians = {} if _diverge(counts) else {name: each.median for name, each in spreads.items()}
    checks = tuple(
        Expectation(metric, side, bound, medians.get(metric, math.nan))
        for side, metric, bound in plan.expect.bounds()
    )
    return SettingRow(
        setting=rows[0].setting,
        values=rows[0].values,
        runs=len(rows),
        counts=counts,
        coverage=coverage(len(found)) if found else None,
        spreads=spreads,
        checks=checks,
    )


def _diverge(counts: Mapping[Status, int]) -> bool:
    diverged, finished = (counts.get(each, 0) for each in (Status.DIVERGED, Status.FINISHED))
    return 0 < diverged >= finished


def _ordered(row: SweepRow, metric: str, higher: bool) -> float:
    """Return a metric; where it is not finite, as after a divergence, the worst one."""
    value = row.metrics.get(metric, math.nan)
    return value if math.isfinite(value) else (-math.inf if higher else math.inf)


def ranked(rows: Sequence[SettingRow], metric: str, *, higher: bool) -> list[SettingRow]:
    """Return the settings with a finite median, the best first; equals in their order.

    Those that diverge are left out.
    """
    found = [row for row in rows if metric in row.spreads and not row.diverges]
    found = [row for row in found if math.isfinite(row.spreads[metric].median)]
    sign = -1 if higher else 1
    return sorted(found, key=lambda row: sign * row.spreads[metric].median)


def best_run(
    rows: Sequence[SweepRow], setting: SettingRow, metric: str, *, higher: bool
) -> SweepRow:
    """Return the run of a setting, which does not diverge, with the best value.

    Of equals, it is the first.
    """
    found = [each for each in rows if each.setting == setting.setting]
    found = [each for each in found if each.status is Status.FINISHED]
    sign = -1 if higher else 1
    return min(found, key=lambda row: sign * _ordered(row, metric, higher))
