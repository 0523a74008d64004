"""A worker of a distributed training: its share of each batch, and what it exchanges."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli.distributed.heartbeats import confirmed, lost_scheduler, rendezvous_failure
from adadelta_cli.distributed.watchdog import Watchdog
from adadelta_cli.errors import (
    AdadeltaError,
    BrokenError,
    ExitCode,
    UnavailableError,
    UsageError,
    in_one_line,
)
from adadelta_cli.mxnet_bridge import runtime
from adadelta_cli.system import ending

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import Self

    from adadelta_cli.distributed.cluster import Cluster

PLACES = ("workers", "servers")
PATIENCE_S = 60.0  # for a step to end after a signal
OTHER_STOPPED = "another worker stopped, and says why; finished results, if any, are on disk"


class Worker:
    """This process among the workers of a training.

    All workers hold the same weights and the same data. Each computes the gradient on its share of
    the batch; MXNet's servers add the gradients. The optimizer's step is taken by each worker, on
    the sum, or by the servers, which then send the weights.

    Args:
        cluster: who takes part.
        update_on: one of PLACES: where the optimizer's step is taken.
        wait_s: seconds for all processes to connect, and to leave.

    Attributes:
        rank: of this worker, from 0; the first one writes the files.
    """

    def __init__(self, cluster: Cluster, update_on: str, wait_s: float) -> None:
        self.cluster, self.update_on = cluster, update_on
        self._wait_s = wait_s
        self._agreed = False  # all workers leave at the same point
        self._watchdog = Watchdog(PATIENCE_S).start()
        self._keys = itertools.count()
        self._mx = runtime.load_mxnet()
        with self._watchdog.limit(
            wait_s, ExitCode.UNAVAILABLE, rendezvous_failure(cluster, wait_s)
        ):
            self._store = self._connect()
        self.rank: int = self._store.rank
        self._watchdog.watch(confirmed(lost_scheduler(self._store, cluster)))
        self._stop_key = next(self._keys)
        self._stop, self._stops = (self._mx.np.zeros(1) for _ in range(2))
        self._store.broadcast(self._stop_key, self._stop, out=self._stops)

    def _connect(self) -> Any:
        mx = self._mx
        with runtime.stderr_closed():
            mx.nd.zeros(1, ctx=mx.cpu_pinned()).wait_to_read()  # MXNet prints a line at the first
        try:
            return mx.kv.create("dist_sync")
        except mx.MXNetError as error:
            raise UnavailableError(
                f"this worker cannot join {self.cluster.described}: {in_one_line(error)}; check "
                "the DMLC_ variables and the network"
            ) from error

    @property
    def updates_on_servers(self) -> bool:
        """Whether the servers take the optimizer's step."""
        return self.update_on == "servers"

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the trajectory beside the config, as fields of a `RunResult`."""
        return {"workers": self.cluster.workers, "update_on": self.update_on}

    # --- a training -------------------------------------------------------------------------------

    def share(self, tensors: Sequence[Any], make_optimizer: Callable[[], Any]) -> SharedSteps:
        """Share the steps of a training, whose workers all call this for the same tensors.

        Args:
            tensors: each with the MXNet arrays `weight` and `grad`.
            make_optimizer: makes MXNet's optimizer for the servers.
        """
        return SharedSteps(self, tensors, make_optimizer)

    def bounds(self, samples: int) -> slice:
        """Return this worker's share of that many samples; it may be empty."""
        workers = self.cluster.workers
        return slice(self.rank * samples // workers, (self.rank + 1) * samples // workers)

    def broadcast(self, values: np.ndarray) -> np.ndarray:
        """Return the first worker's values; all pass arrays of the same shape and dtype."""
        array = self._mx.np.array(values, dtype=values.dtype)
        self.initialize(next(self._keys), array)
        return array.asnumpy()

    def initialize(self, key: int, array: Any) -> None:
        """Let the servers hold the first worker's array under a key; copy it to all workers."""
        self._store.broadcast(key, array, out=array)

    def new_keys(self, number: int) -> list[int]:
        """Return keys that are not in use, the same ones on each worker."""
        return [*itertools.islice(self._keys, number)]

    def set_optimizer(self, optimizer: Any) -> None:
        """Send the optimizer to the servers; all workers call this."""
        if self.rank == 0:
            self._store.set_optimizer(optimizer)
        self._store._barrier()  # noqa: SLF001 - nobody pushes a gradient before

    def add_gradients(self, keys: list[int], grads: list[Any]) -> None:
        """Replace each gradient by the sum over all workers; MXNet's engine does it later."""
        self._store.pushpull(keys, grads, out=grads)

    def update_on_servers(self, keys: list[int], grads: list[Any], weights: list[Any]) -> None:
        """Let the servers take a step with the sum of the gradients; get the new weights."""
        self._store.push(keys, grads)
        self._store.pull(keys, out=weights)

    # --- stopping together ------------------------------------------------------------------------
    # A worker that stops by itself leaves the others waiting for its gradient. So each asks the
    # others first, with a number that travels beside the gradients: 0, or 1 to stop. The servers'
    # optimizer leaves it at 0 as long as its gradient is 0, whatever the optimizer.

    def request(self, *, stop: bool) -> None:
        """Send whether this worker wants to stop; all workers call this, then `must_stop`."""
        self._stop[:] = float(stop)
        self._store.pushpull(self._stop_key, self._stop, out=self._stops)

    def must_stop(self) -> bool:
        """Return whether a worker wants to stop."""
        if self._stops.item() != 0:
            self._agreed = True
        return self._agreed

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Execute a block on all workers; if it fails on one, all stop.

        Raises:
            BrokenError: it failed on another one.
        """
        try:
            yield
        except AdadeltaError:
            self.request(stop=True)
            self.must_stop()
            raise
        self.request(stop=False)
        if self.must_stop():
            raise BrokenError(OTHER_STOPPED)

    def release(self, release: Callable[[], None]) -> None:
        """After a step: stop if a worker has asked for it.

        Args:
            release: raises the signal that this worker has got, if any.

        Raises:
            BrokenError: another worker got a signal.
        """
        if self.must_stop():
            self._watchdog.taken()
            release()
            raise BrokenError(OTHER_STOPPED)

    # --- leaving ----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Take part."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave with all others, or at once if they do not leave now."""
        if kind is None or self._agreed:
            message = (
                f"the other processes did not leave within {self._wait_s:g} s; what this worker "
                "has finished is on disk"
            )
            with self._watchdog.limit(self._wait_s, ExitCode.BROKEN, message):
                self._watchdog.watch(None)
                del self._store  # MXNet's destructor waits for the others
        else:
            ending.skip_shutdown()


class SharedSteps:
    """The steps of one training on several workers; see `Worker.share`."""

    def __init__(
        self, worker: Worker, tensors: Sequence[Any], make_optimizer: Callable[[], Any]
    ) -> None:
        self._worker = worker
        self._weights = [each.weight for each in tensors]
        self._grads = [each.grad for each in tensors]
        self._make_optimizer = make_optimizer
        self._keys: list[int] = []
        self.wants_to_stop: Callable[[], bool] = lambda: False
        self.on_servers = worker.updates_on_servers

    def start(self, identity: bytes, step: int) -> int:
        """Check that all workers train the same; share the first worker's weights.

        Args:
            identity: what decides the trajectory, as bytes of the same number on each worker.
            step: the steps that this worker has taken.

        Returns:
            The steps that the first worker has taken.

        Raises:
            UsageError: this worker trains something else than the first.
            BrokenError: another worker does.
        """
        worker = self._worker
        header = worker.broadcast(np.array([step, *identity], dtype=np.float64))
        with worker.together():
            if bytes(header[1:].astype(np.uint8)) != identity:
                raise UsageError(
                    "this worker's config, options, data or version differ from those of the "
                    "first worker; start all with the same"
                )
        if self.on_servers:
            worker.set_optimizer(self._make_optimizer())
        self._keys = worker.new_keys(len(self._weights))
        for key, weight in zip(self._keys, self._weights, strict=True):
            worker.initialize(key, weight)
        return int(header[0])

    def advance(
        self,
        batch: Sequence[Any],
        differentiate: Callable[[Sequence[Any]], None],
        update: Callable[[], None],
    ) -> None:
        """Take one step with the other workers.

        Args:
            batch: of all workers.
            differentiate: computes the mean gradient of samples into the tensors' `grad`.
            update: takes the optimizer's step on this worker.
        """
        self.differentiate(batch, differentiate)
        worker = self._worker
        if self.on_servers:
            worker.update_on_servers(self._keys, self._grads, self._weights)
        else:
            worker.add_gradients(self._keys, self._grads)
        worker.request(stop=self.wants_to_stop())
        if not self.on_servers:
            update()

    def differentiate(
        self, batch: Sequence[Any], differentiate: Callable[[Sequence[Any]], None]
    ) -> None:
        """Compute this worker's part of the gradient on a batch of all workers.

        The mean of a batch is the sum of the means of its shares, each times its share's size.
        """
        samples = len(batch[0])
        bounds = self._worker.bounds(samples)
        size = bounds.stop - bounds.start
        if size:
            differentiate([values[bounds] for values in batch])
        for grad in self._grads:
            if size < samples:
                grad[:] = grad * (size / samples) if size else 0.0
