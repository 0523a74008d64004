"""The worker processes that take samples in turn, and the leader's side of their protocol.

In each round every worker takes its samples while all others rest, so that other load on the
machine affects them alike. Other frameworks have processes of their own, because several OpenMP
runtimes in one process slow each other down.
"""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from adadelta_cli.bench.timing_problem import Outcome, TimingProblem
from adadelta_cli.bench.worker import PROTOCOL
from adadelta_cli.errors import (
    KERNEL_FAULTS,
    BrokenError,
    DeviceError,
    UnavailableError,
    UsageError,
)
from adadelta_cli.system import machine
from adadelta_cli.system.child import LIMIT, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

    from typing_extensions import Self

    from adadelta_cli.implementations.base import Implementation

LEAST_ROUNDS = 5
# OpenMP's threads spin for some milliseconds after their last work, on the cores that the next
# process is about to be timed on.
REST_S = 0.01
ANSWER_S = 600.0  # a worker that is silent for longer hangs
# The same for third-party code: some compile for a minute before their first step, none later.
FOREIGN_ANSWER_S = {"task": 300.0, "sample": 120.0}
START = """
import importlib, importlib.util, os
package = "bench." * bool(importlib.util.find_spec("adadelta_cli.bench"))
main = importlib.import_module(f"adadelta_cli.{{package}}worker").main
os.dup2({replies}, 1)
os.close({replies})
main()
"""
"""What a worker executes; anything printed before `main` must not be read as an answer.

An earlier version, in another environment, has its worker at the top of the package.
"""

T = TypeVar("T")


class EntryKey(NamedTuple):
    """Something that is timed: an implementation or a roof, and the side of its worker."""

    side: str
    name: str


Columns = dict[EntryKey, np.ndarray]
"""By entry, the seconds of a step in each round; NaN where the entry was not sampled."""


class Worker:
    """A process that takes samples; worker.py documents its protocol.

    Args:
        threads: how many threads every library in it may use.
        python: another environment's interpreter, whose installed version takes the samples.
        foreign: it times third-party code.
        environment: more variables.

    Attributes:
        about: what it reported of itself: protocol, version, path.
        sources: file descriptors; one becomes readable once it has answered or ended.

    Raises:
        BrokenError: it ended, or hangs.
        UnavailableError: the other environment has no version that understands this one.
        UsageError: `python` cannot be executed.
    """

    def __init__(
        self, threads: int, python: str | None = None, *, foreign: bool = False, **environment: str
    ) -> None:
        self._python, self._foreign = python, foreign
        self.about: dict[str, Any] = {}
        self._expect(ANSWER_S)
        readable, orders = os.pipe()
        replies, writable = os.pipe()
        # The output of a user's kernel may be invalid UTF-8.
        text: Any = {"encoding": "utf-8", "errors": "replace"}
        self._files = ExitStack()
        errors = tempfile.TemporaryFile("w+", **text)  # noqa: SIM115 - closed with the others
        self._errors = self._files.enter_context(errors)
        self._replies = self._files.enter_context(os.fdopen(replies, **text))
        self._orders = self._files.enter_context(os.fdopen(orders, "w", **text))
        try:
            self._child = WorkerProcess(
                START.format(replies=writable),
                [writable],
                python or sys.executable,
                limit=LIMIT if foreign else 0,
                stdin=readable,
                stdout=self._errors,
                stderr=self._errors,
                env=_environment(threads, own=python is None) | environment,
            )
        except OSError as error:
            self._close()
            if python is None:
                raise
            raise UsageError(
                f"--against is {python!r}, which cannot be executed ({error.strerror}); expected "
                "the Python of an environment: ../main/.venv/bin/python"
            ) from error
        finally:
            os.close(readable)
            os.close(writable)
        self.sources = (self._replies.fileno(), self._child.lifeline)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.end()
        self._close()

    def _close(self) -> None:
        with suppress(BrokenPipeError):  # an order that the worker did not read
            self._files.close()

    def handshake(self) -> None:
        """Read its version, and check that it understands this one."""
        try:
            self.about = self.answer()
        except BrokenError as error:
            if self._python is None:
                raise
            raise UnavailableError(
                f"--against {self._python}: {error}; expected the Python of an environment in "
                "which a version of adadelta with bench --against is installed"
            ) from error
        wanted, found = Path(__file__).with_name("worker.py"), self.about.get("path", "")
        if self._python is None and Path(found).resolve() != wanted.resolve():
            raise BrokenError(
                f"a worker process found {found}, expected {wanted}: something in this environment "
                "(sitecustomize, a .pth file) puts another version first; remove one of the two"
            )
        version, protocol = self.about.get("version"), self.about.get("protocol")
        if protocol != PROTOCOL:
            raise UnavailableError(
                f"--against {self._python}: its version {version} has protocol {protocol}, "
                f"expected {PROTOCOL}; install a version closer to this one there"
            )

    def ask(self, **order: Any) -> dict[str, Any]:
        """Send an order; return the answer."""
        self.send(**order)
        return self.answer()

    def send(self, **order: Any) -> None:
        """Send an order, without waiting for the answer."""
        patience_s = FOREIGN_ANSWER_S["task" if "task" in order else "sample"]
        self._expect(patience_s if self._foreign else ANSWER_S)
        with suppress(BrokenPipeError):  # `answer` reports it
            self._orders.write(json.dumps(order) + "\n")
            self._orders.flush()

    def _expect(self, patience_s: float) -> None:
        self._patience_s, self._until = patience_s, time.monotonic() + patience_s

    @property
    def left_s(self) -> float:
        """Return how many seconds its answer may still take."""
        return max(0.0, self._until - time.monotonic())

    def answer(self) -> dict[str, Any]:
        """Wait for the answer."""
        ready = wait(self.sources, self.left_s)
        if not ready:
            self._child.end()
            raise BrokenError(f"a worker process hung: no answer in {self._patience_s:g} s")
        line = self._replies.readline() if self.sources[0] in ready else ""
        if not line:
            raise self._broken()
        try:
            answer = json.loads(line)
        except json.JSONDecodeError as error:
            raise BrokenError(
                f"a worker process wrote {line.strip()[:200]!r}; expected JSON"
            ) from error
        if "broken" in answer:  # its GPU cannot be used again
            self._child.end()
            raise DeviceError(answer["broken"], answer["status"])
        return answer

    def _broken(self) -> BrokenError:
        """Return how it ended; if it only closed its pipes, end it."""
        how = self._child.ended()
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["no output"])[-1]
        smaller = "; the system probably ran out of memory: ask for smaller --sizes"
        hint = smaller if self._child.exit_code == -signal.SIGKILL else ""
        return BrokenError(f"a worker process crashed: {how}: {last}{hint}")


