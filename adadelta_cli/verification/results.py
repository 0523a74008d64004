"""The rows and traces that a verification has collected so far."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from adadelta_cli.errors import ExitCode
from adadelta_cli.system.sandbox import HungError, SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adadelta_cli.verification.rows import ComparisonRow, DriftTrace, TrainingTrace


def unfinished(ran: int, planned: int) -> str:
    """Say that a verification was interrupted, or failed before its end."""
    return f"{ran:,} of {planned:,} planned checks ran"


class Results:
    """Collects what the checks find.

    Attributes:
        planned: checks that are to run: each case, training or search of fuzzed cases, once per
            dtype, with all implementations.
        ran: those that ran to their end.
    """

    def __init__(self, planned: int = 0) -> None:
        self.planned, self.ran = planned, 0
        self.rows: list[ComparisonRow] = []
        self.traces: list[TrainingTrace] = []  # the losses of the trainings
        self.drifts: list[DriftTrace] = []  # of third-party code in each case
        self.hung: dict[str, str] = {}  # by implementation, the case; it gets no other
        self.seconds: dict[tuple[str, ...], float] = {}  # that a check took, by `ComparisonRow.key`

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Record how long the rows took that are added meanwhile, as the time of the first one.

        Rows of several checks may come from the same steps; these have no time of their own.
        """
        before, began = len(self.rows), time.perf_counter()
        yield
        for row in self.rows[before : before + 1]:
            self.seconds[row.key] = self.seconds.get(row.key, 0.0) + time.perf_counter() - began

    @property
    def failures(self) -> list[ComparisonRow]:
        """The rows that did not pass."""
        return [row for row in self.rows if row.passed is False]

    @property
    def is_empty(self) -> bool:
        """Whether nothing was compared: no row, or all skipped, or without an element."""
        return not any(row.passed is not None and row.is_comparison for row in self.rows)

    @property
    def unfinished(self) -> str:
        """How many of the planned checks ran, where some did not; else empty."""
        return "" if self.ran == self.planned else unfinished(self.ran, self.planned)

    @property
    def exit_code(self) -> ExitCode:
        """The command's exit code: 1 when a row did not pass, or what was planned was not done."""
        missed = self.failures or self.is_empty or self.unfinished
        return ExitCode.CHECK_FAILED if missed else ExitCode.OK

    def skip(self, row: ComparisonRow, reason: str) -> None:
        """Add the row of a case that is not run."""
        self.rows.append(row.skipped(reason))

    def fail(self, row: ComparisonRow, error: SandboxError) -> None:
        """Add the row of a case that gave no result."""
        self.rows.append(replace(row, passed=False, note=str(error)))
        if isinstance(error, HungError):
            self.hung[row.implementation] = row.case
