"""A kernel as a user would write it, from which `verify --self-test` makes mutants.

Each is written to a file and checked as `adadelta verify --impl FILE.py:step` checks any kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

calls = [1]


def step(
    weight: np.ndarray,
    grad: np.ndarray,
    acc_grad: np.ndarray,
    acc_delta: np.ndarray,
    **settings: Any,
) -> None:
    """Update weight, acc_grad and acc_delta in place; leave grad unchanged."""
    real = weight.dtype.type
    with np.errstate(all="ignore"):
        finite = np.isfinite(weight) & np.isfinite(grad) & np.isfinite(acc_grad + acc_delta)
        x = grad * real(settings["rescale_grad"])
        if settings["clip_gradient"] is not None:
            clip = real(settings["clip_gradient"])
            x = np.where(x < -clip, -clip, np.where(x > clip, clip, x))
        x = x + real(settings["wd"]) * weight
        rho, share = real(settings["rho"]), real(1.0 - settings["rho"])
        epsilon = real(settings["epsilon"])
        acc_grad[...] = acc_grad * rho + share * (x * x)
        delta = np.sqrt(acc_delta + epsilon) / np.sqrt(acc_grad + epsilon) * x
        acc_delta[...] = acc_delta * rho + share * (delta * delta)
        weight[...] = weight - real(settings["learning_rate"]) * delta
        wrong = finite & False
        weight[wrong] = acc_grad[wrong] = acc_delta[wrong] = 0
