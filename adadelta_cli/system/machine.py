"""The machine: its processor, its memory, and the threads that libraries may use on it.

Linux tells most of this in files below /proc and /sys. Where one is missing (macOS, a container
that hides it), the fact is None or empty: what is not known is no error.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

ROOT = Path("/")  # a test pretends another machine below another root

# Each library reads its own variable, once, when it is loaded.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)
# Of the environment, what the speed or the bits of a step may depend on.
VARIABLES = ("GOMP_", "KMP_", "LD_PRELOAD", "MKL_", "MXNET_", "NUMBA_", "OMP_", "OPENBLAS_", "XLA_")
LIBRARIES = (
    "adadelta",
    "mxnet",
    "numpy",
    "numba",
    "llvmlite",
    "scikit-learn",
    "scipy",
    "pandas",
    "matplotlib",
    "pydantic",
    "PyYAML",
    "click",
    "rich",
    "hypothesis",
    "torch",
    "jax",
    "jaxlib",
    "optax",
    "cupy",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "tbb",
    "intel-openmp",
    "threadpoolctl",
)
KIBIBYTE = 1024
CPUS = "sys/devices/system/cpu"


# --- what the commands ask ------------------------------------------------------------------------


def available_cores() -> int:
    """Count the cores that this process may run on."""
    return len(affinity())


def affinity() -> set[int]:
    """Return the numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def limit_threads(count: int) -> None:
    """Let every library use `count` CPU threads; to be called before any of them is imported."""
    os.environ.update(thread_environment(count))


def thread_environment(count: int) -> dict[str, str]:
    """Return the environment variables that limit every library to `count` CPU threads."""
    return dict.fromkeys(THREAD_VARIABLES, str(count))


def compiler() -> str | None:
    """Return the path of a C++ compiler, which `torch.compile` needs; None where there is none."""
    names = filter(None, [os.environ.get("CXX", ""), "g++", "clang++"])
    return next(filter(None, map(shutil.which, names)), None)


