"""Carry out `bench`: how fast a step is, compared with what the machine allows.

A step is one finished `AdaDelta.update` (`mxnet*`), one call on arrays (`numpy*`), or the step of
another framework's optimizer. Everything is timed in several passes with fresh processes each
(worker_pool.py), in which all implementations and both roofs take turns.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli import inputs
from adadelta_cli.bench.measurement_warnings import Samples, format_warnings
from adadelta_cli.bench.plan import OLD, largest_group
from adadelta_cli.bench.results import Group, Timings, Trained, group_result, training_result
from adadelta_cli.bench.timing_problem import Outcome, TimingProblem
from adadelta_cli.bench.worker_pool import Job, Worker, WorkerPool, WorkerSpec, run_side_by_side
from adadelta_cli.errors import BrokenError, ExitCode, UsageError
from adadelta_cli.system.neighbours import busy
from adadelta_cli.system.progress import Tick, no_tick

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adadelta_cli.bench.plan import BenchPlan
    from adadelta_cli.bench.results import BenchRow, GroupResult, Measurement
    from adadelta_cli.bench.trainings import Training
    from adadelta_cli.bench.worker_pool import Columns, EntryKey
    from adadelta_cli.implementations.base import Implementation

BUSY_SAMPLE_S = 0.2
UNFINISHED = (
    "not complete: it ended before all was timed, so rows are missing, or have few processes; run "
    "it again"
)


class Benchmark:
    """Carry out a plan.

    Args:
        machine: its description, from `machine.describe`.

    Attributes:
        results: what was finished so far, also after an interruption.
        is_complete: whether all of the plan was timed.
        other: what the version that `--against` names reports of itself; empty without one.

    Raises:
        UsageError: `--against` is no program.
        UnavailableError: the other environment has no version that understands this one.
    """

    def __init__(self, plan: BenchPlan, machine: dict[str, Any]) -> None:
        python = plan.against and str(Path(shutil.which(plan.against) or plan.against).absolute())
        self.plan, self.machine = replace(plan, against=python), machine | plan.survey.about
        self.results: list[GroupResult] = []
        self.is_complete = False
        self.other: dict[str, Any] = _describe_other(python) if python else {}

    def execute(self, tick: Tick = no_tick) -> None:
        """Time all of it, by `measure`, then `train_steps`."""
        if self.plan.workloads:
            measure(self.plan, self.results, tick)
        for training in self.plan.trainings:
            train_steps(training, self.plan, self.results, tick)
        self.is_complete = True

    @property
    def measurements(self) -> list[Measurement]:
        """All of them, each with a row of bench.csv."""
        return [each for result in self.results for each in result.measurements]

    @property
    def rows(self) -> list[BenchRow]:
        """The rows of bench.csv."""
        return [each.row for each in self.measurements]

    @property
    def warnings(self) -> list[str]:
        """Why the numbers should not be trusted, a sentence for each cause."""
        found = format_warnings([each for result in self.results for each in result.warnings])
        return [UNFINISHED] * (not self.is_complete) + found

    @property
    def settings(self) -> dict[str, Any]:
        """The options that the numbers depend on."""
        names = ("precision", "max_time_s", "processes", "seed", "threads", "busy")
        return {name: getattr(self.plan, name) for name in names}

    @property
    def exit_code(self) -> ExitCode:
        """1 when an implementation is wrong."""
        failed = any(each.check_failed for each in self.measurements)
        return ExitCode.CHECK_FAILED if failed else ExitCode.OK


def _describe_other(python: str) -> dict[str, Any]:
    """Ask another environment for its version, before anything is timed."""
    reason = inputs.unreadable_reason(Path(python))
    if reason:
        raise UsageError(
            f"--against is {python!r}, which cannot be started: {reason}; expected the Python of "
            "another environment: ../main/.venv/bin/python"
        )
    with Worker(1, python) as worker:
        worker.handshake()
        return worker.about


class _Passes:
    """What the passes over a group have found so far, by side of the workers."""

    def __init__(self) -> None:
        self.samples: dict[str, Samples] = defaultdict(lambda: defaultdict(list))
        self._problems: dict[str, dict[str, TimingProblem]] = defaultdict(dict)
        self._variants: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))

    def add(
        self,
        columns: Columns,
        problems: Mapping[EntryKey, TimingProblem],
        variants: Mapping[EntryKey, str],
    ) -> None:
        """Add what fresh processes found."""
        for (side, name), problem in problems.items():
            self._problems[side][name] = problem
        for (side, name), variant in variants.items():
            self._variants[side][name].append(variant)
        for (side, name), values in columns.items():
            self.samples[side][name].append(values)

    def timings(self, side: str = "") -> Timings:
        """Return what was correct in every process, and the problems of the rest."""
        problems = self._problems[side]
        samples = {n: each for n, each in self.samples[side].items() if n not in problems}
        return Timings(samples, problems, self._variants[side])


Peaks = dict[tuple[Group, str], "int | None"]
"""Peak extra memory in bytes, by group and implementation; None where it cannot be measured."""


def measure(plan: BenchPlan, results: list[GroupResult], tick: Tick = no_tick) -> None:
    """Time all of a plan.

    A result for each group is added; after an interruption, of what was timed so far.

    Raises:
        BrokenError: a worker process broke.
    """
    found = {group: _Passes() for group in plan.groups}
    peaks: Peaks = {}
    try:
        peaks |= _peaks(plan, tick)
        for number, threads in itertools.product(
            range(plan.processes), dict.fromkeys(plan.threads)
        ):
            _pass(plan, number, threads, found, tick)
    finally:
        results += [
            _result(plan, group, each, peaks) for group, each in found.items() if each.samples
        ]


def _result(plan: BenchPlan, group: Group, passes: _Passes, peaks: Peaks) -> GroupResult:
    absent = {each.name: TimingProblem(Outcome.SKIPPED, reason) for each, reason in plan.absent}
    problems = {e.name: found for e in plan.implementations if (found := plan.problem(e, group))}
    everyone = (*plan.implementations, *(each for each, _ in plan.absent))
    timings = passes.timings()
    timings = replace(timings, problems={**problems, **absent, **timings.problems})
    own = {each.name: peaks.get((group, each.name)) for each in plan.implementations}
    return group_result(replace(group, implementations=everyone), timings, own, passes.timings(OLD))


def _pass(
    plan: BenchPlan, number: int, threads: int, found: dict[Group, _Passes], tick: Tick
) -> None:
    """Time all groups of a number of threads in fresh processes, one group after the other."""
    groups = [group for group in plan.groups if group.threads == threads]
    total = plan.processes * len(plan.groups)
    place = number * len(plan.groups) + plan.groups.index(groups[0])
    what = f"process {number + 1} of {plan.processes}"
    tick(place, total, what)
    pool = WorkerPool(plan.workers, threads, seed=plan.seed + number)
    with pool, busy(plan.busy):
        for k, group in enumerate(groups):
            tick(place + k, total, f"{group.workload.name} {group.dtype} {group.cache}, {what}")
            pool.prepare(plan.able(group), **_order(plan, group))
            found[group].add(_sample(plan, pool), pool.problems, pool.variants)


def _sample(plan: BenchPlan, pool: WorkerPool) -> Columns:
    budget_s = plan.max_time_s / plan.processes
    return pool.sample(budget_s, lambda columns: _is_precise(columns, plan.precision))


def _order(plan: BenchPlan, group: Group) -> dict[str, Any]:
    """Return what worker.py reads of a task."""
    return {
        "dtype": group.dtype,
        "seed": plan.seed,
        "shapes": group.workload.shapes,
        "cold": group.cache == "cold",
        "ctx": str(group.device),
        **_sampling(plan),
    }


def _sampling(plan: BenchPlan) -> dict[str, float]:
    """Return what worker.py reads of how long a sample lasts.

    Beside neighbours a step may wait for whole slices of the scheduler, so means are long.
    """
    return {"sample_s": BUSY_SAMPLE_S} if plan.busy else {}


def _is_precise(found: Columns, precision: float) -> bool:
    """Tell whether every median is known precisely enough within this process.

    By order statistics: the ranks n/2 -+ 0.98 sqrt(n) enclose the median in 95 % of cases. The
    target is half the precision, since the processes differ too.
    """
    for values in found.values():
        known = np.sort(values[~np.isnan(values)])
        reach = math.ceil(0.98 * math.sqrt(len(known)))
        low, high = len(known) // 2 - reach, len(known) // 2 + reach
        if low < 0 or high >= len(known):
            return False
        if known[high] - known[low] > precision * known[len(known) // 2]:
            return False
    return True


# MXNet's pool keeps temporaries, and the C library keeps small blocks. Without both, a step's
# allocations show in the resident set each time (mallopt(3)).
UNPOOLED = {"MXNET_CPU_MEM_POOL_TYPE": "Unpooled", "MALLOC_MMAP_THRESHOLD_": "65536"}


def _peaks(plan: BenchPlan, tick: Tick) -> Peaks:
    """Measure the extra memory of each implementation, in a process of its own."""
    if plan.against:
        return {}
    total = plan.processes * len(plan.groups)
    tick(0, total, "memory")
    found: Peaks = {}
    tasks = _peak_tasks(plan)
    jobs = [_peak(plan, *task) for task in tasks]
    needed, _ = largest_group(plan)
    # Side by side, if two fit into memory, since nothing is timed here.
    at_once = 2 if 2 * needed < (plan.survey.available_bytes or 0) else 1
    for done, (number, peaks) in enumerate(run_side_by_side(jobs, at_once), 1):
        groups, chosen = tasks[number]
        found |= {(group, chosen.name): each for group, each in zip(groups, peaks, strict=True)}
        tick(0, total, f"memory, {done} of {len(tasks)}")
    return found


def _peak_tasks(plan: BenchPlan) -> list[tuple[list[Group], Implementation]]:
    """Return the groups that each process measures, smallest first."""
    ascending = sorted(plan.groups, key=lambda group: group.workload.elements)
    tasks: dict[tuple[Implementation, str, int], list[Group]] = {}
    for chosen, group in itertools.product(plan.implementations, ascending):
        if not plan.problem(chosen, group):
            tasks.setdefault((chosen, group.dtype, group.threads), []).append(group)
    return [(groups, chosen) for (chosen, *_), groups in tasks.items()]


def _peak(
    plan: BenchPlan, groups: Sequence[Group], chosen: Implementation
) -> Job[list[int | None]]:
    order = _order(plan, groups[0]) | {"implementations": [chosen.name], "task": "peak"}
    order["workloads"] = [group.workload.shapes for group in groups]
    foreign = bool(chosen.sandbox)
    with Worker(groups[0].threads, foreign=foreign, **UNPOOLED) as worker:
        try:
            yield worker
            worker.handshake()
            worker.send(**order)
            yield worker
            return worker.answer()["peak_extra_bytes"]
        except BrokenError:
            if not foreign:
                raise
            return [None] * len(groups)  # the worker that takes the samples reports the problem


def train_steps(
    training: Training, plan: BenchPlan, results: list[GroupResult], tick: Tick = no_tick
) -> None:
    """Time whole training steps of a network, once for each optimizer, in turn.

    A result for each number of threads of the plan is added, as in `measure`.

    Raises:
        BrokenError: a worker process broke.
    """
    what = (training.workload, training.implementations, "float32")
    for threads in dict.fromkeys(plan.threads):
        group = Group(*what, threads, precision=plan.precision, busy=plan.busy)
        passes = _Passes()
        trained: dict[str, list[Trained]] = defaultdict(list)
        try:
            for number in range(plan.processes):
                tick(number, plan.processes, f"{group.workload.name}, process {number + 1}")
                _train_once(training, plan, group, number, passes, trained)
        finally:
            if passes.samples:
                results.append(training_result(group, _trainings(training, passes), trained))


def _trainings(training: Training, passes: _Passes) -> dict[str, Timings]:
    """Return by optimizer what the passes found, or why it is not available."""
    absent = {
        name: Timings({}, {name: TimingProblem(Outcome.SKIPPED, reason)})
        for name, reason in training.absent().items()
    }
    return {name: passes.timings(name) for name in training.optimizers} | absent


def _train_once(
    training: Training,
    plan: BenchPlan,
    group: Group,
    number: int,
    passes: _Passes,
    trained: dict[str, list[Trained]],
) -> None:
    """Sample the optimizers in turn, in a fresh process each; add samples and what they reached."""
    absent = training.absent()
    here = [each for each in group.implementations if each.name not in absent]
    specs = [WorkerSpec((each,), each.name, task="train") for each in here]
    pool = WorkerPool(specs, group.threads, seed=plan.seed + number)
    with pool, busy(plan.busy):
        order = {"seed": plan.seed, "network": training.name}
        answers = pool.prepare(here, **order, **_sampling(plan))
        passes.add(_sample(plan, pool), pool.problems, pool.variants)
    for spec, answer in zip(specs, answers, strict=True):
        if "loss" in answer:  # not of third-party code that broke its process
            trained[spec.side].append(Trained(answer["loss"], answer["distance"]))
