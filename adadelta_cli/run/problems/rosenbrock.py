"""Rosenbrock's valley: easy to enter, slow to follow.

H. H. Rosenbrock, "An automatic method for finding the greatest or least value of a function",
The Computer Journal 3 (1960), 175-184.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from adadelta_cli.run.problems.problem import Problem, Section

if TYPE_CHECKING:
    from collections.abc import Sequence


class RosenbrockSettings(Section):
    """Rosenbrock's valley: sum of 100 (x[i+1] - x[i]^2)^2 + (1 - x[i])^2, least at (1, ..., 1)."""

    name: Literal["rosenbrock"]
    dimension: int = Field(2, ge=2, le=1_000_000)
    """Number of coordinates; above 3 there is a second, local minimum."""


class Rosenbrock(Problem):
    """Sum over i of 100 (x[i+1] - x[i]^2)^2 + (1 - x[i])^2; the minimum is 0 at (1, ..., 1)."""

    name = "rosenbrock"
    metrics = {"loss": "loss", "distance": "distance to the minimum"}  # noqa: RUF012 - a constant
    optimum = 0.0

    def __init__(self, settings: RosenbrockSettings, _seed: int) -> None:
        self.start = {"x": np.resize([-1.2, 1.0], settings.dimension)}

    def loss(self, _xp: Any, weights: Sequence[Any], *_batch: Any) -> Any:
        """Compute the objective; the tensor is `x`, of shape (dimension,)."""
        (x,) = weights
        here, ahead = x[:-1], x[1:]
        return (100 * (ahead - here * here) ** 2 + (1 - here) ** 2).sum()

    def gradient(self, xp: Any, weights: Sequence[Any], *_batch: Any) -> list[Any]:
        """Compute the gradient by its formula."""
        (x,) = weights
        here, ahead = x[:-1], x[1:]
        slope = 200 * (ahead - here * here)
        grad = xp.zeros_like(x)
        grad[:-1] = -2 * here * slope - 2 * (1 - here)
        grad[1:] += slope
        return [grad]

    def measure(self, weights: Sequence[np.ndarray]) -> dict[str, float]:
        """Compute the distance to the minimum."""
        return {"distance": float(np.linalg.norm(weights[0] - 1))}
