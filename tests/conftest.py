"""What several test modules share: the golden trajectories, random parameters, equality of bits."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import host_cuda
import numba
import numpy as np
import pytest

from adadelta_cli import __main__
from adadelta_cli.implementations import array_backends, registry
from adadelta_cli.kernels import cuda
from adadelta_cli.kernels.layout import tensor_ref
from adadelta_cli.kernels.step import FusedStep
from adadelta_cli.mxnet_bridge import probe, runtime
from adadelta_cli.system import gpu, process_state
from adadelta_cli.update import Hyperparameters, Parameter
from adadelta_cli.verification.plan import VerifyPlan

# Before any library is loaded, here and in what the tests start: the two pytest workers share two
# cores, and pictures are drawn without a screen.
os.environ.setdefault("MPLBACKEND", "agg")
# MXNet's own threads keep the subnormal mode that they were born in, and tests here change it.
os.environ.setdefault("MXNET_OMP_MAX_THREADS", "1")

# Started in the background by a shell, the tests inherit an ignored Ctrl-C, and so would all that
# they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Measure the coverage of the other tests only: it costs a third of the time."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker("no_cover")


@pytest.fixture(autouse=True)
def handlers():
    """Leave the signals as they were: the program takes them over, and ignores them at its end."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture(autouse=True)
def modes(monkeypatch):
    """Begin in the default rounding and subnormal modes, whatever kernels of another test left."""
    library = process_state._libm()
    if library:
        library.fesetenv(ctypes.c_void_p(process_state.DEFAULT_FENV))
    monkeypatch.setattr(process_state, "_strangers", None)


@pytest.fixture
def adadelta(tmp_path, monkeypatch, capsys):
    """Run the program in an empty folder, in this process: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def adadelta(*arguments):
        monkeypatch.setattr(sys, "argv", ["adadelta", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            __main__.main()
        return exited.value.code, *capsys.readouterr()

    return adadelta


@pytest.fixture(autouse=True)
def environment():
    """Leave the environment as it was: `--threads` changes it, and Numba reads it again."""
    before = os.environ.copy()
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)
        numba.config.reload_config()


HERE = Path(__file__).parent
SIMULATED = HERE / "simulated_gpu"  # a package cupy
GOLDEN = json.loads((HERE / "golden.json").read_text())["cases"]
HAS_MXNET = runtime.is_installed()
needs_mxnet = pytest.mark.skipif(not HAS_MXNET, reason="MXNet has no wheel for this platform")
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed; make test-peers"
)


def slow_but(names, *fast):
    """Make a parameter of each name; those that are not among the fast ones are slow."""
    unknown = set(fast) - set(names)
    assert not unknown, unknown
    return [each if each in fast else pytest.param(each, marks=pytest.mark.slow) for each in names]


KINDS = {  # dtype of weight and grad, dtype of the states, whether there is a master
    "float32": ("float32", "float32", False),
    "float64": ("float64", "float64", False),
    "half": ("float16", "float32", False),
    "mixed": ("float16", "float32", True),
}
AWKWARD = {
    "learning_rate": 0.7,
    "rho": 0.95,
    "epsilon": 1e-6,
    "wd": 0.013,
    "rescale_grad": 0.37,
    "clip_gradient": 0.9,
}


def bits(array: np.ndarray) -> np.ndarray:
    """View floats as integers; all NaNs are one, for IEEE leaves their sign and payload open."""
    array = np.where(np.isnan(array), np.array(np.nan, array.dtype), array)
    return array.view(f"u{array.itemsize}")


def assert_same_bits(got, wanted) -> None:
    """Compare two lists of arrays, to the last bit."""
    pairs = zip(map(np.asarray, got), map(np.asarray, wanted), strict=True)
    for k, (a, b) in enumerate(pairs):
        assert a.dtype == b.dtype and a.shape == b.shape
        differ = np.flatnonzero(bits(a).ravel() != bits(b).ravel())
        assert not differ.size, f"array {k}: {differ.size} of {a.size} differ, first at {differ[0]}"


def random_arrays(shape, kind="float32", seed=0, low=-8, high=3):
    """Draw weight, grad, acc_grad, acc_delta (and master): both signs, many magnitudes."""
    storage, state, has_master = KINDS[kind]
    rng = np.random.default_rng(seed)

    def spread():
        return rng.normal(size=shape) * 10.0 ** rng.uniform(low, high, size=shape)

    weight = rng.normal(size=shape).astype(state)
    with np.errstate(over="ignore"):
        grad = np.asarray(spread()).astype(storage)
        acc_grad = np.asarray(np.abs(spread())).astype(state)
        acc_delta = np.asarray(np.abs(spread()) * 1e-3).astype(state)
    arrays = [np.asarray(weight).astype(storage), grad, acc_grad, acc_delta]
    return [*arrays, np.asarray(weight)] if has_master else arrays


# What `kernels.cuda` asks of CuPy, on NumPy arrays and host memory: a simulation.
CUPY = SimpleNamespace(
    RawModule=host_cuda.RawModule,
    asarray=np.array,
    cuda=SimpleNamespace(Device=lambda: SimpleNamespace(id=0)),
)


@pytest.fixture
def simulated(monkeypatch):
    """Put the simulated GPU in the place of CuPy, in this process."""
    caches = (gpu._cupy, gpu._unavailable_reason, cuda.kernel, array_backends.library)

    def forget():
        for each in caches:
            each.cache_clear()
        for name in [name for name in sys.modules if name.split(".")[0] == "cupy"]:
            del sys.modules[name]

    forget()
    monkeypatch.syspath_prepend(SIMULATED)
    yield gpu.select_device(0, probe.build)
    forget()


@contextlib.contextmanager
def simulated_gpu(**changed):
    """Let `kernels.cuda` find the simulation where it looks for CuPy."""
    before = sys.modules.get("cupy")
    sys.modules["cupy"] = SimpleNamespace(**(vars(CUPY) | changed))
    cuda.kernel.cache_clear()
    try:
        yield
    finally:
        cuda.kernel.cache_clear()
        del sys.modules["cupy"]
        if before is not None:
            sys.modules["cupy"] = before


def prepared_on_gpu(parameters, hyper, learning_rates, weight_decays):
    """Prepare the GPU's step on NumPy arrays, where a GPU is simulated."""
    refs = list(map(tensor_ref, parameters, learning_rates, weight_decays))
    return cuda.prepared(refs, hyper.doubles)


