"""The cases that `verify` runs, each with a name that never changes.

A case is tensors, hyper-parameters and a number of steps; its numbers derive from its name, the
dtype and the seed alone, so `adadelta verify --case NAME` repeats it. AdaDelta needs strong inputs:
zero accumulators, positive gradients or a single step hide wrong formulas. So both signs, many
magnitudes and nonzero accumulators are the rule here.
"""

from __future__ import annotations

import itertools
import math
import re
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from adadelta_cli.update import Hyperparameters, state_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

    Start = Callable[[np.random.Generator, "Shape", str], "Values"]
    Draw = Callable[[np.random.Generator, "Shape", str], np.ndarray]

Shape = tuple[int, ...]
DEFAULTS = Hyperparameters()


class Values(NamedTuple):
    """The start of a tensor: float arrays of one shape, in the dtype of the states."""

    weight: np.ndarray
    acc_grad: np.ndarray
    acc_delta: np.ndarray


@dataclass(frozen=True)
class Case:
    """Some steps for an implementation to take."""

    name: str  # as `--case` takes it
    about: str  # what it tests, in a few words
    shapes: tuple[Shape, ...]
    hyper: Hyperparameters = DEFAULTS  # of all tensors
    steps: int = 5  # each with gradients of its own
    fill: str = "usual"  # the distribution of the numbers, a key of `FILLS`
    varied: bool = False  # each tensor has a rate and a decay multiplier of its own
    flush: bool = False  # subnormals, as MXNet does by default; only for its backend
    # Largest share of the results that `tolerance` may excuse because another order of the
    # operations overflows elsewhere.
    excusable: float = 0.0

    check: ClassVar[str] = "step"  # in `ComparisonRow.check`

    @property
    def key(self) -> str:
        """The text that its numbers derive from, with dtype and seed."""
        return self.name

    @property
    def elements(self) -> int:
        """The number of elements of all tensors."""
        return sum(map(math.prod, self.shapes))

    @property
    def lr_mults(self) -> list[float]:
        """Rate multipliers, one for each tensor."""
        return [0.5 + 0.25 * (k % 7) if self.varied else 1.0 for k in range(len(self.shapes))]

    @property
    def wd_mults(self) -> list[float]:
        """Decay multipliers, one for each tensor; zero among them."""
        return [0.5 * (k % 4) if self.varied else 1.0 for k in range(len(self.shapes))]

    @lru_cache(maxsize=4)  # noqa: B019 - a case is a value; several implementations ask in turn
    def start(self, dtype: str, seed: int) -> list[Values]:
        """Return the tensors' weights and states, in the dtype of the states; read-only."""
        rng, draw = self._generator(dtype, seed, 0), FILLS[self.fill]
        return [draw.start(rng, shape, state_dtype(dtype)) for shape in self.shapes]

    @lru_cache(maxsize=16)  # noqa: B019
    def grads(self, dtype: str, seed: int, step: int) -> list[np.ndarray]:
        """Return the gradients of a step, counted from 1, in `dtype`; read-only."""
        rng, draw = self._generator(dtype, seed, step), FILLS[self.fill]
        with np.errstate(over="ignore"):
            return [
                np.asarray(draw.grad(rng, shape, state_dtype(dtype))).astype(dtype)
                for shape in self.shapes
            ]

    def _generator(self, dtype: str, seed: int, step: int) -> np.random.Generator:
        return np.random.default_rng([seed, zlib.crc32(f"{self.key} {dtype}".encode()), step])


class Fill(NamedTuple):
    """How to draw the numbers of a case, given a generator, a shape and the states' dtype."""

    start: Start
    grad: Draw


def _spread(
    rng: np.random.Generator, shape: Shape, low: float, high: float, dtype: str
) -> np.ndarray:
    """Draw numbers of both signs, log-uniform between 10^low and 10^high."""
    signs = rng.choice([-1.0, 1.0], size=shape)
    with np.errstate(over="ignore", under="ignore"):
        # Not `rng.uniform`, which a compiler may contract to a fused multiply-add.
        magnitudes = power_of_10(low + (high - low) * rng.random(shape))
        return np.asarray(signs * magnitudes).astype(dtype)


