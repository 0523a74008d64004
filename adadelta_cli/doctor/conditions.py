"""Find what disturbs a measurement: load, and settings of the machine and the environment.

`CONDITIONS` and `VARIABLES` are the tables to add to.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

from adadelta_cli.doctor.findings import Finding, Level, severity
from adadelta_cli.system import environment, machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from adadelta_cli.system.cpu_load import CpuLoad
    from adadelta_cli.system.machine import Machine

MIN_BUSY_CORES = 0.1  # below it: the system's own housekeeping
MIN_STEAL_SHARE = 0.01
MIN_SWAP_GB = 0.067  # idle daemons leave less there
BROKEN, DISTURBS, NOTE = Level.BROKEN, Level.DISTURBS, Level.NOTE


def conditions(here: Machine, load: CpuLoad, steal_share: float | None) -> list[Finding]:
    """Return what will disturb a measurement here, the worst first; see `Examination`."""
    facts = _facts(here, load, steal_share)
    found = [each.finding(facts) for each in CONDITIONS if each.holds(facts)]
    return sorted([*found, *_variables(here), *_threads(here)], key=severity)


def _facts(here: Machine, load: CpuLoad, steal_share: float | None) -> SimpleNamespace:
    """Return what `CONDITIONS` is about: the machine's attributes, and what follows from them."""
    cores, quota, busy = here.cores_available, here.cpu_quota_cores, load.busy_cores
    busiest = ", ".join(f"{each.name} (pid {each.pid}) {each.cores:.1f}" for each in load.busiest)
    return SimpleNamespace(
        **vars(here),
        busy_cores=(here.load_average or 0.0) if busy is None else busy,
        busy_when="over the last minute" if busy is None else "before the checks",
        busiest=busiest or "processes that are short-lived, or not visible from here",
        steal_share=steal_share or 0.0,
        quota=cores if quota is None else quota,
        quota_threads=max(1, int(quota or 1)),
        physical=here.cores_available_physical or cores,
        stack_kib=(here.stack_bytes or 0) >> 10,
        swap_gb=(here.swap_used_bytes or 0) / 1e9,
    )


class Condition(NamedTuple):
    """A condition that disturbs: whether it holds, and its finding, as formats of the facts."""

    holds: Callable[[SimpleNamespace], bool]
    level: Level
    what: str
    why: str
    fix: str

    def finding(self, facts: SimpleNamespace) -> Finding:
        """Fill in the facts."""
        what, fix = (text.format(**vars(facts)) for text in (self.what, self.fix))
        return Finding(self.level, what, self.why, fix)


CONDITIONS = (
    Condition(
        lambda f: f.busy_cores >= MIN_BUSY_CORES,
        DISTURBS,
        "{busy_cores:.1f} of {cores_available} cores were busy {busy_when}: {busiest}",
        "other processes take cores and memory bandwidth: a step is slower, and timings vary",
        "end them, or measure when they are done",
    ),
    Condition(
        lambda f: f.steal_share > MIN_STEAL_SHARE,
        DISTURBS,
        "the hypervisor gave {steal_share:.1%} of the CPU time that the checks wanted to other "
        "machines",
        "a step is interrupted in the middle, which no process here can see",
        "measure at another hour, or on a machine that is not shared",
    ),
    Condition(
        lambda f: f.quota < f.cores_available,
        DISTURBS,
        "the control group limits CPU time to {quota:g} cores, on {cores_available} cores",
        "when the quota is used up, all threads pause for the rest of each tenth of a second",
        "--threads {quota_threads}; or lift it: docker run --cpus={cores_available}",
    ),
    Condition(
        lambda f: f.governor not in {None, "performance"},
        DISTURBS,
        "the cores' frequency governor is {governor}",
        "cores slow down between samples, and take a while to speed up again",
        "sudo cpupower frequency-set --governor performance",
    ),
    Condition(
        lambda f: (f.numa_nodes or 1) > 1,
        DISTURBS,
        "the cores belong to {numa_nodes} NUMA nodes",
        "the speed of a page depends on the node that happened to touch it first",
        "numactl --cpunodebind=0 --membind=0 adadelta bench",
    ),
    Condition(
        lambda f: f.swap_gb > MIN_SWAP_GB,
        DISTURBS,
        "{swap_gb:.1f} GB are in swap",
        "memory has run short; swapped pages are read from the disk when they are touched",
        "end what takes the memory, then: sudo swapoff -a && sudo swapon -a",
    ),
    Condition(
        lambda f: "[never]" in f.huge_pages,
        DISTURBS,
        "transparent huge pages are off",
        "large arrays are in pages of 4 KiB, and translating their addresses costs bandwidth",
        "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
    ),
    Condition(
        lambda f: f.physical < f.cores_available,
        NOTE,
        "the {cores_available} cores are {physical} physical ones with several threads each",
        "threads of one core share its first caches and its bandwidth",
        "see which is faster: adadelta bench --threads {physical},{cores_available}",
    ),
    Condition(
        lambda f: f.stack_bytes is not None and f.stack_bytes < machine.LEAST_STACK,
        BROKEN,
        "the stack is limited to {stack_kib} KiB",
        "OpenBLAS and the compiler of the kernels crash with one of less than "
        f"{machine.LEAST_STACK >> 10} KiB",
        environment.MORE_STACK,
    ),
    Condition(
        lambda f: bool(f.turbo),
        NOTE,
        "turbo is on",
        "the frequency depends on heat and on the number of busy cores",
        "none needed for shares of the ceiling, which is timed in turn with the step; for "
        "seconds, turn it off in the firmware",
    ),
    Condition(
        lambda f: bool(f.hypervisor),
        NOTE,
        "this is a virtual machine (hypervisor: {hypervisor})",
        "others on the same host take memory bandwidth and cache, which no counter here shows",
        "compare two versions with bench --against, which times them in turn; for other numbers, "
        "use --processes 6, repeat at another hour, and trust what agrees",
    ),
)


