"""Start threads with a stack of one size, whatever `ulimit -s` says.

The system's default is that limit: with a small one a thread crashes, with a huge one it does not
start.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

STACK_BYTES = 2**20
_resizing = threading.Lock()


def start(work: Callable[..., Any], *args: Any, name: str | None = None) -> threading.Thread:
    """Start a daemon thread.

    Raises:
        RuntimeError: the system allows no more threads.
    """
    thread = threading.Thread(target=work, args=args, name=name, daemon=True)
    with _resizing:
        before = threading.stack_size(STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    return thread


def _after_fork() -> None:
    """Release the lock: a thread that is not here may have held it."""
    global _resizing  # noqa: PLW0603
    _resizing = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
