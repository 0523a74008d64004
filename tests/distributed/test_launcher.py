"""What `launch` starts, and the exit code that it makes of many."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import pytest

from adadelta_cli.distributed import launcher
from adadelta_cli.distributed.launcher import Member, check_command, free_ports
from adadelta_cli.errors import BrokenError, UsageError

COMMANDS = ["run", "verify", "launch"]


def member(name, code, **more):
    """Make a member of a training that has ended."""
    return Member(name, SimpleNamespace(), code, **more)


def test_run_gets_the_key_value_store_unless_it_is_given():
    """Without it, each worker would train alone."""
    program = [sys.executable, "-m", "adadelta_cli", "run", "mlp"]
    assert check_command(["run", "mlp"], COMMANDS) == [*program, "--kvstore", "dist_sync"]
    for given in (["--kvstore", "dist_sync"], ["--kvstore=dist_sync"]):
        assert check_command(["run", "mlp", *given], COMMANDS) == [*program, *given]


def test_a_program_of_ones_own_is_found_on_the_path():
    """Its arguments stay as they are."""
    program = check_command(["sh", "-c", "run"], COMMANDS)
    assert program[0].startswith("/") and program[1:] == ["-c", "run"]
    assert not launcher.is_run(program)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("verify", "launch starts `run` or a program of yours, not verify"),
        ("launch", "not launch"),
        ("rum", r"'rum' is not a program \(did you mean run\?\)"),
        ("/no/such/program", "expected `run` with its arguments"),
    ],
)
def test_a_command_that_cannot_be_launched_is_refused(command, message):
    """The message says what can be."""
    with pytest.raises(UsageError, match=message):
        check_command([command], COMMANDS)


def test_names_are_ranks_because_ports_ascend():
    """MXNet sorts the processes of one host by their ports."""
    plan = list(launcher._plan(["train"], 3, 2, 60.0))
    names = ["scheduler", "server 0", "server 1", "worker 0", "worker 1", "worker 2"]
    assert [name for name, *_ in plan] == names
    ports = [int(environment["PORT"]) for *_, environment in plan[1:]]
    assert ports == sorted({*ports})
    roots = {environment["DMLC_PS_ROOT_PORT"] for *_, environment in plan}
    assert len(roots) == 1 and int(roots.pop()) not in ports
    assert plan[-1][1] == ["train"] and "run" in plan[0][1]


def test_free_ports_differ():
    """All are held until all are chosen."""
    assert len({*free_ports(50)}) == 50


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ({"worker 0": 0, "worker 1": 0}, 0),
        ({"worker 0": 1, "worker 1": 1}, 1),
        ({"worker 0": 4, "worker 1": 2}, 2),  # 4: the other one stopped
        ({"server 0": 3, "worker 0": 4, "worker 1": 4}, 3),
        ({"worker 0": 4, "worker 1": 4}, 4),
        ({"server 0": 0}, 4),  # it ended before the workers
    ],
)
def test_the_exit_code_is_that_of_the_process_that_says_why(codes, code):
    """Code 4 may only say that another one stopped."""
    members = [member(name, each) for name, each in codes.items()]
    if not any(each.is_worker for each in members):
        members += [member("worker 0", -9, stopped=True)]
    assert launcher._exit_code(members) == code


@pytest.mark.parametrize(
    ("name", "code", "seconds"),
    [
        ("worker 0", 0, math.inf),
        ("worker 0", 2, launcher.GRACE_S),
        ("server 0", 0, launcher.GRACE_S),
        ("server 0", 4, launcher.LAST_WORDS_S),
        ("scheduler", 4, launcher.LAST_WORDS_S),
    ],
)
def test_workers_get_time_once_a_process_has_ended(name, code, seconds):
    """Least where nothing is left to be saved: the weights on a failed server are lost."""
    assert launcher._time_left_by(member(name, code)) == seconds
    assert launcher.LAST_WORDS_S < launcher.GRACE_S


def test_a_process_that_was_killed_is_named():
    """Those that this program ended are not."""
    members = [member("worker 0", -9, stopped=True), member("worker 1", -9, cause="killed by X")]
    with pytest.raises(BrokenError, match="worker 1 was killed by X"):
        launcher._exit_code(members)
