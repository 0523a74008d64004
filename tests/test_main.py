"""Whatever happens, the program ends with the documented exit code and no traceback."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys

import click
import pytest
from test_regression import content

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


def test_a_bug_shows_its_traceback_when_asked(monkeypatch, capsys):
    """ADADELTA_DEBUG=1 adds it to the message; the exit code stays, and is never 1."""
    monkeypatch.setenv("ADADELTA_DEBUG", "1")

    def fail(**_):
        raise ZeroDivisionError

    monkeypatch.setattr("adadelta_cli.cli.main.adadelta.main", fail)
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == 4
    assert "Traceback" in capsys.readouterr().err


def test_exit_codes_are_those_of_the_contract():
    """0 to 4, 130 and 143."""
    assert [code.value for code in ExitCode] == [0, 1, 2, 3, 4, 130, 143]


@pytest.mark.parametrize(
    "args", [["nonesuch"], ["--nonesuch"], ["run", "--nonesuch"], ["bench", "--format", "latex"]]
)
def test_wrong_usage_is_2_and_says_where_to_look(adadelta, args):
    """One line that names what is wrong and the help."""
    code, out, err = adadelta(*args)
    assert (code, out) == (2, "")
    assert err.startswith("Error: ") and "--help" in err


STREAMS = {  # the shell's redirection: whether results are lost, whether messages are
    ">&-": (True, False),
    "2>&-": (False, True),
    ">&- 2>&-": (True, True),
    "<&-": (False, False),
    ">&- 2>&- <&-": (True, True),
    ">/dev/full": (True, False),
    "2>/dev/full": (False, True),
    ">/dev/full 2>/dev/full": (True, True),
    "| true": (True, False),
}
RUN = ["run", "rosenbrock", "--backend", "numpy", "--set", "training.steps=3"]
RUN += ["--set", "expect={}"]
BENCH = ["bench", "--sizes", "10", "--impl", "numpy-fused", "--processes", "1"]
BENCH += ["--max-time", "0.05"]
COMMANDS = {
    "--help": (["--help"], 0),
    "--version": (["--version"], 0),
    "run --help": (["run", "-h"], 0),
    "schema": (["schema"], 0),
    "wrong usage": (["run", "--nonesuch"], 2),
    "run": (RUN, 0),
    "run --json": ([*RUN, "--json"], 0),
    "verify": (["verify", "--case", "odd", "--impl", "numpy-fused", "--dtype", "float32"], 0),
    "verify --self-test": (["verify", "--self-test"], 0),
    "bench": (BENCH, 0),
    "bench --json": ([*BENCH, "--json"], 0),
    "compare": (["compare", "old.json", "old.json", "--out", "results/compare"], 0),
    "doctor": (["doctor"], 0),
    "doctor --json": (["doctor", "--json"], 0),
}
# With these, every stream; with the others, one of each kind.
THOROUGH = ("--help", "wrong usage", "run", "run --json")
OF_EACH_KIND = (">/dev/full", "2>&-", ">&- 2>&- <&-", "| true")
LOST = [
    (name, each) for name in COMMANDS for each in (STREAMS if name in THOROUGH else OF_EACH_KIND)
]
WRITES_FILES = {"run", "verify", "bench", "compare"}
# The command line with one mutant and one check of doctor's, for all take minutes.
SHORT = """
from adadelta_cli.cli import streams
streams.install()
from adadelta_cli import __main__
from adadelta_cli.doctor import checks
from adadelta_cli.verification import self_test
checks.REQUIREMENTS = checks.REQUIREMENTS[:1]
self_test.CONTROLS = ()
self_test.SelfTest.__init__.__defaults__ = self_test.MUTANTS[:1], 0
__main__.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "redirection"), LOST)
def test_a_stream_that_cannot_be_written_has_the_documented_code(tmp_path, name, redirection):
    """Lost results: code 4 and a message. Lost messages: the usual code. The files are written."""
    (args, usual), (out_lost, err_lost) = COMMANDS[name], STREAMS[redirection]
    err = tmp_path / "err"
    is_long = args[0] == "doctor" or "--self-test" in args
    program = ["-c", SHORT] if is_long else ["-m", "adadelta_cli"]
    line = shlex.join([sys.executable, *program, *args])
    (tmp_path / "old.json").write_text(json.dumps(content()))
    end = redirection if redirection.startswith("|") else ""
    usual_places = "" if err_lost else f"2>{err}"
    usual_places += "" if out_lost else " >/dev/null"
    script = f"{line} {usual_places} {redirection if not end else ''} {end}\n"
    script += "exit ${PIPESTATUS[0]}"
    if end:  # the reader is gone before anything is written
        script = f"({line} {usual_places}; echo $? >code) | true; exit $(cat code)"
    done = subprocess.run(["/bin/bash", "-c", script], check=False, cwd=tmp_path, timeout=200)
    lost = out_lost and usual == 0
    assert done.returncode == (4 if lost else usual)
    if not err_lost:
        said = err.read_text()
        assert ("Error: " in said) == (lost or usual != 0), said
        assert ("stdout" in said) == lost, said
        assert not any(word in said for word in ("bug", "Traceback", "Exception")), said
    if args[0] in WRITES_FILES and usual == 0 and "-h" not in args:
        assert list(tmp_path.glob(f"results/{args[0]}/**/*.csv"))


DETAILS = {
    "run": (RUN, ["rosenbrock on numpy, steps 0 to 3, in results/run/rosenbrock", "rosenbrock: "]),
    "bench": (BENCH, ["timed: numpy-fused on 10, in 1 processes", "bench: "]),
    "compare": (["compare", "old.json", "old.json"], ["old.json: 2 rows, measured on one by"]),
    "doctor": (["doctor"], ["doctor: "]),
    "verify": (["verify", "--sizes", "10", "--impl", "numpy-fused"], ["verify: "]),
}


@pytest.mark.slow
@pytest.mark.parametrize(("args", "wanted"), DETAILS.values(), ids=DETAILS)
def test_verbose_says_with_what_and_how_long(tmp_path, args, wanted):
    """On stderr, so that stdout stays the document of --json; nothing of it comes without -v."""
    (tmp_path / "old.json").write_text(json.dumps(content()))
    is_long = args[0] == "doctor"
    program = ["-c", SHORT] if is_long else ["-m", "adadelta_cli"]
    plain, more = (
        subprocess.run(
            [sys.executable, *program, *args, "--json", *v, *["--force"] * (args[0] == "run")],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        )
        for v in ([], ["-v"])
    )
    json.loads(more.stdout)
    for text in ("versions: Python 3", "settings: ", f"{args[0]}: ", " s in all", *wanted):
        assert text in more.stderr, more.stderr
    assert "versions: " not in plain.stderr and "in all" not in plain.stderr
    if args[0] in {"run", "bench", "verify"}:
        assert "--seed 0 (default)" in more.stderr


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


def test_memory_that_ran_out_is_said_without_an_empty_reason():
    """Python's own MemoryError has none: of a file of 200 GB, for instance."""
    code, message = __main__.outcome(MemoryError())
    assert code == 4 and message.startswith("memory ran out; free some")
    assert __main__.outcome(MemoryError("x"))[1].startswith("memory ran out (x); ")
