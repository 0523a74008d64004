"""AdaDelta in NumPy, in place: adadelta verify --impl examples/numpy_kernel.py:step."""

import numpy as np


def step(weight, grad, acc_grad, acc_delta, *,
         learning_rate, rho, epsilon, wd, rescale_grad, clip_gradient):
    """Update weight, acc_grad and acc_delta; leave grad as it is."""
    limit = np.inf if clip_gradient is None else clip_gradient
    grad = np.clip(grad * rescale_grad, -limit, limit) + wd * weight
    acc_grad[...] = rho * acc_grad + (1 - rho) * grad**2
    delta = np.sqrt(acc_delta + epsilon) / np.sqrt(acc_grad + epsilon) * grad
    acc_delta[...] = rho * acc_delta + (1 - rho) * delta**2
    weight[...] -= learning_rate * delta
