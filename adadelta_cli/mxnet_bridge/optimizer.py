"""`AdaDelta` for Apache MXNet, with the fused step that MXNet documents and never shipped."""

from __future__ import annotations

import copy
import math
import operator
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli import keywords
from adadelta_cli.errors import UsageError, in_one_line, shortened
from adadelta_cli.mxnet_bridge import arguments, runtime, tensors
from adadelta_cli.mxnet_bridge.arguments import FINITE
from adadelta_cli.mxnet_bridge.states import name_of, read_states
from adadelta_cli.update import STATE_DTYPES, Scalars, checked

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adadelta_cli.mxnet_bridge.states import SavedStates
    from adadelta_cli.mxnet_bridge.tensors import Arrays, Indices, Rates, State, States

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

    aggregate_num: float  # MXNet is not typed
    num_update: int

    def __init__(
        self,
        learning_rate: float | None = 1.0,
        rho: float = 0.9,
        epsilon: float = 1e-6,
        use_fused_step: bool = False,
        **kwargs: Any,
    ) -> None:
        order = type(self).__mro__
        arguments.check_keywords(kwargs, order[order.index(AdaDelta) : -1])
        arguments.check_kinds({"use_fused_step": use_fused_step, **kwargs})
        if learning_rate is not None:
            number = arguments.as_number(learning_rate)
            checked("learning_rate", number, "a finite number, or None")
        wd, rescale_grad = kwargs.get("wd", 0.0), kwargs.get("rescale_grad", 1.0)
        arguments.scalars(rho, epsilon, wd, rescale_grad, kwargs.get("clip_gradient"))
        given = kwargs.get("aggregate_num")
        kwargs["aggregate_num"] = arguments.aggregate_num(given, fused=bool(use_fused_step))
        arguments.overwrite_base_rate(kwargs.get("lr_scheduler"), learning_rate)
        super().__init__(learning_rate=learning_rate, use_fused_step=use_fused_step, **kwargs)
        self._clear_caches()
        self.allow_np_array = True  # both interfaces, whichever is active now
        self.rho = rho
        self.epsilon = epsilon

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the caches: they hold arrays of this process."""
        kept = super().__getstate__()
        return {name: value for name, value in kept.items() if name not in ("_bound", "_common")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state of an optimizer of this class, or of MXNet's own AdaDelta."""
        super().__setstate__(state)
        if self.aggregate_num == math.inf:
            self.aggregate_num = np.inf  # the same object: `Updater` compares by identity
        self._clear_caches()

    def _clear_caches(self) -> None:
        """Clear what is cached from step to step."""
        self._bound: dict[int, Any] = {}  # the tensors by the first index of a step
        self._common: tuple[tuple[Any, ...], Any] = ((object(),), None)  # values and their Scalars

    def create_state(self, index: int, weight: Any) -> State:
        """Make `(acc_grad, acc_delta)` for a weight: zeros of its shape, on its device.

        They are float64 for a float64 weight, and float32 for a float32 or float16 one.

        Raises:
            TypeError: the weight is sparse, or of another dtype.
        """
        tensors.check_dense(f"weight {index}", weight)
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

    def set_learning_rate(self, lr: float) -> None:
        """Set the rate; with a scheduler, `UserWarning` is raised as MXNet does.

        Raises:
            ValueError: it is no finite number.
        """
        checked("learning_rate", arguments.as_number(lr), FINITE)
        super().set_learning_rate(lr)

    def set_lr_mult(self, args_lr_mult: dict[Any, float]) -> None:
        """Set the multipliers of the rate by index or name; 1 for all others.

        Raises:
            TypeError: `args_lr_mult` is no dict.
            ValueError: a multiplier is no finite number.
        """
        super().set_lr_mult(arguments.multipliers("lr_mult", args_lr_mult))

    def set_wd_mult(self, args_wd_mult: dict[Any, float]) -> None:
        """Set the multipliers of the weight decay; as `set_lr_mult`."""
        super().set_wd_mult(arguments.multipliers("wd_mult", args_wd_mult))

    def update(self, indices: Indices, weights: Arrays, grads: Arrays, states: States) -> None:
        """Take one step: `fused_step` with `use_fused_step`, else `step`; arguments as there."""
        step = self.fused_step if self.use_fused_step else self.step
        step(indices, weights, grads, states)

    def step(self, indices: Indices, weights: Arrays, grads: Arrays, states: States) -> None:
        """Take one step, one array operation at a time: the unfused step.

        Nothing is changed or counted before all tensors and rates are checked.

        Args:
            indices: of the parameters, for their multipliers and counts.
            weights: arrays of float16, float32 or float64, updated in place.
            grads: arrays like the weights, left unchanged.
            states: what `create_state` made for each weight, updated in place.

        Raises:
            TypeError: an array is sparse, none of MXNet's, or of a dtype that is not supported; a
                state is not what `create_state` made; or the arrays of a tensor are on several
                devices.
            ValueError: the arrays of a tensor differ in shape; the lists differ in length; or a
                hyper-parameter is out of range, or a rate, a weight decay or a multiplier, a
                scheduler's included, no finite number.
        """
        self._take(tensors.UnfusedTensors, indices, weights, grads, states, masters=False)

    def fused_step(self, indices: Indices, weights: Arrays, grads: Arrays, states: States) -> None:
        """Take one step on all tensors in one pass over memory; bit-identical to `step`.

        It waits until MXNet's engine is idle, work of other threads included, and computes in
        MXNet's subnormal mode. On a GPU, used through CuPy, nothing is flushed. Arguments as in
        `step`.

        Raises:
            TypeError: as `step`.
            ValueError: tensors share memory that the step writes; else as `step`.
            UnavailableError: the arrays are on a GPU that CuPy cannot use.
        """
        self._take(tensors.FusedTensors, indices, weights, grads, states, masters=False)

    def update_multi_precision(
        self, indices: Indices, weights: Arrays, grads: Arrays, states: States
    ) -> None:
        """Take a step as `update` does; with `multi_precision` on float32 masters.

        The fused step reads the float16 gradient and writes master and float16 weight in one pass,
        without copies. Where `update`, `step` or `fused_step` is overridden, it is called instead,
        with masters and float32 copies of the gradients, as MXNet does.
        """
        if not self.multi_precision:
            self.update(indices, weights, grads, states)
        elif any(
            getattr(getattr(self, name), "__func__", None) is not STEPS[name] for name in STEPS
        ):
            super().update_multi_precision(indices, weights, grads, states)
        else:
            kind = tensors.FusedTensors if self.use_fused_step else tensors.UnfusedTensors
            self._take(kind, indices, weights, grads, states, masters=True)

    def _take(
        self,
        kind: Any,
        indices: Indices,
        weights: Arrays,
        grads: Arrays,
        states: States,
        *,
        masters: bool,
    ) -> None:
        """Take a step on tensors of a kind: check all, count all, then change them."""
        tensors.check_counts(indices, weights, grads, states)
        if not weights:
            return
        common = self._hyperparameters()
        flush = kind.wait()
        bound: Any = self._bound.get(indices[0])
        if type(bound) is not kind or not bound.holds(weights, grads, states, masters):
            bound = self._bound[indices[0]] = kind(indices, weights, grads, states, masters)
        rates, weight_decays = self._count_all(indices)
        bound.step(rates, weight_decays, common, flush=flush)

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
            common = arguments.scalars(*values)
        self._common = values, common
        return common

    def _count_all(self, indices: Indices) -> tuple[Rates, Rates]:
        """Count an update of each tensor; return their rates and weight decays.

        Raises:
            ValueError: one is no finite number; then nothing is counted.
        """
        counts, counted = self._index_update_count, dict(self._index_update_count)
        num_update = self.num_update
        try:
            rates, weight_decays = self._rates(indices)
            if not math.isfinite(sum(rates) + sum(weight_decays)):  # a sum may overflow, too
                self._check_rates(indices, rates, weight_decays)
            if self.num_update > num_update and self.aggregate_num < math.inf:
                # The first of several calls of a training step checks the others' multipliers.
                self._check_mults(self.param_dict or {**self.lr_mult, **self.wd_mult})
        except Exception:
            try:
                self._check_factors(indices)  # they may be named better than their product
            finally:
                counts.clear()
                counts.update(counted)
                self.num_update = num_update
            raise
        return rates, weight_decays

    def _rates(self, indices: Indices) -> tuple[Rates, Rates]:
        """Count an update of each tensor; return their rates and weight decays."""
        if self.lr_scheduler is not None or _overrides_rates(type(self)):  # type: ignore[arg-type] # hashable
            rates, weight_decays = zip(*map(self._count, indices), strict=True)
            return rates, weight_decays
        self._update_count(list(indices))  # without a schedule, no rate depends on the counts
        mults = [self._mults(index) for index in indices]
        return [self.lr * mult for mult, _ in mults], [self.wd * mult for _, mult in mults]

    def _count(self, index: int) -> tuple[float, float]:
        """Count an update; return the tensor's rate and weight decay.

        As in MXNet's own optimizer, one index at a time: counting a whole batch first would give
        other scheduler rates after a parameter was frozen.
        """
        self._update_count(index)
        return self._get_lr(index), self._get_wd(index)

    def _check_factors(self, indices: Indices) -> None:
        """Raise ValueError that names the factor of a rate that is no finite number, if any."""
        if self.lr_scheduler is None:
            checked("learning_rate", arguments.as_number(self.lr), FINITE)
        else:
            name = f"the rate of lr_scheduler at update {self.num_update}"
            checked(name, arguments.as_number(self.lr_scheduler(self.num_update)), FINITE)
        self._check_mults(indices)

    def _check_mults(self, indices: Iterable[Any]) -> None:
        for index in indices:
            for name, mult in zip(("lr_mult", "wd_mult"), self._mults(index), strict=True):
                checked(f"{name} of parameter {index}", arguments.as_number(mult), FINITE)

    def _check_rates(self, indices: Indices, rates: Rates, weight_decays: Rates) -> None:
        """Raise ValueError that names a rate or a weight decay that is no finite number, if any."""
        for index, rate, wd in zip(indices, rates, weight_decays, strict=True):
            checked(f"the learning rate of parameter {index}", rate, FINITE)
            checked(f"the weight decay of parameter {index}", wd, FINITE)

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


