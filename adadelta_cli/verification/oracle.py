"""The oracle: the update in 60 decimal digits, and the distance of steps and trajectories from it.

It follows the formula in MXNet 2.0's documentation and shares nothing with `update.py` or the
kernels, not even the rounding of the hyper-parameters. The inputs of a step count as exact: weight,
gradient and accumulators in the dtype, each hyper-parameter rounded to it, `1 - rho` computed in
double before.

Why `decimal`: Python's module is libmpdec, a C library with correctly rounded +, -, *, / and
square root at any precision, and with exponents that neither overflow nor underflow here. An
element takes about 20 microseconds. mpmath is some ten times slower and would be one more
dependency. Double-double arithmetic in NumPy would be faster, but its error terms underflow where
float64 does not, and its 104 bits leave too little margin for float64's last bit after a dozen
operations. 60 digits are 199 bits, 146 more than float64's.

Two comparisons:

*   `one_step`: each step restarted from the implementation's own inputs. The distance from the
    exact result has a bound, proved in docs/accuracy.md, in units in the last place (ULPs) of the
    largest operand of the last addition: `STEP_BOUNDS`.
*   `drift_verdicts`: the exact trajectory from the same start beside the implementation's.

Left out, and compared bit for bit elsewhere: elements with an infinity or a NaN among the inputs,
or with an intermediate result beyond the largest or below the least normal number of the dtype,
where the theory of rounding ends; and, with weight decay, those where the decayed gradient cancels
all but its last ten bits.
"""

from __future__ import annotations

import decimal
import math
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adadelta_cli.verification.ulp import BoundVerdict, Difference, describe_worst

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from adadelta_cli.update import Hyperparameters
    from adadelta_cli.verification.cases import Case

DECIMAL_CONTEXT = decimal.Context(prec=60, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)
ZERO, ONE = Decimal(0), Decimal(1)

# ULPs of the largest operand of the last addition, proved in docs/accuracy.md, sections 3 to 6.
STEP_BOUNDS = {"acc_grad": 9.1, "acc_delta": 26.3, "weight": 13.7, "master": 13.7}
HALF_BOUND = 1.01  # of a float16 weight, rounded from its float32 master, in ULPs of float16
# The gradient's sum with the decay may cancel this share of a unit roundoff's reciprocal: beyond
# it, terms of higher order are no longer below the 1 % that the bounds allow them.
CANCELLATION = 2.0**-10
# Of a float64 trajectory: 1e-12 relative, in ULPs. A tolerance, not a theorem: docs/accuracy.md.
DRIFT_BOUND = 1e-12 / 2.0**-52


class State(NamedTuple):
    """The updated numbers of one element, or a magnitude for each."""

    weight: Decimal
    acc_grad: Decimal
    acc_delta: Decimal


class Element(NamedTuple):
    """The result of a step on one element."""

    state: State  # exact, to 60 digits
    # Magnitude of the largest operand of the addition that each comes from, times the condition of
    # the decayed gradient where that cancels (docs/accuracy.md, section 2).
    scale: State
    ordinary: bool  # the theory of rounding applies


@dataclass(frozen=True)
class Constants:
    """The hyper-parameters of one tensor, rounded to its dtype, and the range of that dtype."""

    learning_rate: Decimal
    rho: Decimal
    one_minus_rho: Decimal
    epsilon: Decimal
    wd: Decimal
    rescale_grad: Decimal
    clip_gradient: Decimal  # infinity for no clipping
    least: Decimal
    most: Decimal
    condition: Decimal

    @classmethod
    def of(cls, hyper: Hyperparameters, learning_rate: float, wd: float, dtype: str) -> Constants:
        """Round to float32 or float64; a clip beyond the largest number clips nothing."""
        info, clip = np.finfo(dtype), hyper.clip_gradient

        def rounded(value: float) -> Decimal:
            return Decimal(float(np.asarray(value, dtype=dtype)))

        return cls(
            learning_rate=rounded(learning_rate),
            rho=rounded(hyper.rho),
            one_minus_rho=rounded(1.0 - hyper.rho),
            epsilon=rounded(hyper.epsilon),
            wd=rounded(wd),
            rescale_grad=rounded(hyper.rescale_grad),
            clip_gradient=rounded(math.inf if clip is None or clip > float(info.max) else clip),
            least=Decimal(float(info.tiny)),
            most=Decimal(float(info.max)),
            condition=Decimal(CANCELLATION / (float(info.eps) / 2)),
        )

    def ordinary(self, *values: Decimal) -> bool:
        """Tell whether each is zero or a normal number of the dtype."""
        return all(not each or self.least <= abs(each) <= self.most for each in values)


