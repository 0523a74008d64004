"""Texts and tables as Markdown: what a name has in it is shown, and marks nothing up."""

from __future__ import annotations

import pytest

from adadelta_cli.markdown import code, escaped, markdown_table

ROWS = [{"name": name, "verdict": "passed"} for name in ("a|b", "<script>alert(1)</script>")]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a|b", r"a\|b"),
        ("<script>", "&lt;script>"),
        ("&lt;", "&amp;lt;"),
        ("a * b", r"a \* b"),
        ("`x`", r"\`x\`"),
        ("[x](y)", r"\[x](y)"),
        (r"\|", r"\\\|"),
        ("rosenbrock_rho=0.9", "rosenbrock_rho=0.9"),
        ("_k_.py:step", r"\_k\_.py:step"),
        ("$5", "<span>$</span>5"),
        ("a\nb\x1b", r"a\\nb\\x1b"),
        ("~~x~~", r"\~\~x\~\~"),
    ],
)
def test_a_text_marks_nothing_up(text, wanted):
    """Each character that Markdown, HTML or GitHub reads as a mark is escaped."""
    assert escaped(text) == wanted


def test_a_table_has_a_line_for_each_row():
    """A bar ends no cell, and bold is only the column that was asked for."""
    lines = markdown_table(ROWS, {"verdict"}).splitlines()
    assert lines == [
        "| name | verdict |",
        "| --- | --- |",
        r"| a\|b | **passed** |",
        "| &lt;script>alert(1)&lt;/script> | **passed** |",
    ]
    assert len(markdown_table([]).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "wanted"), [("a|b <c>", "`a|b <c>`"), ("a`b", "`` a`b ``"), ("a\nb", r"`a\nb`")]
)
def test_code_ends_where_the_text_does(text, wanted):
    """A backtick in it does not end it."""
    assert code(text) == wanted
