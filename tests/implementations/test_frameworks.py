"""Other frameworks' AdaDelta agrees within its tolerance; a wrong one is detected."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import AWKWARD, NUMPY, assert_same_bits, plan_of, random_arrays

from adadelta_cli.bench import target
from adadelta_cli.bench.buffers import TensorSet
from adadelta_cli.bench.device import CpuDevice
from adadelta_cli.bench.timing_problem import Outcome
from adadelta_cli.bench.worker_pool import EntryKey, WorkerPool, WorkerSpec
from adadelta_cli.errors import ExitCode, UnavailableError
from adadelta_cli.implementations import array_backends, frameworks, registry
from adadelta_cli.implementations.array_backends import CPU
from adadelta_cli.implementations.base import StepInputs
from adadelta_cli.implementations.registry import PEERS, YARDSTICKS, ToleranceULP, timeable
from adadelta_cli.system import machine
from adadelta_cli.update import Hyperparameters, Parameter, update
from adadelta_cli.verification import case_check, cases, catalogue, execute, plan, tolerance
from adadelta_cli.verification.plan import VerifyPlan
from adadelta_cli.verification.report import verification_skips
from adadelta_cli.verification.runner import Verification

QUICK = ("torch", "torch-foreach", "optax")  # torch-compile takes 15 s for its first case
CASES = ("odd", "multipliers", "length-0", "special-odd", "subnormal", "overflow", "flushed")


def needs(name):
    """Skip where a peer is not installed, with what it lacks."""
    lack = frameworks.missing_requirement(PEERS[name])
    if lack:
        pytest.skip(f"{name}: {lack}")


def check(name, *names, dtypes=("float32", "float64"), **plan):
    """Verify a peer in its own process."""
    chosen = tuple(catalogue.select(names or CASES))
    work = Verification(plan_of((name,), chosen, dtypes=dtypes, **plan))
    work.execute()
    return work


@pytest.mark.peers
@pytest.mark.parametrize("name", QUICK)
def test_peers_are_within_their_bounds(name):
    """Each tensor of each case, in both dtypes, one step at a time; and their drift is reported."""
    needs(name)
    work = check(name)
    assert work.failures == []
    steps = [row for row in work.rows if row.check == "step" and row.passed]
    assert {row.allowed_ulp for row in steps if row.tensor == "weight"} == {
        PEERS[name].tolerance.weight
    }
    assert len(steps) == 2 * 3 * (len(CASES) - 1)
    assert {row.check for row in work.rows} == {"step", "gradient", "drift"}
    assert max(row.mismatches for row in steps) > 0  # so the bounds are needed


@pytest.mark.slow
def test_torch_compiled_is_within_the_bounds():
    """One case, for compiling takes long."""
    needs("torch-compile")
    work = check("torch-compile", "odd", dtypes=("float32",))
    assert work.failures == []
    assert [row.passed for row in work.rows if row.check == "step"] == [True] * 3


@pytest.mark.slow
def test_frameworks_and_builtin_steps_share_a_verification():
    """Each in the process of its group, in one run."""
    needs("torch")
    needs("optax")
    names = ("torch", "optax", "numpy-fused")
    work = Verification(plan_of(names, tuple(catalogue.select(("odd",))), dtypes=("float32",)))
    work.execute()
    assert work.failures == []
    assert {row.implementation for row in work.rows} == set(names)
    assert {row.backend for row in work.rows} == {"torch", "jax", "numpy"}


@pytest.mark.parametrize("name", PEERS)
def test_cases_that_a_peer_cannot_express_are_skipped_with_the_reason(name):
    """Found out without the library: nothing is imported for it."""
    peer = registry.implementation(name)
    reason = case_check.skip_reason(peer, cases.CASES["odd"], "float16")
    assert reason == f"{name} has no float16 with float32 masters"
    reason = case_check.skip_reason(peer, cases.CASES["flushed"], "float32")
    assert "no mode that flushes" in reason
    reason = case_check.skip_reason(peer, cases.CASES["learning_rate=-1.0"], "float32")
    assert reason == (
        "torch.optim.Adadelta takes no negative learning_rate" if "torch" in name else ""
    )


def test_compiling_is_for_a_few_cases_unless_they_are_named():
    """The reason says how to have them all."""
    peer = registry.implementation("torch-compile")
    skipped = [c for c in cases.DEFAULT if "--full" in case_check.skip_reason(peer, c, "float32")]
    assert len(skipped) > len(cases.DEFAULT) - 10
    case = cases.CASES["wd=0.03"]
    assert case_check.skip_reason(peer, case, "float32", named=True) == ""


@pytest.mark.parametrize("clip", [0.9, 0.0, None])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_preprocessed_gradient_does_what_the_options_do(dtype, clip):
    """In every bit: so only the framework itself is compared, not the preprocessing."""
    hyper = Hyperparameters(**{**AWKWARD, "clip_gradient": clip})
    arrays = random_arrays((1000,), dtype)
    arrays[1][:4] = [np.nan, np.inf, -np.inf, -0.0]
    wanted, got = (Parameter(*(array.copy() for array in arrays)) for _ in range(2))
    with np.errstate(all="ignore"):
        update(np, wanted, hyper.scalars(dtype), 0.7, 0.3)
        plain = Hyperparameters(0.7, hyper.rho, hyper.epsilon)
        inputs = StepInputs([wanted], replace(hyper, wd=0.3), [1.0], [1.0])
        grad = frameworks._preprocessed(inputs, 0, arrays[1], arrays[0])
        update(
            np,
            Parameter(got.weight, grad, got.acc_grad, got.acc_delta),
            plain.scalars(dtype),
            0.7,
            0.0,
        )
    assert_same_bits(
        [got.weight, got.acc_grad, got.acc_delta],
        [wanted.weight, wanted.acc_grad, wanted.acc_delta],
    )


# --- the comparison, by itself --------------------------------------------------------------------


TWO = ToleranceULP(2, 2, 2)


def verdicts(change, name="odd", allowed=TWO, dtype="float32"):
    """Compare the array update with itself, after `change` has spoiled the first step."""
    case = cases.CASES[name]
    reference = execute.step_through(NUMPY, case, dtype, 0)
    got = execute.step_through(NUMPY, case, dtype, 0, reference.tensors).tensors
    change({tensor: states[1] for tensor, states in got.items()})
    grads = tolerance.gradients(case, dtype, 0)
    found = tolerance.check_steps(case, grads, reference.tensors, got, allowed)
    return {verdict.tensor: verdict for verdict in found}


def test_steps_are_taken_from_the_references_states():
    """The array update compared with itself is equal in every bit, at all steps."""
    found = verdicts(lambda _: None)
    assert {verdict.note for verdict in found.values()} == {"equal in every bit"}
    assert all(verdict.passed and not verdict.difference.mismatches for verdict in found.values())


@pytest.mark.parametrize("tensor", ["weight", "acc_grad", "acc_delta"])
def test_an_error_is_measured_in_the_ulps_of_the_largest_operand(tensor):
    """Four such ULPs more than the reference are reported as four, and fail a bound of two."""

    def change(tensors):
        array = tensors[tensor]
        k = np.flatnonzero(abs(array) > 1e-3)[0]
        scale = array[k]
        if tensor == "weight":
            before = np.concatenate(
                [v.weight.ravel() for v in cases.CASES["odd"].start("float32", 0)]
            )
            k = int(abs(before).argmax())  # where the weight itself is the largest operand
            scale = before[k]
        array[k] += 4 * np.spacing(scale)

    verdict = verdicts(change)[tensor]
    assert not verdict.passed
    assert verdict.difference.scaled_ulp == pytest.approx(4, abs=0.51)
    assert "worst at step 1, element" in verdict.note


def test_an_error_of_acc_grad_within_its_bound_leaves_the_others_within_theirs():
    """What acc_grad may be off by is in the bounds of what is made of it."""
    case, dtype = cases.CASES["defaults"], "float64"
    reference = execute.step_through(NUMPY, case, dtype, 0)
    got = execute.step_through(NUMPY, case, dtype, 0, reference.tensors).tensors
    scalars = case.hyper.scalars(dtype)
    start, grad = case.start(dtype, 0)[6], case.grads(dtype, 0, 1)[6]
    size = grad.size  # the last tensor's
    acc_grad = got["acc_grad"][1][-size:]
    acc_grad += 7 * np.spacing(acc_grad)  # at most 14 units roundoff
    root = np.sqrt(start.acc_delta + scalars.epsilon) / np.sqrt(acc_grad + scalars.epsilon)
    delta = root * grad
    got["acc_delta"][1][-size:] = start.acc_delta * scalars.rho + (
        scalars.one_minus_rho * (delta * delta)
    )
    got["weight"][1][-size:] = start.weight - delta
    bounds = ToleranceULP(weight=8 + 2, acc_grad=16, acc_delta=16 + 2)
    grads = tolerance.gradients(case, dtype, 0)
    found = list(tolerance.check_steps(case, grads, reference.tensors, got, bounds))
    assert all(verdict.passed for verdict in found)
    assert max(verdict.difference.scaled_ulp for verdict in found) > 5


def test_overflow_is_excused_only_near_the_largest_number():
    """Infinity for a number that is far from it fails; near it, it is counted."""

    def change(tensors):
        decay = 0.013 * tensors["weight"].astype(np.float64)  # whose square comes near
        near = (decay**2 > 3e37) & np.isfinite(tensors["acc_grad"])
        tensors["acc_grad"][near] = np.inf

    found = verdicts(change, "overflow")
    assert "excused: another order" in found["acc_grad"].note
    assert found["acc_grad"].passed and found["acc_grad"].excused > 0

    def too_early(tensors):
        tensors["acc_grad"][np.flatnonzero(tensors["acc_grad"] > 1e30)] = np.inf

    assert not verdicts(too_early, "overflow")["acc_grad"].passed

    def far(tensors):
        tensors["acc_delta"][0] = np.inf

    assert not verdicts(far)["acc_delta"].passed


# --- what is not here -----------------------------------------------------------------------------


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    """--impl ends with 3, --peers lists it as skipped."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UnavailableError, match=r"--impl optax: .*pip install 'adadelta\[jax\]'"):
        plan.choose(("optax",), "numpy", CPU)
    with pytest.raises(UnavailableError, match=r"torch not installed.*'adadelta\[torch\]'"):
        array_backends.import_library("torch")
    here, absent = frameworks.available(PEERS.values())
    assert here == () and {each.name for each, _ in absent} == set(PEERS)
    work = Verification(VerifyPlan(here, (), absent=absent))
    work.execute()
    assert all(row.passed is None and "pip install" in row.note for row in work.rows)
    assert len(work.rows) == len(PEERS)
    assert work.exit_code is ExitCode.CHECK_FAILED
    lines = verification_skips(work)
    assert len(lines) == len(PEERS) + 1 and lines[-1].startswith("Nothing was compared: torch not")
    with pytest.raises(UnavailableError, match=r"--peers.*'adadelta\[jax\]'"):
        _ = plan.Request(peers=True).plan


