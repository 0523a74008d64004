"""The fused step on the tensors of a parameter group of PyTorch's.

PyTorch makes new gradients at each backward pass, and users replace tensors as they like. So each
step compares its tensors with those of the step before. Where only gradients have moved, only their
addresses are written anew.
"""

from __future__ import annotations

import math
import operator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from adadelta_cli.kernels import cpu, variants
from adadelta_cli.kernels.layout import LAYOUTS, KeepsAddresses, TensorRef, check_disjoint
from adadelta_cli.mxnet_bridge import probe
from adadelta_cli.system import gpu
from adadelta_cli.torch import compiled
from adadelta_cli.update import Scalars

if TYPE_CHECKING:
    from collections.abc import Sequence

LAYOUT_OF = {torch.float32: LAYOUTS["float32", False], torch.float64: LAYOUTS["float64", False]}
PLAIN = (torch.Tensor, torch.nn.Parameter)  # a subclass may have other operators
DEVICES = ("cpu", "cuda")


SETTINGS = ("lr", "rho", "eps", "weight_decay", "maximize")  # of a group
NUMBERS = frozenset({int, float, bool})  # types whose equal values stay equal


class Settings(NamedTuple):
    """The hyper-parameters of a group, as Python's numbers."""

    lr: float
    rho: float
    eps: float
    weight_decay: float
    maximize: bool
    sign: float  # of lr: 0.0 and -0.0 are equal, but their products are not

    @classmethod
    def of(cls, group: dict[str, Any]) -> Settings:
        """Read those of a parameter group; the number in a tensor is copied from its device."""
        lr, rho, eps, decay = (float(group[key]) for key in ("lr", "rho", "eps", "weight_decay"))
        return cls(lr, rho, eps, decay, bool(group["maximize"]), math.copysign(1.0, lr))

    @property
    def scalars(self) -> Scalars:
        """The kernel's hyper-parameters, unchecked: PyTorch checks none at a step."""
        rescale = -1.0 if self.maximize else 1.0
        return Scalars(rescale, math.inf, self.rho, 1.0 - self.rho, self.eps)


class Tensors(NamedTuple):
    """Tensors of a group that have a gradient; the lists have one length."""

    weights: list[torch.Tensor]
    grads: list[torch.Tensor]
    squares: list[torch.Tensor]  # PyTorch's square_avg
    deltas: list[torch.Tensor]  # PyTorch's acc_delta
    counts: list[torch.Tensor]  # PyTorch's step

    def select(self, chosen: Sequence[int]) -> Tensors:
        """Return those at some positions."""
        return Tensors(*([each[k] for k in chosen] for each in self))


# --- what the kernel takes ------------------------------------------------------------------------


def fits(weight: torch.Tensor, grad: torch.Tensor) -> bool:
    """Return whether the kernel takes a weight with this gradient."""
    return (
        type(weight) in PLAIN
        and weight.layout is torch.strided
        and weight.dtype in LAYOUT_OF
        and weight.device.type in DEVICES
        and not weight.is_neg()
        and is_dense(weight.shape, weight.stride())
        and weight.data_ptr() % weight.element_size() == 0
        and (weight.data_ptr() != 0 or weight.numel() == 0)
        and is_like(weight, grad)
    )


