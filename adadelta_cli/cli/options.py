"""Options with one meaning everywhere."""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from adadelta_cli.cli.console import Terminal
from adadelta_cli.errors import UsageError, nearest, shortened, suggestion

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adadelta_cli.implementations.array_backends import Device


def _threads(_context: click.Context, _parameter: click.Parameter, count: int | None) -> int | None:
    """Limit the threads of every library, before any of them is imported."""
    from adadelta_cli.system import machine

    if count is not None:
        machine.limit_threads(count)
    _context.meta["threads"] = count
    return count


def folder_of(
    _context: click.Context, _parameter: click.Parameter, folder: Path | None
) -> Path | None:
    """Refuse an empty name, which means this folder to Python and a slip to its writer."""
    if folder == Path():
        raise UsageError("--out is empty or '.'; name a folder of its own")
    if folder and os.path.exists(folder) and not os.path.isdir(folder):  # noqa: PTH110, PTH112 - take any path
        raise UsageError(f"--out is {shortened(folder)!r}, which is a file; name another folder")
    return possible(_context, _parameter, folder)


def possible(_context: click.Context, parameter: click.Parameter, path: Any) -> Any:
    """Refuse a path that the system cannot make."""
    from adadelta_cli import inputs

    if path is not None:
        inputs.check_possible(Path(path), parameter.opts[0])
    return path