NONZERO, ANY, YES = r"(?!0$).+", r".+", r"1|true|yes|on"
FLUSHES = "MXNet then makes the main thread, and NumPy with it, flush subnormals; verify refuses it"
VARIES = "MXNet's threads differ in whether they flush subnormals: bits may change from run to run"
BINDS = (
    "the first OpenMP library that is loaded binds the main thread to one core; from then on, "
    "Numba and adadelta see one core"
)
NARROW = "the kernel is compiled for another processor, with fewer instructions"
SPINS = "waiting threads keep their cores busy, which bench's other processes then lack"
# name, pattern of the values that disturb (in lower case, as a whole), level, why
VARIABLES = (
    ("MXNET_ENGINE_TYPE", "naiveengine", BROKEN, FLUSHES),
    ("MXNET_CPU_WORKER_NTHREADS", r"(?!0|1$)\d+", DISTURBS, VARIES),
    ("MXNET_PROFILER_AUTOSTART", YES, DISTURBS, "MXNet records every operation"),
    ("NUMBA_DISABLE_JIT", NONZERO, BROKEN, "the kernel is not compiled, and cannot run"),
    ("NUMBA_BOUNDSCHECK", NONZERO, DISTURBS, "the kernel checks every index"),
    ("NUMBA_DEBUGINFO", NONZERO, DISTURBS, "the kernel is compiled for a debugger"),
    ("ADADELTA_KERNEL", ANY, DISTURBS, "the fused step is always taken in this way"),
    ("NUMBA_OPT", "[012]", DISTURBS, "the kernel is not fully optimised"),
    ("NUMBA_LOOP_VECTORIZE", "0", DISTURBS, "the kernel's loops are not vectorised"),
    ("NUMBA_ENABLE_AVX", "0", DISTURBS, NARROW),
    ("NUMBA_CPU_NAME", ANY, DISTURBS, NARROW),
    ("NUMBA_CPU_FEATURES", ANY, DISTURBS, NARROW),
    ("OMP_PROC_BIND", r"(?!false$).+", DISTURBS, BINDS),
    ("OMP_DYNAMIC", YES, DISTURBS, "OpenMP takes fewer threads when the machine is busy"),
    ("OMP_WAIT_POLICY", "active", DISTURBS, SPINS),
    ("GOMP_SPINCOUNT", "infini.*", DISTURBS, SPINS),
    ("KMP_BLOCKTIME", "infini.*", DISTURBS, SPINS),
)


def _variables(here: Machine) -> Iterator[Finding]:
    for name, pattern, level, why in VARIABLES:
        value = here.environment.get(name, "")
        if re.fullmatch(pattern, value.lower()):
            yield Finding(level, f"{name} is {value}", why, f"unset {name}")
    for name, value in environment.wrong_numbers(here.environment):
        why = "it is no number of threads: a library ends the process, or raises"
        yield Finding(BROKEN, f"{name} is {value}", why, f"unset {name}")


def _threads(here: Machine) -> Iterator[Finding]:
    cores = here.cores_available
    for name in machine.THREAD_VARIABLES:
        count = here.environment.get(name, "").split(",")[0]
        if not count.isdigit() or int(count) == cores:
            continue
        level, why = NOTE, "run and verify leave cores unused"
        if int(count) > cores:
            level, why = DISTURBS, "threads wait for each other's cores"
        yield Finding(
            level,
            f"{name} is {count}, and there are {cores} cores",
            why,
            f"unset {name}, or --threads {cores}; bench sets it itself",
        )
