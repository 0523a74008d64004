"""The `state_dict` of `torch.optim.Adadelta`, as `torch.save` writes it."""

from __future__ import annotations

import io
import math
import pickle
import warnings
import zipfile
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from adadelta_cli import inputs
from adadelta_cli.conversion.states import States, TensorState, hyperparameters
from adadelta_cli.errors import UsageError, in_one_line, shortened
from adadelta_cli.torch import Adadelta
from adadelta_cli.torch.group import ACCUMULATORS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adadelta_cli.conversion.replay import Drawn, Results

MASTERS = "master_weights"  # beside "state" and "param_groups", where `load_state_dict` ignores it
EXPECTED = "expected what torch.save(optimizer.state_dict(), FILE) writes"
SHARED = {"rho": "rho", "eps": "epsilon"}  # PyTorch's name of what MXNet has once for all


def read(path: Path) -> States:
    """Read the file.

    Raises:
        UsageError: it is damaged, hostile, of another optimizer, or has what AdaDelta of MXNet
            lacks: different values of rho or eps, or maximize.
    """
    document = load(path)
    groups, saved = document["param_groups"], document["state"]
    masters = document.get(MASTERS, {})
    common = _common(path, groups)
    first = groups[0]
    hyper = hyperparameters(
        learning_rate=_number(path, "lr", first), wd=_number(path, "weight_decay", first), **common
    )
    left = path.stat().st_size  # a view may claim more elements than its memory has
    tensors = []
    for group in groups:
        own = _number(path, "lr", group), _number(path, "weight_decay", group)
        for number in group["params"]:
            state = saved.get(number, {})
            arrays = [state[key] for key in ACCUMULATORS] if state else []
            arrays += [masters[number]] if number in masters else []
            left -= sum(_nbytes(path, number, each) for each in arrays)
            if left < 0:
                raise UsageError(f"{path} is damaged: its tensors are larger than the file")
            updates = _updates(path, number, state["step"]) if state else 0
            values = [_values(each) for each in arrays]
            tensors.append(TensorState(number, str(number), *own, updates, *values))
    return States(tensors, hyper)


def load(path: Path) -> dict[str, Any]:
    """Load a file and check its structure; nothing that it names is run.

    Raises:
        UsageError: it is no `state_dict` of an Adadelta.
    """
    if reason := inputs.unreadable_reason(path):
        raise UsageError(f"{path} cannot be read: {reason}; {EXPECTED}")
    try:
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about types of storage
            document = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path} holds more than tensors and plain values ({shortened(in_one_line(error))}), "
            f"which is refused, as loading it can run code; {EXPECTED}"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged file raises many types
        reason = shortened(in_one_line(error))
        raise UsageError(f"{path} is no file of torch.save ({reason}); {EXPECTED}") from error
    if problem := _problem(document):
        raise UsageError(f"{path} {problem}; {EXPECTED}")
    return document


def _check_archive(path: Path) -> None:
    """Check that the parts are not larger than the file.

    Raises:
        ValueError: they are, or it is no archive: `torch.save` wrote none before PyTorch 1.6.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no archive; a file from before PyTorch 1.6 has to be saved again")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    stored = all(each.compress_type == zipfile.ZIP_STORED for each in members)
    if not stored or sum(each.file_size for each in members) > path.stat().st_size:
        raise ValueError("it is compressed, or its parts are larger than the file")


def _problem(document: Any) -> str:
    """Return what differs from a `state_dict` of Adadelta; empty if nothing does."""
    if not isinstance(document, dict) or not {"state", "param_groups"} <= document.keys():
        keys = ", ".join(map(repr, document)) if isinstance(document, dict) else ""
        return f"holds {f'the keys {shortened(keys)}' if keys else 'no state_dict'}"
    groups, saved, masters = document["param_groups"], document["state"], document.get(MASTERS, {})
    if type(groups) is not list or not groups or not all(map(_is_group, groups)):
        return "has no parameter groups of an Adadelta"
    numbers = [number for group in groups for number in group["params"]]
    if not numbers or len(numbers) != len({*numbers}):
        return "names a parameter twice, or none"
    for each in (saved, masters):
        if not isinstance(each, dict) or not {*each} <= {*numbers}:
            return "has states of parameters that are in no group"
    for number, state in saved.items():
        wanted = {"step", *ACCUMULATORS}
        if not isinstance(state, dict) or (state and not wanted <= {*state}):
            found = ", ".join(map(str, state)) if isinstance(state, dict) else type(state).__name__
            return f"has other states than Adadelta's for parameter {number}: {shortened(found)}"
    return ""


def _is_group(group: Any) -> bool:
    known = {"params", "lr", "rho", "eps", "weight_decay"}
    if not isinstance(group, dict) or not known <= group.keys():
        return False
    params = group["params"]
    return type(params) is list and all(type(each) is int and each >= 0 for each in params)


def _common(path: Path, groups: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return what all groups have to share, by MXNet's names."""
    if any(group.get("maximize") for group in groups):
        raise UsageError(f"{path} has maximize, which other frameworks lack; minimize -loss there")
    found = {}
    for name, other in SHARED.items():
        values = sorted({_number(path, name, group) for group in groups})
        if len(values) > 1:
            listed = shortened(", ".join(map(str, values)))
            raise UsageError(
                f"{path} has groups with different {name} ({listed}); MXNet has one for all "
                "parameters: convert each group by itself"
            )
        found[other] = values[0]
    return found


