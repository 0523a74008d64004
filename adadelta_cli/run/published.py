"""Published results of bundled configs, and those of a sweep beside them.

A folder of bundled configs may have `published.json`: the tables of a paper by the names of its
configs, with the settings and the value of each cell.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from adadelta_cli.files import to_utf8, write_bytes, write_csv
from adadelta_cli.markdown import escaped, markdown_table
from adadelta_cli.run import config as configs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.table import Table

SOURCE = "published.json"
FILES = ("published.csv", "published.md")


@dataclass(frozen=True)
class PublishedTable:
    """A table of a publication.

    Attributes:
        title: what it shows.
        source: the publication.
        checked: whether the numbers were compared with its text.
        metric: a column of history.csv, of which the values are medians, at the end of runs.
        tolerance: a distance that counts as reproduced, in units of the metric.
        keys: the settings that vary, dotted.
        cells: the settings of each cell, in the order of the keys, and its value.
    """

    title: str
    source: str
    checked: bool
    metric: str
    tolerance: float
    keys: tuple[str, ...]
    cells: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class PublishedRow:
    """A cell of a published table, and the median of a sweep's runs; None where there is none."""

    settings: dict[str, Any]
    published: float
    median: float | None
    low: float | None
    high: float | None
    runs: int

    @property
    def difference(self) -> float | None:
        """The median less the published value."""
        return None if self.median is None else self.median - self.published

    def reproduces(self, tolerance: float) -> bool:
        """Return whether the difference is within a tolerance."""
        return self.difference is not None and abs(self.difference) <= tolerance


def table_of(reference: str) -> PublishedTable | None:
    """Return the published table of a bundled config; None if there is none."""
    path = configs.locate(reference)
    source = path.parent / SOURCE
    if configs.folder() not in path.parents or not source.is_file():
        return None
    document = json.loads(source.read_text())
    found = document["tables"].get(path.stem)
    if found is None:
        return None
    shared = {key: document[key] for key in ("source", "checked", "metric", "tolerance")}
    cells = tuple(map(tuple, found["cells"]))
    return PublishedTable(title=found["title"], keys=tuple(found["keys"]), cells=cells, **shared)


def beside(table: PublishedTable, summary: Sequence[Mapping[str, Any]]) -> list[PublishedRow]:
    """Put the results of a sweep beside those of a table.

    Args:
        table: the published one.
        summary: the rows of summary.csv: the keys, `runs`, and `METRIC_median`, `METRIC_low` and
            `METRIC_high`.
    """
    return [
        _row(table, dict(zip(table.keys, each, strict=False)), each[-1], summary)
        for each in table.cells
    ]


def _row(
    table: PublishedTable,
    settings: dict[str, Any],
    value: float,
    summary: Sequence[Mapping[str, Any]],
) -> PublishedRow:
    found = [row for row in summary if all(row.get(key) == settings[key] for key in settings)]
    row: Mapping[str, Any] = found[0] if found else {}
    numbers = [row.get(f"{table.metric}_{part}") for part in ("median", "low", "high")]
    median, low, high = (
        each if each is not None and math.isfinite(each) else None for each in numbers
    )
    return PublishedRow(settings, value, median, low, high, row.get("runs", 0))


def remark(table: PublishedTable, rows: Sequence[PublishedRow]) -> str:
    """Say how many cells were reproduced."""
    count = sum(row.reproduces(table.tolerance) for row in rows)
    unchecked = "" if table.checked else ", from memory: not compared with its text"
    return (
        f"{table.title}: {count} of {len(rows)} within {table.tolerance:g} of the published values "
        f"({table.source}{unchecked})"
    )


COLUMNS = ("published", "median", "interval", "runs", "difference", "reproduced")
RANKS = {"interval": 2, "runs": 1}  # a narrow terminal drops these, the highest first


def _cells(table: PublishedTable, row: PublishedRow) -> list[str]:
    settings = [
        f"{each:g}" if isinstance(each, float) else str(each) for each in row.settings.values()
    ]
    if row.median is None or row.difference is None:
        return [*settings, f"{row.published:.2f}", "none", "", str(row.runs), "", "no"]
    interval = "" if row.low is None or row.high is None else f"{row.low:.2f} to {row.high:.2f}"
    verdict = "yes" if row.reproduces(table.tolerance) else "no"
    numbers = (f"{row.published:.2f}", f"{row.median:.2f}", interval, str(row.runs))
    return [*settings, *numbers, f"{row.difference:+.2f}", verdict]


def terminal_table(table: PublishedTable, rows: Sequence[PublishedRow]) -> Table:
    """Lay out a table for a terminal."""
    from adadelta_cli.tables import FittingTable

    laid = FittingTable(title=table.title)
    for name in (*table.keys, *COLUMNS):
        justify: Literal["left", "right"] = "left" if name in table.keys else "right"
        laid.add_column(name.rpartition(".")[2], justify=justify, rank=RANKS.get(name, 0))
    for row in rows:
        laid.add_row(*_cells(table, row))
    return laid


def markdown(table: PublishedTable, rows: Sequence[PublishedRow]) -> str:
    """Write a table as Markdown, with the remark below."""
    names = [*table.keys, *COLUMNS]
    cells = [dict(zip(names, _cells(table, row), strict=True)) for row in rows]
    return f"{markdown_table(cells)}\n\n{escaped(remark(table, rows))}.\n"


def write(folder: Path, table: PublishedTable, rows: Sequence[PublishedRow]) -> None:
    """Write published.csv and published.md."""
    records = [
        {
            **row.settings,
            "published": row.published,
            "median": row.median,
            "low": row.low,
            "high": row.high,
            "runs": row.runs,
            "difference": row.difference,
            "reproduced": row.reproduces(table.tolerance),
        }
        for row in rows
    ]
    write_csv(folder / FILES[0], records)
    write_bytes(folder / FILES[1], to_utf8(markdown(table, rows)))
