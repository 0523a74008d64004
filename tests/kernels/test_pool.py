"""The pool covers a range once, whoever is late; nobody waits for a thread that has not begun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numba
import numpy as np
import pytest

from adadelta_cli.kernels import cpu, pool


@numba.cfunc(pool.RANGE)
def count(table, words, low, high):
    """Add one to each element of the range, in an array of `words` elements."""
    counted = cpu.view_table(table, words)
    for k in range(low, high):
        counted[k] += np.uint64(1)


def run(total, parts):
    """Run `count` on a range; return how often each element was counted."""
    counted = np.zeros(total, np.uint64)
    with cpu.launching:
        pool.run(pool.state(), count.address, counted.ctypes.data, total, total, parts)
    return counted


TOTALS = (0, 1, 63, 64, 65, 4095, 4097, 100_003, 1_000_001)


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 1000])
def test_each_element_is_taken_once(parts):
    """Whatever the length and the number of parts; again and again, since races are rare."""
    for total in TOTALS:
        for _ in range(3 if total > 10_000 else 50):
            assert (run(total, parts) == 1).all()


def test_a_pool_without_threads_does_the_work_alone():
    """As in a forked child."""
    with pool.no_threads():
        for total in TOTALS:
            assert (run(total, 3) == 1).all()


def test_threads_that_come_late_find_the_job_closed():
    """Pauses between jobs of different lengths: the threads spin, sleep and wake at any point."""
    random = np.random.default_rng(0)
    for _ in range(400):
        time.sleep(float(random.choice([0, 0, 1e-5, 2e-5, 5e-5, 2e-4])))
        assert (run(int(random.integers(20_000)), 2) == 1).all()


def test_other_threads_take_part():
    """Two threads are inside at once: each waits until it has seen the other."""
    if pool.threads() < 2:
        pytest.skip("one core")

    @numba.cfunc(pool.RANGE)
    def meet(table, words, low, high):  # noqa: ARG001 - the signature of a range function
        seen = cpu.view_table(table, words).view(np.int64)
        pool._add(seen, 0, 1)
        spins = 0
        while pool._get(seen, 0) < 2 and spins < 10**9:
            pool._pause()
            spins += 1
        if pool._get(seen, 0) >= 2:
            pool._set(seen, 1, 1)

    seen = np.zeros(8, np.uint64)
    with cpu.launching:
        pool.run(pool.state(), meet.address, seen.ctypes.data, 8, 2 * pool.PIECE_ELEMENTS, 2)
    assert seen[1] == 1


FORKED = """
import os, sys, numpy as np
from adadelta_cli import FusedStep, Parameter

def made(size):
    return Parameter(*np.ones((4, size), np.float32))

step, other = FusedStep([made(1_000_000)]), made(1_000_000)
step()
wanted = step._given[0][0].weight.copy()
child = os.fork()
if child == 0:
    FusedStep([other])()
    step()
    os._exit(0 if np.array_equal(other.weight, wanted) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_step_works_in_a_forked_child():
    """A step that was prepared before the fork, and a new one; neither hangs nor aborts."""
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=120)


def test_a_fork_while_another_thread_steps():
    """The child's lock is free, although the parent's was held by a thread that it lacks."""
    code = """
import os, sys, threading, numpy as np
from adadelta_cli import FusedStep, Parameter
step = FusedStep([Parameter(*np.ones((4, 3_000_000), np.float32))])
step()
done = threading.Event()
def work():
    while not done.is_set():
        step()
thread = threading.Thread(target=work)
thread.start()
codes = []
for _ in range(20):
    child = os.fork()
    if child == 0:
        FusedStep([Parameter(*np.ones((4, 10_000), np.float32))])()
        os._exit(0)
    codes.append(os.waitpid(child, 0)[1])
done.set()
thread.join()
sys.exit(any(codes))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


def test_a_process_with_idle_threads_ends():
    """At its end, by an exception and by a signal; the idle threads hold nothing up."""
    code = "import numpy as np; from adadelta_cli.kernels import pool; pool.state(); "
    kill = f"import os; os.kill(os.getpid(), {int(signal.SIGTERM)})"
    for last, wanted in (("pass", 0), ("1 / 0", 1), (kill, -signal.SIGTERM)):
        done = subprocess.run(
            [sys.executable, "-c", code + last], check=False, timeout=60, capture_output=True
        )
        assert done.returncode == wanted


def test_idle_threads_sleep():
    """After their short spin they use no time of the processor."""
    run(100_000, 2)
    time.sleep(0.05)
    before = time.process_time()
    threading.Event().wait(0.5)
    assert time.process_time() - before < 0.25
