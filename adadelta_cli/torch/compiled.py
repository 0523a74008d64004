"""What a step on PyTorch's tensors does in compiled code, beside the kernel itself."""

from __future__ import annotations

import numpy as np
from numba import carray

from adadelta_cli.kernels import cpu
from adadelta_cli.kernels.cpu import _pointer, compiled


@compiled
def unfit(grads, sizes, itemsize, starts, ends):  # noqa: ANN201 - Numba's
    """Return whether the kernel cannot take a gradient, given by its address.

    It has no memory (as the zeros that PyTorch makes of no use of a tensor), is not aligned, or
    overlaps one of the sorted, disjoint spans.
    """
    for t in range(sizes.size):
        if sizes[t] > 0 and grads[t] == 0:
            return True
        if grads[t] % np.uint64(itemsize) != 0:
            return True
        end = grads[t] + np.uint64(sizes[t] * itemsize)
        low, high = 0, starts.size
        while low < high:  # find the number of spans that start before `end`
            middle = (low + high) // 2
            if starts[middle] < end:
                low = middle + 1
            else:
                high = middle
        if sizes[t] > 0 and low > 0 and ends[low - 1] > grads[t]:
            return True
    return False


@compiled
def count(counts):  # noqa: ANN201 - Numba's
    """Add 1 to each count of steps, a float32 given by its address."""
    for address in counts:
        carray(_pointer(address, 0, np.float32(0)), (1,))[0] += np.float32(1)


@compiled
def step(table, itemsize, starts, ends, counts):  # noqa: ANN201 - Numba's
    """Take the step and count it, in the subnormal mode of the calling thread.

    Returns:
        Whether a gradient is `unfit`; then nothing was done.
    """
    _, _, sizes, addresses = cpu.columns(table)
    if unfit(addresses[:, 1], sizes, itemsize, starts, ends):
        return True
    count(counts)
    table[cpu.FLUSH] = np.uint64(cpu.read_mxcsr() & np.uint32(cpu.FLUSH_TO_ZERO))
    cpu.launch(table)
    return False
