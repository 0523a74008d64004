"""Tables show each verdict, number and name whole at any width."""

from __future__ import annotations

import io
import re

import pytest
from conftest import KERNEL_NAMES
from rich.console import Console
from rich.text import Text

from adadelta_cli.bench import regression, regression_report
from adadelta_cli.bench.significance import Verdict
from adadelta_cli.tables import FittingTable
from adadelta_cli.verification import report as verify_report
from adadelta_cli.verification.rows import ComparisonRow

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
    text = shown(table_of_everything(), 40)
    assert text.count("a-name-of-thirty-characters-xx") == 2 and "  verdict: SLOWER" in text


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


def verify_table():
    """Make the table of a kernel that failed once."""
    rows = [
        ComparisonRow(
            "step", f"odd{k}", "a_long_folder/my_kernel.py:step", "numpy-fused", "numpy", "cpu",
            "float32", "weight", 12_345_678, 3, mismatches=k * 1_000_003, max_ulp=3.0,
            scaled_ulp=1.2e24 * k, passed=not k,
        )
        for k in range(2)
    ]  # fmt: skip
    return verify_report.verification_table(type("Work", (), {"rows": rows}))


def compare_table():
    """Make the table of several verdicts."""
    rows = [
        regression.RegressionRow(
            "mxnet-fused", "mxnet", "cpu", "float32", workload, 2, "warm", 0,
            "share of the ceiling", 0.912, 0.856, 1.0654, 1.0412, 1.0899, 0.001, 6, 6, verdict,
        )
        for workload, verdict in zip(("1e7", "resnet50", "bert-base"), Verdict, strict=False)
    ]  # fmt: skip
    return regression_report.comparison_table(
        regression.Comparison(rows, [], 0.05, "a test", "old/bench.json", "new/bench.json")
    )


ALWAYS = {
    verify_table: ["a_long_folder/my_kernel.py:step", "1FAILED", "1,000,003", "syntheticsteps"],
    compare_table: ["resnet50", "bert-base", "1.065(1.041-1.090)", "mxnet-fused"],
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("make", ALWAYS, ids=lambda make: make.__name__)
def test_each_report_shows_names_numbers_and_verdicts(make, width):
    """At each width, and in ASCII."""
    for encoding in ("utf-8", "ascii"):
        text = whole(shown(make(), width, encoding))
        for must in ALWAYS[make]:
            assert must in text, text
