"""PyTorch's own tests of its optimizers, put to the fused class and to the stock.

The inputs are those of `torch.testing._internal.common_optimizers`. The procedures are those of
PyTorch's test/test_optim.py (and test/optim/), under the same names, written anew. Each runs with
both classes: the same outcome is wanted. What needs a GPU is marked `gpu`.
"""

import copy
import inspect
import itertools
import math
import re
from functools import partial
from unittest.mock import patch

import pytest
import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.testing import assert_close

from adadelta_cli.torch import Adadelta

# It imports expecttest, which PyTorch does not install.
common_optimizers = pytest.importorskip("torch.testing._internal.common_optimizers")
optim_db, OptimizerErrorEnum = common_optimizers.optim_db, common_optimizers.OptimizerErrorEnum

pytestmark = pytest.mark.usefixtures("one_thread")
Stock = torch.optim.Adadelta
INFO = next(info for info in optim_db if info.optim_cls is Stock)
DTYPES = [torch.float32, torch.float64]
IMPLEMENTATIONS = [{}, {"foreach": False}, {"foreach": True}]
DIFFERENTIABLE = [{"differentiable": True, "foreach": False}]
equal = partial(assert_close, rtol=0, atol=0)


def inputs(flags=({},), device="cpu"):
    """PyTorch's inputs for Adadelta, each with each of the flags, as parameters of a test."""
    found = []
    for each, more in itertools.product(INFO.optim_inputs_func(device=device), flags):
        name = " ".join([each.desc, *(f"{key}={value}" for key, value in more.items())])
        found.append(pytest.param({**each.kwargs, **more}, id=name.replace(" ", "-")))
    return found


usual = pytest.mark.parametrize("settings", inputs(IMPLEMENTATIONS))
every = pytest.mark.parametrize("settings", inputs(IMPLEMENTATIONS + DIFFERENTIABLE))
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
names = pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])


class Regression:
    """A weight, a bias and an input, as PyTorch's tests fit them; drawn from the seed."""

    def __init__(self, dtype=torch.float32, *, contiguous=True):
        shapes = [(10, 5), (10,)] if contiguous else [(10, 5, 2), (10, 2)]
        drawn = [torch.randn(shape, dtype=dtype) for shape in shapes]
        self.weight, self.bias = (Parameter(each if contiguous else each[..., 0]) for each in drawn)
        self.input = torch.randn(5, dtype=dtype)

    @property
    def parameters(self):
        return [self.weight, self.bias]

    def twin(self):
        """Copy it, with the order of its elements in memory."""
        return copy.deepcopy(self)

    def loss(self, optimizer):
        """Compute the loss and its gradients."""
        optimizer.zero_grad()
        loss = (self.weight.mv(self.input) + self.bias).pow(2).sum()
        loss.backward()
        return loss

    def train(self, optimizer, steps, schedulers=()):
        """Take some steps; return the first loss and the last."""
        first = self.loss(optimizer).item()
        for _ in range(steps):
            loss = self.loss(optimizer)
            optimizer.step()
            for scheduler in schedulers:
                scheduler.step(*[loss.item()] if isinstance(scheduler, ReduceLROnPlateau) else [])
        return first, self.loss(optimizer).item()


def assert_right_direction(first, last, settings):
    """The loss fell, or rose where it was to be maximized."""
    assert last > first if settings.get("maximize") else last < first


def named_if(named, tensors):
    """Give parameters names, or not."""
    return [(f"name{k}", each) for k, each in enumerate(tensors)] if named else tensors


# --- construction ---------------------------------------------------------------------------------


def error_inputs():
    """PyTorch's error inputs for Adadelta, as parameters of a test."""
    found = INFO.optim_error_inputs_func(device="cpu", dtype=torch.float32)
    names = [each.optimizer_error_input.desc.replace(" ", "-") for each in found]
    return [pytest.param(number, id=name) for number, name in enumerate(names)]


@dtypes
@pytest.mark.parametrize("number", error_inputs())
def test_errors(kind, number, dtype):
    """Each error input gives the error or warning that PyTorch wants, and the stock's message."""
    outcomes = []
    for each in (kind, Stock):
        error = INFO.optim_error_inputs_func(device="cpu", dtype=dtype)[number]
        assert error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
        given = error.optimizer_error_input
        with pytest.raises(error.error_type, match=error.error_regex) as raised:
            each(given.params, **given.kwargs)
        outcomes.append((type(raised.value), str(raised.value)))
    assert outcomes[0] == outcomes[1]