Job = Generator[Worker, None, T]
"""Work that yields a worker whenever it waits for that worker's answer."""


def run_side_by_side(jobs: Sequence[Job[T]], at_once: int) -> Iterator[tuple[int, T]]:
    """Run jobs concurrently.

    Args:
        jobs: the work.
        at_once: how many jobs may run at a time.

    Yields:
        The index of a job and its result, as soon as it has ended.
    """
    waiting = list(enumerate(jobs))[::-1]
    running: dict[Worker, tuple[int, Job[T]]] = {}
    with ExitStack() as stack:
        for job in jobs:
            stack.callback(job.close)
        while waiting or running:
            full = len(running) >= at_once or not waiting
            number, job = running.pop(_wait_for_first(running)) if full else waiting.pop()
            try:
                running[next(job)] = number, job
            except StopIteration as end:
                yield number, end.value


def _wait_for_first(workers: Iterable[Worker]) -> Worker:
    """Return the first worker that answers, ends or exceeds its time."""
    until = {worker: worker.left_s for worker in workers}
    ready = wait([each for worker in until for each in worker.sources], min(until.values()))
    answered = [worker for worker in until if any(each in ready for each in worker.sources)]
    return answered[0] if answered else min(until, key=until.__getitem__)


def _environment(threads: int, *, own: bool) -> dict[str, str]:
    """Return a child's variables; with `own`, it imports this installation of the package."""
    found = {**os.environ, **machine.thread_environment(threads)}
    # Else JAX takes three quarters of a GPU's memory (JAX's docs, "GPU memory allocation").
    found.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    path = [str(Path(__file__).parents[2]), found.pop("PYTHONPATH", "")]
    return found | ({"PYTHONPATH": os.pathsep.join(filter(None, path))} if own else {})


@dataclass(frozen=True)
class WorkerSpec:
    """What one worker of a pool times.

    Attributes:
        implementations: as they are on the device.
        side: tells its entries apart from those of another worker with the same names.
        python: as in `Worker`.
        roofs: whether it times the roofs, too.
        task: a key of `worker.TASKS`.
    """

    implementations: tuple[Implementation, ...]
    side: str = ""
    python: str | None = None
    roofs: bool = False
    task: str = "time"

    @property
    def foreign(self) -> bool:
        """Whether it times third-party code, whose crash does not end the benchmark."""
        return any(each.sandbox for each in self.implementations)

    def key(self, name: str) -> EntryKey:
        """Return the key of an entry of this worker."""
        return EntryKey(self.side, name)


