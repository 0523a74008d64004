"""What works here, what is missing, and what would disturb a measurement: `doctor`.

Nothing heavy is imported, so that it can tell of libraries that cannot be. What may crash is tried
in a sandbox.
"""

from __future__ import annotations

import math
import platform
import re
import sys
import time
from dataclasses import dataclass
from enum import Enum
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING

from adadelta_cli.errors import ExitCode
from adadelta_cli.progress import Tick, no_tick
from adadelta_cli.system import cuda as gpu
from adadelta_cli.system import info as machine
from adadelta_cli.system import load as activity
from adadelta_cli.system.sandbox import Finding as Fault
from adadelta_cli.system.sandbox import Sandbox, SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from adadelta_cli.system.info import Machine
    from adadelta_cli.system.load import Activity

TIMEOUT_S = 300.0  # of one check: a kernel that is compiled anew takes half a minute on a busy core


class Level(Enum):
    """How bad a finding is, the worst first."""

    BROKEN = "broken"  # a command of this tool does not do its work
    DISTURBS = "disturbs"  # a measurement here tells less, or something else
    MISSING = "missing"  # something optional
    NOTE = "note"  # to know when reading a measurement


@dataclass(frozen=True)
class Finding:
    """Something to know, and what to do about it.

    Attributes:
        level: how bad it is.
        what: what was found, with the number that was measured.
        why: why it matters.
        mend: what to do.
    """

    level: Level
    what: str
    why: str
    mend: str


def _badness(finding: Finding) -> int:
    return list(Level).index(finding.level)


