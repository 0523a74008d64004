"""Check the paths that users name, before anything is opened."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from adadelta_cli.errors import UsageError, shortened

KINDS = {
    stat.S_IFDIR: "it is a folder",
    stat.S_IFCHR: "it is a device",
    stat.S_IFBLK: "it is a device",
    stat.S_IFIFO: "it is a pipe",
    stat.S_IFSOCK: "it is a socket",
}
KERNEL = (Path("/proc"), Path("/sys"))  # their files count as regular; some block or never end
DATA_FOLDER = "ADADELTA_DATA"  # the variable of the environment with the folder of all data sets


def unreadable_reason(path: Path) -> str:
    """Return why a path is not a regular, readable file; empty if it is one.

    Reading a device such as /dev/zero never ends; opening a pipe may block forever, and so may
    reading /proc/kmsg.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        dangling = isinstance(error, FileNotFoundError) and path.is_symlink()
        target = f" (a symbolic link to {shortened(path.readlink())})" if dangling else ""
        return f"{error.strerror}{target}"
    except ValueError:  # a NUL, or a character that UTF-8 cannot encode
        return "no file can have this name"
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "it is something else")
        return f"{kind}, not a regular file"
    if any(map(path.resolve().is_relative_to, KERNEL)):
        return "it is a file of the kernel, not a regular file"
    return "" if os.access(path, os.R_OK) else "permission denied"


def check_possible(path: Path, option: str) -> None:
    """Check that the system accepts a path, which need not exist.

    Raises:
        UsageError: it is too long, has a character that no name can have, or leads in a circle.
    """
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.stat()  # `exists` is silent on circular links, and `resolve` raises RuntimeError
        for each in (path, *map(Path, path.parts)):  # a part below a missing folder is not checked
            each.exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no file can have this name"
        raise UsageError(f"{option} is {shortened(path)}: {reason}; name another path") from error


def expanded(path: Path, option: str) -> Path:
    """Replace a leading `~`, which no shell expands behind a colon.

    Raises:
        UsageError: there is no such user, or no home folder.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{option} is {shortened(path)}: the home folder of {shortened(path.parts[0])} is not "
            "known; write the path in full"
        ) from error
