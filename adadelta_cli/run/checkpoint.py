"""A run's state on disk, from which it goes on as if it had never stopped."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from adadelta_cli import files
from adadelta_cli.errors import UsageError, in_one_line, shortened
from adadelta_cli.run import npz

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

NO_CHECKPOINT = "is no checkpoint of this version"
REMEDY = "use --force to begin anew"


Count = Annotated[int, Field(ge=0, le=2**53)]


class _Row(BaseModel):
    """A row of the history, with the problem's own metrics."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, float]

    step: Count
    epoch: Count
    loss: float
    grad_norm: float | None
    update_norm: float | None


class _Document(BaseModel):
    """What a checkpoint holds beside the arrays."""

    model_config = ConfigDict(strict=True, extra="forbid")

    step: Count
    total: Count
    seconds: float = Field(ge=0, le=1e12)
    history: list[_Row]
    identity: dict[str, Any]

    @model_validator(mode="after")
    def _check_order(self) -> _Document:
        """See that the steps of the rows grow, from the start to no later than `step`."""
        steps = [row.step for row in self.history]
        if steps[:1] != [0] or steps != sorted(set(steps)):
            raise ValueError("the rows of its history are not in the order of their steps")
        if not steps[-1] <= self.step <= self.total:
            raise ValueError(
                f"it has rows to step {steps[-1]}, and is at {self.step} of {self.total}"
            )
        return self


@dataclass(frozen=True)
class Checkpoint:
    """What `checkpoint.npz` holds.

    The order of the samples needs no state: that of an epoch derives from the seed and the epoch.

    Attributes:
        arrays: `weight/<tensor>`, `acc_grad/<tensor>`, `acc_delta/<tensor>`, and for float16
            `master/<tensor>`; shapes and dtypes as in the run.
        step: how many steps were taken.
        total: how many there were to take.
        seconds: time spent so far.
        history: the rows of history.csv so far.
        identity: all that decides the trajectory: dotted key to value.
    """

    arrays: Mapping[str, np.ndarray]
    step: int
    total: int
    seconds: float
    history: list[dict[str, Any]]
    identity: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.step == self.total

    def write(self, path: Path) -> None:
        """Write it whole or not at all."""
        document = {key: value for key, value in vars(self).items() if key != "arrays"}
        text = np.array(json.dumps(document))
        content = io.BytesIO()
        np.savez(content, document=text, **self.arrays)
        files.write_bytes(path, content.getvalue())

    @classmethod
    def read(cls, path: Path) -> Checkpoint | None:
        """Read one; None where there is none.

        Raises:
            UsageError: the file is no checkpoint of this version.
        """
        if not path.exists():
            return None
        arrays = npz.load_arrays(path, NO_CHECKPOINT, REMEDY)
        try:
            text = arrays.pop("document")
            document = _Document.model_validate(json.loads(str(text))).model_dump()
        except (ValueError, KeyError, RecursionError) as error:
            raise UsageError(f"{path} {NO_CHECKPOINT}: {in_one_line(error)}; {REMEDY}") from error
        return cls(arrays=arrays, **document)

    def check_resumable(
        self,
        path: Path,
        identity: Mapping[str, Any],
        total: int,
        arrays: Mapping[str, np.ndarray],
        columns: Sequence[str],
    ) -> None:
        """Make sure that a run would have come by here.

        Args:
            path: what to call it in messages.
            identity: of the run.
            total: its number of steps.
            arrays: its state at some step, for the names, shapes and dtypes.
            columns: of its history.

        Raises:
            UsageError: it would not; the message names what differs.
        """
        if self.identity != identity:
            keys = sorted({*self.identity, *identity})
            differing = "; ".join(
                f"{shortened(key)} was {shortened(repr(self.identity.get(key)))} and is "
                f"{identity.get(key)!r}"
                for key in keys
                if self.identity.get(key) != identity.get(key)
            )
            raise UsageError(
                f"--resume: {path} is of another run: {differing}. Only the number of steps may "
                "grow; ask for the same again, or use --force instead of --resume to begin anew"
            )
        if total < self.step:
            raise UsageError(
                f"--resume: {path} is at step {self.step}, and {total} are asked for; ask for at "
                "least as many, or use --force instead of --resume to begin anew"
            )
        damage = next(self._damages(arrays, columns), "")
        if damage:
            raise UsageError(f"--resume: {path} is damaged: {damage}; {REMEDY}")

    def _damages(self, arrays: Mapping[str, np.ndarray], columns: Sequence[str]) -> Iterator[str]:
        """Say what does not fit the run that it is of."""
        got, wanted = map(_layouts, (self.arrays, arrays))
        for name in sorted({*got, *wanted}):
            if got.get(name) != wanted.get(name):
                found, expected = (each.get(name, "missing") for each in (got, wanted))
                known = expected if name in wanted else "no such tensor"
                yield f"the tensor {shortened(name)} is {found}; expected {known}"
        for number, row in enumerate(self.history):
            if set(row) != set(columns):
                listed = shortened(", ".join(row))
                yield f"row {number} of its history has {listed}; expected {', '.join(columns)}"


def _layouts(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}
