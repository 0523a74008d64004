"""What doctor found, how bad it is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How bad a finding is, the worst first."""

    BROKEN = "broken"  # a command of this tool does not do its work
    DISTURBS = "disturbs"  # a measurement here tells less, or something else
    MISSING = "missing"  # something optional
    NOTE = "note"  # to know when reading a measurement


@dataclass(frozen=True)
class Finding:
    """Something to know, and what to do about it.

    Attributes:
        level: how bad it is.
        what: what was found, with the number that was measured.
        why: why it matters.
        fix: what to do.
    """

    level: Level
    what: str
    why: str
    fix: str


def severity(finding: Finding) -> int:
    """Return a key that sorts findings, the worst first."""
    return list(Level).index(finding.level)
