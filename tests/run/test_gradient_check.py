"""A gradient is compared with the slope of the loss: a wrong one is found, a right one passes."""

from __future__ import annotations

import textwrap

import pytest

from adadelta_cli.errors import ExitCode, UsageError
from adadelta_cli.implementations.array_backends import backend as array_library
from adadelta_cli.run import config, report
from adadelta_cli.run.gradient_check import check, exit_code, load

SOURCE = """
import numpy as np
from adadelta_cli import Problem


class Own(Problem):
    def __init__(self):
        self.start = {"a": np.linspace(-2, 2, 50), "b": np.ones((2, 3))}

    def loss(self, xp, weights):
        a, b = weights
        return (a**4).sum() + 1e-3 * (b**3).sum()

    def gradient(self, xp, weights):
        a, b = weights
        ga, gb = 4 * a**3, 3e-3 * b**2
        CHANGE
        return [ga, gb]
"""


def checked(references, overrides, backend, seed):
    """Check a config."""
    ((name, each),) = load(references, overrides)
    return check(name, each, backend, seed)


@pytest.fixture
def rows(tmp_path):
    """Check a problem whose gradient, or loss, was changed."""

    def rows(change="", old="", new="", loss="(a**4).sum()"):
        path = tmp_path / "own.py"
        source = SOURCE.replace("CHANGE", change).replace("(a**4).sum()", loss)
        path.write_text(textwrap.dedent(source.replace(old, new) if old else source))
        settings = tmp_path / "own.yaml"
        settings.write_text("problem: {python: own.py:Own}\ntraining: {steps: 1}\n")
        return checked([str(settings)], [], array_library("numpy"), 0)

    return rows


@pytest.mark.parametrize("problem", config.shipped())
def test_built_in_gradients_agree(backend, problem):
    """On each library, every tensor."""
    found = checked([problem], ["problem.hidden=[9, 7]"] * (problem == "mlp"), backend, 0)
    assert exit_code(found) is ExitCode.OK
    assert all(row.passed and row.compared and row.error <= row.allowed for row in found)
    assert not report.gradient_remarks(found)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("seed", range(3))
def test_each_activation_agrees(activation, seed):
    """Wherever the seed starts."""
    overrides = [f"problem.activation={activation}", "problem.hidden=[9, 7]"]
    assert exit_code(checked(["mlp"], overrides, array_library("numpy"), seed)) is ExitCode.OK


def test_a_right_gradient_passes(rows):
    """At most 20 elements are compared, and the one with the largest gradient."""
    a, b = rows()
    assert (a.tensor, a.elements, a.passed) == ("a", 50, True)
    assert 20 <= a.compared <= 21
    assert (b.compared, b.kinks, b.passed) == (6, 0, True)


WRONG = {
    "a factor": ("gb = 2 * gb", "b"),
    "a sign": ("gb = -gb", "b"),
    "a ten-thousandth": ("gb = 1.0001 * gb", "b"),
    "one element": ("gb[1, 2] += 1e-5", "b"),
    "the largest element": ("ga[np.argmax(np.abs(ga))] *= 1.01", "a"),
    "zeros": ("ga = 0 * ga", "a"),
    "a NaN": ("gb[0, 0] = np.nan", "b"),
}


@pytest.mark.parametrize(("change", "tensor"), WRONG.values(), ids=WRONG)
def test_a_wrong_gradient_is_found(rows, change, tensor):
    """In its tensor, with its element and both numbers."""
    found = rows(change)
    assert [row.tensor for row in found if not row.passed] == [tensor]
    assert exit_code(found) is ExitCode.CHECK_FAILED
    (remark,) = report.gradient_remarks(found)
    assert remark.startswith(f"own: the gradient of {tensor} at [")
    if change.startswith("gb[1, 2]"):
        assert "at [1, 2] is" in remark


def test_a_kink_is_left_out(rows):
    """The loss of one element bends exactly where it is compared; the others are compared."""
    bent = "(a**4).sum() + bend(a)"
    source = "def bend(a):\n    return float(np.sin(1e9 * a[3]))\n\n\nclass Own(Problem)"
    change = "ga[3] = 1e9"  # the largest: it is among those that are compared
    (first, _) = rows(change, "class Own(Problem)", source, bent)
    assert (first.passed, first.kinks) == (True, 1)
    assert "was not compared at 1 elements" in report.gradient_remarks([first])[0]


def test_where_nothing_is_smooth_nothing_is_compared(rows):
    """Noise has no slope: the check does not pass, and says why."""
    noise = "float(np.sin(1e9 * a).sum())"
    a, b = rows(loss=noise)
    assert (a.compared, a.passed, a.index) == (0, False, ())
    assert a.kinks >= 20
    assert exit_code([a]) is ExitCode.CHECK_FAILED
    assert "was not compared at" in report.gradient_remarks([a])[0]
    assert b.tensor == "b"


def test_a_problem_without_a_gradient_has_nothing_to_check(rows):
    """On NumPy; the message says what is missing."""
    with pytest.raises(UsageError, match="has no gradient, without which it trains on MXNet only"):
        rows("", "def gradient", "def unused")
