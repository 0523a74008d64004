"""What `bench` makes of samples, what it refuses, and what it leaves on disk."""

import csv
import json
import os
import subprocess
import sys
import time
import venv
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import numpy as np
import pytest
from conftest import needs_mxnet

from adadelta_cli.bench import buffers, regression, results, runner, target, worker, workloads
from adadelta_cli.bench.bootstrap import median_ci, ratio
from adadelta_cli.bench.buffers import TensorSet
from adadelta_cli.bench.device import ARITHMETIC, MEMORY, CpuDevice
from adadelta_cli.bench.significance import Verdict
from adadelta_cli.bench.worker_pool import Worker, WorkerPool, WorkerSpec, _period
from adadelta_cli.cli.main import adadelta
from adadelta_cli.errors import BrokenError, UnavailableError, UsageError
from adadelta_cli.implementations.registry import (
    IMPLEMENTATIONS,
    Implementation,
    ToleranceULP,
    timeable,
)
from adadelta_cli.system import machine

COLUMNS = """
    implementation backend ctx dtype workload tensors elements threads cache processes samples
    median_s ci_low_s ci_high_s q1_s q3_s elements_per_s gigabytes_per_s ceiling_gigabytes_per_s
    ceiling_fraction ceiling_fraction_low ceiling_fraction_high bound speedup speedup_low
    speedup_high peak_extra_bytes bytes_per_element note
""".split()  # noqa: SIM905 - as the contract lists them

ROOT = Path(__file__).parents[2]
PLAN = runner.BenchPlan(tuple(workloads.sizes("1e6")), ("numpy", "numpy-fused"))
GROUP = PLAN.groups[0]
FAULTLESS = {"numpy": "", "numpy-fused": ""}
NO_PEAKS = {"numpy": None, "numpy-fused": None}


