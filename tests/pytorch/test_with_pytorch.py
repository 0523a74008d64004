"""The optimizer beside the rest of PyTorch: schedules, AMP, hooks, copies, compilers, processes.

Each test runs with the fused class and with the stock: the same outcome is wanted.
"""

import copy
import functools
import gc
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import lr_scheduler, swa_utils
from torch.optim import optimizer as torch_optimizer
from torch.testing import assert_close

from adadelta_cli.torch import Adadelta

pytestmark = pytest.mark.usefixtures("one_thread")
Stock = torch.optim.Adadelta
DTYPES = torch.float32, torch.float64
WAIT_S = 120  # for another process or thread; then the test fails


def model_of(seed=0):
    """Make a small model with a batch norm; the same for the same seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))


def batch(seed=0, rows=8):
    """Draw inputs and targets."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, width, generator=generator) for width in (6, 2))


def backward(model, seed=0):
    """Compute the gradients of a batch; return the loss."""
    given, wanted = batch(seed)
    loss = nn.functional.mse_loss(model(given), wanted)
    loss.backward()
    return loss


def train(model, optimizer, steps=4):
    """Train on as many batches; return the losses."""
    losses = []
    for k in range(steps):
        optimizer.zero_grad()
        losses.append(backward(model, k).item())
        optimizer.step()
    return losses


def weights(model):
    """Copy a model's parameters."""
    return [each.detach().clone() for each in model.parameters()]


def trained_by_both(run, *, exactly=False):
    """Run with both classes, on equal models; compare the parameters.

    Returns:
        What `run(kind, model)` returned for each.
    """
    models, results = [], []
    for kind in (Adadelta, Stock):
        models.append(model_of())
        results.append(run(kind, models[-1]))
    tolerance = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-4, "atol": 1e-6}
    assert_close(weights(models[0]), weights(models[1]), **tolerance)
    return results


# --- schedules ------------------------------------------------------------------------------------

SCHEDULES = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda k: 0.9**k),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 6),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.1, 1.0, 3, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 2.0, 10, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=1.0),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.05, anneal_epochs=3),
    "Chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, 0.9), lr_scheduler.ConstantLR(o)]
    ),
    "Sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
def test_schedules(name, tensor):
    """The rates are the stock's at each step, as numbers and in a tensor; no warning is raised."""

    def run(kind, model):
        optimizer = kind(model.parameters(), lr=torch.tensor(0.8) if tensor else 0.8)
        schedule, rates = SCHEDULES[name](optimizer), []
        for k in range(7):
            optimizer.zero_grad()
            loss = backward(model, k)
            optimizer.step()
            plateau = isinstance(schedule, lr_scheduler.ReduceLROnPlateau)
            schedule.step(*[loss.item()] if plateau else [])
            rates.append(float(optimizer.param_groups[0]["lr"]))
        return rates

    ours, stocks = trained_by_both(run)
    assert ours == pytest.approx(stocks, rel=1e-6)
    assert len(set(ours)) > 1


OF_A_MOMENTUM = {
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.1, 1.0),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1.0, 10),
}


@pytest.mark.parametrize("name", OF_A_MOMENTUM)
def test_schedules_of_a_momentum_refuse(kind, name):
    """There is none, so these want `cycle_momentum=False`; the message is the stock's."""
    optimizer = kind(model_of().parameters())
    with pytest.raises(ValueError, match="must support momentum or beta1"):
        OF_A_MOMENTUM[name](optimizer)


def test_a_schedule_before_the_step_warns(kind):
    """The schedule sees whether a step was taken."""
    optimizer = kind(model_of().parameters())
    schedule = lr_scheduler.StepLR(optimizer, 2)
    with pytest.warns(UserWarning, match=r"`lr_scheduler.step\(\)` before `optimizer.step\(\)`"):
        schedule.step()


