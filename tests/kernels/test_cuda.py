"""The GPU's kernels give the bits of the CPU's: the same source, simulated on the host.

What the compiler makes of the source for a GPU is in test_ptx.py; what both kernels have to take,
in test_cpu.py. Nothing here runs on a GPU.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import host_cuda
import numpy as np
import pytest
from conftest import (
    AWKWARD,
    KINDS,
    assert_same_bits,
    far_tile,
    prepared_on_gpu,
    random_arrays,
    simulated_gpu,
    slow_but,
    take_fused_step,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from adadelta_cli.implementations.registry import IMPLEMENTATIONS
from adadelta_cli.kernels import cuda
from adadelta_cli.kernels.layout import TensorRef, layout_of, tensor_ref
from adadelta_cli.update import Hyperparameters, Parameter
from adadelta_cli.verification import cases, fuzz
from adadelta_cli.verification.execute import step_through

pytestmark = pytest.mark.skipif(
    host_cuda.COMPILER is None, reason="no C++ compiler on the PATH: kernels are not simulated"
)
DTYPES = ("float32", "float64", "float16")
TILE = cuda.TILE_ELEMENTS
HYPER = Hyperparameters(**AWKWARD)


@pytest.fixture(autouse=True, scope="module")
def _simulated_gpu():
    with simulated_gpu():
        yield


def bind(inputs):
    """Make the GPU's step as an implementation does."""
    rates = inputs.learning_rates, inputs.weight_decays
    return prepared_on_gpu(inputs.parameters, inputs.hyper, *rates)


def assert_bits_of_the_cpu(case, dtype):
    """Take a case's steps with either kernel."""
    wanted = step_through(IMPLEMENTATIONS["numpy-fused"], case, dtype, 0)
    got = step_through(IMPLEMENTATIONS["numpy-fused"], case, dtype, 0, bind=bind)
    for name, states in wanted.tensors.items():
        assert_same_bits(got.tensors[name], states)
    assert got.grad_changes == 0


