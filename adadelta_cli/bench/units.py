"""Times with readable units."""

from __future__ import annotations

UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))


def unit(seconds: float) -> tuple[float, str]:
    """Return the unit for a time: how many seconds it is, and its name."""
    return next((each for each in UNITS if seconds >= each[0]), UNITS[-1])


def duration(seconds: float, digits: int = 3) -> str:
    """Write a time in its unit.

    >>> duration(0.0012346), duration(2e-9, digits=4), duration(90)
    ('1.23 ms', '2 ns', '90 s')
    """
    scale, name = unit(seconds)
    return f"{seconds / scale:.{digits}g} {name}"
