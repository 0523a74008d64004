"""Work that may take seconds shows a count and an estimate; nothing else gets in the way."""

from __future__ import annotations

import itertools
import re
import shutil

import pytest
from conftest import needs_mxnet
from made_results import make_all

from adadelta_cli.cli import console

QUICK = (
    *("--backend", "numpy", "--set", "training.steps=20", "--set", "training.record_every=5"),
    *("--set", "expect={}"),
)


@pytest.fixture
def talkative(monkeypatch):
    """Print each plain line, and let each step take a second."""
    monkeypatch.setattr(console, "PLAIN_LINE_EVERY_S", 0.0)
    seconds = itertools.count()
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(seconds)))


def checked(err, title, what):
    """Check the lines of some work: they count up, and estimate the rest."""
    form = rf"^{title}: (\d+)/(\d+) {what}.*?(?:, about (\d+) s left)?$"
    lines = re.findall(form, err, re.MULTILINE)
    counts = [int(done) for done, _, _ in lines]
    assert len(lines) > 2 and counts == sorted(counts), err
    assert all(0 <= int(done) <= int(total) for done, total, _ in lines)
    assert any(left for *_, left in lines), "no estimate"


@pytest.mark.usefixtures("talkative")
def test_run_counts_steps(adadelta):
    """Of the training."""
    checked(adadelta("run", "rosenbrock", *QUICK)[2], "run rosenbrock", "steps, loss")


@pytest.mark.usefixtures("talkative")
def test_the_gradient_check_counts_elements(adadelta):
    """Of all tensors of a config."""
    code, _out, err = adadelta("run", "mlp", "--check-gradient", "--backend", "numpy")
    assert code == 0
    checked(err, "check mlp", "elements, ")


@pytest.mark.usefixtures("talkative")
def test_report_counts_files(adadelta, tmp_path):
    """All that it reads."""
    make_all(tmp_path / "results")
    checked(adadelta("report")[2], "report", "files")


@pytest.mark.slow
@needs_mxnet
@pytest.mark.usefixtures("talkative")
def test_convert_counts_the_steps_of_both_files(adadelta, tmp_path):
    """Ten each."""
    assert adadelta("run", "rosenbrock", *QUICK)[0] == 0
    shutil.copy(tmp_path / "results/run/rosenbrock/checkpoint.npz", "a.npz")
    code, _out, err = adadelta("convert", "a.npz", "--from", "npz", "--to", "mxnet")
    assert code == 0, err
    checked(err, "convert", "steps with both files")


@pytest.mark.parametrize(
    "args", [("run", "rosenbrock", *QUICK), ("run", "mlp", "--check-gradient", *QUICK[:2])]
)
def test_no_terminal_no_bar(adadelta, args):
    """In CI, quick work prints no progress at all, and no control characters."""
    _code, out, err = adadelta(*args)
    assert "\x1b" not in out + err and "/20 steps" not in err and "elements, " not in err


@pytest.mark.usefixtures("talkative")
def test_quiet_shows_no_progress(adadelta):
    """With -q, nothing on stderr but where the files are."""
    _code, _out, err = adadelta("run", "rosenbrock", *QUICK, "-q")
    assert "steps" not in err
