"""The program: run a command, and end with the documented exit code whatever happens."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import click

from adadelta_cli.errors import AdadeltaError, ExitCode


class TerminatedError(BaseException):
    """SIGTERM: unwinds like Ctrl-C, so that what was finished is written."""


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise TerminatedError


def _outcome(error: BaseException) -> tuple[ExitCode, str]:
    """Say with which exit code and message an exception ends the program."""
    if isinstance(error, click.ClickException):
        hint = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else None
        return ExitCode.USAGE, error.format_message() + (f" (see {hint} --help)" if hint else "")
    if isinstance(error, AdadeltaError):
        return error.exit_code, str(error)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return ExitCode.INTERRUPTED, "interrupted; what was finished is on disk"
    if isinstance(error, TerminatedError):
        return ExitCode.TERMINATED, "terminated; what was finished is on disk"
    if isinstance(error, MemoryError):
        return ExitCode.BROKEN, f"memory ran out ({error}); free some, or ask for less at a time"
    if isinstance(error, OSError):
        return ExitCode.BROKEN, f"{error}; what was finished is on disk"
    return ExitCode.BROKEN, (
        f"{type(error).__name__}: {error}. This is a bug in adadelta; set ADADELTA_DEBUG=1 for "
        "the traceback, and report it"
    )


def main() -> None:
    """Run the command line and exit; the console script's entry point."""
    from adadelta_cli.cli import adadelta  # noqa: PLC0415 - so that an interrupt here is caught

    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = adadelta.main(standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else ExitCode.OK)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads any more
        sys.exit(ExitCode.BROKEN)
    except (Exception, KeyboardInterrupt, TerminatedError) as error:
        if os.environ.get("ADADELTA_DEBUG") == "1":
            raise
        code, message = _outcome(error)
        print(f"Error: {message}", file=sys.stderr)  # noqa: T201
        sys.exit(code)


if __name__ == "__main__":
    main()
