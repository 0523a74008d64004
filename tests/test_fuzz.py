"""A few seeded inputs of tests/fuzz.py; run more of them after changing a reader."""

from __future__ import annotations

import fuzz
import pytest
from conftest import needs_mxnet

COUNTS = {
    "config": 8,
    "config_values": 8,
    "options": 75,
    "set": 15,
    "states": 100,
    "checkpoint_npz": 12,
    "checkpoint_bytes": 30,
    "recording_npz": 75,
    "bench_result": 75,
    "csv": 20,
}  # others are quick
READERS = [
    pytest.param(each, marks=needs_mxnet) if each == "states" else each for each in fuzz.READERS
]


@pytest.mark.parametrize("name", READERS)
def test_damaged_input_is_read_or_refused(name):
    """And never a bug, a traceback or a wait; the same inputs at each run."""
    assert fuzz.fuzz(name, COUNTS.get(name, 150), limit_s=60.0) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_more_damaged_input_is_read_or_refused(name):
    """Two hundred inputs that the quick test does not have, or as many as two minutes allow."""
    assert fuzz.fuzz(name, 200, limit_s=120.0, first=1000) == []


def test_a_reader_that_raises_is_found():
    """Any exception but a UsageError is a finding."""

    def broken(_random):
        raise ZeroDivisionError

    assert "This is a bug" in fuzz.finding(broken, 0)
