"""`verify` passes what is right, fails what is wrong, and says where."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import HAS_MXNET, HERE, plan_of

from adadelta_cli import update
from adadelta_cli.errors import ExitCode, UsageError
from adadelta_cli.implementations import registry
from adadelta_cli.implementations.array_backends import CPU
from adadelta_cli.system.sandbox import InProcess
from adadelta_cli.verification import catalogue, plan, report, rows
from adadelta_cli.verification.runner import Verification


def check(*names, case_names=("odd",), dtypes=("float32",), configs=(), **settings):
    """Verify in this process; return the verification."""
    chosen = tuple(catalogue.select(tuple(case_names))) if case_names else ()
    work = Verification(plan_of(names, chosen, configs, dtypes, **settings))
    work.execute(sandbox=InProcess())
    return work


def replace_step(monkeypatch, step):
    """Replace numpy-fused by a wrong implementation; `step` updates one parameter."""

    def bind(inputs):
        tensors = inputs.parameters, inputs.learning_rates, inputs.weight_decays

        def act():
            with np.errstate(all="ignore"):
                for each in zip(*tensors, strict=True):
                    step(each[0], inputs.hyper, *each[1:])

        return act

    wrong = replace(registry.IMPLEMENTATIONS["numpy-fused"], bind=bind)
    monkeypatch.setitem(registry.IMPLEMENTATIONS, "numpy-fused", wrong)


def right(p, hyper, rate, decay):
    """Take the step as it should be."""
    update.update(np, p, hyper.scalars(p.acc_grad.dtype), rate, decay)


def test_the_right_update_passes(monkeypatch):
    """Replacing the step raises no alarm by itself."""
    replace_step(monkeypatch, right)
    work = check("numpy-fused", case_names=("odd", "multipliers", "special", "lengths"))
    assert work.exit_code is ExitCode.OK
    assert {row.passed for row in work.rows} == {True}


def new_delta(p, hyper, rate, decay):
    """Accumulate twice."""
    right(p, hyper, rate, decay)
    p.acc_delta[...] *= np.float32(hyper.rho)


def swapped_rho(p, hyper, rate, decay):
    """Take 1 - rho for rho."""
    right(p, replace(hyper, rho=1 - hyper.rho), rate, decay)


def ignored_multipliers(p, hyper, rate, decay):  # noqa: ARG001
    """Take the rate of the optimizer for that of the tensor."""
    right(p, hyper, hyper.learning_rate, decay)


def spoiled_gradient(p, hyper, rate, decay):
    """Rescale in place, as stock MXNet does."""
    right(p, hyper, rate, decay)
    p.grad[...] *= np.float32(0.5)


def missing_tail(p, hyper, rate, decay):
    """Leave out what is beyond the last whole vector of 8."""
    whole = p.weight.size // 8 * 8
    parts = [array.reshape(-1)[:whole] for array in p.arrays]
    right(update.Parameter(*parts), hyper, rate, decay)


def one_ulp(p, hyper, rate, decay):
    """Be off by one unit in the last place of one element."""
    right(p, hyper, rate, decay)
    flat = p.acc_grad.reshape(-1)
    if flat.size > 500:
        flat[500] = np.nextafter(flat[500], np.float32(np.inf))


def no_wd(p, hyper, rate, decay):  # noqa: ARG001
    """Forget the decay."""
    right(p, hyper, rate, 0.0)


def flushed(p, hyper, rate, decay):
    """Flush subnormal accumulators to zero."""
    right(p, hyper, rate, decay)
    p.acc_grad[np.abs(p.acc_grad) < np.finfo(p.acc_grad.dtype).tiny] = 0


def positive_zero(p, hyper, rate, decay):
    """Lose the sign of zeros."""
    right(p, hyper, rate, decay)
    p.weight[...] += 0


MISTAKES = {
    new_delta: ("odd", "acc_delta"),
    swapped_rho: ("odd", "acc_grad"),
    ignored_multipliers: ("multipliers", "weight"),
    spoiled_gradient: ("defaults", "grad"),
    missing_tail: ("length-17", "weight"),
    one_ulp: ("odd", "acc_grad"),
    no_wd: ("wd=0.03", "weight"),
    flushed: ("subnormal", "acc_grad"),
    positive_zero: ("special", "weight"),
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_mistakes_are_caught(monkeypatch, mistake):
    """Each by the case that is meant for it, in the tensor where it shows, with a way to repeat."""
    case, tensor = MISTAKES[mistake]
    replace_step(monkeypatch, mistake)
    work = check("numpy-fused", case_names=(case,))
    assert work.exit_code is ExitCode.CHECK_FAILED
    (row,) = (row for row in work.failures if row.tensor == tensor)
    assert row.mismatches > 0
    assert row.replay == f"adadelta verify --case {case} --impl numpy-fused --dtype float32"
    (row,) = (row for row in check("numpy-fused", case_names=(case,), seed=7).failures[:1])
    assert row.replay.endswith(" --dtype float32 --seed 7")


def test_the_command_that_repeats_a_failure_asks_for_the_same(monkeypatch, tmp_path):
    """Whatever size and number of steps failed; a name is quoted where the shell needs it."""
    replace_step(monkeypatch, one_ulp)
    work = Verification(plan_of(("numpy-fused",), tuple(catalogue.select(sizes=(4_321,), steps=2))))
    work.execute(sandbox=InProcess())
    row = work.failures[0]
    assert row.replay.startswith("adadelta verify --case length-4321 --steps 2 --impl numpy-fused ")
    assert "--steps" not in replace(row, steps=3).replay, "3 is its own number"
    replayed = replace(row, check="replay", case=f"{tmp_path}/my file.npz", steps=7)
    assert f"--replay '{tmp_path}/my file.npz' --steps 7 --impl" in replayed.replay
    own = replace(row, implementation="my kernel.py:step")
    assert "--impl 'my kernel.py:step'" in own.replay
    fuzzed = replace(row, check="drawn", case="drawn:shapes=3", steps=1)
    assert "--case drawn:shapes=3 --impl" in fuzzed.replay
    steady = replace(row, case="steady:4099", steps=1)
    assert "--case steady --impl" in steady.replay
    whole = replace(row, check="drawn", case="drawn", steps=0)
    assert "--case drawn --impl" in whole.replay


def test_the_command_that_repeats_a_failure_has_the_options_of_the_run():
    """A time limit and threads always; --full where it takes more steps, or checks more of them."""
    plan = plan_of(("numpy-fused",), (), timeout=7.5, threads=2, full=True)
    chosen = plan.implementations[0]
    for check, full in (("step", False), ("oracle", True), ("training", True)):
        command = plan.row(check, "odd", chosen, "float32", 10).replay
        assert command.endswith(" --timeout 7.5 --threads 2") and ("--full" in command) is full
    assert (
        "--t" not in plan_of(("numpy-fused",), ()).row("step", "odd", chosen, "float32", 0).replay
    )


def test_the_first_mismatch_is_named_exactly(monkeypatch):
    """Step, element and both values, as hexadecimal floats."""
    replace_step(monkeypatch, one_ulp)
    failures = check("numpy-fused", case_names=("odd",)).failures
    (row,) = (row for row in failures if row.tensor == "acc_grad")
    match = re.fullmatch(
        r"first at step 1, element (\d+): got (\S+) \(\S+\), expected (\S+) .*", row.note
    )
    assert match
    got, wanted = (np.float32(float.fromhex(match[k])) for k in (2, 3))
    assert got == np.nextafter(wanted, np.float32(np.inf))
    assert row.mismatches > 0


def test_what_raises_is_a_failure_and_the_rest_goes_on(monkeypatch):
    """The row says what was raised; other cases are still checked."""

    def raises(p, *_):
        if p.weight.ndim == 0:
            raise RuntimeError("no dimensions!")

    replace_step(monkeypatch, raises)
    work = check("numpy-fused", case_names=("defaults", "length-0"))
    assert "no dimensions!" in work.rows[0].note and work.rows[0].passed is False
    assert all(row.passed for row in work.rows if row.case == "length-0")


@pytest.mark.skipif(not HAS_MXNET, reason="MXNet has no wheel for this platform")
def test_every_implementation_passes_a_few_cases():
    """All dtypes; stock is skipped, with the reason, where it cannot be."""
    names = ("odd", "flushed", "multipliers")
    work = check(*plan.DEFAULT, case_names=names, dtypes=plan.DTYPES)
    assert work.failures == []
    skipped = {row.note for row in work.rows if row.passed is None}
    assert "skipped: mxnet-stock has no float64" in skipped
    assert "skipped: NumPy does not flush subnormals" in skipped
    compared = [row for row in work.rows if row.case == "flushed" and row.passed]
    assert {row.implementation for row in compared} == {"mxnet-fused", "mxnet-stock"}


@pytest.mark.parametrize("config", ["rosenbrock", "mlp", "logistic_regression"])
def test_trainings_are_compared_at_every_recorded_step(config):
    """Weights and states of a training with the fused step are those with the unfused one."""
    settings = ["training.epochs=2"] if config == "mlp" else ["training.steps=60"]
    work = check("numpy-fused", case_names=(), configs=(config,), overrides=tuple(settings))
    assert {row.tensor for row in work.rows} == {"weight", "acc_grad", "acc_delta"}
    assert all(row.passed and row.steps > 0 and row.elements > row.steps // 60 for row in work.rows)
    (trace,) = work.traces
    assert trace.fused == trace.unfused and len(trace.fused) > 2


def test_a_training_that_drifts_fails(monkeypatch):
    """One ULP in one element, once, is seen."""
    replace_step(monkeypatch, one_ulp)
    work = check("numpy-fused", case_names=(), configs=("mlp",), overrides=("training.epochs=1",))
    assert {row.tensor for row in work.failures} >= {"acc_grad"}


def test_choosing_implementations():
    """By backend, or by name; an unknown name is a usage error that lists the known ones."""
    (chosen,) = plan.choose((), "numpy", CPU)
    assert chosen.name == "numpy-fused"
    with pytest.raises(UsageError, match=r"'nonesuch'.*known are .*numpy-fused"):
        plan.choose(("nonesuch",), "auto", CPU)


def test_nothing_compared_is_no_success():
    """A run in which every case was skipped ends with 1: an empty check must not pass in CI."""
    work = check("numpy-fused", case_names=("flushed",))
    assert work.failures == [] and work.exit_code is ExitCode.CHECK_FAILED


def test_summaries_add_up(monkeypatch):
    """Cases, skips, failures, elements and mismatches of the rows, by implementation and check."""
    replace_step(monkeypatch, no_wd)
    work = check("numpy-fused", case_names=("defaults", "wd=0.03", "flushed"))
    step, gradient = rows.summaries(work.rows)
    assert (step.cases, step.skipped, step.failed) == (3, 1, 1)
    assert step.mismatches == sum(row.mismatches for row in work.failures)
    assert (gradient.check, gradient.cases, gradient.failed) == ("gradient", 2, 0)


# --- the command ----------------------------------------------------------------------------------

COLUMNS = [
    "check",
    "case",
    "implementation",
    "reference",
    "backend",
    "ctx",
    "dtype",
    "tensor",
    "elements",
    "steps",
    "mismatches",
    "max_abs",
    "max_rel",
    "relative_l2",
    "p999_ulp",
    "max_ulp",
    "scaled_ulp",
    "allowed_ulp",
    "passed",
    "note",
    "seed",
    "excused",
    "subnormals",
]


def test_files_and_json(adadelta, tmp_path):
    """verify.csv has the contract's columns, verify.json the same rows; stdout is one document."""
    out = tmp_path / "deep" / "out"
    chosen = ("--case", "odd", "--backend", "numpy", "--dtype", "float64")
    code, printed, err = adadelta("verify", *chosen, "--json", "--out", out)
    assert code == 0, err
    document = json.loads(printed)
    assert document["passed"] is True and document["failures"] == []
    with (out / "verify.csv").open() as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == COLUMNS
    tensors = ["weight", "acc_grad", "acc_delta"]
    buffers = ["weight", "grad", *tensors[1:]]
    wanted = [*tensors, "grad", *buffers, *tensors, *tensors, *tensors]
    assert [row["tensor"] for row in rows] == wanted
    checks = ["step"] * 3 + ["gradient"] + ["guard"] * 4 + ["repeat"] * 3
    checks += ["oracle"] * 3 + ["drift"] * 3
    assert [row["check"] for row in rows] == checks
    assert {row["passed"] for row in rows} == {"true"} and rows[0]["mismatches"] == "0"
    assert rows[11]["reference"] == "oracle" and 0 < float(rows[11]["scaled_ulp"]) < 13.7
    assert len(json.loads((out / "verify.json").read_text())["rows"]) == 17
    assert (out / "verify.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_made_is_told_before_the_work(adadelta, tmp_path):
    """Exit code 4 at once, not after all of it."""
    (tmp_path / "file").write_text("")
    code, _, err = adadelta("verify", "--full", "--backend", "numpy", "--out", "file/out")
    assert code == 4 and "cannot be made" in err
    assert adadelta("verify", "--out", "")[0] == 2


def test_the_naive_engine_is_refused(adadelta, monkeypatch):
    """It makes the reference flush subnormals as well."""
    monkeypatch.setenv("MXNET_ENGINE_TYPE", "NaiveEngine")
    code, _, err = adadelta("verify", "--case", "odd", "--backend", "mxnet")
    assert code == 3
    assert "NaiveEngine" in err or not HAS_MXNET


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--impl", "nonesuch"], 2, "nonesuch"),
        (["--case", "nonesuch"], 2, "nonesuch"),
        (["--sizes", "many"], 2, "--sizes"),
        (["--steps", "0"], 2, "--steps"),
        (["nonesuch.yaml"], 2, "nonesuch.yaml"),
        (["--ctx", "gpu", "--peers"], 2, "leave out --ctx"),
        (["--ctx", "gpu", "--self-test"], 2, "--self-test"),
        (["--ctx", "gpu", "--impl", "numpy"], 2, "cupy-fused"),
        (["--ctx", "gpu", "--backend", "numpy"], 2, "--backend auto, mxnet or cupy"),
        (["--ctx", "tpu"], 2, "gpu:N"),
        (["--backend", "cupy"], 2, "take --ctx gpu"),
        (["--timeout", "0"], 2, "--timeout"),
        (["--case", "odd", "--sizes", "5"], 2, "--case and --sizes"),
    ],
)
def test_wrong_usage_has_an_answer(adadelta, args, code, words):
    """One `Error:` line, the documented exit code, no traceback, nothing written."""
    got, printed, err = adadelta("verify", *args, "--out", "out")
    assert got == code, err
    assert err.startswith("Error: ") and words in err
    assert "Traceback" not in err and printed == ""
    assert not Path("out").exists()


