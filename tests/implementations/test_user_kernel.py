"""Somebody's own kernel is found, checked, and message what it does wrong; `verify` survives it."""

from __future__ import annotations

import csv
import ctypes
import importlib.util
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import plan_of

import adadelta_cli
from adadelta_cli.errors import UnavailableError, UsageError
from adadelta_cli.implementations import registry, user_kernel
from adadelta_cli.implementations.array_backends import CPU
from adadelta_cli.implementations.base import ANY_ORDER
from adadelta_cli.system import process_state
from adadelta_cli.update import Hyperparameters, Parameter, update
from adadelta_cli.verification import cases, catalogue, report
from adadelta_cli.verification import plan as selection
from adadelta_cli.verification.runner import Verification

EXAMPLES = Path(__file__).parents[2] / "examples"
HAS_JAX = importlib.util.find_spec("jax") is not None


def right(weight, grad, acc_grad, acc_delta, **settings):
    """Take the step as it should be."""
    rate, wd = settings["learning_rate"], settings["wd"]
    scalars = Hyperparameters(**settings).scalars(weight.dtype)
    update(np, Parameter(weight, grad, acc_grad, acc_delta), scalars, rate, wd)


def check(kernel, *names, dtypes=("float32",), **settings):
    """Check a kernel in this process, by default with one case."""
    return adadelta_cli.verify(kernel, cases=names or ("odd",), dtypes=dtypes, **settings)


def failed(rows):
    """Select the rows that did not pass."""
    return [row for row in rows if row.passed is False]


# --- a process that the kernel changed ------------------------------------------------------------

UNTIDY = """
import ctypes, os, sys, warnings
import numpy as np
from adadelta_cli.update import Hyperparameters, Parameter, update

def mode(number):
    if sys.platform == "linux" and os.uname().machine == "x86_64":
        ctypes.CDLL("libm.so.6").fesetround(number)

def spoil():
    mode(0xC00)  # FE_TOWARDZERO
    np.seterr(all="raise")
    np.random.seed(1)
    os.environ["PATH"] = ""
    os.chdir("/")
    warnings.simplefilter("error")

def step(weight, grad, acc_grad, acc_delta, **settings):
    mode(0)
    with np.errstate(all="ignore"):
        rate, wd = settings["learning_rate"], settings["wd"]
        scalars = Hyperparameters(**settings).scalars(weight.dtype)
        update(np, Parameter(weight, grad, acc_grad, acc_delta), scalars, rate, wd)
    spoil()

spoil()
"""


@pytest.mark.parametrize("where", ["sandbox", "in process"])
def test_what_a_kernel_does_to_its_process_changes_no_verdict(tmp_path, where):
    """Its rounding mode, NumPy's errors, the folder: inputs and references stay the same."""
    (tmp_path / "untidy.py").write_text(UNTIDY)
    cases.Case.start.cache_clear()
    cases.Case.grads.cache_clear()
    before = Path.cwd(), os.environ["PATH"]
    name = f"{tmp_path}/untidy.py:step"
    if where == "sandbox":
        request = selection.Request(names=(name,), case_names=("special", "subnormal"))
        work = Verification(request.plan)
        work.execute()
        rows = work.rows
    else:
        with process_state.third_party():
            kernel = user_kernel.load_kernel(name)
        rows = check(kernel, "special", "subnormal")
    steps = [row for row in rows if row.check == "step" and row.passed is not None]
    assert steps and failed(rows) == []
    assert {row.mismatches for row in steps} == {0}
    assert before == (Path.cwd(), os.environ["PATH"])


