"""`adadelta run` and `adadelta schema`."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adadelta_cli.cli.console import Terminal
from adadelta_cli.cli.options import (
    POSITIVE_FLOAT,
    Choice,
    Command,
    completes,
    data_option,
    dtype_option,
    format_option,
    possible,
    set_option,
    shared_options,
    terminal,
    threads_option,
)
from adadelta_cli.cli.report import FILE, report_option, write_report
from adadelta_cli.errors import BrokenError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adadelta_cli.implementations.array_backends import Device, NumpyBackend
    from adadelta_cli.run.result import RunResult
    from adadelta_cli.run.training import Run


@click.command(cls=Command)
@click.argument("configs", nargs=-1, metavar="[CONFIG]...", shell_complete=completes("configs"))
@click.option(
    "--fused/--no-fused",
    default=None,
    help="Use AdaDelta's fused step (default) or the unfused one; results are bit-identical.",
)
@set_option
@click.option(
    "--vary",
    multiple=True,
    metavar="KEY=V1,V2",
    help="Run each config with each of these values, and compare them; repeatable: all "
    "combinations.",
)
@click.option("--resume", is_flag=True, help="Continue from the last checkpoint, if any.")
@click.option(
    "--force",
    is_flag=True,
    help="Start again, even if this deletes an unfinished run or one with other settings.",
)
@click.option(
    "--record-gradients",
    type=click.Path(path_type=Path),
    metavar="FILE",
    callback=possible,
    help="Write the gradient of each step to an npz file, for verify --replay.",
)
@click.option(
    "--log",
    "logs",
    multiple=True,
    metavar="KIND:WHERE",
    shell_complete=completes("logs"),
    help="Also log each row of history.csv to tensorboard:DIR or mlflow:URI; repeatable.",
)
@click.option(
    "--check-gradient",
    is_flag=True,
    help="Train nothing: compare the gradient with central differences of the loss.",
)
@dtype_option
@format_option
@report_option
@data_option
@click.option(
    "--kvstore",
    type=Choice(["dist_sync"]),
    help="Train with other processes, through MXNet's parameter server: docs/distributed.md.",
)
@click.option(
    "--update-on",
    type=Choice(["workers", "servers"]),
    help="With --kvstore, where the optimizer's step is taken; default workers.",
)
@click.option(
    "--wait",
    type=POSITIVE_FLOAT,
    metavar="SECONDS",
    help="With --kvstore, how long the processes wait for each other at start and end; default 60.",
)
@threads_option
@shared_options("run")
def run(
    configs: tuple[str, ...],
    overrides: tuple[str, ...],
    vary: tuple[str, ...],
    record_gradients: Path | None,
    logs: tuple[str, ...],
    check_gradient: bool,
    kvstore: str | None,
    update_on: str | None,
    wait: float | None,
    device: Device,
    backend: str,
    layout: str,
    out: Path,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    with_report: bool,
    **how: Any,
) -> None:
    """Train the problems; write history and plots.

    CONFIG is a YAML file, or a bundled one: rosenbrock, logistic_regression, mlp.
    Default: these three. The paper's are in a folder, such as zeiler2012/table2.
    Files, in OUT/<config name>/: history.csv, summary.json, config.yaml, loss.png,
    checkpoint.npz. Several runs also get OUT/comparison.png and comparison.csv.

    \b
    adadelta run mlp
    adadelta run rosenbrock --no-fused --set training.steps=20000 --set problem.dimension=10
    adadelta run my.yaml --backend numpy --dtype float64 --resume
    adadelta run mlp --vary optimizer.rho=0.9,0.95,0.99 --format markdown
    adadelta run my.yaml --check-gradient
    adadelta run mlp --log tensorboard:logs --log mlflow:sqlite:///mlflow.db
    adadelta run zeiler2012/table2 --data DIR
    adadelta run --ctx gpu
    adadelta run mlp --kvstore dist_sync   # in each process; see adadelta launch
    """
    from adadelta_cli.files import check_pictures
    from adadelta_cli.implementations.array_backends import backend as array_library
    from adadelta_cli.run import report, sharing, training
    from adadelta_cli.run.logs import targets

    screen = terminal(as_json, quiet, verbose)
    if check_gradient:
        library = array_library(backend, device)
        _check_gradient(screen, layout, configs, overrides, library, how["seed"])
    asked = sharing.Request(kvstore, update_on, wait, record_gradients is not None)
    asked.check(device, backend, dtype=how["dtype"], resume=how["resume"])
    if asked.serves:
        asked.serve()
        return
    logged = targets.read(logs)
    check_pictures()
    library = array_library(backend, device)
    with asked.join() as worker:
        first = worker is None or worker.rank == 0
        screen = screen if first else Terminal(verbosity=-1)
        how |= {"vary": vary, "record_gradients": record_gradients, "worker": worker}
        how["logs"] = logged if first else ()
        with worker.together() if worker else nullcontext():
            runs = training.runs(configs, overrides, out, library, **how)
            if first:
                names = [*report.COMPARISON] if len(runs) > 1 else []
                _prepare_folders(out, [*names, *[FILE] * with_report], record_gradients)
                targets.prepare(logged)
        with ExitStack() as finished:
            if first and with_report:
                finished.callback(write_report, screen, out)
            results = _execute(screen, runs, out, layout if first else None)
    click.get_current_context().exit(training.exit_code(results))


def _prepare_folders(out: Path, names: Sequence[str], record_gradients: Path | None) -> None:
    from adadelta_cli import files

    files.prepare_folder(out, names)
    if record_gradients:
        files.prepare_folder(record_gradients.parent, option="--record-gradients")


def _execute(
    screen: Terminal, runs: Sequence[Run], out: Path, layout: str | None
) -> list[RunResult]:
    """Execute the runs, and show the results in a layout; of several workers, only the first."""
    from adadelta_cli.run import report

    for each in runs:
        screen.note(each.described, level=1)
    with ExitStack() as finished:
        if layout:
            finished.callback(_show_runs, screen, runs, out, layout)
            finished.push(partial(_note_logs, screen, runs))
        for each in runs:
            with screen.progress(f"run {each.name}") as tick:
                each.execute(tick)
    results = [each.result for each in runs if each.result]
    for line in report.run_remarks(results, out) if layout else ():
        screen.note(line)
    _check_logs(runs, out)
    return results


def _note_logs(screen: Terminal, runs: Sequence[Run], error: type | None, *_: object) -> None:
    """Say where the runs are logged; after another error, also which log failed."""
    for each in runs:
        for option, place in each.logs.places.items():
            screen.note(f"{each.name} is logged: {option}, {place}")
        for line in each.logs.failed if error else ():
            screen.note(f"{each.name} is not logged: {line}")


def _check_logs(runs: Sequence[Run], out: Path) -> None:
    """Check that all runs were logged.

    Raises:
        BrokenError: one was not; its results are complete.
    """
    failed = [line for each in runs for line in each.logs.failed]
    if failed:
        raise BrokenError(
            *failed,
            f"The training is finished, and its files in {out} are complete. To log it again, "
            "provide what failed, and run the command with --force",
        )


def _check_gradient(
    screen: Terminal,
    layout: str,
    configs: Sequence[str],
    overrides: Sequence[str],
    library: NumpyBackend,
    seed: int,
) -> None:
    from adadelta_cli.files import jsonable
    from adadelta_cli.run import gradient_check, report

    rows = []
    for name, config in gradient_check.load(configs, overrides):
        with screen.progress(f"check {name}") as tick:
            rows += gradient_check.check(name, config, library, seed, tick)
    if layout == "markdown":
        screen.text(report.gradient_markdown(rows))
    else:
        screen.table(report.gradient_table(rows))
    screen.document({"results": jsonable(rows)})
    for line in report.gradient_remarks(rows):
        screen.note(line)
    click.get_current_context().exit(gradient_check.exit_code(rows))


def _show_runs(screen: Terminal, runs: Sequence[Run], out: Path, layout: str) -> None:
    from adadelta_cli.run import comparison, report
    from adadelta_cli.run.result import RunOutcome

    results = [each.result for each in runs if each.result]
    if results and layout == "markdown":
        screen.text(report.run_markdown(results))
    elif results:
        screen.table(report.run_table(results))
    ended = sum(result.outcome is not RunOutcome.INTERRUPTED for result in results)
    if ended < len(runs) > 1:
        screen.note(f"{ended} of {len(runs)} runs ended; the others are not complete")
    if results:
        summaries = [report.run_summary(result) for result in results]
        screen.document({"complete": ended == len(runs), "results": summaries})
    if len(results) > 1:
        comparison.write(out, results, [each.variant for each in runs if each.result])


@click.command(cls=Command)
def schema() -> None:
    """Print the JSON schema of a config, for editors.

    \b
    adadelta schema > schema.json
    """
    from adadelta_cli import files
    from adadelta_cli.run import config

    click.echo(files.json_text(config.schema()), nl=False)
