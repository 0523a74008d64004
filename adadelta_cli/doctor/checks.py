"""What works here, what is missing, and what would disturb a measurement: `doctor`.

Nothing heavy is imported, so that it can tell of libraries that cannot be. What may crash is tried
in a sandbox.
"""

from __future__ import annotations

import platform
import re
import sys
import time
from dataclasses import dataclass
from enum import Enum
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING

from adadelta_cli.doctor.conditions import conditions
from adadelta_cli.doctor.findings import Finding, Level, severity
from adadelta_cli.errors import ExitCode
from adadelta_cli.progress import Tick, no_tick
from adadelta_cli.system import cpu_load, gpu, machine
from adadelta_cli.system.sandbox import ReportedError as Fault
from adadelta_cli.system.sandbox import Sandbox, SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable

    from adadelta_cli.system.cpu_load import CpuLoad
    from adadelta_cli.system.machine import Machine

TIMEOUT_S = 300.0  # of one check: a kernel that is compiled anew takes half a minute on a busy core


class CheckOutcome(Enum):
    """What came of a check."""

    WORKS = "works"
    BROKEN = "broken"
    MISSING = "missing"


@dataclass(frozen=True)
class Check:
    """What came of trying a piece.

    Attributes:
        name: of the piece.
        outcome: whether it works.
        observed: what it did, or how it failed.
        purpose: what needs it.
        fix: what to do where it does not work.
        required: the commands need it.
        seconds: how long it took.
    """

    name: str
    outcome: CheckOutcome
    observed: str
    purpose: str
    fix: str = ""
    required: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Examination:
    """All that `doctor` has to say.

    Attributes:
        machine: what it is.
        activity: what others do on it.
        steal_share: how much of the time in which the checks wanted a core the hypervisor gave to
            other machines; None where the system does not tell, or the checks took too little.
        checks: what was tried.
        conditions: what the machine and its environment were found to be.
    """

    machine: Machine
    activity: CpuLoad
    steal_share: float | None
    checks: tuple[Check, ...]
    conditions: tuple[Finding, ...]

    @property
    def findings(self) -> list[Finding]:
        """All findings, those of the checks too, the worst first."""
        found = [*filter(None, map(_finding, self.checks)), *self.conditions]
        return sorted(found, key=severity)

    def of(self, level: Level) -> list[Finding]:
        """Return the findings of a level."""
        return [each for each in self.findings if each.level is level]

    @property
    def exit_code(self) -> ExitCode:
        """Say with what the command ends: 3 when a command of this tool cannot do its work."""
        return ExitCode.UNAVAILABLE if self.of(Level.BROKEN) else ExitCode.OK


def run_checks(tick: Tick = no_tick) -> Examination:
    """Look at the machine, then try the pieces.

    Args:
        tick: told how many pieces are tried, of how many, and which is next.
    """
    here, observed = machine.inspect_machine(), cpu_load.sample_load()
    before, checks = cpu_load.cpu_times(), []
    with Sandbox(TIMEOUT_S) as sandbox:
        for done, piece in enumerate(REQUIREMENTS):
            tick(done, len(REQUIREMENTS), piece.name)
            checks.append(run_check(piece, sandbox))
    after = cpu_load.cpu_times()
    steal = after.since(before).steal_share if before and after else None
    return Examination(
        here, observed, steal, tuple(checks), tuple(conditions(here, observed, steal))
    )


# --- the pieces, each tried in a sandbox ----------------------------------------------------------


