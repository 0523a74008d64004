"""`AdaDelta` in place of MXNet's own: its arguments, attributes, extension points and errors."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import re
import types
from unittest import mock

import numpy as np
import pytest
from conftest import assert_same_bits

pytest.importorskip("mxnet")

from adadelta_cli import AdaDelta
from adadelta_cli.mxnet_bridge import runtime, tensors

mx = runtime.load_mxnet()
pytestmark = pytest.mark.usefixtures("mxnet")
Stock = mx.optimizer.adadelta.AdaDelta
NAN, INF = math.nan, math.inf
OURS = {"unfused": {}, "fused": {"use_fused_step": True}}


def plain(value):
    """Name a value without addresses: pytest-xdist compares names between processes."""
    return re.sub(r" at 0x\w+", "", str(value))[:60]


BOTH = pytest.mark.parametrize("fused", [False, True], ids=OURS)
SHAPES = [(3, 4, 5), (10, 4), (7,)]  # those of MXNet's own test


def train(optimizer, dtype="float32", steps=2, shapes=SHAPES):
    """Take steps as `gluon.Trainer` does; return weights and states."""
    updater, rng = mx.optimizer.Updater(optimizer), np.random.default_rng(0)
    weights = [mx.nd.array(rng.uniform(size=shape), dtype=dtype) for shape in shapes]
    for _ in range(steps):
        grads = [mx.nd.array(rng.uniform(-1, 1, size=shape), dtype=dtype) for shape in shapes]
        updater(list(range(len(shapes))), grads, weights)
    states = [updater.states[k] for k in range(len(shapes))]
    return [array.asnumpy() for array in [*weights, *flat(states)]]


def flat(states):
    """List the arrays of nested states."""
    if isinstance(states, (tuple, list)):
        return [array for state in states for array in flat(state)]
    return [states]


# MXNet's own grid of AdaDelta: test_adadelta of tests/python/unittest/test_optimizer.py.
GRID = {
    "epsilon": (None, 1e-8),
    "clip_gradient": (None, 0.4, 0.5),
    "rescale_grad": (None, 0.14, 0.8),
    "wd": (None, 0.03, 0.05, 0.07),
    "aggregate_num": (0, 1, 4, np.inf),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("path", ["update_multi_precision", "Updater"])
def test_mxnets_own_grid(dtype, path):
    """All 576 cases, fused and unfused, have the bits of the stock; directly and by `Updater`."""
    cases = 0
    for values in itertools.product(*GRID.values()):
        given = dict(zip(GRID, values, strict=True))
        given = {"rho": 0.9, **{name: each for name, each in given.items() if each is not None}}
        if dtype == "float16":
            given["multi_precision"] = True
        take = train if path == "Updater" else take_one_step
        wanted = take(Stock(**given), dtype)
        for ours in OURS.values():
            assert_same_bits(take(AdaDelta(**given, **ours), dtype), wanted)
        cases += 1
    assert cases == 576 / 2


def take_one_step(optimizer, dtype):
    """Take a step on all tensors in one call, as MXNet's `compare_optimizer`."""
    rng = np.random.default_rng(0)
    weights, grads = (
        [mx.nd.array(rng.uniform(size=shape), dtype=dtype) for shape in SHAPES] for _ in range(2)
    )
    states = [optimizer.create_state_multi_precision(k, each) for k, each in enumerate(weights)]
    optimizer.update_multi_precision([0, 1, 2], weights, grads, states)
    return [array.asnumpy() for array in [*weights, *flat(states)]]


# --- arguments and attributes ---------------------------------------------------------------------


class Halving(mx.lr_scheduler.LRScheduler):
    """A rate for each update."""

    def __call__(self, num_update):
        return self.base_lr / (1 + num_update)


class Returning(mx.lr_scheduler.LRScheduler):
    """A scheduler that returns one value from the third update on."""

    def __init__(self, value):
        super().__init__(base_lr=1.0)
        self.value = value

    def __call__(self, num_update):
        return self.value if num_update > 2 else 0.5


def symbol(**mult):
    """Make a symbol with multipliers, as MXNet's modules pass it."""
    return mx.sym.FullyConnected(mx.sym.Variable("data"), name="fc", num_hidden=2, **mult)


def gluon_parameter():
    """Make a parameter with multipliers, as `Trainer` passes it in `param_dict`."""
    return mx.gluon.Parameter("p", shape=(2,), lr_mult=0.5, wd_mult=2.0)