LOG2_10, LOG10_2, LN_2 = 3.321928094887362, 0.3010299956639812, 0.6931471805599453
# The Taylor series of 2^f, lowest order first; |f| <= 1/2, so the rest is below 1e-17.
SERIES = tuple(itertools.accumulate(range(1, 15), lambda term, k: term * LN_2 / k, initial=1.0))


def power_of_10(exponent: np.ndarray | float) -> np.ndarray:
    """Compute 10^x with the same bits on every processor.

    `np.power` has another last bit with another vector unit or C library. IEEE 754 rounds each of
    the operations here, which NumPy takes one at a time.
    """
    binary = np.asarray(exponent, np.float64) * LOG2_10
    whole = np.rint(binary)
    fraction = binary - whole
    power = np.full_like(fraction, SERIES[-1])
    for coefficient in reversed(SERIES[:-1]):
        power = power * fraction + coefficient
    return np.ldexp(power, whole.astype(np.int32))


def _start(*ranges: tuple[float, float]) -> Start:
    """Draw weight, acc_grad and acc_delta with magnitudes between these powers of ten."""

    def start(rng: np.random.Generator, shape: Shape, dtype: str) -> Values:
        weight, *states = (_spread(rng, shape, *each, dtype) for each in ranges)
        return Values(weight, *map(np.abs, states))

    return start


def _fresh(rng: np.random.Generator, shape: Shape, dtype: str) -> Values:
    """Start with zero accumulators, as a training does, and half of the weights at zero."""
    zeros = np.zeros(shape, dtype)
    weight = _spread(rng, shape, -3, 1, dtype)
    return Values(np.where(rng.random(shape) < 0.5, zeros, weight), zeros, zeros.copy())


def _sparse_start(rng: np.random.Generator, shape: Shape, dtype: str) -> Values:
    """Start with nonzero accumulators, and some of the weights at zero."""
    weight, *states = _start((-3, 1), (-8, 3), (-9, -1))(rng, shape, dtype)
    return Values(np.where(rng.random(shape) < 0.3, np.zeros_like(weight), weight), *states)


def _grad(low: float, high: float) -> Draw:
    return lambda rng, shape, dtype: _spread(rng, shape, low, high, dtype)


def _sparse(rng: np.random.Generator, shape: Shape, dtype: str) -> np.ndarray:
    """Keep one gradient in four; the others are zeros of both signs."""
    grad = _spread(rng, shape, -4, 1, dtype)
    return np.where(rng.random(shape) < 0.25, grad, np.copysign(0, grad)).astype(dtype)


def _least(dtype: str) -> float:
    """Return the power of ten of the least subnormal number: exact powers of two, in doubles."""
    info = np.finfo(dtype)
    return (info.minexp - info.nmant) * LOG10_2


def _most(dtype: str) -> float:
    """Return the power of ten of the largest number, just below."""
    return float(np.finfo(dtype).maxexp) * LOG10_2 - 1e-12


def _tiny(rng: np.random.Generator, shape: Shape, dtype: str) -> np.ndarray:
    """Draw from gradients with subnormal squares down to subnormal gradients."""
    return _spread(rng, shape, _least(dtype), _least(dtype) * 0.4, dtype)


def _tiny_start(rng: np.random.Generator, shape: Shape, dtype: str) -> Values:
    least = _least(dtype)
    return _start((least, 0), (least, least * 0.7), (least, least * 0.7))(rng, shape, dtype)


def _huge(rng: np.random.Generator, shape: Shape, dtype: str) -> np.ndarray:
    """Draw from ordinary gradients up to those with squares that overflow."""
    return _spread(rng, shape, 0, _most(dtype), dtype)


def _huge_start(rng: np.random.Generator, shape: Shape, dtype: str) -> Values:
    return _start(*[(0, _most(dtype))] * 3)(rng, shape, dtype)


