"""What a problem is, and its gradient on each array library."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

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
    """An objective to minimise: data, start, loss, gradient and metrics.

    Attributes:
        name: its name in a config.
        metrics: the loss and what `measure` computes, each with its label on a plot.
        data: float64 arrays with the samples along the first axis; empty without samples.
        start: the initial tensors by name, float64.
        optimum: the least loss where it is known, else None.
    """

    name: ClassVar[str]
    metrics: ClassVar[dict[str, str]]
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
    def __init__(self, settings: Any, seed: int) -> None: ...

    @abstractmethod
    def loss(self, xp: Any, weights: Sequence[Any], *batch: Any) -> Any:
        """Compute the objective on a batch, a zero-dimensional array.

        Args:
            xp: the arrays' module, `numpy`, `mxnet.np` or `cupy`.
            weights: the tensors in the order of `start`, float32 or float64.
            batch: samples of each array of `data`, in the dtype of the weights.
        """

    @abstractmethod
    def gradient(self, xp: Any, weights: Sequence[Any], *batch: Any) -> list[Any]:
        """Compute the gradient of `loss` by hand-written formulas.

        Arguments are those of `loss`, except that MXNet's arrays are not supported.
        """

    @abstractmethod
    def measure(self, weights: Sequence[np.ndarray]) -> dict[str, float]:
        """Compute the other metrics at a point, given as float64."""

    def evaluate(self, weights: Sequence[np.ndarray]) -> dict[str, float]:
        """Compute the loss on all data, and the other metrics, at a point given as float64."""
        return {"loss": float(self.loss(np, weights, *self.data)), **self.measure(weights)}


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
        loss.backward()

    return differentiate


def gradient(problem: Problem, backend: NumpyBackend, parameters: Sequence[Tensor]) -> Gradient:
    """Return a function that computes the gradient on a batch into the parameters' `grad`.

    MXNet differentiates the loss; NumPy and CuPy use the problem's formulas. float16 weights are
    widened to the dtype of their states, and their gradients are rounded to float16. `parameters`
    are in the order of `problem.start`.
    """
    make = _automatic if backend.name == "mxnet" else _analytic
    return make(problem, backend, parameters)