# Arguments that the stock takes, and code on the optimizer that it runs.
ACCEPTED = {
    "learning_rate": (0.5, 2, 0, -1, True, np.float32(0.5), np.float16(0.5), np.int64(2)),
    "rescale_grad": (0.5, 1, 0, -1, True, np.float64(0.3)),
    "wd": (0.1, 1, 0, -0.1, True, np.float32(0.1)),
    "clip_gradient": (None, 0.1, 1, 0, np.float32(0.1), INF, np.inf),
    "rho": (0, 0.5, False, np.float32(0.5)),
    "epsilon": (1, 1e-8, True),
    "param_idx2name": (None, {}, {0: "a", 1: "b"}),
    "begin_num_update": (0, 3, -2, 3.5, True, np.int64(3)),
    "multi_precision": (True, False, None, 0, 1, np.bool_(True)),
    "param_dict": (None, {}, [], (), lambda: {0: gluon_parameter()}),
    "aggregate_num": (None, 0, 1, 2, 4, -1, -INF, 0.5, True, np.int64(2), np.inf),
    "use_fused_step": (None, False, 0, np.bool_(False)),
    "lr_scheduler": (None, lambda: Halving(0.5), lambda: Halving(1.0)),
    "sym": (None, lambda: symbol(lr_mult=0.5, wd_mult=2.0), symbol),
}
CODE = (
    "o.set_learning_rate(0.3)",
    "o.set_learning_rate(np.float32(0.3))",
    "o.set_lr_mult({0: 0.5, 'b': 2})",
    "o.set_lr_mult([(0, 0.5)])",
    "o.set_wd_mult({1: 0, 'a': 3.0, 'nobody': 7})",
    "o.lr_mult[1] = 0.25",
    "o.wd_mult = {0: 2}",
    "o.lr = 0.2",
    "o.wd = 0.3",
    "o.rho = 0.3",
    "o.epsilon = 1e-3",
    "o.rescale_grad = np.float32(0.1)",
    "o.clip_gradient = 0.01",
    "o.clip_gradient = np.inf",
    "o.aggregate_num = 2",
    "o.aggregate_num = np.inf",
    "o.begin_num_update = 5",
    "o.num_update = 7",
    "o.idx2name[2] = 'c'",
    "o.param_dict = {1: gluon_parameter()}",
    "o.lr_scheduler = Halving(0.3)",
    "o.lr_scheduler = lambda count: 1 / count",
    "o.multi_precision = True",
    "o._set_current_device(3)",
)
EXAMPLES = [({name: value}, None) for name, values in ACCEPTED.items() for value in values]
EXAMPLES += [({"wd": 0.1, "param_idx2name": {0: "a", 1: "b"}}, code) for code in CODE]
EXAMPLES += [
    ({"learning_rate": None}, None),
    ({"learning_rate": None, "lr_scheduler": lambda: Halving(0.5)}, None),
    ({"learning_rate": None, "lr_scheduler": lambda: lambda count: 0.5 / count}, None),
    ({"learning_rate": 0.5, "lr_scheduler": lambda: Halving(0.5)}, None),
]


# What a program reads of an optimizer.
READABLE = ("learning_rate", "lr", "rescale_grad", "clip_gradient", "wd", "rho", "epsilon")
READABLE += ("lr_mult", "wd_mult", "idx2name", "num_update", "begin_num_update", "multi_precision")
READABLE += ("sym_info", "_index_update_count", "_all_index_update_counts", "use_fused_step")


@pytest.mark.filterwarnings("ignore:the scheduler's base rate")
@pytest.mark.parametrize(("given", "code"), EXAMPLES, ids=plain)
def test_what_the_stock_takes_has_the_same_meaning(given, code):
    """The same bits, and the same attributes afterwards, fused and unfused."""
    found = []
    for base, ours in [(Stock, {}), *((AdaDelta, each) for each in OURS.values())]:
        settings = {k: v() if isinstance(v, types.FunctionType) else v for k, v in given.items()}
        optimizer = base(**(ours | settings))
        if code:
            exec(code, {**globals(), "o": optimizer})  # noqa: S102 - the table's
        arrays = train(optimizer)
        attributes = {name: getattr(optimizer, name) for name in READABLE}
        if ours:
            attributes["use_fused_step"] = found[0][1]["use_fused_step"]
        if "aggregate_num" in given and given["aggregate_num"] is not None:
            size = given["aggregate_num"]
            assert (optimizer.aggregate_num > 1) == (size > 1)
            assert size <= 1 or optimizer.aggregate_num == size
        found.append((arrays, attributes))
    for arrays, attributes in found[1:]:
        assert_same_bits(arrays, found[0][0])
        assert attributes == found[0][1]


