"""A multi-layer perceptron on scikit-learn's digits: 1797 pictures of 8 x 8 pixels, ten classes."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from adadelta_cli.errors import UsageError
from adadelta_cli.run.problems.problem import Problem, Section

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CLASSES = 10
BRIGHTEST = 16.0  # the pixels are integers from 0 to 16

Width = Annotated[int, Field(ge=1, le=4096)]


class MlpSettings(Section):
    """A multi-layer perceptron that reads handwritten digits."""

    name: Literal["mlp"]
    hidden: tuple[Width, ...] = Field((128, 64), min_length=1, max_length=8, strict=False)
    """Sizes of the hidden layers."""
    activation: Literal["relu", "tanh", "sigmoid"] = "relu"
    """Activation function of the hidden layers."""
    held_out: float = Field(0.2, gt=0, lt=1)
    """Fraction of the samples held out from training, for the accuracy."""


class Activation(NamedTuple):
    """A hidden layer's non-linearity."""

    apply: Callable[[Any, Any], Any]  # of the arrays' module and the layer's input
    slope: Callable[[Any], Any]  # its derivative, of its output
    gain: float  # variance of initial weights times the mean of fan-in and fan-out: He or Glorot


ACTIVATIONS = {
    # where, not maximum: at 0, MXNet differentiates maximum(x, 0) to 1
    "relu": Activation(lambda xp, x: xp.where(x > 0, x, xp.zeros_like(x)), lambda y: y > 0, 2.0),
    "tanh": Activation(lambda xp, x: xp.tanh(x), lambda y: 1 - y * y, 1.0),
    # the logistic function in a form that cannot overflow
    "sigmoid": Activation(lambda xp, x: 0.5 * xp.tanh(0.5 * x) + 0.5, lambda y: y * (1 - y), 1.0),
}


class Mlp(Problem):
    """Mean cross-entropy of softmax(layers(x)); the layers are affine with activations between."""

    name = "mlp"
    metrics = {  # noqa: RUF012 - a constant
        "loss": "loss (mean of the training samples)",
        "accuracy": "accuracy (share of held-out samples)",
    }

    def __init__(self, settings: MlpSettings, seed: int) -> None:
        from sklearn.datasets import load_digits

        pixels, digits = load_digits(return_X_y=True)
        generator = np.random.default_rng(seed)
        order = generator.permutation(len(digits))
        held_out, kept = np.split(order, [max(1, round(settings.held_out * len(order)))])
        if not len(kept):
            raise UsageError(
                f"problem.held_out is {settings.held_out}, which leaves none of the {len(order)} "
                f"samples for training; allowed is at most {1 - 1 / len(order):.4f}"
            )
        one_hot = np.eye(CLASSES)[digits]
        self.data = (pixels[kept] / BRIGHTEST, one_hot[kept])
        self.held_out = (pixels[held_out] / BRIGHTEST, digits[held_out])
        self.activation = ACTIVATIONS[settings.activation]
        self.start = self._initial((pixels.shape[1], *settings.hidden, CLASSES), generator)

    def _initial(
        self, widths: Sequence[int], generator: np.random.Generator
    ) -> dict[str, np.ndarray]:
        start = {}
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(widths), start=1):
            spread = np.sqrt(2 * self.activation.gain / (fan_in + fan_out))
            start[f"weight{layer}"] = spread * generator.standard_normal((fan_in, fan_out))
            start[f"bias{layer}"] = np.zeros(fan_out)
        return start

    def _layers(self, xp: Any, weights: Sequence[Any], pixels: Any) -> list[Any]:
        """Return the input, the output of each hidden layer, and the logits, each (n, width)."""
        outputs = [pixels]
        for weight, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            outputs.append(self.activation.apply(xp, xp.dot(outputs[-1], weight) + bias))
        return [*outputs, xp.dot(outputs[-1], weights[-2]) + weights[-1]]

    def loss(self, xp: Any, weights: Sequence[Any], *batch: Any) -> Any:
        """Compute the objective; weights (in, out), biases (out,), batch (n, 64) and (n, 10)."""
        pixels, one_hot = batch
        logits = self._layers(xp, weights, pixels)[-1]
        logits = logits - logits.max(axis=1, keepdims=True)
        losses = xp.log(xp.exp(logits).sum(axis=1)) - (logits * one_hot).sum(axis=1)
        return losses.sum() / len(pixels)  # MXNet's mean of float64 is a float32

    def gradient(self, xp: Any, weights: Sequence[Any], *batch: Any) -> list[Any]:
        """Compute the gradient by back-propagation."""
        pixels, one_hot = batch
        *outputs, logits = self._layers(xp, weights, pixels)
        powers = xp.exp(logits - logits.max(axis=1, keepdims=True))
        slope = (powers / powers.sum(axis=1, keepdims=True) - one_hot) / len(pixels)
        grads: list[Any] = []
        for output, weight in zip(reversed(outputs), reversed(weights[::2]), strict=True):
            grads = [output.T @ slope, slope.sum(axis=0), *grads]
            slope = slope @ weight.T * self.activation.slope(output)  # the input's is not used
        return grads

    def measure(self, weights: Sequence[np.ndarray]) -> dict[str, float]:
        """Compute the accuracy on the held-out digits."""
        pixels, digits = self.held_out
        found = self._layers(np, weights, pixels)[-1].argmax(axis=1)
        return {"accuracy": float(np.mean(found == digits))}
