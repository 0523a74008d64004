"""The program: run a command, and end with the documented exit code whatever happens."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import click

from adadelta_cli.errors import AdadeltaError, ExitCode, of_device

if TYPE_CHECKING:
    from types import FrameType


class TerminatedError(BaseException):
    """SIGTERM: unwinds like Ctrl-C, so that what was finished is written."""


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise TerminatedError


FINISHED = "what was finished is on disk, if anything was"
# The first kind that fits; a bug is what fits none.
OUTCOMES: dict[type[BaseException], tuple[ExitCode, str]] = {
    KeyboardInterrupt: (ExitCode.INTERRUPTED, f"interrupted; {FINISHED}"),
    click.Abort: (ExitCode.INTERRUPTED, f"interrupted; {FINISHED}"),
    TerminatedError: (ExitCode.TERMINATED, f"terminated; {FINISHED}"),
    MemoryError: (
        ExitCode.BROKEN,
        "memory ran out ({error}); free some, or ask for less at a time",
    ),
    OSError: (ExitCode.BROKEN, "{error}; the disk or a file failed, see that it can be written"),
    BaseException: (
        ExitCode.BROKEN,
        "{kind}: {error}. This is a bug: report it, with the traceback that ADADELTA_DEBUG=1 shows",
    ),
}


def outcome(error: BaseException) -> tuple[ExitCode, str]:
    """Say with which exit code and message an exception ends the program."""
    error = of_device(error) or error
    if isinstance(error, AdadeltaError):
        return error.exit_code, str(error)
    if isinstance(error, click.ClickException):
        context = error.ctx if isinstance(error, click.UsageError) else None
        see = f" See {context.command_path} --help." if context else ""
        return ExitCode.USAGE, error.format_message() + see
    code, message = next(OUTCOMES[kind] for kind in OUTCOMES if isinstance(error, kind))
    return code, message.format(kind=type(error).__name__, error=error)


def main() -> None:
    """Run the command line and exit; the console script's entry point."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = _run()
    except (Exception, KeyboardInterrupt, TerminatedError) as error:
        if os.environ.get("ADADELTA_DEBUG") == "1":
            raise
        code, message = outcome(error)
        print(f"Error: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


def _run() -> int:
    from adadelta_cli.cli import adadelta

    try:
        code = adadelta.main(standalone_mode=False)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # Click ends so, with 1, when nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.BROKEN
    return code if isinstance(code, int) else ExitCode.OK


if __name__ == "__main__":
    main()
