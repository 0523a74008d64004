"""Each condition that disturbs a measurement is found, with its fix."""

from __future__ import annotations

from dataclasses import replace

import pytest
from quiet import IDLE, QUIET, UNKNOWN

from adadelta_cli.doctor.conditions import CONDITIONS, conditions
from adadelta_cli.doctor.findings import Level
from adadelta_cli.system.cpu_load import BusyProcess, CpuLoad

MACHINES = [
    ({"cpu_quota_cores": 1.5}, Level.DISTURBS, "1.5 cores, on 4", "--threads 1;"),
    ({"governor": "powersave"}, Level.DISTURBS, "powersave", "cpupower"),
    ({"numa_nodes": 2}, Level.DISTURBS, "2 NUMA", "numactl"),
    ({"swap_used_bytes": 10**9}, Level.DISTURBS, "1.0 GB", "swapoff"),
    ({"stack_bytes": 2**18}, Level.BROKEN, "256 KiB", "ulimit -s 8192"),
    ({"huge_pages": "always madvise [never]"}, Level.DISTURBS, "huge pages", "madvise"),
    ({"cores_available_physical": 2}, Level.NOTE, "2 physical", "--threads 2,4"),
    ({"turbo": True}, Level.NOTE, "turbo", "firmware"),
    ({"hypervisor": "KVM"}, Level.NOTE, "KVM", "--processes 6"),
]


@pytest.mark.parametrize("unknown", [{}, UNKNOWN], ids=["quiet", "unknown"])
def test_no_finding_without_a_cause(unknown):
    """A quiet machine has none, nor has one of which nothing is known."""
    load = IDLE if not unknown else CpuLoad(0.5, None)
    assert conditions(replace(QUIET, **unknown), load, None if unknown else 0.0) == []


@pytest.mark.parametrize(("changes", "level", "what", "fix"), MACHINES)
def test_a_machine_that_disturbs_is_reported(changes, level, what, fix):
    """Each condition alone gives one finding: its level, the measured number, the fix."""
    (finding,) = conditions(replace(QUIET, **changes), IDLE, 0.0)
    assert finding.level is level
    assert what in finding.what and fix in finding.fix and finding.why
    assert "{" not in finding.what + finding.why + finding.fix


def test_every_condition_is_tested():
    """Besides `MACHINES`, there are the busy machine and the stolen time below."""
    assert len(MACHINES) + 2 == len(CONDITIONS)


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
def test_environment_variables_that_disturb_are_reported(name, value, level):
    """With the command that unsets them; other values are not."""
    found = conditions(replace(QUIET, environment={name: value}), IDLE, None)
    assert [each.level for each in found] == [level] * (level is not None)
    assert all(name in each.what and f"unset {name}" in each.fix for each in found)


def test_a_busy_machine_is_reported_with_the_busy_processes():
    """By the sampled load; by the load average if it could not be sampled."""
    load = CpuLoad(0.5, 1.5, (BusyProcess(42, "compiler", 1.4),))
    (finding,) = conditions(QUIET, load, None)
    assert "1.5 of 4 cores" in finding.what and "compiler (pid 42) 1.4" in finding.what
    (finding,) = conditions(replace(QUIET, load_average=2.0), CpuLoad(0.5, None), None)
    assert "2.0 of 4 cores" in finding.what and "last minute" in finding.what


def test_stolen_time_is_reported():
    """With its share."""
    (finding,) = conditions(QUIET, IDLE, 0.031)
    assert finding.level is Level.DISTURBS and "3.1%" in finding.what


def test_the_worst_findings_come_first():
    """In the order of the levels."""
    here = replace(QUIET, turbo=True, numa_nodes=2, environment={"NUMBA_DISABLE_JIT": "1"})
    found = conditions(here, IDLE, None)
    assert [each.level for each in found] == [Level.BROKEN, Level.DISTURBS, Level.NOTE]
