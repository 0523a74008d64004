"""Other frameworks' AdaDelta, each through its own public optimizer, on its own tensors.

They have no rescaling or clipping, and their weight decay differs. So each gets a preprocessed
gradient, `clip(g * rescale_grad, clip_gradient) + wd * w`, computed in the dtype and with the
roundings of `update.py`, and a weight decay of 0: the optimizer alone is compared.

`bench` times the optimizer's own step: its hyper-parameters need no preprocessing.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adadelta_cli.implementations import array_backends
from adadelta_cli.system import machine
from adadelta_cli.system.sandbox import ReportedError
from adadelta_cli.update import RESULTS, preprocess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from adadelta_cli.implementations.base import Implementation, Step, StepInputs
    from adadelta_cli.update import Parameter


def _preprocessed(inputs: StepInputs, number: int, grad: Any, weight: Any) -> np.ndarray:
    """Return a tensor's preprocessed gradient; all are NumPy arrays."""
    scalars = inputs.hyper.scalars(grad.dtype)
    with np.errstate(all="ignore"):
        wd = inputs.weight_decays[number]
        return np.asarray(preprocess(np, grad, weight, scalars, wd))


def missing_requirement(framework: Implementation) -> str:
    """Say what is missing for a framework, and how to install it; empty if nothing is."""
    missing = array_backends.missing_library(framework.backend)
    if missing or framework.name != "torch-compile" or machine.compiler():
        return missing
    return "torch.compile needs a C++ compiler, and there is none; install g++, or set CXX"


def available(
    among: Iterable[Implementation],
) -> tuple[tuple[Implementation, ...], tuple[tuple[Implementation, str], ...]]:
    """Return the installed ones, and the others, each with what is missing."""
    found = [(each, missing_requirement(each)) for each in among]
    here = tuple(each for each, missing in found if not missing)
    return here, tuple((each, missing) for each, missing in found if missing)


# --- PyTorch --------------------------------------------------------------------------------------


def bind_torch(
    inputs: StepInputs, *, foreach: bool = False, compiled: bool = False, timed: bool = False
) -> Step:
    """Bind `torch.optim.Adadelta`; a group of parameters for each rate."""
    torch, parameters = array_backends.import_library("torch"), inputs.parameters
    optimizer = _torch_optimizer(
        torch.optim.Adadelta,
        inputs,
        foreach=foreach,
        capturable=parameters[0].weight.is_cuda,  # else each step brings a count to the host
    )
    update = compiled_step(torch, optimizer.step) if compiled else optimizer.step
    if timed:
        return _given(parameters, update)

    def step() -> None:
        seen = []
        for number, p in enumerate(parameters):
            grad = _preprocessed(inputs, number, p.grad.numpy(), p.weight.numpy())
            p.weight.grad = torch.from_numpy(grad.copy())
            seen.append(grad)
        update()
        _check_kept([p.weight.grad.numpy() for p in parameters], seen)

    return step


def bind_torch_fused(inputs: StepInputs, *, timed: bool = False) -> Step:
    """Bind `adadelta_cli.torch.Adadelta`; a group of parameters for each rate and decay.

    Its own `weight_decay` and `maximize` are used where they mean the same: without clipping, and
    with a rescaling by 1 or -1. A decay of 0 is added by this package's other steps, and omitted
    by PyTorch's optimizers, which shows at infinite weights only; so it is preprocessed.
    """
    torch = array_backends.import_library("torch")
    import adadelta_cli.torch as torch_optimizer

    parameters, hyper = inputs.parameters, inputs.hyper
    plain = hyper.clip_gradient is None and hyper.rescale_grad in (1, -1)
    natively = timed or (plain and 0 not in inputs.weight_decays)
    optimizer = _torch_optimizer(torch_optimizer.Adadelta, inputs, natively=natively)
    if natively:
        return _given(parameters, optimizer.step)

    def step() -> None:
        for number, p in enumerate(parameters):
            grad = _preprocessed(inputs, number, p.grad.numpy(), p.weight.numpy())
            p.weight.grad = torch.from_numpy(grad)
        optimizer.step()

    return step


def _given(parameters: Sequence[Parameter], update: Step) -> Step:
    """Give PyTorch's optimizer the unprocessed gradients, once for all steps."""
    for p in parameters:
        p.weight.grad = p.grad
    return update


def bind_torch_adam(inputs: StepInputs) -> Step:
    """Bind `torch.optim.Adam(fused=True)`, which moves as many bytes as AdaDelta: a yardstick."""
    torch, parameters = array_backends.import_library("torch"), inputs.parameters
    weights = [p.weight for p in parameters]
    optimizer = torch.optim.Adam(
        weights, ADAM.learning_rate, (ADAM.beta1, ADAM.beta2), ADAM.epsilon, fused=True
    )
    for p in parameters:
        count = torch.tensor(0.0, device=p.weight.device)
        state = {"step": count, "exp_avg": p.acc_delta, "exp_avg_sq": p.acc_grad}
        optimizer.state[p.weight] = state
    return _given(parameters, optimizer.step)


