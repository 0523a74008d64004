"""`doctor` finds what is wrong with a machine, says what fixes it, and survives what it tries."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import HAS_MXNET
from rich.console import Console

from adadelta_cli.doctor import checks, report
from adadelta_cli.doctor.checks import CheckOutcome, Examination, Level, Requirement
from adadelta_cli.errors import ExitCode
from adadelta_cli.system import machine
from adadelta_cli.system.cpu_load import BusyProcess, CpuLoad
from adadelta_cli.system.sandbox import Sandbox

QUIET = replace(
    machine.inspect_machine(),
    cores=4,
    cores_physical=4,
    cores_available=4,
    cores_available_physical=4,
    cpu_quota_cores=None,
    swap_used_bytes=0,
    numa_nodes=1,
    governor="performance",
    turbo=False,
    load_average=0.0,
    huge_pages="always [madvise] never",
    hypervisor="",
    environment={},
)
IDLE = CpuLoad(0.5, 0.0)


def test_a_quiet_machine_has_nothing_to_tell():
    """No finding without a cause."""
    assert checks.conditions(QUIET, IDLE, 0.0) == []


@pytest.mark.parametrize(
    ("changes", "level", "told", "fix"),
    [
        ({"cpu_quota_cores": 1.5}, Level.DISTURBS, "1.5 cores, on 4", "--threads 1;"),
        ({"governor": "powersave"}, Level.DISTURBS, "powersave", "cpupower"),
        ({"numa_nodes": 2}, Level.DISTURBS, "2 NUMA", "numactl"),
        ({"swap_used_bytes": 10**9}, Level.DISTURBS, "1.0 GB lie in swap", "swapoff"),
        ({"huge_pages": "always madvise [never]"}, Level.DISTURBS, "huge pages are off", "madvise"),
        ({"cores_available_physical": 2}, Level.NOTE, "2 physical", "--threads 2,4"),
        ({"turbo": True}, Level.NOTE, "turbo", "firmware"),
        ({"hypervisor": "KVM"}, Level.NOTE, "KVM", "--processes 6"),
    ],
)
def test_a_machine_that_disturbs_is_told(changes, level, told, fix):
    """Each condition alone gives one finding: its level, what was seen, what to do."""
    (finding,) = checks.conditions(replace(QUIET, **changes), IDLE, 0.0)
    assert finding.level is level
    assert told in finding.what and fix in finding.fix and finding.why


@pytest.mark.parametrize(
    ("name", "value", "level"),
    [
        ("NUMBA_DISABLE_JIT", "1", Level.BROKEN),
        ("NUMBA_DISABLE_JIT", "0", None),
        ("MXNET_ENGINE_TYPE", "NaiveEngine", Level.BROKEN),
        ("MXNET_ENGINE_TYPE", "ThreadedEngine", None),
        ("MXNET_CPU_WORKER_NTHREADS", "4", Level.DISTURBS),
        ("MXNET_CPU_WORKER_NTHREADS", "1", None),
        ("NUMBA_ENABLE_AVX", "0", Level.DISTURBS),
        ("NUMBA_OPT", "3", None),
        ("OMP_PROC_BIND", "true", Level.DISTURBS),
        ("OMP_PROC_BIND", "FALSE", None),
        ("OMP_WAIT_POLICY", "ACTIVE", Level.DISTURBS),
        ("OMP_NUM_THREADS", "8", Level.DISTURBS),
        ("OMP_NUM_THREADS", "1", Level.NOTE),
        ("NUMBA_NUM_THREADS", "4", None),
    ],
)
def test_the_environment_is_judged(name, value, level):
    """Values that spoil something are found, with the word that unsets them; others are not."""
    found = checks.conditions(replace(QUIET, environment={name: value}), IDLE, None)
    assert [each.level for each in found] == [level] * (level is not None)
    assert all(name in each.what and f"unset {name}" in each.fix for each in found)


def test_a_busy_machine_is_told_with_who_it_is():
    """By what was seen; by the load average where nothing can be seen."""
    seen = CpuLoad(0.5, 1.5, (BusyProcess(42, "compiler", 1.4),))
    (finding,) = checks.conditions(QUIET, seen, None)
    assert "1.5 of 4 cores" in finding.what and "compiler (pid 42) 1.4" in finding.what
    (finding,) = checks.conditions(replace(QUIET, load_average=2.0), CpuLoad(0.5, None), None)
    assert "2.0 of 4 cores" in finding.what and "last minute" in finding.what


def test_stolen_time_is_told():
    """With how much it was."""
    (finding,) = checks.conditions(QUIET, IDLE, 0.031)
    assert finding.level is Level.DISTURBS and "3.1%" in finding.what


# --- what is tried --------------------------------------------------------------------------------


def _crash():
    signal.raise_signal(signal.SIGSEGV)


def _cannot_cache():
    raise RuntimeError("cannot cache function '_update': no locator available for file 'x'")


def _unmet():
    raise checks.Fault("numba 0.1; needed: 'numba>=0.60' 'rich>=13.7'")


def _fine():
    return "fine"


def _no_gizmo():
    return "gizmo not installed"


@pytest.mark.parametrize(
    ("piece", "outcome", "seen", "fix", "level"),
    [
        (Requirement("x", "y", "fix", _fine), CheckOutcome.WORKS, "fine", "", None),
        (
            Requirement("x", "y", "fix", _crash, required=True),
            CheckOutcome.BROKEN,
            "SIGSEGV",
            "fix",
            Level.BROKEN,
        ),
        (
            Requirement("x", "y", "fix", _crash),
            CheckOutcome.BROKEN,
            "SIGSEGV",
            "fix",
            Level.MISSING,
        ),
        (
            Requirement("x", "y", "fix", _cannot_cache, required=True),
            CheckOutcome.BROKEN,
            "no locator",
            "NUMBA_CACHE_DIR",
            Level.BROKEN,
        ),
        (
            Requirement("x", "y", "fix", _unmet),
            CheckOutcome.BROKEN,
            "numba 0.1",
            "pip install 'numba>=0.60' 'rich>=13.7'",
            Level.MISSING,
        ),
        (
            Requirement("x", "y", "fix", _crash, _no_gizmo, required=True),
            CheckOutcome.MISSING,
            "gizmo",
            "fix",
            Level.MISSING,
        ),
    ],
    ids=["works", "crashes", "optional", "cache", "requirements", "missing"],
)
def test_a_piece_is_tried(piece, outcome, seen, fix, level):
    """What it does is reported and not suffered; only a required one that fails is broken."""
    with Sandbox(60) as sandbox:
        check = checks.run_check(piece, sandbox)
    assert check.outcome is outcome and seen in check.observed and fix in check.fix
    found = Examination(QUIET, IDLE, None, (check,), ())
    assert [each.level for each in found.findings] == ([level] if level else [])
    assert found.exit_code == (ExitCode.UNAVAILABLE if level is Level.BROKEN else ExitCode.OK)


def test_a_wrong_kernel_is_found(monkeypatch):
    """Bits that differ are no success."""
    assert "every bit" in checks._try_kernel()
    from adadelta_cli.kernels import cpu

    prepared = cpu.prepared_step

    def wrong(parameters, hyper, rates, weight_decays):
        return prepared(parameters, hyper._replace(rho=0.5), rates, weight_decays)

    monkeypatch.setattr(cpu, "prepared_step", wrong)
    with pytest.raises(checks.Fault, match=r"differs from numpy in \d+ of \d+"):
        checks._try_kernel()


def test_requirements_that_are_not_met_are_named(monkeypatch):
    """With the version that is here, and the words that install what is needed; extras apart."""
    wanted = ["numpy>=1.0", "numba<0.1", "nonesuch>=2", "torch>=99; extra == 'torch'"]
    monkeypatch.setattr(checks.metadata, "requires", lambda _name: wanted)
    with pytest.raises(checks.Fault) as told:
        checks._try_requirements()
    numba = machine.versions(["numba"])["numba"]
    wanted = f"numba {numba}, nonesuch missing; needed: 'numba<0.1' 'nonesuch>=2'"
    assert str(told.value) == wanted


def test_the_levels_are_told_the_worst_first():
    """And the exit code is that of the worst."""
    found = checks.conditions(
        replace(QUIET, turbo=True, numa_nodes=2, environment={"NUMBA_DISABLE_JIT": "1"}), IDLE, None
    )
    assert [each.level for each in found] == [Level.BROKEN, Level.DISTURBS, Level.NOTE]


# --- the report -----------------------------------------------------------------------------------


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
    found = Examination(here, IDLE, 0.0, CHECKS, tuple(checks.conditions(here, IDLE, 0.0)))
    text = shown(found)
    assert "always madvise [never]" in text and "does it" in text
    assert "-> pip install 'adadelta[torch]'" in text and "huge pages are off" in text
    assert "does it" not in shown(found, -1) and "adadelta[torch]" in shown(found, -1)
    assert "libgomp.so" in shown(found, 1) and "libgomp.so" not in text
    assert "1 thing will disturb" in report.verdict(found)
    assert max(map(len, shown(found, width=60).splitlines())) <= 60


def test_what_is_not_known_is_not_shown():
    """No line says None."""
    unknown = {
        "cores_physical": None,
        "memory_bytes": None,
        "memory_available_bytes": None,
        "swap_used_bytes": None,
        "numa_nodes": None,
        "governor": None,
        "turbo": None,
        "huge_pages": "",
        "load_average": None,
        "cache_bytes": {},
        "compiler": None,
    }
    here = replace(QUIET, **unknown)
    found = Examination(here, CpuLoad(0.5, None), None, (), ())
    assert "None" not in shown(found, 1) and "cores" in shown(found, 1)


# --- the command ----------------------------------------------------------------------------------


def run(*args, **environment):
    """Run `adadelta doctor`."""
    command = [sys.executable, "-m", "adadelta_cli", "doctor", *args]
    environment = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_the_command_answers_as_one_document():
    """Here all that is needed works; exit code 0, and nothing else on stdout."""
    done = run("--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0 == document["exit_code"], document["findings"]
    outcomes = {check["name"]: check["outcome"] for check in document["checks"]}
    assert outcomes["fused kernel"] == "works" == outcomes["configs and plots"]
    assert outcomes["MXNet"] == ("works" if HAS_MXNET else "missing")
    assert document["machine"]["cores_available"] == machine.available_cores()


def test_it_tells_of_a_broken_library(tmp_path):
    """NumPy that takes the process down is exit code 3, with a report."""
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text("import os; os._exit(7)")
    path = os.pathsep.join([str(tmp_path), str(Path(checks.__file__).parents[2])])
    done = run("-q", PYTHONPATH=path)
    assert done.returncode == 3
    assert "crashed: exited with 7" in done.stdout and "Error: " in done.stderr
