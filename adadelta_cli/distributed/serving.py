"""The scheduler, which knows all processes, and the servers, which add the gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adadelta_cli.distributed.heartbeats import connected, lost_members, lost_scheduler
from adadelta_cli.distributed.watchdog import Watchdog
from adadelta_cli.errors import UnavailableError, in_one_line
from adadelta_cli.mxnet_bridge import runtime, server

if TYPE_CHECKING:
    from adadelta_cli.distributed.cluster import Cluster


def serve(cluster: Cluster, wait_s: float) -> None:
    """Serve until the workers have finished.

    Args:
        cluster: who takes part.
        wait_s: seconds for all processes to connect.

    Raises:
        UnavailableError: MXNet cannot start the parameter server.
    """
    watchdog = Watchdog().start()
    lost = lost_members if cluster.role == "scheduler" else lost_scheduler

    def watch(store: Any) -> None:
        watchdog.watch(connected(store, cluster, wait_s, lost(store, cluster)))

    mx = runtime.load_mxnet()
    try:
        server.serve(watch)
    except mx.MXNetError as error:
        raise UnavailableError(
            f"this {cluster.role} cannot join {cluster.described}: {in_one_line(error)}; check the "
            "DMLC_ variables and the network"
        ) from error
