"""`AdaDelta` for Apache MXNet, with the fused step that MXNet documents and never shipped."""

from __future__ import annotations

import math
import operator
import sys
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli.kernels import layout
from adadelta_cli.mxnet_bridge import runtime
from adadelta_cli.mxnet_bridge.fused import FusedMxnetGpuStep, FusedMxnetStep
from adadelta_cli.update import Hyperparameters, Parameter, Scalars, checked, update

if TYPE_CHECKING:
    from collections.abc import Sequence

mx = runtime.load_mxnet()

State = tuple[Any, ...]


class AdaDelta(mx.optimizer.Optimizer):  # type: ignore[name-defined]
    """The AdaDelta optimizer (M. D. Zeiler, arXiv:1212.5701), as MXNet 2.0 defines it.

    Each step updates each weight by::

        grad      = clip(grad * rescale_grad, clip_gradient) + wd * weight
        acc_grad  = rho * acc_grad + (1 - rho) * grad * grad
        delta     = sqrt(acc_delta + epsilon) / sqrt(acc_grad + epsilon) * grad
        acc_delta = rho * acc_delta + (1 - rho) * delta * delta
        weight   -= learning_rate * delta

    The fused step makes one pass over memory and gives the same bits as the unfused one. Both leave
    the gradients as they were, which `mxnet.optimizer.AdaDelta` does not.

    Weights are float16, float32 or float64. A float16 weight has float32 states; with
    `multi_precision=True` it has a float32 master copy as well, and a step of the fused kernel
    updates master and weight in the same pass. Gradients are dense and of the weight's dtype.

    With the fused step, `aggregate_num` is unlimited unless given, so that `gluon.Trainer` hands
    over all parameters in one call. MXNet refuses that with `update_on_kvstore=True`: pass
    `aggregate_num=1` there.

    Args:
        learning_rate: factor of the step, a finite number. None: the rate of `lr_scheduler`, or
            0.01 without one. A given rate, the default too, overwrites the base rate of the
            scheduler.
        rho: decay of both accumulators, in [0, 1).
        epsilon: added under both square roots, positive.
        use_fused_step: whether `update` calls `fused_step` or `step`.
        **kwargs: those of `mxnet.optimizer.Optimizer`: `rescale_grad`, `clip_gradient`, `wd`,
            `lr_scheduler`, `multi_precision`, `param_dict`, `aggregate_num`, and so on.

    Raises:
        ValueError: a hyper-parameter is outside its range; the message says what is allowed.

    Example:
        >>> from adadelta_cli import AdaDelta
        >>> import mxnet as mx
        >>> optimizer = AdaDelta(rho=0.95, use_fused_step=True)
        >>> weight, grad = mx.np.ones(3), mx.np.ones(3)
        >>> state = optimizer.create_state(0, weight)
        >>> optimizer.update([0], [weight], [grad], [state])
    """

    def __init__(
        self,
        learning_rate: float | None = 1.0,
        rho: float = 0.9,
        epsilon: float = 1e-6,
        use_fused_step: bool = False,
        **kwargs: Any,
    ) -> None:
        if learning_rate is not None:
            checked("learning_rate", learning_rate, "a finite number, or None")
            _overwrite_base_rate(kwargs.get("lr_scheduler"), learning_rate)
        kwargs["aggregate_num"] = _aggregate_num(kwargs.get("aggregate_num"), use_fused_step)
        super().__init__(learning_rate=learning_rate, use_fused_step=use_fused_step, **kwargs)
        self._forget()
        self.allow_np_array = True  # both interfaces, whichever was on when it was made
        self.rho = rho
        self.epsilon = epsilon
        Hyperparameters(1.0, rho, epsilon, self.wd, self.rescale_grad, self.clip_gradient)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what holds in this process only."""
        kept = super().__getstate__()
        return {name: value for name, value in kept.items() if name not in ("_bound", "_common")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state, of this class or of MXNet's own AdaDelta."""
        super().__setstate__(state)
        self._forget()

    def _forget(self) -> None:
        """Begin to learn what steps have in common."""
        self._bound: dict[int, _Bound] = {}  # by the first index of a step
        self._common: tuple[tuple[Any, ...], Any] = ((object(),), None)  # the values, and theirs

    def create_state(self, index: int, weight: Any) -> State:  # noqa: ARG002 - MXNet's signature
        """Make `(acc_grad, acc_delta)` for a weight: zeros of its shape, on its device.

        They are float64 for a float64 weight, and float32 for a float32 or float16 one.

        Raises:
            TypeError: the weight is sparse, or of another dtype.
        """
        _check_dense("weight", weight)
        dtype = _STATE_DTYPE.get(np.dtype(weight.dtype).name)
        if dtype is None:
            raise TypeError(
                f"a weight is {np.dtype(weight.dtype).name}; AdaDelta takes "
                f"{', '.join(_STATE_DTYPE)}: cast it"
            )
        with mx.util.np_shape(True):
            zeros = mx.np.zeros(weight.shape, dtype=dtype, device=weight.device)
            states = (zeros, zeros.copy())
        if isinstance(weight, mx.np.ndarray):
            return states
        return tuple(state.as_nd_ndarray() for state in states)

    def create_state_multi_precision(self, index: int, weight: Any) -> State:
        """Make `(master, (acc_grad, acc_delta))` for a float16 weight with `multi_precision`.

        In all other cases, the same as `create_state`.
        """
        if self.multi_precision and weight.dtype == np.float16:
            master = weight.astype(np.float32)
            return master, self.create_state(index, master)
        return self.create_state(index, weight)

    def step(
        self,
        indices: Sequence[int],
        weights: Sequence[Any],
        grads: Sequence[Any],
        states: Sequence[State],
    ) -> None:
        """Take one step, one array operation after the other: the unfused step.

        Args:
            indices: of the parameters, for their multipliers and counts.
            weights: arrays of float16, float32 or float64, updated in place.
            grads: arrays like the weights, left as they were.
            states: what `create_state` made for each weight, updated in place.

        Raises:
            TypeError: a gradient or a weight is sparse.
        """
        self._unfused(indices, _parameters(weights, grads, states, masters=False))

    def fused_step(
        self,
        indices: Sequence[int],
        weights: Sequence[Any],
        grads: Sequence[Any],
        states: Sequence[State],
    ) -> None:
        """Take one step on all tensors in one pass over memory; the same bits as `step`.

        It waits until MXNet's engine has nothing left to do, work of other threads included, and
        computes in the subnormal mode that MXNet is in; on a GPU, which it reaches through CuPy,
        nothing is flushed. No two tensors may share memory that the
        step writes. What it learns of the arrays it keeps, and the arrays with it, until it is
        given others for the same indices. Arguments as in `step`.

        Raises:
            TypeError: a gradient or a weight is sparse, or of an unknown dtype; or the arrays of
                a tensor lie on several devices.
            UnavailableError: they lie on a GPU that CuPy cannot use.
        """
        self._fused(indices, weights, grads, states, masters=False)

    def update_multi_precision(
        self,
        indices: Sequence[int],
        weights: Sequence[Any],
        grads: Sequence[Any],
        states: Sequence[State],
    ) -> None:
        """Take a step as `update` does, on float32 masters where `multi_precision` asks for them.

        The fused step reads the float16 gradient and writes master and float16 weight in the same
        pass; nothing is copied.
        """
        if self.use_fused_step:
            self._fused(indices, weights, grads, states, masters=self.multi_precision)
        else:
            masters = self.multi_precision
            self._unfused(indices, _parameters(weights, grads, states, masters=masters))

    def _hyperparameters(self) -> Scalars:
        """Collect what holds for this step: `Trainer` sets `rescale_grad` anew each time."""
        values = self.rho, self.epsilon, self.wd, self.rescale_grad, self.clip_gradient
        before, common = self._common
        if all(map(operator.is_, values, before)):
            return common
        try:  # zeros of either sign are equal, and give other bits
            signs = math.copysign(1, self.wd), math.copysign(1, self.rescale_grad)
            common = _common(signs, *values)
        except TypeError:  # one is no number, which is said there
            common = _checked(*values)
        self._common = values, common
        return common

    def _count(self, index: int) -> tuple[float, float]:
        """Count an update; return the tensor's own rate and decay.

        Index by index, as the stock optimizer does: counting a whole batch first gives other
        scheduler rates once a parameter was frozen.
        """
        self._update_count(index)
        return self._get_lr(index), self._get_wd(index)

    def _count_all(self, indices: Sequence[int]) -> tuple[Sequence[float], Sequence[float]]:
        """Count an update of each; return their rates and weight_decays."""
        if self.lr_scheduler is not None:
            rates, weight_decays = zip(*map(self._count, indices), strict=True)
            return rates, weight_decays
        self._update_count(list(indices))  # without a schedule, no rate depends on the counts
        mults = [self._mults(index) for index in indices]
        return [self.lr * mult for mult, _ in mults], [self.wd * mult for _, mult in mults]

    def _mults(self, index: int) -> tuple[float, float]:
        """Look up a parameter's multipliers of rate and decay, where MXNet does; 1 by default."""
        if index in self.param_dict:
            parameter = self.param_dict[index]
            return parameter.lr_mult, parameter.wd_mult
        name = self.idx2name.get(index, index)
        lr_mult, wd_mult = self.lr_mult, self.wd_mult
        return (
            lr_mult[index] if index in lr_mult else lr_mult.get(name, 1.0),
            wd_mult[index] if index in wd_mult else wd_mult.get(name, 1.0),
        )

    def _unfused(self, indices: Sequence[int], parameters: Sequence[Parameter]) -> None:
        common = self._hyperparameters()
        with mx.util.np_shape(True):
            for index, parameter in zip(indices, parameters, strict=True):
                _check_dense("gradient", parameter.grad)
                learning_rate, wd = self._count(index)
                views = Parameter(*(array.as_np_ndarray() for array in parameter.arrays))
                update(mx.np, views, common.rounded(views.acc_grad.dtype), learning_rate, wd)

    def _fused(
        self,
        indices: Sequence[int],
        weights: Sequence[Any],
        grads: Sequence[Any],
        states: Sequence[State],
        *,
        masters: bool,
    ) -> None:
        if not len(indices) == len(weights) == len(grads) == len(states):
            raise ValueError(
                f"{len(indices)} indices, {len(weights)} weights, {len(grads)} gradients and "
                f"{len(states)} states; expected as many of each"
            )
        if not weights:
            return
        common = self._hyperparameters()
        flush = runtime.wait_and_get_ftz()
        bound = self._bound.get(indices[0])
        if bound is None or not bound.holds(weights, grads, states, masters):
            bound = self._bound[indices[0]] = _Bound(weights, grads, states, masters)
        rates, weight_decays = self._count_all(indices)
        bound.step(rates, weight_decays, common, flush=flush)