# --- all that is known ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What a timing depends on. None: not known here.

    Attributes:
        host: its name.
        processor: the model.
        architecture: as `uname -m` says it.
        simd: the widest vector instructions.
        cores: logical ones, all of them.
        cores_physical: without what simultaneous multithreading adds.
        cores_available: logical ones that this process may run on.
        cores_available_physical: on how many physical ones those lie.
        cpu_quota_cores: the processor time that the control group may take, in cores; None where it
            is not limited.
        cache_bytes: the size of a data cache, by level.
        cache_shared_by: how many logical cores share one, by level.
        memory_bytes: all that the control group may have.
        memory_available_bytes: what can be allocated without swapping.
        swap_used_bytes: what lies in swap, of all processes.
        numa_nodes: on how many the cores lie that this process may run on.
        governor: of the cores' frequency; several are joined by commas.
        turbo: whether a core may go above its nominal frequency.
        huge_pages: the kernel's setting for transparent ones, the one that is on in brackets.
        load_average: processes that ran or wanted to, over the last minute.
        hypervisor: what the machine runs under, `unknown` where only that it is virtual is known;
            empty if nothing tells so.
        container: its kind; empty if nothing tells that this is one.
        gpus: their models; NVIDIA's only.
        kernel: the operating system with its version.
        python: the version.
        versions: of the libraries that are installed.
        threading_layers: those that Numba was built with; `tbb` and `omp` need their runtime too.
        openmp_runtimes: the OpenMP libraries that are here: the system's by path, those that came
            with a package by their place among the packages.
        compiler: the path of a C++ compiler.
        environment: the variables that the speed or the bits of a step may depend on.
    """

    host: str
    processor: str
    architecture: str
    simd: str
    cores: int | None
    cores_physical: int | None
    cores_available: int
    cores_available_physical: int | None
    cpu_quota_cores: float | None
    cache_bytes: dict[str, int]
    cache_shared_by: dict[str, int]
    memory_bytes: int | None
    memory_available_bytes: int | None
    swap_used_bytes: int | None
    numa_nodes: int | None
    governor: str | None
    turbo: bool | None
    huge_pages: str
    load_average: float | None
    hypervisor: str
    container: str
    gpus: tuple[str, ...]
    kernel: str
    python: str
    versions: dict[str, str]
    threading_layers: tuple[str, ...]
    openmp_runtimes: tuple[str, ...]
    compiler: str | None
    environment: dict[str, str]


def inspect_machine() -> Machine:
    """Find out all that is known; nothing is imported, nothing is measured."""
    return Machine(
        host=platform.node(),
        processor=_fields("proc/cpuinfo").get("model name", platform.processor()),
        architecture=platform.machine(),
        simd=_simd(),
        cores=os.cpu_count(),
        cores_physical=_physical(_topologies()),
        cores_available=available_cores(),
        cores_available_physical=_physical(f"cpu{core}" for core in affinity()),
        cpu_quota_cores=cpu_quota(),
        cache_bytes=cache_bytes(),
        cache_shared_by={level: shared for level, (_, shared) in _caches().items()},
        memory_bytes=_memory_bytes(),
        memory_available_bytes=available_bytes(),
        swap_used_bytes=_swap_used(),
        numa_nodes=_numa_nodes(),
        governor=_governor(),
        turbo=_turbo(),
        huge_pages=_text("sys/kernel/mm/transparent_hugepage/enabled"),
        load_average=_load_average(),
        hypervisor=_hypervisor(),
        container=_container(),
        gpus=_gpus(),
        kernel=platform.platform(),
        python=platform.python_version(),
        versions=versions(),
        threading_layers=_threading_layers(),
        openmp_runtimes=_openmp_runtimes(),
        compiler=compiler(),
        environment={k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)},
    )


def describe() -> dict[str, Any]:
    """Describe the machine as bench.json has it: the attributes of `Machine`."""
    return asdict(inspect_machine())


# --- processor ------------------------------------------------------------------------------------

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
    return (fields.get("flags") or fields.get("Features") or "").split()


def _simd() -> str:
    flags = _cpu_flags()
    return next((name for flag, name in SIMD.items() if flag in flags), "")


def _topologies() -> Iterator[str]:
    return (each.parent.name for each in (ROOT / CPUS).glob("cpu[0-9]*/topology"))


def _physical(cpus: Iterable[str]) -> int | None:
    """Count the different pairs of package and core that logical cores lie on."""
    names = ("physical_package_id", "core_id")
    pairs = {tuple(_text(f"{CPUS}/{cpu}/topology/{name}") for name in names) for cpu in cpus}
    return len(pairs - {("", "")}) or None


def cache_bytes() -> dict[str, int]:
    """Return the sizes of the data caches that a core sees, by level."""
    return {level: size for level, (size, _) in _caches().items()}


def last_cache_bytes() -> int:
    """Sum up the last-level caches of the cores that this process may use; a guess if unknown."""
    size, shared = max(_caches().values(), default=(LAST_CACHE_BYTES, 1))
    return size * -(-len(affinity()) // max(1, shared))


LAST_CACHE_BYTES = 2**28  # where the system does not tell


def _caches() -> dict[str, tuple[int, int]]:
    """Return bytes and sharing logical cores of the data caches of one core, by level."""
    found = {}
    folder = ROOT / CPUS / f"cpu{min(affinity())}" / "cache"
    for index in sorted(folder.glob("index*")):
        level, kind, size = (_text(index / name) for name in ("level", "type", "size"))
        if kind != "Instruction" and size[:-1].isdigit() and size.endswith("K"):
            name = f"L{level}" + ("d" if kind == "Data" else "")
            shared = _listed(_text(index / "shared_cpu_list")) or 1
            found[name] = int(size[:-1]) * KIBIBYTE, shared
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


def _load_average() -> float | None:
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


# --- control groups -------------------------------------------------------------------------------


def _groups(controller: str) -> list[Path]:
    """Return the folders of this process's control group and those above it.

    In version 1's tree a controller has a folder of its own, in version 2's all share one. Where a
    container shows its group as the root, the path of /proc leads nowhere, and the root remains.
    """
    found = []
    for line in _text("proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            base = ROOT / "sys/fs/cgroup" / (controller if controllers else "")
            inside = PurePosixPath(path.lstrip("/"))
            found += [base / each for each in (inside, *inside.parents)]
    return found


def cpu_quota() -> float | None:
    """Return the processor time that the control group may take, in cores; None if unlimited."""
    return min(filter(None, map(_quota, _groups("cpu"))), default=None)


def _quota(group: Path) -> float | None:
    parts = _text(group / "cpu.max").split()
    if len(parts) != 2:
        parts = [_text(group / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    quota, period = map(_whole, parts)
    return quota / period if quota and period else None


# Of version 2 and of version 1: limit, use, and how much of that is files that can be dropped.
MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def _memory_limits() -> Iterator[tuple[int, int]]:
    """Yield the limit, and what is still free below it, of each control group that has one."""
    for group in _groups("memory"):
        for limit_file, use_file, droppable in MEMORY_FILES:
            limit, use = (_whole(_text(group / name)) for name in (limit_file, use_file))
            if limit is not None and use is not None:
                kept = _words(group / "memory.stat").get(droppable, "")
                yield limit, limit - use + min(use, _whole(kept) or 0)


# --- memory ---------------------------------------------------------------------------------------


def available_bytes() -> int | None:
    """Say how much memory can be allocated without swapping; None where the system does not tell.

    In a container that is what its control group still allows, where that is less.
    """
    free = _kibibytes("MemAvailable")
    if free is None:
        return None
    return max(0, min([free, *(left for _, left in _memory_limits())]))


def _memory_bytes() -> int | None:
    try:
        installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
    return min([installed, *(limit for limit, _ in _memory_limits())])


def _swap_used() -> int | None:
    total, free = _kibibytes("SwapTotal"), _kibibytes("SwapFree")
    return None if total is None or free is None else total - free


def _kibibytes(name: str) -> int | None:
    """Return an entry of /proc/meminfo, in bytes."""
    words = _fields("proc/meminfo").get(name, "").split()
    number = _whole(words[0]) if words else None
    return None if number is None else number * KIBIBYTE


# --- what it runs under ---------------------------------------------------------------------------

# How the firmware of virtual machines names their maker or model.
VIRTUAL_FIRMWARE = ("virtual", "vmware", "qemu", "kvm", "xen", "bochs", "hvm", "google compute")
# What only a container has, the most telling first.
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
    told = "hypervisor" in _cpu_flags() or bool(kind)  # a flag of x86 only
    if not told and not any(word in firmware.lower() for word in VIRTUAL_FIRMWARE):
        return ""
    return firmware or kind or "unknown"


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


# --- libraries ------------------------------------------------------------------------------------


def versions(names: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Return the version of each library that is installed, by the names of their packages."""
    return {name: found for name in names if (found := _version(name))}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