class Adam(NamedTuple):
    """The hyper-parameters of the yardstick: PyTorch's defaults."""

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


ADAM = Adam()


def adam(p: Parameter) -> None:
    """Take the first step of Adam in place: D. P. Kingma, J. Ba, arXiv:1412.6980, algorithm 1.

    Its first moment is in `acc_delta`, its second in `acc_grad`; NumPy arrays of float64.
    """
    p.acc_delta[...] = ADAM.beta1 * p.acc_delta + (1 - ADAM.beta1) * p.grad
    p.acc_grad[...] = ADAM.beta2 * p.acc_grad + (1 - ADAM.beta2) * p.grad**2
    first, second = p.acc_delta / (1 - ADAM.beta1), p.acc_grad / (1 - ADAM.beta2)
    p.weight[...] -= ADAM.learning_rate * first / (np.sqrt(second) + ADAM.epsilon)


def compiled_step(torch: Any, update: Callable[[], Any]) -> Callable[[], Any]:
    """Return an optimizer's step, compiled by `torch.compile` at its first call."""
    from torch._inductor import config

    config.compile_threads = 1  # no worker processes: they would outlive a killed sandbox
    torch._dynamo.reset()  # noqa: SLF001 - else the eighth case is not compiled
    return torch.compile(update)


def _torch_optimizer(
    kind: Any, inputs: StepInputs, *, natively: bool = False, **settings: Any
) -> Any:
    """Make an Adadelta of PyTorch's interface on the tensors of a step.

    `natively`: it gets weight decay and sign; else the gradients are preprocessed.
    """
    parameters, hyper, groups = inputs.parameters, inputs.hyper, dict[Any, list[Any]]()
    each = zip(parameters, inputs.learning_rates, inputs.weight_decays, strict=True)
    for p, rate, decay in each:
        groups.setdefault((rate, decay if natively else 0.0), []).append(p.weight)
    optimizer = kind(
        [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()],
        rho=hyper.rho,
        eps=hyper.epsilon,
        maximize=natively and hyper.rescale_grad < 0,
        **settings,
    )
    for p in parameters:
        count = array_backends.import_library("torch").tensor(0.0, device=p.weight.device)
        state = {"step": count, "square_avg": p.acc_grad, "acc_delta": p.acc_delta}
        optimizer.state[p.weight] = state
    return optimizer


def _check_kept(grads: Sequence[np.ndarray], before: Sequence[np.ndarray]) -> None:
    for k, (grad, was) in enumerate(zip(grads, before, strict=True)):
        if grad.tobytes() != was.tobytes():
            raise ReportedError(f"changed the gradient of tensor {k}")


# --- JAX ------------------------------------------------------------------------------------------


def bind_optax(inputs: StepInputs, *, timed: bool = False) -> Step:
    """Bind `optax.adadelta` under `jax.jit` with donated buffers; an optimizer for each rate."""
    parameters, rates, hyper = inputs.parameters, inputs.learning_rates, inputs.hyper
    groups = [[k for k, each in enumerate(rates) if each == one] for one in dict.fromkeys(rates)]
    jax = array_backends.import_library("jax")
    updates = [_optax_update(jax, hyper.rho, hyper.epsilon, rates[group[0]]) for group in groups]

    def grads(group: list[int]) -> list[Any]:
        if timed:
            return [parameters[k].grad.value for k in group]
        return [jax.numpy.array(_preprocessed(inputs, k, *_on_host(parameters[k]))) for k in group]

    def step() -> None:
        for update, group in zip(updates, groups, strict=True):
            _replace([parameters[k] for k in group], update, grads(group))
        if timed:
            jax.block_until_ready([p.weight.value for p in parameters])

    return step


def _replace(chosen: Sequence[Parameter], update: Any, grads: list[Any]) -> None:
    """Replace the arrays in the boxes by those that a functional update returns."""
    new = update(*([getattr(p, name).value for p in chosen] for name in RESULTS), grads)
    for name, values in zip(RESULTS, new, strict=True):
        for p, value in zip(chosen, values, strict=True):
            getattr(p, name).value = value


def _on_host(p: Parameter) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(p.grad.value), np.asarray(p.weight.value)


@cache  # so that it is compiled once for tensors of the same shapes
def _optax_update(jax: Any, rho: float, epsilon: float, rate: float) -> Any:
    import optax

    optimizer = optax.adadelta(learning_rate=rate, rho=rho, eps=epsilon)

    def update(weights: Any, acc_grads: Any, acc_deltas: Any, grads: Any) -> Any:
        state = optax.tree_utils.tree_set(optimizer.init(weights), e_g=acc_grads, e_x=acc_deltas)
        steps, state = optimizer.update(grads, state, weights)
        get = optax.tree_utils.tree_get
        return optax.apply_updates(weights, steps), get(state, "e_g"), get(state, "e_x")

    return jax.jit(update, donate_argnums=(0, 1, 2))
