"""Everything that can take an AdaDelta step, by name."""

from __future__ import annotations

import copyreg
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli import inputs
from adadelta_cli.errors import UsageError, shortened, suggestion
from adadelta_cli.implementations import array_backends
from adadelta_cli.implementations.array_backends import CPU, Device
from adadelta_cli.implementations.base import (
    Bind,
    Implementation,
    MakeOptimizer,
    Step,
    StepInputs,
    ToleranceULP,
)
from adadelta_cli.update import Hyperparameters, Parameter, state_dtype, update

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adadelta_cli.implementations.array_backends import NumpyBackend


def _unfused(xp: Any, inputs: StepInputs) -> Step:
    scalars = [inputs.hyper.scalars(p.acc_grad.dtype) for p in inputs.parameters]
    rates, weight_decays = inputs.learning_rates, inputs.weight_decays

    def step() -> None:
        with np.errstate(all="ignore"):  # infinities and NaNs are valid inputs
            for each in zip(inputs.parameters, scalars, rates, weight_decays, strict=True):
                update(xp, *each)

    return step


def _bind_numpy(inputs: StepInputs) -> Step:
    return _unfused(np, inputs)


def _bind_cupy(inputs: StepInputs) -> Step:
    from adadelta_cli.kernels import cupy_ieee

    arrays = [Parameter(*map(cupy_ieee.IeeeArray, p.arrays)) for p in inputs.parameters]
    return _unfused(cupy_ieee, replace(inputs, parameters=arrays))


def _bind_fused(inputs: StepInputs) -> Step:
    from adadelta_cli.kernels.step import FusedStep

    rates = {"learning_rate": inputs.learning_rates, "wd": inputs.weight_decays}
    return FusedStep(inputs.parameters, **vars(inputs.hyper) | rates)


def _bind_finished(bind: Bind, inputs: StepInputs) -> Step:
    """Bind a step that waits for the GPU: a launch returns before its work is done."""
    import cupy

    launch, wait = bind(inputs), cupy.cuda.Device().synchronize

    def step() -> None:
        launch()
        wait()

    return step


def _bind_optimizer(
    make: MakeOptimizer, inputs: StepInputs, *, classic: bool = False, waits: bool = True
) -> Step:
    """Bind an MXNet optimizer.

    `classic` passes `mx.nd` views of the `mx.np` arrays, which the stock optimizer needs. `waits`
    is for optimizers that push work to MXNet's engine; the fused step is done when it returns.
    """
    from adadelta_cli.mxnet_bridge import runtime

    parameters = inputs.parameters
    optimizer = make(inputs.hyper, any(p.master is not None for p in parameters))
    optimizer.set_lr_mult(dict(enumerate(inputs.lr_mults)))
    optimizer.set_wd_mult(dict(enumerate(inputs.wd_mults)))
    indices = list(range(len(parameters)))
    if classic:
        parameters = [Parameter(*(a.as_nd_ndarray() for a in p.arrays)) for p in parameters]
    weights = [p.weight for p in parameters]
    grads = [p.grad for p in parameters]
    states = [state_of(p) for p in parameters]
    wait = runtime.load_mxnet().nd.waitall

    def step() -> None:
        optimizer.update_multi_precision(indices, weights, grads, states)
        if waits:
            wait()

    return step


def state_of(parameter: Parameter) -> tuple[Any, ...]:
    """Arrange a parameter's states as `create_state_multi_precision` does."""
    state = (parameter.acc_grad, parameter.acc_delta)
    return state if parameter.master is None else (parameter.master, state)


def _own_optimizer(hyper: Hyperparameters, multi_precision: bool, *, fused: bool) -> Any:
    from adadelta_cli.mxnet_bridge.optimizer import AdaDelta

    settings = vars(hyper) | {"multi_precision": multi_precision, "use_fused_step": fused}
    return AdaDelta(**settings)


def _stock_optimizer(hyper: Hyperparameters, multi_precision: bool) -> Any:
    from adadelta_cli.mxnet_bridge import runtime

    stock = runtime.load_mxnet().optimizer.adadelta.AdaDelta
    return stock(**vars(hyper), multi_precision=multi_precision)


def _stock_unsupported(hyper: Hyperparameters) -> str:
    """MXNet reads scalars as double, a clip as float32, and rejects those out of range."""
    single, clip = np.finfo(np.float32), hyper.clip_gradient
    if clip and not float(single.tiny) <= clip <= float(single.max):
        return "mxnet-stock takes no clip_gradient beyond the range of float32"
    tiny = np.finfo(np.float64).tiny
    small = any(0 < abs(value) < tiny for value in vars(hyper).values() if value)
    return "mxnet-stock takes no subnormal hyper-parameter" if small else ""


