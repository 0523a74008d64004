"""Train in one process: on whole batches, and on the sum of the gradients of their two halves.

Started with a config and a file by test_distributed_training.py, in an environment like a worker's.
"""

from __future__ import annotations

import sys

import numpy as np

from adadelta_cli.implementations.array_backends import backend
from adadelta_cli.run.config import load_config
from adadelta_cli.run.trainer import Trainer


def halved(trainer):
    """Let a trainer add the gradients of two halves, as a server does: first plus second."""
    whole, grads = trainer._differentiate, [p.grad for p in trainer.parameters.values()]

    def differentiate(batch):
        samples = len(batch[0])
        parts = []
        for half in (slice(0, samples // 2), slice(samples // 2, samples)):
            whole([values[half] for values in batch])
            parts.append([grad * ((half.stop - half.start) / samples) for grad in grads])
        for grad, first, second in zip(grads, *parts, strict=True):
            grad[:] = first + second

    trainer._differentiate = differentiate
    return trainer


def weights_after(trainer, steps):
    """Take steps; return the weights."""
    for _ in range(steps):
        trainer.advance()
    return {key: value for key, value in trainer.state().items() if key.startswith("weight/")}


def main(config, out):
    """Write the weights after one step and after all, for both ways."""
    for name, change in {"whole": lambda trainer: trainer, "halves": halved}.items():
        for steps in (1, 30):
            trainer = change(Trainer(load_config(config), backend("mxnet")))
            np.savez(f"{out}/{name}-{steps}.npz", **weights_after(trainer, steps))


if __name__ == "__main__":
    main(*sys.argv[1:])
