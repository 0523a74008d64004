"""Compare steps of third-party code with the array update, within bounds.

Other implementations order the operations differently, so bits differ. The bound on the difference
is in units in the last place (ULPs) of the largest operand of the addition that each result comes
from. Each step is compared by itself, from the array update's own states. docs/own-kernels.md
derives the bounds, docs/parity.md those of other frameworks.

A result may be outside its bound for two reasons. Both are decided from the inputs and the formula
in a wider range (`WideStep`), never from the result under test, and both are counted:

* Range: the result is right in another order of the operations, which leaves the range of the dtype
  elsewhere than the array update does. A case states how many of these it allows.
* Subnormals are flushed to zero, where the caller allows that.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adadelta_cli.update import Parameter, Scalars, update
from adadelta_cli.verification.ulp import BoundVerdict, Difference, describe_worst, differing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adadelta_cli.implementations.base import ToleranceULP
    from adadelta_cli.verification.cases import Case

States = dict[str, list[np.ndarray]]
Tensors = dict[str, np.ndarray]
TENSORS = ("acc_grad", "acc_delta", "weight")
WIDE = np.longdouble
# Another order of the operations may overflow where a product is within this factor of the largest
# number: no factor that the orders move (1 - rho, a root, a rate) is counted twice.
NEAR = 16
STRICT_HINT = (
    "differs only where subnormal numbers are involved; expected strict IEEE 754; if the kernel "
    "flushes subnormals to zero on purpose, set subnormals to flush"
)


@dataclass(frozen=True)
class StepVerdict:
    """The comparison of one tensor of a case, all steps together."""

    tensor: str
    difference: Difference  # excused elements apart; `scaled_ulp` is what is bounded
    excused: int  # elements outside the bound for one of the two reasons
    allowed_ulp: float
    passed: bool | None  # None where every element is excused
    note: str  # what is excused; after a failure, the worst element with its inputs
    # The results of each step, the excused ones replaced by the reference's.
    kept: Sequence[np.ndarray] = field(repr=False, default=())
    only_subnormals: bool = False  # it failed, and would not if subnormals might be flushed


def gradients(case: Case, dtype: str, seed: int) -> list[np.ndarray]:
    """Return a case's gradients of each step, the elements of all tensors end to end."""
    numbers = range(1, case.steps + 1)
    return [np.concatenate([g.ravel() for g in case.grads(dtype, seed, n)]) for n in numbers]


def check_steps(
    case: Case,
    grads: Sequence[np.ndarray],
    reference: States,
    got: States,
    allowed: ToleranceULP,
    *,
    flush: bool = False,
) -> Iterator[StepVerdict]:
    """Compare single steps, a verdict for each tensor.

    Args:
        case: its shapes, hyper-parameters and multipliers.
        grads: of each step, the elements of all tensors end to end, float32 or float64.
        reference: `Trajectory.tensors` of the array update.
        got: those of the implementation, each step from the reference's state before it.
        allowed: the bounds.
        flush: subnormals may be flushed to zero.
    """
    setting = _Setting.of(case, allowed, flush=flush)
    steps = [_compared(setting, k, grad, reference, got) for k, grad in enumerate(grads, 1)]
    for tensor in TENSORS:
        yield _verdict(setting, tensor, [step[tensor] for step in steps])


