"""Where a sweep computes: worker processes of this machine, or a Dask cluster.

Both are executors of `concurrent.futures` that call `isolation.call`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from adadelta_cli.errors import UnavailableError, UsageError, in_one_line, shortened
from adadelta_cli.inputs import DATA_FOLDER
from adadelta_cli.sweep import isolation
from adadelta_cli.system import machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from adadelta_cli.implementations.array_backends import Device
    from adadelta_cli.sweep.isolation import Outcome

DASK = "distributed"
ADDRESS = re.compile(r"(tcp|tls|ws|wss|ucx)://([^\s:/\[\]]+|\[[0-9a-fA-F:]+\]):[0-9]{1,5}")
CONNECT_S = 10.0  # for a scheduler to answer
STOP_S = 5.0  # for the workers of a cluster to end what they compute
EARLY = 8  # workers that start before it is known how many runs are stored
SPARE = 2  # runs for each that is computed: the next one is there when one ends


@dataclass(frozen=True)
class Engine:
    """An executor, and how many calls it should have at a time.

    Attributes:
        words: what computes, for messages.
        executor: calls functions of this package elsewhere.
        token: names the sweep on the workers.
        threads: CPU threads of each run.
        capacity: returns the number of calls to have in flight.
        remark: what the user should know before the work; empty if nothing.
        versions: of this process.
    """

    words: str
    executor: Executor
    token: str
    threads: int
    capacity: Callable[[], int]
    remark: str = ""
    versions: Mapping[str, str] = field(default_factory=isolation.versions)

    def submit(
        self, timeout: float | None, function: Callable[..., Any], *args: Any
    ) -> Future[Outcome]:
        """Call a function in a child process; see `isolation.call`."""
        data = os.environ.get(DATA_FOLDER, "")
        how = isolation.Conditions(self.token, self.versions, self.threads, data)
        return self.executor.submit(isolation.call, how, timeout, function, *args)


@contextmanager
def local(workers: int, threads: int) -> Iterator[Engine]:
    """Compute on worker processes of this machine, which end with the block."""
    token = secrets.token_hex(8)
    with ThreadPoolExecutor(workers) as executor:
        try:
            words = f"{workers} worker process{'es' * (workers > 1)}"
            engine = Engine(words, executor, token, threads, lambda: SPARE * workers)
            for _ in range(min(workers, EARLY)):  # they import while this process does
                engine.submit(None, os.getpid)
            yield engine
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
            isolation.close(token)


@contextmanager
def cluster(address: str, threads: int) -> Iterator[Engine]:
    """Compute on the workers of a Dask scheduler; what they compute ends with the block.

    Raises:
        UnavailableError: no scheduler answers at the address, or a worker lacks this package or has
            other versions.
    """
    client = _connect(address)
    token = secrets.token_hex(8)
    try:
        _check_workers(client, address)
        executor = client.get_executor(pure=False)
        words = f"the Dask cluster at {address}"
        idle = f"{words} has no workers yet; waiting for the first one"
        remark = "" if _workers(client) else idle
        yield Engine(words, executor, token, threads, partial(_capacity, client), remark)
    finally:
        _close(client, token)


def _connect(address: str) -> Any:
    from distributed import Client

    _silence()
    try:
        return Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError, ImportError, RuntimeError) as error:
        raise UnavailableError(
            f"--scheduler {shortened(address)}: no Dask scheduler answers there within "
            f"{CONNECT_S:g} s ({in_one_line(error)}); start one with dask scheduler, and name the "
            "address that it prints, such as tcp://127.0.0.1:8786"
        ) from error


def _check_address(address: str) -> None:
    """Check the form of an address, and that Dask is installed.

    Raises:
        UsageError: the address has another form.
        UnavailableError: Dask is not installed.
    """
    if not ADDRESS.fullmatch(address):
        raise UsageError(
            f"--scheduler is {shortened(address)!r}; expected the address that dask scheduler "
            "prints, such as tcp://127.0.0.1:8786"
        )
    lacking = [name for name in ("dask", "distributed") if not importlib.util.find_spec(name)]
    if lacking:
        raise UnavailableError(
            f"--scheduler needs {' and '.join(lacking)}, not installed; python -m pip install "
            "'adadelta[cluster]'"
        )


def _silence() -> None:
    """Silence Dask's loggers, whose levels its import has set: this program reports its errors."""
    import logging

    for name in [name for name in logging.root.manager.loggerDict if name.startswith(DASK)]:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _check_workers(client: Any, address: str) -> None:
    """Check the versions on all workers that are there by now."""
    try:
        client.run(isolation.check_versions, isolation.versions())
    except UnavailableError:
        raise
    except ImportError as error:
        raise UnavailableError(
            f"--scheduler {shortened(address)}: a worker lacks a package ({in_one_line(error)}); "
            "install adadelta on each, in this version"
        ) from error


def _workers(client: Any) -> list[dict[str, Any]]:
    return list(client.scheduler_info(n_workers=-1)["workers"].values())


def _capacity(client: Any) -> int:
    """Return how many tasks the cluster should have; a cluster that grows on demand begins at 0."""
    threads = sum(each["nthreads"] for each in _workers(client))
    return SPARE * max(threads, os.cpu_count() or 1)


def _close(client: Any, token: str) -> None:
    """Cancel what waits, end what computes, and leave the cluster."""
    with suppress(Exception):  # the scheduler may be gone
        client.sync(client._run, isolation.close, token, callback_timeout=STOP_S)  # noqa: SLF001
    client.close(timeout=STOP_S)


def choose(
    scheduler: str | None, workers: int | None, threads: int | None, device: Device, runs: int
) -> AbstractContextManager[Engine]:
    """Return the engine for the options of the command; None is the default.

    Threads are shared out so that all runs together use each core once. There are no more workers
    than `runs`.

    Raises:
        UsageError: the address of the scheduler has another form.
        UnavailableError: Dask is not installed.
    """
    if scheduler:
        _check_address(scheduler)
        return cluster(scheduler, threads or 1)
    cores = machine.available_cores()
    count = workers or (1 if device.kind == "gpu" else max(1, cores // (threads or 1)))
    return local(min(count, runs), threads or max(1, cores // count))
