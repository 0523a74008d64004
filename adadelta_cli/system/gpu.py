"""Check what a step on the GPU needs, one piece after the other, with the fix for each.

Pieces are tried, never looked up in a list of devices or versions: a small launch shows whether a
GPU can be used.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from adadelta_cli.errors import UnavailableError, in_one_line, status
from adadelta_cli.system.sandbox import ReportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

INSTALL = "python -m pip install 'adadelta[gpu]'"
DRIVER = (  # the oldest for CUDA 12: CUDA's release notes, "CUDA Toolkit and driver versions"
    "install NVIDIA's driver, 525.60.13 or later, on the host (Ubuntu: apt-get install "
    "nvidia-driver-550; Debian: nvidia-driver); a container is started with docker run --gpus all"
)
NVIDIA_SMI = "see what nvidia-smi reports of the GPU"
# Wheels with CUDA's libraries, and the files to load of each. CuPy 13 does not look into wheels,
# but uses libraries that are loaded already; CuPy 14 finds the wheels itself.
WHEELS = {
    "nvidia.cuda_nvrtc": ("libnvrtc.so.12",),
    "nvidia.cublas": ("libcublasLt.so.12", "libcublas.so.12"),
}


class GpuCheck(NamedTuple):
    """A piece that a step on the GPU needs, its version or error, and the fix if it fails."""

    piece: str
    observed: str
    fix: str = ""


def format_checks(found: Iterable[GpuCheck]) -> str:
    """Return the state of each piece, in one line."""
    return "; ".join(f"{each.piece}: {each.observed}" for each in found)


def probe(number: int = 0) -> list[GpuCheck]:
    """Check what a step on device `number` needs, up to the first piece that does not work."""
    found: list[GpuCheck] = []
    for piece, attempt, fix in PROBES:
        found.append(_check(piece, attempt, fix, number))
        if found[-1].fix:
            break
    return found


def _check(piece: str, attempt: Callable[[int], str], fix: str, number: int) -> GpuCheck:
    try:
        return GpuCheck(piece, attempt(number))
    except ReportedError as error:
        return GpuCheck(piece, str(error), error.fix or fix)
    except Exception as error:  # noqa: BLE001 - a library that does not load raises several kinds
        return GpuCheck(piece, in_one_line(error), FIXES.get(status(error), fix))


def select_device(number: int, also: Callable[[], GpuCheck]) -> Any:
    """Check a device as `check_device` does, and make it this thread's current one."""
    cupy = check_device(number, also)
    cupy.cuda.Device(number).use()
    return cupy


def check_device(number: int, also: Callable[[], GpuCheck]) -> Any:
    """Check that all that a device needs works; return CuPy.

    Raises:
        UnavailableError: something is missing; with what was checked, `also` included, and the fix.
    """
    if reason := _unavailable_reason(number, also):
        raise UnavailableError(reason)
    return _cupy()


@cache
def _unavailable_reason(number: int, also: Callable[[], GpuCheck]) -> str:
    """Return what a step on a device lacks; empty if nothing."""
    found = probe(number)
    if not found[-1].fix:
        return ""
    if not is_installed():
        found.append(driver())
    fixes = "; ".join(each.fix for each in found if each.fix)
    checked = format_checks((*found, also()))
    return f"gpu:{number} cannot be used. Looked for {checked}. To do: {fixes}; or use the CPU"


def is_installed() -> bool:
    """Return whether CuPy is installed, without importing it."""
    return importlib.util.find_spec("cupy") is not None


def driver() -> GpuCheck:
    """Check the driver without CuPy."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return GpuCheck("driver", "none (no libcuda.so.1)", DRIVER)
    return GpuCheck("driver", "installed")


@cache
def _cupy() -> Any:
    """Import CuPy, after CUDA's libraries from wheels."""
    for package, files in WHEELS.items():
        for file in files:
            with contextlib.suppress(OSError):  # reported when it is used
                ctypes.CDLL(str(_wheel(package) / "lib" / file))
    import cupy

    return cupy


def _wheel(package: str) -> Path:
    """Return the folder of a package; of none, the current one."""
    with contextlib.suppress(ModuleNotFoundError):  # there is no parent package
        spec = importlib.util.find_spec(package)
        if spec and spec.submodule_search_locations:
            return Path(spec.submodule_search_locations[0])
    return Path()


