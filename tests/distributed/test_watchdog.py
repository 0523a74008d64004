"""The watchdog ends a process whose main thread waits in C."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

BEGIN = """
import ctypes, sys
from adadelta_cli.distributed.watchdog import Watchdog
from adadelta_cli.errors import ExitCode
watchdog = Watchdog().start()
def wait():
    print("waiting", flush=True)
    while True:
        ctypes.CDLL(None).sleep(60)
"""
CASES = {
    "a limit": ("with watchdog.limit(0.1, ExitCode.UNAVAILABLE, 'nobody came'): wait()", 3),
    "a loss": ("watchdog.watch(lambda: (ExitCode.BROKEN, 'worker 1 is lost')); wait()", 4),
    "Ctrl-C": ("import signal; signal.signal(2, lambda *_: None); wait()", 130, signal.SIGINT),
    "SIGTERM": ("import signal; signal.signal(15, lambda *_: None); wait()", 143, signal.SIGTERM),
    "SIGTERM while it waits": (
        """
import signal
signal.signal(15, lambda *_: None)
watchdog.patience_s = 1e6
with watchdog.limit(1e6, ExitCode.BROKEN, ''): wait()
""",
        143,
        signal.SIGTERM,
    ),
    "a limit that is kept": (
        """
with watchdog.limit(60, ExitCode.BROKEN, 'too late'): pass
watchdog.watch(None)
sys.exit(7)
""",
        7,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_ends_the_process_with_a_code_and_a_message(case):
    """In Python alone, each of these would wait for ever."""
    code, wanted, *signals = CASES[case]
    with subprocess.Popen(
        [sys.executable, "-c", BEGIN + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            process.stdout.readline()
            for each in signals:
                process.send_signal(each)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == wanted
    assert errors.startswith(b"Error: ") == (wanted != 7) and b"Traceback" not in errors
