"""`AdaDelta` on MXNet: the same bits fused, unfused and stock, wherever MXNet can take it."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import os
import pickle
import re
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import AWKWARD, GOLDEN, KINDS, assert_same_bits, random_arrays

pytest.importorskip("mxnet")

import adadelta_cli
from adadelta_cli import AdaDelta
from adadelta_cli.errors import shown
from adadelta_cli.mxnet_bridge import runtime
from adadelta_cli.mxnet_bridge.fused import FusedMxnetStep
from adadelta_cli.update import Hyperparameters, Parameter, update

mx = runtime.load_mxnet()
Stock = mx.optimizer.adadelta.AdaDelta
SHAPES = [(3, 4, 5), (10, 4), (7,), (1,), (333, 33)]


def flat(states):
    """List the arrays of nested states."""
    if isinstance(states, (tuple, list)):
        return [array for state in states for array in flat(state)]
    return [states]


def arrays_of(make, shapes, dtype, seed, magnitudes=(-8, 3)):
    """Draw arrays of both signs and many magnitudes."""
    rng = np.random.default_rng(seed)
    return [
        make(
            np.asarray(rng.normal(size=s) * 10.0 ** rng.uniform(*magnitudes, size=s)).astype(dtype),
            dtype=dtype,
        )
        for s in shapes
    ]


def trained(
    optimizer, make, dtype="float32", shapes=SHAPES, steps=5, magnitudes=(-8, 3), batches=1
):
    """Take steps; return weights and states as NumPy arrays, having checked the gradients."""
    weights = arrays_of(make, shapes, dtype, seed=1, magnitudes=(-1, 1))
    indices = list(range(len(weights)))
    states = [
        optimizer.create_state_multi_precision(i, w) for i, w in zip(indices, weights, strict=True)
    ]
    for step in range(steps):
        grads = arrays_of(make, shapes, dtype, seed=step + 2, magnitudes=magnitudes)
        before = [grad.asnumpy() for grad in grads]
        for part in np.array_split(indices, batches):
            optimizer.update_multi_precision(
                list(map(int, part)),
                *([each[k] for k in part] for each in (weights, grads, states)),
            )
        if isinstance(optimizer, AdaDelta):
            assert_same_bits([grad.asnumpy() for grad in grads], before)
    return [array.asnumpy() for array in weights + flat(states)]


def both(make, dtype="float32", settings=AWKWARD, **kwargs):
    """Train unfused and fused; return both results."""
    multi_precision = kwargs.pop("multi_precision", False)
    return [
        trained(
            AdaDelta(**settings, use_fused_step=fused, multi_precision=multi_precision),
            make,
            dtype,
            **kwargs,
        )
        for fused in (False, True)
    ]


@pytest.fixture(params=["nd", "np"])
def make(request, mxnet):
    """Make arrays of MXNet's old or new interface."""
    if request.param == "nd":
        return mxnet.nd.array
    mxnet.npx.set_np()
    return mxnet.np.array


@pytest.mark.parametrize("flush", [True, False], ids=["flushing", "strict"])
@pytest.mark.parametrize("magnitudes", [(-8, 3), (-25, -15)], ids=["usual", "subnormal"])
@pytest.mark.parametrize("kind", KINDS)
def test_fused_is_unfused_in_every_bit(make, kind, magnitudes, flush):
    """All dtypes, both interfaces, both subnormal modes; gradients that become subnormal too."""
    was = mx.util.set_flush_denorms(flush)
    try:
        unfused, fused = both(
            make, KINDS[kind][0], multi_precision=kind == "mixed", magnitudes=magnitudes
        )
    finally:
        mx.util.set_flush_denorms(was)
    assert_same_bits(fused, unfused)


@pytest.mark.parametrize("flush", [True, False], ids=["flushing", "strict"])
@pytest.mark.parametrize("kind", ["float32", "mixed"])
def test_equal_to_the_stock_optimizer_in_every_bit(mxnet, kind, flush):
    """float32, and float16 with multi_precision, over MXNet's own grid of hyper-parameters."""
    was = mx.util.set_flush_denorms(flush)
    try:
        grid = itertools.product([1e-6, 1e-8], [None, 0.4], [1, 0.14], [0, 0.05], [1.0, 0.3])
        for epsilon, clip, rescale, wd, rate in grid:
            settings = {
                "epsilon": epsilon,
                "clip_gradient": clip,
                "rescale_grad": rescale,
                "wd": wd,
                "learning_rate": rate,
                "multi_precision": kind == "mixed",
            }
            wanted = trained(Stock(**settings), mxnet.nd.array, KINDS[kind][0], steps=2)
            for fused in (False, True):
                got = trained(
                    AdaDelta(**settings, use_fused_step=fused),
                    mxnet.nd.array,
                    KINDS[kind][0],
                    steps=2,
                )
                assert_same_bits(got, wanted)
    finally:
        mx.util.set_flush_denorms(was)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("case", GOLDEN[::4], ids=lambda case: case["name"])
