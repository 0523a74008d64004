"""Shrinking a fuzzed case: a simpler one, the same in every installation."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import adadelta_cli
from adadelta_cli.update import Hyperparameters
from adadelta_cli.verification import fuzz
from adadelta_cli.verification.shrink import TRIES, shrink

START = fuzz.parse_case(
    "drawn:shapes=3x4x5+9999+7,fill=tiny,steps=4,varied=1,wd=0.3,rho=0.5,draw=7"
)


def test_what_the_failure_does_not_need_is_left_out():
    """Tensors, elements, dimensions and settings."""
    found = shrink(START, lambda each: each.elements >= 10 and each.hyper.wd != 0)
    assert found == fuzz.fuzzed(((10,),), Hyperparameters(wd=1.0), draw=7)


def test_what_the_failure_needs_is_kept():
    """All of it, if need be; each case is tried once, and not too many are."""
    names = []

    def fails(each):
        names.append(each.name)
        return len(each.shapes) == 3 and each.fill == "tiny" and each.hyper.rho == 0.5

    found = shrink(START, fails)
    assert (found.shapes, found.fill, found.hyper) == (
        ((0,), (0,), (0,)),
        "tiny",
        Hyperparameters(rho=0.5),
    ) or found.elements < 10
    assert len(names) == len(set(names)) <= TRIES
    assert shrink(START, lambda _: False) == START


def test_every_drawn_case_shrinks_to_one_that_fails():
    """Whatever fails."""
    for case in fuzz.fuzzed_cases(0, 60):
        for fails in (lambda each: each.elements > 3, lambda each: each.hyper.wd != 0):
            if fails(case):
                found = shrink(case, fails)
                assert fails(found) and found.elements <= case.elements
                assert fuzz.parse_case(found.name) == found


def test_an_installation_decides_over_nothing(tmp_path):
    """A checkout and a copy in site-packages shrink alike, and leave nothing in the folder."""
    elsewhere, folder = tmp_path / "site-packages", tmp_path / "work"
    folder.mkdir()
    package = Path(adadelta_cli.__file__).parent
    shutil.copytree(package, elsewhere / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from adadelta_cli.verification import fuzz, shrink\n"
        "assert shrink.__file__.startswith(sys.argv[1]) and 'hypothesis' not in sys.modules\n"
        "for case in fuzz.fuzzed_cases(0, 20):\n"
        "    print(shrink.shrink(case, lambda each: each.elements % 7 == 3).name)"
    )
    shown = [
        subprocess.run(
            [sys.executable, "-c", code, place],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        ).stdout
        for place in (package.parent, elsewhere)
    ]
    assert shown[0] == shown[1] and shown[0].count("\n") == 20
    assert list(folder.iterdir()) == []
