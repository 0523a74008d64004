"""Tables show each verdict, number and name whole at any width."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import KERNEL_NAMES
from quiet import IDLE, QUIET
from rich.console import Console, Group
from rich.text import Text

from adadelta_cli.bench import regression, regression_report
from adadelta_cli.bench import report as bench_report
from adadelta_cli.bench.results import BenchRow
from adadelta_cli.bench.significance import Verdict
from adadelta_cli.conversion import convert
from adadelta_cli.doctor import report as doctor_report
from adadelta_cli.doctor.checks import Check, CheckOutcome, Examination
from adadelta_cli.doctor.findings import Finding, Level
from adadelta_cli.guide import report as guide_report
from adadelta_cli.guide.keys import explain
from adadelta_cli.guide.listing import Entry
from adadelta_cli.run import published
from adadelta_cli.run import report as run_report
from adadelta_cli.run.gradient_check import GradientRow
from adadelta_cli.run.published import PublishedRow, PublishedTable
from adadelta_cli.run.result import Expectation, RunOutcome, RunResult, Side, TrainingRow
from adadelta_cli.sweep.report import Report as SweepReport
from adadelta_cli.sweep.rows import SettingRow, Spread, Status
from adadelta_cli.tables import FittingTable
from adadelta_cli.verification import mutation_report
from adadelta_cli.verification import report as verify_report
from adadelta_cli.verification.rows import ComparisonRow
from adadelta_cli.verification.self_test import MutantRow

DOCS = Path(__file__).parents[1] / "docs" / "cli.md"

WIDTHS = [20, 40, 60, 80, 120, 200]


def shown(table, width, encoding="utf-8"):
    """Render a table for a terminal of this width; no line is longer."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding, errors="strict")
    Console(file=file, width=width, highlight=False).print(table)
    file.flush()
    text = raw.getvalue().decode(encoding)
    assert all(len(line.rstrip()) <= width for line in text.splitlines()), text
    assert "…" not in text
    return text


def whole(text):
    """Join what was folded."""
    return re.sub(r"\s+", "", text)


def table_of_everything():
    """Make a table of all kinds of cells."""
    table = FittingTable(title="a title of some words that is longer than a narrow terminal")
    for name, rank in (("name", 0), ("first to go", 2), ("second to go", 1), ("verdict", 0)):
        table.add_column(name, rank=rank)
    table.add_row("a-name-of-thirty-characters-xx", "1" * 15, "2" * 15, "[red]12 FAILED[/]")
    table.add_row("", "3" * 15, "4" * 15, Text("SLOWER"))
    return table


@pytest.mark.parametrize("width", WIDTHS)
def test_no_cell_is_cut(width):
    """What is not shown is named; in a list, all is shown."""
    text = shown(table_of_everything(), width)
    for must in ("a-name-of-thirty-characters-xx", "12FAILED", "SLOWER"):
        assert must in whole(text)
    for heading, value in (("first to go", "1" * 15), ("second to go", "4" * 15)):
        dropped = re.search(f"not shown.*{heading}", text, re.DOTALL)
        assert bool(dropped) != (value in whole(text))


def test_columns_go_in_their_order():
    """The highest rank first; then the table becomes a list, which names each row again."""
    assert "not shown in 70 characters: first to go\n" in shown(table_of_everything(), 70)
    assert "not shown in 60 characters: first to go, second to go\n" in shown(
        table_of_everything(), 60
    )
    raw = io.StringIO()
    Console(file=raw, width=60, force_terminal=True, no_color=True).print(table_of_everything())
    assert "\x1b[2mnot shown in 60" in raw.getvalue(), "the line is dim"
    text = shown(table_of_everything(), 40)
    assert text.count("a-name-of-thirty-characters-xx") == 2 and "  verdict: SLOWER" in text


def test_an_empty_column_goes_first():
    """Whatever its rank is, since nothing is lost; a wide terminal shows its heading."""
    table = FittingTable()
    for name, rank in (("name", 0), ("a ranked one", 9), ("an empty one", 1), ("another", 0)):
        table.add_column(name, rank=rank)
    table.add_row("a" * 20, "1" * 20, "", Text(""))
    assert "not shown in 60 characters: an empty one, another\n" in shown(table, 60)
    assert "40characters:arankedone,anemptyone,another" in whole(shown(table, 40))
    assert "an empty one" in shown(table, 120) and "not shown" not in shown(table, 120)


@pytest.mark.parametrize("width", WIDTHS)
def test_an_ascii_terminal_shows_the_same(width):
    """It has no ellipsis and no lines."""
    assert "12FAILED" in whole(shown(table_of_everything(), width, "ascii"))