THREADING_LAYERS = {"tbbpool": "tbb", "omppool": "omp", "workqueue": "workqueue"}  # its own order


def _threading_layers() -> tuple[str, ...]:
    """Look which of its threading layers Numba has, without importing it."""
    spec = util.find_spec("numba")
    if spec is None or spec.origin is None:
        return ()
    folder = Path(spec.origin).parent / "np" / "ufunc"
    return tuple(name for file, name in THREADING_LAYERS.items() if any(folder.glob(f"{file}.*")))


OPENMP = ("libgomp", "libiomp5", "libomp")
# Where distributions, Homebrew, virtual and conda environments keep shared libraries.
SYSTEM_FOLDERS = ("usr/lib/*-linux-gnu*", "usr/lib64", "usr/lib", "opt/homebrew/opt/libomp/lib")
PACKAGE_FOLDERS = ("*.libs", "*/lib", "*/.dylibs", "*")


def _openmp_runtimes() -> tuple[str, ...]:
    """Find the OpenMP libraries of the system and of the packages, each once."""
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


# --- reading --------------------------------------------------------------------------------------


def _text(path: str | Path) -> str:
    """Read a file below the root; one that cannot be read is empty."""
    try:
        return (ROOT / path).read_text(errors="replace").strip()
    except OSError:
        return ""


def _fields(path: str | Path) -> dict[str, str]:
    """Read lines of the form `name: value`; of a repeated name, the first."""
    return _pairs(path, lambda line: line.partition(":")[::2])


def _words(path: Path) -> dict[str, str]:
    """Read lines of the form `name value`."""
    return _pairs(path, lambda line: line.partition(" ")[::2])


def _pairs(path: str | Path, cut: Callable[[str], tuple[str, ...]]) -> dict[str, str]:
    pairs = map(cut, reversed(_text(path).splitlines()))
    return {name.strip(): value.strip() for name, value in pairs}


def _whole(text: str) -> int | None:
    """Read a whole number; None for what is none, such as `max` or -1, which mean no limit."""
    return int(text) if text.isdigit() else None


def _listed(text: str) -> int:
    """Count what the kernel lists as 0-3,8."""
    ranges = [part.split("-") for part in text.split(",") if part]
    return sum(int(ends[-1]) - int(ends[0]) + 1 for ends in ranges)
