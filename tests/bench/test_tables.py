"""Tables for a terminal and as Markdown."""

from rich.text import Text

from adadelta_cli.bench.tables import markdown_table, terminal_table

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
    assert len(markdown_table([]).splitlines()) == 2


def test_markdown_has_one_line_a_row():
    """A bar in a cell does not end the cell."""
    lines = markdown_table(ROWS).splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert {line.count("|") for line in lines} == {5}
    assert "a/b" in lines[2]
