"""A worker process ends with its leader, and all that it started ends with it."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from adadelta_cli.system import child
from adadelta_cli.system.sandbox import HungError, Sandbox, SandboxError

ROOT = Path(child.__file__).parents[2]
ENDS_S = 20.0  # by when all processes must have ended
LIVES_S = 100.0  # after which they end by themselves, too late
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="Linux's /proc lists the children of a process"
)


class Life:
    """A named pipe that shows when all processes that hold it have ended."""

    def __init__(self, folder):
        self.path = folder / "life"
        os.mkfifo(self.path)
        self._end = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)

    def await_signs(self, count):
        """Wait until so many processes have given a sign of life."""
        seen, until = 0, time.monotonic() + 60
        while seen < count:
            assert select.select([self._end], [], [], until - time.monotonic())[0]
            seen += len(os.read(self._end, count - seen))

    def await_end(self):
        """Wait until nobody holds it."""
        until = time.monotonic() + ENDS_S
        while True:
            left = max(0.0, until - time.monotonic())
            assert select.select([self._end], [], [], left)[0], "a process is left"
            if not os.read(self._end, 100):
                os.close(self._end)
                return


@pytest.fixture
def life(tmp_path):
    """Make one, and hold it until a process does."""
    return Life(tmp_path)


# --- what runs in the worker ----------------------------------------------------------------------


def give_sign(path):
    """Open the pipe for good, also in every process that is forked later."""
    handle = os.open(path, os.O_WRONLY)
    os.set_inheritable(handle, True)
    os.write(handle, b"x")
    return handle


def live():
    """Hang for `LIVES_S`."""
    until = time.monotonic() + LIVES_S
    while time.monotonic() < until:
        time.sleep(0.01)
    os._exit(0)


def leave_children(path):
    """Leave sleeping children behind: a forked one, one in its own session, a program."""
    handle = give_sign(path)
    for leave in (lambda: None, os.setsid):
        if os.fork() == 0:
            leave()
            if os.fork() == 0:  # its parent ends, so it is an orphan
                os.write(handle, b"x")
                live()
            os.write(handle, b"x")
            live() if leave is not os.setsid else os._exit(0)
    subprocess.Popen(["/bin/sleep", str(LIVES_S)], close_fds=False)


SIGNS = 5


def leave_a_child_and_hang(path):
    """Leave one behind in the process group, and hang."""
    handle = give_sign(path)
    if os.fork() == 0:
        os.write(handle, b"x")
    live()


def leave_children_and_hang(path):
    """Leave children behind, and hang."""
    leave_children(path)
    live()


def fork_and_return():
    """Return in the parent and in the child."""
    return os.fork() == 0


def fork_and_raise():
    """Raise in the child, what is not even an `Exception`."""
    if os.fork() == 0:
        raise SystemExit(3)


def multiply(folder, most):
    """Fork in each process, `most` times in all."""
    counter = Path(folder) / "count"
    until = time.monotonic() + LIVES_S
    while time.monotonic() < until:
        with counter.open("ab") as file:
            file.write(b"x")
            file.flush()
            if file.tell() > most:
                live()
        os.fork()


def double(number):
    """Return twice the number, in a pool."""
    return 2 * number


def use_pool(method):
    """Use a pool of processes."""
    with multiprocessing.get_context(method).Pool(2) as pool:
        return pool.map(double, [1, 2, 3])


def use_pool_that_hangs():
    """Wait for a pool whose processes end before they answer."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.map(os._exit, [0])


# --- what ends ------------------------------------------------------------------------------------


@needs_proc
def test_processes_that_the_work_left_end_with_the_sandbox(life):
    """Also one that has left its process group."""
    with Sandbox(60) as sandbox:
        sandbox.call(leave_children, life.path)
        life.await_signs(SIGNS)
    life.await_end()


