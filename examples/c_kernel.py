"""AdaDelta in C, called through ctypes: adadelta verify --impl examples/c_kernel.py:step.

The C compiler is `cc`, or the value of CC. Without one, the import fails with an error.
"""

import ctypes
import math
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = r"""
#include <math.h>
#include <stddef.h>

#define STEP(NAME, REAL, SQRT)                                                                 \
void NAME(size_t size, REAL *weight, const REAL *grad, REAL *acc_grad, REAL *acc_delta,        \
          double learning_rate, double rho, double epsilon, double wd, double rescale_grad,    \
          double clip_gradient)                                                                \
{                                                                                              \
    const REAL lr = learning_rate, r = rho, s = 1 - rho, e = epsilon, decay = wd;              \
    const REAL rescale = rescale_grad, clip = clip_gradient;                                   \
    for (size_t i = 0; i < size; i++) {                                                        \
        REAL g = grad[i] * rescale;                                                            \
        g = g < -clip ? -clip : g;                                                             \
        g = g > clip ? clip : g;                                                               \
        g += decay * weight[i];                                                                \
        acc_grad[i] = r * acc_grad[i] + s * (g * g);                                           \
        REAL delta = SQRT(acc_delta[i] + e) / SQRT(acc_grad[i] + e) * g;                       \
        acc_delta[i] = r * acc_delta[i] + s * (delta * delta);                                 \
        weight[i] -= lr * delta;                                                               \
    }                                                                                          \
}

STEP(step_float32, float, sqrtf)
STEP(step_float64, double, sqrt)
"""


def _compiled():
    """Compile the source into a temporary library and load it."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise ImportError("this kernel needs a C compiler, and there is no cc; install gcc")
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "step.c"), Path(folder, "step.so")
        source.write_text(SOURCE)
        # Without -ffp-contract=off, fused multiply-adds may change the bits.
        flags = ["-O3", "-fPIC", "-shared", "-ffp-contract=off"]
        subprocess.run([compiler, *flags, source, "-o", library, "-lm"], check=True)  # noqa: S603
        return ctypes.CDLL(str(library))


_LIBRARY = _compiled()
_STEPS = {"float32": _LIBRARY.step_float32, "float64": _LIBRARY.step_float64}
for _step in _STEPS.values():
    _step.argtypes = [ctypes.c_size_t] + [ctypes.c_void_p] * 4 + [ctypes.c_double] * 6
    _step.restype = None


def step(
    weight, grad, acc_grad, acc_delta, *,
    learning_rate, rho, epsilon, wd, rescale_grad, clip_gradient,
):
    """Update weight, acc_grad and acc_delta in place; leave grad as it is."""
    clip = math.inf if clip_gradient is None else clip_gradient
    pointers = [array.ctypes.data for array in (weight, grad, acc_grad, acc_delta)]
    settings = (learning_rate, rho, epsilon, wd, rescale_grad, clip)
    _STEPS[weight.dtype.name](weight.size, *pointers, *settings)
