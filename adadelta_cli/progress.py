"""What work of over a second reports to."""

from __future__ import annotations

from collections.abc import Callable

Tick = Callable[[int, int, str], None]
"""What work of over a second reports to: how much is done, of how much, and what it is doing."""


def no_tick(_done: int, _total: int, _what: str) -> None:
    """Report to nobody."""
