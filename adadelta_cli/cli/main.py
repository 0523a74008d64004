"""The command line: parse, call, print; no logic. The contract is docs/cli.md."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adadelta_cli.cli.console import Terminal
from adadelta_cli.errors import ExitCode, UnavailableError, UsageError, shortened

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adadelta_cli.bench.regression import Comparison, Document
    from adadelta_cli.bench.runner import Benchmark
    from adadelta_cli.run.training import Run
    from adadelta_cli.verification.mutation_test import SelfTest
    from adadelta_cli.verification.runner import Verification

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from importlib import metadata

        click.echo(f"adadelta {metadata.version('adadelta')}")
        context.exit()


@click.group(context_settings=CONTEXT, invoke_without_command=True)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version,
    help="Show the version and exit.",
)  # fmt: skip
@click.pass_context
def adadelta(context: click.Context) -> None:
    """Run, verify and benchmark the AdaDelta optimizer.

    \b
    adadelta run mlp                 does it train?
    adadelta verify                  is every bit right?
    adadelta bench --sizes 1e6,1e7   how far from the speed of memory?
    adadelta compare OLD NEW         is it slower than it was?
    adadelta doctor                  what works here, and what would disturb a measurement?
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


# --- options with one meaning everywhere ----------------------------------------------------------


def _threads(_context: click.Context, _parameter: click.Parameter, count: int | None) -> int | None:
    """Limit the threads of every library, before any of them is imported."""
    from adadelta_cli.system import info as machine

    if count is not None:
        machine.limit_threads(count)
    return count


def _folder(
    _context: click.Context, _parameter: click.Parameter, folder: Path | None
) -> Path | None:
    """Refuse an empty name, which means this folder to Python and a slip to its writer."""
    if folder == Path():
        raise UsageError("--out is empty or '.'; name a folder of its own")
    return _possible(_context, _parameter, folder)


def _possible(_context: click.Context, parameter: click.Parameter, path: Any) -> Any:
    """Refuse a path that the system cannot make."""
    from adadelta_cli import inputs

    if path is not None:
        inputs.check_possible(Path(path), parameter.opts[0])
    return path


SCREEN_OPTIONS = (
    click.option(
        "--json", "as_json", is_flag=True,
        help="The summary as one JSON document on stdout, and nothing else there.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Less."),
    click.option("-v", "--verbose", is_flag=True, help="More."),
)  # fmt: skip


class _Positive(click.FloatRange):
    """A positive number, small enough for seconds that one can wait; no NaN, unlike Click's."""

    def __init__(self) -> None:
        super().__init__(min=0, max=1e6, min_open=True)

    def convert(self, value: Any, parameter: Any, context: Any) -> Any:
        """Refuse NaN, which passes the comparison with every bound."""
        number = super().convert(value, parameter, context)
        return self.fail("nan is no number", parameter, context) if number != number else number  # noqa: PLR0124


POSITIVE = _Positive()
MOST_THREADS = 1024


