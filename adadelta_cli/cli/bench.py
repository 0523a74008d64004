"""`adadelta bench` and `adadelta compare`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from adadelta_cli.cli.options import (
    MOST_THREADS,
    POSITIVE_FLOAT,
    SCREEN_OPTIONS,
    Choice,
    Command,
    Real,
    Whole,
    completes,
    decorated,
    folder_of,
    format_option,
    possible,
    shared_options,
    terminal,
)
from adadelta_cli.cli.report import FILE, report_option, write_report
from adadelta_cli.errors import ExitCode, UsageError, shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adadelta_cli.bench.plan import BenchPlan
    from adadelta_cli.bench.regression import Comparison, Document
    from adadelta_cli.bench.runner import Benchmark
    from adadelta_cli.bench.trainings import Training
    from adadelta_cli.cli.console import Terminal
    from adadelta_cli.implementations.array_backends import Device


def _thread_counts(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> tuple[int, ...]:
    """Read a list of thread counts; the default is all available cores."""
    from adadelta_cli.system import machine

    parts = text.split(",") if text else [str(machine.available_cores())]
    allowed = [str(count) for count in range(1, MOST_THREADS + 1)]
    if not all(part.strip() in allowed for part in parts):
        raise UsageError(
            f"--threads is {shortened(text)!r}; allowed is a list of whole numbers from 1 to "
            f"{MOST_THREADS}: 1,2"
        )
    return tuple(map(int, parts))


threshold_option = click.option(
    "--threshold",
    type=Real(below=1),  # any row would pass with 5 for 5 %
    default=0.05,
    show_default=True,
    metavar="X",
    help="The smallest difference that counts, as a share: 0.05 is 5 %.",
)


@click.command(cls=Command)
@click.option(
    "--sizes",
    metavar="LIST",
    help="List of tensor sizes in elements: 1e5,2.5M,10k. Default 1e5,1e6,1e7, unless --model or "
    "--train is given.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    shell_complete=completes("models"),
    help="The parameters of a network, all in one step: mlp, resnet50, bert-base, gpt2-small, "
    "many-small; repeatable.",
)
@click.option(
    "--train",
    "trained",
    multiple=True,
    type=Choice(["mlp", "torch-mlp", "torch-cnn"]),
    help="Whole training steps (forward, backward, update) of a network: mlp on MXNet, torch-mlp "
    "and torch-cnn on PyTorch; repeatable.",
)
@click.option(
    "--impl",
    "names",
    multiple=True,
    metavar="NAME",
    shell_complete=completes("implementations"),
    help="What to time: a built-in implementation, torch, torch-foreach, torch-compile, optax, "
    "torch-adam-fused, or FILE.py:FUNCTION, a kernel of your own; repeatable. Default: all "
    "built-in ones available here.",
)
@click.option("--peers", is_flag=True, help="Also time the other frameworks that are installed.")
@click.option(
    "--warm/--cold",
    "warm",
    default=None,
    help="Step on the same tensors repeatedly (default on a CPU), or on tensors that are in no "
    "cache, as in a training (default on a GPU).",
)
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=Choice(["float32", "float64", "float16"]),
    default=["float32"],
    show_default=True,
    help="Element type; repeatable. float16 has float32 master weights.",
)
@click.option(
    "--threads",
    callback=_thread_counts,
    metavar="LIST",
    help="List of CPU threads of every implementation: 1,2; default all available cores.",
)
@click.option(
    "--busy",
    type=Whole(0, 1000),
    default=0,
    show_default=True,
    metavar="N",
    help="Keep N other processes computing meanwhile, as data loaders do beside a training.",
)
@click.option(
    "--precision",
    type=POSITIVE_FLOAT,
    default=0.02,
    show_default=True,
    help="Stop when the 95 % interval's half-width falls below this fraction of the median.",
)
@click.option(
    "--max-time",
    type=POSITIVE_FLOAT,
    default=4.0,
    show_default=True,
    metavar="S",
    help="Time limit for sampling one workload, in seconds.",
)
@click.option(
    "--processes",
    type=Whole(1, 1000),
    default=6,
    show_default=True,
    help="Number of fresh processes that measure each workload.",
)
@click.option(
    "--against",
    metavar="PYTHON",
    callback=possible,
    help="Python of another environment; its installed version is timed in turn with this one; "
    "exit 1 if this one is slower.",
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="An earlier bench.json; exit 1 if a row is slower than there.",
)
@threshold_option
@format_option
@report_option
@shared_options("bench")
def bench(
    layout: str,
    baseline: Path | None,
    threshold: float,
    out: Path,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    with_report: bool,
    **asked: Any,
) -> int:
    """Time one optimizer step against what the machine allows.

    The ceiling is the slower of two roofs, timed in turn with the steps: moving the bytes that a
    step must move, and doing its arithmetic on data in the first-level cache.

    \b
    adadelta bench
    adadelta bench --sizes 1e6,1e7 --model resnet50 --threads 1,2
    adadelta bench --train mlp --format markdown
    adadelta bench --train torch-mlp --train torch-cnn --busy 2
    adadelta bench --sizes 1e7 --impl numpy-fused --peers
    adadelta bench --sizes 1e6 --against ../main/.venv/bin/python
    """
    from adadelta_cli import files
    from adadelta_cli.bench import plan as planning
    from adadelta_cli.bench import regression, report, runner
    from adadelta_cli.system import machine

    files.check_pictures()
    screen = terminal(as_json, quiet, verbose)
    _check_effective(baseline, **asked)
    before = _baseline(baseline, out) if baseline else None
    plan = _plan(**asked)
    for line in planning.described(plan):
        screen.note(line, level=1)
    planning.check_against(plan)
    planning.check_memory(plan)
    work = runner.Benchmark(plan, machine.describe())
    files.prepare_folder(out, [*report.FILES, *[FILE] * with_report])
    judged: list[Comparison] = []
    with ExitStack() as finished:
        if with_report:
            finished.callback(write_report, screen, out)
        finished.callback(_write_bench, screen, work, judged, out)
        finished.callback(_show_bench, screen, work, judged, layout)
        with screen.progress("bench") as tick:
            work.execute(tick)
        judged += [regression.judge_in_turn(work, threshold)] if work.other else []
        if before:
            this = regression.parse_document(report.bench_document(work), str(out))
            judged.append(regression.judge(before, this, threshold))
    return max(work.exit_code, *(each.exit_code for each in judged), ExitCode.OK)


def _check_effective(
    baseline: Path | None, device: Device, peers: bool, trained: Sequence[str], **asked: Any
) -> None:
    """Refuse options without an effect."""
    typed = click.get_current_context().get_parameter_source
    given = {
        name for name in ("threshold", "threads") if typed(name) is ParameterSource.COMMANDLINE
    }
    if "threshold" in given and not (baseline or asked["against"]):
        raise UsageError(
            "--threshold has no effect without a comparison; add --baseline or --against, or leave "
            "it out"
        )
    if "threads" in given and device.kind == "gpu":
        raise UsageError(
            f"--threads has no effect with --ctx {device}, where no step computes on the CPU; "
            "leave out one of them"
        )
    if trained and peers and not (asked["sizes"] or asked["models"]):
        raise UsageError(
            "--train and --peers contradict each other: a training has optimizers of its own; "
            "leave out one of them, or add --sizes or --model"
        )


def _plan(
    sizes: str | None,
    models: tuple[str, ...],
    trained: tuple[str, ...],
    names: tuple[str, ...],
    peers: bool,
    warm: bool | None,
    device: Device,
    backend: str,
    max_time: float,
    **how: Any,
) -> BenchPlan:
    """Resolve the names that the options give."""
    from adadelta_cli.bench import plan, trainings, workloads
    from adadelta_cli.implementations import frameworks, registry
    from adadelta_cli.mxnet_bridge import runtime

    chosen = [trainings.TRAININGS[name] for name in dict.fromkeys(trained)]
    alone = names if not (sizes or models) else ()
    for each in chosen:  # before a device is tried
        _check_train(each, device, how["against"], backend, alone, warm, how["dtypes"])
    for each in chosen:
        each.check_available()
    sizes = sizes or ("" if models or chosen else "1e5,1e6,1e7")
    warm = device.kind == "cpu" if warm is None else warm
    fused_only = bool(how["against"])
    own = plan.choose_implementations(names, backend, device, fused_only=fused_only)
    if any(each.library == "mxnet" for each in chosen) or any(e.backend == "mxnet" for e in own):
        runtime.check_environment()
    others = (*registry.ON_FRAMEWORKS.values(), *registry.YARDSTICKS.values()) if peers else ()
    here, absent = frameworks.available(each.on(device) for each in others)
    return plan.BenchPlan(
        (*workloads.sizes(sizes), *map(workloads.model, models)),
        tuple(dict.fromkeys((*own, *here))),
        caches=("warm" if warm else "cold",),
        max_time_s=max_time,
        absent=absent,
        device=device,
        trainings=tuple(chosen),
        **how,
    )


def _check_train(
    training: Training,
    device: Device,
    against: str | None,
    backend: str,
    names: Sequence[str],
    warm: bool | None,
    dtypes: Sequence[str],
) -> None:
    """Raise a UsageError for what contradicts a training: on its library, a CPU, in float32."""
    if against:
        raise UsageError("--against compares single steps; leave out --train, or --against")
    if device.kind != "cpu":
        raise UsageError(
            f"--train {training.name} --ctx {device}: whole training steps are timed on a CPU; "
            "leave out --train, or --ctx"
        )
    wrong = {
        f"--backend {backend}": backend not in {"auto", training.library},
        f"--impl {', '.join(names)}": bool(names),
        "--cold": warm is False,
        f"--dtype {', '.join(dtypes)}": "float32" not in dtypes,
    }
    for option in (option for option, is_wrong in wrong.items() if is_wrong):
        raise UsageError(
            f"--train {training.name} and {option} contradict each other: it is always on "
            f"{training.library} in float32, with {', '.join(training.optimizers)}; leave out one "
            "of them"
        )


def _baseline(baseline: Path, out: Path) -> Document:
    """Read the baseline; it must not be one of the files that are written."""
    from adadelta_cli.bench import regression

    before = regression.read_document(baseline)
    if out.resolve() in (baseline.resolve(), baseline.resolve().parent):
        raise UsageError(
            "--baseline lies in --out, where it would be overwritten; name another --out"
        )
    return before


def _write_bench(
    screen: Terminal, work: Benchmark, judged: Sequence[Comparison], out: Path
) -> None:
    from adadelta_cli.bench import report

    if work.results:
        written = report.write_bench(out, work, judged)
        screen.note(f"written: {', '.join(map(str, written))}")


def _show_bench(
    screen: Terminal, work: Benchmark, judged: Sequence[Comparison], layout: str
) -> None:
    from adadelta_cli.bench import report

    if not work.results:
        return
    if layout == "markdown":
        screen.text(report.bench_markdown(work.rows))
    else:
        screen.table(report.bench_table(work.rows))
        for line in report.bench_notes(work.rows):
            screen.text(line)
    for line in report.bench_checked(work.rows):
        screen.note(line)
    for warning in work.warnings:
        screen.note(f"Warning: {warning}")
    for each in judged:
        if layout == "markdown":
            screen.text("")  # else the next line would be a row of the table
        _show_comparison(screen, each, layout)
    screen.document(report.bench_document(work, judged))


@click.command(cls=Command)
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@threshold_option
@format_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    callback=folder_of,
    help="Write compare.csv there; default: no file.",
)
@report_option
@decorated(SCREEN_OPTIONS)
def compare(
    old: Path,
    new: Path,
    threshold: float,
    layout: str,
    out: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    with_report: bool,
) -> int:
    """Compare two results of bench: FASTER, SLOWER, SAME or UNCLEAR.

    OLD and NEW are each a bench.json, or its folder. Exit code 1 if a row is SLOWER: by more than
    the threshold, and significantly.

    \b
    adadelta compare main/bench.json results/bench/bench.json
    adadelta compare main results/bench --threshold 0.1 --format markdown
    """
    from adadelta_cli import files
    from adadelta_cli.bench import regression, regression_report

    if with_report and not out:
        raise UsageError("--report writes report.html into --out; add --out DIR")
    screen = terminal(as_json, quiet, verbose)
    before, after = map(regression.read_document, (old, new))
    for each in (before, after):
        screen.note(each.described, level=1)
    found = regression.judge(before, after, threshold)
    if out:
        files.prepare_folder(out, [*regression_report.FILES, *[FILE] * with_report])
    try:
        _show_comparison(screen, found, layout)
        screen.document(regression_report.comparison_document(found))
    finally:  # also where stdout is a closed pipe
        if out:
            screen.note(f"written: {regression_report.write_comparison(out, found)}")
            if with_report:
                write_report(screen, out)
    return found.exit_code


def _show_comparison(screen: Terminal, found: Comparison, layout: str) -> None:
    from adadelta_cli.bench import regression_report

    if layout == "markdown":
        screen.text(regression_report.comparison_markdown(found))
        return
    screen.table(regression_report.comparison_table(found))
    for line in regression_report.comparison_remarks(found):
        screen.text(line)
