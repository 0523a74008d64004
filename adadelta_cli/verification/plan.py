"""What a command line of `verify` asks for: implementations, cases and problems, as a plan."""

from __future__ import annotations

import operator
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadelta_cli.errors import UnavailableError, UsageError
from adadelta_cli.implementations import array_backends, frameworks, registry, user_kernel
from adadelta_cli.implementations.array_backends import CPU, Device
from adadelta_cli.run import config
from adadelta_cli.system import machine
from adadelta_cli.verification import catalogue, fuzz, invariants
from adadelta_cli.verification.recording import Recording

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adadelta_cli.implementations.base import Implementation
    from adadelta_cli.verification.cases import Case

# What each is compared with: fused with unfused on the same arrays, and the array update on MXNet
# with that on NumPy, so that by two steps everything is compared with the NumPy one.
REFERENCES = {
    "numpy": "numpy-fused",
    "numpy-fused": "numpy",
    "mxnet": "numpy",
    "mxnet-fused": "mxnet",
    "mxnet-stock": "mxnet",
    "cupy": "numpy",
    "cupy-fused": "cupy",
}


def reference_of(chosen: Implementation) -> Implementation:
    """Return what an implementation is compared with, on its device."""
    return registry.IMPLEMENTATIONS[REFERENCES.get(chosen.name, "numpy")].on(chosen.device)


DTYPES = ("float32", "float64", "float16")
SUBNORMALS = ("strict", "flush")
# Of a training on MXNet in the default set, for its small operators take a millisecond a step; on
# NumPy, and with `--full` on both, a training goes to its end.
TRAINING_STEPS = 50
ORACLE_BUDGET = 150  # see `VerifyPlan.oracle_budget`; with --full, 500
DEFAULT = ("numpy-fused", "mxnet", "mxnet-fused", "mxnet-stock")
ON_GPU = ("cupy", "cupy-fused", "mxnet", "mxnet-fused", "mxnet-stock")


@dataclass(frozen=True)
class VerifyPlan:
    """What one `verify` does.

    Attributes:
        implementations: which to check.
        cases: the synthetic cases.
        configs: the problems to train, as `config.load` takes them.
        dtypes: each case is put in each of these.
        training_dtypes: each problem is trained in each of these.
        training_steps: a training on MXNet is stopped after so many steps; None: it goes to its
            end, as those on NumPy always do.
        seed: everything random derives from it.
        timeout: seconds that one case of one implementation may take.
        overrides: `key=value` settings for the configs.
        judged: the implementations to put before the oracle; what differs from one of them in no
            bit needs no judgement of its own.
        oracle_budget: steps of an element that the oracle computes of each case; it takes some 20
            microseconds for one.
        absent: frameworks that are not installed here, each with the reason.
        named: the cases were asked for, so each is put to all implementations that can take it.
        drawn: how many cases to draw from the seed for each implementation that is compared to the
            bit, of those that are not fused only when `named`; for a kernel of the user's own,
            `fuzz.OF_USERS` times as many.
        lengths: put tensors of every length to a kernel of the user's own, up to this one; see
            `fuzz.length_cases`.
        steady: take one step of such a kernel hundreds of times over.
        watched: the names of the cases that are put again to see how an implementation behaves.
        device: where the tensors of an implementation lie that computes there.
        flush: third-party code may flush subnormals to zero.
        seconds: how long cases are drawn for one kernel and dtype, at most.
    """

    implementations: tuple[Implementation, ...]
    cases: tuple[Case, ...]
    configs: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = DTYPES
    training_dtypes: tuple[str, ...] = ("float32",)
    training_steps: int | None = TRAINING_STEPS
    seed: int = 0
    timeout: float | None = 120.0
    overrides: tuple[str, ...] = ()
    judged: tuple[Implementation, ...] = ()
    oracle_budget: int = ORACLE_BUDGET
    absent: tuple[tuple[Implementation, str], ...] = ()
    named: bool = False
    drawn: int = 0
    lengths: int = 0
    steady: bool = False
    watched: frozenset[str] = invariants.CASES
    device: Device = CPU
    flush: bool = False
    seconds: float = fuzz.SECONDS

    @property
    def only_trains(self) -> bool:
        """Whether nothing but trainings was asked for."""
        return not (self.cases or self.drawn or self.lengths or self.steady)

    def flushes(self, chosen: Implementation) -> bool:
        """Say whether an implementation may flush subnormals to zero."""
        return self.flush or chosen.flushes