def _same_bits(name: str, reference: str, ctx: str = "cpu") -> str:
    """Take steps with two implementations, in every dtype, and compare every bit.

    Raises:
        Fault: they differ.
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
    for dtype in dtypes:
        for case in cases:
            got, wanted = (step_through(each, case, dtype, 0).tensors for each in pair)
            for tensor, states in wanted.items():
                for state, other in zip(states, got[tensor], strict=True):
                    difference = Difference.between(other, state, state)
                    numbers += difference.elements
                    if difference.mismatches:
                        raise Fault(
                            f"{name} differs from {reference} in {difference.mismatches} of "
                            f"{difference.elements} numbers of {tensor}, {dtype}, case {case.name}"
                        )
    return f"{name} equals {reference} in every bit of {numbers:,} numbers"


def _try_kernel() -> str:
    same = _same_bits("numpy-fused", "numpy")
    from numba import get_num_threads, threading_layer

    return f"{same}; {get_num_threads()} threads of {threading_layer()}"


def _try_mxnet() -> str:
    return _same_bits("mxnet-fused", "mxnet")


def _try_configs() -> str:
    """Read what ships, load its data, and draw."""
    import io

    import hypothesis  # noqa: F401 - draws verify's cases
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
    return f"{', '.join(names)} load; a picture is drawn"


def _try_step(name: str) -> str:
    """Let another framework take its steps; whether they are right is for verify."""
    from adadelta_cli.implementations import registry
    from adadelta_cli.verification.cases import CASES
    from adadelta_cli.verification.execute import step_through

    step_through(registry.implementation(name), CASES["odd"], "float32", 0)
    return f"{name} takes a step"


def _try_torch() -> str:
    return _try_step("torch")


def _try_optax() -> str:
    return _try_step("optax")


def _try_compiler() -> str:
    return machine.compiler() or ""


def _try_gpu() -> str:
    """Try what a step on the first GPU needs, piece by piece, then the step.

    Raises:
        Fault: a piece does not work, or bits differ.
    """
    from adadelta_cli.mxnet_bridge import probe

    found = gpu.probe()
    told = gpu.format_checks((*found, probe.build()))
    if found[-1].fix:
        raise Fault(told + FIXING + found[-1].fix)
    return f"{_same_bits('cupy-fused', 'numpy', 'gpu')}; {told}"


def _lack_of_gpu() -> str:
    if gpu.is_installed():
        return ""
    return gpu.format_checks([gpu.GpuCheck("CuPy", "not installed"), gpu.driver()])


def _try_requirements() -> str:
    """Compare what this package asks for with what is installed.

    Raises:
        Fault: something is missing, or of another version.
    """
    from packaging.requirements import Requirement  # comes with matplotlib

    known = list(map(Requirement, metadata.requires("adadelta") or ()))
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
        raise Fault(f"{found}; needed: {needed}")
    return f"{len(wanted)} libraries, each of a version that is allowed"


def _lack_of_nothing() -> str:
    return ""


def _lack(*modules: str) -> Callable[[], str]:
    def lack() -> str:
        absent = [name for name in modules if util.find_spec(name) is None]
        return f"{' and '.join(absent)} not installed" if absent else ""

    return lack


@dataclass(frozen=True)
class Requirement:
    """Something that the commands use.

    Attributes:
        name: as it is shown.
        purpose: what needs it.
        fix: what to do where it is missing, or does not work for a reason that is not known.
        attempt: tries it, in a sandbox, and says what it did.
        lack: says what is not here; empty where nothing is.
        group: the sandbox of libraries that disturb others.
        required: where it is here, it has to work.
    """

    name: str
    purpose: str
    fix: str
    attempt: Callable[[], str]
    lack: Callable[[], str] = _lack_of_nothing
    group: str = ""
    required: bool = False


def _lack_of_metadata() -> str:
    try:
        metadata.distribution("adadelta")
    except metadata.PackageNotFoundError:
        return "adadelta runs from its sources, and is not installed"
    return ""


def _lack_of_compiler() -> str:
    return "" if machine.compiler() else "neither g++ nor clang++ found, nor what CXX names"


def _mxnet_fix() -> str:
    has_wheel = (sys.platform, platform.machine()) == ("linux", "x86_64")
    if has_wheel and sys.version_info < (3, 13):
        return "python -m pip install mxnet==2.0.0b1 numpy==1.26.4"
    return "use --backend numpy; MXNet's wheels are for Linux on x86-64 and Python 3.10 to 3.12"


AFRESH = (
    "install into a fresh environment: python -m venv fresh && fresh/bin/python -m pip install "
    "adadelta; if it fails there too, report it with what adadelta doctor --json prints"
)
REQUIREMENTS = (
    Requirement("fused kernel", "run, verify, bench", AFRESH, _try_kernel, required=True),
    Requirement("configs and plots", "run, verify, bench", AFRESH, _try_configs, required=True),
    Requirement(
        "MXNet",
        "--backend mxnet, and AdaDelta for gluon.Trainer",
        _mxnet_fix(),
        _try_mxnet,
        _lack("mxnet"),
        required=True,
    ),
    Requirement(
        "requirements",
        "knowing which versions of libraries it goes with",
        f"python -m pip install --editable {Path(__file__).parents[2]}",
        _try_requirements,
        _lack_of_metadata,
    ),
    Requirement(
        "PyTorch",
        "--impl torch, torch-foreach, torch-compile",
        "python -m pip install 'adadelta[torch]'",
        _try_torch,
        _lack("torch"),
        "torch",
    ),
    Requirement(
        "C++ compiler",
        "--impl torch-compile",
        "apt-get install g++, or dnf install gcc-c++, or xcode-select --install; or set CXX",
        _try_compiler,
        _lack_of_compiler,
    ),
    Requirement(
        "JAX and optax",
        "--impl optax",
        "python -m pip install 'adadelta[jax]'",
        _try_optax,
        _lack("jax", "optax"),
        "jax",
    ),
    Requirement("GPU", "--ctx gpu", f"{gpu.INSTALL}; {gpu.DRIVER}", _try_gpu, _lack_of_gpu, "cupy"),
)

FIXING = "; to fix it: "  # in a fault: before what fixes it, where what was tried knows that
# Failures whose cause is known, and what fixes them.
REMEDIES = {
    r"no locator available": "name a folder that can be written for the compiled kernels: "
    "export NUMBA_CACHE_DIR=/tmp/numba",
    r"needed: ('.*)": r"python -m pip install \1",
    r"libgomp\.so\.1": "apt-get install libgomp1, or dnf install libgomp",
    r"(?i)threading layer": "unset NUMBA_THREADING_LAYER; apt-get install libgomp1",
    r"is not usable in pure-python": "unset NUMBA_DISABLE_JIT",
    r"No module named '(\w+)": r"install what is missing (\1), or the whole of it: " + AFRESH,
    r"Killed|SIGKILL|MemoryError": "free some memory: the system ended the check for want of it",
}


def run_check(piece: Requirement, sandbox: Sandbox) -> Check:
    """Try a piece; whatever it does, this returns."""
    outcome, observed, fix, start = CheckOutcome.MISSING, piece.lack(), piece.fix, time.monotonic()
    if not observed:
        try:
            outcome, observed, fix = (
                CheckOutcome.WORKS,
                sandbox.of(piece.group).call(piece.attempt),
                "",
            )
        except SandboxError as error:
            told = " ".join(str(error).removesuffix(" (--timeout)").split())
            observed, _, known = told.partition(FIXING)
            outcome, fix = CheckOutcome.BROKEN, known or _remedy(told) or piece.fix
    return Check(
        piece.name, outcome, observed, piece.purpose, fix, piece.required, time.monotonic() - start
    )


def _remedy(told: str) -> str:
    matches = ((re.search(pattern, told), fix) for pattern, fix in REMEDIES.items())
    return next((match.expand(fix) for match, fix in matches if match), "")


def _finding(check: Check) -> Finding | None:
    if check.outcome is CheckOutcome.WORKS:
        return None
    broken = check.required and check.outcome is CheckOutcome.BROKEN
    level = Level.BROKEN if broken else Level.MISSING
    return Finding(
        level, f"{check.name}: {check.observed}", f"needed for {check.purpose}", check.fix
    )
