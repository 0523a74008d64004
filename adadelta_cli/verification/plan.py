"""The plan of a verification: implementations, cases and problems."""

from __future__ import annotations

import operator
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadelta_cli.errors import UnavailableError, UsageError, shortened
from adadelta_cli.implementations import array_backends, frameworks, registry, user_kernel
from adadelta_cli.implementations.array_backends import CPU, Device
from adadelta_cli.implementations.optimizers import ADADELTA
from adadelta_cli.run import config
from adadelta_cli.system import machine
from adadelta_cli.verification import catalogue, fuzz, invariants
from adadelta_cli.verification.recording import Recording
from adadelta_cli.verification.rows import ComparisonRow

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adadelta_cli.implementations.base import Implementation
    from adadelta_cli.verification.cases import Case

    Implementations = tuple[Implementation, ...]
    Absent = tuple[tuple[Implementation, str], ...]

# The reference of each: of a fused step the unfused one on the same arrays, of the array update on
# MXNet or CuPy that on NumPy. So everything is compared with NumPy's, in two steps at most.
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


def is_user_kernel(chosen: Implementation) -> bool:
    """Tell whether an implementation is neither built in nor another framework's."""
    return not chosen.is_built_in and chosen.name not in registry.PEERS


DTYPES = ("float32", "float64", "float16")
TIMEOUT_S = 120.0
SUBNORMALS = ("strict", "flush")
# Of a training on MXNet in the default set, since its small operators take a millisecond a step. On
# NumPy, and with `--full` on both, a training goes to its end.
TRAINING_STEPS = 50
ORACLE_BUDGET, FULL_ORACLE_BUDGET = 150, 500  # see `VerifyPlan.oracle_budget`
DEFAULT = ("numpy-fused", "mxnet", "mxnet-fused", "mxnet-stock")
ON_GPU = ("cupy", "cupy-fused", "mxnet", "mxnet-fused", "mxnet-stock")


@dataclass(frozen=True)
class VerifyPlan:
    """What one `verify` does."""

    implementations: Implementations
    cases: tuple[Case, ...]
    configs: tuple[str, ...] = ()  # the problems to train, as `config.load_config` takes them
    dtypes: tuple[str, ...] = DTYPES  # of each case
    training_dtypes: tuple[str, ...] = ("float32",)
    training_steps: int | None = TRAINING_STEPS  # at which a training on MXNet stops; None: its end
    seed: int = 0  # of all random numbers
    timeout: float | None = TIMEOUT_S  # seconds that one case of one implementation may take
    overrides: tuple[str, ...] = ()  # `key=value` settings for the configs
    # Others than these are covered by the comparison with one of them.
    oracle_checked: Implementations = ()
    oracle_budget: int = ORACLE_BUDGET  # steps of an element in each case, 20 us each
    absent: Absent = ()  # frameworks that are not installed, each with the reason
    named: bool = False  # the user named the cases, so all implementations that can run them do
    # For each implementation that is compared bit for bit (unfused ones only when `named`), and
    # `fuzz.USER_FACTOR` times as many for user kernels.
    fuzz_cases: int = 0
    longest: int = 0  # user kernels get tensors of every length up to this (`fuzz.length_cases`)
    steady: bool = False  # user kernels take one step hundreds of times
    invariant_cases: frozenset[str] = invariants.CASES  # names
    device: Device = CPU  # where the tensors are, for the implementations that compute there
    flush: bool = False  # third-party code may flush subnormals to zero
    fuzz_s: float = fuzz.SECONDS  # limit of fuzzing for one user kernel and dtype
    full: bool = False  # complete trainings, and more single steps against the oracle
    threads: int | None = None  # if the user limited them

    @property
    def is_fuzzed(self) -> bool:
        """Whether there are fuzzed cases of any kind."""
        return bool(self.fuzz_cases or self.longest or self.steady)

    def flushes(self, chosen: Implementation) -> bool:
        """Tell whether an implementation may flush subnormals to zero."""
        return chosen.flushes or (self.flush and not chosen.is_built_in)

    def row(
        self, check: str, case: str, chosen: Implementation, dtype: str, steps: int
    ) -> ComparisonRow:
        """Return what the rows of one check share; tensor, errors and verdict are missing."""
        return ComparisonRow(
            check,
            case,
            implementation=chosen.name,
            reference=reference_of(chosen).name,
            backend=chosen.backend,
            ctx=str(chosen.device),
            dtype=dtype,
            steps=steps,
            seed=self.seed,
            subnormals=SUBNORMALS[self.flushes(chosen)],
            options=self._options(check),
        )

    def _options(self, check: str) -> tuple[str, ...]:
        """Return further options that a command needs to repeat rows of a check."""
        given = {
            "--timeout": None if self.timeout == TIMEOUT_S else self.timeout,
            "--threads": self.threads,
        }
        full = ("--full",) * (self.full and check in {"training", "oracle"})
        return sum(((k, f"{v:g}") for k, v in given.items() if v is not None), full)


