"""The standard streams: they may be closed, on a full disk, or a pipe that nobody reads."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

from adadelta_cli.errors import BrokenError


class _Stdout(io.FileIO):
    """Standard output, which reports the first write that fails and drops all later ones."""

    def __init__(self, *, closed: bool) -> None:
        super().__init__(1, "w", closefd=False)
        self.is_broken = False
        self._was_closed = closed

    def write(self, data: Any) -> int:
        """Write to the file.

        Raises:
            BrokenError: the stream is closed, its disk is full, or its reader is gone.
        """
        if self.is_broken:
            return len(data)
        reason = "it is closed"
        if not self._was_closed:
            try:
                return super().write(data) or 0
            except OSError as error:
                reason = error.strerror or str(error)
        self.is_broken = True
        raise BrokenError(
            f"the results cannot be written to stdout ({reason}); expected an open file with free "
            "space, or a pipe that is read to its end"
        )


class _Stderr(io.FileIO):
    """Standard error, which drops what cannot be written: there is no other place to say so."""

    def __init__(self) -> None:
        super().__init__(2, "w", closefd=False)

    def write(self, data: Any) -> int:
        """Write to the file, or drop the data."""
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def install() -> None:
    """Replace stdout and stderr, unless somebody else has replaced them already.

    A missing descriptor is opened on the null device. Otherwise, the next file that is opened would
    get its number, and what a library prints would go into that file.
    """
    closed = [not _is_open(descriptor) for descriptor in range(3)]
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(_Stdout(closed=closed[1]), sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Stderr(), sys.stderr, errors="backslashreplace", line_buffering=True)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number
        return False
    return True


def _text(raw: io.FileIO, old: Any, errors: str = "", **how: Any) -> io.TextIOWrapper:
    how.setdefault("line_buffering", raw.isatty())
    encoding, old_errors = getattr(old, "encoding", "utf-8"), getattr(old, "errors", "strict")
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors or old_errors, **how)


def flush_stdout() -> None:
    """Write what is left to stdout.

    Raises:
        BrokenError: it cannot be written, or something before could not.
    """
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Stdout) and raw.is_broken:
        raise BrokenError("not all results could be written to stdout")
