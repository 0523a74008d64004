"""The verdict: the tests are those of the books, it knows its limits, and raises no false alarm."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import simulate_verdict
from conftest import HERE
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from adadelta_cli.bench import significance
from adadelta_cli.bench.significance import LogRatio, Verdict, holm, judge_all, paired, unpaired

MIRROR = {Verdict.FASTER: Verdict.SLOWER, Verdict.SLOWER: Verdict.FASTER}
TIMES = st.lists(st.floats(0.8, 1.25), min_size=1, max_size=8)
THRESHOLDS = st.sampled_from([0.01, 0.05, 0.2])
OLD, NEW = [1.01, 0.98, 1.02, 0.99, 1.0, 1.03], [1.09, 1.07, 1.1, 1.06]


def one(difference, threshold=0.05):
    """Judge a difference by itself."""
    (judgement,) = judge_all([difference], threshold)
    return judgement


def test_students_sleep_data():
    """Ten pairs, t = 4.0621 at 9 degrees of freedom, p = 0.00283 (Student, Biometrika 6, 1908)."""
    extra_hours = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    difference = paired(np.exp(extra_hours))
    assert difference.log_ratio == pytest.approx(1.58)
    assert difference.p_value == pytest.approx(0.00283, abs=5e-6)
    assert difference.log_low == pytest.approx(0.3159, abs=1e-3)


def test_paired_is_students_t_test():
    """Estimate, p-value and interval are those of scipy's one-sample test of the logarithms."""
    wanted = stats.ttest_1samp(np.log(NEW), 0)
    interval = wanted.confidence_interval(0.99)
    got = paired(NEW)
    assert got.ratio == pytest.approx(stats.gmean(NEW))
    assert got.p_value == pytest.approx(wanted.pvalue)
    assert (got.log_low, got.log_high) == pytest.approx((interval.low, interval.high))
    assert (got.low, got.high) == pytest.approx(tuple(np.exp([interval.low, interval.high])))
    assert got.processes == 4


@pytest.mark.parametrize("new", [NEW, [1.3, 0.7, 1.0], OLD])
def test_unpaired_is_welchs_t_test(new):
    """Estimate, p-value and interval are those of scipy's test without equal variances."""
    wanted = stats.ttest_ind(np.log(new), np.log(OLD), equal_var=False)
    interval = wanted.confidence_interval(0.99)
    got = unpaired(OLD, new)
    assert got.ratio == pytest.approx(stats.gmean(new) / stats.gmean(OLD))
    assert got.p_value == pytest.approx(wanted.pvalue)
    assert (got.log_low, got.log_high) == pytest.approx((interval.low, interval.high))
    assert got.processes == min(6, len(new))


def test_holm_stops_at_the_first_that_fails():
    """Holm's example: ordered p-values times m, m - 1, ..., never falling, at most 1."""
    got = holm([0.01, 0.005, 0.04, 0.9])
    assert got == pytest.approx([0.03, 0.02, 0.08, 0.9])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("ratios", "threshold", "wanted"),
    [
        ([1.07, 1.071, 1.069], 0.05, Verdict.SLOWER),
        ([1 / 1.07, 1 / 1.071, 1 / 1.069], 0.05, Verdict.FASTER),
        ([1.07, 1.071, 1.069], 0.10, Verdict.SAME),
        ([1.00, 1.001, 0.999], 0.05, Verdict.SAME),
        ([1.04, 1.041, 1.039], 0.05, Verdict.SAME),  # significant, and too small to count
        ([1.00, 1.10, 0.90], 0.05, Verdict.UNCLEAR),
        ([1.04, 1.05, 1.03], 0.05, Verdict.UNCLEAR),
        ([1.05, 1.20, 1.00], 0.05, Verdict.UNCLEAR),
    ],
)
def test_verdict(ratios, threshold, wanted):
    """SLOWER and FASTER need size and significance, SAME the whole interval within."""
    assert one(paired(ratios), threshold).verdict is wanted


@pytest.mark.parametrize(
    ("difference", "says"),
    [
        (paired([1.5, 1.5]), r"2 processes on a side.*at least 3.*--processes 6"),
        (unpaired([1.0], [2.0, 2.1, 2.0]), "1 process on a side"),
        (paired([1.00, 1.03, 0.97, 1.01]), r"threshold.*--processes \d+$"),
        (paired([1.05, 1.10, 1.06]), r"chance; .*--processes \d+$"),
        (paired([0.5, 2.5, 1.0]), "quieter machine"),
        (paired([1.049, 1.049, 1.0499]), "quieter machine, or choose another --threshold"),
    ],
)
def test_unclear_says_why_and_what_to_do(difference, says):
    """A sentence for each reason."""
    judgement = one(difference)
    assert judgement.verdict is Verdict.UNCLEAR
    assert re.search(says, judgement.reason), judgement.reason


def test_other_verdicts_need_no_reason():
    """What is clear is left without words."""
    assert one(paired([2.0, 2.01, 2.02])).reason == ""


def test_more_processes_as_advised_are_enough():
    """With as many as the sentence says, of the same spread, the interval fits."""
    ratios = [1.00, 1.03, 0.97, 1.01]
    count = int(one(paired(ratios)).reason.split()[-1])
    assert one(paired(ratios * math.ceil(count / 4))).verdict is Verdict.SAME


