"""The problems that `run` trains and `verify` compares on; add one to both tables below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adadelta_cli.run.problems.logistic_regression import (
    LogisticRegression,
    LogisticRegressionSettings,
)
from adadelta_cli.run.problems.mlp import Mlp, MlpSettings
from adadelta_cli.run.problems.rosenbrock import Rosenbrock, RosenbrockSettings

if TYPE_CHECKING:
    from adadelta_cli.run.problems.problem import Problem

PROBLEMS: dict[str, type[Problem]] = {
    each.name: each for each in (Rosenbrock, LogisticRegression, Mlp)
}
ProblemSettings = RosenbrockSettings | LogisticRegressionSettings | MlpSettings


def problem(settings: ProblemSettings, seed: int = 0) -> Problem:
    """Build a problem; the seed decides its start and the split of its data.

    Raises:
        UsageError: the data cannot be read, or do not suit this problem.
    """
    return PROBLEMS[settings.name](settings, seed)
