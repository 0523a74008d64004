"""`adadelta convert` to and from PyTorch: the same steps, and files that are refused."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from conftest import needs_mxnet

from adadelta_cli.conversion import convert, torch_states
from adadelta_cli.errors import UsageError
from adadelta_cli.torch import Adadelta

Stock = torch.optim.Adadelta
SHAPES = [(2, 3), (), (0, 4), (9,)]


def trained(kind=Stock, dtype=torch.float32, steps=3, **settings):
    """Make an optimizer that took some steps."""
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for s in SHAPES]
    optimizer = kind(tensors, **settings)
    for _ in range(steps):
        for each in tensors:
            each.grad = torch.randn(each.shape, generator=generator, dtype=dtype)
        optimizer.step()
    return optimizer


def saved(path, optimizer):
    """Save the states of an optimizer."""
    torch.save(optimizer.state_dict(), path)
    return path


def assert_same_states(one, two):
    """Compare two state_dicts, to the last bit."""
    assert one["state"].keys() == two["state"].keys()
    for number, state in one["state"].items():
        for key, value in state.items():
            other = two["state"][number][key]
            assert other.dtype == value.dtype and other.shape == value.shape
            assert other.numpy().tobytes() == value.numpy().tobytes()


@pytest.mark.parametrize("between", ["npz", pytest.param("mxnet", marks=needs_mxnet)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_dict_comes_back(tmp_path, between, dtype):
    """There and back: states, counts and settings are the same, and no parameter is lost."""
    settings = {"lr": 0.3, "rho": 0.95, "eps": 1e-8, "weight_decay": 0.02}
    optimizer = trained(dtype=dtype, **settings)
    first, middle, last = tmp_path / "a.pt", tmp_path / "b", tmp_path / "c.pt"
    there = convert.convert(saved(first, optimizer), middle, "torch", between)
    back = convert.convert(middle, last, between, "torch")
    assert there.passed and back.passed
    assert there.comparison.numbers == back.comparison.numbers == 3 * (6 + 1 + 9)
    found = torch.load(last, weights_only=True)
    assert_same_states(optimizer.state_dict(), found)
    assert found["param_groups"] == optimizer.state_dict()["param_groups"]
    for kind in (Stock, Adadelta):
        other = trained(kind, dtype=dtype, steps=0)
        other.load_state_dict(found)
        assert_same_states(other.state_dict(), optimizer.state_dict())


@needs_mxnet
def test_a_training_goes_on_in_pytorch(tmp_path):
    """Moved from a Trainer with weights and states, the next steps have the same bits."""
    from adadelta_cli import AdaDelta

    mx = convert._format("--from", "mxnet").mx
    mx.npx.set_np()
    net = mx.gluon.nn.HybridSequential()
    net.add(mx.gluon.nn.Dense(5, in_units=3), mx.gluon.nn.BatchNorm(in_channels=5))
    net.initialize()
    parameters = net.collect_params()
    for name, each in parameters.items():
        if "running" not in name:
            each.set_data(mx.np.random.normal(size=each.shape))
    optimizer = AdaDelta(rho=0.8, wd=0.01, clip_gradient=0.3, use_fused_step=True)
    trainer = mx.gluon.Trainer(parameters, optimizer)
    rng = np.random.default_rng(0)

    def step_mxnet():
        grads = {name: rng.normal(size=p.shape).astype("f4") for name, p in parameters.items()}
        with mx.autograd.record():
            chosen = [(p, grads[name]) for name, p in parameters.items() if p.grad_req != "null"]
            losses = [(p.data() * mx.np.array(grad)).sum() for p, grad in chosen]
        mx.autograd.backward(losses)
        trainer.update(4)
        return grads

    step_mxnet()
    step_mxnet()
    trainer.save_states(str(tmp_path / "a.states"))
    names = sorted(parameters)  # the order of a Trainer
    wanted = ["0.weight", "0.bias", "1.gamma", "1.beta"]
    order = [names.index(name) for name in wanted]
    done = convert.convert(tmp_path / "a.states", tmp_path / "a.pt", "mxnet", "torch", order=order)
    assert done.passed
    assert [r.split()[0] for r in done.remarks] == ["rescale_grad", "clip_gradient"]
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    for name, each in zip(wanted, model.parameters(), strict=True):
        each.data.copy_(torch.from_numpy(parameters[name].data().asnumpy()))
    ours = Adadelta(model.parameters())
    ours.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    for _ in range(3):
        grads = step_mxnet()
        for name, each in zip(wanted, model.parameters(), strict=True):
            each.grad = torch.from_numpy(grads[name] * np.float32(0.25))
        torch.nn.utils.clip_grad_value_(model.parameters(), 0.3)
        ours.step()
    for name, each in zip(wanted, model.parameters(), strict=True):
        assert parameters[name].data().asnumpy().tobytes() == each.detach().numpy().tobytes()
    guessed = convert.convert(tmp_path / "a.states", tmp_path / "b.pt", "mxnet", "torch")
    assert "check the order" in guessed.remarks[0] and "4, 5" not in guessed.remarks[0]


@needs_mxnet
def test_schedules_masters_and_multipliers(tmp_path):
    """The rate of the next update; masters beside the states; a group for each rate."""
    from adadelta_cli.conversion import mxnet_states

    mx = mxnet_states.mx
    schedule = mx.lr_scheduler.FactorScheduler(2, 0.5, base_lr=0.4)
    optimizer = mx.optimizer.adadelta.AdaDelta(
        learning_rate=None, lr_scheduler=schedule, multi_precision=True
    )
    optimizer.num_update = 2
    optimizer.lr_mult = {0: 1.0, 1: 0.25}
    updater = mx.optimizer.get_updater(optimizer)
    for number in range(2):
        half = mx.nd.ones((4,), dtype="float16")
        updater.states[number] = optimizer.create_state_multi_precision(number, half)
    path = tmp_path / "a.states"
    path.write_bytes(updater.get_states(dump_optimizer=True))
    done = convert.convert(path, tmp_path / "a.pt", "mxnet", "torch")
    assert done.passed
    document = torch.load(tmp_path / "a.pt", weights_only=True)
    assert [group["lr"] for group in document["param_groups"]] == [0.2, 0.05]
    assert torch.equal(document["master_weights"][1], torch.ones(4))
    text = " ".join(done.remarks)
    for words in ("FactorScheduler", "0.2", "2 parameter groups", "1 (lr 0.05", "master_weights"):
        assert words in text
    back = convert.convert(tmp_path / "a.pt", tmp_path / "b.states", "torch", "mxnet")
    assert back.passed and "lr_mult" in " ".join(back.remarks)
    again = mxnet_states.read(tmp_path / "b.states")
    assert [each.learning_rate for each in again.tensors] == [0.2, 0.05]
    assert all((each.master == 1).all() for each in again.tensors)


@needs_mxnet
def test_states_alone_have_the_defaults(tmp_path):
    """A file without an optimizer, as a key-value store writes it."""
    from adadelta_cli.conversion import mxnet_states

    state = tuple(mxnet_states.mx.nd.ones((3,)) for _ in range(2))
    (tmp_path / "a.states").write_bytes(pickle.dumps({0: state}))
    done = convert.convert(tmp_path / "a.states", tmp_path / "a.pt", "mxnet", "torch")
    assert done.passed and "defaults" in done.remarks[0]


def test_a_negative_rate_is_refused(tmp_path):
    """PyTorch takes none, though its load_state_dict would not notice."""
    arrays = {"acc_grad/a": np.ones(3), "acc_delta/a": np.ones(3)}
    np.savez(tmp_path / "a.npz", **arrays, learning_rate=np.float64(-1))
    with pytest.raises(UsageError, match="takes none that is negative"):
        convert.convert(tmp_path / "a.npz", tmp_path / "a.pt", "npz", "torch")
    assert not (tmp_path / "a.pt").exists()


def test_old_counts_and_odd_layouts_are_read(tmp_path):
    """A count may be a number, a state channels-last, a rate a tensor; a group empty."""
    weight = torch.nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
    optimizer = Stock([{"params": [weight]}, {"params": []}], lr=torch.tensor(0.5))
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    document = optimizer.state_dict()
    document["state"][0]["step"] = 1
    torch.save(document, tmp_path / "a.pt")
    assert convert.convert(tmp_path / "a.pt", tmp_path / "a.npz", "torch", "npz").passed
    found = np.load(tmp_path / "a.npz")
    wanted = document["state"][0]["square_avg"].contiguous().numpy()
    assert found["acc_grad/0"].tobytes() == wanted.tobytes()
    assert (found["learning_rate"], found["updates/0"]) == (0.5, 1)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def with_pickle(path, content):
    """Put another pickle into a file of torch.save."""
    stream = io.BytesIO()
    torch.save({}, stream)
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(path, "w") as new:
        for each in old.infolist():
            new.writestr(each, content if each.filename.endswith("data.pkl") else old.read(each))
    return path


HOSTILE = {
    "os.system": Call(os.system, "touch RAN"),
    "exec": Call(exec, "open('RAN', 'w')"),
    "eval": Call(eval, "open('RAN', 'w')"),
    "numpy.load": Call(np.load, "RAN"),
    "an opened file": Call(io.open, "RAN", "w"),
    "an optimizer": trained,
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("in_a_state", [False, True])
def test_a_file_that_would_run_code_is_refused(tmp_path, monkeypatch, content, in_a_state):
    """Nothing runs, whatever the variables that PyTorch reads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    content = content() if callable(content) else content
    document = trained().state_dict()
    if in_a_state:
        document["state"][0]["step"] = content
    path = with_pickle(tmp_path / "a.pt", pickle.dumps(document if in_a_state else content, 2))
    with pytest.raises(UsageError, match=r"which is refused|no file of torch\.save") as raised:
        torch_states.read(path)
    assert len(str(raised.value)) < 1000
    assert not (tmp_path / "RAN").exists()


