"""`adadelta_cli.torch.Adadelta`: its bits, what it leaves to the stock, and what it notices."""

import copy
import inspect
import pickle
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from adadelta_cli.kernels import cpu
from adadelta_cli.torch import Adadelta
from adadelta_cli.update import Hyperparameters, Parameter, update

Stock = torch.optim.Adadelta
SHAPES = ((), (7,), (3, 0), (40, 25), (5000,))


def parameters(dtype=torch.float32, shapes=SHAPES, seed=0):
    """Make parameters of some shapes, drawn from a seed."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes
    ]


def set_grads(tensors, seed):
    """Give each a new gradient, drawn from a seed."""
    generator = torch.Generator().manual_seed(seed)
    for each in tensors:
        each.grad = torch.randn(each.shape, generator=generator, dtype=each.dtype)


def copies(tensors):
    """Copy parameters."""
    return [torch.nn.Parameter(each.detach().clone()) for each in tensors]


def bits(tensors):
    """Return the bytes of each tensor."""
    return [np.ascontiguousarray(each.detach().numpy()).tobytes() for each in tensors]


def kernel_takes(optimizer, group=0):
    """Whether the last step of a group was the kernel's as a whole."""
    return group in optimizer._steps


class Reference:
    """The formula on NumPy arrays, one operation at a time, with PyTorch's names."""

    def __init__(self, tensors, *, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0, maximize=False):
        sign = -1.0 if maximize else 1.0
        self.hyper = Hyperparameters(lr, rho, eps, weight_decay, sign)
        weights = [each.detach().numpy().copy() for each in tensors]
        self.parameters = [
            Parameter(w, np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)) for w in weights
        ]

    def step(self, tensors):
        h = self.hyper
        for p, each in zip(self.parameters, tensors, strict=True):
            p.grad[...] = each.grad.numpy()
            update(np, p, h.scalars(p.weight.dtype), h.learning_rate, h.wd)

    def assert_equals(self, tensors, optimizer):
        for p, each in zip(self.parameters, tensors, strict=True):
            state = optimizer.state[each]
            assert p.weight.tobytes() == each.detach().numpy().tobytes()
            assert p.acc_grad.tobytes() == state["square_avg"].numpy().tobytes()
            assert p.acc_delta.tobytes() == state["acc_delta"].numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lr": 0.3, "rho": 0.95, "eps": 1e-8},
        {"weight_decay": 0.02},
        {"maximize": True},
        {"lr": 0.7, "weight_decay": 0.1, "maximize": True},
    ],
    ids=str,
)
def test_the_bits_are_those_of_the_formula(dtype, settings):
    """In ten steps, weights and states have the bits of the formula on NumPy arrays."""
    tensors = parameters(dtype)
    reference, optimizer = Reference(tensors, **settings), Adadelta(tensors, **settings)
    for k in range(10):
        set_grads(tensors, k)
        reference.step(tensors)
        optimizer.step()
    assert kernel_takes(optimizer)
    reference.assert_equals(tensors, optimizer)
    assert [optimizer.state[each]["step"].item() for each in tensors] == [10] * len(tensors)


def test_without_decay_an_infinite_weight_stays():
    """As in the stock: no decay is no sum, so that no 0 * infinity makes a NaN."""
    weight = torch.nn.Parameter(torch.tensor([-torch.inf, 1.0]))
    weight.grad = torch.tensor([0.0, 0.5])
    Adadelta([weight]).step()
    assert weight[0] == -torch.inf
    assert weight[1] < 1


def test_signature_and_defaults_are_the_stocks():
    """What the stock takes, this takes, under the same names."""
    assert inspect.signature(Adadelta) == inspect.signature(Stock)
    assert Adadelta(parameters()).defaults == Stock(parameters()).defaults
    assert isinstance(Adadelta(parameters()), Stock)


class Subclass(torch.Tensor):
    """A tensor that may have operators of its own."""


