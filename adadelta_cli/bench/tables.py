"""Tables of text cells, for a terminal and as Markdown."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table


def terminal_table(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    settings: Mapping[str, str],
    styles: Mapping[str, str] | None = None,
    **options: Any,
) -> Table:
    """Lay out rows for a terminal, with a rule where the first cell or a setting changes.

    Args:
        title: ends with the settings that all rows have in common, which have no column then.
        headings: of the columns; a row may have more cells, which are left out.
        rows: their cells.
        settings: headings of columns, with the unit that follows a value in the title.
        styles: of cells, by their text.
        options: as `rich.table.Table` takes them.
    """
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    cells = [dict(zip(headings, row, strict=False)) for row in rows]
    common = {name for name in settings if len({row[name] for row in cells}) == 1}
    about = ", ".join(cells[0][name] + settings[name] for name in settings if name in common)
    table = Table(box=SIMPLE_HEAD, title=escape(title + about), title_justify="left", **options)
    shown = [name for name in headings if name not in common]
    for name in shown:
        table.add_column(name, no_wrap=True)
    groups = [(row[headings[0]], *(row[name] for name in settings)) for row in cells]
    for row, group, following in zip_longest(cells, groups, groups[1:]):
        texts = (Text(row[name], style=(styles or {}).get(row[name], "")) for name in shown)
        table.add_row(*texts, end_section=group != following)
    return table


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows as Markdown, to paste into a pull request."""
    lines = [headings, ("---",) * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