def test_float64_follows_the_golden_trajectories(mxnet, case, fused):
    """float64 weights, which fail in stock MXNet, within 1e-12 of 60 digits."""
    optimizer = AdaDelta(**case["hyper"], use_fused_step=fused)
    array = lambda values: mxnet.nd.array(np.array(values, np.float64), dtype="float64")  # noqa: E731
    weight = array(case["weight"])
    state = (array(case["acc_grad"]), array(case["acc_delta"]))
    for grad, wanted in zip(case["grads"], case["steps"], strict=True):
        optimizer.update([0], [weight], [array(grad)], [state])
        for name, got in zip(("weight", "acc_grad", "acc_delta"), (weight, *state), strict=True):
            np.testing.assert_allclose(got.asnumpy(), np.array(wanted[name], float), rtol=1e-12)


def test_tensors_of_all_kinds_in_one_call(mxnet):
    """float16, float32 and float64 weights together, more than once, in either order."""
    results = []
    for fused in (False, True):
        optimizer = AdaDelta(**AWKWARD, use_fused_step=fused)
        dtypes = ["float32", "float64", "float16", "float32"]
        weights, grads = (
            [mxnet.nd.array([1, -2, 3], dtype=dtype) for dtype in dtypes] for _ in range(2)
        )
        states = [optimizer.create_state(k, weight) for k, weight in enumerate(weights)]
        for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1], [0, 3]):
            chosen = [[each[k] for k in order] for each in (weights, grads, states)]
            optimizer.update(order, *chosen)
        results.append([array.asnumpy() for array in weights + flat(states)])
    assert_same_bits(results[1], results[0])


def test_multipliers_are_looked_up_as_mxnet_does():
    """By the parameter itself, else by index, else by name; 1 where there is none."""
    names = {0: "a_weight", 1: "a_bias", 2: "b_weight", 4: "c_weight"}
    gluon = SimpleNamespace(lr_mult=0.3, wd_mult=0.7)
    optimizer = AdaDelta(learning_rate=0.1, wd=0.01, param_idx2name=names, param_dict={4: gluon})
    optimizer.set_lr_mult({0: 2.0, "b_weight": 3.0, "a_weight": 5.0, 4: 7.0})
    optimizer.set_wd_mult({2: 0.5, "a_weight": 0.25, "c_weight": 9.0})
    every = [0, 1, 2, 3, 4]
    expected = optimizer._get_lrs(every), optimizer._get_wds(every)
    assert tuple(optimizer._count_all(every)) == expected
    assert expected[1] == [0.01 * mult for mult in (0.25, 1.0, 0.5, 1.0, 0.7)]
    assert optimizer.num_update == 1


def test_a_zero_of_the_other_sign_is_another_hyperparameter(mxnet):
    """What is kept from step to step is told apart by identity: -0.0 gives other bits than 0.0."""
    signs = []
    for fused in (False, True):
        optimizer = AdaDelta(use_fused_step=fused, wd=0.0)
        weight, grad = mxnet.nd.ones(1), mxnet.nd.ones(1)
        states = [optimizer.create_state(0, weight)]
        for rescale_grad in (0.0, -0.0, 0.0):
            optimizer.rescale_grad = rescale_grad
            weight[:] = 0
            weight *= -1
            optimizer.update([0], [weight], [grad], states)
            signs.append(float(np.signbit(weight.asnumpy()[0])))
    assert signs[:3] == signs[3:] and len(set(signs)) == 2


def test_the_fused_step_is_done_when_it_returns(mxnet):
    """Nothing is left to MXNet's engine: the memory has the result, without a wait."""
    arrays = random_arrays(10**6)
    shared = [mxnet.nd.from_numpy(array.view(), zero_copy=True) for array in arrays]
    weight, grad, acc_grad, acc_delta = shared
    optimizer = AdaDelta(**AWKWARD, use_fused_step=True)
    wanted = Parameter(*map(np.copy, arrays))
    hyper = Hyperparameters(**AWKWARD)
    optimizer.update([0], [weight], [grad], [(acc_grad, acc_delta)])
    got = [array.copy() for array in arrays]
    update(np, wanted, hyper.scalars("float32"), hyper.learning_rate, hyper.wd)
    assert_same_bits(got, wanted.arrays)


def test_the_variant_of_the_step_can_be_fixed(mxnet):
    """Short work is done at once by this thread, unless another variant is fixed."""
    from adadelta_cli.kernels import cpu, variants

    optimizer, found = AdaDelta(use_fused_step=True), []
    weight = mxnet.nd.ones(5)
    state = optimizer.create_state(0, weight)
    for fixed in ("7:64", ""):
        with variants.override(fixed):
            optimizer.update([0], [weight], [weight.copy()], [state])
        found.append(cpu.taken(optimizer._bound[0].step._table))
    assert found == ["7:64", "1:0"]


def test_what_failed_before_the_step_is_raised_by_it(mxnet):
    """An operator that fails in MXNet's engine, later than it was called, is not passed over."""
    mxnet.npx.set_np()
    optimizer, weight = AdaDelta(use_fused_step=True), mxnet.np.ones(3)
    state = optimizer.create_state(0, weight)
    _ = mxnet.np.random.normal(0, -1, (2, 2))
    with pytest.raises(ValueError, match="scale < 0"):
        optimizer.update([0], [weight], [weight], [state])


