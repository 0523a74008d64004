"""A process of its own for work that may hang, crash or disturb other libraries."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from typing import TYPE_CHECKING, Any, TypeVar

from adadelta_cli.errors import BrokenError, of_device

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from typing_extensions import Self

T = TypeVar("T")


class SandboxError(Exception):
    """The work did not return: it raised, hung or took its process down. The message says which."""


class HungError(SandboxError):
    """The work took longer than the timeout."""


class Finding(Exception):  # noqa: N818 - no error of ours: what the work was found to do
    """What checked work did wrong; a sandbox reports the message as it is, without where."""


class FatalFinding(Finding):
    """One after which the process is of no use, as a device's context is after a fault."""


def told(error: Exception) -> str:
    """Say what an exception of the work means."""
    if isinstance(error, Finding):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    message = " ".join(str(error).split())  # in one line
    return f"raised {type(error).__name__}: {message} ({where.filename}:{where.lineno})"


class InProcess:
    """A sandbox that is none: for work that may be debugged, and is trusted not to crash."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def of(self, _group: str) -> InProcess:
        """Return itself."""
        return self

    def begin(self, function: Callable[..., None], *args: Any) -> None:
        """Do nothing: there is no other process that could make itself ready meanwhile."""

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call `function(*args)` here.

        Raises:
            SandboxError: it raised.
            BrokenError: a device failed.
        """
        try:
            return function(*args)
        except Exception as error:
            raise of_device(error) or SandboxError(told(error)) from error


class Sandbox:
    """Run functions in one child process, started when first needed and again after a failure.

    Functions and arguments are pickled. What the child writes to stdout goes to stderr, so that it
    cannot spoil a command's output.

    Args:
        timeout: seconds that one call may take; None for no limit.
    """

    def __init__(self, timeout: float | None = None) -> None:
        self.timeout = timeout
        self._process: Any = None
        self._connection: Connection | None = None
        self._groups: dict[str, Sandbox] = {}
        self._pending = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def of(self, group: str) -> Sandbox:
        """Return the sandbox of a group of libraries that disturb others: a process of its own."""
        return self._groups.setdefault(group, Sandbox(self.timeout)) if group else self

    def begin(self, function: Callable[..., None], *args: Any) -> None:
        """Call `function(*args)` in the child without waiting; what comes of it is not told."""
        self._connected().send((function, args))
        self._pending = True

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call `function(*args)` in the child and return what it returns.

        Raises:
            SandboxError: it raised, took longer than the timeout, or its process died.
            BrokenError: a device failed, which is no verdict on the work.
        """
        connection = self._connected()
        try:
            if self._pending:
                self._pending = False
                self._answer(connection)
            connection.send((function, args))
            failure, result = self._answer(connection)
        except (EOFError, OSError):
            raise SandboxError(f"crashed: {self._cause_of_death()}") from None
        if isinstance(failure, BrokenError):
            raise failure
        if isinstance(failure, FatalFinding):
            self.close()
        if failure:
            raise SandboxError(str(failure))
        return result

    def _answer(self, connection: Connection) -> Any:
        if not connection.poll(self.timeout):
            self.close()
            raise HungError(f"hung: no result within {self.timeout:g} s (--timeout)")
        return connection.recv()

    def close(self) -> None:
        """End the child, and those of the groups."""
        for sandbox in self._groups.values():
            sandbox.close()
        if self._process is not None and self._process.pid is not None:
            self._process.kill()
            self._process.join()
        self._process = self._connection = None

    def _connected(self) -> Connection:
        if self._connection is None:
            # Not forked: threads and thread pools of libraries do not survive a fork.
            spawn = multiprocessing.get_context("spawn")
            self._connection, theirs = spawn.Pipe()
            self._process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        return self._connection

    def _cause_of_death(self) -> str:
        ends = time.monotonic() + 1  # it may have closed its end and live on; join would wait
        while self._process.exitcode is None and time.monotonic() < ends:
            time.sleep(0.01)
        self._process.kill()
        self._process.join()
        code = self._process.exitcode
        self._process = self._connection = None
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"


def _serve(connection: Connection) -> None:
    """Answer calls until the other end is closed; Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            return
        try:
            answer: tuple[Any, Any] = (None, function(*args))
        except FatalFinding as error:
            answer = (error, None)
        except Exception as error:  # noqa: BLE001 - whatever it raises is the answer
            answer = (of_device(error) or told(error), None)
        connection.send(answer)
