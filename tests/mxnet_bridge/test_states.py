"""Files of states: what a trainer writes is read back, and nothing that a file says is run."""

from __future__ import annotations

import functools
import io
import os
import pickle
import subprocess
import warnings

import numpy as np
import pytest

pytest.importorskip("mxnet")

from own_optimizer import Mine, MyScheduler

from adadelta_cli import AdaDelta, load_states
from adadelta_cli.errors import UsageError
from adadelta_cli.mxnet_bridge import states

mx = states.mx
Stock = mx.optimizer.adadelta.AdaDelta


def trained(optimizer, dtype="float32", on_kvstore=False):
    """Make a trainer that took two steps with a weight of 2 x 3 and one of 4."""
    mx.npx.set_np()
    parameters = {
        name: mx.gluon.Parameter(name, shape=shape, dtype=dtype)
        for name, shape in (("a", (2, 3)), ("b", (4,)))
    }
    store = {"kvstore": mx.kv.create("local"), "update_on_kvstore": True} if on_kvstore else {}
    for parameter in parameters.values():
        parameter.initialize(mx.init.One())
    trainer = mx.gluon.Trainer(parameters, optimizer, **store)
    step(trainer)
    step(trainer)
    return trainer


def step(trainer):
    """Take a step with gradients of 0.5."""
    with mx.autograd.record():
        losses = [(parameter.data() * 0.5).sum() for parameter in trainer._params]
    mx.autograd.backward(losses)
    trainer.step(1)


def leaves(state):
    """List the arrays of a state."""
    return [x for part in state for x in leaves(part)] if isinstance(state, tuple) else [state]


SAVED = {
    "stock": (lambda: Stock(rho=0.7, wd=0.1), {}),
    "stock, on the key-value store": (lambda: Stock(rho=0.7), {"on_kvstore": True}),
    "stock, masters": (lambda: Stock(multi_precision=True), {"dtype": "float16"}),
    "ours, float64": (lambda: AdaDelta(rho=0.7), {"dtype": "float64"}),
    "ours": (lambda: AdaDelta(use_fused_step=True, clip_gradient=0.1), {}),
    "ours, masters": (
        lambda: AdaDelta(use_fused_step=True, multi_precision=True),
        {"dtype": "float16"},
    ),
    "a NumPy number": (lambda: AdaDelta(learning_rate=np.float32(0.1), rho=np.float64(0.5)), {}),
    **{
        type(scheduler).__name__: (
            lambda scheduler=scheduler: Stock(learning_rate=None, lr_scheduler=scheduler),
            {},
        )
        for scheduler in (
            mx.lr_scheduler.FactorScheduler(1, 0.5, base_lr=0.3),
            mx.lr_scheduler.MultiFactorScheduler([1, 5], 0.5, base_lr=0.3),
            mx.lr_scheduler.PolyScheduler(9, base_lr=0.3),
            mx.lr_scheduler.CosineScheduler(9, base_lr=0.3),
        )
    },
}


