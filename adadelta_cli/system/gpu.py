"""The GPU: what a step on it needs, tried piece by piece, and what fixes what is missing.

Nothing heavy is imported before it is asked for. A piece is tried, and never looked up in a list of
devices or versions: a small launch says whether a GPU can be used.
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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

INSTALL = "python -m pip install 'adadelta[gpu]'"
DRIVER = (  # the least that runs CUDA 12: CUDA's release notes, "CUDA Toolkit and driver versions"
    "install NVIDIA's driver, 525.60.13 or later, on the host (Ubuntu: apt-get install "
    "nvidia-driver-550; Debian: nvidia-driver); a container is started with docker run --gpus all"
)
# The wheels that CUDA's libraries come in, and what is loaded of each: CuPy 13 looks for them only
# where the system's loader does; what is loaded already it takes (CuPy 14 finds the wheels itself).
WHEELS = {
    "nvidia.cuda_nvrtc": ("libnvrtc.so.12",),
    "nvidia.cublas": ("libcublasLt.so.12", "libcublas.so.12"),
}


class GpuCheck(NamedTuple):
    """What was found of a piece that a step on the GPU needs.

    Attributes:
        piece: what was looked for.
        observed: what was found.
        fix: the command or advice that fixes it; empty where it works.
    """

    piece: str
    observed: str
    fix: str = ""


def format_checks(found: Iterable[GpuCheck]) -> str:
    """Say in a line what was found of each piece."""
    return "; ".join(f"{each.piece}: {each.observed}" for each in found)


# --- CuPy, piece by piece -------------------------------------------------------------------------


def probe(number: int = 0) -> list[GpuCheck]:
    """Try what a step through CuPy needs, in order, up to the first piece that does not work.

    Args:
        number: of the device.
    """
    found: list[GpuCheck] = []
    for probe in PROBES:
        found.append(probe(number))
        if found[-1].fix:
            break
    return found


def select_device(number: int, also: Callable[[], GpuCheck]) -> Any:
    """Make a device the current one of this thread, once all that it needs was found to work.

    Arguments, return value and errors as of `working`.
    """
    cupy = check_device(number, also)
    cupy.cuda.Device(number).use()
    return cupy


def check_device(number: int, also: Callable[[], GpuCheck]) -> Any:
    """See that all that a device needs works.

    Args:
        number: of the device.
        also: looks for another library that can use it, for the message.

    Returns:
        CuPy.

    Raises:
        UnavailableError: something is missing, with what was looked for and what fixes it.
    """
    lack = _unavailable_reason(number, also)
    if lack:
        raise UnavailableError(lack)
    return _cupy()


@cache
def _unavailable_reason(number: int, also: Callable[[], GpuCheck]) -> str:
    """Say what a step on a device lacks; empty where it lacks nothing."""
    found = probe(number)
    if not found[-1].fix:
        return ""
    if not is_installed():
        found.append(driver())
    fixes = [each.fix for each in found if each.fix]
    told = format_checks((*found, also()))
    return (
        f"--ctx gpu:{number} cannot be used. Looked for {told}. To do: {'; '.join(fixes)}; or use "
        "--ctx cpu"
    )


def is_installed() -> bool:
    """Tell whether there is a CuPy to import, without importing it."""
    return importlib.util.find_spec("cupy") is not None


def driver() -> GpuCheck:
    """Look for the driver without CuPy."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return GpuCheck("driver", "none (no libcuda.so.1)", DRIVER)
    return GpuCheck("driver", "installed")


@cache
def _cupy() -> Any:
    """Import CuPy, with the libraries of CUDA that came as wheels."""
    for package, files in WHEELS.items():
        for file in files:
            with contextlib.suppress(OSError):  # what is needed and missing is told when it is used
                ctypes.CDLL(str(_wheel(package) / "lib" / file))
    import cupy

    return cupy


def _wheel(package: str) -> Path:
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # of the package that it is in
        spec = None
    places = spec.submodule_search_locations if spec else None
    return Path(places[0]) if places else Path()


def _probe_cupy(_number: int) -> GpuCheck:
    """See that there is one CuPy, and that it loads."""
    if not is_installed():
        return GpuCheck("CuPy", "not installed", INSTALL)
    wheels = sorted(
        {name for each in metadata.distributions() if _is_cupy(name := each.metadata["Name"] or "")}
    )
    if len(wheels) > 1:
        fix = f"python -m pip uninstall {' '.join(wheels)}, then {INSTALL}"
        return GpuCheck("CuPy", f"installed {len(wheels)} times: {', '.join(wheels)}", fix)
    try:
        return GpuCheck("CuPy", _cupy().__version__)
    except Exception as error:  # noqa: BLE001 - whatever its import raises
        return GpuCheck("CuPy", f"does not load: {in_one_line(error)}", INSTALL)


def _is_cupy(name: str) -> bool:
    return bool(re.fullmatch(r"cupy(-(cuda|rocm)[\w-]*)?", name.lower()))


