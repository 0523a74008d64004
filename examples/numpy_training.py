"""Train on NumPy arrays with the fused step: python examples/numpy_training.py."""

import numpy as np

from adadelta_cli import FusedStep, Parameter


def train(steps=300):
    """Fit a linear model; return the loss before and after, and the weights."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (256, 3)).astype(np.float32)
    y = x @ np.array([1, -2, 3], np.float32)
    weight = np.zeros(3, np.float32)
    grad, acc_grad, acc_delta = (np.zeros_like(weight) for _ in range(3))
    step = FusedStep([Parameter(weight, grad, acc_grad, acc_delta)], rho=0.9, epsilon=1e-3)
    losses = []
    for _ in range(steps):
        error = x @ weight - y
        losses.append(float((error**2).mean()))
        grad[...] = 2 * x.T @ error / len(x)  # in place: the step keeps a reference
        step()
    return losses[0], losses[-1], weight


if __name__ == "__main__":
    first, last, found = train()
    print(f"loss: {first:.4f} at the start, {last:.4f} at the end; weights {found.round(2)}")  # noqa: T201 - its result
