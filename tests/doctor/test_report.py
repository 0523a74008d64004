"""Doctor's tables show what was found, and what to do."""

from __future__ import annotations

import io
from dataclasses import replace

from quiet import IDLE, QUIET, UNKNOWN
from rich.console import Console

from adadelta_cli.doctor import checks, report
from adadelta_cli.doctor.checks import CheckOutcome, Examination
from adadelta_cli.doctor.conditions import conditions
from adadelta_cli.system.cpu_load import CpuLoad


def shown(found, verbosity=0, width=200):
    """Print the tables and return the text."""
    text = io.StringIO()
    for table in report.doctor_tables(found, verbosity):
        Console(file=text, width=width).print(table)
    return text.getvalue()


CHECKS = (
    checks.Check("good", CheckOutcome.WORKS, "does it", "purpose"),
    checks.Check("gone", CheckOutcome.MISSING, "gone", "fun", "pip install 'adadelta[torch]'"),
)


def test_the_report_says_what_and_what_to_do():
    """Brackets are text and no markup; `-q` leaves out what is in order."""
    here = replace(QUIET, huge_pages="always madvise [never]", openmp_runtimes=("lib/libgomp.so",))
    found = Examination(here, IDLE, 0.0, CHECKS, tuple(conditions(here, IDLE, 0.0)))
    text = shown(found)
    assert "always madvise [never]" in text and "does it" in text
    assert "-> pip install 'adadelta[torch]'" in text and "huge pages are off" in text
    assert "does it" not in shown(found, -1) and "adadelta[torch]" in shown(found, -1)
    assert "libgomp.so" in shown(found, 1) and "libgomp.so" not in text
    assert "1 thing will disturb" in report.verdict(found)
    assert "1 optional piece" in report.verdict(found)
    assert max(map(len, shown(found, width=60).splitlines())) <= 60


def test_a_broken_requirement_is_in_the_verdict():
    """With `-q`, its row is shown."""
    broken = checks.Check("MXNet", CheckOutcome.BROKEN, "crashed", "x", "repair it", required=True)
    found = Examination(QUIET, IDLE, None, (broken, broken), ())
    assert "2 things broken; " in report.verdict(found) and "nothing" in report.verdict(found)
    assert "broken" in shown(found, -1) and "-> repair it" in shown(found, -1)


def test_the_facts_are_shown_with_their_units():
    """One line for each topic."""
    here = replace(
        QUIET,
        cache_bytes={"L1d": 48 * 2**10, "L3": 2**25},
        cache_shared_by={"L1d": 1, "L3": 4},
        memory_bytes=8 * 10**9,
        memory_available_bytes=0,
        cpu_quota_cores=1.5,
    )
    text = " ".join(shown(Examination(here, CpuLoad(0.5, 0.25), 0.031, (), ())).split())
    for part in (
        "4 logical, 4 physical, 4 for this process, CPU time of 1.5 by quota, on 1 NUMA node",
        "L1d 48 KiB for 1 core, L3 32 MiB for 4 cores",
        "8.0 GB, 0.0 GB available, huge pages",
        "governor performance, turbo off",
        "0.25 cores busy with other work, load 0.00 over the last minute, 3.1%",
    ):
        assert part in text


def test_unknown_facts_are_not_shown():
    """No line contains None."""
    names = ("cores_physical", "memory_bytes", "memory_available_bytes", "compiler")
    here = replace(QUIET, **UNKNOWN, **dict.fromkeys(names), cache_bytes={})
    found = Examination(here, CpuLoad(0.5, None), None, (), ())
    assert "None" not in shown(found, 1) and "cores" in shown(found, 1)
