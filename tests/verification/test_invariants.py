"""The invariants of a step, whatever it computes: guard, repeat, saved."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from conftest import HAS_MXNET, needs_mxnet, plan_of
from hypothesis import given
from hypothesis import strategies as st

import adadelta_cli
from adadelta_cli.implementations import guard, registry, user_kernel
from adadelta_cli.kernels import variants
from adadelta_cli.system.sandbox import InProcess
from adadelta_cli.verification import catalogue, report
from adadelta_cli.verification.plan import VerifyPlan
from adadelta_cli.verification.runner import Verification

BUILTIN = ("numpy", "numpy-fused", *(("mxnet", "mxnet-fused") if HAS_MXNET else ()))


def rows(name, case="length-4097", dtypes=("float32",)):
    """Verify in this process; return the rows by check and tensor."""
    chosen = tuple(catalogue.select((case,)))
    work = Verification(plan_of((name,), chosen, dtypes=dtypes, invariant_cases=frozenset({case})))
    work.execute(sandbox=InProcess())
    return {(row.check, row.tensor): row for row in work.rows}


def replace_step(monkeypatch, name, spoil):
    """Call `spoil(parameters)` after each step of an implementation."""
    sound = registry.IMPLEMENTATIONS[name]

    def bind(inputs):
        step = sound.bind(inputs)

        def spoiled():
            step()
            spoil(inputs.parameters)

        return spoiled

    monkeypatch.setitem(registry.IMPLEMENTATIONS, name, replace(sound, bind=bind))


@pytest.mark.parametrize("name", BUILTIN)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_builtin_implementations_keep_the_invariants(name, dtype):
    """No alarm, in any dtype, and each check was made."""
    found = rows(name, "multipliers", (dtype,))
    assert all(row.passed for row in found.values())
    tensors = {"weight", "acc_grad", "acc_delta"} | ({"master"} if dtype == "float16" else set())
    assert {tensor for check, tensor in found if check == "repeat"} == tensors
    assert {tensor for check, tensor in found if check == "guard"} == tensors | {"grad"}
    assert {t for check, t in found if check == "saved"} == (tensors if "mx" in name else set())
    assert all(row.elements > 0 for row in found.values())


def address(array):
    """Return where an array of NumPy or MXNet lies."""
    if isinstance(array, np.ndarray):
        return array.ctypes.data
    pointer = ctypes.c_void_p()
    from mxnet.base import _LIB, check_call

    check_call(_LIB.MXNDArrayGetData(array.handle, ctypes.byref(pointer)))
    return pointer.value


@pytest.mark.parametrize("name", BUILTIN)
@pytest.mark.parametrize("where", [-4, 4097 * 4])
def test_a_write_outside_is_seen(monkeypatch, name, where):
    """Before the start of acc_delta, or after its end, on arrays of NumPy and of MXNet."""
    replace_step(
        monkeypatch, name, lambda ps: ctypes.memset(address(ps[0].acc_delta) + where, 0, 4)
    )
    row = rows(name)["guard", "acc_delta"]
    assert row.passed is False and row.mismatches == 1
    side = "before its start" if where < 0 else "after its end"
    assert f"wrote outside acc_delta of shape [4097]: 4 bytes {side}" in row.note
    assert rows(name)["guard", "weight"].passed


def drift(parameters):
    """Differ from run to run."""
    drift.runs += 1
    parameters[0].weight[5] = drift.runs


def misaligned(parameters):
    """Treat the elements before the first whole vector apart."""
    if address(parameters[0].weight) % 16:
        parameters[0].weight[0] = 1.0


@pytest.mark.parametrize("name", BUILTIN)
@pytest.mark.parametrize(("spoil", "about"), [(drift, "again: "), (misaligned, "off alignment: ")])
def test_what_does_not_repeat_is_seen(monkeypatch, name, spoil, about):
    """From run to run, and where the memory is aligned otherwise; the note says which."""
    drift.runs = 0
    replace_step(monkeypatch, name, spoil)
    row = rows(name)["repeat", "weight"]
    assert row.passed is False and row.mismatches > 0
    assert about in row.note and "first at step 1, element" in row.note
    assert row.replay == f"adadelta verify --case length-4097 --impl {name} --dtype float32"


@pytest.mark.parametrize("name", [name for name in BUILTIN if "fused" in name])
def test_what_depends_on_the_cuts_is_seen(monkeypatch, name):
    """A last element of each part that is skipped shows in other cuttings."""

    def skip(parameters):
        parts, _ = variants.unpacked(variants.current())
        parameters[0].acc_grad[4096 // max(1, parts)] = 0.0

    replace_step(monkeypatch, name, skip)
    row = rows(name)["repeat", "acc_grad"]
    assert row.passed is False and "cut" in row.note


@needs_mxnet
@pytest.mark.parametrize("name", ["mxnet", "mxnet-fused"])
@pytest.mark.parametrize("lost", ["rho", "states"])
def test_a_lost_state_is_seen(monkeypatch, name, lost):
    """A hyper-parameter or an accumulator that does not come back changes the bits."""
    import mxnet as mx

    from adadelta_cli.mxnet_bridge.optimizer import AdaDelta

    if lost == "rho":
        restored = AdaDelta.__setstate__

        def forgets_rho(self, state):
            restored(self, state)
            self.rho = 0.5

        monkeypatch.setattr(AdaDelta, "__setstate__", forgets_rho)
    else:
        sound = mx.optimizer.Updater.set_states

        def forgetful(self, content):
            sound(self, content)
            self.states = {}

        monkeypatch.setattr(mx.optimizer.Updater, "set_states", forgetful)
    assert rows(name)["saved", "acc_grad"].passed is False
    assert rows(name)["repeat", "acc_grad"].passed is True


def test_a_users_kernel_that_leaves_an_element_unwritten_is_seen():
    """A new array's unwritten element holds poison, and not by luck what an earlier array had."""

    def step(weight, grad, acc_grad, acc_delta, **hyper):
        new = np.empty_like(acc_grad)
        new[1:] = acc_grad[1:] * hyper["rho"] + (1 - hyper["rho"]) * grad[1:] ** 2
        return weight, new, acc_delta

    failed = [row for row in adadelta_cli.verify(step, cases=["length-17"]) if row.passed is False]
    assert "acc_grad" in {row.tensor for row in failed}


