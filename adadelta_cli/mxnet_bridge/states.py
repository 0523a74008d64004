"""Read the files of `gluon.Trainer.save_states`, which are pickles, without running anything.

Unpickling calls whatever the file names. Here every name must be a known one, and even that is not
called: it becomes a record of what the file passes to it. Arrays, schedulers and numbers are then
built from checked records.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from adadelta_cli import inputs
from adadelta_cli.errors import UsageError, in_one_line, shortened
from adadelta_cli.mxnet_bridge import runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    Name = tuple[str, str]  # of a module, and of a class or function in it
    Builder = Callable[["_Record"], Any]

mx = runtime.load_mxnet()

PLAIN = (int, float, str, bool, bytes, NoneType)
# An array in MXNet's format (src/ndarray/ndarray.cc, NDArray::Save): magic, storage, dimensions;
# the shape; kind and number of the device, dtype; the elements.
MAGIC = (0xF993FAC9, 0xF993FACA)
HEAD, TAIL = struct.Struct("<Iii"), struct.Struct("<iii")
MOST_DIMENSIONS = 32
DTYPES = {0: "float32", 1: "float64", 2: "float16"}  # mshadow/base.h, TypeFlag


@dataclass(frozen=True)
class SavedStates:
    """The content of a file of states.

    Attributes:
        states: the states of each parameter by its index: an array, or tuples of arrays.
        optimizer: the class that saved them, as module and name; None if the file has none.
        attributes: those of that optimizer.
    """

    states: dict[Any, Any]
    optimizer: Name | None
    attributes: dict[str, Any]


def name_of(kind: type) -> Name:
    """Return how a pickle names a class."""
    return kind.__module__, kind.__qualname__


def read_states(path: Path, own: Iterable[type] = ()) -> SavedStates:
    """Read a file that `Trainer.save_states` wrote.

    Args:
        path: the file.
        own: classes of optimizers and schedulers that it may name besides MXNet's.

    Raises:
        UsageError: the file is damaged, or names something that such files do not hold.
        OSError: the file cannot be read.
    """
    reason = inputs.unreadable_reason(path)
    if reason.startswith("it is") and not path.is_dir():
        raise UsageError(f"{path} is no file of states: {reason}")
    content = path.read_bytes()
    try:
        return _Reader(content, own).read()
    except _RefusedError as error:
        raise UsageError(
            f"{path} names {shortened(error)}, which is refused: a file of states holds MXNet's "
            "optimizers, schedulers and arrays, and unpickling anything else can run code. If it "
            "is an optimizer or a scheduler of your own, give the trainer one of that class first; "
            "otherwise do not trust the file"
        ) from None
    except Exception as error:  # unpickling damaged files raises many types
        raise UsageError(
            f"{path} is no file of states ({shortened(in_one_line(error))}); expected one that "
            "Trainer.save_states wrote"
        ) from error


class _RefusedError(Exception):
    """The file names something that is not allowed."""


class _Record:
    """What a pickle would call or build: its name, its arguments and its state."""

    name: ClassVar[Name]
    args: tuple[Any, ...]
    state: Any
    built: Any

    def __new__(cls, *args: Any) -> _Record:  # noqa: PYI034 - pickle calls it as a function, too
        record = super().__new__(cls)
        record.args, record.state, record.built = args, None, None
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle._Unpickler):  # noqa: SLF001
    """Turns names into records.

    It is Python's own: that in C allocates as much as an index in the file says, up to 64 GB.
    """

    def __init__(self, content: bytes, allowed: Iterable[Name]) -> None:
        super().__init__(io.BytesIO(content))
        self._records = {name: type("Record", (_Record,), {"name": name}) for name in allowed}

    def find_class(self, module: str, name: str) -> type[_Record]:
        try:
            return self._records[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None

    def get_extension(self, code: int) -> None:
        raise _RefusedError(f"the extension {code}")


class _Reader:
    """Reads one file."""

    def __init__(self, content: bytes, own: Iterable[type]) -> None:
        self._content = content
        self._left = 4 * len(content)  # values: sharing may multiply them without end
        self._schedulers = _subclasses(mx.lr_scheduler, mx.lr_scheduler.LRScheduler, own)
        self._optimizers = _subclasses(mx.optimizer, mx.optimizer.Optimizer, own)

    def read(self) -> SavedStates:
        """Read the pickle and build what its records say."""
        names = {*BUILDERS, *HELPERS, *self._schedulers, *self._optimizers}
        content = _Unpickler(self._content, names).load()
        states, optimizer = content if _is_pair(content) else (content, None)
        _require(type(states) is dict, "it holds no states by index")
        if optimizer is None:
            return SavedStates(self._built(states), None, {})
        saved = isinstance(optimizer, _Record) and optimizer.name in self._optimizers
        _require(saved, "it holds no optimizer")
        return SavedStates(self._built(states), optimizer.name, self._attributes(optimizer))

    def _built(self, value: Any) -> Any:
        """Build a value from its records; lists and dicts in place, as they may be shared."""
        self._left -= 1
        _require(self._left >= 0, "its parts are shared too often")
        if type(value) is dict:
            for key in value:
                _require(type(key) in PLAIN, "a key is no plain value")
                value[key] = self._built(value[key])
            return value
        if type(value) is list:
            value[:] = map(self._built, value)
            return value
        if type(value) is tuple:
            return tuple(map(self._built, value))
        if isinstance(value, _Record):
            if value.built is None:
                value.built = self._object(value)
            return value.built
        plain = type(value) in PLAIN or isinstance(value, BUILT)
        _require(plain, f"it holds a {type(value).__name__}")
        return value

    def _object(self, record: _Record) -> Any:
        if record.name in self._schedulers:
            kind: Any = self._schedulers[record.name]
            scheduler = kind.__new__(kind)
            vars(scheduler).update(self._attributes(record, kind))
            return scheduler
        _require(record.name in BUILDERS, f"it holds a {'.'.join(record.name)}")
        return BUILDERS[record.name](record)

    def _attributes(self, record: _Record, kind: type | None = None) -> dict[str, Any]:
        kind = kind or self._optimizers[record.name]
        state = record.state
        _require(type(state) is dict and not record.args, f"{record.name[1]} has no attributes")
        for key in state:
            usable = type(key) is str and not callable(getattr(kind, key, None))
            _require(usable, f"{shortened(repr(key))} is no attribute of {record.name[1]}")
        return dict(self._built(state))


def _subclasses(module: Any, base: type, own: Iterable[type]) -> Mapping[Name, type]:
    kinds = [each for each in (*vars(module).values(), *own) if isinstance(each, type)]
    return {name_of(each): each for each in kinds if issubclass(each, base)}


def _is_pair(content: Any) -> bool:
    return type(content) is tuple and len(content) == 2


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


# --- arrays and numbers ---------------------------------------------------------------------------


def _buffer(record: Any) -> bytes:
    """Return the bytes of `bytearray(bytes)`."""
    if isinstance(record, _Record):
        _require(record.name == BYTEARRAY and len(record.args) == 1, "an array has no bytes")
        record = record.args[0]
    _require(type(record) in {bytes, bytearray}, "an array has no bytes")
    return bytes(record)


def _numpy_array(record: _Record) -> np.ndarray:
    """Build the NumPy array of an MXNet array: dense floats, as many as its shape says."""
    state = record.state
    _require(type(state) is dict and set(state) == {"handle"}, "an array has no content")
    content = _buffer(state["handle"])
    magic, storage, dimensions = HEAD.unpack_from(content)
    _require(magic in MAGIC, "an array has an unknown format")
    _require(storage == 0, "an array is sparse")
    _require(0 <= dimensions <= MOST_DIMENSIONS, f"an array has {dimensions} dimensions")
    shape = struct.unpack_from(f"<{dimensions}q", content, HEAD.size)
    tail = HEAD.size + 8 * dimensions
    *_, dtype = TAIL.unpack_from(content, tail)
    _require(dtype in DTYPES, f"an array has the dtype number {dtype}, which is no float")
    elements = content[tail + TAIL.size :]
    wanted = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    whole = min(shape, default=0) >= 0 and len(elements) == wanted
    _require(whole, f"an array of shape {shape} has {len(elements)} bytes")
    return np.frombuffer(elements, DTYPES[dtype]).reshape(shape)


def _mx_np_array(record: _Record) -> Any:
    array = _numpy_array(record)
    with mx.util.np_shape(True):
        return mx.np.array(array, dtype=array.dtype, device=mx.cpu())


def _mx_nd_array(record: _Record) -> Any:
    return _mx_np_array(record).as_nd_ndarray()


def _dtype(record: Any) -> np.dtype:
    """Build the dtype of a number: `numpy.dtype("f8")` and its byte order."""
    _require(isinstance(record, _Record) and record.name == DTYPE, "a number has no dtype")
    text, order = record.args[0], record.state[1]
    _require(type(text) is str and text[:1] in "fiub" and order in "<>|=", "a dtype is no number's")
    return np.dtype(text).newbyteorder(order)


def _scalar(record: _Record) -> Any:
    dtype, content = record.args
    return np.frombuffer(_buffer(content), _dtype(dtype), count=1)[0]


def _array(record: _Record) -> np.ndarray:
    _version, shape, dtype, fortran, content = record.state
    array = np.frombuffer(_buffer(content), _dtype(dtype))
    return array.reshape(shape, order="F" if fortran else "C").copy()


BYTEARRAY = ("builtins", "bytearray")
DTYPE = ("numpy", "dtype")
HELPERS: set[Name] = {BYTEARRAY, DTYPE, ("numpy", "ndarray")}
BUILDERS: dict[Name, Builder] = {
    name_of(mx.nd.NDArray): _mx_nd_array,
    name_of(mx.np.ndarray): _mx_np_array,
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _array for core in ("core", "_core")},
}
BUILT = (mx.nd.NDArray, np.generic, np.ndarray, mx.lr_scheduler.LRScheduler)