@needs_proc
def test_processes_that_a_killed_worker_left_end_with_it(life):
    """Its children do not become the system's."""
    with Sandbox(60) as sandbox:
        worker = sandbox.call(os.getpid)
        sandbox.call(leave_children, life.path)
        life.await_signs(SIGNS)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(SandboxError, match="crashed: killed by SIGKILL"):
            sandbox.call(abs, -1)
        life.await_end()


@needs_proc
def test_all_ends_with_a_leader_that_is_killed(life):
    """Even though its work hangs, and nobody closes the sandbox."""
    code = (
        "import sys; from adadelta_cli.system.sandbox import Sandbox; import test_child\n"
        "with Sandbox() as sandbox: sandbox.call(test_child.leave_children_and_hang, sys.argv[1])"
    )
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    with subprocess.Popen(
        [sys.executable, "-c", code, str(life.path)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    ) as leader:
        life.await_signs(SIGNS)
        leader.kill()
        life.await_end()
        assert leader.stderr.read() == ""


def test_elsewhere_than_on_linux_the_process_group_ends(life, tmp_path, monkeypatch):
    """Without prctl and /proc, processes that stayed in the group end when a call hangs."""
    text = child.SUPERVISOR.read_text()
    elsewhere = tmp_path / "supervisor.py"
    elsewhere.write_text(text.replace('"linux"', '"darwin"').replace('f"/proc', 'f"/nowhere'))
    assert elsewhere.read_text().count("nowhere") == 3
    monkeypatch.setattr(child, "SUPERVISOR", elsewhere)
    with Sandbox(60) as sandbox:
        worker = sandbox.call(os.getpid)
        sandbox.timeout = 2.0
        with pytest.raises(HungError):
            sandbox.call(leave_a_child_and_hang, life.path)
        life.await_signs(2)
        life.await_end()
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
        assert sandbox.call(abs, -1) == 1


def test_a_worker_ends_in_silence_when_its_leader_does():
    """Nobody reads its answer: no traceback of a broken pipe."""
    code = (
        "import os, time; from adadelta_cli.system.sandbox import Sandbox\n"
        "sandbox = Sandbox(); sandbox.call(abs, -1); sandbox.begin(time.sleep, 0.05)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")


def test_a_sandbox_that_another_thread_closes_starts_nothing_more():
    """The waiting call ends, and so does the next."""
    sandbox, outcomes = Sandbox(60), []

    def call():
        for _ in range(2):
            with pytest.raises(SandboxError) as error:
                sandbox.call(live)
            outcomes.append(str(error.value))

    sandbox.call(abs, -1)
    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(0.1)  # whether it waits already or not, it ends
    sandbox.close()
    thread.join(ENDS_S)
    assert not thread.is_alive() and len(outcomes) == 2 and outcomes[1] == "was closed"


# --- what the work starts -------------------------------------------------------------------------


@pytest.mark.parametrize("work", [fork_and_return, fork_and_raise])
def test_a_process_that_the_work_forked_answers_nothing(work):
    """Each call has one answer, from the worker itself."""
    with Sandbox(60) as sandbox:
        worker = sandbox.call(os.getpid)
        for _ in range(5):
            assert not sandbox.call(work)
        assert sandbox.call(os.getpid) == worker


@needs_proc
def test_work_that_multiplies_is_ended(tmp_path):
    """It would fork without end; here, no more often than 60 times."""
    with Sandbox(60, limit=20) as sandbox:
        with pytest.raises(SandboxError, match="crashed: started more than 20 processes at a time"):
            sandbox.call(multiply, str(tmp_path), 60)
        assert sandbox.call(abs, -2) == 2


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_work_may_use_a_pool(method):
    """The processes of multiprocessing are not in its way."""
    with Sandbox(60) as sandbox:
        assert sandbox.call(use_pool, method) == [2, 4, 6]


def test_work_that_waits_for_a_dead_pool_hangs():
    """It is reported as other work that hangs."""
    with Sandbox(60) as sandbox:
        sandbox.call(abs, -1)
        sandbox.timeout = 1.0
        with pytest.raises(HungError, match=r"1 s \(--timeout\)"):
            sandbox.call(use_pool_that_hangs)