# What the stock rejects, some of it at the first step or by AttributeError; or takes, and computes
# NaN, or something else than was meant. With a part of the message.
REFUSED = [
    *(({name: value}, ValueError, f"{name} is")
      for name in ("learning_rate", "rescale_grad", "wd", "rho", "epsilon", "begin_num_update")
      for value in (NAN, INF, -INF, "0.5", [0.5], 1j, np.float32(NAN), {})),
    *(({name: None}, ValueError, f"{name} is None")
      for name in ("rescale_grad", "wd", "rho", "epsilon", "begin_num_update")),
    *(({"clip_gradient": value}, ValueError, "clip_gradient is")
      for value in (NAN, -INF, -0.1, "1", [1.0])),
    *(({"rho": value}, ValueError, "rho is") for value in (1, 1.5, -0.1)),
    *(({"epsilon": value}, ValueError, "epsilon is") for value in (0, -1)),
    *(({"aggregate_num": value}, ValueError, "aggregate_num is .* whole")
      for value in (NAN, 2.5, "2", [2], {})),
    *(({name: value}, TypeError, f"{name} is .* True or False")
      for name in ("use_fused_step", "multi_precision") for value in ("no", 2, 0.0, [], -1)),
    *(({"param_idx2name": value}, TypeError, "param_idx2name is .* dict")
      for value in ([], "x", [(0, "a")])),
    *(({"param_dict": value}, TypeError, "param_dict is .* dict") for value in ([1], "x", 3)),
    *(({"sym": value}, TypeError, "sym is .* Symbol") for value in ("x", 0, mx.sym.Symbol.tojson)),
    *(({"lr_scheduler": value}, TypeError, "lr_scheduler is .* LRScheduler")
      for value in (0.1, "x", mx.lr_scheduler.FactorScheduler)),
    ({"lr_scheduler": lambda count: 1 / count}, TypeError, "pass learning_rate=None"),
    ({"foo": 1}, TypeError, "'foo'"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "kind", "message"), REFUSED, ids=plain)
def test_what_is_refused_is_refused_at_once(given, kind, message):
    """The sentence names the argument, its value and what is allowed."""
    with pytest.raises(kind, match=rf"(?s){message}"):
        AdaDelta(**given)


def test_a_refused_optimizer_leaves_the_scheduler():
    """Its base rate is overwritten only when all else was accepted."""
    scheduler = Halving(0.5)
    with pytest.raises(ValueError, match="wd"):
        AdaDelta(lr_scheduler=scheduler, wd=NAN)
    assert scheduler.base_lr == 0.5


def test_create_and_register():
    """By name in any case, with keywords; a registered subclass likewise."""
    for name in ("adadelta", "AdaDelta", "ADADELTA"):
        optimizer = mx.optimizer.create(name, rho=0.5, use_fused_step=True)
        assert type(optimizer) is AdaDelta and optimizer.rho == 0.5

    @mx.optimizer.register
    class OurOwnAdaDelta(AdaDelta):
        pass

    try:
        made = mx.optimizer.Optimizer.create_optimizer("ourownadadelta", wd=0.1)
        assert type(made) is OurOwnAdaDelta and made.wd == 0.1
    finally:
        del mx.optimizer.Optimizer.opt_registry["ourownadadelta"]
    with pytest.raises(TypeError, match="epsilon"):
        mx.optimizer.create("adadelta", eps=1)


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("aggregate_num", [0, 2, np.inf, None])
@BOTH
def test_copies_step_on(copied, aggregate_num, fused):
    """The same settings, counts and bits; without `param_dict`, as in the stock."""
    made = AdaDelta(rho=0.7, aggregate_num=aggregate_num, use_fused_step=fused)
    made.param_dict = {0: gluon_parameter()}
    train(made)
    other = copied(made)
    other = pickle.loads(other) if isinstance(other, bytes) else other  # noqa: S301 - our own
    assert other.param_dict == {} and not other._bound
    assert "param_dict" not in made.__getstate__()
    assert other.aggregate_num == made.aggregate_num and other.num_update == made.num_update == 2
    if other.aggregate_num == INF:
        assert other.aggregate_num is np.inf  # so does MXNet compare it
    made.param_dict = {}
    assert_same_bits(train(other), train(made))


def test_set_learning_rate_beside_a_scheduler():
    """`UserWarning` is raised, as in the stock; the scheduler's rate stays."""
    optimizer = AdaDelta(learning_rate=None, lr_scheduler=Halving(0.5))
    with pytest.raises(UserWarning, match="LRScheduler"):
        optimizer.set_learning_rate(0.1)
    assert optimizer.learning_rate == 0.5


