"""The update in one pass over memory on a GPU, launched through CuPy: the fused step.

NVRTC compiles the kernels, in `adadelta.cu`, for the current GPU on first use. One launch updates
all tensors of a dtype layout, from a table in device memory. The operations have the order of
`update.py`, hence its bits.
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

# Not tuned on a GPU. Each thread accesses 16 bytes of each array at once, twice a tile of float32:
# small enough that the last blocks end together. A tile is aligned to 16 bytes if its tensor is.
TILE_ELEMENTS, THREADS = 2048, 256
# Many more blocks than any GPU runs at once; with more tiles, blocks process several.
MOST_BLOCKS = 65_536
# The kernels name the instructions that round, so no option can change a bit, not even -ftz=true,
# which CuPy adds; -fmad=false is for any other arithmetic.
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
    """How the tensors of one dtype layout are split into tiles."""

    rows: np.ndarray  # `TENSOR`[tensors], the kernel's table
    tiles: int
    blocks: int  # each processes tile after tile


def plan_tiles(refs: Iterable[TensorRef]) -> TilePlan:
    """Split tensors of one layout into tiles of `TILE_ELEMENTS`, the last of each shorter."""
    rows = np.array([(*r.addresses, r.size, 0, r.learning_rate, r.wd) for r in refs], TENSOR)
    tiles = -(-rows["size"] // TILE_ELEMENTS)
    ends = np.cumsum(tiles)
    rows["first_tile"] = ends - tiles
    total = int(ends[-1])
    return TilePlan(rows, total, min(total, MOST_BLOCKS))


@cache
def kernel(name: str) -> Any:
    """Compile and load a kernel; CuPy does so for each GPU and caches the result on disk."""
    import cupy

    return cupy.RawModule(code=source(), options=OPTIONS).get_function(name)


@dataclass(frozen=True)
class PreparedGpuStep(layout.KeepsAddresses):
    """A step that can be taken any number of times, on tensors at fixed addresses."""

    launches: list[tuple[Any, int, tuple[Any, ...]]]  # kernel, blocks, arguments; for each layout
    owners: tuple[Any, ...] = ()  # keep the arrays' memory in place

    def __call__(self) -> None:
        """Enqueue the step on CuPy's current stream; return at once."""
        for kernel, blocks, arguments in self.launches:
            kernel((blocks,), (THREADS,), arguments)


def prepared(
    refs: Iterable[TensorRef],
    common: Scalars,
    *,
    work: str = "update",
    owners: Iterable[Parameter] = (),
) -> PreparedGpuStep:
    """Prepare a step on tensors of the current GPU, as `cpu.prepared` does on a CPU.

    `work` is `update`; `update_no_decay`, which omits the weight decay; or `traffic`, which adds
    the gradient times `rescale_grad` to weight and states: the bytes of an update with next to no
    arithmetic.
    """
    groups = layout.group_by_layout(refs)
    plans = [(each.name, plan_tiles(group)) for each, group in groups.items()]
    launches = [_launch(f"{work}_{name}", each, common) for name, each in plans if each.tiles]
    return PreparedGpuStep(launches, layout.pinned(owners))


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
    """Prepare the fused step on CuPy arrays; the arguments are those of `cpu.prepared_step`.

    Raises:
        TypeError: as `layout.tensor_refs`.
        ValueError: likewise; or an array is on another GPU than the current one.
    """
    refs = layout.tensor_refs(parameters, learning_rates, weight_decays, layout.CUDA)
    _check_device(parameters)
    return prepared(refs, common, owners=parameters)


def prepared_traffic(workload: Parameter) -> PreparedGpuStep:
    """Prepare the memory roof of a step: its traffic with next to no arithmetic.

    Args:
        workload: its tensors concatenated, in CuPy arrays. Their values do not change: the factor
            is so small that no sum changes, and the products are normal.
    """
    factor = float(np.sqrt(np.finfo(workload.acc_grad.dtype).tiny))
    _check_device([workload])
    common = Hyperparameters(rescale_grad=factor).doubles
    refs = layout.tensor_refs([workload], [0.0], [0.0], layout.CUDA)
    return prepared(refs, common, work="traffic", owners=[workload])


def _check_device(parameters: Sequence[Parameter]) -> None:
    import cupy

    current = cupy.cuda.Device().id
    found = {array.device.id for parameter in parameters for array in parameter.arrays}
    if found - {current}:
        raise ValueError(
            f"arrays are on GPU {', '.join(map(str, sorted(found)))}, and the current one is "
            f"{current}; take the step under `with cupy.cuda.Device(...)`, on one GPU at a time"
        )