STRICT = {case.name: case for case in cases.CASES.values() if not case.flush}
ALONE = {name: case for name, case in STRICT.items() if not name.startswith("grid-")}
TOO_LARGE = {("beyond-2^24", "float64"), ("beyond-2^24", "float16")}  # a dtype of it is enough
GRID = [case for name, case in STRICT.items() if name not in ALONE]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"), [each for each in itertools.product(ALONE, DTYPES) if each not in TOO_LARGE]
)
def test_cases_of_verify(name, dtype):
    """Each case of `verify`, in each dtype: no bit differs, and the gradient is left alone."""
    assert_bits_of_the_cpu(ALONE[name], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_grid_of_verify(dtype):
    """The combinations of hyper-parameters of MXNet's own tests."""
    for case in GRID:
        assert_bits_of_the_cpu(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_drawn_cases(dtype):
    """Cases that are drawn as for `verify`."""
    for case in fuzz.fuzzed_cases(1, 60):
        assert_bits_of_the_cpu(case, dtype)


@pytest.mark.parametrize("name", ["special", "special-odd", "subnormal-odd", "overflow", "lengths"])
def test_float16_without_a_master(name):
    """A float16 weight may be all there is; its states are float32."""
    case = cases.CASES[name]
    starts, grads = case.start("float16", 0), case.grads("float16", 0, 1)
    with np.errstate(over="ignore"):
        halves = [values.weight.astype(np.float16) for values in starts]

    def parameters():
        rows = zip(halves, grads, starts, strict=True)
        return [Parameter(w.copy(), g, v.acc_grad.copy(), v.acc_delta.copy()) for w, g, v in rows]

    mine, wanted = parameters(), parameters()
    rates, weight_decays = [0.7] * len(mine), [0.01] * len(mine)
    step = prepared_on_gpu(mine, case.hyper, rates, weight_decays)
    for _ in range(case.steps):
        step()
        take_fused_step(wanted, case.hyper, rates, weight_decays)
    assert_same_bits([a for p in mine for a in p.arrays], [a for p in wanted for a in p.arrays])


# --- the launch plan ------------------------------------------------------------------------------


def nowhere(sizes):
    """Describe float32 tensors that have no memory."""
    layout = layout_of(*["float32"] * 4)
    return [TensorRef(layout, (0,) * 5, size, 1.0, 0.0) for size in sizes]


EDGES = [0, 1, TILE - 1, TILE, TILE + 1, 3 * TILE, 2**31 - 1, 2**31, 2**31 + 1, 2**40]
SIZES = st.lists(st.sampled_from(EDGES) | st.integers(0, 5 * TILE), min_size=1, max_size=60)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(SIZES)
def test_tiles_cover_each_tensor_once(sizes):
    """Its tiles follow each other, begin where those of the tensor before end, and hold it all."""
    plan, at = cuda.plan_tiles(nowhere(sizes)), 0
    for size, row in zip(sizes, plan.rows, strict=True):
        assert row["first_tile"] == at and row["size"] == size
        tiles = -(-size // TILE)
        assert tiles * TILE >= size > (tiles - 1) * TILE
        at += tiles
    assert plan.tiles == at


@settings(max_examples=300, deadline=None, derandomize=True)
@given(SIZES)
def test_there_are_blocks_where_there_is_work(sizes):
    """A block for each tile, up to the most; none where all tensors are empty."""
    plan = cuda.plan_tiles(nowhere(sizes))
    assert plan.blocks == min(plan.tiles, cuda.MOST_BLOCKS)
    assert (plan.blocks == 0) == (sum(sizes) == 0)


ZONE = TILE + 64  # elements around each array, further than a wrong tile reaches


def assert_written_once_and_nothing_else(kind, sizes, offsets, blocks):
    """Compare whole buffers with the CPU's; what is written twice has taken two steps.

    Each array of a tensor begins `offsets` elements behind the zone that guards it.
    """

    def inner(buffers, size):
        pairs = zip(buffers, offsets, strict=False)
        return Parameter(*(each[ZONE + offset :][:size] for each, offset in pairs))

    buffers = [random_arrays(size + 2 * ZONE, kind, seed=k) for k, size in enumerate(sizes)]
    wanted = [[each.copy() for each in group] for group in buffers]
    rates = [0.7 + 0.1 * k for k in range(len(sizes))]
    weight_decays = [0.01 * k for k in range(len(sizes))]
    take_fused_step(list(map(inner, wanted, sizes)), HYPER, rates, weight_decays)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "MOST_BLOCKS", blocks)
        prepared_on_gpu(list(map(inner, buffers, sizes)), HYPER, rates, weight_decays)()
    for got, right in zip(buffers, wanted, strict=True):
        assert_same_bits(got, right)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    sizes=st.lists(
        st.sampled_from([0, 1, 3, 4, 5, TILE - 1, TILE, TILE + 1, 2 * TILE + 3]),
        min_size=1,
        max_size=12,
    ),
    offsets=st.lists(st.sampled_from([0, 1, 2, 3, 4, 8]), min_size=5, max_size=5),
    blocks=st.sampled_from([1, 2, 3, 1000]),
)
def test_each_element_is_written_once_and_nothing_else(kind, sizes, offsets, blocks):
    """Whatever the sizes, the alignment of each array, and the blocks that share the tiles."""
    assert_written_once_and_nothing_else(kind, sizes, offsets, blocks)


@pytest.mark.parametrize("tile", [0, 2**19, 2**20, 2**21, 2**31 - 1])
def test_offsets_beyond_32_bits(tile):
    """Elements up to the 2^42nd are found: the last tile of such a tensor alone is run."""
    arrays, _, run = far_tile(tile)
    wanted = [each.copy() for each in arrays]
    run()
    take_fused_step([Parameter(*wanted)], Hyperparameters(), [0.7], [0.01])
    assert_same_bits(arrays, wanted)


def test_the_table_is_laid_out_as_the_struct():
    """The size of `struct Tensor`, and where each member begins, are those of the NumPy dtype."""
    offsets = ", ".join(f"offsetof(Tensor, {name})" for name in cuda.TENSOR.names)
    code = f"""{cuda.source()}
    extern "C" __global__ void layout(long long* out) {{
        for (long long each : {{{offsets}, sizeof(Tensor)}}) *out++ = each;
    }}"""
    out = np.zeros(len(cuda.TENSOR.names) + 1, np.int64)
    host_cuda.RawModule(code=code, options=cuda.OPTIONS).get_function("layout")((1,), (1,), (out,))
    fields = [offset for _, offset in cuda.TENSOR.fields.values()]
    assert out.tolist() == [*fields, cuda.TENSOR.itemsize]


# --- what Python calls ----------------------------------------------------------------------------


class GpuArray(np.ndarray):
    """A NumPy array that gives its address as a GPU's does."""

    number = 0

    @property
    def __cuda_array_interface__(self):
        return self.__array_interface__

    @property
    def device(self):
        return SimpleNamespace(id=self.number)


def on_gpu(arrays, number=0):
    """Make a parameter of such arrays."""
    parameter = Parameter(*(array.view(GpuArray) for array in arrays))
    for array in parameter.arrays:
        array.number = number
    return parameter


def test_fused_update_steps_in_place():
    """Parameters of several kinds in one call, on arrays of the GPU's interface."""
    arrays = [random_arrays((5, 7), kind) for kind in KINDS]
    wanted = [[each.copy() for each in group] for group in arrays]
    rates, weight_decays = [0.7, 0.8, 0.9, 1.0], [0.0, 0.01, 0.02, 0.03]
    take_fused_step([on_gpu(group) for group in arrays], HYPER, rates, weight_decays)
    take_fused_step([Parameter(*group) for group in wanted], HYPER, rates, weight_decays)
    for got, right in zip(arrays, wanted, strict=True):
        assert_same_bits(got, right)


def test_arrays_of_the_host_are_refused():
    """An address in host memory is not valid on a GPU."""
    with pytest.raises(TypeError, match="__cuda_array_interface__"):
        cuda.prepared_step([Parameter(*random_arrays(3))], HYPER.doubles, [1.0], [0.0])


def test_arrays_of_another_gpu_are_refused():
    """A kernel runs on the current GPU, on the memory of that."""
    elsewhere = on_gpu(random_arrays(3), number=1)
    with pytest.raises(ValueError, match=r"GPU 1\b.*\b0;"):
        take_fused_step([elsewhere], HYPER, [1.0], [0.0])
    with pytest.raises(ValueError, match="GPU 1"):
        cuda.prepared_traffic(elsewhere)


def test_nothing_to_do_launches_nothing():
    """No tensors, or none with an element: a grid of no blocks would be an error on a GPU."""
    empty = on_gpu(random_arrays((0, 3)))
    assert cuda.prepared_step([], HYPER.doubles, [], []).launches == []
    assert cuda.prepared_step([empty, empty], HYPER.doubles, [1.0, 1.0], [0.0, 0.0]).launches == []


def test_kernels_are_compiled_when_they_are_first_used():
    """Importing and preparing nothing compiles nothing; each kernel is fetched once."""
    asked = []

    class Counting(host_cuda.RawModule):
        def get_function(self, name):
            asked.append(name)
            return super().get_function(name)

    with simulated_gpu(RawModule=Counting):
        for kind in ("float32", "float32", "mixed"):
            take_fused_step([on_gpu(random_arrays(3, kind))], HYPER, [1.0], [0.0])
    assert asked == ["update_float32", "update_float16_master"]


@pytest.mark.parametrize("kind", KINDS)
class TestTraffic:
    """The kernel that the step is measured against."""

    def test_it_changes_no_value(self, kind):
        """It writes back what it read, so the steps timed beside it are not hurt."""
        arrays = random_arrays(3 * TILE + 5, kind, low=-3)
        arrays[0][...] = arrays[-1] if kind == "mixed" else arrays[0]
        before = [each.copy() for each in arrays]
        cuda.prepared_traffic(on_gpu(arrays))()
        assert_same_bits(arrays, before)

    def test_it_reads_and_writes_every_array_once(self, kind):
        """With a factor of 1, each element's gradient arrives in weight and states."""
        arrays = random_arrays(3 * TILE + 5, kind, low=-3)
        weight, grad, acc_grad, acc_delta, *master = (each.copy() for each in arrays)
        cuda.prepared(
            [tensor_ref(Parameter(*arrays), 0, 0)], Hyperparameters().doubles, work="traffic"
        )()
        change = grad.astype(acc_grad.dtype)
        right = (master[0] if master else weight.astype(change.dtype)) + change
        wanted = [right.astype(weight.dtype), grad, acc_grad + change, acc_delta + change]
        assert_same_bits(arrays, [*wanted, right] if master else wanted)


def test_without_decay_nothing_is_added():
    """As in PyTorch: no decay is no sum, so that 0 * infinity makes no NaN; else the bits agree."""
    results = []
    for work in ("update", "update_no_decay"):
        arrays = random_arrays(2 * TILE + 5, "float32", low=-3)
        arrays[0][7] = -np.inf
        refs = [tensor_ref(Parameter(*arrays), 0.5, 0.0)]
        cuda.prepared(refs, HYPER.doubles, work=work)()
        results.append(arrays)
    assert np.isnan(results[0][0][7])
    assert np.isneginf(results[1][0][7])
    for decayed, plain in zip(*results, strict=True):
        assert_same_bits([np.delete(plain, 7)], [np.delete(decayed, 7)])


# --- broken on purpose ----------------------------------------------------------------------------

FAULTS = {
    "gradient squared left to right": ("(grad * grad)", "grad * grad"),
    "delta squared left to right": ("(delta * delta)", "delta * delta"),
    "1 - rho rounded twice": ("rounded<State>(hyper.one_minus_rho)", "rounded<State>(1) - rho"),
    "scalars of single precision": ("Real<double>{number}", "Real<double>{float(number)}"),
    "a NaN clipped away": ("grad < least ? least : grad", "least < grad ? grad : least"),
    "epsilon outside a root": ("sqrt(e.acc_delta + epsilon)", "(sqrt(e.acc_delta) + epsilon)"),
    "states exchanged": ("acc_grads.lane[k] = e.acc_grad", "acc_grads.lane[k] = e.acc_delta"),
    "rate of the first tensor": ("work(hyper, tensor.learning", "work(hyper, table->learning"),
    "half weight left": ("Pack<Half, width>::at(tensor.half, i) = halves;", ";"),
    "tail left out": ("packs * K::width + threadIdx.x; i < size", "size; i < size"),
    "last tile taken whole": ("left < TILE_ELEMENTS ? left : TILE_ELEMENTS", "TILE_ELEMENTS"),
    "next tile taken": ("(tile - tensor.first_tile)", "(tile + 1 - tensor.first_tile)"),
    "tensor before taken": ("first_tile <= tile", "first_tile < tile"),
    "packs taken twice": ("i < packs; i += THREADS", "i < packs; i += THREADS / 2"),
    "one tile a block": ("tile += gridDim.x", "tile += tiles"),
    "alignment unchecked": ("aligned<K>(tensor) ? size / K::width : 0", "size / K::width"),
    "alignment of a gradient unchecked": ("K::width>::fits(tensor.grad)", "1>::fits(tensor.grad)"),
    "alignment of a half unchecked": ("K::width>::fits(tensor.half)", "1>::fits(tensor.half)"),
}


def assert_all_is_right():
    """Put a few cases that tell each fault from the right kernel; first those with guard zones."""
    sizes = [0, 5, TILE, 0, 2 * TILE + 3]
    for kind, blocks in (("float32", 1000), ("mixed", 2)):
        for offsets in [(0, 0, 0, 0, 0), (0, 1, 0, 0, 0), (1, 0, 0, 0, 0)]:
            assert_written_once_and_nothing_else(kind, sizes, offsets, blocks)
    for dtype in DTYPES:
        assert_bits_of_the_cpu(cases.CASES["special-odd"], dtype)


def test_what_finds_the_faults_passes_the_right_kernel():
    """Else each fault would seem to be found."""
    assert_all_is_right()


def faulty_gpu(fault):
    """Simulate a GPU whose kernels have a fault."""
    old, new = FAULTS[fault]
    assert cuda.source().count(old) == 1

    def faulty(*, code, options):
        return host_cuda.RawModule(code=code.replace(old, new), options=options)

    return simulated_gpu(RawModule=faulty)


def test_a_misaligned_access_is_an_error():
    """A pack that does not begin where a pack may ends the kernel, as on a GPU."""
    with (
        faulty_gpu("alignment unchecked"),
        pytest.raises(host_cuda.MisalignedAddressError, match="MISALIGNED"),
    ):
        assert_written_once_and_nothing_else("float32", [9], (0, 1, 0, 0), 1)


SOME = ("states exchanged", "tail left out", "tensor before taken", "alignment of a half unchecked")


@pytest.mark.parametrize("fault", slow_but(FAULTS, *SOME))
def test_a_fault_is_found(fault):
    """Each mistake in the source makes a comparison fail, or an access misaligned."""
    with faulty_gpu(fault), pytest.raises((AssertionError, host_cuda.MisalignedAddressError)):
        assert_all_is_right()
