"""The errors of this program, and their exit codes."""

from __future__ import annotations

import difflib
import sys
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class ExitCode(IntEnum):
    """The exit codes of every command, which scripts rely on."""

    OK = 0
    CHECK_FAILED = 1  # a mismatch, a regression, a run that diverged
    USAGE = 2  # wrong usage or a wrong config
    UNAVAILABLE = 3  # no such device, backend or optional library; not enough memory
    BROKEN = 4  # no verdict: the disk, memory during the work, a lost device, a bug
    INTERRUPTED = 130
    TERMINATED = 143


class AdadeltaError(Exception):
    """An error that says what was wrong, what was expected and how to fix it.

    Each argument is a line; a line break or another control character in a user's name or text
    becomes an escape.
    """

    exit_code = ExitCode.BROKEN

    def __init__(self, *lines: str) -> None:
        super().__init__(*(displayed(str(line)) for line in lines))

    def __str__(self) -> str:
        """Return the message."""
        return "\n".join(self.args)


class UsageError(AdadeltaError, ValueError):
    """A value, an option, a config or an input file is invalid."""

    exit_code = ExitCode.USAGE


class UnavailableError(AdadeltaError, ImportError):
    """A valid request that this machine cannot serve: a library, a device or memory is missing."""

    exit_code = ExitCode.UNAVAILABLE


class BrokenError(AdadeltaError):
    """The work failed without a verdict."""

    exit_code = ExitCode.BROKEN


class DeviceError(BrokenError):
    """A GPU failed or ran out of memory.

    Attributes:
        status: the CUDA error code.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


# --- messages -------------------------------------------------------------------------------------


def shortened(value: object, most: int = 160) -> str:
    r"""Format a value for a message in printable characters; of a long one, only both ends.

    >>> shortened("a" * 5000, most=20)
    'aaaaaaaa...aaaaaaaa (5000 characters)'
    >>> shortened("a\nb\udce9")
    'a\\nb\\udce9'
    """
    text, end = str(value), (most - 3) // 2
    if len(text) > most:
        text = f"{text[:end]}...{text[-end:]} ({len(text)} characters)"
    return displayed(text)


LEAST_PREFIX = 3  # characters of a name that others are said to begin with
LIKE = 0.65  # the least ratio of `difflib` of names spelled alike: "junit" and "quiet" have 0.6


def displayed(text: str, *, keep: str = "", encoding: str = "utf-8") -> str:
    r"""Write a user's text in printable characters of an encoding; others become escapes.

    Args:
        text: the text; bytes of a file's name that are not UTF-8 are lone surrogates.
        keep: characters that stay although they are not printable, such as a line break.
        encoding: of the stream.

    >>> displayed("caf\udce9 [a=$5]")
    'caf\\udce9 [a=$5]'
    """
    escaped = (
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode()
        for each in text
    )
    return "".join(escaped).encode(encoding, "backslashreplace").decode(encoding)


def shown(value: object) -> str:
    """Format any value for a message, in one line; its type where it cannot be shown.

    >>> shown(10**5000)
    'a value of type int'
    """
    try:
        return shortened(" ".join(repr(value).split()))
    except Exception:  # noqa: BLE001 - a `__repr__` may raise anything; of long integers, ValueError
        return f"a value of type {type(value).__name__}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the names that are spelled alike, for a message; empty if there are none.

    >>> suggestion("mpl", ["mlp", "rosenbrock"])
    ' (did you mean mlp?)'
    """
    near = [each for each in nearest(name, known) if each != name]
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def nearest(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Return the names that are spelled alike, whatever the case; else those that begin alike.

    >>> nearest("MLP", ["mlp"]), nearest("gpt2", ["gpt2-small", "bert-base"])
    (['mlp'], ['gpt2-small'])
    """
    given, names = name[:80].lower(), {each.lower(): each for each in known}
    near = difflib.get_close_matches(given, names, n=most, cutoff=LIKE)
    if not near and len(given) >= LEAST_PREFIX:
        near = [each for each in names if each.startswith(given)][:most]
    return [names[each] for each in near]


# --- CUDA errors ----------------------------------------------------------------------------------

OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation, CUDA's driver_types.h, as all numbers here
KERNEL_FAULTS = range(700, 720)  # an illegal address, a timeout, an assertion and others


def in_one_line(error: BaseException) -> str:
    """Format an exception's type and message in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def status(error: BaseException) -> int:
    """Return the CUDA error code of an exception from CuPy; 0 for any other."""
    cupy = sys.modules.get("cupy")  # without it, CuPy raised nothing
    if cupy is None:
        return 0
    if isinstance(error, cupy.cuda.memory.OutOfMemoryError):
        return OUT_OF_MEMORY
    kinds = (cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError)
    return getattr(error, "status", 0) if isinstance(error, kinds) else 0


def of_device(error: BaseException) -> DeviceError | None:
    """Convert an exception from a GPU to a DeviceError; None for any other.

    CUDA errors are sticky: the process cannot use the device again, so it ends without a verdict.
    """
    if isinstance(error, DeviceError):
        return error
    number = status(error)
    if not number:
        return None
    if number == OUT_OF_MEMORY:
        return DeviceError(
            f"the GPU ran out of memory ({in_one_line(error)}); free some (nvidia-smi lists the "
            "processes that use it), or use smaller sizes",
            number,
        )
    return DeviceError(
        f"the GPU failed during the work ({in_one_line(error)}); finished results are on disk; "
        "look at nvidia-smi and the system log, then try again",
        number,
    )
