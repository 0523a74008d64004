"""What runs in a worker process of a sweep: a probe of the problem, and the runs.

Nothing heavy is imported before `begin` has limited the threads of the libraries.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adadelta_cli.errors import AdadeltaError, UsageError
from adadelta_cli.inputs import DATA_FOLDER
from adadelta_cli.system import machine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adadelta_cli.implementations.array_backends import Device
    from adadelta_cli.run.config import Config
    from adadelta_cli.sweep.plan import Job


@dataclass(frozen=True)
class Probe:
    """What a worker found.

    Attributes:
        backend: the name of the array library that computes.
        metrics: of each problem, the loss and its own metrics, each with its label on a plot.
    """

    backend: str
    metrics: tuple[dict[str, str], ...]


def begin(threads: int, data: str) -> None:
    """Limit the threads of all libraries, import what every run needs, and name the data sets.

    Args:
        threads: of each library.
        data: the folder of the data sets where the sweep is led; a machine of a cluster that names
            its own keeps that.
    """
    machine.limit_threads(threads)
    from adadelta_cli.run import training  # noqa: F401

    os.environ[DATA_FOLDER] = os.environ.get(DATA_FOLDER) or data


def probe(
    backend: str, device: Device, configs: Sequence[Config], seed: int
) -> Probe | AdadeltaError:
    """Load the array library, and build the problem of each config with its data.

    Returns:
        What was found, or why a run cannot begin.
    """
    from adadelta_cli.implementations import array_backends
    from adadelta_cli.run.problems import problem
    from adadelta_cli.run.trainer import check_own

    try:
        name, metrics = array_backends.backend(backend, device).name, []
        for config in configs:
            built = problem(config.problem, seed)
            check_own(config, built)
            metrics.append(dict(built.metrics))
        return Probe(name, tuple(metrics))
    except AdadeltaError as error:
        return error


def train(job: Job) -> dict[str, bytes] | UsageError:
    """Run a job to its end; return the content of its files by name, or why it cannot begin.

    Their `seconds` are those of all of this, so that the times of the runs add up to the work.
    """
    from adadelta_cli.implementations import array_backends
    from adadelta_cli.run import report
    from adadelta_cli.run.training import Training

    began = time.perf_counter()
    backend = array_backends.backend(job.backend, job.device)
    try:
        result = Training(job.name, job.config, backend, seed=job.seed, **job.how).complete()
    except UsageError as error:
        return error
    with tempfile.TemporaryDirectory(prefix="adadelta-") as name:
        folder = Path(name)
        result = replace(result, seconds=time.perf_counter() - began)
        report.write_run(folder, result, job.config, plot=False, named=Path("config.yaml"))
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
