"""What third-party code changes in the process reaches only itself."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from adadelta_cli.system import process_state

HAS_FENV = process_state._libm() is not None and sys.platform == "linux"
needs_fenv = pytest.mark.skipif(not HAS_FENV, reason="the C library's fesetenv is needed")
UPWARD = 0x800 if os.uname().machine in {"x86_64", "i686"} else 0x400000  # fenv.h, FE_UPWARD


@pytest.fixture(autouse=True)
def restored():
    """Leave the process as it was."""
    before = process_state.ProcessState.now()
    yield
    before.restore()
    process_state._strangers = None


def ninth():
    """Divide; its last bit depends on the rounding mode."""
    return float(np.float64(1) / np.array([9.0])[0])


def change_all():
    """Change whatever arithmetic and files depend on."""
    if HAS_FENV:
        ctypes.CDLL("libm.so.6").fesetround(UPWARD)
    np.seterr(all="raise")
    os.environ["ADADELTA_TEST"] = "changed"
    os.chdir("/")
    sys.setrecursionlimit(900)
    warnings.simplefilter("error")


def seen():
    """Return what `change_all` changes."""
    limits = sys.getrecursionlimit(), len(warnings.filters)
    return ninth(), np.geterr(), os.environ.get("ADADELTA_TEST"), Path.cwd(), limits


def test_all_changes_are_undone_and_seen_again_by_the_next_call():
    """In the verifier's state nothing has changed; in the other, all but the filters has."""
    before = seen()
    with process_state.third_party():
        change_all()
        theirs = seen()
    assert seen() == before != theirs
    with process_state.third_party():
        assert seen()[:4] == theirs[:4]
    assert seen() == before


@needs_fenv
def test_the_verifier_computes_in_the_default_mode_whatever_the_caller_does():
    """The caller's mode comes back for third-party code, and at the end."""
    nearest = ninth()
    ctypes.CDLL("libm.so.6").fesetround(UPWARD)
    upward = ninth()
    assert upward != nearest
    with process_state.own():
        assert ninth() == nearest
        with process_state.third_party():
            assert ninth() == upward
        assert ninth() == nearest
    assert ninth() == upward
