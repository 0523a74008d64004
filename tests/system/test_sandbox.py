"""A sandbox reports each failure of its work, and stays usable."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from adadelta_cli.errors import BrokenError
from adadelta_cli.system import child
from adadelta_cli.system.sandbox import (
    FatalReportedError,
    HungError,
    InProcess,
    ReportedError,
    Sandbox,
    SandboxError,
)


def _report(kind):
    raise kind("it is wrong", "turn it off")


def test_a_result_comes_back_from_another_process():
    """The function ran elsewhere."""
    with Sandbox() as sandbox:
        assert sandbox.call(os.getpid) != os.getpid()
        assert sandbox.call(divmod, 7, 3) == (2, 1)


@pytest.mark.parametrize(
    ("function", "args", "message", "exit_code"),
    [
        (divmod, (1, 0), "raised ZeroDivisionError", None),
        (signal.raise_signal, (signal.SIGSEGV,), "crashed: killed by SIGSEGV", -signal.SIGSEGV),
        (os._exit, (3,), "crashed: exited with 3", 3),
    ],
    ids=["raises", "crashes", "exits"],
)
def test_a_failure_is_described_and_survived(function, args, message, exit_code):
    """Each is a SandboxError with its own message, and the next call works."""
    with Sandbox(60) as sandbox:
        with pytest.raises(SandboxError, match=message) as raised:
            sandbox.call(function, *args)
        assert raised.value.exit_code == exit_code
        assert sandbox.call(abs, -2) == 2


def test_work_that_hangs_is_ended():
    """After the timeout, which the message names; the next call works."""
    with Sandbox(60) as sandbox:
        sandbox.call(abs, -1)  # starting takes longer than the timeout
        sandbox.timeout = 0.5
        with pytest.raises(HungError, match=r"0\.5 s"):
            sandbox.call(time.sleep, 60)
        sandbox.timeout = 60
        assert sandbox.call(abs, -2) == 2


@pytest.mark.parametrize("place", [Sandbox, InProcess])
@pytest.mark.parametrize("kind", [ReportedError, FatalReportedError])
def test_an_error_that_the_work_reports_keeps_its_fix(place, kind):
    """Its message comes without a location; a process that it made unusable is replaced."""
    with place() as sandbox:
        worker = sandbox.call(os.getpid)
        with pytest.raises(SandboxError) as raised:
            sandbox.call(_report, kind)
        assert (str(raised.value), raised.value.fix) == ("it is wrong", "turn it off")
        replaced = place is Sandbox and kind is FatalReportedError
        assert (sandbox.call(os.getpid) != worker) is replaced


def test_work_that_closes_its_pipe_is_ended():
    """It counts as a crash, even if it goes on."""
    with Sandbox(timeout=60) as sandbox:
        sandbox.call(abs, -1)
        with pytest.raises(SandboxError, match="crashed"):
            sandbox.call(exec, "import os, time; os.closerange(3, 200); time.sleep(3600)")


def test_nothing_reaches_stdout(capfd):
    """The work's output goes to stderr: stdout may be a JSON document."""
    with Sandbox() as sandbox:
        sandbox.call(os.write, 1, b"chatter")
    out, err = capfd.readouterr()
    assert out == "" and "chatter" in err


FULL_STDERR = """
import os
from adadelta_cli.system.sandbox import Sandbox
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
with Sandbox(60) as sandbox:
    for descriptor in (1, 2):
        print(sandbox.call(os.write, descriptor, b"chatter"))
    sandbox.call(exec, "import sys; print(1, file=sys.stderr, flush=True)")
    sandbox.call(exec, "import sys; print(1, flush=True)")
"""