def advance(state: State, grad: Decimal, k: Constants) -> Element:
    """Take one step on one element, in the context's precision."""
    weight, acc_grad, acc_delta = state
    rescaled = grad * k.rescale_grad
    clipped = max(-k.clip_gradient, min(rescaled, k.clip_gradient))
    decay = k.wd * weight
    x = clipped + decay
    square = x * x
    kept_grad, new_grad = k.rho * acc_grad, k.one_minus_rho * square
    acc_grad = kept_grad + new_grad
    numerator, denominator = (acc_delta + k.epsilon).sqrt(), (acc_grad + k.epsilon).sqrt()
    ratio = numerator / denominator
    delta = ratio * x
    delta_square = delta * delta
    kept_delta, new_delta = k.rho * acc_delta, k.one_minus_rho * delta_square
    acc_delta = kept_delta + new_delta
    move = k.learning_rate * delta
    condition = (abs(clipped) + abs(decay)) / abs(x) if x else ONE
    largest = State(
        max(abs(weight), condition * abs(move)),
        max(kept_grad, condition * new_grad),
        max(kept_delta, condition * new_delta),
    )
    ordinary = (
        k.ordinary(rescaled, decay, x, square, kept_grad, new_grad, acc_grad + k.epsilon)
        and k.ordinary(ratio, delta, delta_square, kept_delta, new_delta, acc_delta)
        and k.ordinary(move, weight - move)
    )
    cancelled = not x and bool(clipped)
    known = ordinary and not cancelled and condition <= k.condition
    return Element(State(weight - move, acc_grad, acc_delta), largest, known)


