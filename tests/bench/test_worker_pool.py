"""Processes that take samples: how they are started, what ends them, and what may go wrong."""

import fcntl
import os
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from invented import write_kernels

from adadelta_cli.bench import worker_pool
from adadelta_cli.bench.device import ARITHMETIC, MEMORY
from adadelta_cli.bench.timing_problem import Outcome
from adadelta_cli.bench.worker_pool import (
    EntryKey,
    Worker,
    WorkerPool,
    WorkerSpec,
    run_side_by_side,
)
from adadelta_cli.errors import BrokenError, ExitCode, UnavailableError, UsageError
from adadelta_cli.implementations.registry import timeable

ROOT = Path(worker_pool.__file__).parents[2]
ORDER = {"shapes": [[5000]], "dtype": "float32", "seed": 0, "cold": False}
FUSED = timeable("numpy-fused")
FUSED_KEY = EntryKey("", "numpy-fused")


def kernel(folder, name):
    """Write the users' kernels; return one, and the key of its entry."""
    chosen = timeable(f"{write_kernels(folder)}:{name}")
    return chosen, EntryKey("", chosen.name)


def package(folder, main):
    """Write another version of the package, with this body of the worker."""
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


def test_a_checkout_in_the_current_folder_hides_no_version(tmp_path, monkeypatch):
    """Neither this one nor the other one; users' kernels are still found from there."""
    package(tmp_path, "os._exit(9)")
    write_kernels(tmp_path)
    monkeypatch.chdir(tmp_path)
    own = timeable("kernels.py:step")
    python = environment(tmp_path)
    specs = [WorkerSpec((FUSED,)), WorkerSpec((own,)), WorkerSpec((FUSED,), "old", python)]
    with WorkerPool(specs, threads=1) as pool:
        pool.prepare((FUSED, own), **ORDER)
        assert pool.problems == {}
        found = pool.sample(0.01, lambda _: True)
        assert set(found) == {FUSED_KEY, EntryKey("", own.name), EntryKey("old", FUSED.name)}
        with Worker(1, python) as worker:
            worker.handshake()
            assert Path(worker.about["path"]) == ROOT / "adadelta_cli" / "bench" / "worker.py"


@pytest.mark.parametrize("protocol", [worker_pool.PROTOCOL, 0])
def test_a_worker_of_another_version_is_refused(protocol, tmp_path):
    """Where something puts another version first, both are named."""
    greeting = f'{{"protocol": {protocol}, "path": "/elsewhere/worker.py"}}'
    path = package(tmp_path, f"print('{greeting}', flush=True); time.sleep(60)")
    with (
        Worker(1, PYTHONPATH=path) as worker,
        pytest.raises(BrokenError, match=rf"found /elsewhere/worker\.py, expected {ROOT}"),
    ):
        worker.handshake()


@pytest.mark.parametrize("content", ["#!/bin/sh\n", "no program"])
def test_a_file_that_is_no_program(content, tmp_path):
    """It ends with 2, and with it all that was started before."""
    file = tmp_path / "python"
    file.write_text(content)
    file.chmod(0o644 if content.startswith("#!") else 0o755)
    specs = [WorkerSpec((FUSED,)), WorkerSpec((FUSED,), "old", str(file))]
    found = WorkerPool(specs, threads=1)
    with (
        pytest.raises(UsageError, match=r"cannot be executed.*expected the Python") as error,
        found,
    ):
        pass
    assert error.value.exit_code is ExitCode.USAGE
    (worker,) = found._workers.values()
    assert worker._child._process.returncode == 0


def test_what_is_printed_at_the_start_is_no_answer(tmp_path):
    """Whatever prints before it is ready does so on stderr."""
    (tmp_path / "sitecustomize.py").write_text("print('welcome', flush=True)")
    with Worker(1, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)])) as worker:
        worker.handshake()
        assert worker.about["protocol"] == worker_pool.PROTOCOL


@pytest.mark.parametrize(
    ("main", "says"),
    [
        ("print('good morning', flush=True); time.sleep(60)", "'good morning'; expected JSON"),
        ("os.write(2, b'caf\\xe9'); os._exit(3)", "crashed: exited with 3: caf\ufffd"),
    ],
)
def test_what_is_no_answer_is_quoted(main, says, tmp_path):
    """A process that lives on is not waited for; last words need not be UTF-8."""
    path = package(tmp_path, main)
    with Worker(1, PYTHONPATH=path) as worker, pytest.raises(BrokenError, match=says):
        worker.handshake()


@pytest.mark.parametrize(("name", "how"), [("forks", ""), ("forks_and_dies", "exited with 7")])
def test_what_a_kernel_started_ends_with_it(name, how, tmp_path):
    """Its children are neither waited for nor left behind."""
    own, key = kernel(tmp_path, name)
    with WorkerPool([WorkerSpec((own,))], threads=1) as pool:
        pool.prepare((own,), **ORDER)
    assert how in str(pool.problems.get(key))
    assert bool(how) == (key in pool.problems)
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # waits until they have ended
    assert not (tmp_path / "survived").exists()


