"""These tests need PyTorch; `make test-peers` runs them."""

import importlib
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed; make test-peers installs it")

# The modules whose `Adadelta` a test is put to: the outcomes are wanted to be the same.
OURS, STOCK = "adadelta_cli.torch", "torch.optim"


@pytest.hookimpl(tryfirst=True)  # before `-m` reads the markers
def pytest_collection_modifyitems(items):
    """Mark the tests of this folder."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.peers)


@pytest.fixture(params=[OURS, STOCK], ids=["fused", "stock"])
def kind(request):
    """Each class: the fused one, and PyTorch's."""
    return importlib.import_module(request.param).Adadelta


@pytest.fixture(autouse=True)
def seeded():
    """Seed PyTorch's generator, whatever ran before."""
    importlib.import_module("torch").manual_seed(20)


@pytest.fixture
def one_thread():
    """Let PyTorch compute on one thread: the tensors are small, and tests run beside each other."""
    torch = importlib.import_module("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