def bench(*arguments, out):
    """Start the command, with two threads and nothing slow."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "adadelta_cli",
            "bench",
            "--out",
            str(out),
            "--processes",
            "2",
            "--max-time",
            "0.2",
            "--backend",
            "numpy",
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )


# --- statistics -----------------------------------------------------------------------------------


class TestEstimate:
    """Medians and intervals of samples whose answer is known."""

    def test_equal_samples_have_no_interval(self):
        """Where every sample is the same, so is the median, and it is known exactly."""
        assert median_ci([np.full(20, 3.0), np.full(9, 3.0)]) == (3.0, 3.0, 3.0)

    def test_the_processes_decide(self):
        """Many exact samples in three processes that disagree: the interval is as wide as they."""
        found = median_ci([np.full(1000, 1.0), np.full(1000, 1.1), np.full(1000, 1.4)])
        assert found == (1.1, 1.0, 1.4)

    def test_a_process_with_more_samples_has_no_more_weight(self):
        """The median is over processes, however many samples each had time for."""
        assert median_ci([np.full(5000, 9.0), np.full(5, 1.0), np.full(5, 2.0)]).median == 2.0

    def test_the_interval_covers_the_truth(self):
        """Of 60 experiments with 8 processes, the 95 % interval misses the median in few."""
        random = np.random.default_rng(1)
        hits = 0
        for _ in range(60):
            levels = 10 + random.standard_normal(8)
            low, high = median_ci([level + random.standard_normal(30) for level in levels])[1:]
            hits += low <= 10 <= high
        assert hits >= 52  # 57 expected; with fewer than 52 an interval of 95 % has p < 0.01

    def test_more_samples_narrow_the_interval(self):
        """In one process, a hundred times the samples give a much narrower interval."""
        random = np.random.default_rng(2)
        few, many = (median_ci([random.standard_normal(size) + 10]) for size in (20, 2000))
        assert many.precision < few.precision / 2

    def test_the_same_samples_give_the_same_interval(self):
        """The bootstrap has a seed."""
        samples = [np.random.default_rng(3).standard_normal(50)]
        assert median_ci(samples) == median_ci(samples)

    def test_an_outlier_does_not_move_it(self):
        """One sample of a thousand times the others leaves the median and its interval alone."""
        assert median_ci([np.array([1.0] * 50 + [1000.0])]) == (1.0, 1.0, 1.0)


def test_ratios_are_of_one_round():
    """A drift that both share does not show in the ratio; a round without a sample is left out."""
    drift = np.linspace(1, 5, 40)
    slow, fast = 3 * drift, drift.copy()
    slow[7] = np.nan
    (found,) = ratio([slow], [fast])
    assert found == pytest.approx(np.full(39, 3.0))


@pytest.mark.parametrize(
    ("dtype", "moved", "held"), [("float32", 28, 16), ("float64", 56, 32), ("float16", 28, 16)]
)
def test_bytes_of_an_element(dtype, moved, held):
    """Four reads and three writes; float16 keeps a float32 master, read and written beside it."""
    assert buffers.traffic_bytes(dtype) == moved
    assert buffers.held_bytes(dtype) == held
    (tensors,) = TensorSet.allocate([(100,)], dtype, seed=0)
    line = tensors.line
    assert sum(array.itemsize for array in line.arrays) == held


# --- rows -----------------------------------------------------------------------------------------


def samples(fused=2.0, unfused=20.0, memory=1.9, arithmetic=1.0, rounds=30):
    """Two processes that saw these milliseconds in every round."""
    times = {"numpy": unfused, "numpy-fused": fused, MEMORY: memory, ARITHMETIC: arithmetic}
    return {name: [np.full(rounds, ms * 1e-3)] * 2 for name, ms in times.items()}


def rows(found, faults=("", ""), peaks=(8_000_000, 0)):
    """Turn samples into the rows of numpy and numpy-fused."""
    names = ("numpy", "numpy-fused")
    result = results.result(
        GROUP, found, dict(zip(names, faults, strict=True)), dict(zip(names, peaks, strict=True))
    )
    return [each.row for each in result.measurements]


def test_the_columns_are_those_of_the_contract():
    """Scripts read bench.csv by its columns."""
    assert list(results.COLUMNS) == COLUMNS


def test_a_row_from_known_samples():
    """1e6 float32 elements move 28 MB: in 2 ms that is 14 GB/s, 0.95 of a roof of 1.9 ms."""
    row = rows(samples())[1]
    assert row.median_s == pytest.approx(2e-3)
    assert row.gigabytes_per_s == pytest.approx(14)
    assert row.elements_per_s == pytest.approx(5e8)
    assert row.ceiling_gigabytes_per_s == pytest.approx(28 / 1.9)
    assert row.ceiling_fraction == pytest.approx(0.95)
    assert (row.bound, row.processes, row.samples) == ("memory", 2, 60)
    assert row.speedup == pytest.approx(10)
    assert row.peak_extra_bytes == 0
    assert row.bytes_per_element == 28


def test_the_slower_roof_is_the_ceiling():
    """Where arithmetic takes longer than memory, it bounds the step, and the row says so."""
    row = rows(samples(arithmetic=1.99))[1]
    assert row.bound == "arithmetic"
    assert row.ceiling_fraction == pytest.approx(0.995)


def test_a_share_above_the_ceiling_is_not_to_be_believed():
    """Where the roofs were disturbed, the row says that its share means nothing."""
    assert "its share means nothing" in rows(samples(memory=6.0))[1].note
    assert "its share means nothing" not in rows(samples(memory=2.1))[1].note


def test_a_framework_that_is_wrong_fails_nothing():
    """It has no time, and a row that says so; fixing it is not for who runs the command."""
    group = replace(GROUP, implementations=("numpy", "torch"))
    (_, torch) = results.result(group, samples(), {"torch": "wrong: all"}, {}).measurements
    assert (torch.wrong, torch.row.median_s, torch.row.note) == (False, None, "wrong: all")


def test_a_baseline_is_not_overwritten(tmp_path):
    """Else the next comparison would be with itself."""
    (tmp_path / "bench.json").write_text('{"rows": [], "by_process": [], "machine": {}}')
    done = bench("--sizes", "1e4", "--baseline", str(tmp_path), out=tmp_path)
    assert (done.returncode, "would be overwritten" in done.stderr) == (2, True)


def test_the_unfused_step_is_once_as_fast_as_itself():
    """A speed-up is against the unfused step of the same backend."""
    assert rows(samples())[0].speedup == pytest.approx(1)


def test_a_row_says_when_time_was_up():
    """Where the interval stays wider than was wanted, the note has its width."""
    found = samples()
    found["numpy-fused"] = [np.full(30, 2e-3), np.full(30, 3e-3)]
    row = rows(found)[1]
    assert "+-20.0% when time was up" in row.note
    assert "processes disagree by 50%" in row.note


def test_a_wrong_implementation_gets_no_time():
    """What differs from the array update has a row without times, and the command ends with 1."""
    found = samples()
    del found["numpy-fused"]
    faults = {"numpy": "", "numpy-fused": "wrong: 3 of 9 values"}
    result = results.result(GROUP, found, faults, dict.fromkeys(faults))
    right, wrong = result.measurements
    assert wrong.wrong
    assert not right.wrong
    assert wrong.row.median_s is None
    assert wrong.row.note == "wrong: 3 of 9 values"


def allocated(shapes, dtype="float32"):
    """Make the tensors of a workload once."""
    return TensorSet.allocate(shapes, dtype, seed=0)[0]


class TestFault:
    """Each implementation is checked before it is timed."""

    tensors = staticmethod(lambda: allocated([(70_001,), (3, 5)]))

    def fault(self, name):
        """Check an implementation as the task that takes the samples does."""
        return target.check_correct(
            timeable(name), target.BenchTarget.to(timeable(name), self.tensors(), CpuDevice())
        )

    def fault_of_step(self, step, tensors, chosen=None):
        """Check any function as an implementation's step."""
        bound = target.BenchTarget(step, tensors.parameters, tensors, CpuDevice())
        return target.check_correct(chosen or timeable("numpy"), bound)

    @pytest.mark.parametrize("name", ["numpy", "numpy-fused"])
    def test_ours_have_none(self, name):
        """The array update and the one-pass kernel agree in every bit."""
        assert self.fault(name) == ""

    @needs_mxnet
    @pytest.mark.parametrize("name", ["mxnet", "mxnet-fused", "mxnet-stock"])
    def test_those_on_mxnet_have_none(self, name):
        """They work on the same memory, as MXNet's arrays."""
        assert self.fault(name) == ""

    @pytest.mark.parametrize("function", ["step", "functional"])
    def test_a_users_kernel_has_none(self, function, tmp_path):
        """One that updates in place, and one that returns the new arrays."""
        assert self.fault(f"{kernels(tmp_path)}:{function}") == ""

    @pytest.mark.parametrize("array", ["weight", "acc_grad", "acc_delta", "grad"])
    @pytest.mark.parametrize("ulps", [0, 300])
    def test_a_planted_one_is_found(self, array, ulps):
        """One array off by a bit is wrong; of what is not ours, one off by more than its bound."""
        tensors, chosen = self.tensors(), timeable("numpy")
        right = target.BenchTarget.to(timeable("numpy-fused"), tensors, CpuDevice())
        if ulps:
            chosen = replace(chosen, tolerance=ToleranceULP(99, 99, 99))

        def step():
            right.step()
            for parameter in tensors.parameters:
                values = getattr(parameter, array)
                values += np.spacing(np.abs(values)) * max(1, ulps)

        assert self.fault_of_step(step, tensors, chosen).startswith("wrong: ")

    def test_what_is_not_ours_may_differ_within_its_bounds(self):
        """Off by a bit, and allowed two."""
        tensors, chosen = (
            self.tensors(),
            replace(timeable("numpy"), tolerance=ToleranceULP(2, 2, 2)),
        )
        right = target.BenchTarget.to(timeable("numpy-fused"), tensors, CpuDevice())

        def step():
            right.step()
            for parameter in tensors.parameters:
                parameter.acc_delta[...] += np.spacing(parameter.acc_delta)

        assert self.fault_of_step(step, tensors, chosen) == ""

    def test_doing_nothing_is_wrong(self):
        """A step that does not step is found."""
        assert self.fault_of_step(lambda: None, self.tensors()).startswith("wrong: ")

    def test_a_refusal_is_a_failure(self):
        """What raises fails, and says why."""

        def step():
            raise TypeError("float64 is beyond me")

        assert self.fault_of_step(step, self.tensors()) == (
            "failed: raised TypeError: float64 is beyond me"
        )

    @pytest.mark.parametrize("function", ["widens", "raises"])
    def test_what_a_users_kernel_does_wrong_is_said_in_one_line(self, function, tmp_path):
        """Another dtype, or an exception of several lines."""
        fault = self.fault(f"{kernels(tmp_path)}:{function}")
        wanted = {"widens": "wrong: it returned arrays of another", "raises": "failed: raised OSEr"}
        assert fault.startswith(wanted[function])
        assert "\n" not in fault

    def test_a_planted_one_is_not_timed(self, monkeypatch):
        """The task that takes the samples leaves a wrong implementation out."""
        lazy = Implementation("lazy", "numpy", True, lambda *_: lambda: None, "numpy")
        monkeypatch.setitem(IMPLEMENTATIONS, "lazy", lazy)
        ready = worker.TimingTask(SPEC | {"implementations": ["lazy", "numpy"]}).ready()
        assert ready["faults"]["lazy"].startswith("wrong: ")
        assert ready["entries"] == ["numpy", MEMORY, ARITHMETIC]


