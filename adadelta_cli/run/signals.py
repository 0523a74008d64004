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


class Release:
    """The signals that wait; call it to raise the first one."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, FrameType | None]] = []
        self.handlers: dict[int, Callable[[int, FrameType | None], object]] = {}

    def __call__(self) -> None:
        """Call the earlier handler of the signal that waits, if any, which raises."""
        if self.waiting:
            number, frame = self.waiting.pop()
            self.handlers[number](number, frame)

    @property
    def pending(self) -> bool:
        """Whether a signal waits."""
        return bool(self.waiting)

    def defer(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: let it wait, unless another one does."""
        if self.waiting:
            self.handlers[number](number, frame)
        self.waiting.append((number, frame))


@contextlib.contextmanager
def defer_signals() -> Iterator[Release]:
    """Defer both signals until the yielded object is called or the block ends.

    The previous handler is then called, which raises. A second signal is not deferred.
    """
    release = Release()
    if threading.current_thread() is threading.main_thread():  # handlers can be set there only
        for each in SIGNALS:
            handler = signal.getsignal(each)
            if callable(handler):
                release.handlers[each] = handler
                signal.signal(each, release.defer)
    try:
        yield release
    finally:
        for number, handler in release.handlers.items():
            signal.signal(number, handler)
    release()