def _try_cupy(_number: int) -> str:
    """Check that CuPy is installed once, and loads."""
    if not is_installed():
        raise ReportedError("not installed")
    names = {each.metadata["Name"] or "" for each in metadata.distributions()}
    wheels = sorted(n for n in names if re.fullmatch(r"cupy(-(cuda|rocm)[\w-]*)?", n.lower()))
    if len(wheels) > 1:
        fix = f"python -m pip uninstall {' '.join(wheels)}, then {INSTALL}"
        raise ReportedError(f"installed {len(wheels)} times: {', '.join(wheels)}", fix)
    return _cupy().__version__


def _try_driver(_number: int) -> str:
    """Check that there is a driver that is new enough for CuPy."""
    runtime = _cupy().cuda.runtime
    version, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    if not version:
        raise ReportedError("none (no libcuda.so.1)")
    observed = f"for CUDA {_dotted(version)}"
    if version // 1000 < needed // 1000:
        raise ReportedError(f"{observed}, and CuPy is built for CUDA {_dotted(needed)}")
    return observed


def _dotted(version: int) -> str:
    """Format CUDA's version number: 12090 is 12.9."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _try_device(number: int) -> str:
    """Check that there is a device of this number."""
    runtime = _cupy().cuda.runtime
    try:
        count = runtime.getDeviceCount()
        names = [_device(runtime.getDeviceProperties(each)) for each in range(count)]
    except runtime.CUDARuntimeError as error:
        if status(error) in FIXES:
            raise
        count, names = 0, [in_one_line(error)]
    observed, fix = f"{count} ({', '.join(names)})" if names else "0", ""
    if number < count:
        return observed
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if count:
        fix = f"use {' to '.join(dict.fromkeys(('gpu:0', f'gpu:{count - 1}')))}"
    elif visible is not None:
        observed += f", CUDA_VISIBLE_DEVICES is {visible!r}"
        fix = "unset CUDA_VISIBLE_DEVICES"
    raise ReportedError(observed, fix)


def name_of(properties: dict[str, Any]) -> str:
    """Return a device's name, which some versions of CuPy give as bytes."""
    name = properties["name"]
    return name.decode() if isinstance(name, bytes) else name


def _device(properties: dict[str, Any]) -> str:
    name = name_of(properties)
    capability = f"{properties['major']}.{properties['minor']}"
    size = properties["totalGlobalMem"] / 2**30
    return f"{name}, compute capability {capability}, {size:.1f} GiB"


def _try_launch(number: int) -> str:
    """Check that a small kernel runs, and computes correctly."""
    cupy = _cupy()
    from adadelta_cli.kernels import cupy_ieee

    with cupy.cuda.Device(number):
        one = cupy_ieee.IeeeArray(cupy.ones(1, "float32"))
        two = float(cupy.asnumpy((one + one).values)[0])
    if two != 2:
        raise ReportedError(f"1 + 1 = {two:g}", "this GPU computes wrong results; use another")
    return "works"


def _try_products(number: int) -> str:
    """Check matrix products, which `run` needs: they are in a library of their own."""
    cupy = _cupy()
    with cupy.cuda.Device(number):
        ones = cupy.ones((2, 2), "float32")
        cupy.asnumpy(ones @ ones)
    return "works"


# Fixes of a missing device or a failed launch, by CUDA's error number (driver_types.h, cudaError).
FIXES = {
    34: "remove CUDA's lib64/stubs, which hold no driver, from LD_LIBRARY_PATH",
    803: "restart the machine: the driver was updated, and its old kernel module still runs",
    804: "remove the cuda-compat library from LD_LIBRARY_PATH: this GPU cannot use it",
    2: "free memory of the GPU: nvidia-smi names the processes that hold it",
    46: "another process uses this GPU exclusively: end it, or nvidia-smi --compute-mode=0",
    209: f"this GPU is newer than the compiler: {INSTALL} --upgrade",
}
# Name, attempt that returns what it found, and the fix if the error has no other.
PROBES: tuple[tuple[str, Callable[[int], str], str], ...] = (
    ("CuPy", _try_cupy, INSTALL),
    ("driver", _try_driver, DRIVER),
    ("devices", _try_device, NVIDIA_SMI),
    ("NVRTC", lambda _: ".".join(map(str, _cupy().cuda.nvrtc.getVersion())), INSTALL),
    ("a small launch", _try_launch, NVIDIA_SMI),
    ("cuBLAS", _try_products, INSTALL),
)
