"""Defer Ctrl-C and SIGTERM to a consistent point."""

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
    """Defer both signals until the yielded function is called or the block ends.

    The previous handler is then called, which raises. A second signal is not deferred.
    """
    waiting: list[tuple[int, FrameType | None]] = []
    handlers: dict[int, Callable[[int, FrameType | None], object]] = {}

    def defer(number: int, frame: FrameType | None) -> None:
        if waiting:
            handlers[number](number, frame)
        waiting.append((number, frame))

    def release() -> None:
        if waiting:
            number, frame = waiting.pop()
            handlers[number](number, frame)

    if threading.current_thread() is threading.main_thread():  # handlers can be set there only
        for each in SIGNALS:
            handler = signal.getsignal(each)
            if callable(handler):
                handlers[each] = handler
                signal.signal(each, defer)
    try:
        yield release
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    release()
