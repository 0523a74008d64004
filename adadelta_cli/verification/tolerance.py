"""Compare steps of third-party code with the array update, within bounds.

Other implementations order the operations differently, so bits differ. The bound on the difference
is in units in the last place (ULPs) of the largest operand of the addition that each result comes
from. Each step is compared by itself, from the array update's own states. docs/own-kernels.md
derives the bounds, docs/parity.md those of other frameworks.

Whether a result may lie outside its bound is decided from the inputs and from the formula in a
wider range (`Exact`), never from the result under test. Two things qualify, and both are counted:

* Range: the result is right in another order of the operations, one that leaves the range of the
  dtype elsewhere than the array update does. A case states how many of these it allows.
* Subnormals flushed to zero, where the caller allows that (`--subnormals flush`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adadelta_cli.update import Parameter, Scalars, update
from adadelta_cli.verification.ulp import Difference, written

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adadelta_cli.implementations.base import ToleranceULP
    from adadelta_cli.verification.cases import Case

States = dict[str, list[np.ndarray]]
Tensors = dict[str, np.ndarray]
TENSORS = ("acc_grad", "acc_delta", "weight")
WIDE = np.longdouble
# Another order of the operations may overflow where a product comes this near to the largest
# number: no factor that the orders move about (1 - rho, a root, a rate) is counted twice.
NEAR = 16
FLUSHES = "flushes subnormals"
STRICT_HINT = (
    "differs only where subnormal numbers are involved; expected strict IEEE 754; if the kernel "
    "flushes subnormals to zero on purpose, add --subnormals flush"
)


@dataclass(frozen=True)
class StepVerdict:
    """The comparison of one tensor of a case, all steps together.

    Attributes:
        tensor: `weight`, `acc_grad` or `acc_delta`.
        difference: from the reference, excused elements apart; `scaled_ulp` is what is bounded.
        excused: how many elements are outside the bound for a reason that counts.
        allowed_ulp: the bound.
        passed: whether it held; None where every element was excused, so nothing was compared.
        note: what was excused; where it failed, the worst element with its inputs.
        kept: the results of each step, the excused ones replaced by the reference's.
    """

    tensor: str
    difference: Difference
    excused: int
    allowed_ulp: float
    passed: bool | None
    note: str
    kept: Sequence[np.ndarray] = field(repr=False, default=())


def verdicts(
    case: Case,
    dtype: str,
    seed: int,
    reference: States,
    got: States,
    allowed: ToleranceULP,
    *,
    flush: bool = False,
) -> Iterator[StepVerdict]:
    """Compare single steps of a case, a verdict for each tensor.

    Args:
        case: its hyper-parameters and gradients.
        dtype: float32 or float64.
        seed: of the case.
        reference: the array update's trajectory; for each tensor the elements of all tensors end to
            end, an array for the start and for each step.
        got: the same of the implementation, each step taken from the reference's state before it.
        allowed: the bounds.
        flush: subnormals may be flushed to zero.
    """
    return check_steps(case, gradients(case, dtype, seed), reference, got, allowed, flush=flush)


def gradients(case: Case, dtype: str, seed: int) -> list[np.ndarray]:
    """Return the gradients of each step, the elements of all tensors end to end."""
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
    """Compare single steps that were taken with these gradients, in place of the case's own.

    Args:
        case: its shapes, hyper-parameters and multipliers.
        grads: of each step, the elements of all tensors end to end, float32 or float64.
        reference: as in `verdicts`.
        got: as in `verdicts`.
        allowed: as in `verdicts`.
        flush: as in `verdicts`.
    """
    setting = ElementRates.of(case)
    steps = [
        _compared(setting, number, grad, reference, got, allowed)
        for number, grad in enumerate(grads, 1)
    ]
    for tensor in TENSORS:
        own = [step[tensor] for step in steps]
        yield _verdict(tensor, own, getattr(allowed, tensor), case.excusable, flush=flush)


# --- one step in a wider range --------------------------------------------------------------------


class ElementRates(NamedTuple):
    """A case's hyper-parameters, with the rate and the decay of each element, float64."""

    case: Case
    rate: np.ndarray
    wd: np.ndarray

    @classmethod
    def of(cls, case: Case) -> ElementRates:
        """Spread the multipliers of the tensors over their elements."""
        sizes = [int(np.prod(shape)) for shape in case.shapes]
        rate = np.repeat([case.hyper.learning_rate * mult for mult in case.lr_mults], sizes)
        return cls(case, rate, np.repeat([case.hyper.wd * mult for mult in case.wd_mults], sizes))

    def exact(self, before: Tensors, grad: np.ndarray, at: np.ndarray) -> Exact:
        """Take a step in a wider range on the elements at these places."""
        some = {name: array[at] for name, array in before.items()}
        scalars = self.case.hyper.scalars(grad.dtype)
        return Exact.of(scalars, some, grad[at], self.rate[at], self.wd[at])

    def slack(self, exact: Exact, unit: float) -> Tensors:
        """Bound what is lost below the normal numbers: `unit` in each operation.

        Args:
            exact: the step.
            unit: the least subnormal number for gradual underflow, the least normal one where
                subnormals are flushed to zero.
        """
        hyper, each, e = self.case.hyper, WIDE(4 * unit), exact
        of_x = each * (1 + abs(hyper.rescale_grad) + abs(self.largest_decay))
        # The factors of an update may be multiplied in any order.
        of_delta = of_x * (1 + e.ratio + e.root + e.inverse)
        # Or one root taken of a quotient, which underflows sooner, and is zero at worst.
        of_delta += np.minimum(e.x * each / (e.ratio + np.sqrt(each)), e.delta)
        lost = {
            "acc_grad": each + of_x * (of_x + e.x),
            "acc_delta": each + of_delta * (of_delta + e.delta),
            "weight": each + of_delta * (1 + e.rate),
        }
        # An infinite factor makes something else of a zero than of what was rounded to zero.
        infinite = np.where(e.x <= of_x, np.inf, 0)
        return {name: np.where(np.isfinite(v), v, infinite) for name, v in lost.items()}

    @property
    def largest_decay(self) -> float:
        """The largest decay of an element."""
        return float(np.abs(self.wd).max(initial=0.0))