def test_averaged_weights():
    """`swa_utils`: an averaged model, a moving average, and `update_bn`."""

    def run(kind, model):
        optimizer = kind(model.parameters())
        averaged = swa_utils.AveragedModel(model)
        moving = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
        for _ in range(3):
            train(model, optimizer)
            averaged.update_parameters(model)
            moving.update_parameters(model)
        swa_utils.update_bn([next(batch(k)) for k in range(3)], averaged)
        return weights(averaged), weights(moving)

    for ours, stocks in zip(*trained_by_both(run), strict=True):
        assert_close(ours, stocks, rtol=1e-4, atol=1e-6)


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none):
    """Gradients are removed, or filled with zeros and kept where they are."""

    def run(kind, model):
        optimizer = kind(model.parameters())
        backward(model)
        places = [each.grad.data_ptr() for each in model.parameters()]
        for k in range(3):
            optimizer.zero_grad(set_to_none=set_to_none)
            if not set_to_none:
                assert [each.grad.data_ptr() for each in model.parameters()] == places
                assert not any(each.grad.any() for each in model.parameters())
            else:
                assert all(each.grad is None for each in model.parameters())
            backward(model, k)
            optimizer.step()

    trained_by_both(run)


def test_gradients_are_not_changed(kind):
    """Nor is their memory taken, nor their version; the same gradient may be used again."""
    model = model_of()
    optimizer = kind(model.parameters(), weight_decay=0.1, maximize=True)
    backward(model)
    grads = [each.grad for each in model.parameters()]
    before, versions = [each.clone() for each in grads], [each._version for each in grads]
    for _ in range(3):
        optimizer.step()
    assert_close(grads, before, rtol=0, atol=0)
    assert [each._version for each in grads] == versions
    assert all(each.grad is grad for each, grad in zip(model.parameters(), grads, strict=True))


def test_gradients_accumulate():
    """Several backward passes before a step."""

    def run(kind, model):
        optimizer = kind(model.parameters())
        for k in range(6):
            backward(model, k)
            if k % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()

    trained_by_both(run)


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("by", ["norm", "value"])
def test_gradients_are_clipped(by, foreach):
    """`nn.utils` clips them in place before the step."""

    def run(kind, model):
        optimizer = kind(model.parameters())
        for k in range(4):
            optimizer.zero_grad()
            backward(model, k)
            if by == "norm":
                nn.utils.clip_grad_norm_(model.parameters(), 0.1, foreach=foreach)
            else:
                nn.utils.clip_grad_value_(model.parameters(), 0.01, foreach=foreach)
            optimizer.step()

    trained_by_both(run)


def test_a_closure_is_called_once_with_gradients_enabled(kind):
    """Also where the caller has disabled them, as with the stock; its loss is returned."""
    model, calls = model_of(), []
    optimizer = kind(model.parameters())

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        return backward(model)

    before = weights(model)
    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True]
    assert loss.requires_grad
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


