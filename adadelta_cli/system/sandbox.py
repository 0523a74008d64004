"""Run work that may hang, crash or disturb other libraries in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from typing import TYPE_CHECKING, Any, TypeVar

from adadelta_cli.errors import BrokenError, UnavailableError, of_device
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
"""What the process executes: a fresh one, since threads of libraries do not survive a fork."""

T = TypeVar("T")


class SandboxError(Exception):
    """The work did not return; the message says why: it raised, hung or ended its process.

    Attributes:
        fix: known to the work; else empty.
        fatal: the process is unusable.
        exit_code: of a process that crashed: negative, the signal that killed it; else None.
    """

    def __init__(
        self, message: str, fix: str = "", *, fatal: bool = False, exit_code: int | None = None
    ) -> None:
        super().__init__(message)
        self.fix, self.fatal, self.exit_code = fix, fatal, exit_code


class HungError(SandboxError):
    """The work took longer than the timeout."""


class CrashedError(SandboxError):
    """The work took its process down."""


class ReportedError(Exception):
    """An error that the work itself found; a sandbox passes on its message without a location.

    Attributes:
        fix: as of `SandboxError`.
    """

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.fix = fix


class FatalReportedError(ReportedError):
    """One after which the process is unusable, as a device's context is after a fault."""


MAX_MESSAGE = 1000  # characters of a message of a third-party exception


def _message(error: BaseException) -> str:
    """Return an exception's message in one line, as text that any file takes."""
    try:
        text = " ".join(str(error)[: 2 * MAX_MESSAGE].split())
    except Exception as another:  # noqa: BLE001 - a third party's __str__
        return f"its message cannot be shown: {type(another).__name__}"
    return text[:MAX_MESSAGE].encode("utf-8", "backslashreplace").decode()


def describe_error(error: BaseException) -> str:
    """Describe an exception of the work, with its location unless the work reported it."""
    if isinstance(error, ReportedError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    message = _message(error)
    return f"raised {type(error).__name__}: {message} ({where.filename}:{where.lineno})"


def _failure(error: BaseException) -> BrokenError | SandboxError | UnavailableError:
    """Convert an exception of the work into the one that `call` raises."""
    if isinstance(error, ReportedError):
        return SandboxError(str(error), error.fix, fatal=isinstance(error, FatalReportedError))
    if isinstance(error, UnavailableError):  # this program's own: no fault of the work
        return error
    return of_device(error) or SandboxError(describe_error(error))


class InProcess:
    """Run work in this process: it can be debugged, and is trusted not to crash."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def of(self, _group: str) -> InProcess:
        """Return itself."""
        return self

    def begin(self, function: Callable[..., None], *args: Any) -> None:
        """Do nothing: there is no other process to prepare."""

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call `function(*args)` here.

        Raises:
            SandboxError: it raised.
            BrokenError: a device failed.
            UnavailableError: this machine cannot do the work.
        """
        try:
            return function(*args)
        except (Exception, SystemExit, GeneratorExit) as error:
            raise _failure(error) from error


class Sandbox:
    """Run functions in one child process, started when first needed and again after a failure.

    Functions and arguments are pickled. The child's stdout goes to stderr: the command's stdout may
    be a JSON document. What the child starts ends with it.

    Args:
        timeout: seconds that one call may take; None for no limit.
        limit: the number of processes that it may have started at a time.
    """

    def __init__(self, timeout: float | None = None, limit: int = LIMIT) -> None:
        self.timeout, self._limit = timeout, limit
        self._running: tuple[WorkerProcess, Connection] | None = None
        self._groups: dict[str, Sandbox] = {}
        self._pending = self._closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def of(self, group: str) -> Sandbox:
        """Return the sandbox, with its own process, of a group of libraries that disturb others."""
        if not group:
            return self
        sandbox = self._groups.setdefault(group, Sandbox(self.timeout, self._limit))
        if self._closed:  # another thread may have closed the other groups before this was added
            sandbox.close()
        return sandbox

    def begin(self, function: Callable[..., None], *args: Any) -> None:
        """Call `function(*args)` in the child without waiting; its outcome is not reported."""
        _, connection = self._started()
        with suppress(OSError):  # it has ended: the next call reports that
            connection.send((function, args))
        self._pending = True

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call `function(*args)` in the child and return what it returns.

        Raises:
            SandboxError: it raised, took longer than the timeout, its process died, or another
                thread closed the sandbox.
            BrokenError: a device failed: no verdict on the work.
            UnavailableError: this machine cannot do the work.
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
            raise CrashedError(f"crashed: {cause}", exit_code=child.exit_code) from None
        if isinstance(failure, SandboxError) and failure.fatal:
            self._stop()
        if failure:
            raise failure
        return result

    def _answer(self, child: WorkerProcess, connection: Connection) -> Any:
        if not wait([connection, child.lifeline], self.timeout):
            self._stop()
            raise HungError(f"hung: no result within {self.timeout:g} s (--timeout)")
        if not connection.poll():
            raise EOFError  # the child ended, but another process holds its end of the connection
        return connection.recv()

    def close(self) -> None:
        """End the child and those of the groups for good, even if another thread waits for them."""
        self._closed = True
        for sandbox in list(self._groups.values()):
            sandbox.close()
        self._stop()

    def _stop(self) -> None:
        with self._lock:
            if self._running:
                child, connection = self._running
                child.end()
                connection.close()
            self._running = None

    def _started(self) -> tuple[WorkerProcess, Connection]:
        with self._lock:
            if self._closed:
                raise SandboxError("was closed")
            if not self._running:
                self._running = _start(self._limit)
            return self._running


def _start(limit: int) -> tuple[WorkerProcess, Connection]:
    connection, theirs = Pipe()
    with theirs:
        handle = theirs.fileno()
        code = START.format(path=sys.path, handle=handle)
        stdin = subprocess.DEVNULL
        return WorkerProcess(code, [handle], limit=limit, stdin=stdin, stdout=2), connection


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
    """End this process at once unless its PID is `own`, the worker's: the work forked it."""
    if os.getpid() != own:
        os._exit(0)


def _outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, Any]:
    """Call the function; return the failure and the result, one of them None."""
    try:
        return None, function(*args)
    except Exception as error:  # noqa: BLE001 - whatever it raises is the answer
        return _failure(error), None
