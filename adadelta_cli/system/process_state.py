"""The state of the process that third-party code may change, and that arithmetic depends on.

A library may flush subnormals in all threads that load it (`gcc -Ofast -shared` up to GCC 12), or
change NumPy's error handling, the working folder and so on. The verifier computes inputs,
references and comparisons in its own state. The kernel gets its own state back at each call.
Random numbers need no such care: the verifier draws from generators of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import locale
import os
import sys
import warnings
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

FENV_BYTES = 256  # more than any platform's fenv_t; x86-64 has 32
DEFAULT_FENV = -1  # glibc's and musl's FE_DFL_ENV: round to nearest, no traps


@cache
def _libm() -> Any:
    """Return the C library with fegetenv and fesetenv; None where there is none."""
    for name in ("libm.so.6", None):
        with contextlib.suppress(OSError, AttributeError, TypeError):
            library = ctypes.CDLL(name)
            library.fegetenv, library.fesetenv  # noqa: B018 - AttributeError if missing
            return library
    return None


def _fenv() -> Any:
    """Return this thread's floating-point environment: rounding and flushing modes."""
    saved = ctypes.create_string_buffer(FENV_BYTES)
    if _libm():
        _libm().fegetenv(saved)
    return saved


def _variables() -> dict[bytes, bytes]:
    """Return the environment as `os` keeps it: decoding all of it takes 100 times as long."""
    return os.environ._data  # type: ignore[attr-defined] # noqa: SLF001


@dataclass(frozen=True)
class ProcessState:
    """A state that can be restored.

    Attributes:
        fenv: the floating-point environment of this thread.
        errors: NumPy's error handling, and the function that it calls.
        folder: the working folder; None if it was deleted.
        environment: the environment variables.
        recursion: Python's limit.
        numeric: the locale of numbers.
    """

    fenv: Any
    errors: tuple[dict[str, Any], Any]
    folder: str | None
    environment: dict[bytes, bytes]
    recursion: int
    numeric: str

    @classmethod
    def now(cls) -> ProcessState:
        """Return the current state."""
        fenv = _fenv()  # first: what follows computes
        folder = None
        with contextlib.suppress(OSError):
            folder = os.getcwd()  # noqa: PTH109 - faster, and this is called often
        return cls(
            fenv,
            (dict(np.geterr()), np.geterrcall()),
            folder,
            _variables().copy(),
            sys.getrecursionlimit(),
            locale.setlocale(locale.LC_NUMERIC),
        )

    def restore(self) -> None:
        """Make it the current state."""
        if _libm():
            _libm().fesetenv(self.fenv)
        errors, function = self.errors
        np.seterr(**errors)
        np.seterrcall(function)
        with contextlib.suppress(OSError):
            if self.folder and os.getcwd() != self.folder:  # noqa: PTH109
                os.chdir(self.folder)
        if _variables() != self.environment:
            os.environ.clear()
            os.environb.update(self.environment)
        if sys.getrecursionlimit() != self.recursion:
            sys.setrecursionlimit(self.recursion)
        if locale.setlocale(locale.LC_NUMERIC) != self.numeric:
            locale.setlocale(locale.LC_NUMERIC, self.numeric)


_strangers: ProcessState | None = None
"""The state in which third-party code left the process."""


@contextlib.contextmanager
def third_party() -> Iterator[None]:
    """Run third-party code in the state that it left behind; restore this program's state."""
    global _strangers  # noqa: PLW0603 - the process has one
    own, filters = ProcessState.now(), warnings.catch_warnings()
    filters.__enter__()
    if _strangers:
        _strangers.restore()
    try:
        yield
    finally:
        _strangers = ProcessState.now()
        own.restore()
        filters.__exit__(None, None, None)


@contextlib.contextmanager
def own() -> Iterator[None]:
    """Compute in the verifier's state; third-party code gets the caller's, restored at the end."""
    global _strangers  # noqa: PLW0603
    before, outer = ProcessState.now(), _strangers
    _strangers = before
    try:
        if _libm():
            _libm().fesetenv(ctypes.c_void_p(DEFAULT_FENV))
        with warnings.catch_warnings(), np.errstate(all="warn", under="ignore"):
            yield
    finally:
        _strangers = outer
        before.restore()
