"""What is told of a machine, from the files of pretended ones; and of one that tells nothing."""

from __future__ import annotations

import json
import os
import sys

import pytest

from adadelta_cli import files
from adadelta_cli.system import cpu_load, machine

CPU = "sys/devices/system/cpu"
LAPTOP = {
    "proc/cpuinfo": "processor: 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t\t: fpu sse2 avx avx2\n\n"
    "processor: 1\nmodel name\t: Another CPU\n",
    "proc/meminfo": "MemAvailable:  5000000 kB\nSwapTotal: 300 kB\nSwapFree: 100 kB",
    "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n",
    f"{CPU}/intel_pstate/no_turbo": "0\n",
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
    """Return what makes a machine of files, with four cores for this process."""

    def write(contents):
        for name, text in contents.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return machine.inspect_machine()

    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr(machine, "affinity", lambda: {0, 1, 2, 3})
    return write


def test_a_laptop_is_described(pretend):
    """Each fact comes from its file."""
    here = pretend(LAPTOP)
    assert (here.processor, here.simd) == ("Some CPU @ 3 GHz", "AVX2")
    assert (here.cores_physical, here.cores_available) == (2, 4)
    assert here.cache_bytes == {"L1d": 49152, "L3": 2**25}
    assert here.cache_shared_by == {"L1d": 2, "L3": 4}
    assert here.memory_available_bytes == 5_000_000 * 1024 and here.swap_used_bytes == 200 * 1024
    assert (here.numa_nodes, here.governor, here.turbo) == (2, "powersave", True)
    assert here.hypervisor == "" and here.gpus == ("NVIDIA H100",)


def test_cores_that_this_process_may_not_run_on_do_not_count(pretend, monkeypatch):
    """Pinned to one physical core and its node, that is what is told."""
    monkeypatch.setattr(machine, "affinity", lambda: {1, 3})
    here = pretend(LAPTOP)
    assert (here.cores_available, here.cores_available_physical, here.cores_physical) == (2, 1, 2)
    assert here.numa_nodes == 1


def test_a_machine_that_tells_nothing_is_described(pretend, monkeypatch):
    """Without /proc and /sys, and without a load, there is no error: None, or empty."""

    def refuse(*_):
        raise OSError

    monkeypatch.setattr(os, "getloadavg", refuse)
    monkeypatch.setattr(os, "sysconf", refuse)
    here = pretend({})
    nothing = (
        here.cores_physical,
        here.cpu_quota_cores,
        here.memory_bytes,
        here.swap_used_bytes,
        here.memory_available_bytes,
        here.numa_nodes,
        here.governor,
        here.turbo,
        here.load_average,
    )
    assert set(nothing) == {None}
    assert here.cache_bytes == {} and here.gpus == () and here.hypervisor == ""
    assert cpu_load.sample_load(0.01).busy_cores is None


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
    """By the processor's flag, by Xen's file, by the firmware; a real one is not taken for one."""
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
    """By their marks, by what systemd wrote, by the name of the control group."""
    monkeypatch.delenv("container", raising=False)
    assert pretend(contents).container == container


MEMORY = {"proc/meminfo": "MemAvailable: 1000000 kB"}


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
    """The tightest of a group and those above it holds; files that can be dropped are free."""
    here = pretend(MEMORY | contents)
    assert here.cpu_quota_cores == quota and here.memory_available_bytes == available


def test_variables_that_matter_are_told(pretend, monkeypatch):
    """And no others, which may hold secrets."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("SOME_TOKEN", "secret")
    told = pretend({}).environment
    assert told["OMP_NUM_THREADS"] == "3" and "SOME_TOKEN" not in told


def test_this_machine_is_described():
    """All of it can be written as JSON; Numba's layers are found without importing it."""
    about = json.loads(files.json_text(machine.describe()))
    assert about["cores_available"] == machine.available_cores()
    assert {"numpy", "numba"} <= set(about["versions"]) and "workqueue" in about["threading_layers"]


# --- activity -------------------------------------------------------------------------------------


def test_processor_times_are_of_the_cores_at_hand(pretend):
    """Work and steal are summed over this process's cores, in seconds; idling is no work."""
    pretend(
        {"proc/stat": "cpu  9 9 9 9 9 9 9 9\ncpu3 1 2 4 800 16 32 64 5 3 3\ncpu7 9 9 9 9 9 9 9 9\n"}
    )
    ticks = os.sysconf("SC_CLK_TCK")
    assert cpu_load.cpu_times() == ((1 + 2 + 4 + 32 + 64) / ticks, 5 / ticks)


def test_steal_is_a_share_of_what_was_wanted():
    """Too little work tells nothing."""
    before = cpu_load.CpuTimes(10, 1)
    assert cpu_load.CpuTimes(13, 2).since(before).steal_share == 0.25
    assert cpu_load.CpuTimes(10.1, 1.1).since(before).steal_share is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells in /proc")
def test_a_busy_process_is_named():
    """By its number and name, as busy as it was; this one is not."""
    before = {1: ("idle", 5.0), 2: ("busy (x)", 5.0), 3: ("gone", 1.0)}
    after = {1: ("idle", 5.0), 2: ("busy (x)", 5.4), 4: ("new", 0.1)}
    assert cpu_load._busiest(before, after, 0.5) == (
        cpu_load.BusyProcess(2, "busy (x)", pytest.approx(0.8)),
        cpu_load.BusyProcess(4, "new", pytest.approx(0.2)),
    )
    assert os.getpid() not in cpu_load._process_seconds() and os.getppid() in (
        cpu_load._process_seconds()
    )
