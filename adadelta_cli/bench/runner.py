"""How fast a step is, and how far from what the machine allows: `bench`.

What is timed is one finished `AdaDelta.update` (`mxnet*`), one call on arrays (`numpy*`), or the
step of another framework's optimizer. Everything is timed in several passes, each with fresh
processes (worker_pool.py), in which all implementations and both roofs take turns.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli.bench.buffers import held_bytes
from adadelta_cli.bench.device import DeviceSurvey, survey
from adadelta_cli.bench.results import (
    OLD,
    BenchRow,
    Group,
    GroupResult,
    Measurement,
    Samples,
    format_warnings,
    result,
    training_rows,
)
from adadelta_cli.bench.worker import cold_copies
from adadelta_cli.bench.worker_pool import (
    Columns,
    Job,
    Worker,
    WorkerPool,
    WorkerSpec,
    run_side_by_side,
)
from adadelta_cli.bench.workloads import Workload, model
from adadelta_cli.errors import BrokenError, ExitCode, UnavailableError, UsageError
from adadelta_cli.implementations import array_backends, frameworks, registry, user_kernel
from adadelta_cli.implementations.array_backends import Device
from adadelta_cli.implementations.registry import IMPLEMENTATIONS, timeable
from adadelta_cli.mxnet_bridge import runtime
from adadelta_cli.progress import Tick, no_tick
from adadelta_cli.update import state_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

TRAINED = {"mlp": ("mxnet-stock", "mxnet", "mxnet-fused")}  # by network; the first is the reference
CACHES = ("warm", "cold")


def cache_on(ctx: str) -> str:
    """Say which of `CACHES` is the default on a device: a GPU steps on what is in memory."""
    return {"cpu": "warm", "gpu": "cold"}[Device.parse(ctx).kind]


@dataclass(frozen=True)
class BenchPlan:
    """What to time, and how well.

    Attributes:
        workloads: the tensors of a step.
        implementations: their names.
        dtypes: float32, float64, float16 (with float32 masters).
        threads: numbers of CPU threads, one after the other.
        caches: of `CACHES`.
        seed: of the tensors' values and of the order in a round.
        precision: half the width of the median's 95 % interval, as a share of it, that suffices.
        max_time_s: how long samples of one workload are taken at most, all processes together.
        processes: how many times everything is timed afresh.
        absent: implementations that were asked for where they are, and are not here: name, reason.
        against: another environment's interpreter, whose version is timed in the same rounds.
        ctx: the device, as `--ctx` names it.
    """

    workloads: tuple[Workload, ...]
    implementations: tuple[str, ...]
    dtypes: tuple[str, ...] = ("float32",)
    threads: tuple[int, ...] = (1,)
    caches: tuple[str, ...] = ("warm",)
    seed: int = 0
    precision: float = 0.02
    max_time_s: float = 4.0
    processes: int = 6
    absent: tuple[tuple[str, str], ...] = ()
    against: str | None = None
    ctx: str = "cpu"

    @cached_property
    def survey(self) -> DeviceSurvey:
        """What there is to know of the processor."""
        return survey(self.ctx)

    @cached_property
    def groups(self) -> list[Group]:
        """What is timed together: each workload with each dtype, number of threads and cache."""
        settings = itertools.product(self.threads, self.workloads, self.dtypes, self.caches)
        return [
            Group(workload, self.implementations, dtype, threads, cache, self.precision, self.ctx)
            for threads, workload, dtype, cache in dict.fromkeys(settings)
        ]

    @cached_property
    def roles(self) -> list[WorkerSpec]:
        """Who times what: the fused steps and the roofs together, what disturbs them elsewhere."""
        groups: dict[str, list[str]] = {"": []}
        for name in self.implementations:
            groups.setdefault(_process(name), []).append(name)
        ours = WorkerSpec(tuple(groups.pop("")), roofs=True)
        others = [WorkerSpec(tuple(names), foreign=key != APART) for key, names in groups.items()]
        if not self.against:
            return [ours, *others]
        # With the roofs, though nothing is made of theirs: what shares a process has to be alike.
        own = [role for role in (ours, *others) if not role.foreign]
        return [ours, *others, *(replace(role, prefix=OLD, python=self.against) for role in own)]


APART = "operators of MXNet"


def _process(name: str) -> str:
    """Say in which process an implementation is timed; empty for that of the roofs.

    MXNet's own operators have OpenMP threads beside those of the kernels. Where both together are
    more than the cores, libgomp sends idle ones to sleep at once (libgomp manual, GOMP_SPINCOUNT),
    and waking them costs each kernel some 70 us.
    """
    chosen = timeable(name)
    if chosen.sandbox:
        return name
    return APART if chosen.backend == "mxnet" and not chosen.fused else ""


# --- the choice of implementations ----------------------------------------------------------------


def choose_implementations(
    names: Sequence[str], backend: str, ctx: str, *, fused_only: bool = False
) -> tuple[str, ...]:
    """Return the implementations to time: those named, or all of ours that there are here.

    Raises:
        UsageError: a name is unknown, or belongs to another backend.
        UnavailableError: the device or the library is not to be had here.
    """
    for name in names:
        _check_choice(name, backend, Device.parse(ctx))
    wanted = _libraries(backend, ctx)
    chosen = tuple(dict.fromkeys(names)) or tuple(
        each.name
        for each in IMPLEMENTATIONS.values()
        if each.backend in wanted and (each.fused or not fused_only)
    )
    if any(timeable(name).backend == "mxnet" for name in chosen):
        runtime.is_installed() or runtime.load_mxnet()  # which says what is missing
    return chosen


def _libraries(backend: str, ctx: str) -> tuple[str, ...]:
    """Name the array libraries whose steps are timed where none is named."""
    if Device.parse(ctx).kind == "gpu" or backend == "cupy":
        return (array_backends.library(backend, Device.parse(ctx)),)
    here = ("mxnet", "numpy") if runtime.is_installed() else ("numpy",)
    return here if backend == "auto" else (backend,)


def _check_choice(name: str, backend: str, device: Device) -> None:
    found = timeable(name, device)
    registry.check_place(found, device)
    registry.check_backend(found, backend)
    if device.kind == "gpu" and found.backend in array_backends.BACKENDS:
        array_backends.library(found.backend, device)
    if found.backend in array_backends.FRAMEWORKS:
        lack = frameworks.missing_requirement(found)
        if lack:
            raise UnavailableError(f"--impl {name}: {lack}")
    elif found.sandbox:
        user_kernel.check_kernel(name)


def choose_frameworks() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Return the names of the peers and yardsticks that are here; the others, with their lack."""
    every = registry.FRAMEWORKS | registry.YARDSTICKS
    here, absent = frameworks.available(every.values())
    return tuple(each.name for each in here), tuple((e.name, reason) for e, reason in absent)


