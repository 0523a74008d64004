"""Which processes of a training are lost: MXNet's own heartbeats, asked from Python."""

from __future__ import annotations

import ctypes
import math
import time
from typing import TYPE_CHECKING, Any

from adadelta_cli.errors import ExitCode
from adadelta_cli.mxnet_bridge import runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    from adadelta_cli.distributed.cluster import Cluster
    from adadelta_cli.distributed.watchdog import Reason

SCHEDULER, MEMBERS = 1, 2 + 4  # groups of processes: ps-lite, include/ps/base.h
FIRST_SERVER, FIRST_WORKER = 8, 9  # their ranks count in twos: include/ps/internal/postoffice.h
CONFIRMED_S = 4.0  # several heartbeats
EVERYONE_S = -1_000_000  # a time limit by which each known process counts as lost


def silent(store: Any, node: int, for_s: int) -> int:
    """Count the processes that sent no heartbeat for some seconds.

    Args:
        store: MXNet's key-value store.
        node: a process or a group; the scheduler knows all processes, the others the scheduler.
        for_s: seconds; nothing is silent before the processes are connected.
    """
    base, count = runtime.load_mxnet().base, ctypes.c_int()
    function = base._LIB.MXKVStoreGetNumDeadNode  # noqa: SLF001
    base.check_call(function(store.handle, node, ctypes.byref(count), for_s))
    return count.value


def lost_scheduler(store: Any, cluster: Cluster) -> Callable[[], Reason]:
    """Return a function that says, in a worker or server, whether the scheduler is lost."""

    def lost() -> Reason:
        if not silent(store, SCHEDULER, cluster.dead_after_s):
            return None
        return ExitCode.BROKEN, (
            f"the scheduler at {cluster.host}:{cluster.port} sent nothing for "
            f"{cluster.dead_after_s} s: it has ended, as it does when a worker or server is lost, "
            "or the network is down. Its output says more. Start all processes again; with "
            "--resume, the training goes on from its last checkpoint"
        )

    return lost


def lost_members(store: Any, cluster: Cluster) -> Callable[[], Reason]:
    """Return a function that says, in the scheduler, which workers or servers are lost."""
    members = {FIRST_WORKER + 2 * rank: f"worker {rank}" for rank in range(cluster.workers)}
    members |= {FIRST_SERVER + 2 * rank: f"server {rank}" for rank in range(cluster.servers)}

    def lost() -> Reason:
        after_s = cluster.dead_after_s
        names = [name for node, name in members.items() if silent(store, node, after_s)]
        if not names:
            return None
        return ExitCode.BROKEN, (
            f"{', '.join(names)} sent nothing for {after_s} s: ended, or the network is down. The "
            "training ends; start all processes again"
        )

    return lost


def confirmed(lost: Callable[[], Reason], for_s: float = CONFIRMED_S) -> Callable[[], Reason]:
    """Return a function that says what another says for some seconds without a break.

    MXNet measures by the wall clock: if that jumps, as in a virtual machine that was suspended,
    everyone looks lost until the next heartbeat.
    """
    since = math.inf

    def check() -> Reason:
        nonlocal since
        reason, now = lost(), time.monotonic()
        since = min(since, now) if reason else math.inf
        return reason if now - since >= for_s else None

    return check


def connected(
    store: Any, cluster: Cluster, wait_s: float, lost: Callable[[], Reason]
) -> Callable[[], Reason]:
    """Return a function that says which is true: not all have connected in time, or `lost`."""
    until, confirmed_lost = time.monotonic() + wait_s, confirmed(lost)
    group = MEMBERS if cluster.role == "scheduler" else SCHEDULER

    def check() -> Reason:
        nonlocal until
        if until < math.inf:
            if silent(store, group, EVERYONE_S):
                until = math.inf
            elif time.monotonic() > until:
                return ExitCode.UNAVAILABLE, rendezvous_failure(cluster, wait_s)
            return None
        return confirmed_lost()

    return check


def rendezvous_failure(cluster: Cluster, wait_s: float) -> str:
    """Describe that not all processes came."""
    return (
        f"after {wait_s:g} s, not all processes of the training are connected: "
        f"{cluster.described}. Start each of them with the same DMLC_ variables, check address, "
        "port and firewall, or wait longer with --wait"
    )