def changed(**parts):
    """Make a state_dict with other parts of its first group or state."""
    document = trained().state_dict()
    for key, value in parts.items():
        part = document["param_groups"][0] if key in document["param_groups"][0] else None
        (document["state"][0] if part is None else part)[key] = value
    return document


WRONG = {
    "a tensor": lambda: torch.ones(3),
    "a list": lambda: [1],
    "a checkpoint of all": lambda: {"model": {}, "optimizer": trained().state_dict()},
    "no groups": lambda: {"state": {}, "param_groups": []},
    "groups of text": lambda: {"state": {}, "param_groups": ["a"]},
    "states of Adam": lambda: trained(torch.optim.Adam).state_dict(),
    "states of Adagrad": lambda: trained(torch.optim.Adagrad).state_dict(),
    "no states yet": lambda: trained(steps=0).state_dict(),
    "states of a parameter in no group": lambda: changed(params=[1, 2, 3]),
    "a parameter twice": lambda: changed(params=[0, 0, 1, 2, 3]),
    "a negative number": lambda: changed(params=[-1, 0, 1, 2, 3]),
    "numbers of text": lambda: changed(params=["0"]),
    "maximize": lambda: changed(maximize=True),
    "a rate of text": lambda: changed(lr="fast"),
    "a rate of NaN": lambda: changed(lr=float("nan")),
    "several rates": lambda: changed(lr=torch.ones(2)),
    "rho of 1": lambda: changed(rho=1.0),
    "half a step": lambda: changed(step=torch.tensor(0.5)),
    "a count of text": lambda: changed(step="3"),
    "a count of infinity": lambda: changed(step=torch.tensor(torch.inf)),
    "a state of text": lambda: changed(square_avg="text"),
    "another shape": lambda: changed(acc_delta=torch.ones(7)),
    "another dtype": lambda: changed(acc_delta=torch.ones(2, 3, dtype=torch.float64)),
    "halves": lambda: changed(square_avg=torch.ones(2, 3, dtype=torch.float16)),
    "complex": lambda: changed(square_avg=torch.ones(2, 3, dtype=torch.complex64)),
    "sparse": lambda: changed(square_avg=torch.ones(2, 3).to_sparse()),
    "a negative state": lambda: changed(square_avg=-torch.ones(2, 3)),
    "NaN": lambda: changed(square_avg=torch.full((2, 3), torch.nan)),
    "a view of 1e12": lambda: changed(square_avg=torch.ones(1).expand(10**12)),
    "on no device": lambda: changed(square_avg=torch.ones(2, 3, device="meta")),
    "masters of text": lambda: trained().state_dict() | {"master_weights": "text"},
    "groups that differ in rho": lambda: {
        **(d := trained().state_dict()),
        "param_groups": [
            d["param_groups"][0] | {"params": [0]},
            d["param_groups"][0] | {"params": [1, 2, 3], "rho": 0.5},
        ],
    },
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_what_is_no_state_dict_of_adadelta_is_refused(tmp_path, make):
    """Exit code 2 with a message that can be read, and no file."""
    torch.save(make(), tmp_path / "a.pt")
    with pytest.raises(UsageError) as raised:
        convert.convert(tmp_path / "a.pt", tmp_path / "a.npz", "torch", "npz")
    assert len(str(raised.value)) < 1000
    assert not (tmp_path / "a.npz").exists()


def test_damaged_files_are_refused(tmp_path):
    """Cut anywhere, or with bytes that changed: a UsageError, or the states of another file."""
    content = saved(tmp_path / "a.pt", trained()).read_bytes()
    rng = np.random.default_rng(0)
    for k in range(150):
        damaged = bytearray(content)
        if k % 3 == 0:
            damaged = damaged[: rng.integers(len(content))]
        for _ in range(1 + k % 3):
            damaged[rng.integers(len(damaged))] = rng.integers(256)
        (tmp_path / "b.pt").write_bytes(damaged)
        with contextlib.suppress(UsageError):
            torch_states.read(tmp_path / "b.pt")


def test_compressed_and_old_files_are_refused(tmp_path):
    """An archive that grows when it is read; and the format of before PyTorch 1.6."""
    saved(tmp_path / "a.pt", trained())
    packed = zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "a.pt") as old, packed as new:
        for each in old.infolist():
            new.writestr(each.filename, old.read(each))
    path = tmp_path / "c.pt"
    torch.save(trained().state_dict(), path, _use_new_zipfile_serialization=False)
    for name, message in {"b.pt": "compressed", "c.pt": "PyTorch 1.6"}.items():
        with pytest.raises(UsageError, match=message):
            torch_states.read(tmp_path / name)
