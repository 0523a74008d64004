"""The array libraries that hold the tensors: NumPy, MXNet, CuPy, PyTorch and JAX."""

from __future__ import annotations

import importlib
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli.errors import AdadeltaError, UnavailableError, UsageError, nearest, shortened
from adadelta_cli.mxnet_bridge import probe, runtime
from adadelta_cli.system import gpu
from adadelta_cli.system.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Device:
    """Where the tensors are: `cpu`, or `gpu` with its index."""

    kind: str = "cpu"
    number: int = 0

    @classmethod
    def parse(cls, text: str) -> Device:
        """Read `cpu`, `gpu` or `gpu:N`.

        Raises:
            UsageError: it is none of these.
        """
        match = re.fullmatch(r"(cpu)|gpu(?::([0-9]{1,4}))?", text)
        if not match:
            raise UsageError(
                f"ctx is {shortened(text)!r}{_meant(text)}; expected cpu, gpu or gpu:N"
            )
        return cls("cpu") if match[1] else cls("gpu", int(match[2] or 0))

    def __str__(self) -> str:
        return f"{self.kind}:{self.number}" if self.number else self.kind


CPU = Device()
CUDA = "cuda"  # what PyTorch calls a GPU


def _meant(text: str) -> str:
    """Suggest the device that a wrong name stands for, with its number."""
    kind, colon, number = text.replace(CUDA, "gpu").partition(":")
    near = nearest(kind, ("cpu", "gpu"), most=1)
    if not near:
        return ""
    numbered = near == ["gpu"] and number.isdecimal()
    return f" (did you mean {near[0]}{(colon + number) * numbered}?)"


class NumpyBackend:
    """NumPy's arrays, on a CPU.

    Args:
        device: where they are; its kind is one of `kinds`.
    """

    name = "numpy"
    kinds: tuple[str, ...] = ("cpu",)
    xp: Any = np

    def __init__(self, device: Device = CPU) -> None:
        self.device = device

    def array(self, values: np.ndarray) -> Any:
        """Copy to an array of this library, same shape and dtype."""
        return np.array(values, order="C", copy=True)

    def assign(self, array: Any, values: np.ndarray) -> None:
        """Copy values into an array of this library, same shape and dtype."""
        array[() if values.ndim == 0 else slice(None)] = values  # MXNet needs these

    def numpy(self, array: Any) -> np.ndarray:
        """Copy to NumPy, once whatever is pending is done."""
        return np.array(array, copy=True)

    def wait(self) -> None:
        """Return when all work handed to the library is done."""


class MxnetBackend(NumpyBackend):
    """MXNet's NumPy-like arrays, on a CPU, or on a GPU if MXNet has CUDA."""

    name = "mxnet"
    kinds = ("cpu", "gpu")

    def __init__(self, device: Device = CPU) -> None:
        super().__init__(device)
        if device.kind == "gpu":
            found = probe.launch(device.number)
            if found.fix:
                raise UnavailableError(
                    f"MXNet on {device}: {found.piece}: {found.observed}; {found.fix}"
                )
        self.mxnet = runtime.load_mxnet()
        self.mxnet.npx.set_np()  # empty and zero-dimensional shapes
        self.xp = self.mxnet.np
        self._place = getattr(self.mxnet, device.kind)(device.number)

    def array(self, values: np.ndarray) -> Any:
        """Copy to an array of this library, same shape and dtype."""
        return self.xp.array(values, dtype=values.dtype, device=self._place)

    def numpy(self, array: Any) -> np.ndarray:
        """Copy to NumPy, once whatever is pending is done."""
        return array.asnumpy()

    def wait(self) -> None:
        """Return when all work handed to the library is done."""
        self.mxnet.nd.waitall()


class CupyBackend(NumpyBackend):
    """CuPy's arrays, on a GPU, which becomes the current device of the thread."""

    name = "cupy"
    kinds = ("gpu",)

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self.xp = gpu.select_device(device.number, probe.build)

    def array(self, values: np.ndarray) -> Any:
        """Copy to an array of this library, same shape and dtype."""
        return self.xp.array(values, order="C")

    def assign(self, array: Any, values: np.ndarray) -> None:
        """Copy values into an array of this library, same shape and dtype."""
        array.set(values)

    def numpy(self, array: Any) -> np.ndarray:
        """Copy to NumPy, once whatever is pending is done."""
        return self.xp.asnumpy(array)

    def wait(self) -> None:
        """Return when all work handed to the device is done."""
        self.xp.cuda.Device().synchronize()


class TorchBackend(NumpyBackend):
    """PyTorch's tensors, on a CPU: what `torch.optim` updates."""

    name = "torch"

    def __init__(self, device: Device = CPU) -> None:
        super().__init__(device)
        self.torch = import_library("torch")

    def array(self, values: np.ndarray) -> Any:
        """Copy to an array of this library, same shape and dtype."""
        return self.torch.from_numpy(super().array(values))

    def assign(self, array: Any, values: np.ndarray) -> None:
        """Copy values into an array of this library, same shape and dtype."""
        array[()] = self.array(values)

    def numpy(self, array: Any) -> np.ndarray:
        """Copy to NumPy, once whatever is pending is done."""
        return super().numpy(array.detach().numpy())