def is_like(weight: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether another tensor has the elements of a weight that fits in the same order."""
    return (
        type(other) in PLAIN
        and other.layout is torch.strided
        and other.dtype is weight.dtype
        and other.device == weight.device
        and other.shape == weight.shape
        and not other.is_neg()
        and has_order(weight.shape, weight.stride(), other.stride())
        and other.data_ptr() % other.element_size() == 0
        and (other.data_ptr() != 0 or other.numel() == 0)
    )


@lru_cache(maxsize=4096)
def is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Return whether the elements fill their memory, each once, in whatever order."""
    if 0 in shape:
        return True
    elements = 1
    for stride, length in sorted(zip(strides, shape, strict=True)):
        if length > 1 and stride != elements:
            return False
        elements *= length
    return True


def has_order(shape: tuple[int, ...], strides: tuple[int, ...], others: tuple[int, ...]) -> bool:
    """Return whether two tensors of a shape have the same order in memory."""
    if strides == others or 0 in shape:
        return True
    each = zip(shape, strides, others, strict=True)
    return all(length == 1 or stride == other for length, stride, other in each)


# --- the step -------------------------------------------------------------------------------------

_address = torch.Tensor.data_ptr
_strides = torch.Tensor.stride
_length = torch.Tensor.numel
_is_negated = torch.Tensor.is_neg  # its memory has the negated values


class FusedTorchStep(KeepsAddresses):
    """The step on tensors of one dtype and device that the kernel takes.

    Args:
        tensors: at least one of each.

    Raises:
        ValueError: tensors share memory that the step writes.
    """

    def __init__(self, tensors: Tensors) -> None:
        *arrays, counts = tensors
        weights, _, squares, deltas = arrays
        rows = zip(*(map(_address, each) for each in arrays), strict=True)
        each = LAYOUT_OF[weights[0].dtype]
        self.refs = [
            TensorRef(each, (*row, 0), weight.numel(), 0.0, 0.0)
            for row, weight in zip(rows, weights, strict=True)
        ]
        check_disjoint(self.refs)
        spans = sorted(s for ref in self.refs for s in ref.spans() if s.written)
        self._itemsize = weights[0].element_size()
        self._starts = np.array([span.start for span in spans], np.uint64)
        self._ends = np.array([span.end for span in spans], np.uint64)
        self._facts = _facts(*tensors)
        self._written = [*weights, *squares, *deltas, *counts]
        usual = [_is_usual(count) for count in counts]
        self._other_counts = [n for n, ok in zip(counts, usual, strict=True) if not ok]
        addresses = [_address(n) for n, ok in zip(counts, usual, strict=True) if ok]
        self._counts = np.array(addresses, np.uint64)
        self._given: list[Any] = []
        self._settings: Settings

    def matches(self, tensors: Tensors) -> bool:
        """Return whether tensors are the same, gradients apart, which must be alike."""
        weights, _, squares, deltas, counts = tensors
        written = [*weights, *squares, *deltas, *counts]
        try:
            return (
                len(written) == len(self._written)
                and all(map(operator.is_, written, self._written))
                and self._facts == _facts(*tensors)
            )
        except (RuntimeError, TypeError):  # a sparse tensor has no strides; a state is missing
            return False

    def __call__(self, grads: list[torch.Tensor], group: dict[str, Any]) -> bool:
        """Take the step with these gradients and count it, unless their memory forbids it.

        Returns:
            Whether it was taken: not if a gradient is not aligned, or shares memory with what is
            written.
        """
        given = list(map(group.__getitem__, SETTINGS))
        # A rate of 0 has two signs, and what a tensor holds may have changed.
        if not given[0] or not NUMBERS.issuperset(map(type, given)) or given != self._given:
            self._settings, self._given = Settings.of(group), given
        if not self._take(list(map(_address, grads)), self._settings):
            return False
        for count in self._other_counts:
            count.add_(1)
        torch.autograd.graph.increment_version(self._written)  # as an operator of PyTorch's does
        return True

    def _take(self, grads: list[int], settings: Settings) -> bool:
        raise NotImplementedError


def _facts(
    weights: list[torch.Tensor],
    grads: list[torch.Tensor],
    squares: list[torch.Tensor],
    deltas: list[torch.Tensor],
    counts: list[torch.Tensor],
) -> list[Any]:
    """List what differs if a tensor has other memory, or is read otherwise.

    Of gradients, which are new at each step, only how they are read. One flat list: this costs most
    of a step on small tensors.

    Raises:
        RuntimeError: a tensor has no strides: it is of another layout.
    """
    facts: list[Any] = list(map(_address, [*weights, *squares, *deltas, *counts]))
    facts += map(_strides, [*weights, *grads, *squares, *deltas])
    facts += [each.dtype for each in [*weights, *grads, *squares, *deltas]]
    facts += [each.shape for each in [*weights, *grads]]
    facts += map(_is_negated, [*weights, *grads])
    facts += map(_length, [*squares, *deltas])  # with equal strides: the shape
    facts += map(type, grads)
    return facts


def _is_usual(count: torch.Tensor) -> bool:
    """Return whether a count of steps is a float32 in memory that compiled code can reach."""
    return (
        type(count) is torch.Tensor
        and count.dtype is torch.float32
        and count.is_cpu
        and count.layout is torch.strided
        and count.numel() == 1
        and not count.is_neg()
        and count.data_ptr() != 0
    )


class FusedCpuStep(FusedTorchStep):
    """As `FusedTorchStep`, on a CPU."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__(tensors)
        unset = Scalars(1.0, math.inf, 0.0, 0.0, 0.0)
        self._table = cpu.pack_table(self.refs, unset)
        self._addresses = cpu.columns(self._table)[3][:, 1]
        self._grads = self._addresses.tolist()
        self._packed: Any = None
        self._pack = cpu.pack_format(len(self.refs), whole=False).pack_into

    def _take(self, grads: list[int], settings: Settings) -> bool:
        with cpu.launching:
            if (settings, variants.current()) != self._packed:
                self._configure(settings)
            if grads != self._grads:
                self._addresses[:] = self._grads = grads
            return not compiled.step(
                self._table, self._itemsize, self._starts, self._ends, self._counts
            )

    def _configure(self, settings: Settings) -> None:
        """Put the hyper-parameters into the table."""
        n, fixed = len(self.refs), variants.current()
        rates, decays = [settings.lr] * n, [settings.weight_decay] * n
        into = self._table.data.cast("B"), 8 * cpu.FLUSH
        self._pack(*into, False, fixed, *settings.scalars, *rates, *decays)
        function = cpu.range_function(self.refs[0].layout, decays=settings.weight_decay != 0)
        cpu.set_function(self._table, function)
        self._packed = settings, fixed


class FusedGpuStep(FusedTorchStep):
    """As `FusedTorchStep`, on a GPU: CuPy launches the kernel on PyTorch's current stream.

    Raises:
        UnavailableError: CuPy cannot use that GPU.
    """

    def __init__(self, tensors: Tensors) -> None:
        super().__init__(tensors)
        self._number = tensors.weights[0].device.index
        self._cupy = gpu.check_device(self._number, probe.build)
        self._sizes = np.array([ref.size for ref in self.refs], np.int64)

    def _take(self, grads: list[int], settings: Settings) -> bool:
        addresses = np.array(grads, np.uint64)
        if compiled.unfit(addresses, self._sizes, self._itemsize, self._starts, self._ends):
            return False
        from adadelta_cli.kernels import cuda

        refs = [_with(ref, grad, settings) for ref, grad in zip(self.refs, grads, strict=True)]
        work = "update" if settings.weight_decay != 0 else "update_no_decay"
        stream = torch.cuda.current_stream(self._number).cuda_stream
        with self._cupy.cuda.Device(self._number), self._cupy.cuda.ExternalStream(stream):
            cuda.prepared(refs, settings.scalars, work=work)()
        compiled.count(self._counts)
        return True


def _with(ref: TensorRef, grad: int, settings: Settings) -> TensorRef:
    weight, _, square, delta, none = ref.addresses
    addresses = weight, grad, square, delta, none
    return ref._replace(addresses=addresses, learning_rate=settings.lr, wd=settings.weight_decay)


STEPS = {"cpu": FusedCpuStep, "cuda": FusedGpuStep}
