"""The processes that take samples side by side, and the leader's end of what is said to them.

Rounds alternate between the members of a pool: in each round every one takes its samples while all
others rest, so that whatever else the machine does hits them alike. Other frameworks have processes
of their own, because several OpenMP runtimes in one process ruin each other.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

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
    from collections.abc import Callable, Container, Iterable, Iterator, Sequence

    from typing_extensions import Self

LEAST_ROUNDS = 5
# OpenMP's threads look out for more work for some milliseconds after they had some, on the cores
# that the next process is about to be timed on.
REST_S = 0.01
# Until a process that says nothing is taken to hang.
ANSWER_S = 600.0
# One that times what is not ours: some compile for a minute before their first step, none later.
FOREIGN_ANSWER_S = {"task": 300.0, "sample": 120.0}
START = """
import importlib, importlib.util, os
package = "bench." * bool(importlib.util.find_spec("adadelta_cli.bench"))
main = importlib.import_module(f"adadelta_cli.{{package}}worker").main
os.dup2({replies}, 1)
os.close({replies})
main()
"""
"""What a process executes. What it prints before that would be taken for an answer.

An earlier version, in another environment, has its worker at the top of the package.
"""

T = TypeVar("T")
Columns = dict[str, np.ndarray]
"""By entry, the seconds of a step in each round; NaN where the entry had no turn in it."""


class Worker:
    """A process that takes samples; see worker.py for what is said to it.

    Args:
        threads: how many every library in it may use.
        python: another environment's interpreter, whose installed version takes the samples.
        foreign: what it times is not ours.
        environment: more variables.

    Attributes:
        about: what it said of itself: protocol, version, path.
        sources: of which one can be read once it has answered or ended.

    Raises:
        BrokenError: it ended, or is silent.
        UnavailableError: the other environment has no version that understands this one.
        UsageError: `python` cannot be executed.
    """

    def __init__(
        self, threads: int, python: str | None = None, *, foreign: bool = False, **environment: str
    ) -> None:
        self._python, self._foreign = python, foreign
        self.about: dict[str, Any] = {}
        self._expect(ANSWER_S)
        # What belongs to a user's kernel need not be UTF-8.
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed below
        readable, orders = os.pipe()
        replies, writable = os.pipe()
        self._orders = open(orders, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - closed below
        self._replies = open(replies, encoding="utf-8", errors="replace")  # noqa: SIM115, PTH123 - closed below
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
        for file in (self._errors, self._replies, self._orders):
            with suppress(BrokenPipeError):  # an order that was not read
                file.close()

    def greet(self) -> None:
        """Hear who it is."""
        try:
            self.about = self.answer()
            self._check_path()
        except BrokenError as error:
            if self._python is None:
                raise
            raise UnavailableError(
                f"--against {self._python}: {error}; expected the Python of an environment in "
                "which a version of adadelta with bench --against is installed"
            ) from error
        if self.about.get("protocol") != PROTOCOL:
            raise UnavailableError(
                f"--against {self._python}: its version {self.about.get('version')} is led in "
                f"another way ({self.about.get('protocol')}) than this one ({PROTOCOL}); install "
                "a nearer version there"
            )

    def _check_path(self) -> None:
        """See whether a worker of ours is of this very package."""
        wanted, found = Path(__file__).with_name("worker.py"), self.about.get("path", "")
        if self._python is None and Path(found).resolve() != wanted.resolve():
            raise BrokenError(
                f"a process that takes samples found {found}, expected {wanted}: something in "
                "this environment (sitecustomize, a .pth file) puts another version first; remove "
                "one of the two"
            )

    def ask(self, **order: Any) -> dict[str, Any]:
        """Send an order; return the answer."""
        self.send(**order)
        return self.answer()

    def send(self, **order: Any) -> None:
        """Send an order, and wait for no answer."""
        patience_s = FOREIGN_ANSWER_S["task" if "task" in order else "sample"]
        self._expect(patience_s if self._foreign else ANSWER_S)
        with suppress(BrokenPipeError):  # which is reported instead of an answer
            self._orders.write(json.dumps(order) + "\n")
            self._orders.flush()

    def _expect(self, patience_s: float) -> None:
        self._patience_s, self._until = patience_s, time.monotonic() + patience_s

    @property
    def left_s(self) -> float:
        """Return how long its answer may still take."""
        return max(0.0, self._until - time.monotonic())

    def answer(self) -> dict[str, Any]:
        """Wait for the answer."""
        ready = wait(self.sources, self.left_s)
        if not ready:
            self._child.end()
            raise BrokenError(
                f"a process that takes samples hung: {self._patience_s:g} s of silence"
            )
        line = self._replies.readline() if self.sources[0] in ready else ""
        if not line:
            raise self._broken()
        try:
            answer = json.loads(line)
        except json.JSONDecodeError as error:
            raise BrokenError(
                f"a process that takes samples said {line.strip()[:200]!r}; expected JSON"
            ) from error
        if "broken" in answer:  # its GPU is of no more use to it
            self._child.end()
            raise DeviceError(answer["broken"], answer["status"])
        return answer

    def _broken(self) -> BrokenError:
        """Say how it ended; if it closed its pipes only, end it."""
        how = self._child.ended()
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["it said nothing"])[-1]
        out_of_memory = "; the system ran out of memory, it seems: ask for smaller --sizes"
        hint = out_of_memory if how == "killed by SIGKILL" else ""
        return BrokenError(f"a process that takes samples crashed: {how}: {last}{hint}")


Job = Generator[Worker, None, T]
"""Work that yields a worker whenever it waits for that worker's answer."""


