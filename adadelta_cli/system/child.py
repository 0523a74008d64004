"""Start and end a worker process, and describe how it ended.

The worker has its own session, so Ctrl-C in a terminal reaches its leader only. When the leader
ends, for whatever reason, supervisor.py ends the worker and all that it started.
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
from typing import IO, TYPE_CHECKING, Any

from adadelta_cli.system.supervisor import CROWDED, PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Sequence

SUPERVISOR = Path(__file__).with_name("supervisor.py")
# Processes that a worker may have started at a time: pools of several libraries.
LIMIT = 32 + 2 * (os.cpu_count() or 1)
VMSTAT = Path("/proc/vmstat")  # the kernel's counters, since boot
GRACE_S = 1.0  # for a process that has closed its pipes to end


def oom_kills() -> int:
    """Count the processes that Linux has killed for lack of memory; 0 elsewhere."""
    with suppress(OSError, ValueError, IndexError):
        return int(VMSTAT.read_text().partition("\noom_kill ")[2].split()[0])
    return 0


class WorkerProcess:
    """A worker process.

    Args:
        code: the Python code that it executes.
        pipes: descriptors that it inherits, under the same numbers.
        python: the interpreter.
        limit: the number of processes that it may have started at a time; 0 for no limit.
        options: for `subprocess.Popen`.

    Attributes:
        lifeline: a socket that becomes readable when it has ended.
        exit_code: set by `end` and `ended`: negative, the number of the signal that killed it; None
            if they ended it themselves, or it had started too many processes.
        out_of_memory: set with it: the system killed it for lack of memory.

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
        self._cause: str | None = None
        self.exit_code: int | None = None
        self.out_of_memory = False
        self._kills = oom_kills()
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

    @property
    def outputs(self) -> dict[str, IO[bytes]]:
        """What it prints, by the stream's name, if the options ask for pipes."""
        pipes = {"stdout": self._process.stdout, "stderr": self._process.stderr}
        return {name: pipe for name, pipe in pipes.items() if pipe}

    def terminate(self) -> None:
        """Ask it to end by itself, by SIGTERM."""
        self._process.terminate()

    def ended(self) -> str:
        """Describe how it ended; if it is still alive, end it."""
        with suppress(OSError, ValueError):  # another thread has ended it
            wait([self.lifeline], GRACE_S)
        return self.end() or "closed its pipes and went on"

    def end(self) -> str:
        """End it with all that it started; return how it had ended before, empty if it had not.

        May be called again, and while another thread waits for an answer, which then sees the end.
        """
        with self._lock:
            if self._cause is None:
                self._cause = self._describe(self._last_words())
                self.lifeline.close()
            return self._cause

    def _last_words(self) -> str:
        with suppress(OSError):
            self.lifeline.shutdown(socket.SHUT_WR)
        self.lifeline.settimeout(2 * PATIENCE_S)
        words = ""
        with suppress(OSError):
            words = self.lifeline.recv(100).decode()
        if not words:  # `shutdown` ended it, or the supervisor was killed
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        return words or str(code or "")

    def _describe(self, words: str) -> str:
        if words == CROWDED:
            return f"started more than {self._limit} processes at a time"
        if not words:
            return ""
        self.exit_code = int(words)
        if self.exit_code >= 0:
            return f"exited with {self.exit_code}"
        self.out_of_memory = self.exit_code == -signal.SIGKILL and oom_kills() > self._kills
        if self.out_of_memory:
            return "killed by the system, which ran out of memory"
        if self.exit_code == -signal.SIGKILL:
            return "killed by SIGKILL (the system does this when memory runs out)"
        names = {-each: each.name for each in signal.Signals}
        return f"killed by {names.get(self.exit_code, f'signal {-self.exit_code}')}"