def test_a_users_kernel_that_does_not_repeat_is_seen():
    """Within the bounds, and yet another number each time: a failure of its own."""
    calls = iter(range(1000))

    def step(weight, grad, acc_grad, acc_delta, **hyper):
        sound(weight, grad, acc_grad, acc_delta, **hyper)
        if weight.size > 3 and next(calls) % 2:
            weight[3] = np.nextafter(weight[3], np.float32(np.inf))

    from examples.numpy_kernel import step as sound

    found = adadelta_cli.verify(step, cases=["length-4097"], dtypes=["float32"])
    assert {row.check for row in found if row.passed is False} == {"repeat"}
    assert not [row for row in adadelta_cli.verify(sound, cases=["odd"]) if row.passed is False]


@given(st.integers(0, 40), st.integers(0, 7), st.sampled_from(["float16", "float32", "float64"]))
def test_guarded_arrays_lie_where_they_should(size, shift, dtype):
    """So many elements behind a multiple of 64 bytes, the values copied, zones untouched."""
    values = np.arange(size, dtype=dtype)
    made = guard.Guarded(values, shift)
    assert made.array.ctypes.data % 64 == shift * values.itemsize % 64 or not size
    assert made.array.tolist() == values.tolist() and made.written_outside() == ""


def test_a_fixed_variant_is_undone():
    """Even where the work raises."""
    before = variants.current()
    with pytest.raises(ZeroDivisionError), variants.override("7:64"):
        _ = variants.unpacked(variants.current()) == (7, 64) and 1 / 0
    assert variants.current() == before


def test_the_picture_shows_errors_and_drift():
    """Of a kernel of one's own: a panel of errors with bounds, and one of the drift by step."""
    from examples.numpy_kernel import step

    kernel = user_kernel.from_function(step)
    plan = VerifyPlan((kernel,), tuple(catalogue.select(("odd", "defaults"))), dtypes=("float32",))
    work = Verification(plan)
    work.execute(sandbox=InProcess())
    assert {(len(each.relative_l2), each.case) for each in work.drifts} == {
        (10, "odd"),
        (5, "defaults"),
    }
    titles = [axes.get_title() for axes in report.verification_figure(work).get_axes()]
    assert len(titles) == 3
    largest = max(work.drifts, key=lambda drift: max(drift.relative_l2)).case
    assert "largest error of one step against numpy" in titles[1] and f": {largest}," in titles[2]
