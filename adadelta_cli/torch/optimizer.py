"""`Adadelta`: `torch.optim.Adadelta` with the fused step."""

from __future__ import annotations

import functools
import inspect
import itertools
import operator
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import optimizer as torch_optimizer

from adadelta_cli.torch.group import prepare, share_storage, tensors_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from adadelta_cli.torch.fused import FusedTorchStep, Tensors

    Plan = tuple[list[tuple[FusedTorchStep, Tensors]], list[torch.Tensor]]

# The stock's step without what PyTorch wraps around each optimizer's: hooks and the profile.
_stock_step = inspect.unwrap(torch.optim.Adadelta.step)

# By PyTorch's version.
CAPTURE_CHECKS = ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check")


# What tells whether a hook or a profiler sees a step; names of PyTorch's own, which may change.
OBSERVERS = (
    (torch_optimizer, "_global_optimizer_pre_hooks"),
    (torch_optimizer, "_global_optimizer_post_hooks"),
    (torch.autograd, "_profiler_enabled"),
    (torch.autograd.profiler, "_is_profiler_enabled"),
)


def _can_see_observers() -> bool:
    """Return whether this version of PyTorch has all those names."""
    return all(hasattr(module, name) for module, name in OBSERVERS)


def _unobserved_or(hooked: Callable[..., Any], step: Callable[..., Any]) -> Callable[..., Any]:
    """Leave out what PyTorch wraps around a step where no hook and no profiler sees it.

    Entering the profiler takes 8 us when it is off, and 50 us when the step has emptied the caches:
    so long that the kernel's threads sleep before the next step.
    """

    @functools.wraps(hooked)
    def quick(self: Adadelta, *args: Any, **kwargs: Any) -> Any:
        # A closure may add hooks; those before the step see the arguments as they were given.
        if args or kwargs or torch.compiler.is_compiling() or self._is_observed():
            return hooked(self, *args, **kwargs)
        return step(self)

    return quick


