"""Save a run's state, and continue from it as if the run had never stopped."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from adadelta_cli import files
from adadelta_cli.errors import UsageError, in_one_line, shortened
from adadelta_cli.run import npz
from adadelta_cli.run.result import Count, TrainingRow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

NO_CHECKPOINT = "is not a checkpoint of this version"
REMEDY = "use --force to start over"


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
    history: list[TrainingRow]
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

    def check_resumable(self, path: Path, start: Checkpoint) -> None:
        """Check that the run that begins with `start` would reach this state.

        Args:
            path: the file of this state, for messages.
            start: the state of the run before its first step.

        Raises:
            UsageError: it would not; the message names the differences.
        """
        differing = _differences(self.identity, start.identity)
        if differing:
            raise UsageError(
                f"--resume: {path} is of another run: {differing}. Only the number of steps may "
                "grow; repeat the options of that run, or use --force instead of --resume"
            )
        if start.total < self.step:
            raise UsageError(
                f"--resume: {path} is at step {self.step}, but the run has {start.total}; take at "
                "least as many, or use --force instead of --resume"
            )
        damage = next(self._damages(start), "")
        if damage:
            raise UsageError(f"--resume: {path} is damaged: {damage}; {REMEDY}")

    def check_repeated(self, path: Path, start: Checkpoint) -> None:
        """Check that the run that begins with `start` repeats this finished one.

        Raises:
            UsageError: it would replace the files of another run.
        """
        steps = ({"steps": each.total} for each in (self, start))
        differing = _differences(*map(dict.__or__, (self.identity, start.identity), steps))
        if differing:
            raise UsageError(
                f"{path.parent} holds a finished run with other settings: {differing}; use --force "
                "to replace it, another --out to keep both, or --resume if only the steps grow"
            )

    def _damages(self, start: Checkpoint) -> Iterator[str]:
        """Yield what does not fit the run."""
        got, wanted = _layouts(self.arrays), _layouts(start.arrays)
        for name in sorted({*got, *wanted}):
            if got.get(name) != wanted.get(name):
                found = got.get(name, "missing")
                expected = wanted.get(name, "no such tensor")
                yield f"the tensor {shortened(name)} is {found}; expected {expected}"
        columns = list(start.history[0].cells)
        for number, row in enumerate(self.history):
            if set(row.cells) != set(columns):
                listed = shortened(", ".join(row.cells))
                yield f"row {number} of its history has {listed}; expected {', '.join(columns)}"


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name the keys that differ, with both values; empty if none does."""
    return "; ".join(
        f"{shortened(key)} was {shortened(repr(old.get(key)))} and is {new.get(key)!r}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    )


def _layouts(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}
