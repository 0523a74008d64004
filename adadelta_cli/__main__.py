"""Run a command, and end with a documented exit code whatever happens."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING

import click

from adadelta_cli.cli import streams
from adadelta_cli.errors import AdadeltaError, BrokenError, ExitCode, displayed, of_device
from adadelta_cli.system import ending

if TYPE_CHECKING:
    from types import FrameType


class TerminatedError(BaseException):
    """SIGTERM; unwinds like Ctrl-C, so that finished results are written."""


UNWINDING_S = 5.0  # further signals are ignored this long after the first


class Signals:
    """Turns Ctrl-C and SIGTERM into exceptions.

    A second exception would cut off the unwinding, which ends processes and writes files. But the
    first may get lost, for example in a destructor, so a signal after UNWINDING_S raises again.
    """

    def __init__(self) -> None:
        self._last = -math.inf

    def install(self) -> None:
        """Handle both; an ignored Ctrl-C, as in a shell's background job, stays ignored."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self.handle)
        signal.signal(signal.SIGTERM, self.handle)

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Raise, unless an earlier signal is still unwinding."""
        now = time.monotonic()
        if now - self._last > UNWINDING_S:
            self._last = now
            raise KeyboardInterrupt if number == signal.SIGINT else TerminatedError

    @staticmethod
    def ignore() -> None:
        """Ignore both: the program is about to end."""
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)


FINISHED = "finished results, if any, are on disk"
# The first type that matches counts; the last is a bug.
OUTCOMES: dict[type[BaseException], tuple[ExitCode, str]] = {
    KeyboardInterrupt: (ExitCode.INTERRUPTED, f"interrupted; {FINISHED}"),
    click.Abort: (ExitCode.INTERRUPTED, f"interrupted; {FINISHED}"),
    TerminatedError: (ExitCode.TERMINATED, f"terminated; {FINISHED}"),
    MemoryError: (ExitCode.BROKEN, "memory ran out{why}; free some, or use smaller sizes or files"),
    OSError: (ExitCode.BROKEN, "{error}; check the disk and the permissions of the file"),
    BaseException: (
        ExitCode.BROKEN,
        "{kind}: {error}. This is a bug: report it with the traceback that ADADELTA_DEBUG=1 shows",
    ),
}


def outcome(error: BaseException) -> tuple[ExitCode, str]:
    """Return the exit code and the message of an exception."""
    error = of_device(error) or error
    if isinstance(error, AdadeltaError):
        return error.exit_code, str(error)
    if isinstance(error, click.ClickException):
        context = error.ctx if isinstance(error, click.UsageError) else None
        see = f" See {context.command_path} --help." if context else ""
        text = displayed(error.format_message())
        stop = "" if not see or text.endswith((".", "?")) else "."
        return ExitCode.USAGE, text + stop + see
    code, message = next(OUTCOMES[kind] for kind in OUTCOMES if isinstance(error, kind))
    why = f" ({error})" if str(error) else ""  # Python's own MemoryError is empty
    return code, displayed(message.format(kind=type(error).__name__, error=error, why=why))


def main() -> None:
    """Run the command line and exit: the console script's entry point."""
    streams.install()
    signals = Signals()
    signals.install()
    try:
        code = _run()
    except (Exception, KeyboardInterrupt, TerminatedError) as error:  # noqa: BLE001 - the last resort
        signals.ignore()
        if os.environ.get("ADADELTA_DEBUG") == "1":
            traceback.print_exc()
        code, message = outcome(error)
        print(displayed(f"Error: {message}", keep="\n"), file=sys.stderr)  # noqa: T201
        with contextlib.suppress(BrokenError):  # another error is already reported
            streams.flush_stdout()
    ending.end(code)


def _run() -> int:
    from adadelta_cli.cli.main import adadelta

    code = adadelta.main(standalone_mode=False)
    streams.flush_stdout()
    return code if isinstance(code, int) else ExitCode.OK


if __name__ == "__main__":
    main()
