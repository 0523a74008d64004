"""Logistic regression with L2: convex, so the optimum is known to many digits."""

from __future__ import annotations

import math
import re
import sys
import warnings
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, WithJsonSchema

from adadelta_cli.errors import UsageError, in_one_line, shortened, suggestion
from adadelta_cli.run.problems.csv_table import read_csv
from adadelta_cli.run.problems.problem import Problem, Section

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adadelta_cli.run.problems.csv_table import CsvTable

# Below this margin, exp(-margin) is not computed: log(1 + exp(30)) is 30 to 14 digits.
LEAST_MARGIN = -30
NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
NARROW = 2.0**-20


def _check_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")  # noqa: TRY004 - pydantic's way
    return value


# Pydantic's own str has no bytes that are not UTF-8, which a file's name may have.
FileName = Annotated[Any, AfterValidator(_check_text), WithJsonSchema({"type": "string"})]


class LogisticRegressionSettings(Section):
    """Two classes, a linear model, L2 on its weights and none on its bias."""

    name: Literal["logistic_regression"]
    l2: float = Field(1e-3, gt=0)
    """Factor of half the squared norm of the weights, added to the mean loss of a sample."""
    csv: FileName | None = None
    """A CSV file with a header, relative to this file's folder; null for the breast-cancer data."""
    label: str = "label"
    """The CSV column with the two classes; all other columns are features."""


class LogisticRegression(Problem):
    """Mean over samples of log(1 + exp(-y (x.weight + bias))), y = 1 or -1, plus l2/2 |weight|^2.

    The bias is not penalised, as in scikit-learn, which computes the optimum.
    """

    name = "logistic_regression"
    metrics = {  # noqa: RUF012 - a constant
        "loss": "loss (mean of all samples, with L2)",
        "gap": "loss above the optimum",
        "accuracy": "accuracy (share of all samples)",
    }

    def __init__(self, settings: LogisticRegressionSettings, _seed: int) -> None:
        self.l2 = settings.l2
        if settings.csv is None:
            from sklearn.datasets import load_breast_cancer

            features, positive = load_breast_cancer(return_X_y=True)
        else:
            features, positive = _from_csv(Path(settings.csv), settings.label)
        self.data = (_standardised(features), np.where(positive, 1.0, -1.0))
        self.start = {"weight": np.zeros(features.shape[1]), "bias": np.zeros(1)}
        self.optimum = self._least_loss()

    def _least_loss(self) -> float:
        """Compute the loss at the optimum.

        Raises:
            UsageError: scikit-learn's solver finds none: l2 is too small for separable classes, or
                too large.
        """
        from sklearn.exceptions import ConvergenceWarning

        try:
            with np.errstate(all="ignore"):
                least = float(self.loss(np, self.solve(), *self.data))
            reason = "" if math.isfinite(least) else f"the loss there is {least}"
        except (ConvergenceWarning, ValueError, ArithmeticError) as error:
            reason = in_one_line(error)
        if reason:
            raise UsageError(
                f"problem.l2 is {self.l2}, for which scikit-learn's solver finds no optimum on "
                f"these data ({reason}); try a number from 1e-6 to 1e6"
            )
        return least

    def solve(self) -> list[np.ndarray]:
        """Find the optimal weight and bias; scikit-learn's objective is n times this one."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression as Solver

        features, labels = self.data
        strength = 1 / (self.l2 * len(labels))
        solver = Solver(C=strength, solver="newton-cholesky", tol=1e-10, max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", ConvergenceWarning)
            solver.fit(features, labels)
        return [solver.coef_[0], solver.intercept_]

    def loss(self, xp: Any, weights: Sequence[Any], *batch: Any) -> Any:
        """Compute the objective; weight (features,), bias (1,), batch (n, features) and (n,)."""
        (weight, bias), (features, labels) = weights, batch
        margin = labels * (xp.dot(features, weight) + bias)
        clipped = xp.maximum(margin, LEAST_MARGIN)
        losses = xp.log1p(xp.exp(-clipped)) + (clipped - margin)
        return losses.sum() / len(labels) + 0.5 * self.l2 * (weight * weight).sum()

    def gradient(self, xp: Any, weights: Sequence[Any], *batch: Any) -> list[Any]:
        """Compute the gradient by its formula."""
        (weight, bias), (features, labels) = weights, batch
        margin = labels * (features @ weight + bias)
        slope = -labels / (1 + xp.exp(margin)) / len(labels)
        return [features.T @ slope + self.l2 * weight, slope.sum(keepdims=True)]

    def measure(self, weights: Sequence[np.ndarray]) -> dict[str, float]:
        """Compute the loss above the optimum, and the accuracy."""
        features, labels = self.data
        scores = features @ weights[0] + weights[1]
        assert self.optimum is not None  # noqa: S101 - for the type checker
        return {
            "gap": float(self.loss(np, weights, *self.data)) - self.optimum,
            "accuracy": float(np.mean((scores > 0) == (labels > 0))),
        }


def _standardised(features: np.ndarray) -> np.ndarray:
    """Give each column mean 0 and standard deviation 1; a constant column becomes 0.

    A column that varies by less than NARROW of its magnitude loses its least value first: the
    difference is exact where the rounding error of a mean would be as large as the spread.
    """
    scaled = _scaled(features)
    least, largest = scaled.min(axis=0), scaled.max(axis=0)
    scaled = _scaled(np.where(largest - least < NARROW, scaled - least, scaled))
    spread = scaled.std(axis=0)
    return (scaled - scaled.mean(axis=0)) / np.where(spread > 0, spread, 1.0)


def _scaled(features: np.ndarray) -> np.ndarray:
    """Scale each column by a power of two to magnitudes up to 1, of which squares are in range."""
    _, exponents = np.frexp(np.abs(features).max(axis=0))
    return np.ldexp(features, -exponents)


def _from_csv(path: Path, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Read features, float64 (n, columns), and which samples are of the second class, bool (n,).

    Raises:
        UsageError: the file is not a CSV file, the label is missing or has not two classes, or a
            feature is not a finite number.
    """
    table = read_csv(path)
    names = list(table.columns)
    if label not in names:
        raise UsageError(
            f"{path}: no column is named {shortened(label)!r}"
            f"{shortened(suggestion(label, names))}; problem.label must be one of "
            f"{shortened(', '.join(names))} (commas separate the columns)"
        )
    if len(names) == 1:
        raise UsageError(f"{path}: there is no column besides the label; add columns of features")
    return _features(table, label), _second_class(table, label)


