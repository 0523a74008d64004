"""A prepared step keeps the arrays alive whose addresses it has."""

from __future__ import annotations

import copy
import dataclasses
import gc
import itertools
import mmap
import pickle
import subprocess
import sys
import weakref
from multiprocessing import shared_memory

import numpy as np
import pytest
from conftest import assert_same_bits, random_arrays, simulated_gpu

from adadelta_cli import FusedStep
from adadelta_cli.kernels import cpu, cuda, layout
from adadelta_cli.update import Hyperparameters, Parameter

SHAPES = ((100_003,), (7,))


def prepared_on_simulated_gpu(monkeypatch):
    """Let `cuda.prepared_step` take NumPy arrays."""
    monkeypatch.setattr(layout, "CUDA", layout.HOST)
    monkeypatch.setattr(cuda, "_check_device", lambda _parameters: None)
    monkeypatch.setattr(cuda, "_launch", lambda *_: None)
    return cuda.prepared_step


@pytest.mark.parametrize("where", ["cpu", "cuda"])
@pytest.mark.parametrize("how", ["cleared", "an item replaced"])
def test_the_arrays_live_as_long_as_the_step(monkeypatch, where, how):
    """Whatever the caller does to the list of parameters; and no longer."""
    prepare = cpu.prepared_step if where == "cpu" else prepared_on_simulated_gpu(monkeypatch)
    parameters = [Parameter(*random_arrays(shape)) for shape in SHAPES]
    alive = [weakref.ref(array) for each in parameters for array in each.arrays]
    ones = [1.0] * len(SHAPES)
    with simulated_gpu():
        step = prepare(parameters, Hyperparameters().doubles, ones, ones)
    if how == "cleared":
        parameters.clear()
    else:
        parameters[:] = [Parameter(*random_arrays(shape, seed=1)) for shape in SHAPES]
    gc.collect()
    assert all(each() is not None for each in alive)
    del step
    gc.collect()
    assert all(each() is None for each in alive)


STEP_AFTER_CLEARING = """
import gc
import numpy as np
from adadelta_cli import FusedStep, Parameter

shape = 4_000_000  # so large that its memory goes back to the system at once
make = lambda: Parameter(*(np.full(shape, value, np.float32) for value in (1, 2, 3, 4)))
kept = make()
parameters, other = [make()], [kept]
views = [array[:] for array in parameters[0].arrays] if VIEWS else []
step = FusedStep(parameters)
FusedStep(other)()
parameters.clear()
gc.collect()
over = [np.full(shape, 7, np.float32) for _ in range(8)]
step()
assert all((each == 7).all() for each in over), "the step wrote into another's memory"
for got, wanted in zip(views, kept.arrays):
    assert got.tobytes() == wanted.tobytes()
print("whole")
"""


