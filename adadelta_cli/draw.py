"""Fresh cases that Hypothesis draws from the seed, and shrinks to the smallest that fails.

A drawn case is named by what it is, as in `drawn:shapes=3x4+7,fill=tiny,rho=0.95`, so that
`adadelta verify --case NAME` repeats it without Hypothesis.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from adadelta_cli import implementations
from adadelta_cli.cases import DRAWN_FILLS, Case, Shape
from adadelta_cli.difference import Difference
from adadelta_cli.errors import UsageError, of_device
from adadelta_cli.trajectory import step_through
from adadelta_cli.update import Hyperparameters

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from hypothesis.strategies import SearchStrategy

ALL = "drawn"  # the name by which `--case` asks for the drawing itself
EXAMPLES, FULL_EXAMPLES = 12, 300  # for each implementation and dtype
PREFIX = f"{ALL}:"
SCALAR = "scalar"
RATES = tuple(field.name for field in fields(Hyperparameters))
FORM = "drawn:shapes=3x4+7+scalar,fill=FILL,steps=N,draw=N,varied=1 and hyper-parameters"
READERS: dict[str, Callable[[str], Any]] = {
    "shapes": lambda text: tuple(map(_shape, text.split("+"))),
    "fill": lambda text: _allowed("fill", text, DRAWN_FILLS),
    "steps": lambda text: _allowed("steps", int(text), range(1, 1001)),
    "draw": int, "varied": lambda text: bool(int(text)),
    **dict.fromkeys(RATES, float),
}  # fmt: skip


@dataclass(frozen=True)
class Drawn(Case):
    """A case that is named by what it is.

    Attributes:
        draw: which numbers; they do not depend on the rest, so that shrinking keeps to them.
    """

    draw: int = 0
    check: ClassVar[str] = "drawn"

    @property
    def key(self) -> str:
        """From which its numbers derive, with dtype and seed."""
        return f"{PREFIX}{self.draw}"


def drawn(shapes: tuple[Shape, ...], hyper: Hyperparameters, **more: Any) -> Drawn:
    """Make a case, and its name of what is not as usual."""
    parts = {"shapes": "+".join("x".join(map(str, shape)) or SCALAR for shape in shapes)}
    usual = {"fill": "usual", "steps": 1, "varied": False, "draw": 0} | vars(Hyperparameters())
    given = {"steps": 1} | more
    for key, value in (given | vars(hyper)).items():
        if value != usual[key]:
            parts[key] = str(int(value)) if isinstance(value, bool) else str(value)
    name = PREFIX + ",".join(f"{key}={value}" for key, value in parts.items())
    return Drawn(name, "drawn from the seed", shapes, hyper, **given)


def read(name: str) -> Drawn:
    """Make the case of a name.

    Raises:
        UsageError: it names none.
    """
    try:
        pairs = [part.split("=", 1) for part in name.removeprefix(PREFIX).split(",")]
        found = {key: READERS[key](value) for key, value in pairs}
        rates = {key: found.pop(key) for key in RATES if key in found}
        return drawn(found.pop("shapes"), Hyperparameters(**rates), **found)
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"--case is {name!r}: {error}; expected {FORM}, as verify wrote it"
        ) from None


def _allowed(key: str, value: Any, allowed: Container[Any]) -> Any:
    if value not in allowed:
        raise ValueError(f"{key} is {value!r}, not in {allowed}")
    return value


def _shape(text: str) -> Shape:
    shape = () if text == SCALAR else tuple(map(int, text.split("x")))
    if min(shape, default=0) < 0:
        raise ValueError(f"{text} is no shape")
    return shape


def count(names: tuple[str, ...], *, full: bool, alone: bool) -> int:
    """Choose how many cases to draw: of a run that names cases, or something else `alone`."""
    if ALL in names or (full and not alone):
        return FULL_EXAMPLES
    return 0 if alone else EXAMPLES


# --- drawing --------------------------------------------------------------------------------------


def strategy() -> SearchStrategy[Drawn]:
    """Draw cases: up to three small tensors, hyper-parameters over all of their ranges."""
    from hypothesis import strategies as st

    shapes = st.lists(
        st.lists(st.integers(0, 9), max_size=3).map(tuple) | st.tuples(st.integers(0, 200)),
        min_size=1, max_size=3,
    ).map(tuple)  # fmt: skip
    rate = st.floats(-1e3, 1e3)
    hyper = st.builds(
        Hyperparameters,
        learning_rate=st.just(1.0) | rate,
        rho=st.just(0.9) | st.floats(0, 1, exclude_max=True),
        epsilon=st.just(1e-6) | st.floats(1e-30, 1),
        wd=st.just(0.0) | st.floats(-10, 10),
        rescale_grad=st.just(1.0) | rate,
        clip_gradient=st.none() | st.floats(0, 1e3),
    )
    return st.builds(
        drawn, shapes, hyper, fill=st.sampled_from(sorted(DRAWN_FILLS, key="usual".__ne__)),
        steps=st.integers(1, 4), varied=st.booleans(), draw=st.integers(0, 2**32 - 1),
    )  # fmt: skip


def search(wrong: Callable[[Drawn], bool], seed: int, examples: int) -> Drawn | None:
    """Draw cases until one is wrong, and shrink that; None when none was.

    Args:
        wrong: tells whether something is wrong with a case.
        seed: the same seed draws the same cases, with one version of Hypothesis.
        examples: how many to draw, at most.
    """
    import random

    from hypothesis import HealthCheck, find, settings
    from hypothesis.errors import NoSuchExample

    how = settings(
        max_examples=examples, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    try:
        generator = random.Random(seed)  # noqa: S311 - no secret
        return find(strategy(), wrong, settings=how, random=generator)
    except NoSuchExample:
        return None


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        cases: how many were put, those of the shrinking included.
        elements: how many numbers were compared.
        smallest: the smallest case that is wrong; None where there is none.
    """

    cases: int
    elements: int
    smallest: Drawn | None


def examine(
    name: str, reference: str, dtype: str, seed: int, examples: int, ctx: str = "cpu"
) -> Found:
    """Search for a case in which two implementations differ in a bit, or the first raises.

    What the first is known to lack is not put to it. What fails on a device for good is no verdict.
    """
    sizes: list[int] = []
    lacks = implementations.implementation(name).lacks

    def taken(which: str, case: Drawn) -> dict[str, list[np.ndarray]]:
        return step_through(which, case, dtype, seed, None, ctx).tensors

    def wrong(case: Drawn) -> bool:
        if lacks(case.hyper):
            return False
        wanted = taken(reference, case)
        sizes.append(case.elements * case.steps * len(wanted))
        try:
            got = taken(name, case)
        except Exception as error:
            if of_device(error):
                raise
            return True  # whatever it raises, it is wrong
        return any(
            Difference.between(a, b, np.abs(b)).mismatches
            for tensor, states in wanted.items()
            for a, b in zip(got[tensor], states, strict=True)
        )

    smallest = search(wrong, seed, examples)
    return Found(len(sizes), sum(sizes), smallest)
