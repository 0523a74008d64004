"""A signal ends a command at any time, and all processes that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from test_child import ENDS_S, ROOT, Life, needs_proc

HANGS = """
import os, time
def step(*arrays, **settings):
    life = os.open({path!r}, os.O_WRONLY)
    os.set_inheritable(life, True)
    os.fork()
    os.write(life, b"x")
    until = time.monotonic() + 100
    while time.monotonic() < until:
        pass
    os._exit(0)
"""
COMMANDS = {
    "verify": ("verify", "--case", "odd", "--dtype", "float32"),
    "bench": ("bench", "--sizes", "1e3"),
}
SIGNS = 2


@pytest.fixture
def life(tmp_path):
    """Make a pipe that the kernel's processes hold."""
    return Life(tmp_path)


def start(folder, life, command):
    """Start a command in its own session; its kernel hangs in the first step."""
    (folder / "kernel.py").write_text(HANGS.format(path=str(life.path)))
    started = subprocess.Popen(
        [sys.executable, "-m", "adadelta_cli", *COMMANDS[command], "--impl", "kernel.py:step"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    life.await_signs(SIGNS)
    return started


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("numbers", "code"),
    [([signal.SIGINT] * 3, 130), ([signal.SIGTERM], 143)],
    ids=["Ctrl-C three times", "SIGTERM"],
)
def test_the_first_signal_ends_a_command_whose_kernel_hangs(tmp_path, life, command, numbers, code):
    """Further signals change nothing."""
    with start(tmp_path, life, command) as started:
        for number in numbers:
            os.kill(started.pid, number)
        _, err = started.communicate(timeout=ENDS_S)
    assert started.returncode == code, err
    assert "Traceback" not in err and err.count("Error: ") == 1
    life.await_end()


@needs_proc
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_killed_leaves_nothing(tmp_path, life, command):
    """Its kernel, which spins, ends, and so does the process that the kernel forked."""
    with start(tmp_path, life, command) as started:
        started.kill()
        life.await_end()
        assert "Traceback" not in started.stderr.read()
