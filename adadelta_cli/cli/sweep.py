"""`adadelta sweep`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from adadelta_cli.cli.options import (
    MOST_THREADS,
    POSITIVE_FLOAT,
    Command,
    Whole,
    data_option,
    dtype_option,
    set_option,
    shared_options,
    terminal,
)
from adadelta_cli.cli.report import FILE, report_option, write_report

if TYPE_CHECKING:
    from pathlib import Path

    from adadelta_cli.cli.console import Terminal
    from adadelta_cli.implementations.array_backends import Device
    from adadelta_cli.sweep.report import Report

MOST_WORKERS = 1024


@click.command(cls=Command)
@click.argument("config", metavar="CONFIG")
@click.option(
    "--grid",
    multiple=True,
    metavar="KEY=V1,V2",
    help="Vary a key over values, or over a range with --sample: log:LOW:HIGH, lin:LOW:HIGH, "
    "int:LOW:HIGH; repeatable: all combinations run.",
)
@click.option(
    "--sample",
    type=Whole(1, 10**9),
    metavar="N",
    help="Draw N settings from the lists and ranges of --grid, instead of all combinations.",
)
@click.option(
    "--seeds",
    type=Whole(1, 10**9),
    metavar="N",
    help="Run each setting with N seeds, from --seed on; default 1.",
)
@click.option(
    "--metric",
    metavar="NAME",
    help="Choose the best setting by this metric of history.csv; default loss.",
)
@click.option(
    "--workers",
    type=Whole(1, MOST_WORKERS),
    metavar="N",
    help="Worker processes on this machine; default: one for each core (on a GPU, 1).",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Run on the workers of a Dask scheduler, such as tcp://127.0.0.1:8786.",
)
@click.option(
    "--threads",
    type=Whole(1, MOST_THREADS),
    help="CPU threads of each run; default: the cores shared among the workers (on a cluster, 1).",
)
@click.option(
    "--timeout",
    type=POSITIVE_FLOAT,
    metavar="S",
    help="Time limit of one run, in seconds; default: none.",
)
@click.option(
    "--max-runs",
    default=10_000,
    show_default=True,
    type=Whole(1, 10**7),
    metavar="N",
    help="Refuse a sweep of more runs.",
)
@click.option(
    "--resume", is_flag=True, help="Use the runs that OUT has already; this is the default."
)
@click.option("--force", is_flag=True, help="Run everything again.")
@click.option(
    "--fused/--no-fused",
    default=True,
    show_default=True,
    help="Use the fused step or the unfused one; results are bit-identical.",
)
@set_option
@dtype_option
@report_option
@data_option
@shared_options("sweep")
def sweep(
    config: str,
    device: Device,
    backend: str,
    out: Path,
    workers: int | None,
    scheduler: str | None,
    threads: int | None,
    timeout: float | None,
    resume: bool,  # noqa: ARG001 - the default
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    with_report: bool,
    max_runs: int,
    fused: bool,
    dtype: str,
    **request: Any,
) -> None:
    """Run one config many times: a grid of settings, several seeds.

    CONFIG is a YAML file, a bundled config, or a folder of configs. What varies is named by --grid
    and --seeds, or by a section sweep: of the config. Files, in OUT: sweep.csv, summary.csv,
    sweep.json, sweep.png, and runs/ with the files of each run. A run that is there is not run
    again.

    \b
    adadelta sweep mlp --grid optimizer.rho=0.9,0.95 --grid optimizer.epsilon=1e-6,1e-4 --seeds 3
    adadelta sweep mlp --grid optimizer.epsilon=log:1e-8:1e-2 --sample 20 --metric accuracy
    adadelta sweep sweep-rosenbrock --scheduler tcp://127.0.0.1:8786
    """
    from adadelta_cli import files
    from adadelta_cli.sweep import engines, runner
    from adadelta_cli.sweep.plan import Request, plans
    from adadelta_cli.sweep.report import FILES, Report

    screen = terminal(as_json, quiet, verbose)
    asked = Request(most_runs=max_runs, how={"fused": fused, "dtype": dtype}, **request)
    planned = plans(config, asked)
    folders = [out / plan.name if len(planned) > 1 else out for plan in planned]
    paths = [folder / name for folder in folders for name in FILES]
    for path in [*paths, *[out / FILE] * with_report]:
        files.check_writable(path)
    runs = sum(len(plan.settings) * len(plan.seeds) for plan in planned)
    computing = engines.choose(scheduler, workers, threads, device, runs)
    reports: list[Report] = []
    with computing as engine, ExitStack() as finished:
        files.check_pictures()
        if engine.remark:
            screen.note(engine.remark)
        sweeps = [
            runner.prepare(plan, folder, engine, backend, device)
            for plan, folder in zip(planned, folders, strict=True)
        ]
        for folder in folders:
            files.prepare_folder(folder / "runs")
        if with_report:
            finished.callback(write_report, screen, out)
        finished.callback(_show, screen, reports, len(planned))
        for each in sweeps:
            screen.note(each.described(engine), level=1)
            with screen.progress(f"sweep {each.plan.name}") as tick:
                try:
                    each.execute(engine, timeout, force=force, tick=tick)
                finally:
                    reports.append(Report(each))
                    reports[-1].write()
    click.get_current_context().exit(max(each.exit_code for each in reports))


def _show(screen: Terminal, reports: list[Report], planned: int) -> None:
    """Print what was found, also where the sweep was interrupted."""
    for each in reports:
        for table in each.tables():
            screen.table(table)
        for line in each.conclusion():
            screen.text(line)
        for line in each.remarks():
            screen.note(line)
    complete = len(reports) == planned and all(each.is_complete for each in reports)
    sweeps = [each.document() for each in reports]
    screen.document({"complete": complete, "sweeps": sweeps})