def specials(dtype: str) -> np.ndarray:
    """List the values that arithmetic treats specially, of both signs."""
    info = np.finfo(dtype)
    tiny, least = float(info.tiny), float(info.smallest_subnormal)
    some = [0.0, 1.0, 1.5, float(info.max), tiny, tiny / 3, least, np.inf, np.nan]
    return np.array([sign * each for each in some for sign in (1, -1)], dtype)


def _special(rng: np.random.Generator, shape: Shape, dtype: str) -> np.ndarray:
    return rng.choice(specials(dtype), size=shape)


def _special_start(rng: np.random.Generator, shape: Shape, dtype: str) -> Values:
    return Values(*(_special(rng, shape, dtype) for _ in range(3)))


def _repeating(count: int) -> Fill:
    """Repeat `count` numbers: drawing many takes longer than the check."""

    def start(rng: np.random.Generator, shape: Shape, dtype: str) -> Values:
        return Values(*(np.resize(v, shape) for v in FILLS["usual"].start(rng, (count,), dtype)))

    def grad(rng: np.random.Generator, shape: Shape, dtype: str) -> np.ndarray:
        return np.resize(FILLS["usual"].grad(rng, (count,), dtype), shape)

    return Fill(start, grad)


FILLS = {
    "usual": Fill(_start((-3, 1), (-8, 3), (-9, -1)), _grad(-8, 3)),
    "fresh": Fill(_fresh, _grad(-6, 2)),
    "zero": Fill(_start((-3, 1), (-8, 3), (-9, -1)), lambda _rng, *like: np.zeros(*like)),
    "sparse": Fill(_sparse_start, _sparse),
    "tiny": Fill(_tiny_start, _tiny),
    "huge": Fill(_huge_start, _huge),
    "special": Fill(_special_start, _special),
}
FUZZ_FILLS = tuple(FILLS)
# Prime periods, so that the chunks of two threads differ.
FILLS |= {"repeated": _repeating(1_000_003), "tiled": _repeating(1_009)}


# Around the width of vectors and unrolled loops, and around the size from which several threads are
# used; and lengths that two, three or four threads divide unevenly.
LENGTHS = (
    *range(6),
    *(2**k + d for k in range(3, 8) for d in (-1, 0, 1)),
    *(2**k + d for k in (8, 9, 10) for d in (-1, 1)),
    *(4095, 4096, 4097, 8191, 8193, 65_537),
)
ODD = Hyperparameters(
    learning_rate=0.7, rho=0.95, epsilon=1e-5, wd=0.013, rescale_grad=0.37, clip_gradient=0.9
)
MAXIMIZE = Hyperparameters(learning_rate=0.5, wd=0.02, rescale_grad=-1.0)  # PyTorch's `maximize`
SHAPES: tuple[Shape, ...] = ((3, 4, 5), (10, 4), (7,), (), (2, 0, 3), (64, 3, 3, 3), (1000,))
RANKS: tuple[Shape, ...] = tuple((2, 3, 1, 4, 2)[:rank] for rank in range(6))
FEW: tuple[Shape, ...] = ((), (7,), (40, 25))
MEDIUM, LONG, HUGE = ((5_000,),), ((20_000,),), ((2**24 + 1,),)
MANY: tuple[Shape, ...] = tuple(
    (n,) for n in [*range(1, 20), 30_000, 5, 70_000, *range(0, 700, 27)]
)


def _one_at_a_time() -> list[Case]:
    """Vary each hyper-parameter alone: to an odd value and to the ends of its range."""
    values = {
        "learning_rate": (0.3, 0.0, -1.0, 1e3),
        "rho": (0.95, 0.0, 0.9999999),
        "epsilon": (1e-8, 1e-30, 1.0),
        "wd": (0.03, -0.5, 10.0),
        "rescale_grad": (1 / 128, 0.0, -1.0, 1e4),
        "clip_gradient": (0.4, 0.0, 1e30),
    }
    return [
        Case(f"{name}={value}", f"{name} alone", FEW, Hyperparameters(**{name: value}), 3)
        for name, several in values.items()
        for value in several
    ]


