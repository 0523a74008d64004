"""Doctor tries each requirement, reports a failure with its fix, and survives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import attempts
import pytest
from conftest import HAS_MXNET
from quiet import IDLE, QUIET

from adadelta_cli.doctor import checks
from adadelta_cli.doctor.checks import CheckOutcome, Examination, Requirement
from adadelta_cli.doctor.findings import Level
from adadelta_cli.errors import ExitCode
from adadelta_cli.implementations.registry import PEERS
from adadelta_cli.system import machine
from adadelta_cli.system.sandbox import ReportedError, Sandbox


@pytest.mark.parametrize(
    ("attempt", "observed", "fix"),
    [
        (attempts.crash, "SIGSEGV", "default fix"),
        (attempts.is_killed, "SIGKILL", "free some memory"),
        (attempts.lacks_memory, "MemoryError", "free some memory"),
        (attempts.cannot_cache, "no locator", "NUMBA_CACHE_DIR"),
        (attempts.lacks_a_module, "does not load", "(nonesuch)"),
        (attempts.knows_the_fix, "numba 0.1", "pip install numba"),
        (attempts.loses_the_device, "the GPU failed", "default fix"),
    ],
)
def test_a_failure_is_reported_with_its_fix(attempt, observed, fix):
    """A known fix replaces the requirement's own; only a required one makes doctor fail."""
    for required in (True, False):
        with Sandbox(60) as sandbox:
            requirement = Requirement("x", "y", "default fix", attempt, required=required)
            check = checks.run_check(requirement, sandbox)
        assert check.outcome is CheckOutcome.BROKEN
        assert observed in check.observed and fix in check.fix
        found = Examination(QUIET, IDLE, None, (check,), ())
        (finding,) = found.findings
        assert finding.level is (Level.BROKEN if required else Level.MISSING)
        assert found.exit_code == (ExitCode.UNAVAILABLE if required else ExitCode.OK)


def test_a_check_that_hangs_is_broken(monkeypatch):
    """It ends at the time limit, which the message names."""
    monkeypatch.setattr(checks, "TIMEOUT_S", 0.1)
    with Sandbox(60) as sandbox:
        sandbox.call(abs, -1)  # starting takes longer than the time limit
        sandbox.timeout = checks.TIMEOUT_S
        check = checks.run_check(Requirement("x", "y", "fix", signal.pause), sandbox)
    assert (check.outcome, check.fix) == (CheckOutcome.BROKEN, "fix")
    assert "hung" in check.observed and "0.1 s" in check.observed


def test_what_works_is_no_finding():
    """It is reported with what it did."""
    with Sandbox(60) as sandbox:
        check = checks.run_check(Requirement("x", "y", "fix", attempts.fine), sandbox)
    assert (check.outcome, check.observed, check.fix) == (CheckOutcome.WORKS, "fine", "")
    assert Examination(QUIET, IDLE, None, (check,), ()).findings == []


def test_what_is_missing_is_not_tried():
    """It is no error, even if it would be required to work."""
    with Sandbox(60) as sandbox:
        requirement = Requirement("x", "y", "fix", attempts.crash, attempts.no_gizmo, required=True)
        check = checks.run_check(requirement, sandbox)
    assert (check.outcome, check.fix) == (CheckOutcome.MISSING, "fix") and "gizmo" in check.observed
    found = Examination(QUIET, IDLE, None, (check,), ())
    assert [each.level for each in found.findings] == [Level.MISSING]
    assert found.exit_code == ExitCode.OK


def test_a_wrong_kernel_is_found(monkeypatch):
    """Differing bits are an error."""
    assert "every bit" in checks._try_kernel()
    from adadelta_cli.kernels import cpu

    prepared = cpu.prepared_step

    def wrong(parameters, hyper, rates, weight_decays):
        return prepared(parameters, hyper._replace(rho=0.5), rates, weight_decays)

    monkeypatch.setattr(cpu, "prepared_step", wrong)
    with pytest.raises(ReportedError, match=r"differs from numpy in \d+ of \d+"):
        checks._try_kernel()


def test_unmet_version_requirements_are_named(monkeypatch):
    """With the installed version, and the command that installs the needed one; extras excluded."""
    wanted = ["numpy>=1.0", "numba<0.1", "nonesuch>=2", "torch>=99; extra == 'torch'"]
    monkeypatch.setattr(checks.metadata, "requires", lambda _name: wanted)
    with pytest.raises(ReportedError) as raised:
        checks._try_versions()
    message = str(raised.value)
    assert f"numba {machine.versions(['numba'])['numba']}" in message and "numpy" not in message
    assert "nonesuch" in message and "torch" not in message
    assert raised.value.fix.endswith("pip install 'numba<0.1' 'nonesuch>=2'")


def test_every_framework_has_a_check():
    """The purpose of one names it, as `--impl` takes it."""
    named = {word.strip(",") for each in checks.REQUIREMENTS for word in each.purpose.split()}
    assert named >= {*PEERS}


def run(*args, **environment):
    """Run `adadelta doctor`."""
    command = [sys.executable, "-m", "adadelta_cli", "doctor", *args]
    environment = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_the_command_prints_one_document():
    """All required parts work here: exit code 0, and nothing else on stdout."""
    done = run("--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0 == document["exit_code"], document["findings"]
    outcomes = {check["name"]: check["outcome"] for check in document["checks"]}
    assert outcomes["fused kernel"] == "works" == outcomes["configs and plots"]
    assert outcomes["MXNet"] == ("works" if HAS_MXNET else "missing")
    assert document["machine"]["cores_available"] == machine.available_cores()


def test_a_broken_library_is_reported(tmp_path):
    """A NumPy that ends the process is exit code 3, with a report."""
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text("import os; os._exit(7)")
    path = os.pathsep.join([str(tmp_path), str(Path(checks.__file__).parents[2])])
    done = run("-q", PYTHONPATH=path)
    assert done.returncode == 3
    assert "crashed: exited with 7" in done.stdout and "Error: " in done.stderr
