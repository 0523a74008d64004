"""What disturbs a measurement."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadelta_cli.doctor.findings import Finding, Level, severity
from adadelta_cli.system import machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from adadelta_cli.system.cpu_load import CpuLoad
    from adadelta_cli.system.machine import Machine

BUSY_CORES = 0.1  # below it: the system's own housekeeping
STEAL_SHARE = 0.01
SWAP_BYTES = 64 * 2**20  # less is left there by long-lived processes that nobody misses


def conditions(here: Machine, seen: CpuLoad, steal_share: float | None) -> list[Finding]:
    """Say what about a machine and its environment will disturb a measurement, the worst first.

    Args:
        here: the machine.
        seen: what others do on it.
        steal_share: how much of the processor time that was wanted the hypervisor gave to others.
    """
    found = [*_busy(here, seen), *_stolen(steal_share)]
    found += [each for condition in CONDITIONS for each in condition(here)]
    return sorted(found, key=severity)


def _busy(here: Machine, seen: CpuLoad) -> Iterator[Finding]:
    busy = here.load_average if seen.busy_cores is None else seen.busy_cores
    if busy is None or busy < BUSY_CORES:
        return
    who = ", ".join(f"{p.name} (pid {p.pid}) {p.cores:.1f}" for p in seen.busiest)
    when = "over the last minute" if seen.busy_cores is None else "before this began its checks"
    yield Finding(
        Level.DISTURBS,
        f"{busy:.1f} of {here.cores_available} cores were busy {when}"
        + (
            f": {who}"
            if who
            else ", by processes that came and went, or that cannot be seen from here"
        ),
        "what shares cores and memory bandwidth with a step slows it down, and unevenly",
        "end it, or measure when it is done",
    )


def _stolen(share: float | None) -> Iterator[Finding]:
    if share is not None and share > STEAL_SHARE:
        yield Finding(
            Level.DISTURBS,
            f"the hypervisor gave {share:.1%} of the processor time that these checks wanted to "
            "other machines",
            "a step is interrupted in the middle, which no process here can see",
            "measure at another hour, or on a machine that nobody shares",
        )


def _virtual(here: Machine) -> Iterator[Finding]:
    if here.hypervisor:
        yield Finding(
            Level.NOTE,
            f"this is a virtual machine (hypervisor: {here.hypervisor})",
            "others on the same host take memory bandwidth and cache, which no counter here shows",
            "compare two versions with bench --against, which times them in turn; for other "
            "numbers, measure with --processes 6, again at another hour, and believe what agrees",
        )


def _quota(here: Machine) -> Iterator[Finding]:
    quota, cores = here.cpu_quota_cores, here.cores_available
    if quota is not None and quota < cores:
        yield Finding(
            Level.DISTURBS,
            f"the control group allows the time of {quota:g} cores, on {cores} cores",
            "when it is used up, all threads stand still for the rest of each tenth of a second",
            f"--threads {max(1, math.floor(quota))}; or lift it: docker run --cpus={cores}",
        )


def _threads(here: Machine) -> Iterator[Finding]:
    cores = here.cores_available
    for name in machine.THREAD_VARIABLES:
        count = here.environment.get(name, "").split(",")[0]
        if not count.isdigit() or int(count) == cores:
            continue
        many = int(count) > cores
        yield Finding(
            Level.DISTURBS if many else Level.NOTE,
            f"{name} is {count}, and there are {cores} cores",
            "threads wait for each other's cores" if many else "run and verify leave cores unused",
            f"unset {name}, or --threads {cores}; bench sets it by itself",
        )


def _multithreading(here: Machine) -> Iterator[Finding]:
    cores, physical = here.cores_available, here.cores_available_physical
    if physical is not None and physical < cores:
        yield Finding(
            Level.NOTE,
            f"the {cores} cores are {physical} physical ones, each with several threads",
            "threads of one core share its first caches, and its bandwidth",
            f"see which is faster: adadelta bench --threads {physical},{cores}",
        )


def _governor(here: Machine) -> Iterator[Finding]:
    if here.governor not in {None, "performance"}:
        yield Finding(
            Level.DISTURBS,
            f"the cores' frequency is governed by {here.governor}",
            "cores slow down between samples, and take a while to come back",
            "sudo cpupower frequency-set --governor performance",
        )


def _turbo(here: Machine) -> Iterator[Finding]:
    if here.turbo:
        yield Finding(
            Level.NOTE,
            "turbo is on",
            "the frequency depends on heat, and on how many cores are busy",
            "none needed for shares of the ceiling, which is timed in turn with the step; for "
            "seconds, turn it off in the firmware",
        )


def _numa(here: Machine) -> Iterator[Finding]:
    if here.numa_nodes is not None and here.numa_nodes > 1:
        yield Finding(
            Level.DISTURBS,
            f"the cores lie on {here.numa_nodes} NUMA nodes",
            "how fast a page is depends on the node that first touched it, by chance",
            "numactl --cpunodebind=0 --membind=0 adadelta bench",
        )


def _swap(here: Machine) -> Iterator[Finding]:
    if (here.swap_used_bytes or 0) > SWAP_BYTES:
        yield Finding(
            Level.DISTURBS,
            f"{(here.swap_used_bytes or 0) / 1e9:.1f} GB lie in swap",
            "memory has run short; what is touched there is first read from the disk",
            "end what takes the memory, then: sudo swapoff -a && sudo swapon -a",
        )


def _huge_pages(here: Machine) -> Iterator[Finding]:
    if "[never]" in here.huge_pages:
        yield Finding(
            Level.DISTURBS,
            "transparent huge pages are off",
            "large arrays lie in pages of 4 KiB, and looking up their addresses costs bandwidth",
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        )


@dataclass(frozen=True)
class EnvironmentRule:
    """A variable of the environment that spoils something.

    Attributes:
        name: the variable's.
        spoils: a pattern of the values that do, in lower case, as a whole.
        why: it matters.
        level: how bad that is.
    """

    name: str
    spoils: str
    why: str
    level: Level = Level.DISTURBS


NONZERO, SOMETHING, YES = r"(?!0$).+", r".+", r"1|true|yes|on"
NARROW = "the kernel is compiled for another processor than this, with fewer instructions"
SPINS = "threads that wait keep their cores busy, and other processes, of bench too, from them"
SETTINGS = (
    EnvironmentRule(
        "MXNET_ENGINE_TYPE",
        "naiveengine",
        "MXNet then makes the main thread, and NumPy with it, flush subnormals; verify refuses to "
        "run so",
        Level.BROKEN,
    ),
    EnvironmentRule(
        "MXNET_CPU_WORKER_NTHREADS",
        r"(?!0|1$)\d+",
        "MXNet's threads differ in whether they flush subnormals: bits may change from run to run",
    ),
    EnvironmentRule("MXNET_PROFILER_AUTOSTART", YES, "MXNet records every operation"),
    EnvironmentRule(
        "NUMBA_DISABLE_JIT", NONZERO, "the kernel is not compiled, and cannot run", Level.BROKEN
    ),
    EnvironmentRule("NUMBA_BOUNDSCHECK", NONZERO, "the kernel looks at every index"),
    EnvironmentRule("NUMBA_DEBUGINFO", NONZERO, "the kernel is compiled for a debugger"),
    EnvironmentRule("NUMBA_OPT", r"[012]", "the kernel is not optimised in full"),
    EnvironmentRule("NUMBA_LOOP_VECTORIZE", "0", "the kernel's loops are not vectorised"),
    EnvironmentRule("NUMBA_ENABLE_AVX", "0", NARROW),
    EnvironmentRule("NUMBA_CPU_NAME", SOMETHING, NARROW),
    EnvironmentRule("NUMBA_CPU_FEATURES", SOMETHING, NARROW),
    EnvironmentRule(
        "OMP_PROC_BIND",
        r"(?!false$).+",
        "the first OpenMP library that is loaded binds the main thread to one core; from then on, "
        "Numba and this tool see one core",
    ),
    EnvironmentRule("OMP_DYNAMIC", YES, "OpenMP takes fewer threads when the machine is busy"),
    EnvironmentRule("OMP_WAIT_POLICY", "active", SPINS),
    EnvironmentRule("GOMP_SPINCOUNT", r"infini.*", SPINS),
    EnvironmentRule("KMP_BLOCKTIME", r"infini.*", SPINS),
)


def _settings(here: Machine) -> Iterator[Finding]:
    for setting in SETTINGS:
        value = here.environment.get(setting.name, "")
        if re.fullmatch(setting.spoils, value.lower()):
            yield Finding(
                setting.level, f"{setting.name} is {value}", setting.why, f"unset {setting.name}"
            )


CONDITIONS: tuple[Callable[[Machine], Iterator[Finding]], ...] = (
    _settings,
    _threads,
    _quota,
    _governor,
    _numa,
    _swap,
    _huge_pages,
    _multithreading,
    _turbo,
    _virtual,
)
