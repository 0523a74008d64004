"""What every implementation of the step offers: the interface that `registry` lists by name."""

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
    """What a step works on.

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
"""Makes a function that takes one step, in place, each time it is called, from whatever the
gradients hold by then, and that returns when the step is finished."""


class ToleranceULP(NamedTuple):
    """How far one step may be from the array update: in ULPs of each tensor's largest operand."""

    weight: float
    acc_grad: float
    acc_delta: float


def _supports_all(_hyper: Hyperparameters) -> str:
    return ""


@dataclass(frozen=True)
class Implementation:
    """A way to take a step.

    Attributes:
        name: as `--impl` takes it.
        backend: the name of the array library that holds its tensors, on a CPU where it can.
        on_gpu: the one that holds them on a GPU; empty for what computes on a CPU only.
        fused: one pass over memory.
        bind: makes the step.
        unfused: the name of the same backend's unfused step, which a speed-up is measured against.
        keeps_grad: the gradient is left as it was; MXNet's own optimizer overwrites it.
        dtypes: those that it can take; MXNet's own optimizer has float32 states for all.
        sandbox: the group of libraries that it shares a process with; empty for our own.
        tolerance: how far it may be from the array update; None: not in a bit.
        flushes: it flushes subnormals to zero, and is compared accordingly.
        unsupported_reason: says why it cannot take a step with some hyper-parameters; empty
            where it can.
        cases: the cases that it is put to unless others are named; None for all.
        timed: as `bind`, of the step alone, nothing pre-processed or watched; None: `bind`.
        timed_on: the kind of arrays that `timed` takes, where it is not the backend's.
        optimizer: of one that keeps its states in an MXNet Updater, what makes it: from
            hyper-parameters, and whether there are float32 masters.
        device: where its tensors lie.
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
    optimizer: Callable[[Hyperparameters, bool], Any] | None = None
    on_gpu: str = ""
    device: Device = CPU

    def on(self, device: Device) -> Implementation:
        """Return it as it is on a device; what computes on a CPU only stays there."""
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