WRONG = [
    {"lr": -1.0},
    {"rho": -0.1},
    {"rho": math.nan},
    {"eps": -1e-6},
    {"weight_decay": -0.1},
    {"foreach": True, "differentiable": True},
    {"fused": True},
    {"lr": "fast"},
    {"momentum": 0.9},
]


@pytest.mark.parametrize("settings", WRONG, ids=str)
def test_more_errors_are_the_stocks(settings):
    """Other wrong settings end as in the stock: the same type and message, at whatever moment."""
    outcomes = []
    for each in (Adadelta, Stock):
        case = Regression()
        try:
            optimizer = each(case.parameters, **settings)
            case.train(optimizer, 1)
            outcomes.append(None)
        except (ValueError, TypeError, RuntimeError, AssertionError) as error:
            outcomes.append((type(error), str(error)))
        torch.manual_seed(20)
    assert outcomes[0] == outcomes[1]


WRONG_PARAMETERS = [[], [3.0], [[torch.zeros(2)]], [{"params": {torch.zeros(2)}}], "weights"]


@pytest.mark.parametrize("parameters", WRONG_PARAMETERS, ids=repr)
def test_wrong_parameters_end_as_in_the_stock(parameters):
    """No parameters, a number, a list, a set in a group."""
    outcomes = []
    for each in (Adadelta, Stock):
        with pytest.raises((ValueError, TypeError)) as raised:
            each(parameters)
        outcomes.append((type(raised.value), str(raised.value)))
    assert outcomes[0] == outcomes[1]


def test_a_parameter_that_is_no_leaf_is_refused(kind):
    """It has no gradient of its own."""
    weight = Parameter(torch.ones(3)) * 2
    with pytest.raises(ValueError, match="can't optimize a non-leaf Tensor"):
        kind([weight])


def test_inputs_do_not_specify_flags():
    """The inputs leave the flags to these tests, so that none is overwritten here."""
    for each in INFO.optim_inputs_func(device="cuda"):
        assert not {"foreach", "fused", "differentiable"} & set(each.kwargs)


@every
def test_optimizer_can_be_printed(kind, settings):
    """It is printed as the stock is."""
    parameters = [Parameter(torch.randn(2, 3)) for _ in range(2)]
    assert repr(kind(parameters, **settings)) == repr(Stock(parameters, **settings))


# --- training -------------------------------------------------------------------------------------

SCHEDULERS = [None, *range(len(INFO.scheduler_inputs))]


def schedulers_of(number, optimizer):
    """Make the schedulers of PyTorch's with this number; none for None."""
    return [] if number is None else [make(optimizer) for make in INFO.scheduler_inputs[number]]


@usual
@dtypes
@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "holes"])
@pytest.mark.parametrize("schedule", SCHEDULERS, ids=lambda each: f"schedule-{each}")
def test_forloop_goes_right_direction(kind, settings, dtype, contiguous, schedule):
    """Twenty steps move the loss in the right direction."""
    case = Regression(dtype, contiguous=contiguous)
    optimizer = kind(case.parameters, **settings)
    losses = case.train(optimizer, 20, schedulers_of(schedule, optimizer))
    assert_right_direction(*losses, settings)


@pytest.mark.parametrize("schedule", SCHEDULERS, ids=lambda each: f"schedule-{each}")
def test_param_group_with_lrscheduler_goes_right_direction(kind, schedule):
    """A schedule beside a group with a rate of its own."""
    case = Regression()
    optimizer = kind([{"params": [case.weight]}, {"params": [case.bias], "lr": 0.01}])
    losses = case.train(optimizer, 20, schedulers_of(schedule, optimizer))
    assert_right_direction(*losses, {})


@usual
@dtypes
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_tensor_lr(kind, settings, dtype, shape):
    """A rate in a tensor gives the bits of the same rate as a number, and stays as it was."""
    case = Regression(dtype)
    twin, rate = case.twin(), torch.full(shape, 1e-3, dtype=torch.float64)
    optimizer = kind(case.parameters, **settings | {"lr": 1e-3})
    other = kind(twin.parameters, **settings | {"lr": rate})
    for _ in range(5):
        case.train(optimizer, 1)
        twin.train(other, 1)
        equal(twin.parameters, case.parameters)
    equal(rate, torch.full(shape, 1e-3, dtype=torch.float64))


