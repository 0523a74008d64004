"""How fast a step is, and how far from what the machine allows: `bench`.

What is timed is one finished `AdaDelta.update` (`mxnet*`), or one call on arrays (`numpy*`). Each
workload is timed in several fresh processes (worker.py); in each, all implementations and both
roofs take turns, so that whatever else the machine does hits them alike. Ratios are of samples of
one round, and every interval knows about the processes (estimate.py).
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from adadelta_cli import backends, engine, machine
from adadelta_cli.console import Tick, no_tick
from adadelta_cli.errors import BrokenError, UnavailableError, UsageError
from adadelta_cli.estimate import Estimate, estimate, ratio
from adadelta_cli.implementations import IMPLEMENTATIONS, implementation
from adadelta_cli.worker import ARITHMETIC, MEMORY
from adadelta_cli.workloads import Workload, model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SLICE_S = 0.25  # how long a process takes samples before it is asked whether they suffice
TRAINED = {"mlp": ("mxnet-stock", "mxnet", "mxnet-fused")}  # by network; the first is the reference


@dataclass(frozen=True)
class Plan:
    """What to time, and how well.

    Attributes:
        workloads: the tensors of a step.
        implementations: their names.
        dtypes: float32, float64, float16 (with float32 masters).
        threads: numbers of CPU threads, one after the other.
        seed: of the tensors' values and of the bootstrap.
        precision: half the width of the median's 95 % interval, as a share of it, that suffices.
        max_time_s: how long samples of one workload are taken at most, all processes together.
        processes: how many times everything is timed afresh.
    """

    workloads: tuple[Workload, ...]
    implementations: tuple[str, ...]
    dtypes: tuple[str, ...] = ("float32",)
    threads: tuple[int, ...] = (1,)
    seed: int = 0
    precision: float = 0.02
    max_time_s: float = 4.0
    processes: int = 3

    @property
    def groups(self) -> list[Group]:
        """What is timed together: each workload with each dtype and number of threads."""
        return [
            Group(self, *each)
            for each in itertools.product(self.workloads, self.dtypes, self.threads)
        ]


@dataclass(frozen=True)
class Group:
    """The implementations that are timed together, in one process after the other."""

    plan: Plan
    workload: Workload
    dtype: str
    threads: int


@dataclass(frozen=True)
class Row:
    """The time of one implementation's step on one workload: a row of bench.csv.

    A share or a speed-up is the median of the ratios within rounds, with its own interval. None:
    not measured, and `note` says why.
    """

    implementation: str
    backend: str
    ctx: str
    dtype: str
    workload: str
    tensors: int
    elements: int
    threads: int
    cache: str = "warm"
    processes: int = 0
    samples: int = 0
    median_s: float | None = None
    ci_low_s: float | None = None
    ci_high_s: float | None = None
    q1_s: float | None = None
    q3_s: float | None = None
    elements_per_s: float | None = None
    gigabytes_per_s: float | None = None
    ceiling_gigabytes_per_s: float | None = None
    ceiling_fraction: float | None = None
    ceiling_fraction_low: float | None = None
    ceiling_fraction_high: float | None = None
    bound: str | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    peak_extra_bytes: int | None = None
    note: str = ""


COLUMNS = tuple(field.name for field in fields(Row))
Samples = dict[str, list[np.ndarray]]
"""By entry, an array for each process; a round in which the entry had no turn is a NaN."""


@dataclass(frozen=True)
class Measurement:
    """A row, and the samples behind it.

    Attributes:
        row: what bench.csv has.
        samples_s: the samples of each process, in seconds a step, in the order they were taken.
        wrong: this implementation's bits are not those of the array update.
    """

    row: Row
    samples_s: list[list[float]]
    wrong: bool = False


# --- bytes ----------------------------------------------------------------------------------------


def traffic_bytes(dtype: str) -> int:
    """Count the bytes that a step has to move for each element: reads of four, writes of three.

    A float16 weight adds its own write to the three of the float32 master and states, and is never
    read; its gradient is float16 too.

    >>> [traffic_bytes(dtype) for dtype in ("float32", "float64", "float16")]
    [28, 56, 28]
    """
    stored, state = _itemsizes(dtype)
    reads = 3 * state + stored
    writes = 3 * state + (stored if dtype == "float16" else 0)
    return reads + writes


def held_bytes(dtype: str) -> int:
    """Count the bytes that the arrays of a step hold for each element.

    >>> [held_bytes(dtype) for dtype in ("float32", "float64", "float16")]
    [16, 32, 16]
    """
    stored, state = _itemsizes(dtype)
    return 2 * stored + (3 if dtype == "float16" else 2) * state


def _itemsizes(dtype: str) -> tuple[int, int]:
    return np.dtype(dtype).itemsize, 4 if dtype == "float16" else np.dtype(dtype).itemsize


TEMPORARIES = 7  # arrays of the states' dtype that an unfused step holds at its peak; measured


def needed_bytes(group: Group) -> int:
    """Count the bytes that timing a workload allocates."""
    temporaries = 0
    if any(not implementation(name).fused for name in group.plan.implementations):
        temporaries = TEMPORARIES * _itemsizes(group.dtype)[1]
    return group.workload.elements * (held_bytes(group.dtype) + temporaries)


def check_memory(plan: Plan) -> None:
    """Compare what the largest workload needs with what is free, before anything is allocated.

    Raises:
        UnavailableError: it does not fit.
    """
    largest = max(plan.groups, key=needed_bytes)
    needed, available = needed_bytes(largest), machine.available_bytes()
    if available is not None and needed > available:
        raise UnavailableError(
            f"{largest.workload.name} in {largest.dtype} needs {needed / 1e9:.1f} GB "
            f"({needed} bytes) and {available / 1e9:.1f} GB ({available} bytes) are available; "
            "ask for a smaller --sizes, or for fused steps only (--impl numpy-fused), which need "
            "no temporary arrays"
        )


# --- the choice of implementations ----------------------------------------------------------------


def choose(names: Sequence[str], backend: str, ctx: str) -> tuple[str, ...]:
    """Return the implementations to time: those named, or all that there are here.

    Raises:
        UsageError: a name is unknown, or belongs to another backend.
        UnavailableError: the device or the library is not to be had here.
    """
    if ctx != "cpu" or backend == "cupy":
        backends.backend(backend, ctx)
    here = ("mxnet", "numpy") if engine.is_installed() else ("numpy",)
    wanted = here if backend == "auto" else (backend,)
    for name in names:
        _check_choice(name, backend)
    chosen = tuple(dict.fromkeys(names)) or tuple(
        each.name for each in IMPLEMENTATIONS.values() if each.backend in wanted
    )
    if any(implementation(name).backend == "mxnet" for name in chosen):
        engine.is_installed() or engine.load()  # which says what is missing
    return chosen


def _check_choice(name: str, backend: str) -> None:
    found = implementation(name).backend
    if backend not in ("auto", found):
        raise UsageError(
            f"--impl {name} computes on {found} and --backend is {backend}; leave --backend out, "
            f"or make it {found}"
        )


# --- processes ------------------------------------------------------------------------------------


class Worker:
    """A process that takes samples; see worker.py for what is said to it.

    Raises:
        BrokenError: it ended.
    """

    def __init__(self, threads: int, **environment: str) -> None:
        path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        limits = machine.thread_environment(threads) | environment
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - __exit__ closes it
        self._process = subprocess.Popen(
            [sys.executable, "-m", "adadelta_cli.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **limits, "PYTHONPATH": os.pathsep.join(filter(None, path))},
        )

    def __enter__(self) -> Worker:  # noqa: PYI034 - Python 3.10 has no Self
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self, **order: Any) -> dict[str, Any]:
        """Send an order, first what to work on, then for how many seconds; return the answer."""
        orders, replies = (
            cast("IO[str]", self._process.stdin),
            cast("IO[str]", self._process.stdout),
        )
        try:
            orders.write(json.dumps(order) + "\n")
            orders.flush()
            return json.loads(replies.readline())
        except (BrokenPipeError, json.JSONDecodeError) as error:
            raise self._broken() from error

    def _broken(self) -> BrokenError:
        code = self._process.wait()
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["it said nothing"])[-1]
        return BrokenError(
            f"a process that takes samples ended with {code}: {last}; if that is -9, the system "
            "ran out of memory: ask for smaller --sizes"
        )


# --- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What came of timing a group.

    Attributes:
        measurements: one for each implementation.
        roofs_s: the samples of both roofs, by process, NaN-free.
        doubts: why these numbers should not be trusted, each with what to do about it.
    """

    measurements: list[Measurement]
    roofs_s: dict[str, list[list[float]]]
    doubts: list[str]