class Box:
    """A mutable reference to a JAX array, which itself is immutable."""

    def __init__(self, value: Any) -> None:
        self.value = value


class JaxBackend(NumpyBackend):
    """JAX's arrays, each in a `Box`; sets float64 and the device for the whole process."""

    name = "jax"

    def __init__(self, device: Device = CPU) -> None:
        super().__init__(device)
        self.jax = import_library("jax")
        self.jax.config.update("jax_enable_x64", True)
        self.jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda"}[device.kind])

    def array(self, values: np.ndarray) -> Any:
        """Copy to an array of this library, same shape and dtype."""
        return Box(self._copied(values))

    def _copied(self, values: np.ndarray) -> Any:
        place = self.jax.devices()[self.device.number]
        return self.jax.device_put(self.jax.numpy.array(values), place)

    def assign(self, array: Any, values: np.ndarray) -> None:
        """Copy values into an array of this library, same shape and dtype."""
        array.value = self._copied(values)

    def numpy(self, array: Any) -> np.ndarray:
        """Copy to NumPy, once whatever is pending is done."""
        return super().numpy(array.value)


# The extra of this package that installs a library, and what else it must install.
EXTRAS = {"torch": ("torch", ()), "jax": ("jax", ("optax",))}


def missing_library(library: str) -> str:
    """Say what an optional library lacks, and how to install it; empty if it is installed."""
    extra, others = EXTRAS[library]
    absent = [name for name in (library, *others) if importlib.util.find_spec(name) is None]
    if not absent:
        return ""
    return f"{' and '.join(absent)} not installed; python -m pip install 'adadelta[{extra}]'"


def import_library(library: str) -> Any:
    """Import an optional library.

    Raises:
        UnavailableError: it is not installed, or does not load.
    """
    lack = missing_library(library)
    if lack:
        raise UnavailableError(lack)
    try:
        return importlib.import_module(library)
    except (ImportError, OSError) as error:
        raise UnavailableError(
            f"{library} is installed and does not load: {error}; reinstall it, or leave it out"
        ) from error


BACKENDS: dict[str, type[NumpyBackend]] = {
    "numpy": NumpyBackend,
    "mxnet": MxnetBackend,
    "cupy": CupyBackend,
}
# For the optimizers of other frameworks only: no values of `--backend`.
FRAMEWORKS: dict[str, type[NumpyBackend]] = {"torch": TorchBackend, "jax": JaxBackend}
# What `auto` means, by kind of device.
AUTOMATIC: dict[str, Callable[[Device], str]] = {
    "cpu": lambda _device: "mxnet" if runtime.is_installed() else "numpy",
    "gpu": lambda device: "cupy" if probe.launches(device.number).fix else "mxnet",
}


def resolve(name: str, device: Device) -> str:
    """Return the name of an array library: for `auto`, the one that is used on the device."""
    return AUTOMATIC[device.kind](device) if name == "auto" else name


def backend(name: str = "auto", device: Device = CPU) -> NumpyBackend:
    """Return the array library for `--backend` and `--ctx`.

    Args:
        name: `auto` is MXNet if it can compute on the device, else NumPy or CuPy.
        device: where its arrays are.

    Raises:
        UnavailableError: that library or device is not available here.
        UsageError: there is no such backend, or it has no arrays on that device.
    """
    name = resolve(name, device)
    check_place(name, device)
    return (BACKENDS | FRAMEWORKS)[name](device)


def check_place(name: str, device: Device) -> None:
    """Check that an array library exists and can have arrays on a device.

    Raises:
        UsageError: it does not, or cannot.
    """
    known = BACKENDS | FRAMEWORKS
    if name not in known:
        raise UsageError(f"--backend is {name!r}; allowed are auto, {', '.join(BACKENDS)}")
    if device.kind not in known[name].kinds:
        there = [each for each, found in BACKENDS.items() if device.kind in found.kinds]
        raise UsageError(
            f"--ctx {device} --backend {name}: {name} has no arrays there; with --ctx {device}, "
            f"take --backend auto, {' or '.join(there)}; with --backend {name}, take --ctx "
            f"{known[name].kinds[0]}"
        )


@cache
def library(name: str, device: Device) -> str:
    """Name the array library that `backend` would return.

    A GPU is tried in a child process, which releases it when it ends.

    Raises:
        UnavailableError, UsageError: as `backend`.
    """
    if device.kind == "cpu":
        return backend(name, device).name
    with Sandbox() as sandbox:
        problem = sandbox.call(_problem, resolve(name, device), device)
    if problem:
        raise problem
    return resolve(name, device)


def _problem(name: str, device: Device) -> AdadeltaError | None:
    """Return the error if an array library is not available, else None."""
    try:
        backend(name, device)
    except AdadeltaError as error:
        return error
    return None
