"""`adadelta launch`."""

from __future__ import annotations

from threading import Lock

import click

from adadelta_cli.cli.options import POSITIVE_FLOAT, Command, Whole
from adadelta_cli.errors import UsageError

MOST_PROCESSES = 1000


class LaunchCommand(Command):
    """A command whose arguments after -- are another command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Set the command after -- aside; parse what comes before.

        Raises:
            UsageError: there is no --, or nothing after it.
        """
        at = args.index("--") if "--" in args else len(args)
        own, command = args[:at], args[at + 1 :]
        if at == len(args):  # the command, whose options are none of these, may be among them
            ctx.allow_extra_args = ctx.ignore_unknown_options = True
        super().parse_args(ctx, own)
        if not command and not ctx.resilient_parsing:
            missing = "nothing follows --" if at < len(args) else "-- is missing"
            raise UsageError(
                f"launch: {missing}; expected a command after it, such as: adadelta launch "
                "--workers 2 -- run mlp"
            )
        ctx.params["command"] = command
        return []


@click.command(cls=LaunchCommand, options_metavar="[OPTIONS] -- COMMAND...")
@click.option(
    "--workers",
    default=2,
    show_default=True,
    type=Whole(1, MOST_PROCESSES),
    help="Processes that train, each on its share of every batch.",
)
@click.option(
    "--servers",
    default=1,
    show_default=True,
    type=Whole(1, MOST_PROCESSES),
    help="Processes that add the gradients; large tensors are split among them.",
)
@click.option(
    "--wait",
    "wait_s",
    default=60.0,
    show_default=True,
    type=POSITIVE_FLOAT,
    metavar="SECONDS",
    help="How long the processes wait for each other at start and end.",
)
def launch(workers: int, servers: int, wait_s: float, command: list[str]) -> None:
    """Train with several processes of this machine.

    MXNet's parameter server connects them. COMMAND is `run` with its options, or a
    program of yours that uses MXNet's dist_sync. If one process fails, all end, with
    its exit code. Output has the process's name in front; the results of `run` have not.

    \b
    adadelta launch --workers 2 --servers 1 -- run mlp
    adadelta launch --workers 2 -- run mlp --update-on servers --no-fused
    adadelta launch --workers 4 -- python train.py
    """
    from adadelta_cli.distributed import launcher

    context = click.get_current_context()
    group = context.find_root().command
    commands = group.list_commands(context) if isinstance(group, click.Group) else []
    program = launcher.check_command(command, commands)
    results = "stdout" if launcher.is_run(program) else ""
    lock = Lock()

    def show(stream: str, name: str, line: str) -> None:
        with lock:
            click.echo(line if stream == results else f"{name}: {line}", err=stream == "stderr")

    code = launcher.launch(program, workers, servers, wait_s, show)
    context.exit(code)
