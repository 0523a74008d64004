"""What can go wrong, and the exit code that each kind ends with."""

from __future__ import annotations

import sys
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of every command: a contract that scripts rely on."""

    OK = 0
    CHECK_FAILED = 1  # a mismatch, a regression, a run that diverged
    USAGE = 2  # wrong usage or a wrong config
    UNAVAILABLE = 3  # no such device, backend or optional library; not enough memory
    BROKEN = 4  # no verdict: the disk, memory during the work, a lost device, a bug
    INTERRUPTED = 130
    TERMINATED = 143


class AdadeltaError(Exception):
    """An error with an answer: what was wrong, what was expected, what to do."""

    exit_code = ExitCode.BROKEN


class UsageError(AdadeltaError, ValueError):
    """A value, an option or a config is wrong: it must be changed."""

    exit_code = ExitCode.USAGE


class UnavailableError(AdadeltaError, ImportError):
    """A library, a device or the memory that is needed is not available on this machine."""

    exit_code = ExitCode.UNAVAILABLE


class BrokenError(AdadeltaError):
    """The work broke off without a verdict."""

    exit_code = ExitCode.BROKEN


class DeviceError(BrokenError):
    """A GPU failed, or its memory ran out.

    Attributes:
        status: CUDA's number of the error.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


# --- messages -------------------------------------------------------------------------------------


def shortened(value: object, most: int = 160) -> str:
    """Write a value for a message; of a long one, both ends.

    >>> shortened("a" * 5000, most=20)
    'aaaaaaaa...aaaaaaaa (5000 characters)'
    """
    text, end = str(value), (most - 3) // 2
    return text if len(text) <= most else f"{text[:end]}...{text[-end:]} ({len(text)} characters)"


# --- what CUDA says -------------------------------------------------------------------------------

OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation, CUDA's driver_types.h, as all numbers here
KERNEL_FAULTS = range(700, 720)  # an illegal address, a timeout, an assertion and so on


def in_one_line(error: BaseException) -> str:
    """Name an exception and its message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def status(error: BaseException) -> int:
    """Return CUDA's number of an error that CuPy raised; 0 where it is none."""
    cupy = sys.modules.get("cupy")  # what it raised, it raised after its import
    if cupy is None:
        return 0
    if isinstance(error, cupy.cuda.memory.OutOfMemoryError):
        return OUT_OF_MEMORY
    kinds = (cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError)
    return getattr(error, "status", 0) if isinstance(error, kinds) else 0


def of_device(error: BaseException) -> DeviceError | None:
    """Say what an error of a GPU during the work means; None where it is no such error.

    A device that failed stays so for the rest of the process: it is the end of the work, and no
    verdict on what was computed.
    """
    if isinstance(error, DeviceError):
        return error
    number = status(error)
    if not number:
        return None
    if number == OUT_OF_MEMORY:
        return DeviceError(
            f"memory of the GPU ran out ({in_one_line(error)}); free some (nvidia-smi names the "
            "processes that hold it), or ask for less at a time",
            number,
        )
    return DeviceError(
        f"the GPU failed during the work ({in_one_line(error)}); what was finished is on disk; see "
        "what nvidia-smi and the system's log say of it, and try again",
        number,
    )
