"""The networks whose whole training steps `bench --train` times; `trainers.py` trains them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadelta_cli.bench.workloads import MODELS, Workload
from adadelta_cli.errors import UnavailableError
from adadelta_cli.implementations import array_backends, frameworks
from adadelta_cli.implementations.registry import IMPLEMENTATIONS
from adadelta_cli.mxnet_bridge import runtime

if TYPE_CHECKING:
    from adadelta_cli.bench.workloads import Shape
    from adadelta_cli.implementations.base import Implementation


@dataclass(frozen=True)
class Training:
    """A network, and the optimizers that train it.

    Attributes:
        name: as `--train` takes it.
        library: computes the network, on a CPU.
        optimizers: implementations of that library; the first is the reference.
        shapes: of the network's parameters.
    """

    name: str
    library: str
    optimizers: tuple[str, ...]
    shapes: tuple[Shape, ...]

    @property
    def workload(self) -> Workload:
        """The parameters, named as the training is in bench.csv."""
        return Workload(f"train:{self.name}", self.shapes)

    @property
    def implementations(self) -> tuple[Implementation, ...]:
        """The optimizers."""
        return tuple(IMPLEMENTATIONS[name] for name in self.optimizers)

    def check_available(self) -> None:
        """Raise an UnavailableError unless the library is installed."""
        if self.library == "mxnet":
            runtime.is_installed() or runtime.load_mxnet()  # raises, and names what is missing
            return
        missing = array_backends.missing_library(self.library)
        if missing:
            raise UnavailableError(f"--train {self.name}: {missing}")

    def absent(self) -> dict[str, str]:
        """Name the optimizers that are not available where the library is, with the reason."""
        if self.library == "mxnet":
            return {}
        return {each.name: reason for each, reason in frameworks.available(self.implementations)[1]}


LAYERS = (784, 512, 512, 10)  # units of the PyTorch MLP
CHANNELS = (3, 32, 64, 128)  # of the images and of each convolution
SIDE, KERNEL = 32, 3  # pixels
CLASSES = 10


def _torch_mlp() -> tuple[Shape, ...]:
    layers = itertools.pairwise(LAYERS)
    return tuple(shape for ins, outs in layers for shape in ((outs, ins), (outs,)))


def _torch_cnn() -> tuple[Shape, ...]:
    """Each convolution is followed by a pooling that halves the sides."""
    pairs = list(itertools.pairwise(CHANNELS))
    found: list[Shape] = []
    for ins, outs in pairs:
        found += [(outs, ins, KERNEL, KERNEL), (outs,)]
    left = CHANNELS[-1] * (SIDE // 2 ** len(pairs)) ** 2
    return (*found, (CLASSES, left), (CLASSES,))


_ON_MXNET = ("mxnet-stock", "mxnet", "mxnet-fused")
_ON_TORCH = ("torch-foreach", "torch-compile", "torch-fused")
TRAININGS = {
    each.name: each
    for each in (
        Training("mlp", "mxnet", _ON_MXNET, tuple(MODELS["mlp"]())),
        Training("torch-mlp", "torch", _ON_TORCH, _torch_mlp()),
        Training("torch-cnn", "torch", _ON_TORCH, _torch_cnn()),
    )
}
