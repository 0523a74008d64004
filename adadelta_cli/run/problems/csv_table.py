"""Read a CSV file as texts, strictly: nothing is guessed, and an error names the line."""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, NamedTuple

from adadelta_cli import inputs
from adadelta_cli.errors import UsageError, shortened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMPRESSED = {  # what the file starts with
    rb"\x1f\x8b": "compressed by gzip",
    rb"\x1f\x9d": "compressed by compress",
    rb"PK\x03\x04": "a zip archive or a spreadsheet",
    rb"PK\x05\x06": "an empty zip archive",
    rb"\xfd7zXZ\x00": "compressed by xz",
    rb"BZh[1-9]1AY&SY": "compressed by bzip2",
    rb"\x28\xb5\x2f\xfd": "compressed by zstd",
    rb"7z\xbc\xaf\x27\x1c": "a 7z archive",
}
LINE_END = re.compile(rb"\r\n?|\n")


class CsvTable(NamedTuple):
    """The cells of a file.

    Attributes:
        path: the file.
        columns: the cells of each column by its name, without spaces around them.
        lines: the line of each row in the file, counted from 1.
    """

    path: Path
    columns: dict[str, tuple[str, ...]]
    lines: tuple[int, ...]

    def place(self, row: int) -> str:
        """Name a row in a message."""
        return f"{self.path}, line {self.lines[row]}"


def read_csv(path: Path) -> CsvTable:
    """Read a file in UTF-8 with a header and fields between commas; blank lines are skipped.

    Raises:
        UsageError: it is no such file, a column has no name or that of another, a row has more or
            fewer fields than the header, or a NUL is in a cell.
    """
    lines: list[int] = []
    rows: list[list[str]] = []
    for line, row in _rows(path, _text(path)):
        if rows and len(row) != len(rows[0]):
            raise UsageError(
                f"{path}, line {line}: {len(row)} fields, but the header has {len(rows[0])}: "
                f"{shortened(', '.join(rows[0]))}; every row needs one field for each column"
            )
        for number, cell in enumerate(row):
            if "\0" in cell:
                name = shortened(rows[0][number] if rows else f"column {number + 1}")
                raise UsageError(
                    f"{path}, line {line}: {name} is {shortened(repr(cell))}, which has a NUL; "
                    "remove it: the file may be damaged"
                )
        lines.append(line)
        rows.append(row)
    if not rows:
        raise UsageError(f"{path} is empty; it must be a CSV file with a header")
    _check_names(f"{path}, line {lines[0]}", rows[0])
    cells = list(zip(*rows[1:], strict=True)) or [()] * len(rows[0])
    return CsvTable(path, dict(zip(rows[0], cells, strict=True)), tuple(lines[1:]))


def _text(path: Path) -> str:
    expected = "it must be a CSV file in UTF-8 with a header"
    reason = inputs.unreadable_reason(path)
    content = b""
    if not reason:
        try:
            content = path.read_bytes()
        except OSError as error:
            reason = str(error.strerror)
    kinds = [kind for start, kind in COMPRESSED.items() if re.match(start, content)]
    if kinds:
        reason = f"it is {kinds[0]}; extract the CSV file from it"
    if reason:
        raise UsageError(
            f"problem.csv is {shortened(path)}, which cannot be read: {reason}; {expected}. A "
            "relative path in a config starts at the folder of that file (of a link's target)"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(LINE_END.findall(error.object, 0, error.start)) + 1
        byte = error.object[error.start]
        raise UsageError(
            f"{path}, line {line}: byte 0x{byte:02x} is not UTF-8; {expected}"
        ) from error


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line of each row that is not blank, and its cells."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    line = 1
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if cells not in ([], [""]):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        reason = str(error).replace("unexpected end of data", "a quote is not closed")
        raise UsageError(
            f"{path}, line {line}: {reason}; fields are separated by commas, and quotes double "
            "inside of quotes"
        ) from error


def _check_names(place: str, names: list[str]) -> None:
    for number, name in enumerate(names, start=1):
        if not name:
            raise UsageError(
                f"{place}: column {number} has no name; name each column (pandas leaves out an "
                "unnamed index by to_csv(index=False))"
            )
        if name in names[number:]:
            raise UsageError(
                f"{place}: two columns are named {shortened(name)!r}; every column needs a name "
                "of its own"
            )
