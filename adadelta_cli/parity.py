"""One step of somebody else's implementation against the array update, within bounds.

Others order the operations differently, so bits differ; how far is bounded in units in the last
place (ULPs) of the largest operand of the addition that each result comes from. Each step is
compared by itself, from the array update's own states, and weight and acc_delta are compared with
what the array update makes of *the implementation's own* acc_grad: so no error is counted twice,
and the bounds stay small. Their derivation is in docs/parity.md.

Three differences are excused and counted, for they are choices and not errors: where one order of
the operations leaves the range of the dtype and another does not; where an accumulator was
negative, which no sum of squares is; and subnormals that are flushed to zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adadelta_cli.difference import Difference
from adadelta_cli.update import Parameter, Scalars, update

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adadelta_cli.cases import Case
    from adadelta_cli.implementations import Bounds

States = dict[str, list[np.ndarray]]
TENSORS = ("acc_grad", "acc_delta", "weight")


@dataclass(frozen=True)
class Verdict:
    """What became of one tensor of a case, all steps together.

    Attributes:
        tensor: `weight`, `acc_grad` or `acc_delta`.
        difference: from the reference, excused elements apart; `scaled_ulp` is what is bounded.
        allowed_ulp: the bound.
        passed: whether it held.
        note: what was excused; where it failed, the worst element with its inputs.
    """

    tensor: str
    difference: Difference
    allowed_ulp: float
    passed: bool
    note: str


def verdicts(
    case: Case, dtype: str, seed: int, reference: States, got: States, allowed: Bounds
) -> Iterator[Verdict]:
    """Compare single steps of a case, a verdict for each tensor.

    Args:
        case: with which hyper-parameters and gradients.
        dtype: float32 or float64.
        seed: of the case.
        reference: the array update's trajectory; for each tensor the elements of all tensors end to
            end, an array for the start and for each step.
        got: the same of the implementation, each step taken from the reference's state before it.
        allowed: the bounds.
    """
    numbers = range(1, case.steps + 1)
    grads = [np.concatenate([g.ravel() for g in case.grads(dtype, seed, n)]) for n in numbers]
    return judged(case, grads, reference, got, allowed)


def judged(
    case: Case, grads: Sequence[np.ndarray], reference: States, got: States, allowed: Bounds
) -> Iterator[Verdict]:
    """Compare single steps that were taken with these gradients, in place of the case's own.

    Args:
        case: with which shapes, hyper-parameters and multipliers.
        grads: of each step, the elements of all tensors end to end, float32 or float64.
        reference: as `verdicts` has it.
        got: likewise.
        allowed: likewise.
    """
    numbered = enumerate(grads, 1)
    steps = [_compared(case, number, grad, reference, got) for number, grad in numbered]
    for tensor in TENSORS:
        yield _verdict(tensor, [step[tensor] for step in steps], getattr(allowed, tensor))


# --- one step -------------------------------------------------------------------------------------


class _Compared(NamedTuple):
    """One tensor after one step: flat arrays of the same length."""

    step: int
    got: np.ndarray
    wanted: np.ndarray
    scale: np.ndarray
    overflows: np.ndarray  # another order of the operations may leave the range
    negative: np.ndarray  # an accumulator
    flushed: np.ndarray  # largest error that flushing subnormals explains
    inputs: dict[str, np.ndarray]


def _compared(
    case: Case, number: int, grad: np.ndarray, reference: States, got: States
) -> dict[str, _Compared]:
    sizes = [int(np.prod(shape)) for shape in case.shapes]
    scalars = case.hyper.scalars(grad.dtype)
    rate = np.repeat([case.hyper.learning_rate * mult for mult in case.lr_mults], sizes)
    wd = np.repeat([case.hyper.wd * mult for mult in case.wd_mults], sizes)
    before = {name: states[number - 1] for name, states in reference.items()}
    after = {name: states[number] for name, states in got.items()}
    inputs = {**before, "grad": grad}
    with np.errstate(all="ignore"):
        x, operands = _decayed(scalars, grad, before["weight"], wd)
        wanted = _given(scalars, x, rate, before, after["acc_grad"], reference, number)
        reach = _reach(scalars, operands, rate, before, after["acc_grad"])
        share = scalars.one_minus_rho
        # Of a sum that cancels, what is left is rounding.
        least = np.finfo(grad.dtype).eps * operands
        scales = {
            "acc_grad": np.maximum(
                abs(wanted["acc_grad"]), share * np.maximum(abs(x), least) * operands
            ),
            "acc_delta": np.maximum(abs(wanted["acc_delta"]), share * reach.delta * reach.delta),
            "weight": np.maximum(abs(before["weight"]), reach.step),
        }
        overflows = _overflows(inputs, operands, reach)
        negative = (before["acc_grad"] < 0) | (before["acc_delta"] < 0)
    return {
        name: _Compared(
            number, after[name], wanted[name], _finite(scales[name]), overflows, negative,
            reach.flushed[name], inputs,
        )
        for name in TENSORS
    }  # fmt: skip


def _finite(scale: np.ndarray) -> np.ndarray:
    return np.nan_to_num(np.minimum(scale, np.finfo(scale.dtype).max / 2), nan=1.0)


def _stepped(
    scalars: Scalars, weight: Any, grad: Any, acc_grad: Any, acc_delta: Any,
    *, rate: Any = 0.0, wd: Any = 0.0,
) -> Parameter:  # fmt: skip
    """Take a step on copies, by the one formula that there is."""
    p = Parameter(weight.copy(), grad, acc_grad.copy(), acc_delta.copy())
    update(np, p, scalars, rate, wd)
    return p


def _plain(scalars: Scalars) -> Scalars:
    """Leave the gradient as it is."""
    one = type(scalars.rho)(1)
    return scalars._replace(rescale_grad=one, clip_gradient=type(one)(np.inf))


def _held(scalars: Scalars) -> Scalars:
    """Keep the accumulators as they are: rho 1, and 1 - rho 0."""
    one = type(scalars.rho)(1)
    return _plain(scalars)._replace(rho=one, one_minus_rho=type(one)(0))


def _decayed(
    scalars: Scalars, grad: np.ndarray, weight: np.ndarray, wd: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradient that the accumulators see, and the magnitudes that it is the sum of."""
    real = grad.dtype.type
    clip = scalars.clip_gradient
    scaled = grad * scalars.rescale_grad
    scaled = np.where(scaled < -clip, -clip, np.where(scaled > clip, clip, scaled))
    decay = real(wd) * weight
    return scaled + decay, abs(scaled) + abs(decay)