def take_fused_step(parameters, hyper, learning_rates, weight_decays):
    """Take one fused step, with a rate and a weight decay for each tensor in place of hyper's."""
    rates = {"learning_rate": learning_rates, "wd": weight_decays}
    FusedStep(parameters, **vars(hyper) | rates)()


FAR_ELEMENTS = 37  # that have memory, in a tensor that is larger than all memory


def far_tile(tile):
    """Make a float32 tensor of which only the last tile, this one, has memory.

    Returns its arrays, its row of the table, and what steps on them with default hyper-parameters.
    """
    arrays = random_arrays(FAR_ELEMENTS)
    before = tile * cuda.TILE_ELEMENTS
    ref = tensor_ref(Parameter(*arrays), 0.7, 0.01)
    addresses = (*((address - before * 4) % 2**64 for address in ref.addresses[:4]), 0)
    plan = cuda.plan_tiles([ref._replace(addresses=addresses, size=ref.size + before)])
    counts = np.int64(1), np.int64(plan.tiles)
    arguments = (plan.rows, *counts, *map(np.float64, Hyperparameters().doubles))

    def run():
        kernel = cuda.kernel("update_float32")
        kernel((plan.tiles,), (cuda.THREADS,), arguments, blocks=range(tile, tile + 1))

    return arrays, plan.rows, run


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def fused_update(request):
    """Take the fused step on NumPy arrays: by the CPU's kernel, and by the GPU's, simulated."""
    if request.param == "cpu":
        yield take_fused_step
        return
    if host_cuda.COMPILER is None:
        pytest.skip("no C++ compiler on the PATH: the GPU's kernels are not simulated")
    with simulated_gpu():
        yield lambda *arguments: prepared_on_gpu(*arguments)()


@pytest.fixture(params=[name for name in ("numpy", "mxnet") if HAS_MXNET or name == "numpy"])
def backend(request):
    """Each array library that is installed."""
    return array_backends.backend(request.param)


@pytest.fixture
def mxnet():
    """Return MXNet, in the mode in which its own examples run (`mx.nd`, classic shapes)."""
    mx = runtime.load_mxnet()
    was = mx.util.is_np_array(), mx.util.is_np_shape()
    mx.npx.reset_np()
    yield mx
    mx.util.set_np(shape=was[1], array=was[0])


NUMPY = registry.IMPLEMENTATIONS["numpy"]


def plan_of(names, *rest, **more):
    """Plan a verification of the implementations of these names."""
    return VerifyPlan(tuple(map(registry.implementation, names)), *rest, **more)


KERNEL_NAMES = [  # that once broke a picture or a table
    "k_$5_$x^{.py:step",
    os.fsdecode(b"caf\xe9.py:step"),
    "_k.py:step",
    "a\nb\x1b[31m.py:step",
    "[/red].py:step",
    "größe\u202e.py:step",
    "x" * 200 + ".py:step",
]
