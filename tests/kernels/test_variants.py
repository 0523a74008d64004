"""The way that is the fastest is found, left when it becomes slow, and fixed by a variable."""

from __future__ import annotations

import numpy as np
import pytest

from adadelta_cli.errors import UsageError
from adadelta_cli.kernels import pool, variants

THREADS = 4


class Learner:
    """Steps whose times are given by a function of the way and of the step's number."""

    def __init__(self, times):
        self.times, self.step, self.elements = times, 0, 10_000
        self.learned = np.zeros(variants.WORDS, np.int64)
        self.taken = []

    def go(self, steps):
        """Take so many steps; return how often each way was taken."""
        for _ in range(steps):
            way = variants.choose(self.learned, THREADS)
            time = self.times(way, self.step)
            variants.learn(self.learned, way, time, self.elements, THREADS)
            self.taken.append(way)
            self.step += 1
        return np.bincount(self.taken[-steps:], minlength=variants.count_ways(THREADS))


@pytest.mark.parametrize("fastest", range(variants.WAYS))
def test_the_fastest_is_found_and_kept(fastest):
    """After three calls of each, nine of ten steps or more are the fastest way's."""
    learner = Learner(lambda way, _: 1000 if way == fastest else 1500)
    first = learner.go(variants.ROUNDS * variants.WAYS)
    assert (first == variants.ROUNDS).all()
    assert learner.go(2000)[fastest] > 1900


def test_all_are_looked_at_again():
    """So each way is tried in some thousand steps, and the trials become rarer."""
    learner = Learner(lambda way, _: 1000 + way)
    learner.go(27)
    early, late = learner.go(2000), learner.go(20_000)
    assert (learner.go(20_000) > 0).all()
    assert (late[1:].sum() / 20_000) < (early[1:].sum() / 2000)


def test_a_machine_that_becomes_busy_is_noticed():
    """The way of several threads waits now and then: its mean becomes bad, another is taken."""
    busy_from = 1000

    def times(way, step):
        if way == 3:  # the fastest, while the machine is quiet
            return 20_000 if step >= busy_from and step % 10 == 0 else 1000
        return 1500

    learner = Learner(times)
    assert learner.go(busy_from)[3] > 900
    assert learner.go(1000)[3] < 300


def test_a_machine_that_becomes_quiet_is_noticed():
    """What was slow is tried again."""
    learner = Learner(lambda way, step: 500 if way == 5 and step > 3000 else 1000 + way)
    assert learner.go(3000)[5] < 100
    learner.go(20_000)
    assert learner.go(1000)[5] > 900


def test_one_outlier_does_not_decide():
    """A single step of ten times its time, where the system ran something else, changes nothing."""
    learner = Learner(lambda way, step: 10_000 if step == 500 else 1000 if way == 2 else 2000)
    assert learner.go(2000)[2] > 1800


@pytest.mark.parametrize(
    ("threads", "kinds"), [(1, {1}), (2, {1, 2}), (3, {1, 2, 3}), (8, {1, 4, 8})]
)
def test_ways_are_one_thread_all_and_half(threads, kinds):
    """Those that differ, each with each length of a block."""
    ways = [variants.meaning(way, threads) for way in range(variants.count_ways(threads))]
    assert len(set(ways)) == len(ways) == len(kinds) * len(variants.BLOCKS)
    assert {parts for parts, _ in ways} == kinds


def test_a_variable_fixes_the_way(monkeypatch):
    """It is read once; something else is a usage error that names what is expected."""
    monkeypatch.setattr(variants, "_current", None)
    monkeypatch.setenv("ADADELTA_KERNEL", "all:64")
    assert variants.unpacked(variants.current()) == (pool.threads(), 64)
    for wrong in ("fast", "1", "0:64", "1:-1", "all:", "99999:0", "1:64:2"):
        with pytest.raises(UsageError, match="THREADS:BLOCK"):
            variants.parse(wrong)


def test_sizes_that_alternate_are_no_different_ways():
    """Two models of one class, one 1.9 times as large: the fastest way for both is found."""

    def times(way, step):
        return (1000 if way == 1 else 1200) * (19 if step % 2 else 10)

    learner = Learner(times)
    for _ in range(1000):
        for elements in (10_000, 19_000):
            learner.elements = elements
            learner.go(1)
    assert np.bincount(learner.taken[-1000:])[1] > 900


def test_ways_that_are_much_slower_cost_little():
    """One thread of many takes 15 times as long; so it is hardly tried."""
    learner = Learner(lambda way, _: 15_000 if way < 3 else 1000)
    learner.go(1000)
    assert sum(learner.times(way, 0) for way in learner.taken) < 1.15 * 1000 * 1000
