"""AdaDelta in CUDA C++: adadelta verify --ctx gpu --impl examples/cupy_kernel.py:step."""

import cupy
import numpy as np

SOURCE = """
extern "C" __global__ void adadelta(T* weight, const T* grad, T* acc_grad, T* acc_delta,
                                    T rate, T rho, T rest, T epsilon, T wd, T rescale, T clip,
                                    long long size) {
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= size) return;
    T g = grad[i] * rescale;
    g = g < -clip ? -clip : g > clip ? clip : g;
    g += wd * weight[i];
    acc_grad[i] = rho * acc_grad[i] + rest * (g * g);
    T delta = sqrt(acc_delta[i] + epsilon) / sqrt(acc_grad[i] + epsilon) * g;
    acc_delta[i] = rho * acc_delta[i] + rest * (delta * delta);
    weight[i] -= rate * delta;
}
"""
KERNELS = {
    np.dtype(name): cupy.RawModule(code=SOURCE, options=(f"-DT={kind}",)).get_function("adadelta")
    for name, kind in {"float32": "float", "float64": "double"}.items()
}


def step(weight, grad, acc_grad, acc_delta, *,
         learning_rate, rho, epsilon, wd, rescale_grad, clip_gradient):
    """Update weight, acc_grad and acc_delta; leave grad as it is."""
    if not weight.size:
        return
    limit = np.inf if clip_gradient is None else clip_gradient
    numbers = (learning_rate, rho, 1 - rho, epsilon, wd, rescale_grad, limit)
    scalars = map(weight.dtype.type, numbers)
    blocks = -(-weight.size // 256)
    KERNELS[weight.dtype](
        (blocks,), (256,), (weight, grad, acc_grad, acc_delta, *scalars, weight.size)
    )
