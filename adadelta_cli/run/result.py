"""Results of a run: the rows of its history, its checks, its outcome."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

COLUMNS = ("step", "epoch", "loss", "grad_norm", "update_norm")


@dataclass(frozen=True)
class TrainingRow:
    """A row of history.csv.

    Attributes:
        step: steps taken; row 0 is the start.
        epoch: passes over the data finished.
        loss: the objective on all training data after that step, computed in float64.
        grad_norm: 2-norm of the step's gradient; None at the start.
        update_norm: 2-norm of the step's change of the weights; None at the start.
        metrics: the problem's own, computed in float64 after that step.
    """

    step: int
    epoch: int
    loss: float
    grad_norm: float | None
    update_norm: float | None
    metrics: dict[str, float]

    @property
    def cells(self) -> dict[str, Any]:
        """The row as history.csv has it."""
        cells = asdict(self)
        return cells | cells.pop("metrics")

    @classmethod
    def from_cells(cls, cells: dict[str, Any]) -> TrainingRow:
        """Build a row from its `cells`."""
        own = {name: cells[name] for name in COLUMNS}
        return cls(**own, metrics={k: v for k, v in cells.items() if k not in COLUMNS})


class Side(Enum):
    """The side of a bound on a metric."""

    MAX = "max"
    MIN = "min"


@dataclass(frozen=True)
class Expectation:
    """An expectation of a config, and the value that it is about.

    Attributes:
        metric: a column of history.csv.
        side: whether `bound` is the largest or the least value that counts as success.
        bound: that value.
        got: the value in the last row.
    """

    metric: str
    side: Side
    bound: float
    got: float

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

    PASSED = "passed"
    MISSED = "missed"  # finished without meeting what its config expects
    DIVERGED = "diverged"  # stopped at a loss that is not finite
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        name: the config's name.
        problem: the problem's name.
        backend, ctx: the array library's name, and its device.
        dtype, fused, seed: as in `Trainer`.
        outcome: how it ended.
        checks: one for each expectation of the config.
        steps: steps taken.
        seconds: wall time of the steps and their recording, over all sessions.
        optimum: the least loss where it is known.
        labels: the loss and the problem's metrics, each with its label on a plot.
        history: the recorded rows.
    """

    name: str
    problem: str
    backend: str
    ctx: str
    dtype: str
    fused: bool
    seed: int
    outcome: RunOutcome
    checks: tuple[Expectation, ...]
    steps: int
    seconds: float
    optimum: float | None
    labels: dict[str, str]
    history: tuple[TrainingRow, ...] = field(repr=False)