@dataclass(frozen=True)
class Request:
    """What the options of `verify` say (docs/cli.md), or the arguments of the Python function.

    If some problems, cases, sizes or a recording are named, only those run.

    Attributes:
        kernel: check this kernel, a function of this process, on cases only; `names`, `peers` and
            `backend` have no meaning then.
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
    kernel: Implementation | None = None
    threads: int | None = None

    @property
    def plan(self) -> VerifyPlan:
        """What is to be done.

        Raises:
            UsageError: something of it is unknown, or does not go together.
            UnavailableError: something of it is not available here, memory included.
        """
        full, dtypes, some = self.full, self.dtypes, self._cases()
        if self.replay:
            some, dtypes = self._replayed()
        for reference in self.configs:
            _check_adadelta(reference)
        implementations, oracle_checked, absent = self._implementations()
        self._check_effective(implementations)
        user_kernel = any(map(is_user_kernel, implementations))
        alone = self._named or bool(self.configs)
        plan = VerifyPlan(
            implementations,
            oracle_checked=oracle_checked,
            absent=absent,
            cases=tuple(some) if self._named or not self.configs else (),
            configs=self.configs or (() if self._named or self.kernel else tuple(config.shipped())),
            named=full or self._named,
            fuzz_cases=fuzz.example_count(self.case_names, full=full, alone=alone),
            longest=fuzz.longest_length(full=full) * (user_kernel and self._wants(fuzz.LENGTHS)),
            steady=user_kernel and self._wants(fuzz.STEADY),
            invariant_cases=frozenset(
                self.case_names or (invariants.FULL if full else invariants.CASES)
            ),
            dtypes=dtypes or DTYPES,
            training_dtypes=dtypes or (DTYPES if full else ("float32",)),
            training_steps=None if full else TRAINING_STEPS,
            seed=self.seed,
            timeout=self.timeout,
            oracle_budget=FULL_ORACLE_BUDGET if full else ORACLE_BUDGET,
            device=self.device,
            flush=self.subnormals == "flush",
            fuzz_s=fuzz.time_limit_s(full=full),
            full=full,
            threads=self.threads,
        )
        check_memory(plan)
        return plan

    def _check_effective(self, implementations: Implementations) -> None:
        """Refuse options without an effect."""
        for each in implementations:
            if each.name in self.names:
                registry.check_backend(each, self.backend)
        builtin = all(each.is_built_in for each in implementations)
        no_cases = bool(self.configs) and not self._named
        useless = {
            "--subnormals flush is for a kernel of your own; add --impl FILE.py:FUNCTION": (
                self.subnormals == "flush" and builtin
            ),
            "--steps counts those of a case, and only trainings are asked for; add --case or "
            "--sizes": bool(self.steps) and no_cases,
            f"--backend {self.backend} chooses built-in implementations, and --peers only others; "
            "add --impl": self.peers and not self.names and self.backend != "auto",
        }
        for problem in (problem for problem, is_so in useless.items() if is_so):
            raise UsageError(f"{problem}, or leave the option out")

    @property
    def _named(self) -> bool:
        return bool(self.case_names or self.sizes or self.replay)

    def _wants(self, name: str) -> bool:
        """Tell whether the cases that `name` stands for are wanted."""
        return name in self.case_names or not (self._named or self.configs)

    def _cases(self) -> list[Case]:
        fixed = tuple(name for name in self.case_names if name not in fuzz.COLLECTIVE)
        if self.case_names and not fixed:
            return []
        return catalogue.select(fixed, full=self.full, steps=self.steps, sizes=self.sizes)

    def _replayed(self) -> tuple[list[Case], tuple[str, ...]]:
        if self.configs or self.case_names or self.sizes or self.full or not self.replay:
            raise UsageError(
                "--replay cannot be combined with CONFIG, --case, --sizes or --full; leave them out"
            )
        recording = Recording.read(self.replay, self.steps)
        return [recording], self.dtypes or (recording.recorded,)

    def _implementations(self) -> tuple[Implementations, Implementations, Absent]:
        """Return those to check, those to compare with the oracle, and the absent frameworks."""
        if self.kernel:
            return (self.kernel,), (), ()
        here, absent = self._frameworks() if self.peers else ((), ())
        if self.peers and not self.names:
            return here, (), absent
        names = (*self.names, *(each.name for each in here))
        chosen = choose(names, self.backend, self.device, self.timeout)
        named = self.names or ("numpy",)
        return chosen, tuple(registry.implementation(n, self.device) for n in named), absent

    def _frameworks(self) -> tuple[Implementations, Absent]:
        """Return the frameworks that are installed, and those that are not, with reasons."""
        _check_on_cpu("--peers", self.device)
        here, absent = frameworks.available(registry.ON_FRAMEWORKS.values())
        if not here and not self.names:
            reasons = "; ".join(f"{each.name}: {reason}" for each, reason in absent)
            raise UnavailableError(f"--peers: no other framework is installed: {reasons}")
        return here, absent


# Copies of a trajectory while it is received and compared. With this, the memory measured at 1e7
# elements, with one and with all implementations, is 0.84 to 1.08 times the estimate.
PASSING_COPIES = 4
STATE_BYTES = {"float32": 3 * 4, "float64": 3 * 8, "float16": 3 * 4 + 2}  # of an element


def needed_bytes(plan: VerifyPlan, case: Case, dtype: str) -> int:
    """Estimate the memory of comparing implementations on a case, which keeps all states."""
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
            f"bytes) and {available / 1e9:.3g} GB ({available} bytes) are available; choose "
            "smaller sizes or cases, fewer steps, or fewer implementations"
        )


def choose(
    names: Sequence[str], backend: str, device: Device, timeout: float | None = None
) -> Implementations:
    """Choose implementations by name, or, without names, all default ones of a backend.

    `timeout` is in seconds, for the import of a user kernel.

    Raises:
        UsageError: a name is not known.
        UnavailableError: the device, the backend or an implementation is not available here.
    """
    given = {name: registry.implementation(name, device) for name in names}
    for each in given.values():
        registry.check_place(each, device)
        if each.backend in array_backends.FRAMEWORKS:
            _check_on_cpu(f"--impl {each.name}", device)
        else:
            registry.check_backend(each, backend)
    on_gpu = device.kind == "gpu"
    # Else a user kernel would wait for MXNet's import.
    needed = not names or backend != "auto" or on_gpu
    chosen_backend = array_backends.library(backend, device) if needed else ""
    if os.environ.get("MXNET_ENGINE_TYPE") == "NaiveEngine" and backend not in {"numpy", "cupy"}:
        raise UnavailableError(
            "MXNET_ENGINE_TYPE is NaiveEngine, with which MXNet makes the main thread flush "
            "subnormals, and so NumPy, the reference; unset it, or use --backend numpy"
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
            f"{what} --ctx {device}: verify runs other frameworks on the CPU only; leave out --ctx"
        )


def _check_available(chosen: Implementation, timeout: float | None) -> None:
    if chosen.backend in array_backends.FRAMEWORKS:  # an import here would disturb other libraries
        lack = frameworks.missing_requirement(chosen)
        if lack:
            raise UnavailableError(f"--impl {chosen.name}: {lack}")
    elif not chosen.is_built_in:
        user_kernel.check_kernel(chosen.name, timeout)
    else:
        array_backends.library(chosen.backend, chosen.device)


def _check_adadelta(reference: str) -> None:
    """Check that a config can be loaded, and trains with AdaDelta.

    Raises:
        UsageError: it cannot, or does not.
    """
    name = config.load_config(reference).optimizer.name
    if name != ADADELTA:
        raise UsageError(
            f"{shortened(reference)} has optimizer.name {name}; verify compares AdaDelta steps: "
            f"name a config with {ADADELTA}"
        )
