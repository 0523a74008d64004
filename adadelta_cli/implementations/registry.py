"""Everything that can take an AdaDelta step, by name."""

from __future__ import annotations

import copyreg
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli import inputs
from adadelta_cli.errors import UsageError, shortened, suggestion
from adadelta_cli.implementations import array_backends
from adadelta_cli.implementations.array_backends import CPU, Device
from adadelta_cli.implementations.base import Bind, Implementation, Step, StepInputs, ToleranceULP
from adadelta_cli.update import Hyperparameters, Parameter, state_dtype, update

if TYPE_CHECKING:
    from collections.abc import Callable

    from adadelta_cli.implementations.array_backends import NumpyBackend


def _unfused(xp: Any, inputs: StepInputs) -> Step:
    scalars = [inputs.hyper.scalars(p.acc_grad.dtype) for p in inputs.parameters]
    rates, weight_decays = inputs.learning_rates, inputs.weight_decays

    def step() -> None:
        with np.errstate(all="ignore"):  # infinities and NaNs are data here
            for each in zip(inputs.parameters, scalars, rates, weight_decays, strict=True):
                update(xp, *each)

    return step


def _bind_numpy(inputs: StepInputs) -> Step:
    return _unfused(np, inputs)


def _bind_cupy(inputs: StepInputs) -> Step:
    from adadelta_cli.kernels import cupy_ieee

    arrays = [Parameter(*map(cupy_ieee.Array, p.arrays)) for p in inputs.parameters]
    return _unfused(cupy_ieee, replace(inputs, parameters=arrays))


def _bind_fused(inputs: StepInputs) -> Step:
    from adadelta_cli.kernels.step import FusedStep

    rates = {"learning_rate": inputs.learning_rates, "wd": inputs.weight_decays}
    return FusedStep(inputs.parameters, **vars(inputs.hyper) | rates)


def _finished(bind: Bind) -> Bind:
    """Wait for the device after each step: a launch returns before its work is done."""

    def finishing(inputs: StepInputs) -> Step:
        import cupy

        launch, wait = bind(inputs), cupy.cuda.Device().synchronize

        def step() -> None:
            launch()
            wait()

        return step

    return finishing


def _bind_optimizer(
    make: Callable[[Hyperparameters, bool], Any], *, classic: bool = False, waits: bool = True
) -> Bind:
    """Bind an MXNet optimizer: `make` builds it, given whether there are float32 masters.

    `classic` hands it `mx.nd` views of the `mx.np` arrays: all that the stock optimizer takes.
    `waits` is for what hands its work to MXNet's engine; the fused step returns when it is done.
    """

    def bind(inputs: StepInputs) -> Step:
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

    return bind


def state_of(parameter: Parameter) -> tuple[Any, ...]:
    """Arrange a parameter's states as `create_state_multi_precision` does."""
    state = (parameter.acc_grad, parameter.acc_delta)
    return state if parameter.master is None else (parameter.master, state)


def _own_optimizer(*, fused: bool) -> Callable[[Hyperparameters, bool], Any]:
    def make(hyper: Hyperparameters, multi_precision: bool) -> Any:
        from adadelta_cli.mxnet_bridge.optimizer import AdaDelta

        settings = vars(hyper) | {"multi_precision": multi_precision, "use_fused_step": fused}
        return AdaDelta(**settings)

    return make


def _stock_optimizer(hyper: Hyperparameters, multi_precision: bool) -> Any:
    from adadelta_cli.mxnet_bridge import runtime

    stock = runtime.load_mxnet().optimizer.adadelta.AdaDelta
    return stock(**vars(hyper), multi_precision=multi_precision)


def _stock_lacks(hyper: Hyperparameters) -> str:
    """MXNet reads scalars as double, a clip as float32, and refuses those out of range."""
    single, clip = np.finfo(np.float32), hyper.clip_gradient
    if clip and not float(single.tiny) <= clip <= float(single.max):
        return "mxnet-stock takes no clip_gradient beyond the range of float32"
    tiny = np.finfo(np.float64).tiny
    small = any(0 < abs(value) < tiny for value in vars(hyper).values() if value)
    return "mxnet-stock takes no subnormal hyper-parameter" if small else ""


_unfused_mxnet = _bind_optimizer(_own_optimizer(fused=False))
_fused_mxnet = _bind_optimizer(_own_optimizer(fused=True), waits=False)
_stock_mxnet = _bind_optimizer(_stock_optimizer, classic=True)


def _bind_peer(maker: str, **how: bool) -> Bind:
    """Bind by a function of `frameworks` that makes a bind; imported when it is needed."""

    def bind(inputs: StepInputs) -> Step:
        from adadelta_cli.implementations import frameworks

        return getattr(frameworks, maker)(**how)(inputs)

    return bind


def _torch_lacks(hyper: Hyperparameters) -> str:
    negative = hyper.learning_rate < 0
    return "torch.optim.Adadelta takes no negative learning_rate" if negative else ""


# The bounds are derived in docs/parity.md, which has the largest errors that were measured, too.
_TORCH = ToleranceULP(weight=12.0, acc_grad=4.0, acc_delta=24.0)
_OPTAX = ToleranceULP(weight=8.0, acc_grad=2.0, acc_delta=17.0)
# Compiling takes seconds a case, and what is compiled brings an OpenMP runtime of its own, beside
# which PyTorch's other steps were seen to hang: so few cases, and a process apart.
_SLOW = frozenset({"defaults", "odd", "special", "subnormal-odd", "overflow"})