class _Setting(NamedTuple):
    """A case and its bounds, with the learning rate and the weight decay of each element."""

    case: Case
    allowed: ToleranceULP
    flush: bool
    rate: np.ndarray  # float64, as `wd`
    wd: np.ndarray

    @classmethod
    def of(cls, case: Case, allowed: ToleranceULP, *, flush: bool) -> _Setting:
        """Repeat the rate and the decay of each tensor for its elements."""
        sizes = [int(np.prod(shape)) for shape in case.shapes]
        rate = np.repeat(np.multiply(case.hyper.learning_rate, case.lr_mults), sizes)
        wd = np.repeat(np.multiply(case.hyper.wd, case.wd_mults), sizes)
        return cls(case, allowed, flush, rate, wd)

    def wide_step(self, before: Tensors, grad: np.ndarray, at: np.ndarray) -> WideStep:
        """Take a step in a wider range on the elements at these places."""
        some = {name: array[at] for name, array in before.items()}
        scalars = self.case.hyper.scalars(grad.dtype)
        return WideStep.of(scalars, some, grad[at], self.rate[at], self.wd[at])

    def slack(self, exact: WideStep, unit: float) -> Tensors:
        """Bound the error of each result where each operation may lose `unit`.

        This is the least subnormal number for gradual underflow, the least normal one where
        subnormals are flushed to zero.
        """
        hyper, each, e = self.case.hyper, WIDE(4 * unit), exact
        largest_decay = float(np.abs(self.wd).max(initial=0.0))
        of_x = each * (1 + abs(hyper.rescale_grad) + largest_decay)
        # The factors of an update may be multiplied in any order.
        of_delta = of_x * (1 + e.ratio + e.root + e.inverse)
        # Or the root of a quotient, which underflows sooner, and is zero at worst.
        of_delta += np.minimum(e.x * each / (e.ratio + np.sqrt(each)), e.delta)
        lost = {
            "acc_grad": each + of_x * (of_x + e.x),
            "acc_delta": each + of_delta * (of_delta + e.delta),
            "weight": each + of_delta * (1 + e.rate),
        }
        # An infinite factor gives another product with zero than with a number rounded to zero.
        infinite = np.where(e.x <= of_x, np.inf, 0)
        return {name: np.where(np.isfinite(v), v, infinite) for name, v in lost.items()}


class WideStep(NamedTuple):
    """A step in a wider range, and the size of its terms; flat arrays of `WIDE`."""

    after: Tensors  # the results
    # The magnitude of the largest operand of the last addition, without cancellation in the
    # gradient's own sum.
    scales: Tensors
    rate: np.ndarray  # the magnitude of the learning rate
    x: np.ndarray  # the magnitudes of the two parts of the pre-processed gradient, added up
    root: np.ndarray  # sqrt(acc_delta + epsilon)
    inverse: np.ndarray  # 1 / sqrt(acc_grad + epsilon), with the new acc_grad
    ratio: np.ndarray  # root / sqrt(acc_grad + epsilon), with the new acc_grad
    negative: np.ndarray  # the argument of a root is negative, or may be so by rounding errors
    still: Tensors  # the results of an update of zero

    @property
    def delta(self) -> np.ndarray:
        """The largest possible update."""
        return self.ratio * self.x

    def ulp(self, tensor: str, dtype: np.dtype) -> np.ndarray:
        """Return the unit in the last place of the scale of each result, WIDE.

        The scale may be beyond the range of the dtype, where large operands cancelled.
        """
        info = np.finfo(dtype)
        scale = np.nan_to_num(self.scales[tensor], nan=1.0, posinf=float(info.max) / 2)
        ulp = np.spacing(scale) * WIDE(2.0) ** (np.finfo(WIDE).nmant - info.nmant)
        return np.maximum(ulp, WIDE(info.smallest_subnormal))

    @classmethod
    def of(
        cls, scalars: Scalars, before: Tensors, grad: np.ndarray, rate: np.ndarray, wd: np.ndarray
    ) -> WideStep:
        """Take a step; the scalars are rounded to the dtype of the step."""
        h, least = Scalars(*map(WIDE, scalars)), np.finfo(grad.dtype).eps
        w, g, a, d, rate, wd = (
            each.astype(WIDE)
            for each in (before["weight"], grad, before["acc_grad"], before["acc_delta"], rate, wd)
        )
        p = Parameter(w.copy(), g, a.copy(), d.copy())
        update(np, p, h, rate, wd)  # type: ignore[arg-type] # one for each element
        scaled = np.clip(g * h.rescale_grad, -h.clip_gradient, h.clip_gradient)
        x = abs(scaled) + abs(wd * w)
        left = np.maximum(abs(scaled + wd * w), least * x)  # of a sum that cancels: its rounding
        arguments = d + h.epsilon, p.acc_grad + h.epsilon
        root, below = map(np.sqrt, arguments)
        ratio = root / below
        # Negative accumulators may cancel with epsilon; else these are 1.
        sums = abs(d) + h.epsilon, abs(h.rho * a) + h.one_minus_rho * left * left + h.epsilon
        conditions = [np.maximum(1, s / abs(v)) for s, v in zip(sums, arguments, strict=True)]
        condition = np.where((a < 0) | (d < 0), np.maximum(*conditions), 1)
        terms = {
            "acc_grad": (p.acc_grad, h.rho * a, h.one_minus_rho * left * x),
            "acc_delta": (p.acc_delta, h.rho * d, h.one_minus_rho * (ratio * x) ** 2 * condition),
            "weight": (w, rate * ratio * x * condition),
        }
        scales = {name: np.maximum.reduce(list(map(abs, each))) for name, each in terms.items()}
        after = {name: getattr(p, name) for name in TENSORS}
        negative = (np.minimum(*arguments) < 0) | (NEAR * least * condition > 1)
        still = {"acc_delta": h.rho * d, "weight": w}
        return cls(after, scales, abs(rate), x, root, 1 / below, ratio, negative, still)


