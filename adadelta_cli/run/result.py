"""Results of a run: the rows of its history, its checks, its outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0, le=2**53)]


class TrainingRow(BaseModel):
    """A row of history.csv; the problem's metrics are further fields.

    Attributes:
        step: steps taken; row 0 is the start.
        epoch: passes over the data finished.
        loss: the objective on all training data after that step; as the metrics, in float64.
        grad_norm: 2-norm of the step's gradient; None at the start.
        update_norm: 2-norm of the step's change of the weights; None at the start.
    """

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    __pydantic_extra__: dict[str, float]

    step: Count
    epoch: Count
    loss: float
    grad_norm: float | None
    update_norm: float | None

    @property
    def cells(self) -> dict[str, Any]:
        """The row by column."""
        return self.model_dump()


COLUMNS = frozenset(TrainingRow.model_fields) | {
    *("config", "problem", "optimizer", "outcome"),  # comparison.csv
    *("seed", "status", "steps", "run", "message", "seconds"),  # sweep.csv
}
"""The columns of history.csv and of the tables of several runs, which no metric replaces."""


class Side(Enum):
    """The side of a bound on a metric."""

    MAX = "max"
    MIN = "min"


@dataclass(frozen=True)
class Expectation:
    """An expectation of a config, and the value that it is about."""

    metric: str  # a column of history.csv
    side: Side
    bound: float  # the largest or the least value that counts as success
    got: float  # the value in the last row

    @property
    def passed(self) -> bool:
        """Whether it was met; NaN never is."""
        return self.got <= self.bound if self.side is Side.MAX else self.got >= self.bound

    @property
    def words(self) -> str:
        """The bound in words, as `at most 0.005`."""
        return f"at {'most' if self.side is Side.MAX else 'least'} {self.bound:.4g}"


class RunOutcome(Enum):
    """How a run ended."""

    PASSED = "passed"  # met all that its config expects
    FINISHED = "finished"  # without anything to expect
    MISSED = "missed"  # finished without meeting what its config expects
    DIVERGED = "diverged"  # stopped at a loss that is not finite
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class RunResult:
    """The result of a run; dtype, fused and seed are as in `Trainer`."""

    name: str  # the config's
    problem: str
    optimizer: str
    backend: str
    ctx: str
    dtype: str
    fused: bool
    seed: int
    outcome: RunOutcome
    checks: tuple[Expectation, ...]  # one for each expectation of the config
    steps: int  # taken
    seconds: float  # wall time of the steps and their recording, over all sessions
    optimum: float | None  # the least loss where it is known
    labels: dict[str, str]  # on a plot, of the loss and the problem's metrics
    history: tuple[TrainingRow, ...] = field(repr=False)
    workers: int = 1  # that shared each batch
    update_on: str | None = None  # of a distributed training: where the steps were taken
