"""A problem survives files and messages; other text is none."""

import pytest

from adadelta_cli.bench.problem import Outcome, Problem


@pytest.mark.parametrize("outcome", Outcome)
def test_what_is_written_is_read(outcome):
    """A reason may have colons itself."""
    problem = Problem(outcome, "raised ValueError: no")
    assert Problem.parse(str(problem)) == problem
    assert problem.is_failure == (outcome is not Outcome.SKIPPED)


@pytest.mark.parametrize("text", ["", "wrong", "only 3 samples", "loss 1, wrong: other", ": x"])
def test_other_text_is_no_problem(text):
    """Notes of rows that have a time."""
    assert Problem.parse(text) is None
