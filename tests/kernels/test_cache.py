"""Files of Numba's cache that are damaged, or of other sources, are compiled anew."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import needs_mxnet

import adadelta_cli

STEP = """
import numpy as np
from adadelta_cli.kernels.step import FusedStep
from adadelta_cli.update import Hyperparameters, Parameter

arrays = [np.full(5, value, np.float32) for value in (1, 2, 3, 4)]
FusedStep([Parameter(*arrays)])()
print(arrays[0][0])
"""
COUNT = """
from numba.core import event
class Count(event.Listener):
    compiled = 0
    def on_start(self, event): Count.compiled += 1
    def on_end(self, event): pass
event.register("numba:compile", Count())
"""


def step(folder, code=STEP, cwd=None, **environment):
    """Take a step in a process with this cache; return its output, and how often it compiled."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT + code + "print(Count.compiled)"],
        text=True,
        check=False,
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder), **environment},
        capture_output=True,
        timeout=200,
        cwd=cwd,  # the package there comes first
    )
    assert done.returncode == 0, done.stderr
    return [float(line) for line in done.stdout.split()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a cache that is whole."""
    made = tmp_path_factory.mktemp("cache")
    step(made)
    assert step(made)[-1] == 0, "all of it comes from the cache"
    return made


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("size", [0, 0.5], ids=["emptied", "cut in half"])
def test_damaged_files_are_compiled_anew_and_replaced(folder, kind, size):
    """With the same result; the next process finds a cache that is whole."""
    files = sorted(folder.rglob(f"*.{kind}"))
    assert files
    for file in files:
        os.truncate(file, int(file.stat().st_size * size))
    weight, compiled = step(folder)
    assert compiled > 0 and weight == step(folder)[0]
    assert step(folder)[-1] == 0


@pytest.mark.slow
def test_without_a_folder_for_the_cache_it_is_compiled_each_time(tmp_path, folder):
    """Root can write everywhere, so that no folder can be written is pretended."""
    nowhere = """
from numba.core import caching
caching.CacheImpl._locator_classes = []
"""
    weight, compiled = step(tmp_path, nowhere + STEP)
    assert compiled > 0 and weight == step(folder)[0]


@pytest.mark.slow
@needs_mxnet
def test_the_probe_of_the_engine_is_compiled_anew(tmp_path):
    """A C function that MXNet's engine calls has a cache of its own."""
    probe = (
        "from adadelta_cli.mxnet_bridge import runtime\nprint(int(runtime.wait_and_get_ftz()))\n"
    )
    wanted = step(tmp_path, probe)
    for file in tmp_path.rglob("*.nb?"):
        os.truncate(file, 1)
    assert step(tmp_path, probe)[0] == wanted[0]


@pytest.mark.slow
def test_code_whose_callee_has_changed_is_compiled_anew(tmp_path):
    """Numba looks at a function's own file only; the old pool went on in a new step."""
    source = Path(adadelta_cli.__file__).parent
    shutil.copytree(source, tmp_path / "adadelta_cli", ignore=shutil.ignore_patterns("__pycache__"))
    code = STEP.replace("np.full(5,", "np.full(5000,").replace("arrays[0][0]", "arrays[0][-1]")
    how = {"cwd": tmp_path, "ADADELTA_KERNEL": "3:0"}
    before, _ = step(tmp_path / "cache", code, **how)
    pool = tmp_path / "adadelta_cli" / "kernels" / "pool.py"
    text = pool.read_text()
    pool.write_text(text.replace("state[WORDS], low, high)", "state[WORDS], low, high - 1)"))
    assert pool.read_text() != text
    after, _ = step(tmp_path / "cache", code, **how)
    assert before < 1 and after == 1, "the last element of a piece is left out"
