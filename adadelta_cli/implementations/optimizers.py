"""The optimizers that `run` trains with, by name: AdaDelta, and others to compare it with.

Only AdaDelta has a fused step, and is verified and timed. On MXNet the others are MXNet's own
classes; on NumPy and CuPy they are the formulas below, in MXNet's form. All of them pre-process the
gradient as AdaDelta does: rescaled, clipped, then with weight decay. On CuPy, its own operators
flush float32 subnormals to zero.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adadelta_cli.implementations import registry
from adadelta_cli.implementations.base import StepInputs
from adadelta_cli.update import Hyperparameters, Parameter, preprocess, state_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from adadelta_cli.implementations.array_backends import NumpyBackend
    from adadelta_cli.implementations.base import Step

    Settings = Mapping[str, Any]  # hyper-parameters by their names in a config


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of a training, in arrays of one library.

    Attributes:
        weight: float16, float32 or float64; updated in place.
        grad: like `weight`; only read.
        master: the float32 copy of a float16 weight, updated in place; None without one.
        states: the optimizer's, by name, like the master or else the weight; updated in place.
    """

    weight: Any
    grad: Any
    master: Any = None
    states: dict[str, Any] = field(default_factory=dict)

    @property
    def exact(self) -> Any:
        """The weight in the dtype that a step computes in."""
        return self.weight if self.master is None else self.master

    @property
    def arrays(self) -> dict[str, Any]:
        """What the next steps depend on, by name."""
        found = {"weight": self.weight, **self.states}
        return found if self.master is None else found | {"master": self.master}


# --- the formulas ---------------------------------------------------------------------------------
# Each updates the weight `w` and the states in place. `g` is the pre-processed gradient, `h` the
# settings, `t` counts the steps from 1. w, g and the states have one shape and dtype.


def sgd(_xp: Any, w: Any, g: Any, _states: Any, h: Settings, _t: int) -> None:
    """Stochastic gradient descent (H. Robbins and S. Monro, 1951)."""
    w -= h["learning_rate"] * g


def momentum(_xp: Any, w: Any, g: Any, states: Any, h: Settings, _t: int) -> None:
    """Gradient descent with momentum (B. T. Polyak, 1964)."""
    (v,) = states
    v *= h["momentum"]
    v -= h["learning_rate"] * g
    w += v


def nesterov(_xp: Any, w: Any, g: Any, states: Any, h: Settings, _t: int) -> None:
    """Nesterov's momentum (Y. Nesterov, 1983), in the form of I. Sutskever and others (2013)."""
    (v,) = states
    v *= h["momentum"]
    v -= h["learning_rate"] * g
    w += h["momentum"] * v - h["learning_rate"] * g


def adagrad(xp: Any, w: Any, g: Any, states: Any, h: Settings, _t: int) -> None:
    """AdaGrad (J. Duchi, E. Hazan and Y. Singer, 2011)."""
    (total,) = states
    total += g * g
    w -= h["learning_rate"] * (g / (xp.sqrt(total) + h["epsilon"]))


def rmsprop(xp: Any, w: Any, g: Any, states: Any, h: Settings, _t: int) -> None:
    """RMSProp (T. Tieleman and G. Hinton, 2012)."""
    (mean,) = states
    mean *= h["rho"]
    mean += (1.0 - h["rho"]) * (g * g)
    w -= h["learning_rate"] * (g / (xp.sqrt(mean) + h["epsilon"]))


def adam(xp: Any, w: Any, g: Any, states: Any, h: Settings, t: int) -> None:
    """Adam (D. P. Kingma and J. Ba, 2015), with epsilon as in the end of its section 2."""
    mean, variance = states
    mean *= h["beta1"]
    mean += (1.0 - h["beta1"]) * g
    variance *= h["beta2"]
    variance += (1.0 - h["beta2"]) * (g * g)
    rate = h["learning_rate"] * math.sqrt(1.0 - h["beta2"] ** t) / (1.0 - h["beta1"] ** t)
    w -= rate * (mean / (xp.sqrt(variance) + h["epsilon"]))


class Rule(NamedTuple):
    """An optimizer beside AdaDelta.

    Attributes:
        update: its formula.
        states: the names of its states.
        mxnet: the name of MXNet's class.
    """

    update: Callable[[Any, Any, Any, Any, Settings, int], None]
    states: tuple[str, ...]
    mxnet: str


RULES = {
    "sgd": Rule(sgd, (), "SGD"),
    "momentum": Rule(momentum, ("velocity",), "SGD"),
    "nesterov": Rule(nesterov, ("velocity",), "NAG"),
    "adagrad": Rule(adagrad, ("squares",), "AdaGrad"),
    "rmsprop": Rule(rmsprop, ("squares",), "RMSProp"),
    "adam": Rule(adam, ("mean", "squares"), "Adam"),
}
ADADELTA = "adadelta"
STATES = {ADADELTA: ("acc_grad", "acc_delta")} | {name: rule.states for name, rule in RULES.items()}