def _grid() -> list[Case]:
    """Combine the values of MXNet's own tests with several rates and values of rho."""
    epsilons, clips, rescales = (1e-6, 1e-8), (None, 0.4, 0.5), (1.0, 0.14, 0.8)
    decays, rates, rhos = (0.0, 0.03, 0.05, 0.07), (1.0, 0.3), (0.9, 0.99)
    grid = itertools.product(epsilons, clips, rescales, decays, rates, rhos)
    hypers = [
        Hyperparameters(rate, rho, epsilon, wd, rescale, clip)
        for epsilon, clip, rescale, wd, rate, rho in grid
    ]
    return [Case(f"grid-{k:03d}", "a combination", FEW, each, 3) for k, each in enumerate(hypers)]


LENGTH = re.compile(r"length-(0|[1-9][0-9]{0,17})")  # names a case outside of the catalogue


def single(length: int) -> Case:
    """Return the case of a single tensor of a length."""
    return Case(f"length-{length}", "a tensor alone", ((length,),), ODD, steps=3)


DEFAULT = (
    Case("defaults", "default hyper-parameters", SHAPES),
    Case("fresh", "accumulators that start at zero", SHAPES, fill="fresh", steps=10),
    Case("odd", "all hyper-parameters at odd values", SHAPES, ODD, steps=10),
    *_one_at_a_time(),
    Case("maximize", "the gradient's sign reversed", SHAPES, MAXIMIZE, steps=3),
    Case("multipliers", "lr_mult and wd_mult of each tensor", ((50,),) * 9, ODD, varied=True),
    Case("lengths", "lengths around vectors and threads", tuple((n,) for n in LENGTHS), ODD, 2),
    *(single(length) for length in (0, 1, 17, 4097, 100_003)),
    Case("ranks", "tensors of no dimension to five", RANKS, ODD, steps=2),
    Case("many", "48 tensors of mixed size at once", MANY, ODD, steps=2, varied=True),
    Case("large", "more than the caches near the cores hold", ((300_007,),), ODD, steps=2),
    Case("zero-gradients", "gradients of zero", SHAPES, ODD, fill="zero", steps=3),
    Case("sparse-gradients", "mostly zeros of both signs", SHAPES, ODD, fill="sparse", steps=3),
    # `excusable`: kernels with another order of the operations need 0.045 and 0.24 at most.
    Case("special", "infinities, NaNs, signed zeros", LONG, fill="special", excusable=0.08),
    Case("special-odd", "clipped and decayed", LONG, ODD, fill="special", excusable=0.08),
    Case("overflow", "squares too large", MEDIUM, ODD, fill="huge", excusable=0.35),
    Case("subnormal", "strict subnormals", MEDIUM, fill="tiny"),
    Case("subnormal-odd", "strict subnormals, odd", MEDIUM, ODD, fill="tiny"),
    Case("flushed", "subnormals flushed to zero", MEDIUM, fill="tiny", flush=True),
    Case("flushed-odd", "flushed, odd", MEDIUM, ODD, fill="tiny", flush=True),
    Case("flushed-usual", "ordinary numbers while flushing", SHAPES, ODD, flush=True),
    Case("long", "100 steps", ((257,),), ODD, steps=100),
)
FULL = (
    *_grid(),
    *(single(length) for length in LENGTHS if length not in {0, 1, 17, 4097}),
    Case("longer", "1000 steps", ((257,),), ODD, steps=1000),
    Case("million", "where one element may be off", ((1_000_003,),), ODD, steps=2),
    Case("beyond-2^24", "more than float32 can count", HUGE, ODD, steps=1, fill="repeated"),
)
GRID_NAMES = f"grid-000 to grid-{len(_grid()) - 1:03d}"
CASES = {case.name: case for case in (*DEFAULT, *FULL)}
