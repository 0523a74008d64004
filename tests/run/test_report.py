"""What `run` writes and draws."""

from __future__ import annotations

import math

import pytest

from adadelta_cli.files import write_plot
from adadelta_cli.run import report
from adadelta_cli.run.result import Expectation, RunOutcome, RunResult, Side, TrainingRow

LOSSES = [
    [1.7e308, 1.0],
    [1e-320, 1e249],
    [-1e249, 1e249],
    [1e-249, 1e249],
    [1.7e308],
    [math.inf, 1e305],
]


@pytest.mark.parametrize("losses", LOSSES, ids=str)
def test_a_loss_of_any_size_is_drawn(tmp_path, losses):
    """The largest, infinite and subnormal ones too, with the largest bound."""
    result = RunResult(
        name="it",
        problem="rosenbrock",
        optimizer="adadelta",
        backend="numpy",
        ctx="cpu",
        dtype="float32",
        fused=True,
        seed=0,
        outcome=RunOutcome.PASSED,
        checks=(Expectation("loss", Side.MAX, 1e150, losses[-1]),),
        steps=len(losses),
        seconds=0.0,
        optimum=0.0,
        labels={"loss": "loss", "distance": "distance"},
        history=tuple(
            TrainingRow(step=k, epoch=0, loss=loss, grad_norm=None, update_norm=None, distance=loss)
            for k, loss in enumerate(losses)
        ),
    )
    path = write_plot(tmp_path / "loss.png", report.run_figure(result))
    assert path.read_bytes().startswith(b"\x89PNG")
