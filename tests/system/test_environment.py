"""A wrong environment is refused with a fix, or adapted; it is never a verdict or a bug."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from adadelta_cli.doctor import conditions
from adadelta_cli.errors import UnavailableError
from adadelta_cli.system import environment, machine
from adadelta_cli.system.sandbox import InProcess, Sandbox, SandboxError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NUMBA_NUM_THREADS", "0"),
        ("NUMBA_NUM_THREADS", "-1"),
        ("NUMBA_NUM_THREADS", "four"),
        ("NUMBA_NUM_THREADS", "2,1"),
        ("OMP_NUM_THREADS", "0"),
        ("OMP_NUM_THREADS", "4,,2"),
        ("OMP_NUM_THREADS", "4,x"),
        ("OMP_NUM_THREADS", "many"),
        ("MXNET_OMP_MAX_THREADS", "many"),
        ("MXNET_CPU_WORKER_NTHREADS", "1.5"),
        ("NUMBA_DISABLE_JIT", "1"),
        ("ADADELTA_KERNEL", "fast"),
        ("ADADELTA_KERNEL", "0:64"),
        ("ADADELTA_KERNEL", "all:-64"),
        ("NUMBA_LOOP_VECTORIZE", "no"),
        ("NUMBA_CPU_NAME", "foo"),
        ("NUMBA_CPU_FEATURES", "+foo"),
    ],
)
def test_a_value_that_a_library_cannot_use_is_not_available_here(monkeypatch, name, value):
    """The message has the variable, the value and the fix."""
    monkeypatch.setenv(name, value)
    environment.prepare()
    with pytest.raises(UnavailableError, match=f"(?s){name}.*{re.escape(value)}.*unset .*{name}"):
        environment.check()


@pytest.mark.parametrize(
    ("value", "wanted"), [("4,3,2", "4"), (" 3 ", "3"), ("2", "2"), ("", None), ("  ", None)]
)
def test_what_openmp_allows_is_reduced_to_what_every_library_reads(monkeypatch, value, wanted):
    """MXNet aborts on a list."""
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    environment.prepare()
    environment.check()
    assert os.environ.get("OMP_NUM_THREADS") == wanted


def test_empty_variables_of_numba_count_as_unset(monkeypatch):
    """Numba would take an empty threading layer for an unknown one."""
    monkeypatch.setenv("NUMBA_THREADING_LAYER", " ")
    monkeypatch.setenv("NUMBA_CPU_NAME", "")
    environment.prepare()
    assert not {"NUMBA_THREADING_LAYER", "NUMBA_CPU_NAME"} & set(os.environ)


@pytest.mark.parametrize("text", ["{{{", "[1]", "disable_jit: 1"])
def test_a_file_of_numbas_settings_is_named(monkeypatch, tmp_path, text):
    """Numba reads it from the working folder, whatever is in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / environment.NUMBA_FILE).write_text(text)
    with pytest.raises(UnavailableError, match=r"with .*\.numba_config\.yaml: .*; move .* away"):
        environment.check()