@dataclass(frozen=True)
class Exact:
    """Exact results of one tensor, any number of elements."""

    nearest: np.ndarray  # the nearest float64 of each
    rest: np.ndarray  # the exact result minus `nearest`: together, 106 bits
    scale: np.ndarray  # the magnitudes in whose ULPs the error is bounded, float64
    ordinary: np.ndarray  # where the bound applies

    @classmethod
    def of(cls, results: Sequence[tuple[Decimal, Decimal, bool]]) -> Exact:
        """Collect value, scale and whether the bound applies."""
        nearest = [float(value) for value, _, _ in results]
        with decimal.localcontext(DECIMAL_CONTEXT):
            rest = [
                float(value - Decimal(near)) if np.isfinite(near) else 0.0
                for (value, _, _), near in zip(results, nearest, strict=True)
            ]
        scales = np.array([float(scale) for _, scale, _ in results])
        ordinary = np.array([known for _, _, known in results], dtype=bool)
        return cls(np.array(nearest), np.array(rest), scales, ordinary)

    def rounded(self, dtype: np.dtype) -> np.ndarray:
        """Round each to the nearest, ties to even, once.

        Rounding to odd first avoids false ties in a narrower dtype (S. Boldo, G. Melquiond,
        "Emulation of FMA and correctly rounded sums", 2008).
        """
        if dtype == np.float64:
            return self.nearest
        even = self.nearest.view(np.int64) & 1 == 0
        towards = np.copysign(np.inf, self.rest)
        odd = np.where(even & (self.rest != 0), np.nextafter(self.nearest, towards), self.nearest)
        with np.errstate(over="ignore", under="ignore"):
            return odd.astype(dtype)

    def difference(self, got: np.ndarray) -> Difference:
        """Measure computed numbers against these, where the bound applies.

        `scaled_ulp` is relative to the exact result, all else to the correctly rounded one.
        """
        within = self.ordinary & (np.abs(self.nearest) <= float(np.finfo(got.dtype).max))
        exact = Exact(*(each[within] for each in vars(self).values()))
        got = got[within]
        if not got.size:
            return Difference()
        with np.errstate(over="ignore", under="ignore"):
            scale = exact.scale.astype(got.dtype)
        plain = Difference.between(got, exact.rounded(got.dtype), scale)
        errors = exact.errors_ulp(got, scale)
        worst = int(np.argmax(errors))
        where = int(np.flatnonzero(within)[worst])
        return replace(plain, scaled_ulp=float(errors[worst]), first=where)

    def errors_ulp(self, got: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Return the distance of each from the exact result, in ULPs of `scale`."""
        with np.errstate(all="ignore"):
            error = np.abs((got.astype(np.float64) - self.nearest) - self.rest)
            finite = np.minimum(scale, np.finfo(scale.dtype).max)
            errors = error / np.spacing(finite).astype(np.float64)
        return np.where(np.isnan(errors), np.inf, errors)


class Sample:
    """Some elements of a case, the same at each step, evenly spread over all its tensors.

    `budget` is in steps of an element; at least 8 elements are computed.
    """

    def __init__(self, case: Case, dtype: str, seed: int, budget: int) -> None:
        self.case, self.dtype, self.seed = case, dtype, seed
        # Repeated here: the oracle shares no code with what it checks.
        self.real = "float32" if dtype == "float16" else dtype
        count = min(case.elements, max(8, budget // case.steps))
        self.indices = np.unique(np.linspace(0, max(case.elements - 1, 0), count).astype(int))
        sizes = [int(np.prod(shape)) for shape in case.shapes]
        tensors = np.repeat(np.arange(len(sizes)), sizes)[self.indices]
        hyper = case.hyper
        each = [
            Constants.of(hyper, hyper.learning_rate * rate, hyper.wd * decay, self.real)
            for rate, decay in zip(case.lr_mults, case.wd_mults, strict=True)
        ]
        self.constants = [each[tensor] for tensor in tensors]

    def grads(self, step: int) -> np.ndarray:
        """Return the gradients of a step, counted from 1."""
        grads = self.case.grads(self.dtype, self.seed, step)
        return self.of(np.concatenate([grad.ravel() for grad in grads]))

    def of(self, flat: np.ndarray) -> np.ndarray:
        """Select the sample from all elements."""
        return flat[self.indices]

    def name(
        self, place: int, tensors: dict[str, list[np.ndarray]], got: float, wanted: float
    ) -> str:
        """Describe the element at a place of the results of all steps, with its inputs."""
        step, k = divmod(place, len(self.indices))
        inputs = {name: states[step][self.indices[k]] for name, states in tensors.items()}
        inputs["grad"] = self.grads(step + 1)[k]
        return describe_worst(step + 1, self.indices[k], got, wanted, inputs)


def one_step(
    sample: Sample,
    tensors: dict[str, list[np.ndarray]],
    outputs: dict[str, list[np.ndarray]] | None = None,
    more_ulp: Mapping[str, float] | None = None,
) -> Iterator[BoundVerdict]:
    """Compare each step of a trajectory with the exact one from the same inputs.

    Args:
        sample: the elements to compute.
        tensors: `Trajectory.tensors` of the case: the elements of all tensors, at the start and
            after each step.
        outputs: the results of steps from each of `tensors`; by default the next of `tensors`.
        more_ulp: by tensor, the tolerance from the array update, which is added to the array
            update's own bound.
    """
    elements = [
        element
        for step in range(1, sample.case.steps + 1)
        for element in _each(_states(sample, tensors, step - 1), sample.grads(step), sample)
    ]
    allowed = STEP_BOUNDS | ({"weight": HALF_BOUND} if "master" in tensors else {})
    for name, more in (more_ulp or {}).items():
        allowed[name] += more
    yield from _verdicts(elements, sample, tensors, allowed, outputs)


def drift_verdicts(sample: Sample, tensors: dict[str, list[np.ndarray]]) -> Iterator[BoundVerdict]:
    """Compare a trajectory with the exact one from the same start, at every step.

    Errors are scaled by the largest magnitude in the element's trajectory so far, where the carried
    errors arose. float64 must be within 1e-12; the error of a float32 trajectory is only reported.
    The arguments are those of `one_step`.
    """
    elements = list(_trajectory(sample, tensors))
    allowed = DRIFT_BOUND if sample.dtype == "float64" else None
    yield from _verdicts(elements, sample, tensors, dict.fromkeys(tensors, allowed))


def _states(sample: Sample, tensors: dict[str, list[np.ndarray]], step: int) -> list[State | None]:
    """Return the inputs of a step; None where the formula does not apply."""
    weight = tensors.get("master", tensors["weight"])[step]
    arrays = (weight, tensors["acc_grad"][step], tensors["acc_delta"][step])
    each = zip(*(sample.of(array).tolist() for array in arrays), strict=True)
    return [
        State(*map(Decimal, values))
        if all(map(np.isfinite, values)) and min(values[1:]) >= 0
        else None
        for values in each
    ]


UNKNOWN = Element(State(ZERO, ZERO, ZERO), State(ZERO, ZERO, ZERO), ordinary=False)


def _each(states: Sequence[State | None], grads: np.ndarray, sample: Sample) -> list[Element]:
    """Take a step on each element."""
    with decimal.localcontext(DECIMAL_CONTEXT):
        return [
            advance(state, Decimal(grad), constants)
            if state is not None and np.isfinite(grad)
            else UNKNOWN
            for state, grad, constants in zip(states, grads.tolist(), sample.constants, strict=True)
        ]


def _trajectory(sample: Sample, tensors: dict[str, list[np.ndarray]]) -> Iterator[Element]:
    """Yield the exact trajectory: all elements of the first step, then of the next."""
    states = _states(sample, tensors, 0)
    scales = [State(ZERO, ZERO, ZERO)] * len(states)
    for step in range(1, sample.case.steps + 1):
        elements = _each(states, sample.grads(step), sample)
        states = [element.state if element.ordinary else None for element in elements]
        scales = [
            State(*map(max, scale, element.scale))
            for scale, element in zip(scales, elements, strict=True)
        ]
        for element, scale in zip(elements, scales, strict=True):
            yield element._replace(scale=scale)


def _verdicts(
    elements: Sequence[Element],
    sample: Sample,
    tensors: dict[str, list[np.ndarray]],
    allowed: Mapping[str, float | None],
    outputs: dict[str, list[np.ndarray]] | None = None,
) -> Iterator[BoundVerdict]:
    left_out = sum(not element.ordinary for element in elements)
    for tensor, states in (outputs or tensors).items():
        part = State._fields.index("weight" if tensor == "master" else tensor)
        exact = Exact.of([(e.state[part], e.scale[part], e.ordinary) for e in elements])
        got = np.concatenate([sample.of(state) for state in states[1:]])
        difference = exact.difference(got)
        worst = ""
        if (first := difference.first) is not None:
            pair = got[first], exact.rounded(got.dtype)[first]
            worst = sample.name(first, tensors, *pair)
        yield BoundVerdict(tensor, difference, allowed[tensor], worst, left_out)
