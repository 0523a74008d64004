"""Watch a worker and its leader; when either ends, end all that the worker started.

child.py runs this script in the worker's Python, which may be another environment's: it imports
nothing of this package. It forks at once. The child becomes the worker. The parent stays small and
waits for one of three events:

* The leader ended, even by SIGKILL: its end of a socket, the lifeline, is closed.
* The worker ended: what it started must not outlive it.
* The worker has too many descendants (a fork bomb). RLIMIT_NPROC does not limit root.

Then it kills the worker's process group. On Linux it also kills processes that left the group
(setsid): they become children of the parent, which is a subreaper. Its last words on the lifeline
are how the worker ended. It passes a SIGTERM on to the worker, to let it end by itself.

PR_SET_PDEATHSIG alone does not suffice: processes that the worker forked would live on, and the
signal is sent when the *thread* ends that started the worker.

psutil is not used here: the worker's Python may lack it, and importing it takes 20 ms.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

CROWDED = "crowded"
"""The last words if there were too many processes; otherwise they are the worker's exit code."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # Linux, prctl.h
COUNT_EVERY_S = 0.1  # counting takes 0.3 ms; Python forks some 100 times in this period
PATIENCE_S = 5.0  # for killed processes to end; one that waits for a device may not


def _prctl(option: int, value: int) -> None:
    """Set an attribute of this process, on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _become_worker(supervisor: int, lifeline: int) -> None:
    """Leave the supervisor's process group, and die with it."""
    os.setpgid(0, 0)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:  # it died before the call
        os._exit(1)
    os.close(lifeline)  # so that the leader sees when the supervisor ends
    del sys.argv[1:]
    # A checkout in the current folder would shadow the installed version.
    here = os.path.dirname(__file__)  # noqa: PTH120 - compared with text
    sys.path[:] = [folder for folder in sys.path if folder not in {"", here}]


def _children(pid: int) -> list[int]:
    """List the children of a process; none except on Linux."""
    found: list[int] = []
    with suppress(OSError):  # it has ended
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - faster, here as below
            path = f"/proc/{pid}/task/{thread}/children"
            with suppress(OSError), open(path, "rb", 0) as file:  # noqa: PTH123
                found += map(int, file.read().split())
    return found


def _descendants() -> list[int]:
    """List the processes below this one."""
    found = _children(os.getpid())
    for pid in found:  # grows in the loop
        found += _children(pid)
    return found


def _is_alive(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _is_crowded(limit: int) -> bool:
    """Return whether the worker has more living descendants than `limit`."""
    found = _descendants()
    return len(found) > limit + 1 and sum(map(_is_alive, found)) > limit + 1


def _reap() -> dict[int, int]:
    """Return the exit codes of the children that have ended."""
    ended: dict[int, int] = {}
    with suppress(ChildProcessError):
        while (child := os.waitpid(-1, os.WNOHANG))[0]:
            ended[child[0]] = os.waitstatus_to_exitcode(child[1])
    return ended


def _woken_by_children() -> int:
    """Return a descriptor that becomes readable when a child ends."""
    wakes, rings = os.pipe()
    os.set_blocking(rings, False)
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(rings)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    return wakes


def _watch(worker: int, lifeline: int, limit: int) -> str:
    """Wait for the end of leader or worker; return the last words, empty if the leader ended."""
    wakes, poller = _woken_by_children(), select.poll()
    poller.register(lifeline, select.POLLIN)
    poller.register(wakes, select.POLLIN)
    while True:
        code = _reap().get(worker)
        if code is not None:
            return str(code)
        if limit and _is_crowded(limit):
            return CROWDED
        ready = [fd for fd, _ in poller.poll(COUNT_EVERY_S * 1000 if limit else None)]
        if lifeline in ready:
            return ""
        with suppress(BlockingIOError):
            os.read(wakes, 4096)


def _end_all(group: int) -> None:
    """Kill the worker's process group, and processes that left it."""
    until = time.monotonic() + PATIENCE_S
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    with suppress(ChildProcessError):  # none is left
        while time.monotonic() < until:
            for pid in _descendants():
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            if not os.waitpid(-1, os.WNOHANG)[0]:
                time.sleep(0.001)


def _supervise(worker: int, lifeline: int, limit: int, pipes: list[int]) -> None:
    """Wait until worker or leader end, then end all that the worker started."""
    with suppress(PermissionError, ProcessLookupError):  # the worker has done it, or ended
        os.setpgid(worker, worker)
    signal.signal(signal.SIGTERM, lambda number, _frame: os.kill(worker, number))
    for pipe in (0, *pipes):  # so that readers see when the worker closes them
        os.close(pipe)
    words = _watch(worker, lifeline, limit)
    _end_all(worker)
    with suppress(OSError):
        os.write(lifeline, words.encode())
    os._exit(0)


def main() -> str:
    """Fork; return, in the worker, the code to execute."""
    lifeline, limit, code, *pipes = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the leader's, which ends this
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    supervisor = os.getpid()
    worker = os.fork()
    if worker:
        _supervise(worker, int(lifeline), int(limit), list(map(int, pipes)))
    _become_worker(supervisor, int(lifeline))
    return code


if __name__ == "__main__":
    exec(main(), {"__name__": "__main__"})  # noqa: S102 - the leader's own code