def test_a_kernel_that_multiplies_is_ended(tmp_path, monkeypatch):
    """Each step starts one more process; here, 60 at most."""
    monkeypatch.setattr(worker_pool, "LIMIT", 8)
    own, key = kernel(tmp_path, "multiplies")
    with WorkerPool([WorkerSpec((own,))], threads=1) as pool:
        pool.prepare((own,), **ORDER)
        while key not in pool.problems:  # the 61st step waits to be ended
            pool.sample(0.1, lambda _: True)
    assert "more than 8 processes" in pool.problems[key].reason


def test_what_broke_is_not_run_again(tmp_path):
    """It has the same problem in all later tasks that it supports; the others go on."""
    dies, key = kernel(tmp_path, "dies")
    with WorkerPool([WorkerSpec((FUSED,)), WorkerSpec((dies,))], threads=1) as pool:
        for able in ((dies, FUSED), (dies, FUSED), (FUSED,)):
            pool.prepare(able, **ORDER)
            assert set(pool.problems) == ({key} if dies in able else set())
            assert all("exited with 7" in each.reason for each in pool.problems.values())
            assert all(each.outcome is Outcome.WRONG for each in pool.problems.values())
            assert np.isfinite(pool.sample(0.01, lambda _: True)[FUSED_KEY]).any()
    assert (tmp_path / "imports").read_text() == "x"


def test_a_kernel_that_ends_its_process_while_it_is_sampled(tmp_path):
    """It gets a problem and no samples; the others keep theirs, and go on in the next task."""
    dies, key = kernel(tmp_path, "dies_later")
    with WorkerPool([WorkerSpec((FUSED,), roofs=True), WorkerSpec((dies,))], threads=1) as pool:
        for _ in range(2):
            pool.prepare((FUSED, dies), **ORDER)
            found = pool.sample(0.05, lambda _: False)
            assert "exited with 7" in pool.problems[key].reason
            assert key not in found
            assert np.isfinite(found[FUSED_KEY]).any()


def test_compiling_may_take_longer_than_a_sample(tmp_path, monkeypatch):
    """The first answer has a longer time limit; a sample that hangs is a problem."""
    monkeypatch.setitem(worker_pool.FOREIGN_ANSWER_S, "sample", 0.2)
    own, key = kernel(tmp_path, "compiles")
    with WorkerPool([WorkerSpec((own,))], threads=1) as pool:
        pool.prepare((own,), **ORDER)
        assert pool.problems == {}
        (tmp_path / "hang").touch()
        assert pool.sample(0.01, lambda _: True) == {}
        problem = pool.problems[key]
        assert "hung" in problem.reason and "0.2 s" in problem.reason
        pool.prepare((own,), **ORDER)  # not the problem of a process that was killed
        assert pool.problems == {key: problem}
    assert worker_pool.FOREIGN_ANSWER_S["task"] > 120


def test_rounds_alternate_between_the_processes(tmp_path):
    """All entries have samples of the same rounds, so that ratios can be taken."""
    own, key = kernel(tmp_path, "step")
    with WorkerPool([WorkerSpec((FUSED,), roofs=True), WorkerSpec((own,))], threads=1) as pool:
        pool.prepare((FUSED, own), **ORDER)
        found = pool.sample(0.1, lambda _: False)
    assert pool.problems == {}
    assert set(found) == {FUSED_KEY, key, EntryKey("", MEMORY), EntryKey("", ARITHMETIC)}
    assert len({len(values) for values in found.values()}) == 1
    assert np.isfinite(found[FUSED_KEY] / found[key]).any()


def test_slow_entries_are_sampled_in_rounds_of_all():
    """The period of each is a power of two, so all meet in some rounds."""
    costs = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "twice": 2.0, "slow": 7.3, "slowest": 31.0}
    periods = [worker_pool._period(name, costs) for name in costs]
    assert periods == [1, 1, 1, 1, 2, 4, 16]
    assert worker_pool._period("first", {}) == 1


def test_an_environment_without_adadelta(tmp_path):
    """The error names what is expected there."""
    venv.create(tmp_path / "empty", symlinks=True, with_pip=False)
    python = str(tmp_path / "empty" / "bin" / "python")
    with (
        pytest.raises(UnavailableError, match="--against"),
        WorkerPool([WorkerSpec((), python=python)], 1),
    ):
        pass


def test_an_older_version_may_have_other_words(monkeypatch):
    """Text without a known outcome is a failure; empty text is no problem."""
    answer = {"faults": {"numpy": "cannot be bound: unknown", "numpy-fused": ""}, "entries": []}
    monkeypatch.setattr(Worker, "ask", lambda *_, **__: answer)
    both = (timeable("numpy"), FUSED)
    with WorkerPool([WorkerSpec(both)], threads=1) as pool:
        pool.prepare(both, **ORDER)
    ((key, problem),) = pool.problems.items()
    assert (key.name, problem.outcome) == ("numpy", Outcome.FAILED)
    assert problem.reason == "cannot be bound: unknown"


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


def test_a_process_that_crashes_says_why():
    """Exit code and the last line of stderr are in the message."""
    with Worker(1) as worker:
        worker.handshake()
        with pytest.raises(BrokenError, match=r"exited with 1: KeyError: 'unheard of'"):
            worker.ask(task="unheard of")
