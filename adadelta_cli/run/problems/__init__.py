"""The problems that `run` trains and `verify` compares on; add one to both tables below."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from adadelta_cli.run.problems.logistic_regression import (
    LogisticRegression,
    LogisticRegressionSettings,
)
from adadelta_cli.run.problems.mlp import Mlp, MlpSettings
from adadelta_cli.run.problems.rosenbrock import Rosenbrock, RosenbrockSettings
from adadelta_cli.run.problems.user_problem import PythonSettings, UserProblem

if TYPE_CHECKING:
    from adadelta_cli.run.problems.problem import Problem

PROBLEMS: dict[str, type[Problem]] = {
    each.name: each for each in (Rosenbrock, LogisticRegression, Mlp)
}


def _named(section: Any) -> Any:
    """Name a problem of the user's own, which its class names."""
    if isinstance(section, dict) and "python" in section and "name" not in section:
        return {"name": PYTHON, **section}
    return section


PYTHON = "python"  # `name` of problems of the user's own
ProblemSettings = Annotated[
    RosenbrockSettings | LogisticRegressionSettings | MlpSettings | PythonSettings,
    Field(discriminator="name"),
    BeforeValidator(_named),
]


def problem(settings: ProblemSettings, seed: int = 0) -> Problem:
    """Build a problem; the seed decides its start and the split of its data.

    Raises:
        UsageError: the data cannot be read, or do not suit this problem.
    """
    kind: Any = UserProblem if settings.name == PYTHON else PROBLEMS[settings.name]
    return kind(settings, seed)
