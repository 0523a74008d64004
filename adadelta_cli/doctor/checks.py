"""Try what the commands need, and find what would disturb a measurement: `doctor`.

Heavy libraries are imported in a sandbox only, so that doctor can report one that is broken.
"""

from __future__ import annotations

import platform
import signal
import sys
import time
from dataclasses import dataclass
from enum import Enum
from functools import partial
from importlib import metadata, util
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from adadelta_cli.doctor.conditions import conditions
from adadelta_cli.doctor.findings import Finding, Level, severity
from adadelta_cli.errors import BrokenError, ExitCode, UnavailableError
from adadelta_cli.system import cpu_load, environment, gpu, machine
from adadelta_cli.system.progress import Tick, no_tick
from adadelta_cli.system.sandbox import (
    HungError,
    ReportedError,
    Sandbox,
    SandboxError,
    describe_error,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from adadelta_cli.system.cpu_load import CpuLoad
    from adadelta_cli.system.machine import Machine

TIMEOUT_S = 300.0  # of one check: compiling a kernel takes half a minute on a busy core


class CheckOutcome(Enum):
    """The outcome of a check."""

    WORKS = "works"
    BROKEN = "broken"
    MISSING = "missing"


@dataclass(frozen=True)
class Check:
    """The result of trying a `Requirement`.

    Attributes:
        name, purpose, required: as of the requirement.
        observed: what it did, or how it failed.
        fix: what to do; empty if it works.
        seconds: duration.
    """

    name: str
    outcome: CheckOutcome
    observed: str
    purpose: str
    fix: str = ""
    required: bool = False
    seconds: float = 0.0

    @property
    def finding(self) -> Finding | None:
        """Return what is wrong; None if it works."""
        if self.outcome is CheckOutcome.WORKS:
            return None
        broken = self.required and self.outcome is CheckOutcome.BROKEN
        level, what = Level.BROKEN if broken else Level.MISSING, f"{self.name}: {self.observed}"
        return Finding(level, what, f"needed for {self.purpose}", self.fix)


@dataclass(frozen=True)
class Examination:
    """The result of `doctor`.

    Attributes:
        activity: the load of other processes.
        steal_share: the share of the CPU time wanted during the checks that the hypervisor gave to
            other machines; None if unknown, or the checks were too short.
        conditions: findings about machine and environment.
    """

    machine: Machine
    activity: CpuLoad
    steal_share: float | None
    checks: tuple[Check, ...]
    conditions: tuple[Finding, ...]

    @property
    def findings(self) -> list[Finding]:
        """Return all findings, those of the checks included, the worst first."""
        of_checks = filter(None, (check.finding for check in self.checks))
        return sorted([*of_checks, *self.conditions], key=severity)

    def of(self, level: Level) -> list[Finding]:
        """Return the findings of a level."""
        return [each for each in self.findings if each.level is level]

    @property
    def exit_code(self) -> ExitCode:
        """Return the command's exit code: 3 if a command cannot work here."""
        return ExitCode.UNAVAILABLE if self.of(Level.BROKEN) else ExitCode.OK


def run_checks(tick: Tick = no_tick) -> Examination:
    """Describe the machine, then try the requirements."""
    environment.prepare()
    here, load = machine.Machine(), cpu_load.sample_load()
    before, checks = cpu_load.cpu_times(), []
    with Sandbox(TIMEOUT_S) as sandbox:
        for done, requirement in enumerate(REQUIREMENTS):
            tick(done, len(REQUIREMENTS), requirement.name)
            checks.append(run_check(requirement, sandbox))
    after = cpu_load.cpu_times()
    steal = after.since(before).steal_share if before and after else None
    return Examination(here, load, steal, tuple(checks), tuple(conditions(here, load, steal)))


@dataclass(frozen=True)
class Requirement:
    """Something that the commands use.

    Attributes:
        purpose: what needs it.
        fix: what to do if it is missing, or fails for an unknown reason.
        attempt: tries it, in a sandbox; returns what it did.
        missing: returns what is not installed; empty if all is.
        group: the sandbox of libraries that disturb others.
        required: it is an error if it is installed and does not work.
    """

    name: str
    purpose: str
    fix: str
    attempt: Callable[[], str | None]
    missing: Callable[[], str] = str
    group: str = ""
    required: bool = False


def run_check(requirement: Requirement, sandbox: Sandbox) -> Check:
    """Try a requirement; a failure is a result, and no exception."""
    start, this = time.monotonic(), requirement
    outcome, observed, fix = _result(this, sandbox)
    observed, seconds = " ".join(observed.split()), time.monotonic() - start
    return Check(this.name, outcome, observed, this.purpose, fix, this.required, seconds)


def _result(requirement: Requirement, sandbox: Sandbox) -> tuple[CheckOutcome, str, str]:
    if missing := requirement.missing():
        return CheckOutcome.MISSING, missing, requirement.fix
    try:
        observed = sandbox.of(requirement.group).call(partial(_attempt, requirement.attempt))
    except HungError:
        return CheckOutcome.BROKEN, f"hung: no result within {TIMEOUT_S:g} s", requirement.fix
    except SandboxError as error:
        fix = FREE_MEMORY if error.exit_code == -signal.SIGKILL else error.fix
        return CheckOutcome.BROKEN, str(error), fix or requirement.fix
    except (BrokenError, UnavailableError) as error:  # a device that failed, or the environment
        return CheckOutcome.BROKEN, str(error), requirement.fix
    return CheckOutcome.WORKS, observed, ""


def _attempt(attempt: Callable[[], str | None]) -> str:
    """Call an attempt, in a sandbox; add the fix to an error that has a known one."""
    try:
        return attempt() or ""
    except Exception as error:
        fix = _known_fix(error)
        if not fix:
            raise
        raise ReportedError(describe_error(error), fix) from error


AFRESH = (
    "install into a fresh environment: python -m venv fresh && fresh/bin/python -m pip install "
    "adadelta; if it fails there too, report it with the output of adadelta doctor --json"
)
FREE_MEMORY = "free some memory: the system ended the check for lack of it"


def _known_fix(error: BaseException) -> str:
    """Return the fix of an error or of its cause; empty if unknown."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"install what is missing ({error.name.partition('.')[0]}), or {AFRESH}"
    if isinstance(error, MemoryError):
        return FREE_MEMORY
    cause = error.__cause__
    return environment.known_fix(str(error)) or (_known_fix(cause) if cause else "")


def _same_bits(name: str, reference: str, ctx: str = "cpu") -> str:
    """Take steps with two implementations, in every dtype, and compare every bit.

    Raises:
        ReportedError: they differ.
    """
    from adadelta_cli.implementations import registry
    from adadelta_cli.implementations.array_backends import Device
    from adadelta_cli.verification.cases import CASES
    from adadelta_cli.verification.execute import step_through
    from adadelta_cli.verification.ulp import Difference

    device = Device.parse(ctx)
    pair = [registry.implementation(each, device) for each in (name, reference)]
    dtypes, cases = ("float32", "float64", "float16"), (CASES["odd"], CASES["length-4097"])
    numbers = 0
    for dtype, case in product(dtypes, cases):
        got, wanted = (step_through(each, case, dtype, 0).tensors for each in pair)
        for tensor, states in wanted.items():
            for state, other in zip(states, got[tensor], strict=True):
                difference = Difference.between(other, state, state)
                numbers += difference.elements
                if difference.mismatches:
                    raise ReportedError(
                        f"{name} differs from {reference} in {difference.mismatches} of "
                        f"{difference.elements} numbers of {tensor}, {dtype}, case {case.name}"
                    )
    return f"{name} equals {reference} in every bit of {numbers:,} numbers"


def _try_kernel() -> str:
    same = _same_bits("numpy-fused", "numpy")
    from adadelta_cli.kernels import pool

    return f"{same}; {pool.threads()} threads"


def _try_configs() -> str:
    """Load the bundled configs and their data, and draw a plot."""
    import io

    import pandas as pd
    from matplotlib.figure import Figure

    from adadelta_cli.run import config, problems

    names = config.shipped()
    for name in names:
        problems.problem(config.load_config(name).problem, 0)
    pd.read_csv(io.StringIO("step,loss\n0,1\n"))
    figure = Figure()
    figure.subplots().plot([0, 1])
    figure.savefig(io.BytesIO(), format="png")
    return f"{', '.join(names)} load; a plot is drawn"


def _try_step(name: str) -> str:
    """Take steps with another framework; whether they are right is for verify."""
    from adadelta_cli.implementations import registry
    from adadelta_cli.verification.cases import CASES
    from adadelta_cli.verification.execute import step_through

    step_through(registry.implementation(name), CASES["odd"], "float32", 0)
    return f"{name} takes a step"


def _try_gpu() -> str:
    """Try what a step on the first GPU needs, one piece after the other, then the step.

    Raises:
        ReportedError: a piece does not work, or bits differ.
    """
    from adadelta_cli.mxnet_bridge import probe

    found = gpu.probe()
    observed = gpu.format_checks((*found, probe.build()))
    if found[-1].fix:
        raise ReportedError(observed, found[-1].fix)
    return f"{_same_bits('cupy-fused', 'numpy', 'gpu')}; {observed}"


def _try_versions() -> str:
    """Compare the installed libraries with what this package requires.

    Raises:
        ReportedError: one is missing, or has another version.
    """
    from packaging import requirements  # comes with matplotlib

    known = map(requirements.Requirement, metadata.requires("adadelta") or ())
    wanted = [each for each in known if not each.marker or each.marker.evaluate({"extra": ""})]
    here = machine.versions(each.name for each in wanted)
    unmet = [
        each
        for each in wanted
        if each.name not in here or not each.specifier.contains(here[each.name], prereleases=True)
    ]
    if unmet:
        found = ", ".join(f"{each.name} {here.get(each.name, 'missing')}" for each in unmet)
        needed = " ".join(f"'{each.name}{each.specifier}'" for each in unmet)
        raise ReportedError(f"{found}; needed: {needed}", f"python -m pip install {needed}")
    return f"{len(wanted)} libraries, all of the required versions"


def _missing_modules(*modules: str) -> str:
    absent = [name for name in modules if util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else ""


def _missing_gpu() -> str:
    if gpu.is_installed():
        return ""
    return gpu.format_checks([gpu.GpuCheck("CuPy", "not installed"), gpu.driver()])


def _missing_metadata() -> str:
    here = machine.versions(["adadelta"])
    return "" if here else "adadelta runs from its sources, and is not installed"


def _missing_compiler() -> str:
    return "" if machine.compiler() else "neither g++ nor clang++ found, nor what CXX names"


def _mxnet_fix() -> str:
    has_wheel = (sys.platform, platform.machine()) == ("linux", "x86_64")
    if has_wheel and sys.version_info < (3, 13):
        return "python -m pip install mxnet==2.0.0b1 numpy==1.26.4"
    return "use --backend numpy; MXNet's wheels are for Linux on x86-64 and Python 3.10 to 3.12"


ALL = "run, verify, bench"
EDITABLE = f"python -m pip install --editable {Path(__file__).parents[2]}"
TORCH, JAX = (f"python -m pip install 'adadelta[{extra}]'" for extra in ("torch", "jax"))
COMPILER = "apt-get install g++, or dnf install gcc-c++, or xcode-select --install; or set CXX"
REQUIREMENTS = (
    Requirement("fused kernel", ALL, AFRESH, _try_kernel, required=True),
    Requirement("configs and plots", ALL, AFRESH, _try_configs, required=True),
    Requirement(
        "MXNet",
        "--backend mxnet, and AdaDelta for gluon.Trainer",
        _mxnet_fix(),
        partial(_same_bits, "mxnet-fused", "mxnet"),
        partial(_missing_modules, "mxnet"),
        required=True,
    ),
    Requirement(
        "requirements",
        "knowing that the installed versions are supported",
        EDITABLE,
        _try_versions,
        _missing_metadata,
    ),
    Requirement(
        "PyTorch",
        "adadelta_cli.torch, convert, --impl torch, torch-fused, torch-foreach, torch-compile",
        TORCH,
        partial(_try_step, "torch"),
        partial(_missing_modules, "torch"),
        "torch",
    ),
    Requirement(
        "C++ compiler", "--impl torch-compile", COMPILER, machine.compiler, _missing_compiler
    ),
    Requirement(
        "JAX and optax",
        "--impl optax",
        JAX,
        partial(_try_step, "optax"),
        partial(_missing_modules, "jax", "optax"),
        "jax",
    ),
    Requirement("GPU", "--ctx gpu", f"{gpu.INSTALL}; {gpu.DRIVER}", _try_gpu, _missing_gpu, "cupy"),
)