SPEC = {"shapes": [[5000]], "dtype": "float32", "seed": 0, "cold": False, "roofs": True}
KERNELS = """
import numpy, os
import numpy as np
from adadelta_cli.update import Hyperparameters, Parameter, update

def step(weight, grad, acc_grad, acc_delta, **settings):
    hyper = Hyperparameters(**settings)
    p = Parameter(weight, grad, acc_grad, acc_delta)
    update(np, p, hyper.scalars(weight.dtype), hyper.learning_rate, hyper.wd)

def functional(weight, grad, acc_grad, acc_delta, **settings):
    new = weight.copy(), acc_grad.copy(), acc_delta.copy()
    step(new[0], grad, *new[1:], **settings)
    return new

def widens(weight, grad, acc_grad, acc_delta, **settings):
    new = functional(weight, grad, acc_grad, acc_delta, **settings)
    return [array.astype("float64") for array in new]

def raises(*arrays, **settings):
    raise OSError("not here,\\nnor there")

calls = 0

def dies(*arrays, **settings):
    global calls
    calls += 1
    if calls > 3:
        os._exit(7)
    step(*arrays, **settings)
"""


def kernels(folder):
    """Write a file of users' kernels."""
    path = folder / "kernels.py"
    path.write_text(KERNELS)
    return path


