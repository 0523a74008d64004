"""Compare the gradient of a problem with central differences of its loss."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli.errors import ExitCode, displayed
from adadelta_cli.implementations import optimizers
from adadelta_cli.run import config as configs
from adadelta_cli.run import problems
from adadelta_cli.run.problems.problem import gradient
from adadelta_cli.system.progress import Tick, no_tick

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adadelta_cli.implementations.array_backends import NumpyBackend
    from adadelta_cli.run.config import Config
    from adadelta_cli.run.problems.problem import Problem

MOST_ELEMENTS = 20  # of a tensor that are compared
MOST_SAMPLES = 64  # that the loss is computed on
AWAY = 0.01  # from the start, where many problems have kinks or zeros
STEP = float(np.finfo(np.float64).eps) ** (1 / 3)  # balances truncation and rounding
RELATIVE = 1e-6  # of the gradient; a wrong formula is off by far more
KINK = 1e-3  # of the difference: the loss bends within a step
ROUNDING = 32 * float(np.finfo(np.float64).eps)  # of a loss, relative


@dataclass(frozen=True)
class GradientRow:
    """The comparison of one tensor's gradient, in float64; of its worst element the numbers.

    Attributes:
        name: the config's.
        tensor: its name.
        elements: how many it has.
        compared: how many were compared.
        kinks: how many were left out, since the loss is not smooth there.
        index: of the worst element; empty where none was compared.
        gradient, difference: the two derivatives.
        error: the distance between them.
        allowed: the largest allowed distance.
        passed: whether all elements that were compared are within theirs, and there are some.
    """

    name: str
    tensor: str
    elements: int
    compared: int
    kinks: int
    index: tuple[int, ...]
    gradient: float | None
    difference: float | None
    error: float | None
    allowed: float | None
    passed: bool


def load(references: Sequence[str], overrides: Sequence[str]) -> list[tuple[str, Config]]:
    """Load configs with their names; both arguments as `training.runs` takes them.

    Raises:
        UsageError: a config is invalid.
    """
    names = references or configs.shipped()
    return [
        (displayed(configs.locate(each).stem), configs.load_config(each, overrides))
        for each in names
    ]


def exit_code(rows: Sequence[GradientRow]) -> ExitCode:
    """Return the exit code of a check with these rows."""
    return ExitCode.OK if all(row.passed for row in rows) else ExitCode.CHECK_FAILED


def check(
    name: str, config: Config, backend: NumpyBackend, seed: int, tick: Tick = no_tick
) -> list[GradientRow]:
    """Compare the gradient of a config, a row for each tensor.

    Args:
        name: the config's.
        config: names the problem.
        backend: the array library whose gradient is compared.
        seed: of the problem, and of the elements that are compared.
        tick: gets the elements that were compared, how many there are, and the tensor.

    Raises:
        UsageError: the problem's data are invalid.
    """
    problem, generator = problems.problem(config.problem, seed), np.random.default_rng(seed)
    point = [_moved(start, generator) for start in problem.start.values()]
    batch = [np.asarray(values[:MOST_SAMPLES]) for values in problem.data]
    batch = [each.astype(np.float64) if each.dtype.kind == "f" else each for each in batch]
    with np.errstate(all="ignore"):
        grads = _gradient(problem, backend, point, batch)
        chosen = [_chosen(each, generator) for each in grads]
        numbers, total = itertools.count(), sum(map(len, chosen))
        rows = []
        for k, tensor in enumerate(problem.start):
            loss = _loss_along(problem, point, k, batch)
            found = []
            for each in chosen[k]:
                tick(next(numbers), total, f"elements, {displayed(tensor)}")
                found.append(_compared(float(grads[k][each]), float(point[k][each]), each, loss))
            rows.append(_row(name, tensor, grads[k].size, found))
        return rows


def _moved(start: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    noise = AWAY * generator.standard_normal(start.shape)
    return np.asarray(start + noise * np.maximum(np.abs(start), 1.0))


def _gradient(
    problem: Problem, backend: NumpyBackend, point: Sequence[np.ndarray], batch: Sequence[Any]
) -> list[np.ndarray]:
    tensors = [optimizers.tensor(backend, each, "sgd", "float64") for each in point]
    gradient(problem, backend, tensors)([backend.array(each) for each in batch])
    return [backend.numpy(each.grad) for each in tensors]


def _loss_along(
    problem: Problem, point: Sequence[np.ndarray], number: int, batch: Sequence[Any]
) -> Callable[[tuple[int, ...], float], float]:
    """Return the loss as a function of one element of one tensor: its index and its change."""

    def loss(index: tuple[int, ...], change: float) -> float:
        moved = [each.copy() if k == number else each for k, each in enumerate(point)]
        moved[number][index] += change
        return float(problem.loss(np, moved, *batch))

    return loss


def _row(
    name: str, tensor: str, elements: int, found: Sequence[tuple[Any, ...] | None]
) -> GradientRow:
    """Sum up what `_compared` found for a tensor."""
    smooth = [each for each in found if each is not None]
    counts = (elements, len(smooth), len(found) - len(smooth))
    if not smooth:
        return GradientRow(name, tensor, *counts, (), None, None, None, None, False)
    worst = max(smooth, key=lambda each: each[-1] if np.isfinite(each[-1]) else np.inf)
    index, got, wanted, error, allowed, excess = worst
    return GradientRow(name, tensor, *counts, index, got, wanted, error, allowed, excess <= 1)


def _chosen(grad: np.ndarray, generator: np.random.Generator) -> list[tuple[int, ...]]:
    """Draw elements; the one with the largest gradient is among them."""
    if not grad.size:
        return []
    drawn = generator.choice(grad.size, min(MOST_ELEMENTS, grad.size), replace=False)
    flat = {*map(int, drawn), int(np.argmax(np.abs(grad)))}
    return [tuple(map(int, np.unravel_index(each, grad.shape))) for each in sorted(flat)]


def _compared(
    grad: float,
    value: float,
    index: tuple[int, ...],
    loss: Callable[[tuple[int, ...], float], float],
) -> tuple[Any, ...] | None:
    """Compare one element: index, gradient, difference, error, allowed and their ratio.

    None: the loss is not smooth there, since two steps give two differences.
    """
    step = STEP * max(1.0, abs(value))
    ends = [[loss(index, sign * h) for sign in (1, -1)] for h in (step, step / 2)]
    wide, narrow = ((a - b) / (2 * h) for (a, b), h in zip(ends, (step, step / 2), strict=True))
    rounding = ROUNDING * max(map(abs, ends[0])) / step
    if abs(wide - narrow) > KINK * max(abs(wide), abs(narrow)) + rounding:
        return None
    error = abs(grad - narrow)
    scale = max(abs(grad), abs(narrow))
    allowed = RELATIVE * scale + 4 * abs(wide - narrow) + rounding
    return index, grad, narrow, error, allowed, error / allowed if allowed else float(error > 0)