@pytest.mark.parametrize("views", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_step_after_the_list_was_cleared_is_no_use_after_free(views):
    """In a process of its own, which it may take down."""
    code = STEP_AFTER_CLEARING.replace("VIEWS", str(views))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0 and done.stdout == "whole\n", done.stderr


def array_of(base):
    """Make an array on a buffer; `np.ndarray` keeps a reference to it, and no view of it."""
    return np.ndarray((8,), np.float32, buffer=base)


def owner(_folder):
    """Make an array, and what frees its memory."""
    array = random_arrays(8)[0]
    return array, lambda: array.resize(1_000_000, refcheck=False)


def view(_folder):
    """Likewise, where the step has a view of the array."""
    array = random_arrays(32)[0]
    return array.reshape(4, 8)[1], lambda: array.resize(1_000_000, refcheck=False)


def growing(_folder):
    """A buffer that can grow."""
    buffer = bytearray(32)
    return array_of(buffer), lambda: buffer.extend(bytes(1_000_000))


def mapped(_folder):
    """Mapped memory."""
    memory = mmap.mmap(-1, 4096)
    return array_of(memory), memory.close


def file_mapped(folder):
    """A file as an array."""
    array = np.memmap(folder / "weights", np.float32, "w+", shape=(2, 8))
    return array[1], array._mmap.close


def shared(_folder):
    """Memory that processes share."""
    memory = shared_memory.SharedMemory(create=True, size=4096)
    memory.unlink()
    return array_of(memory.buf), memory.close


@pytest.mark.parametrize("make", [owner, view, growing, mapped, file_mapped, shared])
def test_memory_that_a_step_uses_cannot_be_freed(make, tmp_path):
    """Else it would write into memory of others, or crash; once it is gone, one may."""
    array, free = make(tmp_path)
    array[:] = 1
    step = FusedStep([Parameter(array, *random_arrays(8)[1:])])
    with pytest.raises((ValueError, BufferError)):
        free()
    step()
    assert (array != 1).any()
    del step, array
    free()


@pytest.mark.parametrize("where", ["cpu", "cuda"])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_keeps_addresses_is_not_copied(monkeypatch, where, copied):
    """A copy would write into the original's arrays."""
    prepare = cpu.prepared_step if where == "cpu" else prepared_on_simulated_gpu(monkeypatch)
    parameter = Parameter(*random_arrays(3))
    with simulated_gpu():
        step = prepare([parameter], Hyperparameters().doubles, [1.0], [0.0])
    for each in (step, layout.tensor_ref(parameter, 1.0, 0.0)):
        with pytest.raises(TypeError, match="keeps addresses"):
            copied(each)


# --- arrays that share memory ---------------------------------------------------------------------


def two_tensors(shared, first, second, shift):
    """Make two tensors; `first` of one and `second` of the other are `shift` elements apart."""
    memory = np.zeros(40, np.float32)
    tensors = [dict(zip(layout.NAMES, random_arrays(10, seed=k), strict=True)) for k in range(2)]
    tensors[0][first] = memory[10:20]
    tensors[0 if shared else 1][second] = memory[10 + shift : 20 + shift]
    return [Parameter(*each.values()) for each in tensors]


def names_of(*arrays):
    """Make a pattern of the two names, in any order."""
    one, other = (f"{name} of parameter {k}" for name, k in arrays)
    return f"({one} and {other})|({other} and {one})"


@pytest.mark.parametrize("shift", [0, 1, 9, -9])
@pytest.mark.parametrize("second", layout.NAMES)
@pytest.mark.parametrize("first", layout.NAMES)
def test_what_is_written_overlaps_nothing(first, second, shift):
    """Else the result depends on who comes first. Gradients are only read."""
    tensors = two_tensors(False, first, second, shift)
    if first == second == "gradient":
        FusedStep(tensors)
        return
    with pytest.raises(ValueError, match=names_of((first, 0), (second, 1))):
        FusedStep(tensors)
    if first != second:
        with pytest.raises(ValueError, match=names_of((first, 0), (second, 0))):
            FusedStep(two_tensors(True, first, second, shift))


@pytest.mark.parametrize("shift", [10, -10, 15])
def test_disjoint_views_of_one_array_are_allowed(shift):
    """Their bytes do not overlap, side by side or apart."""
    for first, second in itertools.product(layout.NAMES, repeat=2):
        FusedStep(two_tensors(False, first, second, shift))


def test_an_overlap_behind_a_longer_array_is_found():
    """Sorted by address, the two are no neighbours."""
    memory = np.zeros(100, np.float32)
    parameters = [Parameter(*random_arrays(10, seed=k)) for k in range(3)]
    long = Parameter(memory, *random_arrays(100)[1:])
    inside = [
        Parameter(p.weight, memory[k : k + 10], *p.arrays[2:]) for k, p in enumerate(parameters)
    ]
    late = Parameter(memory[90:], *random_arrays(10)[1:])
    with pytest.raises(ValueError, match="weight of parameter 0"):
        FusedStep([long, *inside])
    with pytest.raises(ValueError, match=names_of(("weight", 0), ("weight", 1))):
        FusedStep([long, late])


def test_a_master_and_its_weight_are_checked():
    """A float16 weight has the bytes of its dtype."""
    half, grad = (np.ones(8, np.float16) for _ in range(2))
    memory = np.zeros(24, np.float32)
    states = memory[:8], memory[8:16]
    FusedStep([Parameter(half, grad, *states, memory[16:])])
    with pytest.raises(ValueError, match=names_of(("acc_delta", 0), ("master", 0))):
        FusedStep([Parameter(half, grad, *states, memory[15:23])])
    with pytest.raises(ValueError, match=names_of(("weight", 0), ("master", 0))):
        FusedStep([Parameter(memory[20:].view(np.float16), grad, *states, memory[16:])])


def test_empty_tensors_share_nothing():
    """Wherever they are."""
    empty = Parameter(*random_arrays(10)[:1] * 4)
    FusedStep([Parameter(*(array[:0] for array in empty.arrays))] * 2)
    with pytest.raises(ValueError, match="share memory"):
        FusedStep([empty])


# --- arrays that no kernel takes ------------------------------------------------------------------

ONE = np.ones(4, np.float32)
UNALIGNED = np.frombuffer(bytearray(17), np.float32, offset=1)


class Interface:
    """What says that it is an array, and is none."""

    __array_interface__ = ONE.__array_interface__


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        *((array, ValueError) for array in (UNALIGNED, ONE[::-1], np.ones(8, np.float32)[::2])),
        *((array, ValueError) for array in (np.broadcast_to(ONE[0], 4), ONE.reshape(2, 2))),
        *((array, ValueError) for array in (ONE[:3], np.zeros(4, [("a", "f4"), ("b", "f4")])["a"])),
        *(
            (np.ones(4, dtype), TypeError)
            for dtype in (">f4", "f2", "f8", "g", "c8", "i4", "O", "?")
        ),
        (np.ma.masked_array(ONE, [True, False, True, False]), TypeError),
        *((wrong, TypeError) for wrong in (np.ndarray, Interface(), memoryview(ONE), [1.0] * 4)),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
@pytest.mark.parametrize("place", ["weight", "grad", "acc_grad", "acc_delta"])
def test_a_wrong_array_is_refused_by_its_parameter(place, wrong, error):
    """With its position, since a model may have many."""
    good = [Parameter(*random_arrays(4, seed=k)) for k in range(3)]
    good[1] = dataclasses.replace(good[1], **{place: wrong})
    with pytest.raises(error, match="parameter 1"):
        FusedStep(good)


@pytest.mark.parametrize("written", [True, False])
def test_what_is_only_read_may_be_read_only(written):
    """The gradient; all else is written."""
    arrays = dict(zip(("weight", "grad", "acc_grad", "acc_delta"), random_arrays(4), strict=True))
    for name, array in arrays.items():
        array.flags.writeable = name != ("acc_delta" if written else "grad")
    if written:
        with pytest.raises(ValueError, match="acc_delta of parameter 0 is read-only"):
            FusedStep([Parameter(**arrays)])
    else:
        FusedStep([Parameter(**arrays)])()


@pytest.mark.parametrize(
    "kind", [np.matrix, np.recarray, np.ndarray], ids=lambda kind: kind.__name__
)
def test_arrays_of_other_classes_are_taken(kind):
    """With the result of plain ones."""
    got, wanted = (Parameter(*random_arrays((2, 3))) for _ in range(2))
    FusedStep([Parameter(*(array.view(kind) for array in got.arrays))])()
    FusedStep([wanted])()
    assert_same_bits(got.arrays, wanted.arrays)


# --- rates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), "1", None, [1.0]])
@pytest.mark.parametrize("which", [0, 1])
def test_a_rate_that_is_no_finite_number_is_refused(which, wrong):
    """It would ruin the weights; the message names it."""
    numbers = [[1.0, 1.0], [0.0, 0.0]]
    numbers[which][1] = wrong
    parameters = [Parameter(*random_arrays(3, seed=k)) for k in range(2)]
    name = ("learning_rates", "weight_decays")[which]
    with pytest.raises(ValueError, match=rf"{name}\[1\] is"):
        cpu.prepared_step(parameters, Hyperparameters().doubles, *numbers)


def test_a_number_in_place_of_a_sequence_is_refused():
    """By its name, before Python says that it has no length."""
    parameters, common = [Parameter(*random_arrays(3))], Hyperparameters().doubles
    for wrong in ((parameters, common, 1.0, [0.0]), (parameters, common, [1.0], 0.0)):
        with pytest.raises(TypeError, match=r"is a float; expected a sequence"):
            cpu.prepared_step(*wrong)
    with pytest.raises(TypeError, match="parameters is a Parameter"):
        cpu.prepared_step(parameters[0], common, [1.0], [0.0])
    with pytest.raises(TypeError, match="a tensor is a list"):
        cpu.prepared_step([random_arrays(3)], common, [1.0], [0.0])