def _number(path: Path, name: str, group: dict[str, Any]) -> float:
    value = _as_float(group[name])
    if not math.isfinite(value):
        raise UsageError(f"{path}: {name} is {shortened(group[name])}; expected a number")
    return value


def _updates(path: Path, number: int, step: Any) -> int:
    count = _as_float(step)
    if not math.isfinite(count) or count % 1:
        raise UsageError(
            f"{path}: parameter {number} has the count {shortened(step)}; expected a whole number"
        )
    return int(count)


def _as_float(value: Any) -> float:
    """Return a number, or that in a tensor, as a float; NaN for anything else."""
    is_number = isinstance(value, (int, float)) or type(value) is torch.Tensor
    try:
        return float(value) if is_number else math.nan
    except (
        RuntimeError,
        ValueError,
        TypeError,
        OverflowError,
    ):  # a tensor of several; an integer of many digits
        return math.nan


def _values(tensor: Any) -> Any:
    """Copy a tensor's values to NumPy, also one that requires a gradient, or is kept negated."""
    return tensor.detach().resolve_neg().contiguous().numpy()


def _nbytes(path: Path, number: int, tensor: Any) -> int:
    """Check a tensor of states; return its bytes."""
    usable = (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.float64)
    )
    if not usable:
        found = getattr(tensor, "dtype", type(tensor).__name__)
        raise UsageError(
            f"{path}: parameter {number} has states of {found}; convert takes dense float32 and "
            "float64"
        )
    return int(tensor.numel() * tensor.element_size())


def content(states: States) -> bytes:
    """Return the bytes of the file.

    Raises:
        UsageError: PyTorch's Adadelta refuses a hyper-parameter.
    """
    groups = []
    for (rate, decay), each in _by_settings(states):
        if rate < 0 or decay < 0:
            raise UsageError(
                f"the rate is {rate:g} and the weight decay {decay:g}; PyTorch's Adadelta takes "
                "none that is negative"
            )
        parameters = [torch.nn.Parameter(torch.empty(0)) for _ in each]
        groups.append({"params": parameters, "lr": rate, "weight_decay": decay})
    made = torch.optim.Adadelta(groups, rho=states.hyper.rho, eps=states.hyper.epsilon)
    document: dict[str, Any] = made.state_dict()
    for group, (_, each) in zip(document["param_groups"], _by_settings(states), strict=True):
        group["params"] = [t.number for t in each]
    document["state"] = {t.number: _state(t) for t in states.tensors if t.arrays}
    masters = {t.number: t.master for t in states.tensors if t.master is not None}
    if masters:
        document[MASTERS] = {number: torch.tensor(master) for number, master in masters.items()}
    stream = io.BytesIO()
    torch.save(document, stream)
    return stream.getvalue()


def _by_settings(states: States) -> list[tuple[tuple[float, float], list[TensorState]]]:
    """Return the parameters by rate and decay, in runs: PyTorch counts from group to group."""

    def settings(each: TensorState) -> tuple[float, float]:
        return each.learning_rate, each.wd

    return [(key, list(group)) for key, group in groupby(states.tensors, settings)]


def _state(each: TensorState) -> dict[str, Any]:
    arrays = map(torch.tensor, (each.acc_grad, each.acc_delta))
    count = torch.tensor(float(each.updates), dtype=torch.float32)  # as PyTorch counts
    return {"step": count, **dict(zip(ACCUMULATORS, arrays, strict=True))}


def remarks(states: States) -> list[str]:
    """Say what a user has to do besides loading the file."""
    found, h = [], states.hyper
    if h.rescale_grad != 1:
        found.append(
            f"rescale_grad is {h.rescale_grad:g} and has no counterpart: scale the loss by it "
            "(loss.mean() is what a Trainer's batch size does to a sum)"
        )
    if h.clip_gradient is not None:
        found.append(
            f"clip_gradient is {h.clip_gradient:g} and has no counterpart: call "
            "torch.nn.utils.clip_grad_value_ before each step"
        )
    if any(each.master is not None for each in states.tensors):
        found.append(
            "weights in float16 with float32 masters: in PyTorch, keep float32 parameters (torch."
            f"amp computes in float16); the masters are in the file, under {MASTERS!r}"
        )
    groups = _by_settings(states)
    if len(groups) > 1:
        sizes = ", ".join(
            f"{len(each)} (lr {lr:g}, weight_decay {wd:g})" for (lr, wd), each in groups
        )
        found.append(f"make {len(groups)} parameter groups, of these sizes in order: {sizes}")
    return found


def replay(path: Path, drawn: Drawn) -> Results:
    """Load the file into this package's Adadelta and take the steps."""
    document = load(path)
    tensors, groups = {}, []
    for group in document["param_groups"]:
        chosen = []
        for number in group["params"]:
            weight = drawn.weights.get(number, np.zeros(0, np.float32))
            tensors[number] = torch.nn.Parameter(torch.tensor(weight))
            chosen.append(tensors[number])
        groups.append({"params": chosen})
        group["capturable"] = group["differentiable"] = False  # of a training, not of its states
    for state in filter(None, document["state"].values()):
        state.update({key: state[key].contiguous() for key in ACCUMULATORS})  # as the weights
    optimizer = Adadelta(groups)
    optimizer.load_state_dict(document)
    for step in drawn.numbered_steps():
        for number in drawn.weights:
            tensors[number].grad = torch.from_numpy(drawn.processed_grad(step, number))
        optimizer.step()
    return {
        number: [_values(tensors[number])]
        + [_values(optimizer.state[tensors[number]][key]) for key in ACCUMULATORS]
        for number in drawn.weights
    }