def spread(elements):
    """Spread so many numbers that a step of the kernel has other bits than the stock's."""
    return torch.linspace(-1, 1, elements)


ODD = {
    "half": lambda: spread(3600).half(),
    "bfloat16": lambda: spread(3600).bfloat16(),
    "complex": lambda: spread(3600).to(torch.complex64),
    "holes": lambda: spread(7200).view(60, 120)[:, ::2],
    "subclass": lambda: spread(3600).as_subclass(Subclass),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_the_kernel_does_not_take_steps_as_the_stock(kind):
    """Such a parameter gets the stock's bits; one beside it those of the kernel."""
    odd, stock_odd = (ODD[kind]().requires_grad_() for _ in range(2))
    (usual,) = parameters(shapes=[(9,)])
    reference = Reference([usual])
    optimizer, stock = Adadelta([odd, usual]), Stock([stock_odd], foreach=False)
    for k in range(3):
        set_grads([usual], k)
        for each in (odd, stock_odd):
            each.grad = (each * (0.25 + k)).detach()
        optimizer.step()
        stock.step()
        reference.step([usual])
    assert torch.equal(odd.detach(), stock_odd.detach())
    reference.assert_equals([usual], optimizer)
    assert optimizer.state[odd]["step"] == 3


@pytest.mark.parametrize("setting", ["differentiable", "capturable"])
def test_these_settings_step_as_the_stock(setting):
    """A differentiable step has the stock's bits and graph; capturable fails as it does there."""
    outcomes = []
    for kind in (Adadelta, Stock):
        (weight,) = parameters(shapes=[(300,)])
        leaf = weight.clone()
        leaf.grad = torch.linspace(-1, 1, 300)
        optimizer = kind([weight], **{setting: True})
        optimizer.param_groups[0]["params"] = [leaf]
        try:
            optimizer.step()
            outcomes.append((leaf.detach().numpy().tobytes(), leaf.grad_fn.name()))
        except AssertionError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def test_a_rate_that_became_negative_is_used():
    """The stock checks the rate only when it is made; a schedule may do what it likes."""
    tensors = parameters()
    reference, optimizer = Reference(tensors, lr=-0.5), Adadelta(tensors)
    optimizer.param_groups[0]["lr"] = -0.5
    set_grads(tensors, 1)
    reference.step(tensors)
    optimizer.step()
    reference.assert_equals(tensors, optimizer)


def test_the_sign_of_a_rate_of_zero_counts():
    """-0.0 - 0.0 * delta is -0.0, and -0.0 - -0.0 * delta is 0.0: as in the formula."""
    tensors = [torch.nn.Parameter(torch.full((9,), -0.0))]
    reference, optimizer = Reference(tensors, lr=0.0), Adadelta(tensors, lr=0.0)
    for k, rate in enumerate((0.0, -0.0)):
        optimizer.param_groups[0]["lr"] = rate
        reference.hyper = Hyperparameters(learning_rate=rate)
        tensors[0].grad = torch.full((9,), 1.0 + k)
        reference.step(tensors)
        optimizer.step()
        reference.assert_equals(tensors, optimizer)
    assert not tensors[0].signbit().any()


def test_the_rate_may_be_a_tensor():
    """A tensor of one element; changed in place, it counts from the next step on."""
    tensors = parameters()
    rate = torch.tensor(0.5)
    reference, optimizer = Reference(tensors, lr=0.5), Adadelta(tensors, lr=rate)
    for k, value in enumerate((0.5, 0.25)):
        rate.fill_(value)
        reference.hyper = Hyperparameters(learning_rate=value)
        set_grads(tensors, k)
        reference.step(tensors)
        optimizer.step()
    reference.assert_equals(tensors, optimizer)


def test_tensors_may_be_replaced_between_steps():
    """A step uses the tensors of now: data, gradients and states that were replaced since."""
    tensors = parameters(shapes=[(6, 6), (9,)])
    optimizer = Adadelta(tensors)
    twins = copies(tensors)
    other = Adadelta(twins)

    def step_both(k):
        set_grads(tensors, k)
        for each, twin in zip(tensors, twins, strict=True):
            twin.grad = each.grad.clone()
        optimizer.step()
        other._forget()  # nothing is kept here
        other.step()
        assert bits(tensors) == bits(twins)

    step_both(0)
    for each in (tensors, twins):
        each[0].data = each[0].data.t().contiguous()
    step_both(1)
    for each in (tensors, twins):
        each[0].data = each[0].data.t()  # the same memory in another order
    step_both(2)
    for a in (optimizer, other):
        for state in a.state.values():
            state["acc_delta"] = state["acc_delta"] + 1
    step_both(3)
    for a in (optimizer, other):
        for state in a.state.values():
            state["square_avg"].zero_()
    step_both(4)
    for a, each in ((optimizer, tensors), (other, twins)):
        a.state.pop(each[1])
    step_both(5)
    assert optimizer.state[tensors[1]]["step"] == 1


def test_a_shorter_view_of_the_same_memory_is_stepped_alone():
    """Data narrowed in place, at the same address: what lies behind it is not written."""
    whole = torch.zeros(10)
    weight = torch.nn.Parameter(whole)
    optimizer = Adadelta([weight])
    weight.grad = torch.ones(10)
    optimizer.step()
    before = whole[5:].clone()
    optimizer.state.clear()
    weight.grad = None
    weight.data = whole[:5]
    weight.grad = torch.ones(5)
    optimizer.step()
    assert torch.equal(whole[5:], before)


@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (4, 3, 1, 1), (4, 1, 5, 5)])
def test_channels_last_is_stepped_in_place(shape):
    """A dense layout other than the usual one: the kernel takes it, in the order of memory."""
    (weight,) = parameters(shapes=[shape])
    weight.data = weight.data.to(memory_format=torch.channels_last)
    reference, optimizer = Reference([weight]), Adadelta([weight])
    for k in range(3):
        set_grads([weight], k)
        reference.step([weight])
        weight.grad = weight.grad.to(memory_format=torch.channels_last)
        optimizer.step()
    assert kernel_takes(optimizer)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    p = reference.parameters[0]
    assert np.array_equal(p.weight, weight.detach().numpy())
    assert np.array_equal(p.acc_grad, optimizer.state[weight]["square_avg"].numpy())


