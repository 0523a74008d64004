"""What was found in the files of the other commands."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator

from adadelta_cli.bench.regression import KEY, RecordedTiming
from adadelta_cli.run.result import Expectation, RunOutcome

if TYPE_CHECKING:
    from adadelta_cli.bench.regression import RegressionRow
    from adadelta_cli.bench.results import BenchRow
    from adadelta_cli.verification.rows import ComparisonRow


def finite(value: Any) -> float | None:
    """Return a finite number; None for all else, such as the text `nan`."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


Value = Annotated[float | None, BeforeValidator(finite)]
Values = dict[str, Value]


class RunSummary(BaseModel):
    """A summary.json; older versions wrote no `optimizer`."""

    name: str
    problem: str
    optimizer: str = "adadelta"
    backend: str
    ctx: str = "cpu"
    dtype: str
    fused: bool
    seed: int
    outcome: RunOutcome
    checks: list[Expectation] = []
    steps: int
    seconds: float
    start: Values
    end: Values


@dataclass(frozen=True)
class FoundRun:
    """A run.

    Attributes:
        place: its folder, as the user would type it.
        history: the columns of history.csv; None for what is no finite number.
        settings: the resolved config by dotted key, and how it was run.
        command: what repeats it.
    """

    place: str
    summary: RunSummary
    history: dict[str, list[float | None]] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    command: str = ""


@dataclass(frozen=True)
class FoundVerification:
    """The rows of a verification, and the command that repeats each.

    Attributes:
        unfinished: how many of the planned checks ran, where some did not; else empty.
    """

    place: str
    rows: list[ComparisonRow]
    commands: list[str]
    plan: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    unfinished: str = ""


@dataclass(frozen=True)
class FoundBench:
    """A result of bench.

    Attributes:
        samples_s: the samples of each row's processes, if recorded.
        complete: False where it was interrupted, or failed.
    """

    place: str
    rows: list[BenchRow]
    samples_s: list[list[list[float]]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    complete: bool = True


@dataclass(frozen=True)
class FoundComparison:
    """The rows of a comparison, of compare or of `bench --baseline` and `--against`."""

    place: str
    rows: list[RegressionRow]


class SweepDocument(BaseModel):
    """A sweep.json; older versions wrote no `passed`."""

    config: str
    keys: list[str]
    metric: str
    complete: bool = True
    passed: bool | None = None
    best: dict[str, Any] | None = None
    settings: list[dict[str, Any]]
    runs: list[dict[str, Any]] = []


@dataclass(frozen=True)
class FoundSweep:
    """A sweep."""

    place: str
    document: SweepDocument


@dataclass
class Found:
    """All that was found; `notes` name each file that could not be read, and why."""

    runs: list[FoundRun] = field(default_factory=list)
    verifications: list[FoundVerification] = field(default_factory=list)
    benches: list[FoundBench] = field(default_factory=list)
    comparisons: list[FoundComparison] = field(default_factory=list)
    sweeps: list[FoundSweep] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        kinds = (self.runs, self.verifications, self.benches, self.comparisons, self.sweeps)
        return not any(kinds)


def is_wrong(row: BenchRow) -> bool:
    """Tell whether a step of bench was incorrect."""
    key = {name: getattr(row, name) for name in KEY}
    return RecordedTiming(**key, note=row.note).wrong