class TestEntry:
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
        taken, cursor = [], worker.Cursor()
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
        copies, other = worker.cold_copies(size, 10**8)
        assert max((copies - 1) * size, other) >= 2 * 10**8
        assert copies <= worker.COPIES


class TestCrew:
    """Processes that are timed in turn."""

    def test_rounds_alternate_between_the_processes(self, tmp_path):
        """Everybody has samples of the same rounds, and a ratio can be taken."""
        own = f"{kernels(tmp_path)}:step"
        roles = [WorkerSpec(("numpy-fused",), roofs=True), WorkerSpec((own,), foreign=True)]
        with WorkerPool(roles, threads=1) as pool:
            pool.prepare(("numpy-fused", own), **SPEC)
            found = pool.sample(0.1, lambda _: False)
        assert pool.faults == {"numpy-fused": "", own: ""}
        assert set(found) == {"numpy-fused", own, MEMORY, ARITHMETIC}
        assert len({len(values) for values in found.values()}) == 1
        assert np.isfinite(found["numpy-fused"] / found[own]).any()

    def test_a_kernel_that_ends_its_process_is_at_fault(self, tmp_path):
        """Not ours, it breaks off nothing but itself; the others go on, in the next task, too."""
        dies = f"{kernels(tmp_path)}:dies"
        roles = [WorkerSpec(("numpy-fused",), roofs=True), WorkerSpec((dies,), foreign=True)]
        with WorkerPool(roles, threads=1) as pool:
            for _ in range(2):
                pool.prepare(("numpy-fused", dies), **SPEC)
                found = pool.sample(0.05, lambda _: False)
                assert "crashed: exited with 7" in pool.faults[dies]
                assert dies not in found
                assert np.isfinite(found["numpy-fused"]).any()

    def test_another_environments_version(self):
        """Its entries have a name of their own; here it is this very environment."""
        roles = [
            WorkerSpec(("numpy-fused",)),
            WorkerSpec(("numpy-fused",), "old: ", sys.executable),
        ]
        with WorkerPool(roles, threads=1) as pool:
            pool.prepare(("numpy-fused",), **SPEC)
            found = pool.sample(0.05, lambda _: False)
        assert set(found) == {"numpy-fused", "old: numpy-fused"}

    def test_an_environment_without_adadelta(self, tmp_path):
        """What was expected at the other end is said."""
        venv.create(tmp_path / "empty", symlinks=True, with_pip=False)
        python = str(tmp_path / "empty" / "bin" / "python")
        with (
            pytest.raises(UnavailableError, match="is installed"),
            WorkerPool([WorkerSpec((), python=python)], 1),
        ):
            pass

    def test_slow_ones_get_fewer_turns(self):
        """In every 2^k-th round, so that the slow ones' rounds are rounds of all the others."""
        costs = {"a": 1.0, "b": 1.0, "c": 1.1, "d": 9.0, "e": 33.0}
        assert [_period(name, costs) for name in costs] == [1, 1, 1, 8, 16]
        assert _period("a", {}) == 1


