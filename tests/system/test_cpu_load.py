"""The load of other processes is sampled, on the cores that this process may use."""

from __future__ import annotations

import os
from types import SimpleNamespace

import psutil
import pytest

from adadelta_cli.system import cpu_load, machine

TIMES = [
    SimpleNamespace(user=1, nice=2, system=4, idle=800, irq=32, softirq=64, steal=5),
    SimpleNamespace(user=900, nice=900, system=900, idle=900, irq=900, softirq=900, steal=900),
    SimpleNamespace(user=10, nice=20, system=40, idle=800),  # as on macOS
]


@pytest.mark.parametrize(
    ("online", "allowed", "expected"),
    [
        ("", {0, 2}, (173, 5)),
        ("0,5-6", {0, 6}, (173, 5)),  # the cores between are offline
        ("0-2", {0}, (103, 5)),
        ("0-2", {7}, None),
    ],
)
def test_cpu_times_are_of_the_cores_of_this_process(monkeypatch, online, allowed, expected):
    """Work and steal are summed over its cores, by their numbers; idling is no work."""
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: TIMES if percpu else None)
    monkeypatch.setattr(machine, "online_cores", lambda: machine._core_list(online))
    monkeypatch.setattr(machine, "affinity", lambda: allowed)
    assert cpu_load.cpu_times() == expected


def test_steal_is_a_share_of_the_wanted_time():
    """It is unknown if too little was wanted."""
    before = cpu_load.CpuTimes(10, 1)
    assert cpu_load.CpuTimes(13, 2).since(before).steal_share == 0.25
    assert cpu_load.CpuTimes(10.1, 1.1).since(before).steal_share is None


def test_busy_processes_are_named(monkeypatch):
    """With PID, name and use; this process and those that hide their times are left out."""

    def processes(used):
        return [
            SimpleNamespace(pid=pid, info={"name": name, "cpu_times": times})
            for pid, name, seconds in used
            for times in [SimpleNamespace(user=seconds - 1, system=1)]
        ] + [SimpleNamespace(pid=9, info={"name": "hidden", "cpu_times": None})]

    before = [(1, "idle", 5.0), (2, "busy", 5.0), (3, "gone", 1.0), (os.getpid(), "own", 1.0)]
    after = [(1, "idle", 5.0), (2, "busy", 1e4), (4, "new", 1e3), (os.getpid(), "own", 1e5)]
    answers = [processes(before), processes(after)]
    monkeypatch.setattr(psutil, "process_iter", lambda _attributes: answers.pop(0))
    load = cpu_load.sample_load(0.01)
    assert [(each.pid, each.name) for each in load.busiest] == [(2, "busy"), (4, "new")]
    assert load.busiest[1].cores == pytest.approx(1e3 / load.seconds)


def test_the_load_of_this_machine_is_sampled():
    """The processes of this machine have times."""
    assert os.getppid() in cpu_load._cpu_seconds()
    assert cpu_load.sample_load(0.01).busy_cores is not None
