"""A process that takes steps and times them: `python -m adadelta_cli.bench.worker`, run by `bench`.

It first reports its version in a line of JSON. Then it reads lines of JSON and answers each with
one: a `task` to prepare, or entries to `sample`. It ends when its stdin does, so it never outlives
its leader. The leader may be of another version of this package, so the messages are a contract:
`PROTOCOL` counts its changes.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from adadelta_cli.bench.buffers import TensorSet, cold_copies, held_bytes
from adadelta_cli.bench.device import CpuDevice, bench_device
from adadelta_cli.bench.target import HYPER, BenchTarget, check_correct, describe_exception
from adadelta_cli.bench.trainers import check_distance, trainer
from adadelta_cli.bench.trainings import TRAININGS
from adadelta_cli.errors import of_device
from adadelta_cli.implementations.array_backends import Device
from adadelta_cli.implementations.registry import timeable
from adadelta_cli.system import machine
from adadelta_cli.system.sandbox import leave_if_forked

if TYPE_CHECKING:
    from adadelta_cli.bench.timing_problem import TimingProblem

PROTOCOL = 1
SAMPLE_S = 2e-3  # a sample lasts at least this long: 40,000 times the clock's resolution
SETTLED = 0.97  # warm-up is over when a step takes no less than this share of the best so far
WARM_UP_S, LEAST_WARM_UP = 0.3, 3  # seconds at most, steps at least
UNTIMED_BELOW_S = 50e-3  # a step shorter than this is taken once, untimed, before each sample
# Untimed steps at the begin of this process's turn, while threads wake and cores speed up. Without
# them, the first entry of a turn took 4 % longer.
WAKE_UP_S = 5e-3
Clock = Callable[[Sequence[Callable[[], Any]]], float]


def _warmed_up(timed: Callable[[], float]) -> float:
    """Time steps until they get no faster, twice in a row; return the seconds of the best."""
    start, best, settled = time.monotonic(), math.inf, 0
    for number in itertools.count(1):
        taken = timed()
        settled = settled + 1 if taken > SETTLED * best else 0
        best = min(best, taken)
        late = time.monotonic() - start > WARM_UP_S
        if number >= LEAST_WARM_UP and (late or settled >= 2):
            break
    return best


class TimedEntry:
    """Something that is timed, in samples of enough steps each.

    Args:
        steps: called in turn: one step, or one for each copy of the tensors.
        clock: returns the seconds of a step, the mean of several.
        together: how many steps one call takes.
        settling: steps after which it is known how a step is taken fastest.
        sample_s: how long a sample lasts at least.
        evict: empties the caches before each sample; then a sample is one step on each copy.
        cursor: counts the copies that were taken. All entries that are timed on them share it:
            otherwise one would find in the caches what another has just left there.
    """

    def __init__(
        self,
        steps: Sequence[Callable[[], Any]],
        clock: Clock,
        together: float = 1,
        evict: Callable[[], Any] | None = None,
        cursor: Iterator[int] | None = None,
        *,
        settling: int = 0,
        sample_s: float = SAMPLE_S,
    ) -> None:
        self._steps, self._clock, self._together, self._evict = steps, clock, together, evict
        self._cursor = cursor or itertools.count()
        for step in steps if len(steps) > 1 else ():
            step()  # the first call on each may compile, or query its arrays
        for _ in range(settling):
            self._take()
        cost = _warmed_up(self._take)
        self.loops = len(steps) if evict else max(1, math.ceil(sample_s / cost))
        self._untimed = cost < UNTIMED_BELOW_S

    def wake_up(self) -> None:
        """Take steps, untimed, until threads and cores are awake."""
        start = time.monotonic()
        while time.monotonic() - start < WAKE_UP_S:
            self._take()

    def _chosen(self, count: int) -> list[Callable[[], Any]]:
        places = itertools.islice(self._cursor, count)
        return [self._steps[k % len(self._steps)] for k in places]

    def _take(self) -> float:
        return self._clock(self._chosen(1))

    def sample(self) -> float:
        """Return the seconds of one step, the mean of a sample."""
        if self._evict:
            self._evict()
        elif self._untimed:
            self._take()  # loads the caches, which other entries have used
        return self._clock(self._chosen(self.loops)) / self._together


class TimingTask:
    """Time steps of implementations, and the two roofs, on the tensors of a workload."""

    def __init__(self, spec: dict[str, Any]) -> None:
        shapes, dtype, seed = spec["shapes"], spec["dtype"], spec["seed"]
        size = held_bytes(dtype) * sum(map(math.prod, shapes))
        self._device = Device.parse(spec.get("ctx", "cpu"))
        self._processor = bench_device(self._device)
        copies, other = cold_copies(size, self._processor.cache_bytes) if spec["cold"] else (1, 0)
        self._tensors = TensorSet.allocate(shapes, dtype, seed, copies, self._processor.region)
        self._evict = self._processor.evictor(other) if other else None
        self._cursor = itertools.count()
        self._sample_s = spec.get("sample_s", SAMPLE_S)
        self._variants: dict[str, Callable[[], str]] = {}
        self.problems: dict[str, TimingProblem | None] = {}
        self.entries: dict[str, TimedEntry] = {}
        for name in spec["implementations"]:
            self._add(name)
        if spec["roofs"]:
            for roof in self._processor.roofs(self._tensors, dtype, seed, HYPER):
                self.entries[roof.name] = self._entry(roof.steps, roof.steps_per_call, own=True)
                self._variants[roof.name] = roof.variant

    def _add(self, name: str) -> None:
        try:
            chosen = timeable(name, self._device)
            targets = [BenchTarget.to(chosen, each, self._processor) for each in self._tensors]
        except Exception as error:  # noqa: BLE001 - whatever it raises, it cannot be timed
            self.problems[name] = describe_exception(error)
            return
        self.problems[name] = check_correct(chosen, targets[0])
        if not self.problems[name]:
            own = chosen.fused and chosen.is_built_in
            self.entries[name] = self._entry([each.step for each in targets], own=own)
            if own:
                line = self._tensors[0].line
                self._variants[name] = partial(self._processor.variant, line, chosen.backend)

    def _entry(
        self, steps: Sequence[Callable[[], Any]], together: float = 1, *, own: bool
    ) -> TimedEntry:
        rotated = len(steps) == len(self._tensors)  # the arithmetic roof has data of its own
        shared = (self._evict, self._cursor) if rotated else ()
        settling = self._processor.settling_steps() if own else 0
        how = {"settling": settling, "sample_s": self._sample_s}
        return TimedEntry(steps, self._processor.seconds, together, *shared, **how)

    def ready(self) -> dict[str, Any]:
        """Report the problem of each implementation, empty for those that are timed."""
        faults = {name: str(problem or "") for name, problem in self.problems.items()}
        variants = {n: each() for n, each in self._variants.items() if n in self.entries}
        return {"faults": faults, "entries": list(self.entries), "variants": variants}

    def sample(self, names: Sequence[str]) -> dict[str, list[float]]:
        """Return by entry the seconds of a step, and the seconds that the whole sample took."""
        self.entries[names[0]].wake_up()
        return {name: _spent(self.entries[name].sample) for name in names}


def _spent(sample: Callable[[], float]) -> list[float]:
    start = time.monotonic()
    return [sample(), time.monotonic() - start]


class PeakMemoryTask:
    """Measure the peak of the memory that a step allocates."""

    def __init__(self, spec: dict[str, Any]) -> None:
        device = Device.parse(spec.get("ctx", "cpu"))
        self._processor = bench_device(device)
        self._implementation = timeable(spec["implementations"][0], device)
        self._peaks = [self._peak(shapes, spec) for shapes in spec["workloads"]]

    def _peak(self, shapes: Sequence[Sequence[int]], spec: dict[str, Any]) -> int | None:
        dtype, seed, place = spec["dtype"], spec["seed"], self._processor
        (tensors,) = TensorSet.allocate(shapes, dtype, seed, region=place.region)
        try:
            target = BenchTarget.to(self._implementation, tensors, place)
        except Exception:  # noqa: BLE001 - the task that takes the samples reports it
            return None
        if check_correct(self._implementation, target):
            return None
        target.step()
        gc.collect()
        counted = place.counts(self._implementation.backend)
        return place.peak_extra_bytes(target.step) if counted else None

    def ready(self) -> dict[str, Any]:
        """Return the bytes for each workload; None where they cannot be measured."""
        return {"peak_extra_bytes": self._peaks, "entries": []}


class TrainingTask:
    """Time whole training steps of a network, and their updates alone."""

    def __init__(self, spec: dict[str, Any]) -> None:
        (self._name,) = spec["implementations"]
        self._clock = CpuDevice().seconds
        self._answer: dict[str, Any] = {}
        self._problem: TimingProblem | None = None
        try:
            self._trainer = trainer(spec["network"], self._name, spec["seed"])
        except Exception as error:  # noqa: BLE001 - whatever it raises, it cannot be timed
            self._problem = describe_exception(error)
            return
        self._answer = {"loss": self._trainer.loss, "distance": self._trainer.distance}
        if self._trainer.distance is not None:
            reference = TRAININGS[spec["network"]].optimizers[0]
            self._problem = check_distance(reference, self._trainer.distance)
        settling, sample_s = CpuDevice().settling_steps(), spec.get("sample_s", SAMPLE_S)
        self._step = TimedEntry([self._take], self._clock, settling=settling, sample_s=sample_s)

    def _take(self) -> None:
        self._trainer.backward()
        self._trainer.update()

    def _parts_s(self) -> tuple[float, float]:
        """Return the seconds of an update, and of the rest, means of as many as a sample has."""
        updates, rests = [], []
        for _ in range(self._step.loops):
            rests.append(self._clock([self._finish_backward]))
            updates.append(self._clock([self._trainer.update]))
        return statistics.fmean(updates), statistics.fmean(rests)

    def _finish_backward(self) -> None:
        self._trainer.backward()
        self._trainer.wait()

    def ready(self) -> dict[str, Any]:
        """Return what the training has come to, or its problem."""
        if self._problem:
            return self._answer | {"faults": {self._name: str(self._problem)}, "entries": []}
        variants = {"step": self._trainer.variant()}
        return self._answer | {"entries": ["step", "update", "rest"], "variants": variants}

    def sample(self, names: Sequence[str]) -> dict[str, list[float]]:
        """Return the seconds of a step or a part of it, and those of the whole sample."""
        self._step.wake_up()
        start = time.monotonic()
        step_s, (update_s, rest_s) = self._step.sample(), self._parts_s()
        whole_s = time.monotonic() - start
        found = {"step": step_s, "update": update_s, "rest": rest_s}
        return {name: [found[name], whole_s] for name in names}


TASKS: dict[str, Any] = {"time": TimingTask, "peak": PeakMemoryTask, "train": TrainingTask}


def serve(orders: IO[str], replies: IO[str]) -> None:
    """Answer each line until stdin ends; a GPU that failed is reported, other errors are raised."""
    versions = machine.versions()
    about = {"protocol": PROTOCOL, "path": str(Path(__file__)), "versions": versions}
    _reply(replies, about | {"version": versions.get("adadelta", "not installed")})
    gc.disable()
    task: Any = None
    own = os.getpid()
    for order in map(json.loads, orders):
        try:
            if "task" in order:
                task = None  # frees its memory before the next task allocates
                gc.collect()
                task = TASKS[order["task"]](order)
                answer = task.ready()
            else:
                answer = {"samples": task.sample(order["sample"])}
        except Exception as error:
            broken = of_device(error)
            if not broken:
                raise
            answer = {"broken": str(broken), "status": broken.status}
        finally:
            leave_if_forked(own)
        _reply(replies, answer)


def _reply(replies: IO[str], answer: dict[str, Any]) -> None:
    try:
        replies.write(json.dumps(answer) + "\n")
        replies.flush()
    except BrokenPipeError:  # the leader has ended
        os._exit(0)


def main() -> None:
    """Serve the leader on stdin and stdout; other code reads nothing, and prints to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C, the leader ends this process
    sys.modules["sklearn"] = None  # type: ignore[assignment] # half of MXNet's import, unused here
    orders, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    serve(orders, replies)


if __name__ == "__main__":
    main()