# --- NaN and infinity -----------------------------------------------------------------------------

BAD = (NAN, INF, -INF, "x", None, np.float32(NAN))


@pytest.mark.parametrize("value", BAD, ids=str)
def test_setters_refuse_what_is_no_finite_number(value):
    """Rate and multipliers; what was set before stays."""
    optimizer = AdaDelta(learning_rate=0.5)
    optimizer.set_lr_mult({0: 2.0})
    optimizer.set_wd_mult({0: 3.0})
    for setter, given in (
        (optimizer.set_learning_rate, value),
        (optimizer.set_lr_mult, {1: 1.0, "fc": value}),
        (optimizer.set_wd_mult, [("fc", value)]),
    ):
        with pytest.raises(ValueError, match=r"is .*; allowed is a finite number"):
            setter(given)
    assert (optimizer.lr, optimizer.lr_mult, optimizer.wd_mult) == (0.5, {0: 2.0}, {0: 3.0})


@pytest.mark.parametrize("given", [None, 3, "ab", [1, 2]], ids=str)
def test_multipliers_are_a_dict(given):
    """The stock raises Python's own message."""
    for name in ("lr_mult", "wd_mult"):
        with pytest.raises(TypeError, match=f"{name} is .*expected a dict"):
            getattr(AdaDelta(), f"set_{name}")(given)


SPOILED = {
    "lr": "o.lr = value",
    "wd": "o.wd = value",
    "rho": "o.rho = value",
    "epsilon": "o.epsilon = value",
    "rescale_grad": "o.rescale_grad = value",
    "lr_mult": "o.lr_mult[2] = value",
    "lr_mult by name": "o.lr_mult['c'] = value",
    "wd_mult": "o.wd_mult = {2: value}",
    "gluon's lr_mult": "o.param_dict = {k: gluon_parameter() for k in (0, 1, 2)}; "
    "o.param_dict[2].lr_mult = value",
    "gluon's wd_mult": "o.param_dict = {k: gluon_parameter() for k in (0, 1, 2)}; "
    "o.param_dict[2].wd_mult = value",
    "scheduler": "o.lr_scheduler = Returning(value)",
}


@pytest.mark.parametrize("value", BAD, ids=str)
@pytest.mark.parametrize("code", SPOILED.values(), ids=SPOILED)
@pytest.mark.parametrize("aggregate_num", [1, np.inf])
@BOTH
def test_no_weight_changes_by_what_is_no_finite_number(fused, aggregate_num, code, value):
    """ValueError, before any weight of the training step changes, even with a call for each."""
    names = {k: "abc"[k] for k in range(3)}
    optimizer = AdaDelta(
        use_fused_step=fused, aggregate_num=aggregate_num, param_idx2name=names, wd=0.1
    )
    updater = mx.optimizer.Updater(optimizer)
    weights, grads = ([mx.nd.ones(3) for _ in range(3)] for _ in range(2))
    for _ in range(2):
        updater([0, 1, 2], grads, weights)
    before = [array.asnumpy() for array in weights]
    exec(code, {**globals(), "o": optimizer, "value": value})  # noqa: S102 - the table's
    for _ in range(2):
        with pytest.raises(ValueError, match=r"is .*; allowed is a .*number"):
            updater([0, 1, 2], grads, weights)
    assert_same_bits([array.asnumpy() for array in weights], before)
    assert optimizer.num_update == 2 and optimizer._index_update_count == dict.fromkeys(range(3), 2)


@BOTH
def test_finite_factors_may_have_an_infinite_product(fused):
    """It is refused; a sum of rates that overflows, while each is finite, is not."""
    optimizer, weight = AdaDelta(use_fused_step=fused, learning_rate=1e200), mx.nd.ones(3)
    optimizer.set_lr_mult({0: 1e200})
    with pytest.raises(ValueError, match="learning rate of parameter 0 is inf"):
        optimizer.update([0], [weight], [weight.copy()], [optimizer.create_state(0, weight)])
    assert (weight.asnumpy() == 1).all()
    optimizer = AdaDelta(use_fused_step=fused, learning_rate=1e308)
    weights = [mx.nd.ones(3, dtype="float64") for _ in range(3)]
    grads = [weight.copy() for weight in weights]
    states = [optimizer.create_state(k, each) for k, each in enumerate(weights)]
    optimizer.update([0, 1, 2], weights, grads, states)
    assert np.isfinite(weights[2].asnumpy()).all() and optimizer.num_update == 1


