"""An optimizer and a scheduler as a user writes them, importable by name."""

from __future__ import annotations

from adadelta_cli import AdaDelta
from adadelta_cli.mxnet_bridge.states import mx


class Mine(AdaDelta):
    """An AdaDelta of a user's own."""


class MyScheduler(mx.lr_scheduler.LRScheduler):
    """A schedule of a user's own."""

    def __call__(self, num_update):  # noqa: ARG002 - MXNet's signature
        """Return the base rate."""
        return self.base_lr