def test_torch_compile_needs_a_compiler(monkeypatch):
    """Where there is none, that is what it lacks."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: True)
    monkeypatch.setattr(machine.shutil, "which", lambda _name: None)
    assert "C++ compiler" in frameworks.missing_requirement(PEERS["torch-compile"])
    assert frameworks.missing_requirement(PEERS["torch"]) == ""


def test_choosing_a_peer_imports_nothing():
    """Libraries that disturb each other are loaded in their own processes only."""
    program = (
        "import sys; from adadelta_cli.implementations import frameworks, registry; "
        "frameworks.available(registry.PEERS.values()); "
        "sys.exit(bool({'torch', 'jax', 'optax'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.peers
@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [*QUICK, *YARDSTICKS])
def test_what_bench_times_is_right(name, dtype, cold):
    """The optimizer's step on gradients as they are, within its bounds before it counts."""
    lack = frameworks.missing_requirement(timeable(name))
    if lack:
        pytest.skip(f"{name}: {lack}")
    chosen = timeable(name)
    with WorkerPool([WorkerSpec((chosen,))], threads=1) as pool:
        shapes = [[500_000], [3, 5], [1000]]
        pool.prepare((chosen,), shapes=shapes, dtype=dtype, seed=0, cold=cold)
        found = pool.sample(0.05, lambda _: False)
    assert pool.problems == {}
    assert np.isfinite(found[EntryKey("", name)]).any()


def test_an_adam_that_is_wrong_is_no_yardstick():
    """Its result is compared with the formula of the paper."""
    (tensors,) = TensorSet.allocate([(5000,)], "float32", 0)
    chosen = YARDSTICKS["torch-adam-fused"]
    for factor in (1.0, 1.001):

        def step(factor=factor):
            (p,) = tensors.parameters
            exact = Parameter(*(array.astype(np.float64) for array in p.arrays))
            frameworks.adam(exact)
            p.weight[...], p.acc_grad[...] = exact.weight, exact.acc_grad
            p.acc_delta[...] = exact.acc_delta * factor

        bound = target.BenchTarget(step, tensors.parameters, tensors, CpuDevice())
        problem = target.check_correct(chosen, bound)
        assert (problem and problem.outcome) == (Outcome.WRONG if factor > 1 else None)