# --- in Python ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_right_kernel_passes_every_default_case_and_is_bit_equal():
    """No false alarm; the note says that no bit differs; skipped cases have a reason."""
    rows = adadelta_cli.verify(right, seed=3)
    assert failed(rows) == []
    steps = [row for row in rows if row.check == "step" and row.passed]
    assert {row.mismatches for row in steps} == {0}
    assert {row.note for row in steps} == {"equal in every bit"}
    assert {row.dtype for row in steps} == {"float32", "float64"}
    skipped = {row.note for row in rows if row.passed is None and row.elements == 0}
    assert all(note.startswith("skipped: ") or not note for note in skipped) and skipped
    drawn = [row for row in rows if row.check == "drawn"]
    assert {row.case for row in drawn} == {"drawn", "drawn:lengths"}
    assert all(row.passed and row.elements > 100_000 for row in drawn)
    assert {row.case for row in rows if row.case.startswith("steady")} == {
        "steady:4099",
        "steady:100003",
    }
    assert all(row.passed for row in rows if row.case.startswith("steady"))
    keys = [(r.check, r.case, r.implementation, r.reference, r.dtype, r.tensor) for r in rows]
    assert len(set(keys)) == len(keys), "a row is found by what it is about"


def test_steps_and_drift_are_bounded():
    """Rows of `step` and of `drift` carry the bound of their tensor."""
    rows = check(right)
    for name in ("step", "drift"):
        allowed = {row.tensor: row.allowed_ulp for row in rows if row.check == name}
        assert allowed == ANY_ORDER._asdict()
    assert {row.check for row in rows} == {"step", "gradient", "drift", "repeat"}
    assert {row.reference for row in rows if row.check == "step"} == {"numpy"}


def functional(weight, grad, acc_grad, acc_delta, **settings):
    """Return new arrays, lists of them being as good."""
    arrays = [weight.copy(), grad.copy(), acc_grad.copy(), acc_delta.copy()]
    right(*arrays, **settings)
    return [arrays[0], arrays[2], arrays[3]]


def test_functional_kernels_are_taken():
    """What is returned counts, and is compared with the same bounds."""
    assert failed(check(functional, "odd", "multipliers", dtypes=("float64",))) == []


def another_order(weight, grad, acc_grad, acc_delta, **s):
    """One root of the ratio, and squares weighted from the left."""
    clip = np.inf if s["clip_gradient"] is None else s["clip_gradient"]
    real = weight.dtype.type
    grad = np.clip(grad * real(s["rescale_grad"]), -real(clip), real(clip)) + real(s["wd"]) * weight
    share = real(1 - s["rho"])
    acc_grad[...] = share * grad * grad + real(s["rho"]) * acc_grad
    ratio = (acc_delta + real(s["epsilon"])) / (acc_grad + real(s["epsilon"]))
    delta = grad * np.sqrt(ratio)
    acc_delta[...] = share * delta * delta + real(s["rho"]) * acc_delta
    weight[...] = weight - real(s["learning_rate"]) * delta


def test_another_order_of_the_operations_passes_without_being_bit_equal():
    """Bits differ, within the bounds; so the bounds are what decides."""
    rows = check(another_order, "odd", "overflow", "special", "subnormal", "wd=10.0")
    assert failed(rows) == []
    assert max(row.scaled_ulp for row in rows if row.check == "step") > 0.5
    assert all(row.scaled_ulp <= row.allowed_ulp for row in rows if row.check == "step")


def in_single(weight, grad, acc_grad, acc_delta, **settings):
    """Compute float64 in float32."""
    arrays = [each.astype(np.float32) for each in (weight, grad, acc_grad, acc_delta)]
    right(*arrays, **settings)
    weight[...], acc_grad[...], acc_delta[...] = arrays[0], arrays[2], arrays[3]


def swapped(weight, grad, acc_grad, acc_delta, **settings):
    """Take 1 - rho for rho."""
    right(weight, grad, acc_grad, acc_delta, **{**settings, "rho": 1 - settings["rho"]})


def misses_the_tail(weight, grad, acc_grad, acc_delta, **settings):
    """Leave out what is beyond the last whole vector of 8."""
    whole = weight.size // 8 * 8
    parts = [each.reshape(-1)[:whole] for each in (weight, grad, acc_grad, acc_delta)]
    right(*parts, **settings)


def spoils_the_gradient(weight, grad, acc_grad, acc_delta, **settings):
    """Rescale in place, as stock MXNet does."""
    right(weight, grad, acc_grad, acc_delta, **settings)
    grad *= 0.5


def replaces(weight, grad, acc_grad, acc_delta, **settings):
    """Update copies."""
    right(weight.copy(), grad, acc_grad.copy(), acc_delta.copy(), **settings)