def _delta(
    scalars: Scalars, grad: np.ndarray, acc_grad: np.ndarray, acc_delta: np.ndarray
) -> np.ndarray:
    """Return the update's delta: what a step takes from a weight of 0 at a rate of -1."""
    zeros = np.zeros_like(grad)
    return _stepped(_held(scalars), zeros, grad, acc_grad, acc_delta, rate=-1.0).weight


def _given(
    scalars: Scalars, x: np.ndarray, rate: np.ndarray, before: dict[str, np.ndarray],
    acc_grad: np.ndarray, reference: States, number: int,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return what the update makes of all, given the acc_grad that the implementation made."""
    wanted = {name: states[number].copy() for name, states in reference.items()}
    differ = np.flatnonzero(acc_grad != wanted["acc_grad"])
    if differ.size:
        weight, acc_delta = before["weight"][differ], before["acc_delta"][differ]
        own, grad = acc_grad[differ], x[differ]
        held = _stepped(_held(scalars), weight, grad, own, acc_delta, rate=rate[differ])
        delta = _delta(scalars, grad, own, acc_delta)
        # An accumulator of squares is one, whatever it squares: here the deltas.
        squares = _stepped(_plain(scalars), weight, delta, acc_delta, acc_delta)
        wanted["weight"][differ], wanted["acc_delta"][differ] = held.weight, squares.acc_grad
    return wanted


class _Reach(NamedTuple):
    """How large things could be, had the gradient's own sum not cancelled."""

    delta: np.ndarray
    step: np.ndarray  # what is taken from the weight
    flushed: dict[str, np.ndarray]


def _reach(
    scalars: Scalars, operands: np.ndarray, rate: np.ndarray, before: dict[str, np.ndarray],
    acc_grad: np.ndarray,
) -> _Reach:  # fmt: skip
    tiny = np.finfo(operands.dtype).tiny
    step_rate = abs(operands.dtype.type(rate))
    delta = _delta(scalars, operands, acc_grad, before["acc_delta"])
    ratio = _delta(scalars, np.ones_like(operands), acc_grad, before["acc_delta"])
    least = 4 * tiny * (1 + ratio)
    return _Reach(
        delta,
        step_rate * delta,
        {
            "acc_grad": np.full_like(least, 4 * tiny),
            "acc_delta": 4 * tiny + least * (least + delta),
            "weight": 4 * tiny + least * step_rate,
        },
    )


def _overflows(inputs: dict[str, np.ndarray], operands: np.ndarray, reach: _Reach) -> np.ndarray:
    """Find where finite inputs come near the largest number."""
    finite = np.logical_and.reduce([np.isfinite(each) for each in inputs.values()])
    large = [*inputs.values(), operands**2, reach.delta**2, reach.step]
    near = np.logical_or.reduce([~(abs(each) * 16 < np.inf) for each in large])
    return finite & near


# --- all steps ------------------------------------------------------------------------------------


def _verdict(tensor: str, steps: Sequence[_Compared], allowed: float) -> Verdict:
    joined = _joined(steps)
    raw = _scaled(joined)
    beyond = raw > allowed
    overflows = beyond & joined.overflows
    negative = beyond & ~overflows & joined.negative
    flushed = beyond & ~overflows & ~negative & (_error(joined) <= joined.flushed)
    excused = overflows | negative | flushed
    kept = np.where(excused, joined.wanted, joined.got)
    difference = Difference.between(kept, joined.wanted, joined.scale)
    passed = difference.scaled_ulp <= allowed
    notes = [
        f"{count} excused: {why}"
        for why, count in (
            ("another order of the operations leaves the range of the dtype", overflows.sum()),
            ("an accumulator was negative, which no sum of squares is", negative.sum()),
            ("subnormals flushed to zero", flushed.sum()),
        )
        if count
    ]
    if passed and not difference.mismatches:
        notes.insert(0, "equal in every bit" if not notes else "else equal in every bit")
    if not passed:
        notes.insert(0, _worst(steps, np.where(excused, 0, raw)))
    return Verdict(tensor, difference, allowed, passed, "; ".join(notes))


def _joined(steps: Sequence[_Compared]) -> _Compared:
    names = ("got", "wanted", "scale", "overflows", "negative", "flushed")
    arrays: dict[str, Any] = {n: np.concatenate([getattr(s, n) for s in steps]) for n in names}
    return steps[0]._replace(**arrays)


def _error(compared: _Compared) -> np.ndarray:
    """Return absolute errors; infinite where a NaN stands against a number."""
    with np.errstate(all="ignore"):
        got, wanted = (each.astype(np.longdouble) for each in (compared.got, compared.wanted))
        same = (got == wanted) | (np.isnan(got) & np.isnan(wanted))
        error = np.where(same, 0, abs(got - wanted))
        return np.where(np.isnan(error), np.inf, error)


def _scaled(compared: _Compared) -> np.ndarray:
    return _error(compared) / np.spacing(compared.scale)


def _worst(steps: Sequence[_Compared], scaled: np.ndarray) -> str:
    """Name the worst element, with all that is needed to compute it again."""
    number, index = divmod(int(scaled.argmax()), steps[0].got.size)
    step = steps[number]
    inputs = ", ".join(f"{name} {float(v[index]).hex()}" for name, v in step.inputs.items())
    return (
        f"worst at step {step.step}, element {index}: got {float(step.got[index]).hex()}, expected "
        f"{float(step.wanted[index]).hex()}; from {inputs}"
    )
