"""Calls in warm child processes, here and on a Dask worker."""

from __future__ import annotations

import operator
import os
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from adadelta_cli.errors import UnavailableError
from adadelta_cli.inputs import DATA_FOLDER
from adadelta_cli.sweep import engines, isolation
from adadelta_cli.sweep.isolation import Failure
from adadelta_cli.system import machine


@pytest.fixture
def engine():
    """Start an engine with one worker."""
    with engines.local(1, 1) as found:
        yield found


def conditions(name):
    """Return the conditions of a sweep with this token."""
    return isolation.Conditions(name, isolation.versions(), 1)


def call(engine, function, *args, timeout=None):
    """Call a function, and wait for its outcome."""
    return engine.submit(timeout, function, *args).result(120)


@pytest.mark.slow
def test_a_worker_pays_its_imports_once(engine):
    """Calls share a process until it fails."""
    one, two = (call(engine, os.getpid).result for _ in range(2))
    assert one == two != os.getpid()
    raised = call(engine, operator.truediv, 1, 0)
    assert raised.failure is Failure.FAILED and "ZeroDivisionError" in raised.message
    assert call(engine, os.getpid).result == one, "and leaves the process alive"


@pytest.mark.slow
def test_a_worker_that_crashes_or_hangs_is_replaced(engine):
    """The outcome says what happened; the next call has a new process."""
    first = call(engine, os.getpid).result
    crashed = call(engine, os._exit, 7)
    assert crashed.failure is Failure.CRASHED and "exited with 7" in crashed.message
    second = call(engine, os.getpid).result
    hung = call(engine, time.sleep, 600, timeout=0.05)
    assert hung.failure is Failure.TIMEOUT and "within 0.05 s (--timeout)" in hung.message
    third = call(engine, os.getpid, timeout=60).result
    assert len({first, second, third}) == 3


@pytest.mark.slow
def test_the_time_limit_leaves_out_the_start(engine):
    """Importing everything takes longer than this run may."""
    assert call(engine, operator.add, 1, 2, timeout=5.0).result == 3


@pytest.mark.slow
def test_the_threads_are_limited_before_the_libraries_are_loaded():
    """Each child reads the variables when it imports NumPy."""
    with engines.local(1, 3) as engine:
        for name in machine.THREAD_VARIABLES:
            assert call(engine, os.getenv, name).result == "3"


@pytest.mark.slow
def test_the_folder_of_the_data_sets_is_that_of_the_leader(monkeypatch):
    """So --data works in a sweep, too."""
    monkeypatch.setenv(DATA_FOLDER, "/data")
    with engines.local(1, 1) as engine:
        assert call(engine, os.getenv, DATA_FOLDER).result == "/data"


@pytest.mark.slow
def test_the_end_of_the_engine_ends_what_computes():
    """A call that would take for ever returns, and its process is gone."""
    with engines.local(1, 1) as engine:
        pid = call(engine, os.getpid).result
        future = engine.submit(None, time.sleep, 3600)
        while not future.running():
            time.sleep(0.01)
    assert wait([future], 30).done
    assert not future.exception() and future.result().failure
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_closed_pool_calls_nothing():
    """A task that a cluster begins late starts no process that nobody ends."""
    isolation.close("closed")
    found = isolation.call(conditions("closed"), None, os.getpid)
    assert found.failure is Failure.FAILED and "was closed" in found.message


def test_other_versions_are_refused():
    """The message names both."""
    expected = {**isolation.versions(), "numpy": "0.1", "mxnet-next": "9"}
    with pytest.raises(UnavailableError) as error:
        isolation.call(conditions("other")._replace(versions=expected), None, os.getpid)
    for text in ("numpy is ", "0.1 here", "mxnet-next is missing there, and 9 here", "install"):
        assert text in str(error.value)


@pytest.mark.parametrize(
    ("workers", "threads", "kind", "expected"),
    [
        (None, None, "cpu", (8, 1)),
        (2, None, "cpu", (2, 4)),
        (3, None, "cpu", (3, 2)),
        (16, None, "cpu", (16, 1)),
        (None, 4, "cpu", (2, 4)),
        (None, 99, "cpu", (1, 99)),
        (None, None, "gpu", (1, 8)),
        (2, 3, "gpu", (2, 3)),
    ],
)
def test_the_cores_are_shared_out(monkeypatch, workers, threads, kind, expected):
    """Workers times threads is at most the number of cores, unless the user says otherwise."""
    from adadelta_cli.implementations.array_backends import Device

    monkeypatch.setattr(machine, "available_cores", lambda: 8)
    found = []
    monkeypatch.setattr(engines, "local", lambda *args: found.append(args))
    engines.choose(None, workers, threads, Device(kind), 100)
    engines.choose(None, workers, threads, Device(kind), 1)
    assert found == [expected, (1, expected[1])]


def test_threads_that_call_at_once_have_a_child_each(monkeypatch):
    """And leave it to the next one."""
    pool, made = isolation.Pool(), []

    class Child:
        def __init__(self):
            made.append(self)

        def call(self, *_):
            return len(made)

    monkeypatch.setattr(isolation, "_Child", Child)
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(lambda _: pool.call(None, None, os.getpid), range(100)))
    assert len(made) <= 4