@pytest.mark.parametrize("name", KERNEL_NAMES, ids=ascii)
@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_what_a_terminal_cannot_show_is_escaped_before_the_widths_are_measured(name, encoding):
    """All lines of the table end in the same column, and no control character is printed."""
    table = FittingTable(title="a title")
    table.add_column("name")
    table.add_column("verdict")
    for cell in (Text(name), Text("plain")):
        table.add_row(cell, "passed")
    text = shown(table, 300, encoding)
    assert "\x1b" not in text and "\u202e" not in text
    ends = {line.index("passed") for line in text.splitlines() if "passed" in line}
    assert len(ends) == 1, text


LONG = "a_config_of_forty_characters_" + "x" * 11
KERNEL = "a_long_folder/below_another/my_kernel.py:step"


def verify_table():
    """Make the table of a kernel that failed once."""
    rows = [
        ComparisonRow(
            "step", f"odd{k}", KERNEL, "numpy-fused", "numpy", "cpu",
            "float32", "weight", 12_345_678, 3, mismatches=k * 1_000_003, max_ulp=3.0,
            scaled_ulp=1.2e24 * k, passed=not k,
        )
        for k in range(2)
    ]  # fmt: skip
    return verify_report.verification_table(type("Work", (), {"rows": rows, "unfinished": ""}))


def self_test_table():
    """Make the table of a mutant that was caught, and of one that was missed."""
    about = "a mistake that takes some more words than fit on a line of a narrow terminal"
    rows = [
        MutantRow(
            fault, "user kernel", about, "flushed-and-clipped", "float16", "acc_delta", 12_345,
            caught, mxnet_test=False, pytorch_test=True, passed=caught,
        )
        for fault, caught in (("epsilon-added-after-the-root", True), ("rho-for-1-rho", False))
    ]  # fmt: skip
    return mutation_report.self_test_table(rows)


def run_table():
    """Make the table of two configs, one of which has a long name and misses."""
    history = [
        TrainingRow(step=k, epoch=k, grad_norm=None, update_norm=None, loss=loss, accuracy=0.8125)
        for k, loss in enumerate((1e100, 6.931e-100))
    ]
    check = Expectation("loss", Side.MAX, 1.25e-101, 6.931e-100)
    results = [
        RunResult(
            name, "logistic_regression", "adadelta", "numpy", "cpu", "float32", True, 0, outcome,
            checks, 123_456, 1234.5, None, {"loss": "the loss", "accuracy": "a share"},
            tuple(history),
        )
        for name, outcome, checks in (
            (LONG, RunOutcome.MISSED, (check,)), ("mlp", RunOutcome.FINISHED, ())
        )
    ]  # fmt: skip
    return run_report.run_table(results)


def bench_table():
    """Make the table of a built-in step and of a kernel, in two dtypes."""
    rows = [
        BenchRow(
            name, "numpy", "cpu", dtype, "bert-base", 199, 109_482_240, 2, "warm", 6, 600,
            0.12345, 0.12246, 0.12457, 0.12, 0.13, 8.7e8, 17.53, 18.25, 0.962, 0.951, 0.973,
            "memory", 12.34, 12.25, 12.46, 123_456_789, size, 0, "2:64", "12:256",
        )
        for dtype, size in (("float32", 20), ("float64", 40))
        for name in ("mxnet-fused", KERNEL)
    ]  # fmt: skip
    return bench_report.bench_table(rows)


def compare_table():
    """Make the table of several verdicts."""
    names, workloads = ("mxnet-fused", KERNEL) * 2, ("1e7", "resnet50", "bert-base", "mlp")
    rows = [
        regression.RegressionRow(
            name, "mxnet", "cpu", "float32", workload, 2, "warm", 0,
            "share of the ceiling", 0.912, 0.856, 1.0654, 1.0412, 1.0899, 0.001, 6, 6, verdict,
        )
        for workload, name, verdict in zip(workloads, names, Verdict, strict=True)
    ]  # fmt: skip
    return regression_report.comparison_table(
        regression.Comparison(rows, [], 0.05, "a test", LONG, "new/bench.json")
    )


def doctor_table():
    """Make the tables of a check that is broken, and of a finding."""
    check = Check(
        "NumPy kernels", CheckOutcome.BROKEN, f"12,345 numbers differ in {LONG}", "run", "do"
    )
    finding = Finding(
        Level.DISTURBS, f"1.1 of 2 cores were busy: {LONG} (pid 7132)", "slow", "end it"
    )
    found = Examination(QUIET, IDLE, None, (check,), (finding,))
    return Group(*doctor_report.doctor_tables(found, 0))


def gradient_table():
    """Make the table of a check of gradients, one of which failed."""
    rows = [
        GradientRow(
            LONG, tensor, 1_234_567, 21, 0, (12, 3456), -1.234e-100, 5.678e100, 9.876e-5, 1.5e-9, ok
        )
        for tensor, ok in (("weight0", True), ("a_tensor_with_a_long_name", False))
    ]  # fmt: skip
    return run_report.gradient_table(rows)


