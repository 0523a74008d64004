"""Other frameworks' AdaDelta, each through its own public optimizer, on its own tensors.

They have no rescaling and no clipping, and decay differs; so each gets its gradient pre-processed,
`clip(g * rescale_grad, clip_gradient) + wd * w`, in the dtype and with the roundings of our own
update, and its own weight decay is 0. What is compared is then the optimizer alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli import backends, machine
from adadelta_cli.sandbox import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adadelta_cli.implementations import Implementation, Step
    from adadelta_cli.update import Hyperparameters, Parameter


def preprocessed(
    grad: np.ndarray, weight: np.ndarray, hyper: Hyperparameters, wd: float
) -> np.ndarray:
    """Return the gradient that the accumulators see.

    Args:
        grad: as the caller has it, float32 or float64.
        weight: same shape and dtype.
        hyper: of these, the rescaling and the clipping.
        wd: the product of weight decay and multiplier, in double.
    """
    scalars, real = hyper.scalars(grad.dtype), grad.dtype.type
    with np.errstate(all="ignore"):
        grad = grad * scalars.rescale_grad
        grad = np.where(grad < -scalars.clip_gradient, -scalars.clip_gradient, grad)
        grad = np.where(grad > scalars.clip_gradient, scalars.clip_gradient, grad)
        return np.asarray(grad + real(wd) * weight)


def lack(peer: Implementation) -> str:
    """Say what is missing here for a peer, and how to install it; empty if nothing is."""
    missing = backends.missing(peer.backend)
    if missing or peer.name != "torch-compile":
        return missing
    if machine.compiler():
        return ""
    return "torch.compile needs a C++ compiler, and there is none; install g++, or set CXX"


# --- PyTorch --------------------------------------------------------------------------------------


def bind_torch(*, foreach: bool, compiled: bool = False) -> Callable[..., Step]:
    """Bind `torch.optim.Adadelta`; a group of parameters for each rate."""

    def bind(
        parameters: Sequence[Parameter],
        hyper: Hyperparameters,
        lr_mults: Sequence[float],
        wd_mults: Sequence[float],
    ) -> Step:
        torch = backends.installed("torch")
        optimizer = _torch_optimizer(torch, parameters, hyper, lr_mults, foreach=foreach)
        update = optimizer.step
        if compiled:
            update = _compiled(torch, update)

        def step() -> None:
            seen = []
            for p, mult in zip(parameters, wd_mults, strict=True):
                grad = preprocessed(p.grad.numpy(), p.weight.numpy(), hyper, hyper.wd * mult)
                p.weight.grad = torch.from_numpy(grad.copy())
                seen.append(grad)
            update()
            _check_kept([p.weight.grad.numpy() for p in parameters], seen)

        return step

    return bind


def _compiled(torch: Any, update: Callable[[], Any]) -> Callable[[], Any]:
    from torch._inductor import config

    config.compile_threads = 1  # no worker processes, which would outlive a sandbox that is killed
    torch._dynamo.reset()  # noqa: SLF001 - else the eighth case is no longer compiled
    return torch.compile(update)


def _torch_optimizer(
    torch: Any,
    parameters: Sequence[Parameter],
    hyper: Hyperparameters,
    lr_mults: Sequence[float],
    *,
    foreach: bool,
) -> Any:
    groups: dict[float, list[Any]] = {}
    for p, mult in zip(parameters, lr_mults, strict=True):
        groups.setdefault(hyper.learning_rate * mult, []).append(p.weight)
    optimizer = torch.optim.Adadelta(
        [{"params": weights, "lr": rate} for rate, weights in groups.items()],
        rho=hyper.rho, eps=hyper.epsilon, weight_decay=0, foreach=foreach,
    )  # fmt: skip
    for p in parameters:
        optimizer.state[p.weight] = {
            "step": torch.tensor(0.0), "square_avg": p.acc_grad, "acc_delta": p.acc_delta,
        }  # fmt: skip
    return optimizer


def _check_kept(grads: Sequence[np.ndarray], before: Sequence[np.ndarray]) -> None:
    for k, (grad, was) in enumerate(zip(grads, before, strict=True)):
        if grad.tobytes() != was.tobytes():
            raise Finding(f"changed the gradient of tensor {k}")


# --- JAX ------------------------------------------------------------------------------------------


def bind_optax(
    parameters: Sequence[Parameter],
    hyper: Hyperparameters,
    lr_mults: Sequence[float],
    wd_mults: Sequence[float],
) -> Step:
    """Bind `optax.adadelta` under `jax.jit` with donated buffers; an optimizer for each rate."""
    rates = [hyper.learning_rate * mult for mult in lr_mults]
    groups = [[k for k, each in enumerate(rates) if each == rate] for rate in dict.fromkeys(rates)]
    jax = backends.installed("jax")
    updates = [_optax_update(jax, hyper, rates[group[0]]) for group in groups]

    def step() -> None:
        for update, group in zip(updates, groups, strict=True):
            chosen = [parameters[k] for k in group]
            decays = [hyper.wd * wd_mults[k] for k in group]
            grads = [
                jax.numpy.array(preprocessed(*_seen(p), hyper, decay))
                for p, decay in zip(chosen, decays, strict=True)
            ]
            states = (
                [getattr(p, name).value for p in chosen]
                for name in ("weight", "acc_grad", "acc_delta")
            )
            new = update(*states, grads)
            for p, weight, acc_grad, acc_delta in zip(chosen, *new, strict=True):
                p.weight.value, p.acc_grad.value, p.acc_delta.value = weight, acc_grad, acc_delta

    return step


def _seen(p: Parameter) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(p.grad.value), np.asarray(p.weight.value)


def _optax_update(jax: Any, hyper: Hyperparameters, rate: float) -> Any:
    import optax

    optimizer = optax.adadelta(learning_rate=rate, rho=hyper.rho, eps=hyper.epsilon)

    def update(weights: Any, acc_grads: Any, acc_deltas: Any, grads: Any) -> Any:
        state = optax.tree_utils.tree_set(optimizer.init(weights), e_g=acc_grads, e_x=acc_deltas)
        steps, state = optimizer.update(grads, state, weights)
        get = optax.tree_utils.tree_get
        return optax.apply_updates(weights, steps), get(state, "e_g"), get(state, "e_x")

    return jax.jit(update, donate_argnums=(0, 1, 2))
