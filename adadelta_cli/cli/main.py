"""The command line: parse, call, print; no logic. The contract is docs/cli.md."""

from __future__ import annotations

import click

from adadelta_cli.cli.bench import bench, compare
from adadelta_cli.cli.convert import convert
from adadelta_cli.cli.doctor import doctor
from adadelta_cli.cli.guide import COMMANDS
from adadelta_cli.cli.launch import launch
from adadelta_cli.cli.options import Group
from adadelta_cli.cli.report import report
from adadelta_cli.cli.run import run, schema
from adadelta_cli.cli.sweep import sweep
from adadelta_cli.cli.verify import verify

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _versions() -> str:
    """Describe libraries and machine."""
    from adadelta_cli.system.machine import Machine

    machine = Machine()
    facts = {
        "Python": machine.python,
        "system": machine.kernel,
        "processor": f"{machine.processor}, {machine.simd}",
        "cores": machine.cores_available,
        "GPUs": ", ".join(machine.gpus) or "none",
        **machine.versions,
        **machine.environment,
    }
    return "".join(f"{name}: {value}\n" for name, value in facts.items())


def _version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from importlib import metadata

        click.echo(f"adadelta {metadata.version('adadelta')}")
        click.echo(_versions() if context.params["with_libraries"] else "", nl=False)
        context.exit()


@click.group(cls=Group, context_settings=CONTEXT, invoke_without_command=True)
@click.option("--version", is_flag=True, callback=_version, help="Show the version and exit.")
@click.option(
    "-v",
    "--verbose",
    "with_libraries",
    is_flag=True,
    is_eager=True,  # the callback of --version reads it
    help="With --version: also the libraries and the machine.",
)
@click.pass_context
def adadelta(context: click.Context, /, *, with_libraries: bool, **_: bool) -> None:
    """Run, verify and benchmark the AdaDelta optimizer.

    \b
    adadelta run mlp                 does it train?
    adadelta sweep mlp --seeds 5     how much does the seed matter? or a setting?
    adadelta verify                  is every bit right?
    adadelta bench --sizes 1e6,1e7   how far from the speed of memory?
    adadelta compare OLD NEW         is it slower than it was?
    adadelta convert STATES          moves optimizer states from MXNet to PyTorch and back
    adadelta report                  one HTML page of all results, to send to others
    adadelta doctor                  what works here, and what would disturb a measurement?
    adadelta init                    a config to start from; more: explain KEY, list WHAT
    """
    name = context.invoked_subcommand
    if name is None:
        click.echo(context.get_help())
    elif with_libraries:
        raise click.UsageError(f"-v comes after the command: adadelta {name} -v", context)


COMMON = (run, sweep, launch, schema, verify, bench, compare, convert, report, doctor)
for command in (*COMMON, *COMMANDS):
    adadelta.add_command(command)