def _torch_unsupported(hyper: Hyperparameters) -> str:
    negative = hyper.learning_rate < 0
    return "torch.optim.Adadelta takes no negative learning_rate" if negative else ""


def _bind_framework(function: str, inputs: StepInputs, **how: bool) -> Step:
    """Bind by a function of `frameworks`, imported when it is needed."""
    from adadelta_cli.implementations import frameworks

    return getattr(frameworks, function)(inputs, **how)


def _framework(name: str, library: str, bind: Bind, **more: Any) -> Implementation:
    """Describe an optimizer of another framework, on that framework's arrays."""
    more.setdefault("fused", False)
    more.setdefault("sandbox", library)
    floats = ("float32", "float64")
    more.setdefault("unfused", name)
    return Implementation(name, library, bind=bind, dtypes=floats, on_gpu=library, **more)


def _adadelta(name: str, library: str, function: str, *, how: Any = None, **more: Any) -> Any:
    bind = partial(_bind_framework, function, **(how or {}))
    return _framework(name, library, bind, timed=partial(bind, timed=True), **more)


# The bounds are derived in docs/parity.md, with the largest errors that were measured.
_TORCH = {
    "tolerance": ToleranceULP(weight=12.0, acc_grad=4.0, acc_delta=24.0),
    "unsupported_reason": _torch_unsupported,
}
_OPTAX = {"tolerance": ToleranceULP(weight=8.0, acc_grad=2.0, acc_delta=17.0), "flushes": True}
# A few cases, since compiling takes seconds each; in a process of its own, since PyTorch's other
# steps were seen to hang beside the OpenMP runtime of compiled code.
_COMPILED = _TORCH | {
    "cases": frozenset({"defaults", "odd", "special", "subnormal-odd", "overflow"}),
    "sandbox": "torch-compile",
}
_FOREACH, _COMPILE = {"foreach": True}, {"foreach": True, "compiled": True}
_ADAM = {"fused": True, "tolerance": ToleranceULP(8.0, 8.0, 8.0)}


def _cupy(name: str, bind: Bind, *, fused: bool) -> Implementation:
    finished = partial(_bind_finished, bind)
    return Implementation(name, "cupy", fused, finished, "cupy", timed=bind, on_gpu="cupy")


def _mxnet(name: str, make: MakeOptimizer, *, fused: bool) -> Implementation:
    bind = partial(_bind_optimizer, make, waits=not fused)
    return Implementation(name, "mxnet", fused, bind, "mxnet", optimizer=make, on_gpu="mxnet")


def _mxnet_stock() -> Implementation:
    return replace(
        _mxnet("mxnet-stock", _stock_optimizer, fused=False),
        bind=partial(_bind_optimizer, _stock_optimizer, classic=True),
        optimizer=None,
        keeps_grad=False,
        dtypes=("float16", "float32"),
        unsupported_reason=_stock_unsupported,
    )


def _torch_fused() -> Implementation:
    bind = partial(_bind_framework, "bind_torch_fused")
    return _framework(
        "torch-fused", "torch", bind, timed=partial(bind, timed=True), fused=True, unfused="torch"
    )


def _by_name(*each: Implementation) -> dict[str, Implementation]:
    return {implementation.name: implementation for implementation in each}


PEERS = _by_name(
    _adadelta("torch", "torch", "bind_torch", **_TORCH),
    _adadelta("torch-foreach", "torch", "bind_torch", how=_FOREACH, **_TORCH),
    _adadelta("torch-compile", "torch", "bind_torch", how=_COMPILE, **_COMPILED),
    _adadelta("optax", "jax", "bind_optax", **_OPTAX),
)
# The steps on the tensors of other frameworks: this package's, and the peers.
ON_FRAMEWORKS = _by_name(_torch_fused(), *PEERS.values())
# Optimizers with another formula and the same traffic, timed by `bench` for comparison.
YARDSTICKS = _by_name(
    _framework("torch-adam-fused", "torch", partial(_bind_framework, "bind_torch_adam"), **_ADAM)
)
IMPLEMENTATIONS = _by_name(
    Implementation("numpy", "numpy", False, _bind_numpy, "numpy"),
    Implementation("numpy-fused", "numpy", True, _bind_fused, "numpy"),
    _cupy("cupy", _bind_cupy, fused=False),
    _cupy("cupy-fused", _bind_fused, fused=True),
    _mxnet("mxnet", partial(_own_optimizer, fused=False), fused=False),
    _mxnet("mxnet-fused", partial(_own_optimizer, fused=True), fused=True),
    _mxnet_stock(),
    *ON_FRAMEWORKS.values(),
)


