"""When the share of a ceiling that a step reached means nothing."""

from __future__ import annotations

FASTER_THAN_ITS_CEILING = 1.2


def share_problem(share: float | None) -> str:
    """Say why a share of the ceiling means nothing; empty where it holds, or there is none."""
    if share is None or share <= FASTER_THAN_ITS_CEILING:
        return ""
    return "faster than its ceiling: the roofs were disturbed, so the share means nothing"
