"""`adadelta verify`."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adadelta_cli.cli.options import (
    POSITIVE_FLOAT,
    SELF_TEST,
    Choice,
    Command,
    Whole,
    completes,
    format_option,
    possible,
    shared_options,
    terminal,
    threads_option,
)
from adadelta_cli.cli.report import FILE, report_option, write_report
from adadelta_cli.errors import UsageError, shortened

if TYPE_CHECKING:
    from adadelta_cli.cli.console import Terminal
    from adadelta_cli.implementations.array_backends import Device
    from adadelta_cli.verification.plan import Request
    from adadelta_cli.verification.runner import Verification
    from adadelta_cli.verification.self_test import SelfTest


def _sizes(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> tuple[int, ...]:
    """Read a list of sizes, such as 1e6,4k."""
    from adadelta_cli.bench import workloads

    return tuple(workload.elements for workload in workloads.sizes(text)) if text else ()


@click.command(cls=Command)
@click.argument("configs", nargs=-1, metavar="[CONFIG]...", shell_complete=completes("configs"))
@click.option(
    "--impl",
    "names",
    multiple=True,
    metavar="NAME",
    shell_complete=completes("implementations"),
    help="Check this implementation, or FILE.py:FUNCTION, a kernel of your own; repeatable. "
    "Default: all built-in ones that are available.",
)
@click.option("--peers", is_flag=True, help="Check the other frameworks that are installed.")
@click.option(
    "--replay",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Only replay gradients that adadelta run --record-gradients FILE recorded.",
)
@click.option(
    "--full", is_flag=True, help="All cases, and complete trainings in each dtype: some minutes."
)
@click.option(
    "--case",
    "case_names",
    multiple=True,
    metavar="NAME",
    shell_complete=completes("cases"),
    help="Only this case, and no training; repeatable.",
)
@click.option(
    "--sizes",
    callback=_sizes,
    metavar="LIST",
    help="Test tensors of these lengths instead of the built-in cases, such as 1e6,4097.",
)
@click.option(
    "--steps",
    type=Whole(1, 100_000),
    metavar="N",
    help="Number of steps of each case. Default: each case's own.",
)
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=Choice(["float32", "float64", "float16"]),
    help="Element type; repeatable. Default: all. float16 keeps float32 masters.",
)
@click.option(
    "--timeout",
    type=POSITIVE_FLOAT,
    default=120.0,
    show_default=True,
    metavar="S",
    help="Time limit of one case of one implementation, in seconds.",
)
@click.option(
    "--subnormals",
    type=Choice(["strict", "flush"]),
    default="strict",
    show_default=True,
    help="Whether a kernel of your own may flush subnormals to zero.",
)
@click.option(
    "--self-test",
    is_flag=True,
    help="Plant known bugs one at a time; check that verify finds each.",
)
@click.option(
    "--junit",
    type=click.Path(path_type=Path),
    callback=possible,
    metavar="FILE",
    help="Also write the verdicts as JUnit XML, which CI systems show as tests.",
)
@format_option
@report_option
@threads_option
@shared_options("verify")
def verify(
    names: tuple[str, ...],
    case_names: tuple[str, ...],
    self_test: bool,
    seed: int,
    junit: Path | None,
    layout: str,
    out: Path,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    with_report: bool,
    **options: Any,
) -> None:
    """Check implementations against each other, bit for bit.

    Each takes the steps of a catalogue of cases, and trains the problems (on MXNet, 50 steps unless
    --full). Weights, states and master weights are compared. CONFIG is a problem to train: a YAML
    file, or one of rosenbrock, logistic_regression, mlp. If you name some problems, cases or sizes,
    only those run. Files, in OUT: verify.csv, verify.json, verify.png. Exit code 1 if a check
    fails: any bit for built-in steps, the bound for others.

    \b
    adadelta verify
    adadelta verify --impl mxnet-fused --dtype float32 --case special
    adadelta verify mlp --seed 7
    adadelta verify --self-test
    adadelta verify --peers
    adadelta verify --impl my_kernel.py:step
    adadelta verify --impl my_kernel.py:step --format markdown --junit verify.xml
    adadelta verify --ctx gpu
    """
    from adadelta_cli import files
    from adadelta_cli.files import check_pictures
    from adadelta_cli.verification import report, runner
    from adadelta_cli.verification.junit import write_junit
    from adadelta_cli.verification.plan import Request

    screen = terminal(as_json, quiet, verbose)
    if self_test:
        _self_test(screen, out, seed, options["device"])
    check_pictures()
    threads = click.get_current_context().meta["threads"]
    asked = Request(names=names, case_names=case_names, seed=seed, threads=threads, **options)
    plan = asked.plan
    files.prepare_folder(out, [*report.FILES, *[FILE] * with_report])
    if junit:
        _prepare_junit(junit, out, asked)
    work = runner.Verification(plan)
    show = partial(_show_verification, screen, work, layout, most=1000 if verbose else 10)
    with ExitStack() as finished:  # even after an error: shown first, in case the disk is full
        if with_report:
            finished.callback(write_report, screen, out)
        if junit:
            finished.callback(write_junit, junit, work)
        finished.callback(report.write_verification, out, work)
        finished.callback(lambda: work.rows and show())
        with screen.progress("verify") as tick:
            work.execute(tick)
    if not work.rows:
        show()
    screen.note(f"Files: {out}/verify.csv, verify.json, verify.png{f'; {junit}' if junit else ''}")
    click.get_current_context().exit(work.exit_code)


def _prepare_junit(path: Path, out: Path, asked: Request) -> None:
    """Check that the file can be written, and replaces nothing that this command needs."""
    from adadelta_cli import files
    from adadelta_cli.verification import report

    read = *asked.configs, *(name.rpartition(":")[0] for name in asked.names), asked.replay
    taken = [Path(each) for each in read if each] + [out / name for name in (*report.FILES, FILE)]
    if path.resolve() in {each.resolve() for each in taken}:
        raise UsageError(
            f"--junit is {shortened(path)}, which this command needs; name another file"
        )
    files.prepare_folder(path.parent, [path.name], option="--junit")


def _show_verification(screen: Terminal, work: Verification, layout: str, most: int) -> None:
    from adadelta_cli.verification import report

    if layout == "markdown":
        screen.text(report.verification_markdown(work, most))
    else:
        screen.table(report.verification_table(work))
        for line in report.verification_failures(work, most):
            screen.text(line)
    for line in report.verification_skips(work):
        screen.note(line)
    screen.document(report.verification_document(work))


def _self_test(screen: Terminal, out: Path, seed: int, device: Device) -> None:
    from adadelta_cli import files
    from adadelta_cli.verification import mutation_report, self_test

    if device.kind != "cpu":
        raise UsageError(f"--self-test and --ctx {device} contradict each other: {SELF_TEST}")
    files.prepare_folder(out, mutation_report.FILES)
    work = self_test.SelfTest(seed=seed)
    with ExitStack() as finished:
        finished.callback(lambda: mutation_report.write_self_test(out, work.rows, work.unfinished))
        finished.callback(_show_self_test, screen, work)
        with screen.progress("self-test") as tick:
            work.execute(tick)
    screen.note(f"Files: {out}/selftest.csv, self-test.md")
    click.get_current_context().exit(work.exit_code)


def _show_self_test(screen: Terminal, work: SelfTest) -> None:
    from adadelta_cli.verification import mutation_report

    if work.rows:
        screen.table(mutation_report.self_test_table(work.rows, work.unfinished))
        screen.document(mutation_report.self_test_document(work.rows, work.unfinished))
