"""Run an implementation on a case or a training, for sandboxes to call."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli.implementations import array_backends, optimizers, registry
from adadelta_cli.implementations.base import StepInputs
from adadelta_cli.mxnet_bridge import runtime
from adadelta_cli.system import process_state
from adadelta_cli.verification.ulp import Difference

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adadelta_cli.implementations.array_backends import Device, NumpyBackend
    from adadelta_cli.implementations.base import Bind, Implementation
    from adadelta_cli.verification.cases import Case


@dataclass(frozen=True)
class Trajectory:
    """The results of an implementation on a case or a training.

    `tensors` has, for weight, acc_grad, acc_delta, and master where there is one: the elements of
    all tensors end to end, an array for the start and for each recorded step.
    """

    tensors: dict[str, list[np.ndarray]]
    grad_changes: int = 0  # elements of the gradients that the steps changed
    # (step, loss) at each recorded step; of a training only.
    losses: list[tuple[int, float]] = field(default_factory=list)


def make_ready(backend: str, device: Device) -> None:
    """Import a backend's library."""
    array_backends.backend(backend, device)


def step_through(
    implementation: Implementation,
    case: Case,
    dtype: str,
    seed: int,
    starts: dict[str, list[np.ndarray]] | None = None,
    *,
    backend: NumpyBackend | None = None,
    bind: Bind | None = None,
) -> Trajectory:
    """Take a case's steps with an implementation.

    `backend` makes the arrays and `bind` the step, in place of the implementation's own. Each step
    starts from the state before it in `starts`, a trajectory's tensors, if they are given.
    """
    warnings.simplefilter("ignore", RuntimeWarning)  # infinities and NaNs are data here
    backend = backend or implementation.arrays()
    parameters = [
        registry.parameter(backend, v.weight, np.zeros_like(v.weight), *v[1:], dtype=dtype)
        for v in case.start(dtype, seed)
    ]
    with (
        runtime.flush_subnormals(case.flush)
        if backend.name == "mxnet"
        else contextlib.nullcontext()
    ):
        inputs = StepInputs(parameters, case.hyper, case.lr_mults, case.wd_mults)
        step = bind_step(implementation, inputs, bind)
        states, changes = [_snapshot(backend, parameters)], 0
        for number in range(1, case.steps + 1):
            grads = case.grads(dtype, seed, number)
            for parameter, grad in zip(parameters, grads, strict=True):
                backend.assign(parameter.grad, grad)
            if starts is not None:
                _restart(backend, parameters, case, {n: v[number - 1] for n, v in starts.items()})
            step()
            states.append(_snapshot(backend, parameters))
            after = zip((backend.numpy(p.grad) for p in parameters), grads, strict=True)
            changes += sum(Difference.between(got, grad, grad).mismatches for got, grad in after)
    return Trajectory(_transposed(states), changes)


def bind_step(
    implementation: Implementation, inputs: StepInputs, bind: Bind | None = None
) -> Callable[[], None]:
    """Bind an implementation; third-party code runs in its own state of the process."""
    bind = bind or implementation.bind
    if implementation.is_built_in:
        return bind(inputs)
    with process_state.third_party():
        step = bind(inputs)

    def in_its_state() -> None:
        with process_state.third_party():
            step()

    return in_its_state


def _restart(
    backend: Any, parameters: Sequence[Any], case: Case, state: dict[str, np.ndarray]
) -> None:
    ends = np.cumsum([int(np.prod(shape)) for shape in case.shapes])[:-1]
    for name, flat in state.items():
        parts = zip(parameters, np.split(flat, ends), case.shapes, strict=True)
        for parameter, part, shape in parts:
            backend.assign(getattr(parameter, name), part.reshape(shape))


def train(
    reference: str,
    overrides: Sequence[str],
    implementation: Implementation,
    dtype: str,
    seed: int,
    steps: int | None,
) -> Trajectory:
    """Train a config with an implementation for at most `steps`; keep every recorded step."""
    from adadelta_cli.run import config, trainer

    backend = implementation.arrays()
    settings = config.load_config(reference, list(overrides))
    run = trainer.Trainer(settings, backend, fused=implementation.fused, dtype=dtype, seed=seed)
    end = min(run.total, steps or run.total)
    parameters = optimizers.as_parameters([*run.parameters.values()])
    every = settings.training.record_every or run.steps_per_epoch
    states, losses = [_snapshot(backend, parameters)], [(0, run.measure().loss)]
    while run.step < end:
        run.advance()
        if run.step % every == 0 or run.step == end:
            states.append(_snapshot(backend, parameters))
            losses.append((run.step, run.measure().loss))
    return Trajectory(_transposed(states), losses=losses)


def _snapshot(backend: Any, parameters: Sequence[Any]) -> dict[str, np.ndarray]:
    names = ("weight", "acc_grad", "acc_delta", "master")
    return {
        name: np.concatenate([backend.numpy(getattr(p, name)).ravel() for p in parameters])
        for name in names
        if getattr(parameters[0], name) is not None
    }


def _transposed(states: list[dict[str, np.ndarray]]) -> dict[str, list[np.ndarray]]:
    return {name: [state[name] for state in states] for name in states[0]}
