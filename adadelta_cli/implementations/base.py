"""The interface of all implementations of the step; `registry` has them by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from adadelta_cli.implementations import array_backends
from adadelta_cli.implementations.array_backends import CPU, Device

if TYPE_CHECKING:
    from adadelta_cli.implementations.array_backends import NumpyBackend
    from adadelta_cli.update import Hyperparameters, Parameter

Step = Callable[[], None]


@dataclass(frozen=True)
class StepInputs:
    """The inputs of a step.

    Attributes:
        parameters: the tensors, in arrays of one library.
        hyper: the hyper-parameters of all of them.
        lr_mults, wd_mults: multipliers of rate and weight decay, one for each tensor.
    """

    parameters: Sequence[Parameter]
    hyper: Hyperparameters
    lr_mults: Sequence[float]
    wd_mults: Sequence[float]

    @property
    def learning_rates(self) -> list[float]:
        """Rate times multiplier of each tensor, in double."""
        return [self.hyper.learning_rate * mult for mult in self.lr_mults]

    @property
    def weight_decays(self) -> list[float]:
        """Weight decay times multiplier of each tensor, in double."""
        return [self.hyper.wd * mult for mult in self.wd_mults]


Bind = Callable[[StepInputs], Step]
"""Make a function that takes one step in place at each call, with the current gradients, and
returns when the step is done."""
MakeOptimizer = Callable[["Hyperparameters", bool], Any]
"""Make an MXNet optimizer from hyper-parameters, and whether there are float32 masters."""


class ToleranceULP(NamedTuple):
    """The largest allowed error of one step, in ULPs of each tensor's largest operand."""

    weight: float
    acc_grad: float
    acc_delta: float


# Between two implementations that round each operation by themselves, in any order, with or without
# contraction; derived in docs/own-kernels.md.
ANY_ORDER = ToleranceULP(weight=30.0, acc_grad=16.0, acc_delta=60.0)


def _supports_all(_hyper: Hyperparameters) -> str:
    return ""


@dataclass(frozen=True)
class Implementation:
    """An implementation of the step.

    Attributes:
        name: as `--impl` takes it.
        backend: the name of the array library that holds its tensors, on a CPU if possible.
        on_gpu: the array library for GPUs; empty for implementations on CPUs only.
        fused: one pass over memory.
        bind: makes the step.
        unfused: the name of the same backend's unfused step, the baseline of speed-ups.
        keeps_grad: the gradient is left unchanged; MXNet's own optimizer overwrites it.
        dtypes: the supported ones; MXNet's own optimizer has float32 states for all.
        sandbox: implementations with the same text share a process; empty for built-in ones.
        tolerance: the allowed distance from the array update; None: bit-identical.
        flushes: it flushes subnormals to zero, and is compared accordingly.
        unsupported_reason: says why hyper-parameters are not supported; empty if they are.
        cases: the cases it is checked with by default; None for all.
        timed: as `bind`, without preprocessing and checks, for `bench`; None: `bind`.
        timed_on: the arrays that `timed` takes, if they are not the backend's.
        optimizer: makes the optimizer, for those that keep their states in an MXNet Updater.
        device: where its tensors are.
    """

    name: str
    backend: str
    fused: bool
    bind: Bind
    unfused: str
    keeps_grad: bool = True
    dtypes: tuple[str, ...] = ("float16", "float32", "float64")
    sandbox: str = ""
    tolerance: ToleranceULP | None = None
    flushes: bool = False
    unsupported_reason: Callable[[Hyperparameters], str] = _supports_all
    cases: frozenset[str] | None = None
    timed: Bind | None = None
    timed_on: str = ""
    optimizer: MakeOptimizer | None = None
    on_gpu: str = ""
    device: Device = CPU

    @property
    def is_built_in(self) -> bool:
        """Whether it is this package's or MXNet's, compared bit for bit, or third-party code."""
        return self.tolerance is None

    def on(self, device: Device) -> Implementation:
        """Return it for a device; implementations on CPUs only are unchanged."""
        if device.kind == "gpu" and self.on_gpu:
            return replace(self, backend=self.on_gpu, device=device)
        return self

    def arrays(self) -> NumpyBackend:
        """Return the array library that holds its tensors.

        Raises:
            UnavailableError: it is not available here.
            UsageError: it has no arrays there.
        """
        return array_backends.backend(self.backend, self.device)
