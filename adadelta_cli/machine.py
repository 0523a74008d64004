"""The machine: its processor, its memory, and the threads that libraries may use on it."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

# Each library reads its own variable, once, when it is loaded.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)
LIBRARIES = ("adadelta", "mxnet", "numpy", "numba", "llvmlite", "scikit-learn")
KIBIBYTE = 1024


def available_cores() -> int:
    """Count the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads(count: int) -> None:
    """Let every library use `count` CPU threads; to be called before any of them is imported."""
    os.environ.update(thread_environment(count))


def thread_environment(count: int) -> dict[str, str]:
    """Return the environment variables that limit every library to `count` CPU threads."""
    return dict.fromkeys(THREAD_VARIABLES, str(count))


def available_bytes() -> int | None:
    """Say how much memory can be allocated without swapping; None where the system does not tell.

    In a container that is what its control group still allows, where that is less.
    """
    free = _fields("/proc/meminfo").get("MemAvailable")
    if free is None:
        return None
    limit, used = (_text(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    allowed = [int(limit) - int(used)] if limit.isdigit() and used.isdigit() else []
    return min([int(free.split()[0]) * KIBIBYTE, *allowed])


def cache_bytes() -> dict[str, int]:
    """Return the sizes of the data caches that a core sees, by level; Linux only."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_text(index / name) for name in ("level", "type", "size"))
        if kind != "Instruction" and size.endswith("K"):
            found[f"L{level}" + ("d" if kind == "Data" else "")] = int(size[:-1]) * KIBIBYTE
    return found


def describe() -> dict[str, Any]:
    """Describe what a timing depends on; nothing is imported, nothing is measured."""
    return {
        "processor": _fields("/proc/cpuinfo").get("model name", platform.processor()),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "cores_available": available_cores(),
        "cache_bytes": cache_bytes(),
        "memory_available_bytes": available_bytes(),
        "huge_pages": _text("/sys/kernel/mm/transparent_hugepage/enabled"),
        "load_average": os.getloadavg()[0],
        "kernel": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the version of each library that is installed."""
    return {name: found for name in LIBRARIES if (found := _version(name))}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _fields(path: str) -> dict[str, str]:
    """Read lines of the form `name: value`; of a repeated name, the first."""
    pairs = [line.split(":", 1) for line in _text(path).splitlines() if ":" in line]
    return {name.strip(): value.strip() for name, value in reversed(pairs)}