class Exact(NamedTuple):
    """A step in a wider range, and how large its terms are; flat arrays of `WIDE`.

    Attributes:
        after: the results, by tensor.
        scales: by tensor, the magnitude of the largest operand of the addition that it comes from,
            had the gradient's own sum not cancelled.
        rate: the magnitude of the learning rate.
        x: the magnitudes of the two parts of the pre-processed gradient, added up.
        root: sqrt(acc_delta + epsilon).
        inverse: 1 / sqrt(acc_grad + epsilon), with the new acc_grad.
        ratio: root / sqrt(acc_grad + epsilon), likewise.
        negative: one of these roots is that of a negative number, or of the rounding errors of one.
        still: the results of an update of zero, by tensor.
    """

    after: Tensors
    scales: Tensors
    rate: np.ndarray
    x: np.ndarray
    root: np.ndarray
    inverse: np.ndarray
    ratio: np.ndarray
    negative: np.ndarray
    still: Tensors

    @property
    def delta(self) -> np.ndarray:
        """How large the update could be."""
        return self.ratio * self.x

    @classmethod
    def of(
        cls, scalars: Scalars, before: Tensors, grad: np.ndarray, rate: np.ndarray, wd: np.ndarray
    ) -> Exact:
        """Take a step.

        Args:
            scalars: rounded to the dtype of the step.
            before: weight, acc_grad and acc_delta.
            grad: the gradient.
            rate: the learning rate of each element.
            wd: the weight decay of each element.
        """
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


# --- one step -------------------------------------------------------------------------------------


class _Compared(NamedTuple):
    """One tensor after one step: all results, and more of those that differ from the reference.

    The arrays from `error` on have an element for each place in `at`.
    """

    step: int
    got: np.ndarray
    wanted: np.ndarray
    inputs: Tensors
    at: np.ndarray  # where a bit differs
    error: np.ndarray  # in ULPs of the scale
    scale: np.ndarray
    beyond: np.ndarray  # outside the bound
    ranged: np.ndarray  # beyond, and right in another range
    flushed: np.ndarray  # beyond, and explained by subnormals that are flushed