@BOTH
def test_a_scheduler_that_raises_counts_nothing(fused):
    """Its own error reaches the caller."""

    class Broken(mx.lr_scheduler.LRScheduler):
        def __call__(self, num_update):
            raise ZeroDivisionError(num_update)

    optimizer = AdaDelta(learning_rate=None, lr_scheduler=Broken(), use_fused_step=fused)
    weight = mx.nd.ones(3)
    state = optimizer.create_state(0, weight)
    with pytest.raises(ZeroDivisionError):
        optimizer.update([0], [weight], [weight.copy()], [state])
    assert optimizer.num_update == 0 and (weight.asnumpy() == 1).all()


# --- extension points -----------------------------------------------------------------------------


def layerwise(self, index):
    """Return a rate by the parameter, as layer-wise schemes do."""
    return self.lr / (1 + index)


def spread(self, indices):
    """Return rates by the parameter."""
    return [self.lr / (1 + index) for index in indices]


def every_other(self, index):
    """Count by two."""
    super(self.owner, self)._update_count(index)
    super(self.owner, self)._update_count(index)


OVERRIDES = {
    "_get_lr": layerwise,
    "_get_lrs": spread,
    "_get_wd": layerwise,
    "_get_wds": spread,
    "_update_count": every_other,
}


@pytest.mark.parametrize("name", OVERRIDES)
@pytest.mark.parametrize("aggregate_num", [1, np.inf])
def test_rates_and_counts_are_overridden_as_in_the_stock(name, aggregate_num):
    """Any method that the stock's `step` calls, in a subclass or in one of its subclasses."""
    found = []
    for base, ours in [(Stock, {}), *((AdaDelta, each) for each in OURS.values())]:
        kind = type("Sub", (base,), {name: OVERRIDES[name]})
        kind.owner = kind
        optimizer = type("SubSub", (kind,), {})(aggregate_num=aggregate_num, wd=0.1, **ours)
        found.append((train(optimizer), optimizer.num_update))
    for arrays, count in found[1:]:
        assert_same_bits(arrays, found[0][0])
        assert count == found[0][1]


@pytest.mark.parametrize("how", ["instance", "class", "mixin behind"])
@pytest.mark.parametrize("multi_precision", [False, True])
@pytest.mark.parametrize("name", ["update", "step", "fused_step"])
@BOTH
def test_methods_replaced_in_other_ways(fused, how, multi_precision, name):
    """On one object, on the class itself (as tests do), or in a base class of the subclass."""
    calls = []

    def replaced(_self, indices, *_others):
        calls.append(len(indices))

    dtype = "float16" if multi_precision else "float32"
    settings = {"use_fused_step": fused, "multi_precision": multi_precision}
    called = name in ("update", "fused_step" if fused else "step")
    if how == "class":
        with mock.patch.object(AdaDelta, name, replaced):
            train(AdaDelta(**settings), dtype)
    elif how == "instance":
        optimizer = AdaDelta(**settings)
        setattr(optimizer, name, types.MethodType(replaced, optimizer))
        train(optimizer, dtype)
    else:
        inner = type("Inner", (AdaDelta,), {name: replaced})
        train(type("Outer", (inner,), {})(**settings), dtype)
    assert bool(calls) == called
    assert sum(calls) == 2 * len(SHAPES) * called


def test_lookahead():
    """A subclass with more state of its own, which it passes on in part."""
    found = []
    for base, ours in [(Stock, {}), *((AdaDelta, each) for each in OURS.values())]:

        class Lookahead(base):
            def create_state(self, index, weight):
                return super().create_state(index, weight), weight.copy()

            def update(self, indices, weights, grads, states):
                super().update(indices, weights, grads, [state for state, _ in states])
                for weight, (_, slow) in zip(weights, states, strict=True):
                    slow[:] = slow + 0.5 * (weight - slow)
                    weight[:] = slow

        found.append(train(Lookahead(**ours, wd=0.1), steps=3))
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


@BOTH
def test_which_step_is_called(fused):
    """One of `step` and `fused_step`, as docs/api.md says; with masters, neither of the base's."""
    called = []

    class Watched(AdaDelta):
        def step(self, *arrays):
            called.append("step")
            super().step(*arrays)

        def fused_step(self, *arrays):
            called.append("fused_step")
            super().fused_step(*arrays)

    optimizer = Watched(use_fused_step=fused)
    weight = mx.np.ones(3)
    states = [optimizer.create_state_multi_precision(0, weight)]
    optimizer.update_multi_precision([0], [weight], [mx.np.ones(3)], states)
    optimizer.update([0], [weight], [mx.np.ones(3)], states)
    assert called == ["fused_step" if fused else "step"] * 2


