"""What is asked of MXNet about arrays: a failed answer is not used."""

from __future__ import annotations

import ctypes
import threading

import numpy as np
import pytest

pytest.importorskip("mxnet")

from adadelta_cli.kernels import cpu
from adadelta_cli.mxnet_bridge import ndarray_table
from adadelta_cli.mxnet_bridge.fused import FusedMxnetStep
from adadelta_cli.mxnet_bridge.states import mx

FAILED = -1


def functions_that_fail_at(place, called):
    """Make C functions in place of MXNet's, of which one fails; they note that they were called."""
    word = ctypes.c_uint64
    shape = (ctypes.c_int64 * 1)(7)

    def make(number):
        def answer(_handle, first, second=0):
            called.append(number)
            if number == place:
                return FAILED
            if number == 2:
                ctypes.c_int32.from_address(first).value = ndarray_table.CPUS[0]
            elif number == 3:
                ctypes.c_int32.from_address(first).value = 1
                word.from_address(second).value = ctypes.addressof(shape)
            else:
                ctypes.c_int32.from_address(first).value = 0
            return 0

        arguments = [word] * (3 if number in {2, 3} else 2)
        return ctypes.CFUNCTYPE(ctypes.c_int32, *arguments)(answer)

    kept = [make(number) for number in range(len(ndarray_table.FUNCTIONS))]
    addresses = [ctypes.cast(each, ctypes.c_void_p).value for each in kept]
    return kept, np.array(addresses, np.uint64)


@pytest.mark.parametrize("place", range(len(ndarray_table.FUNCTIONS)))
def test_a_query_ends_at_the_first_call_that_fails(place):
    """What the call should have written, a pointer for instance, was not written."""
    called = []
    _kept, functions = functions_that_fail_at(place, called)
    handles, layouts = np.ones((2, 5), np.uint64), np.zeros(2, np.int64)
    code = ndarray_table.query(functions, handles, layouts, cpu.empty_table(2))
    assert code == FAILED
    assert called == list(range(place + 1))


def test_a_query_of_answers_without_failure_asks_all():
    """Of every array of every tensor."""
    called = []
    _kept, functions = functions_that_fail_at(None, called)
    handles, layouts = np.ones((2, 5), np.uint64), np.zeros(2, np.int64)
    assert ndarray_table.query(functions, handles, layouts, cpu.empty_table(2)) == 0
    assert called == list(range(5)) * 10


def test_a_failed_query_takes_no_step():
    """And returns MXNet's code."""
    _kept, functions = functions_that_fail_at(3, [])
    handles = np.ones((1, 5), np.uint64)
    assert ndarray_table.step(functions, handles, cpu.empty_table(1), 0) == FAILED


def test_the_table_of_a_step_is_read_under_the_lock(monkeypatch):
    """A step of another thread would write it meanwhile."""
    arrays = [mx.np.ones(3) for _ in range(4)]
    step = FusedMxnetStep([arrays])
    lock, held = threading.Lock(), []
    inspect = step._inspect
    monkeypatch.setattr(cpu, "launching", lock)
    monkeypatch.setattr(step, "_inspect", lambda: held.append(lock.locked()) or inspect())
    (ref,) = step.refs()
    assert held == [True] and not lock.locked()
    assert ref.size == 3
