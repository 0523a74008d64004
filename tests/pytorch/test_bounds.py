"""How far the fused step is from `torch.optim.Adadelta`: within the derived bounds.

One step from equal states is within docs/parity.md's bounds, and with weight decay within those for
any order of the operations. For trajectories, `tolerance.drifts`
computes a running bound along the fused one: each step carries on the errors of the step before,
and adds the bound of one step, in any order of the operations (docs/own-kernels.md).
"""

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from adadelta_cli.implementations.base import ANY_ORDER
from adadelta_cli.implementations.registry import PEERS
from adadelta_cli.torch import Adadelta
from adadelta_cli.update import Hyperparameters
from adadelta_cli.verification.cases import Case
from adadelta_cli.verification.tolerance import TENSORS, check_steps, drifts

pytestmark = pytest.mark.usefixtures("one_thread")
Stock = torch.optim.Adadelta
SHAPES = ((), (3, 0), (7,), (40, 25), (3000,))
SETTINGS = [
    {},
    {"lr": 0.01},
    {"rho": 0.95, "eps": 1e-8},
    {"weight_decay": 0.1},
    {"maximize": True},
    {"lr": 0.7, "weight_decay": 0.1, "maximize": True},
    {"rho": 0.95, "weight_decay": 0.9},
]
KEYS = {"acc_grad": "square_avg", "acc_delta": "acc_delta"}
settings = pytest.mark.parametrize("settings", SETTINGS, ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
foreach = pytest.mark.parametrize("foreach", [False, True], ids=["forloop", "foreach"])


class Run:
    """An optimizer on tensors, with their numbers after each step."""

    def __init__(self, kind, dtype, saved=None, values=None, **given):
        generator = torch.Generator().manual_seed(5)
        drawn = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
        self.tensors = [Parameter(each.clone()) for each in values or drawn]
        self.optimizer = kind(self.tensors, **given)
        self.states = {name: [] for name in TENSORS}
        if saved is not None:
            self.optimizer.load_state_dict(saved)
            self.note()

    def step(self, grads):
        """Take a step and note the numbers."""
        for each, grad in zip(self.tensors, grads, strict=True):
            each.grad = grad.clone()
        self.optimizer.step()
        self.note()

    def note(self):
        """Note the numbers of all tensors, end to end."""
        states = [self.optimizer.state[each] for each in self.tensors]
        found = {name: [state[key] for state in states] for name, key in KEYS.items()}
        for name, each in (found | {"weight": self.tensors}).items():
            self.states[name].append(flat(each))

    def saved(self, path):
        """Save a checkpoint and read it, as another program would: `state_dict` and weights."""
        torch.save((self.optimizer.state_dict(), [each.detach() for each in self.tensors]), path)
        return torch.load(path)


def flat(tensors):
    """Copy tensors into one array."""
    return np.concatenate([each.detach().numpy().ravel() for each in tensors])


def gradients(dtype, steps, seed):
    """Draw gradients of many magnitudes for some steps."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape):
        scale = 10 ** (4 * torch.rand(shape, generator=generator, dtype=dtype) - 3)
        return torch.randn(shape, generator=generator, dtype=dtype) * scale

    return [[draw(shape) for shape in SHAPES] for _ in range(steps)]


def case_of(given, steps):
    """Describe settings as a case of `adadelta verify`; maximize is a gradient of other sign."""
    names = {"lr": "learning_rate", "rho": "rho", "eps": "epsilon", "weight_decay": "wd"}
    hyper = {
        name: given.get(key, default)
        for (key, name), default in zip(names.items(), (1.0, 0.9, 1e-6, 0.0), strict=True)
    }
    hyper["rescale_grad"] = -1.0 if given.get("maximize") else 1.0
    return Case("torch", "", SHAPES, Hyperparameters(**hyper), steps)


def assert_drift_within(given, grads, ours, stocks):
    """The stock's trajectory is within the running bound along the fused one."""
    case, arrays = case_of(given, len(grads)), [flat(each) for each in grads]
    verdicts = list(drifts(case, arrays, ours, stocks, ANY_ORDER))
    assert [v.passed for v in verdicts] == [True] * 3, verdicts
    assert all(v.left_out < 0.05 * v.difference.elements for v in verdicts), verdicts


@dtypes
@settings
@foreach
def test_each_step_is_within_the_bounds(dtype, settings, foreach):
    """Ten steps, the stock's each from the fused one's states before it."""
    grads = gradients(dtype, 10, 1)
    ours = Run(Adadelta, dtype, **settings)
    ours.step(grads[0])  # so that there are states
    got = {name: list(ours.states[name]) for name in TENSORS}
    for each in grads[1:]:
        saved, values = ours.optimizer.state_dict(), [t.detach() for t in ours.tensors]
        saved["state"] = {
            k: {name: t.clone() for name, t in v.items()} for k, v in saved["state"].items()
        }
        stock = Run(Stock, dtype, saved, values, **settings)
        stock.optimizer.param_groups[0]["foreach"] = foreach
        stock.step(each)
        ours.step(each)
        for name in TENSORS:
            got[name].append(stock.states[name][-1])
    arrays = [flat(each) for each in grads[1:]]
    # Those of docs/parity.md are for a gradient that is the same on both sides, but the stock
    # contracts the sum with the decay.
    allowed = ANY_ORDER if "weight_decay" in settings else PEERS["torch"].tolerance
    found = list(check_steps(case_of(settings, 9), arrays, ours.states, got, allowed))
    assert [verdict.passed for verdict in found] == [True] * 3, found
    assert any(verdict.difference.mismatches for verdict in found) or dtype is torch.float64


@dtypes
@settings
@foreach
def test_checkpoints_travel_within_the_bounds_of_ten_steps(dtype, settings, foreach, tmp_path):
    """The stock's checkpoint is loaded here, ten steps are taken and saved, the stock goes on.

    The ten steps here are within the running bound of the stock's own next ten. So are the stock's
    ten steps after them, of ten steps that were taken here instead.
    """
    grads = gradients(dtype, 23, 2)
    start = Run(Stock, dtype, foreach=foreach, **settings)
    for each in grads[:3]:
        start.step(each)
    given = start.saved(tmp_path / "stock.pt")
    for first, (kind, other) in enumerate(((Adadelta, Stock), (Stock, Adadelta))):
        chosen = grads[3 + 10 * first : 13 + 10 * first]
        runs = [Run(each, dtype, *copied(given), **settings) for each in (kind, other)]
        for each in chosen:
            for run in runs:
                run.step(each)
        ours, stock = runs if kind is Adadelta else runs[::-1]
        assert_drift_within(settings, chosen, ours.states, stock.states)
        given = ours.saved(tmp_path / "ours.pt")
    assert {state["step"].item() for state in ours.optimizer.state.values()} == {23}


def copied(given):
    """Copy a checkpoint: loading shares its memory."""
    saved, values = given
    states = {k: {name: t.clone() for name, t in v.items()} for k, v in saved["state"].items()}
    return saved | {"state": states}, values


@dtypes
@settings
def test_fifty_steps_of_a_training_are_within_the_bounds(dtype, settings):
    """Both from the start, with gradients that were drawn before."""
    grads = gradients(dtype, 50, 3)
    runs = [Run(kind, dtype, **settings) for kind in (Adadelta, Stock)]
    for run in runs:
        for name, each in (("weight", flat(run.tensors)), *((key, None) for key in KEYS)):
            run.states[name].append(np.zeros_like(flat(run.tensors)) if each is None else each)
        for each in grads:
            run.step(each)
    assert_drift_within(settings, grads, *(run.states for run in runs))
