"""`adadelta verify`: Markdown, and JUnit XML, as users and their scripts see them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import pytest
from made_results import FAILED, make_verification, verify_row

from adadelta_cli.__main__ import TerminatedError
from adadelta_cli.cli.verify import _prepare_junit
from adadelta_cli.errors import UsageError
from adadelta_cli.report.findings import Level, findings
from adadelta_cli.report.page import page
from adadelta_cli.report.read import read_folders
from adadelta_cli.system.sandbox import InProcess
from adadelta_cli.verification import report, runner
from adadelta_cli.verification.case_check import CaseCheck
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
    work = SimpleNamespace(rows=[row] * 3, failures=[row] * 3, unfinished="")
    text = report.verification_markdown(work, 2)
    (line,) = (line for line in text.splitlines() if line.startswith("| a"))
    assert line.startswith(r"| a\|b&lt;script>\`.py:step | numpy | synthetic steps |")
    assert "| **1 FAILED** |" in line
    assert r"&lt;b>1\|2&lt;/b>" in text
    assert "``adadelta" in text.replace("`` ", "``"), "a longer fence, for the backtick"
    assert "... and 1 more" in text


def test_a_table_of_nothing():
    """Interrupted before the first row."""
    work = SimpleNamespace(rows=[], failures=[], unfinished="0 of 3 planned checks ran")
    text = report.verification_markdown(work, 10)
    assert text.startswith(
        "**adadelta verify**: not complete, 0 of 3 planned checks ran: nothing was compared"
    )


ENDS = {"Ctrl-C": (KeyboardInterrupt, 130), "SIGTERM": (TerminatedError, 143)}


def interrupt(monkeypatch, error, before):
    """Let the checks run in this process, and the signal come before one of them."""
    run, ran = CaseCheck.run, []

    def run_or_raise(check):
        if len(ran) == before:
            raise error
        ran.append(check)
        run(check)

    monkeypatch.setattr(CaseCheck, "run", run_or_raise)
    monkeypatch.setattr(runner, "Sandbox", lambda _timeout: InProcess())
    monkeypatch.setattr(report, "write_plot", lambda _path, _figure: None)


@pytest.mark.parametrize(("error", "code"), ENDS.values(), ids=ENDS)
def test_an_interrupted_verification_is_no_pass(adadelta, monkeypatch, tmp_path, error, code):
    """The table, verify.json, the JUnit file and the page say how many of the checks ran."""
    interrupt(monkeypatch, error, before=1)
    which = ("--impl", "numpy-fused", "--case", "odd", "--case", "length-3", "--dtype", "float32")
    got, out, _err = adadelta("verify", *which, "--junit", "x.xml", "--out", "o")
    assert got == code
    assert "not complete, 1 of 2 planned checks ran" in " ".join(out.split())
    document = json.loads((tmp_path / "o/verify.json").read_text())
    assert document["rows"] and all(row["passed"] is not False for row in document["rows"])
    assert (document["complete"], document["passed"]) == (False, False)
    assert document["checks"] == {"planned": 2, "ran": 1}
    (case,) = (
        each
        for each in ET.parse("x.xml").iter("testcase")  # noqa: S314 - of this test
        if each.find("failure") is not None
    )
    assert case.get("name") == "all planned checks ran"
    assert "only 1 of 2 planned checks ran" in case.find("failure").get("message")
    (finding,) = findings(read_folders([tmp_path / "o"]))
    assert finding.level is Level.DOUBTFUL
    assert finding.sentence.startswith("1 of 2 planned checks ran; ")


def test_a_verification_that_was_interrupted_before_a_row_is_doubtful(
    adadelta, monkeypatch, tmp_path
):
    """The page shows it, with no row; and a complete one of the same cases passes."""
    which = ("--impl", "numpy-fused", "--case", "length-3", "--dtype", "float32", "-q")
    with monkeypatch.context() as patch:
        interrupt(patch, KeyboardInterrupt, before=0)
        assert adadelta("verify", *which, "--json", "--out", "o")[0] == 130
        (finding,) = findings(found := read_folders([tmp_path / "o"]))
    assert finding.level is Level.DOUBTFUL
    assert "0 of 1 planned checks ran" in finding.sentence and "0 of 1 planned" in page(found)
    interrupt(monkeypatch, KeyboardInterrupt, before=1)
    assert adadelta("verify", *which, "--out", "o")[0] == 0
    document = json.loads((tmp_path / "o/verify.json").read_text())
    assert (document["complete"], document["passed"]) == (True, True)
    assert [each.level for each in findings(read_folders([tmp_path / "o"]))] == [Level.GOOD]


def test_a_failure_before_an_interruption_stays_a_failure(tmp_path):
    """The page is red, and says how many of the checks ran."""
    make_verification(tmp_path, [verify_row(**FAILED)], complete=False, ran=2, planned=1600)
    (finding,) = findings(read_folders([tmp_path]))
    assert finding.level is Level.BAD
    assert finding.sentence.startswith("2 of 1,600 planned checks ran; 1 of 1 comparison")


@pytest.mark.parametrize("checks", [None, 7, {}, {"ran": "x", "planned": []}])
def test_a_damaged_count_is_still_not_complete(tmp_path, checks):
    """The level does not depend on it."""
    make_verification(tmp_path, [verify_row()])
    path = tmp_path / "verify.json"
    content = json.loads(path.read_text()) | {"complete": False, "checks": checks}
    path.write_text(json.dumps(content))
    (finding,) = findings(read_folders([tmp_path]))
    assert finding.level is Level.DOUBTFUL
    assert finding.sentence.startswith("not all planned checks ran; ")