def _second_class(table: CsvTable, label: str) -> np.ndarray:
    cells, name = table.columns[label], shortened(label)
    if "" in cells:
        where = table.place(cells.index(""))
        raise UsageError(f"{where}: {name} is empty; every sample needs a class")
    keys = _class_keys(set(cells))
    classes = sorted(set(keys.values()))
    if len(classes) != 2:
        listed = ", ".join(map(shortened, classes[:5])) + ", ..." * (len(classes) > 5)
        raise UsageError(
            f"{table.path}: the column {name} holds {len(classes)} classes ({listed}); "
            "logistic regression needs 2"
        )
    return np.array([keys[cell] == classes[1] for cell in cells])


def _class_keys(names: set[str]) -> dict[str, Any]:
    """Map each class to what it is ordered by: a number if all are numbers, else its text."""
    if all(map(NUMBER.fullmatch, names)):
        try:
            return {name: Decimal(name) for name in names}  # exact: 1 and 1.0 are one class
        except ArithmeticError:  # an exponent of many digits
            pass
    return {name: name for name in names}


def _features(table: CsvTable, label: str) -> np.ndarray:
    names = [name for name in table.columns if name != label]
    numbers = np.array([list(map(_number, table.columns[name])) for name in names]).T
    wrong = np.argwhere(~np.isfinite(numbers))
    if len(wrong):
        row, column = wrong[0]
        name = names[column]
        got = shortened(repr(table.columns[name][row])) if table.columns[name][row] else "empty"
        raise UsageError(
            f"{table.place(row)}: {shortened(name)} is {got}; features must be finite numbers, at "
            f"most {sys.float_info.max:.4g} in magnitude"
        )
    return numbers


def _number(cell: str) -> float:
    """Convert a cell; to NaN what is no decimal number, such as Python's 1_000."""
    return float(cell) if NUMBER.fullmatch(cell) else math.nan