class Command(click.Command):
    """A command that refuses empty values and options that contradict each other."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Check what was typed, then parse it as Click does.

        Raises:
            UsageError: a value is empty or has a NUL, or two options contradict each other.
        """
        try:
            if not ctx.resilient_parsing:
                given, _, order = self.make_parser(ctx).parse_args([*args])
                if not given.get("help"):
                    _check_values(given, self.get_params(ctx))
                    _check_contradictions(args, order, given)
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise self.unknown_option(ctx, _as_typed(error.option_name, args)) from None
        except click.UsageError as error:
            raise click.UsageError(_in_plain_words(error, ctx, args), ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; with `-v`, say first with what, and at the end how long it took."""
        if not ctx.params.get("verbose"):
            return super().invoke(ctx)
        began = time.perf_counter()
        screen = Terminal(verbosity=1)
        for line in details(ctx):
            screen.note(line)
        try:
            return super().invoke(ctx)
        finally:
            screen.note(f"{ctx.info_name}: {time.perf_counter() - began:.1f} s in all")

    def unknown_option(self, ctx: click.Context, option: str) -> click.UsageError:
        """Return the error of an unknown option, which suggests what it may stand for."""
        near = " or ".join(meant_by(option, self.params))
        meant = f" (did you mean {near}?)" if near else _having(option, ctx)
        return click.UsageError(f"no such option: {shortened(option)}{meant}", ctx)


def _having(option: str, ctx: click.Context) -> str:
    """Name the other commands that have an option; empty if there are none."""
    group = ctx.parent.command if ctx.parent else None
    names = group.having(option) if isinstance(group, Group) else []
    listed = " and ".join(f"adadelta {name}" for name in names)
    return f" ({listed} {'have' if len(names) > 1 else 'has'} it)" if names else ""


def _in_plain_words(error: click.UsageError, ctx: click.Context, args: Sequence[str]) -> str:
    """Say what Click says as problem, expected and fix; Click's own words where they are new."""
    usage = " ".join([ctx.command_path, *ctx.command.collect_usage_pieces(ctx)])
    if isinstance(error, click.MissingParameter) and error.param:
        return f"{_name(error.param)} is missing; expected {usage}"
    if isinstance(error, click.BadParameter) and error.param:
        return f"{_name(error.param)}: {error.message}"
    if isinstance(error, click.BadOptionUsage):
        name = error.option_name
        value = next((arg.removeprefix(name) for arg in args if arg.startswith(f"{name}=")), "")
        if value:
            return f"{name} takes no value; leave out {shortened(value)!r}"
        (option,) = (each for each in ctx.command.params if name in each.opts)
        return f"{name} has no value; give it one: {name} {option.make_metavar(ctx)}"
    extra = re.fullmatch(r"Got unexpected extra argument(s?) \((.*)\)", error.message, re.DOTALL)
    if extra:
        count = "are arguments" if extra[1] else "is one argument"
        return f"{shortened(extra[2])!r} {count} too many; expected {usage}"
    return error.message


def details(ctx: click.Context) -> list[str]:
    """Return the lines that `-v` begins with: versions, and each setting with its origin."""
    import platform

    from adadelta_cli.system import machine

    versions = {"Python": platform.python_version(), **machine.versions()}
    settings = {}
    for parameter in ctx.command.params:
        name = parameter.name or ""
        is_given = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        value = ctx.params.get(name)
        if name not in ctx.params:  # --threads, whose callback has set the environment
            value = os.environ.get(machine.THREAD_VARIABLES[0]) or machine.available_cores()
        if (
            name not in {"as_json", "quiet", "verbose"}
            and value not in (None, ())
            and value is not False
        ):
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            settings[_name(parameter)] = f"{text} ({'given' if is_given else 'default'})"
    return [
        f"versions: {', '.join(f'{name} {version}' for name, version in versions.items())}",
        f"settings: {', '.join(f'{name} {text}' for name, text in settings.items()) or 'none'}",
    ]


# What users call a command, or take for one.
COMMAND_ALIASES = {
    "help": "--help",
    "version": "--version",
    "train": "run",
    "grid": "sweep",
    "search": "sweep",
    "tune": "sweep",
    "test": "verify",
    "check": "verify",
    "validate": "verify",
    "self-test": "verify --self-test",
    "diff": "compare",
    "info": "doctor",
}


class Group(Command, click.Group):
    """The group of all commands."""

    def having(self, option: str) -> list[str]:
        """List the commands that have an option, which may have a value."""
        name, commands = option.partition("=")[0], self.commands.items()
        return [each for each, found in commands if any(name in p.opts for p in found.params)]

    def unknown_option(self, ctx: click.Context, option: str) -> click.UsageError:
        """Say so where it is an option of a command."""
        name = option.partition("=")[0]
        having = self.having(option)
        if having:
            return click.UsageError(
                f"{name} comes after the command: adadelta {having[0]} {name}", ctx
            )
        return super().unknown_option(ctx, option)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command.

        Raises:
            UsageError: its name is empty or unknown; the nearest names are suggested.
        """
        _check_value("COMMAND", args[0])
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            known = self.list_commands(ctx)
            alias = COMMAND_ALIASES.get(args[0].lower())
            near = f" (did you mean {alias}?)" if alias else suggestion(args[0], known)
            raise click.UsageError(
                f"no such command: {shortened(args[0])}{near}; known are {', '.join(known)}", ctx
            )
        return super().resolve_command(ctx, args)


EMPTY = "{name} is empty; give it a value, or leave it out (is a variable of your script not set?)"


def _check_values(given: dict[str, Any], parameters: Sequence[click.Parameter]) -> None:
    for parameter in parameters:
        value = given.get(parameter.name or "")
        for each in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(each, str):
                _check_value(_name(parameter), each)


def _check_value(name: str, value: str) -> None:
    """Refuse what no option takes: nothing, also between commas, and a NUL."""
    if not value.replace(",", "").strip():
        raise UsageError(EMPTY.format(name=name))
    if "\0" in value:
        raise UsageError(f"{name} is {shortened(repr(value))}, which has a NUL; leave it out")


def _name(parameter: click.Parameter) -> str:
    """Return the name of an option, or that of an argument as the help shows it."""
    if isinstance(parameter, click.Option):
        return max(parameter.opts, key=len)
    return parameter.human_readable_name.strip("[].")


SELF_TEST = "the self-test chooses implementations, cases and dtypes itself, on the CPU"
# Pairs of parameters, by their names in the code; with a reason where it is not plain. What depends
# on the values given is checked where they are used.
TOGETHER_NEVER = {
    ("quiet", "verbose"): "",
    ("resume", "force"): "",
    ("workers", "scheduler"): "a cluster has workers of its own",
    ("resume", "record_gradients"): "the recording needs every step; use --force instead",
    ("as_json", "layout"): "stdout is one JSON document, without a table",
    **dict.fromkeys(
        (
            ("check_gradient", name)
            for name in (
                "resume",
                "force",
                "record_gradients",
                "fused",
                "dtype",
                "out",
                "vary",
                "with_report",
                "logs",
            )
        ),
        "the check trains nothing, and computes in float64",
    ),
    ("case_names", "sizes"): "sizes replace the cases",
    **dict.fromkeys(
        (("self_test", name) for name in ("with_report", "layout")),
        "the self-test writes a page of its own, self-test.md",
    ),
    **dict.fromkeys(
        (("replay", name) for name in ("configs", "case_names", "sizes", "full")),
        "the recording is the only case",
    ),
    **dict.fromkeys(
        (
            ("self_test", name)
            for name in (
                *("configs", "names", "peers", "replay", "full", "case_names", "sizes", "steps"),
                *("dtypes", "timeout", "subnormals", "threads", "backend", "junit"),
            )
        ),
        SELF_TEST,
    ),
}


def _check_contradictions(
    args: Sequence[str], order: Sequence[click.Parameter], given: dict[str, Any]
) -> None:
    """Refuse what is given twice, with two values, or together with what it contradicts."""
    # An argument is in the order even if nothing was typed for it.
    typed = [
        each
        for each in order
        if isinstance(each, click.Option)
        or (isinstance(values := given.get(each.name or ""), (str, list, tuple)) and values)
    ]
    named = {each.name or "": _name(each) for each in typed}
    for pair, reason in TOGETHER_NEVER.items():
        if named.keys() >= {*pair}:
            _refuse(*(named[name] for name in pair), reason=reason)
    words = set(args[: args.index("--")] if "--" in args else args)
    for option in (each for each in dict.fromkeys(typed) if isinstance(each, click.Option)):
        sides = [side[0] for side in (option.opts, option.secondary_opts) if words & {*side}]
        if option.is_flag and len(sides) > 1:
            _refuse(*sides)
        if not (option.is_flag or option.multiple) and typed.count(option) > 1:
            raise UsageError(f"{_name(option)} is given twice; give it once")


def _refuse(*options: str, reason: str = "") -> None:
    why = f": {reason}" if reason else ""
    raise UsageError(f"{' and '.join(options)} contradict each other{why}; leave one of them out")


def _as_typed(option: str, args: Sequence[str]) -> str:
    """Return all of an unknown option: of `-set`, Click names `-s`."""
    if option.startswith("--"):
        return option
    return next((arg for arg in args if arg.startswith(option)), option)


def meant_by(option: str, parameters: Sequence[click.Parameter]) -> list[str]:
    """Return the options that are spelled like this one, or that it is another name of."""
    known = [o for p in parameters for o in (*p.opts, *p.secondary_opts) if o.startswith("--")]
    names = {each.lstrip("-"): each for each in known} | {"help": "--help"}
    near = [names[each] for each in nearest(option.lstrip("-"), names)]
    if near or len(option) > LONGEST_ALIAS:
        return near
    from adadelta_cli.run.config import meant_by_option

    meant = meant_by_option(option)
    here = [each for each in meant if each in known]
    return here or [f"--set {key}=..." for key in meant if "." in key and "--set" in known]


LONGEST_ALIAS = 40  # characters of an option that may be another name of something


class Choice(click.Choice[str]):
    """One of some words; the nearest is suggested for any other."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the word, or fail with the nearest."""
        if value not in self.choices:
            self.fail(
                f"{shortened(value)!r} is not one of {', '.join(self.choices)}"
                f"{suggestion(str(value), self.choices)}",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


def completes(what: str) -> Callable[..., list[CompletionItem]]:
    """Let a shell complete names of a list of `adadelta list`, `keys` of a config, or `logs`."""

    def complete(
        _context: click.Context, _parameter: click.Parameter, start: str
    ) -> list[CompletionItem]:
        from adadelta_cli.guide import keys, listing

        if what == "keys":
            return [CompletionItem(key) for key in keys.near_keys(start)]
        if what == "logs":
            from adadelta_cli.run.logs.targets import KINDS

            return [CompletionItem(f"{kind}:") for kind in KINDS if kind.startswith(start)]
        return [
            CompletionItem(each.name, help=each.about)
            for each in listing.LISTS[what]()
            if each.name.startswith(start)
        ]

    return complete


SCREEN_OPTIONS = (
    click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print only the summary on stdout, as one JSON document.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Print less."),
    click.option(
        "-v",
        "--verbose",
        is_flag=True,
        help="Print more: versions, settings, files and times; verify lists more failures, doctor "
        "more of the machine.",
    ),
)


class Whole(click.IntRange):
    """A whole number from a least to a greatest one."""

    def __init__(self, least: int, most: int) -> None:
        super().__init__(least, most)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the number.

        Raises:
            UsageError: it is none, or out of range.
        """
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            raise UsageError(
                f"{_name(param)} is {shortened(value)!r}; expected a whole number from {self.min} "
                f"to {self.max}"
            ) from None


class Real(click.FloatRange):
    """A number above 0, up to a greatest one, or below a bound; no NaN, unlike Click's."""

    def __init__(self, *, most: float | None = None, below: float | None = None) -> None:
        super().__init__(0, most or below, min_open=True, max_open=most is None)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the number.

        Raises:
            UsageError: it is none, or out of range.
        """
        with contextlib.suppress(click.BadParameter):
            number = super().convert(value, param, ctx)
            if not math.isnan(number):
                return number
        bound = "and below" if self.max_open else "up to"
        raise UsageError(
            f"{_name(param)} is {shortened(value)!r}; expected a number above 0 {bound} "
            f"{self.max:g}"
        )


POSITIVE_FLOAT = Real(most=1e6)  # seconds that one can wait
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
            type=Choice(["auto", "mxnet", "numpy", "cupy"]),
            help="Array library; auto: mxnet if it supports the device.",
        ),
        click.option(
            "--seed",
            default=0,
            show_default=True,
            type=Whole(0, 2**32 - 1),
            help="Seed of all random numbers.",
        ),
        click.option(
            "--out",
            default=f"results/{command}",
            show_default=True,
            type=click.Path(path_type=Path),
            callback=folder_of,
            help="Folder for the files; created if missing.",
        ),
        *SCREEN_OPTIONS,
        in_checked_environment,
    )
    return decorated(options)


def in_checked_environment(command: Callable[..., Any]) -> Callable[..., Any]:
    """Check the environment before a command, after --threads has changed it."""

    @wraps(command)
    def checked(*arguments: Any, **options: Any) -> Any:
        from adadelta_cli.system import environment

        environment.prepare()
        environment.check()
        _name_data_folder(options.pop("data", None))
        return command(*arguments, **options)

    return checked


def _name_data_folder(folder: Path | None) -> None:
    """Name the folder of `--data` to this process and to those that it starts."""
    if folder is not None:
        from adadelta_cli.inputs import DATA_FOLDER

        os.environ[DATA_FOLDER] = str(folder.resolve())


threads_option = click.option(
    "--threads",
    type=Whole(1, MOST_THREADS),
    callback=_threads,
    is_eager=True,
    expose_value=False,
    help="CPU threads of every implementation; default all available cores.",
)


data_option = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    callback=possible,
    metavar="DIR",
    help="Folder of the data sets mnist and fashion_mnist; default: $ADADELTA_DATA.",
)


set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a value of the configs, such as optimizer.rho=0.95; repeatable.",
)
dtype_option = click.option(
    "--dtype",
    default="float32",
    show_default=True,
    type=Choice(["float32", "float64", "float16"]),
    help="Element type; float16 keeps float32 master weights and states.",
)
format_option = click.option(
    "--format",
    "layout",
    type=Choice(["table", "markdown"]),
    default="table",
    show_default=True,
    help="Layout of the table.",
)


def terminal(as_json: bool, quiet: bool, verbose: bool) -> Terminal:
    """Make the terminal that these flags ask for."""
    return Terminal(json=as_json, verbosity=verbose - quiet)