class _Bound:
    """The tensors of a step, as long as they are given as the very same objects.

    They are told apart by identity, which costs 0.1 us a tensor; so they have to be kept.

    Raises:
        TypeError: there is no kernel for one of them, or its arrays lie on several devices.
        ValueError: the arrays of one differ in shape.
        UnavailableError: they lie on a GPU that CuPy cannot use.
    """

    def __init__(
        self, weights: Sequence[Any], grads: Sequence[Any], states: Sequence[State], masters: bool
    ) -> None:
        self._parameters = _parameters(weights, grads, states, masters=masters)  # to keep them
        tensors = [parameter.arrays for parameter in self._parameters]
        self.step: FusedMxnetStep | FusedMxnetGpuStep = FusedMxnetStep(tensors)
        if not self.step.possible:
            for wrong in filter(None, map(_what_is_wrong, self._parameters)):
                raise wrong
            self.step = FusedMxnetGpuStep(tensors)  # nothing is wrong, so that is where they are
        lasting = all(map(_is_lasting, states))
        self._given = [*weights, *grads, *states] if lasting else []
        self._masters = masters

    def holds(
        self, weights: Sequence[Any], grads: Sequence[Any], states: Sequence[State], masters: bool
    ) -> bool:
        """Tell whether these are the ones."""
        given = [*weights, *grads, *states]
        return (
            len(given) == len(self._given)
            and masters == self._masters
            and all(map(operator.is_, given, self._given))
        )