@usual
def test_param_groups_weight_decay(kind, settings):
    """A group without decay beside one with it."""
    case = Regression()
    groups = [
        {"params": [case.weight], **settings},
        {"params": [case.bias], **settings, "weight_decay": 0.0},
    ]
    losses = case.train(kind(groups), 20)
    assert_right_direction(*losses, settings)


@usual
def test_param_groups_lr(kind, settings):
    """The rate of the optimizer, which is almost 0, applies to the group without a rate only."""
    case, other = Regression(), Parameter(torch.randn(2))
    before = other.detach().clone()
    groups = [{"params": case.parameters, "lr": 1e-3, **settings}, {"params": [other]}]
    optimizer = kind(groups, lr=1e-28)
    first = case.loss(optimizer).item()
    for _ in range(20):
        case.loss(optimizer)
        other.grad = torch.rand_like(other)
        optimizer.step()
    assert_right_direction(first, case.loss(optimizer).item(), settings)
    equal(other.detach(), before)


@every
@dtypes
def test_step_is_noop_when_params_have_no_grad(kind, settings, dtype):
    """The closure's result comes back; nothing moves, and nothing is counted."""
    tensors = [torch.randn(2, 3, dtype=dtype) for _ in range(2)]
    before = [each.clone() for each in tensors]
    optimizer = kind(tensors, **settings)
    assert optimizer.step(lambda: torch.tensor([1.0])) == 1
    equal(tensors, before)
    assert not optimizer.state


@every
@dtypes
def test_step_is_noop_for_zero_grads(kind, settings, dtype):
    """Gradients of zero move nothing but by decay."""
    weight = torch.randn((5, 1), dtype=dtype, requires_grad=True)
    before = weight.detach().clone()
    chosen = weight.clone() if settings.get("differentiable") else weight
    optimizer = kind([weight], **settings)
    optimizer.param_groups[0]["params"] = [chosen]
    if chosen is not weight:
        chosen.retain_grad()
    chosen.grad = torch.zeros_like(before)
    assert optimizer.step(lambda: torch.tensor([1.0])) == 1
    assert torch.equal(chosen.detach(), before) == (not settings.get("weight_decay"))


@every
def test_non_empty_state(kind, settings):
    """After a step, each parameter has the states of the stock, under its names."""
    model = torch.nn.Linear(5, 5)
    optimizer = kind(model.parameters(), **settings | {"differentiable": False})
    model(torch.rand(2, 5)).sum().backward()
    optimizer.step()
    assert len(optimizer.state) == 2
    for state in optimizer.state.values():
        assert sorted(state) == ["acc_delta", "square_avg", "step"]


def model_of(dtype):
    """Make PyTorch's model, the same each time, and a parameter without dimensions."""
    torch.manual_seed(1)
    layers = [torch.nn.Linear(2, 3), torch.nn.Sigmoid(), torch.nn.Linear(3, 1), torch.nn.Sigmoid()]
    return torch.nn.Sequential(*layers).to(dtype), torch.tensor(
        0.3, dtype=dtype, requires_grad=True
    )


def assert_equal_trainings(dtype, settings, **tolerances):
    """Train PyTorch's model with both classes; a layer is frozen, and a step has no gradients."""
    models = [model_of(dtype), model_of(dtype)]
    tensors = [[*model.parameters(), extra] for model, extra in models]
    optimizers = Adadelta(tensors[0], **settings), Stock(tensors[1], **settings)
    given = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], dtype=dtype).reshape(3, 2)
    for k in range(7):
        for (model, extra), optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model[2].requires_grad_(k not in (3, 4))
            if k != 2:
                (model(given).sum() * extra).backward()
            optimizer.step()
        assert_close(*tensors, **tolerances)
        for a, b in zip(*tensors, strict=True):
            assert_close(
                *(o.state[t] for o, t in zip(optimizers, (a, b), strict=True)), **tolerances
            )
    return optimizers


@dtypes
@usual
def test_foreach_matches_forloop(dtype, settings):
    """States and weights of the fused step are the stock's, with a layer frozen for two steps.

    The tolerances are PyTorch's between its own implementations.
    """
    assert_equal_trainings(dtype, settings)