@dataclass(frozen=True)
class Request:
    """What the options of `verify` say; docs/cli.md tells their meaning.

    Naming problems, cases, sizes or a recording leaves out the rest.
    """

    configs: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    case_names: tuple[str, ...] = ()
    full: bool = False
    peers: bool = False
    replay: Path | None = None
    sizes: tuple[int, ...] = ()
    steps: int | None = None
    dtypes: tuple[str, ...] = ()
    device: Device = CPU
    backend: str = "auto"
    seed: int = 0
    timeout: float | None = None
    subnormals: str = "strict"

    @property
    def plan(self) -> VerifyPlan:
        """What is to be done.

        Raises:
            UsageError: something of it is unknown, or goes not together.
            UnavailableError: something of it is not available here.
        """
        named = bool(self.case_names or self.sizes or self.replay)
        some, dtypes = self._cases(), self.dtypes
        if self.replay:
            some, dtypes = self._replayed()
        for reference in self.configs:
            config.load_config(reference)
        here, absent = self._others()
        plan = VerifyPlan(
            implementations=self._implementations(here),
            absent=absent,
            cases=tuple(some) if named or not self.configs else (),
            configs=tuple(self.configs or (() if named else config.shipped())),
            named=self.full or named,
            drawn=fuzz.example_count(
                self.case_names, full=self.full, alone=named or bool(self.configs)
            ),
            lengths=fuzz.longest_length(full=self.full) * self._of_users(fuzz.LENGTHS, named=named),
            steady=self._of_users(fuzz.STEADY, named=named),
            watched=frozenset(
                self.case_names or (invariants.FULL if self.full else invariants.CASES)
            ),
            dtypes=dtypes or DTYPES,
            training_dtypes=dtypes or (DTYPES if self.full else ("float32",)),
            training_steps=None if self.full else TRAINING_STEPS,
            seed=self.seed,
            timeout=self.timeout,
            judged=self._judged(),
            oracle_budget=500 if self.full else ORACLE_BUDGET,
            device=self.device,
            flush=self.subnormals == "flush",
            seconds=fuzz.time_limit_s(full=self.full),
        )
        check_memory(plan)
        return plan

    def _of_users(self, name: str, *, named: bool) -> bool:
        """Tell whether a kernel of the user's own gets cases that only such a kernel gets."""
        asked = name in self.case_names or not (named or self.configs)
        return asked and any(map(registry.is_user_kernel, self.names))

    def _cases(self) -> list[Case]:
        fixed = tuple(name for name in self.case_names if name not in fuzz.COLLECTIVE)
        chosen: list[Case] = catalogue.select(
            fixed, full=self.full, steps=self.steps, sizes=self.sizes
        )
        return chosen if fixed or not self.case_names else []

    def _replayed(self) -> tuple[list[Case], tuple[str, ...]]:
        if self.configs or self.case_names or self.sizes or self.full or not self.replay:
            raise UsageError(
                "--replay goes with no CONFIG, --case, --sizes or --full; leave them out"
            )
        recording = Recording.read(self.replay, self.steps)
        return [recording], self.dtypes or (recording.recorded,)

    def _judged(self) -> tuple[Implementation, ...]:
        names = self.names or (() if self.peers else ("numpy",))
        return tuple(registry.implementation(name, self.device) for name in names)

    def _others(self) -> tuple[tuple[Implementation, ...], tuple[tuple[Implementation, str], ...]]:
        """Return the frameworks that `--peers` finds, and those that it does not, with reasons."""
        if not self.peers:
            return (), ()
        _check_on_cpu("--peers", self.device)
        here, absent = frameworks.available(registry.FRAMEWORKS.values())
        if not here and not self.names:
            reasons = "; ".join(f"{each.name}: {reason}" for each, reason in absent)
            raise UnavailableError(f"--peers: no other framework is here to check: {reasons}")
        return here, absent

    def _implementations(self, here: tuple[Implementation, ...]) -> tuple[Implementation, ...]:
        if self.peers and not self.names:
            return here
        names = (*self.names, *(each.name for each in here))
        return choose(names, self.backend, self.device, self.timeout)


