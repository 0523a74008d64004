"""The examples for PyTorch users run: docs/pytorch.md, README, docs/api.md and examples/."""

import importlib.util
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HERE, needs_mxnet

from adadelta_cli.conversion import convert
from adadelta_cli.torch import Adadelta

ROOT = HERE.parent


def blocks(name):
    """Return the Python examples of a page that are for PyTorch, in order."""
    pattern = re.compile(r"^ *```python\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
    found = pattern.findall((ROOT / name).read_text())
    return [b for b in map(textwrap.dedent, found) if ".torch" in b or name == "docs/pytorch.md"]


@pytest.mark.parametrize("page", ["README.md", "docs/api.md", "docs/pytorch.md"])
def test_the_lines_to_switch_run(page):
    """They make this package's optimizer of a model."""
    scope = {"model": torch.nn.Linear(2, 2)}
    exec(blocks(page)[0], scope)  # noqa: S102 - it is this project's
    assert type(scope["optimizer"]) is Adadelta


@needs_mxnet
def test_the_way_from_mxnet_runs(tmp_path, monkeypatch, capsys):
    """Its lines, one after the other, move weights and states of the layers that it names."""
    mx = convert._format("--from", "mxnet").mx
    mx.npx.set_np()
    monkeypatch.chdir(tmp_path)
    net = mx.gluon.nn.HybridSequential()
    net.add(mx.gluon.nn.Dense(5, in_units=3), mx.gluon.nn.BatchNorm(in_channels=5))
    net.initialize()
    trainer = mx.gluon.Trainer(net.collect_params(), "adadelta")
    with mx.autograd.record():
        loss = (net(mx.np.random.normal(size=(4, 3))) ** 3).sum()
    loss.backward()
    trainer.step(4)
    trainer.save_states("trainer.states")
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    _, find_order, move, find_way_back = blocks("docs/pytorch.md")
    scope = {"net": net, "model": model, "torch": torch, "Adadelta": Adadelta}
    exec(find_order, scope)  # noqa: S102
    order = capsys.readouterr().out.strip()
    assert f"# {order}\n" in find_order
    assert f"--order {order}" in (ROOT / "docs" / "pytorch.md").read_text()
    exec(find_way_back, scope)  # noqa: S102
    back = capsys.readouterr().out.strip()
    assert f"# {back}\n" in find_way_back
    assert f"--order {back}" in (ROOT / "docs" / "pytorch.md").read_text()
    numbers = list(map(int, order.split(",")))
    paths = Path("trainer.states"), Path("trainer.pt")
    assert convert.convert(*paths, "mxnet", "torch", order=numbers).passed
    exec(move, scope)  # noqa: S102
    states = trainer._updaters[0].states
    for number, parameter in zip(numbers, model.parameters(), strict=True):
        square = scope["optimizer"].state[parameter]["square_avg"].numpy()
        assert np.array_equal(square, states[number][0].asnumpy())
        name = sorted(net.collect_params())[number]
        weight = net.collect_params()[name].data().asnumpy()
        assert np.array_equal(weight, parameter.detach().numpy())


def test_the_example_trains():
    """The loss falls, and the kernel takes the step."""
    path = ROOT / "examples" / "torch_training.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    first, last, optimizer = module.train(epochs=60)
    assert last < first / 4
    assert list(optimizer._steps) == [0]