# The methods that a subclass may override, as they are here.
STEPS = {name: vars(AdaDelta)[name] for name in ("update", "step", "fused_step")}
RATES = ("_get_lr", "_get_lrs", "_get_wd", "_get_wds", "_update_count")


@lru_cache(maxsize=64)
def _overrides_rates(kind: type) -> bool:
    """Return whether a class has its own rates or counts.

    An object's own methods are left out: reading `__dict__` slows its attributes in CPython 3.11.
    """
    return any(getattr(kind, name) is not getattr(mx.optimizer.Optimizer, name) for name in RATES)


@lru_cache(maxsize=64, typed=True)
def _common(_signs: Any, *values: Any) -> Scalars:
    """Check each combination of values once, not at each step."""
    return arguments.scalars(*values)


@keywords.checked
def load_states(trainer: Any, path: str) -> None:
    """Load optimizer states into a `gluon.Trainer`, keeping the fused step.

    `Trainer.load_states` restores the class of the optimizer that saved the states, and runs what
    the file says. This function keeps an `AdaDelta` of this package, with the saved
    hyper-parameters and update counts, and with `use_fused_step` and `aggregate_num` of the
    trainer's current optimizer. It runs nothing from the file: it refuses what is not MXNet's, this
    package's or the class of the trainer's own optimizer or scheduler. After an error the trainer
    is unchanged.

    Args:
        trainer: a trainer whose optimizer is this package's `AdaDelta`.
        path: a file that `Trainer.save_states` wrote.

    Raises:
        TypeError: the trainer's optimizer, or the one that saved the states, is no AdaDelta.
        UsageError: the file is damaged, names something that is refused, has states for other
            parameters, or a hyper-parameter in it is out of range. A ValueError.
        OSError: the file cannot be read.
    """
    if not isinstance(trainer, mx.gluon.Trainer):
        raise TypeError(f"trainer is a {type(trainer).__name__}; expected a gluon.Trainer")
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path is a {type(path).__name__}; expected the name of a file")
    before = trainer.optimizer
    if not isinstance(before, AdaDelta):
        raise TypeError(f"the trainer's optimizer is {type(before)}; expected {AdaDelta}")
    saved = read_adadelta(Path(path), before)
    try:
        optimizer = converted(saved.attributes, before)
        if type(before) is AdaDelta:  # a subclass may have states of its own
            _check_fit(saved.states, trainer._params)  # noqa: SLF001 - as Trainer.load_states
    except ValueError as error:
        raise UsageError(f"{path} cannot be loaded: {error}") from error
    # Each updater gets its own copy of the states. Once all are made, nothing below can fail.
    pairs = [(updater, copy.deepcopy(saved.states)) for updater in _updaters(trainer)]
    optimizer.param_dict = dict(enumerate(trainer._params))  # noqa: SLF001
    trainer._optimizer = optimizer  # noqa: SLF001
    for updater, states in pairs:
        updater.states, updater.states_synced = states, dict.fromkeys(states, False)
        updater.optimizer = optimizer