@pytest.mark.parametrize("default", [torch.float64, torch.float16], ids=str)
@usual
def test_set_default_dtype_works_with_foreach(default, settings):
    """Steps are counted in float32, or in float64 where this is the default dtype."""
    torch.set_default_dtype(default)
    try:
        reduced = {} if default is torch.float64 else {"atol": 1e-5, "rtol": 1e-4}
        for optimizer in assert_equal_trainings(torch.float64, settings, **reduced):
            wanted = torch.float64 if default is torch.float64 else torch.float32
            assert {state["step"].dtype for state in optimizer.state.values()} == {wanted}
    finally:
        torch.set_default_dtype(torch.float32)


MIXED = [*DTYPES, torch.float16, torch.bfloat16, torch.complex64, torch.int64]


@usual
@pytest.mark.parametrize("steps", [1, 7])
def test_mixed_device_dtype(settings, steps):
    """Parameters of many dtypes in one group; a tensor without a gradient among them."""
    drawn = [(10 * torch.rand(2, 3)).to(dtype) for dtype in MIXED]
    found = []
    for each in (Adadelta, Stock):
        tensors = [t.clone() for t in drawn]
        optimizer = each(tensors, **settings)
        for t in tensors:
            t.grad = t / 10 if t.dtype.is_floating_point or t.is_complex() else None
        for _ in range(steps):
            optimizer.step()
        found.append((tensors, [dict(optimizer.state[t]) for t in tensors]))
    assert_close(*(tensors for tensors, _ in found))
    assert_close(*(states for _, states in found))


@every
def test_parameters_on_meta_step_without_numbers(kind, settings):
    """There is nothing to compute, and no memory: only steps are counted."""
    weight = torch.empty(2, 3, device="meta", requires_grad=True)
    optimizer = kind([weight], **settings | {"differentiable": False})
    for _ in range(2):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    assert optimizer.state[weight]["step"] == 2
    assert optimizer.state[weight]["square_avg"].is_meta


def test_defaults_changed_to_foreach(kind):
    """What the kernel does not take steps in the stock's foreach where it is asked for."""
    weight = torch.ones(4, dtype=torch.complex64, requires_grad=True)
    weight.grad = torch.ones(4, dtype=torch.complex64)
    module = inspect.getmodule(Stock)
    for foreach, name in ((None, "_single_tensor_adadelta"), (True, "_multi_tensor_adadelta")):
        with patch.object(module, name) as called:
            kind([weight], foreach=foreach).step()
        assert called.called


# --- sparse and complex ---------------------------------------------------------------------------


@usual
def test_sparse_gradients_are_refused(kind, settings):
    """The message is the stock's."""
    weight = Parameter(torch.randn(5, 2))
    grad = torch.sparse_coo_tensor([[1], [0]], [1.0], (5, 2), check_invariants=True)
    optimizer = kind([weight], **settings)
    weight.grad = grad
    with pytest.raises(RuntimeError, match=r"^Adadelta does not support sparse gradients$"):
        optimizer.step()


def as_real(tensor):
    """View a complex tensor as real numbers."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


@usual
def test_complex(settings):
    """Complex parameters step as their real views; a real one stands beside them."""
    shapes = [((10, 5), torch.complex64), ((10,), torch.complex64), ((10, 5), torch.float32)]
    tensors = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape, dtype in shapes]
    reals = [as_real(each).detach().clone().requires_grad_() for each in tensors]
    for kinds in itertools.product((Adadelta, Stock), repeat=2):
        optimizer, other = (
            each(params, **settings) for each, params in zip(kinds, (tensors, reals), strict=True)
        )
        for _ in range(3):
            for a, b in zip(tensors, reals, strict=True):
                a.grad = torch.randn_like(a)
                b.grad = as_real(a.grad).clone()
            optimizer.step()
            other.step()
        assert_close(
            [as_real(each).detach() for each in tensors], [each.detach() for each in reals]
        )


def rosenbrock(tensor):
    """Rosenbrock's function of two numbers."""
    x, y = tensor
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


@usual
def test_complex_2d(kind, settings):
    """A complex parameter steps as its real and its imaginary part do."""
    weight = torch.randn(2, dtype=torch.complex64, requires_grad=True)
    parts = [each.detach().clone().requires_grad_() for each in (weight.real, weight.imag)]
    optimizer, other = kind([weight], **settings), kind(parts, **settings)
    for _ in range(3):
        optimizer.zero_grad()
        other.zero_grad()
        rosenbrock(weight).abs().backward()
        rosenbrock(torch.complex(*parts)).abs().backward()
        assert_close([weight.grad.real, weight.grad.imag], [each.grad for each in parts])
        optimizer.step()
        other.step()
        assert_close([weight.real, weight.imag], parts)


