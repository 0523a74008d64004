"""A process of its own for work that may hang, crash or disturb other libraries."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from typing import TYPE_CHECKING, Any, TypeVar

from adadelta_cli.errors import BrokenError, of_device
from adadelta_cli.system.child import LIMIT, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

START = """
import sys
sys.path[:] = {path}
from adadelta_cli.system.sandbox import serve
serve({handle})
"""
"""What the process executes. It is a fresh one: threads of libraries do not survive a fork."""

T = TypeVar("T")


class SandboxError(Exception):
    """The work did not return: it raised, hung or took its process down. The message says which."""


class HungError(SandboxError):
    """The work took longer than the timeout."""


class CrashedError(SandboxError):
    """The work took its process down."""


class ReportedError(Exception):
    """What checked work did wrong; a sandbox reports the message as it is, without where."""


class FatalReportedError(ReportedError):
    """One after which the process is of no use, as a device's context is after a fault."""


LONGEST = 1000  # characters of a message of somebody else's exception


def _message(error: BaseException) -> str:
    """Return an exception's message in one line, as text that any file takes."""
    try:
        text = " ".join(str(error)[: 2 * LONGEST].split())
    except Exception as another:  # noqa: BLE001 - the exception is somebody else's
        return f"its message cannot be shown: {type(another).__name__}"
    return text[:LONGEST].encode("utf-8", "backslashreplace").decode()


def describe_error(error: BaseException) -> str:
    """Say what an exception of the work means."""
    if isinstance(error, ReportedError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    message = _message(error)
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
        except (Exception, SystemExit, GeneratorExit) as error:
            raise of_device(error) or SandboxError(describe_error(error)) from error


class Sandbox:
    """Run functions in one child process, started when first needed and again after a failure.

    Functions and arguments are pickled. What the child writes to stdout goes to stderr, so that it
    cannot spoil a command's output. What it starts ends with it.

    Args:
        timeout: seconds that one call may take; None for no limit.
        limit: how many processes it may have started at a time.
    """

    def __init__(self, timeout: float | None = None, limit: int = LIMIT) -> None:
        self.timeout, self._limit = timeout, limit
        self._child: WorkerProcess | None = None
        self._connection: Connection | None = None
        self._groups: dict[str, Sandbox] = {}
        self._pending = self._closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def of(self, group: str) -> Sandbox:
        """Return the sandbox of a group of libraries that disturb others: a process of its own."""
        if not group:
            return self
        return self._groups.setdefault(group, Sandbox(self.timeout, self._limit))

    def begin(self, function: Callable[..., None], *args: Any) -> None:
        """Call `function(*args)` in the child without waiting; its outcome is not reported."""
        _, connection = self._started()
        connection.send((function, args))
        self._pending = True

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call `function(*args)` in the child and return what it returns.

        Raises:
            SandboxError: it raised, took longer than the timeout, its process died, or another
                thread closed the sandbox.
            BrokenError: a device failed, which is no verdict on the work.
        """
        child, connection = self._started()
        try:
            if self._pending:
                self._pending = False
                self._answer(child, connection)
            connection.send((function, args))
            failure, result = self._answer(child, connection)
        except (EOFError, OSError):
            cause = child.ended()
            self._stop()
            raise CrashedError(f"crashed: {cause}") from None
        if isinstance(failure, BrokenError):
            raise failure
        if isinstance(failure, FatalReportedError):
            self._stop()
        if failure:
            raise SandboxError(str(failure))
        return result

    def _answer(self, child: WorkerProcess, connection: Connection) -> Any:
        if not wait([connection, child.lifeline], self.timeout):
            self._stop()
            raise HungError(f"hung: no result within {self.timeout:g} s (--timeout)")
        if not connection.poll():
            raise EOFError  # the child ended, and something else holds its end of the connection
        return connection.recv()

    def close(self) -> None:
        """End the child, and those of the groups, for good; another thread may wait for them."""
        self._closed = True
        for sandbox in self._groups.values():
            sandbox.close()
        self._stop()

    def _stop(self) -> None:
        with self._lock:
            if self._child and self._connection:
                self._child.end()
                self._connection.close()
            self._child = self._connection = None

    def _started(self) -> tuple[WorkerProcess, Connection]:
        with self._lock:
            if self._closed:
                raise SandboxError("was closed")
            if not self._child or not self._connection:
                self._connection, theirs = Pipe()
                with theirs:
                    handle = theirs.fileno()
                    self._child = WorkerProcess(
                        START.format(path=sys.path, handle=handle),
                        [handle],
                        limit=self._limit,
                        stdin=subprocess.DEVNULL,
                        stdout=2,
                    )
            return self._child, self._connection


def serve(handle: int) -> None:
    """Answer calls until the other end is closed."""
    connection, own = Connection(handle), os.getpid()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            function, args = connection.recv()
            try:
                answer = _outcome(function, args)
            finally:
                leave_if_forked(own)
            connection.send(answer)


def leave_if_forked(own: int) -> None:
    """End this process at once if the work forked it and let it return; `own` is the worker's."""
    if os.getpid() != own:
        os._exit(0)


def _outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, Any]:
    """Call; return what went wrong, and the result."""
    try:
        return None, function(*args)
    except FatalReportedError as error:
        return error, None
    except Exception as error:  # noqa: BLE001 - whatever it raises is the answer
        return of_device(error) or describe_error(error), None
