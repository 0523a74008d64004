"""A run's state on disk, from which it goes on as if it had never stopped."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli import files
from adadelta_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


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
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            document = json.loads(str(arrays.pop("document")))
            return cls(arrays=arrays, **document)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise UsageError(
                f"{path} is no checkpoint of this version ({error}); use --force to begin anew"
            ) from error

    def check_resumable(self, path: Path, identity: Mapping[str, Any], total: int) -> None:
        """Make sure that a run with this identity and number of steps would have come by here.

        Raises:
            UsageError: it would not; the message names what differs.
        """
        if self.identity != identity:
            keys = sorted({*self.identity, *identity})
            differing = "; ".join(
                f"{key} was {self.identity.get(key)!r} and is {identity.get(key)!r}"
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