def _is_lasting(state: Any) -> bool:
    """Tell whether a state holds the same arrays as long as it is the same object: tuples do."""
    return type(state) is tuple and all(
        isinstance(part, mx.nd.NDArray) or _is_lasting(part) for part in state
    )


@lru_cache(maxsize=64, typed=True)
def _common(_signs: Any, *values: Any) -> Scalars:
    """Check them once, not at each step."""
    return _checked(*values)


def _checked(*values: Any) -> Scalars:
    return Hyperparameters(1.0, *values).doubles


def _parameters(
    weights: Sequence[Any], grads: Sequence[Any], states: Sequence[State], *, masters: bool
) -> list[Parameter]:
    """Put together what a step is given; float16 weights have float32 masters if there are any."""
    return [
        _with_master(weight, grad, *state)
        if masters and weight.dtype == np.float16
        else Parameter(weight, grad, *state)
        for weight, grad, state in zip(weights, grads, states, strict=True)
    ]


def _with_master(weight: Any, grad: Any, master: Any, state: State) -> Parameter:
    acc_grad, acc_delta = state
    return Parameter(weight, grad, acc_grad, acc_delta, master)


_STATE_DTYPE = {"float16": "float32", "float32": "float32", "float64": "float64"}


def _check_dense(what: str, array: Any) -> None:
    if array.stype != "default":
        raise _sparse_error(what, array)


