"""The simulated device: it launches kernels on the host, and fails when it is asked to.

Variables of the environment say what it is and what goes wrong:

    SIMULATED_GPU_DEVICES   how many devices there are; 1
    SIMULATED_GPU_DRIVER    CUDA's number of the driver's version; 12090; 0: no driver
    SIMULATED_GPU_NVRTC     `missing`: the compiler does not load
    SIMULATED_GPU_FAULT     STATUS@N: launch N of a process, and all that follow, raise this error
    SIMULATED_GPU_MEMORY    @N: allocation N of a process, and all that follow, find no memory
"""

from __future__ import annotations

import ctypes
import os
import time
from types import SimpleNamespace

import host_cuda

NAMES = {
    2: "cudaErrorMemoryAllocation: out of memory",
    35: "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version",
    46: "cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable",
    100: "cudaErrorNoDevice: no CUDA-capable device is detected",
    101: "cudaErrorInvalidDevice: invalid device ordinal",
    214: "cudaErrorECCUncorrectable: uncorrectable ECC error encountered",
    700: "cudaErrorIllegalAddress: an illegal memory access was encountered",
    719: "cudaErrorLaunchFailure: unspecified launch failure",
}


class CUDARuntimeError(RuntimeError):
    """As CuPy's."""

    def __init__(self, status):
        super().__init__(NAMES[status])
        self.status = status


class CUDADriverError(CUDARuntimeError):
    """As CuPy's."""


class OutOfMemoryError(MemoryError):
    """As CuPy's."""


class CompileException(Exception):  # noqa: N818 - CuPy's name
    """As CuPy's."""


def _count():
    if not _driver_version():
        raise CUDARuntimeError(35)
    count = int(os.environ.get("SIMULATED_GPU_DEVICES", "1"))
    if not count:
        raise CUDARuntimeError(100)
    return count


def _driver_version():
    return int(os.environ.get("SIMULATED_GPU_DRIVER", "12090"))


def _properties(number):
    return {
        "name": f"simulated GPU {number}".encode(),
        "major": 0,
        "minor": 0,
        "totalGlobalMem": 2**30,
    }


def _fails(variable, done):
    """Tell whether what was asked to fail after so many launches or allocations fails now."""
    status, _, after = os.environ.get(variable, "").partition("@")
    return (int(status or 2)) if after and done >= int(after) else 0


launches = allocations = allocated_bytes = 0


def _launch():
    global launches  # noqa: PLW0603 - of the process
    launches += 1
    launched_on.append((Device.current, ExternalStream.current))
    status = _fails("SIMULATED_GPU_FAULT", launches)
    if status:
        raise CUDARuntimeError(status)


def _allocate(nbytes):
    global allocations, allocated_bytes  # noqa: PLW0603 - of the process
    allocations += 1
    allocated_bytes += nbytes
    if _fails("SIMULATED_GPU_MEMORY", allocations):
        raise OutOfMemoryError(f"Out of memory allocating {nbytes:,} bytes")


class Device:
    """The current device, or that of a number."""

    current = 0

    def __init__(self, number=None):
        self.id = Device.current if number is None else number
        self._before = []

    def use(self):
        if self.id >= _count():
            raise CUDARuntimeError(101)
        Device.current = self.id

    def __enter__(self):
        self._before.append(Device.current)
        self.use()
        return self

    def __exit__(self, *_):
        Device.current = self._before.pop()

    def synchronize(self):
        """Return at once: a simulated launch is done when it returns."""

    attributes = {"L2CacheSize": 2**18}  # noqa: RUF012 - as CuPy's
    mem_info = (2**30 - 2**20, 2**30)  # bytes that are free, and in all


class ExternalStream:
    """A stream of another library, by its address; 0 is the default stream."""

    current = 0

    def __init__(self, address):
        self.ptr = address

    def __enter__(self):
        self._before, ExternalStream.current = ExternalStream.current, self.ptr
        return self

    def __exit__(self, *_):
        ExternalStream.current = self._before


launched_on = []  # the device and the stream of each launch


class Event:
    """A point in the work of the device, which is the host's."""

    def record(self):
        self.seconds = time.perf_counter()

    def synchronize(self):
        pass


def get_elapsed_time(start, stop):
    """Return the milliseconds between events."""
    return (stop.seconds - start.seconds) * 1e3


def get_current_stream():
    """Return the stream whose work is done at once."""
    return Device()


class MemoryPointer:
    """An address on the device, and what keeps its memory alive."""

    def __init__(self, address, memory):
        self.ptr, self._memory = address, memory

    def copy_from_device_async(self, source, nbytes):
        _launch()
        ctypes.memmove(self.ptr, source.ptr, nbytes)


def _nvrtc_version():
    if os.environ.get("SIMULATED_GPU_NVRTC") == "missing":
        raise RuntimeError("CuPy failed to load libnvrtc.so.12: OSError: cannot open")
    return 12, 9


class RawModule(host_cuda.RawModule):
    """The kernels of a source, launched as long as the device is well."""

    def get_function(self, name):
        kernel = super().get_function(name)

        def launch(grid, block, args):
            _launch()
            kernel(grid, block, args)

        return launch


runtime = SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError,
    getDeviceCount=_count,
    getDeviceProperties=_properties,
    driverGetVersion=_driver_version,
    runtimeGetVersion=lambda: 12090,
)
driver = SimpleNamespace(CUDADriverError=CUDADriverError)
memory = SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
nvrtc = SimpleNamespace(getVersion=_nvrtc_version)
compiler = SimpleNamespace(CompileException=CompileException)