def test_empty_and_zero_dimensional_tensors(mxnet):
    """Shapes without elements or without dimensions, among others."""
    mxnet.npx.set_np()
    unfused, fused = both(mxnet.np.array, shapes=[(), (0,), (5, 0), (3,), ()])
    assert_same_bits(fused, unfused)
    assert unfused[0].shape == () and unfused[2].shape == (5, 0)


@pytest.mark.parametrize("fused", [False, True])
def test_views_of_one_array(mxnet, fused):
    """Weights, gradients and states that are slices of shared buffers are updated in place."""
    mxnet.npx.set_np()
    start = random_arrays(90, low=0, high=1)
    whole = [mxnet.np.array(array) for array in start]
    lists = [[array[k : k + 30] for k in (0, 30, 60)] for array in whole]
    optimizer = AdaDelta(**AWKWARD, use_fused_step=fused)
    optimizer.update([0, 1, 2], lists[0], lists[1], list(zip(*lists[2:], strict=True)))
    alone = [mxnet.np.array(array) for array in start]
    AdaDelta(**AWKWARD).update([0], alone[:1], alone[1:2], [tuple(alone[2:])])
    assert_same_bits([a.asnumpy() for a in whole], [a.asnumpy() for a in alone])


def test_pending_operations_are_awaited(mxnet):
    """Gradients still being computed when the fused step is called are complete before it reads."""
    optimizer = AdaDelta(use_fused_step=True)
    size = 1200
    weight, matrix = mxnet.nd.ones((size, size)), mxnet.nd.ones((size, size)) / size
    state = optimizer.create_state(0, weight)
    grad = mxnet.nd.dot(matrix, matrix)
    for _ in range(3):
        grad = mxnet.nd.dot(grad, matrix)  # queued, tens of milliseconds
    optimizer.update([0], [weight], [grad], [state])
    acc_grad = state[0].asnumpy()
    np.testing.assert_allclose(acc_grad, 0.1 * grad.asnumpy() ** 2, rtol=1e-6)


class Schedule(mx.lr_scheduler.LRScheduler):
    """A rate that differs at every update."""

    def __call__(self, num_update):
        return self.base_lr / (1 + num_update)


@pytest.mark.parametrize("batches", [1, 2, 5])
def test_multipliers_schedules_and_counts_are_those_of_the_base_class(mxnet, batches):
    """lr_mult, wd_mult, scheduler and begin_num_update act as in stock, however tensors are cut."""
    results = []
    for make_optimizer in (Stock, AdaDelta, functools.partial(AdaDelta, use_fused_step=True)):
        optimizer = make_optimizer(
            wd=0.05, learning_rate=None, lr_scheduler=Schedule(0.5), begin_num_update=3
        )
        optimizer.set_lr_mult({0: 0.1, 3: 2.0})
        optimizer.set_wd_mult({1: 0.0, 3: 3.0})
        results.append(trained(optimizer, mxnet.nd.array, batches=batches))
        assert optimizer.num_update == 3 + 5
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


def test_learning_rate_none_is_the_schedulers_or_a_hundredth():
    """As the documentation of MXNet says."""
    assert AdaDelta(learning_rate=None).learning_rate == 0.01
    assert AdaDelta(learning_rate=None, lr_scheduler=Schedule(0.5)).learning_rate == 0.5
    with pytest.warns(UserWarning, match="overwritten"):
        given = AdaDelta(learning_rate=0.25, lr_scheduler=Schedule(0.5))
    assert given.learning_rate == 0.25


# --- under gluon.Trainer --------------------------------------------------------------------------


def network(mxnet):
    """A small convolutional net, the same at each call; oneDNN moves its weights about."""
    nn = mxnet.gluon.nn
    net = nn.HybridSequential()
    net.add(nn.Conv2D(8, 3, activation="relu"), nn.Dense(16, activation="relu"), nn.Dense(3))
    net.initialize(mxnet.init.Zero())
    rng = np.random.default_rng(4)
    net(mxnet.np.array(rng.normal(size=(2, 4, 8, 8)).astype("float32")))
    for parameter in net.collect_params().values():
        parameter.set_data(mxnet.np.array(rng.normal(size=parameter.shape).astype("float32") * 0.3))
    return net


def train(mxnet, trainer, net, steps=4, seed=0, after=lambda _step: None):
    """Train; evaluate in between, which lets oneDNN reorder the weights; return the parameters."""
    rng = np.random.default_rng(seed)
    for step in range(steps):
        data = mxnet.np.array(rng.normal(size=(6, 4, 8, 8)).astype("float32"))
        with mxnet.autograd.record():
            loss = (net(data) ** 2).mean()
        loss.backward()
        trainer.step(1)
        net(data).wait_to_read()
        after(step)
    return [parameter.data().asnumpy() for parameter in net.collect_params().values()]


def optimizers(**kwargs):
    """The three that must agree."""
    yield Stock(**AWKWARD, **kwargs)
    yield AdaDelta(**AWKWARD, **kwargs)
    yield AdaDelta(**AWKWARD, use_fused_step=True, **kwargs)