def _sparse_error(what: str, array: Any) -> TypeError:
    return TypeError(
        f"a {what} is sparse ({array.stype}); AdaDelta takes dense arrays: use "
        "grad_stype='default', or array.tostype('default')"
    )


def _what_is_wrong(parameter: Parameter) -> Exception | None:
    """Say why there is no kernel for a parameter; None for one that has a kernel."""
    arrays = parameter.arrays
    sparse = [array for array in arrays if array.stype != "default"]
    if sparse:
        return _sparse_error("weight" if sparse[0] is parameter.weight else "gradient", sparse[0])
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        return ValueError(f"weight, gradient and states must have one shape; got {sorted(shapes)}")
    devices = {str(array.device) for array in arrays}
    if len(devices) > 1:
        return TypeError(
            f"weight, gradient and states lie on {', '.join(sorted(devices))}; the fused step "
            "takes those of one device: copy them there (as_in_context), or pass "
            "use_fused_step=False"
        )
    try:
        layout.layout_of(*(array.dtype for array in arrays))
    except TypeError as error:
        return error
    return None


def _aggregate_num(given: float | None, fused: bool) -> int:
    """Say how many parameters `Updater` hands over at once.

    `sys.maxsize` stands for no limit: `numpy.inf`, for which the Updater tests by identity, is
    another object after pickling.
    """
    if given is None:
        return sys.maxsize if fused else 1
    if not given >= 1:
        raise ValueError(f"aggregate_num is {given!r}; allowed is a number from 1 on, or infinity")
    return sys.maxsize if math.isinf(given) else int(given)


def _overwrite_base_rate(scheduler: Any, learning_rate: float) -> None:
    """Let a given rate overwrite the scheduler's, as MXNet does, but without printing to stdout."""
    if scheduler is not None and scheduler.base_lr != learning_rate:
        warnings.warn(
            f"the scheduler's base rate {scheduler.base_lr} is overwritten by learning_rate="
            f"{learning_rate}; pass learning_rate=None to keep the scheduler's",
            stacklevel=3,
        )
        scheduler.base_lr = learning_rate