# Copies of a trajectory on the way from the process that computed it, and what is computed of it.
# With this, what was measured at 1e7 elements, of one and of all implementations, is 0.84 to 1.08
# times what is reckoned.
PASSING_COPIES = 4
STATE_BYTES = {"float32": 3 * 4, "float64": 3 * 8, "float16": 3 * 4 + 2}  # of an element


def needed_bytes(plan: VerifyPlan, case: Case, dtype: str) -> int:
    """Reckon what comparing implementations on a case takes: all states of all steps are kept."""
    names = {each.name for one in plan.implementations for each in (one, reference_of(one))}
    trajectory = case.elements * (case.steps + 1) * STATE_BYTES[dtype]
    return trajectory * (len(names) + PASSING_COPIES)


def check_memory(plan: VerifyPlan) -> None:
    """Compare what the largest case needs with what is free, before anything is computed.

    Raises:
        UnavailableError: it does not fit.
    """
    available = machine.available_bytes()
    needs = [(needed_bytes(plan, c, dtype), c, dtype) for dtype in plan.dtypes for c in plan.cases]
    needed, case, dtype = max(needs, key=operator.itemgetter(0), default=(0, None, ""))
    if case and available is not None and needed > available:
        raise UnavailableError(
            f"{case.name} in {dtype} with {case.steps} steps needs {needed / 1e9:.3g} GB ({needed} "
            f"bytes) and {available / 1e9:.3g} GB ({available} bytes) are available; ask for a "
            "smaller --sizes or --case, fewer --steps, or one --impl only"
        )


def choose(
    names: Sequence[str], backend: str, device: Device, timeout: float | None = None
) -> tuple[Implementation, ...]:
    """Choose the implementations: those named, or all that the backend asked for has.

    Args:
        names: of implementations.
        backend: the array library of those that are not named.
        device: where they compute.
        timeout: seconds that the import of a user's kernel may take.

    Raises:
        UsageError: one of them is not known.
        UnavailableError: the device, the backend or an implementation is not available here.
    """
    given = {name: registry.implementation(name, device) for name in names}
    for each in given.values():
        registry.check_place(each, device)
        if each.name in registry.IMPLEMENTATIONS and each.name not in registry.FRAMEWORKS:
            registry.check_backend(each, backend)
        if each.name in registry.FRAMEWORKS:
            _check_on_cpu(f"--impl {each.name}", device)
    on_gpu = device.kind == "gpu"
    # Else a kernel of the user's own would wait for MXNet's import.
    needed = not names or backend != "auto" or on_gpu
    chosen_backend = array_backends.library(backend, device) if needed else ""
    if os.environ.get("MXNET_ENGINE_TYPE") == "NaiveEngine" and backend not in {"numpy", "cupy"}:
        raise UnavailableError(
            "MXNET_ENGINE_TYPE is NaiveEngine, with which MXNet makes this very thread flush "
            "subnormals, and NumPy, the reference, with it; unset it, or use --backend numpy"
        )
    if names:
        for each in given.values():
            _check_available(each, timeout)
        return tuple(given.values())
    default = [registry.implementation(n, device) for n in (ON_GPU if on_gpu else DEFAULT)]
    if backend == "auto" and chosen_backend == "mxnet" and not on_gpu:
        return tuple(default)
    return tuple(each for each in default if each.backend == chosen_backend)


def _check_on_cpu(what: str, device: Device) -> None:
    if device.kind == "gpu":
        raise UsageError(
            f"{what} --ctx {device}: verify checks other frameworks on the CPU; leave out --ctx"
        )


def _check_available(chosen: Implementation, timeout: float | None) -> None:
    if chosen.name in registry.FRAMEWORKS:  # not imported here, where it would disturb others
        lack = frameworks.missing_requirement(chosen)
        if lack:
            raise UnavailableError(f"--impl {chosen.name}: {lack}")
    elif chosen.tolerance:
        user_kernel.check_kernel(chosen.name, timeout)
    else:
        array_backends.library(chosen.backend, chosen.device)
