"""Processes that take samples: how they are started, what ends them, and what may go wrong."""

import fcntl
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from adadelta_cli.bench import worker_pool
from adadelta_cli.bench.worker_pool import Worker, WorkerPool, WorkerSpec, run_side_by_side
from adadelta_cli.errors import BrokenError, ExitCode, UsageError

ROOT = Path(worker_pool.__file__).parents[2]
SPEC = {"shapes": [[5000]], "dtype": "float32", "seed": 0, "cold": False, "roofs": False}
KERNELS = """
import fcntl, os, time
from pathlib import Path
import numpy as np
from adadelta_cli.update import Hyperparameters, Parameter, update

HERE = Path(__file__).parent
with (HERE / "imports").open("a") as file:
    file.write("x")
calls = 0

def step(weight, grad, acc_grad, acc_delta, **settings):
    hyper = Hyperparameters(**settings)
    p = Parameter(weight, grad, acc_grad, acc_delta)
    update(np, p, hyper.scalars(weight.dtype), hyper.learning_rate, hyper.wd)

def dies(*arrays, **settings):
    os._exit(7)

def compiles(*arrays, **settings):
    global calls
    calls += 1
    time.sleep(1.0 * (calls == 1) + 60.0 * (HERE / "hang").exists())
    step(*arrays, **settings)

def forks(*arrays, **settings):
    global calls
    calls += 1
    if calls == 1 and os.fork() == 0:
        os.setsid()
        with (HERE / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            time.sleep(3)
            (HERE / "survived").touch()
            os._exit(0)
    step(*arrays, **settings)

def multiplies(*arrays, **settings):
    with (HERE / "forked").open("ab") as file:
        file.write(b"x")
        file.flush()
        count = file.tell()
    if count > 1 and not os.fork():  # not while the step is checked, on memory that a fork shares
        time.sleep(60)
        os._exit(0)
    if count > 60:
        time.sleep(60)
    step(*arrays, **settings)

def forks_and_dies(*arrays, **settings):
    forks(*arrays, **settings)
    while not (HERE / "lock").exists():
        time.sleep(0.01)
    os._exit(7)
"""


def kernels(folder):
    """Write a file of users' kernels."""
    path = folder / "kernels.py"
    path.write_text(KERNELS)
    return path


def package(folder, main):
    """Write another version of the package, whose processes do this."""
    (folder / "adadelta_cli").mkdir()
    (folder / "adadelta_cli" / "__init__.py").touch()
    (folder / "adadelta_cli" / "worker.py").write_text(
        f"import os, time\ndef main():\n    {main}\n"
    )
    return str(folder)


def environment(folder):
    """Write the Python of an environment in which this very version is installed."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return str(python)


# --- the version that is started ------------------------------------------------------------------


def test_a_checkout_in_the_current_folder_hides_no_version(tmp_path, monkeypatch):
    """Neither ours nor the other's; users' kernels are still found from there."""
    package(tmp_path, "os._exit(9)")
    kernels(tmp_path)
    monkeypatch.chdir(tmp_path)
    roles = [
        WorkerSpec(("numpy-fused",)),
        WorkerSpec(("kernels.py:step",), foreign=True),
        WorkerSpec(("numpy-fused",), "old: ", environment(tmp_path)),
    ]
    with WorkerPool(roles, threads=1) as found:
        found.prepare(("numpy-fused", "kernels.py:step"), **SPEC)
        assert found.faults == {"numpy-fused": "", "kernels.py:step": "", "old: numpy-fused": ""}
        assert {worker.about["path"] for worker in found._workers.values()} == {
            str(ROOT / "adadelta_cli" / "bench" / "worker.py")
        }


def test_a_worker_of_another_version_is_refused(tmp_path):
    """Where something puts another version first, both are named."""
    greeting = f'{{"protocol": {worker_pool.PROTOCOL}, "path": "/elsewhere/worker.py"}}'
    path = package(tmp_path, f"print('{greeting}', flush=True); time.sleep(60)")
    with (
        Worker(1, PYTHONPATH=path) as worker,
        pytest.raises(BrokenError, match=rf"found /elsewhere/worker\.py, expected {ROOT}"),
    ):
        worker.greet()


@pytest.mark.parametrize("content", ["#!/bin/sh\n", "no program"])
def test_a_file_that_is_no_program(content, tmp_path):
    """It ends with 2, and with it all that was started before."""
    file = tmp_path / "python"
    file.write_text(content)
    file.chmod(0o644 if content.startswith("#!") else 0o755)
    roles = [WorkerSpec(("numpy-fused",)), WorkerSpec(("numpy-fused",), "old: ", str(file))]
    found = WorkerPool(roles, threads=1)
    with (
        pytest.raises(UsageError, match=r"cannot be executed.*expected the Python") as error,
        found,
    ):
        pass
    assert error.value.exit_code is ExitCode.USAGE
    (worker,) = found._workers.values()
    assert worker._child._process.returncode == 0


# --- what is said ---------------------------------------------------------------------------------


def test_what_is_printed_at_the_start_is_no_answer(tmp_path):
    """Whatever prints before it is ready does so on stderr."""
    (tmp_path / "sitecustomize.py").write_text("print('welcome', flush=True)")
    with Worker(1, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)])) as worker:
        worker.greet()
        assert worker.about["protocol"] == worker_pool.PROTOCOL


def test_what_is_no_answer_is_quoted(tmp_path):
    """The process lives on, and is not waited for."""
    path = package(tmp_path, "print('good morning', flush=True); time.sleep(60)")
    with (
        Worker(1, PYTHONPATH=path) as worker,
        pytest.raises(BrokenError, match="said 'good morning'; expected JSON"),
    ):
        worker.greet()


def test_last_words_need_not_be_utf_8(tmp_path):
    """What cannot be read is replaced."""
    path = package(tmp_path, "os.write(2, b'caf' + bytes([0xE9])); os._exit(3)")
    with (
        Worker(1, PYTHONPATH=path) as worker,
        pytest.raises(BrokenError, match="crashed: exited with 3: caf\N{REPLACEMENT CHARACTER}"),
    ):
        worker.greet()


# --- what is not ours -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "fault"), [("forks", ""), ("forks_and_dies", "exited with 7")])
def test_what_a_kernel_started_ends_with_it(name, fault, tmp_path):
    """Its children are neither waited for nor left behind."""
    own = f"{kernels(tmp_path)}:{name}"
    with WorkerPool([WorkerSpec((own,), foreign=True)], threads=1) as found:
        found.prepare((own,), **SPEC)
    assert fault in found.faults[own]
    assert bool(fault) == bool(found.faults[own])
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # waits until they have ended
    assert not (tmp_path / "survived").exists()


def test_a_kernel_that_multiplies_is_ended(tmp_path, monkeypatch):
    """Each step starts one more process; here, 60 at most."""
    monkeypatch.setattr(worker_pool, "LIMIT", 8)
    own = f"{kernels(tmp_path)}:multiplies"
    with WorkerPool([WorkerSpec((own,), foreign=True)], threads=1) as found:
        found.prepare((own,), **SPEC)
        while not found.faults[own]:  # the 61st step waits to be ended
            found.sample(0.1, lambda _: True)
        assert "started more than 8 processes at a time" in found.faults[own]


def test_what_broke_is_not_asked_again(tmp_path):
    """Its fault is that of the later tasks that it is able to; nobody else's."""
    dies = f"{kernels(tmp_path)}:dies"
    roles = [WorkerSpec(("numpy-fused",)), WorkerSpec((dies,), foreign=True)]
    with WorkerPool(roles, threads=1) as found:
        for able in ((dies, "numpy-fused"), (dies, "numpy-fused"), ("numpy-fused",)):
            found.prepare(able, **SPEC)
            assert set(found.faults) == set(able)
            assert found.faults["numpy-fused"] == ""
            assert found.faults.get(dies, "wrong: crashed: exited with 7").startswith("wrong: ")
            assert "crashed: exited with 7" in found.faults.get(dies, "crashed: exited with 7")
            assert np.isfinite(found.sample(0.01, lambda _: True)["numpy-fused"]).any()
    assert (tmp_path / "imports").read_text() == "x"


