"""Texts and tables as Markdown, to paste into a pull request."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from adadelta_cli.errors import displayed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

# An underscore within a word begins no emphasis, so that most names stay readable.
SPECIAL = re.compile(r"[\\`*~\[|]|(?<![^\W_])_|_(?![^\W_])")
ENTITIES = {
    "&": "&amp;",
    "<": "&lt;",
    "$": "<span>$</span>",
}  # the last: else GitHub sets a formula


def escaped(text: str) -> str:
    r"""Write a text in one line so that Markdown, also in a table, shows it as it is.

    >>> escaped("a|b <script> _x_ rosenbrock_rho=0.9")
    'a\\|b &lt;script> \\_x\\_ rosenbrock_rho=0.9'
    """
    return re.sub(
        "[&<$]", lambda found: ENTITIES[found[0]], SPECIAL.sub(r"\\\g<0>", displayed(text))
    )


def code(text: str) -> str:
    """Write a text in one line as code; its fence is longer than any run of backticks in it.

    >>> code("adadelta verify")
    '`adadelta verify`'
    """
    text = displayed(text)
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " * (len(fence) > 1)
    return f"{fence}{space}{text}{space}{fence}"


def markdown_table(rows: Sequence[Mapping[str, str]], strong: Collection[str] = ()) -> str:
    """Lay out rows, each its cells by heading, as a table; columns in `strong` are bold."""
    headings = list(rows[0] if rows else ())
    lines = [
        [escaped(name) for name in headings],
        ["---"] * len(headings),
        *([_cell(cell, strong=name in strong) for name, cell in row.items()] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str, *, strong: bool) -> str:
    return f"**{escaped(text)}**" if strong and text else escaped(text)
