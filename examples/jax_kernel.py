"""AdaDelta in JAX, functional.

XLA flushes subnormals to zero on a CPU:
adadelta verify --impl examples/jax_kernel.py:step --subnormals flush
"""

from functools import partial

import jax
from jax import numpy as jnp

jax.config.update("jax_enable_x64", True)  # JAX converts float64 to float32 by default


# Static arguments: Python computes `1 - rho` in double, and each value is compiled in.
@partial(
    jax.jit,
    static_argnames=("learning_rate", "rho", "epsilon", "wd", "rescale_grad", "clip_gradient"),
)
def step(
    weight, grad, acc_grad, acc_delta, *,
    learning_rate, rho, epsilon, wd, rescale_grad, clip_gradient,
):
    """Return the new weight, acc_grad and acc_delta."""
    grad = grad * rescale_grad
    if clip_gradient is not None:
        grad = jnp.clip(grad, -clip_gradient, clip_gradient)
    grad = grad + wd * weight
    acc_grad = rho * acc_grad + (1 - rho) * grad**2
    delta = jnp.sqrt(acc_delta + epsilon) / jnp.sqrt(acc_grad + epsilon) * grad
    acc_delta = rho * acc_delta + (1 - rho) * delta**2
    return weight - learning_rate * delta, acc_grad, acc_delta
