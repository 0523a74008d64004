"""A tracking server or store of MLflow: each run is one run of an experiment there."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import re
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from adadelta_cli import files, inputs
from adadelta_cli.errors import (
    BrokenError,
    UnavailableError,
    UsageError,
    displayed,
    in_one_line,
    shortened,
)
from adadelta_cli.run.logs.base import Log, RunFacts, Target, without_passwords
from adadelta_cli.run.result import RunOutcome

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

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
            with _silent():
                self._connect()
        except Exception as error:  # what MLflow and its databases raise has no common type
            raise self._explained(error) from error

    def _connect(self) -> None:
        from mlflow import MlflowClient

        for name in LOGGERS:  # whose levels the import has set
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._client = MlflowClient(tracking_uri=self._uri)
        self._experiment = _experiment(self._client)

    def _check_place(self) -> None:
        """Check the folder of a store on this machine, or the one that holds its database."""
        self._uri = self.where
        scheme, _, rest = self.where.partition(":")
        if scheme == "sqlite":
            database = Path(rest.partition("?")[0].removeprefix("///"))
            inputs.check_possible(database, "--log")
            files.check_writable(database, "--log")
            files.prepare_folder(database.parent, option="--log")
        elif scheme in {"file", self.where}:
            if scheme != "file":
                self._uri = str(inputs.expanded(Path(self.where), "--log"))
            folder = _folder(self._uri)
            inputs.check_possible(folder, "--log")
            if folder.exists() and not folder.is_dir():
                raise UsageError(f"{self.option} is a file; name a folder")
            # MLflow fills the folder only where there is none.
            files.prepare_folder(folder if folder.exists() else folder.parent, option="--log")

    def _explained(self, error: Exception) -> Exception:
        why = shortened(without_passwords(in_one_line(error)))
        if isinstance(error, ImportError):
            install = "python -m pip install 'adadelta[mlflow]', or the driver of the database"
            return UnavailableError(f"{self.option}: {why}; {install}")
        from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

        unreadable = type(error).__name__ == "ArgumentError"  # SQLAlchemy's, which may be absent
        if unreadable or isinstance(error, UnsupportedModelRegistryStoreURIException):
            schemes = "sqlite:///FILE, http://HOST:PORT, https://HOST or file:DIR"
            return UsageError(f"{self.option}: MLflow knows no such URI; expected {schemes}")
        if self.where.startswith("http"):
            fix = "start one with mlflow server, or name the one that runs"
            return UnavailableError(f"{self.option}: no MLflow server answers ({why}); {fix}")
        return BrokenError(f"{self.option} cannot be used ({why}); name another store")

    def start(self, facts: RunFacts) -> Log:
        """Make a run."""
        return MlflowLog(self._client, self._experiment, facts)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep MLflow's warnings from the terminal: of its dependencies, and of folders not its own.

    Some are of the root logger.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _folder(uri: str) -> Path:
    """Return the folder of a store, as MLflow reads its URI or path."""
    return Path(url2pathname(urlsplit(uri).path if uri.startswith("file:") else uri))


def allowed(name: str, taken: Container[str] = ()) -> str:
    """Write a metric's name in the characters that MLflow takes, unlike those that are taken.

    >>> allowed("error in %"), allowed("error in $", {"error in _"})
    ('error in _', 'error in __2')
    """
    plain = re.sub(r"[^\w.\- ]|^(?=\.\.|\.?$)", "_", name)  # a name is also a path: not `..`
    others = (f"{plain}_{number}" for number in itertools.count(2))
    return next(each for each in itertools.chain([plain], others) if each not in taken)


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
        name = displayed(facts.name)
        self._run = client.create_run(experiment, run_name=name, tags=tags).info.run_id
        self.place = f"run {self._run}"
        params = [Param(key, displayed(value)) for key, value in facts.settings.items()]
        for first in range(0, len(params), MOST_PARAMS):
            client.log_batch(self._run, params=params[first : first + MOST_PARAMS])
        self._names: dict[str, str] = {}  # of metrics, there, by column
        self._waiting: list[Any] = []
        self._sent = time.monotonic()

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Send a row, with those before it, where the last time is long enough ago."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        for name in [each for each in numbers if each not in self._names]:
            self._names[name] = allowed(name, self._names.values())
        self._waiting += [Metric(self._names[n], each, now, step) for n, each in numbers.items()]
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
