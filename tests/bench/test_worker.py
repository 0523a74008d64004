"""A worker process: how it takes samples, and when it ends."""

import itertools
import json
import subprocess
import sys
from functools import partial

import pytest

from adadelta_cli.bench import buffers, worker
from adadelta_cli.bench.device import CpuDevice


class TestTimedEntry:
    """How samples are taken."""

    def test_copies_are_used_in_turn(self):
        """Every copy of the tensors gets as many steps as the others, so each is found cold."""
        taken = []
        steps = [partial(taken.append, k) for k in range(7)]
        entry = worker.TimedEntry(steps, CpuDevice().seconds)
        assert set(taken) == set(range(7))  # each was stepped on before anything is timed
        for _ in range(20):
            entry.sample()
        assert taken == [k % 7 for k in range(len(taken))]

    def test_copies_are_everybodys(self):
        """One cursor for all, so that nobody finds in the caches what another just left there."""
        taken, cursor = [], itertools.count()
        entries = [
            worker.TimedEntry(
                [partial(taken.append, k) for k in range(5)], CpuDevice().seconds, cursor=cursor
            )
            for _ in range(2)
        ]
        taken.clear()
        for _ in range(10):
            for entry in entries:
                entry.sample()
        first = taken[0]
        assert taken == [(first + k) % 5 for k in range(len(taken))]

    def test_one_turn_after_the_caches_were_emptied(self):
        """With copies too small to push each other out, a sample is one turn after an eviction."""
        taken = []
        entry = worker.TimedEntry(
            [partial(taken.append, k) for k in range(3)], CpuDevice().seconds, evict=taken.clear
        )
        entry.sample()
        assert len(taken) == 3

    @pytest.mark.parametrize("size", [16, 16 * 10**5, 16 * 10**8])
    def test_cold_tensors_reach_beyond_the_last_cache(self, size):
        """All copies but one, or the memory passed over meanwhile, are twice the largest cache."""
        copies, other = buffers.cold_copies(size, 10**8)
        assert max((copies - 1) * size, other) >= 2 * 10**8
        assert copies <= buffers.COPIES


def test_a_worker_ends_with_its_leader():
    """Without orders it reports its version and ends, without an error."""
    done = subprocess.run(
        [sys.executable, "-m", "adadelta_cli.bench.worker"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["protocol"] == worker.PROTOCOL


def test_what_is_timed_reads_no_orders():
    """A kernel that asks for input finds its end; its print is no answer."""
    code = """
import sys
from adadelta_cli.bench import worker

class Task:
    def __init__(self, order): ...
    def ready(self):
        print("chatter", flush=True)
        return {"read": sys.stdin.readline()}

worker.TASKS["time"] = Task
worker.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input='{"task": "time"}\n{"task": "time"}\n',
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    _, *answers = map(json.loads, done.stdout.splitlines())
    assert answers == [{"read": ""}] * 2 and "chatter" in done.stderr
