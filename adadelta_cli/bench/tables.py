"""Tables of bench and compare for a terminal; a row maps the headings to its cells."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table


def terminal_table(
    title: str,
    rows: Sequence[Mapping[str, str]],
    settings: Mapping[str, str],
    ranks: Mapping[str, int],
    styles: Mapping[str, str] | None = None,
    **options: Any,
) -> Table:
    """Lay out rows for a terminal, all but their notes, with a rule between workloads or settings.

    Args:
        title: ends with the settings that all rows have in common, which have no column then.
        rows: all with the same headings.
        settings: headings of columns, with the unit that follows a value in the title.
        ranks: of columns that a narrow terminal drops, the highest first.
        styles: of cells, by their text.
        options: as `FittingTable` takes them.
    """
    from rich.markup import escape
    from rich.text import Text

    from adadelta_cli.tables import FittingTable

    common = {name for name in settings if len({row[name] for row in rows}) == 1}
    about = ", ".join(rows[0][name] + settings[name] for name in settings if name in common)
    table = FittingTable(title=escape(title + about), **options)
    shown = [name for name in (rows[0] if rows else ()) if name not in {*common, "note"}]
    for name in shown:
        table.add_column(name, rank=ranks.get(name, 0))
    groups = [[row[name] for name in ("workload", *settings)] for row in rows]
    ends = [one != other for one, other in pairwise([*groups, []])]
    for row, end in zip(rows, ends, strict=True):
        cells = (Text(row[name], style=(styles or {}).get(row[name], "")) for name in shown)
        table.add_row(*cells, end_section=end)
    return table
