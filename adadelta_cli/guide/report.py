"""The lists and explanations as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from adadelta_cli.tables import FittingTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from adadelta_cli.guide.keys import KeyHelp
    from adadelta_cli.guide.listing import Entry


def list_table(what: str, entries: Sequence[Entry]) -> Table:
    """Return a table of names."""
    table = FittingTable()
    table.add_column(what)
    table.add_column("", wrap=True)
    for entry in entries:
        table.add_row(escape(entry.name), escape(entry.about))
    return table


def keys_table(keys: Sequence[KeyHelp]) -> Table:
    """Return a table of keys of a config; the column `of` only where some keys need it."""
    table = FittingTable()
    has_names = any(each.name for each in keys)
    for header in ("key", *(["of"] if has_names else ()), "default"):
        table.add_column(header)
    table.add_column("allowed", wrap=True)
    table.add_column("meaning", wrap=True)
    for each in keys:
        cells = [each.key, *([each.name] if has_names else ()), each.default or "required"]
        table.add_row(*map(escape, (*cells, each.allowed, each.meaning)))
    return table