def run_side_by_side(jobs: Sequence[Job[T]], at_once: int) -> Iterator[tuple[int, T]]:
    """Let jobs go on side by side.

    Args:
        jobs: what to do.
        at_once: how many of them, at most.

    Yields:
        The place of a job, and what it returned, as soon as it has.
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
    """Wait for the first that answers, ends or is silent for too long."""
    until = {worker: worker.left_s for worker in workers}
    ready = wait([each for worker in until for each in worker.sources], min(until.values()))
    heard = [worker for worker in until if any(each in ready for each in worker.sources)]
    return heard[0] if heard else min(until, key=until.__getitem__)


def _environment(threads: int, *, own: bool) -> dict[str, str]:
    """Return a child's variables; `own` finds this very package, wherever it lies."""
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    found = {**os.environ, **machine.thread_environment(threads)}
    # Else JAX takes three quarters of a GPU's memory (JAX's docs, "GPU memory allocation").
    found.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    found.pop("PYTHONPATH", None)
    return found | ({"PYTHONPATH": os.pathsep.join(filter(None, path))} if own else {})


@dataclass(frozen=True)
class WorkerSpec:
    """What one member of a pool does.

    Attributes:
        implementations: those that it times.
        prefix: put before its entries' names, to tell two members' apart.
        python: as in `Worker`.
        roofs: it times the roofs, too.
        task: as worker.py knows it.
        foreign: not ours, so it may break without breaking off the whole.
    """

    implementations: tuple[str, ...]
    prefix: str = ""
    python: str | None = None
    roofs: bool = False
    task: str = "time"
    foreign: bool = False