def test_a_gradient_in_another_order_steps_as_the_stock():
    """Else elements would meet others' gradients."""
    (weight,), (twin,) = parameters(shapes=[(5, 7)]), parameters(shapes=[(5, 7)])
    grad = torch.randn(7, 5, generator=torch.Generator().manual_seed(3)).t()
    for kind, each in ((Adadelta, weight), (Stock, twin)):
        optimizer = kind([each])
        each.grad = grad
        optimizer.step()
    assert torch.equal(weight, twin)


def test_views_of_one_buffer_are_stepped():
    """Parameters that are disjoint views of one buffer are the kernel's."""
    buffer = torch.randn(20, generator=torch.Generator().manual_seed(0))
    views = [torch.nn.Parameter(buffer[:8]), torch.nn.Parameter(buffer[8:])]
    reference, optimizer = Reference(views), Adadelta(views)
    set_grads(views, 1)
    reference.step(views)
    optimizer.step()
    assert kernel_takes(optimizer)
    reference.assert_equals(views, optimizer)


@pytest.mark.parametrize("overlap", ["weights", "gradient"])
def test_tensors_that_overlap_step_as_the_stock(overlap):
    """The stock steps one after the other, so the result is defined."""
    results = []
    for kind in (Adadelta, Stock):
        buffer = torch.linspace(-1, 1, 5000)  # many, so that the two steps differ in some bit
        first, second = torch.nn.Parameter(buffer[:3000]), torch.nn.Parameter(buffer[2000:])
        if overlap == "gradient":
            second = torch.nn.Parameter(torch.ones(3000))
        optimizer = kind([first, second], foreach=False)
        for k in range(3):
            set_grads([first, second], k)
            if overlap == "gradient":
                second.grad = first.detach()
            optimizer.step()
        results.append(bits([first, second]))
    assert results[0] == results[1]