def test_output_that_cannot_be_written_is_no_fault_of_the_work():
    """A full disk behind stderr: it is dropped."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_STDERR], stdout=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "7\n7\n")


def test_the_last_output_of_a_process_is_not_lost(capfd):
    """Not even if it is large, and the process ends at once."""
    with Sandbox() as sandbox, pytest.raises(SandboxError, match="exited with 3"):
        sandbox.call(exec, "import os; os.write(1, b'x' * 100_000); os._exit(3)")
    assert len(capfd.readouterr().err) >= 100_000


@pytest.mark.parametrize("begins", [True, False])
def test_a_process_that_died_between_two_calls_is_reported_and_replaced(begins):
    """The next call reports a crash, not an error of the pipe; `begin` reports nothing."""
    with Sandbox() as sandbox:
        worker = sandbox.call(os.getpid)
        os.kill(worker, signal.SIGKILL)
        if begins:
            time.sleep(0.2)  # most likely its pipe is closed by now; the outcome is the same
            sandbox.begin(abs, -1)
        with pytest.raises(SandboxError, match="crashed: killed by SIGKILL"):
            sandbox.call(abs, -1)
        assert sandbox.call(abs, -2) == 2


def test_groups_have_processes_of_their_own():
    """One for each name, kept between calls, and ended with the sandbox."""
    with Sandbox() as sandbox:
        own, torch, jax = (sandbox.of(group).call(os.getpid) for group in ("", "torch", "jax"))
        assert len({own, torch, jax, os.getpid()}) == 4
        assert sandbox.of("torch").call(os.getpid) == torch and sandbox.call(os.getpid) == own
    for pid in (own, torch, jax):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_closed_sandbox_starts_no_group():
    """Another thread may close it at any time."""
    sandbox = Sandbox()
    sandbox.close()
    with pytest.raises(SandboxError, match="closed"):
        sandbox.of("torch").call(abs, -1)


def test_work_that_was_begun_ends_before_the_next_call():
    """`begin` does not wait, and its result is not taken for the next call's."""
    with Sandbox(30) as sandbox:
        sandbox.begin(time.sleep, 0.01)
        assert sandbox.call(abs, -3) == 3
        assert sandbox.call(abs, -4) == 4


# --- work that damages its process ----------------------------------------------------------------


LARGE = bytes(range(256)) * 10_000  # a result that no pipe takes at once


def write_everywhere():
    """Write to every descriptor but the standard ones, as a library that prints to one might."""
    for descriptor in range(3, 200):
        with suppress(OSError):
            os.write(descriptor, b"a line of a log, longer than the size of a message\n" * 50)
    return LARGE


def take_all_descriptors():
    """Leave none free."""
    kept = vars(take_all_descriptors).setdefault("kept", [])
    with suppress(OSError):
        while True:
            kept.append(os.open(os.devnull, os.O_RDONLY))


class _Nameless(type):
    """A metaclass that hides the names of its classes."""

    @property
    def __name__(cls):
        """Raise."""
        raise RuntimeError("no name")


class UnprintableError(Exception, metaclass=_Nameless):
    """One that cannot be shown."""

    def __str__(self):
        """Raise an argument."""
        raise self.args[0]

    def __reduce__(self):
        """Raise."""
        raise RuntimeError("no pickle")


def raise_unprintable(error):
    """Raise one."""
    raise UnprintableError(error)


def report(text):
    """Raise an error that the work found itself."""
    raise ReportedError(text)


def raise_text(text, times):
    """Raise an error with a long message."""
    raise ValueError(text * times)


def raise_interrupt():
    """Raise what Ctrl-C raises."""
    raise KeyboardInterrupt


def return_a_lambda():
    """Return what cannot be pickled."""
    return lambda: 0


def test_what_work_writes_to_the_channel_damages_nothing():
    """The answer comes after it."""
    with Sandbox(60) as sandbox:
        for _ in range(2):
            assert sandbox.call(write_everywhere) == LARGE


def raise_type(name):
    """Raise an error of a class with any name."""
    raise type(name, (Exception,), {})


UNPRINTABLE = "raised UnprintableError: its message cannot be shown: "