class WorkerPool:
    """Processes that are timed in turn.

    Args:
        roles: one process each.
        threads: how many each of them may use.
        seed: of the order within each round.

    Attributes:
        faults: what is wrong with an entry of the current task; empty where nothing is. What is not
            ours and broke its process is not asked again: the fault is that of all later tasks.
    """

    def __init__(self, roles: Sequence[WorkerSpec], threads: int, seed: int = 0) -> None:
        self._roles, self._threads = roles, threads
        self._stack = ExitStack()
        self._workers: dict[WorkerSpec, Worker] = {}
        self._random = np.random.default_rng(seed)
        self._entries: dict[str, tuple[WorkerSpec, str]] = {}
        self._able: Container[str] = ()
        self._lost: dict[WorkerSpec, str] = {}
        self.faults: dict[str, str] = {}

    def __enter__(self) -> Self:
        try:
            for role in self._roles:  # all at once, for importing takes a second
                worker = Worker(self._threads, role.python, foreign=role.foreign)
                self._workers[role] = self._stack.enter_context(worker)
            for worker in self._workers.values():
                worker.greet()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def prepare(self, able: Container[str], **spec: Any) -> list[dict[str, Any]]:
        """Give all the next task; return the first answer of each role.

        Args:
            able: the implementations that can be put to it.
            spec: what the task's own part of worker.py reads.
        """
        self._entries, self.faults, self._able = {}, {}, able
        return [self._begun(role, spec) for role in self._roles]

    def _begun(self, role: WorkerSpec, spec: dict[str, Any]) -> dict[str, Any]:
        if role in self._lost:
            self._accuse(role)
            return {}
        names = [name for name in role.implementations if name in self._able]
        own = {"task": role.task, "implementations": names, "roofs": role.roofs}
        answer = self._asked(role, **spec | own) if names or role.roofs else {}
        faults = answer.get("faults", {})
        self.faults |= {role.prefix + name: fault for name, fault in faults.items()}
        self._entries |= {role.prefix + n: (role, n) for n in answer.get("entries", ())}
        return answer

    def _asked(self, role: WorkerSpec, **order: Any) -> dict[str, Any]:
        """Ask a member; if it breaks and is not ours, it is at fault, and not asked again."""
        try:
            return self._workers[role].ask(**order)
        except BrokenError as error:
            if not role.foreign or _is_no_fault(error):
                raise
            self._lost[role] = f"wrong: {error}"
            self._accuse(role)
            return {}
        finally:
            time.sleep(REST_S * (len(self._roles) > 1))

    def _accuse(self, role: WorkerSpec) -> None:
        """Let all that it times in this task be at fault."""
        names = [role.prefix + name for name in role.implementations if name in self._able]
        self.faults |= dict.fromkeys(names, self._lost[role])
        self._entries = {n: each for n, each in self._entries.items() if each[0] is not role}

    def sample(self, seconds: float, suffices: Callable[[Columns], bool]) -> Columns:
        """Take samples in rounds, `LEAST_ROUNDS` at least; the order changes from round to round.

        Args:
            seconds: for how long, at most.
            suffices: asked after each round whether the samples do.
        """
        rounds: list[dict[str, float]] = []
        costs: dict[str, float] = {}
        until = time.monotonic() + seconds
        while len(rounds) < LEAST_ROUNDS or (
            time.monotonic() < until and not suffices(_columns(rounds, self._entries))
        ):
            due = {name for name in self._entries if len(rounds) % _period(name, costs) == 0}
            rounds.append(self._round(due, costs))
        return _columns(rounds, self._entries)

    def _round(self, due: set[str], costs: dict[str, float]) -> dict[str, float]:
        """Sample what is due; note in `costs` how long each sample took."""
        found: dict[str, float] = {}
        for place in self._random.permutation(len(self._roles)):
            role = self._roles[place]
            names = [n for full, (one, n) in self._entries.items() if one is role and full in due]
            for name, (taken, whole) in self._taken(role, names).items():
                found[role.prefix + name] = taken
                costs[role.prefix + name] = whole
        return found

    def _taken(self, role: WorkerSpec, due: list[str]) -> dict[str, list[float]]:
        order = [due[place] for place in self._random.permutation(len(due))]
        return self._asked(role, sample=order).get("samples", {}) if due else {}


def _is_no_fault(error: BrokenError) -> bool:
    """Tell whether a GPU failed by itself: not by what a kernel did, as an illegal address."""
    return isinstance(error, DeviceError) and error.status not in KERNEL_FAULTS


def _period(name: str, costs: dict[str, float]) -> int:
    """Say in every which round an entry has its turn: slow ones get fewer samples.

    A power of two, so that what is slow has its turns in rounds in which all others have theirs.
    """
    if not costs:
        return 1
    times = costs[name] / statistics.median(costs.values())
    return int(2 ** math.floor(math.log2(max(1.0, times))))


def _columns(rounds: Sequence[dict[str, float]], names: Iterable[str]) -> Columns:
    return {name: np.array([each.get(name, math.nan) for each in rounds]) for name in names}
