"""Batches go through the data in an order that only the seed and the epoch decide."""

from __future__ import annotations

import numpy as np

from adadelta_cli.implementations.array_backends import backend
from adadelta_cli.run.batches import Batches

DATA = [np.arange(10.0), np.arange(10.0) * 2]


def batches(size, seed=0):
    """Make batches of DATA on NumPy's arrays."""
    return Batches(DATA, size, backend("numpy"), seed)


def epoch(made, number):
    """Concatenate the first array of an epoch's batches."""
    steps = range(number * made.per_epoch, (number + 1) * made.per_epoch)
    return np.concatenate([made.at(step)[0] for step in steps])


def test_an_epoch_takes_each_sample_once_in_an_order_of_its_own():
    """The batches are a permutation of the data, another one in the next epoch or with a seed."""
    made = batches(4)
    assert [len(made.at(step)[0]) for step in range(3)] == [4, 4, 2]
    orders = [epoch(made, 0), epoch(made, 1), epoch(batches(4, seed=1), 0)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), DATA[0])
    assert len({tuple(order) for order in orders}) == 3


def test_the_arrays_of_a_batch_belong_together():
    """A sample's label stays with its features."""
    values, doubled = batches(4).at(1)
    np.testing.assert_array_equal(doubled, 2 * values)


def test_a_batch_does_not_depend_on_those_before_it():
    """A resumed run goes on in the middle of an epoch."""
    whole = batches(4)
    walked = [whole.at(step)[0] for step in range(8)]
    np.testing.assert_array_equal(batches(4).at(7)[0], walked[7])


def test_all_samples_are_one_batch_in_their_order():
    """Without a batch size, or with one that is larger than the data."""
    for size in (None, 10, 99):
        made = batches(size)
        assert made.per_epoch == 1
        np.testing.assert_array_equal(made.at(5)[0], DATA[0])


def test_without_data_there_is_one_empty_batch():
    """As for Rosenbrock's function."""
    made = Batches([], None, backend("numpy"), 0)
    assert (made.per_epoch, made.at(0)) == (1, [])
