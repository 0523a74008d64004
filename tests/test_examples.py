"""The trainings in examples/ run by themselves; that of PyTorch is tested in tests/pytorch."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from conftest import needs_mxnet
from test_docs import ROOT


def loaded(name):
    """Import a file of examples/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_numpy_training():
    """It finds the weights that made the data."""
    first, last, weight = loaded("numpy_training").train()
    assert last < first / 100
    assert weight == pytest.approx(np.array([1, -2, 3]), abs=0.1)


@pytest.mark.slow
@needs_mxnet
def test_the_mxnet_training():
    """The loss falls, and the fused step takes it."""
    first, last, trainer = loaded("mxnet_training").train(epochs=60)
    assert last < first / 4
    assert trainer.optimizer.use_fused_step
