"""Call functions in warm child processes: on this machine and on a Dask worker alike.

A child serves one call after another, so imports are paid once. One that crashed or exceeded its
time is replaced. When this process ends, even by SIGKILL, its children end.
"""

from __future__ import annotations

import platform
import threading
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from adadelta_cli.errors import BrokenError, UnavailableError
from adadelta_cli.sweep import worker
from adadelta_cli.system import environment, machine
from adadelta_cli.system.sandbox import CrashedError, HungError, Sandbox, SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

START_S = 300.0  # for a child to start and import: minutes on a busy machine with a cold disk
DECIDING = ("adadelta", "numpy", "mxnet", "numba", "scikit-learn", "cupy-cuda12x", "cupy-cuda13x")
"""Packages that the bits of a result depend on."""


class Failure(Enum):
    """Why a call has no result."""

    FAILED = "failed"  # it raised
    CRASHED = "crashed"  # its process ended
    TIMEOUT = "timeout"  # it took longer than allowed


@dataclass(frozen=True)
class Outcome:
    """The result of a call, or its failure with a message."""

    result: Any = None
    failure: Failure | None = None
    message: str = ""


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the results depend on."""
    return {"Python": ".".join(platform.python_version_tuple()[:2]), **machine.versions(DECIDING)}


def check_versions(expected: Mapping[str, str]) -> None:
    """Check that this process has the versions of the process that leads the sweep.

    Raises:
        UnavailableError: it has not; the message names the differences.
    """
    found = versions()
    differing = [
        f"{name} is {found.get(name, 'missing')} there, and {expected.get(name, 'missing')} here"
        for name in sorted({*found, *expected})
        if found.get(name) != expected.get(name)
    ]
    if differing:
        raise UnavailableError(
            f"a worker of the cluster on {platform.node()} has other versions: "
            f"{'; '.join(differing)}; results would differ: install the same versions on both sides"
        )


class Conditions(NamedTuple):
    """What is the same for all calls of a sweep.

    Attributes:
        token: names the sweep.
        versions: of the process that leads the sweep.
        threads: CPU threads of every library in a child.
        data: as `worker.begin` takes it.
    """

    token: str
    versions: Mapping[str, str]
    threads: int
    data: str = ""


class _Child:
    """A sandbox, and whether its process has imported everything."""

    def __init__(self) -> None:
        self.sandbox = Sandbox(START_S)
        self._warm = False

    def call(
        self, how: Conditions, timeout: float | None, function: Callable[..., Any], *args: Any
    ) -> Any:
        """Call a function within `timeout` seconds, without the time to start the process."""
        try:
            if not self._warm:
                self.sandbox.timeout = START_S
                self.sandbox.call(worker.begin, how.threads, how.data)
                self._warm = True
            self.sandbox.timeout = timeout
            return self.sandbox.call(function, *args)
        except (SandboxError, BrokenError) as error:
            if not isinstance(error, SandboxError) or error.fatal or _has_ended(error):
                self.sandbox.close()
                self.sandbox, self._warm = Sandbox(START_S), False
            raise


def _has_ended(error: SandboxError) -> bool:
    return isinstance(error, (CrashedError, HungError))


class Pool:
    """Children of one sweep in this process; each thread that calls takes one meanwhile."""

    def __init__(self) -> None:
        self._idle: list[_Child] = []
        self._all: list[_Child] = []
        self._lock = threading.Lock()
        self._closed = False

    def call(self, how: Conditions, timeout: float | None, function: Any, *args: Any) -> Outcome:
        """Call a function in a child; see the module's `call`."""
        child = self._take()
        try:
            return Outcome(child.call(how, timeout, function, *args))
        except HungError as error:
            return Outcome(failure=Failure.TIMEOUT, message=str(error))
        except (CrashedError, BrokenError) as error:
            return Outcome(failure=Failure.CRASHED, message=str(error))
        except SandboxError as error:
            return Outcome(failure=Failure.FAILED, message=str(error))
        finally:
            self._leave(child)

    def _take(self) -> _Child:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            child = _Child()
            self._all.append(child)
        if self._closed:
            child.sandbox.close()
        return child

    def _leave(self, child: _Child) -> None:
        with self._lock:
            self._idle.append(child)
        if self._closed:
            child.sandbox.close()

    def close(self) -> None:
        """End all children, also those that compute."""
        self._closed = True
        with self._lock:
            children = [*self._all]
        for child in children:
            child.sandbox.close()


_pools: dict[str, Pool] = {}
"""By the token of a sweep: a Dask worker may serve several."""


@cache
def _prepare() -> None:
    environment.prepare()


def call(
    how: Conditions, timeout: float | None, function: Callable[..., Any], *args: Any
) -> Outcome:
    """Call `function(*args)` in a child of this process.

    Args:
        how: what is the same for all calls of the sweep.
        timeout: seconds that the call may take; None for no limit.
        function: is pickled by name.
        args: are pickled.

    Raises:
        UnavailableError: this machine cannot do it, or has other versions.
    """
    check_versions(how.versions)
    _prepare()
    return _pools.setdefault(how.token, Pool()).call(how, timeout, function, *args)


def close(token: str) -> None:
    """End the children of a sweep in this process, for good."""
    _pools.setdefault(token, Pool()).close()