def read_adadelta(path: Path, before: AdaDelta) -> SavedStates:
    """Read a file of states that an AdaDelta saved, of MXNet or of the class of `before`.

    Raises:
        TypeError: another optimizer saved it.
        UsageError: as `read_states`.
        OSError: the file cannot be read.
    """
    own = [each for each in type(before).__mro__ if issubclass(each, AdaDelta)]
    saved = read_states(path, [*own, type(before.lr_scheduler)])
    if saved.optimizer not in {None, name_of(mx.optimizer.adadelta.AdaDelta), *map(name_of, own)}:
        by = ".".join(saved.optimizer or ())
        raise TypeError(f"{path} was saved by {by}; expected an AdaDelta's states")
    return saved


def converted(saved: dict[str, Any], before: AdaDelta) -> AdaDelta:
    """Make an AdaDelta with saved attributes and the options of `before`.

    Raises:
        ValueError: an attribute has another type than that of an optimizer, or is out of range.
    """
    optimizer = type(before).__new__(type(before))  # of the trainer's own class
    attributes = before.__getstate__()
    _check_types(saved, attributes)
    optimizer.__setstate__({**attributes, **saved})
    optimizer.use_fused_step = before.use_fused_step
    optimizer.aggregate_num = before.aggregate_num
    optimizer._hyperparameters()  # noqa: SLF001 - a file is input: raises if a value is out of range
    if optimizer.lr_scheduler is None:
        rates = {"learning_rate": optimizer.lr}
    else:  # the optimizer's own rate is not used, and may be None
        rates = {"lr_scheduler.base_lr": getattr(optimizer.lr_scheduler, "base_lr", 0.0)}
    for name in ("lr_mult", "wd_mult"):
        rates |= {f"{name} of {key}": mult for key, mult in getattr(optimizer, name).items()}
    for name, value in rates.items():
        checked(name, value, "a finite number")
    _check_schedule(optimizer.lr_scheduler, optimizer.num_update)
    return optimizer