def test_many_rows_ask_for_more():
    """A difference that convinces by itself does not among a hundred rows; it says why."""
    difference = paired([1.06, 1.07, 1.09, 1.05])
    assert one(difference).verdict is Verdict.SLOWER
    first = judge_all([difference, *[paired(OLD)] * 99], 0.05)[0]
    assert first.verdict is Verdict.UNCLEAR
    assert "of 100 rows" in first.reason and "chance" in first.reason


def test_equal_numbers_have_a_verdict():
    """Without any spread nothing is divided by nothing."""
    assert one(paired([1.0, 1.0, 1.0])).verdict is Verdict.SAME
    assert one(unpaired([2.0] * 3, [2.0] * 4)).verdict is Verdict.SAME
    assert one(unpaired([2.0] * 3, [3.0] * 3)).verdict is Verdict.SLOWER


@pytest.mark.parametrize("values", [[], [1.0, 0.0], [1.0, -1.0], [1.0, math.nan], [math.inf]])
def test_times_are_positive_numbers(values):
    """Anything else is a mistake of the caller."""
    with pytest.raises(ValueError, match="positive number"):
        paired(values)
    with pytest.raises(ValueError, match="positive number"):
        unpaired([1.0], values)


@given(TIMES, TIMES, st.integers(-30, 30), THRESHOLDS)
@settings(deadline=None)
def test_the_unit_does_not_matter(old, new, power, threshold):
    """Both sides scaled alike: the same difference, and so the same verdict."""
    a, b = unpaired(old, new), unpaired(*(np.ldexp(side, power) for side in (old, new)))
    assert b.log_ratio == pytest.approx(a.log_ratio, abs=1e-12)
    near = [abs(abs(x) - math.log1p(threshold)) for x in (a.log_ratio, a.log_low, a.log_high)]
    if min(near) > 1e-9 and abs(a.p_value - 0.01) > 1e-9:
        assert one(a, threshold).verdict is one(b, threshold).verdict


@given(TIMES, TIMES, THRESHOLDS)
@settings(deadline=None)
def test_swapping_the_sides_mirrors_the_verdict(old, new, threshold):
    """FASTER becomes SLOWER; SAME and UNCLEAR stay."""
    there, back = one(unpaired(old, new), threshold), one(unpaired(new, old), threshold)
    assert back.verdict is MIRROR.get(there.verdict, there.verdict)


@given(TIMES, THRESHOLDS)
@settings(deadline=None)
def test_nothing_is_slower_than_itself(times, threshold):
    """The same numbers on both sides are SAME or UNCLEAR."""
    assert one(unpaired(times, times), threshold).verdict in {Verdict.SAME, Verdict.UNCLEAR}


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_lies_between_nothing_and_bonferroni(p_values):
    """An adjusted p-value is at least its own, at most its own times their number, in order."""
    got = holm(p_values)
    limits = zip(p_values, got, strict=True)
    assert all(p <= q <= min(1.0, len(p_values) * p) or p == q for p, q in limits)
    ranked = [got[k] for k in sorted(range(len(got)), key=lambda k: p_values[k])]
    assert ranked == sorted(ranked)


@given(TIMES, TIMES, THRESHOLDS)
@settings(deadline=None)
def test_a_clear_verdict_agrees_with_the_interval(old, new, threshold):
    """SLOWER: the interval that the reader sees lies above 1; SAME: it lies within."""
    difference = unpaired(old, new)
    judged = one(difference, threshold).verdict
    holds = {
        Verdict.SLOWER: difference.low > 1 and difference.ratio > 1 + threshold,
        Verdict.FASTER: difference.high < 1 and difference.ratio < 1 / (1 + threshold),
        Verdict.SAME: 1 / (1 + threshold) - 1e-12
        <= difference.low
        <= difference.high
        <= 1 + threshold + 1e-12,
    }
    assert judged is Verdict.UNCLEAR or holds[judged]


def test_false_alarms_are_rare_and_slow_rows_found():
    """At 1 % between processes and 12 of them: no false alarm, 7 % found, equal rows SAME."""
    for false, found, same in simulate_verdict.rates(simulate_verdict.NOISES[0], 12, tables=40):
        assert false == 0
        assert found >= 0.97
        assert same >= 0.97


def test_the_page_has_the_rates_that_the_script_gives():
    """One line of docs/statistics.md, computed again."""
    page = (HERE.parent / "docs" / "statistics.md").read_text()
    assert simulate_verdict.line(simulate_verdict.NOISES[0], 6) in page.splitlines()


def test_noise_makes_rows_unclear_not_slower():
    """At 8 % between processes, not one table in 40 has a false alarm, whatever the estimate."""
    for false, _, same in simulate_verdict.rates(simulate_verdict.NOISES[3], 6, tables=40):
        assert false <= 1 / 40
        assert same < 0.05


def test_the_level_is_what_the_interval_covers():
    """Of 2000 intervals of equal sides, 1 % leave out 1, by chance between 0.4 and 1.8 %."""
    random = np.random.default_rng(3)
    draws = np.exp(random.normal(0, 0.03, (2000, 2, 6)))
    out = [not each.low <= 1 <= each.high for each in (unpaired(*draw) for draw in draws)]
    assert 0.004 <= np.mean(out) <= 0.018
    assert significance.LEVEL == 0.99


def test_difference_is_a_value():
    """Its ends are those of the logarithms."""
    each = LogRatio(math.log(1.1), math.log(1.0), math.log(1.2), 0.5, 6)
    assert (each.ratio, each.low, each.high) == pytest.approx((1.1, 1.0, 1.2))