def _peer(name: str, maker: str, how: dict[str, bool], **more: Any) -> Implementation:
    return Implementation(
        name,
        fused=False,
        bind=_bind_peer(maker, **how),
        unfused=name,
        timed=_bind_peer(maker, **how, timed=True),
        dtypes=("float32", "float64"),
        on_gpu=more["backend"],
        **{"sandbox": more["backend"], **more},
    )


def _torch(name: str, *, foreach: bool, compiled: bool = False, **more: Any) -> Implementation:
    how = {"foreach": foreach, "compiled": compiled}
    return _peer(
        name,
        "bind_torch",
        how,
        backend="torch",
        tolerance=_TORCH,
        unsupported_reason=_torch_lacks,
        **more,
    )


FRAMEWORKS = {
    peer.name: peer
    for peer in (
        _torch("torch", foreach=False),
        _torch("torch-foreach", foreach=True),
        _torch("torch-compile", foreach=True, compiled=True, cases=_SLOW, sandbox="torch-compile"),
        _peer("optax", "bind_optax", {}, backend="jax", tolerance=_OPTAX, flushes=True),
    )
}
# Optimizers of another formula that moves the same bytes: `bench` times them, for scale.
YARDSTICKS = {
    "torch-adam-fused": Implementation(
        "torch-adam-fused",
        "torch",
        fused=True,
        bind=_bind_peer("bind_torch_adam"),
        unfused="torch-adam-fused",
        dtypes=("float32", "float64"),
        sandbox="torch",
        on_gpu="torch",
        tolerance=ToleranceULP(8.0, 8.0, 8.0),
    )
}
IMPLEMENTATIONS = {
    implementation.name: implementation
    for implementation in (
        Implementation("numpy", "numpy", False, _bind_numpy, "numpy"),
        Implementation("numpy-fused", "numpy", True, _bind_fused, "numpy"),
        Implementation(
            "cupy", "cupy", False, _finished(_bind_cupy), "cupy", timed=_bind_cupy, on_gpu="cupy"
        ),
        Implementation(
            "cupy-fused",
            "cupy",
            True,
            _finished(_bind_fused),
            "cupy",
            timed=_bind_fused,
            on_gpu="cupy",
        ),
        Implementation(
            "mxnet",
            "mxnet",
            False,
            _unfused_mxnet,
            "mxnet",
            optimizer=_own_optimizer(fused=False),
            on_gpu="mxnet",
        ),
        Implementation(
            "mxnet-fused",
            "mxnet",
            True,
            _fused_mxnet,
            "mxnet",
            optimizer=_own_optimizer(fused=True),
            on_gpu="mxnet",
        ),
        Implementation(
            "mxnet-stock",
            "mxnet",
            False,
            _stock_mxnet,
            "mxnet",
            keeps_grad=False,
            dtypes=("float16", "float32"),
            unsupported_reason=_stock_lacks,
            on_gpu="mxnet",
        ),
        *FRAMEWORKS.values(),
    )
}


def implementation(name: str, device: Device = CPU) -> Implementation:
    """Look up an implementation, as it is on a device.

    Args:
        name: as `--impl` takes it.
        device: what computes on a CPU only stays there.

    Raises:
        UsageError: there is none of that name.
    """
    if name in IMPLEMENTATIONS:
        return IMPLEMENTATIONS[name].on(device)
    if is_user_kernel(name):
        from adadelta_cli.implementations import user_kernel

        inputs.check_possible(Path(name.rpartition(":")[0] or name), "--impl")
        user_kernel.check_form(name)
        return user_kernel.from_name(name).on(device)
    raise UsageError(
        f"--impl is {shortened(name)!r}{suggestion(name, IMPLEMENTATIONS)}; known are "
        f"{', '.join(IMPLEMENTATIONS)}, and a kernel of your own as FILE.py:FUNCTION or "
        "PACKAGE.MODULE:FUNCTION"
    )


def is_user_kernel(name: str) -> bool:
    """Tell whether a name is that of a kernel of the user's own."""
    return name not in IMPLEMENTATIONS and (":" in name or name.endswith(".py"))


def check_backend(chosen: Implementation, backend: str) -> None:
    """Check that an implementation does not contradict `--backend`.

    Raises:
        UsageError: it computes on another array library.
    """
    if backend not in ("auto", chosen.backend):
        raise UsageError(
            f"--impl {chosen.name} computes on {chosen.backend} and --backend is {backend}; leave "
            f"--backend out, or make it {chosen.backend}"
        )


def check_place(chosen: Implementation, device: Device) -> None:
    """See that an implementation takes steps on a device.

    Raises:
        UsageError: it does not.
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
    """Look up what `bench` can time: an implementation, or a yardstick; as it is on a device.

    Raises:
        UsageError: there is none of that name.
    """
    return YARDSTICKS[name].on(device) if name in YARDSTICKS else implementation(name, device)


# An implementation reaches another process by its name, and is looked up again there: what it
# calls are closures, and a kernel of the user's own is imported where it runs.
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
    """Put a tensor into a backend's arrays, as the dtype of a command stores it.

    Args:
        backend: the array library.
        weight: the values, in any real dtype; rounded to `dtype`.
        grad: likewise.
        acc_grad: likewise, rounded to the dtype of the states; zeros by default.
        acc_delta: likewise.
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
