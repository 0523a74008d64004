"""Options with one meaning everywhere."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adadelta_cli.cli.console import Terminal
from adadelta_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adadelta_cli.implementations.array_backends import Device


def _threads(_context: click.Context, _parameter: click.Parameter, count: int | None) -> int | None:
    """Limit the threads of every library, before any of them is imported."""
    from adadelta_cli.system import machine

    if count is not None:
        machine.limit_threads(count)
    return count


def folder_of(
    _context: click.Context, _parameter: click.Parameter, folder: Path | None
) -> Path | None:
    """Refuse an empty name, which means this folder to Python and a slip to its writer."""
    if folder == Path():
        raise UsageError("--out is empty or '.'; name a folder of its own")
    return possible(_context, _parameter, folder)


def possible(_context: click.Context, parameter: click.Parameter, path: Any) -> Any:
    """Refuse a path that the system cannot make."""
    from adadelta_cli import inputs

    if path is not None:
        inputs.check_possible(Path(path), parameter.opts[0])
    return path


SCREEN_OPTIONS = (
    click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="The summary as one JSON document on stdout, and nothing else there.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Less."),
    click.option("-v", "--verbose", is_flag=True, help="More."),
)


class _Positive(click.FloatRange):
    """A positive number, small enough for seconds that one can wait; no NaN, unlike Click's."""

    def __init__(self) -> None:
        super().__init__(min=0, max=1e6, min_open=True)

    def convert(self, value: Any, parameter: Any, context: Any) -> Any:
        """Refuse NaN, which passes the comparison with every bound."""
        number = super().convert(value, parameter, context)
        return self.fail("nan is no number", parameter, context) if number != number else number  # noqa: PLR0124


POSITIVE_FLOAT = _Positive()
MOST_THREADS = 1024


def decorated(options: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """Make one decorator of several options."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _device(_context: click.Context, _parameter: click.Parameter, text: str) -> Device:
    from adadelta_cli.implementations.array_backends import Device

    try:
        return Device.parse(text)
    except UsageError as error:
        raise UsageError(f"--{error}") from None


def shared_options(command: str) -> Callable[[Any], Any]:
    """Add the options of every command that computes; `command` names the default folder."""
    options = (
        click.option(
            "--ctx",
            "device",
            default="cpu",
            show_default=True,
            metavar="cpu|gpu|gpu:N",
            callback=_device,
            help="Device; gpu is the first, gpu:1 the second.",
        ),
        click.option(
            "--backend",
            default="auto",
            show_default=True,
            type=click.Choice(["auto", "mxnet", "numpy", "cupy"]),
            help="Array library; auto takes mxnet where it can serve the device.",
        ),
        click.option(
            "--seed",
            default=0,
            show_default=True,
            type=click.IntRange(0, 2**32 - 1),
            help="Everything random derives from it.",
        ),
        click.option(
            "--out",
            default=f"results/{command}",
            show_default=True,
            type=click.Path(path_type=Path, file_okay=False),
            callback=folder_of,
            help="Where the files go; made if missing.",
        ),
        *SCREEN_OPTIONS,
        _in_checked_environment,
    )
    return decorated(options)


def _in_checked_environment(command: Callable[..., Any]) -> Callable[..., Any]:
    """Check the environment before a command, after --threads has changed it."""

    @wraps(command)
    def checked(*arguments: Any, **options: Any) -> Any:
        from adadelta_cli.system import environment

        environment.prepare()
        environment.check()
        return command(*arguments, **options)

    return checked


threads_option = click.option(
    "--threads",
    type=click.IntRange(1, MOST_THREADS),
    callback=_threads,
    is_eager=True,
    expose_value=False,
    help="CPU threads of every implementation; default all available cores.",
)


def terminal(as_json: bool, quiet: bool, verbose: bool) -> Terminal:
    """Make the terminal that these flags ask for."""
    return Terminal(json=as_json, verbosity=verbose - quiet)
