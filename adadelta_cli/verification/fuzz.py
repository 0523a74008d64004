"""Fuzzed cases, generated from the seed.

The name of a fuzzed case describes it, as in `drawn:shapes=3x4+7,fill=tiny,rho=0.95`, so that
`adadelta verify --case NAME` repeats it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from adadelta_cli.errors import UsageError, shortened, suggestion
from adadelta_cli.update import Hyperparameters
from adadelta_cli.verification.cases import FILLS, FUZZ_FILLS, Case, Shape, power_of_10

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

# Names for `--case` that stand for many cases: fuzzed ones, tensors of every length, and one step
# taken hundreds of times (`invariants.check_repeated`).
ALL, LENGTHS, STEADY = COLLECTIVE = ("drawn", "drawn:lengths", "steady")
EXAMPLES, FULL_EXAMPLES = 12, 300  # for each implementation and dtype
USER_FACTOR = 25  # times as many for a user kernel, since bounds hide more than equal bits
# For each dtype of a user kernel: some compile each case. Lengths get twice as long.
SECONDS, FULL_SECONDS = 10.0, 40.0
PREFIX = f"{ALL}:"
SCALAR = "scalar"
RATES = tuple(field.name for field in fields(Hyperparameters))
FORM = "drawn:shapes=3x4+7+scalar,fill=FILL,steps=N,draw=N,varied=1 and hyper-parameters"
READERS: dict[str, Callable[[str], Any]] = {
    "shapes": lambda text: tuple(map(_shape, text.split("+"))),
    "fill": lambda text: _allowed("fill", text, [*FILLS]),
    "steps": lambda text: _allowed("steps", int(text), range(1, 1001)),
    "draw": int,
    "varied": lambda text: bool(int(text)),
    **dict.fromkeys(RATES, float),
}


@dataclass(frozen=True)
class FuzzedCase(Case):
    """A case with a name that describes it.

    Attributes:
        draw: seeds its numbers; these depend on nothing else, so that shrinking keeps them.
    """

    draw: int = 0
    excusable: float = 1.0  # all of a few elements may be near the ends of the range
    check: ClassVar[str] = "drawn"

    @property
    def key(self) -> str:
        """From which its numbers derive, with dtype and seed."""
        return f"{PREFIX}{self.draw}"


def fuzzed(shapes: tuple[Shape, ...], hyper: Hyperparameters, **more: Any) -> FuzzedCase:
    """Make a case; its name has the values that are not the usual ones."""
    parts = {"shapes": "+".join("x".join(map(str, shape)) or SCALAR for shape in shapes)}
    usual = {"fill": "usual", "steps": 1, "varied": False, "draw": 0} | vars(Hyperparameters())
    given = {"steps": 1} | more
    for key, value in (given | vars(hyper)).items():
        if value != usual[key]:
            parts[key] = str(int(value)) if isinstance(value, bool) else str(value)
    name = PREFIX + ",".join(f"{key}={value}" for key, value in parts.items())
    return FuzzedCase(name, "fuzzed", shapes, hyper, **given)


def parse_case(name: str) -> FuzzedCase:
    """Parse the name of a fuzzed case.

    Raises:
        UsageError: it is no such name.
    """
    try:
        pairs = [part.split("=", 1) for part in name.removeprefix(PREFIX).split(",")]
        found = {key: _reader(key)(value) for key, value in pairs}
        rates = {key: found.pop(key) for key in RATES if key in found}
        return fuzzed(found.pop("shapes"), Hyperparameters(**rates), **found)
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"case is {name!r}: {error}; expected {FORM}, as verify wrote it"
        ) from None


def _reader(key: str) -> Callable[[str], Any]:
    if key not in READERS:
        raise ValueError(f"there is no {shortened(key)!r}{suggestion(key, READERS)}")
    return READERS[key]


def _allowed(key: str, value: Any, allowed: Collection[Any]) -> Any:
    if value not in allowed:
        near = suggestion(value, allowed) if isinstance(value, str) else ""
        raise ValueError(f"{key} is {value!r}{near}, not in {allowed}")
    return value


def _shape(text: str) -> Shape:
    shape = () if text == SCALAR else tuple(map(int, text.split("x")))
    if min(shape, default=0) < 0:
        raise ValueError(f"{text} is no shape")
    return shape


def steady_name(elements: int) -> str:
    """Name the step on a tensor of this length that `STEADY` takes hundreds of times."""
    return f"{STEADY}:{elements}"


def length_name(case: str) -> str:
    """Name the case of `catalogue` with the numbers of a case that `steady_name` named."""
    return case.replace(f"{STEADY}:", "length-")


def collective_name(case: str) -> str:
    """Return the name in `COLLECTIVE` that repeats a case; empty where it has its own."""
    name = STEADY if case.startswith(f"{STEADY}:") else case
    return name if name in COLLECTIVE else ""


def example_count(names: tuple[str, ...], *, full: bool, alone: bool) -> int:
    """Return the number of fuzzed cases of a run; `alone`: it names cases or anything else."""
    if ALL in names or (full and not alone):
        return FULL_EXAMPLES
    return 0 if alone else EXAMPLES


def longest_length(*, full: bool) -> int:
    """Return the length of the longest tensor that user kernels get."""
    return FULL_MOST if full else MOST


def time_limit_s(*, full: bool) -> float:
    """Return the time limit of fuzzing one user kernel."""
    return FULL_SECONDS if full else SECONDS


# --- generating -----------------------------------------------------------------------------------

RANKS = 8  # most dimensions of a tensor for user kernels
BUILTIN_RANKS = 5  # and for built-in implementations, since MXNet's operators broadcast no more


class _Range(NamedTuple):
    """The distribution of a hyper-parameter.

    Attributes:
        usual: its value in `share` of the cases.
        share: a fraction.
        edge: its value in one case of twenty.
        spread: maps [0, 1) to the values of the other cases.
    """

    usual: float | None
    share: float
    edge: float
    spread: Callable[[float], float]

    def at(self, u: float) -> float | None:
        """Return the value at a place in [0, 1)."""
        if u < self.share:
            return self.usual
        if u < self.share + 0.05:
            return self.edge
        return float(f"{self.spread((u - self.share - 0.05) / (0.95 - self.share)):.8g}")


def _log(low: float, high: float) -> Callable[[float], float]:
    """Map [0, 1) to numbers with a uniform logarithm, between these powers of ten."""
    return lambda u: float(power_of_10(low + (high - low) * u))


def _signed(low: float, high: float) -> Callable[[float], float]:
    """Map [0, 1) to numbers of both signs, with magnitudes as of `_log`."""
    return lambda u: _log(low, high)(2 * u) if u < 0.5 else -_log(low, high)(2 * u - 1)


def _halves(*parts: Callable[[float], float]) -> Callable[[float], float]:
    """Map each half of [0, 1) in its own way."""
    return lambda u: parts[int(2 * u)](2 * u % 1)


RANGES = {  # uniform in the logarithm; rho also uniform, and near 1
    "learning_rate": _Range(1.0, 0.2, 0.0, _signed(-6, 6)),
    "rho": _Range(0.9, 0.1, 0.0, _halves(lambda u: u, lambda u: 1 - _log(-7, 0)(u))),
    "epsilon": _Range(1e-6, 0.3, 1.0, _log(-30, 6)),
    "wd": _Range(0.0, 0.3, 0.0, _signed(-8, 4)),
    "rescale_grad": _Range(1.0, 0.3, 0.0, _signed(-10, 10)),
    # Near the gradients, and far from them.
    "clip_gradient": _Range(None, 0.3, 0.0, _halves(_log(-6, 4), _log(-37, 38))),
}


def fuzzed_cases(seed: int, count: int, ranks: int = RANKS) -> Iterator[FuzzedCase]:
    """Generate `count` cases of up to `ranks` dimensions, a Latin hypercube of hyper-parameters.

    Each of `count` equal parts of each range occurs once (M. D. McKay, R. J. Beckman, W. J.
    Conover, "A comparison of three methods for selecting values of input variables", 1979).
    """
    rng = np.random.default_rng([seed, count])
    places = {name: (rng.permutation(count) + rng.random(count)) / count for name in RANGES}
    fills = sorted(FUZZ_FILLS)
    for k in range(count):
        hyper = {name: each.at(places[name][k]) for name, each in RANGES.items()}
        shapes = tuple(_random_shape(rng, ranks) for _ in range(rng.integers(1, 4)))
        yield fuzzed(
            shapes,
            Hyperparameters(**hyper),  # type: ignore[arg-type] # only a clip is None
            fill="usual" if rng.random() < 0.5 else str(rng.choice(fills)),
            steps=int(rng.integers(1, 5)),
            varied=bool(rng.random() < 0.5),
            draw=k,
        )


def _random_shape(rng: np.random.Generator, ranks: int) -> Shape:
    """Generate a shape of any rank with some hundred elements, or a length up to 10,000."""
    if rng.random() < 0.3:
        return (int(power_of_10(4 * rng.random())),)
    rank = int(rng.integers(0, ranks + 1))
    most = {0: 1, 1: 300, 2: 20, 3: 8}.get(rank, 3)
    return tuple(int(n) for n in rng.integers(rank < 4, most + 1, rank)) if rank else ()


# --- every length ---------------------------------------------------------------------------------

GROWTH = 1.065  # from one length to the next: finds a failure in any window of 6.5 %
MOST, FULL_MOST = 1_050_000, 4_400_000  # beyond 2^20; with --full beyond 2^22
LENGTH_FILL = "tiled"
HYPER = Hyperparameters(0.7, 0.95, 1e-5, 0.013, 0.37, 0.9)


def length_cases(most: int) -> list[FuzzedCase]:
    """Return single tensors of many lengths up to `most`, odd and even in turn; and large shapes.

    They are shuffled, so that those run before the time limit cover all lengths.
    """
    found = _lengths(most)
    shapes: list[Shape] = [(n,) for n in found]
    shapes += [(2**k,) for k in range(5, most.bit_length()) if 2**k not in found]
    shapes += [shape for k in range(3, 10) for shape in _folded(4**k)]
    order = np.random.default_rng(0).permutation(len(shapes))
    return [fuzzed((shapes[k],), HYPER, fill=LENGTH_FILL, steps=1, draw=int(k)) for k in order]


def _folded(size: int) -> Iterator[Shape]:
    """Yield shapes of about `size` elements: matrices, convolution kernels and stacks of them."""
    side = int(size**0.5)
    yield from ((side + 1, side - 1), (3, size // 3 + 1), (size // 5 + 1, 5), (side, side))
    yield from ((side // 3 + 1, side // 3, 3, 3), (5, side // 5 + 1, side), (2, side // 4, 2, side))


def _lengths(most: int) -> list[int]:
    found = [1]
    while found[-1] < most:
        longer = int(found[-1] * GROWTH) // 2 * 2 + len(found) % 2
        found.append(max(found[-1] + 1, longer))
    return found
