"""The AdaDelta update on arrays, one operation at a time: the unfused step.

M. D. Zeiler, "ADADELTA: An Adaptive Learning Rate Method", arXiv:1212.5701, algorithm 1, with the
gradient's rescaling, clipping and weight decay as in Apache MXNet 2.0:

    grad      = clip(grad * rescale_grad, clip_gradient) + wd * weight
    acc_grad  = rho * acc_grad + (1 - rho) * grad * grad
    delta     = sqrt(acc_delta + epsilon) / sqrt(acc_grad + epsilon) * grad
    acc_delta = rho * acc_delta + (1 - rho) * delta * delta
    weight   -= learning_rate * delta

IEEE 754 rounds +, -, *, / and sqrt correctly, so the order of the operations decides every bit of
the result. The order here is that of MXNet; the one-pass kernels keep to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from adadelta_cli import keywords
from adadelta_cli.errors import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import DTypeLike

    Number = float | np.floating


class ArrayLike(Protocol):
    """The interface that `update` needs of arrays, those of `kernels.cupy_ieee` included."""

    dtype: Any
    ndim: Any

    def astype(self, dtype: Any, /) -> ArrayLike:
        """Copy to another dtype."""

    def __setitem__(self, key: Any, new: Any, /) -> None: ...
    def __add__(self, other: Any, /) -> ArrayLike: ...
    def __mul__(self, other: Any, /) -> ArrayLike: ...
    def __rmul__(self, other: Any, /) -> ArrayLike: ...
    def __truediv__(self, other: Any, /) -> ArrayLike: ...
    def __lt__(self, other: Any, /) -> ArrayLike: ...
    def __gt__(self, other: Any, /) -> ArrayLike: ...


class Scalars(NamedTuple):
    """The hyper-parameters that all tensors share, in double or rounded to the element type."""

    rescale_grad: Number
    clip_gradient: Number  # infinity for no clipping
    rho: Number
    one_minus_rho: Number
    epsilon: Number

    def rounded(self, dtype: DTypeLike) -> Scalars:
        """Round each to `dtype`, once."""
        real = np.dtype(dtype).type
        with np.errstate(over="ignore"):  # a clip beyond the largest float32 clips nothing
            return Scalars(*map(real, self))


def checked(
    name: str, value: Any, allowed: str, ok: Callable[[float], bool] = math.isfinite
) -> float:
    """Return `value` as a float; raise ValueError unless it is a finite number and `ok`.

    `ok` gets the float: a positive fraction may be zero in double.
    """
    # NumPy counts durations among its integers.
    number = isinstance(value, Real) and not isinstance(value, (bool, np.timedelta64))
    if not number or not _is_finite(value) or not ok(float(value)):
        raise ValueError(f"{name} is {shown(value)}; allowed is {allowed}")
    return float(value)


def _is_finite(value: Any) -> bool:
    """Return whether a real number of any type is a finite double."""
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer or a fraction beyond the largest double
        return False


@dataclass(frozen=True)
class Hyperparameters:
    """The hyper-parameters of an AdaDelta step, with MXNet 2.0's defaults.

    Attributes:
        learning_rate: factor of the step, any finite number; 1 in the paper.
        rho: decay of both accumulators, in [0, 1).
        epsilon: added under both square roots, positive.
        wd: weight decay, added to the gradient as `wd * weight`; any finite number.
        rescale_grad: factor of the gradient, before anything else; any finite number.
        clip_gradient: the rescaled gradient is clipped to [-clip, clip]; None for no clipping.

    Raises:
        ValueError: a value is no number, or out of range.
    """

    learning_rate: float = 1.0
    rho: float = 0.9
    epsilon: float = 1e-6
    wd: float = 0.0
    rescale_grad: float = 1.0
    clip_gradient: float | None = None

    def __post_init__(self) -> None:
        finite = "a finite number"
        checked("learning_rate", self.learning_rate, finite)
        checked("rho", self.rho, "a number with 0 <= rho < 1", lambda rho: 0 <= rho < 1)
        checked("epsilon", self.epsilon, "a positive number", lambda epsilon: epsilon > 0)
        checked("wd", self.wd, finite)
        checked("rescale_grad", self.rescale_grad, finite)
        if self.clip_gradient is not None:
            allowed = "None, or a number that is not negative"
            checked("clip_gradient", self.clip_gradient, allowed, lambda clip: clip >= 0)

    @property
    def doubles(self) -> Scalars:
        """`Scalars` before they are rounded; 1 - rho is taken here, in double."""
        clip = math.inf if self.clip_gradient is None else self.clip_gradient
        rho = float(self.rho)  # a NumPy scalar would make 1 - rho in its own type
        return Scalars(float(self.rescale_grad), float(clip), rho, 1.0 - rho, float(self.epsilon))

    def scalars(self, dtype: DTypeLike) -> Scalars:
        """Round each to `dtype`, once."""
        return self.doubles.rounded(dtype)


@dataclass(frozen=True, eq=False)  # arrays have no single truth value: compare by identity
class Parameter:
    """One tensor of a model: the arrays that a step reads and writes.

    Attributes:
        weight: float16, float32 or float64; updated in place.
        grad: like `weight`; only read.
        acc_grad: the accumulated squared gradient, float32 for a float16 weight, else like
            `weight`; updated in place.
        acc_delta: the accumulated squared update, like `acc_grad`; updated in place.
        master: the float32 copy of a float16 weight, updated in place; None without one.
    """

    weight: Any
    grad: Any
    acc_grad: Any
    acc_delta: Any
    master: Any = None

    @property
    def arrays(self) -> tuple[Any, ...]:
        """The arrays in the order of the attributes; without the master if it is None."""
        found = (self.weight, self.grad, self.acc_grad, self.acc_delta, self.master)
        return found if self.master is not None else found[:4]


Parameter.__init__ = keywords.checked(Parameter.__init__)  # type: ignore[method-assign]

# The dtype of the accumulators, and of master weights, by the dtype of the weights.
STATE_DTYPES = {"float16": "float32", "float32": "float32", "float64": "float64"}
# The arrays that a step computes; a `Parameter` may have a master as well.
RESULTS = ("weight", "acc_grad", "acc_delta")


def state_dtype(dtype: str) -> str:
    """Return the dtype of the accumulators, and of master weights, for weights of a dtype."""
    return STATE_DTYPES.get(dtype, dtype)


def preprocess(xp: Any, grad: ArrayLike, weight: ArrayLike, hyper: Scalars, wd: float) -> ArrayLike:
    """Return the gradient that is accumulated: rescaled, clipped, with weight decay.

    `grad` and `weight` have one shape and the dtype of `hyper`; `xp` and `wd` are as in `update`.
    """
    h, real = hyper, type(hyper.rho)
    grad = grad * h.rescale_grad
    if h.clip_gradient < np.inf:
        grad = xp.where(grad < -h.clip_gradient, -h.clip_gradient, grad)  # a NaN passes through
        grad = xp.where(grad > h.clip_gradient, h.clip_gradient, grad)
    return grad + real(wd) * weight


def update(xp: Any, parameter: Parameter, hyper: Scalars, learning_rate: float, wd: float) -> None:
    """Take one AdaDelta step on one tensor in place; the gradient is left unchanged.

    Args:
        xp: the arrays' module: `numpy`, `mxnet.np`, or `kernels.cupy_ieee` for CuPy's arrays,
            since CuPy's own operators flush subnormals.
        parameter: the tensor, of any shape.
        hyper: `Hyperparameters.scalars` of the accumulators' dtype.
        learning_rate: the product of rate, schedule and multiplier in double; rounded here, once.
        wd: the product of weight decay and multiplier, likewise.
    """
    p, h, real = parameter, hyper, type(hyper.rho)
    weight = p.weight if p.master is None else p.master
    if weight.dtype != p.acc_grad.dtype:
        weight = weight.astype(p.acc_grad.dtype)
    grad = preprocess(xp, p.grad.astype(p.acc_grad.dtype), weight, h, wd)
    xp.add(p.acc_grad * h.rho, h.one_minus_rho * (grad * grad), out=p.acc_grad)
    delta = xp.sqrt(p.acc_delta + h.epsilon) / xp.sqrt(p.acc_grad + h.epsilon) * grad
    xp.add(p.acc_delta * h.rho, h.one_minus_rho * (delta * delta), out=p.acc_delta)
    xp.subtract(weight, real(learning_rate) * delta, out=weight)
    if weight is not p.weight:
        every = () if p.weight.ndim == 0 else slice(None)  # MXNet takes only () here
        p.weight[every] = weight.astype(p.weight.dtype)
