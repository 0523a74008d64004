"""What a config can say of each problem."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Width = Annotated[int, Field(ge=1, le=4096)]


class Section(BaseModel):
    """A section of a config: unknown keys are refused."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class RosenbrockSettings(Section):
    """Rosenbrock's valley: sum of 100 (x[i+1] - x[i]^2)^2 + (1 - x[i])^2, least at (1, ..., 1)."""

    name: Literal["rosenbrock"]
    dimension: int = Field(2, ge=2, le=1_000_000)
    """Number of coordinates; above 3 there is a second, local minimum."""


class LogisticRegressionSettings(Section):
    """Two classes, a linear model, L2 on its weights and none on its bias."""

    name: Literal["logistic_regression"]
    l2: float = Field(1e-3, gt=0)
    """Factor of half the squared norm of the weights, beside the mean loss of a sample."""
    csv: str | None = None
    """A CSV file with a header, relative to this file; without it, the breast-cancer data."""
    label: str = "label"
    """The CSV column with the class, of which there are two; all others are features."""


class MlpSettings(Section):
    """A multi-layer perceptron that reads handwritten digits."""

    name: Literal["mlp"]
    hidden: tuple[Width, ...] = Field((128, 64), min_length=1, max_length=8, strict=False)
    """Sizes of the hidden layers."""
    activation: Literal["relu", "tanh", "sigmoid"] = "relu"
    """What follows each hidden layer."""
    held_out: float = Field(0.2, gt=0, lt=1)
    """Share of the samples that is kept from training, for the accuracy."""