COMPILED_COPIES = 4  # of cold tensors, at most: torch.compile takes seconds for each


def _unsupported_reason(plan: BenchPlan, name: str, group: Group) -> str:
    """Say why a group cannot be put to an implementation; empty when it can."""
    chosen = timeable(name, Device.parse(group.ctx))
    if group.dtype not in chosen.dtypes:
        return f"skipped: {name} has no {group.dtype}"
    if name == "torch-compile" and _copies(plan, group)[0] > COMPILED_COPIES:
        return "skipped: it would be compiled once for each copy of the tensors"
    return ""


# --- memory ---------------------------------------------------------------------------------------

TEMPORARIES = 7  # arrays of the states' dtype that an unfused step holds at its peak; measured


def needed_bytes(plan: BenchPlan, group: Group) -> int:
    """Count the bytes that timing a workload allocates, in all processes that do at once."""
    held = group.workload.elements * held_bytes(group.dtype)
    copies, ballast = _copies(plan, group)
    state = group.workload.elements * np.dtype(state_dtype(group.dtype)).itemsize
    targets = state * copies * (plan.ctx != "cpu")  # of the device copy
    return sum(
        held * copies * (2 if "optax" in role.implementations else 1)  # JAX takes copies of its own
        + ballast
        + targets * role.roofs
        + TEMPORARIES * state * any(not timeable(name).fused for name in role.implementations)
        for role in plan.roles
    )


