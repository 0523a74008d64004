"""The optimizers beside AdaDelta equal MXNet's, PyTorch's, and their formulas in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import HAS_MXNET, needs_mxnet

from adadelta_cli.implementations import array_backends, optimizers
from adadelta_cli.implementations.optimizers import RULES

STEPS = 20
# Settings that differ from every default; the clip is exact in float32, to which MXNet rounds it.
COMMON = {"learning_rate": 0.07, "wd": 0.013, "rescale_grad": 0.37, "clip_gradient": 0.625}
OWN = {
    "sgd": {},
    "momentum": {"momentum": 0.8},
    "nesterov": {"momentum": 0.8},
    "adagrad": {"epsilon": 1e-3},
    "rmsprop": {"rho": 0.7, "epsilon": 1e-3},
    "adam": {"beta1": 0.8, "beta2": 0.99, "epsilon": 1e-3},
}
SETTINGS = {name: {"name": name, **COMMON, **own} for name, own in OWN.items()}
SHAPES = [(3, 5), (7,), ()]


def inputs(seed=0):
    """Draw the start of each tensor, and the gradients of each step: both signs, many sizes."""
    rng = np.random.default_rng(seed)
    start = [rng.normal(size=shape) for shape in SHAPES]
    grads = [
        [rng.normal(size=shape) * 10.0 ** rng.uniform(-4, 2, size=shape) for shape in SHAPES]
        for _ in range(STEPS)
    ]
    return start, grads


def trajectory(library, settings, dtype="float64", resumed_at=None):
    """Take all steps; return the weights after each."""
    backend = array_backends.backend(library)
    start, grads = inputs()
    tensors = [optimizers.tensor(backend, w, settings["name"], dtype) for w in map(np.array, start)]
    step, weights = optimizers.bind(backend, tensors, settings), []
    for number, row in enumerate(grads):
        if number == resumed_at:
            step = optimizers.bind(backend, tensors, settings, done=number)
        for tensor, grad in zip(tensors, row, strict=True):
            backend.assign(tensor.grad, np.asarray(grad).astype(dtype))
        step()
        weights.append([backend.numpy(tensor.weight) for tensor in tensors])
        for tensor, grad in zip(tensors, row, strict=True):  # only read
            np.testing.assert_array_equal(backend.numpy(tensor.grad), np.asarray(grad, dtype))
    return weights


def assert_close(got, wanted, rtol):
    """Compare trajectories; the largest weight sets the scale, as weights pass through zero."""
    for ours, theirs in zip(got, wanted, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


def element(settings, weight, grads):
    """Compute the weights of one element in plain Python, in the form of the papers."""
    name, rate, h = settings["name"], settings["learning_rate"], settings
    first = second = 0.0
    for t, raw in enumerate(grads, start=1):
        clip = h["clip_gradient"]
        g = min(max(raw * h["rescale_grad"], -clip), clip) + h["wd"] * weight
        if name == "sgd":
            weight -= rate * g
        elif name == "momentum":
            first = h["momentum"] * first + g
            weight -= rate * first
        elif name == "nesterov":
            first = h["momentum"] * first + g
            weight -= rate * (g + h["momentum"] * first)
        elif name == "adagrad":
            second += g**2
            weight -= rate * g / (math.sqrt(second) + h["epsilon"])
        elif name == "rmsprop":
            second = h["rho"] * second + (1 - h["rho"]) * g**2
            weight -= rate * g / (math.sqrt(second) + h["epsilon"])
        else:
            first = h["beta1"] * first + (1 - h["beta1"]) * g
            second = h["beta2"] * second + (1 - h["beta2"]) * g**2
            rate_t = rate * math.sqrt(1 - h["beta2"] ** t) / (1 - h["beta1"] ** t)
            weight -= rate_t * first / (math.sqrt(second) + h["epsilon"])
        yield weight


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_rule_is_its_formula(settings):
    """Element by element, in plain Python."""
    start, grads = inputs()
    got = trajectory("numpy", settings)
    for k, shape in enumerate(SHAPES):
        for place in np.ndindex(shape):
            wanted = element(settings, float(start[k][place]), [float(g[k][place]) for g in grads])
            ours = [float(weights[k][place]) for weights in got]
            np.testing.assert_allclose(ours, list(wanted), rtol=1e-12, atol=1e-13)


@needs_mxnet
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_mxnets_own_class_takes_the_same_steps(settings):
    """In float64 to rounding, and in float32 and float16 to theirs."""
    for dtype, rtol in (("float64", 1e-13), ("float32", 3e-6), ("float16", 4e-3)):
        ours, theirs = (trajectory(name, settings, dtype) for name in ("numpy", "mxnet"))
        assert_close(ours, theirs, rtol)


TORCH = {  # class, keywords by those of a config
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {"momentum": "momentum"}),
    "nesterov": ("SGD", {"momentum": "momentum"}),
    "adagrad": ("Adagrad", {"eps": "epsilon"}),
    "rmsprop": ("RMSprop", {"alpha": "rho", "eps": "epsilon"}),
    "adam": ("Adam", {"eps": "epsilon"}),
}


def torch_trajectory(torch, settings):
    """Take the same steps with PyTorch's optimizer, on the pre-processed gradient."""
    start, grads = inputs()
    weights = [torch.nn.Parameter(torch.from_numpy(np.array(w))) for w in start]
    kind, keys = TORCH[settings["name"]]
    how = {theirs: settings[ours] for theirs, ours in keys.items()}
    if settings["name"] == "nesterov":
        how["nesterov"] = True
    if settings["name"] == "adam":
        how["betas"] = (settings["beta1"], settings["beta2"])
    rate, wd = settings["learning_rate"], settings["wd"]
    optimizer = getattr(torch.optim, kind)(weights, lr=rate, weight_decay=wd, **how)
    clip, seen = settings["clip_gradient"], []
    for t, row in enumerate(grads, start=1):
        for weight, grad in zip(weights, row, strict=True):
            clipped = np.clip(np.asarray(grad) * settings["rescale_grad"], -clip, clip)
            weight.grad = torch.from_numpy(np.asarray(clipped))
        if settings["name"] == "adam":  # PyTorch adds epsilon after the correction of the root
            correction = math.sqrt(1 - settings["beta2"] ** t)
            optimizer.param_groups[0]["eps"] = settings["epsilon"] / correction
        optimizer.step()
        seen.append([weight.detach().numpy().copy() for weight in weights])
    return seen