STORES = {
    "default": {},
    "none": {"kvstore": None},
    "local, update by worker": {"kvstore": "local", "update_on_kvstore": False},
    "local, update on kvstore": {"kvstore": "create local", "update_on_kvstore": True},
}


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("model", ["network", "Halves"], ids=["conv", "float16"])
def test_trainer(mxnet, store, model):
    """Fused, unfused and stock train to the same bits under each kind of key-value store."""
    mxnet.npx.set_np()
    results = []
    on_kvstore = {"aggregate_num": 1} if "on kvstore" in store else {}
    for optimizer in optimizers(multi_precision=model == "Halves", **on_kvstore):
        settings = dict(STORES[store])
        if settings.get("kvstore") == "create local":
            settings["kvstore"] = mxnet.kv.create("local")
        net = MODELS[model](mxnet)
        trainer = mxnet.gluon.Trainer(net.collect_params(), optimizer, **settings)
        results.append(train(mxnet, trainer, net))
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


class Halves:
    """A model of float16 parameters; MXNet's own float16 layers need a GPU."""

    def __init__(self, mxnet):
        rng = np.random.default_rng(5)
        self.parameters = {
            name: mxnet.gluon.Parameter(name, shape=shape, dtype="float16")
            for name, shape in {"a": (4, 8, 8), "b": (1,)}.items()
        }
        for parameter in self.parameters.values():
            parameter.initialize()
            value = rng.normal(size=parameter.shape).astype("float16")
            parameter.set_data(mxnet.np.array(value, dtype="float16"))

    def collect_params(self):
        """As a Block does."""
        return self.parameters

    def __call__(self, data):
        """Apply it."""
        a, b = (parameter.data().astype("float32") for parameter in self.parameters.values())
        return data * a + b


MODELS = {"network": network, "Halves": Halves}


def test_all_parameters_in_one_call(mxnet, monkeypatch):
    """With the fused step, Trainer hands over all parameters at once."""
    mxnet.npx.set_np()
    calls = []
    inner = AdaDelta._take
    monkeypatch.setattr(
        AdaDelta,
        "_take",
        lambda self, kind, indices, *more, **how: (
            calls.append(len(indices)),
            inner(self, kind, indices, *more, **how),
        ),
    )
    net = network(mxnet)
    trainer = mxnet.gluon.Trainer(net.collect_params(), "adadelta", {"use_fused_step": True})
    train(mxnet, trainer, net, steps=2)
    assert calls == [6, 6]


def test_parameters_frozen_midway(mxnet):
    """A layer whose grad_req turns to null stops, the rest and the counts go on, as in stock."""
    mxnet.npx.set_np()
    results = []
    for optimizer in optimizers(lr_scheduler=None):
        net = network(mxnet)
        trainer = mxnet.gluon.Trainer(net.collect_params(), optimizer)
        frozen = net[0].weight

        def freeze(step, frozen=frozen):
            frozen.grad_req = {0: "null", 2: "write"}.get(step, frozen.grad_req)

        results.append(train(mxnet, trainer, net, steps=6, after=freeze))
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


@pytest.mark.parametrize("multi_precision", [False, True])
def test_states_survive_saving_and_pickling(mxnet, tmp_path, multi_precision):
    """Stopped, saved, loaded and gone on: the same bits as without a stop."""
    mxnet.npx.set_np()
    path = str(tmp_path / "states")
    settings = {**AWKWARD, "use_fused_step": True, "multi_precision": multi_precision}

    def start():
        net = network(mxnet)
        return net, mxnet.gluon.Trainer(net.collect_params(), "adadelta", settings)

    net, trainer = start()
    train(mxnet, trainer, net, seed=1)
    trainer.save_states(path)
    saved = [parameter.data().copy() for parameter in net.collect_params().values()]
    wanted = train(mxnet, trainer, net, seed=2)

    net, trainer = start()
    trainer.load_states(path)
    for parameter, value in zip(net.collect_params().values(), saved, strict=True):
        parameter.set_data(value)
    assert trainer.optimizer.use_fused_step and trainer.optimizer.aggregate_num == np.inf
    assert_same_bits(train(mxnet, trainer, net, seed=2), wanted)


# MXNet's kvstore does not close the file that it loads.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("update_on_kvstore", [False, True])
def test_states_saved_by_stock_are_taken_over(mxnet, tmp_path, update_on_kvstore):
    """`load_states` keeps the fused step, and goes on as stock would have."""
    mxnet.npx.set_np()
    path = str(tmp_path / "states")

    def start(optimizer):
        net = network(mxnet)
        store = {"kvstore": mxnet.kv.create("local")} if update_on_kvstore else {}
        trainer = mxnet.gluon.Trainer(
            net.collect_params(), optimizer, **store, update_on_kvstore=update_on_kvstore
        )
        return net, trainer

    net, trainer = start(Stock(**AWKWARD))
    train(mxnet, trainer, net, seed=1)
    trainer.save_states(path)
    saved = [parameter.data().copy() for parameter in net.collect_params().values()]
    wanted = train(mxnet, trainer, net, seed=2)

    only_one = {"aggregate_num": 1} if update_on_kvstore else {}
    net, trainer = start(
        AdaDelta(use_fused_step=True, rescale_grad=AWKWARD["rescale_grad"], **only_one)
    )
    for parameter, value in zip(net.collect_params().values(), saved, strict=True):
        parameter.set_data(value)
    adadelta_cli.load_states(trainer, path)
    assert isinstance(trainer.optimizer, AdaDelta) and trainer.optimizer.use_fused_step
    assert trainer.optimizer.rho == AWKWARD["rho"]
    assert_same_bits(train(mxnet, trainer, net, seed=2), wanted)


