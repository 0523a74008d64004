"""What `bench` times: the choice of implementations, their worker processes, and the memory."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from adadelta_cli.bench.buffers import cold_copies, held_bytes
from adadelta_cli.bench.device import DeviceSurvey, survey
from adadelta_cli.bench.results import Group
from adadelta_cli.bench.timing_problem import Outcome, TimingProblem
from adadelta_cli.bench.worker_pool import WorkerSpec
from adadelta_cli.errors import UnavailableError, UsageError
from adadelta_cli.implementations import array_backends, frameworks, registry, user_kernel
from adadelta_cli.implementations.array_backends import CPU, Device
from adadelta_cli.implementations.registry import IMPLEMENTATIONS, timeable
from adadelta_cli.mxnet_bridge import runtime
from adadelta_cli.update import state_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adadelta_cli.bench.trainings import Training
    from adadelta_cli.bench.workloads import Workload
    from adadelta_cli.implementations.base import Implementation

OLD = "old"  # the side of the workers that time the version that `--against` names


@dataclass(frozen=True)
class BenchPlan:
    """What to time, and how precisely.

    Attributes:
        implementations: what to time, as they are on the device.
        dtypes: float32, float64, float16 (with float32 masters).
        threads: numbers of CPU threads, one after the other.
        caches: `warm`, `cold` or both.
        seed: of the tensors' values and of the order in a round.
        precision: target for half the width of the median's 95 % interval, as a share of it.
        max_time_s: limit for sampling one workload, all processes together.
        processes: how many fresh processes time everything.
        absent: implementations that were asked for and are not available here, with the reason.
        against: another environment's interpreter, whose version is timed in the same rounds.
        trainings: networks whose whole training steps are timed, too.
    """

    workloads: tuple[Workload, ...]
    implementations: tuple[Implementation, ...]
    dtypes: tuple[str, ...] = ("float32",)
    threads: tuple[int, ...] = (1,)
    caches: tuple[str, ...] = ("warm",)
    seed: int = 0
    precision: float = 0.02
    max_time_s: float = 4.0
    processes: int = 6
    absent: tuple[tuple[Implementation, str], ...] = ()
    against: str | None = None
    device: Device = CPU
    busy: int = 0  # other processes that compute while steps are timed
    trainings: tuple[Training, ...] = ()

    @cached_property
    def survey(self) -> DeviceSurvey:
        """Facts about the processor."""
        return survey(self.device)

    @cached_property
    def groups(self) -> list[Group]:
        """What is timed together: each workload with each dtype, number of threads and cache."""
        settings = itertools.product(self.threads, self.workloads, self.dtypes, self.caches)
        how = (self.precision, self.device, self.busy)
        return [
            Group(workload, self.implementations, dtype, threads, cache, *how)
            for threads, workload, dtype, cache in dict.fromkeys(settings)
        ]

    @cached_property
    def workers(self) -> list[WorkerSpec]:
        """The processes of a pass: fused steps share one with the roofs, others have their own."""
        shared: dict[str, list[Implementation]] = {"": []}
        for each in self.implementations:
            shared.setdefault(_process(each), []).append(each)
        specs = [WorkerSpec(tuple(each), roofs=not key) for key, each in shared.items()]
        if not self.against:
            return specs
        # With roofs, though theirs are not used: both versions run beside the same workloads.
        own = [spec for spec in specs if all(map(_has_versions, spec.implementations))]
        return specs + [replace(spec, side=OLD, python=self.against) for spec in own]

    def problem(self, chosen: Implementation, group: Group) -> TimingProblem | None:
        """Return why an implementation does not support a group."""
        if group.dtype not in chosen.dtypes:
            return TimingProblem(Outcome.SKIPPED, f"{chosen.name} has no {group.dtype}")
        if chosen.name == "torch-compile" and self.copies(group)[0] > COMPILED_COPIES:
            reason = "it would be compiled once for each copy of the tensors"
            return TimingProblem(Outcome.SKIPPED, reason)
        return None

    def able(self, group: Group) -> list[Implementation]:
        """Return the implementations that support a group."""
        return [each for each in self.implementations if not self.problem(each, group)]

    def copies(self, group: Group) -> tuple[int, int]:
        """Return the number of copies of the tensors, and other bytes; see `cold_copies`."""
        held = group.workload.elements * held_bytes(group.dtype)
        return cold_copies(held, self.survey.cache_bytes) if group.cache == "cold" else (1, 0)


COMPILED_COPIES = 4  # of cold tensors, at most: torch.compile takes seconds for each


def _has_versions(chosen: Implementation) -> bool:
    """Tell whether each environment has its own: not of a file, and not of a framework."""
    if not chosen.sandbox:
        return True
    return registry.is_user_kernel(chosen.name) and user_kernel.is_module(chosen.name)


def check_against(plan: BenchPlan) -> None:
    """Check that both environments have a version of their own of what is compared.

    Raises:
        UsageError: nothing of it has versions, or both would import the same module.
    """
    if not plan.against:
        return
    compared = [*filter(_has_versions, plan.implementations)]
    if not compared:
        raise UsageError(
            f"--against {plan.against}: no --impl has a version of its own in each environment; "
            "name a kernel that is installed in both as PACKAGE.MODULE:FUNCTION (docs/ci.md has "
            "the commands), or a built-in step"
        )
    for name in (each.name for each in compared if each.sandbox):
        here = user_kernel.module_here(name)
        if here:
            raise UsageError(
                f"--against {plan.against} --impl {name}: both environments would import "
                f"{here}, which is in the current folder; run the command in another folder"
            )


def _process(chosen: Implementation) -> str:
    """Name the process in which an implementation is timed; empty for that of the roofs.

    MXNet's own operators have OpenMP threads beside those of the kernels. Where both together are
    more than the cores, libgomp puts idle ones to sleep at once (libgomp manual, GOMP_SPINCOUNT),
    and waking them costs each kernel some 70 us.
    """
    if chosen.sandbox:
        return chosen.name
    return "operators of MXNet" if chosen.backend == "mxnet" and not chosen.fused else ""


def choose_implementations(
    names: Sequence[str], backend: str, device: Device, *, fused_only: bool = False
) -> tuple[Implementation, ...]:
    """Return the implementations to time: those named, or all built-in ones available here.

    Raises:
        UsageError: a name is unknown, or belongs to another backend.
        UnavailableError: the device or the library is not available here.
    """
    chosen = tuple(_choose(name, backend, device) for name in dict.fromkeys(names))
    backends = _default_backends(backend, device)
    chosen = chosen or tuple(
        each.on(device)
        for each in IMPLEMENTATIONS.values()
        if each.backend in backends and (each.fused or not fused_only)
    )
    if any(each.backend == "mxnet" for each in chosen):
        runtime.is_installed() or runtime.load_mxnet()  # raises, and names what is missing
    return chosen


def _default_backends(backend: str, device: Device) -> tuple[str, ...]:
    """Name the array libraries whose steps are timed by default."""
    if device.kind == "gpu" or backend == "cupy":
        return (array_backends.library(backend, device),)
    here = ("mxnet", "numpy") if runtime.is_installed() else ("numpy",)
    return here if backend == "auto" else (backend,)


def _choose(name: str, backend: str, device: Device) -> Implementation:
    found = timeable(name, device)
    registry.check_place(found, device)
    registry.check_backend(found, backend)
    if device.kind == "gpu" and found.backend in array_backends.BACKENDS:
        array_backends.library(found.backend, device)
    if found.backend in array_backends.FRAMEWORKS:
        missing = frameworks.missing_requirement(found)
        if missing:
            raise UnavailableError(f"--impl {name}: {missing}")
    elif found.sandbox:
        user_kernel.check_kernel(name)
    return found


def described(plan: BenchPlan) -> list[str]:
    """Say in lines what is timed, on what, and what is not available."""
    names = ", ".join(each.name for each in plan.implementations)
    workloads = ", ".join(each.name for each in plan.workloads)
    single = f"timed: {names} on {workloads}, in {len(plan.workers)} processes at a time"
    absent = [f"not timed: {each.name}: {reason}" for each, reason in plan.absent]
    trained = [line for training in plan.trainings for line in _described_training(training)]
    return [single] * bool(plan.workloads) + absent + trained


def _described_training(training: Training) -> list[str]:
    absent = training.absent()
    names = ", ".join(name for name in training.optimizers if name not in absent)
    lines = [f"not timed: {name}: {reason}" for name, reason in absent.items()]
    return [f"timed: training steps of {training.name} with {names}, a process each", *lines]


TEMPORARIES = 7  # arrays of the states' dtype that an unfused step holds at its peak; measured


def needed_bytes(plan: BenchPlan, group: Group) -> int:
    """Count the bytes that timing a group allocates, in all concurrent processes."""
    held = group.workload.elements * held_bytes(group.dtype)
    copies, ballast = plan.copies(group)
    state = group.workload.elements * np.dtype(state_dtype(group.dtype)).itemsize
    targets = state * copies * (plan.device.kind != "cpu")  # of the device copy
    return sum(
        held * copies * (1 + any(each.backend == "jax" for each in spec.implementations))  # copies
        + ballast
        + targets * spec.roofs
        + TEMPORARIES * state * any(not each.fused for each in spec.implementations)
        for spec in plan.workers
    )


def largest_group(plan: BenchPlan) -> tuple[int, Group]:
    """Find the group that needs the most memory; return the bytes, and the group."""
    return max(((needed_bytes(plan, each), each) for each in plan.groups), key=lambda pair: pair[0])


def check_memory(plan: BenchPlan) -> None:
    """Compare what the largest group needs with free memory, before anything is allocated.

    Raises:
        UnavailableError: it does not fit.
    """
    if not plan.groups:
        return
    needed, largest = largest_group(plan)
    available = plan.survey.available_bytes
    if available is not None and needed > available:
        raise UnavailableError(
            f"{largest.workload.name} in {largest.dtype} needs {needed / 1e9:.1f} GB "
            f"({needed} bytes) and {available / 1e9:.1f} GB ({available} bytes) are available; "
            "ask for a smaller --sizes, or for fused steps only (--impl "
            f"{'numpy' if plan.device.kind == 'cpu' else 'cupy'}-fused), which need no temporary "
            "arrays"
        )