# --- state_dict -----------------------------------------------------------------------------------


def groups_of(optimizer):
    """Return the groups of a `state_dict` without the parameters' names, which may differ."""
    groups = optimizer.state_dict()["param_groups"]
    return [{k: v for k, v in group.items() if k != "param_names"} for group in groups]


@usual
@names
@pytest.mark.parametrize("other_named", [False, True], ids=["to-unnamed", "to-named"])
def test_state_dict_deterministic(kind, settings, named, other_named):
    """A copy that was loaded steps alike, and has an equal `state_dict`."""
    case = Regression()
    optimizer = kind(named_if(named, case.parameters), **settings)
    case.train(optimizer, 10)
    twin = case.twin()
    other = kind(named_if(other_named, twin.parameters), **settings)
    given = copy.deepcopy(optimizer.state_dict())
    other.load_state_dict(given)
    equal(given["state"], optimizer.state_dict()["state"])
    for _ in range(10):
        case.train(optimizer, 1)
        twin.train(other, 1)
        equal(twin.parameters, case.parameters)
    equal(other.state_dict()["state"], optimizer.state_dict()["state"])
    assert groups_of(other) == groups_of(optimizer)
    other.param_groups.extend(other.param_groups)  # repeated ones are written alike
    assert groups_of(other) == groups_of(optimizer) * 2


