"""A machine on which nothing disturbs a measurement."""

from __future__ import annotations

from dataclasses import replace

from adadelta_cli.system import machine
from adadelta_cli.system.cpu_load import CpuLoad

QUIET = replace(
    machine.Machine(),
    cores=4,
    cores_physical=4,
    cores_available=4,
    cores_available_physical=4,
    cpu_quota_cores=None,
    swap_used_bytes=0,
    numa_nodes=1,
    governor="performance",
    turbo=False,
    load_average=0.0,
    stack_bytes=None,
    huge_pages="always [madvise] never",
    hypervisor="",
    environment={},
)
IDLE = CpuLoad(0.5, 0.0)
# What a machine that hides its facts has of them.
NUMBERS = ("cores_available_physical", "swap_used_bytes", "numa_nodes", "load_average")
UNKNOWN = dict.fromkeys((*NUMBERS, "governor", "turbo")) | {"huge_pages": ""}