def test_load_states_refuses_other_optimizers(mxnet, tmp_path):
    """States of Adam are no AdaDelta's, and neither is a trainer with Adam."""
    path = str(tmp_path / "states")
    mxnet.npx.set_np()
    net = network(mxnet)
    adam = mxnet.gluon.Trainer(net.collect_params(), "adam")
    adam.save_states(path)
    with pytest.raises(TypeError, match="expected"):
        adadelta_cli.load_states(adam, path)
    net = network(mxnet)
    ours = mxnet.gluon.Trainer(net.collect_params(), AdaDelta())
    with pytest.raises(TypeError, match="saved by"):
        adadelta_cli.load_states(ours, path)


def snapshot(trainer):
    """Gather what loading states may change: objects by identity, arrays by bits."""
    kvstore = trainer._kvstore
    on_kvstore = [kvstore._updater] if trainer._update_on_kvstore else []
    optimizer = trainer.optimizer
    return [
        id(optimizer),
        repr(vars(optimizer)),
        optimizer.num_update,
        repr(optimizer._index_update_count),
        *(
            (
                id(each),
                id(each.optimizer),
                each.aggregate_updates,
                dict(each.states_synced),
                {k: [s.asnumpy().tobytes() for s in state] for k, state in each.states.items()},
            )
            for each in (*trainer._updaters, *on_kvstore)
        ),
    ]


def saved_with(mxnet, path, make, **changed):
    """Save the states of a trainer after some steps, with attributes of its optimizer changed."""
    net = network(mxnet)
    trainer = mxnet.gluon.Trainer(net.collect_params(), make())
    train(mxnet, trainer, net, seed=1)
    for name, value in changed.items():
        setattr(trainer.optimizer, name, value)
    trainer.save_states(path)


UNLOADABLE = {
    "another optimizer": ({"make": lambda mx: mx.optimizer.SGD()}, TypeError, "saved by"),
    **{
        f"{name}={value}": ({name: value}, ValueError, f"{shown} is {value}")
        for name, value, shown in (
            ("lr", math.inf, "learning_rate"),
            ("lr", math.nan, "learning_rate"),
            ("wd", math.inf, "wd"),
            ("rho", 1.0, "rho"),
            ("rho", math.nan, "rho"),
            ("epsilon", 0.0, "epsilon"),
            ("clip_gradient", -1.0, "clip_gradient"),
            ("rescale_grad", -math.inf, "rescale_grad"),
        )
    },
    "a text": ({"lr": "x"}, ValueError, "learning_rate is .x."),
    "lr_mult": ({"lr_mult": {0: math.inf}}, ValueError, "lr_mult of 0 is inf"),
    "a scheduler": ({"lr_scheduler": None}, ValueError, "base_lr is inf"),
    "cut": ({"cut": True}, ValueError, "is no file of states"),
    "no states": ({"cut": b"I5\n."}, ValueError, "is no file of states"),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("update_on_kvstore", [False, True])
@pytest.mark.parametrize(("how", "kind", "message"), UNLOADABLE.values(), ids=UNLOADABLE)
def test_load_states_is_all_or_nothing(mxnet, tmp_path, how, kind, message, update_on_kvstore):
    """What cannot be taken over leaves the trainer as it was: objects, states, counts."""
    mxnet.npx.set_np()
    path, how = tmp_path / "states", dict(how)
    make, cut = how.pop("make", lambda _: Stock(**AWKWARD)), how.pop("cut", None)
    if "lr_scheduler" in how:
        how["lr_scheduler"] = mxnet.lr_scheduler.FactorScheduler(step=5, base_lr=math.inf)
    saved_with(mxnet, str(path), lambda: make(mxnet), **how)
    if cut:
        path.write_bytes(cut if isinstance(cut, bytes) else path.read_bytes()[:-40])
    net = network(mxnet)
    store = {"kvstore": mxnet.kv.create("local")} if update_on_kvstore else {}
    only_one = {"aggregate_num": 1} if update_on_kvstore else {}
    trainer = mxnet.gluon.Trainer(
        net.collect_params(),
        AdaDelta(use_fused_step=True, **only_one),
        **store,
        update_on_kvstore=update_on_kvstore,
    )
    train(mxnet, trainer, net, steps=2)
    before = snapshot(trainer)
    with pytest.raises(kind, match=message):
        adadelta_cli.load_states(trainer, str(path))
    assert snapshot(trainer) == before
    train(mxnet, trainer, net, steps=1)


def test_pickled_optimizers_are_themselves():
    """A copy has the same settings, and unlimited aggregation is still unlimited."""
    optimizer = AdaDelta(rho=0.7, use_fused_step=True, aggregate_num=np.inf)
    copy = pickle.loads(pickle.dumps(optimizer))  # noqa: S301 - our own
    assert (copy.rho, copy.use_fused_step, copy.aggregate_num) == (0.7, True, np.inf)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"rho": 1.0},
        {"rho": -0.5},
        {"epsilon": 0},
        {"epsilon": -1},
        {"learning_rate": "fast"},
        {"learning_rate": float("nan")},
        {"clip_gradient": -0.1},
        {"rho": "0.9"},
        {"wd": None},
        {"rho": [0.9]},
        {"aggregate_num": 2.5},
        {"learning_rate": 10**400},
    ],
    ids=str,
)
def test_wrong_hyperparameters_raise_at_once(settings):
    """ValueError names what was given and what is allowed."""
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=re.escape(f"{name} is {shown(value)}; allowed is")):
        AdaDelta(**settings)


