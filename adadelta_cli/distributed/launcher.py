"""Start the processes of a distributed training on this machine, and end them together."""

from __future__ import annotations

import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import IO, TYPE_CHECKING

from adadelta_cli.distributed.cluster import HEARTBEAT_INTERVAL, INTERVAL_S, Cluster
from adadelta_cli.errors import BrokenError, ExitCode, UsageError, shortened, suggestion
from adadelta_cli.system import machine
from adadelta_cli.system.child import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Print = Callable[[str, str, str], None]  # gets the stream's name, the process's, and a line

LOOPBACK = "127.0.0.1"
RUN = "run"
THIS_PROGRAM = [sys.executable, "-m", "adadelta_cli"]
KVSTORE = ["--kvstore", "dist_sync"]
GRACE_S = 30.0  # for the others to end by themselves, once one has failed or a signal came
LAST_WORDS_S = 5.0  # for the workers to say what they know, once a server has failed
# The processes are started in Python by child.py; a program of the user's replaces it.
EXECUTE = "import os; os.execvp({0!r}, {1!r})"


@dataclass
class Member:
    """A process of the training.

    Attributes:
        name: as it is shown, such as `worker 0`; the number is its rank.
        process: the process.
        code: its exit code, negative for a signal; None while it runs.
        cause: how it ended, in words.
        stopped: this program ended it, so its exit code says nothing.
    """

    name: str
    process: WorkerProcess
    code: int | None = None
    cause: str = ""
    stopped: bool = False
    readers: list[threading.Thread] = field(default_factory=list)

    @property
    def is_worker(self) -> bool:
        """Whether it trains."""
        return self.name.startswith("worker")

    def reap(self) -> None:
        """Note how it ended, and end it if it has not."""
        self.cause = self.process.ended()
        code = self.process.exit_code
        self.code = ExitCode.BROKEN if code is None else code
        for reader in self.readers:
            reader.join(GRACE_S)

    @property
    def crashed(self) -> bool:
        """Whether it ended without an exit code that it chose."""
        return self.code is not None and self.code < 0


def check_command(command: Sequence[str], commands: Sequence[str]) -> list[str]:
    """Return the program and arguments of a worker.

    Args:
        command: `run` with its arguments, or a program of the user's.
        commands: the names of this program's commands.

    Raises:
        UsageError: it is another command, or there is no such program.
    """
    first = command[0]
    if first == RUN:
        given = any(each.partition("=")[0] == "--kvstore" for each in command)
        return [*THIS_PROGRAM, *command, *([] if given else KVSTORE)]
    if first in commands:
        raise UsageError(f"launch starts `run` or a program of yours, not {first}")
    program = shutil.which(first)
    if not program:
        raise UsageError(
            f"launch: {shortened(first)!r} is not a program{suggestion(first, [RUN])}; after --, "
            "expected `run` with its arguments, or a program such as python train.py"
        )
    return [program, *command[1:]]


def is_run(command: Sequence[str]) -> bool:
    """Return whether a command of `check_command` is this program's `run`."""
    return [*command[: len(THIS_PROGRAM)]] == THIS_PROGRAM


def launch(command: Sequence[str], workers: int, servers: int, wait_s: float, show: Print) -> int:
    """Start scheduler, servers and workers; return one exit code when all have ended.

    If this process ends, for whatever reason, child.py's supervisors end all of them.

    Args:
        command: of a worker, from `check_command`.
        workers: their number.
        servers: their number.
        wait_s: seconds for all processes to connect.
        show: gets each line of their output.

    Raises:
        BrokenError: a process was lost, or cannot be started.
    """
    members: list[Member] = []
    with ExitStack() as stack:
        stack.callback(_end_all, members)
        for name, arguments, environment in _plan(command, workers, servers, wait_s):
            members.append(_start(name, arguments, environment, show))
        try:
            _watch(members)
        except BaseException:
            _ask_to_end(members)
            raise
    return _exit_code(members)


