"""The facts about a machine are read from its files; a missing file is no error."""

from __future__ import annotations

import json
import sys

import psutil
import pytest

from adadelta_cli import files
from adadelta_cli.system import cpu_load, machine

CPU = "sys/devices/system/cpu"
LAPTOP = {
    "proc/cpuinfo": "processor: 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t\t: fpu sse2 avx avx2\n\n"
    "processor: 1\nmodel name\t: Another CPU\n",
    "proc/meminfo": "MemTotal: 8000000 kB\nMemFree: 1 kB\nMemAvailable: 5000000 kB\n"
    "SwapTotal: 300 kB\nSwapFree: 100 kB",
    "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n",
    f"{CPU}/intel_pstate/no_turbo": "0\n",
    f"{CPU}/online": "0-1,3\n",
    "sys/class/dmi/id/sys_vendor": "Some Maker",
    "proc/driver/nvidia/gpus/0000:01/information": "Model: \t NVIDIA H100\nIRQ: 4\n",
} | {
    f"{CPU}/cpu{core}/{name}": text
    for core in range(4)  # two physical ones, of two threads each, on a node each
    for name, text in {
        "topology/physical_package_id": "0",
        "topology/core_id": str(core % 2),
        f"node{core % 2}/cpulist": "",
        "cpufreq/scaling_governor": "powersave\n",
        "cache/index0/level": "1",
        "cache/index0/type": "Data",
        "cache/index0/size": "48K",
        "cache/index0/shared_cpu_list": f"{core % 2},{core % 2 + 2}",
        "cache/index1/level": "1",
        "cache/index1/type": "Instruction",
        "cache/index1/size": "64K",
        "cache/index3/level": "3",
        "cache/index3/type": "Unified",
        "cache/index3/size": "32768K",
        "cache/index3/shared_cpu_list": "0-3",
    }.items()
}


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Return a function that makes a machine of files, with four cores for this process."""

    def write(contents):
        for name, text in contents.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return machine.Machine()

    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: None if logical else 2)
    monkeypatch.setattr(machine, "affinity", lambda: {0, 1, 2, 3})
    return write


def test_a_laptop_is_described(pretend):
    """Each fact comes from its file."""
    here = pretend(LAPTOP)
    assert (here.processor, here.simd) == ("Some CPU @ 3 GHz", "AVX2")
    assert (here.cores_physical, here.cores_available) == (2, 4)
    assert machine.online_cores() == [0, 1, 3]
    assert here.cache_bytes == {"L1d": 49152, "L3": 2**25}
    assert here.cache_shared_by == {"L1d": 2, "L3": 4}
    assert here.memory_available_bytes == 5_000_000 * 1024 and here.swap_used_bytes == 200 * 1024
    assert (here.numa_nodes, here.governor, here.turbo) == (2, "powersave", True)
    assert here.hypervisor == "" and here.gpus == ("NVIDIA H100",)


def test_cores_that_this_process_may_not_run_on_do_not_count(pretend, monkeypatch):
    """A process that is pinned to one physical core sees that core and its node."""
    monkeypatch.setattr(machine, "affinity", lambda: {1, 3})
    here = pretend(LAPTOP)
    assert (here.cores_available, here.cores_available_physical, here.cores_physical) == (2, 1, 2)
    assert here.numa_nodes == 1


def test_unknown_facts_are_none_or_empty(pretend, monkeypatch):
    """There is no error without /proc and /sys, without a load average, or without psutil."""

    def refuse(*_, **__):
        raise OSError

    monkeypatch.setattr(psutil, "getloadavg", refuse)
    monkeypatch.setattr(psutil, "cpu_count", refuse)
    here = pretend({})
    nothing = {name for name, fact in vars(here).items() if fact is None}
    numbers = {"cores_physical", "cpu_quota_cores", "numa_nodes", "load_average"}
    memory = {"memory_bytes", "swap_used_bytes", "memory_available_bytes"}
    assert nothing >= numbers | memory | {"governor", "turbo"}
    assert here.cache_bytes == {} and here.gpus == () and here.hypervisor == ""
    assert cpu_load.sample_load(0.01).busy_cores is None
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert machine.available_bytes() is None


@pytest.mark.parametrize(
    ("contents", "hypervisor"),
    [
        ({"proc/cpuinfo": "flags: sse2 hypervisor"}, "unknown"),
        ({"sys/hypervisor/type": "xen"}, "xen"),
        (
            {"sys/class/dmi/id/sys_vendor": "QEMU", "sys/class/dmi/id/product_name": "Standard PC"},
            "QEMU Standard PC",
        ),
        ({"sys/class/dmi/id/sys_vendor": "Dell Inc."}, ""),
    ],
)
def test_virtual_machines_are_recognised(pretend, contents, hypervisor):
    """By the processor's flag, Xen's file or the firmware; a physical machine is not."""
    assert pretend(contents).hypervisor == hypervisor


@pytest.mark.parametrize(
    ("contents", "container"),
    [
        ({".dockerenv": ""}, "docker"),
        ({"run/.containerenv": ""}, "podman"),
        ({"run/systemd/container": "systemd-nspawn\n"}, "systemd-nspawn"),
        ({"proc/self/cgroup": "0::/kubepods/besteffort/x"}, "kubernetes"),
        ({"proc/self/cgroup": "0::/user.slice"}, ""),
    ],
)
def test_containers_are_recognised(pretend, monkeypatch, contents, container):
    """By their files, systemd's file, or the name of the control group."""
    monkeypatch.delenv("container", raising=False)
    assert pretend(contents).container == container


MEMORY = {"proc/meminfo": "MemTotal: 2000000 kB\nMemFree: 1 kB\nMemAvailable: 1000000 kB"}


@pytest.mark.parametrize(
    ("contents", "quota", "available"),
    [
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/cpu.max": "150000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
                "sys/fs/cgroup/a/b/memory.max": "5000",
                "sys/fs/cgroup/a/b/memory.current": "3000",
                "sys/fs/cgroup/a/b/memory.stat": "anon 1\ninactive_file 500\n",
            },
            1.5,
            2500,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n1:cpu,cpuacct:/not/shown/here",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "7000",
                "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "3000",
            },
            2.0,
            4000,
        ),
        (
            {
                "proc/self/cgroup": "0::/",
                "sys/fs/cgroup/cpu.max": "max 100000",
                "sys/fs/cgroup/memory.max": "max",
                "sys/fs/cgroup/memory.current": "3000",
            },
            None,
            1_024_000_000,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            None,
            1_024_000_000,
        ),
    ],
    ids=["version 2, inherited", "version 1", "version 2, unlimited", "version 1, unlimited"],
)
def test_control_groups_limit(pretend, contents, quota, available):
    """The tightest limit of a group and its parents counts; droppable files count as free."""
    here = pretend(MEMORY | contents)
    assert here.cpu_quota_cores == quota and here.memory_available_bytes == available


def test_only_relevant_variables_are_listed(pretend, monkeypatch):
    """Others may hold secrets."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("SOME_TOKEN", "secret")
    listed = pretend({}).environment
    assert listed["OMP_NUM_THREADS"] == "3" and "SOME_TOKEN" not in listed


def test_this_machine_is_described():
    """As JSON, with what psutil knows; Numba's layers are found without importing it."""
    about = json.loads(files.json_text(machine.describe()))
    assert 0 < about["memory_available_bytes"] <= about["memory_bytes"]
    assert about["cores_available"] == machine.available_cores()
    assert {"numpy", "numba"} <= set(about["versions"])
