"""The life of a worker process, from its leader's side: start it, see how it ended, end it.

It lives in a session of its own, so that Ctrl-C in a terminal reaches the leader only. It ends with
the leader, whatever ends that, and all that it started ends with it: supervisor.py sees to that.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadelta_cli.system.supervisor import CROWDED, PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Sequence

SUPERVISOR = Path(__file__).with_name("supervisor.py")
# That a worker may have started at a time: a pool for each of several libraries.
LIMIT = 32 + 2 * (os.cpu_count() or 1)
GRACE_S = 1.0  # for a process to end that has closed its pipes


class WorkerProcess:
    """A worker process.

    Args:
        code: Python that it executes.
        pipes: descriptors that it inherits, under the same numbers.
        python: the interpreter.
        limit: how many processes it may have started at a time; 0 for any number.
        options: as `subprocess.Popen` takes them.

    Attributes:
        lifeline: can be read once it has ended.

    Raises:
        OSError: the interpreter cannot be executed.
    """

    def __init__(
        self,
        code: str,
        pipes: Sequence[int],
        python: str = sys.executable,
        *,
        limit: int = 0,
        **options: Any,
    ) -> None:
        self._limit = limit
        self._ending: str | None = None
        self._lock = threading.Lock()
        self.lifeline, theirs = socket.socketpair()
        arguments = [theirs.fileno(), limit, code, *pipes]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the user's own interpreter
                [python, str(SUPERVISOR), *map(str, arguments)],
                pass_fds=[theirs.fileno(), *pipes],
                start_new_session=True,
                **options,
            )
        except BaseException:
            self.lifeline.close()
            raise
        finally:
            theirs.close()

    def ended(self) -> str:
        """Say how it ended, and make sure that it did."""
        with suppress(OSError, ValueError):  # another thread has ended it
            wait([self.lifeline], GRACE_S)
        return self.end() or "closed its pipes and went on"

    def end(self) -> str:
        """End it with all that it started; say how it had ended before, empty if it had not.

        May be called again, and while another thread waits for an answer, which then sees the end.
        """
        with self._lock:
            if self._ending is None:
                self._ending = self._last_words()
                self.lifeline.close()
            return self._ending

    def _last_words(self) -> str:
        with suppress(OSError):
            self.lifeline.shutdown(socket.SHUT_WR)
        self.lifeline.settimeout(2 * PATIENCE_S)
        words = ""
        with suppress(OSError):
            words = self.lifeline.recv(100).decode()
        if not words:  # it was ended by this, or the supervisor was killed
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        return self._told(words or str(code or ""))

    def _told(self, words: str) -> str:
        if words == CROWDED:
            return f"started more than {self._limit} processes at a time"
        if not words.startswith("-"):
            return f"exited with {words}" if words else ""
        names = {each.value: each.name for each in signal.Signals}
        return f"killed by {names.get(-int(words), f'signal {words[1:]}')}"