@BOTH
def test_subclasses_with_multi_precision(fused):
    """The override gets masters and float32 gradients, as in the stock; the bits are the same."""
    found = {}
    for base, ours in ((Stock, {}), (AdaDelta, {"use_fused_step": fused})):

        class Centred(base):
            def update(self, indices, weights, grads, states):
                assert {each.dtype for each in (*weights, *grads)} == {np.float32}
                grads = [grad - grad.mean() for grad in grads]
                super().update(indices, weights, grads, states)

        found[base] = train(Centred(multi_precision=True, **ours), "float16", steps=3)
    assert_same_bits(found[AdaDelta], found[Stock])


@pytest.mark.parametrize("between", [True, False])
def test_keywords_of_mixins(between):
    """They reach the class that takes them, as in the stock; others are refused still."""
    if between:

        class Mixin(mx.optimizer.Optimizer):
            def __init__(self, tag, **kwargs):
                super().__init__(**kwargs)
                self.tag = tag
    else:

        class Mixin:
            def __init__(self, tag):
                self.tag = tag

    class Tagged(AdaDelta, Mixin):
        pass

    assert Tagged(tag="x", wd=0.1).tag == "x"
    with pytest.raises(TypeError, match=r"'tags'.*tag"):
        Tagged(tags="x")


# --- what a step refuses --------------------------------------------------------------------------


def ones(*shape, **kwargs):
    """Make an array of ones."""
    return mx.nd.ones(shape, **kwargs)


def zeros(count, *shape, **kwargs):
    """Make the arrays of a state."""
    return tuple(mx.nd.zeros(shape, **kwargs) for _ in range(count))


WRONG = {
    # which list, what is put into its middle, the error, what it says
    "as many elements": ("grads", lambda: ones(3, 2), ValueError, r"\(2, 3\).*\(3, 2\)"),
    "broadcast row": ("grads", lambda: ones(1, 3), ValueError, r"\(2, 3\).*\(1, 3\)"),
    "scalar gradient": ("grads", lambda: ones(1), ValueError, r"\(2, 3\).*\(1,\)"),
    "weight of a row": ("weights", lambda: ones(3), ValueError, r"\(3,\).*\(2, 3\)"),
    "half gradient": ("grads", lambda: ones(2, 3, dtype="float16"), TypeError, "float32, float16"),
    "int gradient": ("grads", lambda: ones(2, 3, dtype="int32"), TypeError, "float32, int32"),
    "wide weight": ("weights", lambda: ones(2, 3, dtype="float64"), TypeError, "float64, float32"),
    "sparse weight": (
        "weights",
        lambda: ones(2, 3).tostype("csr"),
        TypeError,
        r"is sparse \(csr\)",
    ),
    "csr gradient": ("grads", lambda: ones(2, 3).tostype("csr"), TypeError, r"is sparse \(csr\)"),
    "NumPy gradient": ("grads", lambda: np.ones((2, 3), "f"), TypeError, "is a ndarray"),
    "no gradient": ("grads", lambda: None, TypeError, "is a NoneType"),
    "a number": ("weights", lambda: 1.0, TypeError, "is a float"),
    "no state": ("states", lambda: None, TypeError, "is a NoneType.*create_state"),
    "empty state": ("states", tuple, TypeError, "tuple of nothing.*create_state"),
    "half a state": ("states", lambda: zeros(1, 2, 3), TypeError, "tuple of NDArray;"),
    "three states": ("states", lambda: zeros(3, 2, 3), TypeError, "NDArray, NDArray, NDArray"),
    "nested state": ("states", lambda: (ones(2, 3), zeros(2, 2, 3)), TypeError, "NDArray, tuple"),
    "NumPy state": ("states", lambda: (np.ones(3), np.ones(3)), TypeError, "ndarray, ndarray"),
    "state of a row": ("states", lambda: zeros(2, 3), ValueError, r"\(2, 3\).*\(3,\)"),
    "wide state": ("states", lambda: zeros(2, 2, 3, dtype="float64"), TypeError, "float64"),
}


