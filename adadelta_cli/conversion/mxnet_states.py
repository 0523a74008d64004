"""The states file of `gluon.Trainer.save_states`."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from adadelta_cli import inputs
from adadelta_cli.conversion.states import States, TensorState, hyperparameters
from adadelta_cli.errors import UsageError, shortened
from adadelta_cli.mxnet_bridge import runtime
from adadelta_cli.mxnet_bridge.optimizer import AdaDelta, converted, read_adadelta

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from adadelta_cli.conversion.replay import Drawn, Results
    from adadelta_cli.mxnet_bridge.states import SavedStates

mx = runtime.load_mxnet()
PARTS = (2, 3)  # arrays of a parameter: two states, or a master and two


def read(path: Path) -> States:
    """Read the file.

    Raises:
        UsageError: the file is damaged, hostile, or of another optimizer.
    """
    saved, optimizer = _load(path)
    updates = optimizer._index_update_count  # noqa: SLF001 - MXNet has no other access
    rate, remarks = _rate(optimizer)
    if saved.optimizer is None:
        remarks.append("the file has states only: its hyper-parameters are MXNet's defaults")
    hyper = hyperparameters(
        learning_rate=rate,
        rho=optimizer.rho,
        epsilon=optimizer.epsilon,
        wd=optimizer.wd,
        rescale_grad=optimizer.rescale_grad,
        clip_gradient=optimizer.clip_gradient,
    )
    tensors = []
    for number, state in sorted(_states(path, saved).items()):
        lr_mult, wd_mult = optimizer._mults(number)  # noqa: SLF001 - of this package
        *masters, acc_grad, acc_delta = state
        name = str(optimizer.idx2name.get(number, number))
        own = hyper.learning_rate * lr_mult, hyper.wd * wd_mult, updates.get(number, 0)
        master = masters[0] if masters else None
        tensors.append(TensorState(number, name, *own, acc_grad, acc_delta, master))
    return States(tensors, hyper, remarks)


def _load(path: Path) -> tuple[SavedStates, AdaDelta]:
    if reason := inputs.unreadable_reason(path):
        raise UsageError(f"{path} cannot be read: {reason}; name a file of Trainer.save_states")
    before = AdaDelta()
    try:
        saved = read_adadelta(path, before)
        return saved, converted(saved.attributes, before)
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path} cannot be converted: {error}") from error


def _rate(optimizer: AdaDelta) -> tuple[float, list[str]]:
    """Return the rate of the next update; with a schedule, a remark that says so."""
    if optimizer.lr_scheduler is None:
        return optimizer.lr, []
    schedule = copy.deepcopy(optimizer.lr_scheduler)
    rate = schedule(optimizer.num_update + 1)
    remark = (
        f"the schedule ({type(schedule).__name__}) stays behind; the rate is that of the next "
        f"update, {rate:g}: make a scheduler of the framework you move to"
    )
    return rate, [remark]


def _states(path: Path, saved: SavedStates) -> dict[int, list[np.ndarray]]:
    """Return the arrays of each parameter: a master if there is one, and both states."""
    found = {}
    for number, state in saved.states.items():
        parts = state if type(state) is tuple and state else (state,)
        arrays = [*parts[:-1], *parts[-1]] if type(parts[-1]) is tuple else [*parts]
        is_number = type(number) is int and number >= 0
        if not is_number or not all(isinstance(each, mx.nd.NDArray) for each in arrays):
            raise UsageError(
                f"{path}: parameter {shortened(repr(number))} has no states of AdaDelta; expected "
                "parameters by number, each with two arrays, or a master and two"
            )
        if len(arrays) not in PARTS:
            raise UsageError(
                f"{path}: parameter {number} has {len(arrays)} arrays; expected 2 or 3"
            )
        found[number] = [each.asnumpy() for each in arrays]
    return found


def content(states: States) -> bytes:
    """Return the bytes of the file: MXNet's own AdaDelta, so that MXNet alone reads it, too."""
    hyper, tensors = states.hyper, states.tensors
    has_masters = any(each.master is not None for each in tensors)
    own_rates, own_decays = ({getattr(t, n) for t in tensors} for n in ("learning_rate", "wd"))
    rate = 1.0 if len(own_rates) > 1 else own_rates.pop()
    decay = 1.0 if len(own_decays) > 1 else own_decays.pop()
    optimizer = mx.optimizer.adadelta.AdaDelta(
        learning_rate=rate,
        rho=hyper.rho,
        epsilon=hyper.epsilon,
        wd=decay,
        rescale_grad=hyper.rescale_grad,
        clip_gradient=hyper.clip_gradient,
        multi_precision=has_masters,
    )
    if own_rates:
        optimizer.lr_mult = {each.number: each.learning_rate for each in tensors}
    if own_decays:
        optimizer.wd_mult = {each.number: each.wd for each in tensors}
    optimizer.idx2name = {t.number: t.name for t in tensors if t.name != str(t.number)}
    counts = {each.number: each.updates for each in tensors if each.arrays}
    optimizer._index_update_count.update(counts)  # noqa: SLF001
    optimizer.num_update = max(counts.values(), default=0)
    updater = mx.optimizer.get_updater(optimizer)
    for each in filter(lambda each: each.arrays, tensors):
        acc_grad, acc_delta, *master = map(_array, each.arrays.values())
        pair = acc_grad, acc_delta
        updater.states[each.number] = (*master, pair) if master else pair
    return bytes(updater.get_states(dump_optimizer=True))


def remarks(states: States) -> list[str]:
    """Say what a user has to do besides loading the file."""
    found = []
    for name, mult in (("learning_rate", "lr_mult"), ("wd", "wd_mult")):
        own = {each.number: getattr(each, name) for each in states.tensors}
        if len({*own.values()}) > 1:
            listed = shortened(", ".join(f"{k}: {value:g}" for k, value in own.items()))
            found.append(
                f"the parameters have different values of {name}: a Trainer takes multipliers from "
                f"its parameters, so set their {mult} to these, with {name}=1: {listed}"
            )
    return found


def _array(values: np.ndarray) -> Any:
    with mx.util.np_shape(True):
        return mx.np.array(values, dtype=values.dtype, device=mx.cpu()).as_nd_ndarray()


def replay(path: Path, drawn: Drawn) -> Results:
    """Load the file into this package's AdaDelta and take the steps, subnormals kept."""
    saved, optimizer = _load(path)
    optimizer.lr, optimizer.lr_scheduler = _rate(optimizer)[0], None
    optimizer.use_fused_step = optimizer.multi_precision = True
    numbers = [*drawn.weights]
    weights = [_array(drawn.stored_weight(number)) for number in numbers]
    kept, states = _states(path, saved), []
    for number in numbers:
        *master, acc_grad, acc_delta = kept[number]
        pair = _array(acc_grad), _array(acc_delta)
        states.append((_array(drawn.weights[number]), pair) if master else pair)
    with runtime.flush_subnormals(False):
        for step in drawn.numbered_steps():
            grads = [_array(drawn.grad(step, number)) for number in numbers]
            optimizer.update_multi_precision(numbers, weights, grads, states)
        return dict(zip(numbers, map(_results, weights, states), strict=True))


def _results(weight: Any, state: Any) -> list[np.ndarray]:
    *master, pair = state if isinstance(state[-1], tuple) else (state,)
    return [each.asnumpy() for each in (*(master or [weight]), *pair)]
