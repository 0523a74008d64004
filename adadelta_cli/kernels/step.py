"""`FusedStep`: the fused AdaDelta step on NumPy and CuPy arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from importlib import import_module
from typing import Any

import numpy as np

from adadelta_cli import keywords
from adadelta_cli.kernels import layout
from adadelta_cli.update import Hyperparameters, Parameter, checked


class FusedStep:
    """One AdaDelta step on all tensors of a model, in place, in one pass over memory.

    The result is bit-identical to that of `update.update`, whatever the number of threads;
    subnormals are kept. Make the step once and call it once a training step: it reads the current
    gradients. It keeps references to the arrays, so their memory must not be replaced. Make a new
    step to change a hyper-parameter. A copy of a step, `copy.deepcopy` and `pickle` included, is a
    new step on the copied arrays.

    On NumPy arrays a call returns when the step is done; calls from several threads take turns. On
    CuPy arrays a call enqueues the step on CuPy's current stream.

    Args:
        parameters: any number of tensors of any shape. Their arrays are C-contiguous, of one shape
            for each tensor, all NumPy arrays or all CuPy arrays on the current GPU. Their dtypes:
            float32 throughout, float64 throughout, or float16 weight and gradient with float32
            accumulators, with or without a float32 master. Different dtypes may be mixed.
        learning_rate: any finite number, for all tensors, or one for each tensor.
        rho: decay of both accumulators, 0 <= rho < 1.
        epsilon: added under both square roots, positive.
        wd: weight decay, added to the gradient as `wd * weight`: any finite number, for all
            tensors, or one for each tensor.
        rescale_grad: factor of the gradient, applied first; any finite number.
        clip_gradient: the rescaled gradient is clipped to [-clip, clip]; None for no clipping.

    Raises:
        ValueError: a hyper-parameter is out of range, there are not as many rates as tensors, or an
            array is not C-contiguous, has another shape, is read-only, shares memory with another
            one (gradients may), or is on another GPU.
        TypeError: `parameters` has something else than parameters of arrays, the combination of
            dtypes is not supported, or arrays are in different memories.

    Example:
        >>> import numpy as np
        >>> from adadelta_cli import FusedStep, Parameter
        >>> weight, grad = np.zeros(3, np.float32), np.ones(3, np.float32)
        >>> acc_grad, acc_delta = np.zeros_like(weight), np.zeros_like(weight)
        >>> step = FusedStep([Parameter(weight, grad, acc_grad, acc_delta)], wd=0.01)
        >>> step()
        >>> weight
        array([-0.00316226, -0.00316226, -0.00316226], dtype=float32)

    References:
        M. D. Zeiler, "ADADELTA: An Adaptive Learning Rate Method", arXiv:1212.5701.
    """

    @keywords.checked
    def __init__(
        self,
        parameters: Iterable[Parameter],
        *,
        learning_rate: float | Sequence[float] = 1.0,
        rho: float = 0.9,
        epsilon: float = 1e-6,
        wd: float | Sequence[float] = 0.0,
        rescale_grad: float = 1.0,
        clip_gradient: float | None = None,
    ) -> None:
        tensors = _tensors(parameters)
        rates = _one_each("learning_rate", learning_rate, len(tensors))
        weight_decays = _one_each("wd", wd, len(tensors))
        common = Hyperparameters(
            rho=_number(rho),
            epsilon=_number(epsilon),
            rescale_grad=_number(rescale_grad),
            clip_gradient=_number(clip_gradient),
        )
        self._given = tensors, common.doubles, rates, weight_decays
        self._prepare()

    def _prepare(self) -> None:
        on_gpu = any(hasattr(p.weight, layout.CUDA) for p in self._given[0])
        kernel = import_module(f"adadelta_cli.kernels.{'cuda' if on_gpu else 'cpu'}")
        self._step = kernel.prepared_step(*self._given)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the prepared step: it has the addresses of these arrays."""
        return {name: value for name, value in vars(self).items() if name != "_step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Prepare the step anew, on the copied arrays."""
        vars(self).update(state)
        self._prepare()

    def __call__(self) -> None:
        """Take one step with the current gradients."""
        self._step()


def _tensors(parameters: Any) -> list[Parameter]:
    """List the parameters; raise TypeError unless they are parameters."""
    if not isinstance(parameters, Iterable) or isinstance(parameters, (Mapping, AbstractSet)):
        raise TypeError(
            f"parameters is a {type(parameters).__name__}; expected a list of Parameters"
        )
    tensors = list(parameters)
    for k, each in enumerate(tensors):
        if not isinstance(each, Parameter):
            raise TypeError(
                f"parameters[{k}] is a {type(each).__name__}; expected a Parameter(weight, grad, "
                "acc_grad, acc_delta)"
            )
    return tensors


def _number(value: Any) -> Any:
    """Return the number in an array without dimensions; anything else as it is."""
    return value[()] if type(value) is np.ndarray and value.ndim == 0 else value


def _one_each(name: str, value: float | Sequence[float], count: int) -> list[float]:
    """Return a number for each of `count` tensors."""
    is_text = isinstance(value, (str, bytes, bytearray))
    is_listed = isinstance(value, Sequence) and not is_text
    if not is_listed and getattr(value, "ndim", 0) != 1:  # arrays and series are no Sequences
        return [checked(name, _number(value), "a finite number, or one for each tensor")] * count
    numbers: list[float] = list(value)  # type: ignore[arg-type] # an array or a series, too
    if len(numbers) != count:
        raise ValueError(
            f"{name} has {len(numbers)} numbers for {count} tensors; expected one number for all, "
            "or one for each tensor"
        )
    return [checked(f"{name}[{k}]", each, "a finite number") for k, each in enumerate(numbers)]
