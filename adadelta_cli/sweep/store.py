"""The folder `runs` of a sweep: a folder for each run that is done, named by its content's hash.

A run's folder appears whole, by a rename. While a run is computed, its process holds a lock on one
byte of the file `.lock`, at an offset that the hash decides. The system releases the lock when the
process ends, however it ends. So no lock is ever stale, also on a file system that machines share.
Where a file system has no locks, two sweeps may compute the same run; either result serves.
"""

from __future__ import annotations

import csv
import json
import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from adadelta_cli.errors import BrokenError
from adadelta_cli.run.result import RunOutcome, TrainingRow

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from typing_extensions import Self


LOCK = ".lock"
SUMMARY = "summary.json"
RECORD = {*TrainingRow.model_fields} - {"loss"}  # columns that are no metrics


@dataclass(frozen=True)
class Stored:
    """What a run's files say of its end."""

    diverged: bool
    steps: int
    seconds: float
    metrics: dict[str, float]


class Store:
    """The results in a folder, which several sweeps may share.

    Raises:
        BrokenError: the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self._lock = (self.folder / LOCK).open("ab")
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock:
            self._lock.close()

    def read(self, run: str) -> Stored | None:
        """Return the result of a run; None if there is none, or its files are damaged."""
        try:
            if not self.history(run):
                return None
            document = json.loads((self.folder / run / SUMMARY).read_bytes())
            end = document["end"]
            return Stored(
                diverged=RunOutcome(document["outcome"]) is RunOutcome.DIVERGED,
                steps=int(document["steps"]),
                seconds=float(document["seconds"]),
                metrics={name: float(each) for name, each in end.items() if name not in RECORD},
            )
        except (OSError, ValueError, KeyError, TypeError, csv.Error):
            return None

    def history(self, run: str) -> list[dict[str, float]]:
        """Return the rows of a run's history.csv; empty cells are NaN."""
        with (self.folder / run / "history.csv").open(newline="") as file:
            return [{k: float(v or "nan") for k, v in row.items()} for row in csv.DictReader(file)]

    def claim(self, run: str) -> bool:
        """Claim a run for this process; return whether no other one has it.

        Remove what a process that was killed left of it, if a lock says that no other one writes.
        """
        locked = self._locked(run, claim=True)
        if locked:
            for each in self.folder.glob(f".{run}.*.tmp"):
                shutil.rmtree(each, ignore_errors=True)
        return locked is not False

    def release(self, run: str) -> None:
        """Let other processes claim a run."""
        self._locked(run, claim=False)

    def _locked(self, run: str, *, claim: bool) -> bool | None:
        """Lock or unlock a run; return whether that was possible, None without locks."""
        import fcntl

        assert self._lock is not None  # noqa: S101 - for the type checker
        how = fcntl.LOCK_EX | fcntl.LOCK_NB if claim else fcntl.LOCK_UN
        try:
            fcntl.lockf(self._lock, how, 1, int(run[:15], 16))
        except (BlockingIOError, PermissionError):  # another process holds it
            return False
        except OSError:  # the file system has no locks
            return None
        return True

    def write(self, run: str, content: Mapping[str, bytes]) -> None:
        """Write a run's files, given by name, and replace earlier ones.

        Raises:
            BrokenError: they cannot be written.
        """
        own = secrets.token_hex(8)  # processes of two machines may have the same number
        made = self.folder / f".{run}.{own}.tmp"
        old = self.folder / f".{run}.{own}.old.tmp"
        final = self.folder / run
        try:
            made.mkdir()
            for name, each in content.items():
                (made / name).write_bytes(each)
            with suppress(FileNotFoundError):
                final.rename(old)
            made.rename(final)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            if self.read(run) is not None:  # another process wrote the same
                return
            raise BrokenError(
                f"{final} could not be written ({error.strerror}); provide write permission and "
                "free space, then run the command again: finished runs are kept"
            ) from error
        finally:
            shutil.rmtree(made, ignore_errors=True)