SOME_CASES = 300  # calls, of the first cases
COUNTING = """
import numpy_kernel
from pathlib import Path

def step(*arrays, **settings):
    with Path("calls").open("a") as file:
        file.write("x")
    return numpy_kernel.step(*arrays, **settings)
"""


@pytest.mark.slow
def test_an_interrupt_leaves_whole_files(tmp_path):
    """Ctrl-C ends with 130, and the rows that were finished are on disk."""
    (tmp_path / "kernel.py").write_text(COUNTING)
    calls = tmp_path / "calls"
    calls.touch()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "adadelta_cli",
            "verify",
            "--impl",
            "kernel.py:step",
            "--out",
            "out",
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(HERE.parent / "examples")},
    )
    while calls.stat().st_size < SOME_CASES:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err and "Traceback" not in err
    with (tmp_path / "out" / "verify.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["passed"] for row in rows} <= {"true", ""}
    assert rows
    json.loads((tmp_path / "out" / "verify.json").read_text())
    assert not list((tmp_path / "out").glob(".*"))


def test_a_failure_is_told_with_its_command(monkeypatch):
    """The text names case, tensor and count, and the command that repeats it."""
    replace_step(monkeypatch, one_ulp)
    work = check("numpy-fused", case_names=("odd",))
    text, more = report.verification_failures(work, most=1)
    assert text.startswith("FAILED step odd float32 numpy-fused weight:")
    assert more == f"... and {len(work.failures) - 1} more, in verify.csv"
    assert "repeat it: adadelta verify --case odd --impl numpy-fused --dtype float32" in text


@pytest.mark.slow
@pytest.mark.skipif(not HAS_MXNET, reason="MXNet has no wheel for this platform")
def test_both_subnormal_modes_with_several_openmp_threads(tmp_path):
    """MXNet's OpenMP threads keep the mode they were born in, so each mode has its own process."""
    command = [sys.executable, "-m", "adadelta_cli", "verify", "--threads", "2", "--impl"]
    cases = ("--case", "subnormal", "--case", "flushed", "--dtype", "float32", "--seed", "1")
    environment = {k: v for k, v in os.environ.items() if k != "MXNET_OMP_MAX_THREADS"}
    done = subprocess.run(
        [*command, "mxnet-fused", *cases, "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
