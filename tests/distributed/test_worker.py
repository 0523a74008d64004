"""The share of a batch, and the gradient that shares add up to."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import assert_same_bits, needs_mxnet

from adadelta_cli.distributed import heartbeats
from adadelta_cli.distributed.worker import SharedSteps, Worker
from adadelta_cli.errors import ExitCode, UsageError
from adadelta_cli.implementations.array_backends import backend
from adadelta_cli.run.config import load_config
from adadelta_cli.run.trainer import Trainer, check_shareable


def worker(rank, workers, update_on="workers"):
    """Make a worker that is connected to nobody."""
    alone = object.__new__(Worker)
    alone.rank, alone.update_on = rank, update_on
    alone.cluster = SimpleNamespace(workers=workers)
    return alone


@pytest.mark.parametrize("samples", [0, 1, 2, 3, 29, 100, 1437])
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_each_sample_is_in_one_share_and_shares_differ_by_one_sample(samples, workers):
    """Also with fewer samples than workers."""
    shares = [range(samples)[worker(rank, workers).bounds(samples)] for rank in range(workers)]
    assert [each for share in shares for each in share] == list(range(samples))
    sizes = {len(share) for share in shares}
    assert max(sizes) - min(sizes) <= 1


class Mean:
    """The gradient of the mean of half the squared distances to samples; NumPy arrays."""

    def __init__(self):
        self.weight, self.grad = np.array([2.0, -1.0]), np.full(2, np.nan)

    def differentiate(self, batch):
        assert len(batch[0])
        self.grad[:] = np.mean(self.weight - batch[0], axis=0)


@pytest.mark.parametrize("samples", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_shares_add_up_to_the_gradient_of_the_batch(samples, workers):
    """Also where a share is empty: an epoch's last batch may be smaller than the number."""
    batch = [np.random.default_rng(samples).integers(-8, 8, (samples, 2)).astype(float)]
    whole, total = Mean(), 0.0
    whole.differentiate(batch)
    for rank in range(workers):
        part = Mean()
        SharedSteps(worker(rank, workers), [part], None).differentiate(batch, part.differentiate)
        total = total + part.grad
    np.testing.assert_allclose(total, whole.grad, rtol=1e-15)
    if workers == 1:
        assert_same_bits([total], [whole.grad])


@needs_mxnet
@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("rosenbrock", [], "rosenbrock has no samples"),
        ("mlp", ["training.batch_size=1"], "a batch of 1 samples cannot be shared by 2 workers"),
    ],
)
def test_what_workers_cannot_share_is_refused(config, overrides, message):
    """Before anything is trained."""
    with pytest.raises(UsageError, match=message):
        Trainer(load_config(config, overrides), backend("mxnet"), worker=worker(0, 2))


def test_a_batch_of_one_sample_a_worker_is_allowed():
    """The smallest that can be shared."""
    check_shareable(SimpleNamespace(data=(np.zeros(2),)), 2, 2)


def test_a_process_is_lost_when_it_stays_silent(monkeypatch):
    """A clock that jumps makes everyone look silent once."""
    now, reason = [0.0], (ExitCode.BROKEN, "lost")
    monkeypatch.setattr(heartbeats.time, "monotonic", lambda: now[0])
    silent = [reason, None, reason, reason, reason]
    check = heartbeats.confirmed(lambda: silent.pop(0), for_s=4.0)
    found = []
    for now[0] in (0.0, 4.0, 8.0, 11.9, 12.0):
        found.append(check())
    assert found == [None, None, None, None, reason]
