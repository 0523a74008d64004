"""The processes that take samples side by side, and the leader's end of what is said to them.

Rounds alternate between the members of a crew: in each round every one takes its samples while all
others rest, so that whatever else the machine does hits them alike. Other frameworks have processes
of their own, because several OpenMP runtimes in one process ruin each other.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from adadelta_cli import machine
from adadelta_cli.errors import (
    KERNEL_FAULTS,
    BrokenError,
    DeviceError,
    UnavailableError,
    UsageError,
)
from adadelta_cli.worker import PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence

    from typing_extensions import Self

LEAST_ROUNDS = 5
# OpenMP's threads look out for more work for some milliseconds after they had some, on the cores
# that the next process is about to be timed on.
REST_S = 0.01
# Until a process that says nothing is taken to hang.
ANSWER_S = 600.0
# One that times what is not ours: some compile for a minute before their first step, none later.
FOREIGN_ANSWER_S = {"task": 300.0, "sample": 120.0}
GLANCE_S = 1.0  # in between, to see whether it lives: its own children may hold the pipe open
START = """
import os, sys
sys.path[:] = [folder for folder in sys.path if folder]
from adadelta_cli.worker import main
os.dup2({replies}, 1)
os.close({replies})
main()
"""
"""What starts a process. A checkout in the current folder would hide the version that is meant, and
what anybody prints while it starts would be taken for an answer."""

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
        # What belongs to a user's kernel need not be UTF-8.
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed below
        replies, writable = os.pipe()
        self._replies = open(replies, encoding="utf-8", errors="replace")  # noqa: SIM115, PTH123 - closed below
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the user's own interpreter
                [python or sys.executable, "-c", START.format(replies=writable)],
                stdin=subprocess.PIPE,
                stdout=self._errors,
                stderr=self._errors,
                pass_fds=[writable],
                text=True,
                env=_environment(threads, own=python is None) | environment,
                start_new_session=True,  # so that its own children end with it
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
            os.close(writable)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.returncode is None:  # else its number may be another's by now
            self._kill()
        self._process.communicate()
        self._close()

    def _close(self) -> None:
        self._errors.close()
        self._replies.close()

    def _kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # it has ended, and so have its own
            os.killpg(self._process.pid, signal.SIGKILL)

    def greet(self) -> None:
        """Hear who it is."""
        try:
            self.about = self._answer(ANSWER_S)
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
        orders = cast("IO[str]", self._process.stdin)
        patience_s = FOREIGN_ANSWER_S["task" if "task" in order else "sample"]
        try:
            orders.write(json.dumps(order) + "\n")
            orders.flush()
        except BrokenPipeError as error:
            raise self._broken() from error
        return self._answer(patience_s if self._foreign else ANSWER_S)

    def _answer(self, patience_s: float) -> dict[str, Any]:
        line = self._replies.readline() if self._speaks(patience_s) else ""
        if not line:
            raise self._broken()
        try:
            answer = json.loads(line)
        except json.JSONDecodeError as error:
            self._kill()
            raise BrokenError(
                f"a process that takes samples said {line.strip()[:200]!r}; expected JSON"
            ) from error
        if "broken" in answer:  # its GPU is of no more use to it
            self._kill()
            raise DeviceError(answer["broken"], answer["status"])
        return answer

    def _speaks(self, patience_s: float) -> bool:
        """Wait for an answer, or for the end of the answers."""
        until = time.monotonic() + patience_s
        while self._process.poll() is None:
            left_s = until - time.monotonic()
            if left_s <= 0:
                self._kill()
                raise BrokenError(f"a process that takes samples hung: {patience_s:g} s of silence")
            if select.select([self._replies], [], [], min(GLANCE_S, left_s))[0]:
                return True
        return bool(select.select([self._replies], [], [], 0)[0])

    def _broken(self) -> BrokenError:
        """Say how it ended; if it closed its pipes only, end it."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GLANCE_S)
        code = self._process.poll()
        self._kill()
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["it said nothing"])[-1]
        if code is None:
            return BrokenError(f"a process that takes samples closed its pipes: {last}")
        hint = "; the system ran out of memory, it seems: ask for smaller --sizes" * (code == -9)
        return BrokenError(f"a process that takes samples ended with {code}: {last}{hint}")


def _environment(threads: int, *, own: bool) -> dict[str, str]:
    """Return a child's variables; `own` finds this very package, wherever it lies."""
    path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    found = {**os.environ, **machine.thread_environment(threads)}
    # Else JAX takes three quarters of a GPU's memory (JAX's docs, "GPU memory allocation").
    found.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    found.pop("PYTHONPATH", None)
    return found | ({"PYTHONPATH": os.pathsep.join(filter(None, path))} if own else {})


@dataclass(frozen=True)
class Role:
    """What one member of a crew does.

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


class Crew:
    """Processes that are timed in turn.

    Args:
        roles: one process each.
        threads: how many each of them may use.
        seed: of the order within each round.

    Attributes:
        faults: what is wrong with an entry of the current task; empty where nothing is. What is not
            ours and broke its process is not asked again: the fault is that of all later tasks.
    """

    def __init__(self, roles: Sequence[Role], threads: int, seed: int = 0) -> None:
        self._roles, self._threads = roles, threads
        self._stack = ExitStack()
        self._workers: dict[Role, Worker] = {}
        self._random = np.random.default_rng(seed)
        self._entries: dict[str, tuple[Role, str]] = {}
        self._able: Container[str] = ()
        self._lost: dict[Role, str] = {}
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

    def _begun(self, role: Role, spec: dict[str, Any]) -> dict[str, Any]:
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

    def _asked(self, role: Role, **order: Any) -> dict[str, Any]:
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

    def _accuse(self, role: Role) -> None:
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

    def _taken(self, role: Role, due: list[str]) -> dict[str, list[float]]:
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
