"""The public API is what docs/api.md says, its examples run, and it works without MXNet."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys

import pytest
from conftest import HERE, needs_mxnet, needs_torch

import adadelta_cli
from adadelta_cli import errors

ROOT = HERE.parent
PAGE = ROOT / "docs" / "api.md"
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "adadelta_cli").rglob("*.py"))
    if ">>> " in path.read_text()
]


def test_the_page_has_every_public_name():
    """And none that is not public."""
    named = set(re.findall(r"`(\w+)(?:\(|`)", PAGE.read_text()))
    assert set(adadelta_cli.__all__) <= named
    imported = re.findall(r"from adadelta_cli import ([\w, ]+)", PAGE.read_text())
    assert {n.strip() for line in imported for n in line.split(",")} <= set(adadelta_cli.__all__)


def test_the_examples_of_the_page_run(monkeypatch):
    """With the output that it shows."""
    monkeypatch.syspath_prepend(ROOT)
    found = doctest.testfile(str(PAGE), module_relative=False)
    assert found.attempted > 5 and not found.failed


NEEDS = {".mxnet_bridge.": [needs_mxnet], ".torch.": [needs_torch, pytest.mark.peers]}


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(name, marks=[each for part in NEEDS if part in name for each in NEEDS[part]])
        for name in MODULES
    ],
)
def test_the_examples_of_the_docstrings_run(monkeypatch, module):
    """Likewise, in every module that has some."""
    monkeypatch.syspath_prepend(ROOT)
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted and not found.failed


def test_errors_are_what_python_programmers_catch():
    """Wrong values are ValueErrors, what is not installed an ImportError."""
    assert issubclass(errors.UsageError, ValueError)
    assert issubclass(errors.UnavailableError, ImportError)
    for name in ("UsageError", "UnavailableError", "BrokenError"):
        assert issubclass(getattr(adadelta_cli, name), adadelta_cli.AdadeltaError)


def python(*args):
    """Run Python in a process of its own."""
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=False)


@needs_mxnet
@pytest.mark.slow  # test_optimizer.py has a quick one
@pytest.mark.parametrize(
    "imports",
    [
        "import adadelta_cli, mxnet",
        "from adadelta_cli import FusedStep; import mxnet.gluon",
        "import adadelta_cli, importlib; importlib.import_module('mxnet')",
    ],
)
def test_mxnet_can_be_imported_after_this_package(imports):
    """It misses `numpy.bool`; importing the package loads neither of them."""
    code = f"import sys, adadelta_cli; assert 'numpy' not in sys.modules; {imports}"
    done = python("-W", "ignore", "-c", code)
    assert done.returncode == 0, done.stderr


@needs_mxnet
def test_an_import_without_docstrings_names_the_option():
    """MXNet reads its own."""
    done = python("-OO", "-c", "from adadelta_cli import AdaDelta, FusedStep; AdaDelta()")
    assert "UnavailableError: MXNet reads its docstrings, which -OO" in done.stderr


WITHOUT_MXNET = """
import importlib.util, sys
sys.modules["mxnet"] = None  # as where it is not installed
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "mxnet" else find(name, *more)
import adadelta_cli
from adadelta_cli import *
assert hasattr(adadelta_cli, "AdaDelta") and FusedStep.__name__ == "FusedStep"
for name in ("AdaDelta", "load_states"):
    try:
        getattr(adadelta_cli, name)("trainer", "path")
    except ImportError as error:
        print(name, error)
try:
    adadelta_cli.nonesuch
except AttributeError:
    print("no nonesuch")
"""


def test_without_mxnet_the_package_can_be_imported_whole():
    """What needs MXNet says so when it is called."""
    done = python("-c", WITHOUT_MXNET)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first.startswith("AdaDelta ") and second.startswith("load_states ")
    assert "MXNet" in first and third == "no nonesuch"


@pytest.mark.parametrize(
    "wrong",
    [
        {"cases": ["nonesuch"]},
        {"cases": "odd"},
        {"dtypes": ["int8"]},
        {"ctx": "tpu"},
        {"subnormals": "some"},
        {"seed": -1},
        {"steps": 0},
    ],
    ids=str,
)
def test_no_error_of_the_library_advises_an_option(wrong):
    """A caller in Python has arguments, no command line."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - any; what it says is looked at
        adadelta_cli.verify(print, **wrong)
    assert "--" not in str(caught.value)
