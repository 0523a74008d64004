"""`adadelta report`, and `--report` of the commands that write files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adadelta_cli.cli.options import SCREEN_OPTIONS, Command, decorated, folder_of, terminal
from adadelta_cli.errors import UsageError

if TYPE_CHECKING:
    from adadelta_cli.cli.console import Terminal

FILE = "report.html"

report_option = click.option(
    "--report",
    "with_report",
    is_flag=True,
    help="Also write report.html into OUT: one page of all results there.",
)


@click.command(cls=Command)
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path), metavar="[FOLDER]...")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    callback=folder_of,
    help="Folder for report.html, created if missing; default: the first FOLDER.",
)
@decorated(SCREEN_OPTIONS)
def report(
    folders: tuple[Path, ...], out: Path | None, as_json: bool, quiet: bool, verbose: bool
) -> None:
    """Make one HTML page of the results in folders.

    The page needs no other file and no network, so that it can be sent to others. It shows what
    run, sweep, verify, bench and compare wrote to FOLDER and below, of any age. Default: results.
    File, in OUT: report.html.

    \b
    adadelta report
    adadelta report results/bench /mnt/server/bench --out together
    """
    from adadelta_cli import files
    from adadelta_cli.report.findings import findings
    from adadelta_cli.report.page import write_page
    from adadelta_cli.report.read import read_folders

    screen = terminal(as_json, quiet, verbose)
    folders = folders or (Path("results"),)
    first = folders[0] if folders[0].is_dir() else folders[0].parent
    out = out or first
    with screen.progress("report") as tick:
        found = read_folders(folders, tick)
    files.prepare_folder(out, [FILE])
    path = write_page(out / FILE, found)
    for note in found.notes:
        screen.note(f"Warning: {note}")
    results = findings(found)
    for each in results if screen.verbosity >= 0 else ():
        screen.text(f"{each.level.word}: {each.command} ({each.place}): {each.sentence}")
    screen.text(f"Report: {path}")
    summary = {"report": str(path), "findings": results, "notes": found.notes}
    screen.document(files.jsonable(summary))


def write_report(screen: Terminal, out: Path) -> None:
    """Write the page of all results in the folder of a command, and note its path."""
    from adadelta_cli.report.page import write_page
    from adadelta_cli.report.read import read_folders

    try:
        with screen.progress("report") as tick:
            found = read_folders([out], tick)
    except UsageError as error:  # interrupted before there was a result
        screen.note(f"no report: {error}")
        return
    for note in found.notes:
        screen.note(f"Warning: {note}")
    screen.note(f"Report: {write_page(out / FILE, found)}")