def _copies(plan: BenchPlan, group: Group) -> tuple[int, int]:
    """Say how often the tensors are made, and how many other bytes there are; see `cold_copies`."""
    held = group.workload.elements * held_bytes(group.dtype)
    return cold_copies(held, plan.survey.cache_bytes) if group.cache == "cold" else (1, 0)


def check_memory(plan: BenchPlan) -> None:
    """Compare what the largest workload needs with what is free, before anything is allocated.

    Raises:
        UnavailableError: it does not fit.
    """
    if not plan.groups:
        return
    needed, largest = _largest(plan)
    available = plan.survey.available_bytes
    if available is not None and needed > available:
        raise UnavailableError(
            f"{largest.workload.name} in {largest.dtype} needs {needed / 1e9:.1f} GB "
            f"({needed} bytes) and {available / 1e9:.1f} GB ({available} bytes) are available; "
            "ask for a smaller --sizes, or for fused steps only (--impl "
            f"{'numpy' if plan.ctx == 'cpu' else 'cupy'}-fused), which need no temporary arrays"
        )


def _largest(plan: BenchPlan) -> tuple[int, Group]:
    """Find what needs the most memory; return how many bytes, and the group."""
    return max(((needed_bytes(plan, each), each) for each in plan.groups), key=lambda pair: pair[0])


# --- measuring ------------------------------------------------------------------------------------


class Benchmark:
    """Carry out a plan.

    Args:
        plan: what to time.
        train: the network whose whole training steps are timed, too, a key of `TRAINED`.
        machine: what describes it, as `machine.describe` does.

    Attributes:
        results: what was finished so far, should it be interrupted.
        other: what the version that `--against` names says of itself; empty without one.

    Raises:
        UsageError: `--against` is no program, or goes with `--train`.
        UnavailableError: there is no version at its other end that understands this one.
    """

    def __init__(self, plan: BenchPlan, train: str | None, machine: dict[str, Any]) -> None:
        if train:
            check_train(plan.ctx, plan.against)
        python = plan.against and str(Path(shutil.which(plan.against) or plan.against).absolute())
        self.plan, self.machine = replace(plan, against=python), machine | plan.survey.about
        self._train = train
        self.results: list[GroupResult] = []
        self.other: dict[str, Any] = _greeted(python) if python else {}

    def execute(self, tick: Tick = no_tick) -> None:
        """Do all of it, by `measure`, then `train_steps`."""
        if self.plan.workloads:
            measure(self.plan, self.results, tick)
        if self._train:
            train_steps(self._train, self.plan, self.results, tick)

    @property
    def measurements(self) -> list[Measurement]:
        """All of them, with a row each."""
        return [each for result in self.results for each in result.measurements]

    @property
    def rows(self) -> list[BenchRow]:
        """The rows of bench.csv."""
        return [each.row for each in self.measurements]

    @property
    def doubts(self) -> list[str]:
        """Why the numbers should not be trusted, each once."""
        return format_warnings([doubt for result in self.results for doubt in result.doubts])

    @property
    def settings(self) -> dict[str, Any]:
        """What the numbers depend on beside the machine."""
        names = ("precision", "max_time_s", "processes", "seed", "threads")
        return {name: getattr(self.plan, name) for name in names}

    @property
    def exit_code(self) -> ExitCode:
        """1 when an implementation is wrong."""
        wrong = any(each.wrong for each in self.measurements)
        return ExitCode.CHECK_FAILED if wrong else ExitCode.OK


def check_train(ctx: str, against: str | None) -> None:
    """See that whole training steps go together with the rest of what is asked for.

    Raises:
        UsageError: they do not.
    """
    if against:
        raise UsageError("--against judges single steps; leave out --train, or --against")
    if ctx != "cpu":
        raise UsageError(
            f"--train --ctx {ctx}: whole training steps go through gluon.Trainer, whose MXNet "
            "computes on a CPU; leave out --train, or --ctx"
        )


