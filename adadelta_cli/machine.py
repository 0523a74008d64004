"""The machine: its processor, its memory, and the threads that libraries may use on it."""

from __future__ import annotations

import os

# Each library reads its own variable, once, when it is loaded.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)


def available_cores() -> int:
    """Count the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads(count: int) -> None:
    """Let every library use `count` CPU threads; to be called before any of them is imported."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(count)