@pytest.mark.parametrize(
    ("work", "args", "message"),
    [
        (raise_unprintable, (RuntimeError(),), UNPRINTABLE + "RuntimeError"),
        (raise_unprintable, (SystemExit(0),), UNPRINTABLE + "SystemExit"),
        (raise_unprintable, (KeyboardInterrupt(),), UNPRINTABLE + "KeyboardInterrupt"),
        (raise_interrupt, (), "raised KeyboardInterrupt"),
        (return_a_lambda, (), "returned a result that raised"),
        (raise_type, ("E" * 100_000,), "raised E{1000}: "),
        (raise_text, ("\udce9\0\x1b[1m\n$", 1), r"raised ValueError: .udce9.x00.x1b\[1m \$ "),
        (report, ("\udce9\0",), r"^.udce9.x00$"),
        (raise_text, ("x", 100_000_000), "raised ValueError: x{1000} "),
    ],
)
def test_whatever_work_raises_is_its_failure(capfd, work, args, message):
    """Its process lives on, and prints no traceback."""
    with Sandbox(60) as sandbox:
        worker = sandbox.call(os.getpid)
        with pytest.raises(SandboxError, match=message) as raised:
            sandbox.call(work, *args)
        str(raised.value).encode()
        assert sandbox.call(os.getpid) == worker
    assert capfd.readouterr().err == ""


def test_work_that_leaves_no_descriptor_is_replaced(capfd):
    """The next call fails, for it cannot import; the one after has a new process."""
    import wave  # here only: the worker has not imported it

    with Sandbox(60) as sandbox:
        sandbox.call(take_all_descriptors)
        with pytest.raises(SandboxError, match=r"cannot go on .* open files"):
            sandbox.call(wave.open, "none")
        assert sandbox.call(abs, -2) == 2
    assert "Traceback" not in capfd.readouterr().err


def test_work_that_closes_all_descriptors_crashes_silently(capfd):
    """No traceback of the program itself."""
    with Sandbox(60) as sandbox:
        with pytest.raises(SandboxError, match="crashed"):
            sandbox.call(os.closerange, 3, 200)
        assert sandbox.call(abs, -2) == 2
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "code",
    [
        "import builtins; builtins.len = None; raise ValueError",
        "import sys; sys.modules.clear(); raise ValueError",
        "import os; os.write = None",
        "import pickle; pickle.dumps = None",
        "import atexit, sys, time; atexit.register(time.sleep, 100); sys.exit(3)",
    ],
)
def test_work_that_breaks_its_process_is_replaced_silently(capfd, code):
    """No traceback, no waiting for its exit functions; the next call has a new process."""
    with Sandbox(60) as sandbox:
        with pytest.raises(SandboxError, match=r"crashed: exited with [13]|raised ValueError"):
            sandbox.call(exec, code)
        with suppress(SandboxError):
            sandbox.call(abs, -2)
        assert sandbox.call(abs, -2) == 2
    assert capfd.readouterr().err == ""


def test_work_without_memory_is_no_verdict():
    """It was raised in the work, but free memory is the system's."""
    for place in (Sandbox(60), InProcess()):
        with place as sandbox, pytest.raises(BrokenError, match=r"memory ran out .*; free some"):
            sandbox.call(raise_memory_error)


def raise_memory_error():
    """Raise what an allocation raises."""
    raise MemoryError


@pytest.mark.parametrize("kills", [0, 1])
def test_a_worker_that_the_system_ended_for_memory_is_reported_as_that(
    tmp_path, monkeypatch, kills
):
    """The kernel counts such processes; SIGKILL alone may come from anyone."""
    counters = tmp_path / "vmstat"
    counters.write_text("nr_free_pages 7\noom_kill 3\nnr 1\n")
    monkeypatch.setattr(child, "VMSTAT", counters)
    with Sandbox(60) as sandbox:
        worker = sandbox.call(os.getpid)
        counters.write_text(f"nr_free_pages 7\noom_kill {3 + kills}\nnr 1\n")
        os.kill(worker, signal.SIGKILL)
        expected = {0: (SandboxError, "killed by SIGKILL"), 1: (BrokenError, "ran out of memory")}
        with pytest.raises(expected[kills][0], match=expected[kills][1]):
            sandbox.call(abs, -2)
        assert sandbox.call(abs, -2) == 2
