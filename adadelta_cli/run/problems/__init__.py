"""The problems that `run` trains and `verify` compares on, by name."""

from __future__ import annotations

from typing import Any

from adadelta_cli.run.problems.logistic_regression import LogisticRegression
from adadelta_cli.run.problems.mlp import Mlp
from adadelta_cli.run.problems.problem import Problem
from adadelta_cli.run.problems.rosenbrock import Rosenbrock

__all__ = ["PROBLEMS", "LogisticRegression", "Mlp", "Problem", "Rosenbrock", "problem"]

PROBLEMS: dict[str, type[Problem]] = {
    each.name: each for each in (Rosenbrock, LogisticRegression, Mlp)
}


def problem(settings: Any, seed: int = 0) -> Problem:
    """Build a problem, with its data and its start.

    Args:
        settings: the `problem` section of a `Config`.
        seed: what the start and the split of the data derive from.

    Raises:
        UsageError: the data cannot be read, or are no data for this problem.
    """
    return PROBLEMS[settings.name](settings, seed)
