"""What a problem is, and its gradient on each array library."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from adadelta_cli.implementations.array_backends import NumpyBackend
    from adadelta_cli.implementations.optimizers import Tensor


class Section(BaseModel):
    """A section of a config; unknown keys are errors."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Problem(ABC):
    """An objective to minimise: data, start, loss, and perhaps gradient and metrics.

    A problem of your own is a subclass. Its constructor takes the settings of the config as keyword
    arguments, and the seed, if it has a parameter `seed`; it sets `start`: docs/own-problems.md.

    Attributes:
        name: of a built-in problem, its name in a config.
        metrics: the label on a plot of the loss and of what `measure` computes.
        data: arrays with the samples along the first axis, floats or integers; empty without
            samples.
        start: the initial tensors by name, float64.
        optimum: the least loss where it is known, else None.

    Example:
        >>> import numpy as np
        >>> class Bowl(Problem):
        ...     def __init__(self, width=1.0):
        ...         self.width, self.start = width, {"x": np.ones(3)}
        ...     def loss(self, xp, weights):
        ...         return (weights[0] ** 2).sum() / self.width
        >>> float(Bowl(width=2.0).loss(np, [np.ones(3)]))
        1.5
    """

    name: str = ""
    metrics: dict[str, str] = {}  # noqa: RUF012 - replaced, not changed
    data: tuple[np.ndarray, ...] = ()
    start: dict[str, np.ndarray]
    optimum: float | None = None

    @cached_property
    def digest(self) -> str:
        """What identifies the data."""
        digest = hashlib.sha256()
        for values in self.data:
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()

    @abstractmethod
    def loss(self, xp: Any, weights: Sequence[Any], *batch: Any) -> Any:
        """Compute the objective on a batch, a zero-dimensional array.

        Args:
            xp: the arrays' module, `numpy`, `mxnet.np` or `cupy`.
            weights: the tensors in the order of `start`, float32 or float64; not to be changed.
            batch: samples of each array of `data`, floats in the dtype of the weights.
        """

    def gradient(self, xp: Any, weights: Sequence[Any], *batch: Any) -> list[Any]:
        """Compute the gradient of `loss`, for each tensor an array of its shape, by formulas.

        NumPy and CuPy need it; MXNet differentiates `loss`. Arguments are those of `loss`.
        """
        raise NotImplementedError

    def measure(self, weights: Sequence[np.ndarray]) -> dict[str, float]:
        """Compute other metrics at a point, given as float64; columns of history.csv."""
        del weights
        return {}

    def evaluate(self, weights: Sequence[np.ndarray]) -> dict[str, float]:
        """Compute the loss on all data, and the other metrics, at a point given as float64."""
        return {"loss": float(self.loss(np, weights, *self.data)), **self.measure(weights)}

    def check_gradient(self) -> None:  # noqa: B027 - nothing to do, not forgotten
        """Check that there are formulas for the gradient; built-in problems have them."""

    def calling(self, _what: str) -> AbstractContextManager[None]:
        """Return what explains errors of a problem's own code; nothing for built-in ones."""
        return nullcontext()


Gradient = Callable[[Sequence[Any]], None]


def _analytic(problem: Problem, backend: NumpyBackend, parameters: Sequence[Tensor]) -> Gradient:
    def differentiate(batch: Sequence[Any]) -> None:
        with np.errstate(all="ignore"):  # Run reports a diverged loss
            weights = [p.weight.astype(p.exact.dtype, copy=False) for p in parameters]
            grads = problem.gradient(backend.xp, weights, *batch)
            for p, grad in zip(parameters, grads, strict=True):
                p.grad[...] = grad

    return differentiate


def _automatic(problem: Problem, backend: Any, parameters: Sequence[Tensor]) -> Gradient:
    autograd = backend.mxnet.autograd
    autograd.mark_variables([p.weight for p in parameters], [p.grad for p in parameters])

    def differentiate(batch: Sequence[Any]) -> None:
        with autograd.record():
            weights = [p.weight.astype(p.exact.dtype, copy=False) for p in parameters]
            loss = problem.loss(backend.xp, weights, *batch)
        with problem.calling("the gradient of loss"):
            loss.backward()

    return differentiate


def gradient(problem: Problem, backend: NumpyBackend, parameters: Sequence[Tensor]) -> Gradient:
    """Return a function that computes the gradient on a batch into the parameters' `grad`.

    MXNet differentiates the loss; NumPy and CuPy use the problem's formulas. float16 weights are
    widened to the dtype of their states, and their gradients are rounded to float16. `parameters`
    are in the order of `problem.start`.
    """
    if backend.name == "mxnet":
        return _automatic(problem, backend, parameters)
    problem.check_gradient()
    return _analytic(problem, backend, parameters)
