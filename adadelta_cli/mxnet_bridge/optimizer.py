"""`AdaDelta` for Apache MXNet, with the fused step that MXNet documents and never shipped."""

from __future__ import annotations

import math
import operator
import os
import sys
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli import keywords
from adadelta_cli.kernels import layout
from adadelta_cli.mxnet_bridge import runtime
from adadelta_cli.mxnet_bridge.fused import FusedMxnetGpuStep, FusedMxnetStep
from adadelta_cli.update import STATE_DTYPES, Hyperparameters, Parameter, Scalars, checked, update

if TYPE_CHECKING:
    from collections.abc import Sequence

    State = tuple[Any, ...]
    Indices = Sequence[int]
    Arrays = Sequence[Any]
    States = Sequence[State]

mx = runtime.load_mxnet()


class AdaDelta(mx.optimizer.Optimizer):  # type: ignore[name-defined]
    """The AdaDelta optimizer (M. D. Zeiler, arXiv:1212.5701), as MXNet 2.0 defines it.

    Each step updates each weight by::

        grad      = clip(grad * rescale_grad, clip_gradient) + wd * weight
        acc_grad  = rho * acc_grad + (1 - rho) * grad * grad
        delta     = sqrt(acc_delta + epsilon) / sqrt(acc_grad + epsilon) * grad
        acc_delta = rho * acc_delta + (1 - rho) * delta * delta
        weight   -= learning_rate * delta

    The fused step makes one pass over memory; its results are bit-identical to the unfused step's.
    Both leave the gradients unchanged, which `mxnet.optimizer.AdaDelta` does not.

    Weights are float16, float32 or float64. A float16 weight has float32 states; with
    `multi_precision=True` it also has a float32 master copy, which the fused step updates in the
    same pass. Gradients are dense and have the weight's dtype.

    With the fused step, `aggregate_num` is unlimited by default, so `gluon.Trainer` passes all
    parameters in one call. MXNet rejects that with `update_on_kvstore=True`: pass
    `aggregate_num=1` there.

    Args:
        learning_rate: factor of the step, a finite number. None: the rate of `lr_scheduler`, or
            0.01 without one. Any other value, the default included, overwrites the scheduler's
            base rate.
        rho: decay of both accumulators, in [0, 1).
        epsilon: added under both square roots, positive.
        use_fused_step: whether `update` calls `fused_step` or `step`.
        **kwargs: those of `mxnet.optimizer.Optimizer`: `rescale_grad`, `clip_gradient`, `wd`,
            `lr_scheduler`, `multi_precision`, `param_dict`, `aggregate_num`, and so on.

    Raises:
        TypeError: a keyword is unknown, or `use_fused_step` is no bool.
        ValueError: a hyper-parameter is out of range.

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
        _check_keywords(kwargs)
        if not isinstance(use_fused_step, (bool, np.bool_, type(None))):
            raise TypeError(f"use_fused_step is {use_fused_step!r}; allowed is True or False")
        if learning_rate is not None:
            checked("learning_rate", learning_rate, "a finite number, or None")
            _overwrite_base_rate(kwargs.get("lr_scheduler"), learning_rate)
        kwargs["aggregate_num"] = _aggregate_num(kwargs.get("aggregate_num"), use_fused_step)
        super().__init__(learning_rate=learning_rate, use_fused_step=use_fused_step, **kwargs)
        self._clear_caches()
        self.allow_np_array = True  # both interfaces, whichever is active now
        self.rho = rho
        self.epsilon = epsilon
        Hyperparameters(1.0, rho, epsilon, self.wd, self.rescale_grad, self.clip_gradient)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the caches: they hold arrays of this process."""
        kept = super().__getstate__()
        return {name: value for name, value in kept.items() if name not in ("_bound", "_common")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state of an optimizer of this class, or of MXNet's own AdaDelta."""
        super().__setstate__(state)
        self._clear_caches()

    def _clear_caches(self) -> None:
        """Clear what is cached from step to step."""
        self._bound: dict[int, _Bound] = {}  # by the first index of a step
        self._common: tuple[tuple[Any, ...], Any] = ((object(),), None)  # values and their Scalars

    def create_state(self, index: int, weight: Any) -> State:  # noqa: ARG002 - MXNet's signature
        """Make `(acc_grad, acc_delta)` for a weight: zeros of its shape, on its device.

        They are float64 for a float64 weight, and float32 for a float32 or float16 one.

        Raises:
            TypeError: the weight is sparse, or of another dtype.
        """
        _check_dense("weight", weight)
        dtype = np.dtype(weight.dtype).name
        if dtype not in STATE_DTYPES:
            raise TypeError(
                f"a weight is {dtype}; AdaDelta takes {', '.join(STATE_DTYPES)}: cast it"
            )
        with mx.util.np_shape(True):
            zeros = mx.np.zeros(weight.shape, dtype=STATE_DTYPES[dtype], device=weight.device)
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

    def step(self, indices: Indices, weights: Arrays, grads: Arrays, states: States) -> None:
        """Take one step, one array operation at a time: the unfused step.

        Args:
            indices: of the parameters, for their multipliers and counts.
            weights: arrays of float16, float32 or float64, updated in place.
            grads: arrays like the weights, left unchanged.
            states: what `create_state` made for each weight, updated in place.

        Raises:
            TypeError: a gradient or a weight is sparse.
        """
        self._unfused(indices, _parameters(weights, grads, states, masters=False))

    def fused_step(self, indices: Indices, weights: Arrays, grads: Arrays, states: States) -> None:
        """Take one step on all tensors in one pass over memory; bit-identical to `step`.

        It waits until MXNet's engine is idle, work of other threads included, and computes in
        MXNet's subnormal mode. On a GPU, used through CuPy, nothing is flushed. No two tensors may
        share memory that the step writes. Metadata and references to the arrays are cached until
        other arrays come for the same indices. Arguments as in `step`.

        Raises:
            TypeError: a gradient or a weight is sparse, or its dtype is not supported; or the
                arrays of a tensor are on several devices.
            UnavailableError: the arrays are on a GPU that CuPy cannot use.
        """
        self._fused(indices, weights, grads, states, masters=False)

    def update_multi_precision(
        self, indices: Indices, weights: Arrays, grads: Arrays, states: States
    ) -> None:
        """Take a step as `update` does; with `multi_precision` on float32 masters.

        The fused step reads the float16 gradient and writes master and float16 weight in one pass,
        without copies. A subclass gets MXNet's own way: it calls `update`, which may be overridden.
        """
        if type(self) is not AdaDelta:
            super().update_multi_precision(indices, weights, grads, states)
        elif self.use_fused_step:
            self._fused(indices, weights, grads, states, masters=self.multi_precision)
        else:
            masters = self.multi_precision
            self._unfused(indices, _parameters(weights, grads, states, masters=masters))

    def _hyperparameters(self) -> Scalars:
        """Return the current hyper-parameters: `Trainer` sets `rescale_grad` before each step."""
        values = self.rho, self.epsilon, self.wd, self.rescale_grad, self.clip_gradient
        before, common = self._common
        if all(map(operator.is_, values, before)):
            return common
        try:  # 0.0 and -0.0 are equal as keys of a cache, but give different bits
            signs = math.copysign(1, self.wd), math.copysign(1, self.rescale_grad)
            common = _common(signs, *values)
        except TypeError:  # a value is no number: raise the error for it
            common = _checked(*values)
        self._common = values, common
        return common

    def _count(self, index: int) -> tuple[float, float]:
        """Count an update; return the tensor's rate and weight decay.

        As in MXNet's own optimizer, one index at a time: counting a whole batch first would give
        other scheduler rates after a parameter was frozen.
        """
        self._update_count(index)
        return self._get_lr(index), self._get_wd(index)

    def _count_all(self, indices: Sequence[int]) -> tuple[Sequence[float], Sequence[float]]:
        """Count an update of each tensor; return their rates and weight decays."""
        if self.lr_scheduler is not None:
            rates, weight_decays = zip(*map(self._count, indices), strict=True)
            return rates, weight_decays
        self._update_count(list(indices))  # without a schedule, no rate depends on the counts
        mults = [self._mults(index) for index in indices]
        return [self.lr * mult for mult, _ in mults], [self.wd * mult for _, mult in mults]

    def _mults(self, index: int) -> tuple[float, float]:
        """Look up a parameter's multipliers of rate and weight decay as MXNet does."""
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
        for error in filter(None, map(_error_of, parameters)):  # before the first is changed
            raise error
        with mx.util.np_shape(True):
            for index, parameter in zip(indices, parameters, strict=True):
                learning_rate, wd = self._count(index)
                views = Parameter(*(array.as_np_ndarray() for array in parameter.arrays))
                update(mx.np, views, common.rounded(views.acc_grad.dtype), learning_rate, wd)

    def _fused(
        self, indices: Indices, weights: Arrays, grads: Arrays, states: States, *, masters: bool
    ) -> None:
        if not len(indices) == len(weights) == len(grads) == len(states):
            raise ValueError(
                f"{len(indices)} indices, {len(weights)} weights, {len(grads)} gradients and "
                f"{len(states)} states; expected one of each for each tensor"
            )
        if not weights:
            return
        common = self._hyperparameters()
        flush = runtime.wait_and_get_ftz()
        bound = self._bound.get(indices[0])
        if bound is None or not bound.holds(weights, grads, states, masters):
            bound = _Bound(weights, grads, states, masters)
            bound.check_disjoint(indices)
            self._bound[indices[0]] = bound
        rates, weight_decays = self._count_all(indices)
        bound.step(rates, weight_decays, common, flush=flush)


class _Bound:
    """A step on the tensors of one call, valid for calls with the same objects.

    Objects are compared by identity, which takes 0.1 us a tensor; so references are kept.

    Raises:
        TypeError: there is no kernel for a tensor, or its arrays are on several devices.
        ValueError: the arrays of a tensor differ in shape.
        UnavailableError: the arrays are on a GPU that CuPy cannot use.
    """

    def __init__(self, weights: Arrays, grads: Arrays, states: States, masters: bool) -> None:
        self._parameters = _parameters(weights, grads, states, masters=masters)  # kept alive
        tensors = [parameter.arrays for parameter in self._parameters]
        self.step: FusedMxnetStep | FusedMxnetGpuStep = FusedMxnetStep(tensors)
        if not self.step.supported:
            for error in filter(None, map(_error_of, self._parameters)):
                raise error
            self.step = FusedMxnetGpuStep(tensors)  # no error: the arrays are on a GPU
        cacheable = all(map(_is_immutable, states))
        self._given = [*weights, *grads, *states] if cacheable else []
        self._masters = masters

    def check_disjoint(self, indices: Indices) -> None:
        """Raise ValueError if arrays that the step writes share memory; `kernels.cuda` does so."""
        if isinstance(self.step, FusedMxnetStep):
            layout.check_disjoint(self.step.refs(), indices)

    def holds(self, weights: Arrays, grads: Arrays, states: States, masters: bool) -> bool:
        """Return whether the step is valid for these objects."""
        given = [*weights, *grads, *states]
        return (
            len(given) == len(self._given)
            and masters == self._masters
            and all(map(operator.is_, given, self._given))
        )


def _is_immutable(state: Any) -> bool:
    """Return whether the same object always holds the same arrays: tuples do."""
    return type(state) is tuple and all(
        isinstance(part, mx.nd.NDArray) or _is_immutable(part) for part in state
    )


@lru_cache(maxsize=64, typed=True)
def _common(_signs: Any, *values: Any) -> Scalars:
    """Check each combination of values once, not at each step."""
    return _checked(*values)


def _checked(*values: Any) -> Scalars:
    return Hyperparameters(1.0, *values).doubles


def _parameters(
    weights: Arrays, grads: Arrays, states: States, *, masters: bool
) -> list[Parameter]:
    """Make a Parameter of each tensor; with `masters`, the states of float16 weights have one."""
    parameters = []
    for weight, grad, state in zip(weights, grads, states, strict=True):
        if masters and weight.dtype == np.float16:
            master, (acc_grad, acc_delta) = state
            parameters.append(Parameter(weight, grad, acc_grad, acc_delta, master))
        else:
            parameters.append(Parameter(weight, grad, *state))
    return parameters


def _check_dense(what: str, array: Any) -> None:
    if array.stype != "default":
        raise _sparse_error(what, array)


def _sparse_error(what: str, array: Any) -> TypeError:
    return TypeError(
        f"a {what} is sparse ({array.stype}); AdaDelta takes dense arrays; use "
        "grad_stype='default', or array.tostype('default')"
    )


def _error_of(parameter: Parameter) -> Exception | None:
    """Return the error that says why there is no kernel for a parameter; None if there is one."""
    arrays = parameter.arrays
    sparse = [array for array in arrays if array.stype != "default"]
    if sparse:
        return _sparse_error("weight" if sparse[0] is parameter.weight else "gradient", sparse[0])
    if len({array.shape for array in arrays}) > 1:
        given = ", ".join(f"{array.shape} {np.dtype(array.dtype).name}" for array in arrays)
        return ValueError(f"weight, gradient and states must have one shape; they are {given}")
    devices = {str(array.device) for array in arrays}
    if len(devices) > 1 and not all(device.startswith("cpu") for device in devices):
        return TypeError(
            f"weight, gradient and states are on {', '.join(sorted(devices))}; AdaDelta "
            "takes arrays on one device: copy them (as_in_context)"
        )
    try:
        layout.layout_of(*(array.dtype for array in arrays))
    except TypeError as error:
        return error
    return None


def _check_keywords(given: dict[str, Any]) -> None:
    known = {*keywords.of(AdaDelta.__init__), *keywords.of(mx.optimizer.Optimizer.__init__)}
    keywords.check("AdaDelta", given, sorted(known))


def _aggregate_num(given: float | None, fused: bool) -> int:
    """Return how many parameters `Updater` passes in one call.

    `sys.maxsize` means no limit: the Updater compares with `numpy.inf` by identity, which pickling
    breaks.
    """
    if given is None:
        return sys.maxsize if fused else 1
    allowed = "a number that is not negative (0 and 1: one at a time), or infinity"
    if given == math.inf:
        return sys.maxsize
    return int(checked("aggregate_num", given, allowed, lambda number: number >= 0))


def _overwrite_base_rate(scheduler: Any, learning_rate: float) -> None:
    """Overwrite the scheduler's base rate as MXNet does; warn instead of printing to stdout."""
    if scheduler is not None and scheduler.base_lr != learning_rate:
        warnings.warn(
            f"the scheduler's base rate {scheduler.base_lr} is overwritten by learning_rate="
            f"{learning_rate}; pass learning_rate=None to keep the scheduler's",
            stacklevel=3,
        )
        scheduler.base_lr = learning_rate


@keywords.checked
def load_states(trainer: Any, path: str) -> None:
    """Load optimizer states into a `gluon.Trainer`, keeping the fused step.

    `Trainer.load_states` restores the class of the optimizer that saved the states. This function
    replaces it by an `AdaDelta` of this package, with the saved hyper-parameters and update counts,
    and with `use_fused_step` and `aggregate_num` of the trainer's current optimizer. After an error
    the trainer is unchanged.

    Args:
        trainer: a trainer whose optimizer is this package's `AdaDelta`.
        path: a file that `Trainer.save_states` wrote.

    Raises:
        TypeError: the trainer's optimizer, or the one that saved the states, is no AdaDelta.
        ValueError: the file is damaged, or a hyper-parameter in it is out of range.
        OSError: the file cannot be read.
    """
    if not isinstance(trainer, mx.gluon.Trainer):
        raise TypeError(f"trainer is a {type(trainer).__name__}; expected a gluon.Trainer")
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path is a {type(path).__name__}; expected the name of a file")
    before = trainer.optimizer
    if not isinstance(before, AdaDelta):
        raise TypeError(f"the trainer's optimizer is {type(before)}; expected {AdaDelta}")
    content = Path(path).read_bytes()
    optimizer = _converted(_unpickled(content, before, path).optimizer, before, path)
    updaters = _updaters(trainer)
    # Each updater gets its own copy of the states. Once all are read, nothing below can fail.
    pairs = [(updater, _unpickled(content, before, path)) for updater in updaters]
    optimizer.param_dict = dict(enumerate(trainer._params))  # noqa: SLF001 - as Trainer.load_states
    trainer._optimizer = optimizer  # noqa: SLF001
    for updater, loaded in pairs:
        updater.states, updater.states_synced = loaded.states, loaded.states_synced
        updater.optimizer = optimizer


def _unpickled(content: bytes, before: AdaDelta, path: Any) -> Any:
    """Read states, and the optimizer that saved them if any, into a new updater."""
    updater = mx.optimizer.Updater(before)
    try:
        updater.set_states(content)
    except Exception as error:  # unpickling damaged files raises many types
        raise ValueError(
            f"{path} is no file of states ({type(error).__name__}: {error}); expected one that "
            "Trainer.save_states wrote"
        ) from error
    return updater


def _converted(loaded: Any, before: AdaDelta, path: Any) -> AdaDelta:
    """Make an AdaDelta with the state of the loaded optimizer and the options of `before`."""
    if not isinstance(loaded, (AdaDelta, mx.optimizer.adadelta.AdaDelta)):
        raise TypeError(f"{path} was saved by {type(loaded)}; expected an AdaDelta's states")
    optimizer = type(before).__new__(type(before))  # of the trainer's own class
    optimizer.__setstate__({**before.__getstate__(), **loaded.__getstate__()})
    optimizer.use_fused_step = before.use_fused_step
    optimizer.aggregate_num = before.aggregate_num
    optimizer._hyperparameters()  # noqa: SLF001 - a file is input: raises if a value is out of range
    rates = {"learning_rate": optimizer.lr}
    if optimizer.lr_scheduler is not None:
        rates["lr_scheduler.base_lr"] = getattr(optimizer.lr_scheduler, "base_lr", 0.0)
    for name in ("lr_mult", "wd_mult"):
        rates |= {f"{name} of {key}": mult for key, mult in getattr(optimizer, name).items()}
    for name, value in rates.items():
        checked(name, value, "a finite number")
    return optimizer


def _updaters(trainer: Any) -> list[Any]:
    """Return the updaters that hold a trainer's states; initialize its key-value store first."""
    if not trainer._kv_initialized:  # noqa: SLF001 - as Trainer.load_states does itself
        trainer._init_kvstore()  # noqa: SLF001
    if trainer._params_to_init:  # noqa: SLF001
        trainer._init_params()  # noqa: SLF001
    if not trainer._update_on_kvstore:  # noqa: SLF001
        return list(trainer._updaters)  # noqa: SLF001
    updater = trainer._kvstore._updater  # noqa: SLF001
    if updater is None:
        raise ValueError(
            "the trainer has a distributed key-value store, which keeps the states itself; "
            "load_states needs a local one"
        )
    return [updater]


# Assigned: `Optimizer.register` would print a warning that the name exists.
mx.optimizer.Optimizer.opt_registry["adadelta"] = AdaDelta
