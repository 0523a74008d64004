"""The processor that a step is timed on: its memory, caches, clock and roofs."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adadelta_cli.bench.buffers import Region, TensorSet, traffic_bytes
from adadelta_cli.implementations import array_backends
from adadelta_cli.implementations.array_backends import FRAMEWORKS, Box, Device, import_library
from adadelta_cli.mxnet_bridge import runtime
from adadelta_cli.system import gpu, machine
from adadelta_cli.system.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adadelta_cli.update import Hyperparameters, Parameter

    Step = Callable[[], Any]

MEMORY, ARITHMETIC, COPY = "memory roof", "arithmetic roof", "device copy"
# What limits a step, each with what the column `bound` says; a device copy is for comparison only.
ROOFS = {MEMORY: "memory", ARITHMETIC: "arithmetic"}


class DeviceSurvey(NamedTuple):
    """Facts about a processor, gathered before anything is allocated.

    Attributes:
        cache_bytes: the size of the last cache before memory.
        available_bytes: what can be allocated; None where the system does not report it.
        about: what bench.json has of it, beyond `machine.describe`.
    """

    cache_bytes: int
    available_bytes: int | None
    about: dict[str, Any]


class Roof(NamedTuple):
    """What limits a step.

    Attributes:
        name: a key of `ROOFS`, or COPY.
        steps: called in turn: one for each copy of the tensors, or one.
        steps_per_call: how many steps' work a call does.
        variant: returns how it is taken, empty where there is one way.
    """

    name: str
    steps: list[Step]
    steps_per_call: float
    variant: Callable[[], str] = str


class CpuDevice:
    """The cores that this process may use."""

    # All but JAX's arrays are views of the same memory, so their placement is the same.
    wrapped: dict[str, Callable[[Any], Any]]

    def __init__(self) -> None:
        self.wrapped = {
            "numpy": lambda array: array,
            "boxed": Box,
            "mxnet": _mxnet_array,
            "torch": lambda array: import_library("torch").from_numpy(array),
            "jax": lambda array: FRAMEWORKS["jax"]().array(array),
        }

    @property
    def cache_bytes(self) -> int:
        """The size of the last cache before memory."""
        return machine.last_cache_bytes()

    def survey(self) -> DeviceSurvey:
        """Gather the facts about it."""
        return DeviceSurvey(self.cache_bytes, machine.available_bytes(), {})

    def region(self, size: int, lines: int) -> Region:
        """Allocate memory for lines of tensors."""
        return Region(size, lines)

    def view(self, array: Any) -> Any:
        """View what a functional step returned as an array of `region`, without a copy."""
        return np.asarray(array)

    def numpy(self, array: Any) -> np.ndarray:
        """Copy an array of `region` to NumPy."""
        return np.array(array)

    def seconds(self, steps: Sequence[Step]) -> float:
        """Return the seconds of a step, the mean of these."""
        start = time.perf_counter_ns()
        for step in steps:
            step()
        return (time.perf_counter_ns() - start) / len(steps) * 1e-9

    def counts(self, _backend: str) -> bool:
        """Tell whether `peak_extra_bytes` includes what a library allocates."""
        return True

    def evictor(self, size: int) -> Step:
        """Return a function that empties the caches: a pass over `size` bytes."""
        ballast = np.zeros(size, np.uint8)
        return partial(np.add, ballast, 1, out=ballast)

    def roofs(
        self, copies: Sequence[TensorSet], dtype: str, seed: int, hyper: Hyperparameters
    ) -> list[Roof]:
        """Return the memory and the arithmetic roof."""
        from adadelta_cli.kernels import roofline

        small = [(roofline.cached_elements(copies[0].line),)]
        (cached,) = TensorSet.allocate(small, dtype, seed)
        roofs = [roofline.Roofs(each.line, cached.line, hyper) for each in copies]
        first = roofs[0]
        return [
            Roof(MEMORY, [each.memory for each in roofs], 1, first.memory_variant),
            Roof(ARITHMETIC, [first.arithmetic], first.steps, first.arithmetic_variant),
        ]

    def settling_steps(self) -> int:
        """Return the number of steps after which a step knows how it is taken fastest."""
        from adadelta_cli.kernels import variants

        return variants.settling_calls()

    def variant(self, line: Parameter, backend: str) -> str:
        """Return how our steps on these tensors are taken, as `kernels.variants.parse` takes it."""
        from adadelta_cli.kernels import cpu

        return cpu.best_variant(line, decays=backend != "torch")  # which omits a decay of 0

    def peak_extra_bytes(self, step: Step) -> int | None:
        """Take a step; return the rise of the resident set's peak, in bytes.

        Linux only (None elsewhere): 5 in clear_refs resets the high-water mark (proc(5)).
        """
        try:
            Path("/proc/self/clear_refs").write_text("5")
            before = _status_kilobytes("VmRSS")
            step()
            return max(0, _status_kilobytes("VmHWM") - before) * 1024
        except OSError:
            return None


def _mxnet_array(array: np.ndarray) -> Any:
    # A view, because MXNet marks what it is given as read-only.
    return runtime.load_mxnet().nd.from_numpy(array.view(), zero_copy=True).as_np_ndarray()


def _status_kilobytes(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{key}:")[1].split()[0])


def _mxnet_array_on_gpu(array: Any) -> Any:
    # A bare capsule, of work that is done: MXNet 2.0.0b1 would hand over half of a stream's handle.
    return runtime.load_mxnet().npx.from_dlpack(array.__dlpack__(stream=-1))


class GpuDevice(CpuDevice):
    """A GPU, through CuPy; an UnavailableError if it is not available here."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._backend = array_backends.backend("cupy", device)
        self._cupy = self._backend.xp
        self._device = self._cupy.cuda.Device()
        self._cupy.get_default_memory_pool().free_all_blocks()  # for the other processes there
        # All but JAX's arrays are views of the same memory, again.
        self.wrapped = {
            "cupy": lambda array: array,
            "boxed": Box,
            "mxnet": _mxnet_array_on_gpu,
            "torch": lambda array: import_library("torch").from_dlpack(array),
            "jax": lambda array: FRAMEWORKS["jax"](device).array(self.numpy(array)),
        }

    @property
    def cache_bytes(self) -> int:
        """The size of the second-level cache, the last before memory."""
        return int(self._device.attributes["L2CacheSize"])

    def survey(self) -> DeviceSurvey:
        """Gather the facts about it."""
        number, cache_bytes = self._device.id, self.cache_bytes
        name = gpu.name_of(self._cupy.cuda.runtime.getDeviceProperties(number))
        about = {"processor": name, "cache_bytes": {"L2": cache_bytes}}
        about |= {each.piece: each.observed for each in gpu.probe(number)}
        return DeviceSurvey(cache_bytes, int(self._device.mem_info[0]), {"gpu": about})

    def region(self, size: int, lines: int) -> Region:
        """Allocate memory for lines of tensors."""
        return Region(size, lines, self._fresh, self._cupy.asarray)

    def _fresh(self, size: int) -> tuple[Any, int]:
        fresh = self._cupy.empty(size, np.uint8)
        return fresh, int(fresh.data.ptr)

    def view(self, array: Any) -> Any:
        """View what a functional step returned as an array of `region`, without a copy."""
        return self._cupy.asarray(array)

    def numpy(self, array: Any) -> np.ndarray:
        """Copy an array of `region` to NumPy."""
        return self._backend.numpy(array)

    def seconds(self, steps: Sequence[Step]) -> float:
        """Return the seconds of a step, the mean of these, by the device's own clock.

        The second event is recorded when all launched work is done. So a step that the device
        computes faster than the host launches it takes as long as its launch.
        """
        cuda = self._cupy.cuda
        start, stop = cuda.Event(), cuda.Event()
        start.record()
        for step in steps:
            step()
        stop.record()
        stop.synchronize()
        return cuda.get_elapsed_time(start, stop) / len(steps) * 1e-3

    def counts(self, backend: str) -> bool:
        """Tell whether `peak_extra_bytes` includes what a library allocates."""
        return backend in {"cupy", "torch"}

    def evictor(self, size: int) -> Step:
        """Return a function that empties the cache: a pass over `size` bytes."""
        ballast = self._cupy.zeros(size, np.uint8)
        return partial(self._cupy.add, ballast, 1, out=ballast)

    def roofs(
        self, copies: Sequence[TensorSet], dtype: str, seed: int, hyper: Hyperparameters
    ) -> list[Roof]:
        """Return the memory roof, and a plain copy.

        A kernel of the same traffic is the ceiling; there is no arithmetic roof. A plain copy by
        the driver shows the available bandwidth.
        """
        del seed, hyper
        from adadelta_cli.kernels import cuda

        states = [each.line.acc_grad for each in copies]
        targets = [self._cupy.empty_like(state) for state in states]
        copying: list[Step] = [
            partial(target.data.copy_from_device_async, state.data, state.nbytes)
            for target, state in zip(targets, states, strict=True)
        ]
        moved = 2 * states[0].itemsize  # read and written, for each element
        return [
            Roof(MEMORY, [cuda.prepared_traffic(each.line) for each in copies], 1),
            Roof(COPY, copying, moved / traffic_bytes(dtype)),
        ]

    def settling_steps(self) -> int:
        """Return 0: there is one way to take a step."""
        return 0

    def variant(self, line: Parameter, backend: str) -> str:
        """Return an empty text: there is one way to take a step."""
        del line, backend
        return ""

    def peak_extra_bytes(self, step: Step) -> int | None:
        """Take a step; return the rise of the allocators' peak memory, in bytes."""
        pool = self._cupy.get_default_memory_pool()
        torch = sys.modules.get("torch")
        pool.free_all_blocks()
        before = pool.total_bytes()
        if torch:
            torch.cuda.reset_peak_memory_stats()
            before += torch.cuda.memory_allocated()
        step()
        self._device.synchronize()
        return pool.total_bytes() + (torch.cuda.max_memory_allocated() if torch else 0) - before


def bench_device(device: Device) -> CpuDevice:
    """Return the processor of a device, or raise an UnavailableError."""
    return GpuDevice(device) if device.kind == "gpu" else CpuDevice()


def survey(device: Device) -> DeviceSurvey:
    """Gather facts about a processor; about a GPU in another process, which then releases it.

    Raises:
        UnavailableError: it is not available here.
        DeviceError: the GPU failed.
    """
    if device.kind == "cpu":
        return CpuDevice().survey()
    with Sandbox() as sandbox:
        return sandbox.call(_survey, device)


def _survey(device: Device) -> DeviceSurvey:
    return bench_device(device).survey()
