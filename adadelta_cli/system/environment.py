"""Environment variables and folders that the libraries need: check them before the work.

A library that meets a wrong one fails in the middle of the work, where it looks like a fault of the
work itself, or aborts the process. Here it is exit code 3, with the fix.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from adadelta_cli.errors import UnavailableError, displayed
from adadelta_cli.system import machine
from adadelta_cli.system.sandbox import ReportedError, Sandbox, SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

COUNT = r"\s*\+?0*[1-9][0-9]{0,8}\s*"
# Variables that a library reads as a number: MXNet aborts on others, Numba raises or ignores them.
NUMBERS = {
    r"OMP_NUM_THREADS": COUNT,
    r"NUMBA_NUM_THREADS": COUNT,
    r"MXNET_\w*(NTHREADS|MAX_THREADS)": r"\s*[+-]?[0-9]{1,9}\s*",
}
NUMBA = "NUMBA_"  # variables that decide whether Numba can compile
HANDLED = "NUMBA_CACHE_DIR"  # by `_find_folders`
NUMBA_FILE = ".numba_config.yaml"  # in the working folder: the same settings
VARIANT = "ADADELTA_KERNEL"  # as `kernels.variants.parse` reads it; that needs Numba
START_S = 120.0
MORE_STACK = "ulimit -s 8192 before; where that is not permitted, ask who set the limit"
# Errors of libraries that can only be recognised by their message.
KNOWN_FIXES = {
    r"no locator available": "name a folder that can be written for the compiled kernels: "
    "export NUMBA_CACHE_DIR=/tmp/numba",
    r"libgomp\.so\.1": "apt-get install libgomp1, or dnf install libgomp",
    r"(?i)number of threads": "unset NUMBA_NUM_THREADS",
    r"is not usable in pure-python": "unset NUMBA_DISABLE_JIT",
    r"recognized processor": "unset NUMBA_CPU_NAME",
    r"processor features|recognized feature|SIGILL": "unset NUMBA_CPU_FEATURES",
}


def known_fix(message: str) -> str:
    """Return the fix of an error of a library; empty if unknown."""
    fixes = (fix for pattern, fix in KNOWN_FIXES.items() if re.search(pattern, message))
    return next(fixes, "")


def prepare() -> None:
    """Adapt the environment to what the libraries can read, for this process and its children.

    Empty numbers and empty variables of Numba count as unset. Of OpenMP's list, a number for each
    level of nested threads, the libraries here use the first. Compiled kernels and matplotlib's
    cache go to a temporary folder, with a warning, where no usual one can be written.
    """
    for name in _numbers(os.environ):
        first = os.environ[name].partition(",")[0] if name == "OMP_NUM_THREADS" else None
        if not os.environ[name].strip():
            del os.environ[name]
        elif first and not list(wrong_numbers({name: os.environ[name]})):
            os.environ[name] = first.strip()
    for name in [name for name in os.environ if name.startswith(NUMBA)]:
        if not os.environ[name].strip():
            del os.environ[name]
    _find_folders()


def check() -> None:
    """Check that the libraries can start in this environment.

    Raises:
        UnavailableError: a variable has a value with which they cannot.
    """
    stack = machine.stack_bytes()
    if stack is not None and stack < machine.LEAST_STACK:
        raise UnavailableError(
            f"the stack is limited to {stack >> 10} KiB; expected at least "
            f"{machine.LEAST_STACK >> 10}; run {MORE_STACK}"
        )
    for name, value in wrong_numbers(os.environ):
        raise UnavailableError(
            f"{name} is {value[:80]!r}; expected a whole number, at least 1; unset {name}, or set "
            "it to the number of cores"
        )
    variant = os.environ.get(VARIANT, "")
    if not re.fullmatch(r"|([1-9][0-9]{0,2}|all):[0-9]{1,9}", variant):
        raise UnavailableError(
            f"{VARIANT} is {variant[:80]!r}; expected THREADS:BLOCK, such as 1:0 or all:64; unset "
            f"{VARIANT}"
        )
    names = [name for name in os.environ if name.startswith(NUMBA) and name != HANDLED]
    if names or Path(NUMBA_FILE).is_file():
        _start_numba(names)


def wrong_numbers(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the names and values of variables that hold no number where a library needs one."""
    for name, pattern in _numbers(environment).items():
        value = environment[name]
        parts = value.split(",") if name == "OMP_NUM_THREADS" else [value]
        if not all(re.fullmatch(pattern, part) for part in parts):
            yield name, value


