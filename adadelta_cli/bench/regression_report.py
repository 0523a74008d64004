"""A comparison as a table, Markdown, JSON and CSV. Nothing is computed here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adadelta_cli.bench.regression import COLUMNS, SECONDS
from adadelta_cli.bench.significance import LEVEL, Verdict
from adadelta_cli.bench.tables import terminal_table
from adadelta_cli.bench.units import duration
from adadelta_cli.errors import displayed
from adadelta_cli.files import jsonable, write_csv
from adadelta_cli.markdown import escaped, markdown_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.table import Table

    from adadelta_cli.bench.regression import Comparison, RegressionRow

COLOURS = {
    Verdict.FASTER: "green",
    Verdict.SLOWER: "bold red",
    Verdict.SAME: "green",
    Verdict.UNCLEAR: "yellow",
}
SETTINGS = {"dtype": "", "threads": " threads", "cache": ""}
RANKS = {"compared": 2, "old": 1, "new": 1}  # a narrow terminal drops these, the highest first
EXPLANATION = (
    "time, new / old: above 1 is slower. SLOWER: beyond {limit:.4g}, and significant by {test}, "
    "with Holm's correction at {chance:.0%} for the rows that have a ratio. FASTER: below "
    "{mirrored:.4g}, likewise. SAME: the interval lies between."
)


def comparison_cells(row: RegressionRow) -> dict[str, str]:
    """Write a row as a person reads it: its cells by heading."""
    ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
    interval = "" if row.ratio_low is None else f" ({row.ratio_low:.3f}-{row.ratio_high:.3f})"
    return {
        "workload": row.workload,
        "dtype": row.dtype,
        "threads": str(row.threads),
        "cache": row.cache,
        "implementation": displayed(row.implementation),
        "compared": row.compared,
        "old": _value(row.old, row.compared),
        "new": _value(row.new, row.compared),
        f"time, new / old ({LEVEL:.0%} interval)": ratio + interval,
        "verdict": row.verdict.value,
        "note": row.note,
    }


def _value(value: float | None, measure: str) -> str:
    if value is None:
        return ""
    return duration(value, digits=4) if measure == SECONDS else f"{value:.3f}"


def comparison_table(comparison: Comparison) -> Table:
    """Lay out the verdicts for a terminal, a rule between workloads; all but the notes."""
    return terminal_table(
        f"adadelta compare: {_title(comparison)}\n",
        list(map(comparison_cells, comparison.rows)),
        SETTINGS,
        RANKS,
        {verdict.value: colour for verdict, colour in COLOURS.items()},
        caption=_explanation(comparison),
    )


def _title(comparison: Comparison) -> str:
    counts = {v: sum(row.verdict is v for row in comparison.rows) for v in Verdict}
    words = ", ".join(f"{count} {v.value}" for v, count in counts.items() if count)
    return f"{comparison.new} against {comparison.old}: {words}"


def _explanation(comparison: Comparison) -> str:
    limit, chance = 1 + comparison.threshold, 1 - LEVEL
    return EXPLANATION.format(limit=limit, mirrored=1 / limit, test=comparison.test, chance=chance)


def comparison_remarks(comparison: Comparison) -> list[str]:
    """Write the note of each row, then what differs between the machines and settings."""
    together: dict[tuple[Verdict, str], list[RegressionRow]] = {}
    for row in comparison.rows:
        together.setdefault((row.verdict, row.note), []).append(row)
    noted = [(verdict, note, rows) for (verdict, note), rows in together.items() if note]
    notes = [f"{verdict.value} {_names(rows)}: {note}" for verdict, note, rows in noted]
    return notes + [f"Differs: {line}" for line in _changes(comparison)]


def _names(rows: Sequence[RegressionRow]) -> str:
    """Name a row, or count several."""
    if len(rows) > 1:
        return f"({len(rows)} rows)"
    (row,) = rows
    return " ".join((row.workload, row.dtype, row.implementation, f"{row.threads} threads"))


def _changes(comparison: Comparison) -> list[str]:
    return [
        f"{change.name} was {change.old}, is {change.new}"
        + (f": {change.consequence}" if change.consequence else "")
        for change in comparison.changes
    ]


def comparison_markdown(comparison: Comparison) -> str:
    """Lay out all of it as Markdown, to paste into a pull request."""
    table = markdown_table(list(map(comparison_cells, comparison.rows)), strong={"verdict"})
    listed = [f"- {escaped(line)}" for line in _changes(comparison)]
    differs = ["", "What differs between machines and settings:", "", *listed] if listed else []
    head = [f"**adadelta compare**, {escaped(_title(comparison))}", ""]
    return "\n".join([*head, table, "", escaped(_explanation(comparison)), *differs])


def comparison_document(comparison: Comparison) -> dict[str, Any]:
    """Arrange a comparison for `--json`."""
    return {"exit_code": int(comparison.exit_code), "level": LEVEL, **jsonable(comparison)}


FILES = ("compare.csv",)


def write_comparison(out: Path, comparison: Comparison) -> Path:
    """Write compare.csv.

    Raises:
        BrokenError: it cannot be written.
    """
    return write_csv(out / "compare.csv", [jsonable(row) for row in comparison.rows], COLUMNS)
