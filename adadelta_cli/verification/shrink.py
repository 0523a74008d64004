"""Shrink a fuzzed case that fails to a simpler one.

No library of property-based testing does this: Hypothesis draws constants from the sources that it
finds locally, so a checkout and an installed version would shrink to different cases.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from adadelta_cli.update import Hyperparameters
from adadelta_cli.verification.fuzz import FuzzedCase, fuzzed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from adadelta_cli.verification.cases import Shape

TRIES = 100  # cases that are run
PLAIN = {"learning_rate": 1.0, "wd": 1.0, "rescale_grad": 1.0, "clip_gradient": 1.0}


def shrink(case: FuzzedCase, fails: Callable[[FuzzedCase], bool]) -> FuzzedCase:
    """Find a simpler case that fails: fewer and smaller tensors, plain settings.

    Args:
        case: one that fails.
        fails: tells whether a case fails.
    """
    tried, position, in_vain = {case.name}, 0, 0
    while len(tried) <= TRIES:
        candidates = list(_simpler(case))
        if in_vain >= len(candidates):  # none of them fails
            break
        position %= len(candidates)
        candidate = candidates[position]
        if candidate.name not in tried and fails(candidate):
            case, in_vain = candidate, 0  # what helped once is tried again first
        else:
            position, in_vain = position + 1, in_vain + 1
        tried.add(candidate.name)
    return case


def _simpler(case: FuzzedCase) -> Iterator[FuzzedCase]:
    """Yield cases with one simplification each; the most effective ones first."""
    settings = vars(case.hyper) | {key: getattr(case, key) for key in ("fill", "steps", "varied")}
    usual = vars(Hyperparameters()) | {"fill": "usual", "steps": 1, "varied": False}
    yield _changed(case, case.shapes, usual)
    for shapes in _fewer(case.shapes):
        yield _changed(case, shapes, settings)
    for name, value in settings.items():
        if value != usual[name]:
            yield _changed(case, case.shapes, settings | {name: usual[name]})
            if value != PLAIN.get(name, value):
                yield _changed(case, case.shapes, settings | {name: PLAIN[name]})
    for k, shape in enumerate(case.shapes):
        for smaller in _smaller(shape):
            yield _changed(case, (*case.shapes[:k], smaller, *case.shapes[k + 1 :]), settings)


def _changed(case: FuzzedCase, shapes: tuple[Shape, ...], settings: dict[str, Any]) -> FuzzedCase:
    hyper = {name: settings[name] for name in vars(case.hyper)}
    more = {name: settings[name] for name in ("fill", "steps", "varied")}
    return fuzzed(shapes, replace(case.hyper, **hyper), **more, draw=case.draw)


def _fewer(shapes: tuple[Shape, ...]) -> Iterator[tuple[Shape, ...]]:
    """Yield each tensor alone, and all but one."""
    if len(shapes) > 1:
        yield from ((shape,) for shape in shapes)
    if len(shapes) > 2:
        yield from (shapes[:k] + shapes[k + 1 :] for k in range(len(shapes)))


def _smaller(shape: Shape) -> Iterator[Shape]:
    """Yield shapes with one dimension, or one less, or a shorter one: by all, half, a quarter."""
    if len(shape) > 1:
        yield (math.prod(shape),)
    for k, length in enumerate(shape):
        if length == 1:
            yield shape[:k] + shape[k + 1 :]
        less = length
        while less:
            yield (*shape[:k], length - less, *shape[k + 1 :])
            less //= 2
