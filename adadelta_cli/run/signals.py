"""Ctrl-C and SIGTERM, held back until a moment at which the work is whole."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def defer_signals() -> Iterator[Callable[[], None]]:
    """Hold both signals back until the function that this yields is called, or the block ends.

    Then the handler that was there before is called, which raises. A second signal is not held:
    whoever sends it does not want to wait.
    """
    waiting: list[tuple[int, FrameType | None]] = []
    handlers: dict[int, Callable[[int, FrameType | None], object]] = {}

    def hold(number: int, frame: FrameType | None) -> None:
        if waiting:
            handlers[number](number, frame)
        waiting.append((number, frame))

    def release() -> None:
        if waiting:
            number, frame = waiting.pop()
            handlers[number](number, frame)

    if threading.current_thread() is threading.main_thread():  # nowhere else can handlers be set
        for each in SIGNALS:
            handler = signal.getsignal(each)
            if callable(handler):
                handlers[each] = handler
                signal.signal(each, hold)
    try:
        yield release
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    release()
