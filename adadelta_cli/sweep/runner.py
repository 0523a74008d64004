"""Run a sweep: what is stored is not run again, and each run gets a row whatever happens to it."""

from __future__ import annotations

import json
import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from adadelta_cli.errors import (
    AdadeltaError,
    BrokenError,
    UsageError,
    displayed,
    in_one_line,
    shortened,
    suggestion,
)
from adadelta_cli.run import signals
from adadelta_cli.sweep import worker
from adadelta_cli.sweep.isolation import START_S, Failure, Outcome
from adadelta_cli.sweep.rows import Status, SweepRow, higher_is_better
from adadelta_cli.sweep.store import Store, Stored
from adadelta_cli.system.progress import Tick, no_tick

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from adadelta_cli.implementations.array_backends import Device
    from adadelta_cli.sweep.engines import Engine
    from adadelta_cli.sweep.plan import Job, Plan

LOOK_S = 0.5  # between two looks at the progress, and for signals
ELSEWHERE_S = 0.2  # between two looks at runs that another sweep computes
MOST_PROBED = 100  # problems that are tried before the runs; a later one that fails is a row


class Place(NamedTuple):
    """A row before its result: the run, the index of its setting, the seed."""

    run: str
    setting: int
    seed: int


@dataclass
class Sweep:
    """A sweep of one config.

    Attributes:
        plan: what to run.
        out: the folder of the files.
        metric: what the best setting is chosen by.
        labels: of the loss and the problem's metrics, on a plot.
        jobs: by run.
        threads: CPU threads of each run.
        places: one for each row, in order.
        ends: by run, those that are known.
    """

    plan: Plan
    out: Path
    metric: str
    labels: Mapping[str, str]
    jobs: dict[str, Job]
    threads: int
    places: tuple[Place, ...]
    ends: dict[str, Stored | Outcome] = field(default_factory=dict)

    @property
    def higher(self) -> bool:
        """Whether a higher value of the metric is better."""
        return higher_is_better(self.metric, self.plan.expect)

    @property
    def title(self) -> str:
        """The heading of the table and of the figure."""
        seeds = self.plan.seeds
        over = f"medians over {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
        return f"adadelta sweep {displayed(self.plan.name)}: {over}"

    def described(self, engine: Engine) -> str:
        """What runs, and where, in a line."""
        plan = self.plan
        return (
            f"{plan.name}: {len(plan.settings)} settings by {len(plan.seeds)} seeds, on "
            f"{engine.words}, {self.threads} threads each, in {self.out}"
        )

    @property
    def rows(self) -> list[SweepRow]:
        """The rows of the runs that ended."""
        settings = self.plan.settings
        return [
            _row(place, settings[place.setting].values, self.ends[place.run])
            for place in self.places
            if place.run in self.ends
        ]

    def execute(
        self,
        engine: Engine,
        timeout: float | None = None,
        *,
        force: bool = False,
        tick: Tick = no_tick,
    ) -> None:
        """Run what is not stored.

        Args:
            engine: where.
            timeout: seconds that a run may take.
            force: run what is stored, too.
            tick: gets the runs done, and those in total, without the ones that were stored before.

        Raises:
            UnavailableError: a worker cannot do it.
            BrokenError: a result cannot be written, or the cluster was lost.
        """
        with Store(self.out / "runs") as store:
            _Execution(self, store, engine, timeout, force=force, tick=tick).finish()


def _row(place: Place, values: dict[str, Any], end: Stored | Outcome) -> SweepRow:
    own: dict[str, Any] = {
        "setting": place.setting,
        "values": values,
        "seed": place.seed,
        "run": place.run,
    }
    if isinstance(end, Stored):
        status = Status.DIVERGED if end.diverged else Status.FINISHED
        return SweepRow(
            **own,
            status=status,
            steps=end.steps,
            metrics=end.metrics,
            message="",
            seconds=end.seconds,
        )
    status = Status[end.failure.name] if end.failure else Status.FAILED
    return SweepRow(**own, status=status, steps=None, metrics={}, message=end.message, seconds=None)


