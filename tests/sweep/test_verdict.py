"""The page of `report` has the verdict of the command's exit code, and says why."""

from __future__ import annotations

import pytest
from small_sweeps import TEXT, Failure, executed

from adadelta_cli.errors import ExitCode
from adadelta_cli.report.findings import Level, findings
from adadelta_cli.report.read import read_folders
from adadelta_cli.sweep import report

RATES = {"grid": ("optimizer.learning_rate=0.7,1e200",)}  # of which one diverges
EXPECTING = {"text": TEXT + "expect: {max_loss: 1e6}"}
SWEEPS = {
    "all finished": ({}, ExitCode.OK, Level.GOOD, "."),
    "diverged": (RATES, ExitCode.OK, Level.DOUBTFUL, "; 1 run diverged."),
    "missed": (
        RATES | EXPECTING,
        ExitCode.CHECK_FAILED,
        Level.BAD,
        "; 1 run diverged; 1 setting missed what the config expects.",
    ),
    **{
        failure.value: (
            {"seeds": 2, "failures": {1: failure}},
            ExitCode.CHECK_FAILED,
            Level.BAD,
            f"; 6 runs {words}.",
        )
        for failure, words in {
            Failure.FAILED: "failed",
            Failure.CRASHED: "crashed",
            Failure.TIMEOUT: "took too long",
        }.items()
    },
}


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Draw no figure."""
    monkeypatch.setattr(report, "write_plot", lambda _path, _figure: None)
    monkeypatch.setattr(report.figures, "sweep_figure", lambda *_arguments: None)


@pytest.mark.parametrize("made", SWEEPS.values(), ids=SWEEPS)
def test_the_page_and_the_exit_code_agree(tmp_path, made):
    """Red where the command fails, amber where only runs diverged; the sentence has the numbers."""
    options, code, level, why = made
    sweep, _executor = executed(tmp_path, **options)
    found = report.Report(sweep)
    found.write()
    (finding,) = findings(read_folders([tmp_path / "out"]))
    assert (found.exit_code, finding.level) == (code, level), finding
    assert "the best is" in finding.sentence
    assert finding.sentence.endswith(why), finding


@pytest.mark.parametrize(
    ("failures", "level"), [({}, Level.DOUBTFUL), ({1: Failure.FAILED}, Level.BAD)]
)
def test_an_interrupted_sweep_is_no_pass(tmp_path, failures, level):
    """Neither in sweep.json nor on the page, whose level is that of the runs that are there."""
    sweep, _executor = executed(tmp_path, seeds=2, failures=failures)
    sweep.ends.popitem()
    found = report.Report(sweep)
    found.write()
    assert (found.document()["complete"], found.document()["passed"]) == (False, False)
    (finding,) = findings(read_folders([tmp_path / "out"]))
    assert finding.level is level
    assert finding.remarks == ("not complete: the same command computes the other runs",)
