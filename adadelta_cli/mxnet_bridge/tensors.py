"""The tensors of one call of `AdaDelta`: checked before any is changed, and cached by identity."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli.kernels import layout
from adadelta_cli.mxnet_bridge import runtime
from adadelta_cli.mxnet_bridge.fused import FusedMxnetGpuStep, FusedMxnetStep
from adadelta_cli.update import Parameter, Scalars, update

if TYPE_CHECKING:
    from collections.abc import Sequence

    State = tuple[Any, ...]
    Indices = Sequence[int]
    Arrays = Sequence[Any]
    States = Sequence[State]
    Rates = Sequence[float]

mx = runtime.load_mxnet()


class _Tensors:
    """The tensors of one call, valid for calls with the same objects.

    Objects are compared by identity, which takes 0.1 us a tensor; so references are kept.

    Raises:
        TypeError: an array is none of MXNet's, sparse, of a dtype that the step does not support,
            or on another device than the others of its tensor; or a state is not what
            `create_state` made.
        ValueError: the arrays of a tensor differ in shape, or one that is written is read-only.
    """

    def __init__(
        self, indices: Indices, weights: Arrays, grads: Arrays, states: States, masters: bool
    ) -> None:
        tensors = zip(indices, weights, grads, states, strict=True)
        self._parameters = [_parameter(*tensor, masters) for tensor in tensors]  # kept alive
        cacheable = all(map(_is_immutable, states))
        self._given = [*weights, *grads, *states] if cacheable else []
        self._masters = masters

    def holds(self, weights: Arrays, grads: Arrays, states: States, masters: bool) -> bool:
        """Return whether these are the same objects."""
        given = [*weights, *grads, *states]
        return (
            len(given) == len(self._given)
            and masters == self._masters
            and all(map(operator.is_, given, self._given))
        )

    def _check_each(self, indices: Indices) -> None:
        for index, parameter in zip(indices, self._parameters, strict=True):
            _check(index, parameter)


class UnfusedTensors(_Tensors):
    """The tensors of an unfused step."""

    def __init__(self, indices: Indices, *given: Any) -> None:
        super().__init__(indices, *given)
        self._check_each(indices)
        with mx.util.np_shape(True):
            self._views = [
                Parameter(*(array.as_np_ndarray() for array in parameter.arrays))
                for parameter in self._parameters
            ]
        self._dtypes = [views.acc_grad.dtype for views in self._views]

    @staticmethod
    def wait() -> bool:
        """Do not wait: MXNet's engine orders its operators itself."""
        return False

    def step(self, rates: Rates, weight_decays: Rates, common: Scalars, *, flush: bool) -> None:  # noqa: ARG002 - MXNet's engine has its own mode
        """Take one step, a tensor after the other."""
        rounded = {dtype: common.rounded(dtype) for dtype in set(self._dtypes)}
        tensors = zip(self._views, self._dtypes, rates, weight_decays, strict=True)
        with mx.util.np_shape(True):
            for views, dtype, rate, wd in tensors:
                update(mx.np, views, rounded[dtype], rate, wd)


class FusedTensors(_Tensors):
    """The tensors of a fused step; MXNet's engine must be idle when they are inspected.

    Raises:
        ValueError: arrays that the step writes share memory; else as there.
        UnavailableError: the arrays are on a GPU that CuPy cannot use.
    """

    def __init__(self, indices: Indices, *given: Any) -> None:
        super().__init__(indices, *given)
        tensors = [parameter.arrays for parameter in self._parameters]
        self.step: FusedMxnetStep | FusedMxnetGpuStep = FusedMxnetStep(tensors)
        if self.step.supported:
            layout.check_disjoint(self.step.refs(), indices)
        else:
            self._check_each(indices)
            self.step = FusedMxnetGpuStep(tensors)  # no error: the arrays are on a GPU

    wait = staticmethod(runtime.wait_and_get_ftz)


