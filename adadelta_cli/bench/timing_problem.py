"""Why an implementation has no time: a value in the program, a sentence in files and messages."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Outcome(Enum):
    """How an implementation failed to get a time; the sentence begins with the value."""

    WRONG = "wrong"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class TimingProblem:
    """An outcome, and its reason."""

    outcome: Outcome
    reason: str

    def __str__(self) -> str:
        return f"{self.outcome.value}: {self.reason}"

    @property
    def is_failure(self) -> bool:
        """Whether the step itself is at fault: it was tried, and gave no correct result."""
        return self.outcome is not Outcome.SKIPPED

    @classmethod
    def parse(cls, text: str) -> TimingProblem | None:
        """Read what `str` wrote to a file or sent from a worker; None for any other text.

        >>> TimingProblem.parse("wrong: it changed the gradient")
        TimingProblem(outcome=<Outcome.WRONG: 'wrong'>, reason='it changed the gradient')
        """
        value, found, reason = text.partition(": ")
        known = {outcome.value: outcome for outcome in Outcome}
        return cls(known[value], reason) if found and value in known else None
