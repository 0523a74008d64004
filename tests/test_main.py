"""Whatever happens, the program ends with the documented exit code and no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import click
import pytest

from adadelta_cli import __main__
from adadelta_cli.errors import BrokenError, ExitCode, UnavailableError, UsageError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (UnavailableError("x"), 3),
        (BrokenError("x"), 4),
        (click.UsageError("x"), 2),
        (click.BadParameter("x"), 2),
        (click.FileError("x"), 2),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (__main__.TerminatedError(), 143),
        (MemoryError("x"), 4),
        (OSError(28, "No space left on device"), 4),
        (ZeroDivisionError("x"), 4),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_kind_of_error_has_its_exit_code(monkeypatch, capsys, error, code):
    """And a message with `Error: `; the code is never 1, which means a failed check."""
    monkeypatch.delenv("ADADELTA_DEBUG", raising=False)

    def fail(**_):
        raise error

    monkeypatch.setattr("adadelta_cli.cli.main.adadelta.main", fail)
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == code
    err = capsys.readouterr().err
    assert err.startswith("Error: ") and "Traceback" not in err


def test_the_first_of_several_signals_raises(monkeypatch):
    """What follows soon would break off what ends processes and writes files; later, it raises."""
    now = [100.0]
    monkeypatch.setattr(__main__.time, "monotonic", lambda: now[0])
    signals = __main__.Signals()
    with pytest.raises(__main__.TerminatedError):
        signals.handle(signal.SIGTERM, None)
    for number in (signal.SIGINT, signal.SIGTERM):
        signals.handle(number, None)
    now[0] += __main__.UNWINDING_S + 1
    with pytest.raises(KeyboardInterrupt):
        signals.handle(signal.SIGINT, None)


def test_signals_that_come_while_files_are_written_change_nothing(monkeypatch, capsys):
    """Two of the three come when the work unwinds; the program ends with what the first asked."""
    written = []

    def work(**_):
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            written.append("all")

    monkeypatch.setattr("adadelta_cli.cli.main.adadelta.main", work)
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert (ended.value.code, written) == (130, ["all"])
    assert capsys.readouterr().err.startswith("Error: interrupted")


def test_an_ignored_interrupt_stays_ignored():
    """As a shell's background job has it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    __main__.Signals().install()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_bug_shows_its_traceback_when_asked(monkeypatch):
    """ADADELTA_DEBUG=1 lets the exception through."""
    monkeypatch.setenv("ADADELTA_DEBUG", "1")

    def fail(**_):
        raise ZeroDivisionError

    monkeypatch.setattr("adadelta_cli.cli.main.adadelta.main", fail)
    with pytest.raises(ZeroDivisionError):
        __main__.main()


def test_exit_codes_are_those_of_the_contract():
    """0 to 4, 130 and 143."""
    assert [code.value for code in ExitCode] == [0, 1, 2, 3, 4, 130, 143]


@pytest.mark.parametrize(
    "args", [["nonesuch"], ["--nonesuch"], ["run", "--nonesuch"], ["bench", "--format", "latex"]]
)
def test_wrong_usage_is_2_and_says_where_to_look(args):
    """One line that names what is wrong and the help."""
    done = subprocess.run(
        [sys.executable, "-m", "adadelta_cli", *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ") and "--help" in done.stderr and done.stdout == ""


def test_a_closed_pipe_is_no_failed_check():
    """`adadelta schema | head -0` ends quietly, and not with 1."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "adadelta_cli", "schema"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 4
    assert "Traceback" not in done.stderr