def returns_another_shape(weight, grad, acc_grad, acc_delta, **settings):
    """Flatten."""
    return [
        np.append(each, each) for each in functional(weight, grad, acc_grad, acc_delta, **settings)
    ]


def returns_another_dtype(weight, grad, acc_grad, acc_delta, **settings):
    """Widen."""
    new = functional(weight, grad, acc_grad, acc_delta, **settings)
    return [np.asarray(each).astype("longdouble") for each in new]


def returns_too_little(weight, grad, acc_grad, acc_delta, **settings):
    """Forget the states."""
    return (functional(weight, grad, acc_grad, acc_delta, **settings)[0],)


def raises(*_args, **_settings):
    """Raise."""
    raise RuntimeError("no such luck")


def lacks_a_keyword(weight, grad, acc_grad, acc_delta, *, learning_rate, rho):
    """Have another signature."""


def beyond(offset):
    """Make a kernel that writes an element outside of acc_delta."""

    def kernel(weight, grad, acc_grad, acc_delta, **settings):
        right(weight, grad, acc_grad, acc_delta, **settings)
        place = acc_delta.ctypes.data + offset(acc_delta) * acc_delta.itemsize
        ctypes.memset(place, 0, acc_delta.itemsize)

    return kernel


FAULTS = {
    "float32 inside": (in_single, "worst at step"),
    "swapped rho": (swapped, "worst at step"),
    "missing tail": (misses_the_tail, "worst at step"),
    "spoiled gradient": (spoils_the_gradient, ""),
    "replaces": (replaces, "changed nothing and returned nothing: update in place, or return"),
    "another shape": (returns_another_shape, "returned weight as float64[120]; expected float64[3"),
    "another dtype": (returns_another_dtype, "expected float64[3, 4, 5]"),
    "too little": (returns_too_little, "returned 1 values; allowed are None"),
    "raises": (raises, "raised RuntimeError: no such luck ("),
    "signature": (lacks_a_keyword, "wrong signature: it is (weight, grad, acc_grad, acc_delta, *,"),
    "writes after": (
        beyond(lambda a: a.size),
        "wrote outside acc_delta of shape [3, 4, 5]: 8 byte",
    ),
    "writes before": (beyond(lambda _: -1), "8 bytes before its start"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_reported(name):
    """Each is a row that did not pass, with a note that says what was found."""
    kernel, message = FAULTS[name]
    rows = [row for row in failed(check(kernel, dtypes=("float64",))) if row.check != "drift"]
    assert rows and all(message in row.note for row in rows)
    if name == "spoiled gradient":
        assert [(row.check, row.tensor) for row in rows] == [("gradient", "grad")]


def test_the_worst_element_is_named_with_its_inputs():
    """Hexadecimal floats: enough to compute the element again."""

    def off(weight, grad, acc_grad, acc_delta, **settings):
        right(weight, grad, acc_grad, acc_delta, **settings)
        if acc_grad.size == 40:
            acc_grad.reshape(-1)[7] *= np.float32(1.1)

    rows = [row for row in failed(check(off)) if row.check == "step"]
    (row,) = (row for row in rows if row.tensor == "acc_grad")
    case = cases.CASES["odd"]
    before = case.start("float32", 0)[1].acc_grad.reshape(-1)[7]
    assert row.scaled_ulp > 1000 and f"element {60 + 7}: got " in row.note
    if "step 1," in row.note:
        assert f"acc_grad {float(before).hex()}" in row.note


def test_wrong_calls_of_verify_are_errors():
    """They are bugs in the call: of the case, the dtype, the kernel."""
    with pytest.raises(UsageError, match="known are"):
        adadelta_cli.verify(right, cases=("nonesuch",))
    with pytest.raises(UsageError, match="'float16'; allowed are float32 and float64"):
        adadelta_cli.verify(right, dtypes=("float16",))
    with pytest.raises(UsageError, match="expected a function step"):
        adadelta_cli.verify("step")


def test_verify_leaves_nothing_behind():
    """The kernel's name is known only while it is checked."""
    before = dict(registry.IMPLEMENTATIONS)
    check(right)
    assert before == registry.IMPLEMENTATIONS


# --- by name --------------------------------------------------------------------------------------


def write(folder, text):
    """Write a kernel's file; return how it is named."""
    path = folder / "kernel.py"
    path.write_text(text)
    return f"{path}:step"


SHELL = """
def step(weight, grad, acc_grad, acc_delta, **settings):
    {}
"""


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("nonesuch.py:step", UsageError, "there is no file .*nonesuch.py"),
        ("no.such.module:step", UsageError, "there is no module no, looked for in"),
        ("json.nonesuch:step", UsageError, "there is no module json.nonesuch"),
        ("json:nonesuch", UsageError, "there is no nonesuch in json; its functions are .*dumps"),
        ("json:__name__", UsageError, "is 'json'; expected a function step"),
        (":step", UsageError, "a kernel of your own is named FILE.py:FUNCTION"),
        ("nonesuch.py", UsageError, "FUNCTION is missing; .*there is no file .*nonesuch.py"),
        ("json:", UsageError, "FUNCTION is missing; .*PACKAGE.MODULE:FUNCTION; add it"),
        ("kernel", UsageError, "known are .*FILE.py:FUNCTION"),
    ],
)
def test_what_cannot_be_found_is_a_usage_error(name, kind, message):
    """The message says what was looked for."""
    with pytest.raises(kind, match=message):
        user_kernel.load_kernel(registry.implementation(name).name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "def helper(): pass\ndef step(): pass\n1 / 0",
            r"are helper, step: try --impl .*\.py:step$",
        ),
        ("def mine(): pass\ndef other(): pass", r"are mine, other: try --impl .*\.py:mine$"),
        ("step = 1", "defines no function"),
        ("def step(:", "cannot be read as Python: "),
        (r"def step(): '\d'", "try --impl"),
    ],
)
def test_a_name_without_a_function_lists_those_of_the_file(tmp_path, text, message):
    """They are read, and the file is not imported."""
    place = write(tmp_path, text).removesuffix(":step")
    with pytest.raises(UsageError, match=f"FUNCTION is missing.*{message}"):
        registry.implementation(place)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("def step(:", UsageError, "importing .* raised SyntaxError"),
        ("1 / 0", UsageError, "importing .* raised ZeroDivisionError"),
        ("raise SystemExit(0)", UsageError, "importing .* raised SystemExit"),
        ("import nonesuch", UnavailableError, "No module named 'nonesuch'"),
        ("raise ImportError('needs a cc')", UnavailableError, "needs a cc"),
    ],
)
def test_what_cannot_be_imported_is_an_error_with_its_reason(tmp_path, text, kind, message):
    """A library that is not here is something unavailable, all else a wrong file."""
    with pytest.raises(kind, match=message):
        user_kernel.load_kernel(write(tmp_path, text))