def sweep_tables():
    """Make the tables of a sweep: its settings, and those beside published values."""
    keys = {"optimizer.rho": 0.999, "optimizer.epsilon": 1e-6, "problem.hidden": [123, 456]}
    spreads = {"loss": Spread(1.234e-100, 1e-100, 2e-100), "accuracy": Spread(0.98, 0.97, 0.99)}
    counts = {**dict.fromkeys(Status, 0), Status.DIVERGED: 3, Status.FAILED: 12}
    setting = SettingRow(0, keys, 15, counts, 0.9, spreads, ())
    report = object.__new__(SweepReport)
    report.settings, report.best = [setting], setting
    plan = SimpleNamespace(keys=tuple(keys))
    labels = dict.fromkeys(spreads, "")
    report.sweep = SimpleNamespace(
        metric="loss", title="adadelta sweep: a title", plan=plan, labels=labels
    )
    published_row = PublishedRow(dict.fromkeys(keys, 0.5), 12.25, 12.5, 12.25, 13.75, 15)
    table = PublishedTable("a paper's table", "a paper", True, "loss", 0.1, tuple(keys), ())
    return Group(report._table(), published.terminal_table(table, [published_row]))


def convert_table():
    """Make the table of a conversion of named parameters."""
    arrays = {name: np.zeros((1234, 5678), "float32") for name in ("acc_grad", "acc_delta")}
    tensors = [
        SimpleNamespace(number=k, source=source, name=name, arrays=held, updates=123_456)
        for k, (name, source, held) in enumerate(((LONG, 199, {}), ("bias", None, arrays)))
    ]  # fmt: skip
    return convert.table(SimpleNamespace(states=SimpleNamespace(tensors=tensors)))


def list_table():
    """Make a list, whose second column wraps."""
    return guide_report.list_table("cases", [Entry("a-long-name-of-a-case", "many words " * 20)])


def explain_table():
    """Make the explanation of a key that several optimizers have."""
    return guide_report.keys_table(explain("epsilon"))


ALWAYS = {
    gradient_table: [LONG, "weight0", "a_tensor_with_a_long_name", "FAILED", "-1.234e-100"],
    sweep_tables: [
        "0.999",
        "1e-06",
        "[123, 456]",
        "1.234e-100",
        "3 diverged",
        "12 failed",
        "12.25",
    ],
    convert_table: ["no states", "1234 x 5678", "199"],
    list_table: ["a-long-name-of-a-case", "many words"],
    explain_table: ["optimizer.epsilon", "adam", "1e-08", "more than 0"],
    run_table: [LONG, "loss", "accuracy", "6.931e-100", "0.8125", "at most 1.25e-101", "missed"],
    verify_table: [KERNEL, "1 FAILED", "1,000,003", "synthetic steps"],
    self_test_table: [
        "epsilon-added-after-the-root",
        "rho-for-1-rho",
        "caught",
        "SLIPPED THROUGH",
        "flushed-and-clipped float16",
    ],
    bench_table: ["bert-base", "mxnet-fused", KERNEL, "float64", "123 ms (122-125)"],
    compare_table: [
        "resnet50",
        "bert-base",
        KERNEL,
        "1.065 (1.041-1.090)",
        *(v.value for v in Verdict),
    ],
    doctor_table: ["NumPy kernels", "broken", "12,345", "disturbs", "pid 7132", LONG],
}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("make", ALWAYS, ids=lambda make: make.__name__)
def test_each_report_shows_names_numbers_and_verdicts(make, width, encoding):
    """All of them; a word goes on in the next line only if it is longer than a line."""
    text = shown(make(), width, encoding)
    for must in ALWAYS[make]:
        assert whole(must) in whole(text), text
        assert all(word in text for word in must.split() if len(word) <= width), text


COMMANDS = {
    "self_test": "verify --self-test",
    "gradient": "run --check-gradient",
    "sweep_tables": "sweep",
}


@pytest.mark.parametrize("make", ALWAYS, ids=lambda make: make.__name__)
def test_the_documented_columns_are_dropped_in_that_order(make):
    """docs/cli.md lists what has a rank, the highest first; doctor drops nothing."""
    command = make.__name__.removesuffix("_table")
    command = COMMANDS.get(command, command)
    listed = DOCS.read_text().partition("| table of |")[2]
    documented = re.search(rf"^\| .*`{command}`.* \| (.*) \|$", listed, re.MULTILINE)[1]
    tables = make().renderables if make in {doctor_table, sweep_tables} else [make()]
    if make is sweep_tables:
        documented, beside = documented.split("; beside published values: ")
        assert beside.split(", ") == dropped_by(tables.pop())
        documented = documented.replace("the other metrics", "accuracy")
    assert re.split(", | and ", documented) == dropped_by(tables[0])
    assert not any(any(table._ranks) for table in tables[1:])


def dropped_by(table):
    """Return the headings of the columns that a table drops, the first to go first."""
    ranked = sorted((-rank, k) for k, rank in enumerate(table._ranks) if rank)
    return [str(table.columns[k].header) for _, k in ranked] or ["nothing"]
