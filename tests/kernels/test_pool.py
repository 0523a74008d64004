"""The pool covers a range once; no call waits for a thread that has not begun."""

from __future__ import annotations

import ctypes
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


def wait_until_asleep(state):
    """Wait until the first thread of a pool sleeps."""
    for _ in range(6000):
        if state[pool.SLEEPS + pool.LINE]:
            return
        time.sleep(0.01)
    pytest.fail("the thread does not sleep")


def test_a_closed_job_is_touched_by_no_thread():
    """One that wakes late must not read the next job's words while they are written."""
    if pool.threads() < 2:
        pytest.skip("one core")
    state, counted = pool.state(), np.zeros(10_000, np.uint64)
    wait_until_asleep(state)
    with cpu.launching:
        state[pool.TAKEN] = state[pool.TAKEN + pool.LINE] = 0
        state[pool.FUNCTION], state[pool.TABLE] = count.address, counted.ctypes.data
        state[pool.WORDS] = state[pool.TOTAL] = counted.size
        state[pool.PARTS], state[pool.PIECE], state[pool.OPEN] = 2, 4096, 0
        state[pool.GENERATION] += 1
        state[pool.SLEEPS + pool.LINE] = 0
        semaphore = state.ctypes.data + 8 * (pool.WAKE + pool.LINE)
        ctypes.CDLL(None).sem_post(ctypes.c_void_p(semaphore))
        wait_until_asleep(state)  # it has seen the job then
        assert not counted.any()
    assert (run(10_000, 2) == 1).all()


def test_threads_that_come_late_find_the_job_closed():
    """Pauses between jobs of different lengths: the threads spin, sleep and wake at any point."""
    random = np.random.default_rng(0)
    for _ in range(400):
        time.sleep(float(random.choice([0, 0, 1e-5, 2e-5, 5e-5, 2e-4])))
        assert (run(int(random.integers(20_000)), 2) == 1).all()


@numba.cfunc(pool.RANGE)
def count_slowly(table, words, low, high):
    """As `count`, but the first piece of each part takes long: the second one's, ten times as long.

    So another thread has the time to wake and to begin with the second part.
    """
    half = words // 2 // pool.ALIGNED * pool.ALIGNED
    for _ in range(200_000 * (low == half) + 20_000 * (low == 0)):
        pool._pause()
    counted = cpu.view_table(table, words)
    for k in range(low, high):
        counted[k] += np.uint64(1)


def test_a_call_returns_when_all_pieces_are_done():
    """Also the one that another thread is still inside."""
    total, missed = 4 * pool.PIECE_ELEMENTS, 0
    for _ in range(50):
        counted = np.zeros(total, np.uint64)
        with cpu.launching:
            pool.run(pool.state(), count_slowly.address, counted.ctypes.data, total, total, 2)
        missed += int((counted != 1).sum())
    assert missed == 0


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


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_a_worker_that_is_kept_waiting_keeps_nobody_waiting():
    """Three threads, the last of which never runs while the core is busy: no job waits for it.

    With a condition variable in place of the semaphores, half the time went by in waits here.
    """
    code = """
import os, sys, threading, time, numba
from adadelta_cli.kernels import cpu, pool

@numba.cfunc(pool.RANGE)
def nothing(table, words, low, high):
    pass

state, started = pool.state(), {each.name: each.native_id for each in threading.enumerate()}
mine, other, *_ = os.sched_getaffinity(0)
os.sched_setscheduler(started["adadelta-2"], os.SCHED_IDLE, os.sched_param(0))
os.sched_setaffinity(started["adadelta-2"], {other})
os.sched_setaffinity(started["adadelta-1"], {mine})
if os.fork() == 0:
    os.sched_setaffinity(0, {other})
    until = time.monotonic() + 5
    while time.monotonic() < until:
        pass
    os._exit(0)
os.sched_setaffinity(0, {mine})
waited, begin = 0, time.monotonic()
while (now := time.monotonic()) < begin + 3:
    pool.run(state, nothing.address, 0, 0, 0, 3)
    long = time.monotonic() - now
    waited += long * (long > 0.002)
    time.sleep(1e-3)
sys.exit(waited > 0.75)
"""
    environment = os.environ | {"NUMBA_NUM_THREADS": "3"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)


def test_threads_that_begin_together_share_one_pool():
    """And no table has the address of another one, which nobody would keep alive."""
    code = """
import sys, threading
from adadelta_cli.kernels import pool
barrier, found = threading.Barrier(8), []
def get():
    barrier.wait()
    found.append(pool.state())
threads = [threading.Thread(target=get) for _ in range(8)]
[each.start() for each in threads]
[each.join() for each in threads]
sys.exit(len({each.ctypes.data for each in found}) > 1)
"""
    for number in ("1", "2"):
        environment = os.environ | {"NUMBA_NUM_THREADS": number}
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)


def test_a_fork_compiles_nothing():
    """Another thread may hold the compiler's lock, with which the child would wait for ever."""
    code = """
import os, signal, sys, threading
from numba.core.compiler_lock import global_compiler_lock
from adadelta_cli.kernels import pool
held, done = threading.Event(), threading.Event()
def hold():
    with global_compiler_lock:
        held.set()
        done.wait()
threading.Thread(target=hold).start()
held.wait()
signal.alarm(20)
child = os.fork()
if child == 0:
    os._exit(0)
code = os.waitpid(child, 0)[1]
done.set()
sys.exit(code)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def test_a_fork_without_threads_is_left_in_order():
    """The child of a process inside `no_threads` has a pool of its own afterwards."""
    code = """
import os, sys
from adadelta_cli.kernels import pool
before = pool.state()
with pool.no_threads():
    child = os.fork()
if child == 0:
    os._exit(not (before[pool.WORKERS] == 0 and pool.state() is not before))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or pool.state() is not before)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


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


def late_jobs(gaps):
    """Return how long threads spin after each job, by the ns since the one before."""
    state, spins = np.zeros(pool.STATE_WORDS, np.int64), []
    for gap in gaps:
        pool._note_begin(state, gap)
        spins.append(pool._spin_ns(state))
    return spins


@pytest.mark.parametrize(
    ("gaps", "spinning"),
    [
        ((1_000,) * 6, 6),
        ((3_000_000,) * 6, pool.IN_VAIN - 1),
        ((3_000_000, 1_000) * 6, 12),  # the groups of an optimizer, one job each
        ((pool.SPIN_NS,) * 6, 6),
    ],
)
def test_threads_spin_where_jobs_follow_each_other(gaps, spinning):
    """Where each comes long after the one before, as in a training, they leave it the cores."""
    spins = late_jobs(gaps)
    assert spins == [pool.SPIN_NS] * spinning + [0] * (len(gaps) - spinning)


def test_threads_spin_again_when_jobs_follow_each_other_again():
    """One job that comes soon is enough."""
    assert late_jobs((3_000_000,) * 9 + (1_000,))[-2:] == [0, pool.SPIN_NS]


def test_jobs_note_when_they_end():
    """Jobs with pauses between are counted as late; those without are not."""
    state = pool.state()
    for _ in range(3):
        run(10_000, 2)
        assert state[pool.ENDED] <= time.monotonic_ns()
        state[pool.ENDED] -= 10 * pool.SPIN_NS  # as if it had been long ago
    assert state[pool.LATE] >= 2
    state[pool.ENDED] = 2**62  # as if it had been just now, however slow this machine is
    run(10_000, 2)
    assert state[pool.LATE] == 0