def _decorator(options: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _ctx(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    """Name the device as results do."""
    from adadelta_cli.implementations.array_backends import Device

    return str(Device.parse(text))


def shared_options(command: str) -> Callable[[Any], Any]:
    """Add the options of every command that computes; `command` names the default folder."""
    options = (
        click.option(
            "--ctx", default="cpu", show_default=True, metavar="cpu|gpu|gpu:N", callback=_ctx,
            help="Device; gpu is the first, gpu:1 the second.",
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
            type=click.Path(path_type=Path, file_okay=False), callback=_folder,
            help="Where the files go; made if missing.",
        ),
        *SCREEN_OPTIONS,
    )  # fmt: skip
    return _decorator(options)


threads_option = click.option(
    "--threads", type=click.IntRange(1, MOST_THREADS), callback=_threads, is_eager=True,
    expose_value=False,
    help="CPU threads of every implementation; default all available cores.",
)  # fmt: skip


def terminal(as_json: bool, quiet: bool, verbose: bool) -> Terminal:
    """Make the terminal that these flags ask for."""
    return Terminal(json=as_json, verbosity=verbose - quiet)


# --- the commands ---------------------------------------------------------------------------------


# --- run and schema


@adadelta.command()
@click.argument("configs", nargs=-1, metavar="[CONFIG]...")
@click.option(
    "--fused/--no-fused", default=True, show_default=True,
    help="Take the step in one pass over memory, or one operation at a time: the same bits.",
)  # fmt: skip
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE",
    help="Override a value of the configs, such as optimizer.rho=0.95; repeatable.",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint, where there is one.")
@click.option("--force", is_flag=True, help="Begin anew, even where that loses an unfinished run.")
@click.option(
    "--record-gradients", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    callback=_possible,
    help="Write the gradient of each step to an npz file, for verify --replay.",
)  # fmt: skip
@click.option(
    "--dtype", default="float32", show_default=True,
    type=click.Choice(["float32", "float64", "float16"]),
    help="Element type; float16 keeps float32 master weights and states.",
)  # fmt: skip
@threads_option
@shared_options("run")
def run(
    configs: tuple[str, ...], overrides: tuple[str, ...], record_gradients: Path | None,
    ctx: str, backend: str, out: Path,
    as_json: bool, quiet: bool, verbose: bool, **how: Any,
) -> None:  # fmt: skip
    """Train the problems; write history and plots.

    CONFIG is a YAML file or the name of one that ships: rosenbrock, logistic_regression, mlp.
    With none given, all three. Files, in OUT/<config name>/: history.csv, summary.json,
    config.yaml, loss.png, checkpoint.npz.

    \b
    adadelta run mlp
    adadelta run rosenbrock --no-fused --set training.steps=20000 --set problem.dimension=10
    adadelta run my.yaml --backend numpy --dtype float64 --resume
    adadelta run --ctx gpu
    """
    from adadelta_cli import files
    from adadelta_cli.files import check_pictures
    from adadelta_cli.implementations.array_backends import backend as array_library
    from adadelta_cli.run import report, training

    check_pictures()
    screen = terminal(as_json, quiet, verbose)
    library = array_library(backend, ctx)
    runs = training.runs(configs, overrides, out, library, record_gradients=record_gradients, **how)
    files.prepare(out)
    if record_gradients:
        files.prepare(record_gradients.parent, option="--record-gradients")
    with ExitStack() as finished:
        finished.callback(_show_runs, screen, runs)
        for each in runs:
            with screen.progress(f"run {each.name}") as tick:
                each.execute(tick)
    results = [each.result for each in runs if each.result]
    for line in report.run_remarks(results, out):
        screen.note(line)
    click.get_current_context().exit(training.exit_code(results))


def _show_runs(screen: Terminal, runs: Sequence[Run]) -> None:
    from adadelta_cli.run import report

    results = [each.result for each in runs if each.result]
    if results:
        screen.table(report.run_table(results))
        screen.document({"results": [report.run_summary(result) for result in results]})


@adadelta.command()
def schema() -> None:
    """Print the JSON schema of a config, for editors.

    \b
    adadelta schema > schema.json
    """
    from adadelta_cli import files
    from adadelta_cli.run import config

    click.echo(files.json_text(config.schema()), nl=False)


# --- verify


def _sizes(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> tuple[int, ...]:
    """Read a list of sizes, such as 1e6,4k."""
    from adadelta_cli.bench import workloads

    return tuple(workload.elements for workload in workloads.sizes(text)) if text else ()


@adadelta.command()
@click.argument("configs", nargs=-1, metavar="[CONFIG]...")
@click.option(
    "--impl", "names", multiple=True, metavar="NAME",
    help="Check this implementation, or FILE.py:FUNCTION, a kernel of your own; repeatable. "
    "Default: all of ours that are here.",
)  # fmt: skip
@click.option("--peers", is_flag=True, help="Check the other frameworks that are installed.")
@click.option(
    "--replay", type=click.Path(path_type=Path), metavar="FILE",
    help="Replay gradients that adadelta run --record-gradients FILE recorded, and nothing else.",
)  # fmt: skip
@click.option(
    "--full",
    is_flag=True,
    help="All cases, and trainings to their end in each dtype: some minutes.",
)
@click.option(
    "--case", "case_names", multiple=True, metavar="NAME",
    help="Only this case, and no training; repeatable.",
)  # fmt: skip
@click.option(
    "--sizes", callback=_sizes, metavar="LIST",
    help="Tensors of these lengths in place of the cases, such as 1e6,4097.",
)  # fmt: skip
@click.option(
    "--steps", type=click.IntRange(1, 100_000), metavar="N",
    help="Steps of each case, in place of its own number.",
)  # fmt: skip
@click.option(
    "--dtype", "dtypes", multiple=True, type=click.Choice(["float32", "float64", "float16"]),
    help="Element type; repeatable. Default: all. float16 keeps float32 masters.",
)  # fmt: skip
@click.option(
    "--timeout", type=POSITIVE, default=120.0, show_default=True,
    metavar="S", help="Seconds that one case of one implementation may take.",
)  # fmt: skip
@click.option(
    "--subnormals", type=click.Choice(["strict", "flush"]), default="strict", show_default=True,
    help="Whether a kernel of your own may flush subnormals to zero.",
)  # fmt: skip
@click.option(
    "--self-test", is_flag=True,
    help="Plant mistakes that people make into the sources, one by one, and see each one caught.",
)  # fmt: skip
@threads_option
@shared_options("verify")
def verify(
    names: tuple[str, ...], case_names: tuple[str, ...], self_test: bool, seed: int, out: Path,
    as_json: bool, quiet: bool, verbose: bool, **asked: Any,
) -> None:  # fmt: skip
    """Check implementations against each other, bit for bit.

    Each takes the steps of a catalogue of cases, and trains the problems (on MXNet, 50 steps, if
    not --full); weight, states and master weights are compared. CONFIG is a problem to train, a
    YAML file or one of rosenbrock, logistic_regression, mlp; naming problems, cases or sizes leaves
    out the rest. Files, in OUT: verify.csv, verify.json, verify.png. Exit code 1 if a bit differs.

    \b
    adadelta verify
    adadelta verify --impl mxnet-fused --dtype float32 --case special
    adadelta verify mlp --seed 7
    adadelta verify --self-test
    adadelta verify --peers
    adadelta verify --impl my_kernel.py:step
    adadelta verify --ctx gpu
    """
    from adadelta_cli import files
    from adadelta_cli.files import check_pictures
    from adadelta_cli.verification import report
    from adadelta_cli.verification import runner as verification
    from adadelta_cli.verification.plan import Request

    screen = terminal(as_json, quiet, verbose)
    if self_test:
        given = names or case_names or any(asked[key] for key in CHOSEN_BY_SELF_TEST)
        _self_test(screen, out, seed, alone=not given and asked["ctx"] == "cpu")
    check_pictures()
    plan = Request(names=names, case_names=case_names, seed=seed, **asked).plan
    files.prepare(out, report.FILES)
    work = verification.Verification(plan)
    show = partial(_show_verification, screen, work, most=1000 if verbose else 10)
    with ExitStack() as finished:  # whatever breaks off: shown first, in case the disk is full
        finished.callback(report.write_verification, out, work)
        finished.callback(lambda: work.rows and show())
        with screen.progress("verify") as tick:
            work.execute(tick)
    if not work.rows:
        show()
    screen.note(f"Files: {out}/verify.csv, verify.json, verify.png")
    click.get_current_context().exit(work.exit_code)


def _show_verification(screen: Terminal, work: Verification, most: int) -> None:
    from adadelta_cli.verification import report

    screen.table(report.verification_table(work))
    for line in report.verification_failures(work, most):
        screen.text(line)
    for line in report.verification_skips(work):
        screen.note(line)
    screen.document(report.verification_document(work))


CHOSEN_BY_SELF_TEST = ("configs", "full", "peers", "replay", "sizes", "steps", "dtypes")


def _self_test(screen: Terminal, out: Path, seed: int, *, alone: bool) -> None:
    from adadelta_cli import files
    from adadelta_cli.verification import mutation_report as report
    from adadelta_cli.verification import mutation_test as selftest

    if not alone:
        raise UsageError(
            "--self-test chooses implementations, cases and dtypes itself, and plants its mistakes "
            "in the sources for a CPU; leave them and --ctx out, or leave out --self-test"
        )
    files.prepare(out, report.FILES)
    work = selftest.SelfTest(seed=seed)
    with ExitStack() as finished:
        finished.callback(lambda: report.write_self_test(out, work.rows))
        finished.callback(_show_self_test, screen, work)
        with screen.progress("self-test") as tick:
            work.execute(tick)
    screen.note(f"Files: {out}/selftest.csv, self-test.md")
    click.get_current_context().exit(work.exit_code)


def _show_self_test(screen: Terminal, work: SelfTest) -> None:
    from adadelta_cli.verification import mutation_report as report

    if work.rows:
        screen.table(report.self_test_table(work.rows))
        screen.document(report.self_test_document(work.rows))


# --- doctor


@adadelta.command()
@_decorator(SCREEN_OPTIONS)
def doctor(as_json: bool, quiet: bool, verbose: bool) -> None:
    """Examine the machine: what works, what is missing, what would disturb a measurement.

    Each finding says why it matters and what mends it. The kernel and the libraries are tried, each
    where it can crash without harm. No files are written. Exit code 3 if run, verify or bench
    cannot do their work here; what is optional may be missing.

    \b
    adadelta doctor
    adadelta doctor --json > machine.json
    """
    from adadelta_cli.doctor import checks as doctor
    from adadelta_cli.doctor import report

    screen = terminal(as_json, quiet, verbose)
    with screen.progress("doctor") as tick:
        found = doctor.examine(tick)
    for table in report.doctor_tables(found, screen.verbosity):
        screen.table(table)
    screen.document(report.doctor_document(found))
    if found.exit_code:
        raise UnavailableError(report.verdict(found))
    screen.text(report.verdict(found))


# --- bench


def _thread_counts(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> tuple[int, ...]:
    """Read a list of thread counts; by default, one entry: all available cores."""
    from adadelta_cli.system import info as machine

    parts = text.split(",") if text else [str(machine.available_cores())]
    allowed = [str(count) for count in range(1, MOST_THREADS + 1)]
    if not all(part.strip() in allowed for part in parts):
        raise UsageError(
            f"--threads is {shortened(text)!r}; allowed is a list of whole numbers from 1 to "
            f"{MOST_THREADS}: 1,2"
        )
    return tuple(map(int, parts))


def _threshold(_context: click.Context, _parameter: click.Parameter, threshold: float) -> float:
    """Refuse what would judge nothing: 5 for 5 %, NaN."""
    if not 0 < threshold < 1:
        raise UsageError(
            f"--threshold is {threshold:g}; allowed is a share above 0 and below 1: 0.05 is 5 %"
        )
    return threshold


threshold_option = click.option(
    "--threshold", type=float, default=0.05, show_default=True, callback=_threshold, metavar="X",
    help="The smallest difference that counts, as a share: 0.05 is 5 %.",
)  # fmt: skip


@adadelta.command()
@click.option(
    "--sizes", metavar="LIST",
    help="Elements of one tensor, a list: 1e5,2.5M,10k. Default 1e5,1e6,1e7, where neither --model "
    "nor --train is given.",
)  # fmt: skip
@click.option(
    "--model", "models", multiple=True, metavar="NAME",
    help="The parameters of a network, all in one step: mlp, resnet50, bert-base, gpt2-small, "
    "many-small; repeatable.",
)  # fmt: skip
@click.option(
    "--train", type=click.Choice(["mlp"]),
    help="Whole training steps (forward, backward, update) of a network.",
)  # fmt: skip
@click.option(
    "--impl", "names", multiple=True, metavar="NAME",
    help="What to time, also torch, torch-foreach, torch-compile, optax, torch-adam-fused, or "
    "FILE.py:FUNCTION, a kernel of your own; repeatable; default all of ours that are here.",
)  # fmt: skip
@click.option("--peers", is_flag=True, help="Time the other frameworks that are installed, too.")
@click.option(
    "--warm", "cache", flag_value="warm", default=None,
    help="Step on the same tensors again and again (default on a CPU).",
)  # fmt: skip
@click.option(
    "--cold", "cache", flag_value="cold",
    help="Step on tensors that are in no cache, as a training finds them (default on a GPU).",
)  # fmt: skip
@click.option(
    "--dtype", "dtypes", multiple=True, type=click.Choice(["float32", "float64", "float16"]),
    default=["float32"], show_default=True,
    help="Element type; repeatable. float16 has float32 master weights.",
)  # fmt: skip
@click.option(
    "--threads", callback=_thread_counts, metavar="LIST",
    help="CPU threads of every implementation, a list: 1,2; default all available cores.",
)  # fmt: skip
@click.option(
    "--precision", type=POSITIVE, default=0.02, show_default=True,
    help="Half the width of a median's 95 % interval, as a share of it, that suffices.",
)  # fmt: skip
@click.option(
    "--max-time", type=POSITIVE, default=4.0, show_default=True, metavar="S",
    help="Seconds of sampling for one workload, at most.",
)  # fmt: skip
@click.option(
    "--processes", type=click.IntRange(1, 1000), default=6, show_default=True,
    help="How many fresh processes measure each workload.",
)  # fmt: skip
@click.option(
    "--against", metavar="PYTHON", callback=_possible,
    help="The Python of another environment, whose installed version is timed in turn with this "
    "one; exit 1 when this one is slower.",
)  # fmt: skip
@click.option(
    "--baseline", type=click.Path(path_type=Path), metavar="FILE",
    help="A bench.json of before; exit 1 when a row is slower than there.",
)  # fmt: skip
@threshold_option
@click.option(
    "--format", "layout", type=click.Choice(["table", "markdown"]), default="table",
    show_default=True, help="How the summary is laid out.",
)  # fmt: skip
@shared_options("bench")
def bench(
    sizes: str | None, models: tuple[str, ...], train: str | None, names: tuple[str, ...],
    peers: bool, cache: str | None, layout: str, baseline: Path | None, threshold: float, ctx: str,
    backend: str, out: Path, as_json: bool, quiet: bool, verbose: bool, **how: Any,
) -> int:  # fmt: skip
    """Time one optimizer step against what the machine allows.

    The ceiling is the slower of two roofs, timed in turn with the steps: moving the bytes that a
    step has to move, and doing its arithmetic on data in the first-level cache.

    \b
    adadelta bench
    adadelta bench --sizes 1e6,1e7 --model resnet50 --threads 1,2
    adadelta bench --train mlp --format markdown
    adadelta bench --sizes 1e7 --impl numpy-fused --peers
    adadelta bench --sizes 1e6 --against ../main/.venv/bin/python
    """
    from adadelta_cli import files
    from adadelta_cli.bench import regression as comparison
    from adadelta_cli.bench import report, workloads
    from adadelta_cli.bench import runner as benchmark
    from adadelta_cli.files import check_pictures
    from adadelta_cli.implementations import registry as implementations
    from adadelta_cli.mxnet_bridge import runtime as engine
    from adadelta_cli.system import info as machine

    check_pictures()
    screen = terminal(as_json, quiet, verbose)
    before = _baseline(baseline, out) if baseline else None
    if train:  # before a device is tried
        benchmark.check_train(ctx, how["against"])
    wanted = sizes or ("" if models or train else "1e5,1e6,1e7")
    own = benchmark.choose(names, backend, ctx, fused_only=bool(how["against"]))
    if train or any(implementations.timeable(name).backend == "mxnet" for name in own):
        engine.check_environment()
    here, absent = benchmark.choose_peers() if peers else ((), ())
    plan = benchmark.Plan(
        (*workloads.sizes(wanted), *map(workloads.model, models)),
        tuple(dict.fromkeys((*own, *here))), ctx=ctx, absent=absent,
        max_time_s=how.pop("max_time"), caches=(cache or benchmark.cache_on(ctx),), **how,
    )  # fmt: skip
    benchmark.check_memory(plan)
    work = benchmark.Benchmark(plan, train, machine.describe())
    files.prepare(out, report.FILES)
    judged: list[Comparison] = []
    with ExitStack() as finished:
        finished.callback(_write_bench, screen, work, judged, out)
        finished.callback(_show_bench, screen, work, judged, layout)
        with screen.progress("bench") as tick:
            work.execute(tick)
        judged += [comparison.against(work, threshold)] if work.other else []
        if before:
            this = comparison.document(report.bench_document(work), str(out))
            judged.append(comparison.judge(before, this, threshold))
    return max(work.exit_code, *(each.exit_code for each in judged), ExitCode.OK)


def _baseline(baseline: Path, out: Path) -> Document:
    """Read what a result is compared with; it has to outlive the files that are written."""
    from adadelta_cli.bench import regression as comparison

    before = comparison.read(baseline)
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

    rows = work.rows
    if not work.results:
        return
    if layout == "markdown":
        screen.text(report.bench_markdown(rows))
    else:
        screen.table(report.bench_table(rows))
        for line in report.bench_notes(rows):
            screen.text(line)
    for doubt in work.doubts:
        screen.note(f"Warning: {doubt}")
    for each in judged:
        _show_comparison(screen, each, layout)
    screen.document(report.bench_document(work, judged))


# --- compare


@adadelta.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@threshold_option
@click.option(
    "--format",
    "layout",
    type=click.Choice(["table", "markdown"]),
    default="table",
    show_default=True,
    help="How the verdicts are laid out.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    callback=_folder,
    help="Write compare.csv there; default: no file.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="The summary as one JSON document on stdout, and nothing else there.",
)
@click.option("-q", "--quiet", is_flag=True, help="Less.")
@click.option("-v", "--verbose", is_flag=True, help="More.")
def compare(
    old: Path, new: Path, threshold: float, layout: str, out: Path | None,
    as_json: bool, quiet: bool, verbose: bool,
) -> int:  # fmt: skip
    """Judge one result of bench against another: FASTER, SLOWER, SAME or UNCLEAR.

    OLD and NEW are each a bench.json, or the folder that it is in. Exit code 1 if a row is SLOWER:
    by more than the threshold, and significantly.

    \b
    adadelta compare main/bench.json results/bench/bench.json
    adadelta compare main results/bench --threshold 0.1 --format markdown
    """
    from adadelta_cli import files
    from adadelta_cli.bench import regression as comparison
    from adadelta_cli.bench import regression_report as report

    screen = terminal(as_json, quiet, verbose)
    found = comparison.judge(comparison.read(old), comparison.read(new), threshold)
    if out:
        files.prepare(out, report.FILES)
    with ExitStack() as finished:
        if out:
            finished.callback(_write_comparison, screen, found, out)
        _show_comparison(screen, found, layout)
        screen.document(report.comparison_document(found))
    return found.exit_code


def _write_comparison(screen: Terminal, found: Comparison, out: Path) -> None:
    from adadelta_cli.bench import regression_report as report

    screen.note(f"written: {report.write_comparison(out, found)}")


def _show_comparison(screen: Terminal, found: Comparison, layout: str) -> None:
    from adadelta_cli.bench import regression_report as report

    if layout == "markdown":
        screen.text(report.comparison_markdown(found))
        return
    screen.table(report.comparison_table(found))
    for line in report.comparison_remarks(found):
        screen.text(line)
