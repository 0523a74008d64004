"""Files that are written whole or not at all: bytes, CSV, JSON, pictures."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import tempfile
from dataclasses import asdict, fields
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from adadelta_cli.errors import BrokenError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure


def prepare(folder: Path) -> None:
    """Make a folder and see that it takes files, before work that is to end there.

    Raises:
        BrokenError: it cannot be made, or takes none.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BrokenError(
            f"--out {folder} cannot be made or written to ({error.strerror}); name one that can"
        ) from error


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all, making its folder if missing.

    Raises:
        OSError: the folder or the file cannot be written; an earlier file is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_csv(path: Path, rows: Sequence[Any], columns: Sequence[str] | None = None) -> Path:
    """Write frozen dataclasses (or dicts) as CSV, one row each.

    Args:
        path: the file.
        rows: the rows, all of one kind.
        columns: their order; by default that of the first row's fields. Needed when there is none.

    Floats are written with `repr`, which reads back to the same bits; None is an empty cell.
    """
    records = [row if isinstance(row, dict) else asdict(row) for row in rows]
    names = list(columns) if columns else list(records[0])
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n", extrasaction="raise")
    writer.writeheader()
    writer.writerows({name: _cell(record[name]) for name in names} for record in records)
    return write_bytes(path, text.getvalue().encode())


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
    """Write a document as JSON, ended by a line break."""
    return json.dumps(jsonable(document), indent=1, allow_nan=False) + "\n"


def jsonable(value: Any) -> Any:
    """Turn rows, paths and enums into what JSON has."""
    if hasattr(value, "__dataclass_fields__"):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): jsonable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(each) for each in value]
    if isinstance(value, Enum):
        value = value.value
    plain = isinstance(value, (str, int, bool, NoneType))
    finite = isinstance(value, float) and math.isfinite(value)
    return value if plain or finite else str(value)


def write_plot(path: Path, figure: Figure) -> Path:
    """Write a figure as PNG."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return write_bytes(path, picture.getvalue())
