"""The states of an AdaDelta optimizer, whatever file they are from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli.errors import UsageError, shortened
from adadelta_cli.update import Hyperparameters

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

DTYPES = ("float32", "float64")
MOST_UPDATES = 2**53  # a count is a double in some files
ARRAYS = ("acc_grad", "acc_delta", "master")


@dataclass(frozen=True, eq=False)
class TensorState:
    """The states of one parameter.

    Attributes:
        number: of the parameter in the optimizer.
        source: its number in the file that is converted; None if that does not have it.
        name: of the parameter; its number if the file has no names.
        learning_rate, wd: its own, multipliers included.
        updates: how often it was updated.
        acc_grad, acc_delta: float32 or float64 of one shape; None if it has no states yet.
        master: the float32 copy of a float16 weight; None without one.
    """

    number: int
    name: str
    learning_rate: float
    wd: float
    updates: int = 0
    acc_grad: Any = None
    acc_delta: Any = None
    master: Any = None
    source: int | None = None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Those that it has, by name."""
        found = {name: getattr(self, name) for name in ARRAYS}
        return {name: array for name, array in found.items() if array is not None}


@dataclass(frozen=True, eq=False)
class States:
    """The content of a file of states.

    Attributes:
        tensors: one for each parameter, in the order of the optimizer.
        hyper: what all of them share; `learning_rate` and `wd` are those of the optimizer.
        remarks: what a user has to know of this file.
    """

    tensors: list[TensorState]
    hyper: Hyperparameters
    remarks: list[str] = field(default_factory=list)


def hyperparameters(**values: Any) -> Hyperparameters:
    """Check hyper-parameters; clipping at infinity is none.

    Raises:
        UsageError: one is out of range.
    """
    try:
        if values.get("clip_gradient") == np.inf:
            values["clip_gradient"] = None
        return Hyperparameters(**values)
    except ValueError as error:
        raise UsageError(str(error)) from error


def check(path: Path, states: States) -> None:
    """Check that a training can go on with these states.

    Raises:
        UsageError: there are none, or a parameter's are damaged or those of a diverged training.
    """
    if not any(each.arrays for each in states.tensors):
        raise UsageError(f"{path} has no states: save them after the first step")
    for each in states.tensors:
        if problem := _problem(each):
            raise UsageError(f"{path}: parameter {shortened(each.name)} {problem}")


def _problem(each: TensorState) -> str:
    """Return what is wrong with the states of a parameter; empty if nothing is."""
    found = each.arrays
    if not 0 <= each.updates < MOST_UPDATES:
        return f"was updated {each.updates} times; expected a count from 0 to 2^53"
    if not found:
        return ""
    if not {"acc_grad", "acc_delta"} <= found.keys():
        return "lacks one of its two states; save the states again"
    return _problem_of_layout(found) or _problem_of_values(found)


def _problem_of_layout(found: dict[str, np.ndarray]) -> str:
    kinds = {str(array.dtype) for array in found.values()}
    shapes = {array.shape for array in found.values()}
    allowed = DTYPES if "master" not in found else DTYPES[:1]
    if len(shapes) == len(kinds) == 1 and kinds <= {*allowed}:
        return ""
    layouts = listed(f"{name} {a.dtype}{list(a.shape)}" for name, a in found.items())
    return f"has {layouts}; expected {' or '.join(allowed)} throughout, of one shape"


def _problem_of_values(found: dict[str, np.ndarray]) -> str:
    for name in ("acc_grad", "acc_delta"):
        if not (np.isfinite(found[name]) & (found[name] >= 0)).all():
            return (
                f"has a number in its {name} that is negative, infinite or NaN: the training "
                "diverged, or the file is damaged; use states from before that"
            )
    return ""


def reordered(states: States, order: Sequence[int | None], *, packed: bool) -> States:
    """Return the tensors in another order, each with its number before.

    Args:
        states: the tensors.
        order: for each parameter of the result, the number of its source; None for one without
            states. Empty: the order stays.
        packed: where no order is given, number the tensors from 0 on; else they keep theirs.

    Raises:
        UsageError: it names a number that the states do not have, leaves one out, or repeats one.
    """
    known = {each.number: each for each in states.tensors}
    if not order:
        numbers = range(len(known)) if packed else known
        tensors = [_renumbered(*each) for each in zip(states.tensors, numbers, strict=True)]
        return replace(states, tensors=tensors)
    _check_order([number for number in order if number is not None], [*known])
    rate, wd = states.hyper.learning_rate, states.hyper.wd
    tensors = [
        TensorState(k, str(k), rate, wd) if number is None else _renumbered(known[number], k)
        for k, number in enumerate(order)
    ]
    return replace(states, tensors=tensors)


def _renumbered(each: TensorState, number: int) -> TensorState:
    name = str(number) if each.name == str(each.number) else each.name
    return replace(each, number=number, name=name, source=each.number)


def _check_order(named: list[int], known: list[int]) -> None:
    problems = {
        "names parameters that the file does not have": sorted({*named} - {*known}),
        "leaves out parameters": sorted({*known} - {*named}),
        "names parameters twice": sorted({each for each in named if named.count(each) > 1}),
    }
    for problem, numbers in problems.items():
        if numbers:
            raise UsageError(
                f"--order {problem}: {listed(numbers)}; expected each of {listed(known)} once"
            )


def listed(values: Iterable[Any]) -> str:
    """List values for a message; of many, the ends."""
    return shortened(", ".join(map(str, values)))
