"""`run --kvstore`: what it allows, and this process's part in a distributed training."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adadelta_cli.distributed.cluster import RENDEZVOUS_S, Cluster
from adadelta_cli.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from adadelta_cli.distributed.worker import Worker
    from adadelta_cli.implementations.array_backends import Device

RECOMPUTES = "take --update-on workers, which computes the same"


@dataclass(frozen=True)
class Request:
    """What the options ask for.

    Attributes:
        kvstore: dist_sync, or None for a training of this process alone.
        update_on: workers or servers; None: not given.
        wait_s: seconds to wait for the other processes; None: not given.
        records: the gradients of all steps are recorded.
    """

    kvstore: str | None
    update_on: str | None
    wait_s: float | None
    records: bool

    def check(self, device: Device, backend: str, *, dtype: str, resume: bool) -> None:
        """Check that the other options suit a distributed training.

        Raises:
            UsageError: they do not; the message says why.
        """
        if not self.kvstore:
            for option, value in {"--update-on": self.update_on, "--wait": self.wait_s}.items():
                if value is not None:
                    raise UsageError(f"{option} needs --kvstore; add it, or leave {option} out")
            return
        if device.kind != "cpu":
            raise UsageError(
                f"--kvstore and --ctx {device}: the parameter server of MXNet's wheel holds the "
                "tensors on CPUs; leave one of them out"
            )
        if backend not in {"auto", "mxnet"}:
            raise UsageError(
                f"--kvstore and --backend {backend}: the parameter server is MXNet's and takes "
                "MXNet's arrays only; leave one of them out"
            )
        if self.update_on == "servers":
            self._check_servers(dtype=dtype, resume=resume)

    def _check_servers(self, *, dtype: str, resume: bool) -> None:
        reasons = {
            "--resume": (resume, "the servers keep the optimizer's states, and MXNet saves none"),
            "--record-gradients": (self.records, "the servers do not return the sum of gradients"),
            "--dtype float16": (dtype == "float16", "MXNet's servers would hold other masters"),
        }
        for option, (is_given, reason) in reasons.items():
            if is_given:
                raise UsageError(f"--update-on servers and {option}: {reason}; {RECOMPUTES}")

    @property
    def _cluster(self) -> Cluster:
        return Cluster.from_environment(os.environ)

    @property
    def _patience_s(self) -> float:
        return self.wait_s or RENDEZVOUS_S

    @property
    def serves(self) -> bool:
        """Whether this process is a server or the scheduler."""
        return bool(self.kvstore) and self._cluster.role != "worker"

    def serve(self) -> None:
        """Serve until the workers have finished.

        Raises:
            UnavailableError: MXNet is missing, or the scheduler cannot listen.
        """
        from adadelta_cli.distributed import serving

        _prepare(self._cluster)
        serving.serve(self._cluster, self._patience_s)

    def join(self) -> contextlib.AbstractContextManager[Worker | None]:
        """Connect to the other processes; without a key-value store, do nothing.

        Raises:
            UnavailableError: MXNet or its parameter server is missing.
        """
        if not self.kvstore:
            return contextlib.nullcontext()
        from adadelta_cli.distributed.worker import Worker

        _prepare(self._cluster)
        return Worker(self._cluster, self.update_on or "workers", self._patience_s)


def _prepare(cluster: Cluster) -> None:
    from adadelta_cli.mxnet_bridge import runtime

    cluster.check_address()
    cluster.prepare()
    features: Any = runtime.load_mxnet().runtime.Features()
    if not features.is_enabled("DIST_KVSTORE"):
        raise UnavailableError(
            "--kvstore: this MXNet was built without its parameter server (USE_DIST_KVSTORE); "
            "install the released wheel, mxnet==2.0.0b1"
        )
