"""Files that a user names: what the system says of a path, before anything is opened."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from adadelta_cli.errors import UsageError, shortened


def unreadable_reason(path: Path) -> str:
    """Say why a path names no file that can be read to its end; empty when it names one.

    A device such as /dev/zero has no end, and opening a pipe may wait for ever.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return str(error.strerror)
    except ValueError:  # it has a NUL, or what UTF-8 cannot write
        return "no file can have this name"
    if stat.S_ISDIR(mode):
        return "it is a folder"
    if not stat.S_ISREG(mode):
        return "it is no regular file, but a device, a pipe or a socket"
    return "" if os.access(path, os.R_OK) else "permission denied"


def check_possible(path: Path, option: str) -> None:
    """See that a path, which need not exist, is one that the system can make.

    Raises:
        UsageError: it is too long, or has a character that no name can have.
    """
    try:
        for each in (path, *map(Path, path.parts)):  # the last part of a missing folder is not seen
            each.exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no file can have this name"
        raise UsageError(f"{option} is {shortened(path)}: {reason}; name another path") from error
