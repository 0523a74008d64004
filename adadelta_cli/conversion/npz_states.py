"""States as NumPy arrays: `checkpoint.npz` of `run`, or a plain archive (docs/cli.md)."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli.conversion.states import ARRAYS, States, TensorState, hyperparameters
from adadelta_cli.errors import UsageError, in_one_line, shortened
from adadelta_cli.kernels.step import FusedStep
from adadelta_cli.run import npz
from adadelta_cli.update import Parameter

if TYPE_CHECKING:
    from pathlib import Path

    from adadelta_cli.conversion.replay import Drawn, Results

HYPER = ("learning_rate", "rho", "epsilon", "wd", "rescale_grad", "clip_gradient")
OF_TENSOR = (*ARRAYS, "weight", "updates", "learning_rate", "wd")
EXPECTED = (
    "expected checkpoint.npz of a run, or arrays acc_grad/NAME and acc_delta/NAME for each "
    "parameter"
)


def read(path: Path) -> States:
    """Read the archive.

    Raises:
        UsageError: it is damaged, or holds something else.
    """
    arrays = npz.load_arrays(path, "is no archive of states", EXPECTED)
    document = arrays.pop("document", None)
    settings, updates = ({}, 0) if document is None else _of_checkpoint(path, document)
    parts: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for key, array in arrays.items():
        kind, slash, name = key.partition("/")
        if kind not in (OF_TENSOR if slash else HYPER) or array.dtype.kind != "f":
            raise UsageError(f"{path} holds {shortened(key)} ({array.dtype}); {EXPECTED}")
        if slash:
            parts[name][kind] = array
        else:
            settings[kind] = _number(path, key, array)
    hyper = hyperparameters(**settings)
    own = {"learning_rate": hyper.learning_rate, "wd": hyper.wd, "updates": float(updates)}
    named = all(name.isdecimal() and name.isascii() and str(int(name)) == name for name in parts)
    tensors = []
    for position, (name, found) in enumerate(parts.items()):
        rate, wd, count = (
            _number(path, f"{key}/{name}", found[key]) if key in found else usual
            for key, usual in own.items()
        )
        if count % 1:
            raise UsageError(f"{path}: updates/{shortened(name)} is no whole number")
        acc_grad, acc_delta, master = map(found.get, ARRAYS)
        number = int(name) if named else position
        tensors.append(TensorState(number, name, rate, wd, int(count), acc_grad, acc_delta, master))
    return States(sorted(tensors, key=lambda each: each.number), hyper)


def _of_checkpoint(path: Path, document: np.ndarray) -> tuple[dict[str, Any], int]:
    """Return the hyper-parameters of a run, and its steps."""
    try:
        found = json.loads(str(document))
        identity, step = found["identity"], found["step"]
        name = identity.get("optimizer.name", "adadelta")  # older runs had no other
        if name != "adadelta":
            raise ValueError(f"it is a run of {shortened(name)}")  # noqa: TRY301 - one message
        settings = {name: identity[f"optimizer.{name}"] for name in HYPER}
        if type(step) is not int:
            raise TypeError(f"its step is {shortened(step)}")  # noqa: TRY301 - one message
    except (AttributeError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError(
            f"{path} is no checkpoint of AdaDelta: {in_one_line(error)}; {EXPECTED}"
        ) from error
    return settings, step


def _number(path: Path, key: str, array: np.ndarray) -> float:
    if array.ndim or not np.isfinite(array):
        raise UsageError(f"{path}: {shortened(key)} is {shortened(array)}; expected one number")
    return float(array)


def content(states: States) -> bytes:
    """Return the bytes of a plain archive."""
    arrays: dict[str, Any] = {
        name: np.float64(value) for name, value in vars(states.hyper).items() if value is not None
    }
    for each in _named(states):
        arrays |= {f"{name}/{each.name}": array for name, array in each.arrays.items()}
        arrays[f"updates/{each.name}"] = np.float64(each.updates)
        for name in ("learning_rate", "wd"):
            if getattr(each, name) != arrays[name]:
                arrays[f"{name}/{each.name}"] = np.float64(getattr(each, name))
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def _named(states: States) -> list[TensorState]:
    """Return the tensors with names that lead back to them: else their numbers."""
    names = {each.name for each in states.tensors}
    if len(names) == len(states.tensors) and not any(map(str.isdecimal, names)):
        return list(states.tensors)
    return [replace(each, name=str(each.number)) for each in states.tensors]


def remarks(_states: States) -> list[str]:
    """Say what a user has to do besides loading the file: nothing."""
    return []


def replay(path: Path, drawn: Drawn) -> Results:
    """Load the archive into a `FusedStep` and take the steps."""
    states = read(path)
    kept = [each for each in states.tensors if each.number in drawn.weights]
    parameters = {each.number: _parameter(each, drawn) for each in kept}
    own = {name: [getattr(each, name) for each in kept] for name in ("learning_rate", "wd")}
    settings: dict[str, Any] = vars(states.hyper) | own
    step = FusedStep(parameters.values(), **settings)
    for k in drawn.numbered_steps():
        for number, p in parameters.items():
            p.grad[...] = drawn.grad(k, number)
        step()
    return {
        number: [p.weight if p.master is None else p.master, p.acc_grad, p.acc_delta]
        for number, p in parameters.items()
    }


def _parameter(each: TensorState, drawn: Drawn) -> Parameter:
    weight = drawn.stored_weight(each.number)
    master = None if each.master is None else drawn.weights[each.number].copy()
    acc_grad, acc_delta = (np.array(a, order="C") for a in (each.acc_grad, each.acc_delta))
    return Parameter(weight, np.zeros_like(weight), acc_grad, acc_delta, master)
