"""A simulation of CuPy, in memory of the host: what this package uses of it, and no more.

It is no GPU, and nothing that it computes says anything of one, its times least of all. The
kernels are the real CUDA sources, compiled by the host's C++ compiler (`host_cuda`). It is
stricter than CuPy where that finds mistakes: arrays never turn into NumPy's by themselves, and
never mix with them. As CuPy does, it flushes float32 subnormals in its own operators, which CuPy
compiles with `-ftz=true`.

What is to go wrong is said by variables of the environment, see `cuda`.
"""

from __future__ import annotations

import ctypes
import operator
from types import SimpleNamespace

import numpy as np

from . import cuda

RawModule = cuda.RawModule

__version__ = "0.0 (simulated)"


class ndarray:  # noqa: N801 - CuPy's name
    """An array on the simulated device."""

    __array_ufunc__ = None

    def __init__(self, host):
        self._host = host
        self.dtype, self.shape, self.ndim = host.dtype, host.shape, host.ndim
        self.size, self.nbytes, self.itemsize = host.size, host.nbytes, host.itemsize
        self.flags, self.strides = host.flags, host.strides
        address = host.ctypes.data if host.size else 0
        self.data, self.device = cuda.MemoryPointer(address, host), cuda.Device()
        self.__cuda_array_interface__ = {
            "data": (address, False),
            "shape": self.shape,
            "typestr": self.dtype.str,
            "strides": None,
            "version": 3,
        }

    def __array__(self, *_args, **_settings):
        raise TypeError("Implicit conversion to a NumPy array is not allowed; use cupy.asnumpy")

    def __len__(self):
        return len(self._host)

    def __getitem__(self, key):
        return ndarray(np.asarray(self._host[key])) if self.ndim else self

    def __setitem__(self, key, value):
        self._host[key] = _host(value)

    def __float__(self):
        return float(self._host)

    def __int__(self):
        return int(self._host)

    @property
    def T(self):  # noqa: N802 - NumPy's name
        return ndarray(self._host.T)

    def set(self, values):
        if type(values) is not np.ndarray or values.dtype != self.dtype:
            raise TypeError(f"set takes a numpy.ndarray of {self.dtype}, not {type(values)}")
        self._host[...] = values

    def get(self):
        return np.array(self._host)

    def astype(self, dtype, copy=True):
        return ndarray(self._host.astype(dtype, copy=copy))

    def view(self, dtype):
        return ndarray(self._host.view(dtype))

    def reshape(self, *shape):
        return ndarray(self._host.reshape(*shape))

    def copy(self):
        return ndarray(self._host.copy())

    def sum(self, **how):
        return ndarray(np.asarray(self._host.sum(**how)))

    def max(self, **how):
        return ndarray(np.asarray(self._host.max(**how)))


def _host(value):
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    return value._host if isinstance(value, ndarray) else value


def _flushed(array):
    """Take float32 subnormals as zeros of their sign."""
    if getattr(array, "dtype", None) != np.float32:  # Python's numbers take the array's dtype
        return array
    return np.where(
        np.abs(array) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), array), array
    )


def _elementwise(function):
    def compute(*operands, out=None):
        with np.errstate(all="ignore"):
            found = _flushed(function(*(_flushed(_host(each)) for each in operands)))
        if out is None:
            return ndarray(np.array(found))
        out._host[...] = found
        return out

    return compute


for _name in ("add", "sub", "mul", "truediv", "pow", "matmul", "neg", "lt", "gt", "eq", "ne"):
    _compute = _elementwise(getattr(operator, _name))
    setattr(ndarray, f"__{_name}__", _compute)
    if _name in {"add", "sub", "mul", "truediv"}:
        setattr(ndarray, f"__r{_name}__", lambda self, other, f=_compute: f(other, self))
        setattr(ndarray, f"__i{_name}__", lambda self, other, f=_compute: f(self, other, out=self))

add, subtract, multiply, divide, sqrt, exp, log, log1p, tanh, maximum, dot = (
    _elementwise(getattr(np, name))
    for name in (
        "add",
        "subtract",
        "multiply",
        "divide",
        "sqrt",
        "exp",
        "log",
        "log1p",
        "tanh",
        "maximum",
        "dot",
    )
)


def where(condition, chosen, other):
    """Choose; no arithmetic, so nothing is flushed."""
    return ndarray(np.where(_host(condition), _host(chosen), _host(other)))


def _made(host):
    cuda._allocate(host.nbytes)
    return ndarray(host)


def array(values, dtype=None, order="C"):
    """Copy to the device."""
    values = values._host if isinstance(values, ndarray) else values
    return _made(np.array(values, dtype=dtype, order=order, copy=True))


def asarray(values):
    """Copy to the device what is not there."""
    return values if isinstance(values, ndarray) else array(values)


def from_dlpack(shared):
    """Share the memory of another library's array; it has to lie on the device: the host, here."""
    host = np.from_dlpack(shared)  # which NumPy 1.26 makes read-only
    memory = (ctypes.c_byte * host.nbytes).from_address(host.ctypes.data)
    writable = np.frombuffer(memory, host.dtype).reshape(host.shape)
    taken = ndarray(writable)
    taken.shared = host  # which keeps it alive
    return taken


def asnumpy(values):
    """Copy to the host."""
    return values.get()


def empty(shape, dtype="float64"):
    """Allocate; what lies there is no zero by luck."""
    return _made(np.full(shape, 0x3F, dtype))


def ones(shape, dtype="float64"):
    """Fill with ones."""
    return _made(np.ones(shape, dtype))


def full(shape, value, dtype):
    """Fill with a value."""
    return _made(np.full(shape, value, dtype))


def zeros(shape, dtype="float64"):
    """Fill with zeros."""
    return _made(np.zeros(shape, dtype))


def empty_like(like):
    """Allocate as much."""
    return empty(like.shape, like.dtype)


def get_default_memory_pool():
    """Return what counts the allocated bytes; nothing is ever given back."""
    return SimpleNamespace(free_all_blocks=lambda: None, total_bytes=lambda: cuda.allocated_bytes)


def zeros_like(like):
    """Fill with zeros."""
    return _made(np.zeros_like(like._host))
