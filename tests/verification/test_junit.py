"""The JUnit XML of `verify`: its structure, its counts, and names that XML cannot hold."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from conftest import KERNEL_NAMES

from adadelta_cli.verification import junit
from adadelta_cli.verification.results import Results
from adadelta_cli.verification.rows import ComparisonRow

# The elements below each element, and the attributes of each: those that the schemas of Ant,
# Jenkins and Surefire share, but for `skipped` of testsuites, which Jenkins lacks and ignores.
BELOW = {
    "testsuites": {"testsuite"},
    "testsuite": {"testcase"},
    "testcase": {"failure", "skipped"},
    "failure": set(),
    "skipped": set(),
}
COUNTS = {"tests", "failures", "errors", "skipped", "time"}
REQUIRED = {
    "testsuites": {"name", *COUNTS},
    "testsuite": {"name", *COUNTS},
    "testcase": {"name", "classname"},
    "failure": {"message", "type"},
    "skipped": {"message"},
}
ALLOWED = REQUIRED | {"testcase": {"name", "classname", "time"}}


def row(check="step", tensor="weight", *, name="k.py:f", case="odd", dtype="float32", **more):
    """Return a row of a case; it passed, if nothing else is said."""
    usual = {"passed": True, "elements": 7, "steps": 5, "mismatches": 0}
    place = case, name, "numpy", "numpy", "cpu", dtype, tensor
    return ComparisonRow(check, *place, **usual | more)


def failed(**more):
    """Return a row that failed."""
    return row(**{"passed": False, "mismatches": 3, "note": "first at <1>"} | more)


def written(tmp_path, rows, seconds=None, planned=0):
    """Write rows, read the file back, and check it against the schema."""
    results = Results(planned)
    results.rows = rows
    results.seconds = seconds or {}
    junit.write_junit(tmp_path / "verify.xml", results)
    root = ET.parse(tmp_path / "verify.xml").getroot()  # noqa: S314 - of this test
    check_schema(root)
    return root


def check_schema(root):
    """Check elements, attributes, and that each count is that of what is below."""
    assert root.tag == "testsuites"
    for element in root.iter():
        assert {child.tag for child in element} <= BELOW[element.tag]
        assert REQUIRED[element.tag] <= {*element.attrib} <= ALLOWED[element.tag]
    for counted in (root, *root):
        found = {
            "tests": len(counted.findall(".//testcase")),
            "failures": len(counted.findall(".//failure")),
            "errors": 0,
            "skipped": len(counted.findall(".//skipped")),
        }
        assert {name: int(counted.get(name)) for name in found} == found
        times = [float(case.get("time", 0)) for case in counted.findall(".//testcase")]
        assert float(counted.get("time")) == pytest.approx(sum(times), abs=1e-3)


def test_a_check_of_which_a_part_has_no_bound_is_not_skipped(tmp_path):
    """The tensors with a verdict count; what has none is no reason to skip them."""
    rows = [row("drift"), row("drift", tensor="acc_grad", passed=None, note="no bound")]
    assert written(tmp_path, rows).get("skipped") == "0"
    failing = [failed(check="drift"), *rows[1:]]
    assert written(tmp_path, failing).get("failures") == "1"


def test_a_test_for_each_check_case_and_dtype(tmp_path):
    """The tensors of a check are one test; each implementation is a suite."""
    tensors = [row(tensor=tensor) for tensor in ("weight", "acc_grad")]
    others = [row("oracle"), row(dtype="float64"), row(name="numpy-fused")]
    seconds = {tensors[0].key: 1.25, others[0].key: 0.5}
    root = written(tmp_path, [*tensors, *others], seconds)
    assert [(suite.get("name"), suite.get("tests")) for suite in root] == [
        ("k.py:f", "3"),
        ("numpy-fused", "1"),
    ]
    assert [(c.get("classname"), c.get("name"), c.get("time")) for c in root[0]] == [
        ("k.py:f.step", "odd float32", "1.250"),
        ("k.py:f.oracle", "odd float32", "0.500"),
        ("k.py:f.step", "odd float64", None),
    ]
    assert root.get("time") == "1.750"


def test_a_failure_has_the_message_and_the_command_that_repeats_it(tmp_path):
    """Of each tensor that failed; a check of which one tensor passed has failed."""
    rows = [row(), failed(tensor="acc_grad"), failed(tensor="acc_delta", note="second")]
    (failure,) = written(tmp_path, rows).iter("failure")
    assert failure.get("type") == "failed"
    assert failure.get("message").startswith("FAILED step odd float32 k.py:f acc_grad: 3 of 7")
    assert "first at <1>" in failure.text and "second" in failure.text
    repeat = "repeat it: adadelta verify --case odd --steps 5 --impl k.py:f --dtype float32"
    assert failure.text.splitlines().count(repeat) == 2


def test_no_result_is_a_failure_of_its_own_type(tmp_path):
    """Such as a kernel that raised."""
    (failure,) = written(tmp_path, [failed(mismatches=None, note="raised X")]).iter("failure")
    assert failure.get("type") == "no result" and "raised X" in failure.get("message")


def test_not_applicable_is_skipped(tmp_path):
    """With the reason; also a framework that is not installed, which has no case."""
    skipped = row(passed=None).skipped("it has no float16")
    absent = ComparisonRow("step", "", "torch", "numpy", "torch", "cpu", "").skipped("no torch")
    root = written(tmp_path, [row("oracle"), skipped, absent])
    assert [each.get("message") for each in root.iter("skipped")] == [
        "it has no float16",
        "no torch",
    ]
    assert [case.get("name") for case in root.iter("testcase")][-1] == "all cases"


def test_what_did_not_run_is_a_failure(tmp_path):
    """An interrupted verification has no file in which all tests pass."""
    for rows in ([], [row()]):
        root = written(tmp_path, rows, planned=1600)
        (failure,) = root.iter("failure")
        assert failure.get("message") == "only 0 of 1,600 planned checks ran"
        assert root[-1][0].get("name") == "all planned checks ran"


def test_nothing_compared_is_a_failure(tmp_path):
    """The exit code is 1 then, and the file agrees."""
    for rows in ([], [row(passed=None).skipped("it has no float16")]):
        root = written(tmp_path, rows)
        assert root.get("failures") == "1"
        assert "nothing was compared" in next(root.iter("failure")).get("message")


@pytest.mark.parametrize("name", [*KERNEL_NAMES, "a\0b\ufffe.py:f", "<a>&\"'.py:f"], ids=ascii)
def test_any_name_makes_valid_xml(tmp_path, name):
    """What XML lacks becomes an escape, in attributes and texts."""
    root = written(tmp_path, [failed(name=name, note=name), row(name=name, case=name)])
    assert root.get("tests") == "2"


def test_the_time_of_a_block_is_that_of_its_first_row():
    """Later checks of it used the same steps; a second block of the same check adds to it."""
    results = Results()
    for _ in range(2):
        with results.timed():
            results.rows += [row(), row("drift")]
    with results.timed():
        pass
    assert [*results.seconds] == [row().key] and results.seconds[row().key] > 0


def test_the_file_replaces_nothing_but_a_file(tmp_path):
    """It is written as all others are: whole, or not at all."""
    (tmp_path / "verify.xml").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        junit.write_junit(tmp_path / "verify.xml", Results())
