"""`Adadelta` on a simulated GPU: host memory that says it is CUDA's, and the real CUDA source.

Nothing here runs on a GPU. What a kernel gives there is shown by tests/kernels/test_cuda.py.
"""

import sys
import warnings
from types import SimpleNamespace

import host_cuda
import pytest
import torch

from adadelta_cli.system import gpu
from adadelta_cli.torch import Adadelta, fused

Stock = torch.optim.Adadelta
STREAM = 0x5EED
needs_compiler = pytest.mark.skipif(
    host_cuda.COMPILER is None, reason="the simulation compiles CUDA sources with a C++ compiler"
)


class OnGpu(torch.Tensor):
    """A tensor in host memory that says it is on a GPU."""

    @property
    def device(self):
        return torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch):
    """Let the optimizer take stand-ins for CUDA tensors, and PyTorch have a current stream."""
    monkeypatch.setattr(fused, "PLAIN", (*fused.PLAIN, OnGpu))
    streams = {0: SimpleNamespace(cuda_stream=STREAM)}
    monkeypatch.setattr(torch.cuda, "current_stream", streams.__getitem__)


def parameters(kind, dtype=torch.float32):
    """Make parameters on a device, several tiles long and short."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(s, generator=generator, dtype=dtype) for s in ((5000,), (), (3, 0), (7, 9))]
    return [torch.nn.Parameter(each.as_subclass(kind)) for each in made]


def train(optimizer, steps=4):
    """Take steps with gradients drawn from a seed; return the bytes of weights and states."""
    generator = torch.Generator().manual_seed(1)
    tensors = optimizer.param_groups[0]["params"]
    for _ in range(steps):
        for each in tensors:
            grad = torch.randn(each.shape, generator=generator, dtype=each.dtype)
            each.grad = grad.as_subclass(type(each.data))
        optimizer.step()
    states = [optimizer.state[each] for each in tensors]
    found = [*tensors, *(state[key] for state in states for key in ("square_avg", "acc_delta"))]
    counts = [float(state["step"]) for state in states]
    return [each.detach().as_subclass(torch.Tensor).numpy().tobytes() for each in found], counts


SETTINGS = [{}, {"weight_decay": 0.02, "lr": 0.3}, {"maximize": True, "rho": 0.95}]


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_bits_are_those_of_the_cpu(simulated, dtype, settings):
    """Weights, states and counts; each launch is on PyTorch's current stream and device."""
    on_gpu = Adadelta(parameters(OnGpu, dtype), **settings)
    simulated.cuda.launched_on.clear()
    found = train(on_gpu)
    assert type(on_gpu._steps[0]) is fused.FusedGpuStep
    assert found == train(Adadelta(parameters(torch.Tensor, dtype), **settings))
    assert simulated.cuda.launched_on == [(0, STREAM)] * 4
    assert simulated.cuda.ExternalStream.current == 0


@needs_compiler
def test_a_gradient_that_shares_memory_steps_as_the_stock(simulated):
    """Nothing is launched for it, and the step is counted once."""
    assert simulated
    results = []
    for kind in (Adadelta, Stock):
        (first, *_), (second, *_) = parameters(OnGpu), parameters(OnGpu)
        optimizer = kind([first, second])
        first.grad = torch.ones(5000).as_subclass(OnGpu)
        second.grad = first.detach()
        optimizer.step()
        counts = [float(optimizer.state[each]["step"]) for each in (first, second)]
        results.append((bytes(second.detach().as_subclass(torch.Tensor).numpy()), counts))
    assert results[0] == results[1]


def test_without_cupy_the_stock_steps_and_a_warning_says_so(monkeypatch):
    """Once for all steps of a loop, at the line of the user, with what to install."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    gpu._unavailable_reason.cache_clear()
    optimizer = Adadelta(parameters(OnGpu))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        found = train(optimizer)
    gpu._unavailable_reason.cache_clear()
    assert found == train(Stock(parameters(OnGpu)))
    (warning,) = caught
    assert "Adadelta steps as PyTorch's own on this GPU" in str(warning.message)
    assert "pip install 'adadelta[gpu]'" in str(warning.message)
    assert warning.filename == __file__
