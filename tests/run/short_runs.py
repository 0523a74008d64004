"""Short runs of the bundled configs, for the tests of this folder."""

from __future__ import annotations

import pytest

from adadelta_cli.implementations.array_backends import backend as array_library
from adadelta_cli.run import config, report, training

SETTINGS = {
    "rosenbrock": ["training.steps=50", "training.record_every=7"],
    "logistic_regression": ["training.steps=30", "training.record_every=4"],
    "mlp": ["training.epochs=2", "problem.hidden=[6, 5]", "training.record_every=5"],
}


def short(name, *overrides):
    """Shorten a bundled config, and let it expect nothing."""
    return config.load_config(name, [*SETTINGS[name], "expect={}", *overrides])


def make_run(folder, settings, backend=None, **how):
    """Make a run, on NumPy's arrays by default."""
    return training.Run("it", settings, folder, backend or array_library("numpy"), **how)


def interrupt(run, step):
    """Execute a run until it is interrupted after a step."""

    def tick(done, _total, _what):
        if done == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.execute(tick)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Leave out loss.png, which takes longer to draw than these runs; cli/test_run.py has it."""
    monkeypatch.setattr(report, "write_plot", lambda _path, _figure: None)
    monkeypatch.setattr(report, "run_figure", lambda _result: None)