@pytest.mark.parametrize(
    "variable",
    [
        *("NUMBA_NUM_THREADS=0", "NUMBA_DISABLE_JIT=1", "NUMBA_CPU_NAME=foo"),
        pytest.param("NUMBA_CPU_FEATURES=+avx2,+foo", marks=pytest.mark.slow),
        pytest.param("NUMBA_CPU_FEATURES=nonsense", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("command", ["verify --case odd --impl numpy-fused", "run rosenbrock"])
def test_commands_end_with_3(tmp_path, variable, command):
    """One line on stderr; no row of a table, no traceback."""
    name, value = variable.split("=", 1)
    done = subprocess.run(
        [sys.executable, "-m", "adadelta_cli", *command.split(), "--backend", "numpy"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, name: value},
        timeout=100,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("Error: ") and "bug" not in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 and f"unset {name}" in done.stderr


UNKNOWN_TARGETS = [
    *((name, "") for name in ("foo", "help", "Skylake", "x86-64-v9")),
    *(("", features) for features in ("+foo", "-foo,+avx2", "+help", "help", "avx2", "+")),
    *(("", features) for features in ("+avx2 +fma", "+avx2,,+fma", "+sse2,", "nonsense\n")),
]


def test_a_processor_that_llvm_does_not_know_is_refused():
    """Nothing is printed, and the process goes on."""
    with Sandbox(100) as sandbox:
        for name, features in UNKNOWN_TARGETS:
            with pytest.raises(SandboxError, match=r"processor|feature") as caught:
                sandbox.call(environment._check_target, name, features)
            known = environment.known_fix(str(caught.value))
            assert known == ("unset NUMBA_CPU_NAME" if name else "unset NUMBA_CPU_FEATURES")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NUMBA_CPU_NAME", "generic"),
        pytest.param("NUMBA_CPU_FEATURES", "+sse2,-avx512f", marks=pytest.mark.slow),
    ],
)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names of x86-64")
def test_what_llvm_knows_is_used(monkeypatch, capfd, name, value):
    """Without a word."""
    monkeypatch.setenv(name, value)
    environment.prepare()
    environment.check()
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="a feature of x86-64")
@pytest.mark.skipif(" apx" in Path("/proc/cpuinfo").read_text(), reason="it has APX")
def test_a_feature_that_the_processor_lacks_is_found_before_the_work(monkeypatch, tmp_path):
    """The step would execute an instruction that is illegal there."""
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "+sse2,+egpr,+ndd")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"ndd: .*SIGILL.*unset NUMBA_CPU_FEATURES"):
        environment.check()


@pytest.mark.parametrize("command", ["verify --case odd", "run rosenbrock", "bench --sizes 1"])
@pytest.mark.skipif(sys.platform != "linux", reason="a limit of Linux")
def test_a_small_stack_ends_a_command_with_3(tmp_path, command):
    """OpenBLAS and LLVM crash with one; `ulimit -s 256` limits it to 256 KiB."""
    program = f"ulimit -s 256; exec {sys.executable} -m adadelta_cli {command} --backend numpy"
    done = subprocess.run(
        ["/bin/bash", "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (3, "")
    wanted = "Error: the stack is limited to 256 KiB; expected at least 1024; run ulimit -s 8192"
    assert done.stderr.startswith(wanted)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("limit", [machine.LEAST_STACK, None])
def test_a_stack_of_the_least_size_suffices(monkeypatch, limit):
    """And one without a limit."""
    monkeypatch.setattr(machine, "stack_bytes", lambda: limit)
    environment.check()


def test_caches_go_to_a_temporary_folder_where_no_usual_one_can_be_written(monkeypatch, capfd):
    """One warning, which names the variable."""
    monkeypatch.setattr(environment, "_temporary", [])
    monkeypatch.setattr(environment, "is_writable", lambda _: False)
    for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "/dev/null/nowhere")
    environment.prepare()
    for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR"):
        assert Path(os.environ[name]).is_dir()
    err = capfd.readouterr().err
    assert err.count("Warning") == 1 and "NUMBA_CACHE_DIR" in err


def test_a_folder_under_a_file_cannot_be_written(tmp_path):
    """Root may write in any folder, but not there."""
    assert environment.is_writable(tmp_path / "made")
    assert not environment.is_writable(Path("/dev/null/nowhere"))


def _unavailable():
    raise UnavailableError("there is none; install it")


@pytest.mark.parametrize("place", [Sandbox, InProcess])
def test_what_is_not_available_is_no_fault_of_the_work(place):
    """It leaves a sandbox as it was raised."""
    with place() as sandbox, pytest.raises(UnavailableError, match="install it"):
        sandbox.call(_unavailable)


def test_doctor_reports_a_wrong_number(monkeypatch):
    """With its fix."""
    monkeypatch.setenv("NUMBA_NUM_THREADS", "-1")
    found = list(conditions._variables(machine.Machine()))
    assert [each.fix for each in found if "-1" in each.what] == ["unset NUMBA_NUM_THREADS"]