def test_tensors_keep_normal_values():
    """After thousands of steps nothing is subnormal, infinite or NaN, which would cost time."""
    for dtype in ("float32", "float64", "float16"):
        tensors = allocated([(3000,)], dtype)
        bound = target.BenchTarget.to(timeable("numpy-fused"), tensors, CpuDevice())
        for _ in range(5000):
            bound.step()
        for array in tensors.line.arrays:
            assert np.isfinite(array).all()
        for array in (tensors.line.acc_grad, tensors.line.acc_delta):
            assert (array >= np.finfo(array.dtype).tiny).all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_tensors_begin_at_cache_lines(dtype):
    """Each tensor begins at a cache line, and no two arrays at the same place in a page."""
    for tensors in TensorSet.allocate([(10,), (3, 5), (1000,)], dtype, 0, copies=3):
        places = [array.ctypes.data for each in tensors.parameters for array in each.arrays]
        assert all(place % 64 == 0 for place in places)
        lines = tensors.line.arrays
        assert len({array.ctypes.data % 4096 for array in lines}) == len(lines)


def test_copies_of_tensors_share_no_memory():
    """A step on one copy leaves the others as they are."""
    first, second = TensorSet.allocate([(10,), (3, 5)], "float16", 0, copies=2)
    before = [array.copy() for array in second.line.arrays]
    for array in first.line.arrays:
        array[...] = 7
    for array, kept in zip(second.line.arrays, before, strict=True):
        np.testing.assert_array_equal(array, kept)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_peak_extra_bytes():
    """A step that fills 40 MB and lets them go has a peak of 40 MB, though nothing remains.

    In a process of its own, as it is measured: here, memory of other tests may be used again.
    """
    program = (
        "import numpy as np; from adadelta_cli.bench.device import CpuDevice; "
        "peak = CpuDevice().peak_extra_bytes; "
        "print(peak(lambda: np.ones(5_000_000).sum()), peak(lambda: None))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | runner.UNPOOLED,
    )
    peak, nothing = map(int, done.stdout.split())
    assert peak == pytest.approx(4e7, rel=0.05)
    assert nothing < 1e6


# --- what is refused ------------------------------------------------------------------------------


def test_too_large_a_workload_is_refused_before_anything_is_allocated(monkeypatch):
    """The message has both numbers, what is needed and what is available."""
    monkeypatch.setattr(machine, "available_bytes", lambda: 3_000_000)
    fused = replace(PLAN, implementations=("numpy-fused",))
    with pytest.raises(UnavailableError, match=r"16000000 bytes.*3000000 bytes.*smaller --sizes"):
        runner.check_memory(fused)


def test_unfused_steps_need_more_memory():
    """Their temporary arrays count, too: 7 of them at most."""
    fused = replace(PLAN, implementations=("numpy-fused",))
    less = runner.needed_bytes(fused, fused.groups[0])
    assert runner.needed_bytes(PLAN, GROUP) == less + 7 * 4 * 10**6


