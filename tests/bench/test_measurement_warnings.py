"""What makes numbers untrustworthy is found in the samples, and reported with advice."""

from dataclasses import replace

import numpy as np
import pytest
from invented import GROUP, samples

from adadelta_cli.bench.device import ARITHMETIC
from adadelta_cli.bench.measurement_warnings import (
    Cause,
    MeasurementWarning,
    find_warnings,
    format_warnings,
)
from adadelta_cli.bench.results import Timings, group_result
from adadelta_cli.system import machine


def test_each_cause_is_found():
    """In samples made so that all of them show; quiet samples have none."""
    noisy = {name: [each[0]] * 3 for name, each in samples().items()}
    noisy[ARITHMETIC] = [np.linspace(1e-3, 2e-3, 30), np.linspace(1.3e-3, 3e-3, 30)]
    noisy["numpy"] = [np.r_[np.full(3, 9.0), np.full(27, 2.0)]] * 3
    noisy["numpy-fused"] = [np.full(30, 2e-3), np.full(30, 3e-3), np.full(30, 2e-3)]
    found = find_warnings("1e6 float32", machine.available_cores() + 1, noisy, shares_hold=True)
    assert [each.cause for each in found] == list(Cause)
    measured = [each.measured for each in found]
    assert measured[1:] == ["87%", "30%", "350% (numpy)", "50% (numpy-fused and 1 more)"]
    assert find_warnings("1e6 float32", 1, samples(), shares_hold=True) == []


def test_warnings_of_one_cause_share_a_sentence():
    """It lists all places where the cause was seen."""
    one = MeasurementWarning(Cause.SHARED_CORES, "1e5 float32", "13%")
    other = replace(one, place="1e6 float32", measured="30%")
    (sentence,) = format_warnings([one, other])
    assert ": 13% at 1e5 float32, 30% at 1e6 float32; " in sentence
    assert sentence.startswith(one.cause.observed) and sentence.endswith(one.cause.advice)


@pytest.mark.parametrize("cause", [Cause.FREQUENCY, Cause.DISAGREEMENT])
def test_shares_that_mean_nothing_are_not_advised(cause):
    """One such place is enough: the sentence is about all of them."""
    holds = MeasurementWarning(cause, "1e5 float32", "13%")
    (sentence,) = format_warnings([holds])
    assert "look at the shares of the ceiling" in sentence
    (sentence,) = format_warnings([holds, replace(holds, shares_hold=False)])
    assert "shares" not in sentence and sentence.endswith(cause.advice)


@pytest.mark.parametrize(("memory", "advised"), [(2.1, True), (6.0, False)])
def test_the_advice_agrees_with_the_notes(memory, advised):
    """Where a note says that a share means nothing, no warning of the group says to look at it."""
    found = samples(memory=memory)
    found["numpy"] = [np.full(30, 2e-2), np.full(30, 3e-2)]
    result = group_result(GROUP, Timings(found), {})
    assert any("means nothing" in each.row.note for each in result.measurements) != advised
    assert ("shares of the ceiling" in " ".join(format_warnings(result.warnings))) == advised