def _with_gradients(params: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the parameters that have a gradient, and these."""
    grads = [p.grad for p in params]  # once: to ask for one costs as much as its address
    if all(map(operator.is_not, grads, itertools.repeat(None))):
        return params, grads
    weights = [p for p, grad in zip(params, grads, strict=True) if grad is not None]
    return weights, [p.grad for p in weights]


def _has_own_groups(kind: type) -> bool:
    """Return whether a subclass collects gradients and states in its own way."""
    return getattr(kind, "_init_group", None) is not torch.optim.Adadelta._init_group  # noqa: SLF001


class Adadelta(torch.optim.Adadelta):
    """`torch.optim.Adadelta` with the fused step: one pass over memory for all parameters.

    A drop-in replacement: the same arguments, errors, parameter groups, hooks and `state_dict`.
    Each step updates each parameter by::

        grad        = (-grad if maximize else grad) + weight_decay * param
        square_avg  = rho * square_avg + (1 - rho) * grad * grad
        delta       = sqrt(acc_delta + eps) / sqrt(square_avg + eps) * grad
        acc_delta   = rho * acc_delta + (1 - rho) * delta * delta
        param      -= lr * delta

    The result has the bits of that formula with each operation rounded once. PyTorch's own step
    contracts some operations, so it differs by a few units in the last place (docs/pytorch.md).

    The kernel takes dense float32 and float64 parameters on a CPU, and on a GPU through CuPy; each
    with a gradient and states of the same dtype and order in memory. Everything else steps as
    `torch.optim.Adadelta` does: other dtypes, tensor subclasses, `differentiable`, `capturable`,
    and tensors that share memory.

    Args:
        params: the parameters, or parameter groups.
        lr: factor of the step, a number or a tensor of one element; not negative.
        rho: decay of both accumulators, 0 <= rho <= 1.
        eps: added under both square roots; not negative.
        weight_decay: added to the gradient as `weight_decay * param`; not negative.
        foreach: as in `torch.optim.Adadelta`, for what the kernel does not take.
        capturable: likewise, for a step in a CUDA graph.
        maximize: ascend instead of descend.
        differentiable: as in `torch.optim.Adadelta`, so without the kernel.

    Raises:
        ValueError: a hyper-parameter is out of range.

    Example:
        >>> import torch
        >>> from adadelta_cli.torch import Adadelta
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = Adadelta(model.parameters(), rho=0.95)
        >>> model(torch.ones(3)).backward()
        >>> optimizer.step()

    References:
        M. D. Zeiler, "ADADELTA: An Adaptive Learning Rate Method", arXiv:1212.5701.
    """

    param_groups: list[dict[str, Any]]  # PyTorch's types are not read here

    @functools.wraps(torch.optim.Adadelta.__init__)  # type: ignore[misc] # keeps the signature
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._forget()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state of this class's or the stock's; addresses are taken anew."""
        super().__setstate__(state)
        self._forget()

    def _patch_step_function(self) -> None:
        """Wrap the step of this instance's class, once; PyTorch calls this for each instance."""
        kind = type(self)
        before = kind.step
        super()._patch_step_function()
        if kind.step is not before and _can_see_observers():
            kind.step = _unobserved_or(kind.step, before)  # type: ignore[method-assign]

    def _is_observed(self) -> bool:
        """Return whether a hook or PyTorch's profiler is to see a step."""
        return bool(
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks  # noqa: SLF001
            or torch_optimizer._global_optimizer_post_hooks  # noqa: SLF001
            or torch.autograd._profiler_enabled()  # noqa: SLF001
            or torch.autograd.profiler._is_profiler_enabled  # noqa: SLF001 - of another thread
        )

    def _forget(self) -> None:
        """Forget the steps of the groups: they keep addresses of tensors."""
        self._steps: dict[int, FusedTorchStep] = {}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; no parameter is changed before all gradients were looked at.

        Args:
            closure: computes the loss and the gradients anew.

        Returns:
            The closure's result, or None.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            self._step_outside_of_the_graph()
        else:
            self._step_groups()
        return loss

    def _step_groups(self) -> None:
        for number in [n for n in self._steps if n >= len(self.param_groups)]:
            del self._steps[number]  # of a group that was removed
        plans = [self._plan(number, group) for number, group in enumerate(self.param_groups)]
        if any(tensors.weights[0].is_cuda for parts, _ in plans for _, tensors in parts):
            self._check_capture()
        for group, (parts, others) in zip(self.param_groups, plans, strict=True):
            left = others
            for step, tensors in parts:
                if not step(tensors.grads, group):
                    left = [*left, *tensors.weights]
            if left:
                self._step_stock(group, left)

    _step_outside_of_the_graph = torch.compiler.disable(_step_groups)

    def _plan(self, number: int, group: dict[str, Any]) -> Plan:
        """Decide what the kernel steps and what the stock; change no parameter.

        A step is kept for the next time where it is that of the whole group.
        """
        weights, grads = _with_gradients(group["params"])
        if group["differentiable"] or group["capturable"] or _has_own_groups(type(self)):
            return [], weights
        before = self._steps.get(number)
        if before is not None:
            tensors = tensors_of(weights, grads, self.state)
            if before.matches(tensors):
                return [(before, tensors)], []
            del self._steps[number]
        if any(p.grad.is_sparse for p in weights):
            raise RuntimeError("Adadelta does not support sparse gradients")
        parts = prepare(weights, self.state)
        taken = {id(p) for _, tensors in parts for p in tensors.weights}
        others = [p for p in weights if id(p) not in taken]
        if others and share_storage(others, parts):  # the stock's order decides the result
            return [], weights
        if len(parts) == 1 and not others:
            self._steps[number] = parts[0][0]
        return parts, others

    def _check_capture(self) -> None:
        """Raise, as the stock does, if a CUDA graph captures a step that is not capturable."""
        for name in CAPTURE_CHECKS:
            getattr(self, name, bool)()

    def _step_stock(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        """Let the stock step some parameters of a group, in the group's order."""
        chosen = set(map(id, params))
        ordered = [p for p in group["params"] if id(p) in chosen]
        groups = self.param_groups
        self.param_groups = [{**group, "params": ordered}]
        try:
            with torch.set_grad_enabled(group["differentiable"]):
                _stock_step(self)
        finally:
            self.param_groups = groups
