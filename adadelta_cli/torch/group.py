"""Which tensors of a parameter group the kernel takes."""

from __future__ import annotations

import inspect
import warnings
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

from adadelta_cli.errors import UnavailableError
from adadelta_cli.torch.fused import STEPS, Tensors, fits, is_like

if TYPE_CHECKING:
    from adadelta_cli.torch.fused import FusedTorchStep

    State = dict[torch.Tensor, dict[str, Any]]  # of an optimizer, by parameter

PACKAGES = ("adadelta_cli", "torch")
ACCUMULATORS = ("square_avg", "acc_delta")


def tensors_of(weights: list[torch.Tensor], grads: list[torch.Tensor], state: State) -> Tensors:
    """Collect parameters, their gradients and states; None for a state that is missing."""
    states = [state[weight] for weight in weights]
    return Tensors(
        weights,
        grads,
        [each.get("square_avg") for each in states],
        [each.get("acc_delta") for each in states],
        [each.get("step") for each in states],
    )


def prepare(weights: list[torch.Tensor], state: State) -> list[tuple[FusedTorchStep, Tensors]]:
    """Prepare the steps of what the kernel takes: one for each dtype and device.

    States of parameters that the kernel takes are made if there are none.
    """
    places = defaultdict(list)
    for weight in weights:
        if fits(weight, weight.grad) and _states_fit(weight, state[weight]):
            places[weight.dtype, weight.device].append(weight)
    found = []
    for chosen in places.values():
        tensors = tensors_of(chosen, [weight.grad for weight in chosen], state)
        step = _step(tensors)
        if step is not None:
            found.append((step, tensors))
    return found


def share_storage(others: list[torch.Tensor], parts: list[tuple[FusedTorchStep, Tensors]]) -> bool:
    """Return whether other parameters or their gradients use the storage of tensors of a step."""
    taken = {_storage(each) for _, tensors in parts for some in tensors[:4] for each in some}
    return bool(taken & {_storage(each) for p in others for each in (p, p.grad)} - {0})


def _storage(tensor: torch.Tensor) -> int:
    """Return the address of a tensor's storage; 0 if it has none of its own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # a wrapper around other tensors
        return 0


def _states_fit(weight: torch.Tensor, found: dict[str, Any]) -> bool:
    if not found:
        found["step"] = torch.zeros((), dtype=_count_dtype())
        for key in ACCUMULATORS:
            found[key] = torch.zeros_like(weight, memory_format=torch.preserve_format)
    return isinstance(found.get("step"), torch.Tensor) and all(
        is_like(weight, found.get(key)) for key in ACCUMULATORS
    )


def _count_dtype() -> torch.dtype:
    """Return the dtype in which PyTorch's optimizers count steps."""
    return torch.float64 if torch.get_default_dtype() is torch.float64 else torch.float32


def _step(tensors: Tensors) -> FusedTorchStep | None:
    """Prepare the step of tensors that the kernel takes; None if only the stock can step them."""
    try:
        return STEPS[tensors.weights[0].device.type](tensors)
    except ValueError:  # they share memory: the stock steps them one after the other
        return None
    except UnavailableError as error:
        message = f"Adadelta steps as PyTorch's own on this GPU: {error}"
        warnings.warn(message, stacklevel=_levels_to_the_caller())
        return None


def _levels_to_the_caller() -> int:
    """Return `stacklevel` of the line that called the optimizer: wrappers of PyTorch lie between.

    A warning is shown once for each line.
    """
    frame, level = inspect.currentframe(), 0
    while frame and frame.f_globals.get("__name__", "").partition(".")[0] in PACKAGES:
        frame, level = frame.f_back, level + 1
    return level
