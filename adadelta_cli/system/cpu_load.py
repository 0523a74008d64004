"""Sample the load that other processes put on the machine while this one sleeps."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from adadelta_cli.system import machine

if TYPE_CHECKING:
    from types import ModuleType

MAX_NAMED = 3  # processes
MIN_NAMED_CORES = 0.05  # the least CPU use of a process that is worth naming


class CpuTimes(NamedTuple):
    """CPU time since boot, in seconds, summed over the cores that this process may run on.

    Attributes:
        busy: worked, for any process.
        steal: had work, while the hypervisor ran another machine.
    """

    busy: float
    steal: float

    def since(self, before: CpuTimes) -> CpuTimes:
        """Return the difference from an earlier reading."""
        return CpuTimes(self.busy - before.busy, self.steal - before.steal)

    @property
    def steal_share(self) -> float | None:
        """Return the share of wanted CPU time that was stolen; None below a second of it."""
        wanted = self.busy + self.steal
        return self.steal / wanted if wanted >= 1 else None


@dataclass(frozen=True)
class BusyProcess:
    """A busy process.

    Attributes:
        pid: the PID.
        name: of the program.
        cores: the number of cores that it kept busy.
    """

    pid: int
    name: str
    cores: float


@dataclass(frozen=True)
class CpuLoad:
    """The load of other processes while this one slept.

    Attributes:
        seconds: of the sample.
        busy_cores: busy ones of those that this process may run on; None if unknown.
        busiest: the busiest processes first. In a container, only those inside it.
    """

    seconds: float
    busy_cores: float | None
    busiest: tuple[BusyProcess, ...] = ()


def sample_load(seconds: float = 0.5) -> CpuLoad:
    """Sleep for some seconds; return the load of other processes in that time."""
    processes, before, start = _cpu_seconds(), cpu_times(), time.monotonic()
    time.sleep(seconds)
    after, seconds = cpu_times(), time.monotonic() - start
    if before is None or after is None:
        return CpuLoad(seconds, None)
    busiest = _busiest(processes, _cpu_seconds(), seconds)
    return CpuLoad(seconds, after.since(before).busy / seconds, busiest)


def cpu_times() -> CpuTimes | None:
    """Read the CPU times of the cores that this process may run on; None if unknown."""
    times = machine.query_psutil(lambda psutil: psutil.cpu_times(percpu=True)) or []
    # psutil gives no core numbers, and no times of cores that are offline.
    numbered = zip(machine.online_cores() or range(len(times)), times, strict=False)
    allowed = machine.affinity()
    own = [each for core, each in numbered if core in allowed]
    if not own:
        return None
    # A guest's time is in `user` and `nice`; macOS has neither interrupts nor steal.
    work = ("user", "nice", "system", "irq", "softirq")
    busy = sum(getattr(each, name, 0.0) for each in own for name in work)
    return CpuTimes(busy, sum(getattr(each, "steal", 0.0) for each in own))


def _cpu_seconds() -> dict[int, tuple[str, float]]:
    """Return name and CPU time, in seconds, of each other process that shows them, by PID."""

    def read(psutil: ModuleType) -> dict[int, tuple[str, float]]:
        return {
            each.pid: (each.info["name"], times.user + times.system)
            for each in psutil.process_iter(["name", "cpu_times"])
            if (times := each.info["cpu_times"]) and each.pid != os.getpid()
        }

    return machine.query_psutil(read) or {}


def _busiest(
    before: dict[int, tuple[str, float]], after: dict[int, tuple[str, float]], seconds: float
) -> tuple[BusyProcess, ...]:
    found = [
        BusyProcess(pid, name, (used - before.get(pid, (name, 0.0))[1]) / seconds)
        for pid, (name, used) in after.items()
    ]
    busy = [each for each in found if each.cores >= MIN_NAMED_CORES]
    return tuple(sorted(busy, key=lambda each: -each.cores)[:MAX_NAMED])