def test_a_closure_that_raises_changes_nothing(kind):
    """Its error comes through, and the next step is as if it had not been called."""
    model = model_of()
    optimizer = kind(model.parameters())
    train(model, optimizer)
    before, state = weights(model), copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    assert_close(weights(model), before, rtol=0, atol=0)
    assert_close(optimizer.state_dict()["state"], state, rtol=0, atol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_a_step_works_in_any_mode_of_autograd(mode):
    """The mode is the caller's afterwards."""

    def run(kind, model):
        optimizer = kind(model.parameters())
        for k in range(3):
            optimizer.zero_grad()
            backward(model, k)
            with mode():
                before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
                optimizer.step()
                assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before

    trained_by_both(run)


def test_a_step_in_the_backward_pass():
    """`register_post_accumulate_grad_hook` with an optimizer for each parameter."""

    def run(kind, model):
        optimizers = {each: kind([each]) for each in model.parameters()}

        def step(parameter):
            optimizers[parameter].step()
            optimizers[parameter].zero_grad()

        for each in model.parameters():
            each.register_post_accumulate_grad_hook(step)
        for k in range(4):
            backward(model, k)
            assert all(each.grad is None for each in model.parameters())

    trained_by_both(run)


def test_frozen_layers():
    """A layer without gradients is left as it is; thawed, it goes on from its own states."""

    def run(kind, model):
        optimizer = kind(model.parameters())
        train(model, optimizer)
        model[0].requires_grad_(False)
        before = model[0].weight.detach().clone()
        train(model, optimizer)
        assert torch.equal(model[0].weight, before)
        model[0].requires_grad_(True)
        train(model, optimizer)
        return [optimizer.state[each]["step"].item() for each in model.parameters()]

    ours, stocks = trained_by_both(run)
    assert ours == stocks == [8, 8, 12, 12, 12, 12]


# --- groups ---------------------------------------------------------------------------------------


def test_a_group_that_is_added_later():
    """With settings of its own; the groups before it go on."""

    def run(kind, model):
        optimizer = kind(model[0].parameters(), lr=0.5, weight_decay=0.01)
        train(model, optimizer)
        optimizer.add_param_group({"params": model[1].parameters(), "rho": 0.5, "eps": 1e-4})
        optimizer.add_param_group({"params": list(model[3].parameters()), "lr": 2.0})
        train(model, optimizer)
        return [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]

    ours, stocks = trained_by_both(run)
    assert ours == stocks


@pytest.mark.parametrize(
    "change", [{"lr": 0.1}, {"rho": 0.5}, {"eps": 1e-3}, {"weight_decay": 0.3}, {"maximize": True}]
)
def test_settings_change_between_steps(change):
    """Those of one group only: the next step uses them, and the other group does not."""

    def run(kind, model):
        groups = [{"params": list(part.parameters())} for part in (model[0], model[1:])]
        optimizer = kind(groups)
        train(model, optimizer)
        optimizer.param_groups[1].update(change)
        train(model, optimizer)

    trained_by_both(run)


@pytest.mark.parametrize("setting", ["lr", "weight_decay", "rho", "eps"])
def test_settings_in_tensors_are_read_at_each_step(setting):
    """Changed in place, they count from the next step on."""

    def run(kind, model):
        value = torch.tensor(0.5, dtype=torch.float64)
        optimizer = kind(model.parameters())
        optimizer.param_groups[0][setting] = value
        train(model, optimizer)
        value.fill_(0.25)
        train(model, optimizer)

    trained_by_both(run)


def test_groups_may_change_places(kind):
    """What is kept of a group is not taken for another's."""
    model, other = model_of(), model_of()
    optimizers = [
        kind([{"params": each[0].parameters(), "lr": 0.2}, {"params": each[3].parameters()}])
        for each in (model, other)
    ]
    for k in range(4):
        optimizers[0].param_groups.reverse()
        for each, optimizer in zip((model, other), optimizers, strict=True):
            optimizer.zero_grad()
            backward(each, k)
            optimizer.step()
    assert_close(weights(model), weights(other), rtol=0, atol=0)


# --- mixed precision ------------------------------------------------------------------------------


def test_autocast():
    """The forward pass in bfloat16, parameters and gradients in float32."""

    def run(kind, model):
        optimizer = kind(model.parameters())
        for k in range(4):
            optimizer.zero_grad()
            given, wanted = batch(k)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.mse_loss(model(given), wanted)
            loss.backward()
            assert {each.grad.dtype for each in model.parameters()} == {torch.float32}
            optimizer.step()

    trained_by_both(run)


@pytest.mark.parametrize("unscale", [False, True])
def test_grad_scaler(unscale):
    """Gradients are unscaled before the step, and a step with an infinite one is left out."""

    def run(kind, model):
        optimizer = kind(model.parameters())
        scaler, scales = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2), []
        for k in range(6):
            optimizer.zero_grad()
            given, wanted = batch(k)
            scaler.scale(nn.functional.mse_loss(model(given), wanted)).backward()
            if k == 3:
                model[0].bias.grad[0] = torch.inf
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        assert {state["step"].item() for state in optimizer.state.values()} == {5}
        return scales

    ours, stocks = trained_by_both(run)
    assert ours == stocks and len(set(ours)) > 1


