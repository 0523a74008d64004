"""`adadelta doctor`."""

from __future__ import annotations

import click

from adadelta_cli.cli.options import SCREEN_OPTIONS, Command, decorated, terminal
from adadelta_cli.errors import UnavailableError


@click.command(cls=Command)
@decorated(SCREEN_OPTIONS)
def doctor(as_json: bool, quiet: bool, verbose: bool) -> None:
    """Check the installation and what would disturb a measurement.

    Kernels and libraries run in separate processes, so a crash is only reported. Each finding says
    why it matters and how to fix it. No files are written. Exit code 3 if run, verify or bench
    cannot work here; optional libraries may be missing.

    \b
    adadelta doctor
    adadelta doctor --json > machine.json
    """
    from adadelta_cli.doctor import checks, report

    screen = terminal(as_json, quiet, verbose)
    with screen.progress("doctor") as tick:
        found = checks.run_checks(tick)
    for table in report.doctor_tables(found, screen.verbosity):
        screen.table(table)
    screen.document(report.doctor_document(found))
    if found.exit_code:
        raise UnavailableError(report.verdict(found))
    screen.text(report.verdict(found))