def load_states(trainer: Any, path: str) -> None:
    """Load optimizer states into a `gluon.Trainer`, keeping the fused step.

    `Trainer.load_states` brings back the class of the optimizer that saved the states. After states
    that `mxnet.optimizer.AdaDelta` saved, this puts an `AdaDelta` of this package in its place,
    with the saved hyper-parameters and update counts, and with `use_fused_step` and `aggregate_num`
    as the trainer's optimizer had them.

    Args:
        trainer: a trainer whose optimizer is this package's `AdaDelta`.
        path: a file that `Trainer.save_states` wrote.

    Raises:
        TypeError: the trainer's optimizer, or the one that saved the states, is no AdaDelta.
        ValueError: the file is damaged, or holds a hyper-parameter that is out of range.
        OSError: the file cannot be read.

    After an error the trainer is as it was before.
    """
    before = trainer.optimizer
    if not isinstance(before, AdaDelta):
        raise TypeError(f"the trainer's optimizer is {type(before)}; expected {AdaDelta}")
    content = Path(path).read_bytes()
    optimizer = _taken_over(_unpickled(content, before, path).optimizer, before, path)
    updaters = _updaters(trainer)
    # Each gets states of its own. Nothing from here on can fail once all of them are read.
    pairs = [(updater, _unpickled(content, before, path)) for updater in updaters]
    optimizer.param_dict = dict(enumerate(trainer._params))  # noqa: SLF001 - as Trainer.load_states
    trainer._optimizer = optimizer  # noqa: SLF001
    for updater, loaded in pairs:
        updater.states, updater.states_synced = loaded.states, loaded.states_synced
        updater.optimizer = optimizer


def _unpickled(content: bytes, before: AdaDelta, path: Any) -> Any:
    """Read states, and the optimizer that saved them if any, into an updater of their own."""
    updater = mx.optimizer.Updater(before)
    try:
        updater.set_states(content)
    except Exception as error:  # unpickling raises many kinds on damaged files
        raise ValueError(
            f"{path} is no file of states ({type(error).__name__}: {error}); expected one that "
            "Trainer.save_states wrote"
        ) from error
    return updater


def _taken_over(loaded: Any, before: AdaDelta, path: Any) -> AdaDelta:
    """Make an optimizer that goes on as the one that was saved, in the way of the one before."""
    if not isinstance(loaded, (AdaDelta, mx.optimizer.adadelta.AdaDelta)):
        raise TypeError(f"{path} was saved by {type(loaded)}; expected an AdaDelta's states")
    optimizer = AdaDelta.__new__(AdaDelta)
    optimizer.__setstate__(loaded.__getstate__())
    optimizer.use_fused_step = before.use_fused_step
    optimizer.aggregate_num = before.aggregate_num
    optimizer._hyperparameters()  # noqa: SLF001 - a file is input: raises what is out of range
    rates = {"learning_rate": optimizer.lr}
    if optimizer.lr_scheduler is not None:
        rates["lr_scheduler.base_lr"] = getattr(optimizer.lr_scheduler, "base_lr", 0.0)
    for name in ("lr_mult", "wd_mult"):
        rates |= {f"{name} of {key}": mult for key, mult in getattr(optimizer, name).items()}
    for name, value in rates.items():
        checked(name, value, "a finite number")
    return optimizer


def _updaters(trainer: Any) -> list[Any]:
    """Find what holds a trainer's states, once its key-value store is there."""
    if not trainer._kv_initialized:  # noqa: SLF001 - as Trainer.load_states does itself
        trainer._init_kvstore()  # noqa: SLF001
    if trainer._params_to_init:  # noqa: SLF001
        trainer._init_params()  # noqa: SLF001
    if not trainer._update_on_kvstore:  # noqa: SLF001
        return list(trainer._updaters)  # noqa: SLF001
    updater = trainer._kvstore._updater  # noqa: SLF001
    if updater is None:
        raise ValueError("a distributed key-value store keeps its states itself; none are loaded")
    return [updater]


# Assigned, since `Optimizer.register` prints a warning where a name is taken.
mx.optimizer.Optimizer.opt_registry["adadelta"] = AdaDelta