@pytest.mark.parametrize("fused", [False, True])
def test_sparse_gradients_are_refused(mxnet, fused):
    """A sparse gradient raises TypeError that says what to do, and changes nothing."""
    optimizer = AdaDelta(use_fused_step=fused)
    weight = mxnet.nd.ones((4, 2))
    state = optimizer.create_state(0, weight)
    with pytest.raises(TypeError, match=r"row_sparse.*dense"):
        optimizer.update([0], [weight], [mxnet.nd.ones((4, 2)).tostype("row_sparse")], [state])
    assert (weight.asnumpy() == 1).all()


def test_unknown_dtypes_are_refused(mxnet):
    """An integer weight has no states; a gradient of another dtype has no kernel."""
    optimizer = AdaDelta(use_fused_step=True)
    with pytest.raises(TypeError, match="int32"):
        optimizer.create_state(0, mxnet.nd.ones(3, dtype="int32"))
    weight = mxnet.nd.ones(3)
    state = optimizer.create_state(0, weight)
    with pytest.raises(TypeError, match="float64"):
        optimizer.update([0], [weight], [mxnet.nd.ones(3, dtype="float64")], [state])
    with pytest.raises(ValueError, match="one shape"):
        optimizer.update([0], [weight], [mxnet.nd.ones(4)], [state])
    wide, narrow = mxnet.nd.ones((1, 1_000_004)), mxnet.nd.ones((2, 1))
    with pytest.raises(ValueError, match="one shape"):
        optimizer.update([0], [wide], [narrow], [optimizer.create_state(0, wide)])
    odd = (state[0], state[1].astype("float64"))
    with pytest.raises(TypeError, match="float32, float32, float32, float64"):
        optimizer.update([0], [weight], [weight], [odd])
    half, master = weight.astype("float16"), weight.astype("float64")
    with pytest.raises(TypeError, match="float16, float16, float32, float32, float64"):
        AdaDelta(use_fused_step=True, multi_precision=True).update_multi_precision(
            [0], [half], [half], [(master, state)]
        )
    assert optimizer.num_update == 0  # what was refused is not counted


class TestSameArraysAgain:
    """What the fused step keeps of the arrays it was given holds only while they are the same."""

    def steps(self, mxnet, change, *, state_type=tuple):
        """Take two steps, fused and unfused, with a change in between; return all arrays."""
        ends = []
        for fused in (True, False):
            rng = np.random.default_rng(0)
            optimizer = AdaDelta(use_fused_step=fused)
            ones = [mxnet.np.array(rng.normal(size=50), dtype="float32") for _ in range(4)]
            things = {"weight": ones[0], "grad": ones[1]}
            things["state"] = state_type(abs(array) for array in ones[2:])
            for _ in range(2):
                optimizer.update([3], [things["weight"]], [things["grad"]], [things["state"]])
                change(things)
            optimizer.update([3], [things["weight"]], [things["grad"]], [things["state"]])
            arrays = [things["weight"], things["grad"], *things["state"]]
            ends.append([array.asnumpy() for array in arrays])
        return ends

    @pytest.mark.parametrize("name", ["weight", "grad"])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_another_array_for_the_same_index(self, mxnet, name, dtype):
        """It is the new one that is read and written, of another size and dtype, too."""

        def change(things):
            for key in ("weight", "grad") if dtype == "float64" else (name,):
                things[key] = (things[key] * 2).astype(dtype)
            if dtype == "float64":
                things["state"] = tuple(array.astype(dtype) for array in things["state"])

        assert_same_bits(*self.steps(mxnet, change))

    def test_other_arrays_in_a_state_that_is_a_list(self, mxnet):
        """A list can hold other arrays and be the same object; it is read anew each step."""

        def change(things):
            things["state"][1] = things["state"][1] * 3

        assert_same_bits(*self.steps(mxnet, change, state_type=list))

    def test_values_written_into_the_same_arrays(self, mxnet):
        """In place: the arrays stay, their contents change."""

        def change(things):
            things["grad"][:] = things["grad"] * -2
            things["state"][0][:] = 0.5

        assert_same_bits(*self.steps(mxnet, change))

    def test_no_pickle_has_them(self, mxnet):
        """A saved optimizer holds no arrays, and one that was loaded steps on."""
        weight, grad = mxnet.np.ones(3), mxnet.np.ones(3)
        optimizer = AdaDelta(use_fused_step=True)
        state = optimizer.create_state(0, weight)
        optimizer.update([0], [weight], [grad], [state])
        loaded = pickle.loads(pickle.dumps(optimizer))  # noqa: S301 - our own
        assert "_bound" not in optimizer.__getstate__()
        loaded.update([0], [weight], [grad], [state])
        assert loaded.num_update == 2