def prepare(plan: Plan, out: Path, engine: Engine, backend: str, device: Device) -> Sweep:
    """Check on a worker that the runs can begin, and name them.

    Raises:
        UsageError: the data or the metric are invalid.
        UnavailableError: the array library or the device is not available.
    """
    configs = {_text(each.config.problem): each.config for each in plan.settings}
    tried = list(configs.values())[:MOST_PROBED]
    asked = engine.submit(START_S, worker.probe, backend, device, tried, plan.seeds[0])
    outcome = _result(asked)
    if outcome.failure:
        raise UsageError(
            f"{shortened(plan.reference)}: the problem cannot begin: {outcome.message}"
        )
    if isinstance(outcome.result, AdadeltaError):
        raise outcome.result
    labels = {name: label for each in outcome.result.metrics for name, label in each.items()}
    jobs = plan.jobs(outcome.result.backend, device)
    names = [job.identity(engine.versions) for job in jobs]
    places = tuple(
        Place(run, number // len(plan.seeds), job.seed)
        for number, (run, job) in enumerate(zip(names, jobs, strict=True))
    )
    by_run = dict(zip(names, jobs, strict=True))
    return Sweep(plan, out, _metric(plan, labels), labels, by_run, engine.threads, places)


def _text(settings: Any) -> str:
    return json.dumps(settings.model_dump(mode="json"), sort_keys=True)


def _metric(plan: Plan, labels: Mapping[str, str]) -> str:
    if plan.metric is None:
        return "loss"
    if plan.metric not in labels:
        raise UsageError(
            f"{shortened(plan.reference)}: no metric is named {shortened(plan.metric)!r}; expected "
            f"one of {', '.join(labels)}{suggestion(plan.metric, labels)}"
        )
    return plan.metric


def _result(future: Future[Outcome]) -> Outcome:
    """Return the outcome of a call.

    Raises:
        AdadeltaError: a worker cannot do it.
        BrokenError: the cluster was lost.
    """
    try:
        return future.result()
    except CancelledError:
        raise BrokenError(
            "the Dask scheduler was lost; finished runs are on disk; start it, then run the same "
            "command again"
        ) from None
    except AdadeltaError:
        raise
    except Exception as error:  # of Dask's own classes, imported or not
        if type(error).__name__ == "KilledWorker":
            message = "the workers of the cluster that ran it died, one after another"
            return Outcome(failure=Failure.CRASHED, message=message)
        raise BrokenError(
            f"the workers failed ({in_one_line(error)}); finished runs are on disk; look at their "
            "logs, then run the same command again"
        ) from error


def _has_failed(future: Future[Outcome]) -> bool:
    return future.cancelled() or future.exception() is not None


class _Execution:
    """The runs of a sweep that this process computes."""

    def __init__(
        self,
        sweep: Sweep,
        store: Store,
        engine: Engine,
        timeout: float | None,
        *,
        force: bool,
        tick: Tick,
    ) -> None:
        self._sweep, self._store, self._engine = sweep, store, engine
        self._timeout, self._force, self._tick = timeout, force, tick
        self._running: dict[Future[Outcome], str] = {}
        self._stored = 0  # before this sweep began

    def finish(self) -> None:
        """Return when each run has ended, here or in another sweep."""
        waiting = deque(run for run in self._sweep.jobs if not self._is_stored(run))
        self._stored = len(self._sweep.ends)
        try:
            # An exception of a handler would be lost in a destructor of Dask's.
            with signals.defer_signals() as release:
                while waiting or self._running:
                    waiting.extend(elsewhere := self._begin(waiting))
                    self._show()
                    if elsewhere or self._running:
                        self._collect(ELSEWHERE_S if elsewhere else LOOK_S)
                    release()
                self._show()
        finally:
            for future in self._running:
                future.cancel()

    def _begin(self, waiting: deque[str]) -> list[str]:
        """Begin as many runs as there is room for; return those that another sweep has."""
        elsewhere, room = [], self._engine.capacity() - len(self._running)
        while waiting and room > 0:
            run = waiting.popleft()
            if self._is_stored(run):
                continue
            if not self._store.claim(run):
                elsewhere.append(run)
            elif self._is_stored(run):  # since the first look
                self._store.release(run)
            else:
                job = self._sweep.jobs[run]
                self._running[self._engine.submit(self._timeout, worker.train, job)] = run
                room -= 1
        return elsewhere

    def _is_stored(self, run: str) -> bool:
        stored = None if self._force else self._store.read(run)
        if stored:
            self._sweep.ends[run] = stored
        return stored is not None

    def _collect(self, seconds: float) -> None:
        """Store the results of those that end within this time; return after the first."""
        if not self._running:
            time.sleep(seconds)
        done = wait(self._running, seconds, FIRST_COMPLETED).done
        for future in sorted(done, key=_has_failed):  # what raises comes last
            run = self._running.pop(future)
            self._sweep.ends[run] = self._kept(run, _result(future))
            self._store.release(run)

    def _kept(self, run: str, outcome: Outcome) -> Stored | Outcome:
        """Store a result; return it as it is read back, so that it is the same in every sweep."""
        if isinstance(outcome.result, UsageError):
            return Outcome(failure=Failure.FAILED, message=str(outcome.result))
        if outcome.failure:
            return outcome
        self._store.write(run, outcome.result)
        return self._store.read(run) or Outcome(message="its files were changed meanwhile")

    def _show(self) -> None:
        """Report the runs that were not stored before, so that their time can be estimated."""
        before = f"; {self._stored} were there" if self._stored else ""
        done, total = len(self._sweep.ends), len(self._sweep.jobs)
        self._tick(done - self._stored, total - self._stored, f"runs{before}")
