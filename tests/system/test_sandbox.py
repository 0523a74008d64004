"""The sandbox reports whatever its work does, and goes on."""

from __future__ import annotations

import os
import signal
import time

import pytest

from adadelta_cli.system.sandbox import Sandbox, SandboxError


def test_a_result_comes_back_from_another_process():
    """The function ran elsewhere."""
    with Sandbox() as sandbox:
        assert sandbox.call(os.getpid) != os.getpid()
        assert sandbox.call(divmod, 7, 3) == (2, 1)


@pytest.mark.parametrize(
    ("function", "args", "told"),
    [
        (divmod, (1, 0), "raised ZeroDivisionError"),
        (time.sleep, (60,), "hung: no result within 0.5 s"),
        (signal.raise_signal, (signal.SIGSEGV,), "crashed: killed by SIGSEGV"),
        (os._exit, (3,), "crashed: exited with 3"),
    ],
    ids=["raises", "hangs", "crashes", "exits"],
)
def test_failures_are_told_apart_and_survived(function, args, told):
    """Each is a SandboxError with its own words, and the next call works."""
    with Sandbox(timeout=0.5 if function is time.sleep else 60) as sandbox:
        if function is time.sleep:
            sandbox.timeout = 60
            sandbox.call(abs, -1)  # starting takes longer than the timeout
            sandbox.timeout = 0.5
        with pytest.raises(SandboxError, match=told):
            sandbox.call(function, *args)
        sandbox.timeout = 60
        assert sandbox.call(abs, -2) == 2


def test_work_that_closes_the_pipe_and_lives_on_is_ended():
    """It counts as a crash, and is not waited for."""
    with Sandbox(timeout=60) as sandbox:
        sandbox.call(abs, -1)
        with pytest.raises(SandboxError, match="crashed"):
            sandbox.call(exec, "import os, time; os.closerange(3, 200); time.sleep(3600)")


def test_nothing_reaches_stdout(capfd):
    """What the work prints goes to stderr: stdout may be a JSON document."""
    with Sandbox() as sandbox:
        sandbox.call(os.write, 1, b"chatter")
    out, err = capfd.readouterr()
    assert out == "" and "chatter" in err


def test_a_process_that_died_between_two_calls_is_told_and_replaced():
    """Sending to it is a crash like any other, and no error of the pipe."""
    with Sandbox() as sandbox:
        worker = sandbox.call(os.getpid)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(SandboxError, match="crashed: killed by SIGKILL"):
            sandbox.call(abs, -1)
        assert sandbox.call(abs, -2) == 2


def test_groups_have_processes_of_their_own():
    """One for each name, kept from call to call, and ended with the sandbox."""
    with Sandbox() as sandbox:
        own, torch, jax = (sandbox.of(group).call(os.getpid) for group in ("", "torch", "jax"))
        assert len({own, torch, jax, os.getpid()}) == 4
        assert sandbox.of("torch").call(os.getpid) == torch and sandbox.call(os.getpid) == own
    for pid in (own, torch, jax):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_work_that_was_begun_is_over_before_the_next_call():
    """What was begun is not waited for, and its outcome is not taken for the next call's."""
    with Sandbox(30) as sandbox:
        sandbox.begin(time.sleep, 0.01)
        assert sandbox.call(abs, -3) == 3
        assert sandbox.call(abs, -4) == 4