def convolution():
    """Make PyTorch's model with a convolution and a batch norm, and its input."""
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 2, 1, stride=2), torch.nn.BatchNorm2d(2))
    given = torch.rand(1, 4, 16, 16)

    def train(optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(given).sum().backward()
            optimizer.step()

    return model, train


@usual
def test_can_load_older_state_dict(kind, settings):
    """A checkpoint from before the flags existed is loaded, and steps."""
    model, train = convolution()
    optimizer = kind(model.parameters(), **settings)
    train(optimizer, 3)
    old = copy.deepcopy(optimizer.state_dict())
    for group, flag in itertools.product(old["param_groups"], INFO.not_og_supported_flags):
        group.pop(flag, None)
    optimizer.load_state_dict(old)
    train(optimizer, 1)
    assert {state["step"].item() for state in optimizer.state.values()} == {4}


@usual
@names
@pytest.mark.parametrize("other_named", [False, True], ids=["to-unnamed", "to-named"])
def test_can_load_from_to_named_state_dict(kind, settings, named, other_named):
    """Names come along, from either side."""
    model, train = convolution()
    given = [model.named_parameters if each else model.parameters for each in (named, other_named)]
    optimizer = kind(given[0](), **settings)
    train(optimizer, 3)
    other = kind(given[1](), **settings)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(other, 1)
    group = other.state_dict()["param_groups"][0]
    wanted = ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert group.get("param_names") == (wanted if named or other_named else None)


@usual
@names
@pytest.mark.parametrize("weights_only", [True, False])
def test_save_load_equality_with_weights_only(kind, settings, named, weights_only, tmp_path):
    """What is saved comes back equal; nothing but tensors and numbers is in it."""
    case = Regression()
    optimizer = kind(named_if(named, case.parameters), **settings)
    case.train(optimizer, 3)
    saved = optimizer.state_dict()
    torch.save(saved, tmp_path / "saved.pt")
    loaded = torch.load(tmp_path / "saved.pt", weights_only=weights_only)
    equal(loaded["state"], saved["state"])
    assert loaded["param_groups"] == saved["param_groups"]


@usual
def test_load_nontensor_step(kind, settings):
    """A count that is a number, as in old checkpoints, is made a tensor."""
    tensors = [Parameter(torch.randn(2, 3)) for _ in range(2)]
    for each in tensors:
        each.grad = torch.rand_like(each)
    optimizer = kind(tensors, **settings)
    for _ in range(3):
        optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = state["step"].item()
    optimizer.load_state_dict(saved)
    optimizer.step()
    for state in optimizer.state.values():
        equal(state["step"], torch.tensor(4.0))


@usual
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_a_state_dict_is_cast_to_the_parameters(kind, settings, dtype):
    """Loaded into parameters of another dtype, states take it and counts do not; then it steps."""
    case, other = Regression(), Regression(dtype)
    optimizer, target = kind(case.parameters, **settings), kind(other.parameters, **settings)
    case.train(optimizer, 2)
    target.load_state_dict(optimizer.state_dict())
    other.train(target, 1)
    for state in target.state.values():
        assert [state[key].dtype for key in ("square_avg", "acc_delta")] == [dtype] * 2
        equal(state["step"], torch.tensor(3.0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@usual
def test_state_dict_with_cuda_params(kind, settings):
    """A checkpoint from the CPU steps on the GPU; the counts stay on the CPU."""
    case = Regression()
    optimizer = kind(case.parameters, **settings)
    case.train(optimizer, 3)
    moved = [Parameter(each.detach().cuda()) for each in case.parameters]
    other = kind(moved, **settings)
    given = copy.deepcopy(optimizer.state_dict())
    other.load_state_dict(given)
    equal(given["state"], optimizer.state_dict()["state"])
    for _ in range(5):
        for each, on_gpu in zip(case.parameters, moved, strict=True):
            on_gpu.grad = each.grad.cuda()
        optimizer.step()
        other.step()
        assert_close([each.cpu() for each in moved], case.parameters)
        assert {state["step"].device.type for state in other.state.values()} == {"cpu"}


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@usual
def test_forloop_goes_right_direction_multigpu(kind, settings):
    """Parameters of one group on two devices."""
    weight = Parameter(torch.randn((10, 5), device="cuda:0"))
    bias = Parameter(torch.randn(10, device="cuda:1"))
    given = torch.randn(5, device="cuda:0")
    optimizer, losses = kind([weight, bias], **settings), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (weight.mv(given).to("cuda:1") + bias).pow(2).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert_right_direction(losses[0], losses[-1], settings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("settings", inputs([{}], device="cuda"))
def test_inputs_on_a_gpu(kind, settings):
    """PyTorch's inputs for a GPU, those with `capturable` among them."""
    weight = Parameter(torch.full((100,), 2.0, device="cuda"))
    settings = copy.deepcopy(settings)
    if isinstance(settings.get("lr"), torch.Tensor):
        settings["lr"] = settings["lr"].cuda()
    optimizer = kind([weight], **settings)
    for _ in range(3):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert (weight > 2 if settings.get("maximize") else weight < 2).all()


@usual
def test_capturable_fails_on_a_cpu_as_the_stock(kind, settings):
    """The stock asserts that parameters are on a device with graphs."""
    case = Regression()
    optimizer = kind(case.parameters, **settings, capturable=True)
    case.loss(optimizer)
    groups = optimizer.param_groups
    with pytest.raises(AssertionError, match="If capturable=True, params and state_steps must be"):
        optimizer.step()
    assert optimizer.param_groups is groups
    groups[0]["capturable"] = False
    assert_right_direction(*case.train(optimizer, 20), settings)


# --- hooks ----------------------------------------------------------------------------------------


def add_test(optimizer):
    """Put something into the state before it is saved."""
    optimizer.state["test"] = 1


def note_test(_optimizer, saved):
    """Take it out again, and note whether it was there."""
    saved["ran_pre_hook"] = saved["state"].pop("test", 0) == 1
    return saved


@every
def test_state_dict_hooks(kind, settings):
    """Those before and after saving run: each alone, and both in their order."""
    optimizer = kind([torch.rand(2, 3, requires_grad=True)], **settings)
    handle = optimizer.register_state_dict_post_hook(note_test)
    assert not optimizer.state_dict()["ran_pre_hook"]
    handle.remove()
    optimizer.register_state_dict_pre_hook(add_test)
    assert optimizer.state_dict()["state"]["test"] == 1
    optimizer.register_state_dict_post_hook(note_test)
    saved = optimizer.state_dict()
    assert saved["ran_pre_hook"] and "test" not in saved["state"]


def set_rate(_optimizer, saved):
    """Change what is loaded in place."""
    saved["param_groups"][0]["lr"] = 0.002


def replace(_optimizer, saved):
    """Return something else to load."""
    saved = copy.deepcopy(saved)
    saved["param_groups"][0]["lr"] = 0.003
    return saved


@every
def test_load_state_dict_pre_hook_and_prepend(kind, settings):
    """Hooks before loading run in order; one that was put first is overridden by the next."""
    optimizer = kind([torch.rand(2, 3, requires_grad=True)], **settings)
    saved = optimizer.state_dict()
    optimizer.register_load_state_dict_pre_hook(set_rate)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.002
    optimizer.register_load_state_dict_pre_hook(replace, prepend=True)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.002


@every
@pytest.mark.parametrize("before", [False, True])
def test_load_state_dict_post_hook(kind, settings, before):
    """The hook after loading sees what was loaded."""
    optimizer, seen = kind([torch.rand(2, 3, requires_grad=True)], **settings), []
    if before:
        optimizer.register_load_state_dict_pre_hook(replace)
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(o.param_groups[0]["lr"]))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [0.003 if before else settings.get("lr", 1.0)]


@every
@pytest.mark.parametrize("when", ["pre", "post"])
def test_step_hooks(kind, settings, when):
    """A hook before or after each step runs, until it is removed."""
    optimizer, seen = kind([torch.ones(2)], **settings), []
    handle = getattr(optimizer, f"register_step_{when}_hook")(lambda *given: seen.append(given))
    optimizer.step()
    optimizer.step(None)
    handle.remove()
    optimizer.step()
    assert seen == [(optimizer, (optimizer,), {}), (optimizer, (optimizer, None), {})]


def test_a_hook_may_replace_the_arguments(kind):
    """What a hook before the step returns is what the step gets."""
    optimizer = kind([torch.ones(2)])
    optimizer.register_step_pre_hook(lambda o, _args, _kwargs: ((o, lambda: 7), {}))
    assert optimizer.step(lambda: 3) == 7


@every
def test_step_all_hooks(kind, settings):
    """Global hooks and an optimizer's own run in PyTorch's order, and not once they are removed."""
    seen, tensors = [], [torch.ones(2)]
    optimizers = kind(tensors, **settings), torch.optim.SGD(tensors)
    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append(0)),
        register_optimizer_step_post_hook(lambda *_: seen.append(5)),
    ]
    for each in optimizers:
        handles.append(each.register_step_pre_hook(lambda *_: seen.append(1)))
        handles.append(each.register_step_post_hook(lambda *_: seen.append(2)))
    try:
        for each in (*optimizers, optimizers[0]):
            each.step()
    finally:
        for handle in handles:
            handle.remove()
    assert seen == [0, 1, 2, 5] * 3
    optimizers[0].step()
    assert seen == [0, 1, 2, 5] * 3


@usual
def test_deepcopy_copies_all_public_attrs(kind, settings):
    """A copy has the public attributes of the original, also after steps."""
    case = Regression()
    optimizer = kind(case.parameters, **settings)
    case.train(optimizer, 3)
    for each in (optimizer, copy.deepcopy(optimizer)):
        assert {k for k in vars(each) if not k.startswith("_")} == {
            *("defaults", "state", "param_groups")
        }


# --- differentiable steps -------------------------------------------------------------------------

STEPPED = [{"lr": 0.9, "rho": 0.9, "eps": 1e-6}, {"weight_decay": 0.1}, {"maximize": True}]


@pytest.mark.parametrize("settings", STEPPED, ids=str)
def test_a_differentiable_step_has_right_derivatives(kind, settings):
    """Numerical derivatives of the new weight and states agree, as in test/optim/test_optim.py."""

    def stepped(weight, grad, square_avg, acc_delta):
        leaf = weight.clone()
        leaf.grad = grad
        optimizer = kind([weight], **settings, differentiable=True)
        optimizer.param_groups[0]["params"] = [leaf]
        state = {"square_avg": square_avg.clone(), "acc_delta": acc_delta.clone()}
        optimizer.state[leaf] = {"step": torch.tensor(0.0), **state}
        optimizer.step()
        after = optimizer.state[leaf]
        return leaf, after["square_avg"], after["acc_delta"]

    given = [torch.rand(10, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(stepped, given)


def test_each_procedure_names_its_inputs():
    """PyTorch has inputs and error inputs for Adadelta; none were lost on the way here."""
    assert len(inputs()) == len(INFO.optim_inputs_func(device="cpu")) >= 6
    assert len(error_inputs()) >= 7
    assert all(re.fullmatch(r"[\w=,.&-]+", each.id) for each in inputs(IMPLEMENTATIONS))