def results(plan: Plan, train: str | None, tick: Tick = no_tick) -> Iterator[Result]:
    """Time all of a plan, by `measure`, then the training of a network, by `train_steps`."""
    if plan.workloads:
        yield from measure(plan, tick)
    if train:
        yield from train_steps(train, plan, tick)


def measure(plan: Plan, tick: Tick = no_tick) -> Iterator[Result]:
    """Time all of a plan, group by group.

    Raises:
        UnavailableError: the memory does not suffice; nothing was allocated.
        BrokenError: a process broke off.
    """
    check_memory(plan)
    total = len(plan.groups) * plan.processes + 1
    tick(0, total, "memory")
    peaks = _peaks(plan)
    for number, group in enumerate(plan.groups):
        samples: Samples = {}
        for process in range(plan.processes):
            tick(
                number * plan.processes + process + 1, total, f"{group.workload.name} {group.dtype}"
            )
            budget_s = plan.max_time_s / plan.processes
            faults = _time_once(group, samples, budget_s)
        peak = {name: peaks.get((group, name)) for name in plan.implementations}
        yield _result(group, samples, faults, peak)


def _spec(group: Group, task: str) -> dict[str, Any]:
    return {
        "task": task,
        "dtype": group.dtype,
        "seed": group.plan.seed,
        "shapes": group.workload.shapes,
        "implementations": group.plan.implementations,
    }


