"""What else runs on the machine, seen while this process does nothing; Linux only."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from adadelta_cli.system import machine

if TYPE_CHECKING:
    from pathlib import Path

BUSIEST = 3  # processes to name
IDLE_SHARE = 0.05  # of a core: what a process that is worth naming takes at least


class CpuTimes(NamedTuple):
    """Seconds of all cores that this process may run on, together, since the machine started.

    Attributes:
        busy: in which they worked, for whomever.
        steal: in which they had work, and the hypervisor gave the processor to another machine.
    """

    busy: float
    steal: float

    def since(self, before: CpuTimes) -> CpuTimes:
        """Return what was added since an earlier reading."""
        return CpuTimes(self.busy - before.busy, self.steal - before.steal)

    @property
    def steal_share(self) -> float | None:
        """How much of the time in which there was work was stolen; None for too little work."""
        wanted = self.busy + self.steal
        return self.steal / wanted if wanted >= 1 else None


@dataclass(frozen=True)
class BusyProcess:
    """A process that is busy.

    Attributes:
        pid: its number.
        name: of its program, 15 characters at most.
        cores: how many cores it kept busy.
    """

    pid: int
    name: str
    cores: float


@dataclass(frozen=True)
class CpuLoad:
    """What others did while this process slept.

    Attributes:
        seconds: for how long that was.
        busy_cores: how many of the cores that this process may run on were busy; None: not known.
        busiest: who was, the busiest first. In a container, only what runs inside it.
    """

    seconds: float
    busy_cores: float | None
    busiest: tuple[BusyProcess, ...] = ()


def sample_load(seconds: float = 0.5) -> CpuLoad:
    """Sleep, and see what others do meanwhile."""
    processes, before, start = _process_seconds(), cpu_times(), time.monotonic()
    time.sleep(seconds)
    after, seconds = cpu_times(), time.monotonic() - start
    if before is None or after is None:
        return CpuLoad(seconds, None)
    busiest = _busiest(processes, _process_seconds(), seconds)
    return CpuLoad(seconds, after.since(before).busy / seconds, busiest)


# /proc/stat: user, nice, system, irq and softirq are work; a guest's time is in the first two.
WORK, STEAL = (0, 1, 2, 5, 6), 7


def cpu_times() -> CpuTimes | None:
    """Read what the cores did; None where the system does not tell."""
    lines = [line.split() for line in _read(machine.ROOT / "proc/stat").splitlines()]
    wanted = [[f"cpu{core}"] for core in machine.affinity()]
    cores = [[float(word) for word in words[1:]] for words in lines if words[:1] in wanted]
    if not cores:
        return None
    busy = sum(times[place] for times in cores for place in WORK)
    steal = sum(times[STEAL] for times in cores)
    return CpuTimes(busy / _ticks(), steal / _ticks())


def _process_seconds() -> dict[int, tuple[str, float]]:
    """Return name and processor time of every process but this one, by number."""
    found = {}
    for folder in (machine.ROOT / "proc").glob("[1-9]*"):
        name, _, numbers = _read(folder / "stat").partition("(")[2].rpartition(")")
        if numbers and int(folder.name) != os.getpid():
            user, system = map(int, numbers.split()[11:13])
            found[int(folder.name)] = name, (user + system) / _ticks()
    return found


def _busiest(
    before: dict[int, tuple[str, float]], after: dict[int, tuple[str, float]], seconds: float
) -> tuple[BusyProcess, ...]:
    found = [
        BusyProcess(pid, name, (used - before.get(pid, (name, 0.0))[1]) / seconds)
        for pid, (name, used) in after.items()
    ]
    busy = sorted((each for each in found if each.cores >= IDLE_SHARE), key=lambda p: -p.cores)
    return tuple(busy[:BUSIEST])


def _ticks() -> int:
    return os.sysconf("SC_CLK_TCK")


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # a process that ended meanwhile
        return ""