class WorkerPool:
    """Worker processes, one for each of `specs`, that are timed in turn.

    Args:
        specs: what they time.
        threads: how many threads each of them may use.
        seed: of the order within each round.

    Attributes:
        problems: by entry of the current task, why it is not timed; entries without a problem are
            missing. Third-party code that broke its process is not run again: it has the same
            problem in all later tasks.
        variants: by entry of the current task, how its steps are taken; see `kernels.variants`.
    """

    def __init__(self, specs: Sequence[WorkerSpec], threads: int, seed: int = 0) -> None:
        self._specs, self._threads = specs, threads
        self._stack = ExitStack()
        self._workers: dict[WorkerSpec, Worker] = {}
        self._random = np.random.default_rng(seed)
        self._entries: dict[EntryKey, WorkerSpec] = {}
        self._able: Container[Implementation] = ()
        self._lost: dict[WorkerSpec, TimingProblem] = {}
        self.problems: dict[EntryKey, TimingProblem] = {}
        self.variants: dict[EntryKey, str] = {}

    def __enter__(self) -> Self:
        try:
            for spec in self._specs:  # all before the first handshake: importing takes a second
                worker = Worker(self._threads, spec.python, foreign=spec.foreign)
                self._workers[spec] = self._stack.enter_context(worker)
            for worker in self._workers.values():
                worker.handshake()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def prepare(self, able: Container[Implementation], **order: Any) -> list[dict[str, Any]]:
        """Give all workers the next task; return the answer of each.

        Args:
            able: the implementations that support it.
            order: what the task in worker.py reads.
        """
        self._entries, self.problems, self.variants, self._able = {}, {}, {}, able
        return [self._prepare(spec, order) for spec in self._specs]

    def _prepare(self, spec: WorkerSpec, order: dict[str, Any]) -> dict[str, Any]:
        if spec in self._lost:
            self._mark_lost(spec)
            return {}
        names = self._names(spec)
        own = {"task": spec.task, "implementations": names, "roofs": spec.roofs}
        answer = self._ask(spec, **order | own) if names or spec.roofs else {}
        for name, text in answer.get("faults", {}).items():
            if text:  # an older version may have other words for a failure
                problem = TimingProblem.parse(text) or TimingProblem(Outcome.FAILED, text)
                self.problems[spec.key(name)] = problem
        self._entries |= {spec.key(name): spec for name in answer.get("entries", ())}
        self.variants |= {spec.key(n): each for n, each in answer.get("variants", {}).items()}
        return answer

    def _names(self, spec: WorkerSpec) -> list[str]:
        return [each.name for each in spec.implementations if each in self._able]

    def _ask(self, spec: WorkerSpec, **order: Any) -> dict[str, Any]:
        """Return a worker's answer; empty if third-party code broke the worker."""
        try:
            return self._workers[spec].ask(**order)
        except BrokenError as error:
            # A GPU may fail by what a kernel did, such as an illegal address, or by itself.
            of_gpu = isinstance(error, DeviceError) and error.status not in KERNEL_FAULTS
            if of_gpu or not spec.foreign:
                raise
            self._lost[spec] = TimingProblem(Outcome.WRONG, str(error))
            self._mark_lost(spec)
            return {}
        finally:
            time.sleep(REST_S * (len(self._specs) > 1))

    def _mark_lost(self, spec: WorkerSpec) -> None:
        """Mark all entries of a worker that broke as failed."""
        self.problems |= dict.fromkeys(map(spec.key, self._names(spec)), self._lost[spec])
        self._entries = {key: each for key, each in self._entries.items() if each is not spec}

    def sample(self, seconds: float, suffices: Callable[[Columns], bool]) -> Columns:
        """Take samples in rounds, `LEAST_ROUNDS` at least, each in a new random order.

        Args:
            seconds: time limit.
            suffices: called after each round; True ends the sampling.
        """
        rounds: list[dict[EntryKey, float]] = []
        costs: dict[EntryKey, float] = {}
        until = time.monotonic() + seconds
        while len(rounds) < LEAST_ROUNDS or (
            time.monotonic() < until and not suffices(_columns(rounds, self._entries))
        ):
            due = [key for key in self._entries if len(rounds) % _period(key, costs) == 0]
            rounds.append(self._round(due, costs))
        return _columns(rounds, self._entries)

    def _round(
        self, due: Sequence[EntryKey], costs: dict[EntryKey, float]
    ) -> dict[EntryKey, float]:
        """Sample the entries that are due; store in `costs` how long each sample took."""
        found: dict[EntryKey, float] = {}
        for place in self._random.permutation(len(self._specs)):
            spec = self._specs[place]
            names = [key.name for key in due if self._entries.get(key) is spec]
            order = [names[place] for place in self._random.permutation(len(names))]
            samples = self._ask(spec, sample=order).get("samples", {}) if order else {}
            for name, (step_s, sample_s) in samples.items():
                found[spec.key(name)] = step_s
                costs[spec.key(name)] = sample_s
        return found


def _period(key: EntryKey, costs: Mapping[EntryKey, float]) -> int:
    """Return the sampling period of an entry in rounds: slow entries get fewer samples.

    A power of two, so that slow entries are sampled in rounds in which all others are.
    """
    if not costs:
        return 1
    times = costs[key] / statistics.median(costs.values())
    return int(2 ** math.floor(math.log2(max(1.0, times))))


def _columns(rounds: Sequence[dict[EntryKey, float]], keys: Iterable[EntryKey]) -> Columns:
    return {key: np.array([each.get(key, math.nan) for each in rounds]) for key in keys}
