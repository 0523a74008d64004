"""`adadelta convert`."""

from __future__ import annotations

from pathlib import Path

import click

from adadelta_cli.cli.options import (
    SCREEN_OPTIONS,
    Choice,
    Command,
    decorated,
    in_checked_environment,
    possible,
    terminal,
)
from adadelta_cli.errors import UsageError, shortened

FORMATS = ["mxnet", "npz", "torch"]


def _order(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> list[int | None]:
    """Read the numbers, with - for a parameter without states."""
    if text is None:
        return []
    parts = [each.strip() for each in text.split(",")]
    if not all(each == "-" or (each.isdecimal() and each.isascii()) for each in parts):
        raise UsageError(
            f"--order is {shortened(repr(text))}; expected numbers with commas, and - for a "
            "parameter without states: 0,1,-,2"
        )
    return [None if each == "-" else int(each[:18]) for each in parts]


@click.command(cls=Command)
@click.argument("states", type=click.Path(path_type=Path), callback=possible, metavar="STATES")
@click.option("--from", "origin", required=True, type=Choice(FORMATS), help="Format of STATES.")
@click.option("--to", required=True, type=Choice(FORMATS), help="Format of the new file.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    callback=possible,
    metavar="FILE",
    help="The new file; default: STATES with another suffix (.pt, .states, .npz).",
)
@click.option(
    "--order",
    callback=_order,
    metavar="LIST",
    help="For each parameter of the new file, its number in STATES; - for one without states.",
)
@click.option("--force", is_flag=True, help="Replace the new file if it exists.")
@decorated(SCREEN_OPTIONS)
@in_checked_environment
def convert(
    states: Path,
    origin: str,
    to: str,
    out: Path | None,
    order: list[int | None],
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Move optimizer states between MXNet, PyTorch and NumPy.

    STATES is a file of Trainer.save_states (mxnet), of torch.save with the state_dict of an
    Adadelta (torch), or arrays, such as checkpoint.npz of a run (npz). Both files then take ten
    steps, each in its own framework. The new file is written only if no bit differs.

    \b
    adadelta convert trainer.states --from mxnet --to torch
    adadelta convert trainer.pt --from torch --to mxnet --out new.states
    adadelta convert trainer.states --from mxnet --to torch --order 0,1,-,2
    """
    from adadelta_cli.conversion import convert as work

    if origin == to:
        raise UsageError(f"--from and --to are both {to}; name two formats")
    target = out or work.default_out(states, to)
    screen = terminal(as_json, quiet, verbose)
    with screen.progress("convert") as tick:
        result = work.convert(states, target, origin, to, order=order, force=force, tick=tick)
    if not quiet:
        screen.table(work.table(result))
    for line in result.remarks:
        screen.note(line)
    screen.document(work.document(result))
    screen.text(work.verdict(result))
    click.get_current_context().exit(result.exit_code)
