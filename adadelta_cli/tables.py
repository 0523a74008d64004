"""Tables for a terminal of any width, in which nothing is ever cut."""

from __future__ import annotations

import textwrap
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from adadelta_cli.errors import displayed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from rich.console import Console, ConsoleOptions, RenderableType

LEAST_TEXT = 24  # characters of a line of a column that wraps: fewer are hard to read


class FittingTable(Table):
    """A table that drops columns where the terminal is narrow, and then becomes a list.

    Where not all columns fit, those without any text are dropped first, then those that
    `add_column` was given a rank for, the highest first. A line below the table names them. Where
    the others do not fit either, each row is printed as lines of `heading: value` with all columns,
    folded at the terminal's width. Headings wrap at words; cells are on one line, except in a
    column with `wrap`.
    """

    def __init__(self, **how: Any) -> None:
        how.setdefault("box", SIMPLE_HEAD)
        super().__init__(**how)
        self._ranks: list[int] = []
        self._wraps: list[bool] = []

    def add_column(
        self,
        header: RenderableType = "",
        footer: RenderableType = "",
        *,
        rank: int = 0,
        wrap: bool = False,
        **how: Any,
    ) -> None:
        """Add a column; 0 as its rank means that it is never dropped."""
        super().add_column(header, footer, overflow="fold", no_wrap=not wrap, **how)
        self._ranks.append(rank)
        self._wraps.append(wrap)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Any]:
        if self.title:
            yield _marked(console, self.title, self.title_style or "table.title")
        ranks = self._ranks_by_content()
        everything = max(ranks, default=0) + 1
        order = sorted({everything, *filter(None, ranks)}, reverse=True)
        for lowest, fold in ((everything, False), *((rank, True) for rank in order)):
            shown = [k for k, rank in enumerate(ranks) if rank < lowest]
            table = self.part(console, shown, fold=fold)
            if _least_width(console, options, table) <= options.max_width:
                yield from Table.__rich_console__(table, console, options)
                break
        else:
            shown = list(range(len(self.columns)))
            yield from self._list(console)
        left_out = [str(c.header) for k, c in enumerate(self.columns) if k not in shown]
        if names := ", ".join(filter(None, left_out)):
            yield Text(f"not shown in {options.max_width} characters: {names}", style="dim")
        if self.caption:
            yield _marked(console, self.caption, "table.caption")

    def _ranks_by_content(self) -> list[int]:
        """Return the ranks; the highest for columns whose cells are all empty."""
        empty = max(self._ranks, default=0) + 1
        has_text = [any(map(str, column.cells)) for column in self.columns]
        known = zip(self._ranks, has_text, strict=True)
        return [rank if text or not self.row_count else empty for rank, text in known]

    def part(self, console: Console, shown: list[int], *, fold: bool) -> FittingTable:
        """Copy these columns, each at least as wide as what must not be broken.

        Args:
            console: where it is printed.
            shown: the columns, by number.
            fold: wrap headings that are wider than their column.
        """
        part = copy(self)
        part.title = part.caption = None
        part.columns = []
        for k in shown:
            cells: list[Any] = [_marked(console, cell) for cell in self.columns[k].cells]
            column = replace(self.columns[k], _cells=cells)
            part.columns.append(column)
            head = str(column.header)
            words = textwrap.wrap(head, 1, break_long_words=False) if fold else [head]
            lines = [line.cell_len for cell in cells for line in cell.split() or [cell]]
            least = max([*lines, *map(len, words)], default=1)
            if self._wraps[k]:
                least = min(least, LEAST_TEXT)
            column.header = "\n".join(textwrap.wrap(head, max(least, 1)))
            column.min_width = max(least, column.min_width or 0)
        return part

    def _list(self, console: Console) -> Iterable[Any]:
        above = Text()
        for number in range(self.row_count):
            for k, column in enumerate(self.columns):
                cell = _marked(console, list(column.cells)[number])
                if k == 0:
                    cell = above = cell if cell.plain else above
                is_name = k == 0 and column.justify == "left"
                head = f"{column.header}: " if column.header and not is_name else ""
                if cell.plain:
                    yield Text.assemble(f"{'  ' * (k > 0)}{head}", cell, overflow="fold")
            yield Text()


def fitting_table(
    title: str,
    headings: Sequence[str],
    groups: Iterable[Iterable[Mapping[str, str]]],
    *,
    right: Collection[str] = (),
    ranks: Mapping[str, int] | None = None,
    styles: Mapping[str, str] | None = None,
    **options: Any,
) -> FittingTable:
    """Lay out rows, each its cells by heading, with a rule between groups of them.

    Args:
        title: above the table; plain text, as all cells.
        headings: the columns.
        groups: the rows.
        right: columns whose cells end at the right.
        ranks: of columns that a narrow terminal drops, the highest first.
        styles: of cells, by their text.
        options: as `FittingTable` takes them.
    """
    table = FittingTable(title=escape(title), **options)
    for name in headings:
        justify: Literal["left", "right"] = "right" if name in right else "left"
        table.add_column(name, justify=justify, rank=(ranks or {}).get(name, 0))
    for group in groups:
        for row in group:
            table.add_row(*(Text(row[n], style=(styles or {}).get(row[n], "")) for n in headings))
        table.add_section()
    return table


def _least_width(console: Console, options: ConsoleOptions, table: Table) -> int:
    return Measurement.get(console, options.update(width=100_000), table).minimum


def _marked(console: Console, text: Any, style: Any = "") -> Text:
    """Read markup; escape what the terminal cannot show, before its width is measured."""
    text = text.copy() if isinstance(text, Text) else console.render_str(str(text), style=style)
    plain = displayed(text.plain, keep="\n", encoding=console.encoding)
    if plain != text.plain:
        text.plain = plain
    return text


def natural_width(console: Console, table: Table) -> int:
    """Return the width in characters that all columns need."""
    if isinstance(table, FittingTable):
        table = table.part(console, [*range(len(table.columns))], fold=False)
    return _least_width(console, console.options, table)