def _check_schedule(scheduler: Any, update: int) -> None:
    """Check that a scheduler of MXNet's has the attributes to compute a rate and to end."""
    if scheduler is None or type(scheduler).__module__ != mx.lr_scheduler.__name__:
        return
    steps = getattr(scheduler, "step", 1)
    for step in steps if type(steps) is list else [steps]:
        checked("lr_scheduler.step", step, "at least 1", lambda number: 1 <= number < math.inf)
    try:
        rate = copy.deepcopy(scheduler)(update)
    except Exception as error:  # whatever a missing attribute, or a text, leads to
        raise ValueError(f"lr_scheduler fails at update {update} ({in_one_line(error)})") from error
    checked("the rate of lr_scheduler", rate, "a finite number")


def _check_types(saved: dict[str, Any], known: dict[str, Any]) -> None:
    """Check what MXNet's optimizers keep besides the hyper-parameters."""
    for name, value in saved.items():
        kind = type(known.get(name))
        if name != "aggregate_num" and kind in {bool, int, dict, tuple} and type(value) is not kind:
            raise ValueError(f"{name} is {shortened(repr(value))}; expected {kind.__name__}")
    counts = saved.get("_all_index_update_counts", {})
    for each in (saved.get("_index_update_count", {}), *counts.values()):
        if type(each) is not dict or not all(type(count) is int for count in each.values()):
            raise ValueError(f"its counts of updates are {shortened(repr(each))}; expected numbers")
    scheduler = saved.get("lr_scheduler")
    if scheduler is not None and not isinstance(scheduler, mx.lr_scheduler.LRScheduler):
        raise ValueError(f"lr_scheduler is {shortened(repr(scheduler))}; expected a scheduler")


def _check_fit(states: dict[Any, Any], parameters: Sequence[Any]) -> None:
    """Check that each state has two arrays of its parameter's shape, and perhaps a master."""
    for index, state in states.items():
        if type(index) is not int or not 0 <= index < len(parameters):
            raise ValueError(
                f"it has states of parameter {shortened(repr(index))}; the trainer has "
                f"{len(parameters)} parameters"
            )
        parts = state if type(state) is tuple and state else (state,)
        arrays = [*parts[:-1], *parts[-1]] if type(parts[-1]) is tuple else parts
        data = parameters[index]._data  # noqa: SLF001 - None before the weight is initialized
        wanted = next(iter(data)).shape if data else getattr(arrays[0], "shape", None)
        shapes = [getattr(array, "shape", None) for array in arrays]
        if shapes not in ([wanted] * 2, [wanted] * 3) or wanted is None:
            raise ValueError(
                f"the states of parameter {index} have the shapes {shortened(shapes)}; expected "
                f"two of its shape {wanted}, or a master and two"
            )


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
