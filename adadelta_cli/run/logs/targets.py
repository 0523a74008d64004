"""The logs of a training: what `--log` names, and what happens when one fails."""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import TYPE_CHECKING

from adadelta_cli.errors import UnavailableError, UsageError, in_one_line, shortened, suggestion
from adadelta_cli.run.logs.base import without_passwords
from adadelta_cli.run.logs.mlflow import MlflowTarget
from adadelta_cli.run.logs.tensorboard import TensorboardTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adadelta_cli.run.logs.base import Log, RunFacts, Target
    from adadelta_cli.run.result import RunOutcome, TrainingRow

KINDS: dict[str, type[Target]] = {each.kind: each for each in (TensorboardTarget, MlflowTarget)}
FORMS = " or ".join(f"{each.kind}:{each.wanted}" for each in KINDS.values())


def read(options: Sequence[str]) -> list[Target]:
    """Read the values of `--log`.

    Raises:
        UsageError: one has another form, or is given twice.
    """
    for option in options:
        if options.count(option) > 1:
            named = shortened(without_passwords(option))
            raise UsageError(f"--log {named} is given twice; give it once")
    return [_target(option) for option in options]


def prepare(targets: Sequence[Target]) -> None:
    """Check before the training that runs can be logged there.

    Raises:
        UsageError: a place has another form.
        UnavailableError: a library is not installed, or nothing answers.
        BrokenError: a place cannot be written.
    """
    for each in targets:
        _check_installed(each)
    for each in targets:
        each.prepare()


def _target(option: str) -> Target:
    kind, _, where = option.partition(":")
    if kind not in KINDS:
        raise UsageError(
            f"--log {shortened(option)}: there is no log {shortened(kind)!r}"
            f"{suggestion(kind, KINDS)}; expected {FORMS}"
        )
    if not where.strip():
        raise UsageError(
            f"--log {shortened(option)}: the {KINDS[kind].wanted} is missing; expected {FORMS}"
        )
    return KINDS[kind](where)


def _check_installed(target: Target) -> None:
    absent = [name for name in target.modules if importlib.util.find_spec(name) is None]
    if absent:
        raise UnavailableError(
            f"{target.option}: {' and '.join(absent)} not installed; python -m pip install "
            f"'adadelta[{target.kind}]'"
        )


class RunLogs:
    """The logs of one run. Where one fails, it ends, and the training goes on.

    Attributes:
        targets: what `--log` named.
        failed: a line for each log that failed, with the reason.
        places: what shows the run, by option, of the logs that are complete.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = targets
        self._logs: dict[Target, Log] = {}
        self.failed: list[str] = []
        self.places: dict[str, str] = {}

    def start(self, facts: RunFacts) -> None:
        """Start all logs."""
        for each in self.targets:
            self._guarded(each, partial(self._begin, each, facts))

    def _begin(self, target: Target, facts: RunFacts) -> None:
        self._logs[target] = target.start(facts)

    def add(self, row: TrainingRow) -> None:
        """Log a row of history.csv, without its empty cells."""
        numbers = {name: each for name, each in row.cells.items() if each is not None}
        step = numbers.pop("step")
        for each, log in [*self._logs.items()]:
            self._guarded(each, partial(log.add, step, numbers))

    def close(self, outcome: RunOutcome | None) -> None:
        """End all logs."""
        for each, log in [*self._logs.items()]:
            self._guarded(each, partial(log.close, outcome))
            if each in self._logs:
                self.places[each.option] = self._logs.pop(each).place

    def _guarded(self, target: Target, work: Callable[[], None]) -> None:
        """Call a log; an error ends it."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - of a library, a server, a disk: all but signals
            if target in self._logs:
                self._logs.pop(target).abandon()
            why = without_passwords(in_one_line(error))
            self.failed.append(f"{target.option}: {why}")
        except BaseException:  # a second signal, while a server keeps it waiting
            self._logs.pop(target, None)
            raise
