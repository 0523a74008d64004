"""Describe the machine: processor, memory, and the threads that libraries may use on it.

psutil knows memory and physical cores. The rest Linux shows in files below /proc and /sys. Where
one is missing (macOS, a container that hides it), the fact is None or empty; that is no error.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
import sysconfig
import warnings
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import ModuleType

T = TypeVar("T")
ROOT = Path("/")  # tests put another machine's files below another root

# Each library reads its own variable, once, when it is loaded.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)
# Prefixes of environment variables that the speed or the bits of a step may depend on.
VARIABLES = (
    "ADADELTA_",
    "GOMP_",
    "KMP_",
    "LD_PRELOAD",
    "MKL_",
    "MXNET_",
    "NUMBA_",
    "OMP_",
    "OPENBLAS_",
    "XLA_",
)
LIBRARIES = (
    *("adadelta", "mxnet", "numpy", "numba", "llvmlite", "scikit-learn", "scipy", "pandas"),
    *("matplotlib", "pydantic", "PyYAML", "click", "rich"),
    *("torch", "jax", "jaxlib", "optax", "cupy", "cupy-cuda12x", "cupy-cuda13x"),
    *("tbb", "intel-openmp", "threadpoolctl", "dask", "distributed"),
    *("tensorboard", "mlflow", "mlflow-skinny"),
)
CPUS = "sys/devices/system/cpu"


def available_cores() -> int:
    """Count the cores that this process may run on."""
    return len(affinity())


def affinity() -> set[int]:
    """Return the numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def limit_threads(count: int) -> None:
    """Limit every library to `count` CPU threads; call it before any of them is imported."""
    os.environ.update(thread_environment(count))


def thread_environment(count: int) -> dict[str, str]:
    """Return the environment variables that limit every library to `count` CPU threads."""
    return dict.fromkeys(THREAD_VARIABLES, str(count))


LEAST_STACK = 2**20  # bytes: OpenBLAS crashes with 512 KiB, all works with 640


def stack_bytes() -> int | None:
    """Return the limit of this process's stack; None if there is none, or none is known."""
    try:
        import resource
    except ImportError:
        return None
    limit = resource.getrlimit(resource.RLIMIT_STACK)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def compiler() -> str | None:
    """Return the path of a C++ compiler, which `torch.compile` needs; None if there is none."""
    names = filter(None, [os.environ.get("CXX", ""), "g++", "clang++"])
    return next(filter(None, map(shutil.which, names)), None)


# Flags of /proc/cpuinfo, the widest first: x86's, then ARM's.
SIMD = {
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "avx": "AVX",
    "sse2": "SSE2",
    "sve2": "SVE2",
    "sve": "SVE",
    "asimd": "NEON",
}


def _cpu_flags() -> list[str]:
    fields = _fields("proc/cpuinfo")
    return fields.get("flags", fields.get("Features", "")).split()


def _simd() -> str:
    flags = _cpu_flags()
    return next((name for flag, name in SIMD.items() if flag in flags), "")


def _available_physical() -> int | None:
    """Count the distinct pairs of package and core among the cores that this process may run on."""
    names = ("physical_package_id", "core_id")
    folders = (f"{CPUS}/cpu{core}/topology" for core in affinity())
    pairs = {tuple(_text(f"{folder}/{name}") for name in names) for folder in folders}
    return len(pairs - {("", "")}) or None


def online_cores() -> list[int]:
    """Return the numbers of the cores that are online, ascending; empty if unknown."""
    return _core_list(_text(f"{CPUS}/online"))