def test_an_implementation_of_another_backend():
    """--backend numpy and an implementation on MXNet contradict each other."""
    with pytest.raises(UsageError, match="computes on mxnet and --backend is numpy"):
        runner.choose_implementations(["mxnet-fused"], "numpy", "cpu")


def test_no_gpu():
    """Without one, what was looked for and what fixes it is said before anything is timed."""
    with pytest.raises(UnavailableError, match=r"Looked for CuPy: .* To do: "):
        runner.choose_implementations([], "auto", "gpu")


def test_what_contradicts_itself_is_told_before_a_device_is_tried():
    """Else somebody would install a library first, and learn of the mistake afterwards."""
    with pytest.raises(UsageError, match="computes on cupy and --backend is mxnet"):
        runner.choose_implementations(["cupy-fused"], "mxnet", "gpu")


def test_default_implementations_are_those_of_the_backend():
    """With --backend numpy, MXNet is neither timed nor loaded."""
    assert runner.choose_implementations([], "numpy", "cpu") == ("numpy", "numpy-fused")


def test_a_process_that_breaks_says_why():
    """What a worker wrote last on stderr is in the message."""
    with Worker(1) as process:
        process.greet()
        with pytest.raises(BrokenError, match=r"crashed: exited with 1: KeyError"):
            process.ask(task="unheard of")


def test_a_worker_ends_with_its_leader():
    """When stdin is closed the process ends by itself."""
    process = subprocess.Popen(
        [sys.executable, "-m", "adadelta_cli.bench.worker"],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )
    process.stdin.close()
    process.wait(timeout=30)


def test_doubts():
    """What should not be trusted has a sentence with what was seen, why it matters, what to do."""
    noisy = {name: [each[0]] * 3 for name, each in samples().items()}
    noisy[ARITHMETIC] = [np.linspace(1e-3, 2e-3, 30), np.linspace(1.3e-3, 3e-3, 30)]
    noisy["numpy"] = [np.r_[np.full(3, 9.0), np.full(27, 2.0)]] * 3
    noisy["numpy-fused"] = [np.full(30, 2e-3), np.full(30, 3e-3), np.full(30, 2e-3)]
    crowded = replace(GROUP, threads=machine.available_cores() + 1)
    found = results.find_warnings(crowded, noisy)
    whats = (
        results.TOO_MANY_THREADS,
        results.SHARED_CORES,
        results.FREQUENCY,
        results.SLOW_START,
        results.DISAGREEMENT,
    )
    assert [(each.what, each.advice) for each in found] == list(whats)
    measured = [each.measured for each in found]
    assert measured[1:] == ["87%", "30%", "350% (numpy)", "50% (numpy-fused and 1 more)"]
    assert results.find_warnings(GROUP, samples()) == []


def test_doubts_of_several_workloads_are_told_together():
    """One sentence for all places where the same was seen."""
    doubt = results.MeasurementWarning("cores shared", "end it", "1e5 float32", "13%")
    told = results.format_warnings([doubt, replace(doubt, place="1e6 float32", measured="30%")])
    assert told == ["cores shared: 13% at 1e5 float32, 30% at 1e6 float32; end it"]


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_writes_its_files(tmp_path):
    """bench.csv and bench.json hold a row for each implementation and dtype; two are pictures."""
    done = bench("--sizes", "2e4", "--dtype", "float32", "--dtype", "float16", out=tmp_path)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "bench.csv").open() as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == COLUMNS
    assert [(row["implementation"], row["dtype"]) for row in table] == [
        ("numpy", "float32"),
        ("numpy-fused", "float32"),
        ("numpy", "float16"),
        ("numpy-fused", "float16"),
    ]
    document = json.loads((tmp_path / "bench.json").read_text())
    assert len(document["samples_s"]) == 4
    assert set(document["roofs_s"][0]) == {MEMORY, ARITHMETIC}
    assert document["machine"]["cores_available"] == machine.available_cores()
    for name in ("bench.png", "bench-samples.png"):
        assert (tmp_path / name).read_bytes()[1:4] == b"PNG"