def tensor(backend: NumpyBackend, start: np.ndarray, optimizer: str, dtype: str) -> Tensor:
    """Make a tensor and its states, which are zero, on a backend's arrays.

    Args:
        backend: the array library.
        start: the weights, in any real dtype; rounded to `dtype`.
        optimizer: its name in a config.
        dtype: float32, float64, or float16 with a float32 master and states.
    """
    wide = state_dtype(dtype)
    return Tensor(
        weight=backend.array(start.astype(dtype)),
        grad=backend.array(np.zeros(start.shape, dtype)),
        master=backend.array(start.astype(wide)) if dtype == "float16" else None,
        states={name: backend.array(np.zeros(start.shape, wide)) for name in STATES[optimizer]},
    )


def as_parameters(tensors: Sequence[Tensor]) -> list[Parameter]:
    """Return the tensors of an AdaDelta training in the form that its steps take."""
    return [Parameter(t.weight, t.grad, **t.states, master=t.master) for t in tensors]


def bind(
    backend: NumpyBackend,
    tensors: Sequence[Tensor],
    settings: Settings,
    *,
    fused: bool = False,
    done: int = 0,
) -> Step:
    """Return a function that takes one step in place at each call, with the current gradients.

    Args:
        backend: the array library of the tensors.
        tensors: from `tensor`, for this optimizer.
        settings: its name and hyper-parameters.
        fused: use AdaDelta's fused step.
        done: steps that these tensors have taken; Adam's steps depend on it.
    """
    name = settings["name"]
    if name == ADADELTA:
        return _bind_adadelta(backend, tensors, settings, fused=fused)
    make = _bind_mxnet if backend.name == "mxnet" else _bind_rule
    return make(backend, tensors, RULES[name], settings, done)


def _bind_adadelta(
    backend: NumpyBackend, tensors: Sequence[Tensor], settings: Settings, *, fused: bool
) -> Step:
    parameters, hyper = as_parameters(tensors), Hyperparameters(**_keywords(settings))
    ones = [1.0] * len(parameters)
    return registry.builtin(backend, fused=fused).bind(StepInputs(parameters, hyper, ones, ones))


def _keywords(settings: Settings) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "name"}


def _bind_rule(
    backend: NumpyBackend, tensors: Sequence[Tensor], rule: Rule, settings: Settings, done: int
) -> Step:
    xp, count, wd = backend.xp, done, settings["wd"]
    shared = {key: settings[key] for key in ("rescale_grad", "clip_gradient")}
    scalars = [Hyperparameters(**shared).scalars(t.exact.dtype) for t in tensors]

    def step() -> None:
        nonlocal count
        count += 1
        with np.errstate(all="ignore"):  # Run reports a diverged loss
            for t, rounded in zip(tensors, scalars, strict=True):
                weight = t.exact
                grad = preprocess(xp, t.grad.astype(weight.dtype), weight, rounded, wd)
                rule.update(xp, weight, grad, t.states.values(), settings, count)
                if t.master is not None:
                    t.weight[...] = weight.astype(t.weight.dtype)

    return step


def mxnet_optimizer(settings: Settings, *, fused: bool) -> Any:
    """Make an optimizer for MXNet's `Updater`, without multi-precision.

    Args:
        settings: as for `bind`.
        fused: use AdaDelta's fused step.
    """
    if settings["name"] != ADADELTA:
        return _make_mxnet(settings)
    from adadelta_cli.mxnet_bridge.optimizer import AdaDelta

    return AdaDelta(**_keywords(settings), use_fused_step=fused)


def _make_mxnet(settings: Settings, **how: Any) -> Any:
    """Make MXNet's own optimizer.

    Its C++ kernels (`use_fused_step`) round the settings to float32, and read a clip of 0 as none.
    """
    from adadelta_cli.mxnet_bridge import runtime

    kind = getattr(runtime.load_mxnet().optimizer, RULES[settings["name"]].mxnet)
    return kind(**_keywords(settings), **how, use_fused_step=False)


def _bind_mxnet(
    backend: Any, tensors: Sequence[Tensor], _rule: Rule, settings: Settings, done: int
) -> Step:
    """Bind MXNet's own class."""
    halves = tensors[0].master is not None
    optimizer = _make_mxnet(settings, multi_precision=halves, begin_num_update=done)
    classic = [[each.as_nd_ndarray() for each in t.states.values()] for t in tensors]
    states: list[Any] = [_state(each) for each in classic]
    if halves:
        pairs = zip(tensors, states, strict=True)
        states = [(t.master.as_nd_ndarray(), state) for t, state in pairs]
    indices = list(range(len(tensors)))
    weights = [t.weight.as_nd_ndarray() for t in tensors]

    def step() -> None:
        grads = [t.grad.copy().as_nd_ndarray() for t in tensors]  # MXNet's step overwrites them
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # MXNet copies arrays to themselves
            optimizer.update_multi_precision(indices, weights, grads, states)
        backend.wait()

    return step


def _state(arrays: Sequence[Any]) -> Any:
    """Arrange states as MXNet's `create_state` does: none, one array, or a tuple."""
    return (None, *arrays)[-1] if len(arrays) < 2 else tuple(arrays)
