"""The program: run a command, and end with the documented exit code whatever happens."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import click

from adadelta_cli.errors import AdadeltaError, ExitCode, of_device

if TYPE_CHECKING:
    from types import FrameType


class TerminatedError(BaseException):
    """SIGTERM: unwinds like Ctrl-C, so that what was finished is written."""


UNWINDING_S = 5.0  # in which another signal asks for what is under way


class Signals:
    """Turns Ctrl-C and SIGTERM into exceptions, the first of several only.

    What unwinds then ends processes and writes files, which a second exception would break off. But
    an exception may be lost, as one raised in a destructor is; so a later signal raises again.
    """

    def __init__(self) -> None:
        self._last = -math.inf

    def install(self) -> None:
        """Take over both; a Ctrl-C that is ignored, as in a shell's background job, stays so."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self.handle)
        signal.signal(signal.SIGTERM, self.handle)

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Raise, unless another one is on its way."""
        now = time.monotonic()
        if now - self._last > UNWINDING_S:
            self._last = now
            raise KeyboardInterrupt if number == signal.SIGINT else TerminatedError

    @staticmethod
    def ignore() -> None:
        """Ignore both from now on: the program is about to end."""
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)


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
    signals = Signals()
    signals.install()
    try:
        code = _run()
    except (Exception, KeyboardInterrupt, TerminatedError) as error:
        signals.ignore()
        if os.environ.get("ADADELTA_DEBUG") == "1":
            raise
        code, message = outcome(error)
        print(f"Error: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


def _run() -> int:
    from adadelta_cli.cli.main import adadelta

    try:
        code = adadelta.main(standalone_mode=False)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # Click ends so, with 1, when nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.BROKEN
    return code if isinstance(code, int) else ExitCode.OK


if __name__ == "__main__":
    main()
