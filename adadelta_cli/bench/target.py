"""An implementation's step on the tensors of a workload: bound, and checked before it is timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli.bench.timing_problem import Outcome, TimingProblem
from adadelta_cli.errors import of_device
from adadelta_cli.implementations.array_backends import Box
from adadelta_cli.implementations.base import StepInputs
from adadelta_cli.implementations.registry import YARDSTICKS
from adadelta_cli.update import Hyperparameters, Parameter, update
from adadelta_cli.verification.cases import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adadelta_cli.bench.buffers import TensorSet
    from adadelta_cli.bench.device import CpuDevice
    from adadelta_cli.implementations.base import Implementation

CHECKED_ELEMENTS = 4096  # of each tensor, spread over all of it
HYPER = Hyperparameters()


@dataclass(frozen=True)
class BenchTarget:
    """An implementation's step on tensors.

    Attributes:
        parameters: the tensors, in the arrays that the step takes.
        tensors: the same as they were allocated on the processor.
    """

    step: Callable[[], Any]
    parameters: list[Parameter]
    tensors: TensorSet
    processor: CpuDevice

    @classmethod
    def to(cls, chosen: Implementation, tensors: TensorSet, processor: CpuDevice) -> BenchTarget:
        """Bind an implementation, with a rate and a decay multiplier of one for each tensor."""
        wrap = processor.wrapped[chosen.timed_on or chosen.backend]
        parameters = [Parameter(*map(wrap, each.arrays)) for each in tensors.parameters]
        ones = [1.0] * len(parameters)
        step = (chosen.timed or chosen.bind)(StepInputs(parameters, HYPER, ones, ones))
        return cls(step, parameters, tensors, processor)

    @property
    def values(self) -> list[Parameter]:
        """The tensors as they are now, where they are."""
        return [
            Parameter(*(self.processor.view(box.value) for box in taken.arrays))
            if isinstance(taken.weight, Box)
            else own
            for taken, own in zip(self.parameters, self.tensors.parameters, strict=True)
        ]


def check_correct(chosen: Implementation, target: BenchTarget) -> TimingProblem | None:
    """Take one step and compare it with the array update; return what is wrong, if anything.

    Of each tensor some thousand elements are compared, spread over all of it: in every bit, or
    within the implementation's tolerance.
    """
    chunks = [_spread(p.weight.size) for p in target.values]
    before, layouts = _copies(target, chunks), _layouts(target)
    try:
        target.step()
        if _layouts(target) != layouts:
            return _wrong("it returned arrays of another dtype or shape")
    except Exception as error:  # noqa: BLE001 - whatever it raises, it cannot be timed
        return describe_exception(error)
    after = _copies(target, chunks)
    if any(
        now.grad.tobytes() != then.grad.tobytes() and chosen.keeps_grad
        for now, then in zip(after, before, strict=True)
    ):
        return _wrong("it changed the gradient")
    if chosen.is_built_in:
        return _difference(before, after)
    return _excess(chosen, before, after)


def _wrong(reason: str) -> TimingProblem:
    return TimingProblem(Outcome.WRONG, reason)


def _layouts(target: BenchTarget) -> list[list[tuple[Any, Any]]]:
    return [[(a.dtype, a.shape) for a in p.arrays] for p in target.values]


def describe_exception(error: Exception) -> TimingProblem:
    """Return what an exception of a step means, in one line.

    Raises:
        BrokenError: a GPU failed, which is no verdict on the step.
    """
    broken = of_device(error)
    if broken:
        raise broken from error
    text = f"raised {type(error).__name__}: {' '.join(str(error).split())}"
    return TimingProblem(Outcome.FAILED, text)


ENDS = 64  # elements at either end of a tensor, all of which are compared


def _spread(size: int) -> list[slice]:
    """Choose the elements to compare: both ends, and evenly spread ones between."""
    if size <= 2 * ENDS + CHECKED_ELEMENTS:
        return [slice(None)]
    between = slice(ENDS, -ENDS, -(-size // CHECKED_ELEMENTS))
    return [slice(ENDS), between, slice(-ENDS, None)]


def _copies(target: BenchTarget, chunks: Sequence[list[slice]]) -> list[Parameter]:
    def some(array: Any, parts: list[slice]) -> np.ndarray:
        flat, numpy = array.reshape(-1), target.processor.numpy
        return np.concatenate([numpy(flat[part]) for part in parts])

    return [
        Parameter(*(some(array, parts) for array in p.arrays))
        for p, parts in zip(target.values, chunks, strict=True)
    ]


def _difference(before: Sequence[Parameter], after: Sequence[Parameter]) -> TimingProblem | None:
    """Compare every bit with the array update, which is taken on `before`."""
    for each in before:
        update(np, each, HYPER.scalars(each.acc_grad.dtype), HYPER.learning_rate, HYPER.wd)
    differ = [
        now.view(f"u{now.itemsize}") != expected.view(f"u{now.itemsize}")
        for own, each in zip(after, before, strict=True)
        for now, expected in zip(own.arrays, each.arrays, strict=True)
    ]
    count, compared = (sum(map(of, differ)) for of in (np.count_nonzero, np.size))
    text = f"{count} of {compared} values differ from the array update"
    return _wrong(text) if count else None


def _excess(
    chosen: Implementation, before: Sequence[Parameter], after: Sequence[Parameter]
) -> TimingProblem | None:
    """Compare within the tolerance."""
    then, now = (
        {name: np.concatenate([getattr(p, name) for p in each]) for name in _FLOATS}
        for each in (before, after)
    )
    errors = _adam_errors if chosen.name in YARDSTICKS else _adadelta_errors
    beyond = [
        f"{tensor} is off by {error:.3g} ULPs, allowed are {allowed:g}"
        for tensor, error, allowed in errors(chosen, then, now)
    ]
    return _wrong("; ".join(beyond)) if beyond else None


_FLOATS = ("weight", "grad", "acc_grad", "acc_delta")
_Flat = dict[str, np.ndarray]
_Errors = Iterator[tuple[str, float, float]]
"""A tensor beyond its tolerance: its name, its error, the tolerance; in ULPs."""


def _adadelta_errors(chosen: Implementation, then: _Flat, now: _Flat) -> _Errors:
    from adadelta_cli.verification import tolerance

    grad = then["grad"]
    case = Case("timed", "the step that is timed", (grad.shape,), HYPER, 1)
    right = Parameter(*(then[name].copy() for name in _FLOATS))
    update(np, right, HYPER.scalars(grad.dtype), HYPER.learning_rate, HYPER.wd)
    reference = {name: [then[name], getattr(right, name)] for name in tolerance.TENSORS}
    got = {name: [then[name], now[name]] for name in tolerance.TENSORS}
    allowed: Any = chosen.tolerance
    for each in tolerance.check_steps(case, [grad], reference, got, allowed, flush=chosen.flushes):
        if not each.passed:
            yield each.tensor, each.difference.scaled_ulp, each.allowed_ulp


def _adam_errors(chosen: Implementation, then: _Flat, now: _Flat) -> _Errors:
    from adadelta_cli.implementations import frameworks
    from adadelta_cli.verification import tolerance
    from adadelta_cli.verification.ulp import Difference

    right = Parameter(*(then[name].astype(np.float64) for name in _FLOATS))
    frameworks.adam(right)
    for name in tolerance.TENSORS:
        wanted = getattr(right, name).astype(now[name].dtype)
        operand = np.maximum(abs(then[name]), abs(wanted - then[name]))
        error = Difference.between(now[name], wanted, operand).scaled_ulp
        if not error <= getattr(chosen.tolerance, name):
            yield name, error, getattr(chosen.tolerance, name)
