"""Medians and intervals of samples whose answer is known."""

import numpy as np
import pytest

from adadelta_cli.bench.bootstrap import median_ci, ratio


class TestMedianCI:
    """Medians and intervals of samples whose answer is known."""

    def test_equal_samples_have_no_interval(self):
        """Where every sample is the same, so is the median, and it is known exactly."""
        assert median_ci([np.full(20, 3.0), np.full(9, 3.0)]) == (3.0, 3.0, 3.0)

    def test_the_processes_decide(self):
        """Many exact samples in three processes that disagree: the interval is as wide as they."""
        found = median_ci([np.full(1000, 1.0), np.full(1000, 1.1), np.full(1000, 1.4)])
        assert found == (1.1, 1.0, 1.4)

    def test_a_process_with_more_samples_has_no_more_weight(self):
        """The median is over processes, however many samples each had time for."""
        assert median_ci([np.full(5000, 9.0), np.full(5, 1.0), np.full(5, 2.0)]).median == 2.0

    @pytest.mark.slow
    def test_the_interval_covers_the_truth(self):
        """Of 60 experiments with 8 processes, the 95 % interval misses the median in few."""
        random = np.random.default_rng(1)
        hits = 0
        for _ in range(60):
            levels = 10 + random.standard_normal(8)
            low, high = median_ci([level + random.standard_normal(30) for level in levels])[1:]
            hits += low <= 10 <= high
        assert hits >= 52  # 57 expected; with fewer than 52 an interval of 95 % has p < 0.01

    def test_more_samples_narrow_the_interval(self):
        """In one process, a hundred times the samples give a much narrower interval."""
        random = np.random.default_rng(2)
        few, many = (median_ci([random.standard_normal(size) + 10]) for size in (20, 2000))
        assert many.precision < few.precision / 2

    def test_the_same_samples_give_the_same_interval(self):
        """The bootstrap has a seed."""
        samples = [np.random.default_rng(3).standard_normal(50)]
        assert median_ci(samples) == median_ci(samples)

    def test_an_outlier_does_not_move_it(self):
        """One sample of a thousand times the others leaves the median and its interval alone."""
        assert median_ci([np.array([1.0] * 50 + [1000.0])]) == (1.0, 1.0, 1.0)


def test_ratios_are_of_one_round():
    """A drift that both share does not show in the ratio; a round without a sample is left out."""
    drift = np.linspace(1, 5, 40)
    slow, fast = 3 * drift, drift.copy()
    slow[7] = np.nan
    (found,) = ratio([slow], [fast])
    assert found == pytest.approx(np.full(39, 3.0))
