"""Write the verdicts of `verify` as JUnit XML, which CI systems show as tests.

The elements and attributes are those that Jenkins, GitLab and GitHub's reporters share:
https://github.com/testmoapp/junitxml.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from adadelta_cli.errors import displayed
from adadelta_cli.files import write_bytes
from adadelta_cli.verification.report import failure_lines
from adadelta_cli.verification.rows import Status, skip_reasons

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from adadelta_cli.verification.results import Results
    from adadelta_cli.verification.rows import ComparisonRow

NAME = "adadelta verify"


def write_junit(path: Path, results: Results) -> None:
    """Write a test case for each case, dtype and check of each implementation.

    Raises:
        BrokenError: the file cannot be written.
    """
    root = junit(results)
    ET.indent(root)
    write_bytes(path, ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")


def junit(results: Results) -> ET.Element:
    """Arrange a verification as JUnit XML, with a suite for each implementation.

    Where not all planned checks ran, or nothing was compared, a test case of its own fails.
    """
    suites: dict[str, dict[tuple[str, ...], list[ComparisonRow]]] = {}
    for row in results.rows:
        suites.setdefault(row.implementation, {}).setdefault(row.key, []).append(row)
    root = ET.Element("testsuites", name=NAME)
    for name, tests in suites.items():
        cases = [_case(rows, results.seconds.get(key)) for key, rows in tests.items()]
        root.append(_suite(name, cases))
    if results.unfinished:
        root.append(_suite(NAME, [_own("all planned checks ran", f"only {results.unfinished}")]))
    elif results.is_empty:
        reason = f"nothing was compared: {'; '.join(skip_reasons(results.rows))}"
        root.append(_suite(NAME, [_own("something was compared", reason)]))
    totals = ("tests", "failures", "errors", "skipped", "time")
    for total in totals:
        amount = sum(float(suite.attrib[total]) for suite in root)
        root.set(total, _seconds(amount) if total == "time" else f"{amount:.0f}")
    return root


def _suite(name: str, cases: Sequence[ET.Element]) -> ET.Element:
    found = Counter(child.tag for case in cases for child in case)
    suite = ET.Element(
        "testsuite",
        name=displayed(name),
        tests=str(len(cases)),
        failures=str(found["failure"]),
        errors="0",
        skipped=str(found["skipped"]),
        time=_seconds(sum(float(case.get("time", 0)) for case in cases)),
    )
    suite.extend(cases)
    return suite


def _case(rows: Sequence[ComparisonRow], seconds: float | None) -> ET.Element:
    """Make the test case of the rows of a check, one for each tensor."""
    first = rows[0]
    case = ET.Element(
        "testcase",
        classname=displayed(f"{first.implementation}.{first.check}"),
        name=displayed(f"{first.case} {first.dtype}").strip() or "all cases",
    )
    if seconds is not None:
        case.set("time", _seconds(seconds))
    failed = [row for row in rows if row.passed is False]
    if failed:
        # An implementation that raised or hung is no error of this test, but what it is to find.
        kind = (
            Status.NO_RESULT if any(r.status is Status.NO_RESULT for r in failed) else Status.FAILED
        )
        lines = [
            line for row in failed for line in (*failure_lines(row), f"repeat it: {row.replay}")
        ]
        _add(case, "failure", lines, type=kind.value)
    elif all(row.passed is None for row in rows):
        _add(case, "skipped", [first.skip_reason or first.note])
    return case


def _own(name: str, reason: str) -> ET.Element:
    """Make a test case that fails, of the verification as a whole."""
    case = ET.Element("testcase", classname=NAME, name=name)
    _add(case, "failure", [reason], type=Status.NO_RESULT.value)
    return case


def _add(case: ET.Element, tag: str, lines: Iterable[str], **attributes: str) -> None:
    """Add an element whose message is the first line, in characters that XML has."""
    text = [displayed(line) for line in lines]
    element = ET.SubElement(case, tag, {"message": text[0], **attributes})
    element.text = "\n".join(text)


def _seconds(amount: float) -> str:
    return f"{amount:.3f}"