def _plan(
    command: Sequence[str], workers: int, servers: int, wait_s: float
) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """Yield name, arguments and variables of each process.

    MXNet ranks the processes of one machine by their ports, so the names are the ranks.
    """
    port, *ports = free_ports(1 + servers + workers)
    cluster = Cluster("scheduler", LOOPBACK, port, workers, servers)
    waiting = ["--wait", f"{wait_s:g}"]
    serving = [*THIS_PROGRAM, RUN, *KVSTORE, *waiting]
    more = waiting if is_run(command) else []
    threads = str(max(1, machine.available_cores() // workers))
    shared = {
        "DMLC_NODE_HOST": LOOPBACK,
        **_default("OMP_NUM_THREADS", threads),
        **_default(HEARTBEAT_INTERVAL, str(INTERVAL_S)),  # a user's program sets none
        **_columns(),
    }
    yield "scheduler", serving, shared | cluster.environment("scheduler")
    for role, count in {"server": servers, "worker": workers}.items():
        arguments = serving if role == "server" else [*command, *more]
        for number in range(count):
            environment = cluster.environment(role) | {"PORT": str(ports.pop(0))}
            yield f"{role} {number}", arguments, shared | environment


def _default(name: str, value: str) -> dict[str, str]:
    return {} if os.environ.get(name) else {name: value}


def _columns() -> dict[str, str]:
    """Let tables fit this terminal, which the workers do not see."""
    if not sys.stdout.isatty():
        return {}
    return _default("COLUMNS", str(shutil.get_terminal_size().columns))


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nothing uses now, in ascending order."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return sorted(each.getsockname()[1] for each in sockets)


def _start(name: str, arguments: list[str], environment: dict[str, str], show: Print) -> Member:
    try:
        process = WorkerProcess(
            EXECUTE.format(arguments[0], arguments),
            [],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except OSError as error:
        raise BrokenError(
            f"{name} cannot be started ({error.strerror}); free memory and processes, or start "
            "fewer of them"
        ) from error
    member = Member(name, process)
    for stream, pipe in process.outputs.items():
        reader = threading.Thread(target=_pass_on, args=(pipe, stream, name, show), daemon=True)
        member.readers.append(reader)
        reader.start()
    return member


def _pass_on(pipe: IO[bytes], stream: str, name: str, show: Print) -> None:
    """Show a process's output line by line; what cannot be shown is read all the same."""
    for line in pipe:
        with suppress(BrokenError):  # the command's end reports it again
            show(stream, name, line.decode(errors="backslashreplace").rstrip("\r\n"))


def _watch(members: Sequence[Member]) -> None:
    """Wait until the workers have ended.

    If a process fails, or a server ends before them, they get time to end by themselves; if one
    crashed, none.
    """
    until = math.inf
    while any(each.is_worker and each.code is None for each in members):
        running = [each for each in members if each.code is None]
        if not _reap_next(running, until) or any(each.crashed for each in members):
            return
        ended = [each for each in members if each.code is not None]
        until = min(until, time.monotonic() + min(map(_time_left_by, ended)))


def _time_left_by(ended: Member) -> float:
    """Return the seconds that the workers get once a process has ended."""
    if ended.is_worker:
        return GRACE_S if ended.code else math.inf
    return LAST_WORDS_S if ended.code else GRACE_S  # the weights on a failed server are lost


def _ask_to_end(members: Sequence[Member]) -> None:
    """Ask the workers to end after their step, for GRACE_S; the servers end with them."""
    for each in members:
        if each.is_worker and each.code is None:
            each.process.terminate()
    until = time.monotonic() + GRACE_S
    while running := [each for each in members if each.code is None]:
        if not _reap_next(running, until):
            return


def _reap_next(running: Sequence[Member], until: float) -> bool:
    """Wait until some have ended and reap them; return whether that was in time."""
    timeout = None if until == math.inf else max(0.0, until - time.monotonic())
    ready = wait([each.process.lifeline for each in running], timeout)
    for each in running:
        if each.process.lifeline in ready:
            each.reap()
    return bool(ready)


def _end_all(members: Sequence[Member]) -> None:
    for each in members:
        if each.code is None:
            each.stopped = not each.process.end()
            each.reap()


def _exit_code(members: Sequence[Member]) -> int:
    """Return the code of the first process that says why; 0 if all workers have finished.

    Raises:
        BrokenError: a process was lost, so that there is no verdict.
    """
    own = [each for each in members if not each.stopped]
    lost = [each for each in own if each.crashed]
    if lost:
        causes = "; ".join(f"{each.name} was {each.cause}" for each in lost)
        raise BrokenError(f"{causes}. All processes of the training have been ended")
    workers = [each for each in members if each.is_worker]
    if all(each.code == 0 and not each.stopped for each in workers):
        return ExitCode.OK
    codes = [each.code for each in own if each.code]
    telling = [code for code in codes if code != ExitCode.BROKEN]
    return next(iter([*telling, *codes]), int(ExitCode.BROKEN))
