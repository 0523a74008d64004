"""End a process of a distributed training that would otherwise wait for ever.

MXNet waits for the other processes in C, without a time limit, where Python handles no signal. This
thread watches what Python's main thread cannot: time limits, lost processes, and signals that
nobody takes.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adadelta_cli.errors import ExitCode
from adadelta_cli.system import ending

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EVERY_S = 0.5
SIGNALS = {
    signal.SIGINT: (ExitCode.INTERRUPTED, "interrupted"),
    signal.SIGTERM: (ExitCode.TERMINATED, "terminated"),
}
WAITING = "while it waited for the other processes; finished results, if any, are on disk"

Reason = tuple[ExitCode, str] | None  # to end: exit code and message


@dataclass(frozen=True)
class _Limit:
    until: float  # time.monotonic()
    code: ExitCode
    message: str


@dataclass
class Watchdog:
    """A thread that ends this process with a message; make it in the main thread.

    Attributes:
        patience_s: seconds for the main thread to take a signal.
    """

    patience_s: float = 0.0
    _lost: Callable[[], Reason] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _limit: _Limit | None = None
    _signals: dict[int, float] = field(default_factory=dict)  # pending: number to time

    def start(self) -> Watchdog:
        """Start to watch."""
        self._wakes, rings = os.pipe()
        for end in (self._wakes, rings):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(rings, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def watch(self, lost: Callable[[], Reason] | None) -> None:
        """Call a function from now on, which returns the reason to end, such as a lost process.

        None: call no function any more; what the last one holds is free when this returns.
        """
        with self._lock:
            self._lost = lost

    @contextlib.contextmanager
    def limit(self, seconds: float, code: ExitCode, message: str) -> Iterator[None]:
        """End the process if the block takes longer; signals end it at once."""
        patience, self.patience_s = self.patience_s, 0.0
        self._limit = _Limit(time.monotonic() + seconds, code, message)
        try:
            yield
        finally:
            self._limit, self.patience_s = None, patience

    def taken(self) -> None:
        """Note that the main thread has taken the signals so far."""
        self._signals.clear()

    def _watch(self) -> None:
        while True:
            select.select([self._wakes], [], [], EVERY_S)
            with contextlib.suppress(BlockingIOError):
                for number in os.read(self._wakes, 100):
                    if number in SIGNALS:
                        self._signals.setdefault(number, time.monotonic())
            self._check()

    def _check(self) -> None:
        now, limit = time.monotonic(), self._limit
        for number, since in list(self._signals.items()):
            if now >= since + self.patience_s:
                code, what = SIGNALS[signal.Signals(number)]
                ending.abort(code, f"Error: {what} {WAITING}")
        if limit and now >= limit.until:
            ending.abort(limit.code, f"Error: {limit.message}")
        with self._lock:
            reason = self._lost() if self._lost else None
        if reason:
            ending.abort(reason[0], f"Error: {reason[1]}")