def check_counts(indices: Any, weights: Any, grads: Any, states: Any) -> None:
    """Check that there is one of each for each tensor.

    Raises:
        TypeError: one is no sequence.
        ValueError: their lengths differ.
    """
    try:
        same = len(indices) == len(weights) == len(grads) == len(states)
    except TypeError:
        same = False
    if same:
        return
    given = {"indices": indices, "weights": weights, "gradients": grads, "states": states}
    for name, each in given.items():
        if not hasattr(each, "__len__"):
            raise TypeError(
                f"{name} is {type(each).__name__}; expected a list, one of each for each tensor"
            )
    counts = ", ".join(f"{len(each)} {name}" for name, each in given.items())
    raise ValueError(f"{counts}; expected one of each for each tensor")


def check_dense(what: str, array: Any) -> None:
    """Raise TypeError if an array is sparse."""
    if array.stype != "default":
        raise TypeError(
            f"{what} is sparse ({array.stype}); AdaDelta takes dense arrays; use "
            "grad_stype='default', or array.tostype('default')"
        )


def _is_immutable(state: Any) -> bool:
    """Return whether the same object always holds the same arrays: tuples do."""
    return type(state) is tuple and all(_is_array(part) or _is_immutable(part) for part in state)


def _parameter(index: Any, weight: Any, grad: Any, state: Any, masters: bool) -> Parameter:
    """Make a Parameter of a tensor; with `masters`, the state of a float16 weight has one.

    Raises:
        TypeError: the state is not what `create_state` made, or an array is none of MXNet's.
        ValueError: an array that is written is read-only.
    """
    has_master = masters and getattr(weight, "dtype", None) == np.float16
    try:
        master, pair = state if has_master else (None, state)
        acc_grad, acc_delta = pair
    except (TypeError, ValueError):
        raise _state_error(index, state, has_master) from None
    kept = (acc_grad, acc_delta, master) if has_master else (acc_grad, acc_delta)
    unpaired = has_master and _is_array(pair)  # it was unpacked into its rows
    if unpaired or not all(map(_is_array, kept)):
        raise _state_error(index, state, has_master)
    for name, array in (("weight", weight), ("gradient", grad)):
        if not _is_array(array):
            raise TypeError(
                f"the {name} of parameter {index} is a {type(array).__name__}; expected an array "
                "of MXNet (mx.np.ndarray or mx.nd.NDArray)"
            )
    if not all(array.writable for array in (weight, *kept)):
        raise ValueError(
            f"the weight or the state of parameter {index} is read-only; pass writable arrays"
        )
    return Parameter(weight, grad, acc_grad, acc_delta, master)


def _is_array(array: Any) -> bool:
    return isinstance(array, mx.nd.NDArray)


def _state_error(index: Any, state: Any, has_master: bool) -> TypeError:
    arrays = "(master, (acc_grad, acc_delta))" if has_master else "(acc_grad, acc_delta)"
    method = f"create_state{'_multi_precision' * has_master}"
    kinds = type(state).__name__
    if isinstance(state, (tuple, list)):
        kinds += f" of {', '.join(type(part).__name__ for part in state) or 'nothing'}"
    return TypeError(
        f"the state of parameter {index} is a {kinds}; expected {arrays}, as {method} makes it"
    )


def _check(index: Any, parameter: Parameter) -> None:
    """Raise the error that says why there is no step on a parameter, if there is none."""
    arrays = parameter.arrays
    for array, name in zip(arrays, (*layout.NAMES, "master"), strict=False):
        check_dense(f"the {name} of parameter {index}", array)
    if len({array.shape for array in arrays}) > 1:
        given = ", ".join(f"{array.shape} {np.dtype(array.dtype).name}" for array in arrays)
        raise ValueError(
            f"weight, gradient and states of parameter {index} must have one shape; they are "
            f"{given}"
        )
    devices = {str(array.device) for array in arrays}
    if len(devices) > 1 and not all(device.startswith("cpu") for device in devices):
        raise TypeError(
            f"weight, gradient and states of parameter {index} are on "
            f"{', '.join(sorted(devices))}; AdaDelta takes arrays on one device: copy them "
            "(as_in_context)"
        )
    try:
        layout.layout_of(*(array.dtype for array in arrays))
    except TypeError as error:
        raise TypeError(f"parameter {index}: {error}") from None