@pytest.mark.slow
def test_json_is_alone_on_stdout(tmp_path):
    """With --json, stdout is one JSON document."""
    done = bench("--sizes", "1e4", "--json", out=tmp_path)
    assert [row["workload"] for row in json.loads(done.stdout)["rows"]] == ["1e4", "1e4"]


@pytest.mark.slow
def test_markdown(tmp_path):
    """--format markdown prints a table for a pull request."""
    done = bench("--sizes", "1e4", "--format", "markdown", out=tmp_path)
    heading, rule, *body = done.stdout.strip().splitlines()
    assert heading.startswith("| workload | dtype | on | cache | B/element | implementation |")
    assert set(rule) <= set("|- ")
    assert len(body) == 2


def test_interrupt_keeps_what_was_finished(tmp_path, monkeypatch):
    """Ctrl-C in the second process leaves whole files with what the first one found."""

    def interrupted(plan, number, _threads, found, _tick):
        if number:
            raise KeyboardInterrupt
        found[plan.groups[0]].add({name: each[0] for name, each in samples().items()}, {})

    monkeypatch.setattr(runner, "_pass", interrupted)
    monkeypatch.setattr(runner, "_peaks", lambda *_: {})
    command = ["bench", "--sizes", "1e6,1e7", "--backend", "numpy", "--out", str(tmp_path)]
    with pytest.raises((KeyboardInterrupt, click.Abort)):
        adadelta.main(command, standalone_mode=False)
    with (tmp_path / "bench.csv").open() as file:
        table = [(row["workload"], row["processes"]) for row in csv.DictReader(file)]
    assert table == [("1e6", "1"), ("1e6", "1")]
    assert (tmp_path / "bench.png").exists()


