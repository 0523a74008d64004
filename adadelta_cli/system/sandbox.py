"""Run work that may hang, crash or disturb other libraries in a process of its own."""

from __future__ import annotations

import os
import pickle
import secrets
import struct
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from adadelta_cli import threads
from adadelta_cli.errors import BrokenError, UnavailableError, displayed, of_device
from adadelta_cli.system.child import LIMIT, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

START = """
import sys
sys.path[:] = {path}
from adadelta_cli.system.sandbox import serve
serve({handle}, {token})
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
        super().__init__(displayed(message))
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


FREE_MEMORY = "free some, or use smaller sizes"
MAX_MESSAGE = 1000  # characters of a message of a third-party exception


def message_of(error: BaseException) -> str:
    """Return an exception's message in one line, as text that any file takes."""
    try:
        return _in_one_line(str(error))
    except BaseException as another:  # noqa: BLE001 - a third party's __str__
        return f"its message cannot be shown: {_type_name(another)}"


def _in_one_line(text: str) -> str:
    return displayed(" ".join(text[: 2 * MAX_MESSAGE].split())[:MAX_MESSAGE])


def _type_name(error: BaseException) -> str:
    """Return the name of an exception's class, whatever its metaclass says."""
    return _in_one_line(type.__dict__["__name__"].__get__(type(error)))


def describe_error(error: BaseException) -> str:
    """Describe an exception of the work, with its location unless the work reported it."""
    if isinstance(error, ReportedError):
        return str(error)
    text = f"raised {_type_name(error)}: {message_of(error)}"
    try:
        frames = traceback.extract_tb(error.__traceback__, limit=-1)
        where = "".join(f" ({each.filename}:{each.lineno})" for each in frames)
    except BaseException:  # noqa: BLE001 - the work may have changed what this calls
        where = ""
    return text + displayed(where)


def _failure(error: BaseException, what: str = "") -> BrokenError | SandboxError | UnavailableError:
    """Convert an exception of the work into the one that `call` raises; `what` precedes it."""
    if isinstance(error, ReportedError):
        return SandboxError(str(error), error.fix, fatal=isinstance(error, FatalReportedError))
    if isinstance(error, UnavailableError):  # this program's own: no fault of the work
        return error
    if broken := of_device(error):  # CuPy's lack of memory is a MemoryError, too
        return broken
    if isinstance(error, MemoryError):
        return BrokenError(f"memory ran out ({describe_error(error)}); {FREE_MEMORY}")
    return SandboxError(what + describe_error(error))


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
            BrokenError: a device failed, or memory ran out.
            UnavailableError: this machine cannot do the work.
        """
        try:
            return function(*args)
        except (Exception, SystemExit, GeneratorExit) as error:
            raise _failure(error) from error


class Sandbox:
    """Run functions in one child process, started when first needed and again after a failure.

    Functions and arguments are pickled. What the child prints goes to stderr, or is dropped where
    stderr cannot be written: the command's stdout may be a JSON document. What the child starts
    ends with it.

    Args:
        timeout: seconds that one call may take; None for no limit.
        limit: the number of processes that it may have started at a time.
    """

    def __init__(self, timeout: float | None = None, limit: int = LIMIT) -> None:
        self.timeout, self._limit = timeout, limit
        self._running: _Running | None = None
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
        with suppress(OSError):  # it has ended: the next call reports that
            self._started().connection.send((function, args))
        self._pending = True

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call `function(*args)` in the child and return what it returns.

        Raises:
            SandboxError: it raised, took longer than the timeout, its process died, or another
                thread closed the sandbox.
            BrokenError: a device failed, or memory ran out: no verdict on the work.
            UnavailableError: this machine cannot do the work.
        """
        child, connection, token, _ = self._started()
        try:
            if self._pending:
                self._pending = False
                self._answer(child, connection, token)
            connection.send((function, args))
            failure, result = self._answer(child, connection, token)
        except (EOFError, OSError):
            cause = child.ended()
            self._stop()
            if child.out_of_memory:
                raise BrokenError(f"a worker process was {cause}; {FREE_MEMORY}") from None
            raise CrashedError(f"crashed: {cause}", exit_code=child.exit_code) from None
        if isinstance(failure, SandboxError) and failure.fatal:
            self._stop()
        if failure:
            raise failure
        return result

    def _answer(self, child: WorkerProcess, connection: Connection, token: bytes) -> Any:
        answer = _Answer(token)
        until = None if self.timeout is None else time.monotonic() + self.timeout
        while not answer.is_complete:
            left = None if until is None else max(0.0, until - time.monotonic())
            if not wait([connection, child.lifeline], left):
                self._stop()
                raise HungError(f"hung: no result within {self.timeout:g} s (--timeout)")
            # The child may have ended while another process holds its end of the connection.
            received = os.read(connection.fileno(), PORTION) if connection.poll() else b""
            if not received:
                raise EOFError
            answer.received(received)
        try:
            return answer.unpickled()
        except Exception:  # noqa: BLE001 - unpickling damaged bytes raises many types
            self._stop()
            raise CrashedError("wrote into the channel of its process") from None

    def close(self) -> None:
        """End the child and those of the groups for good, even if another thread waits for them."""
        self._closed = True
        for sandbox in list(self._groups.values()):
            sandbox.close()
        self._stop()

    def _stop(self) -> None:
        with self._lock:
            if self._running:
                self._running.child.end()
                self._running.connection.close()
                self._running.printer.join(PRINTING_S)
            self._running = None

    def _started(self) -> _Running:
        with self._lock:
            if self._closed:
                raise SandboxError("was closed")
            if not self._running:
                self._running = _start(self._limit)
            return self._running


