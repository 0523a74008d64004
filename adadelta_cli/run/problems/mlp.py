"""A multi-layer perceptron that classifies pictures: scikit-learn's digits, MNIST, or your own."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import AfterValidator, Field, WithJsonSchema

from adadelta_cli.errors import UsageError, shortened
from adadelta_cli.run.problems import images
from adadelta_cli.run.problems.problem import Problem, Section

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HELD_OUT = 0.2  # fraction of the samples of a data set that has no test set of its own
CHUNK = 5000  # samples that are measured at a time: all at once would take a gigabyte

Width = Annotated[int, Field(ge=1, le=4096)]
DATA = ("digits", *images.IDX_SETS)
NPZ = ".npz"


def _check_data(value: Any) -> str:
    if not isinstance(value, str) or not (value in DATA or value.endswith(NPZ)):
        raise ValueError("neither a data set nor a file")
    return value


# Not a str to pydantic, which takes no bytes that are not UTF-8, as a file's name may have.
Data = Annotated[
    Any,
    AfterValidator(_check_data),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": [*DATA]},
                {"type": "string", "pattern": r"\.npz$", "title": "FILE.npz"},
            ]
        }
    ),
]


class MlpSettings(Section):
    """A multi-layer perceptron that classifies pictures."""

    name: Literal["mlp"]
    data: Data = "digits"
    """Data set: digits (scikit-learn's), mnist, fashion_mnist, or FILE.npz with x, y or x_train,
    y_train, x_test, y_test, relative to this file's folder."""
    hidden: tuple[Width, ...] = Field((128, 64), min_length=1, max_length=8, strict=False)
    """Sizes of the hidden layers."""
    activation: Literal["relu", "tanh", "sigmoid"] = "relu"
    """Activation function of the hidden layers."""
    initialization: Literal["he", "glorot"] | None = None
    """Variance of the initial weights: 2 / inputs (he), or 2 / (inputs + outputs) (glorot); null:
    glorot, and twice that for relu."""
    held_out: float | None = Field(None, gt=0, lt=1)
    """Fraction of the samples held out from training, for the accuracy; null: the test set of the
    data, or else 0.2."""


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
        "test_error": "test error (% of held-out samples)",
    }

    def __init__(self, settings: MlpSettings, seed: int) -> None:
        found = images.load(settings.data)
        self.digest = found.digest
        generator = np.random.default_rng(seed)
        kept: Any = slice(None)
        if found.test_pixels is None or found.test_labels is None:
            held_out, kept = _split(len(found.labels), settings.held_out, generator)
            self.held_out = (found.pixels[held_out], found.labels[held_out])
            classes = int(found.labels.max()) + 1
        elif settings.held_out is not None:
            raise UsageError(
                f"problem.held_out is {settings.held_out}, but {shortened(settings.data)} has a "
                "test set of its own; leave held_out out, or make it null"
            )
        else:
            self.held_out = (found.test_pixels, found.test_labels)
            classes = int(max(found.labels.max(), found.test_labels.max())) + 1
        one_hot = np.eye(classes, dtype=found.pixels.dtype)[found.labels[kept]]
        self.data = (found.pixels[kept], one_hot)
        self.activation = ACTIVATIONS[settings.activation]
        widths = (found.pixels.shape[1], *settings.hidden, classes)
        self.start = self._initial(widths, settings.initialization, generator)

    def _initial(
        self, widths: Sequence[int], way: str | None, generator: np.random.Generator
    ) -> dict[str, np.ndarray]:
        start = {}
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(widths), start=1):
            mean = fan_in if way == "he" else (fan_in + fan_out) / 2
            gain = {"he": 2.0, "glorot": 1.0, None: self.activation.gain}[way]
            normal = generator.standard_normal((fan_in, fan_out))
            start[f"weight{layer}"] = np.sqrt(gain / mean) * normal
            start[f"bias{layer}"] = np.zeros(fan_out)
        return start

    def _layers(self, xp: Any, weights: Sequence[Any], pixels: Any) -> list[Any]:
        """Return the input, the output of each hidden layer, and the logits, each (n, width)."""
        outputs = [pixels]
        for weight, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            outputs.append(self.activation.apply(xp, xp.dot(outputs[-1], weight) + bias))
        return [*outputs, xp.dot(outputs[-1], weights[-2]) + weights[-1]]

    def _losses(self, xp: Any, weights: Sequence[Any], pixels: Any, one_hot: Any) -> Any:
        """Return the loss of each sample, (n,)."""
        logits = self._layers(xp, weights, pixels)[-1]
        logits = logits - logits.max(axis=1, keepdims=True)
        return xp.log(xp.exp(logits).sum(axis=1)) - (logits * one_hot).sum(axis=1)

    def loss(self, xp: Any, weights: Sequence[Any], *batch: Any) -> Any:
        """Compute the objective.

        Weights are (in, out), biases (out,), the batch is (n, pixels) and one-hot (n, classes).
        """
        return self._losses(xp, weights, *batch).sum() / len(batch[0])  # MXNet's mean is a float32

    def gradient(self, xp: Any, weights: Sequence[Any], *batch: Any) -> list[Any]:
        """Compute the gradient by back-propagation."""
        pixels, one_hot = batch
        *outputs, logits = self._layers(xp, weights, pixels)
        powers = xp.exp(logits - logits.max(axis=1, keepdims=True))
        slope = (powers / powers.sum(axis=1, keepdims=True) - one_hot) / len(pixels)
        grads: list[Any] = []
        for layer in reversed(range(len(outputs))):
            output, weight = outputs[layer], weights[2 * layer]
            grads = [output.T @ slope, slope.sum(axis=0), *grads]
            if layer:  # the slope at the input is not needed
                slope = slope @ weight.T * self.activation.slope(output)
        return grads

    def evaluate(self, weights: Sequence[np.ndarray]) -> dict[str, float]:
        """Compute the loss and the metrics in the dtype of the data."""
        pixels, one_hot = self.data
        exact = [weight.astype(pixels.dtype, copy=False) for weight in weights]
        chunks = [slice(k, k + CHUNK) for k in range(0, len(pixels), CHUNK)]
        losses = [self._losses(np, exact, pixels[each], one_hot[each]) for each in chunks]
        loss = np.concatenate(losses).sum(dtype=np.float64) / len(pixels)
        return {"loss": float(loss), **self.measure(exact)}

    def measure(self, weights: Sequence[np.ndarray]) -> dict[str, float]:
        """Compute the accuracy on the held-out pictures, and the error in percent."""
        pixels, labels = self.held_out
        chunks = [slice(k, k + CHUNK) for k in range(0, len(pixels), CHUNK)]
        found = [self._layers(np, weights, pixels[each])[-1].argmax(axis=1) for each in chunks]
        right, count = int((np.concatenate(found) == labels).sum()), len(labels)
        return {"accuracy": right / count, "test_error": 100 * (count - right) / count}


def _split(
    samples: int, fraction: float | None, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw which samples are held out, and which are kept."""
    fraction = HELD_OUT if fraction is None else fraction
    order = generator.permutation(samples)
    held_out, kept = np.split(order, [max(1, round(fraction * samples))])
    if not len(kept):
        raise UsageError(
            f"problem.held_out is {fraction}, which leaves none of the {samples} samples for "
            f"training; allowed is at most {1 - 1 / samples:.4f}"
        )
    return held_out, kept
