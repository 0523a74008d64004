"""No kernel decides by its own results what it is compared with: garbage fails, wherever it is."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import needs_mxnet, slow_but

import adadelta_cli
from adadelta_cli.errors import ExitCode, UsageError
from adadelta_cli.implementations import user_kernel
from adadelta_cli.implementations.base import ToleranceULP
from adadelta_cli.system.sandbox import InProcess
from adadelta_cli.update import Hyperparameters, Parameter, update
from adadelta_cli.verification import cases, runner
from adadelta_cli.verification.plan import Request
from adadelta_cli.verification.runner import Verification

KERNEL = """
import numpy as np
from adadelta_cli.update import Hyperparameters, Parameter, update

def step(weight, grad, acc_grad, acc_delta, **settings):
    before = weight.copy(), grad.copy(), acc_grad.copy(), acc_delta.copy()
    with np.errstate(all="ignore"):
        scalars = Hyperparameters(**settings).scalars(weight.dtype)
        update(np, Parameter(weight, grad, acc_grad, acc_delta), scalars,
               settings["learning_rate"], settings["wd"])
        results = {"weight": weight, "acc_grad": acc_grad, "acc_delta": acc_delta}
        wrong(before, results)
"""


def where(condition, values, names=("weight", "acc_grad", "acc_delta")):
    """Write a fault: these values in these tensors, where the condition holds."""
    lines = [f"    at = np.broadcast_to({condition}, weight.shape)"]
    lines += [f"    results[{n!r}][at] = {v}" for n, v in zip(names, values, strict=True)]
    return "\n".join(
        ["def wrong(before, results):", "    weight, grad, acc_grad, acc_delta = before", *lines]
    )


FINITE = "np.isfinite(weight) & np.isfinite(grad) & np.isfinite(acc_grad) & np.isfinite(acc_delta)"
GARBAGE, NAN, INFINITE = ("1e9", "-1", "12345"), ("np.nan",) * 3, ("np.inf",) * 3
FAULTS = {
    "garbage": where("True", GARBAGE),
    "nan": where("True", NAN),
    "infinity": where("True", INFINITE),
    "garbage-where-finite": where(FINITE, GARBAGE),
    "nan-where-finite": where(FINITE, NAN),
    "infinity-where-finite": where(FINITE, INFINITE),
    "nan-for-some-gradients": where("(abs(grad) > 0.01) & (abs(grad) < 0.02)", NAN),
    "garbage-for-some-gradients": where("(abs(grad) > 0.01) & (abs(grad) < 0.02)", GARBAGE),
    "nan-for-large-gradients": where("(abs(grad) > 1e20) & (abs(grad) < 1e21)", NAN),
    "negative-acc-grad": where("True", ["-abs(results['acc_grad']) - 1"], ["acc_grad"]),
    "negative-acc-delta": where("True", ["-abs(results['acc_delta']) - 1"], ["acc_delta"]),
    "nan-acc-grad": where("True", ["np.nan"], ["acc_grad"]),
    "negative-zero-point": where("acc_grad > 0", ["-acc_grad[at]"], ["acc_grad"]),
    "garbage-for-huge-gradients": where(
        "np.isfinite(acc_grad) & np.isfinite(grad) & (abs(grad) > 1e26) & (acc_delta >= 0) "
        "& (acc_delta < 1e4)",
        ["-7.5", "-1"],
        ["weight", "acc_delta"],
    ),
    "negative-infinity": where("abs(grad) > 1e27", ["-np.inf"], ["acc_grad"]),
    "garbage-where-the-weight-is-zero": where(
        "(weight == 0) & (abs(grad) > 1e-3) & (abs(grad) < 0.9)", GARBAGE
    ),
    "nan-weight-where-acc-grad-is-wrong": where("True", ["-1", "np.nan"], ["acc_grad", "weight"]),
}


def write(folder, fault):
    """Write a kernel with a fault; return its name."""
    path = folder / "kernel.py"
    path.write_text(f"{KERNEL}\n\n{fault}\n")
    return f"{path}:step"


def process(*args, cwd):
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "adadelta_cli", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=cwd,
    )


def load(folder, fault):
    """Load a kernel with a fault into this process."""
    scope: dict = {}
    exec(write(folder, fault) and (folder / "kernel.py").read_text(), scope)  # noqa: S102
    return scope["step"]


EVERYWHERE = (
    "garbage",
    "nan",
    "infinity",
    "garbage-where-finite",
    "nan-where-finite",
    "infinity-where-finite",
    "negative-acc-grad",
    "nan-acc-grad",
)
CASES = ("odd", "fresh", "special", "overflow", "subnormal", "length-17")


ALIKE = {"nan", "infinity", "nan-acc-grad", "negative-acc-delta", "nan-for-large-gradients"}
ALIKE |= {"garbage-where-finite", "infinity-where-finite", "garbage-for-some-gradients"}


@pytest.mark.parametrize("fault", slow_but(FAULTS, *(FAULTS.keys() - ALIKE)))
def test_garbage_fails_in_python(tmp_path, fault):
    """Some row of these cases fails; none raises."""
    rows = adadelta_cli.verify(load(tmp_path, FAULTS[fault]), cases=CASES, dtypes=["float32"])
    assert any(row.passed is False for row in rows if row.check == "step")
    if fault in EVERYWHERE:  # then in each case, those at the ends of the range too
        assert {row.case for row in rows if row.passed is False} == set(CASES)
        assert any(row.passed is False for row in rows if row.check == "drift")


HUGE = "(abs(weight) > 1e29) & np.isfinite(acc_grad) & (acc_delta >= 0) & (acc_delta < 1e4)"


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        ("acc_delta", "-1"),
        ("acc_delta", "1e3"),
        ("weight", "-7.5"),
        ("acc_grad", "-np.inf"),
        ("acc_grad", "7"),
        ("acc_grad", "np.nan"),
        ("acc_delta", "-np.inf"),
    ],
)
def test_what_no_order_makes_fails_where_some_overflow(tmp_path, tensor, value):
    """In the case that allows most excuses, and in fewer results than it allows."""
    kernel = load(tmp_path, where(HUGE, [value], [tensor]))
    rows = adadelta_cli.verify(kernel, cases=["overflow"], dtypes=["float32"])
    failed = [row for row in rows if row.passed is False and row.check == "step"]
    assert [row.tensor for row in failed] == [tensor]
    assert "more than the" not in failed[0].note


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["garbage", "nan", "infinity", "garbage-where-finite"])
def test_garbage_fails_before_the_oracle(tmp_path, fault):
    """Its steps are compared from the reference's inputs, within a bound."""
    name = write(tmp_path, FAULTS[fault])
    done = process("verify", "--impl", name, "--case", "odd", "--dtype", "float64", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    with (tmp_path / "results/verify/verify.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["check"] == "oracle"]
    assert len(rows) == 3 and {row["passed"] for row in rows} == {"false"}
    assert all(row["allowed_ulp"] for row in rows)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Record the gradients of a short training."""
    folder = tmp_path_factory.mktemp("recording")
    settings = ("--record-gradients", "gradients.npz", "--set", "training.steps=5")
    done = process("run", "rosenbrock", "--backend", "numpy", *settings, cwd=folder)
    assert (folder / "gradients.npz").exists(), done.stderr
    return folder / "gradients.npz"


CHOSEN = {
    "--case odd": {"case_names": ("odd",)},
    "--case special": {"case_names": ("special",)},
    "--case drawn": {"case_names": ("drawn",)},
    "--case drawn:...": {"case_names": ("drawn:shapes=17,steps=2",)},
    "--sizes": {"sizes": (1000,)},
    "--replay": {},
}


@pytest.mark.parametrize("chosen", CHOSEN)
@pytest.mark.parametrize(
    "fault",
    ["garbage", *(pytest.param(each, marks=pytest.mark.slow) for each in ("nan", "infinity"))],
)
def test_garbage_fails_through_every_way_to_choose_cases(tmp_path, recording, chosen, fault):
    """The exit code is 1."""
    how = CHOSEN[chosen] | ({"replay": recording} if chosen == "--replay" else {})
    name = write(tmp_path, FAULTS[fault])
    plan = Request(names=(name,), dtypes=("float32",), backend="numpy", **how).plan
    work = Verification(replace(plan, configs=()))
    work.execute(sandbox=InProcess())
    assert work.exit_code is ExitCode.CHECK_FAILED
    assert {row.check for row in work.failures} & {"step", "drawn", "replay"}


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["--case odd", "--replay gradients.npz"])
def test_the_command_fails_on_garbage(tmp_path, recording, chosen):
    """And says so."""
    shutil.copy(recording, tmp_path / "gradients.npz")
    name = write(tmp_path, FAULTS["garbage"])
    done = process("verify", "--impl", name, *chosen.split(), cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["garbage", "nan-where-finite", "negative-acc-grad"])
def test_garbage_is_not_timed(tmp_path, fault):
    """`bench` ends with 1, and the row has no time."""
    name = write(tmp_path, FAULTS[fault])
    done = process(
        "bench",
        "--sizes",
        "1e4",
        "--impl",
        name,
        "--processes",
        "1",
        "--max-time",
        "0.2",
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert row["median_s"] is None and row["note"].startswith("wrong: ")


MATRICES = where("(weight.ndim == 2) & (weight.size > 2000)", GARBAGE)
MISALIGNED = """
def wrong(before, results):
    ends = {each.ctypes.data % 64 for each in results.values()}
    results["weight"][...] += len(ends) > 1
"""
TAIL = """
def wrong(before, results):
    results["weight"].reshape(-1)[-9:] = 1e9
"""


@pytest.mark.parametrize("fault", [MATRICES, MISALIGNED], ids=["matrices", "misaligned"])
def test_shapes_and_alignments_are_those_of_real_tensors(tmp_path, fault):
    """Large matrices, and arrays that are not aligned alike."""
    kernel, case = load(tmp_path, fault), "drawn:lengths" if fault == MATRICES else "odd"
    rows = adadelta_cli.verify(kernel, cases=[case], dtypes=["float32"])
    assert any(row.passed is False for row in rows)


@pytest.mark.slow
def test_the_ends_of_a_tensor_are_compared_before_it_is_timed(tmp_path):
    """All of them, though of a large tensor only some elements between."""
    name = write(tmp_path, TAIL)
    done = process(
        "bench",
        "--sizes",
        "1e5",
        "--impl",
        name,
        "--processes",
        "1",
        "--max-time",
        "0.2",
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stdout + done.stderr


def test_a_kernel_that_returns_new_arrays_leaves_its_inputs_alone():
    """What it returns may be its inputs, updated; nothing else may be written there."""

    def ruins(weight, grad, acc_grad, acc_delta, **settings):
        new = [each.copy() for each in (weight, grad, acc_grad, acc_delta)]
        right(*new, **settings)
        weight[...] = np.nan
        return new[0], new[2], new[3]

    def returns_its_inputs(weight, grad, acc_grad, acc_delta, **settings):
        right(weight, grad, acc_grad, acc_delta, **settings)
        return weight, acc_grad, acc_delta

    rows = adadelta_cli.verify(ruins, cases=["odd"], dtypes=["float32"])
    assert "returned new arrays and wrote something else into weight" in rows[0].note
    rows = adadelta_cli.verify(returns_its_inputs, cases=["odd"], dtypes=["float32"])
    assert [row for row in rows if row.passed is False] == []


class _UnprintableError(Exception):
    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SystemExit(0), "raised SystemExit"),
        (_UnprintableError(), "its message cannot be shown: RuntimeError"),
        (ValueError("\ud800"), "\\ud800"),
        (ValueError("x" * 10**6), "raised ValueError: xxx"),
    ],
    ids=["exit", "unprintable", "surrogate", "long"],
)
def test_whatever_a_kernel_raises_is_a_short_row(error, words):
    """Which any file takes."""

    def raises(*_args, **_settings):
        raise error

    rows = adadelta_cli.verify(raises, cases=["odd"], dtypes=["float32"])
    notes = [row.note for row in rows if row.passed is False]
    assert notes and all(words in note and len(note) < 2000 for note in notes)
    assert all(note.encode() for note in notes)


def test_collective_names_and_wrong_calls_of_verify():
    """The names of `--case` that stand for many cases; what makes no sense is a usage error."""
    rows = adadelta_cli.verify(right, cases=["steady"], dtypes=["float32"])
    assert {row.check for row in rows} == {"step", "gradient", "repeat"}
    for wrong in ({"steps": 0}, {"steps": -1}, {"seed": -1}, {"cases": "odd"}):
        with pytest.raises(UsageError):
            adadelta_cli.verify(right, **{"cases": ["odd"]} | wrong)


# --- what may be excused --------------------------------------------------------------------------


def right(weight, grad, acc_grad, acc_delta, **settings):
    """Take the step as it should be."""
    scalars = Hyperparameters(**settings).scalars(weight.dtype)
    rate, wd = settings["learning_rate"], settings["wd"]
    update(np, Parameter(weight, grad, acc_grad, acc_delta), scalars, rate, wd)


def in_double(weight, grad, acc_grad, acc_delta, **settings):
    """Compute in a wider type, which overflows later."""
    wide = [each.astype(np.longdouble) for each in (weight, grad, acc_grad, acc_delta)]
    right(*wide, **settings)
    weight[...], _, acc_grad[...], acc_delta[...] = wide


def gradient_first(weight, grad, acc_grad, acc_delta, **s):
    """Multiply the gradient in before the division, which overflows sooner."""
    real = weight.dtype.type
    clip = np.inf if s["clip_gradient"] is None else s["clip_gradient"]
    x = np.clip(grad * real(s["rescale_grad"]), -real(clip), real(clip)) + real(s["wd"]) * weight
    share, epsilon = real(1 - s["rho"]), real(s["epsilon"])
    acc_grad[...] = real(s["rho"]) * acc_grad + share * (x * x)
    delta = np.sqrt(acc_delta + epsilon) * x / np.sqrt(acc_grad + epsilon)
    acc_delta[...] = real(s["rho"]) * acc_delta + share * (delta * delta)
    weight[...] = weight - real(s["learning_rate"]) * delta


@pytest.mark.parametrize("kernel", [in_double, gradient_first])
def test_another_order_that_leaves_the_range_is_excused_and_counted(kernel):
    """In the cases that state so, and only there; rows say how many."""
    names = ("overflow", "special", "special-odd", "odd", "subnormal")
    rows = adadelta_cli.verify(kernel, cases=names, dtypes=["float32"])
    assert [row for row in rows if row.passed is False] == []
    excused = {row.case for row in rows if row.check == "step" and row.excused}
    assert "overflow" in excused and excused <= {"overflow", "special", "special-odd"}
    assert all("excused: " in row.note for row in rows if row.check == "step" and row.excused)


def test_negative_accumulators_that_cancel_are_no_false_alarm():
    """A rounding error of a sum that cancels with epsilon is no fault of what is made of it."""
    name = "drawn:shapes=16,fill=special,draw=36,rho=0.99838748,epsilon=1.0,wd=1.0"
    rows = adadelta_cli.verify(in_double, cases=[name], dtypes=["float32"], seed=5)
    assert [row for row in rows if row.passed is False] == []


def test_an_update_that_is_divided_away_is_no_false_alarm():
    """Where acc_grad overflows, and the gradient, in a wider type, does not."""

    def stored(weight, grad, acc_grad, acc_delta, **settings):
        wide = [each.astype(np.float64) for each in (weight, grad, acc_grad, acc_delta)]
        right(*wide, **settings)
        acc_grad[...] = wide[2]
        moved = np.isfinite(acc_grad)  # else it goes on from what was stored: infinity
        weight[...] = np.where(moved, wide[0], weight)
        acc_delta[...] = np.where(moved, wide[3], acc_delta * acc_delta.dtype.type(settings["rho"]))

    name = "drawn:shapes=900,fill=huge,draw=3,wd=100.0"
    rows = adadelta_cli.verify(stored, cases=[name], dtypes=["float32"])
    assert [row for row in rows if row.passed is False] == []
    assert any(row.excused for row in rows)


def test_more_excuses_than_the_case_allows_fail(monkeypatch):
    """A case states how many results may be right in another range only."""
    strict = replace(cases.CASES["overflow"], excusable=0.0)
    monkeypatch.setitem(cases.CASES, "overflow", strict)
    rows = adadelta_cli.verify(gradient_first, cases=["overflow"], dtypes=["float32"])
    failed = [row for row in rows if row.passed is False and row.check == "step"]
    assert failed and all("more than the 0 that the case allows" in row.note for row in failed)


def test_where_every_element_is_excused_nothing_was_compared():
    """That is no pass: the row has no verdict."""
    name = "drawn:shapes=4,fill=huge,draw=7,rescale_grad=1e+30"
    rows = adadelta_cli.verify(in_double, cases=[name], dtypes=["float32"])
    (row,) = (r for r in rows if r.check == "drawn" and r.tensor == "acc_delta")
    assert row.excused == row.elements and row.passed is None
    assert row.note.startswith("nothing was compared: every element is excused")


# --- subnormals -----------------------------------------------------------------------------------

FLUSHING = """
def wrong(before, results):
    for array in results.values():
        array[abs(array) < np.finfo(array.dtype).tiny] = 0
"""


@pytest.mark.slow
def test_a_kernel_that_flushes_subnormals_fails_with_the_option_that_allows_it(tmp_path):
    """Strict by default; under the option it passes, with the reason in its row."""
    asked = ("verify", "--impl", write(tmp_path, FLUSHING), "--case", "subnormal")
    done = process(*asked, cwd=tmp_path)
    assert done.returncode == 1
    assert "differs only where subnormal numbers are involved" in done.stdout
    assert "--subnormals flush" in done.stdout
    done = process(*asked, "--subnormals", "flush", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "results/verify/verify.csv").open() as file:
        notes = {row["note"] for row in csv.DictReader(file) if row["check"] == "step"}
    assert any("excused: flushes subnormals" in note for note in notes)


@pytest.mark.slow
def test_flushing_excuses_no_other_number(tmp_path):
    """Zeros in the place of small ordinary numbers fail, with the option too."""
    crude = FLUSHING.replace("np.finfo(array.dtype).tiny", "1e-20")
    asked = ("verify", "--impl", write(tmp_path, crude), "--case", "subnormal")
    done = process(*asked, "--subnormals", "flush", "--dtype", "float32", cwd=tmp_path)
    assert done.returncode == 1


# --- nothing compared -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["mlp", "--impl", "kernel.py:step"],
        ["mlp", "--impl", "numpy"],
        ["--case", "flushed", "--impl", "numpy-fused"],
        ["--case", "length-0", "--impl", "kernel.py:step"],
        pytest.param(["rosenbrock", "--impl", "mxnet", "--dtype", "float16"], marks=needs_mxnet),
        ["--case", "odd", "--impl", "kernel.py:step", "--dtype", "float16"],
    ],
    ids=" ".join,
)
def test_nothing_compared_ends_with_1_and_the_reason(adadelta, monkeypatch, tmp_path, args):
    """Whatever way leads there."""
    if "kernel.py:step" in args:
        write(tmp_path, "def wrong(before, results): pass")
    else:
        monkeypatch.setattr(runner, "Sandbox", lambda _timeout: InProcess())
    code, out, err = adadelta("verify", *args)
    assert code == 1, out + err
    assert "Nothing was compared: " in err
    assert err.split("Nothing was compared: ")[1].split("\n")[0].strip()


def test_a_kernel_that_dies_in_drawn_cases_fails(adadelta, tmp_path):
    """The case that it died in is named."""
    dies = "def wrong(before, results):\n    import os\n    os.kill(os.getpid(), 11)"
    name = write(tmp_path, dies)
    code, out, err = adadelta("verify", "--case", "drawn", "--impl", name, "--dtype", "float32")
    assert code == 1, out + err
    assert "killed by SIGSEGV" in out and "--case drawn:shapes=" in out


RACE = """
calls = [0]

def wrong(before, results):
    calls[0] += 1
    results["weight"].reshape(-1)[:1] *= calls[0] % 701 > 0
"""


@pytest.mark.slow
def test_a_race_is_met_and_the_command_that_repeats_it_is_one(tmp_path):
    """One wrong element in one of 701 calls is seen by taking the same step over and over."""
    name = write(tmp_path, RACE)
    asked = ("--impl", name, "--dtype", "float32")
    done = process("verify", "--case", "steady", *asked, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the same step 2000 times over gave other bits" in done.stdout
    assert (
        f"repeat it: adadelta verify --case steady --impl {name} --dtype float32\n" in done.stdout
    )


WINDOW = """
def wrong(before, results):
    if 65_538 <= results["weight"].size <= 69_999:
        results["weight"].reshape(-1)[-1:] += 1
"""


@pytest.mark.slow
def test_a_fault_in_a_window_of_lengths_is_met(tmp_path):
    """The row names a length in it."""
    name = write(tmp_path, WINDOW)
    done = process(
        "verify", "--case", "drawn:lengths", "--impl", name, "--dtype", "float32", cwd=tmp_path
    )
    assert done.returncode == 1, done.stdout + done.stderr
    (shape,) = set(re.findall(r"drawn:shapes=([\dx]+),", done.stdout))
    assert 65_538 <= math.prod(map(int, shape.split("x"))) <= 69_999


def test_assert_correct_raises_on_wrong_rows_and_on_none():
    """For a kernel author's own tests."""
    adadelta_cli.assert_correct(right, cases=["odd"], dtypes=["float32"])

    def wrong(weight, grad, acc_grad, acc_delta, **settings):
        right(weight, grad, acc_grad, acc_delta, **settings)
        acc_grad[...] = np.nan

    with pytest.raises(AssertionError, match="step odd float32 acc_grad: worst at step 1"):
        adadelta_cli.assert_correct(wrong, cases=["odd"], dtypes=["float32"])
    with pytest.raises(AssertionError, match=r"nothing was compared: .* no mode that flushes"):
        adadelta_cli.assert_correct(right, cases=["flushed"])


def test_a_negative_accumulator_of_the_reference_is_no_fault_of_the_kernel():
    """Its own rule: an accumulator of -1 stays negative where an overflow leaves no update.

    Found by seed 20 of fuzzed cases with a JAX kernel: the exact result, in a wider range, is
    positive, and the kernel had the reference's bits.
    """
    hyper = "learning_rate=-254.62351,rho=0.99999975,epsilon=40504.886,wd=-0.0025025117"
    case = f"drawn:shapes=749+5x11,fill=special,draw=14,{hyper}"

    def step(weight, grad, acc_grad, acc_delta, **settings):
        with np.errstate(all="ignore"):
            scalars = Hyperparameters(**settings).scalars(weight.dtype)
            p = Parameter(weight, grad, acc_grad, acc_delta)
            update(np, p, scalars, settings["learning_rate"], settings["wd"])
            weight[...] = np.nextafter(weight, weight.dtype.type(np.inf))  # so that bits differ

    rows = adadelta_cli.verify(step, cases=[case], seed=20)
    assert [row.note for row in rows if row.tensor == "acc_delta" and row.passed is False] == []


def test_cancellation_beyond_the_range_is_no_false_alarm():
    """The tolerance of a result is that of its operands, though their squares overflow.

    Found by seed 20 with PyTorch's order, (1 - rho) * g first: g is a difference of numbers ten
    times as large, whose rounding errors the result keeps, and the reference's g * g overflows.
    """
    hyper = "learning_rate=0.0,epsilon=5.8264054,wd=-303.30102,rescale_grad=0.00090710688"
    case = f"drawn:shapes=3x1x0x0+2341+8766,steps=3,fill=huge,draw=112,{hyper}"

    def step(weight, grad, acc_grad, acc_delta, **settings):
        real = weight.dtype.type
        rho, share = real(settings["rho"]), real(1 - settings["rho"])
        with np.errstate(all="ignore"):
            g = grad * real(settings["rescale_grad"])
            g = (g.astype(np.longdouble) + np.longdouble(settings["wd"]) * weight).astype(real)
            acc_grad[...] = rho * acc_grad + (share * g) * g
            delta = np.sqrt(acc_delta + real(settings["epsilon"]))
            delta = delta / np.sqrt(acc_grad + real(settings["epsilon"])) * g
            acc_delta[...] = rho * acc_delta + (share * delta) * delta
            weight[...] = weight - real(settings["learning_rate"]) * delta

    rows = adadelta_cli.verify(step, cases=[case], dtypes=["float32"], seed=20)
    assert [row.note for row in rows if row.passed is False] == []


@pytest.mark.parametrize(("tensor", "ulps"), [("acc_grad", 40), ("acc_delta", 150), ("weight", 80)])
def test_the_tolerance_is_no_wider_than_it_says(tensor, ulps):
    """A few times the documented ULPs of the result itself fail: 16, 60 and 30 are allowed."""

    def step(weight, grad, acc_grad, acc_delta, **settings):
        results = {"weight": weight, "acc_grad": acc_grad, "acc_delta": acc_delta}
        with np.errstate(all="ignore"):
            scalars = Hyperparameters(**settings).scalars(weight.dtype)
            p = Parameter(weight, grad, acc_grad, acc_delta)
            update(np, p, scalars, settings["learning_rate"], settings["wd"])
            results[tensor] += ulps * np.spacing(results[tensor])

    rows = adadelta_cli.verify(step, cases=["defaults"], dtypes=["float32"])
    assert any(row.tensor == tensor and row.passed is False for row in rows if row.check == "step")


def one_ulp_less(weight, grad, acc_grad, acc_delta, **settings):
    """Take the step as it should be, but for the last place of each weight."""
    scalars = Hyperparameters(**settings).scalars(weight.dtype)
    parameter = Parameter(weight, grad, acc_grad, acc_delta)
    update(np, parameter, scalars, settings["learning_rate"], settings["wd"])
    weight[...] = np.nextafter(weight, -np.inf)


def test_operations_that_both_share_may_round_differently_in_a_trajectory():
    """Narrow bounds of a single step hold from the same states only: no false alarm of the drift.

    With weight decay, other weights give other gradients, whose roundings differ from the first
    operation on. Seen with optax, whose squares are the reference's in a single step.
    """
    kernel = user_kernel.from_function(one_ulp_less)
    narrow = replace(kernel, tolerance=ToleranceULP(weight=2.0, acc_grad=0.5, acc_delta=1.0))
    plan = Request(kernel=narrow, case_names=("wd=-0.5",), dtypes=("float64",), steps=20).plan
    work = Verification(plan)
    work.execute(sandbox=InProcess())
    assert not [row for row in work.rows if row.passed is False and row.check != "oracle"]
    assert any(row.mismatches for row in work.rows if row.check == "drift")
