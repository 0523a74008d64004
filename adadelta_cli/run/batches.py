"""The samples of each step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adadelta_cli.implementations.array_backends import NumpyBackend


class Batches:
    """Batches on a backend; an epoch takes each sample once, in an order of its own.

    The order derives from the seed and the epoch, so a checkpoint does not store it.

    Args:
        data: arrays with the samples along the first axis, or none.
        size: samples per batch; None for all.
        backend: the library that gets the batches.
        seed: the seed of the orders.

    Attributes:
        per_epoch: batches, and so steps, of an epoch.
    """

    def __init__(
        self, data: Sequence[np.ndarray], size: int | None, backend: NumpyBackend, seed: int
    ) -> None:
        self._data, self._backend, self._seed = data, backend, seed
        self._samples = len(data[0]) if data else 1
        self._size = min(size or self._samples, self._samples)
        self.per_epoch = math.ceil(self._samples / self._size)
        self._epoch = -1
        self._batch = [backend.array(values) for values in data] if self.per_epoch == 1 else []

    def at(self, step: int) -> list[Any]:
        """Return the batch of a step, counted from 0."""
        if self.per_epoch == 1:
            return self._batch
        epoch, number = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self._samples)
            self._epoch = epoch
        chosen = self._order[number * self._size :][: self._size]
        return [self._backend.array(values[chosen]) for values in self._data]
