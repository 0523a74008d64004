"""A server or the scheduler of MXNet's parameter server.

MXNet's own server (`mxnet.kvstore.kvstore_server`) starts inside the import of MXNet, and goes on
after an error: if it cannot unpickle the optimizer, it adds the gradients to nothing and stores the
sum as the weights. This one starts when AdaDelta exists, and ends at its first error.
"""

from __future__ import annotations

import functools
import pickle
from typing import TYPE_CHECKING, Any

from adadelta_cli.errors import ExitCode, in_one_line
from adadelta_cli.mxnet_bridge import runtime
from adadelta_cli.system import ending

if TYPE_CHECKING:
    from collections.abc import Callable

SET_OPTIMIZER = 0  # kController in MXNet's src/kvstore/kvstore_dist_server.h


def serve(watch: Callable[[Any], None] | None = None) -> None:
    """Serve until the workers have finished; the role and the others are in the environment.

    Args:
        watch: gets MXNet's key-value store before the other processes are awaited.
    """
    mx = runtime.load_mxnet()
    with runtime.stderr_closed():
        mx.nd.zeros(1, ctx=mx.cpu_pinned()).wait_to_read()  # MXNet prints a line at the first one

    class Server(mx.kvstore.kvstore_server.KVStoreServer):  # type: ignore[name-defined]
        def _controller(self) -> Callable[[int, bytes, Any], None]:
            return functools.partial(_obey, mx, self.kvstore)

    store = mx.kv.create("dist")
    if watch:
        watch(store)
    Server(store).run()


def _ends_at_errors(function: Callable[..., None]) -> Callable[..., None]:
    """Let an exception end the process: ctypes would print it and go on."""

    @functools.wraps(function)
    def called(*arguments: Any) -> None:
        try:
            function(*arguments)
        except BaseException as error:  # noqa: BLE001 - whatever a user's optimizer raises
            ending.abort(
                ExitCode.BROKEN,
                f"Error: a server of the training failed: {in_one_line(error)}; the weights on it "
                "are lost. Each process needs the same versions, and can import the optimizer",
            )

    return called


@_ends_at_errors
def _obey(mx: Any, store: Any, command: int, body: bytes, _handle: Any) -> None:
    """Execute a command of the first worker."""
    if command != SET_OPTIMIZER:
        raise ValueError(f"unknown command {command}")
    optimizer = pickle.loads(body)  # noqa: S301 - as MXNet does: workers are trusted
    store._updater = mx.optimizer.get_updater(optimizer)  # noqa: SLF001 - as store.set_optimizer
    store._set_updater(_ends_at_errors(store._updater))  # noqa: SLF001