# --- parameters -----------------------------------------------------------------------------------


def tied():
    """One weight in two places of a model."""
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 6, bias=False))
    model[2].weight = model[0].weight
    return model


def test_tied_weights_are_stepped_once(kind):
    """`parameters()` lists a shared parameter once."""
    model = tied()
    optimizer = kind(model.parameters())
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    assert [state["step"].item() for state in optimizer.state.values()] == [1]


def test_duplicate_parameters_step_twice_as_in_the_stock():
    """The stock warns, and then steps one after the other; so does this."""
    found = []
    for kind in (Adadelta, Stock):
        weight = Parameter(torch.linspace(-1, 1, 9))
        with pytest.warns(UserWarning, match="duplicate parameters"):
            optimizer = kind([weight, weight])
        for k in range(3):
            weight.grad = torch.linspace(1, k, 9)
            optimizer.step()
        found.append((weight.detach(), optimizer.state[weight]))
    assert_close(*found)


def test_parameters_to_vector_and_back():
    """Afterwards the parameters are views of one vector."""

    def run(kind, model):
        optimizer = kind(model.parameters())
        train(model, optimizer)
        vector = nn.utils.parameters_to_vector(model.parameters()).detach() * 0.5
        nn.utils.vector_to_parameters(vector, model.parameters())
        before = vector.clone()
        train(model, optimizer)
        assert not torch.equal(vector, before)  # stepped in place

    trained_by_both(run)


def test_functional_call():
    """Gradients of `torch.func`, put beside the parameters."""

    def run(kind, model):
        optimizer, named = kind(model.parameters()), dict(model.named_parameters())
        buffers = dict(model.named_buffers())

        def loss(parameters, given, wanted):
            result = torch.func.functional_call(model, (parameters, buffers), (given,))
            return nn.functional.mse_loss(result, wanted)

        model.eval()
        for k in range(4):
            grads = torch.func.grad(loss)({n: p.detach() for n, p in named.items()}, *batch(k))
            for name, each in named.items():
                each.grad = grads[name].detach()
            optimizer.step()

    trained_by_both(run)


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrizations(name):
    """The parameters are the originals of a parametrized weight."""

    def run(kind, model):
        torch.manual_seed(3)  # the start of spectral_norm's iteration
        getattr(nn.utils.parametrizations, name)(model[0])
        train(model, kind(model.parameters()))

    trained_by_both(run)


def channels_last():
    """A convolution whose memory has channels last."""
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def test_channels_last_stays():
    """The weights and states keep their order in memory."""
    found = []
    for kind in (Adadelta, Stock):
        torch.manual_seed(0)
        model = channels_last()
        optimizer = kind(model.parameters())
        given = torch.randn(2, 3, 7, 7).to(memory_format=torch.channels_last)
        for _ in range(3):
            optimizer.zero_grad()
            model(given).square().sum().backward()
            optimizer.step()
        states = [optimizer.state[each] for each in model.parameters()]
        found.append((weights(model), states))
        kept = [model[0].weight, *(states[0][key] for key in ("square_avg", "acc_delta"))]
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in kept)
    assert_close(*found)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_shapes_without_dimensions_and_without_elements(shape, dtype):
    """They are stepped and counted as any other."""
    found = []
    for kind in (Adadelta, Stock):
        weight = Parameter(torch.full(shape, 2.0, dtype=dtype))
        optimizer = kind([weight])
        for _ in range(3):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        found.append((weight.detach(), optimizer.state[weight]))
    assert_close(*found)
    assert found[0][1]["step"] == 3


