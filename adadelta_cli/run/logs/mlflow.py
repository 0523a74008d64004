"""A tracking server or store of MLflow: each run is one run of an experiment there."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadelta_cli import files
from adadelta_cli.errors import BrokenError, UnavailableError, UsageError, in_one_line, shortened
from adadelta_cli.run.logs.base import Log, RunFacts, Target
from adadelta_cli.run.result import RunOutcome

if TYPE_CHECKING:
    from collections.abc import Mapping

EXPERIMENT = "adadelta"  # where MLFLOW_EXPERIMENT_NAME names none
# A variable that is set already counts. By its own defaults, MLflow waits for a server for minutes.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing is sent elsewhere
    "MLFLOW_ALLOW_FILE_STORE": "true",  # newer ones refuse folders unless asked
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout has the results
    "GIT_PYTHON_REFRESH": "quiet",  # no warning where there is no Git
}
LOGGERS = ("mlflow", "alembic", "urllib3", "git")  # this program reports their errors
SEND_EVERY_S = 1.0
MOST_NUMBERS, MOST_PARAMS = 1000, 100  # of one request: MLflow's limits
STATUSES = {
    None: "FAILED",
    RunOutcome.DIVERGED: "FAILED",
    RunOutcome.INTERRUPTED: "KILLED",
}  # others: FINISHED


class MlflowTarget(Target):
    """`mlflow:URI`."""

    kind = "mlflow"
    wanted = "URI"
    modules = ("mlflow",)

    def prepare(self) -> None:
        """Find or make the experiment."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._check_place()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # MLflow's own, about its dependencies
                self._connect()
        except Exception as error:  # what MLflow and its databases raise has no common type
            raise self._explained(error) from error

    def _connect(self) -> None:
        from mlflow import MlflowClient

        for name in LOGGERS:  # whose levels the import has set
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._client = MlflowClient(tracking_uri=self.where)
        self._experiment = _experiment(self._client)

    def _check_place(self) -> None:
        """Check the folder of a store on this machine, or the one that holds its database."""
        scheme, _, rest = self.where.partition(":")
        if scheme == "sqlite":
            database = Path(rest.partition("?")[0].removeprefix("///"))
            files.check_writable(database, "--log")
            files.prepare_folder(database.parent, option="--log")
        elif scheme in {"file", self.where}:
            folder = Path((rest or scheme).removeprefix("//"))
            if folder.exists() and not folder.is_dir():
                raise UsageError(f"{self.option} is a file; name a folder")
            # MLflow fills the folder only where there is none.
            files.prepare_folder(folder if folder.exists() else folder.parent, option="--log")

    def _explained(self, error: Exception) -> Exception:
        why = shortened(in_one_line(error))
        if isinstance(error, ImportError):
            install = "python -m pip install 'adadelta[mlflow]', or the driver of the database"
            return UnavailableError(f"{self.option}: {why}; {install}")
        from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

        if isinstance(error, UnsupportedModelRegistryStoreURIException):
            schemes = "sqlite:///FILE, http://HOST:PORT, https://HOST or file:DIR"
            return UsageError(f"{self.option}: MLflow knows no such URI; expected {schemes}")
        if self.where.startswith("http"):
            fix = "start one with mlflow server, or name the one that runs"
            return UnavailableError(f"{self.option}: no MLflow server answers ({why}); {fix}")
        return BrokenError(f"{self.option} cannot be used ({why}); name another store")

    def start(self, facts: RunFacts) -> Log:
        """Make a run."""
        return MlflowLog(self._client, self._experiment, facts)


def allowed(name: str) -> str:
    """Write a metric's name in the characters that MLflow takes.

    >>> allowed("error in %")
    'error in _'
    """
    return re.sub(r"[^\w.\- ]", "_", name)


def _experiment(client: Any) -> str:
    """Return the experiment's number; make it if it is not there."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is None:
        return client.create_experiment(name)
    return found.experiment_id


class MlflowLog(Log):
    """A run; its numbers are sent once a second, and at the end."""

    def __init__(self, client: Any, experiment: str, facts: RunFacts) -> None:
        from mlflow.entities import Param

        self._client = client
        tags = {"mlflow.source.name": "adadelta run", **facts.tags}
        self._run = client.create_run(experiment, run_name=facts.name, tags=tags).info.run_id
        self.place = f"run {self._run}"
        params = [Param(key, value) for key, value in facts.settings.items()]
        for first in range(0, len(params), MOST_PARAMS):
            client.log_batch(self._run, params=params[first : first + MOST_PARAMS])
        self._waiting: list[Any] = []
        self._sent = time.monotonic()

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Send a row, with those before it, where the last time is long enough ago."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._waiting += [Metric(allowed(name), each, now, step) for name, each in numbers.items()]
        if time.monotonic() - self._sent > SEND_EVERY_S:
            self._send()

    def close(self, outcome: RunOutcome | None) -> None:
        """Send the rest, and end the run."""
        self._send()
        if outcome:
            self._client.set_tag(self._run, "outcome", outcome.value)
        with contextlib.redirect_stdout(io.StringIO()):  # where MLflow prints the address of a run
            self._client.set_terminated(self._run, STATUSES.get(outcome, "FINISHED"))

    def _send(self) -> None:
        while self._waiting:
            self._client.log_batch(self._run, metrics=self._waiting[:MOST_NUMBERS])
            del self._waiting[:MOST_NUMBERS]
        self._sent = time.monotonic()
