"""A problem survives files and messages; other text is none."""

import pytest

from adadelta_cli.bench.timing_problem import Outcome, TimingProblem


@pytest.mark.parametrize("outcome", Outcome)
def test_what_is_written_is_read(outcome):
    """A reason may have colons itself."""
    problem = TimingProblem(outcome, "raised ValueError: no")
    assert TimingProblem.parse(str(problem)) == problem
    assert problem.is_failure == (outcome is not Outcome.SKIPPED)


@pytest.mark.parametrize("text", ["", "wrong", "only 3 samples", "loss 1, wrong: other", ": x"])
def test_other_text_is_no_problem(text):
    """Notes of rows that have a time."""
    assert TimingProblem.parse(text) is None