def test_loading_a_model_with_assign():
    """Parameters that `load_state_dict(assign=True)` made need an optimizer of their own.

    The optimizer made before steps the old ones, as the stock does.
    """

    def run(kind, model):
        optimizer = kind(model.parameters())
        train(model, optimizer)
        old = list(model.parameters())
        model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
        before = weights(model)
        for each in old:
            each.grad = torch.ones_like(each)
        optimizer.step()
        assert_close(weights(model), before, rtol=0, atol=0)
        train(model, kind(model.parameters()))

    trained_by_both(run)


def test_loading_a_model_in_place():
    """`load_state_dict` without assign copies into the parameters: the optimizer goes on."""

    def run(kind, model):
        optimizer = kind(model.parameters())
        train(model, optimizer)
        model.load_state_dict(model_of(seed=5).state_dict())
        train(model, optimizer)

    trained_by_both(run)


def test_a_model_that_changes_its_dtype():
    """`model.double()` in the middle: the states stay in float32, and both classes step."""

    def run(kind, model):
        optimizer = kind(model.parameters())
        train(model, optimizer)
        model.double()
        for each in model.parameters():
            each.grad = torch.full_like(each, 0.25)
        optimizer.step()
        return {state["square_avg"].dtype for state in optimizer.state.values()}

    ours, stocks = trained_by_both(run)
    assert ours == stocks


# --- copies ---------------------------------------------------------------------------------------


def by_pickle(value):
    """Copy it as a checkpoint of the whole object would."""
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - its own bytes


@pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle])
def test_copies_of_model_and_optimizer_train_alike(kind, copied):
    """A copy of both goes on as the original, and neither touches the other."""
    model = model_of()
    optimizer = kind(model.parameters())
    schedule = lr_scheduler.ExponentialLR(optimizer, 0.9)
    train(model, optimizer)
    schedule.step()
    twin, other = copied((model, optimizer))
    assert type(other) is kind
    assert train(twin, other) == train(model, optimizer)
    assert_close(weights(twin), weights(model), rtol=0, atol=0)


def test_a_stock_optimizer_can_become_this_one():
    """What was pickled as the stock's is loaded by `__setstate__` of this class."""
    model = model_of()
    stock = Stock(model.parameters())
    train(model, stock)
    optimizer = Adadelta.__new__(Adadelta)
    optimizer.__setstate__(stock.__getstate__())
    train(model, optimizer)
    assert {state["step"].item() for state in optimizer.state.values()} == {8}


def test_the_whole_optimizer_is_saved_and_loaded(kind, tmp_path):
    """`torch.save` of the object, as old programs do it."""
    model = model_of()
    optimizer = kind(model.parameters())
    train(model, optimizer)
    torch.save((model, optimizer), tmp_path / "all.pt")
    twin, other = torch.load(tmp_path / "all.pt", weights_only=False)
    assert train(twin, other) == train(model, optimizer)


def test_state_dicts_of_distributed_checkpoints(kind):
    """`torch.distributed.checkpoint` makes states by a step with a rate of zero."""
    from torch.distributed.checkpoint import state_dict

    model = model_of()
    optimizer = kind(model.parameters())
    before = weights(model)
    saved = state_dict.get_optimizer_state_dict(model, optimizer)
    assert_close(weights(model), before, rtol=0, atol=0)
    assert sorted(saved["state"]["0.weight"]) == ["acc_delta", "square_avg", "step"]
    train(model, optimizer)
    saved = copy.deepcopy(state_dict.get_optimizer_state_dict(model, optimizer))
    other = kind(model.parameters())
    state_dict.set_optimizer_state_dict(model, other, saved)
    assert_close(other.state_dict()["state"], optimizer.state_dict()["state"], rtol=0, atol=0)