# --- the channel ----------------------------------------------------------------------------------

PORTION = 1 << 20  # bytes read at a time
SIZE = struct.Struct("=Q")


class _Answer:
    """An answer in what a child sends: a token, the size, and the pickled answer.

    What the work itself writes to the descriptor, as a C library that prints to descriptor 3, comes
    before the token, and is left out.
    """

    def __init__(self, token: bytes) -> None:
        self._token, self._bytes, self._begun = token, bytearray(), False

    def received(self, more: bytes) -> None:
        """Add what was received."""
        self._bytes += more
        if not self._begun:
            at = self._bytes.find(self._token)
            self._begun = at >= 0
            unneeded = at + len(self._token) if self._begun else len(self._bytes) - len(self._token)
            del self._bytes[: max(0, unneeded)]

    @property
    def is_complete(self) -> bool:
        """Whether all of it was received."""
        if not self._begun or len(self._bytes) < SIZE.size:
            return False
        return len(self._bytes) >= SIZE.size + SIZE.unpack_from(self._bytes)[0]

    def unpickled(self) -> Any:
        """Return it."""
        return pickle.loads(memoryview(self._bytes)[SIZE.size :])  # noqa: S301 - our own child


class _Running(NamedTuple):
    """A child, the channel to it, the token of its answers, and what forwards its output."""

    child: WorkerProcess
    connection: Connection
    token: bytes
    printer: threading.Thread


PRINTING_S = 1.0  # for the last output of a process that has ended


def _start(limit: int) -> _Running:
    connection, theirs = Pipe()
    token = secrets.token_bytes(16)
    printed, output = os.pipe()
    printer = threads.start(_forward, printed)
    try:
        with theirs:
            handle = theirs.fileno()
            code = START.format(path=sys.path, handle=handle, token=token)
            streams: Any = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
            child = WorkerProcess(code, [handle], limit=limit, **streams)
    finally:
        os.close(output)  # then the child and what it started hold the only ones
    return _Running(child, connection, token, printer)


def _forward(printed: int) -> None:
    """Copy what a child prints to stderr; a full disk behind stderr is no fault of the work."""
    with os.fdopen(printed, "rb", buffering=0) as pipe:
        while text := pipe.read(PORTION):
            with suppress(OSError):
                os.write(2, text)


def serve(handle: int, token: bytes) -> None:
    """Answer calls until the other end is closed.

    The work may have broken anything in this process: it ends without a word of its own.
    """
    connection, own = Connection(handle), os.getpid()
    try:
        while True:
            try:
                answer = _outcome(connection.recv_bytes())
            finally:
                leave_if_forked(own)
            _send(handle, token, answer)
    except SystemExit as error:  # at once: exit functions and threads of the work may hang
        os._exit(error.code & 0xFF if isinstance(error.code, int) else error.code is not None)
    except EOFError:
        return
    except BaseException:  # noqa: BLE001
        os._exit(1)


def _send(handle: int, token: bytes, answer: tuple[Any, Any]) -> None:
    try:
        pickled = pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)
    except BaseException as error:  # noqa: BLE001 - the result is the work's
        pickled = pickle.dumps((_failure(error, "returned a result that "), None))
    left = memoryview(token + SIZE.pack(len(pickled)) + pickled)
    while left:
        left = left[os.write(handle, left) :]


def leave_if_forked(own: int) -> None:
    """End this process at once unless its PID is `own`, the worker's: the work forked it."""
    if os.getpid() != own:
        os._exit(0)


def _outcome(request: bytes) -> tuple[Any, Any]:
    """Call a pickled function; return the failure and the result, one of them None."""
    try:
        function, args = pickle.loads(request)  # noqa: S301 - from this process's own leader
    except Exception as error:  # noqa: BLE001 - an import failed, most likely for earlier work
        text = f"cannot go on in its process: {type(error).__name__}: {message_of(error)}"
        return SandboxError(text, fatal=True), None
    try:
        return None, function(*args)
    except SystemExit:  # its process ends as it asked to
        raise
    except BaseException as error:  # noqa: BLE001 - also KeyboardInterrupt: Ctrl-C is the leader's
        return _failure(error), None