def last_cache_bytes() -> int:
    """Add up the last-level caches of the cores that this process may use; a guess if unknown."""
    size, shared = max(_caches().values(), default=(2**28, 1))
    return size * -(-len(affinity()) // shared)


def _caches() -> dict[str, tuple[int, int]]:
    """Return size and number of sharing cores of one core's data caches, by level."""
    found = {}
    folder = ROOT / CPUS / f"cpu{min(affinity())}" / "cache"
    for index in sorted(folder.glob("index*")):
        level, kind, size = (_text(index / name) for name in ("level", "type", "size"))
        if kind != "Instruction" and size[:-1].isdigit() and size.endswith("K"):
            name = f"L{level}" + ("d" if kind == "Data" else "")
            shared = len(_core_list(_text(index / "shared_cpu_list"))) or 1
            found[name] = int(size[:-1]) * 1024, shared
    return found


def _numa_nodes() -> int | None:
    folders = (ROOT / CPUS / f"cpu{core}" for core in affinity())
    return len({node.name for folder in folders for node in folder.glob("node[0-9]*")}) or None


def _governor() -> str | None:
    paths = (f"{CPUS}/cpu{core}/cpufreq/scaling_governor" for core in affinity())
    return ",".join(sorted({_text(path) for path in paths} - {""})) or None


def _turbo() -> bool | None:
    off = {"0": True, "1": False}.get(_text(f"{CPUS}/intel_pstate/no_turbo"))
    boost = {"1": True, "0": False}.get(_text(f"{CPUS}/cpufreq/boost"))
    return boost if off is None else off


def _groups(controller: str) -> list[Path]:
    """Return the folders of this process's control group and those above it.

    In version 1 each controller has its own tree, in version 2 all share one. A container may show
    its group as the root: then the path in /proc does not exist, and only the root counts.
    """
    found = []
    for line in _text("proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            base = ROOT / "sys/fs/cgroup" / (controller if controllers else "")
            inside = PurePosixPath(path.lstrip("/"))
            found += [base / each for each in (inside, *inside.parents)]
    return found


def _cpu_quota() -> float | None:
    """Return the control group's limit of CPU time, in cores; None if unlimited."""
    return min(filter(None, map(_quota, _groups("cpu"))), default=None)


def _quota(group: Path) -> float | None:
    parts = _text(group / "cpu.max").split()
    if len(parts) != 2:
        parts = [_text(group / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    quota, period = map(_whole, parts)
    return quota / period if quota and period else None


# Limit, usage, and the part of the usage that is droppable file cache; for versions 2 and 1.
MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def _memory_limits() -> Iterator[tuple[int, int]]:
    """Yield limit and free memory, in bytes, of each control group that has a limit."""
    for group in _groups("memory"):
        for limit_file, use_file, droppable in MEMORY_FILES:
            limit, use = (_whole(_text(group / name)) for name in (limit_file, use_file))
            if limit is not None and use is not None:
                kept = _fields(group / "memory.stat", " ").get(droppable, "")
                yield limit, limit - use + min(use, _whole(kept) or 0)


def available_bytes() -> int | None:
    """Return how much memory can be allocated without swapping; None if unknown.

    The free memory of the control groups bounds it.
    """
    free = query_psutil(lambda psutil: psutil.virtual_memory().available)
    return free if free is None else max(0, min([free, *(left for _, left in _memory_limits())]))


def _memory_bytes() -> int | None:
    installed = query_psutil(lambda psutil: psutil.virtual_memory().total)
    return installed and min([installed, *(limit for limit, _ in _memory_limits())])


# Words in the vendor or model of virtual machines' firmware.
VIRTUAL_FIRMWARE = ("virtual", "vmware", "qemu", "kvm", "xen", "bochs", "hvm", "google compute")
# Files that only containers have, the most specific first.
CONTAINER_MARKS = {
    "var/run/secrets/kubernetes.io": "kubernetes",
    "run/.containerenv": "podman",
    ".dockerenv": "docker",
}
CONTAINER_GROUPS = {"kubepods": "kubernetes", "docker": "docker", "lxc": "lxc"}


def _hypervisor() -> str:
    folder = "sys/class/dmi/id"
    names = (_text(f"{folder}/{name}") for name in ("sys_vendor", "product_name"))
    firmware = " ".join(filter(None, names))
    kind = _text("sys/hypervisor/type")
    is_virtual = "hypervisor" in _cpu_flags() or kind  # a flag of x86 only
    if is_virtual or any(word in firmware.lower() for word in VIRTUAL_FIRMWARE):
        return firmware or kind or "unknown"
    return ""


def _container() -> str:
    for mark, kind in CONTAINER_MARKS.items():
        if (ROOT / mark).exists():
            return kind
    named = _text("run/systemd/container") or os.environ.get("container", "")  # noqa: SIM112
    groups = _text("proc/self/cgroup")
    return named or next((kind for word, kind in CONTAINER_GROUPS.items() if word in groups), "")


def _gpus() -> tuple[str, ...]:
    files = sorted((ROOT / "proc/driver/nvidia/gpus").glob("*/information"))
    return tuple(_fields(file).get("Model", "unknown model") for file in files)


def versions(names: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Return the versions of the packages that are installed, by name."""
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return {name: version for name, version in found.items() if version}  # a broken one has none


OPENMP = ("libgomp", "libiomp5", "libomp")
# Shared libraries of distributions and Homebrew; those of packages, relative to site-packages.
SYSTEM_FOLDERS = ("usr/lib/*-linux-gnu*", "usr/lib64", "usr/lib", "opt/homebrew/opt/libomp/lib")
PACKAGE_FOLDERS = ("*.libs", "*/lib", "*/.dylibs", "*")


def _openmp_runtimes() -> tuple[str, ...]:
    """List the OpenMP libraries of the system and of Python packages, each once."""
    packages = Path(sysconfig.get_path("platlib")).resolve()
    places = [(ROOT, folder) for folder in SYSTEM_FOLDERS]
    places += [(Path(sys.prefix), "lib"), *((packages, folder) for folder in PACKAGE_FOLDERS)]
    found = {
        file.resolve()
        for base, folder in places
        for name in OPENMP
        for file in base.glob(f"{folder}/{name}[.-]*")
        if ".so" in file.name or file.suffix == ".dylib"
    }
    return tuple(
        sorted(str(f.relative_to(packages) if packages in f.parents else f) for f in found)
    )


def query_psutil(query: Callable[[ModuleType], T]) -> T | None:
    """Return `query(psutil)`; None if this system does not answer it, or psutil does not load."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numbers that are missing in /proc
        try:
            import psutil

            return query(psutil)
        except (ImportError, LookupError, OSError, RuntimeError, ValueError):
            return None


def _text(path: str | Path) -> str:
    """Read a file below the root; empty if it cannot be read."""
    try:
        return (ROOT / path).read_text(errors="replace").strip()
    except OSError:
        return ""


def _fields(path: str | Path, separator: str = ":") -> dict[str, str]:
    """Read lines of names and values; the first one of a name counts."""
    pairs = (line.partition(separator)[::2] for line in reversed(_text(path).splitlines()))
    return {name.strip(): value.strip() for name, value in pairs}


def _whole(text: str) -> int | None:
    """Parse a number; None for `max` and -1, which mean no limit, and for other text."""
    return int(text) if text.isdigit() else None


def _core_list(text: str) -> list[int]:
    """Expand the kernel's list format.

    >>> _core_list("0-3,8")
    [0, 1, 2, 3, 8]
    """
    ranges = [part.split("-") for part in text.split(",") if part]
    return [core for ends in ranges for core in range(int(ends[0]), int(ends[-1]) + 1)]


@dataclass(frozen=True)
class Machine:
    """What a timing depends on, found when it is made. None or empty: not known here.

    No library that the facts are about is imported, and nothing is measured.

    Attributes:
        simd: the widest vector instructions.
        cores_available: logical cores that this process may run on.
        cores_available_physical: the physical cores that those belong to.
        cpu_quota_cores: the control group's limit of CPU time, in cores; None if unlimited.
        cache_bytes: the size of a data cache, by level.
        cache_shared_by: the number of logical cores that share one, by level.
        memory_bytes: in all, or the control group's limit.
        memory_available_bytes: what can be allocated without swapping.
        swap_used_bytes: of all processes.
        numa_nodes: those of the cores that this process may run on.
        governor: of the cores' frequency; several are joined by commas.
        turbo: whether a core may exceed its nominal frequency.
        huge_pages: the kernel's setting for transparent ones, the active one in brackets.
        load_average: over the last minute.
        stack_bytes: the limit of a process's stack; None if unlimited.
        hypervisor: `unknown` if the machine is virtual and does not say of what kind.
        gpus: their models; NVIDIA's only.
        openmp_runtimes: OpenMP libraries: the system's by path, those of Python packages relative
            to the folder of the packages.
        environment: the variables that the speed or the bits of a step may depend on.
    """

    host: str = field(default_factory=platform.node)
    processor: str = field(
        default_factory=lambda: _fields("proc/cpuinfo").get("model name", platform.processor())
    )
    architecture: str = field(default_factory=platform.machine)
    simd: str = field(default_factory=_simd)
    cores: int | None = field(default_factory=os.cpu_count)
    cores_physical: int | None = field(
        default_factory=lambda: query_psutil(lambda psutil: psutil.cpu_count(logical=False))
    )
    cores_available: int = field(default_factory=available_cores)
    cores_available_physical: int | None = field(default_factory=_available_physical)
    cpu_quota_cores: float | None = field(default_factory=_cpu_quota)
    cache_bytes: dict[str, int] = field(
        default_factory=lambda: {level: size for level, (size, _) in _caches().items()}
    )
    cache_shared_by: dict[str, int] = field(
        default_factory=lambda: {level: shared for level, (_, shared) in _caches().items()}
    )
    memory_bytes: int | None = field(default_factory=_memory_bytes)
    memory_available_bytes: int | None = field(default_factory=available_bytes)
    swap_used_bytes: int | None = field(
        default_factory=lambda: query_psutil(lambda psutil: psutil.swap_memory().used)
    )
    numa_nodes: int | None = field(default_factory=_numa_nodes)
    governor: str | None = field(default_factory=_governor)
    turbo: bool | None = field(default_factory=_turbo)
    huge_pages: str = field(
        default_factory=lambda: _text("sys/kernel/mm/transparent_hugepage/enabled")
    )
    load_average: float | None = field(
        default_factory=lambda: query_psutil(lambda psutil: psutil.getloadavg()[0])
    )
    stack_bytes: int | None = field(default_factory=stack_bytes)
    hypervisor: str = field(default_factory=_hypervisor)
    container: str = field(default_factory=_container)
    gpus: tuple[str, ...] = field(default_factory=_gpus)
    kernel: str = field(default_factory=platform.platform)
    python: str = field(default_factory=platform.python_version)
    versions: dict[str, str] = field(default_factory=versions)
    openmp_runtimes: tuple[str, ...] = field(default_factory=_openmp_runtimes)
    compiler: str | None = field(default_factory=compiler)
    environment: dict[str, str] = field(
        default_factory=lambda: {
            k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)
        }
    )


def describe() -> dict[str, Any]:
    """Describe the machine as bench.json has it: the attributes of `Machine`."""
    return vars(Machine())