def _time_once(group: Group, samples: Samples, budget_s: float) -> dict[str, str]:
    """Add the samples of a fresh process; return what is wrong with each implementation."""
    found: dict[str, list[float | None]] = {}
    with Worker(group.threads) as worker:
        faults = worker.ask(**_spec(group, "time"))["faults"]
        until = time.monotonic() + budget_s
        while not found or (
            time.monotonic() < until and not _suffices(found, group.plan.precision)
        ):
            for name, values in worker.ask(seconds=SLICE_S)["samples"].items():
                found.setdefault(name, []).extend(values)
    for name, values in found.items():
        samples.setdefault(name, []).append(np.array(values, dtype=np.float64))
    return faults


def _suffices(found: dict[str, list[float | None]], precision: float) -> bool:
    """Tell whether every median is known well enough within this process.

    By order statistics: the ranks n/2 -+ 0.98 sqrt(n) enclose the median in 95 % of cases. Half the
    precision is asked for, since the processes differ too.
    """
    for values in found.values():
        known = np.sort([value for value in values if value is not None])
        reach = math.ceil(0.98 * math.sqrt(len(known)))
        low, high = len(known) // 2 - reach, len(known) // 2 + reach
        if low < 0 or high >= len(known):
            return False
        if known[high] - known[low] > precision * known[len(known) // 2]:
            return False
    return True


def _peaks(plan: Plan) -> dict[tuple[Group, str], int | None]:
    """Measure the extra memory of each implementation, in a process of its own."""
    found: dict[tuple[Group, str], int | None] = {}
    ascending = sorted(plan.groups, key=lambda group: group.workload.elements)
    for name, dtype, threads in itertools.product(plan.implementations, plan.dtypes, plan.threads):
        groups = [each for each in ascending if (each.dtype, each.threads) == (dtype, threads)]
        spec = _spec(groups[0], "peak") | {"implementations": [name]}
        spec["workloads"] = [group.workload.shapes for group in groups]
        # Without its pool, MXNet's temporaries are given back, and seen again when they return.
        with Worker(threads, MXNET_CPU_MEM_POOL_TYPE="Unpooled") as worker:
            peaks = worker.ask(**spec)["peak_extra_bytes"]
        found |= {(group, name): peak for group, peak in zip(groups, peaks, strict=True)}
    return found


# --- from samples to rows -------------------------------------------------------------------------


def _result(
    group: Group, samples: Samples, faults: dict[str, str], peaks: dict[str, int | None]
) -> Result:
    bound = max((MEMORY, ARITHMETIC), key=lambda roof: estimate(_known(samples[roof])).median)
    measurements = [
        _measurement(_blank(group, name, faults[name], peaks[name]), group, samples, bound)
        for name in group.plan.implementations
    ]
    roofs = {
        roof: [each.tolist() for each in _known(samples[roof])] for roof in (MEMORY, ARITHMETIC)
    }
    return Result(measurements, roofs, doubts(group, samples))


def _blank(group: Group, name: str, fault: str, peak: int | None) -> Row:
    workload = group.workload
    return Row(
        implementation=name, backend=implementation(name).backend, ctx="cpu", dtype=group.dtype,
        workload=workload.name, tensors=workload.tensors, elements=workload.elements,
        threads=group.threads, peak_extra_bytes=peak, note=fault,
    )  # fmt: skip


def _measurement(blank: Row, group: Group, samples: Samples, bound: str) -> Measurement:
    """Fill a row from the samples; an implementation that is wrong has none."""
    name = blank.implementation
    if name not in samples:
        return Measurement(blank, [], wrong=blank.note.startswith("wrong"))
    known, moved = _known(samples[name]), blank.elements * traffic_bytes(blank.dtype)
    time_s, ceiling_s = estimate(known), estimate(_known(samples[bound]))
    share = _ratio(samples[bound], samples[name])
    unfused = samples.get(implementation(name).unfused)
    row = replace(
        _timed(blank, known, time_s),
        gigabytes_per_s=moved / time_s.median / 1e9,
        ceiling_gigabytes_per_s=moved / ceiling_s.median / 1e9,
        ceiling_fraction=share.median,
        ceiling_fraction_low=share.low,
        ceiling_fraction_high=share.high,
        bound=bound.split(maxsplit=1)[0],
        note="; ".join(_notes(name, group, samples, time_s)),
    )
    return Measurement(_sped_up(row, unfused, samples[name]), [each.tolist() for each in known])


def _timed(blank: Row, known: Sequence[np.ndarray], time_s: Estimate) -> Row:
    q1, q3 = np.median([np.percentile(each, [25, 75]) for each in known], axis=0)
    return replace(
        blank,
        processes=len(known),
        samples=sum(map(len, known)),
        median_s=time_s.median,
        ci_low_s=time_s.low,
        ci_high_s=time_s.high,
        q1_s=float(q1),
        q3_s=float(q3),
        elements_per_s=blank.elements / time_s.median,
    )


def _sped_up(row: Row, reference: list[np.ndarray] | None, own: list[np.ndarray]) -> Row:
    if reference is None:
        return row
    gain = _ratio(reference, own)
    return replace(row, speedup=gain.median, speedup_low=gain.low, speedup_high=gain.high)


def _ratio(over: Sequence[np.ndarray], under: Sequence[np.ndarray]) -> Estimate:
    return estimate(ratio(over, under))


def _known(processes: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [each[~np.isnan(each)] for each in processes]


# --- what to make of it ---------------------------------------------------------------------------

STOCK = "mxnet-stock"
FEW_SAMPLES = 10
PROCESSES_DISAGREE = 0.10
CORES_SHARED = 0.10


def _notes(name: str, group: Group, samples: Samples, time_s: Estimate) -> Iterator[str]:
    """Say how well a row is known, and how it compares with the stock optimizer."""
    reached, wanted = time_s.precision, group.plan.precision
    known = _known(samples[name])
    if reached > wanted:
        yield f"+-{reached:.1%} when time was up"
    if sum(map(len, known)) < FEW_SAMPLES:
        yield f"only {sum(map(len, known))} samples"
    medians = [float(np.median(each)) for each in known]
    if max(medians) > (1 + PROCESSES_DISAGREE) * min(medians):
        yield f"processes disagree by {max(medians) / min(medians) - 1:.0%}"
    if name == "mxnet-fused" and STOCK in samples:
        gain = _ratio(samples[STOCK], samples[name])
        yield f"{gain.median:.1f} x {STOCK} ({gain.low:.1f} to {gain.high:.1f})"


def doubts(group: Group, samples: Samples) -> list[str]:
    """Say why the numbers of a group should not be trusted, and what to do about it."""
    return [*_too_many_threads(group), *_shared_cores(group, samples)]


def _too_many_threads(group: Group) -> Iterator[str]:
    cores = machine.available_cores()
    if group.threads > cores:
        yield (
            f"{group.threads} threads on {cores} cores wait for each other, which no ceiling "
            f"accounts for; use --threads {cores} or less"
        )


def _shared_cores(group: Group, samples: Samples) -> Iterator[str]:
    """Look at the arithmetic roof, which needs nothing but its cores, so it should not vary."""
    known = np.concatenate(_known(samples[ARITHMETIC]))
    spread = float(np.percentile(known, 75) / np.min(known)) - 1
    if spread > CORES_SHARED:
        yield (
            f"{group.workload.name} {group.dtype}, {group.threads} threads: arithmetic that stays "
            f"in the first-level cache took {spread:.0%} longer in a quarter of its samples than "
            "in the best, so other work shares the cores; end it, or measure again later"
        )


# --- training -------------------------------------------------------------------------------------


def train_steps(name: str, plan: Plan, tick: Tick = no_tick) -> Iterator[Result]:
    """Time whole training steps of a network, once for each optimizer, in turn.

    Raises:
        UnavailableError: MXNet is not installed.
    """
    if not engine.is_installed():
        engine.load()
    for threads in plan.threads:
        group = Group(plan, replace(model(name), name=f"train:{name}"), "float32", threads)
        yield _train(group, TRAINED[name], tick)


def _train(group: Group, names: Sequence[str], tick: Tick) -> Result:
    plan = group.plan
    steps: Samples = {name: [] for name in names}
    updates: Samples = {name: [] for name in names}
    slices: Samples = {name: [] for name in names}
    for process in range(plan.processes):
        tick(process, plan.processes, group.workload.name)
        losses, found = _train_once(group, names, plan.max_time_s / plan.processes)
        for name in names:
            steps[name].append(np.concatenate([each["step"] for each in found[name]]))
            updates[name].append(np.concatenate([each["update"] for each in found[name]]))
            slices[name].append(np.array([np.median(each["step"]) for each in found[name]]))
    return Result(
        [_trained(group, name, steps, updates, slices, losses) for name in names], {}, [],
    )  # fmt: skip


def _train_once(
    group: Group, names: Sequence[str], budget_s: float
) -> tuple[dict[str, float], dict[str, list[dict[str, Any]]]]:
    """Let a fresh process for each optimizer take samples in turn; return losses and samples."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(group.threads)) for name in names}
        losses = {
            name: worker.ask(**_spec(group, "train") | {"implementations": [name]})["loss"]
            for name, worker in workers.items()
        }
        until = time.monotonic() + budget_s
        while time.monotonic() < until:
            for name, worker in workers.items():
                found[name].append(worker.ask(seconds=SLICE_S / len(names))["samples"])
    return losses, found


def _trained(
    group: Group, name: str, steps: Samples, updates: Samples, slices: Samples,
    losses: dict[str, float],
) -> Measurement:  # fmt: skip
    reference = next(iter(losses))
    time_s = estimate(steps[name])
    share = estimate(updates[name]).median / time_s.median
    right = losses[name] == losses[reference]
    verdict = "the same as" if right else "wrong: not that of"
    note = (
        f"the update is {share:.0%} of it; loss {losses[name]!r}, {verdict} {reference}, "
        "against which the speed-up is"
    )
    row = _timed(_blank(group, name, note, None), steps[name], time_s)
    return Measurement(
        _sped_up(row, slices[reference], slices[name]),
        [each.tolist() for each in steps[name]],
        wrong=not right,
    )
