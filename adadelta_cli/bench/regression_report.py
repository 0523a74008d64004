"""A comparison as a table, Markdown, JSON and CSV. Nothing is computed here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adadelta_cli.bench.regression import COLUMNS, SECONDS
from adadelta_cli.bench.significance import LEVEL, Verdict
from adadelta_cli.bench.units import duration
from adadelta_cli.files import jsonable, write_csv

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
HEADINGS = (
    "workload",
    "dtype",
    "threads",
    "cache",
    "implementation",
    "compared",
    "old",
    "new",
    f"time, new / old ({LEVEL:.0%} interval)",
    "verdict",
)
RANKS = {"compared": 2, "old": 1, "new": 1}  # a narrow terminal drops these, the highest first
SETTINGS = (1, 2, 3)  # columns that stand in the title where all rows agree
EXPLANATION = (
    "time, new / old: above 1 is slower. SLOWER: beyond {limit:.4g}, and significant by {test}, "
    "with Holm's correction at {chance:.0%} for the rows that have a ratio. FASTER: below "
    "{mirrored:.4g}, likewise. SAME: the interval lies between."
)


def comparison_cells(row: RegressionRow) -> tuple[str, ...]:
    """Write a row as a person reads it, a cell for each of `HEADINGS`, the verdict plain."""
    ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
    interval = "" if row.ratio_low is None else f" ({row.ratio_low:.3f}-{row.ratio_high:.3f})"
    return (
        row.workload,
        row.dtype,
        str(row.threads),
        row.cache,
        row.implementation,
        row.compared,
        _value(row.old, row.compared),
        _value(row.new, row.compared),
        ratio + interval,
        row.verdict.value,
    )


def _value(value: float | None, measure: str) -> str:
    if value is None:
        return ""
    if measure != SECONDS:
        return f"{value:.3f}"
    return duration(value, digits=4)


def comparison_table(comparison: Comparison) -> Table:
    """Lay out the verdicts for a terminal, a rule between workloads; all but the notes."""
    from rich.markup import escape
    from rich.text import Text

    from adadelta_cli.tables import FittingTable

    cells = [comparison_cells(row) for row in comparison.rows]
    shared = [k for k in SETTINGS if len({row[k] for row in cells}) == 1]
    shown = [k for k in range(len(HEADINGS)) if k not in shared]
    about = ", ".join(cells[0][k] + " threads" * (HEADINGS[k] == "threads") for k in shared)
    table = FittingTable(
        title=escape(f"adadelta compare: {_title(comparison)}\n{about}"),
        caption=_explanation(comparison),
    )
    for k in shown:
        table.add_column(HEADINGS[k], rank=RANKS.get(HEADINGS[k], 0))
    groups = [(row.workload, row.dtype, row.threads, row.cache) for row in comparison.rows]
    for number, row in enumerate(comparison.rows):
        *plain, verdict = (Text(cells[number][k]) for k in shown)
        verdict.stylize(COLOURS[row.verdict])
        last = groups[number : number + 2] != [groups[number]] * 2
        table.add_row(*plain, verdict, end_section=last)
    return table


def _title(comparison: Comparison) -> str:
    counts = {v: sum(row.verdict is v for row in comparison.rows) for v in Verdict}
    words = ", ".join(f"{count} {v.value}" for v, count in counts.items() if count)
    return f"{comparison.new} against {comparison.old}: {words}"


def _explanation(comparison: Comparison) -> str:
    limit = 1 + comparison.threshold
    return EXPLANATION.format(
        limit=limit, mirrored=1 / limit, test=comparison.test, chance=1 - LEVEL
    )


def comparison_remarks(comparison: Comparison) -> list[str]:
    """Write the note of each row, then what differs between the machines and settings."""
    together: dict[tuple[Verdict, str], list[RegressionRow]] = {}
    for row in comparison.rows:
        together.setdefault((row.verdict, row.note), []).append(row)
    notes = [
        f"{verdict.value} {_names(rows)}: {note}"
        for (verdict, note), rows in together.items()
        if note
    ]
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
    body = [
        (*comparison_cells(row)[:-1], f"**{row.verdict.value}**", row.note)
        for row in comparison.rows
    ]
    rule = ("---",) * (len(HEADINGS) + 1)
    table = [_line(cells) for cells in ((*HEADINGS, "note"), rule, *body)]
    listed = [f"- {line}" for line in _changes(comparison)]
    differs = ["", "What differs between machines and settings:", "", *listed] if listed else []
    head = [f"**adadelta compare**, {_title(comparison)}", ""]
    return "\n".join([*head, *table, "", _explanation(comparison), *differs])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


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