def transposed(weight, grad):
    """Give the gradient another order in memory."""
    weight.grad = grad.t().contiguous().t()


def negated(weight, grad):
    """Give a gradient whose memory has the negated numbers."""
    weight.grad = torch._neg_view(grad)


def shared(weight, _grad):
    """Give the weight's own memory as the gradient."""
    weight.grad = weight.detach()


def shifted(tensor):
    """Copy a tensor to an address that is no multiple of an element's size."""
    memory = np.zeros(tensor.numel() * 4 + 1, np.uint8)[1:].view(np.float32)
    copied = torch.from_numpy(memory.reshape(tensor.shape))
    return copied.copy_(tensor.detach())


def misaligned(weight, grad):
    """Give a gradient whose address is no multiple of an element's size."""
    weight.grad = shifted(grad)


def misaligned_weight(weight, grad):
    """Move the weight to such an address."""
    weight.data = shifted(weight)
    weight.grad = grad


def of_a_subclass(weight, grad):
    """Give a gradient that may have operators of its own."""
    weight.grad = grad.as_subclass(Subclass)


def negated_weight(weight, grad):
    """Let the weight's memory have the negated numbers."""
    weight.data = torch._neg_view(weight.detach().clone())
    weight.grad = grad


CHANGES = [
    transposed,
    negated,
    shared,
    misaligned,
    of_a_subclass,
    negated_weight,
    misaligned_weight,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kept", [False, True], ids=["first step", "kept step"])
def test_what_comes_to_be_read_otherwise_steps_as_the_stock(change, kept):
    """From the first step on, or after steps of the kernel's, which were kept."""
    (weight,), (twin,) = (parameters(shapes=[(60, 60)]) for _ in range(2))
    optimizer, stock = Adadelta([weight]), Stock([twin])
    if kept:
        for each, step in ((weight, optimizer.step), (twin, stock.step)):
            set_grads([each], 0)
            step()
        assert kernel_takes(optimizer)
        weight.data.copy_(twin.data)  # go on from equal numbers, in place
        for key, number in stock.state[twin].items():
            optimizer.state[weight][key].copy_(number)
    for each, step in ((weight, optimizer.step), (twin, stock.step)):
        set_grads([each], 1)
        change(each, each.grad)
        step()
    assert torch.equal(weight.detach(), twin.detach())
    assert torch.equal(optimizer.state[weight]["acc_delta"], stock.state[twin]["acc_delta"])


def assert_equal_outcomes(prepare):
    """Prepare weight and optimizer for a step, with each class, and compare what it does."""
    outcomes = []
    for kind in (Adadelta, Stock):
        (weight,) = parameters(shapes=[(60, 60)])
        optimizer = kind([weight])
        prepare(weight, optimizer)
        try:
            optimizer.step()
        except RuntimeError as error:
            outcomes.append(str(error))
        else:
            outcomes.append(bits([weight]))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("key", ["square_avg", "acc_delta"])
def test_states_at_odd_addresses_step_as_the_stock(key):
    """As where a checkpoint was mapped into memory."""

    def prepare(weight, optimizer):
        set_grads([weight], 1)
        states = {name: torch.full_like(weight, 0.5) for name in ("square_avg", "acc_delta")}
        optimizer.state[weight] = {"step": torch.tensor(0.0), **states, key: shifted(states[key])}

    assert_equal_outcomes(prepare)


@pytest.mark.skipif(
    not hasattr(torch.Tensor, "grad_dtype"), reason="this PyTorch has no grad_dtype"
)
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_gradient_of_another_dtype_ends_as_in_the_stock(kept, dtype):
    """PyTorch allows it where `grad_dtype` says so."""

    def prepare(weight, optimizer):
        if kept:
            weight.grad = torch.zeros_like(weight)  # both give equal numbers
            optimizer.step()
        weight.grad, weight.grad_dtype = None, dtype
        weight.grad = torch.full((60, 60), 0.25, dtype=dtype)

    assert_equal_outcomes(prepare)


def test_memory_between_elements_is_not_written():
    """Weight, gradient and states have the same holes, as where all are columns of larger ones."""
    wholes = [torch.ones(60, 4) for _ in range(4)]
    weight, grad, square, delta = (whole[:, ::2] for whole in wholes)
    parameter = torch.nn.Parameter(weight)
    optimizer = Adadelta([parameter])
    optimizer.state[parameter] = {
        "step": torch.tensor(0.0),
        "square_avg": square,
        "acc_delta": delta,
    }
    parameter.grad = grad
    assert parameter.grad.stride() == parameter.stride() == (4, 2)
    optimizer.step()
    assert all((whole[:, 1::2] == 1).all() for whole in wholes)
    assert (parameter != 1).all() and optimizer.state[parameter]["step"] == 1


def test_a_weight_that_was_cut_beside_whole_states_is_refused_as_in_the_stock():
    """Nothing is written, in particular not behind the end of the weight."""
    messages = []
    for kind in (Adadelta, Stock):
        whole = torch.zeros(10)
        weight = torch.nn.Parameter(whole)
        optimizer = kind([weight])
        weight.grad = torch.ones(10)
        optimizer.step()
        before = whole.clone()
        weight.grad, weight.data = None, whole[:5]
        weight.grad = torch.ones(5)
        with pytest.raises(RuntimeError, match="size") as raised:
            optimizer.step()
        messages.append(str(raised.value))
        assert torch.equal(whole, before)
    assert messages[0] == messages[1]


def test_a_sparse_gradient_is_refused_before_anything_changes():
    """The error is the stock's; the parameters before it are as they were."""
    first, second = parameters(shapes=[(4,), (5, 2)])
    optimizer = Adadelta([{"params": [first]}, {"params": [second]}])
    set_grads([first, second], 0)
    optimizer.step()
    before = bits([first, second])
    second.grad = torch.sparse_coo_tensor([[1], [0]], [1.0], (5, 2), check_invariants=True)
    with pytest.raises(RuntimeError, match="Adadelta does not support sparse gradients"):
        optimizer.step()
    assert bits([first, second]) == before


def test_a_parameter_without_a_gradient_is_left_out():
    """Frozen in the middle of a training, and then trained again."""
    tensors = parameters(shapes=[(5,), (6,)])
    optimizer = Adadelta(tensors)
    for k in range(4):
        set_grads(tensors, k)
        if k in (1, 2):
            tensors[0].grad = None
        optimizer.step()
    assert [optimizer.state[each]["step"].item() for each in tensors] == [2, 4]


def test_autograd_notices_the_change():
    """A graph that saved a weight refuses to use it after a step, as with the stock."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = Adadelta([weight])
    loss = (weight * weight).sum()
    weight.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def pickled(optimizer):
    """Copy it as a checkpoint of the whole object would."""
    return pickle.loads(pickle.dumps(optimizer))  # noqa: S301 - its own bytes


@pytest.mark.parametrize("copy_of", [copy.deepcopy, pickled])
def test_copies_step_on_their_own_tensors(copy_of):
    """A copy has its own parameters, states and addresses."""
    tensors = parameters()
    optimizer = Adadelta(tensors)
    set_grads(tensors, 0)
    optimizer.step()
    twin = copy_of(optimizer)
    twins = twin.param_groups[0]["params"]
    before = bits(tensors)
    for _ in range(2):
        for each, other in zip(tensors, twins, strict=True):
            other.grad = each.grad.clone()
        twin.step()
    assert bits(tensors) == before != bits(twins)
    optimizer.step()
    optimizer.step()
    assert bits(tensors) == bits(twins)


def test_checkpoints_go_both_ways():
    """A checkpoint of either is one of the other, also an old one whose counts are numbers."""
    tensors, twins = parameters(), parameters()
    optimizer, stock = Adadelta(tensors), Stock(twins)
    set_grads(twins, 0)
    stock.step()
    saved = copy.deepcopy(stock.state_dict())
    for state in saved["state"].values():
        state["step"] = 1
    for each, twin in zip(tensors, twins, strict=True):
        each.data.copy_(twin.data)
    optimizer.load_state_dict(saved)
    set_grads(tensors, 1)
    set_grads(twins, 1)
    optimizer.step()
    stock.step()
    assert kernel_takes(optimizer)
    assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(tensors, twins, strict=True))
    stock.load_state_dict(optimizer.state_dict())
    stock.step()
    assert stock.state[twins[0]]["step"] == 3


def test_subnormals_follow_the_mode_of_the_thread():
    """As PyTorch's operators do: strict by default, flushed after `set_flush_denormal(True)`."""
    results = []
    for flush in (False, True):
        weight = torch.nn.Parameter(torch.zeros(5000))
        weight.grad = torch.full((5000,), 1e-30)
        optimizer = Adadelta([weight], rho=0.5, eps=1e-6)
        optimizer.state[weight] = {
            "step": torch.tensor(0.0),
            "square_avg": torch.full((5000,), 1.5e-38),
            "acc_delta": torch.zeros(5000),
        }
        torch.set_flush_denormal(flush)
        try:
            optimizer.step()
        finally:
            torch.set_flush_denormal(False)
        results.append(optimizer.state[weight]["square_avg"].unique().numpy())
    assert [float(each[0]) for each in results] == [float(np.float32(0.75e-38)), 0.0]
    assert [each.size for each in results] == [1, 1]


def test_a_compiled_training_step_works():
    """`torch.compile` around forward, backward and step; the graph breaks at the step."""
    results = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, backend="eager")):
        model = torch.nn.Linear(4, 1)
        torch.nn.init.ones_(model.weight)
        torch.nn.init.zeros_(model.bias)
        optimizer = Adadelta(model.parameters())

        def train(x, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

        trained = wrap(train)
        for k in range(3):
            trained(torch.full((2, 4), 1.0 + k))
        results.append(bits(model.parameters()))
    assert results[0] == results[1]


def test_a_gradient_without_memory_steps_as_the_stock():
    """PyTorch's backward of `sgn` makes zeros without memory, here after a kept step."""
    results = []
    for kind in (Adadelta, Stock):
        (weight,) = parameters(shapes=[(4,)])
        optimizer = kind([weight])
        for loss in (lambda w: (w * w).sum(), lambda w: torch.sgn(w).sum()):
            optimizer.zero_grad()
            loss(weight).backward()
            optimizer.step()
        results.append((weight.detach(), optimizer.state[weight]["step"].item()))
    assert torch.allclose(results[0][0], results[1][0])
    assert results[0][1] == results[1][1] == 2


def test_a_weight_that_was_cut_is_refused_with_its_old_gradient():
    """As the stock does; nothing behind the weight is written."""
    whole = torch.zeros(4)
    weight = torch.nn.Parameter(whole)
    optimizer = Adadelta([weight])
    weight.grad = torch.ones(4)
    optimizer.step()
    before = whole.clone()
    weight.data = whole[:2]
    with pytest.raises(RuntimeError, match="size"):
        optimizer.step()
    assert torch.equal(whole, before)


@pytest.mark.parametrize("change", ["negated", "square_avg", "acc_delta", "step"])
def test_memory_that_is_read_otherwise_is_noticed(change):
    """The same address, but negated values, or a state in another order; a count elsewhere."""
    results = []
    for kind in (Adadelta, Stock):
        (weight,) = parameters(shapes=[(3, 3)])
        optimizer = kind([weight], foreach=False)
        for k in range(3):
            set_grads([weight], k)
            optimizer.step()
            if k == 0 and change == "negated":
                weight.data = torch._neg_view(weight.detach())
            elif k == 0 and change == "step":
                optimizer.state[weight]["step"].data = torch.tensor(7.0)
            elif k == 0:
                optimizer.state[weight][change].copy_(torch.arange(9.0).view(3, 3)).t_()
        count = optimizer.state[weight]["step"].expand(1, 3)
        results.append(torch.cat([weight.detach().resolve_neg(), count]))
    assert torch.allclose(*results, rtol=1e-5)


@pytest.mark.parametrize("key", ["square_avg", "acc_delta"])
def test_a_state_that_was_cut_is_refused_as_in_the_stock(key):
    """Its address and its strides are the same, its length is not."""

    def prepare(weight, optimizer):
        set_grads([weight], 1)
        optimizer.step()
        optimizer.state[weight][key].resize_(2, 60)

    assert_equal_outcomes(prepare)


def test_what_a_removed_group_had_is_freed():
    """The optimizer keeps no tensor of a group that is gone."""
    tensors = parameters(shapes=[(4,), (5,)])
    optimizer = Adadelta([{"params": [each]} for each in tensors])
    set_grads(tensors, 0)
    optimizer.step()
    optimizer.param_groups.pop()
    optimizer.step()
    assert set(optimizer._steps) == {0}


def test_a_count_of_an_odd_kind_is_counted_as_by_the_stock():
    """Several elements, none, or negated ones."""
    for count in (torch.zeros(3), torch.zeros(0), torch._neg_view(torch.zeros(()))):
        (weight,) = parameters(shapes=[(4,)])
        optimizer = Adadelta([weight])
        set_grads([weight], 0)
        optimizer.step()
        optimizer.state[weight]["step"] = count
        optimizer.step()
        assert torch.equal(optimizer.state[weight]["step"].resolve_neg(), torch.ones(count.shape))


def test_a_subclass_that_collects_its_own_gradients_is_honoured():
    """As the stock does; so the kernel is not used."""

    def doubled(base):
        class Doubled(base):
            def _init_group(self, group, weights, grads, *states):
                found = super()._init_group(group, weights, grads, *states)
                grads[:] = [2 * grad for grad in grads]
                return found

        return Doubled

    results = []
    for kind in (doubled(Adadelta), doubled(Stock)):
        tensors = parameters()
        optimizer = kind(tensors)
        set_grads(tensors, 0)
        optimizer.step()
        results.append(bits(tensors))
    assert results[0] == results[1]


def test_a_strided_view_beside_its_base_steps_in_the_stocks_order():
    """What shares memory with a parameter that the kernel does not take is the stock's, too."""
    results = []
    for kind in (Adadelta, Stock):
        base = torch.linspace(-1, 1, 12)
        tensors = [torch.nn.Parameter(base[::2]), torch.nn.Parameter(base)]
        optimizer = kind(tensors, weight_decay=0.5, lr=50, foreach=False)
        for k in range(2):
            set_grads(tensors, k)
            optimizer.step()
        results.append(base.clone())
    assert torch.equal(*results)


def test_a_step_waits_for_the_pool_of_threads(monkeypatch):
    """The pool has one job at a time, and other Python threads run during a step."""
    lock = MagicMock()
    monkeypatch.setattr(cpu, "launching", lock)
    tensors = parameters()
    set_grads(tensors, 0)
    Adadelta(tensors).step()
    lock.__enter__.assert_called_once()
    lock.__exit__.assert_called_once()
