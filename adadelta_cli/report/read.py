"""Find and read the files of the other commands; each that cannot be read becomes a note."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from adadelta_cli import inputs
from adadelta_cli.bench.regression import RegressionRow
from adadelta_cli.bench.results import BenchRow
from adadelta_cli.errors import UsageError, in_one_line, shortened
from adadelta_cli.report.found import (
    Found,
    FoundBench,
    FoundComparison,
    FoundRun,
    FoundSweep,
    FoundVerification,
    RunSummary,
    SweepDocument,
    finite,
)
from adadelta_cli.run import yaml12
from adadelta_cli.system.progress import Tick, no_tick
from adadelta_cli.verification import results
from adadelta_cli.verification.rows import ComparisonRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

LARGEST_BYTES = 256 * 2**20  # of a file; a bench.json with 200 rows has some megabytes
RUNS = "runs"  # of a sweep: the folder of its runs
SOURCES = "adadelta run, sweep, verify, bench or compare"


class Unreadable(Exception):  # noqa: N818 - a note for the reader, no error of the program
    """A file is damaged, or is not what its name says."""


def read_folders(folders: Sequence[Path], tick: Tick = no_tick) -> Found:
    """Read all results in these folders and below; a file is read by itself.

    Args:
        folders: where to look.
        tick: gets the files that were read, and how many there are.

    Raises:
        UsageError: a folder cannot be read, or there is no result in any of them.
    """
    found = Found()
    seen: set[Path] = set()
    paths = list(_files(folders))
    for done, path in enumerate(paths):
        tick(done, len(paths), "files")
        if path.resolve() in seen or _is_replaced(path):
            continue
        seen.add(path.resolve())
        try:
            READERS[path.name](path, found)
        except (Unreadable, UsageError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            found.notes.append(f"{shortened(path)} is left out: {reason}")
    if found.is_empty:
        raise UsageError("; ".join([f"no results in {_listed(folders)}", *found.notes, _remedy()]))
    return found


def _listed(folders: Iterable[Path]) -> str:
    return ", ".join(shortened(each) for each in folders)


def _remedy() -> str:
    return f"name the folder of files that {SOURCES} --out wrote, or run one of them first"


def _files(folders: Iterable[Path]) -> Iterator[Path]:
    """Yield the files with a known name, in a fixed order.

    Links to folders are not entered, nor the runs of a sweep, unless their folder is named.

    Raises:
        UsageError: a folder is missing or cannot be listed, or a file has another name.
    """
    for folder in folders:
        if folder.is_dir():
            for place, names, files in os.walk(folder, onerror=_refuse):
                names[:] = sorted(name for name in names if not _is_of_sweep(name, files))
                yield from (Path(place, name) for name in sorted(files) if name in READERS)
        elif folder.name in READERS and folder.exists():
            yield folder
        else:
            known = ", ".join(READERS)
            what = f"is none of {known}" if folder.exists() else "does not exist"
            raise UsageError(f"{shortened(folder)} {what}; {_remedy()}")


def _is_of_sweep(name: str, beside: Sequence[str]) -> bool:
    """Tell whether a folder has the runs of a sweep, which is shown as a whole."""
    return name == RUNS and "sweep.json" in beside


def _refuse(error: OSError) -> None:
    where = shortened(error.filename)
    raise UsageError(f"{where} cannot be read ({error.strerror}); {_remedy()}") from error


# CSV files of which a JSON file beside them has more.
REPLACED = {"verify.csv": "verify.json", "bench.csv": "bench.json"}


def _is_replaced(path: Path) -> bool:
    return path.name in REPLACED and path.with_name(REPLACED[path.name]).exists()


def _text(path: Path) -> str:
    reason = inputs.unreadable_reason(path)
    if reason:
        raise Unreadable(reason)
    if path.stat().st_size > LARGEST_BYTES:
        raise Unreadable(f"it is larger than {LARGEST_BYTES / 2**20:.0f} MiB")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable(f"it is not UTF-8 ({error.reason} at byte {error.start})") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"it is not JSON ({in_one_line(error)})") from error
    if not isinstance(content, dict):
        raise Unreadable("it is not a JSON object")
    return content


def _csv(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a CSV file; cells beyond its header are left out."""
    try:
        rows = list(csv.DictReader(io.StringIO(_text(path), newline="")))
    except csv.Error as error:
        raise Unreadable(f"it is not CSV ({error})") from error
    return [{name: cell for name, cell in row.items() if name and cell is not None} for row in rows]


def _table(path: Path, kind: Any) -> list[dict[str, Any]]:
    """Return the rows of a CSV file; an empty cell is None where the field takes that."""
    empty = {each.name: None for each in fields(kind) if "None" in str(each.type)}
    return [
        {name: cell or None for name, cell in row.items() if cell or name in empty}
        for row in _csv(path)
    ]


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _valid(kind: Any, value: Any) -> Any:
    """Check a value against a model or dataclass; what it has no field for is ignored."""
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "as a whole"
        raise Unreadable(f"{shortened(where)}: {shortened(first['msg'])}") from error


