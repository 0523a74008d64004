"""The terminal: tables to stdout, progress and warnings to stderr, quiet in CI."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adadelta_cli.errors import displayed
from adadelta_cli.system.progress import Tick, no_tick

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

LEAST_WIDTH = 20  # characters of a line; a narrower terminal wraps by itself
ESTIMATED_FROM = 0.05  # share of the work that is done before the rest is estimated
PLAIN_LINE_EVERY_S = 10.0  # progress where stderr is no terminal: a line in a CI log


@dataclass(frozen=True)
class Terminal:
    """What a command prints, given how much of it is wanted.

    Attributes:
        json: stdout carries one JSON document, and nothing else.
        verbosity: -1 for `-q` (results only), 1 for `-v`.
    """

    json: bool = False
    verbosity: int = 0

    def __post_init__(self) -> None:
        """Let stdout write what its encoding lacks as an escape, as stderr does."""
        reconfigure = getattr(sys.stdout, "reconfigure", None)  # a test's stdout may have none
        if reconfigure:
            reconfigure(errors="backslashreplace")

    def table(self, table: Table) -> None:
        """Print a table to stdout, wide enough that nothing is cut where it is no terminal."""
        if not self.json:
            from rich.console import Console

            from adadelta_cli.tables import natural_width

            console = Console(width=_columns(), highlight=False, emoji=False)
            if not (_columns() or sys.stdout.isatty()):  # such as a file: all columns
                console.width = max(200, natural_width(console, table))
            console.print(table)

    def text(self, line: str) -> None:
        """Print a line of results to stdout."""
        if not self.json:
            print(displayed(line, keep="\n"))  # noqa: T201 - this is the terminal

    def document(self, summary: Any) -> None:
        """Print the JSON document, where one was asked for."""
        if self.json:
            print(json.dumps(summary, indent=1, allow_nan=False))  # noqa: T201

    def note(self, line: str, *, level: int = 0) -> None:
        """Print a remark, one line, to stderr; `level` 1 only with `-v`."""
        if self.verbosity >= level:
            print(displayed(line), file=sys.stderr)  # noqa: T201

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[Tick]:
        """Show progress on stderr: a bar on a terminal, else a plain line now and then.

        With `-v`, say at the end how long it took.
        """
        began = time.perf_counter()
        with self._progress(title) as tick:
            yield tick
        self.note(f"{title}: {time.perf_counter() - began:.1f} s", level=1)

    @contextlib.contextmanager
    def _progress(self, title: str) -> Iterator[Tick]:
        if self.verbosity < 0:
            yield no_tick
        elif sys.stderr.isatty():
            with _bar(title) as tick:
                yield tick
        else:
            yield _plain_lines(title)


def _columns() -> int | None:
    """Return the width that the environment asks for, in characters; None if it does not."""
    text = os.environ.get("COLUMNS", "")
    return max(int(text), LEAST_WIDTH) if text.isdecimal() and 0 < int(text[:5]) < 10_000 else None


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Tick]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    what = TextColumn("{task.fields[what]}")
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left", justify="right"),
        TimeRemainingColumn(),
        what,
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None, what="")
        yield lambda done, total, what: progress.update(
            task, completed=done, total=total, what=what
        )


def _plain_lines(title: str) -> Tick:
    began = last = time.monotonic()

    def tick(done: int, total: int, what: str) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_LINE_EVERY_S:
            last = time.monotonic()
            about = ""
            if done and done >= ESTIMATED_FROM * total:  # the first ones import and compile
                about = f", about {(last - began) * (total - done) / done:.0f} s left"
            line = displayed(f"{title}: {done}/{total} {what}{about}")
            print(line, file=sys.stderr, flush=True)  # noqa: T201

    return tick
