"""The command line: parse, call, print; no logic. The contract is docs/cli.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adadelta_cli.console import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from importlib import metadata

        click.echo(f"adadelta {metadata.version('adadelta')}")
        context.exit()


@click.group(context_settings=CONTEXT)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version,
    help="Show the version and exit.",
)  # fmt: skip
def adadelta() -> None:
    r"""Run, verify and benchmark the AdaDelta optimizer.

    \b
    adadelta run mlp                 does it train?
    adadelta verify                  is every bit right?
    adadelta bench --sizes 1e6,1e7   how far from the speed of memory?
    """


# --- options with one meaning everywhere ----------------------------------------------------------


def _threads(_context: click.Context, _parameter: click.Parameter, count: int | None) -> int | None:
    """Limit the threads of every library, before any of them is imported."""
    from adadelta_cli import machine

    if count is not None:
        machine.limit_threads(count)
    return count


def shared_options(command: str) -> Callable[[Any], Any]:
    """Add the options that every command has; `command` names the default output folder."""
    options = (
        click.option(
            "--ctx", default="cpu", show_default=True, metavar="cpu|gpu|gpu:N", help="Device."
        ),
        click.option(
            "--backend", default="auto", show_default=True,
            type=click.Choice(["auto", "mxnet", "numpy", "cupy"]),
            help="Array library; auto takes mxnet where it can serve the device.",
        ),
        click.option(
            "--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1),
            help="Everything random derives from it.",
        ),
        click.option(
            "--out", default=f"results/{command}", show_default=True,
            type=click.Path(path_type=Path, file_okay=False),
            help="Where the files go; made if missing.",
        ),
        click.option(
            "--json", "as_json", is_flag=True,
            help="The summary as one JSON document on stdout, and nothing else there.",
        ),
        click.option("-q", "--quiet", is_flag=True, help="Less."),
        click.option("-v", "--verbose", is_flag=True, help="More."),
    )  # fmt: skip

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


threads_option = click.option(
    "--threads", type=click.IntRange(min=1), callback=_threads, is_eager=True,
    help="CPU threads of every implementation; default all available cores.",
)  # fmt: skip


def terminal(as_json: bool, quiet: bool, verbose: bool) -> Terminal:
    """Make the terminal that these flags ask for."""
    return Terminal(json=as_json, verbosity=verbose - quiet)


# --- the commands ---------------------------------------------------------------------------------


# --- run and schema


# --- verify


# --- bench