def _compared(
    setting: ElementRates,
    number: int,
    grad: np.ndarray,
    reference: States,
    got: States,
    allowed: ToleranceULP,
) -> dict[str, _Compared]:
    before = {name: reference[name][number - 1] for name in TENSORS}
    places = {name: differing(got[name][number], reference[name][number]) for name in TENSORS}
    at = np.unique(np.concatenate(list(places.values())))
    info = np.finfo(grad.dtype)
    with np.errstate(all="ignore"):
        exact = setting.exact(before, grad, at)
        units = (info.smallest_subnormal, info.tiny)
        slacks = [setting.slack(exact, float(unit)) for unit in units]
        return {
            name: _placed(
                _Compared(
                    number,
                    got[name][number],
                    reference[name][number],
                    {**before, "grad": grad},
                    *[at] * 6,
                ),
                name,
                exact,
                getattr(allowed, name),
                [each[name] for each in slacks],
            )
            for name in TENSORS
        }


def differing(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Find the places of two flat arrays where a bit differs, NaNs apart."""
    bits = f"u{got.itemsize}"
    differ = (got.view(bits) != wanted.view(bits)) & ~(np.isnan(got) & np.isnan(wanted))
    return np.flatnonzero(differ)


def _placed(
    whole: _Compared, tensor: str, exact: Exact, allowed: float, slacks: Sequence[np.ndarray]
) -> _Compared:
    """Judge the results that differ: inside the bound, or outside for which reason."""
    got, wanted, info = whole.got[whole.at], whole.wanted[whole.at], np.finfo(whole.got.dtype)
    scale = np.nan_to_num(np.minimum(exact.scales[tensor], WIDE(info.max) / 2), nan=1.0)
    ulp = np.spacing(scale.astype(got.dtype)).astype(WIDE)
    error = np.where(slacks[0] < np.inf, np.maximum(_distance(got, wanted) - slacks[0], 0), 0)
    # No order makes an accumulator negative that is a sum of squares, however small.
    negative = (got < 0) & (exact.after[tensor] > 0) & (tensor != "weight")
    error = np.where(negative, np.inf, error)
    beyond = ~(error <= allowed * ulp)
    tolerance = allowed * ulp + slacks[0]
    ranged = beyond & ~negative
    ranged &= _right_in_another_range(tensor, exact, got, wanted, tolerance)
    flushed = beyond & ~negative & (_distance(got, wanted) <= allowed * ulp + slacks[1])
    return whole._replace(
        error=(error / ulp).astype(np.float64),
        scale=scale.astype(got.dtype),
        beyond=beyond,
        ranged=ranged,
        flushed=flushed,
    )


def _distance(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return absolute errors; infinite where a NaN stands against a number."""
    got, wanted = got.astype(WIDE), wanted.astype(WIDE)
    same = (got == wanted) | (np.isnan(got) & np.isnan(wanted))
    error = np.where(same, 0, abs(got - wanted))
    return np.where(np.isnan(error), np.inf, error)


def _right_in_another_range(
    tensor: str, exact: Exact, got: np.ndarray, wanted: np.ndarray, tolerance: np.ndarray
) -> np.ndarray:
    """Find what another order of the operations makes of the same inputs.

    That is the exact result, rounded; or a finite one between this and the reference's; or that of
    an update of zero, since an acc_grad that overflows divides it away; or the
    infinity or NaN of a product that overflows in that order; or anything, where the formula takes
    the root of a negative number, which no sum of squares is.
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
    apart = ~(abs(rounded - wanted) <= tolerance)  # else it is no matter of the range
    infinite = np.isinf(got) if tensor == "weight" else np.isposinf(got)
    if tensor != "acc_grad":
        # An acc_grad that overflows leaves an update of zero, whatever else is wider.
        exactly |= (exact.x**2 >= WIDE(limit)) & (abs(got - exact.still[tensor]) <= tolerance)
    invalid = exact.negative & (tensor != "acc_grad")
    return invalid | apart & (exactly | between) | overflows & infinite | undefined & np.isnan(got)


def _overflows(tensor: str, exact: Exact, info: Any) -> tuple[np.ndarray, np.ndarray]:
    """Find where some order of the operations gives an infinity, and where a NaN."""
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


# --- all steps ------------------------------------------------------------------------------------


def _verdict(
    tensor: str, steps: Sequence[_Compared], allowed: float, excusable: float, *, flush: bool
) -> StepVerdict:
    flushed = int(sum(step.flushed.sum() for step in steps)) if flush else 0
    excused = int(sum(_excused(step, flush=flush).sum() for step in steps))
    kept = [_kept(step, flush=flush) for step in steps]
    wanted = np.concatenate([step.wanted for step in steps])
    difference = _difference(steps, np.concatenate(kept), wanted, flush=flush)
    ranged, limit = excused - flushed, excusable * wanted.size
    passed: bool | None = difference.scaled_ulp <= allowed and ranged <= limit
    notes = list(_reasons(ranged, limit, flushed))
    if passed and excused == wanted.size > 0:
        passed, notes = None, ["nothing was compared: every element is excused", *notes]
    elif passed and not difference.mismatches:
        notes.insert(0, "else equal in every bit" if excused else "equal in every bit")
    if difference.scaled_ulp > allowed:
        notes.insert(0, _worst(steps, flush=flush))
        notes = [STRICT_HINT] * _only_flushed(steps) + notes
    return StepVerdict(tensor, difference, excused, allowed, passed, "; ".join(notes), kept)


def _reasons(ranged: int, limit: float, flushed: int) -> Iterator[str]:
    if ranged:
        more = f", more than the {int(limit)} that the case allows" if ranged > limit else ""
        yield f"{ranged} excused: another order of the operations leaves the range{more}"
    if flushed:
        yield f"{flushed} excused: {FLUSHES}"


def _only_flushed(steps: Sequence[_Compared]) -> bool:
    return all((~step.beyond | step.ranged | step.flushed).all() for step in steps)


def _excused(step: _Compared, *, flush: bool) -> np.ndarray:
    return step.ranged | step.flushed if flush else step.ranged


def _kept(step: _Compared, *, flush: bool) -> np.ndarray:
    """Return the results, those excused replaced by the reference's."""
    excused = step.at[_excused(step, flush=flush)]
    if not excused.size:
        return step.got
    kept = step.got.copy()
    kept[excused] = step.wanted[excused]
    return kept


def _difference(
    steps: Sequence[_Compared], got: np.ndarray, wanted: np.ndarray, *, flush: bool
) -> Difference:
    errors = [np.where(_excused(step, flush=flush), 0, step.error) for step in steps]
    worst = float(np.concatenate(errors).max(initial=0.0))
    return replace(Difference.between(got, wanted, wanted), scaled_ulp=worst)


def _worst(steps: Sequence[_Compared], *, flush: bool) -> str:
    """Name the worst element, with all that is needed to compute it again."""
    errors = [np.where(_excused(step, flush=flush), -1, step.error) for step in steps]
    step, error = max(
        zip(steps, errors, strict=True), key=lambda pair: float(pair[1].max(initial=-1.0))
    )
    index = int(step.at[error.argmax()])
    inputs = ", ".join(f"{name} {written(v[index])}" for name, v in step.inputs.items())
    return (
        f"worst at step {step.step}, element {index}: got {written(step.got[index])}, expected "
        f"{written(step.wanted[index])}; from {inputs}"
    )


# --- all steps of a trajectory --------------------------------------------------------------------


class Drift(NamedTuple):
    """How far one tensor of a trajectory is from the reference's, at every step.

    Attributes:
        tensor: as in `Verdict`.
        difference: elements that left the theory of rounding apart; `scaled_ulp` is the largest
            error, in units of which the running bound is `allowed_ulp`.
        left_out: how many elements of all steps are outside the theory of rounding.
        allowed_ulp: the bound of one step.
        worst: names the element with the largest error.
    """

    tensor: str
    difference: Difference
    left_out: int
    allowed_ulp: float
    worst: str

    @property
    def passed(self) -> bool | None:
        """Whether every error is below its running bound; None where nothing was compared."""
        if self.difference.elements == 0:
            return None
        return self.difference.scaled_ulp <= self.allowed_ulp


ROOM = 0.25  # relative error of a root's argument up to which `_carried` bounds what comes of it


def drifts(
    case: Case,
    grads: Sequence[np.ndarray],
    reference: States,
    got: States,
    allowed: ToleranceULP,
    *,
    flush: bool = False,
) -> Iterator[Drift]:
    """Compare two trajectories from the same start with a running error bound, for each tensor.

    The bound is computed along the reference alone (N. J. Higham, "Accuracy and Stability of
    Numerical Algorithms", 2002, section 3.3): each step carries on the errors of the step before by
    the derivatives of the formula, and adds the bound of one step. An element is left out from
    the step on in which the reference comes near the largest number, or the bound outgrows a root's
    argument.

    Args:
        case: as in `judged`.
        grads: as in `judged`.
        reference: as in `judged`.
        got: the implementation's own trajectory.
        allowed: the bounds of one step.
        flush: as in `judged`.
    """
    at = _differing_anywhere(reference, got)
    ratios: dict[str, list[np.ndarray]] = {name: [] for name in TENSORS}
    kept = {name: [array.copy() for array in got[name][1:]] for name in TENSORS}
    left_out = 0
    with np.errstate(all="ignore"):
        bounds = _running_bounds(case, grads, reference, allowed, at, flush=flush)
        for number, (bound, alive) in enumerate(bounds, 1):
            left_out += int((~alive).sum())
            for name in TENSORS:
                wanted, own = reference[name][number], kept[name][number - 1]
                error = _distance(own[at], wanted[at]) / bound[name]
                ratios[name].append(np.where(alive, error, 0).astype(np.float64))
                own[at[~alive]] = wanted[at[~alive]]
    for name in TENSORS:
        wanted = np.concatenate(reference[name][1:])
        difference = Difference.between(np.concatenate(kept[name]), wanted, wanted)
        ratio, number, place = _largest(ratios[name])
        elements, bound = wanted.size - left_out, getattr(allowed, name)
        difference = replace(difference, scaled_ulp=bound * ratio, elements=elements)
        worst = f"worst at step {number}, element {at[place]}" if ratio else ""
        yield Drift(name, difference, left_out, bound, worst)


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
    case: Case,
    grads: Sequence[np.ndarray],
    reference: States,
    allowed: ToleranceULP,
    at: np.ndarray,
    *,
    flush: bool,
) -> Iterator[tuple[Tensors, np.ndarray]]:
    """Yield, after each step, the bound of each tensor's error and which elements it holds for."""
    setting, info = ElementRates.of(case), np.finfo(grads[0].dtype)
    unit = float(info.tiny if flush else info.smallest_subnormal)
    errors = {name: np.zeros(at.size, WIDE) for name in TENSORS}
    alive = np.ones(at.size, bool)
    for number, grad in enumerate(grads, 1):
        before = {name: reference[name][number - 1] for name in TENSORS}
        exact = setting.exact(before, grad, at)
        some = {name: array[at].astype(WIDE) for name, array in before.items()}
        carried, within = _carried(setting, exact, some, errors, at)
        alive = alive & within & _ordinary(exact, [*some.values(), grad[at]], info)
        slacks = setting.slack(exact, unit)
        for name in TENSORS:
            scale = np.nan_to_num(np.minimum(exact.scales[name], WIDE(info.max) / 2), nan=1.0)
            step = getattr(allowed, name) * np.spacing(scale.astype(info.dtype))
            # The step of the other trajectory is taken from, and scaled by, its own numbers.
            errors[name] = carried[name] + step.astype(WIDE) * (1 + ROOM) ** 2 + slacks[name]
        yield dict(errors), alive


def _carried(
    setting: ElementRates, exact: Exact, before: Tensors, errors: Tensors, at: np.ndarray
) -> tuple[Tensors, np.ndarray]:
    """Bound what a step makes of errors in its inputs, and say where that bound holds."""
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


def _ordinary(exact: Exact, inputs: Sequence[np.ndarray], info: Any) -> np.ndarray:
    """Find where no order of the operations comes near the largest number."""
    limit = WIDE(info.max) / NEAR
    near = np.logical_or.reduce([_overflows(name, exact, info)[0] for name in TENSORS])
    small = np.logical_and.reduce([abs(each.astype(WIDE)) < limit for each in inputs])
    return small & ~near & (exact.root >= 0) & (exact.ratio >= 0)
