"""End the process; at once where Python's own shutdown would wait for other processes."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn

_at_once = False


def skip_shutdown() -> None:
    """Let `end` skip destructors, threads and `atexit`: a library's would wait for ever."""
    global _at_once  # noqa: PLW0603 - the state of this process
    _at_once = True


def end(code: int) -> NoReturn:
    """End with an exit code."""
    if _at_once:
        abort(code)
    sys.exit(code)


def abort(code: int, message: str = "") -> NoReturn:
    """End now, from any thread, whatever the others wait for; print a message on stderr first."""
    if message:
        with suppress(OSError):
            os.write(2, f"{message}\n".encode(errors="backslashreplace"))
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or none
            stream.flush()
    os._exit(code)