def _rows(kind: Any, rows: Any, path: Path, found: Found) -> list[tuple[int, Any]]:
    """Return the valid rows with their numbers; the others are counted in a note."""
    if not isinstance(rows, list):
        raise Unreadable("it has no list of rows")
    valid, wrong = [], ""
    for number, row in enumerate(rows):
        try:
            valid.append((number, _valid(kind, row)))
        except Unreadable as error:  # noqa: PERF203
            wrong = wrong or f"row {number + 1}, {error}"
    if not valid:
        raise Unreadable(f"it has no valid row{': ' * bool(wrong)}{wrong}")
    if wrong:
        left_out = f"{len(rows) - len(valid)} of {len(rows)} rows are left out"
        found.notes.append(f"{shortened(path)}: {left_out}: {wrong}")
    return valid


def _run(path: Path, found: Found) -> None:
    folder = path.parent
    summary = _valid(RunSummary, _json(path))
    history = _beside(folder / "history.csv", found, _history) or {}
    settings, command = _beside(folder / "config.yaml", found, _settings) or ({}, "")
    facts = ("backend", "ctx", "dtype", "fused", "seed")
    how = {"problem.name": summary.problem, "optimizer.name": summary.optimizer}
    how |= {name: str(getattr(summary, name)).lower() for name in facts}
    found.runs.append(FoundRun(str(folder), summary, history, how | settings, command))


def _beside(path: Path, found: Found, read: Callable[[Path], Any]) -> Any:
    """Read another file of a run; None, and a note, where that fails."""
    try:
        return read(path)
    except (Unreadable, UsageError, OSError) as error:
        found.notes.append(f"{shortened(path)} is left out: {error}")
        return None


def _history(path: Path) -> dict[str, list[float | None]]:
    rows = _csv(path)
    if not rows or "step" not in rows[0]:
        raise Unreadable("it has no column step, or no row")
    names = [name for name in rows[0] | rows[-1] if isinstance(name, str)]
    return {name: [finite(row.get(name)) for row in rows] for name in names}


def _settings(path: Path) -> tuple[dict[str, str], str]:
    """Return the settings by dotted key, and the command in the first line."""
    text = _text(path)
    command = re.match(r"# (adadelta run [^\n]*)", text)
    content, _ = yaml12.parse(text, lambda line: f"line {line}")
    flat = dict(_flat(content)) if isinstance(content, dict) else {}
    return flat, command[1].strip() if command else ""


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        if prefix or name != "sweep":  # what else was run is no setting of this run
            if isinstance(value, dict):
                yield from _flat(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", "none" if value is None else str(value)


def _verification(path: Path, found: Found) -> None:
    content = _json(path) if path.suffix == ".json" else {"rows": _table(path, ComparisonRow)}
    listed: Any = content.get("rows")
    unfinished = _unfinished(content)
    nothing = unfinished and listed == []
    valid = [] if nothing else _rows(ComparisonRow, listed, path, found)
    rows = [row for _, row in valid]
    commands = [_command(listed[number], row) for number, row in valid]
    plan, machine = (_dict(content.get(name)) for name in ("plan", "machine"))
    found.verifications.append(
        FoundVerification(str(path.parent), rows, commands, plan, machine, unfinished)
    )


def _unfinished(content: dict[str, Any]) -> str:
    """Say how many of the planned checks ran, where some did not; older versions counted none."""
    if content.get("complete", True) is True:
        return ""
    checks = _dict(content.get("checks"))
    ran, planned = (finite(checks.get(name)) for name in ("ran", "planned"))
    if ran is None or planned is None:
        return "not all planned checks ran"
    return results.unfinished(int(ran), int(planned))


def _command(cells: dict[str, Any], row: ComparisonRow) -> str:
    """Return the command that the file has; a CSV file has none."""
    written = cells.get("replay")
    return written if isinstance(written, str) else row.replay


def _bench(path: Path, found: Found) -> None:
    content = _json(path) if path.suffix == ".json" else {"rows": _table(path, BenchRow)}
    valid = _rows(BenchRow, content.get("rows"), path, found)
    place = str(path.parent)
    found.benches.append(
        FoundBench(
            place,
            [row for _, row in valid],
            _samples(content.get("samples_s"), [number for number, _ in valid]),
            [str(each) for each in _list(content.get("doubts"))],
            _dict(content.get("settings")),
            _dict(content.get("machine")),
            complete=content.get("complete", True) is True,
        )
    )
    for each in _list(content.get("comparisons")):
        rows = _rows(RegressionRow, _dict(each).get("rows"), path, found)
        found.comparisons.append(FoundComparison(place, [row for _, row in rows]))


def _samples(listed: Any, numbers: Sequence[int]) -> list[list[list[float]]]:
    """Return the samples of these rows; none where the file has no list for each row."""
    listed = _list(listed)
    if len(listed) <= max(numbers):
        return []
    return [
        [[value for each in _list(process) if (value := finite(each))] for process in _list(row)]
        for row in (listed[number] for number in numbers)
    ]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _comparison(path: Path, found: Found) -> None:
    rows = _rows(RegressionRow, _table(path, RegressionRow), path, found)
    found.comparisons.append(FoundComparison(str(path.parent), [row for _, row in rows]))


def _sweep(path: Path, found: Found) -> None:
    found.sweeps.append(FoundSweep(str(path.parent), _valid(SweepDocument, _json(path))))


READERS: dict[str, Callable[[Path, Found], None]] = {
    "summary.json": _run,
    "sweep.json": _sweep,
    "verify.json": _verification,
    "verify.csv": _verification,
    "bench.json": _bench,
    "bench.csv": _bench,
    "compare.csv": _comparison,
}
