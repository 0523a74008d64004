"""Write files whole or not at all: bytes, CSV, JSON, plots."""

from __future__ import annotations

import csv
import errno
import glob
import io
import json
import math
import os
import stat
import tempfile
import warnings
from dataclasses import asdict, fields
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from adadelta_cli.errors import BrokenError, UnavailableError, UsageError, displayed, in_one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.figure import Figure


FILE_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


def prepare_folder(folder: Path, names: Iterable[str] = (), option: str = "--out") -> None:
    """Make a folder and check that these files can be written there, before the work.

    Messages name the option that named the folder.

    Raises:
        UsageError: a name leads to something that is not a regular file.
        BrokenError: the folder cannot be made or written to.
    """
    for name in names:
        check_writable(folder / name, option)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise BrokenError(
            f"{option}: {folder} cannot be made or written to ({error.strerror}); name another "
            "folder"
        ) from error


def check_writable(path: Path, option: str = "--out") -> None:
    """Check that a path leads to a regular file or to nothing.

    Raises:
        UsageError: it leads to something else, such as `/dev/null`.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except OSError:
        return  # nothing is there; the writer finds out whether it can make it
    if kind != stat.S_IFREG:
        found = FILE_KINDS.get(kind, "not a regular file")
        raise UsageError(
            f"{option}: {path} is {found}, which is not replaced by a file; name a regular "
            "file or a path that does not exist"
        )


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all, making its folder if missing.

    Writing to a symbolic link writes its target and keeps the link.

    Raises:
        UsageError: the path leads to something that is not a regular file.
        BrokenError: the folder or the file cannot be written; an earlier file is left unchanged.
    """
    check_writable(path)
    try:
        _replace(_target(path), content)
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise BrokenError(
            f"{path} could not be written ({reason}); it needs write permission and free space: "
            "provide both or name another path, then run the command again"
        ) from error
    return path


def _target(path: Path) -> Path:
    """Follow the links of a path.

    `Path.resolve` raises RuntimeError at circular links before Python 3.13, and nothing since.

    Raises:
        OSError: the links are circular.
    """
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return target


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files of processes killed while writing this file."""
    for each in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        pid = each.name.removesuffix(".tmp").rpartition(".")[2]
        # This process writes one file at a time: one with its PID is from an earlier process.
        if pid.isdecimal() and (int(pid) == os.getpid() or not _is_running(int(pid))):
            each.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def remove(path: Path) -> None:
    """Remove a file if it exists; of a link, the target."""
    _target(path).unlink(missing_ok=True)


def write_csv(path: Path, rows: Sequence[Any], columns: Sequence[str] | None = None) -> Path:
    """Write frozen dataclasses (or dicts), all of one kind, as CSV, one row each.

    The order of the columns is that of the first row's fields, if not given. Floats are written
    with `repr`, which reads back to the same bits; None is an empty cell.
    """
    records = [row if isinstance(row, dict) else asdict(row) for row in rows]
    names = list(columns) if columns else list(records[0])
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n", extrasaction="raise")
    writer.writeheader()
    writer.writerows({name: _cell(record[name]) for name in names} for record in records)
    return write_bytes(path, to_utf8(text.getvalue()))


def to_utf8(text: str) -> bytes:
    """Encode a text; what UTF-8 lacks (a name's bytes that are not UTF-8) becomes an escape."""
    return text.encode("utf-8", "backslashreplace")


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else value


def write_json(path: Path, document: Any) -> Path:
    """Write a JSON document; numbers that JSON lacks (NaN, infinity) become strings."""
    return write_bytes(path, json_text(document).encode())


def json_text(document: Any) -> str:
    """Format a document as JSON, with a final line break."""
    return json.dumps(jsonable(document), indent=1, allow_nan=False) + "\n"


def jsonable(value: Any) -> Any:
    """Convert rows, sets (sorted), paths, enums and NumPy's numbers to JSON types."""
    if hasattr(value, "__dataclass_fields__"):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, dict):
        return {jsonable(str(key)): jsonable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(each) for each in value]
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, (set, frozenset)):
        return sorted(map(jsonable, value))
    if type(value).__module__ == "numpy":
        value = value.item()
    if isinstance(value, str):
        return to_utf8(value).decode()
    plain = isinstance(value, (int, bool, NoneType))
    finite = isinstance(value, float) and math.isfinite(value)
    return value if plain or finite else str(value)


def plottable(text: str) -> str:
    r"""Write a user's text for a figure: a `$` begins no formula there, and all can be drawn.

    >>> plottable("cost_$5_vs_$10")
    'cost_\\$5_vs_\\$10'
    """
    return displayed(text, keep="\n").replace("$", r"\$")


def write_plot(path: Path, figure: Figure) -> Path:
    """Write a figure as PNG."""
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a name in another script
        figure.savefig(picture, format="png", dpi=120)
    return write_bytes(path, picture.getvalue())


def check_pictures() -> None:
    """Check that plots can be drawn, before the work.

    Raises:
        UnavailableError: Matplotlib does not load, for example under an unknown MPLBACKEND.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except (ImportError, OSError, ValueError) as error:
        backend = os.environ.get("MPLBACKEND")
        cause = f" (MPLBACKEND is {backend!r}; unset it, or set it to agg)" if backend else ""
        raise UnavailableError(
            f"Matplotlib, which draws the plots, does not load{cause}: {in_one_line(error)}"
        ) from error