def test_compiling_may_take_longer_than_a_sample(tmp_path, monkeypatch):
    """Before the first sample there is more patience; a sample that hangs is a fault."""
    monkeypatch.setitem(worker_pool.FOREIGN_ANSWER_S, "sample", 0.2)
    own = f"{kernels(tmp_path)}:compiles"
    with WorkerPool([WorkerSpec((own,), foreign=True)], threads=1) as found:
        found.prepare((own,), **SPEC)
        assert found.faults == {own: ""}
        (tmp_path / "hang").touch()
        assert found.sample(0.01, lambda _: True) == {}
        for _ in range(
            2
        ):  # the next task has the same fault, not that of a process that was killed
            assert found.faults[own] == "wrong: a process that takes samples hung: 0.2 s of silence"
            found.prepare((own,), **SPEC)
    assert worker_pool.FOREIGN_ANSWER_S["task"] > 120


def test_what_is_slow_has_its_turns_in_rounds_of_all():
    """Every how many rounds an entry is sampled is a power of two, so all meet in some rounds."""
    costs = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "twice": 2.0, "slow": 7.3, "slowest": 31.0}
    periods = [worker_pool._period(name, costs) for name in costs]
    assert periods == [1, 1, 1, 1, 2, 4, 16]
    assert worker_pool._period("first", {}) == 1


# --- side by side ---------------------------------------------------------------------------------


class Silent:
    """A worker that answers when it is let to, and no earlier."""

    left_s = 30.0

    def __init__(self):
        readable, self._writable = os.pipe()
        self.sources = (readable,)

    def speak(self):
        """Answer."""
        os.write(self._writable, b"x")


def test_jobs_go_on_as_their_workers_answer():
    """Two at once; the third begins when one of them has ended."""
    workers, events = [Silent() for _ in range(3)], []

    def job(number):
        events.append(f"begin {number}")
        yield workers[number]
        events.append(f"end {number}")
        return 10 * number

    ended = run_side_by_side([job(number) for number in range(3)], 2)
    workers[1].speak()
    assert next(ended) == (1, 10)
    assert events == ["begin 0", "begin 1", "end 1"]
    workers[0].speak()
    workers[2].speak()
    assert dict(ended) == {0: 0, 2: 20}
    assert events[3] == "begin 2"


def test_a_job_that_fails_ends_the_others():
    """Whatever one raises, the workers of the others are given back."""
    fails, waits, events = Silent(), Silent(), []

    def failing():
        yield fails
        raise BrokenError("all is lost")

    def waiting():
        try:
            yield waits
        finally:
            events.append("closed")

    fails.speak()
    with pytest.raises(BrokenError, match="all is lost"):
        list(run_side_by_side([waiting(), failing()], 2))
    assert events == ["closed"]


def test_a_worker_that_is_silent_for_too_long_is_asked_for_its_answer():
    """Which tells that it hangs; others are not waited for."""
    slow = Silent()
    slow.left_s = 0.01

    def job(worker):
        yield worker
        return "asked"

    ended = run_side_by_side([job(Silent()), job(slow)], 2)
    assert next(ended) == (1, "asked")
    ended.close()