def _numbers(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the pattern of each variable that is set and must hold a number."""
    return {
        name: allowed
        for name in environment
        for pattern, allowed in NUMBERS.items()
        if re.fullmatch(pattern, name)
    }


def _start_numba(names: list[str]) -> None:
    """Start Numba elsewhere: an attempt that fails cannot be repeated in a process."""
    given = [f"{name}={os.environ[name]}" for name in names]
    fixes = []
    if Path(NUMBA_FILE).is_file():
        given.append(NUMBA_FILE)
        fixes.append(f"move {Path(NUMBA_FILE).resolve()} away")
    with Sandbox(START_S) as sandbox:
        try:
            sandbox.call(_compile)
        except SandboxError as error:
            if names:
                fixes.append(known_fix(str(error)) or f"unset {' '.join(names)}")
            raise UnavailableError(
                f"Numba cannot start with {displayed(' '.join(given)[:200])}: {error}; "
                f"{'; '.join(fixes)}"
            ) from None


def _compile() -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        import numba
    for each in found:  # Numba would go on with its default, and show a traceback
        if "could not be parsed" in str(each.message):
            raise ReportedError(str(each.message).splitlines()[0])
    if numba.config.DISABLE_JIT:
        raise ReportedError("it compiles nothing: its compiler is not usable in pure-python mode")
    _check_target(numba.config.CPU_NAME or "", numba.config.CPU_FEATURES or "")
    numba.njit(lambda number: number + 1)(1)
    if numba.config.CPU_FEATURES:  # the processor may lack one: the step itself would crash
        _take_step()


FEATURE = r"[+-](?!help\b)[\w.-]+"
FEATURES = f"{FEATURE}(,{FEATURE})*"  # LLVM ends the process on others


def _check_target(name: str, features: str) -> None:
    """Check that LLVM knows a processor; it would warn at each start, and use another.

    Raises:
        ReportedError: it does not, or not its features.
    """
    import llvmlite.binding as llvm

    if name == "help":  # LLVM would list what it knows
        raise ReportedError("help is not a recognized processor")
    if features and not re.fullmatch(FEATURES, features):
        raise ReportedError(
            "these are no processor features; expected them with + or -, between commas, such as "
            "+avx2,-avx512f"
        )
    llvm.initialize_native_target()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 2)  # nobody needs this process's stderr afterwards
        target.create_target_machine(cpu=name, features=features)
        printed.seek(0)
        told = printed.read().decode(errors="replace").partition("\n")[0]
    if told:
        raise ReportedError(told.partition(" for this target")[0])


def _take_step() -> None:
    import numpy as np

    from adadelta_cli.kernels.step import FusedStep
    from adadelta_cli.update import Parameter

    FusedStep([Parameter(*(np.ones(1000, np.float32) for _ in range(4)))])()


# --- folders --------------------------------------------------------------------------------------

_temporary: list[str] = []  # deleted when this process ends


def _find_folders() -> None:
    """Let caches go to a temporary folder where no usual one can be written."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home raises where there is none
    caches = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    kernels = [Path(__file__).parents[1] / "kernels" / "__pycache__", caches / "numba"]
    if os.environ.get("NUMBA_CACHE_DIR"):
        kernels.insert(0, Path(os.environ["NUMBA_CACHE_DIR"]))
    if not any(map(is_writable, kernels)):
        _use_temporary("NUMBA_CACHE_DIR", "compiled kernels", kernels)
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "matplotlib"
    pictures = [Path(os.environ.get("MPLCONFIGDIR") or settings)]
    if not is_writable(pictures[0]):
        _use_temporary("MPLCONFIGDIR", "matplotlib's cache", pictures)


def is_writable(folder: Path) -> bool:
    """Make a folder if it is missing; return whether files can be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError):
        return False
    return True


def _use_temporary(variable: str, what: str, folders: list[Path]) -> None:
    """Set a variable to a new temporary folder; warn once a command."""
    warned = bool(_temporary)
    try:
        if not _temporary:
            _temporary.append(tempfile.mkdtemp(prefix="adadelta-"))
            atexit.register(shutil.rmtree, _temporary[0], ignore_errors=True)
    except OSError:
        return  # there is none: each process compiles for itself
    os.environ[variable] = _temporary[0]
    if not warned and sys.stderr:
        warning = (
            f"Warning: {what} cannot be kept, for none of {', '.join(map(str, folders))} can be "
            f"written; a temporary folder is used, which costs time at each start; export "
            f"{variable}=FOLDER with one that can be written"
        )
        print(displayed(warning), file=sys.stderr)  # noqa: T201
