"""The self-test catches each mutant, and raises no false alarm."""

from __future__ import annotations

import csv
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import HERE

from adadelta_cli import files
from adadelta_cli.errors import BrokenError, ExitCode
from adadelta_cli.implementations import registry
from adadelta_cli.verification import cases, mutation_report, self_test
from adadelta_cli.verification.mutants import MUTANTS, SOURCES, Mutant
from adadelta_cli.verification.self_test import MutantRow, SelfTest

PAGE = HERE.parent / "docs" / "self-test.md"
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
IN_UPDATE = [mutant for mutant in MUTANTS if mutant.part == "update" and mutant.case != "million"]
SOME_IN_KERNEL = [  # each is compiled
    BY_NAME[name] for name in ("lr-mult-ignored", "part-end-skipped", "empty-tensor-stops")
]


def page_rows():
    """Read the table of the page, a list of cells for each mutant."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return {cells[0]: cells for cells in (re.split(r"\s*\|\s*", line)[1:-1] for line in lines)}


def test_there_are_forty_mutants_of_different_names():
    """At least as many as promised, in both sources; no name and no change is there twice."""
    assert len(BY_NAME) == len(MUTANTS) >= 40
    assert len({(mutant.part, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)
    assert {mutant.part for mutant in MUTANTS} == set(SOURCES)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_mutant_applies_to_its_source(mutant):
    """Its text stands there once, and the change is a change."""
    assert self_test.mutated_text(mutant) != self_test.source(mutant.part)


@pytest.mark.parametrize("old", ["no such text", "p.acc_grad"], ids=["gone", "twice"])
def test_a_mutant_that_no_longer_applies_is_an_error(old):
    """It does not pass silently as caught or as missed."""
    mutant = Mutant("stale", "update", "", old, "x", "")
    with pytest.raises(BrokenError, match=r"'stale' .* \d+ times"):
        self_test.mutated_text(mutant)
    with pytest.raises(BrokenError, match="'stale'"):
        SelfTest([mutant]).execute()


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [*IN_UPDATE, *SOME_IN_KERNEL], ids=lambda mutant: mutant.name)
def test_mutants_are_caught_by_the_case_that_they_name(mutant):
    """And by no smaller one; the page says so, and what other tests make of it."""
    row = self_test.run_mutant(mutant, seed=0)
    assert row.passed and row.caught and row.mismatches > 0
    assert (row.case, row.dtype) == (mutant.case, mutant.dtype)
    _, _, _, where, mxnet, pytorch = page_rows()[f"`{mutant.name}`"]
    assert where == f"`{row.case}` {row.dtype}"
    words = {True: "catches it", False: "lets it pass"}
    assert (mxnet, pytorch) == (words[row.mxnet_test], words[row.pytorch_test])


def test_the_page_lists_the_mutants():
    """Name, mistake, source and case of each, in order; `verify --self-test` writes it anew."""
    listed = [cells[:4] for cells in page_rows().values()]
    assert listed == [
        [
            f"`{mutant.name}`",
            mutant.about,
            f"`{SOURCES[mutant.part]}`",
            f"`{mutant.case}` {mutant.dtype}",
        ]
        for mutant in MUTANTS
    ]
    assert f"Of {len(MUTANTS)} mutants, `verify` catches {len(MUTANTS)}," in PAGE.read_text()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_unchanged_update_raises_no_alarm(seed, monkeypatch):
    """Loaded in the same way, it passes all cases in all dtypes, and the others' tests."""
    small = [case for case in cases.DEFAULT if case.elements * case.steps < 20_000]
    monkeypatch.setattr(cases, "DEFAULT", tuple(small))
    monkeypatch.setitem(cases.CASES, "million", cases.CASES["odd"])
    row = self_test.run_mutant(self_test.CONTROLS[0], seed)
    assert row.passed and not (row.caught or row.mxnet_test or row.pytorch_test)


def test_a_mutant_that_slips_through_fails(monkeypatch):
    """Where no case sees it, the row says so, and the exit code is 1."""
    monkeypatch.setattr(self_test, "candidates", lambda: [cases.CASES["length-0"]])
    row = self_test.run_mutant(BY_NAME["ascent"], seed=0)
    assert not row.passed and not row.caught and row.case == ""
    work = SelfTest([])
    work._rows = dict.fromkeys(range(len(work.mutants)), row)
    assert work.exit_code is ExitCode.CHECK_FAILED


def test_a_false_alarm_fails(monkeypatch):
    """An unchanged source must pass."""
    monkeypatch.setattr(self_test, "candidates", lambda: [cases.CASES["length-1"]])
    wrong = replace(BY_NAME["ascent"], name="unchanged")
    monkeypatch.setattr(
        self_test,
        "mutated_text",
        lambda _: self_test.source("update").replace(wrong.old, wrong.new),
    )
    row = self_test.run_mutant(self_test.CONTROLS[0], seed=0)
    assert row.caught and not row.passed


@pytest.mark.slow
def test_what_gives_no_verdict_is_an_error(monkeypatch):
    """A mutant that raises does not count as caught."""
    monkeypatch.setattr(self_test, "CONTROLS", ())
    old = "weight = p.weight if p.master is None else p.master"
    mutant = Mutant("raises", "update", "", old, "raise RuntimeError", "")
    with pytest.raises(BrokenError, match=r"'raises' .* raised RuntimeError"):
        SelfTest([mutant]).execute()


def test_nothing_is_left_behind():
    """Neither the implementation nor the module stays."""
    before = set(registry.IMPLEMENTATIONS), set(sys.modules)
    self_test.run_mutant(BY_NAME["rate-ignored"], seed=0)
    assert (set(registry.IMPLEMENTATIONS), set(sys.modules)) == before


def test_files(tmp_path):
    """selftest.csv and the page, of whatever rows there are."""
    row = MutantRow(
        "bad", "update.py", "a mistake", "odd", "float32", "weight", 7, True, False, True, True
    )
    mutation_report.write_self_test(tmp_path, [row])
    with (tmp_path / "selftest.csv").open() as file:
        (read,) = csv.DictReader(file)
    assert read["fault"] == "bad" and read["mismatches"] == "7" and read["mxnet_test"] == "false"
    page = (tmp_path / "self-test.md").read_text()
    assert "| `bad` | a mistake | `update.py` | `odd` float32 | lets it pass | catches it |" in page
    assert "Of 1 mutants, `verify` catches 1, MXNet's test 0, PyTorch's 1." in page
    document = mutation_report.self_test_document([row])
    assert json.loads(files.json_text(document))["passed"] is True


def test_an_interrupted_self_test_is_no_pass(tmp_path):
    """Neither by its exit code, nor in its JSON and on its page."""
    row = MutantRow(
        "bad", "update.py", "a mistake", "odd", "float32", "weight", 7, True, False, True, True
    )
    work = SelfTest()
    work._rows[0] = row
    assert work.exit_code is ExitCode.CHECK_FAILED
    missing = f"1 of {len(work.mutants)} sources were checked"
    document = mutation_report.self_test_document(work.rows, work.unfinished)
    assert (document["complete"], document["passed"]) == (False, False)
    mutation_report.write_self_test(tmp_path, work.rows, work.unfinished)
    assert f"Not complete: {missing}. Of 1 mutants" in (tmp_path / "self-test.md").read_text()


def test_it_takes_no_choice(adadelta):
    """With cases, implementations or dtypes it is a usage error, and nothing is written."""
    code, _, err = adadelta("verify", "--self-test", "--case", "odd", "--out", "out")
    assert code == 2 and err.startswith("Error: --self-test ")
    assert not Path("out").exists()
