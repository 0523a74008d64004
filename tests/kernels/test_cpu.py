"""The one-pass kernels give the bits of the array update, whatever they are given.

The GPU's kernels are simulated on the host; what is its own is in test_cuda.py.
"""

from __future__ import annotations

import itertools
import threading

import numba
import numpy as np
import pytest
from conftest import AWKWARD, GOLDEN, KINDS, assert_same_bits, random_arrays, take_fused_step
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adadelta_cli.kernels import cpu, variants
from adadelta_cli.kernels.layout import layout_of, tensor_ref
from adadelta_cli.update import Hyperparameters, Parameter, update

SIZES = [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 1000, 4095, 4097, 100_003]


def unfused(parameters, hyper, rates, weight_decays):
    """Take the array update's step on copies; return all their arrays."""
    copies = [Parameter(*(array.copy() for array in p.arrays)) for p in parameters]
    with np.errstate(all="ignore"):
        for p, rate, decay in zip(copies, rates, weight_decays, strict=True):
            update(np, p, hyper.scalars(p.acc_grad.dtype), rate, decay)
    return [array for p in copies for array in p.arrays]


def assert_fused_is_unfused(fused_update, parameters, hyper, steps=1):
    """Compare after each step, each tensor with a rate and a decay of its own."""
    rates = [hyper.learning_rate * (1 + 0.1 * k) for k in range(len(parameters))]
    weight_decays = [hyper.wd * (1 + 0.2 * k) for k in range(len(parameters))]
    for _ in range(steps):
        wanted = unfused(parameters, hyper, rates, weight_decays)
        fused_update(parameters, hyper, rates, weight_decays)
        assert_same_bits([array for p in parameters for array in p.arrays], wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_many_tensors_of_mixed_size_in_one_launch(fused_update, kind):
    """Lengths around vectors, parts and the serial threshold, several steps, mixed multipliers."""
    parameters = [Parameter(*random_arrays(n, kind, seed=n)) for n in SIZES]
    assert_fused_is_unfused(fused_update, parameters, Hyperparameters(**AWKWARD), steps=5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_one_tensor_of_each_length(fused_update, kind, size):
    """A tensor alone, with default hyper-parameters: no clipping, no decay."""
    assert_fused_is_unfused(
        fused_update, [Parameter(*random_arrays(size, kind))], Hyperparameters(), steps=2
    )


def test_dtypes_mix_in_one_call(fused_update):
    """Tensors of all kinds are taken together."""
    parameters = [Parameter(*random_arrays(50, kind)) for kind in KINDS for _ in range(3)]
    assert_fused_is_unfused(fused_update, parameters, Hyperparameters(**AWKWARD), steps=2)


@pytest.mark.parametrize("clip", [None, 0.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_special_values(fused_update, kind, clip):
    """Infinities, NaNs, zeros of both signs, subnormals and the extremes, in all combinations."""
    storage, state, has_master = KINDS[kind]

    def specials(dtype):
        info = np.finfo(dtype)
        return np.array(
            [
                0.0,
                -0.0,
                1.0,
                -1.5,
                np.inf,
                -np.inf,
                np.nan,
                info.max,
                -info.max,
                info.tiny,
                -info.tiny,
                info.smallest_subnormal,
                -info.smallest_subnormal,
                info.tiny / 3,
            ],
            dtype,
        )

    grid = np.array(list(itertools.product(specials(storage), repeat=2)), storage)
    values = specials(state)
    states = np.array(list(itertools.product(np.abs(values), values)), state)
    weight, grad = (np.tile(column, len(states)) for column in grid.T)
    acc_grad, acc_delta = (np.repeat(column, len(grid)) for column in states.T)
    master = [weight.astype(state)] if has_master else []
    parameter = Parameter(weight, grad, acc_grad, acc_delta, *master)
    hyper = Hyperparameters(wd=0.01, rescale_grad=0.5, clip_gradient=clip)
    assert_fused_is_unfused(fused_update, [parameter], hyper, steps=3)


def floats(size):
    """Any float32 at all."""
    return hnp.arrays(np.float32, size, elements=st.floats(width=32))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data(), size=st.integers(0, 40))
def test_whatever_hypothesis_thinks_of(fused_update, data, size):
    """Arbitrary bits in all four arrays, arbitrary hyper-parameters."""
    hyper = Hyperparameters(
        learning_rate=data.draw(st.floats(-1e3, 1e3)),
        rho=data.draw(st.floats(0, 1, exclude_max=True)),
        epsilon=data.draw(st.floats(1e-30, 1e3)),
        wd=data.draw(st.floats(-10, 10)),
        rescale_grad=data.draw(st.floats(-1e3, 1e3)),
        clip_gradient=data.draw(st.none() | st.floats(0, 1e3)),
    )
    arrays = [data.draw(floats(size)) for _ in range(4)]
    assert_fused_is_unfused(fused_update, [Parameter(*arrays)], hyper)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_float64_follows_the_golden_trajectories(fused_update, case):
    """Ten fused steps in double stay within 1e-12 of those computed with 60 digits."""
    hyper = Hyperparameters(**case["hyper"])
    arrays = [np.array(case[name], np.float64) for name in ("weight", "acc_grad", "acc_delta")]
    for grad, wanted in zip(case["grads"], case["steps"], strict=True):
        parameter = Parameter(arrays[0], np.array(grad, np.float64), *arrays[1:])
        fused_update([parameter], hyper, [hyper.learning_rate], [hyper.wd])
        for array, name in zip(arrays, ("weight", "acc_grad", "acc_delta"), strict=True):
            np.testing.assert_allclose(array, np.array(wanted[name], float), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_no_variant_changes_a_bit(kind):
    """One thread or all, one part or a thousand, in blocks or not: the same bits."""
    hyper = Hyperparameters(**AWKWARD)
    results = []
    for parts, block in itertools.product((1, 2, 7, 1000), (0, 1, 64, 100, 256, 10**6)):
        parameters = [Parameter(*random_arrays(n, kind, seed=n)) for n in SIZES]
        operands = [tensor_ref(p, 0.7, 0.01) for p in parameters]
        cpu.prepared(operands, hyper.doubles, fixed=f"{parts}:{block}")()
        results.append([array for p in parameters for array in p.arrays])
    for result in results[1:]:
        assert_same_bits(result, results[0])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_written_outside_the_tensors(fused_update, kind):
    """Guard zones before and behind each buffer stay as they were, and so does the gradient."""
    size, zone = 10_003, 67
    arrays = random_arrays(size + 2 * zone, kind)
    before = [array.copy() for array in arrays]
    hyper = Hyperparameters(**AWKWARD)
    inner = Parameter(*(array[zone : zone + size] for array in arrays))
    with variants.override("9:64"):
        fused_update([inner], hyper, [0.7], [0.01])
    for array, old in zip(arrays, before, strict=True):
        assert_same_bits([array[:zone], array[zone + size :]], [old[:zone], old[zone + size :]])
    assert_same_bits([arrays[1]], [before[1]])


def test_any_alignment(fused_update):
    """Slices that begin at any element, each array at another, give the same bits."""
    hyper = Hyperparameters(**AWKWARD)
    base = random_arrays(500)
    for offsets in [(0, 1, 2, 3), (5, 0, 9, 1), (15, 14, 13, 12)]:
        room = [np.empty(600, np.float32) for _ in base]
        arrays = [space[offset : offset + 500] for space, offset in zip(room, offsets, strict=True)]
        for array, values in zip(arrays, base, strict=True):
            array[...] = values
        assert_fused_is_unfused(fused_update, [Parameter(*arrays)], hyper)


def test_subnormals_are_flushed_only_where_asked():
    """Strict by default; with flush_subnormals, tiny squares and operands count as zero."""
    tiny = np.float32(1e-20)  # its square is subnormal
    hyper = Hyperparameters()

    def acc_grad_after(*, flush, size=40_000):
        arrays = [np.full(size, value, np.float32) for value in (1, tiny, 0, 0)]
        cpu.prepared(
            [tensor_ref(Parameter(*arrays), 1.0, 0.0)], hyper.doubles, flush_subnormals=flush
        )()
        return arrays[2]

    strict, flushed = acc_grad_after(flush=False), acc_grad_after(flush=True)
    assert (strict > 0).all()
    assert (flushed == 0).all()
    assert np.float32(1e-40) * np.float32(0.5) > 0, "the calling thread's mode was put back"


def test_several_python_threads_at_once():
    """Concurrent calls on tensors of their own neither abort nor mix."""
    hyper = Hyperparameters(**AWKWARD)
    mine = [[Parameter(*random_arrays(20_000, seed=k))] for k in range(8)]
    wanted = [unfused(parameters, hyper, [0.7], [0.01]) for parameters in mine]
    threads = [
        threading.Thread(target=take_fused_step, args=(parameters, hyper, [0.7], [0.01]))
        for parameters in mine
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for parameters, arrays in zip(mine, wanted, strict=True):
        assert_same_bits(parameters[0].arrays, arrays)


def test_what_the_kernel_cannot_take_is_refused():
    """Another layout, shape or dtype raises before anything is written."""
    hyper = Hyperparameters()
    good = random_arrays((4, 6))
    for position, bad in enumerate(good):
        for wrong in (bad.T.copy().T, bad[:2], bad[:, ::2]):
            arrays = [*good[:position], wrong, *good[position + 1 :]]
            with pytest.raises(ValueError, match=r"C-contiguous|shape"):
                take_fused_step([Parameter(*arrays)], hyper, [1.0], [0.0])
    for wrong in (np.int32, np.complex64, np.float64):
        with pytest.raises(TypeError, match="float32 or float64 throughout"):
            take_fused_step([Parameter(good[0].astype(wrong), *good[1:])], hyper, [1.0], [0.0])
    frozen = [array.copy() for array in good]
    frozen[0].flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        take_fused_step([Parameter(*frozen)], hyper, [1.0], [0.0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_array_has_the_dtype_that_the_kernel_writes(kind):
    """An array of another dtype or byte order, be it the last, would be overrun or misread."""
    arrays = random_arrays(100, kind)
    for position, array in enumerate(arrays):
        for wrong in ("float16", "float32", "float64", "int32", array.dtype.newbyteorder()):
            changed = [*arrays[:position], array.astype(wrong), *arrays[position + 1 :]]
            if np.dtype(wrong) != array.dtype:
                with pytest.raises(TypeError, match=r"acc_delta.* are .*byte order"):
                    take_fused_step([Parameter(*changed)], Hyperparameters(), [1.0], [0.0])


def test_there_is_a_rate_and_a_decay_for_each_parameter():
    """Else some would be left as they were, and nobody would know."""
    parameters = [Parameter(*random_arrays(5)) for _ in range(2)]
    for rates, weight_decays in (([1.0], [0.0]), ([1.0] * 2, []), ([1.0] * 3, [0.0] * 3)):
        with pytest.raises(ValueError, match=r"2 parameters, . learning rates, . weight decays"):
            cpu.prepared_step(parameters, Hyperparameters().doubles, rates, weight_decays)


def test_one_array_is_not_both_states():
    """What is written twice in one pass has no defined value."""
    weight, grad, state, _ = random_arrays(5)
    with pytest.raises(ValueError, match=r"of parameter 0 and acc_.* share memory"):
        take_fused_step([Parameter(weight, grad, state, state)], Hyperparameters(), [1.0], [0.0])


def test_a_gradient_may_be_read_only(fused_update):
    """Only what is written has to be writable."""
    arrays = random_arrays(5)
    arrays[1].flags.writeable = False
    assert_fused_is_unfused(fused_update, [Parameter(*arrays)], Hyperparameters())


def test_no_multiplication_is_contracted():
    """The machine code is vectorised, and has no fused multiply-add: each operation rounds."""
    compiled = numba.njit(error_model="numpy", nogil=True)(cpu._update_slice.py_func)
    row, one = numba.float32[::1], numba.float32
    compiled.compile((row, row, row, row, numba.none, one, one, numba.types.UniTuple(one, 5)))
    (code,) = compiled.inspect_asm().values()
    assert "sqrtps" in code and "divps" in code
    assert not [line for line in code.splitlines() if "vfm" in line or "vfnm" in line]


@pytest.mark.parametrize("flush", [False, True])
def test_float16_is_converted_where_the_processor_cannot(flush):
    """Every float16 widened, and float32 around each of them rounded, as NumPy does."""
    halves = np.arange(2**16, dtype=np.uint16)
    values = halves.view(np.float16).astype(np.float32)
    with np.errstate(all="ignore"):
        ties = (values[:-1].astype(np.float64) + values[1:]).astype(np.float32) / np.float32(2)
        near = [np.nextafter(each, np.float32(e)) for each in (values, ties) for e in (-3e38, 3e38)]
        extremes = np.array([1e-45, 1e-40, 65519.9, 65520, 65536, 3e38, np.nan], np.float32)
        singles = np.concatenate([values, ties, *near, extremes, -extremes])
        rounded = singles.astype(np.float16)

    @numba.njit(error_model="numpy")
    def convert(halves, singles, mode):
        before = cpu.read_mxcsr()
        cpu.write_mxcsr(before | np.uint32(mode))
        widened = np.array([cpu.widened(each) for each in halves])
        narrowed = np.array([cpu.narrowed(each) for each in singles])
        cpu.write_mxcsr(before)
        return widened, narrowed

    mode = (cpu.FLUSH_TO_ZERO | cpu.DENORMALS_ARE_ZERO) * flush
    widened, narrowed = convert(halves, singles, mode)
    assert_same_bits([widened], [values])
    assert_same_bits([narrowed.view(np.float16)], [rounded])


@pytest.mark.parametrize("variant", ["1:0", "3:64"])
def test_the_callers_rounding_mode_changes_no_bit(variant):
    """Each thread has a mode of its own, and the pool's threads have the default one."""
    hyper = Hyperparameters(**AWKWARD)
    parameters = [Parameter(*random_arrays(100_003))]
    wanted = unfused(parameters, hyper, [0.7], [0.01])
    step = cpu.prepared([tensor_ref(parameters[0], 0.7, 0.01)], hyper.doubles, fixed=variant)

    @numba.njit
    def set_mode(mode):
        before = cpu.read_mxcsr()
        cpu.write_mxcsr(mode)
        return before

    before = set_mode(np.uint32(0x5F80))  # upward
    try:
        step()
        after = set_mode(np.uint32(0x1F80))
    finally:
        set_mode(np.uint32(before))
    assert after & 0x6000 == 0x4000, "the calling thread's mode was put back"
    assert_same_bits(parameters[0].arrays, wanted)


def test_without_decay_nothing_is_added():
    """As in PyTorch: no decay is no sum, so that 0 * infinity makes no NaN; else the bits agree."""
    results = []
    for decays in (True, False):
        rng = np.random.default_rng(5)
        arrays = [rng.random(5003, np.float32) for _ in range(4)]
        arrays[0][7] = -np.inf
        table = cpu.pack_table(
            [tensor_ref(Parameter(*arrays), 0.5, 0.0)], Hyperparameters().doubles
        )
        cpu.set_function(table, cpu.range_function(layout_of(*["float32"] * 4), decays=decays))
        cpu.launch(table)
        results.append(arrays)
    assert np.isnan(results[0][0][7])
    assert np.isneginf(results[1][0][7])
    for decayed, plain in zip(*results, strict=True):
        assert np.array_equal(np.delete(plain, 7), np.delete(decayed, 7))
