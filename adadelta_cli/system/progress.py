"""The callback that reports the progress of long work."""

from __future__ import annotations

from collections.abc import Callable

Tick = Callable[[int, int, str], None]
"""Takes how much is done, the total, and what is being done."""


def no_tick(_done: int, _total: int, _what: str) -> None:
    """Ignore the progress."""
