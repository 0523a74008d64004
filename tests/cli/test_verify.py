"""`adadelta verify`: Markdown, and JUnit XML, as users and their scripts see them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import pytest

from adadelta_cli.cli.verify import _prepare_junit
from adadelta_cli.errors import UsageError
from adadelta_cli.verification import report, runner
from adadelta_cli.verification.rows import ComparisonRow

WRONG = """
def step(weight, grad, acc_grad, acc_delta, **hyper):
    weight += 1
"""
QUICK = ("--dtype", "float32", "--case", "odd")


@pytest.fixture
def wrong(adadelta, tmp_path):
    """Return what checks a kernel that is wrong; nothing of it is drawn."""
    (tmp_path / "k.py").write_text(WRONG)
    return lambda *options: adadelta("verify", "--impl", "k.py:step", *QUICK, *options)


@pytest.mark.slow
def test_a_failure_is_written_and_the_exit_code_is_1(wrong, tmp_path):
    """Markdown on stdout, messages on stderr, and the file with the same failures."""
    code, out, err = wrong("--format", "markdown", "--junit", "ci/verify.xml")
    assert code == 1
    heading, _empty, names, rule, *_rest = out.splitlines()
    assert heading.startswith("**adadelta verify**: ") and "FAILED" in heading
    assert names.startswith("| implementation | against |") and set(rule) <= {*"| -"}
    assert "| k.py:step | numpy | synthetic steps | 1 |" in out
    assert "repeat it: `adadelta verify --case odd --impl k.py:step --dtype float32`" in out
    assert "Files: results/verify/verify.csv" in err and "ci/verify.xml" in err
    root = ET.parse(tmp_path / "ci/verify.xml").getroot()  # noqa: S314 - of this test
    rows = json.loads((tmp_path / "results/verify/verify.json").read_text())["rows"]
    tests = {(row["check"], row["case"], row["dtype"]) for row in rows}
    assert int(root.get("tests")) == len(tests)
    failed = {row["check"] for row in rows if row["passed"] is False}
    found = [case for case in root.iter("testcase") if case.find("failure") is not None]
    assert {case.get("classname") for case in found} == {f"k.py:step.{check}" for check in failed}
    assert float(root[0][0].get("time")) > 0


REFUSED = {
    "a folder": ("folder", 2, "--junit: folder is a folder"),
    "a device": ("/dev/null", 2, "--junit: /dev/null is a device"),
    "below a file": ("k.py/verify.xml", 4, "--junit: k.py cannot be made"),
    "a circular link": ("loop", 2, "--junit is loop: Too many levels of symbolic links"),
    "the kernel": ("k.py", 2, "--junit is k.py, which this command needs"),
    "another output": ("results/verify/verify.json", 2, "which this command needs"),
    "the page": ("results/verify/report.html", 2, "which this command needs"),
    "a name of 5000 characters": ("a" * 5000, 2, "--junit is a"),
    "empty": ("", 2, "--junit is empty"),
}


@pytest.mark.parametrize(("path", "code", "message"), REFUSED.values(), ids=REFUSED)
def test_a_target_that_cannot_be_written_is_refused_before_any_check(
    wrong, tmp_path, monkeypatch, path, code, message
):
    """No check runs, and the kernel is still there."""
    monkeypatch.setattr(runner.Verification, "execute", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr("adadelta_cli.implementations.user_kernel.check_kernel", lambda *_: None)
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    got, _out, err = wrong("--junit", path)
    assert (got, message in err) == (code, True), err
    assert (tmp_path / "k.py").read_text() == WRONG


def test_the_recording_that_is_replayed_is_no_target(tmp_path):
    """By whatever name: it would be replaced by the verdicts."""
    recording, link = tmp_path / "r.npz", tmp_path / "link"
    link.symlink_to(recording)
    asked = SimpleNamespace(configs=(), names=(), replay=recording)
    for path in (recording, link):
        with pytest.raises(UsageError, match="which this command needs"):
            _prepare_junit(path, tmp_path / "out", asked)


def test_names_and_notes_are_escaped_in_markdown():
    """A bar, a tag and a backtick in them mark nothing up."""
    name = "a|b<script>`.py:step"
    row = ComparisonRow(
        "step", "odd", name, "numpy", "numpy", "cpu", "float32", "weight", 7, 5,
        mismatches=1, passed=False, note="<b>1|2</b>",
    )  # fmt: skip
    work = SimpleNamespace(rows=[row] * 3, failures=[row] * 3)
    text = report.verification_markdown(work, 2)
    (line,) = (line for line in text.splitlines() if line.startswith("| a"))
    assert line.startswith(r"| a\|b&lt;script>\`.py:step | numpy | synthetic steps |")
    assert "| **1 FAILED** |" in line
    assert r"&lt;b>1\|2&lt;/b>" in text
    assert "``adadelta" in text.replace("`` ", "``"), "a longer fence, for the backtick"
    assert "... and 1 more" in text


def test_a_table_of_nothing():
    """Interrupted before the first row."""
    text = report.verification_markdown(SimpleNamespace(rows=[], failures=[]), 10)
    assert text.startswith("**adadelta verify**: nothing was compared")
