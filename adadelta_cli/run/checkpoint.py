"""Save a run's state, and continue from it as if the run had never stopped."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from adadelta_cli import files
from adadelta_cli.errors import UsageError, in_one_line, shortened
from adadelta_cli.run import npz

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

NO_CHECKPOINT = "is not a checkpoint of this version"
REMEDY = "use --force to start over"

Count = Annotated[int, Field(ge=0, le=2**53)]


class Row(BaseModel):
    """A row of the history, with the problem's own metrics."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, float]

    step: Count
    epoch: Count
    loss: float
    grad_norm: float | None
    update_norm: float | None


class Checkpoint(BaseModel):
    """The content of `checkpoint.npz`.

    Attributes:
        arrays: `weight/<tensor>`, `acc_grad/<tensor>`, `acc_delta/<tensor>`, and for float16
            `master/<tensor>`; shapes and dtypes as in the run.
        step: steps taken.
        total: steps to take.
        seconds: time spent so far.
        history: the rows of history.csv so far.
        identity: everything that decides the trajectory: dotted key to value.
    """

    model_config = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)

    arrays: dict[str, np.ndarray] = Field(exclude=True)
    step: Count
    total: Count
    seconds: float = Field(ge=0, le=1e12)
    history: list[Row]
    identity: dict[str, Any]

    @model_validator(mode="after")
    def _check_order(self) -> Checkpoint:
        """Check that the rows' steps increase from 0 to at most `step`."""
        steps = [row.step for row in self.history]
        if steps[:1] != [0] or steps != sorted(set(steps)):
            raise ValueError("the rows of its history are not in the order of their steps")
        if not steps[-1] <= self.step <= self.total:
            raise ValueError(
                f"it has rows to step {steps[-1]}, and is at {self.step} of {self.total}"
            )
        return self

    @property
    def finished(self) -> bool:
        """Whether no steps are left."""
        return self.step == self.total

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        content = io.BytesIO()
        np.savez(content, document=np.array(json.dumps(self.model_dump())), **self.arrays)
        files.write_bytes(path, content.getvalue())

    @classmethod
    def read(cls, path: Path) -> Checkpoint | None:
        """Read a checkpoint; None if there is none.

        Raises:
            UsageError: the file is not a checkpoint of this version.
        """
        if not path.exists():
            return None
        arrays = npz.load_arrays(path, NO_CHECKPOINT, REMEDY)
        try:
            document = json.loads(str(arrays.pop("document")))
            return cls(**(document | {"arrays": arrays}))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UsageError(f"{path} {NO_CHECKPOINT}: {in_one_line(error)}; {REMEDY}") from error

    def check_resumable(
        self,
        path: Path,
        identity: Mapping[str, Any],
        total: int,
        arrays: Mapping[str, np.ndarray],
        columns: Sequence[str],
    ) -> None:
        """Check that a run would reach this state.

        Args:
            path: the file, for messages.
            identity: the run's identity.
            total: its number of steps.
            arrays: its state at any step, for the names, shapes and dtypes.
            columns: the columns of its history.

        Raises:
            UsageError: it would not; the message names the differences.
        """
        if self.identity != identity:
            differing = "; ".join(
                f"{shortened(key)} was {shortened(repr(self.identity.get(key)))} and is "
                f"{identity.get(key)!r}"
                for key in sorted({*self.identity, *identity})
                if self.identity.get(key) != identity.get(key)
            )
            raise UsageError(
                f"--resume: {path} is of another run: {differing}. Only the number of steps may "
                "grow; repeat the options of that run, or use --force instead of --resume"
            )
        if total < self.step:
            raise UsageError(
                f"--resume: {path} is at step {self.step}, but the run has {total}; take at least "
                "as many, or use --force instead of --resume"
            )
        damage = next(self._damages(arrays, columns), "")
        if damage:
            raise UsageError(f"--resume: {path} is damaged: {damage}; {REMEDY}")

    def _damages(self, arrays: Mapping[str, np.ndarray], columns: Sequence[str]) -> Iterator[str]:
        """Yield what does not fit the run."""
        got, wanted = map(_layouts, (self.arrays, arrays))
        for name in sorted({*got, *wanted}):
            if got.get(name) != wanted.get(name):
                found = got.get(name, "missing")
                expected = wanted.get(name, "no such tensor")
                yield f"the tensor {shortened(name)} is {found}; expected {expected}"
        for number, row in enumerate(self.history):
            cells = row.model_dump()
            if set(cells) != set(columns):
                listed = shortened(", ".join(cells))
                yield f"row {number} of its history has {listed}; expected {', '.join(columns)}"


def _layouts(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}