def _greeted(python: str) -> dict[str, Any]:
    """Ask the version of another environment who it is, before anything is timed."""
    if not Path(python).is_file():
        what = "that is a folder" if Path(python).is_dir() else "there is no such program"
        raise UsageError(
            f"--against is {python!r}, and {what}; expected the Python of another environment: "
            "../main/.venv/bin/python"
        )
    with Worker(1, python) as worker:
        worker.greet()
        return worker.about


class _Pass:
    """What the passes over a group have brought together."""

    def __init__(self) -> None:
        self.samples: Samples = defaultdict(list)
        self.faults: dict[str, str] = {}

    def add(self, columns: Columns, faults: dict[str, str]) -> None:
        """Add what fresh processes found."""
        self.faults |= {name: fault for name, fault in faults.items() if fault}
        for name, values in columns.items():
            self.samples[name].append(values)

    @property
    def faultless(self) -> Samples:
        """The samples of what was right in every process."""
        return {name: each for name, each in self.samples.items() if name not in self.faults}


def measure(plan: BenchPlan, results: list[GroupResult], tick: Tick = no_tick) -> None:
    """Time all of a plan.

    Args:
        plan: what to time.
        results: gets a result for each group; of what was timed so far, should it be interrupted.
        tick: told how much is done.

    Raises:
        BrokenError: a process broke off.
    """
    found = {group: _Pass() for group in plan.groups}
    peaks: dict[tuple[Group, str], int | None] = {}
    try:
        peaks |= _peaks(plan, tick)
        for number, threads in itertools.product(
            range(plan.processes), dict.fromkeys(plan.threads)
        ):
            _pass(plan, number, threads, found, tick)
    finally:
        timed = {group: each for group, each in found.items() if each.samples}
        results += [_of_group(plan, group, each, peaks) for group, each in timed.items()]


def _of_group(
    plan: BenchPlan, group: Group, found: _Pass, peaks: dict[tuple[Group, str], int | None]
) -> GroupResult:
    reasons = {name: _unsupported_reason(plan, name, group) for name in plan.implementations}
    absent = {name: f"skipped: {lack}" for name, lack in plan.absent}
    everyone = replace(group, implementations=(*plan.implementations, *absent))
    own = {name: peaks.get((group, name)) for name in plan.implementations}
    return result(everyone, found.faultless, reasons | absent | found.faults, own)


def _pass(
    plan: BenchPlan, number: int, threads: int, found: dict[Group, _Pass], tick: Tick
) -> None:
    """Time all groups of a number of threads in fresh processes, one group after the other."""
    groups = [group for group in plan.groups if group.threads == threads]
    total = plan.processes * len(plan.groups)
    place = number * len(plan.groups) + plan.groups.index(groups[0])
    what = f"process {number + 1} of {plan.processes}"
    tick(place, total, what)
    with WorkerPool(plan.roles, threads, seed=plan.seed + number) as pool:
        for k, group in enumerate(groups):
            tick(place + k, total, f"{group.workload.name} {group.dtype} {group.cache}, {what}")
            pool.prepare(_able(plan, group), **_spec(plan, group))
            budget_s = plan.max_time_s / plan.processes
            columns = pool.sample(budget_s, lambda seen: _suffice(seen, plan.precision))
            found[group].add(columns, pool.faults)


def _able(plan: BenchPlan, group: Group) -> list[str]:
    return [name for name in plan.implementations if not _unsupported_reason(plan, name, group)]


def _spec(plan: BenchPlan, group: Group) -> dict[str, Any]:
    return {
        "dtype": group.dtype,
        "seed": plan.seed,
        "shapes": group.workload.shapes,
        "cold": group.cache == "cold",
        "ctx": group.ctx,
    }