class Outcome(Enum):
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
        seen: what it did, or how it failed.
        purpose: what needs it.
        mend: what to do where it does not work.
        required: the commands need it.
        seconds: how long it took.
    """

    name: str
    outcome: Outcome
    seen: str
    purpose: str
    mend: str = ""
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
    activity: Activity
    steal_share: float | None
    checks: tuple[Check, ...]
    conditions: tuple[Finding, ...]

    @property
    def findings(self) -> list[Finding]:
        """All findings, those of the checks too, the worst first."""
        found = [*filter(None, map(_finding, self.checks)), *self.conditions]
        return sorted(found, key=_badness)

    def of(self, level: Level) -> list[Finding]:
        """Return the findings of a level."""
        return [each for each in self.findings if each.level is level]

    @property
    def exit_code(self) -> ExitCode:
        """Say with what the command ends: 3 when a command of this tool cannot do its work."""
        return ExitCode.UNAVAILABLE if self.of(Level.BROKEN) else ExitCode.OK


def examine(tick: Tick = no_tick) -> Examination:
    """Look at the machine, then try the pieces.

    Args:
        tick: told how many pieces are tried, of how many, and which is next.
    """
    here, seen = machine.examine(), activity.observe()
    before, checks = activity.cpu_times(), []
    with Sandbox(TIMEOUT_S) as sandbox:
        for done, piece in enumerate(PIECES):
            tick(done, len(PIECES), piece.name)
            checks.append(check(piece, sandbox))
    after = activity.cpu_times()
    steal = after.since(before).steal_share if before and after else None
    return Examination(here, seen, steal, tuple(checks), tuple(conditions(here, seen, steal)))


# --- the pieces, each tried in a sandbox ----------------------------------------------------------


def _same_bits(name: str, reference: str, ctx: str = "cpu") -> str:
    """Take steps with two implementations, in every dtype, and compare every bit.

    Raises:
        Fault: they differ.
    """
    from adadelta_cli.verification.cases import CASES
    from adadelta_cli.verification.execute import step_through
    from adadelta_cli.verification.ulp import Difference

    dtypes, cases = ("float32", "float64", "float16"), (CASES["odd"], CASES["length-4097"])
    numbers = 0
    for dtype in dtypes:
        for case in cases:
            got, wanted = (
                step_through(each, case, dtype, 0, None, ctx).tensors for each in (name, reference)
            )
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
        problems.problem(config.load(name).problem, 0)
    pd.read_csv(io.StringIO("step,loss\n0,1\n"))
    figure = Figure()
    figure.subplots().plot([0, 1])
    figure.savefig(io.BytesIO(), format="png")
    return f"{', '.join(names)} load; a picture is drawn"


def _try_step(name: str) -> str:
    """Let another framework take its steps; whether they are right is for verify."""
    from adadelta_cli.verification.cases import CASES
    from adadelta_cli.verification.execute import step_through

    step_through(name, CASES["odd"], "float32", 0)
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

    found = gpu.examine()
    told = gpu.tell((*found, probe.build()))
    if found[-1].mend:
        raise Fault(told + MENDING + found[-1].mend)
    return f"{_same_bits('cupy-fused', 'numpy', 'gpu')}; {told}"


def _lack_of_gpu() -> str:
    if gpu.is_installed():
        return ""
    return gpu.tell([gpu.Finding("CuPy", "not installed"), gpu.driver()])


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
class Piece:
    """Something that the commands use.

    Attributes:
        name: as it is shown.
        purpose: what needs it.
        mend: what to do where it is missing, or does not work for a reason that is not known.
        attempt: tries it, in a sandbox, and says what it did.
        lack: says what is not here; empty where nothing is.
        group: the sandbox of libraries that disturb others.
        required: where it is here, it has to work.
    """

    name: str
    purpose: str
    mend: str
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


def _mend_of_mxnet() -> str:
    has_wheel = (sys.platform, platform.machine()) == ("linux", "x86_64")
    if has_wheel and sys.version_info < (3, 13):
        return "python -m pip install mxnet==2.0.0b1 numpy==1.26.4"
    return "use --backend numpy; MXNet's wheels are for Linux on x86-64 and Python 3.10 to 3.12"


AFRESH = (
    "install into a fresh environment: python -m venv fresh && fresh/bin/python -m pip install "
    "adadelta; if it fails there too, report it with what adadelta doctor --json prints"
)
PIECES = (
    Piece("fused kernel", "run, verify, bench", AFRESH, _try_kernel, required=True),
    Piece("configs and plots", "run, verify, bench", AFRESH, _try_configs, required=True),
    Piece(
        "MXNet", "--backend mxnet, and AdaDelta for gluon.Trainer", _mend_of_mxnet(), _try_mxnet,
        _lack("mxnet"), required=True,
    ),
    Piece(
        "requirements", "knowing which versions of libraries it goes with",
        f"python -m pip install --editable {Path(__file__).parents[2]}", _try_requirements,
        _lack_of_metadata,
    ),
    Piece(
        "PyTorch", "--impl torch, torch-foreach, torch-compile",
        "python -m pip install 'adadelta[torch]'", _try_torch, _lack("torch"), "torch",
    ),
    Piece(
        "C++ compiler", "--impl torch-compile",
        "apt-get install g++, or dnf install gcc-c++, or xcode-select --install; or set CXX",
        _try_compiler, _lack_of_compiler,
    ),
    Piece(
        "JAX and optax", "--impl optax", "python -m pip install 'adadelta[jax]'", _try_optax,
        _lack("jax", "optax"), "jax",
    ),
    Piece("GPU", "--ctx gpu", f"{gpu.INSTALL}; {gpu.DRIVER}", _try_gpu, _lack_of_gpu, "cupy"),
)  # fmt: skip

MENDING = "; to mend it: "  # in a fault: before what mends it, where what was tried knows that
# Failures whose cause is known, and what mends them.
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


def check(piece: Piece, sandbox: Sandbox) -> Check:
    """Try a piece; whatever it does, this returns."""
    outcome, seen, mend, start = Outcome.MISSING, piece.lack(), piece.mend, time.monotonic()
    if not seen:
        try:
            outcome, seen, mend = Outcome.WORKS, sandbox.of(piece.group).call(piece.attempt), ""
        except SandboxError as error:
            told = " ".join(str(error).removesuffix(" (--timeout)").split())
            seen, _, known = told.partition(MENDING)
            outcome, mend = Outcome.BROKEN, known or _remedy(told) or piece.mend
    return Check(
        piece.name, outcome, seen, piece.purpose, mend, piece.required, time.monotonic() - start
    )


def _remedy(told: str) -> str:
    matches = ((re.search(pattern, told), mend) for pattern, mend in REMEDIES.items())
    return next((match.expand(mend) for match, mend in matches if match), "")


def _finding(check: Check) -> Finding | None:
    if check.outcome is Outcome.WORKS:
        return None
    broken = check.required and check.outcome is Outcome.BROKEN
    level = Level.BROKEN if broken else Level.MISSING
    return Finding(level, f"{check.name}: {check.seen}", f"needed for {check.purpose}", check.mend)


# --- what disturbs a measurement ------------------------------------------------------------------

BUSY_CORES = 0.1  # below it: the system's own housekeeping
STEAL_SHARE = 0.01
SWAP_BYTES = 64 * 2**20  # less is left there by long-lived processes that nobody misses


def conditions(here: Machine, seen: Activity, steal_share: float | None) -> list[Finding]:
    """Say what about a machine and its environment will disturb a measurement, the worst first.

    Args:
        here: the machine.
        seen: what others do on it.
        steal_share: how much of the processor time that was wanted the hypervisor gave to others.
    """
    found = [*_busy(here, seen), *_stolen(steal_share)]
    found += [each for condition in CONDITIONS for each in condition(here)]
    return sorted(found, key=_badness)


def _busy(here: Machine, seen: Activity) -> Iterator[Finding]:
    busy = here.load_average if seen.busy_cores is None else seen.busy_cores
    if busy is None or busy < BUSY_CORES:
        return
    who = ", ".join(f"{p.name} (pid {p.pid}) {p.cores:.1f}" for p in seen.busiest)
    when = "over the last minute" if seen.busy_cores is None else "before this began its checks"
    yield Finding(
        Level.DISTURBS,
        f"{busy:.1f} of {here.cores_available} cores were busy {when}"
        + (
            f": {who}"
            if who
            else ", by processes that came and went, or that cannot be seen from here"
        ),
        "what shares cores and memory bandwidth with a step slows it down, and unevenly",
        "end it, or measure when it is done",
    )


def _stolen(share: float | None) -> Iterator[Finding]:
    if share is not None and share > STEAL_SHARE:
        yield Finding(
            Level.DISTURBS,
            f"the hypervisor gave {share:.1%} of the processor time that these checks wanted to "
            "other machines",
            "a step is interrupted in the middle, which no process here can see",
            "measure at another hour, or on a machine that nobody shares",
        )


def _virtual(here: Machine) -> Iterator[Finding]:
    if here.hypervisor:
        yield Finding(
            Level.NOTE,
            f"this is a virtual machine (hypervisor: {here.hypervisor})",
            "others on the same host take memory bandwidth and cache, which no counter here shows",
            "compare two versions with bench --against, which times them in turn; for other "
            "numbers, measure with --processes 6, again at another hour, and believe what agrees",
        )


def _quota(here: Machine) -> Iterator[Finding]:
    quota, cores = here.cpu_quota_cores, here.cores_available
    if quota is not None and quota < cores:
        yield Finding(
            Level.DISTURBS,
            f"the control group allows the time of {quota:g} cores, on {cores} cores",
            "when it is used up, all threads stand still for the rest of each tenth of a second",
            f"--threads {max(1, math.floor(quota))}; or lift it: docker run --cpus={cores}",
        )


def _threads(here: Machine) -> Iterator[Finding]:
    cores = here.cores_available
    for name in machine.THREAD_VARIABLES:
        count = here.environment.get(name, "").split(",")[0]
        if not count.isdigit() or int(count) == cores:
            continue
        many = int(count) > cores
        yield Finding(
            Level.DISTURBS if many else Level.NOTE,
            f"{name} is {count}, and there are {cores} cores",
            "threads wait for each other's cores" if many else "run and verify leave cores unused",
            f"unset {name}, or --threads {cores}; bench sets it by itself",
        )


def _multithreading(here: Machine) -> Iterator[Finding]:
    cores, physical = here.cores_available, here.cores_available_physical
    if physical is not None and physical < cores:
        yield Finding(
            Level.NOTE,
            f"the {cores} cores are {physical} physical ones, each with several threads",
            "threads of one core share its first caches, and its bandwidth",
            f"see which is faster: adadelta bench --threads {physical},{cores}",
        )


def _governor(here: Machine) -> Iterator[Finding]:
    if here.governor not in {None, "performance"}:
        yield Finding(
            Level.DISTURBS,
            f"the cores' frequency is governed by {here.governor}",
            "cores slow down between samples, and take a while to come back",
            "sudo cpupower frequency-set --governor performance",
        )


def _turbo(here: Machine) -> Iterator[Finding]:
    if here.turbo:
        yield Finding(
            Level.NOTE,
            "turbo is on",
            "the frequency depends on heat, and on how many cores are busy",
            "none needed for shares of the ceiling, which is timed in turn with the step; for "
            "seconds, turn it off in the firmware",
        )


def _numa(here: Machine) -> Iterator[Finding]:
    if here.numa_nodes is not None and here.numa_nodes > 1:
        yield Finding(
            Level.DISTURBS,
            f"the cores lie on {here.numa_nodes} NUMA nodes",
            "how fast a page is depends on the node that first touched it, by chance",
            "numactl --cpunodebind=0 --membind=0 adadelta bench",
        )


def _swap(here: Machine) -> Iterator[Finding]:
    if (here.swap_used_bytes or 0) > SWAP_BYTES:
        yield Finding(
            Level.DISTURBS,
            f"{(here.swap_used_bytes or 0) / 1e9:.1f} GB lie in swap",
            "memory has run short; what is touched there is first read from the disk",
            "end what takes the memory, then: sudo swapoff -a && sudo swapon -a",
        )


def _huge_pages(here: Machine) -> Iterator[Finding]:
    if "[never]" in here.huge_pages:
        yield Finding(
            Level.DISTURBS,
            "transparent huge pages are off",
            "large arrays lie in pages of 4 KiB, and looking up their addresses costs bandwidth",
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        )


@dataclass(frozen=True)
class Setting:
    """A variable of the environment that spoils something.

    Attributes:
        name: the variable's.
        spoils: a pattern of the values that do, in lower case, as a whole.
        why: it matters.
        level: how bad that is.
    """

    name: str
    spoils: str
    why: str
    level: Level = Level.DISTURBS


NONZERO, SOMETHING, YES = r"(?!0$).+", r".+", r"1|true|yes|on"
NARROW = "the kernel is compiled for another processor than this, with fewer instructions"
SPINS = "threads that wait keep their cores busy, and other processes, of bench too, from them"
SETTINGS = (
    Setting(
        "MXNET_ENGINE_TYPE", "naiveengine",
        "MXNet then makes the main thread, and NumPy with it, flush subnormals; verify refuses to "
        "run so", Level.BROKEN,
    ),
    Setting(
        "MXNET_CPU_WORKER_NTHREADS", r"(?!0|1$)\d+",
        "MXNet's threads differ in whether they flush subnormals: bits may change from run to run",
    ),
    Setting("MXNET_PROFILER_AUTOSTART", YES, "MXNet records every operation"),
    Setting(
        "NUMBA_DISABLE_JIT", NONZERO, "the kernel is not compiled, and cannot run", Level.BROKEN
    ),
    Setting("NUMBA_BOUNDSCHECK", NONZERO, "the kernel looks at every index"),
    Setting("NUMBA_DEBUGINFO", NONZERO, "the kernel is compiled for a debugger"),
    Setting("NUMBA_OPT", r"[012]", "the kernel is not optimised in full"),
    Setting("NUMBA_LOOP_VECTORIZE", "0", "the kernel's loops are not vectorised"),
    Setting("NUMBA_ENABLE_AVX", "0", NARROW),
    Setting("NUMBA_CPU_NAME", SOMETHING, NARROW),
    Setting("NUMBA_CPU_FEATURES", SOMETHING, NARROW),
    Setting(
        "OMP_PROC_BIND", r"(?!false$).+",
        "the first OpenMP library that is loaded binds the main thread to one core; from then on, "
        "Numba and this tool see one core",
    ),
    Setting("OMP_DYNAMIC", YES, "OpenMP takes fewer threads when the machine is busy"),
    Setting("OMP_WAIT_POLICY", "active", SPINS),
    Setting("GOMP_SPINCOUNT", r"infini.*", SPINS),
    Setting("KMP_BLOCKTIME", r"infini.*", SPINS),
)  # fmt: skip


def _settings(here: Machine) -> Iterator[Finding]:
    for setting in SETTINGS:
        value = here.environment.get(setting.name, "")
        if re.fullmatch(setting.spoils, value.lower()):
            yield Finding(
                setting.level, f"{setting.name} is {value}", setting.why, f"unset {setting.name}"
            )


CONDITIONS: tuple[Callable[[Machine], Iterator[Finding]], ...] = (
    _settings, _threads, _quota, _governor, _numa, _swap, _huge_pages,
    _multithreading, _turbo, _virtual,
)  # fmt: skip