def _probe_driver(_number: int) -> GpuCheck:
    """See that there is a driver, and that it is young enough for CuPy."""
    runtime = _cupy().cuda.runtime
    version, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    if not version:
        return GpuCheck("driver", "none (no libcuda.so.1)", DRIVER)
    observed = f"for CUDA {_dotted(version)}"
    if version // 1000 < needed // 1000:
        return GpuCheck(
            "driver", f"{observed}, and CuPy is built for CUDA {_dotted(needed)}", DRIVER
        )
    return GpuCheck("driver", observed)


def _dotted(version: int) -> str:
    """Write CUDA's number of a version as people do.

    >>> _dotted(12090)
    '12.9'
    """
    return f"{version // 1000}.{version % 1000 // 10}"


def _probe_devices(number: int) -> GpuCheck:
    """See that there is such a device."""
    runtime = _cupy().cuda.runtime
    try:
        count = runtime.getDeviceCount()
        names = [_device(runtime.getDeviceProperties(each)) for each in range(count)]
    except runtime.CUDARuntimeError as error:
        if status(error) in FIXES:
            return GpuCheck("devices", in_one_line(error), FIXES[status(error)])
        count, names = 0, [in_one_line(error)]
    observed = f"{count} ({', '.join(names)})" if names else "0"
    if number < count:
        return GpuCheck("devices", observed)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if count:
        allowed = " to ".join(dict.fromkeys(("gpu:0", f"gpu:{count - 1}")))
        return GpuCheck("devices", observed, f"use --ctx {allowed}")
    if visible is not None:
        observed = f"{observed}, CUDA_VISIBLE_DEVICES is {visible!r}"
        return GpuCheck("devices", observed, "unset CUDA_VISIBLE_DEVICES")
    return GpuCheck("devices", observed, "see what nvidia-smi says of the GPU")


def name_of(properties: dict[str, Any]) -> str:
    """Return a device's name, which some versions of CuPy give as bytes."""
    name = properties["name"]
    return name.decode() if isinstance(name, bytes) else name


def _device(properties: dict[str, Any]) -> str:
    name = name_of(properties)
    capability = f"{properties['major']}.{properties['minor']}"
    size = properties["totalGlobalMem"] / 2**30
    return f"{name}, compute capability {capability}, {size:.1f} GiB"


def _probe_compiler(_number: int) -> GpuCheck:
    """See that there is NVRTC, which compiles the kernels."""
    try:
        return GpuCheck("NVRTC", ".".join(map(str, _cupy().cuda.nvrtc.getVersion())))
    except Exception as error:  # noqa: BLE001 - a library that does not load raises several kinds
        return GpuCheck("NVRTC", in_one_line(error), INSTALL)


# What fixes a device that is not found, or a launch that fails, by CUDA's number (driver_types.h,
# cudaError).
FIXES = {
    34: "take CUDA's lib64/stubs, which hold no driver, off LD_LIBRARY_PATH",
    803: "restart the machine: the driver was updated, and its older half still runs",
    804: "take the cuda-compat library off LD_LIBRARY_PATH: this GPU cannot use it",
    2: "free memory of the GPU: nvidia-smi names the processes that hold it",
    46: "another process has this GPU for itself: end it, or nvidia-smi --compute-mode=0",
    209: f"this GPU is newer than the compiler: {INSTALL} --upgrade",
}


def _probe_products(number: int) -> GpuCheck:
    """See that matrices can be multiplied, which `run` needs: a library apart."""
    cupy = _cupy()
    try:
        with cupy.cuda.Device(number):
            ones = cupy.ones((2, 2), "float32")
            cupy.asnumpy(ones @ ones)
    except Exception as error:  # noqa: BLE001 - a library that does not load raises several kinds
        return GpuCheck("cuBLAS", in_one_line(error), FIXES.get(status(error), INSTALL))
    return GpuCheck("cuBLAS", "works")


def _probe_launch(number: int) -> GpuCheck:
    """See that a small kernel runs, and computes."""
    cupy = _cupy()
    from adadelta_cli.kernels import cupy_ieee

    try:
        with cupy.cuda.Device(number):
            one = cupy_ieee.Array(cupy.ones(1, "float32"))
            two = float(cupy.asnumpy((one + one).values)[0])
    except Exception as error:  # noqa: BLE001 - told with what fixes it, where that is known
        fix = FIXES.get(status(error), "see what nvidia-smi says of the GPU")
        return GpuCheck("a small launch", in_one_line(error), fix)
    if two != 2:
        fix = "this GPU computes wrongly; use another"
        return GpuCheck("a small launch", f"1 + 1 = {two:g}", fix)
    return GpuCheck("a small launch", "works")


PROBES: tuple[Callable[[int], GpuCheck], ...] = (
    _probe_cupy,
    _probe_driver,
    _probe_devices,
    _probe_compiler,
    _probe_launch,
    _probe_products,
)
