"""What can go wrong, and the exit code that each kind ends with."""

from __future__ import annotations

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


class UsageError(AdadeltaError):
    """The command line or a config asks for something that makes no sense."""

    exit_code = ExitCode.USAGE


class UnavailableError(AdadeltaError):
    """What was asked for makes sense, but not on this machine."""

    exit_code = ExitCode.UNAVAILABLE


class BrokenError(AdadeltaError):
    """The work broke off without a verdict."""

    exit_code = ExitCode.BROKEN