TIMEABLE = IMPLEMENTATIONS | YARDSTICKS


def implementation(
    name: str, device: Device = CPU, known: Mapping[str, Implementation] = IMPLEMENTATIONS
) -> Implementation:
    """Look up an implementation, as it is on a device.

    Args:
        name: as `--impl` takes it.
        device: where it computes, unless it is for CPUs only.
        known: those that have a name.

    Raises:
        UsageError: there is none of that name.
    """
    if name in known:
        return known[name].on(device)
    if is_user_kernel(name):
        from adadelta_cli.implementations import user_kernel

        inputs.check_possible(Path(name.rpartition(":")[0] or name), "--impl")
        user_kernel.check_form(name)
        return user_kernel.from_name(name).on(device)
    other = ", which computes another formula: only bench times it" * (name in YARDSTICKS)
    raise UsageError(
        f"--impl is {shortened(name)!r}{other or suggestion(name, known)}; known are "
        f"{', '.join(known)}, and a kernel of your own as FILE.py:FUNCTION or "
        "PACKAGE.MODULE:FUNCTION"
    )


def is_user_kernel(name: str) -> bool:
    """Return whether a name refers to a user's kernel."""
    return name not in IMPLEMENTATIONS and (":" in name or name.endswith(".py"))


def check_backend(chosen: Implementation, backend: str) -> None:
    """Check that an implementation does not contradict `--backend`.

    Raises:
        UsageError: it computes on another array library.
    """
    if backend not in ("auto", chosen.backend):
        own = f", or make it {chosen.backend}" if chosen.backend in array_backends.BACKENDS else ""
        raise UsageError(
            f"--impl {chosen.name} computes on {chosen.backend} and --backend is {backend}; leave "
            f"--backend out{own}"
        )


def check_place(chosen: Implementation, device: Device) -> None:
    """Check that an implementation can compute on a device.

    Raises:
        UsageError: it cannot.
    """
    if chosen.device != device:
        raise UsageError(
            f"--impl {chosen.name} computes on a CPU; leave out --ctx {device}, or take --impl "
            "cupy, cupy-fused or a kernel of your own"
        )
    library = array_backends.BACKENDS.get(chosen.backend)
    if library and device.kind not in library.kinds:
        raise UsageError(f"--impl {chosen.name} computes on a GPU; add --ctx gpu")


def timeable(name: str, device: Device = CPU) -> Implementation:
    """Look up an implementation or a yardstick, for `bench`; as it is on a device.

    Raises:
        UsageError: there is none of that name.
    """
    return implementation(name, device, TIMEABLE)


# An implementation is pickled as its name and looked up again in the other process, where a user
# kernel is imported.
copyreg.pickle(Implementation, lambda each: (timeable, (each.name, each.device)))


def builtin(backend: NumpyBackend, *, fused: bool) -> Implementation:
    """Return this package's step on a backend's arrays."""
    return IMPLEMENTATIONS[backend.name + ("-fused" if fused else "")]


def parameter(
    backend: NumpyBackend,
    weight: np.ndarray,
    grad: np.ndarray,
    acc_grad: np.ndarray | None = None,
    acc_delta: np.ndarray | None = None,
    *,
    dtype: str = "float32",
) -> Parameter:
    """Copy a tensor to a backend's arrays.

    Args:
        backend: the array library.
        weight: the values, in any real dtype; rounded to `dtype`.
        grad: likewise.
        acc_grad: likewise, rounded to the dtype of the states; zeros by default.
        acc_delta: like `acc_grad`.
        dtype: float32, float64, or float16, which means float16 weights and gradients with
            float32 master weights and states.
    """
    state = state_dtype(dtype)
    zeros = np.zeros(weight.shape, dtype=state)
    return Parameter(
        weight=backend.array(weight.astype(dtype)),
        grad=backend.array(grad.astype(dtype)),
        acc_grad=backend.array((zeros if acc_grad is None else acc_grad).astype(state)),
        acc_delta=backend.array((zeros if acc_delta is None else acc_delta).astype(state)),
        master=backend.array(weight.astype(state)) if dtype == "float16" else None,
    )