def test_a_file_may_import_its_neighbours(tmp_path):
    """As under `python FILE.py`."""
    (tmp_path / "neighbour_of_kernel.py").write_text(SHELL.format("pass"))
    assert callable(
        user_kernel.load_kernel(write(tmp_path, "from neighbour_of_kernel import step"))
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", "crashed: killed by SIGSEGV"),
        ("import os; os._exit(0)", "crashed: exited with 0"),
        ("import sys; sys.exit(3)", "crashed: exited with 3"),
    ],
    ids=["segfault", "_exit", "exit"],
)
def test_a_crash_is_a_row_and_the_next_case_is_checked(tmp_path, body, message):
    """The kernel runs in a child process."""
    name = write(tmp_path, SHELL.format(f"if weight.size == 17: {body}"))
    chosen = tuple(catalogue.select(("length-17", "length-0")))
    work = Verification(plan_of((name,), chosen, dtypes=("float32",)))
    work.execute()
    (row,) = work.failures
    assert row.case == "length-17" and row.note == message
    (line,) = report.verification_failures(work, most=10)
    assert line.startswith(f"FAILED step length-17 float32 {name}: {message}\n")
    assert any(row.case == "length-0" and row.passed for row in work.rows)


@pytest.mark.slow
def test_a_kernel_that_hangs_is_given_up(tmp_path):
    """It is reported once, and other cases are not waited for."""
    name = write(tmp_path, SHELL.format("import time; time.sleep(3600)"))
    chosen = tuple(catalogue.select(("length-1", "odd")))
    work = Verification(plan_of((name,), chosen, dtypes=("float32",), timeout=6.0))
    began = time.monotonic()
    work.execute()
    assert time.monotonic() - began < 40
    (row,) = work.failures
    assert row.note == "hung: no result within 6 s (--timeout)"
    (title,) = [axes.get_title() for axes in report.verification_figure(work).get_axes()]
    assert title.startswith("no result of 1 case: hung: no result within 6 s (--timeout)\ngreen")
    assert [row.note for row in work.rows if row.case == "odd"] == [
        "skipped: it hung in case length-1"
    ]