@pytest.mark.peers
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_pytorchs_optimizer_takes_the_same_steps(settings):
    """In float64; `make test-peers` installs PyTorch."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-peers")
    assert_close(trajectory("numpy", settings), torch_trajectory(torch, settings), 1e-13)


@pytest.mark.parametrize("library", ["numpy", "mxnet"] if HAS_MXNET else ["numpy"])
@pytest.mark.parametrize("name", RULES)
def test_a_rule_goes_on_where_it_was(library, name):
    """Bound anew after 7 steps, it takes the same ones: of Adam, the count is part of the state."""
    whole, resumed = (trajectory(library, SETTINGS[name], resumed_at=at) for at in (None, 7))
    for ours, theirs in zip(whole, resumed, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("library", ["numpy", "mxnet"] if HAS_MXNET else ["numpy"])
@pytest.mark.parametrize("name", [*RULES, "adadelta"])
def test_without_clipping_and_decay_it_runs_too(library, name):
    """With a clip of None, as by default."""
    settings = {"name": name, "learning_rate": 0.01, "wd": 0.0, "rescale_grad": 1.0}
    own = {"rho": 0.9, "epsilon": 1e-6} if name == "adadelta" else OWN[name]
    weights = trajectory(library, settings | {"clip_gradient": None} | own)
    assert all(np.isfinite(each).all() for each in weights[-1])
    assert not np.array_equal(weights[0][0], weights[-1][0])


def test_a_float16_weight_is_its_master_rounded():
    """The master moves by less than a float16 shows."""
    backend = array_backends.backend("numpy")
    tensor = optimizers.tensor(backend, np.ones(4), "sgd", "float16")
    step = optimizers.bind(backend, [tensor], SETTINGS["sgd"] | {"learning_rate": 1e-5})
    backend.assign(tensor.grad, np.ones(4, np.float16))
    step()
    assert (tensor.master < 1).all() and (tensor.weight == 1).all()
    assert (tensor.weight.dtype, tensor.master.dtype) == (np.float16, np.float32)