def _suffice(found: Columns, precision: float) -> bool:
    """Tell whether every median is known well enough within this process.

    By order statistics: the ranks n/2 -+ 0.98 sqrt(n) enclose the median in 95 % of cases. Half the
    precision is asked for, since the processes differ too.
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


# Without its pool, MXNet's temporaries are given back, and seen again when they return; and so are
# those of all others, if the C library asks the system for each (mallopt(3)).
UNPOOLED = {"MXNET_CPU_MEM_POOL_TYPE": "Unpooled", "MALLOC_MMAP_THRESHOLD_": "65536"}


def _peaks(plan: BenchPlan, tick: Tick) -> dict[tuple[Group, str], int | None]:
    """Measure the extra memory of each implementation, in a process of its own."""
    if plan.against:
        return {}
    ascending = sorted(plan.groups, key=lambda group: group.workload.elements)
    tasks = []
    for name, dtype, threads in itertools.product(
        plan.implementations, dict.fromkeys(plan.dtypes), dict.fromkeys(plan.threads)
    ):
        groups = [g for g in ascending if (g.dtype, g.threads) == (dtype, threads)]
        able = [group for group in groups if not _unsupported_reason(plan, name, group)]
        if able:
            tasks.append((able, name))
    tick(0, plan.processes * len(plan.groups), "memory")
    found: dict[tuple[Group, str], int | None] = {}
    jobs = [_peak(plan, *task) for task in tasks]
    # Nothing is timed here.
    for done, (number, peaks) in enumerate(run_side_by_side(jobs, _at_once(plan)), 1):
        groups, name = tasks[number]
        found |= {(group, name): peak for group, peak in zip(groups, peaks, strict=True)}
        tick(0, plan.processes * len(plan.groups), f"memory, {done} of {len(tasks)}")
    return found


def _at_once(plan: BenchPlan) -> int:
    """Say how many processes may hold a workload at once, if two fit beside each other."""
    needed, _ = _largest(plan)
    return 2 if 2 * needed < (plan.survey.available_bytes or 0) else 1


def _peak(plan: BenchPlan, groups: Sequence[Group], name: str) -> Job[list[int | None]]:
    spec = _spec(plan, groups[0]) | {"implementations": [name], "task": "peak"}
    spec["workloads"] = [group.workload.shapes for group in groups]
    foreign = bool(timeable(name).sandbox)
    with Worker(groups[0].threads, foreign=foreign, **UNPOOLED) as worker:
        try:
            yield worker
            worker.greet()
            worker.send(**spec)
            yield worker
            return worker.answer()["peak_extra_bytes"]
        except BrokenError:
            if not foreign:
                raise
            return [None] * len(groups)  # the samples' process tells the same


# --- training -------------------------------------------------------------------------------------


def train_steps(
    name: str, plan: BenchPlan, results: list[GroupResult], tick: Tick = no_tick
) -> None:
    """Time whole training steps of a network, once for each optimizer, in turn.

    Args:
        name: of the network, a key of `TRAINED`.
        plan: with how many threads and processes, and for how long.
        results: gets a result for each number of threads, as in `measure`.
        tick: told how much is done.

    Raises:
        UnavailableError: MXNet is not installed.
        BrokenError: a process broke off.
    """
    if not runtime.is_installed():
        runtime.load_mxnet()
    workload = replace(model(name), name=f"train:{name}")
    for threads in dict.fromkeys(plan.threads):
        group = Group(workload, TRAINED[name], "float32", threads, "warm", plan.precision)
        found = _Pass()
        losses: dict[str, list[float]] = {each: [] for each in group.implementations}
        try:
            for number in range(plan.processes):
                tick(number, plan.processes, f"{workload.name}, process {number + 1}")
                _train_once(plan, group, number, found, losses)
        finally:
            if found.samples:
                results.append(training_rows(group, found.samples, losses))


def _train_once(
    plan: BenchPlan, group: Group, number: int, found: _Pass, losses: dict[str, list[float]]
) -> None:
    """Let a fresh process for each optimizer take samples in turn; add samples and losses."""
    roles = [WorkerSpec((each,), f"{each} ", task="train") for each in group.implementations]
    with WorkerPool(roles, group.threads, seed=plan.seed + number) as pool:
        answers = pool.prepare(group.implementations, seed=plan.seed)
        budget_s = plan.max_time_s / plan.processes
        found.add(pool.sample(budget_s, lambda seen: _suffice(seen, plan.precision)), pool.faults)
    for name, answer in zip(group.implementations, answers, strict=True):
        losses[name].append(answer["loss"])
