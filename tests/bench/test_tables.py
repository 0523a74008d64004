"""Tables for a terminal and as Markdown."""

from dataclasses import replace

from rich.text import Text

from adadelta_cli.bench import report
from adadelta_cli.bench.results import BenchRow
from adadelta_cli.bench.tables import terminal_table

ROWS = [
    {"workload": workload, "dtype": "float32", "threads": threads, "note": "a|b"}
    for workload in ("1e4", "1e5")
    for threads in ("1", "2")
]


def test_common_settings_stand_in_the_title():
    """With their unit; differing ones have a column, and notes have none."""
    settings = {"dtype": "", "threads": " threads"}
    table = terminal_table("a [b]: ", ROWS, settings, {})
    assert Text.from_markup(table.title).plain == "a [b]: float32"
    assert [column.header for column in table.columns] == ["workload", "threads"]
    table = terminal_table("a [b]: ", ROWS[::2], settings, {})
    assert Text.from_markup(table.title).plain == "a [b]: float32, 1 threads"
    assert [column.header for column in table.columns] == ["workload"]


def test_a_rule_stands_between_workloads():
    """Rows of one workload and setting stay together."""
    table = terminal_table("", ROWS, {"dtype": ""}, {})
    assert [row.end_section for row in table.rows] == [False, True, False, True]


def test_no_rows_are_a_table():
    """A comparison may have none."""
    assert terminal_table("", [], {"dtype": ""}, {}).row_count == 0


def test_what_was_not_tried_is_no_blank_row_and_a_users_kernel_says_what_was_checked():
    """A framework that is not installed is in the notes; a kernel's check names what it leaves."""
    row = BenchRow("k.py:f", "numpy", "cpu", "float32", "1e4", 1, 10_000, 1, median_s=1e-6)
    absent = replace(row, implementation="torch", median_s=None, note="skipped: not installed")
    table = report.bench_table([row, absent])
    assert table.row_count == 1 and any("torch" in n for n in report.bench_notes([row, absent]))
    assert report.bench_table([absent]).row_count == 1, "rather than nothing"
    (line,) = report.bench_checked([row, absent])
    assert "clip_gradient" in line and "adadelta verify --impl k.py:f" in line