# --- the import -----------------------------------------------------------------------------------


def python(code, **environment):
    """Run code in a fresh interpreter, warnings being errors; return what it printed."""
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning:adadelta_cli", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_importing_registers_it_silently():
    """`from adadelta_cli import AdaDelta` prints nothing, and registers it as 'adadelta'."""
    done = python(
        "from adadelta_cli import AdaDelta\n"
        "import mxnet as mx\n"
        "assert type(mx.optimizer.create('adadelta')) is AdaDelta\n"
        "mx.nd.ones(3).asnumpy()\n"
    )
    assert done.stdout == done.stderr == ""


def test_importing_the_package_imports_nothing_heavy():
    """Not MXNet, not Numba, not even NumPy."""
    python(
        "import sys, adadelta_cli, adadelta_cli.cli.main\n"
        "heavy = {'mxnet', 'numba', 'numpy', 'pandas', 'matplotlib', 'sklearn', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )


@pytest.mark.slow
def test_the_naive_engine():
    """With MXNET_ENGINE_TYPE=NaiveEngine the main thread computes, and the bits are the same."""
    code = (
        "import numpy as np\n"
        "from adadelta_cli import AdaDelta\n"
        "import mxnet as mx\n"
        "results = []\n"
        "for fused in (False, True):\n"
        "    o = AdaDelta(use_fused_step=fused)\n"
        "    w, g = mx.nd.ones(50000), mx.nd.array(np.logspace(-25, 2, 50000))\n"
        "    s = o.create_state(0, w)\n"
        "    for _ in range(3): o.update([0], [w], [g], [s])\n"
        "    results.append([a.asnumpy().view('u4') for a in (w, *s)])\n"
        "assert all((a == b).all() for a, b in zip(*results))\n"
    )
    python(code, MXNET_ENGINE_TYPE="NaiveEngine")


def test_no_warning_from_our_own_code(mxnet):
    """Making and using the optimizer warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = AdaDelta(use_fused_step=True)
        weight = mxnet.nd.ones(3, dtype="float16")
        optimizer.update(
            [0], [weight], [weight.copy()], [optimizer.create_state_multi_precision(0, weight)]
        )


def test_a_state_whose_items_are_views(mxnet):
    """The rows of an array are new views at each access; the bits are those of the array update."""
    weight, grad = mxnet.np.ones(4), mxnet.np.ones(4)
    state = mxnet.np.ones((2, 4))
    wanted = Parameter(*(np.ones(4, np.float32) for _ in range(4)))
    optimizer = AdaDelta(use_fused_step=True)
    for _ in range(3):
        optimizer.update([0], [weight], [grad], [state])
        update(np, wanted, Hyperparameters().scalars("float32"), 1.0, 0.0)
    got = [weight.asnumpy(), *state.asnumpy()]
    assert_same_bits(got, [wanted.weight, wanted.acc_grad, wanted.acc_delta])


@pytest.mark.parametrize("fused", [True, False])
def test_lists_of_different_lengths(mxnet, fused):
    """Nothing is read beyond the end of the shorter one."""
    weights = [mxnet.np.ones(4) for _ in range(3)]
    optimizer = AdaDelta(use_fused_step=fused)
    states = [optimizer.create_state(k, w) for k, w in enumerate(weights)]
    with pytest.raises(ValueError, match=r"expected|argument 2 is longer"):
        optimizer.update([0], weights, weights, states)


# --- drop-in --------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [0, 1, 2, np.int64(3), np.inf, None])
def test_aggregate_num_as_stock(mxnet, given):
    """What the stock takes, ours does, with the same number of parameters a call."""
    calls = {}
    for base in (Stock, AdaDelta):

        class Counting(base):
            def update_multi_precision(self, indices, *others):
                calls.setdefault(base, []).append(list(indices))  # noqa: B023
                super().update_multi_precision(indices, *others)

        updater = mxnet.optimizer.Updater(Counting(aggregate_num=given))
        weights = [mxnet.nd.ones(3) for _ in range(4)]
        updater([0, 1, 2, 3], [mxnet.nd.ones(3) for _ in range(4)], weights)
    assert calls.get(Stock) == calls.get(AdaDelta)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("method", ["update", "step", "fused_step"])
@pytest.mark.parametrize("through_mixin", [False, True])
def test_a_subclass_is_called(mxnet, fused, method, through_mixin):
    """An override of `update`, `step` or `fused_step` is an extension point of MXNet's."""

    def override(self, indices, weights, grads, states):
        self.calls += 1
        getattr(super(override.owner, self), method)(
            indices, weights, [grad * 0 for grad in grads], states
        )

    if through_mixin:
        mixin = type("Mixin", (), {method: override})
        centred = type("Centred", (mixin, AdaDelta), {"calls": 0})
        override.owner = mixin
    else:
        centred = override.owner = type("Centred", (AdaDelta,), {"calls": 0, method: override})
    optimizer, weight = centred(use_fused_step=fused), mxnet.nd.ones(3)
    updater = mxnet.optimizer.Updater(optimizer)
    for _ in range(3):
        updater([0], [mxnet.nd.ones(3)], [weight])
    called = method in ("update", "fused_step" if fused else "step")
    assert optimizer.calls == 3 * called
    assert (weight.asnumpy() == 1).all() == called


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("wrong", ["shape", "dtype", "sparse"])
def test_nothing_changes_before_every_tensor_was_checked(mxnet, fused, wrong):
    """A wrong gradient in the middle leaves the tensors before it unchanged, and no count."""
    weights, grads = ([mxnet.nd.ones((2, 3)) for _ in range(3)] for _ in range(2))
    optimizer = AdaDelta(use_fused_step=fused)
    states = [optimizer.create_state(k, weight) for k, weight in enumerate(weights)]
    grads[1] = {
        "shape": mxnet.nd.ones(3),
        "dtype": mxnet.nd.ones((2, 3), dtype="float64"),
        "sparse": mxnet.nd.ones((2, 3)).tostype("row_sparse"),
    }[wrong]
    named = {"shape": r"\(2, 3\) float32, \(3,\) float32", "dtype": "float64", "sparse": "row_sp"}
    for update_ in (optimizer.update, optimizer.update_multi_precision):
        with pytest.raises((TypeError, ValueError), match=named[wrong]):
            update_([0, 1, 2], weights, grads, states)
    assert all((weight.asnumpy() == 1).all() for weight in weights)
    assert not any(state.asnumpy().any() for state in flat(states))
    assert optimizer.num_update == 0


@pytest.mark.parametrize("fused", [False, True])
def test_a_net_cast_midway_is_refused(mxnet, fused):
    """The states keep the dtype that they were made for."""
    optimizer, weight = AdaDelta(use_fused_step=fused), mxnet.nd.ones(3)
    updater = mxnet.optimizer.Updater(optimizer)
    updater([0], [mxnet.nd.ones(3)], [weight])
    wide = weight.astype("float64")
    with pytest.raises(TypeError, match="float64, float64, float32, float32"):
        updater([0], [wide], [wide])


@pytest.mark.parametrize("overlap", [True, False])
def test_tied_weights_are_refused_by_the_fused_step(mxnet, overlap):
    """They are named by their indices; disjoint views are allowed."""
    memory = mxnet.nd.ones(20)
    weights = [memory[0:10], memory[9:19] if overlap else memory[10:20]]
    grads = [mxnet.nd.ones(10) for _ in range(2)]
    optimizer = AdaDelta(use_fused_step=True)
    states = [optimizer.create_state(k, weight) for k, weight in enumerate(weights)]
    for _ in range(2):
        if overlap:
            with pytest.raises(ValueError, match="weight of parameter 4 and weight of parameter 7"):
                optimizer.update([4, 7], weights, grads, states)
            assert (memory.asnumpy() == 1).all() and optimizer.num_update == 0
        else:
            optimizer.update([4, 7], weights, grads, states)
    mine = weights[0], optimizer.create_state(0, weights[0])
    with pytest.raises(ValueError, match=r"of parameter 3 and .* of parameter 3"):
        optimizer.update([3], mine[:1], mine[:1], mine[1:])


def test_mxnet_steps_are_not_copied(mxnet):
    """They have handles and addresses."""
    array = mxnet.nd.ones(3)
    tensors = [[array, *(array.copy() for _ in range(3))]]
    step = FusedMxnetStep(tensors)
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="keeps addresses"):
            copied(step)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("eps", "epsilon"),
        ("lr", "learning_rate"),
        ("weight_decay", "wd"),
        ("epsilom", "epsilon"),
        ("multi_precison", "multi_precision"),
        ("foo", "wd"),
    ],
)
def test_an_unknown_keyword_is_named(name, meant):
    """With the one that was probably meant, or all of them."""
    with pytest.raises(TypeError, match=rf"'{name}'.*\b{meant}\b"):
        AdaDelta(**{name: 0.5})


def test_a_gradient_is_left_as_it_was_when_its_weight_is_frozen(mxnet):
    """The stock shrinks a gradient that backward did not write anew; ours leaves it.

    So from the second step on, the two differ where MXNet keeps an old gradient.
    """
    found = {}
    for base in (Stock, AdaDelta):
        optimizer, weight, grad = base(rescale_grad=0.5), mxnet.nd.ones(3), mxnet.nd.ones(3)
        state = optimizer.create_state(0, weight)
        for _ in range(2):
            optimizer.update([0], [weight], [grad], [state])
        found[base] = weight.asnumpy(), grad.asnumpy()
    assert (found[AdaDelta][1] == 1).all() and (found[Stock][1] == 0.25).all()
    assert not np.array_equal(found[AdaDelta][0], found[Stock][0])
    wanted = [np.full(3, value, np.float32) for value in (1, 1, 0, 0)]
    for _ in range(2):
        scalars = Hyperparameters(rescale_grad=0.5).scalars(np.float32)
        update(np, Parameter(*wanted), scalars, 1.0, 0.0)
    assert_same_bits([found[AdaDelta][0]], [wanted[0]])
