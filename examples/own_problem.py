"""Fit a line to noisy points: adadelta run examples/own_problem.yaml."""

import numpy as np

from adadelta_cli import Problem


class Line(Problem):
    """Mean squared distance of slope * x + intercept from y."""

    def __init__(self, noise=0.1, seed=0):
        rng = np.random.default_rng(seed)
        x = rng.uniform(-1, 1, 200)
        self.data = (x, 3 * x + 1 + noise * rng.standard_normal(200))
        self.start = {"slope": np.zeros(1), "intercept": np.zeros(1)}

    def loss(self, xp, weights, x, y):
        slope, intercept = weights
        return ((slope * x + intercept - y) ** 2).sum() / len(y)

    # NumPy and CuPy need it; MXNet differentiates the loss.
    def gradient(self, xp, weights, x, y):
        slope, intercept = weights
        error = 2 * (slope * x + intercept - y) / len(y)
        return [(error * x).sum(keepdims=True), error.sum(keepdims=True)]

    # More columns of history.csv.
    def measure(self, weights):
        return {"slope": float(weights[0][0])}
