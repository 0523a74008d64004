"""The kernel has the same bits whichever instructions it is compiled to."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

AVX2 = "+sse4.2,+popcnt,+avx,+avx2,+f16c,+fma,+bmi,+bmi2,+lzcnt,+movbe"
TARGETS = {
    "baseline": ("x86-64", "+sse,+sse2", set()),
    "avx2": ("haswell", AVX2, {"avx2", "fma"}),
    "avx512": (
        "skylake-avx512",
        f"{AVX2},+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512cd",
        {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    ),
}
CODE = """
import numba
from adadelta_cli.kernels import cpu
compiled = numba.njit(error_model="numpy", nogil=True)(cpu._update_slice.py_func)
row, one = numba.float32[::1], numba.float32
compiled.compile((row, row, row, row, numba.none, one, one, numba.types.UniTuple(one, 5)))
(code,) = compiled.inspect_asm().values()
roots = [line for line in code.splitlines() if "sqrt" in line]
print(*[name for name in ("xmm", "ymm", "zmm") if any(name in line for line in roots)])
"""


def _flags():
    try:
        return set(Path("/proc/cpuinfo").read_text().partition("flags")[2].split("\n")[0].split())
    except OSError:
        return set()


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="instruction sets of x86-64")
@pytest.mark.parametrize("target", TARGETS)
def test_the_bits_are_those_of_the_array_update(tmp_path, target):
    """In all dtypes; the code does have the instructions that are meant, and no others."""
    name, features, needed = TARGETS[target]
    if needed - _flags():
        pytest.skip(f"no {target} here")
    environment = os.environ | {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    environment["NUMBA_CACHE_DIR"] = str(tmp_path)
    widest = subprocess.run(
        [sys.executable, "-c", CODE], check=True, env=environment, capture_output=True, text=True
    ).stdout.split()[-1]
    assert widest in {"baseline": {"xmm"}, "avx2": {"ymm"}, "avx512": {"ymm", "zmm"}}[target]
    cases = ["odd", "special", "subnormal", "overflow", "length-4097", "multipliers"]
    command = [sys.executable, "-m", "adadelta_cli", "verify", "--impl", "numpy-fused"]
    command += [word for case in cases for word in ("--case", case)] + ["--out", str(tmp_path)]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