@pytest.mark.parametrize(("which", "make", "kind", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("method", ["update", "update_multi_precision"])
@BOTH
def test_wrong_tensors_are_named_and_nothing_changes(fused, method, which, make, kind, message):
    """Whatever is wrong with one tensor of a call, in its shape, dtype, storage or type."""
    optimizer = AdaDelta(use_fused_step=fused, multi_precision=method != "update")
    lists = {name: [ones(2, 3) for _ in range(3)] for name in ("weights", "grads")}
    lists["states"] = [optimizer.create_state(k, each) for k, each in enumerate(lists["weights"])]
    getattr(optimizer, method)([7, 8, 9], *lists.values())  # so that the right ones are known
    before = [array.asnumpy() for array in flat([*lists["weights"], *lists["states"]])]
    lists[which][1], right = make(), lists[which][1]
    for _ in range(2):
        with pytest.raises(kind, match=f"(?s)parameter 8.*{message}|{message}.*parameter 8"):
            getattr(optimizer, method)([7, 8, 9], *lists.values())
    lists[which][1] = right
    after = [array.asnumpy() for array in flat([*lists["weights"], *lists["states"]])]
    assert_same_bits(after, before)
    assert optimizer.num_update == 1


@BOTH
def test_masters_that_are_missing(fused):
    """`multi_precision` that is switched on after the states were made."""
    optimizer, weight = AdaDelta(use_fused_step=fused), ones(2, dtype="float16")
    state = optimizer.create_state(0, weight)
    optimizer.multi_precision = True
    with pytest.raises(TypeError, match=r"parameter 0.*\(master, \(acc_grad, acc_delta\)\)"):
        optimizer.update_multi_precision([0], [weight], [weight.copy()], [state])


@BOTH
def test_counts_of_the_lists(fused):
    """Lists that differ in length, or are none, as in a call of MXNet 1's form."""
    optimizer, weight = AdaDelta(use_fused_step=fused), ones(2)
    state = optimizer.create_state(0, weight)
    for indices, weights in (([0], [weight] * 2), ([0, 1], [weight]), ([], [weight])):
        with pytest.raises(ValueError, match=r"\d indices, \d weights.*one of each"):
            optimizer.update(indices, weights, weights, [state])
    with pytest.raises(TypeError, match="indices is int; expected a list"):
        optimizer.update(0, weight, weight, state)
    optimizer.update([], [], [], [])
    assert (weight.asnumpy() == 1).all() and optimizer.num_update == 0


@BOTH
def test_arrays_on_several_cpus(fused):
    """MXNet's CPU contexts share their memory: the stock takes them, and so do both steps."""
    optimizer = AdaDelta(use_fused_step=fused)
    weight, grad = ones(4, ctx=mx.cpu(1)), ones(4)
    wanted, state = ones(4), optimizer.create_state(0, weight)
    optimizer.update([0], [weight], [grad], [state])
    Stock().update([0], [wanted], [ones(4)], [Stock().create_state(0, wanted)])
    assert_same_bits([weight.asnumpy()], [wanted.asnumpy()])


@BOTH
def test_a_net_that_was_cast_raises_under_trainer(fused):
    """`net.cast` midway leaves states of the former dtype."""
    mx.npx.set_np()
    net = mx.gluon.nn.Dense(2, in_units=3)
    net.initialize()
    trainer = mx.gluon.Trainer(net.collect_params(), AdaDelta(use_fused_step=fused))
    for dtype in ("float32", "float64"):
        net.cast(dtype)
        with mx.autograd.record():
            loss = net(mx.np.ones((2, 3), dtype=dtype)).sum()
        loss.backward()
        if dtype == "float32":
            trainer.step(2)
            continue
        before = net.weight.data().asnumpy()
        with pytest.raises(TypeError, match="float64, float64, float32, float32"):
            trainer.step(2)
        assert_same_bits([net.weight.data().asnumpy()], [before])


# --- overlapping memory ---------------------------------------------------------------------------

OVERLAPS = {
    # slices of one array of 40 for weight, gradient and states of parameters 4 and 7
    "weights in part": ([0, 9], None, None, "weight of parameter 4 and weight of parameter 7"),
    "the same weight": ([0, 0], None, None, "weight of parameter 4 and weight of parameter 7"),
    "gradient in weight": ([0, 20], [15, 30], None, r"gradient of parameter 4.*weight of p.* 7|w"),
    "state in weight": ([0, 20], None, [(5, 30)], "weight of parameter 4 and acc_grad of p.* 4"),
    "one state twice": ([0, 10], None, [(20, 20)], "acc_delta of p.* 4 and acc_grad of p.* 4"),
    "disjoint": ([0, 10], None, [(20, 30)], None),
    "gradients shared": ([0, 10], [20, 20], None, None),
    "gradients in part": ([0, 10], [20, 25], None, None),
}


@pytest.mark.parametrize(("weights", "grads", "states", "message"), OVERLAPS.values(), ids=OVERLAPS)
def test_overlaps_in_the_fused_step(weights, grads, states, message):
    """Views of one array: what is written and overlaps is refused, by name, at each step."""
    memory = mx.nd.array(np.linspace(0.5, 1, 40))
    part = lambda start: memory[start : start + 10]  # noqa: E731
    optimizer = AdaDelta(use_fused_step=True)
    lists = [list(map(part, weights)), [ones(10) for _ in weights], []]
    lists[2] = [optimizer.create_state(k, each) for k, each in enumerate(lists[0])]
    if grads:
        lists[1] = list(map(part, grads))
    if states:
        lists[2][0] = tuple(map(part, states[0]))
    start = memory.asnumpy()
    for _ in range(2):
        if message is None:
            optimizer.update([4, 7], *lists)
            continue
        with pytest.raises(ValueError, match=message):
            optimizer.update([4, 7], *lists)
        assert_same_bits([memory.asnumpy()], [start])
    assert optimizer.num_update == (0 if message else 2)


def test_reshaped_views_overlap():
    """Another shape of the same memory is the same memory."""
    weight = ones(2, 6)
    optimizer = AdaDelta(use_fused_step=True)
    weights = [weight, weight.reshape((3, 4))]
    states = [optimizer.create_state(k, each) for k, each in enumerate(weights)]
    grads = [ones(*each.shape) for each in weights]
    with pytest.raises(ValueError, match="weight of parameter 0 and weight of parameter 1"):
        optimizer.update([0, 1], weights, grads, states)


# --- frozen layers --------------------------------------------------------------------------------


def trained_with_frozen(optimizer, freeze):
    """Train a Dense of which a part is frozen from the second step on; return its parameters."""
    net = mx.gluon.nn.Dense(2, in_units=3)
    net.initialize(mx.init.One())
    trainer = mx.gluon.Trainer(net.collect_params(), optimizer)
    grads = []
    for step in range(5):
        if step == 1:
            getattr(net, freeze).grad_req = "null"
        with mx.autograd.record():
            loss = net(mx.np.ones((2, 3)) * (step + 1)).sum()
        loss.backward()
        trainer.step(2)
        grads.append(net.bias.grad().asnumpy() if freeze == "weight" else None)
    return [net.weight.data().asnumpy(), net.bias.data().asnumpy()], grads


@BOTH
def test_a_stale_gradient_is_left_as_it_is(fused):
    """With a frozen weight, MXNet does not write the bias' gradient anew; the stock shrinks it."""
    mx.npx.set_np()
    (_, stock), shrunk = trained_with_frozen(Stock(), "weight")
    (_, bias), grads = trained_with_frozen(AdaDelta(use_fused_step=fused), "weight")
    assert all((grad == 2).all() for grad in grads)
    assert [grad[0] for grad in shrunk] == [1, 0.5, 0.25, 0.125, 0.0625]
    assert 0.005 < abs(bias - stock).max() < 0.02
    weight, state = mx.np.zeros(2), AdaDelta().create_state(0, mx.np.zeros(2))
    optimizer = AdaDelta(rescale_grad=0.5)
    for _ in range(5):
        optimizer.update([0], [weight], [mx.np.full(2, 2.0)], [state])
    assert_same_bits([bias], [weight.asnumpy()])


@BOTH
def test_a_frozen_bias_is_as_in_the_stock(fused):
    """Where MXNet writes the gradients anew, the bits are those of the stock."""
    mx.npx.set_np()
    wanted, _ = trained_with_frozen(Stock(), "bias")
    got, _ = trained_with_frozen(AdaDelta(use_fused_step=fused), "bias")
    assert_same_bits(got, wanted)


# --- the cache of the checks ----------------------------------------------------------------------


@BOTH
def test_the_same_objects_are_checked_once(fused, monkeypatch):
    """New objects are checked again, and so is the step of the other kind."""
    checked = []
    inner = tensors._parameter
    monkeypatch.setattr(
        tensors, "_parameter", lambda index, *each: (checked.append(index), inner(index, *each))[1]
    )
    optimizer = AdaDelta(use_fused_step=fused)
    weights, grads = ([ones(3) for _ in range(2)] for _ in range(2))
    states = [optimizer.create_state(k, each) for k, each in enumerate(weights)]
    for _ in range(3):
        optimizer.update([0, 1], weights, grads, states)
    assert checked == [0, 1]
    optimizer.use_fused_step = not fused
    optimizer.update([0, 1], weights, grads, states)
    grads[1] = ones(3)
    optimizer.update([0, 1], weights, grads, states)
    assert checked == [0, 1] * 3
