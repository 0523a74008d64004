"""What every kind of log is, and what it gets to know of a run."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from adadelta_cli.system.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adadelta_cli.run.config import Config
    from adadelta_cli.run.result import RunOutcome


@dataclass(frozen=True)
class RunFacts:
    """What a log says of a run.

    Attributes:
        name: the name of its folder.
        config: the resolved config, in YAML.
        settings: the config by dotted key, and how it is run.
        tags: the version and the machine.
    """

    name: str
    config: str
    settings: dict[str, str]
    tags: dict[str, str]

    @classmethod
    def of(cls, name: str, config: Config, how: Mapping[str, Any]) -> RunFacts:
        """Collect the facts of a run on this machine; `how`: the backend, the seed and so on."""
        sections = config.model_dump(mode="json", exclude_none=True, exclude={"sweep"})
        keys = {
            f"{section}.{key}": v for section, each in sections.items() for key, v in each.items()
        }
        settings = {
            key: each if isinstance(each, str) else json.dumps(each)
            for key, each in {**keys, **how}.items()
        }
        return cls(name, config.to_yaml(), settings, _tags())


@cache
def _tags() -> dict[str, str]:
    machine = Machine()
    libraries = {name: each for name, each in machine.versions.items() if name != "adadelta"}
    return {
        "adadelta": machine.versions["adadelta"],
        "Python": machine.python,
        "libraries": ", ".join(f"{name} {each}" for name, each in libraries.items()),
        "processor": machine.processor,
        "cores": str(machine.cores_available),
        "GPUs": ", ".join(machine.gpus) or "none",
        "system": machine.kernel,
    }


def without_passwords(text: str) -> str:
    """Hide the passwords of URIs: messages end up in the logs of a CI.

    >>> without_passwords("postgresql://me:secret@host/db")
    'postgresql://me:***@host/db'
    """
    return re.sub(r"(?<=://)([^/\s:@]*):[^/\s]*@", r"\1:***@", text)


class Log(ABC):
    """The log of one run.

    Attributes:
        place: where the run is shown, for people.
    """

    place: str

    @abstractmethod
    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers of a row of history.csv by column, those that it has."""

    @abstractmethod
    def close(self, outcome: RunOutcome | None) -> None:
        """Write all that was added, and end the log; None: the run broke."""

    def abandon(self) -> None:
        """Free what the log holds, after an error of its own."""
        return


class Target(ABC):
    """What a `--log KIND:WHERE` names; each run gets a log of its own there.

    Attributes:
        kind: as users name it; also the extra of this package that installs the library.
        wanted: what WHERE is, for messages.
        modules: what must be importable.
    """

    kind: str
    wanted: str
    modules: tuple[str, ...]

    def __init__(self, where: str) -> None:
        self.where = where

    @property
    def option(self) -> str:
        """The option as the user gave it, but for a password."""
        return without_passwords(f"--log {self.kind}:{self.where}")

    @abstractmethod
    def prepare(self) -> None:
        """Check before the training that a run can be logged there.

        Raises:
            UsageError: WHERE has another form.
            UnavailableError: nothing answers there.
            BrokenError: it cannot be written.
        """

    @abstractmethod
    def start(self, facts: RunFacts) -> Log:
        """Start the log of a run; may raise anything."""
