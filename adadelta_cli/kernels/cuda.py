"""The update in one pass over memory on a GPU, launched through CuPy: the fused step.

The kernels are in `adadelta.cu`, and NVRTC compiles them for the GPU that is there when they are
first used. One launch takes all tensors of a kind, from a table in device memory. The order of the
operations is that of `update.py`, and so are the bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adadelta_cli.kernels import layout
from adadelta_cli.update import Hyperparameters

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adadelta_cli.kernels.layout import TensorRef
    from adadelta_cli.update import Parameter, Scalars

# Neither was timed on a GPU. The threads of a block take 16 bytes of each array at once, twice in a
# tile of float32: small enough that the last blocks end together, and a tile begins on a boundary
# of 16 bytes wherever its tensor does.
TILE_ELEMENTS, THREADS = 2048, 256
# More blocks than any GPU runs at once, many times over: beyond, blocks take several tiles.
MOST_BLOCKS = 65_536
# The kernels name the instructions that round, so that no option can change a bit, CuPy's own
# -ftz=true neither; -fmad=false says the same of whatever else there is.
OPTIONS = ("-std=c++17", "-fmad=false", f"-DTILE_ELEMENTS={TILE_ELEMENTS}", f"-DTHREADS={THREADS}")
# A row of the table, as `struct Tensor` in adadelta.cu.
TENSOR = np.dtype(
    [
        *((name, np.uint64) for name in ("weight", "grad", "acc_grad", "acc_delta", "half")),
        *((name, np.int64) for name in ("size", "first_tile")),
        *((name, np.float64) for name in ("learning_rate", "wd")),
    ]
)


def source() -> str:
    """Read the CUDA source of the kernels."""
    return Path(__file__).with_name("adadelta.cu").read_text(encoding="utf-8")


class TilePlan(NamedTuple):
    """How the tensors of one kind are cut into tiles.

    Attributes:
        rows: `TENSOR`[tensors], what the kernel is told of each.
        tiles: how many there are in all.
        blocks: how many blocks take them, each a tile after another.
    """

    rows: np.ndarray
    tiles: int
    blocks: int


def plan_tiles(refs: Iterable[TensorRef]) -> TilePlan:
    """Count the tiles of tensors of one layout, of `TILE_ELEMENTS` but the last of each tensor."""
    rows = np.array([(*r.addresses, r.size, 0, r.learning_rate, r.wd) for r in refs], TENSOR)
    tiles = -(-rows["size"] // TILE_ELEMENTS)
    ends = np.cumsum(tiles)
    rows["first_tile"] = ends - tiles
    total = int(ends[-1])
    return TilePlan(rows, total, min(total, MOST_BLOCKS))


@cache
def kernel(name: str) -> Any:
    """Compile and load a kernel; CuPy does so for each GPU, and keeps the result on disk."""
    import cupy

    return cupy.RawModule(code=source(), options=OPTIONS).get_function(name)


@dataclass(frozen=True)
class PreparedGpuStep:
    """A step on tensors that stay where they are, to be taken any number of times.

    Attributes:
        launches: kernel, blocks and arguments, once for each kind of tensor.
        owners: the arrays, which have to live as long as their addresses are used.
    """

    launches: list[tuple[Any, int, tuple[Any, ...]]]
    owners: tuple[Any, ...] = ()

    def __call__(self) -> None:
        """Enqueue the step on CuPy's current stream, and return at once."""
        for kernel, blocks, arguments in self.launches:
            kernel((blocks,), (THREADS,), arguments)


def prepared(
    operands: Iterable[TensorRef],
    common: Scalars,
    *,
    work: str = "update",
    owners: Iterable[Parameter] = (),
) -> PreparedGpuStep:
    """Prepare a step on all tensors, in place, in one pass over memory.

    The caller must pass valid addresses.

    Args:
        operands: the tensors, in the memory of the current GPU; those of one kind share a launch.
        common: the hyper-parameters of all tensors, in double.
        work: `update`; or `traffic`, which adds the gradient times `rescale_grad` to weight and
            states: the bytes of an update, and next to no arithmetic.
        owners: the parameters that own the addresses; the step keeps their arrays.
    """
    groups = layout.group_by_layout(operands)
    plans = [(kind.name, plan_tiles(refs)) for kind, refs in groups.items()]
    launches = [_launch(f"{work}_{name}", each, common) for name, each in plans if each.tiles]
    return PreparedGpuStep(launches, layout.all_arrays(owners))


def _launch(name: str, plan: TilePlan, common: Scalars) -> tuple[Any, int, tuple[Any, ...]]:
    import cupy

    rows = cupy.asarray(plan.rows.view(np.uint8))
    counts = map(np.int64, (len(plan.rows), plan.tiles))  # CuPy passes a NumPy scalar as it is
    return kernel(name), plan.blocks, (rows, *counts, *map(np.float64, common))


def prepared_step(
    parameters: Sequence[Parameter],
    common: Scalars,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
) -> PreparedGpuStep:
    """Prepare the fused step on CuPy arrays; see `kernels.step.FusedStep`.

    Args:
        parameters: any number of tensors of any shapes, the dtypes of `layout.SUPPORTED` mixed.
        common: the hyper-parameters of all tensors, in double.
        learning_rates: one for each tensor: rate times multiplier, in double.
        weight_decays: one for each tensor: weight decay times multiplier, in double.

    Raises:
        TypeError: the dtypes do not go together, or an array is not in a GPU's memory.
        ValueError: an array is not C-contiguous, has another shape, or lies on another GPU than
            the current one.
    """
    operands = layout.tensor_refs(parameters, learning_rates, weight_decays, layout.CUDA)
    _check_device(parameters)
    return prepared(operands, common, owners=parameters)


def prepared_traffic(line: Parameter) -> PreparedGpuStep:
    """Prepare the ceiling of a step: a kernel that moves its bytes, with next to no arithmetic.

    Args:
        line: all tensors of a workload laid end to end in CuPy arrays. Their values do not change:
            what is added, times the gradient, is that small, and never a subnormal.
    """
    factor = float(np.sqrt(np.finfo(line.acc_grad.dtype).tiny))
    _check_device([line])
    common = Hyperparameters(rescale_grad=factor).doubles
    operands = layout.tensor_refs([line], [0.0], [0.0], layout.CUDA)
    return prepared(operands, common, work="traffic", owners=[line])


def _check_device(parameters: Sequence[Parameter]) -> None:
    import cupy

    current = cupy.cuda.Device().id
    found = {array.device.id for parameter in parameters for array in parameter.arrays}
    if found - {current}:
        raise ValueError(
            f"arrays lie on GPU {', '.join(map(str, sorted(found)))}, and the current one is "
            f"{current}; take the step under `with cupy.cuda.Device(...)`, on one GPU at a time"
        )
