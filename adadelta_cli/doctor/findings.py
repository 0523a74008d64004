"""A finding of doctor: how bad it is, and how to fix it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How bad a finding is, the worst first."""

    BROKEN = "broken"  # a command does not work
    DISTURBS = "disturbs"  # a measurement is noisy or biased
    MISSING = "missing"  # something optional
    NOTE = "note"  # to know when reading a measurement


@dataclass(frozen=True)
class Finding:
    """A problem, with the number that was measured, why it matters, and its fix."""

    level: Level
    what: str
    why: str
    fix: str


def severity(finding: Finding) -> int:
    """Return a key that sorts findings, the worst first."""
    return list(Level).index(finding.level)