class _Compared(NamedTuple):
    """One tensor after one step: all results, and details of those that differ from the reference.

    The arrays from `error` on have an element for each place in `at`.
    """

    step: int
    got: np.ndarray
    wanted: np.ndarray
    inputs: Tensors
    at: np.ndarray  # where a bit differs
    error: np.ndarray  # in ULPs of the scale
    beyond: np.ndarray  # outside the bound
    flushed: np.ndarray  # outside, and explained by flushed subnormals
    ranged: np.ndarray  # outside, and right in another order of the operations
    excused: np.ndarray  # outside for a reason that is allowed

    @property
    def kept(self) -> np.ndarray:
        """The results, the excused ones replaced by the reference's."""
        excused = self.at[self.excused]
        if not excused.size:
            return self.got
        kept = self.got.copy()
        kept[excused] = self.wanted[excused]
        return kept


def _compared(
    setting: _Setting, number: int, grad: np.ndarray, reference: States, got: States
) -> dict[str, _Compared]:
    before = {name: reference[name][number - 1] for name in TENSORS}
    after = {name: (got[name][number], reference[name][number]) for name in TENSORS}
    at = np.unique(np.concatenate([differing(*pair) for pair in after.values()]))
    info, found = np.finfo(grad.dtype), {}
    with np.errstate(all="ignore"):
        exact = setting.wide_step(before, grad, at)
        units = (info.smallest_subnormal, info.tiny)
        slacks = [setting.slack(exact, float(unit)) for unit in units]
        for name, (own, wanted) in after.items():
            bound, lost = getattr(setting.allowed, name), [each[name] for each in slacks]
            kinds = _classify(name, exact, own[at], wanted[at], bound, lost)
            excused = kinds[-1] | kinds[-2] if setting.flush else kinds[-1]
            inputs = {**before, "grad": grad}
            found[name] = _Compared(number, own, wanted, inputs, at, *kinds, excused)
    return found