@pytest.mark.slow
def test_terminating_keeps_what_was_finished(tmp_path):
    """SIGTERM, too: the files are there, and the exit code is that of the signal."""
    command = [
        sys.executable,
        "-m",
        "adadelta_cli",
        "bench",
        "--sizes",
        "1e4",
        "--impl",
        "numpy-fused",
        "--processes",
        "50",
        "--max-time",
        "25",
        "--out",
        str(tmp_path),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    time.sleep(8)  # several processes have been, and many are to come
    process.terminate()
    process.communicate()
    assert process.returncode == 143
    with (tmp_path / "bench.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert 1 <= int(row["processes"]) < 50


def test_what_is_named_twice_is_timed_once():
    """Else its samples would count as those of more processes."""
    plan = replace(PLAN, workloads=tuple(workloads.sizes("2e3,2000")), threads=(1, 1))
    assert len(plan.groups) == 1


def measured(monkeypatch, *results):
    """Let the command find these results."""
    monkeypatch.setattr(runner, "measure", lambda _plan, found, _tick: found.extend(results))


def test_a_wrong_implementation_ends_with_1(tmp_path, monkeypatch):
    """The exit code tells CI that an implementation is wrong."""
    found = samples()
    del found["numpy-fused"]
    faults = {"numpy": "", "numpy-fused": "wrong: all"}
    measured(monkeypatch, results.result(GROUP, found, faults, {}))
    assert adadelta.main(["bench", "--out", str(tmp_path)], standalone_mode=False) == 1


@pytest.mark.parametrize(("slower", "code"), [(1.0, 0), (1.2, 1)])
def test_a_baseline(slower, code, tmp_path, monkeypatch, capsys):
    """A step that takes more of the ceiling's time than it did ends with 1."""
    for name, times in (("old", 2.0), ("new", 2.0 * slower)):
        found = samples(fused=times)
        found = {key: [each[0] * (1 + k / 1000) for k in range(6)] for key, each in found.items()}
        measured(monkeypatch, results.result(GROUP, found, FAULTLESS, {}))
        command = ["bench", "--out", str(tmp_path / name)]
        command += ["--baseline", str(tmp_path / "old")] if name == "new" else []
        ended = adadelta.main(command, standalone_mode=False)
    assert ended == code
    assert ("1 SLOWER" in capsys.readouterr().out) == bool(code)


@pytest.mark.parametrize(
    ("times", "verdict"), [(2.0, Verdict.SAME), (2.4, Verdict.SLOWER), (1.6, Verdict.FASTER)]
)
def test_against_another_version(times, verdict):
    """What is timed in turn is judged by the ratios within the rounds, drift or not."""
    drift = [np.linspace(1, 3, 30) * (1 + k / 1000) for k in range(6)]
    found = {name: [each[0] * d for d in drift] for name, each in samples(fused=times).items()}
    found["old: numpy-fused"] = [2e-3 * d * (1 + k / 500) for k, d in enumerate(drift)]
    work = runner.Benchmark(PLAN, None, {})
    work.results = [results.result(GROUP, found, FAULTLESS, {})]
    work.other = {"version": "0.0.1", "path": "elsewhere"}
    (row,) = regression.judge_in_turn(work).rows
    assert (row.verdict, row.implementation, row.processes_old) == (verdict, "numpy-fused", 6)


def test_against_says_what_one_of_the_versions_lacks():
    """New and wrong is SLOWER; what the old one cannot do is UNCLEAR, with the reason."""
    found = {name: each for name, each in samples().items() if name != "numpy-fused"}
    found["old: numpy-fused"] = [np.full(30, 2e-3)]
    faults = {"numpy-fused": "wrong: all", "old: numpy": "cannot be bound: UsageError: unknown"}
    work = runner.Benchmark(PLAN, None, {})
    work.results = [results.result(GROUP, found, faults, {})]
    work.other = {"version": "0.0.1", "path": "elsewhere"}
    rows = {row.implementation: row for row in regression.judge_in_turn(work).rows}
    assert rows["numpy-fused"].verdict is Verdict.SLOWER
    assert rows["numpy"].verdict is Verdict.UNCLEAR
    assert "cannot be bound" in rows["numpy"].note


@pytest.mark.slow
def test_against_this_very_environment(tmp_path):
    """The whole way, with a verdict in the output and in bench.json."""
    done = bench(
        "--sizes",
        "1e4",
        "--impl",
        "numpy-fused",
        "--against",
        sys.executable,
        "--processes",
        "3",
        "--threshold",
        "0.9",
        "--json",
        out=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["comparisons"]
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["comparisons"] == [found]
    assert len(written["pairs"][0]["ratios"]) == 3
    assert found["old"].endswith("(the same installation)")
    assert [row["implementation"] for row in found["rows"]] == ["numpy-fused"]
    assert found["rows"][0]["ratio"] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--sizes", "many"], 2, "--sizes has 'many'"),
        (["--sizes", "1e12"], 3, "available"),
        (["--threads", "0"], 2, "--threads is '0'"),
        (["--impl", "faster"], 2, "--impl is 'faster'"),
        (["--model", "alexnet"], 2, "--model is 'alexnet'"),
        (["--against", "no-such-python"], 2, "no such program"),
        (["--against", sys.executable, "--train", "mlp"], 2, "leave out --train"),
        (["--baseline", "nowhere"], 2, "cannot be read"),
        (["--threshold", "5"], 2, "--threshold is 5"),
    ],
)
def test_wrong_usage(arguments, code, says, tmp_path):
    """What cannot be timed ends with 2 or 3, one line of error, and no file."""
    done = bench(*arguments, out=tmp_path)
    assert done.returncode == code
    assert says in done.stderr
    assert "Error: " in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@needs_mxnet
def test_the_training_alone(tmp_path):
    """`bench --train mlp`, as the help shows it, has three rows and no ceiling."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "adadelta_cli",
            "bench",
            "--train",
            "mlp",
            "--processes",
            "1",
            "--max-time",
            "0.2",
            "--format",
            "markdown",
            "--out",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train:mlp") == 3


@pytest.mark.slow
@needs_mxnet
def test_training_gives_one_loss():
    """The stock, unfused and fused optimizer train to the same loss, to the last digit."""
    plan = replace(PLAN, workloads=(), processes=1, max_time_s=0.3)
    results = []
    runner.train_steps("mlp", plan, results)
    (result,) = results
    assert [each.row.implementation for each in result.measurements] == [
        "mxnet-stock",
        "mxnet",
        "mxnet-fused",
    ]
    assert not any(each.wrong for each in result.measurements)
    assert all("the same as mxnet-stock" in each.row.note for each in result.measurements)
    assert all(each.row.ceiling_fraction is None for each in result.measurements)