@pytest.mark.slow
def test_the_command_takes_a_file_and_says_what_it_found(adadelta, tmp_path):
    """Exit 1 and the words of the row for a wrong kernel, without a traceback."""
    write(tmp_path, SHELL.format("print('chatter'); raise ValueError('mine')"))
    chosen = ("--case", "odd", "--dtype", "float32")
    code, out, err = adadelta("verify", "--impl", "kernel.py:step", *chosen)
    assert code == 1, err
    assert "FAILED step odd float32 kernel.py:step" in out
    assert "raised ValueError: mine" in out and "chatter" not in out
    assert "repeat it: adadelta verify --case odd --impl kernel.py:step" in out
    assert "Traceback" not in err
    with (tmp_path / "results/verify/verify.csv").open() as file:
        assert [row["passed"] for row in csv.DictReader(file)] == ["false"]


@pytest.mark.parametrize(
    ("text", "name", "code", "message"),
    [
        ("pass", "kernel.py:step", 2, "Error: --impl kernel.py:step: there is no step in kernel"),
        ("pass", "other.py:step", 2, "Error: --impl: there is no file"),
        ("import nonesuch", "kernel:step", 3, "Error: --impl kernel:step: it cannot be imported"),
        ("import os; os.abort()", "kernel.py:step", 2, "importing it crashed: killed by SIGABRT"),
    ],
)
def test_the_command_ends_as_documented_where_there_is_no_kernel(
    adadelta, tmp_path, text, name, code, message
):
    """One `Error:` line, and nothing written."""
    write(tmp_path, text)
    got, out, err = adadelta("verify", "--impl", name)
    assert got == code, err
    assert message in err and "Traceback" not in err and out == ""
    assert not (tmp_path / "results").exists()


# --- the examples ---------------------------------------------------------------------------------


JAX_KERNEL = pytest.param("jax_kernel", marks=pytest.mark.peers)


@pytest.mark.parametrize("name", ["numpy_kernel", JAX_KERNEL, "c_kernel"])
def test_the_examples_pass(name):
    """Each passes cases of every kind; the one in C is equal in every bit."""
    if name == "jax_kernel" and not HAS_JAX:
        pytest.skip("JAX is not installed: python -m pip install 'adadelta[jax]'")
    if name == "c_kernel" and not shutil.which(os.environ.get("CC", "cc")):
        assert not os.environ.get("CI"), "CI has a C compiler, and must not skip what needs it"
        pytest.skip("there is no C compiler")
    names = ("odd", "multipliers", "length-0", "special-odd", "subnormal", "overflow")
    implementation = f"{EXAMPLES / name}.py:step"
    (chosen,) = selection.choose((implementation,), "numpy", CPU)
    assert chosen.name == implementation
    flush = name == "jax_kernel"  # XLA does on a CPU
    plan = plan_of(
        (implementation,),
        tuple(catalogue.select(names)),
        dtypes=("float32", "float64"),
        flush=flush,
    )
    work = Verification(plan)
    work.execute()
    assert work.failures == []
    steps = [row for row in work.rows if row.check == "step"]
    assert len(steps) == 2 * 3 * len(names)
    if name == "c_kernel":
        assert {row.mismatches for row in steps} == {0}


def test_the_numpy_example_has_ten_lines():
    """From `import numpy` to the end, without blank lines and docstrings."""
    lines = (EXAMPLES / "numpy_kernel.py").read_text().splitlines()
    assert len([line for line in lines if line.strip() and '"""' not in line]) <= 10
