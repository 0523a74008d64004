"""Processes that compute beside a measurement, as data loaders do beside a training."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from adadelta_cli.system.child import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

COMPUTE = "while True: sum(range(100_000))"


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep so many processes computing, each on one core at a time; they end with this process."""
    with contextlib.ExitStack() as ended:
        for _ in range(count):
            ended.callback(WorkerProcess(COMPUTE, ()).end)
        yield