@pytest.mark.parametrize(("make", "how"), SAVED.values(), ids=SAVED)
def test_what_a_trainer_saves_is_read_as_unpickling_would(tmp_path, make, how):
    """The same arrays, counts, hyper-parameters and schedules as `pickle.loads` gives."""
    path = tmp_path / "states"
    trainer = trained(make(), **how)
    trainer.save_states(str(path))
    wanted, optimizer = pickle.loads(path.read_bytes())  # noqa: S301 - written above
    read = states.read_states(path, [AdaDelta])
    assert read.optimizer == states.name_of(type(optimizer))
    assert list(read.states) == list(wanted)
    for index, state in wanted.items():
        got = leaves(read.states[index])
        assert [type(x) for x in got] == [type(x) for x in leaves(state)]
        for one, two in zip(got, leaves(state), strict=True):
            assert one.dtype == two.dtype and one.shape == two.shape
            assert one.asnumpy().tobytes() == two.asnumpy().tobytes()
    expected = optimizer.__getstate__()
    one, two = (each.pop("lr_scheduler", None) for each in (read.attributes, expected))
    kept = {name: value for name, value in expected.items() if name not in {"_bound", "_common"}}
    assert read.attributes == kept
    assert type(one) is type(two) and (one is None or vars(one) == vars(two))
    counts = read.attributes
    assert counts["_index_update_count"] is counts["_all_index_update_counts"][0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        multi = {"multi_precision": True} if how.get("dtype") == "float16" else {}
        other = trained(AdaDelta(use_fused_step=True, **multi), dtype=how.get("dtype", "float32"))
    load_states(other, path)
    for parameter, start in zip(other._params, trainer._params, strict=True):
        parameter.set_data(start.data())
    for each in (trainer, other):
        step(each)
    for one, two in zip(trainer._params, other._params, strict=True):
        assert one.data().asnumpy().tobytes() == two.data().asnumpy().tobytes()


@pytest.mark.parametrize("name", ["sgd", "adam", "lamb", "nadam", "rmsprop", "ftrl", "signum"])
def test_states_of_other_optimizers_are_named(tmp_path, name):
    """A TypeError that says which optimizer saved them."""
    trained(name).save_states(str(tmp_path / "states"))
    with pytest.raises(TypeError, match=f"saved by mxnet.optimizer.{name}"):
        load_states(trained(AdaDelta()), tmp_path / "states")


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def raw(text):
    """A pickle of protocol 0 in the place of an optimizer."""
    return b"(}" + text + b"t."


HOSTILE = {
    "os.system": (Call(os.system, "touch RAN"), "system"),
    "exec": (Call(exec, "open('RAN', 'w')"), "builtins.exec"),
    "eval": (Call(eval, "open('RAN', 'w')"), "builtins.eval"),
    "getattr": (Call(getattr, 1, "real"), "builtins.getattr"),
    "__import__": (Call(__import__, "os"), "builtins.__import__"),
    "a process": (Call(subprocess.Popen, ["touch", "RAN"]), "subprocess.Popen"),
    "a file that NumPy loads": (Call(np.load, "RAN"), "numpy.load"),
    "a file that MXNet loads": (Call(mx.nd.load, "RAN"), "mxnet.ndarray"),
    "a file that NumPy writes": (Call(np.save, "RAN", 1), "numpy.save"),
    "a partial function": (functools.partial(print, "RAN"), "functools.partial"),
    "an opened file": (Call(io.open, "RAN", "w"), "io.open"),
    "a dotted name": (b"\x80\x04}\x8c\x05mxnet\x8c\x09nd.os.sys\x93)R\x86.", "mxnet.nd.os.sys"),
    "a dotted name of an allowed module": (
        b"\x80\x04}\x8c\x05numpy\x8c\x0edtype.__init__\x93)R\x86.",
        "numpy.dtype.__init__",
    ),
    "posix.system by GLOBAL": (raw(b"cposix\nsystem\n(S'touch RAN'\ntR"), "posix.system"),
    "posix.system by INST": (raw(b"(S'touch RAN'\niposix\nsystem\n"), "posix.system"),
    "Python 2's builtins": (raw(b"c__builtin__\neval\n(S'1'\ntR"), "__builtin__.eval"),
    "an extension": (raw(b"\x82\x01"), "extension 1"),
    "an optimizer of one's own": (Mine(), "own_optimizer.Mine"),
    "a scheduler of one's own": (
        Stock(learning_rate=None, lr_scheduler=MyScheduler()),
        "own_optimizer.MyScheduler",
    ),
    "a scheduler that is a function": (Stock(lr_scheduler=None), "a_function"),
}


def a_function(_updates):
    """Not a scheduler that MXNet ships."""
    return 0.1


@pytest.mark.parametrize(("content", "name"), HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("place", ["optimizer", "a state", "an attribute"])
def test_everything_else_is_refused_by_name(tmp_path, monkeypatch, content, name, place):
    """Nothing runs, nothing of the trainer changes, and the message says what to do."""
    monkeypatch.chdir(tmp_path)
    if name == "a_function":
        content.lr_scheduler = a_function
    if not isinstance(content, bytes):
        stock = Stock()
        stock.extra = content if place == "an attribute" else None
        content = pickle.dumps(
            {
                "optimizer": ({}, content),
                "a state": ({0: content}, stock),
                "an attribute": ({}, stock),
            }[place]
        )
    elif place != "optimizer":
        pytest.skip("bytes have one place")
    (tmp_path / "states").write_bytes(content)
    trainer = trained(AdaDelta(use_fused_step=True))
    before, kept = trainer.optimizer, dict(trainer._updaters[0].states)
    with pytest.raises(UsageError, match=name) as raised:
        load_states(trainer, tmp_path / "states")
    assert "of your own" in str(raised.value)
    assert not (tmp_path / "RAN").exists()
    assert trainer.optimizer is before and trainer._updaters[0].states == kept


def damaged(change):
    """Pickle states of a trainer after a change of the arrays' bytes or of the optimizer."""
    optimizer = Stock()
    array = mx.np.ones((2, 3)).as_nd_ndarray()
    held = {0: (array, array.copy()), 1: (mx.nd.ones(4), mx.nd.ones(4))}
    held = change(held, optimizer) or held
    return pickle.dumps((held, optimizer))


def attribute(name, value):
    """Return a change of one attribute of the optimizer."""
    return lambda _held, optimizer: setattr(optimizer, name, value)


def laughs():
    """Return 10^30 numbers in a few bytes of pickle."""
    value = (1.0,) * 10
    for _ in range(30):
        value = (value,) * 10
    return value


def endless():
    """Return a list that holds itself."""
    value = []
    value.append(value)
    return value


class Pointer:
    """Pickles as an MXNet array that is given an address."""

    def __reduce__(self):
        return mx.nd.NDArray, (0x41414141,)


class Sparse:
    """Pickles as a sparse MXNet array does outside of NumPy's semantics."""

    def __reduce__(self):
        head = b"\xc9\xfa\x93\xf9\1\0\0\0"
        return mx.nd.NDArray, (None,), {"handle": bytearray(head + b"\0" * 80)}


DAMAGED = {
    "an address": lambda *_: {0: (Pointer(), Pointer())},
    "shared too often": attribute("extra", laughs()),
    "endless": attribute("extra", endless()),
    "a method": attribute("update", 1.0),
    "a method of the scheduler": lambda _held, optimizer: setattr(
        optimizer, "lr_scheduler", scheduler_with(__call__=1.0)
    ),
    "a scheduler without a count": lambda _held, optimizer: setattr(
        optimizer, "lr_scheduler", scheduler_with(count=None)
    ),
    "a scheduler that never ends": lambda _held, optimizer: setattr(
        optimizer, "lr_scheduler", scheduler_with(step=0)
    ),
    "a text for a scheduler's step": lambda _held, optimizer: setattr(
        optimizer, "lr_scheduler", scheduler_with(step="x")
    ),
    "a set": attribute("extra", {1}),
    "counts": attribute("_index_update_count", {0: "x"}),
    "all counts": attribute("_all_index_update_counts", {0: None}),
    "a number for multipliers": attribute("lr_mult", 1.0),
    "a text for a switch": attribute("multi_precision", "yes"),
    "a number for a scheduler": attribute("lr_scheduler", 1.0),
    "laughs for a rate": attribute("lr", laughs()),
    "a sparse state": lambda held, _: {0: (held[0][0], Sparse())},
    "other shapes": lambda *_: {0: (mx.nd.ones(6), mx.nd.ones(6))},
    "one array": lambda held, _: {0: held[0][0]},
    "a number": lambda *_: {0: 1.0},
    "no array": lambda *_: {0: ()},
    "None": lambda *_: {0: None},
    "another parameter": lambda held, _: {7: held[0]},
    "a name for an index": lambda held, _: {"a": held[0]},
    "integers": lambda *_: {0: (mx.nd.ones((2, 3), dtype="int32"),) * 2},
}


def scheduler_with(**attributes):
    """Return a scheduler with other attributes; None removes one."""
    scheduler = mx.lr_scheduler.FactorScheduler(5)
    for name, value in attributes.items():
        vars(scheduler)[name] = value
        if value is None:
            del vars(scheduler)[name]
    return scheduler


@pytest.mark.parametrize("change", DAMAGED.values(), ids=DAMAGED)
def test_absurd_content_is_refused(tmp_path, change):
    """Known names with absurd content: a UsageError, soon, and the trainer is as it was."""
    (tmp_path / "states").write_bytes(damaged(change))
    trainer = trained(AdaDelta(use_fused_step=True))
    before = trainer.optimizer
    with pytest.raises((UsageError, TypeError)) as raised:
        load_states(trainer, tmp_path / "states")
    assert str(tmp_path / "states") in str(raised.value) and len(str(raised.value)) < 1000
    assert trainer.optimizer is before
    step(trainer)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b".", b"\x80\x04K\x01r\xff\xff\xff\x7f.", b"\x80\x05\x96" + b"\xff" * 7 + b"\0."],
    ids=["empty", "NUL", "a stop", "a large index", "a large size"],
)
def test_no_pickle_is_refused(tmp_path, content):
    """So is one that would make an unpickler allocate gigabytes."""
    (tmp_path / "states").write_bytes(content)
    with pytest.raises(UsageError, match="is no file of states"):
        load_states(trained(AdaDelta()), tmp_path / "states")


def test_a_device_or_a_pipe_is_not_read(tmp_path):
    """Reading would not end."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(UsageError, match="not a regular file"):
            load_states(trained(AdaDelta()), path)
    with pytest.raises(OSError, match="directory"):
        load_states(trained(AdaDelta()), tmp_path)


def test_classes_of_the_trainers_own_are_read(tmp_path):
    """A trainer that has an optimizer or a scheduler of one's own loads what it saved."""

    def make():
        return trained(Mine(learning_rate=None, lr_scheduler=MyScheduler(), use_fused_step=True))

    saved, loaded = make(), make()
    saved.optimizer.lr_scheduler.base_lr = 0.25
    saved.save_states(str(tmp_path / "states"))
    load_states(loaded, tmp_path / "states")
    assert type(loaded.optimizer) is Mine and loaded.optimizer.use_fused_step
    assert loaded.optimizer.lr_scheduler.base_lr == 0.25
    assert loaded.optimizer.num_update == 2
