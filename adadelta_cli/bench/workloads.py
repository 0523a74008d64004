"""The tensors of a step: one of a given size, or the parameters of a known network."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadelta_cli.errors import UsageError, shortened, suggestion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Shape = tuple[int, ...]

SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
SIZES_ALLOWED = (
    "allowed is a comma-separated list of whole numbers from 1, such as 100000, 1e5, 100k, 2.5M or "
    "1G: --sizes 1e5,1e6,1e7"
)


@dataclass(frozen=True)
class Workload:
    """The tensors of one step, in the order the network lists them; `name` is the option's."""

    name: str
    shapes: tuple[Shape, ...]

    @property
    def tensors(self) -> int:
        """The number of tensors."""
        return len(self.shapes)

    @property
    def elements(self) -> int:
        """The number of elements, all tensors together."""
        return sum(map(math.prod, self.shapes))


def sizes(text: str) -> list[Workload]:
    """Read the list that `--sizes` takes: a one-dimensional tensor for each entry.

    >>> [workload.elements for workload in sizes("1e3,2.5k,4M")]
    [1000, 2500, 4000000]

    Raises:
        UsageError: an entry is not a size.
    """
    entries = text.split(",") if text else []
    return [Workload(_name(size), ((size,),)) for size in map(_size, entries)]


def _size(text: str) -> int:
    given = text.strip()
    match = re.fullmatch(r"(([0-9]+(\.[0-9]+)?|\.[0-9]+)(e\+?[0-9]{1,2})?)([kMG]?)", given)
    size = float(match[1]) * SUFFIXES[match[5]] if match else 0.0
    if not 1 <= size < math.inf or size != int(size):
        raise UsageError(f"--sizes has {shortened(given)!r}, which is not a size; {SIZES_ALLOWED}")
    return int(size)


def _name(size: int) -> str:
    """Write a size in the shortest way that is exact: 1e6, 2.5e7, 12345."""
    digits = str(size).rstrip("0")
    mantissa = digits[0] + ("." + digits[1:] if digits[1:] else "")
    return min(str(size), f"{mantissa}e{len(str(size)) - 1}", key=len)


def model(name: str) -> Workload:
    """Look up the parameters of a network, or raise a UsageError."""
    if name not in MODELS:
        raise UsageError(
            f"--model is {name!r}{suggestion(name, MODELS)}; known are {', '.join(MODELS)}"
        )
    return Workload(name, tuple(MODELS[name]()))


def _dense(outputs: int, inputs: int) -> Iterator[Shape]:
    yield from ((outputs, inputs), (outputs,))


def _norm(channels: int) -> Iterator[Shape]:
    yield from ((channels,), (channels,))


def _mlp() -> Iterator[Shape]:
    """LeNet-300-100's larger sister, 784-500-300-10: LeCun et al. 1998, section III.C."""
    for inputs, outputs in ((784, 500), (500, 300), (300, 10)):
        yield from _dense(outputs, inputs)


def _convolution(outputs: int, inputs: int, side: int) -> Iterator[Shape]:
    yield (outputs, inputs, side, side)
    yield from _norm(outputs)


def _resnet50() -> Iterator[Shape]:
    """He et al., "Deep Residual Learning for Image Recognition", arXiv:1512.03385, table 1."""
    yield from _convolution(64, 3, 7)
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from _convolution(width, channels, 1)
            yield from _convolution(width, width, 3)
            yield from _convolution(4 * width, width, 1)
            if block == 0:  # the shortcut has to change the number of channels
                yield from _convolution(4 * width, channels, 1)
            channels = 4 * width
    yield from _dense(1000, channels)


def _bert_base() -> Iterable[Shape]:
    """Devlin et al., "BERT", arXiv:1810.04805, section 3: L=12, H=768; uncased, with pooler."""
    hidden = 768
    norm = [*_norm(hidden)]
    attention = [*_dense(hidden, hidden)] * 4  # query, key, value, output
    layer = [*attention, *norm, *_dense(4 * hidden, hidden), *_dense(hidden, 4 * hidden), *norm]
    embeddings = [(30522, hidden), (512, hidden), (2, hidden), *norm]
    return [*embeddings, *layer * 12, *_dense(hidden, hidden)]


def _gpt2_small() -> Iterable[Shape]:
    """Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.3."""
    hidden = 768
    norm = [*_norm(hidden)]
    attention = [*norm, *_dense(3 * hidden, hidden), *_dense(hidden, hidden)]
    layer = [*attention, *norm, *_dense(4 * hidden, hidden), *_dense(hidden, 4 * hidden)]
    return [(50257, hidden), (1024, hidden), *layer * 12, *norm]


def _many_small() -> Iterable[Shape]:
    """A thousand tensors of 10 to 1000 elements: shows the overhead of each tensor."""
    return ((10 + 617 * i % 991,) for i in range(1000))


MODELS: dict[str, Callable[[], Iterable[Shape]]] = {
    "mlp": _mlp,
    "resnet50": _resnet50,
    "bert-base": _bert_base,
    "gpt2-small": _gpt2_small,
    "many-small": _many_small,
}
