"""What came of a run: the rows of its history, its checks, and how it ended."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

COLUMNS = ("step", "epoch", "loss", "grad_norm", "update_norm")


@dataclass(frozen=True)
class TrainingRow:
    """A row of history.csv.

    Attributes:
        step: how many steps were taken; row 0 is the start.
        epoch: how many passes over the data were finished.
        loss: the objective on all training data at the weights after that step, computed in double.
        grad_norm: 2-norm of the gradient that the step followed; None at the start.
        update_norm: 2-norm of what the step changed the weights by; None at the start.
        metrics: the problem's own, computed in double at the same weights.
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
        """Undo `cells`."""
        own = {name: cells[name] for name in COLUMNS}
        return cls(**own, metrics={k: v for k, v in cells.items() if k not in COLUMNS})


@dataclass(frozen=True)
class Expectation:
    """One expectation and what became of it.

    Attributes:
        metric: a column of history.csv.
        side: `max` or `min`.
        bound: the largest or least value that counts as success.
        got: the value in the last row.
    """

    metric: str
    side: str
    bound: float
    got: float

    @property
    def passed(self) -> bool:
        """Whether it held; a NaN never does."""
        return self.got <= self.bound if self.side == "max" else self.got >= self.bound


class RunOutcome(Enum):
    """How a run ended."""

    PASSED = "passed"
    MISSED = "missed"  # finished, and short of what its config expects
    DIVERGED = "diverged"  # stopped at a loss that is no finite number
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class RunResult:
    """What came of a run.

    Attributes:
        name: the config's.
        problem: its name.
        backend, ctx: the array library's name, and its device.
        dtype, fused, seed: as in `Run`.
        outcome: how it ended.
        checks: one for each expectation of the config.
        steps: how many were taken.
        seconds: wall time of all of them, with the recording, over all sessions.
        optimum: the least loss where it is known.
        labels: the loss and the problem's metrics, each with the words for a plot's axis.
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
