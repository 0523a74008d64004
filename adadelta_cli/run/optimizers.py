"""The section `optimizer` of a config: the hyper-parameters of each optimizer, by its name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from adadelta_cli.run.problems.problem import Section

Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(description="Factor of the step.")]


class _Optimizer(Section):
    """What all optimizers take."""

    name: str
    learning_rate: Rate
    wd: float = 0.0
    """Weight decay, added to the gradient as wd * weight."""
    rescale_grad: float = 1.0
    """Factor of the gradient, before anything else."""
    clip_gradient: float | None = Field(None, ge=0)
    """The rescaled gradient is clipped to [-clip, clip]; null for no clipping."""


class AdadeltaSettings(_Optimizer):
    """The hyper-parameters of AdaDelta, with the defaults of MXNet 2.0."""

    name: Literal["adadelta"] = "adadelta"
    learning_rate: float = 1.0
    """Factor of the step; 1 in the paper."""
    rho: Decay = 0.9
    """Decay of both accumulators."""
    epsilon: Positive = 1e-6
    """Added under both square roots."""


class SgdSettings(_Optimizer):
    """Gradient descent."""

    name: Literal["sgd"]
    learning_rate: Rate = 0.1


class MomentumSettings(_Optimizer):
    """Gradient descent with momentum: v = momentum * v - learning_rate * grad; weight += v."""

    name: Literal["momentum"]
    learning_rate: Rate = 0.1
    momentum: Decay = 0.9
    """Decay of the velocity v."""


class NesterovSettings(_Optimizer):
    """Nesterov's momentum: v as with momentum; weight += momentum * v - learning_rate * grad."""

    name: Literal["nesterov"]
    learning_rate: Rate = 0.1
    momentum: Decay = 0.9
    """Decay of the velocity v."""


class AdagradSettings(_Optimizer):
    """AdaGrad: the step is divided by the root of the sum of all squared gradients."""

    name: Literal["adagrad"]
    learning_rate: Rate = 0.01
    epsilon: Positive = 1e-6
    """Added to the root."""


class RmspropSettings(_Optimizer):
    """RMSProp: the step is divided by the root of a running mean of the squared gradients."""

    name: Literal["rmsprop"]
    learning_rate: Rate = 0.001
    rho: Decay = 0.9
    """Decay of the mean."""
    epsilon: Positive = 1e-8
    """Added to the root."""


class AdamSettings(_Optimizer):
    """Adam: RMSProp with momentum, both corrected for their start at zero."""

    name: Literal["adam"]
    learning_rate: Rate = 0.001
    beta1: Decay = 0.9
    """Decay of the mean gradient."""
    beta2: Decay = 0.999
    """Decay of the mean squared gradient."""
    epsilon: Positive = 1e-8
    """Added to the root."""


OPTIMIZERS: dict[str, type[_Optimizer]] = {
    each.__name__.removesuffix("Settings").lower(): each
    for each in (
        AdadeltaSettings,
        SgdSettings,
        MomentumSettings,
        NesterovSettings,
        AdagradSettings,
        RmspropSettings,
        AdamSettings,
    )
}


def _named(section: Any) -> Any:
    """Name the default optimizer where a section names none."""
    if isinstance(section, dict) and "name" not in section:
        return {"name": "adadelta", **section}
    return section


OptimizerSettings = Annotated[
    AdadeltaSettings
    | SgdSettings
    | MomentumSettings
    | NesterovSettings
    | AdagradSettings
    | RmspropSettings
    | AdamSettings,
    Field(discriminator="name"),
    BeforeValidator(_named),
]