def test_an_optimizer_is_freed(kind):
    """Nothing keeps the parameters and states once optimizer and model are gone."""
    model = model_of()
    optimizer = kind(model.parameters())
    train(model, optimizer)
    gone = [weakref.ref(each) for each in (optimizer, *model.parameters())]
    del model, optimizer
    gc.collect()
    assert [each() for each in gone] == [None] * len(gone)


# --- profiles, compilers, threads, processes ------------------------------------------------------


def test_a_profile_names_the_step(kind):
    """As for each optimizer of PyTorch's: `Optimizer.step#Adadelta.step`, once a step."""
    model = model_of()
    optimizer = kind(model.parameters())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(model, optimizer, steps=3)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["Optimizer.step#Adadelta.step"] == 3


@pytest.mark.parametrize("when", ["pre", "post"])
@pytest.mark.parametrize("scope", ["global", "own"])
def test_one_hook_alone_is_called(kind, scope, when):
    """Whichever it is, from its registration to its removal."""
    optimizer, seen = kind([torch.ones(2)]), []
    own = getattr(optimizer, f"register_step_{when}_hook")
    register = getattr(torch_optimizer, f"register_optimizer_step_{when}_hook")
    optimizer.step()
    handle = (own if scope == "own" else register)(lambda *_: seen.append(when))
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert seen == [when]


def test_a_profile_of_all_threads_names_the_step_of_another(kind):
    """The profiler is enabled in the thread that began it."""
    optimizer = kind([torch.ones(2)])
    every = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, experimental_config=every) as profile:
        thread = threading.Thread(target=optimizer.step)
        thread.start()
        thread.join()
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["Optimizer.step#Adadelta.step"] == 1


def test_pytorchs_wrapper_stays_where_observers_cannot_be_seen(monkeypatch):
    """As in a version that renamed what tells of them: a step is then as slow as PyTorch's."""
    seen = []

    class Own(Adadelta):
        def step(self):
            seen.append("step")

    monkeypatch.delattr(torch.autograd.profiler, "_is_profiler_enabled")
    bare = Own.step
    optimizer = Own([torch.ones(2)])
    monkeypatch.undo()
    assert Own.step.__wrapped__ is bare
    optimizer.register_step_post_hook(lambda *_: seen.append("hook"))
    optimizer.step()
    assert seen == ["step", "hook"]


