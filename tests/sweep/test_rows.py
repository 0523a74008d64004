"""Medians over the seeds, their intervals, and which setting is best."""

from __future__ import annotations

import dataclasses
import math
import statistics
from types import SimpleNamespace

import numpy as np
import pytest

from adadelta_cli.run.config import Expect
from adadelta_cli.sweep import rows
from adadelta_cli.sweep.rows import Status, SweepRow


def row(setting, seed, loss, status=Status.FINISHED, **metrics):
    """Make the row of a run."""
    found = {} if loss is None else {"loss": loss, **metrics}
    return SweepRow(setting, {"a": setting}, seed, status, 5, found, f"run{setting}{seed}", "", 1.0)


def settings(found, **expect):
    """Summarise rows."""
    return rows.setting_rows(SimpleNamespace(expect=Expect(**expect)), found)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 9, 15, 40])
def test_the_interval_covers_the_median_as_often_as_it_says(number):
    """Simulated: the share of intervals around the true median is the stated coverage."""
    random = np.random.default_rng(number)
    found = [rows.spread(list(random.normal(size=number))) for _ in range(3000)]
    share = statistics.mean(float(each.low <= 0 <= each.high) for each in found)
    assert share == pytest.approx(rows.coverage(number), abs=0.03)
    if number >= 6:
        assert rows.coverage(number) >= rows.LEVEL


@pytest.mark.parametrize(("number", "stated"), [(1, 0.0), (2, 0.5), (3, 0.75), (6, 0.96875)])
def test_the_coverage_of_few_seeds(number, stated):
    """Least and largest of n values miss the median with probability 2 / 2^n."""
    assert rows.coverage(number) == stated


def test_median_and_interval():
    """Of an even number, the median lies between the middle two."""
    assert rows.spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert rows.spread([4.0, 1.0]) == (2.5, 1.0, 4.0)
    assert rows.spread(list(map(float, range(9)))) == (4.0, 1.0, 7.0)


def test_a_diverged_run_counts_as_the_worst():
    """One of three moves no median to infinity, two do; a NaN never wins."""
    bad = {"status": Status.DIVERGED, "accuracy": math.nan}
    one = settings(
        [row(0, 0, 1.0, accuracy=0.9), row(0, 1, 2.0, accuracy=0.8), row(0, 2, math.nan, **bad)]
    )
    assert one[0].spreads["loss"] == (2.0, 1.0, math.inf)
    assert one[0].spreads["accuracy"] == (0.8, -math.inf, 0.9)
    two = settings([row(0, 0, 1.0), row(0, 1, math.inf, **bad), row(0, 2, math.nan, **bad)])
    assert two[0].spreads["loss"].median == math.inf
    assert rows.ranked(two, "loss", higher=False) == []


def test_a_setting_whose_runs_diverged_never_wins():
    """Whatever the last row says of it: a loss of -inf, or the accuracy of weights that are NaN."""
    for loss, accuracy in ((-math.inf, math.inf), (math.nan, 0.9), (math.inf, 0.9)):
        bad = row(0, 0, loss, Status.DIVERGED, accuracy=accuracy)
        found = settings([bad, row(1, 0, 1.0, accuracy=0.5)], min_accuracy=0.1)
        for metric, higher in (("loss", False), ("accuracy", True)):
            (best,) = rows.ranked(found, metric, higher=higher)
            assert best.values == {"a": 1}
        assert [each.passed for each in found] == [False, True]
        assert found[0].spreads["loss"].median == math.inf


def test_a_diverged_run_is_not_the_best_of_its_setting():
    """Its other metrics may be the best ones."""
    bad = row(0, 0, math.nan, Status.DIVERGED, accuracy=0.9)
    found = [bad, row(0, 1, 2.0, accuracy=0.6), row(0, 2, 1.0, accuracy=0.7)]
    (best,) = rows.ranked(settings(found), "accuracy", higher=True)
    assert rows.best_run(found, best, "accuracy", higher=True).seed == 2


def test_settings_that_python_calls_equal_are_not_one():
    """1, 1.0 and true are three values of a problem of one's own."""
    found = [
        dataclasses.replace(row(k, seed, loss), values={"a": value}, run=f"{k}{seed}")
        for k, value in enumerate((1, True, 1.0))
        for seed, loss in enumerate(((5.0, 5.0, 0.0), (1.0, 1.0, 9.0), (3.0, 3.0, 0.5))[k])
    ]
    best = rows.ranked(settings(found), "loss", higher=False)[0]
    assert best.values == {"a": True}
    assert rows.best_run(found, best, "loss", higher=False).run == "10"


def test_runs_without_a_result_are_counted_and_left_out_of_the_median():
    """They say nothing about the setting."""
    (found,) = settings([row(0, 0, 1.0), row(0, 1, None, Status.TIMEOUT)])
    assert found.spreads["loss"] == (1.0, 1.0, 1.0)
    assert found.counts[Status.TIMEOUT] == 1 and found.runs == 2
    (nothing,) = settings([row(0, 0, None, Status.CRASHED)], max_loss=1)
    assert nothing.spreads == {} and nothing.coverage is None
    assert nothing.passed is False


def test_the_best_setting_is_the_lowest_or_the_highest():
    """As the metric has it; the first of equals."""
    found = settings(
        [row(0, 0, 3.0, accuracy=0.7), row(1, 0, 2.0, accuracy=0.9), row(2, 0, 2.0, accuracy=0.9)]
    )
    assert [each.values["a"] for each in rows.ranked(found, "loss", higher=False)] == [1, 2, 0]
    assert [each.values["a"] for each in rows.ranked(found, "accuracy", higher=True)] == [1, 2, 0]


def test_the_best_run_is_one_of_the_best_setting():
    """With the best value among its seeds."""
    found = [row(0, 0, 1.0), row(0, 1, 9.0), row(0, 2, 9.0), row(1, 0, 3.0), row(1, 1, 2.0)]
    best = rows.ranked(settings(found), "loss", higher=False)[0]
    assert best.values == {"a": 1}
    assert rows.best_run(found, best, "loss", higher=False).run == "run11"


def test_expectations_are_about_the_medians():
    """A seed may miss them; a setting passes by its median."""
    found = settings([row(0, 0, 1.0), row(0, 1, 1.0), row(0, 2, 9.0), row(1, 0, 9.0)], max_loss=2)
    assert [each.passed for each in found] == [True, False]
    assert settings([row(0, 0, 1.0)])[0].passed is None


def test_a_metric_of_a_config_says_its_direction():
    """As the bundled problems do, or by an expectation of the config itself."""
    own = Expect.model_validate({"min_score": 1.0})
    assert rows.higher_is_better("accuracy", Expect()) and rows.higher_is_better("score", own)
    assert not rows.higher_is_better("score", Expect())
    assert not rows.higher_is_better("test_error", own)