def _classify(
    tensor: str,
    exact: WideStep,
    got: np.ndarray,
    wanted: np.ndarray,
    allowed: float,
    slacks: Sequence[np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return `error`, `beyond`, `flushed` and `ranged` of `_Compared`."""
    ulp, distance = exact.ulp(tensor, got.dtype).astype(WIDE), _absolute_error(got, wanted)
    error = np.where(slacks[0] < np.inf, np.maximum(distance - slacks[0], 0), 0)
    # In no order is a sum of squares negative. An accumulator that began negative stays so where
    # an overflow leaves no update: then in the reference, too.
    negative = (got < 0) & (exact.after[tensor] > 0) & (tensor != "weight")
    error = np.where(negative & ~(wanted < 0), np.inf, error)
    beyond = ~(error <= allowed * ulp)
    within = [distance <= allowed * ulp + slacks[1]]
    within += [_right_in_another_range(tensor, exact, got, wanted, allowed * ulp + slacks[0])]
    flushed, ranged = (beyond & ~negative & each for each in within)
    return (error / ulp).astype(np.float64), beyond, flushed, ranged


def _absolute_error(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return absolute errors; infinite for a NaN against a number."""
    got, wanted = got.astype(WIDE), wanted.astype(WIDE)
    same = (got == wanted) | (np.isnan(got) & np.isnan(wanted))
    error = np.where(same, 0, abs(got - wanted))
    return np.where(np.isnan(error), np.inf, error)


def _right_in_another_range(
    tensor: str, exact: WideStep, got: np.ndarray, wanted: np.ndarray, tolerance: np.ndarray
) -> np.ndarray:
    """Find the results that another order of the operations may give.

    These are: the exact result, rounded; a finite one between this and the reference's; that of an
    update of zero, since an acc_grad that overflows divides it away; the infinity or NaN of a
    product that overflows in that order; anything where the formula takes the root of a negative
    number, which no sum of squares is.
    """
    overflows, undefined = _overflows(tensor, exact, np.finfo(got.dtype))
    limit = np.finfo(got.dtype).max / NEAR
    rounded = exact.after[tensor].astype(got.dtype).astype(WIDE)
    got, wanted = got.astype(WIDE), wanted.astype(WIDE)
    low, high = np.minimum(rounded, wanted), np.maximum(rounded, wanted)
    between = (low - tolerance <= got) & (got <= high + tolerance)
    between &= np.isfinite(low) & np.isfinite(high)
    exactly = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
    exactly |= abs(got - rounded) <= tolerance
    apart = ~(abs(rounded - wanted) <= tolerance)  # else the range is not the reason
    infinite = np.isinf(got) if tensor == "weight" else np.isposinf(got)
    if tensor != "acc_grad":
        # An acc_grad that overflows gives an update of zero in any order.
        exactly |= (exact.x**2 >= WIDE(limit)) & (abs(got - exact.still[tensor]) <= tolerance)
    invalid = exact.negative & (tensor != "acc_grad")
    return invalid | apart & (exactly | between) | overflows & infinite | undefined & np.isnan(got)


def _overflows(tensor: str, exact: WideStep, info: Any) -> tuple[np.ndarray, np.ndarray]:
    """Find where some order of the operations may give an infinity, and where a NaN."""
    e, limit = exact, WIDE(info.max) / NEAR
    square = e.x * e.x >= limit
    if tensor == "acc_grad":
        return square, np.zeros_like(square)
    quotient = e.ratio * e.ratio >= limit  # of the arguments, before one root
    delta = (e.root * e.x >= limit) | (e.delta >= limit) | quotient
    if tensor == "acc_delta":
        return delta | (e.delta * e.delta >= limit), delta & (square | quotient)
    moved = (e.rate * e.x >= limit) | (e.rate * e.root * e.x >= limit) | (e.rate * e.delta >= limit)
    return delta | moved, (delta | moved) & (square | quotient | (e.rate == 0))


def _verdict(setting: _Setting, tensor: str, steps: Sequence[_Compared]) -> StepVerdict:
    allowed = getattr(setting.allowed, tensor)
    flushed = int(sum(step.flushed.sum() for step in steps)) if setting.flush else 0
    excused = int(sum(step.excused.sum() for step in steps))
    kept = [step.kept for step in steps]
    wanted = np.concatenate([step.wanted for step in steps])
    errors = np.concatenate([np.where(step.excused, 0, step.error) for step in steps])
    worst = float(errors.max(initial=0.0))
    difference = replace(Difference.between(np.concatenate(kept), wanted, wanted), scaled_ulp=worst)
    ranged, limit = excused - flushed, setting.case.excusable * wanted.size
    passed: bool | None = worst <= allowed and ranged <= limit
    notes, strict = list(_reasons(ranged, limit, flushed)), False
    if passed and excused == wanted.size > 0:
        passed, notes = None, ["nothing was compared: every element is excused", *notes]
    elif passed and not difference.mismatches:
        notes.insert(0, "else equal in every bit" if excused else "equal in every bit")
    if worst > allowed:
        strict = all((~step.beyond | step.ranged | step.flushed).all() for step in steps)
        notes = [STRICT_HINT] * strict + [_worst(steps), *notes]
    note = "; ".join(notes)
    return StepVerdict(tensor, difference, excused, allowed, passed, note, kept, strict)


def _reasons(ranged: int, limit: float, flushed: int) -> Iterator[str]:
    if ranged:
        more = f", more than the {int(limit)} that the case allows" if ranged > limit else ""
        yield f"{ranged} excused: another order of the operations leaves the range{more}"
    if flushed:
        yield f"{flushed} excused: flushes subnormals"


def _worst(steps: Sequence[_Compared]) -> str:
    """Describe the worst element, with its inputs."""
    errors = [np.where(step.excused, -1, step.error) for step in steps]
    step, error = max(
        zip(steps, errors, strict=True), key=lambda pair: float(pair[1].max(initial=-1.0))
    )
    index = int(step.at[error.argmax()])
    inputs = {name: values[index] for name, values in step.inputs.items()}
    return describe_worst(step.step, index, step.got[index], step.wanted[index], inputs)


ROOM = 0.25  # largest relative error of a root's argument for which `_carried` holds


def drifts(
    case: Case,
    grads: Sequence[np.ndarray],
    reference: States,
    got: States,
    allowed: ToleranceULP,
    *,
    flush: bool = False,
) -> Iterator[BoundVerdict]:
    """Compare two trajectories from the same start with a running error bound, for each tensor.

    The bound is computed along the reference alone (N. J. Higham, "Accuracy and Stability of
    Numerical Algorithms", 2002, section 3.3): each step carries on the errors of the step before by
    the derivatives of the formula, and adds the bound of one step. An element is left out as soon
    as the reference is near the largest number, or the bound exceeds `ROOM` of a root's argument.
    `scaled_ulp` is in units in which the running bound is that of one step, `allowed_ulp`.

    The arguments are those of `check_steps`, but `got` is the implementation's own trajectory.
    """
    setting, at = _Setting.of(case, allowed, flush=flush), _differing_anywhere(reference, got)
    ratios: dict[str, list[np.ndarray]] = {name: [] for name in TENSORS}
    kept = {name: [array.copy() for array in got[name][1:]] for name in TENSORS}
    left_out = 0
    with np.errstate(all="ignore"):
        bounds = _running_bounds(setting, grads, reference, at)
        for number, (bound, alive) in enumerate(bounds, 1):
            left_out += int((~alive).sum())
            for name in TENSORS:
                wanted, own = reference[name][number], kept[name][number - 1]
                error = _absolute_error(own[at], wanted[at]) / bound[name]
                ratios[name].append(np.where(alive, error, 0).astype(np.float64))
                own[at[~alive]] = wanted[at[~alive]]
    for name in TENSORS:
        wanted = np.concatenate(reference[name][1:])
        difference = Difference.between(np.concatenate(kept[name]), wanted, wanted)
        ratio, number, place = _largest(ratios[name])
        elements, bound = wanted.size - left_out, getattr(allowed, name)
        difference = replace(difference, scaled_ulp=bound * ratio, elements=elements)
        worst = ""
        if ratio:
            element = int(at[place])
            pair = got[name][number][element], reference[name][number][element]
            inputs = {tensor: got[tensor][number - 1][element] for tensor in TENSORS}
            inputs["grad"] = grads[number - 1][element]
            worst = describe_worst(number, element, *pair, inputs)
        yield BoundVerdict(name, difference, bound, worst, left_out)


def _largest(ratios: Sequence[np.ndarray]) -> tuple[float, int, int]:
    """Return the largest number, its step and its place in the step."""
    each = [
        (float(ratio.max()), k, int(ratio.argmax()))
        for k, ratio in enumerate(ratios, 1)
        if ratio.size
    ]
    return max(each, default=(0.0, 0, 0))


def _differing_anywhere(reference: States, got: States) -> np.ndarray:
    places = [
        differing(own, wanted)
        for name in TENSORS
        for own, wanted in zip(got[name][1:], reference[name][1:], strict=True)
    ]
    return np.unique(np.concatenate(places))


def _running_bounds(
    setting: _Setting, grads: Sequence[np.ndarray], reference: States, at: np.ndarray
) -> Iterator[tuple[Tensors, np.ndarray]]:
    """Yield, after each step, the bound of each tensor's error and the elements it holds for."""
    info = np.finfo(grads[0].dtype)
    unit = float(info.tiny if setting.flush else info.smallest_subnormal)
    errors = {name: np.zeros(at.size, WIDE) for name in TENSORS}
    alive = np.ones(at.size, bool)
    for number, grad in enumerate(grads, 1):
        before = {name: reference[name][number - 1] for name in TENSORS}
        exact = setting.wide_step(before, grad, at)
        some = {name: array[at].astype(WIDE) for name, array in before.items()}
        carried, within = _carried(setting, exact, some, errors, at)
        alive = alive & within & _ordinary(exact, [*some.values(), grad[at]], info)
        slacks = setting.slack(exact, unit)
        # The other trajectory's step has operands of its own, which may cancel less.
        own = exact._replace(scales={name: exact.scales[name] + carried[name] for name in TENSORS})
        for name in TENSORS:
            step = getattr(setting.allowed, name) * own.ulp(name, info.dtype)
            errors[name] = carried[name] + step.astype(WIDE) * (1 + ROOM) ** 2 + slacks[name]
        yield dict(errors), alive


def _carried(
    setting: _Setting, exact: WideStep, before: Tensors, errors: Tensors, at: np.ndarray
) -> tuple[Tensors, np.ndarray]:
    """Bound the effect of a step on errors in its inputs, and tell where that bound holds."""
    hyper, e = setting.case.hyper, exact
    share, epsilon = WIDE(1.0 - hyper.rho), WIDE(hyper.epsilon)
    of_x = abs(setting.wd[at]).astype(WIDE) * errors["weight"]
    acc_grad = hyper.rho * errors["acc_grad"] + share * of_x * (2 * e.x + of_x)
    below = acc_grad / (e.after["acc_grad"] + epsilon)
    above = errors["acc_delta"] / (before["acc_delta"] + epsilon)
    # 1 / sqrt(1 - t) - 1 and 1 - sqrt(1 - t) are below 0.62 t up to t = 1/4; and their product.
    relative = 0.7 * (below + above)
    of_delta = e.ratio * of_x * (1 + relative) + e.delta * relative
    acc_delta = hyper.rho * errors["acc_delta"] + share * of_delta * (2 * e.delta + of_delta)
    weight = errors["weight"] + e.rate * of_delta
    carried = {"acc_grad": acc_grad, "acc_delta": acc_delta, "weight": weight}
    return carried, (below <= ROOM) & (above <= ROOM)


def _ordinary(exact: WideStep, inputs: Sequence[np.ndarray], info: Any) -> np.ndarray:
    """Find where no order of the operations is near the largest number."""
    limit = WIDE(info.max) / NEAR
    near = np.logical_or.reduce([_overflows(name, exact, info)[0] for name in TENSORS])
    small = np.logical_and.reduce([abs(each.astype(WIDE)) < limit for each in inputs])
    return small & ~near & (exact.root >= 0) & (exact.ratio >= 0)