def test_a_subclass_keeps_its_decorators_and_its_own_hooks(kind):
    """Only what PyTorch wraps around a step is left out where nothing sees it."""
    seen = []

    def noted(step):
        @functools.wraps(step)
        def wrapper(self, closure=None):
            seen.append("decorator")
            return step(self, closure)

        return wrapper

    class Decorated(kind):
        @noted
        def step(self, closure=None):
            seen.append("step")
            return super().step(closure)

    class Hooked(kind):
        @noted
        def step(self, closure=None):
            return super().step(closure)

        step.hooked = True  # PyTorch wraps nothing around it

    for each in (Decorated, Decorated, Hooked):
        optimizer = each([torch.ones(2)])
        optimizer.step()
    assert seen == ["decorator", "step"] * 2 + ["decorator"]


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns of itself
@pytest.mark.parametrize(
    "backend",
    ["eager", *(pytest.param(each, marks=pytest.mark.slow) for each in ("aot_eager", "inductor"))],
)
@pytest.mark.parametrize("what", ["training step", "model", "optimizer step"])
def test_compiled(kind, backend, what):
    """`torch.compile` around the training step, the model or `optimizer.step`."""
    torch._dynamo.reset()
    losses = []
    for compiled in (True, False):
        model = model_of()
        optimizer = kind(model.parameters(), lr=torch.tensor(0.5))

        def step(given, wanted, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(given), wanted)
            loss.backward()
            optimizer.step()
            return loss.detach()

        if compiled and what == "training step":
            step = torch.compile(step, backend=backend)
        elif compiled and what == "model":
            model.compile(backend=backend)
        elif compiled:
            optimizer.step = torch.compile(optimizer.step, backend=backend)
        losses.append([step(*batch(k)).item() for k in range(4)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_two_threads_step_two_optimizers(kind):
    """At the same time, and with the bits of one after the other."""
    # So many elements that the kernel's threads, which both use, have work.
    steps, elements, ready = 20, 100_000, threading.Barrier(2, timeout=WAIT_S)
    drawn = torch.randn(2, steps, elements)
    results = {}

    def run(number, wait):
        tensors = [Parameter(torch.ones(elements, dtype=dtype)) for dtype in DTYPES]
        optimizer = kind(tensors, lr=0.5 + number)
        wait()
        for k in range(steps):
            for each in tensors:
                each.grad = drawn[number, k].to(each.dtype)
            optimizer.step()
        results[number, wait] = [each.detach() for each in tensors]

    threads = [threading.Thread(target=run, args=(k, ready.wait), daemon=True) for k in (0, 1)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(WAIT_S)
        assert not each.is_alive()
    for k in (0, 1):
        run(k, int)
        assert_close(results[k, ready.wait], results[k, int], rtol=0, atol=0)


class Rows(torch.utils.data.Dataset):
    """Rows that workers of a `DataLoader` compute."""

    def __len__(self):
        return 32

    def __getitem__(self, row):
        given = torch.linspace(-1, 1, 6) * row / 32
        return given, given[:2].square()


FORKS = "ignore:.*multi-threaded, use of fork:DeprecationWarning"  # Python 3.12: PyTorch's choice


@pytest.mark.slow
@pytest.mark.filterwarnings(FORKS)
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_of_a_data_loader_are_forked_beside_steps(persistent):
    """Workers are forked after steps, again at each epoch, while the optimizer goes on."""

    def run(kind, model):
        optimizer = kind(model.parameters())
        torch.set_num_threads(2)
        train(model, optimizer)
        loader = torch.utils.data.DataLoader(
            *[Rows(), 8],
            num_workers=2,
            timeout=WAIT_S,
            multiprocessing_context="fork",
            persistent_workers=persistent,
        )
        for _ in range(3):
            for given, wanted in loader:
                optimizer.zero_grad()
                nn.functional.mse_loss(model(given), wanted).backward()
                optimizer.step()

    trained_by_both(run)


def _train_in_child(model, optimizer, queue):
    torch.set_num_threads(1)  # as a DataLoader's workers: OpenMP's threads are not in the child
    train(model, optimizer)
    queue.put([each.numpy() for each in weights(model)])


@pytest.mark.slow
@pytest.mark.filterwarnings(FORKS)
def test_a_forked_child_goes_on_training(kind):
    """A child that was forked after a step trains as the parent does, in memory of its own."""
    model = model_of()
    optimizer = kind(model.parameters())
    torch.set_num_threads(2)  # so that the parent has the threads that the child lacks
    train(model, optimizer)
    torch.set_num_threads(1)
    before = weights(model)
    context = torch.multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_train_in_child, args=(model, optimizer, queue), daemon=True)
    child.start()
    found = queue.get(timeout=WAIT_S)
    child.join(WAIT_S)
    assert child.exitcode == 0
    assert_close(weights(model), before, rtol=0, atol=0)
    train(model, optimizer)
    assert_close([torch.from_numpy(each) for each in found], weights(model), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings(FORKS)
def test_shared_memory_is_trained_by_a_child(kind):
    """`model.share_memory()`: what a child steps, the parent sees."""
    model = model_of().share_memory()
    optimizer, before = kind(model.parameters()), weights(model)
    context = torch.multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_train_in_child, args=(model, optimizer, queue), daemon=True)
    child.start()
    found = queue.get(timeout=WAIT_S)
    child.join(WAIT_S)
    assert child.exitcode == 0
    assert_close([torch.from_numpy(each) for each in found], weights(model), rtol=0, atol=0)
    assert not torch.equal(weights(model)[0], before[0])
